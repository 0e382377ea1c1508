"""What a report says in words: the same for Markdown and HTML. Nothing is measured here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from forge_mcp.judging.notation import (
    apart,
    few,
    is_better,
    label,
    measured,
    number,
    plain_label,
    quantity,
    signed,
    unit_of,
    with_interval,
)
from forge_mcp.judging.results import (
    MEANINGS,
    SECTIONS,
    Answered,
    Comparison,
    Contestant,
    EvaluationReport,
    GroupAccuracy,
    Section,
    SectionName,
    Target,
)
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.raft_examples import DIFFICULTIES

SHOWN_ANSWERS = 3  # right ones, and as many wrong ones, of each section
PER_EXAMPLE = "per_example.png"

SHORT: dict[SectionName, str] = {
    "open_book": "open book",
    "closed_book": "closed book",
    "text": "source code",
    "code": "functions",
    "humaneval": "HumanEval",
    "speed": "speed",
}
ASKED: dict[SectionName, str] = {
    "open_book": "questions",
    "closed_book": "questions",
    "text": "tokens",
    "code": "functions",
    "humaneval": "problems",
}
OTHERS: dict[Contestant, str] = {
    "base": "its base",
    "base_retrieval": "its base with retrieval",
    "tuned": "the tuned model",
    "tuned_retrieval": "the tuned model with retrieval",
    "deployed": "the deployed model",
    "control": "the control",
}
COMPARING = (
    "Both models were asked the same, and the differences are paired question by question: the "
    "tuned model's value divided by the other's (×), or less the other's (points). With ↓, below "
    "1 or 0 is better. A difference whose interval reaches 1 or 0 may be chance."
)
TARGETS = (
    "Targets are shown; they decide nothing. The gate asks for better than the base, and for not "
    "worse than what is deployed."
)
Standing = Literal["better", "worse", "no difference shown", "not compared"]


# -- the verdict, and what decides ---------------------------------------------------------------


def verdict(report: EvaluationReport) -> tuple[str, list[str]]:
    """'Deploy' or 'Do not deploy', and the sentences that say why."""
    if not report.passed:
        return "Do not deploy", [sentence(reason) for reason in report.reasons]
    return "Deploy", [line for one in report.comparisons for line in gist(one)]


def gist(one: Comparison) -> list[str]:
    """What is better and worse than another model."""
    other = OTHERS[one.against]
    lines = [
        f"{how} than {other} beyond the noise – {listed(names)}."
        for how, names in (("Better", one.better), ("Worse", one.worse))
        if names
    ]
    return lines or [f"No difference to {other} is shown."]


def comparison_lines(one: Comparison) -> list[str]:
    """Why a comparison says no, and what it left out; its table says the rest."""
    lines = [sentence(reason) for reason in one.reasons]
    if not one.differences and not lines:
        lines = gist(one)
    if one.n_left_out:
        lines.append(
            f"{counted(one.n_left_out, 'question')} that {OTHERS[one.against]} was trained on "
            f"{'is' if one.n_left_out == 1 else 'are'} left out of this comparison."
        )
    return lines


def listed(names: Sequence[str]) -> str:
    """Names of differences by section: 'open book: perplexity, answer accuracy; closed book: …'."""
    by_section: dict[str, list[str]] = {}
    for name in names:
        section, metric = take_apart(name)
        by_section.setdefault(SHORT[section] if section else "", []).append(plain_label(metric))
    return "; ".join(
        (f"{section}: " if section else "") + ", ".join(metrics)
        for section, metrics in by_section.items()
    )


def take_apart(name: str) -> tuple[SectionName | None, str]:
    """'open_book.answer_accuracy' → ('open_book', 'answer_accuracy')."""
    section, dot, metric = name.partition(".")
    for known in SECTIONS:
        if dot and section == known:
            return known, metric
    return None, name


def difference_label(name: str, *, arrow: bool = False) -> str:
    """A difference's name for people: 'answer accuracy (open book)'."""
    section, metric = take_apart(name)
    said = label(metric) if arrow else plain_label(metric)
    return said + (f" ({SHORT[section]})" if section else "")


def is_ratio(name: str) -> bool:
    """Whether a difference is one of `Comparison`'s ratios, and not in points."""
    return unit_of(take_apart(name)[1]) != "share"


def difference_text(metric: Metric) -> tuple[str, str]:
    """A difference and its interval: ('× 0.16', '0.11 to 0.21'), ('+22.9 points', '+9 to +36')."""
    if is_ratio(metric.name):
        return f"× {number(metric.value)}", f"{number(metric.low)} to {number(metric.high)}"
    points = signed(100 * metric.value, 0 if few(metric) else 1)
    return f"{points} points", f"{signed(100 * metric.low)} to {signed(100 * metric.high)}"


def on_axis(metric: Metric) -> tuple[float, float, float]:
    """Bounds and value of a difference on an axis from 0 to 1 with no difference in its middle.

    Points from −100 to +100; ratios by their logarithm from an eighth to eight. What lies beyond is
    at the end.
    """

    def place(at: float) -> float:
        if is_ratio(metric.name):
            at = math.log(at, 8) if at > 0 else -1
        return (min(max(at, -1), 1) + 1) / 2

    return place(metric.low), place(metric.value), place(metric.high)


def difference_standing(one: Comparison, name: str) -> Standing:
    """What a comparison says of one of its differences."""
    if name in one.better:
        return "better"
    return "worse" if name in one.worse else "no difference shown"


def standing(report: EvaluationReport, section: SectionName, name: str) -> Standing:
    """The tuned model beside its base in one metric.

    As the paired comparison says where it holds the metric, else better or worse where the two
    intervals lie apart. Figures that were measured once, without an interval, are not compared.
    """
    for one in report.comparisons:
        for difference in one.differences if one.against == "base" else ():
            if take_apart(difference.name) == (section, name):
                return difference_standing(one, difference.name)
    tuned, base = (measured(report, section, name, who) for who in ("tuned", "base"))
    if not tuned or not base or tuned.low == tuned.high or base.low == base.high:
        return "not compared"
    if not apart(tuned, base):
        return "no difference shown"
    return "better" if is_better(tuned, base) else "worse"


@dataclass(frozen=True)
class Headline:
    """One of the figures that decide. `figures`: of the tuned model, and of its base."""

    question: str
    sentence: str
    more: str
    name: str
    figures: dict[Contestant, Metric]
    standing: Standing


# Question, section, metric, its sentence; {tuned} and {base} are filled in.
_HEADLINES: tuple[tuple[str, SectionName, str, str, str], ...] = (
    (
        "Does it read?",
        "open_book",
        "answer_accuracy",
        "Given the documents, {tuned} answers on files it never saw are right",
        "its base’s: {base}",
    ),
    (
        "Does it know?",
        "closed_book",
        "answer_accuracy",
        "Without documents, {tuned} answers on code it was trained on, asked in new words, are "
        "right",
        "its base’s: {base}",
    ),
    (
        "Does it invent?",
        "open_book",
        "hallucination_rate",
        "Given the documents, {tuned} claims in its answers have no support in them or in the "
        "repository",
        "its base’s: {base}",
    ),
    (
        "Is it fast?",
        "speed",
        "ms_per_token",
        "It writes a token in {tuned} on this machine",
        "its base in {base}",
    ),
)


def headlines(report: EvaluationReport) -> list[Headline]:
    """The four figures that decide, each in a sentence."""
    return [_headline(report, *parts) for parts in _HEADLINES]


def _headline(
    report: EvaluationReport,
    question: str,
    section: SectionName,
    name: str,
    told: str,
    beside: str,
) -> Headline:
    found: dict[Contestant, Metric] = {}
    for who in ("tuned", "base"):
        if metric := measured(report, section, name, who):
            found[who] = metric
    stands = standing(report, section, name)
    if "tuned" not in found:
        return Headline(question, "Not measured.", "", name, {}, "not compared")
    tuned, base = found["tuned"], found.get("base")
    text = told.format(tuned=_counted_value(tuned))
    if base:
        text += "; " + beside.format(base=_counted_value(base))
    return Headline(question, text + ".", _of_facts(report, section, name), name, found, stands)


def _counted_value(metric: Metric) -> str:
    """'35 of 48' where the metric is a share, which shows how little that may be."""
    if unit_of(metric.name) == "share":
        return f"{round(metric.value * metric.n):,} of {metric.n:,}"
    return quantity(metric.name, metric.value)


def _of_facts(report: EvaluationReport, section: SectionName, name: str) -> str:
    """What the likelihood of the facts adds to how many answers are right."""
    pair = [measured(report, section, "fact_perplexity", who) for who in ("tuned", "base")]
    if name != "answer_accuracy" or not pair[0] or not pair[1]:
        return ""
    tuned, base = (with_interval(one) for one in pair if one)
    return (
        f"Perplexity of the true facts ↓: {tuned}; base {base}: "
        f"{standing(report, section, 'fact_perplexity')}."
    )


# -- targets -------------------------------------------------------------------------------------


def wanted(target: Target) -> str:
    """'at least 90%', 'at most 200 ms'."""
    return f"{'at most' if target.at_most else 'at least'} {_threshold(target)}"


def _threshold(target: Target) -> str:
    if unit_of(target.metric) == "share":
        return f"{100 * target.threshold:g}%"
    return f"{target.threshold:g}" + (" ms" if unit_of(target.metric) == "ms" else "")


def target_label(target: Target) -> str:
    """A target's name, and where it was measured."""
    where = SHORT[target.section]
    return target.name if where in target.name.lower() else f"{target.name} ({where})"


def outcome(target: Target) -> Literal["met", "not met", "not measured"]:
    """Whether a target is met."""
    if target.met is None:
        return "not measured"
    return "met" if target.met else "not met"


def left_open(target: Target) -> str:
    """Where the interval holds the threshold, that it does; else ''."""
    value = target.value
    held = value is not None and value.low < target.threshold < value.high
    return "the interval holds the threshold" if held else ""


def specified(report: EvaluationReport) -> list[tuple[str, str]]:
    """The specification's figures of the tuned model, or that they were not measured."""
    figures = (
        ("perplexity", "perplexity", report.perplexity),
        ("CodeBLEU", "codebleu", report.codebleu_score),
        ("HumanEval pass rate", "pass@1", report.humaneval_pass_rate),
        ("reconstruction", "edit_similarity", report.reconstruction_score),
        ("hallucination rate", "hallucination_rate", report.hallucination_rate),
    )
    return [
        (title, "not measured" if value is None else quantity(name, value))
        for title, name, value in figures
    ]


# -- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Some answers of one section that the tuned model has right, or wrong, of `total`."""

    section: SectionName
    right: bool
    total: int
    answers: list[Answered]


def shown_answers(answers: Sequence[Answered]) -> list[Shown]:
    """Right and wrong ones by section; of as many kinds as there is room for, as they come."""
    found = []
    for section in SECTIONS:
        for right in (True, False):
            rows = [
                row
                for row in answers
                if row.section == section and (one := row.answers.get("tuned"))
                if one.right is right
            ]
            if rows:
                found.append(Shown(section, right, len(rows), _of_many_kinds(rows)))
    return found


def _of_many_kinds(rows: Sequence[Answered]) -> list[Answered]:
    """At most `SHOWN_ANSWERS`: the first of each kind, then the others in their order."""
    first = {row.kind: row for row in reversed(rows)}
    order = sorted(rows, key=lambda row: first[row.kind] is not row)
    return order[:SHOWN_ANSWERS]


def marked(text: str, claims: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """A text in pieces, each with whether it is one of these claims.

    A claim that is a name is marked where it stands between back-ticks, others wherever they stand.
    """
    flags = bytearray(len(text))
    for claim in filter(None, claims):
        pattern = re.escape(claim)
        for start, end in _places(text, claim):
            for match in re.finditer(pattern, text[start:end]):
                flags[start + match.start() : start + match.end()] = b"\1" * len(claim)
    at = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or flags[end] != flags[at]:
            yield text[at:end], bool(flags[at])
            at = end


def _places(text: str, claim: str) -> list[tuple[int, int]]:
    """Where in a text a claim is looked for: (start, end)."""
    if not claim.isidentifier():
        return [(0, len(text))]
    word = re.compile(rf"(?<!\w){re.escape(claim)}(?!\w)")
    ticks = [match.span() for match in re.finditer(r"`[^`\n]+`", text)]
    found = [
        (start + match.start(), start + match.end())
        for start, end in ticks
        for match in word.finditer(text[start:end])
    ]
    return found or [match.span() for match in word.finditer(text)]


def claims_text(unsupported: Sequence[str]) -> list[str]:
    """The claims on one line each, shortened where they are long."""
    found = []
    for claim in unsupported:
        line = " ".join(claim.split()) or "(an empty citation)"
        found.append(line if len(line) <= 120 else line[:119] + "…")
    return found


def pictures(report: EvaluationReport, drawn: Collection[str]) -> list[tuple[str, str]]:
    """Names and captions of those pictures that were drawn."""
    captions = (
        (report.metric_distribution, "Every metric with its 95% interval"),
        (
            PER_EXAMPLE,
            "Perplexity by example, in the order asked: a model that diverges shows here",
        ),
        (report.loss_curve, "Training and validation loss by step"),
    )
    return [(name, caption) for name, caption in captions if name in drawn]


# -- how it was measured -------------------------------------------------------------------------


def facts(report: EvaluationReport) -> list[tuple[str, str]]:
    """Models, data, time and machine: name and value."""
    return [
        ("tuned model", f"{report.model_name}, trained {moment(report.training_date)}"),
        ("base", report.base_model),
        ("deployed", report.deployed_model or "none"),
        *([("control", report.control_model)] if report.control_model else []),
        ("dataset", f"{report.dataset}, {report.num_training_examples:,} training examples"),
        ("held-out examples", f"{report.num_eval_examples:,}"),
        *((f"seconds, {SHORT[one.name]}", f"{one.seconds:.1f}") for one in report.sections),
        ("seconds in all", f"{report.seconds:.1f}"),
        *((key, value) for key, value in report.machine.items()),
    ]


def setting_rows(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as name and value; tables within them as 'outer.inner'."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += setting_rows(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((prefix + key, text or '""'))
    return rows


def glossary(report: EvaluationReport) -> list[tuple[str, str]]:
    """The metrics that were measured, and what each is."""
    there = {
        metric.name
        for section in report.sections
        for figures in section.metrics.values()
        for metric in figures
    }
    return [(label(name), MEANINGS[name]) for name in MEANINGS if name in there]


def asked_of(section: Section) -> str:
    """'48 of 210 questions, 31 s'."""
    seconds = f"{section.seconds:.0f} s"
    if section.name not in ASKED:
        return seconds
    of = f" of {section.of:,}" if section.of != section.asked else ""
    return f"{section.asked:,}{of} {ASKED[section.name]}, {seconds}"


def groups(section: Section) -> list[tuple[str, list[GroupAccuracy]]]:
    """The groups of a section by what they are; difficulties from easy to hard."""
    hardness: dict[str, int] = {name: place for place, name in enumerate(DIFFICULTIES)}
    by_difficulty = sorted(section.by_difficulty, key=lambda one: hardness.get(one.group, 0))
    found = (("kind", section.by_kind), ("difficulty", by_difficulty))
    return [(title, members) for title, members in found if members]


def kind_label(kind: str) -> str:
    """A kind of fact for people."""
    return kind.replace("_", " ")


def counted(n: int, noun: str) -> str:
    """'1 question', '5 questions'."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def moment(text: str) -> str:
    """An ISO time to the minute; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"
    except ValueError:
        return text


def sentence(text: str) -> str:
    """A reason with a capital and one full stop."""
    stripped = text.strip().rstrip(".")
    return stripped[:1].upper() + stripped[1:] + "." if stripped else ""
