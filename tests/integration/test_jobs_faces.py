"""Jobs at the faces: the command line and MCP, with a real worker behind both."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from jobs_line import LONG, JobLine, job_line, until
from mcp import Client
from mcp.types import CallToolResult, TextContent

from forge_mcp.interfaces.cli import main
from forge_mcp.interfaces.mcp.server import ForgeServer, build_server
from forge_mcp.schemas.jobs import JobStatus
from forge_mcp.workspace import Workspace

pytestmark = pytest.mark.integration
FORGE = [sys.executable, "-m", "forge_mcp.interfaces.cli"]
LONG_SETTINGS = [f"--set=training.{name}={value}" for name, value in LONG["training"].items()]
CLOSED = "--set=quality.min_examples=100000"  # the first gate: refused without a training
SOON = 60.0  # seconds: what shall be answered at once may take on a busy machine


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobLine]:
    """One workspace for all of them, and a worker that waits from one test to the next."""
    folder, patience = tmp_path_factory.mktemp("faces"), {"FORGE_JOBS__IDLE_SECONDS": "10"}
    with (
        pytest.MonkeyPatch.context() as environment,
        job_line(folder, environment, **patience) as made,
    ):
        yield made


class Shell:
    """`forge-mcp` in this process: quicker than a process for each command."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        self.capfd.readouterr()
        code = main([str(one) for one in arguments])
        return code, *self.capfd.readouterr()

    def json(self, *arguments: object) -> tuple[int, dict[str, Any], str]:
        """The same with the one object that is on stdout."""
        code, out, err = self(*arguments, "--json")
        return code, json.loads(out), err

    def detach(self, *arguments: object) -> str:
        """Start a job; returns its id."""
        code, job, err = self.json(*arguments, "--detach")
        assert code == 0, (job, err)
        return str(job["job_id"])


@pytest.fixture
def forge(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


@asynccontextmanager
async def agent(line: JobLine, answer_seconds: float = 60.0) -> AsyncIterator[Client]:
    async with Client(build_server(Workspace(line.home), answer_seconds)) as client:
        yield client


async def ask(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text_of(result)
    fields: dict[str, Any] = result.structured_content or {}
    return fields


def text_of(result: CallToolResult) -> str:
    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


# -- the command line -------------------------------------------------------------------------


def test_detached_and_looked_at_from_other_processes(line: JobLine) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run([*FORGE, *arguments], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("extract", str(line.repository()), "--detach")
    assert code == 0, err
    job_id = out.split()[0]
    assert job_id.startswith("job-extract-sample-") and f"forge-mcp jobs wait {job_id}" in out

    code, out, err = run("jobs", "wait", job_id, "--json")
    assert code == 0, err
    job = json.loads(out)
    assert (job["state"], job["progress"], job["error"]) == ("succeeded", 1.0, None)
    assert job["result"]["blocks"] > 0
    assert "[1/1] extract" in err and "extract 8/8" in err

    code, out, _ = run("jobs", "list")
    assert code == 0
    head, row = out.splitlines()
    assert head.split() == ["JOB", "STATE", "STAGE", "DONE", "LEFT", "PROJECT"]
    assert row.split() == [job_id, "succeeded", "extract", "100%", "sample"]
    assert head.index("PROJECT") == row.index("sample", len(job_id))

    code, out, _ = run("jobs", "logs", job_id)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith("[1/1] extract") and lines[-1].endswith(" succeeded")


def test_show_is_readable_and_an_unknown_job_is_told(line: JobLine, forge: Shell) -> None:
    job_id = forge.detach("extract", line.repository())
    assert forge("jobs", "wait", job_id)[0] == 0
    code, out, err = forge("jobs", "show", job_id)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == job_id and "  state     succeeded\n" in out
    assert "    corpus_id " in out and out.splitlines()[-1].startswith("next: ")
    code, told, _ = forge.json("jobs", "show", "job-none")
    assert code == 2 and told["error"]["code"] == "not_found"
    assert job_id in told["error"]["next_step"]


def test_jobs_alone_shows_its_help(forge: Shell) -> None:
    code, out, err = forge("jobs")
    assert (code, err) == (0, "")
    for word in ("list", "show", "wait", "cancel", "pause", "resume", "retry", "logs", "clean"):
        assert f"    {word} " in out
    assert forge("jobs", "nonsense")[0] == 2
    assert forge("jobs", "show")[0] == 2
    assert forge("init", "--detach")[0] == 2


def test_a_gates_no_ends_the_waiting_with_3(line: JobLine, forge: Shell) -> None:
    job_id = forge.detach("retrain", line.repository(), CLOSED)
    code, job, err = forge.json("jobs", "wait", job_id)
    assert (code, job["state"], job["error"]) == (3, "refused", None)
    assert job["result"]["reasons"] and job["result"]["train"] is None
    assert "A gate said no" in err and "[3/7] validate" in err
    assert forge("jobs", "show", job_id)[0] == 0


def test_a_failure_ends_the_waiting_with_1_and_says_why(line: JobLine, forge: Shell) -> None:
    dataset = raw_dataset(line, forge)
    code, job, err = forge.json("jobs", "wait", forge.detach("train", dataset))
    assert (code, job["state"], job["result"]) == (1, "failed", None)
    assert "error: " in err and job["error"]["message"] in err and "validate" in err
    code, out, err = forge("jobs", "show", job["job_id"])
    assert (code, err) == (0, "") and f"error: {job['error']['message']}" in out


def test_nothing_is_queued_on_bad_input(line: JobLine, forge: Shell) -> None:
    before = line.jobs.recent()
    for arguments in (["train", "ds-none"], ["extract", "/does/not/exist"], ["train"]):
        code, told, _ = forge.json(*arguments, "--detach")
        assert code == 2 and told["error"]["message"]
    assert line.jobs.recent() == before


def test_clean_forgets_what_has_ended(line: JobLine, forge: Shell) -> None:
    job_id = forge.detach("extract", line.repository())
    assert forge("jobs", "wait", job_id)[0] == 0
    assert forge("jobs", "clean")[1] == "No job ended so long ago.\n"
    code, told, _ = forge.json("jobs", "clean", "--older-than-days", 0)
    assert code == 0 and job_id in told["forgotten"]
    assert forge("jobs", "show", job_id)[0] == 2
    assert forge("jobs", "list")[1] == "There are no such jobs.\n"


def raw_dataset(line: JobLine, forge: Shell) -> str:
    """A dataset that was not validated: no training takes it."""
    corpus = forge.json("extract", line.repository())[1]["corpus_id"]
    return str(forge.json("synthesize", corpus)[1]["dataset_id"])


# -- MCP --------------------------------------------------------------------------------------


async def test_a_short_job_is_answered_at_once(line: JobLine) -> None:
    async with agent(line) as client:
        job = await ask(client, "extract", repo=str(line.repository()))
        assert job["state"] == "succeeded" and job["result"]["corpus_id"].startswith("corpus-")
        listed = await ask(client, "job_list")
        assert listed["jobs"][0]["job_id"] == job["job_id"]
        assert listed["jobs"][0]["result"] is None
        logs = await ask(client, "job_logs", job_id=job["job_id"])
        assert logs["lines"][-1].endswith(" succeeded")


async def test_a_gates_no_is_a_normal_answer(
    line: JobLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_QUALITY__MIN_EXAMPLES", "100000")
    async with agent(line) as client:
        job = await ask(client, "retrain", repo=str(line.repository()))
    assert (job["state"], job["result"]["deployed"]) == ("refused", False)
    assert job["result"]["reasons"]


async def test_a_failure_within_the_answer_is_a_tool_error(line: JobLine, forge: Shell) -> None:
    dataset = raw_dataset(line, forge)
    async with agent(line) as client:
        failed = await client.call_tool("train", {"dataset": dataset})
        assert failed.is_error and "validate" in text_of(failed)
        job_id = line.jobs.recent(limit=1)[0].job_id
        assert f"The job is {job_id}." in text_of(failed)
        # Who asks for the job is answered.
        assert (await ask(client, "job_status", job_id=job_id))["state"] == "failed"


async def test_bad_calls_are_refused_before_anything_is_queued(line: JobLine) -> None:
    before = line.jobs.recent()
    async with agent(line) as client:
        for tool, arguments, words in (
            ("extract", {"repo": "/does/not/exist"}, "no repository"),
            ("train", {"dataset": "ds-none"}, "no dataset"),
            ("train", {"data": "ds-none"}, "'data' is not known"),
            ("retrain", {"project": "nobody"}, "no project"),
            ("job_status", {"job_id": "job-none"}, "no job"),
            ("job_status", {"job_id": "job-none", "project": "x"}, "'project' is not known"),
            ("job_wait", {"job_id": "job-none"}, "Unknown tool"),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error and words in text_of(result), (tool, text_of(result))
    assert line.jobs.recent() == before


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_an_agent_that_leaves_finds_its_job_done(line: JobLine, forge: Shell, how: str) -> None:
    """Started through MCP; the client is gone before the end; looked at from a terminal."""
    repository = line.repository(f"left-{how}")
    server = subprocess.Popen([*FORGE, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server:
        call_extract(server, repository)
        (job,) = until(lambda: line.jobs.recent(project=repository.name), "job", SOON)
        assert server.stdin is not None
        if how == "killed":
            server.kill()
        else:
            server.stdin.close()
        assert job.state in ("queued", "running"), "it has not ended yet"
        assert server.wait(SOON) == (-signal.SIGKILL if how == "killed" else 0)
    code, ended, err = forge.json("jobs", "wait", job.job_id)
    assert (code, ended["state"]) == (0, "succeeded"), err
    assert ended["result"]["blocks"] > 0


def call_extract(server: subprocess.Popen[bytes], repository: Path) -> None:
    """The handshake, and a call whose answer nobody will read."""

    def send(**message: Any) -> None:
        assert server.stdin is not None
        server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        server.stdin.flush()

    client = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    send(id=1, method="initialize", params=client)
    assert server.stdout is not None and b'"id":1' in server.stdout.readline()
    send(method="notifications/initialized")
    call = {"name": "extract", "arguments": {"repo": str(repository)}}
    send(id=2, method="tools/call", params=call)


async def test_from_a_terminal_to_an_agent(line: JobLine, forge: Shell) -> None:
    job_id = forge.detach("retrain", line.repository("handed-over"), CLOSED)
    seen: list[tuple[float, float | None, str | None]] = []

    async def show(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with agent(line) as client:
        result = await client.call_tool(
            "job_status", {"job_id": job_id, "wait_seconds": 60}, progress_callback=show
        )
    job = result.structured_content or {}
    assert (job["state"], job["result"]["deployed"]) == ("refused", False)
    numbers = [one[0] for one in seen]
    assert numbers and numbers == sorted(set(numbers))


# -- a long job, and others behind it ---------------------------------------------------------


@pytest.fixture(scope="module")
def training(line: JobLine) -> Iterator[JobStatus]:
    """A job that works as long as the tests need it, and keeps others waiting."""
    job = line.start("retrain", LONG, repo=str(line.repository("long")))
    until(lambda: line.jobs.status(job.job_id).state == "running", "running job")
    yield job
    assert line.jobs.status(job.job_id).state == "cancelled", "the last test cancels it"


def test_a_waiting_job_is_paused_resumed_and_cancelled(
    line: JobLine, forge: Shell, training: JobStatus
) -> None:
    job_id = forge.detach("retrain", line.repository("behind"), CLOSED)
    assert forge.detach("retrain", line.repository("behind"), CLOSED) == job_id, "asked twice"

    code, job, err = forge.json("jobs", "wait", job_id, "--timeout", 0.3)
    assert (code, job["state"]) == (1, "queued") and "goes on" in err

    assert forge.json("jobs", "pause", job_id)[1]["state"] == "paused"
    code, job, err = forge.json("jobs", "wait", job_id)
    assert (code, job["state"]) == (0, "paused") and "The job is paused." in err

    assert forge.json("jobs", "resume", job_id)[1]["state"] == "queued"
    assert forge.json("jobs", "cancel", job_id)[1]["state"] == "cancelled"
    code, job, err = forge.json("jobs", "wait", job_id)
    assert (code, job["state"]) == (130, "cancelled") and "was cancelled" in err

    code, told, _ = forge.json("jobs", "pause", job_id)
    assert code == 2 and "it is cancelled" in told["error"]["cause"]
    listed = forge.json("jobs", "list", "--state", "cancelled", "--project", "behind")[1]
    assert [one["job_id"] for one in listed["jobs"]] == [job_id]


def test_ctrl_c_ends_only_the_waiting(line: JobLine, training: JobStatus) -> None:
    waiting = subprocess.Popen(
        [*FORGE, "jobs", "wait", training.job_id, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == "[1/7] extract\n"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=SOON)
    assert waiting.returncode == 130
    error = json.loads(out)["error"]
    assert error["code"] == "cancelled" and "the job goes on" in error["message"]
    assert "the job goes on" in err and training.job_id in err and "Traceback" not in err
    assert line.jobs.status(training.job_id).state == "running"


async def test_a_tool_answers_although_its_job_must_wait(
    line: JobLine, training: JobStatus
) -> None:
    async with agent(line, answer_seconds=0.5) as client:
        began = time.monotonic()
        job = await ask(client, "retrain", repo=str(line.repository("behind")))
        assert time.monotonic() - began < SOON
        assert (job["state"], job["result"]) == ("queued", None)
        assert f"job_status(job_id='{job['job_id']}'" in job["next_step"]
        cancelled = await ask(client, "job_cancel", job_id=job["job_id"])
        assert cancelled["state"] == "cancelled"
        again = await client.call_tool("job_pause", {"job_id": job["job_id"]})
        assert again.is_error and "it is cancelled" in text_of(again)


async def test_leaving_a_call_leaves_the_job(line: JobLine, training: JobStatus) -> None:
    server: ForgeServer = build_server(Workspace(line.home))
    async with Client(server) as client:
        began = time.monotonic()
        with anyio.move_on_after(0.5):
            await client.call_tool("job_status", {"job_id": training.job_id, "wait_seconds": 200})
        while server.tools.running:
            await anyio.sleep(0.02)
        assert time.monotonic() - began < SOON, "the waiting ends long before its 200 s"
        status = await ask(client, "job_status", job_id=training.job_id)
    assert status["state"] == "running"


async def test_an_agent_cancels_a_running_job(line: JobLine, training: JobStatus) -> None:
    async with agent(line) as client:
        await ask(client, "job_cancel", job_id=training.job_id)
        job = await ask(client, "job_status", job_id=training.job_id, wait_seconds=60)
    assert job["state"] == "cancelled" and job["error"] is None
    assert "job_retry" in job["next_step"]
