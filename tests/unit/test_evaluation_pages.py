"""The pages of an evaluation's report: Markdown, HTML and plots say what was measured, whoever
wrote the text in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import report_cases as cases
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from forge_mcp.judging import notation, words
from forge_mcp.judging.markdown import render_markdown
from forge_mcp.judging.page import STYLE, evaluation_page
from forge_mcp.judging.plots import COLOURS, MARKS, metric_distribution, per_example
from forge_mcp.judging.results import (
    CONTESTANTS,
    MEANINGS,
    SECTIONS,
    Answered,
    Contestant,
    EvaluationReport,
)
from forge_mcp.schemas.base import Metric

PNG = b"\x89PNG\r\n\x1a\n picture"
REPORTS = {
    "passed": (cases.passed(), cases.answers()),
    "refused": (cases.refused(), cases.answers()[5:9]),
    "six": (cases.with_all_six(), cases.answers()),
    "hostile": cases.hostile(),
    "nothing to show": (cases.refused(targets=[], not_measured=[], comparisons=[]), []),
}
every_report = pytest.mark.parametrize(("report", "answers"), REPORTS.values(), ids=list(REPORTS))


class Page(HTMLParser):
    """Tags that are open, what there is in each, and every attribute."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.of: dict[str, list[str]] = {}  # what was written in each element, by tag
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
            self.of.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.of[tag][-1] += data
        if "style" not in self.open:
            self.text += data


def page_of(
    report: EvaluationReport, answers: list[Answered], images: dict[str, bytes] | None = None
) -> Page:
    return Page(evaluation_page(report, answers, images or {}))


def commonmark(text: str) -> list[Token]:
    """Markdown as a reader sees it, by a parser that this project did not write."""
    return MarkdownIt("commonmark").enable("table").parse(text)


def shown(tokens: list[Token]) -> Iterator[str]:
    """The texts of the inline parts, markup resolved."""
    for token in tokens:
        if token.children:
            yield "".join(one.content for one in token.children)


# -- the page ----------------------------------------------------------------------------------


@every_report
def test_a_page_is_whole_and_loads_nothing(
    report: EvaluationReport, answers: list[Answered]
) -> None:
    images = {report.metric_distribution: PNG, words.PER_EXAMPLE: PNG, report.loss_curve: PNG}
    text = evaluation_page(report, answers, images)
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "form", "base", "a"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    assert ("meta", "http-equiv", "Content-Security-Policy") in page.attributes
    (policy,) = [v for _, name, v in page.attributes if name == "content" and "default-src" in v]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for source in re.findall(r"https?://", text):
        assert report.model_name == cases.HOSTILE, source  # text of a model, escaped


def test_the_first_screen_decides() -> None:
    page = page_of(*REPORTS["passed"])
    assert page.of["title"] == ["Deploy: run-click-8-2-1-4be9"]
    assert "✓ Deploy" in page.of["strong"]
    order = [
        "Evaluation of run-click-8-2-1-4be9",
        "Tuned from forge-nano on 1,477 examples of ds-click-8-2-1-5507, 2026-11-23 22:13.",
        "Deploy",
        "Better than its base beyond the noise – open book: perplexity, fact perplexity, answer "
        "accuracy, hallucination rate; closed book: fact perplexity, true fact chosen.",
        "Does it read?72.9%better than base",
        "Does it know?15.6%no difference shown",
        "Does it invent?6.0%better than base",
        "Is it fast?6.30 mstuned",
        "The specification’s targets",
        "The tuned model beside the others",
        "Everything that was measured",
        "Plots",
        "Answers",
        "What was not measured",
        "How it was measured",
    ]
    text = page_of(*REPORTS["passed"], {"loss_curve.png": PNG}).text.partition("4be9")[2]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_a_refusal_gives_its_reasons_and_what_was_sampled() -> None:
    page = page_of(*REPORTS["refused"])
    assert page.of["title"] == ["Do not deploy: run-click-8-2-1-4be9"]
    head = page.of["header"][0]
    assert "✗ Do not deploy" in head
    assert "It is not better than the base (forge-nano) beyond the noise at reading" in head
    assert "The deployed model cannot be compared, because its run is gone." in head
    assert "Sampled: 8 of 210 questions were asked, to keep to 1 minute." in head
    cards = page.of["section"]
    assert [card.partition("?")[0] for card in cards] == [
        "Does it read", "Does it know", "Does it invent", "Is it fast",
    ]  # fmt: skip
    assert "≈ 12%" in cards[0]  # one of eight
    assert cards[1].endswith("?Not measured.")
    assert "pill" in evaluation_page(*REPORTS["refused"], {})
    assert "than base" not in cards[2]  # the base was not asked


@every_report
def test_both_pages_show_every_figure(report: EvaluationReport, answers: list[Answered]) -> None:
    page = page_of(report, answers).text
    markdown = " ".join(shown(commonmark(render_markdown(report, answers))))
    for section in report.sections:
        assert SECTIONS[section.name] in page
        assert SECTIONS[section.name] in markdown
        for metric in (one for named in section.metrics.values() for one in named):
            assert notation.value_of(metric) in page
            assert notation.with_interval(metric) in markdown
            assert notation.interval_of(metric) in page
            assert MEANINGS[metric.name] in page
            assert MEANINGS[metric.name] in markdown
        for note in section.notes:
            assert " ".join(note.split()) in markdown
            assert note in page
    for line in (*report.not_measured, *report.machine.values(), *report.reasons):
        assert line[1:-1] in page
        assert " ".join(line.split())[1:-1] in markdown
    for one in report.comparisons:
        for difference in one.differences:
            for text in words.difference_text(difference):
                assert text in page
                assert text in markdown


def test_pictures_are_those_that_were_drawn() -> None:
    report = cases.passed()
    assert "img" not in page_of(report, []).tags
    text = render_markdown(report, [], ("loss_curve.png", words.PER_EXAMPLE))
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["per_example.png", "loss_curve.png"]
    assert re.findall(r"!\[.*\]\((.*)\)", render_markdown(report, [])) == [
        "metrics.png", "loss_curve.png",
    ]  # fmt: skip
    assert "## Plots" not in render_markdown(report, [], ())


def test_light_and_dark_can_be_read() -> None:
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    )
    assert light.keys() == dark.keys()
    for theme in (light, dark):
        for ink in ("ink", "soft", "good", "bad"):
            for ground in ("paper", "panel"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        assert contrast(theme["ink"], theme["mark"]) >= 4.5
        assert contrast(theme["tuned"], theme["line"]) >= 3
    for banner in re.findall(r"\.(?:passed|refused) \{ background: (#\w+)", STYLE):
        assert contrast("#ffffff", banner) >= 4.5


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


# -- text of others ----------------------------------------------------------------------------


def test_text_of_models_cannot_break_the_page() -> None:
    report, answers = cases.hostile()
    page = page_of(report, answers)
    calm = page_of(cases.refused(), cases.answers()[:1])
    assert set(page.tags) <= set(calm.tags) | {"mark"}
    assert any(cases.HOSTILE in text for text in page.of["pre"])
    assert cases.HOSTILE in page.of["mark"]
    assert cases.LONG in page.text


def test_text_of_models_cannot_break_the_markdown() -> None:
    report, answers = cases.hostile()
    text = render_markdown(report, answers)
    tokens = commonmark(text)
    assert not [t for t in tokens if t.type == "html_block"]
    inline = [one for token in tokens for one in token.children or ()]
    assert {one.type for one in inline} <= {
        "text", "text_special", "strong_open", "strong_close", "code_inline", "image", "softbreak",
    }  # fmt: skip
    wanted = render_markdown(cases.passed(sections=report.sections), answers)
    assert headings(tokens)[1:] == headings(commonmark(wanted))[1:]
    assert headings(tokens)[0] == f"Evaluation of {' '.join(cases.HOSTILE.split())}"
    fences = [token.content for token in tokens if token.type == "fence"]
    assert fences.count(cases.HOSTILE + "\n") == 2  # what was expected, what was written
    rows = [" ".join(cases.HOSTILE.split()), cases.LONG]
    cells = set(shown(tokens))
    assert all(row in cells for row in rows)


def headings(tokens: list[Token]) -> list[str]:
    return [
        next(shown([tokens[at + 1]]))
        for at, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


# Any text, and text of what Markdown and HTML are made of. Surrogates are no text of a file; a
# parser makes U+FFFD of NUL; line ends are told apart by no page.
MARKUP = '`*_<>[]()#|~!&;\\ \nab1.-+=:/"'
any_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=60),
    st.text(st.sampled_from(MARKUP), max_size=30),
)


def bare(text: str) -> str:
    return re.sub(r"[\s`]", "", text)


@given(any_text, any_text)
@example("x", "12. a")
@example("y", "3) a")
@example("`a | b` c", "= a")
def test_any_text_comes_out_as_it_went_in(first: str, second: str) -> None:
    answer = cases.scored(first, right=False, unsupported=[second])
    row = cases.answered(question=second, expected=first, answers={"tuned": answer})
    report = cases.refused(
        sections=[], comparisons=[], model_name="x" + second, settings={first: second}
    )
    page = page_of(report, [row])
    assert page.of["pre"] == [first, first.strip() or "(nothing)"]
    # A code span in a question is shown without its back-ticks.
    assert bare(page.of["summary"][1]).startswith(bare(second))
    assert page.of["h1"] == [f"Evaluation of x{second}"]
    assert page.of["td"][-2] == first

    tokens = commonmark(render_markdown(report, [row], ()))
    assert [token.type for token in tokens] == [token.type for token in CALM]
    kinds = {one.type for token in tokens for one in token.children or ()}
    assert kinds <= {"text", "text_special", "strong_open", "strong_close", "code_inline"}
    found = headings(tokens)
    assert found[1:] == headings(CALM)[1:]
    assert bare(found[0]) == bare(f"Evaluation of x{second}")
    assert [t.content.strip() for t in tokens if t.type == "fence"] == [
        first.strip() or "(nothing)"
    ] * 2
    cells = [bare(text) for text in shown(tokens)]
    assert bare(f"setting {first}") in cells


CALM = commonmark(  # the report above with nothing in it that could do harm
    render_markdown(
        cases.refused(sections=[], comparisons=[], settings={"x": "y"}),
        [cases.answered(answers={"tuned": cases.scored("x", right=False, unsupported=["x"])})],
        (),
    )
)


def test_questions_keep_their_code_and_sections_their_order() -> None:
    report, answers = REPORTS["passed"]
    page = page_of(report, answers)
    assert "Client.get" in page.of["code"]
    shown_headings = [text for text in page.of["h3"] if text.startswith(("Open", "Closed"))]
    assert shown_headings == [
        "Open book: right 3 of 5, all are in answers.jsonl",
        "Open book: wrong 3 of 4, all are in answers.jsonl",
        "Closed book: right 1 of 1, all are in answers.jsonl",
        "Closed book: wrong 1 of 1, all are in answers.jsonl",
    ]
    # Groups of two sections, the metrics and the settings fold as well.
    assert page.tags.count("details") == 8 + 2 + 2
    text = render_markdown(report, answers)
    assert "> Which exceptions does `Client.get` raise? (raises, easy)" in text
    assert "base + retrieval (wrong, cut at the limit):" in text
    assert "Supported by nothing:\n\n- `mode=None`\n- def open(path, mode)" in text


# -- answers -----------------------------------------------------------------------------------


def test_shown_answers_are_of_many_kinds() -> None:
    rows = [cases.wrong(3 * n) for n in range(4)] + [cases.wrong(1), cases.wrong(2)]
    (one,) = words.shown_answers(rows)
    assert [row.kind for row in one.answers] == ["signature", "default", "returns"]
    assert (one.right, one.total) == (False, 6)
    none = cases.answered(answers={"base": cases.scored("x")})
    assert words.shown_answers([none]) == []


def test_unsupported_claims_are_marked_where_they_stand() -> None:
    text = "retry: `Retry.get` and `get`, quote ##a\nb##. <ANSWER>: `x` `x`"
    found = list(words.marked(text, ["get", "a\nb", "`x` `x`", "", "absent"]))
    assert [piece for piece, unsupported in found if unsupported] == [
        "get",
        "get",
        "a\nb",
        "`x` `x`",
    ]
    # A name that never stands between back-ticks is marked as a word, not within another.
    assert [piece for piece, it in words.marked("a cat, concat", ["cat"]) if it] == ["cat"]
    assert list(words.marked("a `cat` or cat", ["cat"])) == [
        ("a `", False), ("cat", True), ("` or cat", False),
    ]  # fmt: skip
    assert words.claims_text(["", "a\n b", "x" * 200]) == [
        "(an empty citation)", "a b", "x" * 119 + "…",
    ]  # fmt: skip


@given(st.text("ab` _\n", max_size=40), st.lists(st.text("ab` _\n", max_size=4), max_size=4))
def test_marking_changes_no_text_and_marks_no_more_than_claims(
    text: str, claims: list[str]
) -> None:
    pieces = list(words.marked(text, claims))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(piece for piece, _ in pieces)
    assert all(one[1] != other[1] for one, other in pairwise(pieces))
    at = 0
    for piece, unsupported in pieces:
        for place in range(at, at + len(piece)):
            within = any(
                text[start : start + len(claim)] == claim
                for claim in claims
                for start in range(max(0, place - len(claim) + 1), place + 1)
                if claim
            )
            assert within or not unsupported
            if not unsupported:
                for claim in claims:
                    assert not claim or claim.isidentifier() or not covered(text, claim, place)
        at += len(piece)


def covered(text: str, claim: str, place: int) -> bool:
    """Whether one of the claim's matches, from left to right, holds this place."""
    return any(m.start() <= place < m.end() for m in re.finditer(re.escape(claim), text))


# -- figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (cases.of("answer_accuracy", 35, 48), "72.9% (59 to 83)"),
        (cases.of("answer_accuracy", 3, 5), "≈ 60% (23 to 88)"),
        (cases.of("hallucination_rate", 40, 1000), "4.0% (3.0 to 5.4)"),
        (cases.value("perplexity", 6.919, 0.1), "6.92 (6.23 to 7.61)"),
        (cases.value("perplexity", 44.3, 0.1, n=5), "≈ 44.3 (39.9 to 48.7)"),
        (cases.value("perplexity", 15234.0, 0.0), "15,234"),
        (cases.value("perplexity", 3.2e8, 0.0), "3.20e+08"),
        (cases.value("bits_per_byte", 0.004, 0.0), "4.00e-03"),
        (cases.value("bits_per_byte", 0.0, 0.0), "0.00"),
        (cases.value("ms_per_token", 6.3, 0.0, n=32), "6.30 ms"),
        (cases.value("codebleu", 0.31, 0.3), "0.31 (0.22 to 0.40)"),
    ],
)
def test_figures_show_their_uncertainty(metric: Metric, said: str) -> None:
    assert notation.with_interval(metric) == said


def test_names_are_for_people() -> None:
    assert notation.label("hallucination_rate") == "hallucination rate ↓"
    assert notation.label("pass@1") == "pass@1"
    assert words.difference_label("open_book.fact_perplexity", arrow=True) == (
        "fact perplexity ↓ (open book)"
    )
    assert words.difference_label("elsewhere.thing") == "elsewhere.thing"
    assert words.listed(["closed_book.fact_choice", "speech"]) == (
        "closed book: true fact chosen; speech"
    )
    assert set(words.SHORT) == set(SECTIONS)
    assert set(words.OTHERS) == set(CONTESTANTS)


def test_the_docs_explain_the_metrics_that_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "judging.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    assert {name: (label, meaning.replace("`", "")) for name, label, meaning in rows} == {
        name: (notation.label(name), meaning) for name, meaning in MEANINGS.items()
    }


def intervals(
    *bounds: tuple[float, float], name: str = "answer_accuracy"
) -> dict[Contestant, Metric]:
    return {
        who: Metric(name=name, value=(low + high) / 2, low=low, high=high, n=99)
        for who, (low, high) in zip(CONTESTANTS, bounds, strict=False)
    }


def test_a_mark_needs_intervals_that_lie_apart() -> None:
    figures = intervals((0.1, 0.2), (0.15, 0.3), (0.5, 0.6), (0.7, 0.9), (0.0, 0.05))
    assert [notation.marks(figures, who) for who in figures] == ["", "", "▲", "▲★", "▼"]
    worse = intervals((0.1, 0.2), (0.15, 0.3), (0.5, 0.6), name="hallucination_rate")
    assert [notation.marks(worse, who) for who in worse] == ["", "", "▼"]
    assert notation.best(intervals((0.1, 0.2), (0.5, 0.6))) is None  # of two, ▲ says it
    figures["base"] = cases.value("answer_accuracy", 0.01, 0.0)  # measured once
    assert notation.marks(figures, "tuned") == ""
    del figures["base"]
    assert notation.marks(figures, "tuned") == ""


unit = st.floats(0, 1)
bounds = st.tuples(unit, unit).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(bounds, min_size=1, max_size=6), st.sampled_from(["compiles", "perplexity"]))
def test_the_best_is_apart_from_every_other(found: list[tuple[float, float]], name: str) -> None:
    figures = intervals(*found, name=name)
    leader = notation.best(figures)
    apart = [
        who
        for who, metric in figures.items()
        if len(figures) > 2
        and all(one.low < one.high for one in figures.values())
        and all(
            (metric.low > other.high) if name == "compiles" else (metric.high < other.low)
            for whose, other in figures.items()
            if whose != who
        )
    ]
    assert apart == ([leader] if leader else [])


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    section = cases.text()
    section.metrics["tuned"] = []  # its perplexity was not finite
    report = cases.passed(sections=[section], divergence=[])
    row = r"<th>perplexity ↓</th>.*?</td><td class=\"figure\">–</td><td>–</td></tr>"
    assert re.search(row, evaluation_page(report, [], {}))
    assert re.search(r"\| perplexity ↓ \| ≈ 19.8 .* \| – \| – \|", render_markdown(report, []))
    assert "NaN" not in evaluation_page(report, [], {})


def test_improvements_stand_beside_their_metric() -> None:
    text = render_markdown(*REPORTS["passed"])
    assert re.search(r"\| answer accuracy \| 16\.7%.*▲ \| \+338% \|", text)
    assert re.search(r"\| fact perplexity ↓ \| 44\.3.*\| \+84% \|", text)
    assert re.search(r"\| compiling \| .*\| ≈ \+100% \|", text)
    assert "| ≈ −67% |" in render_markdown(*REPORTS["refused"])


# -- sentences ---------------------------------------------------------------------------------


def test_headlines_are_plain_sentences() -> None:
    read, know, invent, fast = words.headlines(cases.passed())
    assert read.sentence == (
        "Given the documents, 35 of 48 answers on files it never saw are right; its base’s: 8 of "
        "48."
    )
    assert read.more == (
        "Perplexity of the true facts ↓: 1.21 (1.14 to 1.29); base 1.89 (1.77 to 2.00): better."
    )
    assert know.sentence == (
        "Without documents, 5 of 32 answers on code it was trained on, asked in new words, are "
        "right; its base’s: 0 of 32."
    )
    assert invent.sentence == (
        "Given the documents, 18 of 300 claims in its answers have no support in them or in the "
        "repository; its base’s: 58 of 300."
    )
    assert fast.sentence == "It writes a token in 6.30 ms on this machine; its base in 4.10 ms."
    # The paired comparison speaks where it holds the metric, the intervals elsewhere.
    assert [one.standing for one in (read, know, invent, fast)] == [
        "better", "no difference shown", "better", "not compared",
    ]  # fmt: skip


def test_standing_is_the_paired_comparisons() -> None:
    report = cases.passed()
    assert words.standing(report, "closed_book", "answer_accuracy") == "no difference shown"
    report.comparisons[0].better.append("closed_book.answer_accuracy")
    assert words.standing(report, "closed_book", "answer_accuracy") == "better"
    report.comparisons[0].against = "control"  # another one says nothing of the base
    assert words.standing(report, "closed_book", "answer_accuracy") == "no difference shown"


def test_standing_without_a_comparison_is_by_intervals() -> None:
    report = cases.passed(comparisons=[])
    assert words.standing(report, "open_book", "answer_accuracy") == "better"
    assert words.standing(report, "open_book", "false_abstention_rate") == "no difference shown"
    assert words.standing(report, "text", "bits_per_byte") == "no difference shown"
    assert words.standing(report, "speed", "ms_per_token") == "not compared"  # measured once
    report.sections[0].metrics["tuned"][6] = cases.of("citation_recall", 0, 40)
    assert words.standing(report, "open_book", "citation_recall") == "worse"
    assert words.standing(report, "humaneval", "pass@1") == "not compared"


def test_comparisons_say_what_is_better_worse_and_left_out() -> None:
    one = cases.refused().comparisons[0]
    assert words.gist(one) == [
        "Worse than its base beyond the noise – closed book: true fact chosen."
    ]
    assert words.comparison_lines(one)[0].startswith("It is not better than the base")
    standings = [words.difference_standing(one, metric.name) for metric in one.differences]
    assert standings == ["no difference shown", "no difference shown", "worse"]
    base, deployed, control = cases.with_all_six().comparisons
    assert words.comparison_lines(base) == []
    assert words.comparison_lines(deployed) == [
        "No difference to the deployed model is shown.",
        "1 question that the deployed model was trained on is left out of this comparison.",
    ]
    assert words.comparison_lines(control) == [
        "5 questions that the control was trained on are left out of this comparison."
    ]


def test_differences_keep_their_sign_and_place() -> None:
    loss = cases.difference("open_book.fact_perplexity", 0.5, 0.25, 1.0)
    assert words.difference_text(loss) == ("× 0.50", "0.25 to 1.00")
    assert words.on_axis(loss) == pytest.approx((1 / 6, 1 / 3, 0.5))
    rate = cases.difference("open_book.hallucination_rate", -0.133, -0.19, 0.07)
    assert words.difference_text(rate) == ("−13.3 points", "−19 to +7")
    assert words.on_axis(rate) == pytest.approx((0.405, 0.4335, 0.535))
    rough = cases.difference("open_book.answer_accuracy", 0.333, 0, 0.6, n=6)
    assert words.difference_text(rough) == ("+33 points", "0 to +60")
    assert [notation.signed(value) for value in (0.4, -0.4, -1234, 7)] == ["0", "0", "−1,234", "+7"]
    assert notation.signed(-0.04, 1) == "0.0"


@given(st.floats(-2, 1e9), st.floats(-2, 1e9), st.booleans())
def test_an_axis_is_monotone_and_bounded(first: float, second: float, ratio: bool) -> None:
    low, high = sorted((first, second))
    name = "open_book.perplexity" if ratio else "open_book.answer_accuracy"
    places = words.on_axis(cases.difference(name, high, low, high))
    assert 0 <= places[0] <= places[1] == places[2] <= 1


def test_targets_are_met_or_not_or_not_measured() -> None:
    right, hallucination, compiling, speed = cases.targets()
    assert [words.outcome(one) for one in (right, hallucination, compiling, speed)] == [
        "not met", "not met", "not met", "met",
    ]  # fmt: skip
    assert words.outcome(cases.targets(coded=False)[2]) == "not measured"
    assert [words.wanted(one) for one in (right, hallucination, compiling, speed)] == [
        "at least 90%", "at most 5%", "at least 95%", "at most 200 ms",
    ]  # fmt: skip
    assert words.left_open(right) == ""
    assert words.left_open(hallucination) == "the interval holds the threshold"
    assert words.left_open(cases.targets(coded=False)[2]) == ""
    assert words.target_label(right) == "right answers (open book)"
    assert words.target_label(speed) == "speed"
    perplexity = cases.target("likely", "text", "perplexity", None, 2.5, at_most=True)
    assert words.wanted(perplexity) == "at most 2.5"
    page = page_of(cases.passed(targets=cases.targets(coded=False)), [])
    assert "compiling (functions)at least 95%–not measured" in page.text


def test_the_specifications_figures_have_its_names() -> None:
    assert words.specified(cases.passed()) == [
        ("perplexity", "1.70"),
        ("CodeBLEU", "0.31"),
        ("HumanEval pass rate", "not measured"),
        ("reconstruction", "0.38"),
        ("hallucination rate", "6.0%"),
    ]


def test_difficulties_are_from_easy_to_hard() -> None:
    section = cases.open_book()
    section.by_difficulty.sort(key=lambda one: one.group)
    kinds, difficulties = (members for _, members in words.groups(section))
    assert [one.group for one in difficulties] == ["easy", "medium", "hard"]
    assert kinds == section.by_kind
    text = render_markdown(cases.passed(sections=[section]), [])
    assert re.search(r"\| easy \|.*\n\| medium \|.*\n\| hard \|", text)
    page = page_of(cases.passed(sections=[section]), []).text
    assert page.index("easy18.2%") < page.index("medium19.0%") < page.index("hard≈ 20%")
    assert words.groups(cases.speed()) == []


def test_how_it_was_measured_is_complete() -> None:
    report = cases.with_all_six()
    facts = dict(words.facts(report))
    assert facts["deployed"] == "run-click-8-2-0-11aa"
    assert facts["control"] == "run-httpcore-1-0-9-77cd"
    assert facts["seconds, HumanEval"] == "90.1"
    assert facts["cores"] == "2"
    assert "control" not in dict(words.facts(cases.passed()))
    assert words.setting_rows(report.settings) == [
        ("max_examples", "48"), ("seed", "17"), ("humaneval", '""'), ("limits.cpu", "10"),
    ]  # fmt: skip
    assert words.moment("yesterday") == "yesterday"
    assert words.sentence(" ") == ""
    assert words.sentence("it is so.") == "It is so."
    asked = {one.name: words.asked_of(one) for one in report.sections}
    assert asked["open_book"] == "48 of 210 questions, 61 s"
    assert asked["text"] == "8,192 tokens, 4 s"
    assert asked["speed"] == "1 s"


def test_a_report_comes_back_from_its_file_with_the_same_pages() -> None:
    report, answers = REPORTS["six"]
    again = EvaluationReport.model_validate(json.loads(report.model_dump_json()))
    assert evaluation_page(again, answers, {}) == evaluation_page(report, answers, {})
    assert render_markdown(again, answers) == render_markdown(report, answers)


# -- plots -------------------------------------------------------------------------------------


def pixels(path: Path) -> set[tuple[int, ...]]:
    """The colours of a picture as 8-bit RGB."""
    from matplotlib.image import imread

    picture = imread(path)
    return {
        tuple(round(255 * float(c)) for c in colour[:3]) for colour in picture.reshape(-1, 4)[::3]
    }


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def test_a_plot_shows_every_contestant_and_no_other(tmp_path: Path) -> None:
    sizes: list[int] = []
    for report in (cases.refused(), cases.with_all_six()):
        path = tmp_path / f"{len(sizes)}.png"
        metric_distribution(path, report)
        there = {who for section in report.sections for who in section.metrics}
        colours = pixels(path)
        assert {who for who in CONTESTANTS if rgb(COLOURS[who]) in colours} == there
        sizes.append(path.stat().st_size)
    assert sizes[1] > sizes[0] > 5000


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    report = cases.refused()
    for name in ("first.png", "second.png"):
        metric_distribution(tmp_path / name, report)
    first = (tmp_path / "first.png").read_bytes()
    assert first == (tmp_path / "second.png").read_bytes()
    # Another figure is another picture.
    report.sections[0].metrics["tuned"][0].value *= 1.1
    metric_distribution(tmp_path / "third.png", report)
    assert first != (tmp_path / "third.png").read_bytes()


@pytest.mark.parametrize("bounds", [(0.0, 3.0), (1.0, 1.2), (1.0, 40.0), (1.0, 1e6)])
def test_plots_of_numbers_alone_near_and_far(tmp_path: Path, bounds: tuple[float, float]) -> None:
    low, high = bounds
    metric = Metric(name="perplexity", value=(low + high) / 2, low=low, high=high, n=9)
    section = cases.text().model_copy(update={"metrics": {"tuned": [metric]}})
    metric_distribution(tmp_path / "m.png", cases.passed(sections=[section]))
    assert rgb(COLOURS["tuned"]) in pixels(tmp_path / "m.png")


def test_perplexity_by_example_is_drawn(tmp_path: Path) -> None:
    report = cases.passed()
    report.divergence[1].section = "closed_book"
    per_example(tmp_path / "p.png", report)
    whole = (tmp_path / "p.png").read_bytes()
    report.divergence[0].per_example[20:40] = [None] * 20
    per_example(tmp_path / "gap.png", report)
    assert (tmp_path / "gap.png").read_bytes() != whole
    for one in report.divergence:
        one.per_example = [None]
    per_example(tmp_path / "nothing.png", report)
    colours = pixels(tmp_path / "p.png")
    assert rgb(COLOURS["base"]) in colours
    assert rgb(COLOURS["tuned"]) in colours
    with pytest.raises(ValueError, match="no perplexities by example"):
        per_example(tmp_path / "q.png", cases.refused())


def test_contestants_can_be_told_apart_by_the_colour_blind() -> None:
    assert set(COLOURS) == set(MARKS) == set(CONTESTANTS)
    assert len(set(MARKS.values())) == len(MARKS)
    # Protanopia and deuteranopia, Viénot, Brettel and Mollon (1999), in linear RGB.
    seen_by = (
        ((0.11238, 0.88762, 0), (0.11238, 0.88762, 0), (0.00401, -0.00401, 1)),
        ((0.29275, 0.70725, 0), (0.29275, 0.70725, 0), (-0.02234, 0.02234, 1)),
    )
    for matrix in seen_by:
        looks = [
            [
                sum(m * (c / 255) ** 2.2 for m, c in zip(row, rgb(colour), strict=True))
                for row in matrix
            ]
            for colour in COLOURS.values()
        ]
        for at, one in enumerate(looks):
            assert all(math.dist(one, other) > 0.05 for other in looks[at + 1 :])
