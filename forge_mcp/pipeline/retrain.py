"""The whole line: repository → deployed model. A gate that says no stops it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, Field

from forge_mcp.errors import GateRefused
from forge_mcp.pipeline.deploy import DeployRequest, DeployResult
from forge_mcp.pipeline.evaluate import EvaluateRequest, EvaluateResult
from forge_mcp.pipeline.export import ExportRequest, ExportResult, require_exportable
from forge_mcp.pipeline.extract import ExtractRequest, ExtractResult
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill, skills
from forge_mcp.pipeline.synthesize import SynthesizeRequest, SynthesizeResult
from forge_mcp.pipeline.train import TrainRequest, TrainResult, chosen_base
from forge_mcp.pipeline.validate import ValidateRequest, ValidateResult

STAGES = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")
RunStage = Callable[[str, SkillRequest], SkillResult]
Result = TypeVar("Result", bound=SkillResult)


class RetrainRequest(SkillRequest):
    """What to retrain on, and what to change from the project's settings."""

    repo: str = Field(default=".", description="Folder of the repository.")
    base: str | None = Field(
        default=None, description="Base model: a name or a folder (default: the project's)."
    )
    epochs: float | None = Field(default=None, gt=0, description="Passes over the training split.")
    max_steps: int | None = Field(
        default=None, ge=0, description="At most this many optimiser steps; 0 = no limit."
    )
    quantization: str | None = Field(
        default=None, description="Of the deployed file: f16, q8_0, q6_k, q5_k_m or q4_k_m."
    )
    target: Literal["llamacpp", "ollama"] | None = Field(
        default=None, description="Where to deploy (default: the project's)."
    )


class RetrainResult(SkillResult):
    """One key a stage; a stage that was not reached is null."""

    # 'validate' is a name of pydantic's own; the field has it only outside.
    model_config = ConfigDict(serialize_by_alias=True)

    state: Literal["succeeded", "refused"]
    deployed: bool
    reasons: list[str] = Field(description="Why a gate said no; empty where none did.")
    extract: ExtractResult | None = None
    synthesize: SynthesizeResult | None = None
    validate_: ValidateResult | None = Field(default=None, alias="validate")
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    export: ExportResult | None = None
    deploy: DeployResult | None = None
    seconds: float


@skill(
    title="Retrain on a repository",
    positional=("repo",),
    long=True,
    loads_model=True,
    destructive=True,
    examples=("forge-mcp retrain .", "forge-mcp retrain ../flask --base forge-nano"),
)
def retrain(request: RetrainRequest, context: SkillContext) -> RetrainResult:
    """Make or refresh the local model of a repository: the whole line in one call.

    Use this when the user says "retrain on this repo". Runs extract, synthesize, validate, train,
    evaluate, export and deploy. A stage whose inputs have not changed since it last finished is
    not computed again. A gate that says no (data quality, not worse than the base, parity of the
    exported file) stops the line: state is "refused", `reasons` say why, and what is deployed
    stays as it was. Takes minutes with the embedded base, longer with larger ones. Afterwards ask
    the model with `query`; take the deployment back with `rollback`.
    """
    started = time.monotonic()

    def run(name: str, asked: SkillRequest) -> SkillResult:
        announce(name, context)
        return perform_stage(name, asked, context.for_stage(name))

    fields = line(request, run)
    return RetrainResult.model_validate(fields | {"seconds": time.monotonic() - started})


def announce(stage: str, context: SkillContext) -> None:
    """Tell that a stage of the line begins."""
    context.emit("state", stage=stage, number=STAGES.index(stage) + 1, of=len(STAGES))


def perform_stage(name: str, request: SkillRequest, context: SkillContext) -> SkillResult:
    """One stage of the line, in this process.

    Raises:
        ForgeError: the stage failed; a `GateRefused` of export or deploy ends the line.
    """
    if name == "train":
        _refuse_early(request, context)
    return skills()[name].function(request, context)


def line(request: RetrainRequest, run: RunStage) -> dict[str, Any]:
    """The stages one after the other, each on what the one before returned.

    Args:
        run: performs a stage. Everything that the line decides comes from what it returns, so
            that a line which is entered again with the same answers takes the same way.

    Returns:
        The fields of `RetrainResult` without `seconds`.
    """
    done: dict[str, SkillResult] = {}

    def stage(name: str, asked: SkillRequest, kind: type[Result]) -> Result:
        result = run(name, asked)
        assert isinstance(result, kind)  # noqa: S101 -- `run` performs the stage it is given
        done[name] = result
        return result

    def finish(reasons: list[str]) -> dict[str, Any]:
        state = "refused" if reasons else "succeeded"
        return {**done, "state": state, "deployed": "deploy" in done, "reasons": reasons}

    corpus = stage("extract", ExtractRequest(repo=request.repo), ExtractResult)
    dataset = stage("synthesize", SynthesizeRequest(corpus=corpus.corpus_id), SynthesizeResult)
    checked = stage("validate", ValidateRequest(dataset=dataset.dataset_id), ValidateResult)
    if not checked.passed:
        return finish(checked.reasons)
    asked = TrainRequest(
        dataset=checked.dataset_id,
        base=request.base,
        epochs=request.epochs,
        max_steps=request.max_steps,
    )
    trained = stage("train", asked, TrainResult)
    judged = stage("evaluate", EvaluateRequest(run=trained.run_id), EvaluateResult)
    if not judged.passed:
        return finish(judged.reasons)
    try:
        exported = stage(
            "export",
            ExportRequest(run=trained.run_id, quantization=request.quantization),
            ExportResult,
        )
        stage(
            "deploy",
            DeployRequest(run_or_export=exported.export_id, target=request.target),
            DeployResult,
        )
    except GateRefused as refusal:
        return finish([f"{refusal.message} {refusal.cause}".strip()])
    return finish([])


def _refuse_early(request: SkillRequest, context: SkillContext) -> None:
    """A dataset without held-out examples and a base that cannot be exported are refused now, not
    after the training.
    """
    from forge_mcp.judging.heldout import held_out

    assert isinstance(request, TrainRequest)  # noqa: S101 -- asked for the stage 'train' only
    held_out(context.workspace.load(request.dataset, "dataset"))
    require_exportable(chosen_base(request.base, context))
