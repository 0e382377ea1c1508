"""The skills `models`, `activate` and `rollback`: which deployed model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from forge_mcp.errors import ForgeError, NotFound
from forge_mcp.pipeline.deploy import TRYOUT
from forge_mcp.pipeline.export import GGUF
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.pipeline.tryout import (
    Candidate,
    Tried,
    deploying,
    end_other_servers,
    require_sound,
    tried_out,
)
from forge_mcp.schemas.base import Schema

if TYPE_CHECKING:
    from forge_mcp.serving import registry

SHOWN = 20  # entries of the history


class ModelsRequest(SkillRequest):
    """Nothing to say: the project decides."""


class ActivateRequest(SkillRequest):
    """Which model to use."""

    model: str = Field(description="Name of a deployed model, as `models` lists it.")
    reason: str = Field(default="", description="Why, for the history.")


class RollbackRequest(SkillRequest):
    """What to take back, and why."""

    model: str | None = Field(
        default=None,
        description="Only if this model is still the active one. Give it where the call might be "
        "sent twice: a second rollback without it would undo the first.",
    )
    reason: str = Field(default="", description="Why, for the history.")


class DeployedModel(Schema):
    """One deployed model of the project, and what it was made from."""

    model: str
    deployment_id: str
    target: Literal["llamacpp", "ollama"]
    run: str
    export: str
    created: str
    active: bool
    by: str = Field(description="Who deployed it: user@host, face, process.")
    revision: str | None = Field(
        description="Commit of the repository it was trained on, '+' where files had changed since."
    )
    corpus: str | None
    dataset: str | None
    report: str | None
    verdict: str | None = Field(description="The report in short; null where it is gone.")
    quantization: str | None
    bytes: int | None = Field(description="Size of the GGUF.")
    sha256: str | None = Field(description="Of the GGUF.")
    tried: str | None = Field(
        description="When it last answered in its target before it became active; null: never."
    )
    imported: str | None = Field(description="From where and when, where it came in a bundle.")


class HistoryEntry(Schema):
    """One change of the active model."""

    time: str | None = Field(description="Null: before a history was kept.")
    action: Literal["deploy", "activate", "rollback"]
    from_model: str | None
    to_model: str | None = Field(description="Null: none is active any more.")
    by: str
    reason: str


class ModelsResult(SkillResult):
    """The deployed models of a project, newest first, and how the active one came to be it."""

    active: str | None
    previous: str | None = Field(description="What `rollback` returns to.")
    models: list[DeployedModel]
    history: list[HistoryEntry] = Field(
        description=f"The last {SHOWN} changes, newest first. Models that were removed since are "
        "still named."
    )


@skill(title="List models", read_only=True, examples=("forge-mcp models",))
def models(request: ModelsRequest, context: SkillContext) -> ModelsResult:
    """List the deployed models of the project, which one is active, and which was before.

    Use this before `activate`, `rollback` or `query --model`, or to see what a model was made from
    (repository revision, dataset, run, report, export) and who changed the active one when.
    """
    return _listed(context)


@skill(
    title="Activate a model",
    positional=("model",),
    destructive=True,
    examples=("forge-mcp activate flask-3f9a",),
)
def activate(request: ActivateRequest, context: SkillContext) -> ModelsResult:
    """Make a model that was deployed earlier the active one again.

    Use this to go back further than one step, or forward again, or to use a model that came in a
    bundle. Its file is compared with its checksum and it must answer where it will run; then it
    becomes active in one step. What was active stays, and `rollback` returns to it.
    """
    from forge_mcp.serving import registry

    workspace, project = context.workspace, context.project
    registry.find_deployment(workspace, project, request.model)
    with deploying(context):
        found = registry.find_deployment(workspace, project, request.model)
        bring_up(found, context, reason=request.reason)
    return _listed(context)


@skill(
    title="Roll back",
    destructive=True,
    idempotent=False,
    examples=(
        "forge-mcp rollback",
        "forge-mcp rollback --model flask-3f9a --reason 'invents functions'",
    ),
)
def rollback(request: RollbackRequest, context: SkillContext) -> ModelsResult:
    """Take the last change back: the model that was active before becomes the active one again.

    Use this when a new model answers worse than the old one. `previous` in the result of `models`
    is where it goes. Called a second time, it returns to the newer one; further back goes
    `activate`. Where somebody else changes the active model at the same moment, nothing is done.
    An imported model before which there was none gives way to none.
    """
    from forge_mcp.serving import registry

    workspace, project = context.workspace, context.project
    seen = (
        registry.standing(workspace, project)
        if request.model is None
        else registry.require_active(workspace, project, request.model)
    )
    if seen.previous is not None:
        _require_usable(seen.previous, context)
    registry.rollback(
        workspace,
        project,
        by=registry.Actor.here(context.face),
        seen=seen,
        reason=request.reason,
    )
    end_other_servers(context)
    return _listed(context)


def bring_up(deployment: registry.Deployment, context: SkillContext, *, reason: str) -> None:
    """Try a deployment out and make it the active one. Within `deploying`.

    Raises:
        NotFound: it is no longer in Ollama, where it once was.
        GateRefused, CorruptArtifact, Unavailable, ForgeError: see `require_sound`, `tried_out`.
        Busy: somebody else activated another one meanwhile.
    """
    from forge_mcp.serving import registry

    workspace = context.workspace
    seen = registry.standing(workspace, context.project)
    if deployment.tried is not None:
        _require_usable(deployment, context)
    artifact = workspace.load(deployment.id, "deployment")
    candidate = Candidate(
        model=deployment.model,
        target="ollama" if deployment.target == "ollama" else "llamacpp",
        export=require_sound(workspace.load(deployment.export, "export"), context),
        system_prompt=artifact.manifest.settings["system_prompt"],
        questions=[Tried.model_validate(row).messages for row in artifact.rows(TRYOUT)]
        if TRYOUT in artifact.manifest.checksums
        else [],
        create=deployment.tried is None,
    )
    context.log(f"Trying {candidate.model} in {candidate.target}.")
    with tried_out(candidate, context):
        registry.set_active_model(
            workspace,
            context.project,
            deployment.id,
            by=registry.Actor.here(context.face),
            seen=seen,
            reason=reason,
            tried=True,
        )
    end_other_servers(context)


def _require_usable(deployment: registry.Deployment, context: SkillContext) -> None:
    """What can be seen without loading it.

    Raises:
        NotFound, CorruptArtifact, Unavailable: what the deployment needs is not there any more.
    """
    export = context.workspace.load(deployment.export, "export")
    if deployment.target == "llamacpp":
        from forge_mcp.serving.gguf_file import check_gguf

        check_gguf(export.file(GGUF))
        return
    from forge_mcp.serving.ollama import list_ollama_models

    names = list_ollama_models(context.settings.serving.ollama_host)
    if deployment.model not in {name.removesuffix(":latest") for name in names}:
        raise NotFound(
            f"{deployment.model} is no longer in Ollama.",
            cause=f"Ollama holds: {', '.join(names) or 'no models'}",
            next_step=f"Deploy it again: forge-mcp deploy {deployment.export} --target ollama",
        )


def _listed(context: SkillContext) -> ModelsResult:
    from forge_mcp.serving import registry

    workspace, project = context.workspace, context.project
    standing = registry.standing(workspace, project)
    active = standing.active.model if standing.active else None
    return ModelsResult(
        active=active,
        previous=standing.previous.model if standing.previous else None,
        models=[
            _described(one, one.model == active, context)
            for one in registry.deployments(workspace, project)
        ],
        history=[
            HistoryEntry(
                time=one.time,
                action=one.action,
                from_model=one.from_,
                to_model=one.to,
                by=registry.describe(one.by),
                reason=one.reason,
            )
            for one in registry.history(workspace, project, SHOWN)
        ],
    )


def _described(one: registry.Deployment, active: bool, context: SkillContext) -> DeployedModel:
    from forge_mcp.serving.registry import describe

    made = one.origin
    return DeployedModel.model_validate(
        {
            "model": one.model,
            "deployment_id": one.id,
            "target": one.target,
            "run": one.run,
            "export": one.export,
            "created": one.created,
            "active": active,
            "by": describe(one.by),
            "revision": made.revision and made.revision + ("+" if made.dirty else ""),
            "corpus": made.corpus,
            "dataset": made.dataset,
            "report": made.report,
            "verdict": verdict_of(made.report, context),
            "quantization": made.quantization,
            "bytes": made.bytes,
            "sha256": made.sha256,
            "tried": one.tried,
            "imported": made.imported,
        }
    )


def verdict_of(report: str | None, context: SkillContext) -> str | None:
    """A report in one line; None where there is none to read."""
    if report is None:
        return None
    try:
        result = context.workspace.load(report, "report").manifest.result
    except ForgeError:
        return None
    if result.get("passed") is not True:
        return "; ".join(["did not pass", *map(str, result.get("reasons") or ())])
    gains = result.get("improvement_over_base")
    shown = list(gains.items())[:3] if isinstance(gains, dict) else []
    figures = [f"{name} {gain:+.1f}%" for name, gain in shown if isinstance(gain, int | float)]
    return ", ".join(["passed", *(["over the base: " + ", ".join(figures)] if figures else [])])
