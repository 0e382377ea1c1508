"""The skill `evaluate`: a run becomes a report with a verdict."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from forge_mcp import machine
from forge_mcp.errors import BadInput, NotFound
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import PROMPT_VERSION
from forge_mcp.settings import JudgingSettings
from forge_mcp.workspace import Artifact, hash_inputs, write_jsonl

if TYPE_CHECKING:
    from forge_mcp.judging.coding import Programs
    from forge_mcp.judging.heldout import Examination, Learnt
    from forge_mcp.judging.sitting import Evaluation, Exam, Opponent

VERSION = 3  # of the judging engine: change it when equal inputs would give other figures
RETRIEVED = 3  # candidates a document that is given, in case the best do not fit


class EvaluateRequest(SkillRequest):
    """Which run to judge."""

    run: str = Field(description="Id of a run, e.g. 'run-flask-3f9a'.")
    dataset: str | None = Field(
        default=None, description="Whose test split is asked (default: the run's own dataset)."
    )
    control: str | None = Field(
        default=None,
        description="Id of a run on the same base, tuned on another repository, to compare with.",
    )
    max_examples: int | None = Field(
        default=None, ge=1, description="Held-out questions that each model answers."
    )
    minutes: float | None = Field(
        default=None, ge=0, description="Ask fewer questions where it would take longer."
    )
    humaneval: str | None = Field(
        default=None, description="HumanEval.jsonl.gz, its address, or 'small': also run programs."
    )


class EvaluateResult(SkillResult):
    """The verdict and the figures it rests on; intervals and answers stand in the report.

    A metric is named `metric` where it is of open-book questions, else `section.metric`. One that
    had nothing to count (no citation was made, say) is absent.
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
    examples=("forge-mcp evaluate run-flask-3f9a", "forge-mcp evaluate run-flask-3f9a --minutes 5"),
)
def evaluate(request: EvaluateRequest, context: SkillContext) -> EvaluateResult:
    """Judge a trained run against its base, and against the deployed model, on held-out examples.

    Use this before deploying: it tells whether the tuned model is better, at what, and by how much.
    Open-book questions are about held-out files with their documents given (does it read?),
    closed-book ones about trained code in new words (does it know?), with and without retrieval;
    functions are written again from their headers. The gate: reading held-out files better than the
    base, beyond the noise, and nothing worse than the base or the deployed model. `passed` says so,
    `reasons` why not. The report (report.html in `path`) has every figure with its interval.
    Minutes; `minutes` bounds it. Next: `export RUN`.
    """
    started = time.perf_counter()
    from forge_mcp.serving.lineage import ancestor

    workspace = context.workspace
    run = workspace.load(request.run, "run")
    own = ancestor(workspace, run, "dataset")
    dataset = workspace.load(request.dataset, "dataset") if request.dataset else own
    settings: JudgingSettings = overlay(
        context.settings.judging,
        max_examples=request.max_examples,
        minutes=request.minutes,
        humaneval=request.humaneval,
    )
    deployed, gone = _deployed_beside(run, context)
    control = workspace.load(request.control, "run") if request.control else None
    others = {"deployed": deployed, "control": control}
    retrieval = context.settings.retrieval
    inputs_hash = hash_inputs(
        {
            "run": run.manifest.inputs_hash,
            "dataset": dataset.manifest.inputs_hash,
            "others": {role: one and one.manifest.inputs_hash for role, one in others.items()},
            "gone": gone,
            "settings": settings.model_dump(),
            "retrieval": retrieval.model_dump(),
            "prompt": PROMPT_VERSION,
            "version": VERSION,
        }
    )
    found = workspace.find("report", context.project, inputs_hash)
    if found is not None:
        context.log(f"{run.id} was already judged with the same settings: {found.id}.")
        return EvaluateResult.model_validate(found.manifest.result)

    from forge_mcp.judging.evaluator import evaluate_run
    from forge_mcp.judging.heldout import held_out, learnt_from
    from forge_mcp.judging.markdown import render_markdown
    from forge_mcp.judging.page import evaluation_page
    from forge_mcp.judging.plots import metric_distribution, per_example
    from forge_mcp.judging.report import Subject, answered, build_report, metric_values
    from forge_mcp.judging.words import PER_EXAMPLE
    from forge_mcp.training.callbacks import plot_losses, read_metrics

    run.verify("metrics.jsonl")
    learnt, cases = learnt_from(own), held_out(dataset)
    opponents = _opponents(run, deployed, control, cases, context)
    exam = _exam(dataset, cases, learnt, settings, context)

    def tell(done: float, total: float, left: float | None, message: str) -> None:
        context.check()
        context.emit(
            "progress",
            done=round(done),
            total=round(total),
            message=message,
            eta_seconds=left,
        )

    evaluation = evaluate_run(run, learnt, exam, opponents, settings, tell)
    subject = Subject(
        run=run.id,
        deployed=deployed.id if deployed else None,
        control=control.id if control else None,
        trained=run.manifest.created,
        dataset=dataset.id,
        training_examples=sum(1 for _ in own.rows("train.jsonl")),
    )
    shown = settings.model_dump() | {
        "retrieval": retrieval.method,
        "documents retrieved": retrieval.documents,
        "prompt_version": PROMPT_VERSION,
    }
    report_id = workspace.new_id("report", context.project, inputs_hash)
    with workspace.stage("report", context.project) as staged:
        report = build_report(
            evaluation,
            subject,
            settings,
            [gone] if gone else [],
            shown,
            machine.describe(),
            round(time.perf_counter() - started, 3),
        )
        rows = answered(evaluation)
        plot_losses(read_metrics(run.file("metrics.jsonl")), staged.path / report.loss_curve)
        metric_distribution(staged.path / report.metric_distribution, report)
        names = [report.loss_curve, report.metric_distribution]
        if report.divergence:
            per_example(staged.path / PER_EXAMPLE, report)
            names.append(PER_EXAMPLE)
        images = {name: (staged.path / name).read_bytes() for name in names}
        for name, text in (
            ("report.json", report.model_dump_json(indent=2) + "\n"),
            ("report.md", render_markdown(report, rows, images)),
            ("report.html", evaluation_page(report, rows, images)),
        ):
            (staged.path / name).write_text(text, encoding="utf-8")
        write_jsonl(staged.path / "answers.jsonl", rows)
        write_jsonl(staged.path / "written.jsonl", _written(evaluation, exam))
        result = EvaluateResult(
            report_id=report_id,
            path=str(workspace.folder("report") / report_id),
            passed=report.passed,
            reasons=report.reasons,
            base=metric_values(report, "base") or {},
            tuned=metric_values(report, "tuned") or {},
            deployed=metric_values(report, "deployed"),
            improvement_over_base=report.improvement_over_base,
            seconds=report.seconds,
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


def _exam(
    dataset: Artifact,
    cases: Examination,
    learnt: Learnt,
    settings: JudgingSettings,
    context: SkillContext,
) -> Exam:
    """Everything that is asked."""
    from forge_mcp.judging.answers import Repository
    from forge_mcp.judging.reconstruction import reconstruction_tasks
    from forge_mcp.judging.sitting import Exam
    from forge_mcp.pipeline.retrieving import encoder_of, retriever, searchable_blocks
    from forge_mcp.serving.lineage import ancestor

    corpus = ancestor(context.workspace, dataset, "corpus")
    blocks = searchable_blocks(corpus)
    held_out_paths = {oracle.path for case in cases.open_book for oracle in case.oracles}
    functions = [block for block in blocks if block.block_type in ("function", "method")]
    trained = [block for block in functions if block.content_hash in learnt.blocks]
    texts = [
        block.source_code
        for block in functions
        if block.path in held_out_paths and block.content_hash not in learnt.blocks
    ]
    wanted = context.settings.retrieval.documents

    def retrieve(questions: Sequence[str]) -> list[list[CodeBlock]]:
        found = retriever(corpus, context).search_many(questions, wanted * RETRIEVED)
        return [[block for block, _ in hits][: wanted * RETRIEVED] for hits in found]

    system = cases.open_book[0].row.messages[0].content
    return Exam(
        cases=cases,
        repository=Repository(blocks),
        texts=texts,
        tasks=reconstruction_tasks(
            trained,
            settings.reconstruction_blocks,
            settings.seed,
            system,
            context.settings.raft.max_document_chars,
            corpus=blocks,
        ),
        programs=_programs(settings, context),
        retrieve=retrieve,
        documents=wanted,
        embed=encoder.encode if (encoder := encoder_of(context)) else None,
    )


def _written(evaluation: Evaluation, exam: Exam) -> list[dict[str, object]]:
    """The functions that were written again, each with the repository's own."""
    papers = evaluation.papers
    return [
        {
            "block": task.block.id,
            "question": task.question,
            "reference": task.reference,
            "written": {role: one.written[at] for role, one in papers.items() if one.written},
        }
        for at, task in enumerate(exam.tasks[: evaluation.asked.get("code", 0)])
    ]


def _programs(settings: JudgingSettings, context: SkillContext) -> Programs | None:
    """The problems whose solutions are run, where the settings name some."""
    if not settings.humaneval:
        return None
    from forge_mcp.judging.coding import Programs
    from forge_mcp.judging.humaneval import draw, load_problems

    cache = context.workspace.home / "cache" / "humaneval"
    source = settings.humaneval
    # A job does not stand where its caller stood: a path starts in the repository where it has it.
    if context.repository and (context.repository / source).is_file():
        source = str(context.repository / source)
    problems = load_problems(source, cache)
    return Programs(
        problems=draw(problems, settings.humaneval_problems, settings.seed),
        samples=settings.humaneval_samples,
        temperature=settings.humaneval_temperature,
        seed=settings.seed,
        workers=machine.cores(),
        ledger=cache / "outcomes",
    )


def _opponents(
    run: Artifact,
    deployed: Artifact | None,
    control: Artifact | None,
    cases: Examination,
    context: SkillContext,
) -> list[Opponent]:
    """The other runs to compare with.

    Raises:
        BadInput: the control is none: another base, or tuned on this repository.
    """
    from forge_mcp.judging.heldout import learnt_from
    from forge_mcp.judging.sitting import Opponent
    from forge_mcp.serving.lineage import ancestor

    found: list[Opponent] = []
    if deployed:
        try:
            learnt = learnt_from(ancestor(context.workspace, deployed, "dataset"))
        except NotFound:
            learnt = None
            context.log(
                f"The dataset of the deployed run {deployed.id} is gone: which held-out examples "
                "it was trained on is not known.",
                warning=True,
            )
        found.append(Opponent("deployed", deployed, learnt))
    if control:
        learnt = learnt_from(ancestor(context.workspace, control, "dataset"))
        _require_control(run, control, learnt, cases)
        found.append(Opponent("control", control, learnt))
    return found


def _require_control(run: Artifact, control: Artifact, learnt: Learnt, cases: Examination) -> None:
    cause = ""
    known = [case for case in cases.closed_book if learnt.knows(case)]
    if base_of(control) != base_of(run):
        cause = "it was tuned from another base, so a difference would not be the repository's"
    elif known or any(learnt.holds(case) for case in cases.open_book):
        cause = "it was trained on code of this repository"
    if cause:
        raise BadInput(
            f"{control.id} is no control for {run.id}.",
            cause=cause,
            next_step="Train a run from the same base on another repository, and name that one.",
        )


def base_of(run: Artifact) -> str:
    """The checksum of the weights of a run's base."""
    from forge_mcp.training.run import read_config

    weights: str = read_config(run)["base"]["weights_sha256"]
    return weights


def _deployed_beside(run: Artifact, context: SkillContext) -> tuple[Artifact | None, str]:
    """The deployed run where there is one that is not this, or why it cannot be compared.

    A deployed model whose run is gone must not be replaced uncompared: that is a reason of the
    gate, no error.
    """
    from forge_mcp.serving.registry import standing

    active = standing(context.workspace, context.project).active
    if active is None or active.run == run.id:
        return None, ""
    try:
        return context.workspace.load(active.run, "run"), ""
    except NotFound:
        if active.origin.imported:
            return None, (
                f"the active model {active.model} cannot be compared: it came in a bundle, without "
                "its run; 'forge-mcp rollback' first"
            )
        return None, (
            f"the deployed model cannot be compared, because its run {active.run} is gone from the "
            "workspace"
        )
