"""The whole line: repository → deployed model. A gate that says no stops it."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import ConfigDict, Field

from forge_mcp.errors import GateRefused
from forge_mcp.pipeline.deploy import DeployRequest, DeployResult, deploy
from forge_mcp.pipeline.evaluate import EvaluateRequest, EvaluateResult, evaluate
from forge_mcp.pipeline.export import ExportRequest, ExportResult, export, require_exportable
from forge_mcp.pipeline.extract import ExtractRequest, ExtractResult, extract
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.pipeline.synthesize import SynthesizeRequest, SynthesizeResult, synthesize
from forge_mcp.pipeline.train import TrainRequest, TrainResult, chosen_base, train
from forge_mcp.pipeline.validate import ValidateRequest, ValidateResult, validate

STAGES = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")


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
    from forge_mcp.judging.heldout import held_out

    started = time.monotonic()
    done: dict[str, SkillResult] = {}
    reasons: list[str] = []

    def stage(name: str) -> SkillContext:
        context.emit("state", stage=name, number=STAGES.index(name) + 1, of=len(STAGES))
        return context.for_stage(name)

    def finish() -> RetrainResult:
        return RetrainResult.model_validate(
            {
                **done,
                "state": "refused" if reasons else "succeeded",
                "deployed": "deploy" in done,
                "reasons": reasons,
                "seconds": time.monotonic() - started,
            }
        )

    corpus = extract(ExtractRequest(repo=request.repo), stage("extract"))
    done["extract"] = corpus
    dataset = synthesize(SynthesizeRequest(corpus=corpus.corpus_id), stage("synthesize"))
    done["synthesize"] = dataset
    checked = validate(ValidateRequest(dataset=dataset.dataset_id), stage("validate"))
    done["validate"] = checked
    if not checked.passed:
        reasons += checked.reasons
        return finish()
    # A dataset without held-out examples and a base that cannot be exported are refused now, not
    # after the training.
    held_out(context.workspace.load(checked.dataset_id, "dataset"))
    require_exportable(chosen_base(request.base, context))

    trained = train(
        TrainRequest(
            dataset=checked.dataset_id,
            base=request.base,
            epochs=request.epochs,
            max_steps=request.max_steps,
        ),
        stage("train"),
    )
    done["train"] = trained
    judged = evaluate(EvaluateRequest(run=trained.run_id), stage("evaluate"))
    done["evaluate"] = judged
    if not judged.passed:
        reasons += judged.reasons
        return finish()

    try:
        exported = export(
            ExportRequest(run=trained.run_id, quantization=request.quantization), stage("export")
        )
        done["export"] = exported
        done["deploy"] = deploy(
            DeployRequest(run_or_export=exported.export_id, target=request.target),
            stage("deploy"),
        )
    except GateRefused as refusal:
        reasons.append(f"{refusal.message} {refusal.cause}".strip())
    return finish()
