"""The report of an evaluation as Markdown: the verdict first, then everything it rests on.

Text of models, repositories and settings is escaped: it opens no heading, ends no table row and no
code block, and is no HTML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from forge_mcp.judging import notation, words
from forge_mcp.judging.results import (
    CONTESTANTS,
    SECTIONS,
    Answered,
    Comparison,
    Contestant,
    EvaluationReport,
    GroupAccuracy,
    ScoredAnswer,
    Section,
)
from forge_mcp.schemas.base import Metric

# A code span stays; else what is markup, and what would begin a list within a list.
_MARKUP = re.compile(
    r"(?P<code>(?<!`)`[^`]+`(?!`))|[\\`*\[\]<>&#|~]|(?<!\w)_|_(?!\w)|^[-+=]|^\d+[.)]"
)


def render_markdown(
    report: EvaluationReport,
    answers: Sequence[Answered],
    pictures: Collection[str] | None = None,
) -> str:
    """`report.md`: for a person who decides whether this model is deployed.

    Args:
        report: what was measured.
        answers: the questions with what each contestant wrote; some are shown.
        pictures: names of the PNG files beside it; None: the two that the report names.
    """
    if pictures is None:
        pictures = (report.metric_distribution, report.loss_curve)
    said, lines = words.verdict(report)
    parts = [
        f"# Evaluation of {_inline(report.model_name)}",
        f"**{said}.**",
        _list(lines),
        f"**Sampled:** {_inline(report.budget_note)}" if report.budget_note else "",
        _table(
            ["", "tuned", "base", ""],
            [
                [
                    f"**{one.question}**",
                    *(_value(one.figures.get(who)) for who in ("tuned", "base")),
                    "" if one.standing == "not compared" else one.standing,
                ]
                for one in words.headlines(report)
            ],
        ),
        _list(
            f"{one.question} {one.sentence} {one.more}".strip() for one in words.headlines(report)
        ),
        "## The specification's targets",
        _targets(report),
        "## The tuned model beside the others",
        *(_comparison(one) for one in report.comparisons),
        words.COMPARING if report.comparisons else "",
        "## Everything that was measured",
        notation.READING,
        *(_section(one, report) for one in report.sections),
        "### What the metrics are",
        _table(
            ["metric", "what it is"],
            [[_cell(name), _cell(meaning)] for name, meaning in words.glossary(report)],
        ),
        "## Plots" if pictures else "",
        *(f"![{caption}]({name})" for name, caption in words.pictures(report, pictures)),
        *_answers(answers),
        "## What was not measured",
        _list(report.not_measured),
        "## How it was measured",
        _table(
            ["", ""],
            [
                [_cell(name), _cell(value)]
                for name, value in (
                    *words.facts(report),
                    *words.setting_rows(report.settings, "setting "),
                )
            ],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _targets(report: EvaluationReport) -> str:
    rows = [
        [
            _cell(words.target_label(one)),
            words.wanted(one),
            _value(one.value),
            ", ".join(filter(None, (words.outcome(one), words.left_open(one)))),
        ]
        for one in report.targets
    ]
    figures = ", ".join(f"{name} {value}" for name, value in words.specified(report))
    named = f"The tuned model's figures by the specification's names: {figures}."
    table = _table(["target", "wanted", "measured", ""], rows)
    return "\n\n".join((table, words.TARGETS, named))


def _comparison(one: Comparison) -> str:
    rows = []
    for difference in one.differences:
        value, between = words.difference_text(difference)
        rows.append(
            [
                _cell(words.difference_label(difference.name, arrow=True)),
                f"{value} ({between})",
                f"{difference.n:,}",
                words.difference_standing(one, difference.name),
            ]
        )
    parts = [
        f"### Beside {words.OTHERS[one.against]}",
        _list(words.comparison_lines(one)),
        _table(["metric", "difference", "n", ""], rows) if rows else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _section(section: Section, report: EvaluationReport) -> str:
    roles = notation.contestants(section.metrics)
    rows = []
    for name, figures in notation.metric_rows(section):
        rows.append(
            [
                _cell(notation.label(name)),
                *_values(roles, figures),
                notation.gain_of(report, section.name, name),
            ]
        )
    parts = [
        f"### {SECTIONS[section.name]}",
        _inline(words.asked_of(section)) + ".",
        _list(section.notes),
        _table(["metric", *(CONTESTANTS[who] for who in roles), "tuned over base"], rows),
        *(_groups(title, members) for title, members in words.groups(section)),
    ]
    return "\n\n".join(part for part in parts if part)


def _groups(title: str, groups: Sequence[GroupAccuracy]) -> str:
    """Right answers by group, as a table."""
    roles = notation.contestants(who for group in groups for who in group.accuracy)
    return _table(
        [f"right answers by {title}", *(CONTESTANTS[who] for who in roles)],
        [
            [_cell(words.kind_label(group.group)), *_values(roles, group.accuracy)]
            for group in groups
        ],
    )


def _values(roles: Sequence[Contestant], figures: Mapping[Contestant, Metric]) -> list[str]:
    return [
        f"{_value(figures[who])} {notation.marks(figures, who)}".strip() if who in figures else "–"
        for who in roles
    ]


def _value(metric: Metric | None) -> str:
    return f"{notation.with_interval(metric)}, n {metric.n:,}" if metric else "–"


def _answers(answers: Sequence[Answered]) -> list[str]:
    """Some answers that the tuned model has right and some that it has wrong, in full."""
    shown = words.shown_answers(answers)
    parts = ["## Answers"] if shown else []
    for one in shown:
        parts.append(
            f"### {words.SHORT[one.section].capitalize()}: {'right' if one.right else 'wrong'} "
            f"({len(one.answers)} of {one.total}, all are in answers.jsonl)"
        )
        for row in one.answers:
            about = f"{words.kind_label(row.kind)}, {row.difficulty}"
            parts.append(f"> {_inline(row.question)} ({_inline(about)})")
            parts.append(f"expected:\n\n{_fenced(row.expected)}")
            parts += [
                _answer(CONTESTANTS[who], row.answers[who])
                for who in notation.contestants(row.answers)
            ]
    return parts


def _answer(name: str, answer: ScoredAnswer) -> str:
    said = ("right" if answer.right else "wrong") + ("" if answer.stopped else ", cut at the limit")
    text = f"{name} ({said}):\n\n{_fenced(answer.text)}"
    claims = words.claims_text(answer.unsupported)
    return text + ("\n\nSupported by nothing:\n\n" + _list(claims) if claims else "")


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_inline(line)}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of finished cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(text: str) -> str:
    """Text on one line; of markup it has code spans only."""

    def harmless(match: re.Match[str]) -> str:
        return match["code"] or f"{match[0][:-1]}\\{match[0][-1]}"

    return _MARKUP.sub(harmless, " ".join(text.split()))


def _cell(text: str) -> str:
    """The same as a table cell, which ends at a bar even within code."""
    return re.sub(r"(?<!\\)\|", r"\\|", _inline(text))


def _fenced(text: str) -> str:
    """Text of a model as a code block that it cannot end by itself."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text.strip() or '(nothing)'}\n{fence}"
