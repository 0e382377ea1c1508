"""Bundles: what comes out is what went in, or nothing, in words."""

from __future__ import annotations

import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving_house import ANSWER, House, keep, make_block, make_house, scripted_model

from forge_mcp import workspace as workspace_module
from forge_mcp.errors import (
    BadInput,
    Busy,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    NotFound,
    OutOfSpace,
)
from forge_mcp.locks import FileLock
from forge_mcp.pipeline import tryout
from forge_mcp.pipeline.bundle import (
    BundleRequest,
    BundleResult,
    UnbundleRequest,
    UnbundleResult,
    bundle,
    unbundle,
)
from forge_mcp.pipeline.deploy import DeployRequest, deploy
from forge_mcp.pipeline.export import ExportRequest, export
from forge_mcp.pipeline.gc import GcRequest, gc
from forge_mcp.pipeline.models import (
    ActivateRequest,
    ModelsRequest,
    RollbackRequest,
    activate,
    models,
    rollback,
)
from forge_mcp.pipeline.query import QueryRequest, query
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.serving import registry
from forge_mcp.serving.bundle import (
    BundleManifest,
    Source,
    opened_bundle,
    write_bundle,
)
from forge_mcp.serving.chat import unload
from forge_mcp.serving.lineage import ancestor, corpus_of
from forge_mcp.workspace import FOLDERS, Workspace, hash_file

QUESTION = QueryRequest(text="Which parameters does `zip_all` take?")
SECRET_HOST = "http://127.0.0.1:45678"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The machine on which the model was made and deployed."""
    folder = tmp_path_factory.mktemp("origin")
    base = scripted_model(folder / "m", ANSWER)
    house = make_house(
        folder / "forge",
        base,
        serving={
            "num_ctx": 512,
            "num_predict": 64,
            "threads": 1,
            "ollama_host": SECRET_HOST,
        },
    )
    pages = {
        "report.md": "# Report\n\n    def zip_all(rows):\n",
        "report.html": "<!doctype html><pre>def zip_all(rows):</pre>\n",
        "report.json": json.dumps({"deployed_model": None}),
        "answers.jsonl": "{}\n",
    }
    with house.workspace.stage("report", "demo") as staged:
        for name, text in pages.items():
            (staged.path / name).write_text(text)
        staged.commit(
            id="report-demo-1",
            inputs_hash=f"{1:064}",
            parents=[house.run.id],
            result={
                "passed": True,
                "reasons": [],
                "path": str(house.workspace.folder("report") / "report-demo-1"),
                "improvement_over_base": {"correct": 40.0},
            },
        )
    made = export(ExportRequest(run=house.run.id, quantization="f16"), house.context)
    deploy(DeployRequest(run_or_export=made.export_id), house.context)
    unload()
    yield house
    unload()


@pytest.fixture(scope="module")
def packed(origin: House, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "demo.forge.tar"
    bundle(BundleRequest(out=str(path)), origin.context)
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, origin: House) -> Iterator[SkillContext]:
    """Another machine: no repository, no run, no dataset."""
    yield replace(origin.context, workspace=Workspace(tmp_path / "elsewhere"))
    unload()


def pack(origin: House, folder: Path, **fields: Any) -> tuple[Path, BundleResult]:
    path = folder / "demo.forge.tar"
    return path, bundle(BundleRequest(out=str(path), **fields), origin.context)


def unpack(path: Path, context: SkillContext, **fields: Any) -> UnbundleResult:
    return unbundle(UnbundleRequest(file=str(path), **fields), context)


def members(path: Path) -> dict[str, bytes]:
    """As tarfile reads it, which knows nothing of ours."""
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def kept(context: SkillContext) -> list[str]:
    """Every artifact, and everything in the staging folder."""
    workspace = context.workspace
    folders = [workspace.folder(kind) for kind in FOLDERS]
    staging = workspace.home / "staging"
    folders += [staging] if staging.exists() else []
    return sorted(path.name for folder in folders for path in folder.iterdir())


# -- there and back --------------------------------------------------------------------------------


def test_a_model_goes_to_another_machine(
    origin: House, packed: Path, elsewhere: SkillContext
) -> None:
    result = unpack(packed, elsewhere)
    model = registry.get_active_model(origin.workspace, "demo")
    assert (result.deployment_id, result.model) == (model.id, model.model)
    assert not result.activated and result.active is None
    assert f"forge-mcp activate {model.model}" in result.next_step
    assert result.verdict == "passed, over the base: correct +40.0%"
    assert result.report is not None and "zip_all" in Path(result.report).read_text()
    assert result.imported.startswith(f"{model.by.host} at ")
    for kind in FOLDERS:
        for artifact in elsewhere.workspace.artifacts(kind):
            artifact.verify()
            assert artifact.manifest.settings["imported"]["from"] == model.by.host
    assert kept(elsewhere) == sorted(
        [model.id, model.export, "report-demo-1", str(model.origin.corpus)]
    )
    assert list((elsewhere.workspace.home / "staging").iterdir()) == []
    for kind in FOLDERS:  # what is computed here is never taken for what came in
        for made in origin.workspace.artifacts(kind):
            found = elsewhere.workspace.find(kind, "demo", made.manifest.inputs_hash)
            assert found is None

    listed = models(ModelsRequest(), elsewhere)
    (only,) = listed.models
    assert (listed.active, only.tried, only.imported) == (None, None, result.imported)
    assert (only.sha256, only.run) == (model.origin.sha256, model.run)
    with pytest.raises(NotFound, match="No model"):
        query(QUESTION, elsewhere)
    assert query(QUESTION.model_copy(update={"model": model.model}), elsewhere).answer == "`rows`"

    active = activate(ActivateRequest(model=model.model), elsewhere)
    assert active.active == model.model and active.models[0].tried
    answer = query(QUESTION, elsewhere)
    assert (answer.answer, answer.sources[0].name) == ("`rows`", "zip_all")
    assert answer.citations

    assert rollback(RollbackRequest(), elsewhere).active is None, "there was none before"
    assert activate(ActivateRequest(model=model.model), elsewhere).active == model.model

    again = unpack(packed, elsewhere)
    assert (again.deployment_id, again.activated) == (result.deployment_id, True)
    assert len(models(ModelsRequest(), elsewhere).models) == 1
    with pytest.raises(NotFound, match="is not on this machine"):
        deploy(DeployRequest(run_or_export=model.export), elsewhere)


def test_the_members_are_what_they_are_said_to_be(
    origin: House, packed: Path, tmp_path: Path
) -> None:
    path, result = pack(origin, tmp_path)
    assert path.read_bytes() == packed.read_bytes(), "the same deployment, the same bytes"
    assert (result.sha256, result.bytes) == (hash_file(path), path.stat().st_size)
    content = members(path)
    assert list(content) == ["bundle.json", "bundle.json.sha256", *sorted(result.files)]
    assert {name: len(content[name]) for name in result.files} == result.files
    manifest = json.loads(content["bundle.json"])
    deployment = registry.get_active_model(origin.workspace, "demo")
    assert manifest["artifacts"]["export"]["id"] == deployment.export
    assert (
        content["export/model.gguf"]
        == Path(origin.workspace.load(deployment.export).file("model.gguf")).read_bytes()
    )
    assert {"export/Modelfile", "export/parity.json", "export/tokenizer.json"} <= set(content)
    assert {"report/report.md", "report/report.html", "report/report.json"} <= set(content)
    assert "report/answers.jsonl" not in content
    facts = json.loads(content["deployment/deployment.json"])
    assert facts["made"]["dataset"] == deployment.origin.dataset
    assert facts["run"] == origin.run.id
    everything = b"".join(content.values())
    assert str(origin.workspace.home).encode() not in everything
    assert SECRET_HOST.encode() not in everything
    assert b"def short_all" in content["corpus/rejected.jsonl"]
    assert b"secret_all" not in everything


def test_a_bundle_does_not_change_with_what_happens_later(
    origin: House, packed: Path, tmp_path: Path
) -> None:
    model = registry.get_active_model(origin.workspace, "demo").model
    small = export(ExportRequest(run=origin.run.id, quantization="q8_0"), origin.context)
    other = deploy(DeployRequest(run_or_export=small.export_id), origin.context)
    try:
        path, result = pack(origin, tmp_path, model=model)
        assert path.read_bytes() == packed.read_bytes()
        assert result.model != other.model
    finally:
        activate(ActivateRequest(model=model), origin.context)
        unload()


def test_without_code_no_code_travels_and_the_one_here_is_looked_up(
    origin: House, tmp_path: Path, elsewhere: SkillContext
) -> None:
    path, result = pack(origin, tmp_path, without_code=True)
    assert not result.contains_code
    content = members(path)
    readable = b"".join(data for name, data in content.items() if not name.endswith(".gguf"))
    # The tokenizer of these tests has a token for a piece of the answer.
    readable = readable.replace(content["export/tokenizer.json"], b"")
    assert b"def " not in readable and b"`zip_all`" not in readable
    assert b"left out of the bundle" in content["report/report.md"]

    taken = unpack(path, elsewhere, activate=True)
    assert (taken.activated, taken.contains_code) == (True, False)
    assert "forge-mcp extract" in taken.next_step
    closed = query(QUESTION, elsewhere)
    assert (closed.sources, closed.citations) == ([], [])
    deployment = elsewhere.workspace.load(taken.deployment_id)
    assert corpus_of(elsewhere.workspace, deployment) is None
    files = {"blocks.jsonl": [make_block("zip_all")], "rejected.jsonl": []}
    mined = keep(elsewhere.workspace, "corpus", 7, files, "")
    found = corpus_of(elsewhere.workspace, deployment)
    assert found is not None and found.id == mined.id
    assert [one.name for one in query(QUESTION, elsewhere).sources] == ["zip_all"]

    again = tmp_path / "again.forge.tar"
    with pytest.raises(NotFound, match="code that"):
        bundle(BundleRequest(out=str(again)), elsewhere)
    bundle(BundleRequest(out=str(again), without_code=True), elsewhere)
    third = replace(elsewhere, workspace=Workspace(tmp_path / "third"))
    assert unpack(again, third, activate=True).active == taken.model


def test_a_deployment_made_here_without_its_corpus_is_an_error(origin: House) -> None:
    deployment = registry.get_active_model(origin.workspace, "demo")
    artifact = origin.workspace.load(deployment.id)
    assert ancestor(origin.workspace, artifact, "corpus").id == deployment.origin.corpus
    place = origin.workspace.folder("corpus")
    place.rename(place.with_name("moved"))
    try:
        with pytest.raises(NotFound, match="does not say") as error:
            corpus_of(origin.workspace, artifact)
        assert "is gone from the workspace" in error.value.cause
    finally:
        place.rmdir()
        place.with_name("moved").rename(place)


def test_on_the_machine_it_was_made_nothing_changes(origin: House, packed: Path) -> None:
    before = models(ModelsRequest(), origin.context)
    result = unpack(packed, origin.context)
    assert result.imported == "made here" and result.activated
    assert models(ModelsRequest(), origin.context) == before


def test_gc_keeps_what_an_imported_model_needs(packed: Path, elsewhere: SkillContext) -> None:
    unpack(packed, elsewhere, activate=True)
    before = kept(elsewhere)
    everything = replace(elsewhere, project="")
    gc(GcRequest(apply=True, keep_newest=0, older_than_days=0), everything)
    assert [name for name in kept(elsewhere) if not name.startswith("gc-")] == before
    assert query(QUESTION, elsewhere).citations


def test_it_runs_where_this_machine_wants_it(
    packed: Path, elsewhere: SkillContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[str] = []

    def create(candidate: Any, context: Any) -> None:
        created.append(candidate.target)

    monkeypatch.setattr(tryout, "_create_in_ollama", create)
    monkeypatch.setattr(tryout, "_ask", lambda *_: [])
    result = unpack(packed, elsewhere, target="ollama", activate=True)
    assert (result.target, created) == ("ollama", ["ollama"])
    deployment = elsewhere.workspace.load(result.deployment_id)
    assert deployment.manifest.result["target"] == "ollama"
    assert deployment.manifest.settings["serving"]["ollama_host"] == SECRET_HOST, "of this machine"
    assert json.loads(deployment.file("deployment.json").read_text())["target"] == "ollama"


def test_a_model_that_fails_here_is_kept_and_not_active(
    packed: Path, elsewhere: SkillContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ForgeError("It never ends an answer.")

    monkeypatch.setattr(tryout, "_ask", fail)
    with pytest.raises(ForgeError, match="never ends"):
        unpack(packed, elsewhere, activate=True)
    listed = models(ModelsRequest(), elsewhere)
    assert (listed.active, len(listed.models)) == (None, 1)


# -- what is refused -------------------------------------------------------------------------------


def test_another_project_is_refused(packed: Path, elsewhere: SkillContext) -> None:
    with pytest.raises(BadInput, match="of project 'demo', but this is 'flask'"):
        unpack(packed, replace(elsewhere, project="flask"))
    assert kept(elsewhere) == []


@pytest.mark.parametrize("kind", ["export", "report", "deployment", "corpus"])
def test_another_artifact_of_that_name_is_not_replaced(
    kind: Any, origin: House, packed: Path, elsewhere: SkillContext
) -> None:
    deployment = registry.get_active_model(origin.workspace, "demo")
    ids = {
        "export": deployment.export,
        "report": "report-demo-1",
        "deployment": deployment.id,
        "corpus": deployment.origin.corpus,
    }
    with elsewhere.workspace.stage(kind, "demo") as staged:
        (staged.path / "blocks.jsonl").write_text("mine\n")
        staged.commit(id=str(ids[kind]), inputs_hash="ab" * 32)
    with pytest.raises(BadInput, match=f"{ids[kind]} is already here"):
        unpack(packed, elsewhere)
    assert kept(elsewhere) == [ids[kind]]


def test_the_same_inputs_with_another_outcome_are_not_the_same(
    origin: House, packed: Path, elsewhere: SkillContext
) -> None:
    """Two machines trained on the same; the files differ all the same."""
    deployment = registry.get_active_model(origin.workspace, "demo")
    inputs_hash = origin.workspace.load(deployment.export).manifest.inputs_hash
    with elsewhere.workspace.stage("export", "demo") as staged:
        (staged.path / "model.gguf").write_bytes(b"another")
        staged.commit(id=deployment.export, inputs_hash=inputs_hash)
    with pytest.raises(BadInput, match="is already here"):
        unpack(packed, elsewhere)


def test_no_space_and_a_cancellation_keep_nothing(
    packed: Path, elsewhere: SkillContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(workspace_module, "free_bytes", lambda path: 1000)
        with pytest.raises(OutOfSpace, match="unpack"):
            unpack(packed, elsewhere)
    cancel = threading.Event()

    def stop(event: Any) -> None:
        if event.payload.get("message") == "checking":
            cancel.set()

    with pytest.raises(Cancelled):
        unpack(packed, replace(elsewhere, cancel=cancel, sink=stop))
    assert kept(elsewhere) == []
    assert models(ModelsRequest(), elsewhere).models == []


def repacked(packed: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The bundle with other content and a manifest that agrees: only who made it could do this."""
    with opened_bundle(packed) as opened:
        fields = opened.manifest.model_dump(mode="json")
    content = {name: data for name, data in members(packed).items() if "bundle.json" not in name}
    fields["content"] = content
    change(fields)
    sources = {name: Source(content=data) for name, data in fields.pop("content").items()}
    fields["files"] = {name: one.described().model_dump() for name, one in sources.items()}
    write_bundle(target, BundleManifest.model_validate(fields), sources)
    return target


def test_a_gguf_that_was_damaged_before_it_was_packed_is_refused(
    packed: Path, tmp_path: Path, elsewhere: SkillContext
) -> None:
    def cut(fields: dict[str, Any]) -> None:
        fields["content"]["export/model.gguf"] = fields["content"]["export/model.gguf"][:-1000]

    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        unpack(repacked(packed, tmp_path / "cut.forge.tar", cut), elsewhere)

    def spoil(fields: dict[str, Any]) -> None:
        fields["content"]["deployment/deployment.json"] = b"[1]"

    with pytest.raises(BadInput, match=r"deployment\.json"):
        unpack(repacked(packed, tmp_path / "spoilt.forge.tar", spoil), elsewhere)
    assert kept(elsewhere) == []


def test_a_file_that_changed_is_not_packed(
    origin: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "copy"
    shutil.copytree(origin.workspace.home, home)
    context = replace(origin.context, workspace=Workspace(home))
    deployment = registry.get_active_model(context.workspace, "demo")
    gguf = context.workspace.load(deployment.export).file("model.gguf")
    gguf.write_bytes(gguf.read_bytes()[:-1] + b"x")
    out = tmp_path / "out.forge.tar"
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):
        bundle(BundleRequest(out=str(out)), context)
    unchecked = context.workspace.load(deployment.export)
    monkeypatch.setattr("forge_mcp.pipeline.bundle.load_export", lambda *_: unchecked)
    with pytest.raises(CorruptArtifact, match=r"model\.gguf"):  # changed after it was checked
        bundle(BundleRequest(out=str(out)), context)
    assert list(tmp_path.glob("*.tar*")) == []


def test_a_deployment_without_a_report_is_not_packed(elsewhere: SkillContext) -> None:
    from forge_mcp.pipeline import bundle as module

    made = keep(elsewhere.workspace, "deployment", 1, {}, "")
    with pytest.raises(NotFound, match="names no report"):
        module._report(elsewhere.workspace, made)


def test_where_it_cannot_be_written(
    origin: House, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken.tar"
    taken.write_text("a file of mine")
    with pytest.raises(BadInput, match="already there"):
        bundle(BundleRequest(out=str(taken)), origin.context)
    assert taken.read_text() == "a file of mine"
    with pytest.raises(NotFound, match="no folder"):
        bundle(BundleRequest(out=str(tmp_path / "no" / "x.tar")), origin.context)
    out = tmp_path / "out.tar"
    with FileLock(tmp_path / ".out.tar.partial") as lock:
        assert lock.acquire()
        with pytest.raises(Busy, match="Another process"):
            bundle(BundleRequest(out=str(out)), origin.context)
    with monkeypatch.context() as patched:
        patched.setattr(workspace_module, "free_bytes", lambda path: 1000)
        with pytest.raises(OutOfSpace):
            bundle(BundleRequest(out=str(out)), origin.context)
    with monkeypatch.context() as patched:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("forge_mcp.serving.bundle.os.fsync", full)
        with pytest.raises(OutOfSpace, match=r"out\.tar"):
            bundle(BundleRequest(out=str(out)), origin.context)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken.tar"]
    monkeypatch.chdir(tmp_path)
    found = bundle(BundleRequest(), origin.context)
    assert Path(found.path) == tmp_path / f"{found.model}.forge.tar"
    assert packed.read_bytes() == Path(found.path).read_bytes()
    assert bundle(BundleRequest(), origin.context).sha256 == found.sha256, "once more"
