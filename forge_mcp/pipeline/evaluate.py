"""The skill `evaluate`: a run becomes a report with a verdict."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import Field

from forge_mcp import machine
from forge_mcp.errors import NotFound
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.schemas.prompt import PROMPT_VERSION
from forge_mcp.settings import JudgingSettings
from forge_mcp.workspace import Artifact, hash_inputs, write_jsonl

if TYPE_CHECKING:
    from forge_mcp.judging.evaluator import Deployed, Evaluation
    from forge_mcp.judging.report import EvaluationReport

VERSION = 2  # of the judging engine: change it when equal inputs would give other figures


class EvaluateRequest(SkillRequest):
    """Which run to judge."""

    run: str = Field(description="Id of a run, e.g. 'run-flask-3f9a'.")
    max_examples: int | None = Field(
        default=None, ge=1, description="Held-out questions that each model answers."
    )


class EvaluateResult(SkillResult):
    """The verdict and the figures it rests on; intervals and answers stand in the report.

    A metric that had nothing to count (no citation was made, say) is absent.
    """

    report_id: str
    path: str
    passed: bool = Field(description="Whether the tuned model may be deployed.")
    reasons: list[str] = Field(description="Why not; empty where it may.")
    base: dict[str, float]
    tuned: dict[str, float]
    deployed: dict[str, float] | None = Field(
        description="The model in use; null where there is none or it is this one."
    )
    improvement_over_base: dict[str, float] = Field(
        description="Percent of the base's value, positive where tuned is better."
    )
    seconds: float


@skill(
    title="Evaluate a run",
    positional=("run",),
    long=True,
    loads_model=True,
    aliases=("evaluate_model",),
    examples=("forge-mcp evaluate run-flask-3f9a", "forge-mcp evaluate run-flask-3f9a --json"),
)
def evaluate(request: EvaluateRequest, context: SkillContext) -> EvaluateResult:
    """Judge a trained run against its base, and against the deployed model, on held-out examples.

    Use this after `train`, before `export` and `deploy`. On the test split of the run's dataset it
    measures perplexity and bits per byte of the answers, lets each model answer questions, and
    counts right answers, verified citations, abstentions and hallucinated identifiers. The gate:
    perplexity and answer accuracy must not be worse than those of the base and of the deployed
    model. `passed` says so, `reasons` why not. The report (report.md in `path`) has every figure
    with its interval, plots and answers. About a minute on forge-nano. Next: `export RUN`.
    """
    started = time.perf_counter()
    from forge_mcp.serving.lineage import ancestor

    workspace = context.workspace
    run = workspace.load(request.run, "run")
    dataset = ancestor(workspace, run, "dataset")
    settings: JudgingSettings = overlay(context.settings.judging, max_examples=request.max_examples)
    deployed, gone = _deployed_beside(run, context)
    inputs_hash = hash_inputs(
        {
            "run": run.manifest.inputs_hash,
            "deployed": deployed.run.manifest.inputs_hash if deployed else gone,
            "settings": settings.model_dump(),
            "prompt": PROMPT_VERSION,
            "version": VERSION,
        }
    )
    found = workspace.find("report", context.project, inputs_hash)
    if found is not None:
        context.log(f"{run.id} was already judged with the same settings: {found.id}.")
        return EvaluateResult.model_validate(found.manifest.result)

    from forge_mcp.judging.evaluator import evaluate_run
    from forge_mcp.judging.plots import metric_comparison
    from forge_mcp.judging.report import (
        LOSS_CURVE,
        METRIC_COMPARISON,
        answered_cases,
        metric_values,
        render_markdown,
    )
    from forge_mcp.training.callbacks import plot_losses, read_metrics

    run.verify("metrics.jsonl")
    evaluation = evaluate_run(run, dataset, deployed, settings, context.progress)
    cases = answered_cases(evaluation.contestants)
    report_id = workspace.new_id("report", context.project, inputs_hash)
    with workspace.stage("report", context.project) as staged:
        report = _report(run, dataset, evaluation, settings, gone)
        plot_losses(read_metrics(run.file("metrics.jsonl")), staged.path / LOSS_CURVE)
        metric_comparison(staged.path / METRIC_COMPARISON, report.metrics)
        report.seconds["total"] = round(time.perf_counter() - started, 3)
        (staged.path / "report.json").write_text(
            report.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        (staged.path / "report.md").write_text(render_markdown(report, cases), encoding="utf-8")
        write_jsonl(staged.path / "answers.jsonl", cases)
        measured = {role: metric_values(metrics) for role, metrics in report.metrics.items()}
        result = EvaluateResult(
            report_id=report_id,
            path=str(workspace.folder("report") / report_id),
            passed=report.passed,
            reasons=report.reasons,
            base=measured["base"],
            tuned=measured["tuned"],
            deployed=measured.get("deployed"),
            improvement_over_base=report.improvement_over_base,
            seconds=report.seconds["total"],
        )
        artifact = staged.commit(
            id=report_id,
            inputs_hash=inputs_hash,
            parents=[run.id, dataset.id],
            repository=run.manifest.repository,
            settings=settings.model_dump(),
            result=result.model_dump(),
        )
    return EvaluateResult.model_validate(artifact.manifest.result)


def _report(
    run: Artifact,
    dataset: Artifact,
    evaluation: Evaluation,
    settings: JudgingSettings,
    gone: str,
) -> EvaluationReport:
    """What `report.json` says. `gone`: the reason where the deployed model cannot be compared."""
    from forge_mcp.judging.gate import improvement
    from forge_mcp.judging.report import (
        NOT_MEASURED,
        EvaluationReport,
        answered_cases,
        group_accuracy,
    )

    cases = answered_cases(evaluation.contestants)
    metrics = {c.role: c.metrics(settings.seed) for c in evaluation.contestants}
    names = {c.role: c.name for c in evaluation.contestants}
    tuned = next(c for c in evaluation.contestants if c.role == "tuned")
    reasons = evaluation.reasons + ([gone] if gone else [])
    return EvaluationReport(
        model_name=run.id,
        base_model=evaluation.base_name,
        deployed_model=names.get("deployed"),
        training_date=run.manifest.created,
        dataset=dataset.id,
        num_training_examples=sum(1 for _ in dataset.rows("train.jsonl")),
        num_eval_examples=len(tuned.scored),
        num_answered_examples=len(tuned.asked),
        num_left_out_too_long=evaluation.too_long,
        num_seen_by_deployed=evaluation.seen_by_deployed,
        passed=not reasons,
        reasons=reasons,
        metrics=metrics,
        improvement_over_base=improvement(metrics["base"], metrics["tuned"]),
        comparisons=evaluation.comparisons,
        by_kind=group_accuracy(cases, "kind"),
        by_difficulty=group_accuracy(cases, "difficulty"),
        not_measured=list(NOT_MEASURED),
        settings=settings.model_dump() | {"prompt_version": PROMPT_VERSION},
        machine=machine.describe(),
        seconds=dict(evaluation.seconds),
    )


def _deployed_beside(run: Artifact, context: SkillContext) -> tuple[Deployed | None, str]:
    """The deployed run where there is one that is not this, or why it cannot be compared.

    A deployed model whose run is gone must not be replaced uncompared: that is a reason of the
    gate, no error.
    """
    from forge_mcp.judging.evaluator import Deployed
    from forge_mcp.serving.lineage import ancestor
    from forge_mcp.serving.registry import standing

    active = standing(context.workspace, context.project).active
    if active is None or active.run == run.id:
        return None, ""
    try:
        other = context.workspace.load(active.run, "run")
    except NotFound:
        return None, (
            f"the deployed model cannot be compared, because its run {active.run} is gone from the "
            "workspace"
        )
    try:
        return Deployed(other, ancestor(context.workspace, other, "dataset")), ""
    except NotFound:
        context.log(
            f"The dataset of the deployed run {active.run} is gone: which held-out examples it was "
            "trained on is not known.",
            warning=True,
        )
        return Deployed(other, None), ""
