"""An agent drives the whole line through a real `forge-mcp serve`: the MCP face, end to end.

Very few training steps: what is shown is that every tool works on what the one before returned,
not that the model is good. The gates on quality therefore stand wide open here, through
the environment, except in the test that shows that a closed gate stops the line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_python_repo"
# One small model from a few steps: seconds, not minutes.
FEW_STEPS = {
    "FORGE_TRAINING__MAX_STEPS": "4",
    "FORGE_TRAINING__EVAL_STEPS": "4",
    "FORGE_TRAINING__VALID_EXAMPLES": "4",
    "FORGE_TRAINING__RANK": "4",
    "FORGE_TRAINING__BATCH_SIZE": "2",
    "FORGE_RAFT__EXAMPLES_PER_BLOCK": "2",
    "FORGE_RAFT__DISTRACTORS": "1",
    "FORGE_RAFT__MAX_DOCUMENT_CHARS": "600",
    "FORGE_QUALITY__MIN_EXAMPLES": "5",
    "FORGE_JUDGING__MAX_EXAMPLES": "3",
    "FORGE_JUDGING__PERPLEXITY_EXAMPLES": "6",
    "FORGE_JUDGING__MAX_TOKENS": "24",
    "FORGE_EXPORTING__PARITY_TOKENS": "128",
    "FORGE_EXPORTING__PARITY_ANSWERS": "1",
    "FORGE_SERVING__NUM_PREDICT": "32",
}
OPEN_GATE = {"FORGE_JUDGING__MAX_PERPLEXITY_RATIO": "1000"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "sample"
    shutil.copytree(SAMPLE, folder)
    return folder


@asynccontextmanager
async def agent(tmp_path: Path, **environment: str) -> AsyncIterator[Client]:
    """A client of a real server process, started where no repository is."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "forge_mcp.interfaces.cli", "serve"],
        env={**os.environ, "FORGE_HOME": str(tmp_path / "forge"), **FEW_STEPS, **environment},
        cwd="/",
    )
    async with Client(server) as client:
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """A tool's structured result; its error text fails the test."""
    with anyio.fail_after(200):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, f"{tool}: {getattr(result.content[0], 'text', '')}"
    fields: dict[str, Any] = result.structured_content or {}
    return fields


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

        refused = await client.call_tool("train", {"dataset": dataset["dataset_id"]})
        assert refused.is_error
        assert "validate" in str(getattr(refused.content[0], "text", ""))

        checked = await call(client, "validate", dataset=dataset["dataset_id"])
        assert checked["passed"], checked["reasons"]
        assert checked["dataset_id"] != dataset["dataset_id"]
        assert Path(checked["report"]).is_file()

        seen: list[float] = []

        async def show(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)

        trained = await client.call_tool(
            "train", {"dataset": checked["dataset_id"]}, progress_callback=show
        )
        run = trained.structured_content
        assert run is not None, str(getattr(trained.content[0], "text", ""))
        assert run["steps"] == 4 and run["train_loss"] > 0
        assert seen and seen == sorted(set(seen))
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
            client, "query", text="Where is the first function defined?", project="sample"
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
    seen: list[tuple[float, float | None]] = []

    async def show(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    changed = await client.call_tool(
        "retrain", {"repo": str(repository), "quantization": "q8_0"}, progress_callback=show
    )
    newer = changed.structured_content
    assert newer is not None, str(getattr(changed.content[0], "text", ""))
    assert (newer["state"], newer["deployed"]) == ("succeeded", True), newer["reasons"]
    stages = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")
    assert all(newer[stage] for stage in stages)
    assert newer["deploy"]["previous"] == model
    assert seen and [one[0] for one in seen] == sorted({one[0] for one in seen})

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
