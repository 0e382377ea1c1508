"""From what was measured to the `EvaluationReport`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from forge_mcp.judging.gate import Answers, Paper, improvement, metric_key
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import share
from forge_mcp.judging.results import (
    Answered,
    Contestant,
    Divergence,
    EvaluationReport,
    GroupAccuracy,
    Section,
    SectionName,
    Target,
)
from forge_mcp.judging.sitting import Evaluation
from forge_mcp.schemas.base import Metric
from forge_mcp.settings import JudgingSettings

BOOKS: tuple[SectionName, ...] = ("open_book", "closed_book")
ROLES: tuple[Contestant, ...] = ("base", "tuned")
ALWAYS_UNMEASURED = (
    "Claims that stand neither in a citation, nor between back-ticks, nor as the fact that was "
    "asked for.",
    "Questions of kinds that the training data does not have, such as why the code is as it is.",
    "The exported file: 'forge-mcp export' compares it with this run, and lets it answer too.",
)


class Subject(NamedTuple):
    """What the report says of the models and the data."""

    run: str
    deployed: str | None
    control: str | None
    trained: str
    dataset: str
    training_examples: int


def build_report(
    evaluation: Evaluation,
    subject: Subject,
    settings: JudgingSettings,
    more_reasons: Sequence[str],
    shown_settings: dict[str, Any],
    machine: dict[str, str],
    seconds: float,
) -> EvaluationReport:
    """The report of an evaluation. `more_reasons`: further ones to say no."""
    reasons = [*evaluation.reasons, *more_reasons]
    sections = [
        _section(name, evaluation, settings.seed) for name, n in evaluation.asked.items() if n
    ]
    by_section = {
        role: {section.name: section.metrics.get(role, []) for section in sections}
        for role in ROLES
    }
    targets = _targets(by_section["tuned"], settings)

    def tuned(section: SectionName, name: str) -> float | None:
        found = _named(by_section["tuned"].get(section, []), name)
        return found.value if found else None

    return EvaluationReport(
        model_name=subject.run,
        base_model=evaluation.base_name,
        deployed_model=subject.deployed,
        control_model=subject.control,
        training_date=subject.trained,
        dataset=subject.dataset,
        num_training_examples=subject.training_examples,
        num_eval_examples=sum(evaluation.asked.get(book, 0) for book in BOOKS),
        passed=not reasons,
        reasons=reasons,
        targets=targets,
        comparisons=evaluation.comparisons,
        perplexity=tuned("open_book", "perplexity"),
        codebleu_score=tuned("code", "codebleu"),
        humaneval_pass_rate=tuned("humaneval", "pass@1"),
        reconstruction_score=tuned("code", "edit_similarity"),
        hallucination_rate=tuned("open_book", "hallucination_rate"),
        improvement_over_base=improvement(by_section["base"], by_section["tuned"]),
        sections=sections,
        divergence=_divergence(evaluation),
        budget_note=evaluation.budget_note,
        not_measured=[*_unmeasured(evaluation), *ALWAYS_UNMEASURED],
        settings=shown_settings,
        machine=machine,
        seconds=seconds,
    )


def answered(evaluation: Evaluation) -> list[Answered]:
    """All answers, question by question, in the order they were asked."""
    rows: list[Answered] = []
    for section in BOOKS:
        by_id: dict[str, Answered] = {}
        for role, paper in evaluation.papers.items():
            if section not in paper.answers:
                continue
            answers = paper.answers[section]
            for case, answer in zip(answers.cases, answers.scored, strict=True):
                row = by_id.setdefault(case.example.id, _row(section, case))
                row.answers[role] = answer
        rows += by_id.values()
    return rows


def metric_values(report: EvaluationReport, role: Contestant) -> dict[str, float] | None:
    """Every figure of a contestant by `metric_key`, for the skill's result; None: not asked."""
    found = {
        metric_key(section.name, metric.name): metric.value
        for section in report.sections
        for metric in section.metrics.get(role, [])
    }
    return found or None


def _row(section: SectionName, case: Case) -> Answered:
    example = case.example
    return Answered(
        id=example.id,
        section=section,
        kind=example.fact.kind,
        difficulty=example.difficulty,
        question=example.question,
        expected=example.final_answer,
        answers={},
    )


def _section(name: SectionName, evaluation: Evaluation, seed: int) -> Section:
    papers = evaluation.papers
    measured = {role: paper.metrics(name, seed) for role, paper in papers.items()}
    return Section(
        name=name,
        asked=evaluation.asked[name],
        of=evaluation.of[name],
        metrics={role: metrics for role, metrics in measured.items() if metrics},
        by_kind=_groups(papers, name, lambda case: case.example.fact.kind),
        by_difficulty=_groups(papers, name, lambda case: case.example.difficulty),
        notes=evaluation.notes.get(name, []),
        seconds=evaluation.seconds.get(name, 0.0),
    )


def _groups(
    papers: dict[Contestant, Paper], section: SectionName, group_of: Callable[[Case], str]
) -> list[GroupAccuracy]:
    """Right answers by group of questions."""
    groups: dict[str, dict[Contestant, Metric]] = {}
    for role, paper in papers.items():
        answers = paper.answers.get(section, Answers([], []))
        right: dict[str, list[bool]] = {}
        for case, answer in zip(answers.cases, answers.scored, strict=True):
            right.setdefault(group_of(case), []).append(answer.right)
        for group, values in right.items():
            metric = share("answer_accuracy", sum(values), len(values))
            if metric:
                groups.setdefault(group, {})[role] = metric
    return [GroupAccuracy(group=group, accuracy=found) for group, found in sorted(groups.items())]


def _targets(tuned: dict[SectionName, list[Metric]], settings: JudgingSettings) -> list[Target]:
    """The specification's thresholds (phases 1 and 4), with the values of the settings."""
    asked: tuple[tuple[str, SectionName, str, float, bool], ...] = (
        (
            "right answers on this repository",
            "open_book",
            "answer_accuracy",
            settings.target_accuracy,
            False,
        ),
        (
            "hallucination rate",
            "open_book",
            "hallucination_rate",
            settings.target_hallucination_rate,
            True,
        ),
        ("written functions that compile", "code", "compiles", settings.target_compiling, False),
        ("milliseconds a token", "speed", "ms_per_token", settings.target_ms_per_token, True),
    )
    targets = []
    for name, section, metric, threshold, at_most in asked:
        value = _named(tuned.get(section, []), metric)
        met = None
        if value:
            met = value.value <= threshold if at_most else value.value >= threshold
        targets.append(
            Target(
                name=name,
                section=section,
                metric=metric,
                value=value,
                threshold=threshold,
                at_most=at_most,
                met=met,
            )
        )
    return targets


def _named(metrics: Sequence[Metric], name: str) -> Metric | None:
    return next((metric for metric in metrics if metric.name == name), None)


def _divergence(evaluation: Evaluation) -> list[Divergence]:
    """The perplexity of every question."""
    return [
        Divergence(
            contestant=role,
            section=section,
            per_example=[
                float(value) if np.isfinite(value) else None
                for value in likelihood.answers.per_example
            ],
        )
        for role, paper in evaluation.papers.items()
        for section, likelihood in paper.likelihood.items()
    ]


def _unmeasured(evaluation: Evaluation) -> list[str]:
    """What this evaluation left out, and how to have it."""
    lines = []
    if not evaluation.asked.get("closed_book"):
        lines.append(
            "What the model knows without documents: the dataset has no closed-book question on "
            "code that was trained on (raft.closed_book_share, judging.closed_book_examples)."
        )
    if not evaluation.asked.get("code"):
        lines.append(
            "CodeBLEU and reconstruction: judging.reconstruction_blocks is 0, or no function of "
            "the training split has a header to write it from."
        )
    if not evaluation.asked.get("humaneval"):
        lines.append(
            "HumanEval: it is run where judging.humaneval (or --humaneval) names its file, its "
            "address, or 'small' for our own problems."
        )
    if "control" not in evaluation.papers:
        lines.append(
            "A control: with --control RUN the model is held against one that was tuned on "
            "another repository, which tells knowledge of this one from the form of answers."
        )
    return lines
