"""The skills `bundle` and `unbundle`: a deployed model travels to another machine as one file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forge_mcp.errors import BadInput, NotFound
from forge_mcp.pipeline.deploy import DEPLOYMENT, TRYOUT
from forge_mcp.pipeline.export import GGUF, MODELFILE, PARITY, TOKENIZER, load_export
from forge_mcp.pipeline.models import bring_up, verdict_of
from forge_mcp.pipeline.retrieving import SECRET
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.pipeline.tryout import deploying
from forge_mcp.schemas.manifests import RepositoryState
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, relocated, require_space

if TYPE_CHECKING:
    from forge_mcp.serving.bundle import Bundle, BundledArtifact, BundleManifest, Source
    from forge_mcp.serving.registry import Deployment
    from forge_mcp.workspace import Staged

SUFFIX = ".forge.tar"
EXPORT_FILES = (GGUF, TOKENIZER, PARITY, MODELFILE, "report.md")
REPORT_FILES = ("report.md", "report.html", "report.json")
BLOCKS, REJECTED = "blocks.jsonl", "rejected.jsonl"


class BundleRequest(SkillRequest):
    """Which model to take along, and where to write it."""

    model: str | None = Field(
        default=None, description="A deployed model, as `models` lists it. Default: the active one."
    )
    out: str | None = Field(
        default=None, description="The file to write. Default: MODEL.forge.tar in this folder."
    )
    without_code: bool = Field(
        default=False,
        description="Leave out every file with source code in it: the blocks that `query` looks "
        "up, the answers of the try-out, and the pages of the report. (The weights have learnt "
        "from the code all the same.)",
    )


class BundleResult(SkillResult):
    """The file that was written."""

    path: str
    bytes: int
    sha256: str
    model: str
    deployment_id: str
    contains_code: bool
    files: dict[str, int] = Field(description="Its members and their sizes in bytes.")
    seconds: float


class UnbundleRequest(SkillRequest):
    """Which bundle to take in, and for which repository."""

    file: str = Field(description="A bundle, as `bundle` wrote it.")
    repo: str = Field(
        default=".",
        description="Folder of the repository on this machine; where there is none, an empty "
        "folder of the project's name.",
    )
    target: Literal["llamacpp", "ollama"] | None = Field(
        default=None, description="Where it shall run here. Default: where it ran before."
    )
    activate: bool = Field(
        default=False,
        description="Also try it out and make it the model that `query` asks. It was judged on the "
        "other machine and is not compared with what is active here; nor can a model that is "
        "trained here be compared with it, so `rollback` before the next one is deployed.",
    )


class UnbundleResult(SkillResult):
    """What came in, and what is active now."""

    deployment_id: str
    model: str
    target: Literal["llamacpp", "ollama"]
    imported: str = Field(description="From where, and when.")
    revision: str | None = Field(description="Commit of the repository it was trained on.")
    verdict: str = Field(description="What the report says that came with it.")
    report: str | None = Field(description="The report's page.")
    contains_code: bool = Field(description="Whether the blocks that `query` looks up came along.")
    activated: bool
    active: str | None
    previous: str | None
    next_step: str
    seconds: float


@skill(
    title="Bundle a model",
    positional=("model",),
    examples=("forge-mcp bundle", "forge-mcp bundle flask-3f9a --out /media/usb/flask.forge.tar"),
)
def bundle(request: BundleRequest, context: SkillContext) -> BundleResult:
    """Write a deployed model with all it needs into one file for another machine.

    Use this to give a model to a colleague or to keep it. The file holds the GGUF, tokenizer,
    Modelfile, parity figures, the report, where it all comes from (repository revision, dataset,
    run, settings, versions), a SHA-256 of everything, and the code blocks that `query` looks up:
    source code of the repository, which `without_code` leaves out. There: `unbundle FILE`.
    """
    started = time.perf_counter()
    from forge_mcp.serving.bundle import write_bundle
    from forge_mcp.serving.registry import find_deployment, get_active_model

    workspace = context.workspace
    deployment = (
        get_active_model(workspace, context.project)
        if request.model is None
        else find_deployment(workspace, context.project, request.model)
    )
    path = Path(request.out or f"{deployment.model}{SUFFIX}").expanduser().absolute()
    sources, manifest = _packed(deployment, request.without_code, context)
    sha256 = write_bundle(
        path, manifest, sources, lambda done, total: context.progress(done, total, "writing")
    )
    if manifest.contains_code:
        context.log("The bundle contains source code of the repository.")
    return BundleResult(
        path=str(path),
        bytes=path.stat().st_size,
        sha256=sha256,
        model=deployment.model,
        deployment_id=deployment.id,
        contains_code=manifest.contains_code,
        files={name: file.bytes for name, file in manifest.files.items()},
        seconds=round(time.perf_counter() - started, 3),
    )


@skill(
    title="Take a bundle in",
    positional=("file",),
    destructive=True,
    examples=(
        "forge-mcp unbundle flask-3f9a.forge.tar",
        "forge-mcp unbundle flask-3f9a.forge.tar --repo ../flask --activate",
    ),
)
def unbundle(request: UnbundleRequest, context: SkillContext) -> UnbundleResult:
    """Make the model of a bundle a deployment of this project.

    Use this with a file that `bundle` wrote on another machine. Everything in it is compared with
    its checksums before anything is kept. The model is listed by `models` and can be asked with
    `query --model`; it becomes the active one with `activate`, here or later, once it has answered
    on this machine. Without the code in the bundle, `query` looks into what `extract` mines here.
    """
    started = time.perf_counter()
    from forge_mcp.serving.bundle import opened_bundle
    from forge_mcp.serving.registry import find_deployment, standing

    workspace, project = context.workspace, context.project
    path = Path(request.file).expanduser().absolute()
    with opened_bundle(path) as opened:
        manifest = opened.manifest
        if manifest.project != project:
            raise BadInput(
                f"The bundle is of project '{manifest.project}', but this is '{project}'.",
                cause=f"{path.name} was made for another repository",
                next_step=f"Run it in the repository of '{manifest.project}', or name a folder so: "
                f"forge-mcp init FOLDER --name {manifest.project}",
            )
        taken = _take_in(opened, request.target or manifest.target, context)
    if request.activate:
        with deploying(context):
            found = find_deployment(workspace, project, taken.id)
            bring_up(found, context, reason=f"imported from {path.name}")
    now = standing(workspace, project)
    active = now.active is not None and now.active.id == taken.id
    report = manifest.artifacts["report"].id
    return UnbundleResult(
        deployment_id=taken.id,
        model=taken.model,
        target="ollama" if taken.target == "ollama" else "llamacpp",
        imported=taken.origin.imported or "made here",
        revision=taken.origin.revision,
        verdict=verdict_of(report, context) or "none",
        report=str(workspace.load(report, "report").file("report.md")),
        contains_code=manifest.contains_code,
        activated=active,
        active=now.active.model if now.active else None,
        previous=now.previous.model if now.previous else None,
        next_step=_next_step(taken, active, manifest.contains_code),
        seconds=round(time.perf_counter() - started, 3),
    )


def _next_step(taken: Deployment, active: bool, code: bool) -> str:
    mined = "" if code else " Run 'forge-mcp extract' first: no code to look up came along."
    if active:
        return f"Ask it: forge-mcp query TEXT.{mined}"
    return f"Read the report, then: forge-mcp activate {taken.model}.{mined}"


# -- packing ---------------------------------------------------------------------------------------


def _packed(
    deployment: Deployment, without_code: bool, context: SkillContext
) -> tuple[dict[str, Source], BundleManifest]:
    """What goes into the bundle, and its manifest. The same for the same deployment, always."""
    from forge_mcp.serving.bundle import BundleManifest

    workspace = context.workspace
    kept = workspace.load(deployment.id, "deployment")
    export = load_export(workspace, deployment.export)
    report = _report(workspace, kept)
    corpus = None if without_code else _corpus(workspace, kept)
    prompt = kept.manifest.settings["system_prompt"]
    artifacts = {"deployment": kept, "export": export, "report": report}
    sources = _files("export", export, EXPORT_FILES)
    if without_code:
        sources["report/report.md"] = _text(_figures(report))
    else:
        sources |= _files("report", report, REPORT_FILES)
        sources |= _files("deployment", kept, (TRYOUT,))
    if corpus is not None:
        artifacts["corpus"] = corpus
        sources |= _files("corpus", corpus, (BLOCKS,))
        shown = [row for row in corpus.rows(REJECTED) if SECRET not in row["reasons"]]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in shown)
        sources[f"corpus/{REJECTED}"] = _text("".join(lines))
    made = {key: value for key, value in asdict(deployment.origin).items() if key != "imported"}
    by = asdict(deployment.by)
    facts = {
        "model": deployment.model,
        "target": deployment.target,
        "export": export.id,
        "run": deployment.run,
        "system_prompt": prompt,
        "serving": _portable(kept.manifest.settings)["serving"],
        "made": made,
        "by": by,
        "created": deployment.created,
    }
    sources[f"deployment/{DEPLOYMENT}"] = _text(json.dumps(facts, indent=2) + "\n")
    manifest = BundleManifest.model_validate(
        {
            "project": context.project,
            "model": deployment.model,
            "target": deployment.target,
            "run": deployment.run,
            "system_prompt": prompt,
            "contains_code": not without_code,
            "made": made,
            "by": by,
            "created": deployment.created,
            "artifacts": {kind: _described(one) for kind, one in sorted(artifacts.items())},
            "files": {name: sources[name].described() for name in sorted(sources)},
        }
    )
    return sources, manifest


def _report(workspace: Workspace, kept: Artifact) -> Artifact:
    """The report that let the deployment pass."""
    for parent in kept.manifest.parents:
        if parent.startswith("report-"):
            return workspace.load(parent, "report")
    raise NotFound(
        f"{kept.id} names no report.",
        cause="its manifest has no such parent",
        next_step="Deploy the run again, then bundle it.",
    )


def _corpus(workspace: Workspace, kept: Artifact) -> Artifact:
    from forge_mcp.serving.lineage import ancestor

    try:
        return ancestor(workspace, kept, "corpus")
    except NotFound as gone:
        raise NotFound(
            f"The code that {kept.id} was made from is not here.",
            cause=gone.cause,
            next_step="Bundle it with --without-code.",
        ) from gone


def _files(kind: str, artifact: Artifact, names: tuple[str, ...]) -> dict[str, Source]:
    """Those of the named files that the artifact has."""
    from forge_mcp.serving.bundle import Source

    known = artifact.manifest.checksums
    return {
        f"{kind}/{name}": Source(path=artifact.file(name), sha256=known[name])
        for name in names
        if name in known
    }


def _text(text: str) -> Source:
    from forge_mcp.serving.bundle import Source

    return Source(content=text.encode())


def _figures(report: Artifact) -> str:
    """A report without its pages: the verdict and the figures, which show no code."""
    result = report.manifest.result
    lines = [
        f"# {report.id}",
        "",
        "The pages of this report show answers with code, and were left out of the bundle.",
        "",
        "```json",
        json.dumps(
            {key: value for key, value in result.items() if key != "path"},
            indent=1,
            sort_keys=True,
            ensure_ascii=False,
        ),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _described(artifact: Artifact) -> dict[str, Any]:
    """An artifact's manifest without the paths and addresses of this machine."""
    manifest = artifact.manifest
    state = manifest.repository
    return {
        "id": artifact.id,
        "inputs_hash": manifest.inputs_hash,
        "parents": manifest.parents,
        "repository": Path(state.path).name if state else None,
        "revision": state.revision if state else None,
        "dirty": state.dirty if state else False,
        "settings": _portable(manifest.settings),
        "versions": manifest.versions,
        "created": manifest.created,
        "result": relocated(manifest.result, Path()),
    }


def _portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the address of an Ollama server."""
    serving = settings.get("serving")
    if not isinstance(serving, dict):
        return dict(settings)
    kept = {name: value for name, value in serving.items() if name != "ollama_host"}
    return dict(settings) | {"serving": kept}


# -- taking in -------------------------------------------------------------------------------------


def _take_in(
    opened: Bundle, target: Literal["llamacpp", "ollama"], context: SkillContext
) -> Deployment:
    """Verify everything, then keep it under its ids and enter it into the registry.

    Raises:
        BadInput: another artifact of the same name is here.
        CorruptArtifact: something in the bundle is not as it was written; nothing was kept.
        OutOfSpace: it does not fit.
    """
    from forge_mcp.serving.bundle import KINDS
    from forge_mcp.serving.gguf_file import check_gguf
    from forge_mcp.serving.registry import Actor, Origin, find_deployment, register

    workspace, manifest = context.workspace, opened.manifest
    host, now = manifest.by.host or "another machine", _now()
    there = {kind: _there(kind, opened, context) for kind in manifest.artifacts}
    needed = sum(file.bytes for file in manifest.files.values())
    require_space(workspace.home, needed, f"unpack {opened.path.name}")
    with ExitStack() as stack:
        staged = {
            kind: stack.enter_context(workspace.stage(kind, context.project))
            for kind in KINDS
            if kind in manifest.artifacts
        }
        opened.extract(
            {kind: one.path for kind, one in staged.items()},
            lambda done, total: context.progress(done, total, "checking"),
        )
        check_gguf(staged["export"].path / GGUF)
        _write_deployment(staged["deployment"].path, manifest, target, context)
        for kind, one in staged.items():
            if not there[kind]:
                _commit(one, kind, opened, target, {"from": host, "at": now}, context)
    register(
        workspace,
        id=manifest.artifacts["deployment"].id,
        project=context.project,
        model=manifest.model,
        target=target,
        run=manifest.run,
        export=manifest.artifacts["export"].id,
        origin=Origin(**manifest.made.model_dump(), imported=f"{host} at {now}"),
        by=Actor.here(context.face),
        activate=False,
    )
    return find_deployment(workspace, context.project, manifest.model)


def _there(kind: str, opened: Bundle, context: SkillContext) -> bool:
    """Whether an artifact of the bundle is here already: imported before, or made here.

    Raises:
        BadInput: another one has its name.
    """
    described = opened.manifest.artifacts[kind]  # type: ignore[index]
    try:
        known = context.workspace.load(described.id)
    except NotFound:
        return False
    same = known.manifest.project == context.project and known.manifest.inputs_hash in (
        _imported_hash(described, opened.manifest, kind),
        described.inputs_hash,
    )
    listed = opened.manifest.of(kind)
    for name in (GGUF, TOKENIZER, BLOCKS, "report.json"):
        if name in listed and known.manifest.checksums.get(name) != listed[name].sha256:
            same = False
    if same:
        return True
    raise BadInput(
        f"{described.id} is already here, and is another one than in {opened.path.name}.",
        cause="two machines made something of the same name",
        next_step="Take the bundle in with another FORGE_HOME, or remove the one that is here "
        "(forge-mcp gc).",
    )


def _imported_hash(described: BundledArtifact, manifest: BundleManifest, kind: str) -> str:
    """Not the hash of the original: what is computed here must not be taken for what came in."""
    files = {name: file.sha256 for name, file in manifest.of(kind).items()}
    return hash_inputs({"imported": described.inputs_hash, "files": files})


def _write_deployment(
    folder: Path, manifest: BundleManifest, target: str, context: SkillContext
) -> None:
    """deployment.json as it is true here, where it may run somewhere else."""
    path = folder / DEPLOYMENT
    try:
        facts = json.loads(path.read_text("utf-8"))
        facts |= {"target": target, "serving": context.settings.serving.model_dump()}
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"The bundle's {DEPLOYMENT} cannot be read.",
            cause=str(error),
            next_step="Make the bundle anew.",
        ) from error
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _commit(
    staged: Staged,
    kind: str,
    opened: Bundle,
    target: str,
    origin: dict[str, str],
    context: SkillContext,
) -> None:
    """Give a staged folder its id, with where it comes from in its settings."""
    from forge_mcp.serving.lineage import IMPORTED

    manifest = opened.manifest
    described = manifest.artifacts[kind]  # type: ignore[index]
    settings = described.settings | {
        IMPORTED: origin
        | {
            "by": manifest.by.model_dump(),
            "created": described.created,
            "inputs_hash": described.inputs_hash,
            "parents": described.parents,
            "versions": described.versions,
        }
    }
    result, parents = described.result, []
    ids = {name: one.id for name, one in manifest.artifacts.items()}
    if kind == "report":
        parents = [ids["export"]]
    if kind == "deployment":
        parents = [ids[name] for name in ("export", "report", "corpus") if name in ids]
        settings["system_prompt"] = manifest.system_prompt
        settings["serving"] = context.settings.serving.model_dump()
        result = result | {"target": target}
    staged.commit(
        id=described.id,
        inputs_hash=_imported_hash(described, manifest, kind),
        parents=parents,
        repository=RepositoryState(
            path=described.repository, revision=described.revision, dirty=described.dirty
        )
        if described.repository
        else None,
        settings=settings,
        result=result,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
