"""The skills deploy, models, activate and rollback: what is refused before anything changes."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deploy_cases import (
    copied,
    deployed,
    exported,
    listed,
    make_exports,
    nothing_was_deployed,
    spoil,
    spoil_result,
)
from serving_house import ANSWER, House, keep, scripted_model

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
)
from forge_mcp.interfaces.summaries import summary
from forge_mcp.locks import FileLock
from forge_mcp.pipeline import tryout
from forge_mcp.pipeline.deploy import DeployRequest, deploy, model_of
from forge_mcp.pipeline.export import ExportRequest, export
from forge_mcp.pipeline.models import (
    ActivateRequest,
    RollbackRequest,
    activate,
    rollback,
)
from forge_mcp.pipeline.query import QueryRequest, query
from forge_mcp.pipeline.skill import skills
from forge_mcp.serving import registry
from forge_mcp.serving.chat import unload
from forge_mcp.serving.registry import Origin
from forge_mcp.workspace import Artifact, Workspace, hash_file


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture
def house(tmp_path: Path, exports: Path) -> Iterator[House]:
    yield copied(exports, tmp_path)
    unload()


# -- what is refused -------------------------------------------------------------------------------


def test_only_a_run_that_passed_its_comparison_is_deployed(house: House) -> None:
    for export_folder in house.workspace.folder("export").iterdir():
        shutil.rmtree(export_folder)
    keep(house.workspace, "report", 7, {}, "run-demo-other")
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


def loaded(*_: object) -> None:
    raise AssertionError("it came so far as to be loaded")


@pytest.mark.parametrize("what", ["truncated", "parity"])
def test_damage_that_the_checksums_hide_is_found_before_it_is_loaded(
    house: House, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.report(True, 1)
    made = exported(house)
    if what == "truncated":
        content = Path(made.gguf).read_bytes()
        spoil(house, made.export_id, "model.gguf", content[: len(content) // 2])
        monkeypatch.setattr("forge_mcp.pipeline.deploy.tried_out", loaded)
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
    monkeypatch.setattr("forge_mcp.pipeline.deploy.tried_out", loaded)
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


def test_a_rollback_that_somebody_else_was_faster_with_does_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two who see the same bad model must not undo each other's rollback."""
    house.report(True, 1)
    first, second = deployed(house), deployed(house, "q8_0")
    monkeypatch.setattr(
        "forge_mcp.pipeline.models._require_usable",
        lambda *_: registry.rollback(house.workspace, "demo"),
    )
    with pytest.raises(Busy, match="changed meanwhile"):
        rollback(RollbackRequest(), house.context)
    assert (listed(house).active, listed(house).previous) == (first.model, second.model)


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


def test_servers_of_models_that_were_replaced_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, str | None]] = []

    def stopped(workspace: Workspace, *, project: str, keep: str | None) -> list[str]:
        kept.append((project, keep))
        return []

    monkeypatch.setattr("forge_mcp.serving.llamacpp_server.stop_servers", stopped)
    house.report(True, 1)
    first = deploy(DeployRequest(run_or_export=house.run.id), house.context)
    small = export(ExportRequest(run=house.run.id, quantization="q8_0"), house.context)
    second = deploy(DeployRequest(run_or_export=small.export_id), house.context)
    rollback(RollbackRequest(), house.context)
    activate(ActivateRequest(model=second.model), house.context)
    names = [first.model, second.model, first.model, second.model]
    assert kept == [("demo", name) for name in names]
