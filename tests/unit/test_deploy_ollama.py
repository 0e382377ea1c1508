"""What deploy does with Ollama: create, ask, compare, and take back what it began."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from deploy_cases import copied, deployed, exported, listed, make_exports
from hypothesis import given
from hypothesis import strategies as st
from serving_house import House

from forge_mcp.errors import BadInput, Cancelled, ForgeError, NotFound, OutOfSpace, Unavailable
from forge_mcp.locks import FileLock
from forge_mcp.pipeline import tryout
from forge_mcp.pipeline.deploy import DeployRequest, DeployResult, deploy, model_of
from forge_mcp.pipeline.gc import GcRequest, gc
from forge_mcp.pipeline.models import ActivateRequest, activate
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import registry
from forge_mcp.serving.chat import Reply, Sampling, unload
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.workspace import Workspace

HOST = "http://127.0.0.1:11434"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def house(tmp_path: Path, exports: Path) -> Iterator[House]:
    yield copied(exports, tmp_path)
    unload()


@dataclass
class SomeOllama:
    """Ollama in this process: models by name, answered by llama.cpp. For what deploy does with it.

    The real protocol is tested in tests/integration/test_ollama_manager.py.
    """

    models: dict[str, Path] = field(default_factory=dict)
    fail: str = ""
    more_tokens: int = 0
    there: bool = True
    created: list[dict[str, Any]] = field(default_factory=list)

    def require(self, host: str, *, start: bool, say: Any) -> None:
        if not self.there:
            raise Unavailable("Ollama does not answer.")

    def list(self, host: str) -> list[str]:
        self.require(host, start=False, say=None)
        return [f"{name}:latest" for name in self.models]

    def create(self, model: str, gguf: Path, system: str, parameters: Any, **how: Any) -> None:
        if self.fail == "create":
            raise ForgeError("no")
        self.models[model] = gguf
        self.created.append({"model": model, "system": system, "parameters": parameters} | how)
        how["on_bytes"]("uploading", 1, 1)
        if self.fail == "late":
            raise ForgeError("no")

    def delete(self, model: str, *, host: str) -> None:
        self.require(host, start=False, say=None)
        if self.models.pop(model, None) is None:
            raise NotFound("no such model")

    def chat(self, host: str, model: str, *_: Any) -> SomeChat:
        return SomeChat(LlamaCppChat(self.models[model], num_ctx=512, threads=1), self)


@dataclass
class SomeChat:
    runtime: LlamaCppChat
    ollama: SomeOllama
    context: int = 512

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return self.runtime.count_tokens(messages)

    def chat(self, messages: Sequence[Message], sampling: Sampling, on_text: Any = None) -> Reply:
        if self.ollama.fail == "chat":
            raise Unavailable("Ollama went away.")
        reply = self.runtime.chat(messages, sampling)
        self.runtime.close()
        return replace(reply, prompt_tokens=reply.prompt_tokens + self.ollama.more_tokens)

    def close(self) -> None:
        self.runtime.close()


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> SomeOllama:
    fake = SomeOllama()
    for name, function in (
        ("require_ollama", fake.require),
        ("list_ollama_models", fake.list),
        ("create_ollama_model", fake.create),
        ("delete_ollama_model", fake.delete),
        ("OllamaChat", fake.chat),
    ):
        monkeypatch.setattr(f"forge_mcp.serving.ollama.{name}", function)
    return fake


def to_ollama(house: House, quantization: str = "f16") -> DeployResult:
    house.report(True, 1)
    made = exported(house, quantization)
    request = DeployRequest(run_or_export=made.export_id, target="ollama")
    return deploy(request, house.context)


def test_a_model_in_ollama_is_created_asked_and_activated(house: House, ollama: SomeOllama) -> None:
    result = to_ollama(house)
    assert (result.target, result.previous, [*ollama.models]) == ("ollama", None, [result.model])
    (made,) = ollama.created
    export_of = house.workspace.load(registry.get_active_model(house.workspace, "demo").export)
    assert made["sha256"] == export_of.manifest.checksums["model.gguf"]
    assert (made["system"], made["host"]) == ("You know demo.", HOST)
    assert {"temperature", "num_ctx", "stop"} <= set(made["parameters"])
    assert registry.half_made(house.workspace, "demo") == []
    assert to_ollama(house).previous is None  # again: the same, and nothing is removed
    ollama.fail = "late"
    with pytest.raises(ForgeError):
        to_ollama(house)
    ollama.fail = ""
    assert [*ollama.models] == [result.model]
    ollama.created.pop()

    activate(ActivateRequest(model=result.model), house.context)
    assert len(ollama.created) == 2, "it is there already"
    del ollama.models[result.model]
    with pytest.raises(NotFound, match="no longer in Ollama"):
        activate(ActivateRequest(model=result.model), house.context)


@pytest.mark.parametrize("trouble", ["create", "late", "chat", "tokens", "register"])
def test_a_failure_takes_back_what_was_begun_in_ollama(
    house: House, ollama: SomeOllama, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    first = deployed(house, "q8_0")
    ollama.fail = trouble
    ollama.more_tokens = 1 if trouble == "tokens" else 0
    with monkeypatch.context() as patched:
        if trouble == "register":

            def full(*_: Any, **__: Any) -> Any:
                raise OutOfSpace("no space")

            patched.setattr(registry, "register", full)
        with pytest.raises(ForgeError) as error:
            to_ollama(house)
    if trouble == "tokens":
        assert "doubled begin-of-text" in error.value.cause
    assert ollama.models == {}
    assert registry.half_made(house.workspace, "demo") == []
    assert listed(house).active == first.model
    ollama.fail, ollama.more_tokens = "", 0
    assert to_ollama(house).previous == first.model


def test_what_a_killed_deployment_left_is_removed_by_the_next_one(
    house: House, ollama: SomeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill cannot be answered: nothing after the creation runs."""
    house.report(True, 1)
    with monkeypatch.context() as patched:
        patched.setattr(tryout, "_take_back", lambda *_: None)
        ollama.fail = "chat"
        with pytest.raises(Unavailable):
            to_ollama(house)
    ollama.fail = ""
    (left,) = ollama.models
    ollama.there = False
    deployed(house)  # into llama.cpp: the leftover cannot be removed now
    assert "could not be removed from Ollama" in house.logs()
    assert [*ollama.models] == [left]
    ollama.there = True
    deployed(house, "q8_0")
    assert ollama.models == {}
    assert f"Removed {left} from Ollama" in house.logs()
    assert registry.half_made(house.workspace, "demo") == []


def test_gc_removes_what_nobody_is_making(house: House, ollama: SomeOllama) -> None:
    ollama.models = {"demo-1": Path("x"), "other-1": Path("x")}
    for project in ("demo", "other"):
        left = registry.HalfMade(f"{project}-1", HOST, project)
        registry.remember_half_made(house.workspace, left)
    everywhere = replace(house.context, project="")
    with FileLock(house.workspace.home / "locks" / "deploy-other") as lock:
        assert lock.acquire()
        gc(GcRequest(apply=True), everywhere)
    assert [*ollama.models] == ["other-1"]
    gc(GcRequest(apply=True), house.context)
    gc(GcRequest(), everywhere)
    assert [one.model for one in registry.half_made(house.workspace, "other")] == ["other-1"]
    gc(GcRequest(apply=True), everywhere)
    assert ollama.models == {}


def test_a_cancelled_deployment_cleans_up_without_a_word(
    house: House, ollama: SomeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    house.context = replace(house.context, cancel=cancel)

    def stop(*_: Any) -> None:
        cancel.set()
        ollama.there = False
        house.context.check()

    monkeypatch.setattr(tryout, "_ask", stop)
    with pytest.raises(Cancelled):
        to_ollama(house)
    assert len(registry.half_made(house.workspace, "demo")) == 1


def test_a_model_of_somebody_else_is_not_replaced(house: House, ollama: SomeOllama) -> None:
    result = to_ollama(house)
    house.workspace.database.execute("DELETE FROM active")
    house.workspace.database.execute("DELETE FROM deployments")
    assert to_ollama(house).model == result.model  # its folder is still here: ours
    house.workspace.database.execute("DELETE FROM active")
    house.workspace.database.execute("DELETE FROM deployments")
    shutil.rmtree(house.workspace.folder("deployment") / result.deployment_id)
    with pytest.raises(BadInput, match="was not made here"):
        to_ollama(house)
    assert [*ollama.models] == [result.model]


def test_without_the_embedded_runtime_ollamas_prompts_are_not_compared_and_that_is_said(
    house: House, ollama: SomeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise Unavailable("The embedded llama.cpp runtime is not installed.")

    house.report(True, 1)
    exported(house)
    monkeypatch.setattr("forge_mcp.serving.llamacpp.LlamaCppChat", Missing)
    ollama.more_tokens = 1
    assert to_ollama(house).target == "ollama"
    assert "prompts are not compared" in house.logs()


@given(st.text(min_size=1, max_size=60), st.text("0123456789abcdef", min_size=64, max_size=64))
def test_any_projects_models_have_a_name_that_ollama_allows(project: str, digits: str) -> None:
    import tempfile

    from forge_mcp.schemas.ollama import check_model_name

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        check_model_name(model_of(workspace.new_id("deployment", project, digits)))


def test_a_face_that_lives_long_asks_the_shared_server(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    made = exported(house)
    asked: list[Any] = []

    def open_chat(deployed: Any, settings: Any, *, shared_in: Any = None, **_: Any) -> Any:
        asked.append(shared_in)
        return LlamaCppChat(deployed.gguf, num_ctx=settings.num_ctx, threads=1)

    monkeypatch.setattr("forge_mcp.serving.chat.open_chat", open_chat)
    request = DeployRequest(run_or_export=made.export_id)
    for face in ("cli", "job", "mcp", "rest"):
        context: SkillContext = replace(house.context, face=face)
        deploy(request, context)
    assert asked == [None, None, house.workspace, house.workspace]
