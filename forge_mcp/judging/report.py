"""The report of an evaluation: the verdict first, then everything it rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forge_mcp.judging.answers import ScoredAnswer
from forge_mcp.judging.gate import LOWER_IS_BETTER, Comparison, Contestant, Role
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import share
from forge_mcp.schemas.base import Metric, Schema

LOSS_CURVE = "loss_curve.png"
METRIC_COMPARISON = "metrics.png"
SHOWN_ANSWERS = 3  # of each kind
RAW_METRICS = frozenset({"perplexity", "bits_per_byte"})  # all others are shares
MEANINGS = {
    "perplexity": "exp of the mean negative log-likelihood of the answers' tokens, prompt given",
    "bits_per_byte": "the same likelihood in bits, per byte of the answers",
    "answer_accuracy": "final answers equal to the expected one / all",
    "citation_precision": "citations that are, byte for byte, in a given document / citations",
    "citation_recall": "answers with such a citation / questions whose reference has one",
    "abstention_accuracy": "'do not say' / questions whose documents do not say",
    "false_abstention_rate": "'do not say' / questions whose documents do say",
    "hallucination_rate": "citations and back-ticked identifiers that nothing given holds / all",
    "stopped_at_eos": "answers that the model ended by itself / all",
}
NOT_MEASURED = (
    "CodeBLEU, HumanEval and the reconstruction of the training code.",
    "Questions without documents, and questions in other phrasings than the dataset's: the "
    "held-out questions are asked with their documents, so they measure reading and citing "
    "more than what the model remembers of the repository.",
    "Claims that stand neither in a citation nor between back-ticks.",
    "The exported file: 'forge-mcp export' compares it with this run by itself.",
)


class GroupAccuracy(Schema):
    """Answer accuracy on one kind of question: by fact or by difficulty."""

    group: str
    accuracy: dict[Role, Metric]


class AnsweredCase(Schema):
    """A question, what was expected, and what each model wrote."""

    id: str
    kind: str
    difficulty: str
    question: str
    expected: str
    answers: dict[Role, ScoredAnswer]


class EvaluationReport(Schema):
    """Everything that an evaluation measured, and nothing else; `report.json`."""

    model_name: str
    base_model: str
    deployed_model: str | None
    training_date: str
    dataset: str
    num_training_examples: int
    num_eval_examples: int
    num_answered_examples: int
    num_left_out_too_long: int
    num_seen_by_deployed: int
    passed: bool
    reasons: list[str]
    metrics: dict[Role, list[Metric]]
    improvement_over_base: dict[str, float]
    comparisons: list[Comparison]
    by_kind: list[GroupAccuracy]
    by_difficulty: list[GroupAccuracy]
    not_measured: list[str]
    settings: dict[str, Any]
    machine: dict[str, str]
    seconds: dict[str, float]
    loss_curve: str = LOSS_CURVE
    metric_comparison: str = METRIC_COMPARISON


def answered_cases(contestants: Sequence[Contestant]) -> list[AnsweredCase]:
    """The answers of all contestants, case by case, in the first one's order."""
    by_id: dict[str, tuple[Case, dict[Role, ScoredAnswer]]] = {}
    for contestant in contestants:
        for case, answer in zip(contestant.asked, contestant.answers, strict=True):
            by_id.setdefault(case.example.id, (case, {}))[1][contestant.role] = answer
    return [
        AnsweredCase(
            id=case.example.id,
            kind=case.example.fact.kind,
            difficulty=case.example.difficulty,
            question=case.example.question,
            expected=case.example.final_answer,
            answers=answers,
        )
        for case, answers in by_id.values()
    ]


def group_accuracy(cases: Sequence[AnsweredCase], field: str) -> list[GroupAccuracy]:
    """Answer accuracy by the values of a field of `AnsweredCase`, "kind" or "difficulty"."""
    groups: dict[str, dict[Role, list[bool]]] = {}
    for case in cases:
        for role, answer in case.answers.items():
            groups.setdefault(getattr(case, field), {}).setdefault(role, []).append(answer.right)
    return [
        GroupAccuracy(
            group=group,
            accuracy={
                role: metric
                for role, right in roles.items()
                if (metric := share("answer_accuracy", sum(right), len(right)))
            },
        )
        for group, roles in sorted(groups.items())
    ]


def render_markdown(report: EvaluationReport, cases: Sequence[AnsweredCase]) -> str:
    """`report.md`: for a person who decides whether this model is deployed."""
    roles = list(report.metrics)
    parts = [
        f"# Evaluation of {report.model_name}",
        _verdict(report),
        "## Comparison",
        _comparison_table(report),
        f"![Metrics of the models with intervals]({report.metric_comparison})",
        f"Perplexity was measured on {report.num_eval_examples} held-out examples, answers on "
        f"{report.num_answered_examples}. Intervals are 95%. ↓ = lower is better; all other "
        "metrics are better when higher.",
        _table(["metric", "what it is"], [[k.replace("_", " "), v] for k, v in MEANINGS.items()]),
        "## By kind of question",
        _group_table("kind", report.by_kind, roles),
        "## By difficulty",
        _group_table("difficulty", report.by_difficulty, roles),
        "## Training",
        f"![Training and validation loss by step]({report.loss_curve})",
        "## Answers",
        _answers(cases, roles),
        "## What was not measured",
        "\n".join(f"- {line}" for line in report.not_measured),
        "## How it was measured",
        _facts(report),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(report: EvaluationReport) -> str:
    ratios = [c for c in report.comparisons if c.perplexity_ratio]
    figures = [
        f"- Against the {c.against}: perplexity × {c.perplexity_ratio.value:.3f} "
        f"({c.perplexity_ratio.low:.3f} to {c.perplexity_ratio.high:.3f}), answer accuracy "
        f"{100 * c.accuracy_difference.value:+.1f} points "
        f"({100 * c.accuracy_difference.low:+.1f} to {100 * c.accuracy_difference.high:+.1f})."
        for c in ratios
        if c.perplexity_ratio
    ]
    if report.passed:
        than = " and ".join(f"the {c.against}" for c in report.comparisons)
        head = f"**Deploy.** The tuned model is not worse than {than} on held-out examples."
    else:
        head = "**Do not deploy.** The gate says no:"
    reasons = [f"- {reason}." for reason in report.reasons]
    unproven = [
        f"- That it answers better than the {c.against} is not shown: the interval of the "
        "difference reaches 0."
        for c in report.comparisons
        if c.accuracy_difference.low <= 0 <= c.accuracy_difference.high
    ]
    return "\n".join([head, "", *reasons, *figures, *unproven])


def _comparison_table(report: EvaluationReport) -> str:
    roles = list(report.metrics)
    named = {role: {m.name: m for m in measured} for role, measured in report.metrics.items()}
    names = [name for name in MEANINGS if any(name in measured for measured in named.values())]
    rows = []
    for name in names:
        gain = report.improvement_over_base.get(name)
        label = name.replace("_", " ") + (" ↓" if name in LOWER_IS_BETTER else "")
        cells = [_cell(named[role].get(name)) for role in roles]
        rows.append([label, *cells, "–" if gain is None else f"{gain:+.1f}%"])
    return _table(["metric", *roles, "improvement over base"], rows)


def _group_table(title: str, groups: Sequence[GroupAccuracy], roles: Sequence[Role]) -> str:
    rows = [
        [
            group.group.replace("_", " "),
            str(max(metric.n for metric in group.accuracy.values())),
            *(_cell(group.accuracy.get(role)) for role in roles),
        ]
        for group in groups
    ]
    return _table([title, "n", *(f"{role} accuracy" for role in roles)], rows)


def _answers(cases: Sequence[AnsweredCase], roles: Sequence[Role]) -> str:
    """Some answers that the tuned model has right and some that it has wrong, in full."""
    parts = []
    for right, title in ((True, "Right"), (False, "Wrong")):
        chosen = [case for case in cases if case.answers["tuned"].right is right][:SHOWN_ANSWERS]
        total = sum(case.answers["tuned"].right is right for case in cases)
        parts.append(f"### {title} ({len(chosen)} of {total}; all are in answers.jsonl)")
        for case in chosen:
            parts.append(
                f"**{_inline(case.question)}** ({case.kind.replace('_', ' ')}, {case.difficulty})"
            )
            parts.append(f"expected:\n\n{_fenced(case.expected)}")
            parts += [
                f"{role}{'' if case.answers[role].stopped else ' (cut at the limit)'}:\n\n"
                f"{_fenced(case.answers[role].text)}"
                for role in roles
                if role in case.answers
            ]
    return "\n\n".join(parts)


def _facts(report: EvaluationReport) -> str:
    rows = [
        ["tuned model", f"{report.model_name}, trained {report.training_date}"],
        ["base", report.base_model],
        ["deployed", report.deployed_model or "none"],
        ["dataset", f"{report.dataset}, {report.num_training_examples} training examples"],
        ["left out, too long for the context", str(report.num_left_out_too_long)],
        *([key, str(value)] for key, value in report.settings.items()),
        *([key, value] for key, value in report.machine.items()),
        *([f"seconds, {key}", f"{value:.1f}"] for key, value in report.seconds.items()),
    ]
    if report.deployed_model:
        ratios = [c.perplexity_ratio for c in report.comparisons if c.against == "deployed"]
        rests = "".join(f"; the comparison with it rests on {ratio.n}" for ratio in ratios if ratio)
        rows.insert(
            3,
            [
                "held-out examples that the deployed model was trained on",
                f"{report.num_seen_by_deployed}{rests}",
            ],
        )
    return _table(["", ""], rows)


def _cell(metric: Metric | None) -> str:
    if metric is None:
        return "–"
    if metric.name in RAW_METRICS:
        return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"
    return f"{100 * metric.value:.1f}% ({100 * metric.low:.0f} to {100 * metric.high:.0f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_inline, line)) + " |" for line in lines)


def _inline(text: str) -> str:
    """Text that stays within its line and table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _fenced(text: str) -> str:
    """Text of a model as a code block that it cannot end by itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip() or '(nothing)'}\n{fence}"


def metric_values(measured: Sequence[Metric]) -> dict[str, float]:
    """Name → value, for the result of the skill."""
    return {metric.name: metric.value for metric in measured}
