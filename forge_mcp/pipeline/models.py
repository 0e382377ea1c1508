"""The skills `models`, `activate` and `rollback`: which deployed model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from forge_mcp.errors import NotFound
from forge_mcp.pipeline.export import GGUF
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema

if TYPE_CHECKING:
    from forge_mcp.serving import registry


class ModelsRequest(SkillRequest):
    """Nothing to say: the project decides."""


class ActivateRequest(SkillRequest):
    """Which model to use."""

    model: str = Field(description="Name of a deployed model, as `models` lists it.")


class RollbackRequest(SkillRequest):
    """Nothing to say: the project decides."""


class DeployedModel(Schema):
    """One deployed model of the project."""

    model: str
    deployment_id: str
    target: Literal["llamacpp", "ollama"]
    run: str
    export: str
    created: str
    active: bool


class ModelsResult(SkillResult):
    """The deployed models of a project, newest first."""

    active: str | None
    previous: str | None = Field(description="What `rollback` returns to.")
    models: list[DeployedModel]


@skill(title="List models", read_only=True, examples=("forge-mcp models",))
def models(request: ModelsRequest, context: SkillContext) -> ModelsResult:
    """List the deployed models of the project, which one is active, and which was before.

    Use this before `activate`, `rollback` or `query --model`.
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

    Use this to go back further than one step, or forward again. It must still be there: its file,
    or its entry in Ollama.
    """
    from forge_mcp.serving import registry

    found = registry.find_deployment(context.workspace, context.project, request.model)
    _require_usable(found, context)
    registry.set_active_model(context.workspace, context.project, found.model)
    return _listed(context)


@skill(
    title="Roll back",
    destructive=True,
    idempotent=False,
    examples=("forge-mcp rollback",),
)
def rollback(request: RollbackRequest, context: SkillContext) -> ModelsResult:
    """Take the last deployment back: the previous model becomes the active one again.

    Use this when a new model answers worse than the old one. Called a second time, it returns to
    the newer one.
    """
    from forge_mcp.serving import registry

    previous = registry.standing(context.workspace, context.project).previous
    if previous is not None:
        _require_usable(previous, context)
    registry.rollback(context.workspace, context.project)
    return _listed(context)


def _require_usable(deployment: registry.Deployment, context: SkillContext) -> None:
    """Raises:
    NotFound, CorruptArtifact, Unavailable: what the deployment needs is not there any more.
    """
    if deployment.target == "llamacpp":
        context.workspace.load(deployment.export, "export").file(GGUF)
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

    standing = registry.standing(context.workspace, context.project)
    active = standing.active.model if standing.active else None
    return ModelsResult(
        active=active,
        previous=standing.previous.model if standing.previous else None,
        models=[
            DeployedModel.model_validate(
                {
                    "model": one.model,
                    "deployment_id": one.id,
                    "target": one.target,
                    "run": one.run,
                    "export": one.export,
                    "created": one.created,
                    "active": one.model == active,
                }
            )
            for one in registry.deployments(context.workspace, context.project)
        ],
    )
