"""An agent drives the whole line through a real `forge-mcp serve`: the MCP face, end to end.

What may take long runs as a job: `call` follows it to its end, as an agent would.

Very few training steps: what is shown is that every tool works on what the one before returned,
not that the model is good. The gates on quality therefore stand wide open here, through
the environment, except in the test that shows that a closed gate stops the line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from few_steps import FEW_STEPS, OPEN_GATE
from mcp import Client, StdioServerParameters

from forge_mcp.jobs.skills import skills
from forge_mcp.jobs.workers import places

pytestmark = pytest.mark.e2e

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_python_repo"
LONG = {name for name, skill in skills().items() if skill.long}
BUSY_STATES = ("queued", "running", "pausing")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    shutil.copytree(SAMPLE, folder)
    return folder


@asynccontextmanager
async def agent(tmp_path: Path, **environment: str) -> AsyncIterator[Client]:
    """A client of a real server process, started where no repository is."""
    home = tmp_path / "forge"
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "forge_mcp.interfaces.cli", "serve"],
        env={
            **os.environ,
            "FORGE_HOME": str(home),
            "FORGE_JOBS__IDLE_SECONDS": "10",  # should the end below not be reached
            **FEW_STEPS,
            **environment,
        },
        cwd="/",
    )
    try:
        async with Client(server) as client:
            yield client
    finally:
        await end_worker(home)


async def end_worker(home: Path) -> None:
    """The worker outlives the agent's client; nothing shall outlive the test."""
    for place in places(home):
        if place.alive and place.record is not None:
            with suppress(ProcessLookupError):
                os.kill(place.record.pid, signal.SIGTERM)
        with anyio.fail_after(60):
            while place.alive:
                await anyio.sleep(0.05)


async def follow(
    client: Client, tool: str, arguments: dict[str, Any], show: Any = None
) -> dict[str, Any]:
    """The job that a long tool started, once it has ended."""
    with anyio.fail_after(300):
        result = await client.call_tool(tool, arguments, progress_callback=show)
        while True:
            assert not result.is_error, f"{tool}: {getattr(result.content[0], 'text', '')}"
            job: dict[str, Any] = result.structured_content or {}
            if job["state"] not in BUSY_STATES:
                return job
            waiting = {"job_id": job["job_id"], "wait_seconds": 60}
            result = await client.call_tool("job_status", waiting, progress_callback=show)


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """A tool's own result, of its job where it is long; an error fails the test."""
    if tool in LONG:
        job = await follow(client, tool, arguments)
        assert job["error"] is None, job
        fields: dict[str, Any] = job["result"]
        return fields
    with anyio.fail_after(300):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, f"{tool}: {getattr(result.content[0], 'text', '')}"
    return result.structured_content or {}


async def fail(client: Client, tool: str, **arguments: Any) -> str:
    """The words with which a long tool or its job fails, whichever is there first."""
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        return str(getattr(result.content[0], "text", ""))
    job = result.structured_content or {}
    waiting = {"job_id": job["job_id"], "wait_seconds": 60}
    job = (await client.call_tool("job_status", waiting)).structured_content or {}
    assert job["state"] == "failed", job
    return json.dumps(job["error"])


async def read(client: Client, uri: str) -> str:
    contents = (await client.read_resource(uri)).contents
    return str(getattr(contents[0], "text", ""))


async def test_the_line_step_by_step_and_in_one_call(tmp_path: Path, repository: Path) -> None:
    async with agent(tmp_path, **OPEN_GATE) as client:
        made = await call(client, "init", repo=str(repository), name="sample")
        assert made["project"] == "sample" and Path(made["path"]).is_file()

        corpus = await call(client, "extract", repo=str(repository))
        assert corpus["blocks"] > 0 and corpus["languages"]["python"] > 0
        again = await call(client, "extract", repo=str(repository))
        assert again["corpus_id"] == corpus["corpus_id"]

        dataset = await call(client, "synthesize", corpus=corpus["corpus_id"])
        assert sum(dataset["splits"].values()) == dataset["examples"] > 0
        assert "## Example 1" in await read(client, f"forge://datasets/{dataset['dataset_id']}")

        assert "validate" in await fail(client, "train", dataset=dataset["dataset_id"])

        checked = await call(client, "validate", dataset=dataset["dataset_id"])
        assert checked["passed"], checked["reasons"]
        assert checked["dataset_id"] != dataset["dataset_id"]
        assert Path(checked["report"]).is_file()

        seen: list[str] = []

        async def show(progress: float, total: float | None, message: str | None) -> None:
            seen.append(message or "")

        trained = await follow(client, "train", {"dataset": checked["dataset_id"]}, show)
        run = trained["result"]
        assert trained["state"] == "succeeded" and trained["progress"] == 1.0
        assert run["steps"] == 3 and run["train_loss"] > 0
        assert any("train" in message for message in seen), seen
        assert (
            json.loads(await read(client, f"forge://runs/{run['run_id']}"))["project"] == "sample"
        )

        early = await client.call_tool("deploy", {"run_or_export": run["run_id"]})
        assert early.is_error and "evaluate" in str(getattr(early.content[0], "text", ""))

        judged = await call(client, "evaluate", run=run["run_id"])
        assert judged["passed"], judged["reasons"]
        assert set(judged["tuned"]) & set(judged["base"])
        assert (await read(client, f"forge://reports/{judged['report_id']}")).startswith("# ")

        exported = await call(client, "export", run=run["run_id"], quantization="q8_0")
        assert Path(exported["gguf"]).read_bytes()[:4] == b"GGUF"
        assert exported["parity"]["argmax_agreement"] >= 0.95

        deployed = await call(client, "deploy", run_or_export=exported["export_id"])
        assert deployed["previous"] is None
        models = await call(client, "models", project="sample")
        assert models["active"] == deployed["model"]
        assert json.loads(await read(client, "forge://models"))["sample"] == models

        answer = await call(
            client, "query", text="Which parameters does discount take?", project="sample"
        )
        assert answer["model"] == deployed["model"] and answer["sources"]
        for source in answer["sources"]:
            assert (repository / source["path"]).is_file()

        nothing = await client.call_tool("rollback", {"project": "sample"})
        assert nothing.is_error

        await retrain_in_one_call(client, repository, run["run_id"], deployed["model"])


async def retrain_in_one_call(client: Client, repository: Path, run: str, model: str) -> None:
    """`retrain` finds what is there, makes what a change asks for, and can be taken back."""
    unchanged = await call(client, "retrain", repo=str(repository), quantization="q8_0")
    assert (unchanged["state"], unchanged["deployed"]) == ("succeeded", True)
    assert unchanged["train"]["run_id"] == run
    assert unchanged["deploy"]["model"] == model

    (repository / "extra.py").write_text(
        'def triple(number: int, factor: int = 3) -> int:\n    """Three times a number."""\n'
        "    if number < 0:\n        raise ValueError('negative')\n    return number * factor\n"
    )
    seen: list[str] = []

    async def show(progress: float, total: float | None, message: str | None) -> None:
        seen.append(message or "")

    again = {"repo": str(repository), "quantization": "q8_0"}
    newer = (await follow(client, "retrain", again, show))["result"]
    assert (newer["state"], newer["deployed"]) == ("succeeded", True), newer["reasons"]
    stages = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")
    assert all(newer[stage] for stage in stages)
    assert newer["deploy"]["previous"] == model
    told = " / ".join(seen)
    assert "train" in told and "evaluate" in told and "export" in told, told

    back = await call(client, "rollback", project=str(repository))
    assert (back["active"], back["previous"]) == (model, newer["deploy"]["model"])


async def test_a_closed_gate_stops_the_line(tmp_path: Path, repository: Path) -> None:
    async with agent(tmp_path, FORGE_QUALITY__MIN_EXAMPLES="100000") as client:
        result = await call(client, "retrain", repo=str(repository))
        assert (result["state"], result["deployed"]) == ("refused", False)
        assert result["reasons"] and result["validate"]["passed"] is False
        assert result["train"] is None and result["deploy"] is None
        models = await call(client, "models", project=str(repository))
        assert models["active"] is None and models["models"] == []
