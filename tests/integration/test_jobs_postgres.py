"""The same queue in PostgreSQL: a real server, two workers that share one workspace."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_line import LONG, STAGE, TRAINING, WORKER, JobLine, job_line, steps, until

from forge_mcp.errors import Unavailable
from forge_mcp.jobs.workers import WorkerPlace, ensure_worker

pytestmark = pytest.mark.integration


def binary(name: str) -> str | None:
    """A program of PostgreSQL: on the path, or where Debian keeps it."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(debian[-1]) if debian else None)


def unprivileged() -> tuple[list[str], int | None]:
    """How to run a program not as root, which PostgreSQL refuses: (prefix, user id)."""
    if os.geteuid() != 0:
        return [], None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
        return ["setpriv", f"--reuid={user}", "--clear-groups"], user
    pytest.skip("PostgreSQL does not run as root, and there is no user 'nobody'")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database on a server of its own, on a free port of loopback."""
    initdb, postgres = binary("initdb"), binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    prefix, user = unprivileged()
    data = tmp_path_factory.mktemp("postgres") / "data"
    data.mkdir()
    temporary = Path(tempfile.gettempdir()).resolve()
    if user is not None:
        os.chown(data, user, -1)
        for folder in data.parents:  # pytest keeps its own to itself
            if temporary in folder.parents:
                folder.chmod(0o755)
    subprocess.run(
        [*prefix, initdb, "-D", str(data), "-U", "forge", "-A", "trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(data), "-c", "fsync=off"]
    process = subprocess.Popen(
        [*prefix, postgres, "-D", str(data), *options],
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: answers(port), "PostgreSQL")
        yield f"postgresql://forge@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)  # "fast": does not wait for connections
        process.wait(timeout=90)


def answers(port: int) -> bool:
    """Whether the server takes connections."""
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="forge", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[JobLine]:
    """A workspace whose queue is a fresh database; this machine's worker is called 'one'."""
    name = "forge_" + hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    address = f"{server}/{name}"
    with job_line(tmp_path, monkeypatch, FORGE_DATABASE_URL=address, FORGE_WORKER="one") as made:
        yield made


def second_worker(line: JobLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start worker 'two' in the same workspace, as another machine would."""
    monkeypatch.setenv("FORGE_WORKER", "two")
    ensure_worker(line.home)
    monkeypatch.setenv("FORGE_WORKER", "one")
    ensure_worker(line.home)


def test_a_job_in_a_database_of_its_own(line: JobLine) -> None:
    job = line.start("extract")
    assert line.end(job).state == "succeeded"
    assert [one.job_id for one in line.jobs.recent()] == [job.job_id]
    assert not (line.home / "jobs.db").exists()


@pytest.mark.e2e
def test_a_line_pause_and_cancel(line: JobLine) -> None:
    job = line.start("retrain", steps(30))
    assert not (line.home / "jobs.db").exists()
    line.wait_for(TRAINING)
    until(lambda: [e for e in line.events(job) if e.kind == "metric"], "step")
    line.jobs.pause(job.job_id)
    assert line.end(job).state == "paused"
    line.jobs.resume(job.job_id)
    done = line.end(job)
    assert done.state == "succeeded" and done.result is not None
    assert done.result["train"]["steps"] == 30
    again = line.start("retrain", LONG)
    line.wait_for(TRAINING)
    line.jobs.cancel(again.job_id)
    assert line.end(again).state == "cancelled"
    queued = line.start("extract", {"mining": {"min_tokens": 1}})
    assert line.end(queued).state == "succeeded"
    assert len(line.jobs.recent()) == 3


@pytest.mark.e2e
def test_two_workers_never_train_at_once(line: JobLine, monkeypatch: pytest.MonkeyPatch) -> None:
    repositories = [line.repository(f"r{n}") for n in range(3)]
    jobs = [line.start("retrain", repo=str(path)) for path in repositories]
    second_worker(line, monkeypatch)
    assert len(line.processes(WORKER)) == 2
    most = 0
    while any(line.jobs.wait(job.job_id, 0).state != "succeeded" for job in jobs):
        most = max(most, len(line.processes(TRAINING)))
        states = [line.jobs.wait(job.job_id, 0).state for job in jobs]
        assert not {"failed", "cancelled", "refused"} & set(states), states
        time.sleep(0.05)
    assert most == 1


@pytest.mark.e2e
def test_a_dead_workers_job_goes_to_the_other_one(
    line: JobLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = line.start("retrain", steps(60, save=2))
    line.wait_for(TRAINING)
    second_worker(line, monkeypatch)
    until(lambda: list((line.home / "unfinished").glob("*/checkpoints/step-*")), "checkpoint")
    one, two = (WorkerPlace(line.home, name).record for name in ("one", "two"))
    assert one is not None and two is not None
    rows = line.jobs._rows(workflow_ids=[job.job_id])
    owner, other = (one, two) if rows[0].executor_id == "one" else (two, one)
    monkeypatch.setenv("FORGE_WORKER", other.name)  # so that nobody starts the dead one again
    victim = next(p for p in line.processes(WORKER) if p.pid == owner.pid)
    victim.kill()
    done = line.end(job)
    assert done.state == "succeeded"
    assert line.jobs._rows(workflow_ids=[job.job_id])[0].executor_id == other.name
    assert any("Resumed after step" in str(e.payload.get("message")) for e in line.events(job))


def test_a_worker_that_was_frozen_lets_go(line: JobLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slept wakes up and finds that its job runs elsewhere."""
    job = line.start("retrain", steps(1000, save=2))
    line.wait_for(TRAINING)
    second_worker(line, monkeypatch)
    until(lambda: list((line.home / "unfinished").glob("*/checkpoints/step-*")), "checkpoint")
    rows = line.jobs._rows(workflow_ids=[job.job_id])
    owner = rows[0].executor_id
    other = "two" if owner == "one" else "one"
    # What the other machine decides after a minute without a heartbeat.
    line.jobs.client._sys_db.reenqueue_for_recovery(job.job_id, [owner], "unused")
    until(
        lambda: (
            line.jobs._rows(workflow_ids=[job.job_id])[0].executor_id == other
            or line.jobs._rows(workflow_ids=[job.job_id])[0].status == "PENDING"
        ),
        "another owner",
    )
    until(lambda: len(line.processes(STAGE)) == 1, "one stage that is left", 60)
    line.jobs.cancel(job.job_id)
    assert line.end(job).state == "cancelled"


def test_a_server_that_is_away_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "postgresql://me:secret@127.0.0.1:1/forge"
    with (
        job_line(tmp_path, monkeypatch, FORGE_DATABASE_URL=nowhere) as line,
        pytest.raises(Unavailable, match="cannot be used") as caught,
    ):
        line.start("extract")
    assert "secret" not in str(caught.value)
