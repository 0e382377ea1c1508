"""The MCP server through the SDK's own client: in memory, and over stdio to a real process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import CallToolResult, TextContent

from forge_mcp.interfaces.mcp.server import build_server
from forge_mcp.interfaces.mcp.tools import Progress
from forge_mcp.jobs.skills import skills
from forge_mcp.schemas.events import Event
from forge_mcp.workspace import Workspace

pytestmark = pytest.mark.integration

TOYS = Path(__file__).parents[1] / "fixtures" / "interfaces"
FORGE = [sys.executable, "-m", "forge_mcp.interfaces.cli"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path / "forge")


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> Workspace:
    """The registry holds only the toy skills."""
    monkeypatch.syspath_prepend(str(TOYS))
    toy_skills = importlib.import_module("toy_skills")

    monkeypatch.setattr("forge_mcp.interfaces.mcp.server.skills", lambda: toy_skills.TOYS)
    return workspace


@pytest.fixture
def dataset(workspace: Workspace) -> str:
    """A dataset of project 'sample' with one example."""
    example = {
        "id": "e1",
        "question": "Which default does `f` have?",
        "oracle_ids": ["b1"],
        "distractor_ids": [],
        "reasoning": "It is written there.",
        "final_answer": "`3`",
        "difficulty": "easy",
        "fact": {"kind": "default", "block": "b1", "value": "3"},
        "split": "train",
        "quality": 0.9,
    }
    with workspace.stage("dataset", "sample") as staged:
        (staged.path / "examples.jsonl").write_text(json.dumps(example) + "\n")
        return staged.commit(id="ds-sample-abcd", inputs_hash="abcd", result={"examples": 1}).id


def text_of(result: CallToolResult) -> str:
    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


def toy_server(home: Path) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=[str(TOYS / "toy_forge.py"), "serve"],
        env={**os.environ, "FORGE_HOME": str(home)},
    )


@asynccontextmanager
async def connected(target: Any, mode: str = "auto") -> AsyncIterator[Client]:
    async with Client(target, mode=mode) as client:
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_tools_are_declared_from_the_skills(toys: Workspace, mode: str) -> None:
    async with connected(build_server(toys), mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["count", "say", "noisy", "judge", "fail", "where", "use", "look"]
    count = tools["count"]
    assert count.title == "Count"
    assert count.description and "Use this when" in count.description
    assert count.annotations and count.annotations.read_only_hint is False
    properties = count.input_schema["properties"]
    assert list(properties) == ["number", "pause", "project"]
    assert properties["number"]["description"] == "How far to count."
    assert properties["number"]["minimum"] == 0
    assert "title" not in properties["number"]
    assert count.input_schema["required"] == ["number"]
    assert count.output_schema and set(count.output_schema["properties"]) == {"counted", "seconds"}
    assert tools["judge"].input_schema["properties"]["level"]["enum"] == ["low", "high"]
    assert tools["say"].annotations and tools["say"].annotations.read_only_hint is True


async def test_a_call_returns_the_result_model(toys: Workspace) -> None:
    async with connected(build_server(toys)) as client:
        result = await client.call_tool("count", {"number": 2, "project": "."})
        assert not result.is_error
        assert result.structured_content == {"counted": 2, "seconds": 0.5}
        assert json.loads(text_of(result)) == {"counted": 2, "seconds": 0.5}


async def test_a_refused_gate_is_a_normal_result(toys: Workspace) -> None:
    async with connected(build_server(toys)) as client:
        result = await client.call_tool("judge", {"passed": False, "project": "."})
        assert not result.is_error
        assert result.structured_content is not None
        assert result.structured_content["passed"] is False
        assert result.structured_content["reasons"] == ["perplexity rose"]


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("count", {"number": "x"}, ["'number'", "count takes: number, pause"]),
        ("count", {"nubmer": 3}, ["'nubmer' is not known", "'number' is missing"]),
        ("count", {"number": -1}, ["'number'", "greater than or equal to 0"]),
        ("fail", {"kind": "ours"}, ["Ollama is not there.", "nothing listens", "Start it."]),
        ("fail", {"kind": "disk"}, ["no space left", "FORGE_HOME"]),
        ("fail", {"kind": "bug"}, ["bug in AI Forge", "KeyError", "logs"]),
        ("judge", {"raising": True}, ["Not good enough.", "Do better."]),
        ("use", {"dataset": "ds-none"}, ["There is no dataset 'ds-none'"]),
        ("look", {"project": "nobody"}, ["There is no project 'nobody'"]),
    ],
)
async def test_errors_are_words_for_the_model(
    toys: Workspace, tool: str, arguments: dict[str, Any], words: list[str]
) -> None:
    if tool not in ("look", "use"):
        arguments = {"project": ".", **arguments}
    async with connected(build_server(toys)) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    for word in words:
        assert word in text_of(result)


async def test_project_is_told_by_path_name_or_artifact(
    toys: Workspace, dataset: str, tmp_path: Path
) -> None:
    other, sample = tmp_path / "other", tmp_path / "sample"
    for repository in (other, sample):
        repository.mkdir()
    (sample / "forge.toml").write_text("[training]\nrank = 5\n")
    async with connected(build_server(toys)) as client:

        async def told(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(tool, arguments)
            assert result.structured_content is not None, text_of(result)
            told_fields: dict[str, Any] = result.structured_content
            return told_fields

        assert await told("where", repo=str(other)) == {
            "project": "other",
            "repository": str(other),
            "rank": 16,
        }
        assert (await told("look", project=str(sample)))["rank"] == 5
        assert (await told("where", repo=str(sample)))["rank"] == 5
        assert (await told("use", dataset=dataset))["repository"] == str(sample)
        assert (await told("look", project="other"))["repository"] == str(other)
        mixed = await client.call_tool("use", {"dataset": dataset, "project": "other"})
        assert mixed.is_error and "is not of project 'other'" in text_of(mixed)
        ambiguous = await client.call_tool("look", {})
        assert ambiguous.is_error and "known projects: other, sample" in text_of(ambiguous)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_strictly_increases_over_stdio(tmp_path: Path, mode: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def show(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with connected(toy_server(tmp_path / "forge"), mode) as client:
        result = await client.call_tool(
            "count",
            {"number": 12, "pause": 0.1, "project": str(tmp_path)},
            progress_callback=show,
        )
    assert result.structured_content == {"counted": 12, "seconds": 0.5}
    numbers = [one[0] for one in seen]
    assert len(numbers) >= 2
    assert numbers == sorted(set(numbers))
    assert {one[1] for one in seen} == {12}
    assert "loss" in (seen[-1][2] or "") and "10 tokens/s" in (seen[-1][2] or "")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_leaving_a_call_cancels_it_and_cleans_up(tmp_path: Path, mode: str) -> None:
    home = tmp_path / "forge"
    async with connected(toy_server(home), mode) as client:
        with anyio.move_on_after(1.0) as scope:
            await client.call_tool(
                "count", {"number": 10_000, "pause": 0.05, "project": str(tmp_path)}
            )
        assert scope.cancelled_caught
        # The next call waits for the cancelled one, so this also proves that it has ended.
        with anyio.fail_after(60):
            after = await client.call_tool("count", {"number": 1, "project": str(tmp_path)})
        assert after.structured_content == {"counted": 1, "seconds": 0.5}
        assert list((home / "staging").iterdir()) == []
        assert list((home / "reports").glob("*")) == []


async def test_stray_prints_do_not_reach_the_wire(tmp_path: Path) -> None:
    async with connected(toy_server(tmp_path / "forge")) as client:
        result = await client.call_tool("noisy", {"project": str(tmp_path)})
        assert result.structured_content == {"answer": "ü \U0001f600"}
        assert len((await client.list_tools()).tools) == 9


async def test_readers_are_served_beside_a_long_call(toys: Workspace) -> None:
    async with connected(build_server(toys)) as client, anyio.create_task_group() as group:

        async def long_call() -> None:
            await client.call_tool("count", {"number": 10_000, "pause": 0.05, "project": "."})

        group.start_soon(long_call)
        await anyio.sleep(0.5)
        with anyio.fail_after(60):
            result = await client.call_tool("say", {"text": "hello", "project": "."})
        assert result.structured_content == {"answer": "hello"}
        group.cancel_scope.cancel()


async def test_resources(toys: Workspace, dataset: str) -> None:
    with toys.stage("report", "sample") as staged:
        (staged.path / "report.md").write_text("# Report\nperplexity 3.1\n")
        report = staged.commit(id="report-sample-1234", inputs_hash="1234").id
    with toys.stage("run", "sample") as staged:
        (staged.path / "metrics.jsonl").write_text("{}\n")
        run = staged.commit(id="run-sample-5678", inputs_hash="5678", result={"steps": 7}).id
    async with connected(build_server(toys)) as client:
        listed = [str(one.uri) for one in (await client.list_resources()).resources]
        assert listed == [
            "forge://models",
            f"forge://datasets/{dataset}",
            f"forge://reports/{report}",
            f"forge://runs/{run}",
        ]
        templates = (await client.list_resource_templates()).resource_templates
        assert {one.uri_template for one in templates} == {
            "forge://datasets/{id}",
            "forge://reports/{id}",
            "forge://runs/{id}",
        }

        async def read(uri: str) -> str:
            return str(getattr((await client.read_resource(uri)).contents[0], "text", ""))

        assert await read(f"forge://reports/{report}") == "# Report\nperplexity 3.1\n"
        page = await read(f"forge://datasets/{dataset}")
        assert "Which default does `f` have?" in page and '"examples": 1' in page
        assert json.loads(await read(f"forge://runs/{run}"))["result"] == {"steps": 7}
        for wrong in ("forge://datasets/ds-none", f"forge://runs/{dataset}"):
            with pytest.raises(MCPError):
                await client.read_resource(wrong)
        (toys.folder("dataset") / dataset / "examples.jsonl").write_text("changed")
        with pytest.raises(MCPError, match="not what was written"):
            await client.read_resource(f"forge://datasets/{dataset}")


async def test_prompts(toys: Workspace) -> None:
    async with connected(build_server(toys)) as client:
        prompts = {one.name: one for one in (await client.list_prompts()).prompts}
        assert set(prompts) == {
            "repo_guardian",
            "mission_control",
            "retrain",
            "review_data",
            "review_deployment",
        }
        arguments = prompts["repo_guardian"].arguments or []
        assert {one.name for one in arguments} == {"repository", "project"}
        assert not any(one.required for one in arguments)
        for given, expected in (({"repository": "/code/flask"}, "/code/flask"), ({}, "workspace")):
            got = await client.get_prompt("repo_guardian", given)
            text = getattr(got.messages[0].content, "text", "")
            assert "DevOps AI" in text and f"Repository: {'' if given else 'the'}" in text
            assert expected in text and "{{" not in text


def test_progress_never_falls_back() -> None:
    progress = Progress()

    def event(kind: Any, of_stage: str, /, **payload: Any) -> Event:
        return Event(time=0, stage=of_stage, kind=kind, payload=payload)

    taken = []
    for one in (
        event("progress", "a", done=5, total=10, message=""),
        event("progress", "b", done=1, total=10, message="again from one"),
        event("log", "b", level="info", message="a word"),
        event("state", "", stage="c", number=6, of=7),
        event("progress", "c", done=1, total=2, message=""),
        event("state", "", stage="d", number=7, of=7),
    ):
        progress(one)
        taken.append(progress.take())
    assert progress.take() is None
    numbers = [one[0] for one in taken if one]
    assert len(numbers) == 6 and numbers == sorted(set(numbers))
    assert taken[4] == (5.5, 7, "c 1/2") and taken[5] == (6, 7, "d")
    progress.sent_at -= 60
    beat = progress.take()
    assert beat and beat[0] > 6 and "still working" in beat[2]


# -- the real server -------------------------------------------------------------------------


def start_serve(home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(TOYS / "toy_forge.py"), "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "FORGE_HOME": str(home)},
    )


def send(server: subprocess.Popen[bytes], **message: Any) -> None:
    assert server.stdin
    server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    server.stdin.flush()


def begin_counting(server: subprocess.Popen[bytes], folder: Path) -> None:
    """The handshake, and a long call whose staging has begun."""
    client = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    send(server, id=1, method="initialize", params=client)
    assert server.stdout and b'"id":1' in server.stdout.readline()
    send(server, method="notifications/initialized")
    arguments = {"number": 10_000, "pause": 0.05, "project": str(folder)}
    send(server, id=2, method="tools/call", params={"name": "count", "arguments": arguments})
    deadline = time.monotonic() + 90
    while not list((folder / "forge" / "staging").glob("*/begun")):
        if time.monotonic() > deadline:
            server.kill()
            pytest.fail(f"the call did not begin: {server.communicate()}")
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_its_work(tmp_path: Path, number: signal.Signals) -> None:
    with start_serve(tmp_path / "forge") as server:
        begin_counting(server, tmp_path)
        server.send_signal(number)
        assert server.wait(timeout=90) == 130
        assert server.stderr and b"stopped" in server.stderr.read()
    assert list((tmp_path / "forge" / "staging").iterdir()) == []


def test_a_client_that_leaves_ends_the_server_and_its_work(tmp_path: Path) -> None:
    with start_serve(tmp_path / "forge") as server:
        begin_counting(server, tmp_path)
        assert server.stdin
        server.stdin.close()
        assert server.wait(timeout=90) == 0
    assert list((tmp_path / "forge" / "staging").iterdir()) == []


async def test_real_serve_lists_every_skill_quickly(tmp_path: Path) -> None:
    expected = [skill.name for skill in skills().values() if skill.tool]
    real = StdioServerParameters(
        command=FORGE[0],
        args=[*FORGE[1:], "serve"],
        env={**os.environ, "FORGE_HOME": str(tmp_path)},
    )
    began = time.monotonic()
    async with connected(real) as client:
        tools = (await client.list_tools()).tools
        seconds = time.monotonic() - began
        models = await client.read_resource("forge://models")
        assert json.loads(getattr(models.contents[0], "text", "")) == {}
    assert [tool.name for tool in tools] == expected
    assert {"extract", "validate", "train", "evaluate", "export", "deploy"} <= set(expected)
    assert {"job_status", "job_cancel"} <= set(expected)
    size = sum(len(tool.model_dump_json(exclude_none=True)) for tool in tools)
    assert size < 75_000, f"tools/list has {size} characters"
    # About a second on an idle core; the bound leaves room for a busy one.
    assert seconds < 20, f"{seconds:.1f} s from a cold start to tools/list"
