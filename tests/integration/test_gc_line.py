"""`gc` on a workspace that the real line has filled, and on models in an Ollama of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance_ollama import ConformanceOllama, Model
from driven_line import Line
from ollama_fixtures import NOBODY

from forge_mcp.errors import ForgeError
from forge_mcp.pipeline.context import ALL_PROJECTS
from forge_mcp.pipeline.gc import GcRequest, GcResult, gc
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.events import Event
from forge_mcp.serving import registry
from forge_mcp.serving.ollama import list_ollama_models
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace

pytestmark = pytest.mark.integration
STRICT = ("--keep-newest", "0", "--older-than-days", "0")
QUESTION = "What does `Store.add` raise?"


@pytest.mark.e2e
def test_after_gc_the_deployed_models_still_answer(tmp_path: Path) -> None:
    line = Line(tmp_path)

    def run(*arguments: str, seed: int = 0) -> dict[str, Any]:
        code, result = line.run(*arguments, FORGE_TRAINING__SEED=str(seed))
        assert code == 0, result
        return result

    oldest = run("retrain", ".", seed=1)
    spare = run("train", oldest["validate"]["dataset_id"], seed=4)
    second, third = run("retrain", ".", seed=2), run("retrain", ".", seed=3)
    before = line.files()

    assert run("gc")["removed"] == [], "all of it is younger than a day"
    dry = run("gc", *STRICT)
    assert line.files() == before
    done = run("gc", "--apply", *STRICT)
    assert done["removed"] == dry["removed"]
    assert done["damaged"] == []
    gone = {one["id"] for one in done["removed"]}
    assert gone == {
        oldest["deploy"]["deployment_id"],
        oldest["export"]["export_id"],
        oldest["evaluate"]["report_id"],
        oldest["train"]["run_id"],
        spare["run_id"],
    }
    after = {name: data for name, data in line.files().items() if name != "locks/gc"}
    assert after == {name: data for name, data in before.items() if name.split("/")[1] not in gone}
    freed = sum(len(data) for data in before.values()) - sum(len(data) for data in after.values())
    assert done["freed_bytes"] == freed > 1e6

    standing = run("models")
    assert [one["model"] for one in standing["models"]] == [
        third["deploy"]["model"],
        second["deploy"]["model"],
    ]
    assert run("query", QUESTION)["model"] == third["deploy"]["model"]
    assert run("rollback")["active"] == second["deploy"]["model"]
    answered = run("query", QUESTION)
    assert answered["model"] == second["deploy"]["model"]
    assert answered["sources"]
    assert run("gc", "--apply", *STRICT)["removed"] == []


# -- Ollama ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "forge")


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[ConformanceOllama]:
    with ConformanceOllama(tmp_path / "ollama") as server:
        yield server


def deploy_to(workspace: Workspace, number: int, fake: ConformanceOllama, host: str) -> str:
    """A deployment in Ollama with the export that it was made from; its model's name."""
    for kind, made, parents in (
        ("export", f"export-p-{number}", []),
        ("deployment", f"deploy-p-{number}", [f"export-p-{number}"]),
    ):
        model = f"p-{number}"
        with workspace.stage(kind, "p") as staged:  # type: ignore[arg-type]
            (staged.path / "data").write_bytes(b"x" * 100)
            staged.commit(
                id=made,
                inputs_hash=f"{number:064}",
                parents=parents,
                settings={"serving": {"ollama_host": host}},
                result={"model": model, "target": "ollama"},
            )
    registry.register(
        workspace,
        id=f"deploy-p-{number}",
        project="p",
        model=model,
        target="ollama",
        run=f"run-p-{number}",
        export=f"export-p-{number}",
    )
    fake.models[f"{model}:latest"] = Model()
    return model


def clean(workspace: Workspace, events: list[Event]) -> GcResult:
    context = SkillContext(workspace, load_settings(), ALL_PROJECTS, sink=events.append)
    return gc(GcRequest(apply=True, keep_newest=0, older_than_days=0), context)


def warnings(events: list[Event]) -> list[str]:
    return [one.payload["message"] for one in events if one.payload.get("level") == "warning"]


def deployed(workspace: Workspace) -> list[str]:
    return [one.model for one in registry.deployments(workspace, "p")]


@pytest.mark.parametrize("removed_by_hand", [False, True])
def test_a_deployment_that_goes_leaves_ollama_too(
    workspace: Workspace, ollama: ConformanceOllama, removed_by_hand: bool
) -> None:
    names = [deploy_to(workspace, number, ollama, ollama.host) for number in range(3)]
    ollama.models["somebody-elses:latest"] = Model()
    if removed_by_hand:
        del ollama.models[f"{names[0]}:latest"]
    events: list[Event] = []
    result = clean(workspace, events)
    assert [one.id for one in result.removed] == ["deploy-p-0", "export-p-0"]
    assert set(list_ollama_models(ollama.host)) == {
        f"{names[1]}:latest",
        f"{names[2]}:latest",
        "somebody-elses:latest",
    }
    assert deployed(workspace) == [names[2], names[1]]
    assert warnings(events) == []


def test_a_model_in_an_ollama_that_does_not_answer_stays_and_is_told(
    workspace: Workspace, ollama: ConformanceOllama
) -> None:
    names = [deploy_to(workspace, number, ollama, NOBODY) for number in range(2)]
    names += [deploy_to(workspace, number, ollama, ollama.host) for number in (2, 3, 4)]
    events: list[Event] = []
    result = clean(workspace, events)
    assert [one.id for one in result.removed] == ["deploy-p-2", "export-p-2"]
    assert deployed(workspace) == [names[4], names[3], names[1], names[0]]
    assert result.kept == {"export": 4, "deployment": 4}
    assert sorted(message.split()[0] for message in warnings(events)) == [
        "deploy-p-0",
        "deploy-p-1",
    ]


def test_a_model_that_ollama_does_not_let_go_stays_whole(
    workspace: Workspace, ollama: ConformanceOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [deploy_to(workspace, number, ollama, ollama.host) for number in range(4)]

    def refuse(model: str, *, host: str) -> None:
        if model == names[0]:
            raise ForgeError("Ollama could not delete it.", cause="it is loaded")

    monkeypatch.setattr("forge_mcp.serving.ollama.delete_ollama_model", refuse)
    events: list[Event] = []
    result = clean(workspace, events)
    assert [one.id for one in result.removed] == ["deploy-p-1", "export-p-1"]
    assert deployed(workspace) == [names[3], names[2], names[0]]
    assert workspace.load("export-p-0", "export")
    assert "it is loaded" in warnings(events)[0]
