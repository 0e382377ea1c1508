"""The skills deploy, models, activate and rollback: what is refused before anything changes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_house import ANSWER, House, keep, make_house, scripted_model

from forge_mcp import workspace as workspace_module
from forge_mcp.errors import (
    BadInput,
    Busy,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    GateRefused,
    NotFound,
    OutOfSpace,
    Unavailable,
)
from forge_mcp.interfaces.summaries import summary
from forge_mcp.locks import FileLock
from forge_mcp.pipeline import tryout
from forge_mcp.pipeline.deploy import DeployRequest, DeployResult, deploy, model_of
from forge_mcp.pipeline.export import ExportRequest, ExportResult, export
from forge_mcp.pipeline.gc import GcRequest, gc
from forge_mcp.pipeline.models import (
    ActivateRequest,
    ModelsRequest,
    ModelsResult,
    RollbackRequest,
    activate,
    models,
    rollback,
)
from forge_mcp.pipeline.query import QueryRequest, query
from forge_mcp.pipeline.skill import SkillContext, skills
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import registry
from forge_mcp.serving.chat import Reply, Sampling, unload
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.serving.registry import Origin
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, hash_file

HOST = "http://127.0.0.1:11434"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A workspace with a run and two exports of it."""
    house = make_house(tmp_path_factory.mktemp("exports") / "forge", base)
    for quantization in ("f16", "q8_0"):
        exported(house, quantization)
    return house.workspace.home


@pytest.fixture
def house(tmp_path: Path, exports: Path) -> Iterator[House]:
    shutil.copytree(exports, tmp_path / "forge")
    yield open_house(tmp_path / "forge")
    unload()


def open_house(home: Path) -> House:
    """A workspace that `make_house` made, wherever it stands now."""
    workspace, events = Workspace(home), list[Event]()
    sections = {
        "exporting": {"quantization": "f16"},
        "serving": {"num_ctx": 512, "num_predict": 64, "threads": 1},
    }
    context = SkillContext(workspace, load_settings(None, sections), "demo", sink=events.append)
    return House(context, workspace.artifacts("run")[0], events)


def exported(house: House, quantization: str = "f16") -> ExportResult:
    return export(ExportRequest(run=house.run.id, quantization=quantization), house.context)


def deployed(house: House, quantization: str = "f16") -> DeployResult:
    found = exported(house, quantization)
    return deploy(DeployRequest(run_or_export=found.export_id), house.context)


def listed(house: House) -> ModelsResult:
    return models(ModelsRequest(), house.context)


def spoil(house: House, id: str, name: str, content: bytes) -> None:
    """Another content of a file, and a manifest that agrees with it."""
    artifact = house.workspace.load(id)
    (artifact.path / name).write_bytes(content)
    checksums = artifact.manifest.checksums | {name: hash_file(artifact.path / name)}
    manifest = artifact.manifest.model_copy(update={"checksums": checksums})
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json())


def spoil_result(house: House, id: str, **changed: Any) -> None:
    artifact = house.workspace.load(id)
    result = artifact.manifest.result | changed
    manifest = artifact.manifest.model_copy(update={"result": result})
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json())


def nothing_was_deployed(house: House) -> bool:
    staging = house.workspace.home / "staging"
    return (
        listed(house).active is None
        and not listed(house).models
        and not list(house.workspace.folder("deployment").iterdir())
        and not list(staging.iterdir())
    )


# -- what is refused -------------------------------------------------------------------------------


def test_only_a_run_that_passed_its_comparison_is_deployed(house: House) -> None:
    for export_folder in house.workspace.folder("export").iterdir():
        shutil.rmtree(export_folder)
    request = DeployRequest(run_or_export=house.run.id)
    with pytest.raises(GateRefused, match=f"forge-mcp evaluate {house.run.id}"):
        deploy(request, house.context)
    house.report(False, 1)
    with pytest.raises(GateRefused, match="worse than the base"):
        deploy(request, house.context)
    assert list(house.workspace.folder("export").iterdir()) == []
    assert listed(house).models == []


def register_other(house: House, origin: Origin | None = None) -> None:
    registry.register(
        house.workspace,
        origin=origin,
        id="deploy-demo-other",
        project="demo",
        model="demo-other",
        target="llamacpp",
        run="run-demo-other",
        export="export-demo-other",
    )


def test_a_model_that_was_not_compared_with_the_deployed_one_is_refused(house: House) -> None:
    house.report(True, 1)  # against the base alone
    register_other(house)
    with pytest.raises(GateRefused, match="against run-demo-other, which is deployed"):
        deployed(house)
    assert listed(house).active == "demo-other"
    keep(house.workspace, "report", 7, {}, "run-demo-third")  # of another run
    house.report(True, 2, against="run-demo-other")
    assert deployed(house).previous == "demo-other"


def test_nothing_can_be_compared_with_an_imported_model(house: House) -> None:
    house.report(True, 1)
    register_other(house, Origin(imported="studio at noon"))
    with pytest.raises(GateRefused, match="forge-mcp rollback"):
        deployed(house)
    assert rollback(RollbackRequest(), house.context).active is None
    assert deployed(house).previous is None


def test_a_dataset_that_was_written_by_hand_has_no_corpus(house: House) -> None:
    house.report(True, 1)
    shutil.rmtree(house.workspace.folder("corpus"))
    deployed(house)
    assert listed(house).models[0].corpus is None


def test_a_file_that_was_never_checked_against_its_run_is_refused(house: House) -> None:
    house.report(True, 1)
    made = exported(house)
    spoil_result(house, made.export_id, parity=None, reasons=["it was not checked: no llama.cpp"])
    with pytest.raises(GateRefused, match="was not checked") as refused:
        deploy(DeployRequest(run_or_export=made.export_id), house.context)
    assert refused.value.cause == "it was not checked: no llama.cpp"
    assert nothing_was_deployed(house)


def test_a_changed_file_is_not_deployed_and_the_active_model_stays(house: House) -> None:
    house.report(True, 1)
    first = deployed(house)
    small = exported(house, "q8_0")
    path = Path(small.gguf)
    path.write_bytes(path.read_bytes()[:-100] + b"x" * 100)
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        deploy(DeployRequest(run_or_export=small.export_id), house.context)
    assert listed(house).active == first.model


@pytest.mark.parametrize("what", ["truncated", "parity"])
def test_damage_that_the_checksums_hide_is_found_before_it_is_loaded(
    house: House, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    made = exported(house)
    if what == "truncated":
        content = Path(made.gguf).read_bytes()
        spoil(house, made.export_id, "model.gguf", content[: len(content) // 2])
        monkeypatch.setattr(tryout, "tried_out", None)
    else:
        spoil(house, made.export_id, "parity.json", b'{"answers_asked": "many"}')
    with pytest.raises(CorruptArtifact, match=r"model\.gguf|parity\.json"):
        deploy(DeployRequest(run_or_export=made.export_id), house.context)
    assert nothing_was_deployed(house)


def test_a_full_disk_is_found_before_anything_is_loaded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    made = exported(house)
    monkeypatch.setattr(workspace_module, "free_bytes", lambda path: tryout.NEEDED_BYTES - 1)
    monkeypatch.setattr(tryout, "tried_out", None)
    with pytest.raises(OutOfSpace, match=f"deploy {made.export_id}"):
        deploy(DeployRequest(run_or_export=made.export_id), house.context)
    assert nothing_was_deployed(house)


def by_hand(house: House, folder: Path, asked: int, ended: int) -> Artifact:
    """An export of any model, with what its parity gate has seen."""
    from forge_mcp.exporting.gguf import convert_to_gguf

    with house.workspace.stage("export", "demo") as staged:
        convert_to_gguf(folder, staged.path / "model.gguf", "f16")
        (staged.path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
        parity = {"answers_asked": asked, "answers_stopped": ended}
        (staged.path / "parity.json").write_text(json.dumps(parity))
        return staged.commit(
            id="export-demo-beef",
            inputs_hash="be" * 32,
            parents=[house.run.id],
            result={"parity": {"argmax_agreement": 1.0}, "quantization": "f16"},
        )


@pytest.mark.parametrize(("ended", "refused"), [(4, True), (3, True), (2, False), (0, False)])
def test_an_answer_that_never_ends_is_found_where_the_file_is_known_to_end(
    house: House, tmp_path: Path, ended: int, refused: bool
) -> None:
    house.report(True, 1)
    rambling = scripted_model(tmp_path / "endless", ANSWER, ends=False)
    made = by_hand(house, rambling, 4, ended)
    request = DeployRequest(run_or_export=made.id)
    if not refused:
        assert listed(house).active != deploy(request, house.context).model
        return
    with pytest.raises(ForgeError, match="never ends an answer") as error:
        deploy(request, house.context)
    assert "parity gate" in error.value.cause
    assert nothing_was_deployed(house)


def test_a_model_that_says_nothing_is_not_deployed(house: House, tmp_path: Path) -> None:
    house.report(True, 1)
    made = by_hand(house, scripted_model(tmp_path / "dumb", ""), 4, 4)
    with pytest.raises(ForgeError, match="answers nothing"):
        deploy(DeployRequest(run_or_export=made.id), house.context)
    assert nothing_was_deployed(house)


# -- the way of a model ----------------------------------------------------------------------------


def test_deploy_query_and_roll_back(house: House) -> None:
    with pytest.raises(NotFound, match="retrain"):
        query(QueryRequest(text="What?"), house.context)
    report = "report-demo-1"
    house.report(True, 1)
    first = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert (first.previous, first.target) == (None, "llamacpp")
    assert first.model == model_of(first.deployment_id)
    again = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    assert (again.deployment_id, again.previous) == (first.deployment_id, None)
    assert query(QueryRequest(text="`zip_all`?"), house.context).model == first.model

    second = deployed(house, "q8_0")
    assert second.previous == first.model
    found = listed(house)
    assert [(m.model, m.active) for m in found.models] == [
        (second.model, True),
        (first.model, False),
    ]
    newest = found.models[0]
    export_of = house.workspace.load(newest.export, "export")
    assert newest.sha256 == hash_file(export_of.path / "model.gguf")
    assert newest.bytes == (export_of.path / "model.gguf").stat().st_size
    assert (newest.quantization, newest.report) == ("q8_0", report)
    assert house.workspace.load(str(newest.corpus), "corpus")
    assert house.workspace.load(str(newest.dataset), "dataset")
    assert newest.verdict == "passed" and newest.tried and "python" in newest.by

    back = rollback(RollbackRequest(reason="worse"), house.context)
    assert (back.active, back.previous) == (first.model, second.model)
    with pytest.raises(BadInput, match="is not the active model"):
        rollback(RollbackRequest(model=second.model), house.context)
    forward = activate(ActivateRequest(model=second.model), house.context)
    assert (forward.active, forward.previous) == (second.model, first.model)
    assert [(one.action, one.to_model) for one in forward.history] == [
        ("activate", second.model),
        ("rollback", first.model),
        ("deploy", second.model),
        ("deploy", first.model),
    ]
    assert [one.reason for one in forward.history][1:] == ["worse", *[f"{report} passed"] * 2]
    again_back = rollback(RollbackRequest(model=second.model), house.context)
    assert again_back.active == first.model


def test_a_person_sees_tables(house: House) -> None:
    none = summary(skills()["models"], listed(house))
    assert none.split() == ["active", "none", "previous", "none"]
    house.report(True, 1)
    first, second = deployed(house), deployed(house, "q8_0")
    rollback(RollbackRequest(reason="invents functions"), house.context)
    text = summary(skills()["models"], listed(house))
    assert re.search(rf"^active +{first.model}\nprevious +{second.model}$", text, re.MULTILINE)
    assert re.search(rf"^\* {first.model} +llamacpp +f16 +0\.4 MB .* passed$", text, re.MULTILINE)
    assert re.search(rf"rollback +{second.model} +{first.model} .* invents functions$", text, re.M)
    assert max(map(len, text.splitlines())) < 140


def test_a_deployment_keeps_what_it_was_asked_and_answered(house: House) -> None:
    house.report(True, 1)
    artifact = house.workspace.load(deployed(house).deployment_id, "deployment")
    artifact.verify()
    (row,) = artifact.rows("tryout.jsonl")
    assert (row["answer"], row["stopped"]) == (ANSWER, True)
    assert row["messages"][0]["content"] == "You know demo."
    assert json.loads(artifact.file("deployment.json").read_text())["target"] == "llamacpp"


def test_questions_that_do_not_fit_are_asked_without_documents(house: House) -> None:
    house.report(True, 1)
    made = exported(house)
    serving = house.context.settings.serving.model_copy(update={"num_ctx": 256})
    settings = house.context.settings.model_copy(update={"serving": serving})
    limit = 256 - 90
    artifact = house.workspace.load(made.export_id)
    changed = artifact.manifest.settings | {"answer_tokens": limit}
    manifest = artifact.manifest.model_copy(update={"settings": changed})
    (artifact.path / "manifest.json").write_text(manifest.model_dump_json())
    context = replace(house.context, settings=settings)
    result = deploy(DeployRequest(run_or_export=made.export_id), context)
    (row,) = house.workspace.load(result.deployment_id).rows("tryout.jsonl")
    assert tryout.FALLBACK in row["messages"][-1]["content"]


def test_a_model_whose_file_is_gone_or_cut_off_is_not_activated(house: House) -> None:
    house.report(True, 1)
    first, second = deployed(house), deployed(house, "q8_0")
    unload()
    path = house.workspace.load(
        registry.find_deployment(house.workspace, "demo", first.model).export
    ).file("model.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    changes: list[Callable[[], object]] = [
        lambda: rollback(RollbackRequest(), house.context),
        lambda: activate(ActivateRequest(model=first.model), house.context),
    ]
    for change in changes:
        with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
            change()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        activate(ActivateRequest(model=first.model), house.context)
    path.unlink()
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        rollback(RollbackRequest(), house.context)
    assert listed(house).active == second.model
    assert len(listed(house).history) == 2


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"passed": False, "reasons": ["worse"]}, "did not pass; worse"),
        (
            {"passed": True, "improvement_over_base": {"correct": 12.5, "codebleu": -1.0}},
            "passed, over the base: correct +12.5%, codebleu -1.0%",
        ),
    ],
)
def test_a_report_in_short(house: House, result: dict[str, Any], expected: str) -> None:
    house.report(True, 1)
    deployed(house)
    spoil_result(house, "report-demo-1", **result)
    assert listed(house).models[0].verdict == expected
    (house.workspace.folder("report") / "report-demo-1" / "manifest.json").unlink()
    assert listed(house).models[0].verdict is None


def test_a_run_without_a_corpus_or_report_is_listed_all_the_same(house: House) -> None:
    register_other(house)
    (only,) = listed(house).models
    assert (only.by, only.verdict, only.revision, only.corpus) == ("unknown", None, None, None)


# -- meanwhile -------------------------------------------------------------------------------------


def test_what_is_activated_meanwhile_is_compared_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody activates another model while this one is tried out."""
    house.report(True, 1)
    first = deployed(house)
    small = exported(house, "q8_0")
    real = tryout._ask

    def meanwhile(*arguments: Any) -> Any:
        found = real(*arguments)
        register_other(house)
        return found

    monkeypatch.setattr(tryout, "_ask", meanwhile)
    with pytest.raises(GateRefused, match="against run-demo-other, which is deployed"):
        deploy(DeployRequest(run_or_export=small.export_id), house.context)
    assert (listed(house).active, listed(house).previous) == ("demo-other", first.model)


def test_a_change_between_the_comparison_and_the_end_is_compared_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    house.report(True, 2, against="run-demo-other")
    first = deployed(house)
    small = exported(house, "q8_0")
    real, calls = registry.register, []

    def late(*arguments: Any, **fields: Any) -> Any:
        calls.append(fields["id"])
        if len(calls) == 1:
            register_other_with(real)
        return real(*arguments, **fields)

    def register_other_with(function: Any) -> None:
        function(
            house.workspace, id="deploy-demo-other", project="demo", model="demo-other",
            target="llamacpp", run="run-demo-other", export="export-demo-other",
        )  # fmt: skip

    monkeypatch.setattr(registry, "register", late)
    second = deploy(DeployRequest(run_or_export=small.export_id), house.context)
    assert (len(calls), second.previous) == (2, "demo-other")
    assert [one.to_model for one in listed(house).history] == [
        second.model, "demo-other", first.model,
    ]  # fmt: skip

    def busy(*_: Any, **__: Any) -> Any:
        raise Busy("locked")

    monkeypatch.setattr(registry, "register", busy)
    with pytest.raises(Busy, match="locked"):
        deploy(DeployRequest(run_or_export=small.export_id), house.context)


def test_a_second_deployment_waits_and_can_be_cancelled(house: House) -> None:
    house.report(True, 1)
    made = exported(house)
    cancel = threading.Event()
    context = replace(house.context, cancel=cancel)
    with FileLock(house.workspace.home / "locks" / "deploy-demo") as lock:
        assert lock.acquire()
        threading.Timer(0.3, cancel.set).start()
        with pytest.raises(Cancelled):
            deploy(DeployRequest(run_or_export=made.export_id), context)
    assert "Another deployment is being made" in house.logs()
    assert nothing_was_deployed(house)


# -- Ollama ----------------------------------------------------------------------------------------


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
