"""Jobs on a real worker: what survives which death, and what each decision does in each state."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from jobs_line import LONG, STAGE, TRAINING, WORKER, JobLine, job_line, steps, until

from forge_mcp.errors import BadInput, Busy, CorruptArtifact, ForgeError, InvalidSettings
from forge_mcp.jobs import workers
from forge_mcp.jobs.folder import JobFolder
from forge_mcp.jobs.queue import Jobs
from forge_mcp.jobs.workers import WorkerPlace
from forge_mcp.locks import FileLock
from forge_mcp.workspace import Workspace, hash_file, write_file

pytestmark = pytest.mark.integration
# Where the other processes of a test find what this one imports.
TESTS = [str(folder) for folder in Path(__file__).parents[:2]]


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobLine]:
    with job_line(tmp_path, monkeypatch) as made:
        yield made


def test_a_whole_line_as_a_job(line: JobLine) -> None:
    job = line.start("retrain")
    assert job.state in ("queued", "running") and job.job_id.startswith("job-retrain-sample-")
    seen: list[float] = []
    line.jobs.wait(
        job.job_id, 180, sink=lambda e: seen.append(line.jobs._glance(job.job_id).progress)
    )
    done = line.end(job)
    assert done.state == "succeeded" and done.progress == 1.0
    assert (
        done.result is not None and done.result["deployed"] and done.result["state"] == "succeeded"
    )
    assert done.started_at is not None and done.started_at >= done.created_at
    assert seen == sorted(seen)
    assert line.stages_begun(job) == [
        "extract",
        "synthesize",
        "validate",
        "train",
        "evaluate",
        "export",
        "deploy",
    ]
    # A second one finds every artifact, has an estimate, and is much faster.
    again = line.start("retrain")
    assert again.job_id != job.job_id
    found = line.end(again)
    assert found.state == "succeeded" and found.result is not None
    for stage, key in (("train", "run_id"), ("evaluate", "report_id"), ("export", "export_id")):
        assert found.result[stage][key] == done.result[stage][key]
    assert not [e for e in line.events(again) if e.kind == "metric"]
    assert any("succeeded" in text for text in line.jobs.log(job.job_id, 500))
    listed = line.jobs.recent()
    assert [one.job_id for one in listed] == [again.job_id, job.job_id]
    assert line.jobs.recent(states=["failed"]) == [] and line.jobs.recent(project="other") == []
    # Nothing to do: the worker ends by itself.
    until(lambda: not line.processes(WORKER), "end of the worker")


@pytest.mark.e2e
def test_a_gates_no_is_refused_and_not_failed(line: JobLine) -> None:
    job = line.end(line.start("retrain", {"judging": {"max_perplexity_ratio": 0.01}}))
    assert job.state == "refused" and job.error is None
    assert job.result is not None and job.result["reasons"] and not job.result["deployed"]
    assert "not changed" in job.next_step


def test_a_failure_says_why_and_can_be_retried(line: JobLine) -> None:
    corpus = line.end(line.start("extract")).result
    assert corpus is not None
    dataset = line.end(line.start("synthesize", corpus=corpus["corpus_id"])).result
    assert dataset is not None
    failed = line.end(line.start("train", dataset=dataset["dataset_id"]))
    assert failed.state == "failed" and failed.error is not None
    assert failed.error.code == "bad_input" and "validate" in failed.error.next_step
    again = line.end(line.jobs.retry(failed.job_id))
    assert again.job_id == failed.job_id and again.state == "failed"
    with pytest.raises(BadInput, match="cannot be paused"):
        line.jobs.pause(failed.job_id)


def test_the_worker_is_killed_and_nothing_is_done_twice(line: JobLine) -> None:
    calm = line.start("retrain", repo=str(line.repository("calm")))
    until(lambda: list((line.home / "runs").glob("run-*")), "run that nobody disturbed", 300)
    line.jobs.cancel(calm.job_id)  # what follows the training is not compared
    assert line.end(calm).state == "cancelled"
    [run] = (line.home / "runs").glob("run-*")
    expected = hash_file(run / "adapters.safetensors")
    job = line.start("retrain", {"training": {"save_steps": 1}})
    line.wait_for(TRAINING)
    until(lambda: list((line.home / "unfinished").glob("*/checkpoints/step-*")), "checkpoint")
    worker = line.wait_for(WORKER)
    stage, training = line.wait_for(STAGE), line.wait_for(TRAINING)
    worker.kill()
    for process in (stage, training):  # nobody trains on without a worker
        process.wait(timeout=30)
    assert line.jobs.status(job.job_id).state == "running"  # and a new worker is there
    done = line.end(job)
    assert done.state == "succeeded", done
    assert line.stages_begun(job)[:4] == ["extract", "synthesize", "validate", "train"]
    computed = [e.payload["message"] for e in line.events(job) if e.kind == "log"]
    assert sum("Resumed after step" in text for text in computed) == 1
    assert sum("blocks from" in text for text in computed) == 1
    # The other repository has the same content and the same seed, but another project's settings
    # hash: what must be equal is what was trained.
    assert done.result is not None
    trained = Path(done.result["train"]["path"])
    assert hash_file(trained / "adapters.safetensors") == expected


@pytest.mark.e2e
def test_the_training_child_is_killed(line: JobLine) -> None:
    job = line.start("retrain", steps(60, save=2))
    until(lambda: list((line.home / "unfinished").glob("*/checkpoints/step-*")), "checkpoint")
    line.kill(TRAINING)
    failed = line.end(job)
    assert failed.state == "failed" and failed.error is not None
    assert "SIGKILL" in failed.error.message and "jobs retry" in failed.next_step
    done = line.end(line.jobs.retry(job.job_id))
    assert done.state == "succeeded"
    assert any("Resumed after step" in str(e.payload.get("message")) for e in line.events(job))


@pytest.mark.e2e
def test_pause_and_resume_in_the_middle_of_a_training(line: JobLine) -> None:
    job = line.start("retrain", steps(40, save=400))
    training = line.wait_for(TRAINING)
    until(lambda: [e for e in line.events(job) if e.kind == "metric"], "step")
    pausing = line.jobs.pause(job.job_id)
    assert pausing.state in ("pausing", "paused")
    paused = line.end(job)
    assert paused.state == "paused" and "resume" in paused.next_step
    assert not psutil.pid_exists(training.pid)
    assert list((line.home / "unfinished").glob("*/checkpoints/step-*"))
    # Others may use the machine meanwhile.
    other = line.end(line.start("retrain", repo=str(line.repository("other"))))
    assert other.state == "succeeded"
    assert line.jobs.resume(job.job_id).state in ("queued", "running")
    done = line.end(job)
    assert done.state == "succeeded" and done.result is not None
    assert done.result["train"]["steps"] == 40
    assert not list((line.home / "unfinished").iterdir())


def test_decisions_in_every_state(line: JobLine) -> None:
    running = line.start("retrain", LONG)
    line.wait_for(TRAINING)
    queued = line.start("retrain", LONG, repo=str(line.repository("second")))
    third = line.start("retrain", LONG, repo=str(line.repository("third")))
    assert queued.state == "queued" and "job_status" in queued.next_step

    assert line.jobs.pause(queued.job_id).state == "paused"
    assert line.jobs.pause(queued.job_id).state == "paused"  # twice is once
    assert line.jobs.resume(queued.job_id).state == "queued"
    assert line.jobs.resume(queued.job_id).state == "queued"
    assert line.jobs.cancel(queued.job_id).state == "cancelled"
    assert line.jobs.cancel(queued.job_id).state == "cancelled"
    with pytest.raises(BadInput, match="cannot be resumed"):
        line.jobs.resume(queued.job_id)

    assert line.jobs.pause(third.job_id).state == "paused"
    assert line.jobs.cancel(third.job_id).state == "cancelled"  # a paused one

    with pytest.raises(BadInput, match="cannot be retried"):
        line.jobs.retry(running.job_id)
    line.jobs.pause(running.job_id)
    cancelled = line.jobs.cancel(running.job_id)  # while it is pausing
    assert cancelled.state in ("running", "cancelled")
    assert line.end(running).state == "cancelled"
    assert not line.processes(TRAINING) and not line.processes(STAGE)
    with pytest.raises(BadInput, match="cannot be cancelled"):
        line.jobs.cancel(line.end(line.start("extract")).job_id)

    again = line.jobs.retry(queued.job_id)
    assert again.state == "queued" or again.state == "running"
    line.wait_for(TRAINING)
    line.jobs.cancel(queued.job_id)
    assert line.end(queued).state == "cancelled"


def test_a_cancelled_job_wins_over_a_pause(line: JobLine) -> None:
    job = line.start("retrain", LONG)
    line.wait_for(TRAINING)
    line.jobs.cancel(job.job_id)
    if line.jobs.status(job.job_id).state != "cancelled":
        with pytest.raises(BadInput, match="being cancelled"):
            line.jobs.pause(job.job_id)
    assert line.end(job).state == "cancelled"


def test_asked_again_it_is_the_same_job(line: JobLine) -> None:
    first = line.start("retrain", LONG)
    assert line.start("retrain", LONG).job_id == first.job_id
    other = line.start("retrain", {"training": {"seed": 3}})
    assert other.job_id != first.job_id
    assert len(list((line.home / "jobs").glob("job-*"))) == 2
    for job in (first, other):
        line.jobs.cancel(job.job_id)
        assert line.end(job).state == "cancelled"


CLIENT = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
from jobs_line import JobLine
line = JobLine(Path({folder!r}))
jobs = [line.start("extract", {{"mining": {{"min_tokens": n}}}}) for n in {numbers!r}]
print(" ".join(line.end(job).state for job in jobs))
"""


def test_three_clients_at_once_and_one_worker(line: JobLine, tmp_path: Path) -> None:
    line.repository()
    clients = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                CLIENT.format(tests=TESTS, folder=str(tmp_path), numbers=[20, 21 + n]),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    workers: set[int] = set()
    while any(client.poll() is None for client in clients):
        alive = {p.pid for p in line.processes(WORKER)}
        workers |= alive
        time.sleep(0.05)
    outputs = [client.communicate()[0].split() for client in clients]
    assert outputs == [["succeeded", "succeeded"]] * 3
    held = WorkerPlace(line.home, "local").record
    assert held is not None and held.pid in workers
    # One of the two was the same for all three, unless it had ended before the next one asked.
    assert 4 <= len(line.jobs.recent()) <= 6


@pytest.mark.e2e
def test_queued_jobs_run_in_order_one_training_at_a_time(line: JobLine) -> None:
    jobs = [
        line.start("retrain", {"training": {"max_steps": 1}}, repo=str(line.repository(f"r{n}")))
        for n in range(3)
    ]
    for job in jobs:
        assert line.end(job).state == "succeeded"
    spans = []
    for job in jobs:
        times = [event.time for event in line.events(job)]
        spans.append((times[0], times[-1]))
    assert spans == sorted(spans)
    for (_, ended), (begun, _) in pairwise(spans):
        assert begun >= ended


@pytest.mark.e2e
def test_fifty_jobs_run_in_the_order_in_which_they_were_queued(
    line: JobLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_JOBS__CONCURRENT_OTHERS", "1")
    jobs = [line.start("extract", {"mining": {"min_tokens": n}}) for n in range(50)]
    assert len({job.job_id for job in jobs}) == 50
    for job in jobs:
        assert line.end(job).state == "succeeded"
    begun = [line.events(job)[0].time for job in jobs]
    ended = [line.events(job)[-1].time for job in jobs]
    assert begun == sorted(begun)
    assert all(later >= earlier for earlier, later in zip(ended, begun[1:], strict=False))


@pytest.mark.e2e
def test_a_job_that_comes_in_the_last_moment_finds_a_worker(line: JobLine) -> None:
    """The worker ends for want of work just when a job is queued, again and again."""
    for number in range(4):
        job = line.end(line.start("extract", {"mining": {"min_tokens": number}}))
        assert job.state == "succeeded"
        worker = line.wait_for(WORKER)
        worker.send_signal(15)  # ends at once, as if it had been idle
        done = line.end(line.start("extract", {"mining": {"min_tokens": 100 + number}}))
        assert done.state == "succeeded"


@pytest.mark.e2e
def test_sigterm_leaves_the_job_to_the_next_worker(line: JobLine) -> None:
    job = line.start("retrain", steps(40, save=400))
    line.wait_for(TRAINING)
    until(lambda: [e for e in line.events(job) if e.kind == "metric"], "step")
    worker = line.wait_for(WORKER)
    worker.terminate()
    worker.wait(timeout=90)
    assert not line.processes(TRAINING) and not line.processes(STAGE)
    done = line.end(job)  # which starts a worker
    assert done.state == "succeeded"
    assert any("Resumed after step" in str(e.payload.get("message")) for e in line.events(job))


# -- a laptop's life ------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_low_battery_pauses_and_power_resumes(line: JobLine) -> None:
    from forge_mcp.jobs.worker import Worker
    from forge_mcp.machine import Battery
    from forge_mcp.settings import load_settings

    job = line.start("retrain", steps(30, save=400))
    line.wait_for(TRAINING)
    state = Battery(percent=12.0, plugged=False)
    watcher = Worker(
        line.home, WorkerPlace(line.home, "watcher"), load_settings().jobs, lambda: state
    )
    watcher.client = line.jobs.client
    watcher.running = {job.job_id}
    watcher.watch_battery()
    paused = line.end(job)
    assert paused.state == "paused" and "when there is power" in paused.next_step
    watcher.running = set()
    state = Battery(percent=22.0, plugged=False)  # above the limit, but not by the margin
    watcher.watch_battery()
    assert line.jobs.status(job.job_id).state == "paused"
    state = Battery(percent=22.0, plugged=True)
    watcher.watch_battery()
    assert line.jobs.status(job.job_id).state in ("queued", "running")
    assert line.end(job).state == "succeeded"


def test_a_pause_of_the_user_is_not_undone_by_power(line: JobLine) -> None:
    from forge_mcp.jobs.worker import Worker
    from forge_mcp.machine import Battery
    from forge_mcp.settings import load_settings

    job = line.start("retrain", LONG)
    line.jobs.pause(job.job_id)
    assert line.end(job).state == "paused"
    watcher = Worker(
        line.home,
        WorkerPlace(line.home, "watcher"),
        load_settings().jobs,
        lambda: Battery(percent=100.0, plugged=True),
    )
    watcher.client = line.jobs.client
    watcher.watch_battery()
    assert line.jobs.status(job.job_id).state == "paused"


# -- what goes wrong is said in words -------------------------------------------------------------


def test_a_damaged_database(line: JobLine) -> None:
    line.home.mkdir(parents=True)
    (line.home / "jobs.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptArtifact, match=r"jobs\.db is damaged") as caught:
        line.start("extract")
    assert "Move" in caught.value.next_step
    assert not list((line.home / "jobs").glob("job-*"))


def test_a_locked_database(line: JobLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.jobs.database.BUSY_SECONDS", 0.5)
    assert line.end(line.start("extract")).state == "succeeded"
    holder = sqlite3.connect(line.home / "jobs.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    jobs = Jobs(line.home)
    try:
        with pytest.raises(Busy, match="is locked"):
            jobs.recent()
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert len(jobs.recent()) == 1


def test_a_worker_that_cannot_start(line: JobLine, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = line.start  # the settings of the call are sound, those of the worker are not
    monkeypatch.setenv("FORGE_DATABASE_URL", "mysql://127.0.0.1/forge")
    with pytest.raises(InvalidSettings, match="no address of a PostgreSQL database"):
        declared("extract")
    monkeypatch.delenv("FORGE_DATABASE_URL")
    monkeypatch.setattr("forge_mcp.jobs.workers.sys.executable", "/nowhere/python")
    with pytest.raises(ForgeError, match="start the worker") as caught:
        declared("extract")
    assert "/nowhere/python" in str(caught.value)


def test_a_job_whose_database_is_gone(line: JobLine) -> None:
    job = line.end(line.start("extract"))
    line.close()
    (line.home / "jobs.db").unlink()
    fresh = JobLine(line.folder)
    assert fresh.end(fresh.start("extract", {"mining": {"min_tokens": 1}})).state == "succeeded"
    lost = fresh.jobs.status(job.job_id)
    assert lost.state == "failed" and lost.error is not None
    assert "does not know" in lost.error.message


def test_old_jobs_are_forgotten_and_artifacts_stay(line: JobLine) -> None:
    job = line.end(line.start("extract"))
    assert line.jobs.clean(1.0) == []
    assert line.jobs.clean(0.0) == [job.job_id]
    assert line.jobs.recent() == [] and not JobFolder(line.home, job.job_id).exists
    assert Workspace(line.home).artifacts("corpus")


# -- an upgrade ------------------------------------------------------------------------------


def installed(folder: Path, version: str) -> Path:
    """The interpreter of an environment in which another version of this package is installed."""
    import forge_mcp

    sources = folder / "sources"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(forge_mcp.__file__).parent, sources / "forge_mcp", ignore=ignored)
    init = sources / "forge_mcp" / "__init__.py"
    text = init.read_text("utf-8")
    assert forge_mcp.__version__ in text
    init.write_text(text.replace(forge_mcp.__version__, version), "utf-8")
    venv.create(folder / "venv", symlinks=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    paths = [sources, *(Path(p) for p in sys.path if p.endswith("site-packages"))]
    (packages / "other.pth").write_text("".join(f"{path}\n" for path in paths), "utf-8")
    return folder / "venv" / "bin" / "python"


@pytest.mark.e2e
def test_an_upgrade_strands_no_job(
    line: JobLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine looks late: a new worker that has ended by then is replaced by an old one.
    monkeypatch.setenv("FORGE_JOBS__IDLE_SECONDS", "60")
    running = line.start("retrain", steps(30))
    line.wait_for(TRAINING)
    waiting = line.start("retrain", repo=str(line.repository("second")))
    old = WorkerPlace(line.home, "local").record
    assert old is not None
    script = (
        "import sys\nfrom pathlib import Path\n"
        f"sys.path[:0] = {TESTS!r}\n"
        "import forge_mcp\nassert forge_mcp.__version__ == '9.9.9'\n"
        "from jobs_line import JobLine\n"
        f"line = JobLine(Path({str(tmp_path)!r}))\n"
        "line.repository('third')\n"
        "print(line.start('retrain', repo=str(line.folder / 'third')).job_id)\n"
    )
    out = subprocess.run(
        [installed(tmp_path / "v9", "9.9.9"), "-c", script],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    third = line.jobs.status(out.split()[-1])
    for job in (running, waiting, third):
        assert line.end(job).state == "succeeded"
    new = WorkerPlace(line.home, "local").record
    assert new is not None and new.version == "9.9.9" and new.pid != old.pid, (new, old)
    # What ran when the upgrade came was not broken off.
    assert not any("Resumed after" in str(e.payload.get("message")) for e in line.events(running))


def test_an_older_client_starts_the_successor_in_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own version would undo the handover; a request that leads nowhere binds nobody."""
    started: list[str] = []

    def start(home: Path, executable: str) -> None:
        started.append(executable)
        raise Busy("Seen.", cause="this is a test", next_step="None.")

    monkeypatch.setattr(workers, "start", start)
    place = WorkerPlace(tmp_path, "local")
    present = tmp_path / "python"
    present.touch()
    for version, executable in (
        ("9.9.9", present),
        ("9.9.9", tmp_path / "gone"),
        ("0.0.0", present),
    ):
        asked = workers.Handover(version=version, executable=str(executable))
        write_file(place.handover_file, asked.model_dump_json())
        with pytest.raises(Busy):
            workers.ensure_worker(tmp_path)
    assert started == [str(present), sys.executable, sys.executable]


def test_the_words_of_a_dead_worker_are_not_its_successors(tmp_path: Path) -> None:
    """The new one holds the lock before it has said anything, and before the database is made."""
    place = WorkerPlace(tmp_path, "local")
    ended = subprocess.Popen([sys.executable, "-c", ""])  # not waited for: it stays as a zombie
    until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE, "its end")

    def say(pid: int, state: Literal["starting", "ready"]) -> None:
        place.record = workers.WorkerRecord(
            name="local", pid=pid, host="here", version="1", state=state
        )

    say(os.getpid(), "ready")
    assert place.serving is None  # nobody holds the lock
    with FileLock(place.lock) as lock:
        assert lock.acquire()
        assert place.serving is not None
        say(os.getpid(), "starting")
        assert place.serving is None
        say(ended.pid, "ready")
        assert place.serving is None
        ended.wait()
        assert place.serving is None


def test_what_an_older_version_queued_is_done_by_a_newer_one(
    line: JobLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = line.start("retrain", steps(200, save=1))
    until(lambda: list((line.home / "unfinished").glob("*/checkpoints/step-*")), "checkpoint")
    line.kill(WORKER)  # the machine went down, was upgraded, and came up again
    upgraded = str(installed(tmp_path / "v9", "9.9.9"))
    monkeypatch.setattr("forge_mcp.jobs.workers.sys.executable", upgraded)
    line.jobs.status(job.job_id)
    until(
        lambda: (r := WorkerPlace(line.home, "local").record) and r.version == "9.9.9", "new worker"
    )
    line.wait_for(TRAINING)
    line.jobs.cancel(job.job_id)
    assert line.end(job).state == "cancelled"


def test_waiting_can_be_given_up(line: JobLine) -> None:
    job = line.start("retrain", LONG)
    cancel = threading.Event()
    cancel.set()
    assert line.jobs.wait(job.job_id, cancel=cancel).state in ("queued", "running")
    started = time.monotonic()
    assert line.jobs.wait(job.job_id, 0.5).state in ("queued", "running")
    assert time.monotonic() - started < 60
    line.jobs.cancel(job.job_id)
    done: Any = line.end(job)
    assert done.state == "cancelled"
