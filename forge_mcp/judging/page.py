"""The report of an evaluation as one HTML file: the verdict and what decides on the first screen.

No script, nothing loaded from elsewhere, readable in dark and light, narrow and printed. Every text
that a model, a repository or a setting holds is escaped.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence

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
    Target,
)
from forge_mcp.judging.words import Headline
from forge_mcp.schemas.base import Metric

# The pictures are drawn dark on white; turned round they are light on dark, hues kept.
STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --paper: #ffffff;
  --panel: #f4f6f8; --line: #d9dfe5; --good: #17703f; --bad: #b3261e; --mark: #ffe0b0;
  --tuned: #0072b2; --other: #8a949e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --paper: #14191f;
  --panel: #1e252d; --line: #333d47; --good: #4fc487; --bad: #ff8a80; --mark: #6b4610;
  --tuned: #5cb3ea; --other: #7d8893; }
  img { filter: invert(.92) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1.25rem 4rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.15rem; font-weight: 600; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } h3 .soft { font-weight: 400; }
p, ul { margin: .5rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .88rem; }
.verdict { border-radius: .6rem; padding: .9rem 1.2rem; margin: .8rem 0; color: #fff; }
.verdict strong { display: block; font-size: 1.9rem; line-height: 1.2; }
.verdict ul { margin: .35rem 0 0; padding-left: 1.1rem; }
.passed { background: #17703f; } .refused { background: #a3231b; }
.cards { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: .8rem 0; }
@media (max-width: 62rem) { .cards { grid-template-columns: repeat(2, 1fr); } }
@media (max-width: 34rem) { .cards { grid-template-columns: 1fr; } }
.card { background: var(--panel); border-radius: .6rem; padding: .75rem .95rem; }
.card h2 { font-size: 1rem; margin: 0; border: 0; padding: 0; }
.card .big { font-size: 1.75rem; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.card p { font-size: .87rem; margin: .4rem 0 0; }
.pill { display: inline-block; border: 1px solid currentColor; border-radius: 1rem;
  padding: 0 .55rem; font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .1rem .5rem;
  align-items: center; font-size: .8rem; margin-top: .3rem; font-variant-numeric: tabular-nums; }
.range { position: relative; display: block; height: .5rem; min-width: 4rem; border-radius: .25rem;
  background: var(--line); }
.range i { position: absolute; top: 0; bottom: 0; min-width: 2px; border-radius: .25rem;
  background: var(--other); opacity: .6; }
.range b { position: absolute; top: -1px; bottom: -1px; width: 3px; margin-left: -1.5px;
  background: var(--other); }
.tuned i, .tuned b { background: var(--tuned); }
.better i, .better b { background: var(--good); } .worse i, .worse b { background: var(--bad); }
.range u { position: absolute; left: 50%; top: -3px; bottom: -3px; width: 1px;
  background: var(--ink); }
.figure .range { height: .3rem; margin-top: .15rem; }
.difference { min-width: 8rem; width: 40%; } .difference .range { margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8rem; max-width: 18rem; overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
td small { display: block; color: var(--soft); white-space: nowrap; }
td.figure { min-width: 6.5rem; } td.few { color: var(--soft); font-style: italic; }
td .up { color: var(--good); } td .down { color: var(--bad); }
.columns { display: grid; gap: 0 2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); }
figure { margin: .8rem 0; } img { display: block; width: 100%; min-width: 36rem; height: auto;
  border-radius: .5rem; } img.small { max-width: 44rem; min-width: 0; }
details { background: var(--panel); border-radius: .5rem; padding: .55rem .9rem; margin: .5rem 0;
  overflow-wrap: anywhere; }
summary { cursor: pointer; }
pre { font: .84rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: .2rem 0;
  white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: .6rem; }
code { font: .86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
mark { background: var(--mark); color: inherit; border-bottom: 2px solid var(--bad); }
h4 { font-size: .88rem; margin: .8rem 0 0; } h4 .soft { font-weight: 400; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } tr, img, .card, .verdict { break-inside: avoid; }
  img { min-width: 0; } .wide { overflow: visible; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
PILLS = {"better": " good", "worse": " bad", "met": " good", "not met": " bad"}
_escape = html.escape


def evaluation_page(
    report: EvaluationReport, answers: Sequence[Answered], images: Mapping[str, bytes]
) -> str:
    """The whole report as HTML.

    Args:
        report: what was measured.
        answers: the questions with what each contestant wrote; some are shown.
        images: PNG files by name: the two that the report names, and `words.PER_EXAMPLE`.
    """
    name = _escape(report.model_name)
    body = [
        _head(report),
        '<div class="cards">',
        *(_card(one) for one in words.headlines(report)),
        "</div>",
        "<h2>The specification’s targets</h2>",
        _targets(report),
        "<h2>The tuned model beside the others</h2>",
        *(_comparison(one) for one in report.comparisons),
        f'<p class="soft">{_escape(words.COMPARING)}</p>' if report.comparisons else "",
        "<h2>Everything that was measured</h2>",
        f'<p class="soft">{_escape(notation.READING)}</p>',
        *(_section(one, report) for one in report.sections),
        "<details><summary>What the metrics are</summary>",
        _table(("metric", "what it is"), words.glossary(report)),
        "</details>",
        _pictures(report, images),
        _answers(answers),
        "<h2>What was not measured</h2>",
        _list(report.not_measured),
        "<h2>How it was measured</h2>",
        _table(("", ""), words.facts(report)),
        "<details><summary>Settings</summary>",
        _table(("setting", "value"), words.setting_rows(report.settings)),
        "</details>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{words.verdict(report)[0]}: {name}</title>\n<style>{STYLE}</style>\n"
        "</head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"
    )


# -- the first screen ----------------------------------------------------------------------------


def _head(report: EvaluationReport) -> str:
    said, lines = words.verdict(report)
    look = "passed" if report.passed else "refused"
    about = (
        f"Tuned from {report.base_model} on {report.num_training_examples:,} examples of "
        f"{report.dataset}, {words.moment(report.training_date)}."
    )
    budget = f"<p><strong>Sampled:</strong> {_escape(report.budget_note)}</p>"
    return (
        f"<header><h1>Evaluation of {_escape(report.model_name)}</h1>"
        f'<p class="soft">{_escape(about)}</p>'
        f'<div class="verdict {look}"><strong>{"✓" if report.passed else "✗"} {said}</strong>'
        f"{_list(lines)}</div>{budget if report.budget_note else ''}</header>"
    )


def _card(one: Headline) -> str:
    parts = [f'<section class="card"><h2>{_escape(one.question)}</h2>']
    if one.figures:
        parts.append(
            f'<div class="big">{_escape(notation.value_of(one.figures["tuned"]))}</div>'
            + ("" if one.standing == "not compared" else _pill(one.standing, " than base"))
            + _bars(one.figures)
        )
    parts.append(f"<p>{_escape(one.sentence)}</p>")
    if one.more:
        parts.append(f'<p class="soft">{_escape(one.more)}</p>')
    return "".join(parts) + "</section>"


def _pill(said: str, than: str = "") -> str:
    look = PILLS.get(said, "")
    return f'<span class="pill{look}">{_escape(said)}{than if look else ""}</span>'


def _bars(figures: Mapping[Contestant, Metric]) -> str:
    """The interval of each contestant, one above the other."""
    top = _scale(figures.values())
    rows = (
        f"<span>{_escape(CONTESTANTS[who])}</span>{_range(who, metric, top)}"
        f"<span>{_escape(notation.interval_of(metric))}</span>"
        for who, metric in figures.items()
    )
    return f'<div class="bars">{"".join(rows)}</div>'


def _scale(metrics: Iterable[Metric]) -> float:
    """The value at the right end of the bars: 1 for shares, else the largest bound."""
    shown = list(metrics)
    if notation.unit_of(shown[0].name) == "share":
        return 1.0
    return max(metric.high for metric in shown) or 1.0


def _range(who: Contestant, metric: Metric, top: float) -> str:
    """An interval with its value as a bar from 0 to `top`; the figures stand beside it in words."""
    places = (min(max(at / top, 0), 1) for at in (metric.low, metric.value, metric.high))
    return _bar(tuple(places), "tuned" if who == "tuned" else "")


def _bar(places: tuple[float, ...], look: str, *, middle: bool = False) -> str:
    """Lower bound, value and upper bound on an axis from 0 to 1; `middle` draws its middle."""
    low, value, high = (100 * place for place in places)
    return (
        f'<span class="range {look}" aria-hidden="true">{"<u></u>" if middle else ""}'
        f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        f'<b style="left:{value:.1f}%"></b></span>'
    )


def _targets(report: EvaluationReport) -> str:
    rows = "".join(_target(one) for one in report.targets)
    head = "".join(f"<th>{name}</th>" for name in ("target", "wanted", "measured", ""))
    figures = " · ".join(f"{name} {value}" for name, value in words.specified(report))
    return (
        f'<div class="wide"><table class="targets"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="soft">{_escape(words.TARGETS)}</p>'
        f"<p>The tuned model’s figures by the specification’s names: {_escape(figures)}.</p>"
    )


def _target(one: Target) -> str:
    value = notation.with_interval(one.value) + f", n {one.value.n:,}" if one.value else "–"
    cells = (words.target_label(one), words.wanted(one), value)
    return (
        "<tr>"
        + "".join(f"<td>{_escape(cell)}</td>" for cell in cells)
        + f'<td>{_pill(words.outcome(one))} <span class="soft">{words.left_open(one)}</span></td>'
        "</tr>"
    )


# -- comparisons and sections --------------------------------------------------------------------


def _comparison(one: Comparison) -> str:
    rows = []
    for difference in one.differences:
        value, between = words.difference_text(difference)
        stands = words.difference_standing(one, difference.name)
        look = stands if stands in ("better", "worse") else ""
        rows.append(
            f"<tr><th>{_escape(words.difference_label(difference.name, arrow=True))}</th>"
            f'<td class="figure">{value}<small>{between}, n {difference.n:,}</small></td>'
            f'<td class="difference">{_bar(words.on_axis(difference), look, middle=True)}</td>'
            f"<td>{_pill(stands)}</td></tr>"
        )
    table = _wide(["metric", "difference", "", ""], rows) if rows else ""
    return (
        f"<h3>Beside {_escape(words.OTHERS[one.against])}</h3>{_list(words.comparison_lines(one))}"
        + table
    )


def _section(section: Section, report: EvaluationReport) -> str:
    roles = notation.contestants(section.metrics)
    rows = []
    for name, figures in notation.metric_rows(section):
        rows.append(
            f"<tr><th>{_escape(notation.label(name))}</th>{_cells(roles, figures)}"
            f"<td>{_escape(notation.gain_of(report, section.name, name))}</td></tr>"
        )
    groups = "".join(_groups(title, members) for title, members in words.groups(section))
    columns = "columns" if len(roles) < 4 else ""
    return (
        f'<h3>{_escape(SECTIONS[section.name])} <span class="soft">'
        f"{_escape(words.asked_of(section))}</span></h3>"
        f"{_list(section.notes)}"
        + _wide(["metric", *(CONTESTANTS[who] for who in roles), "tuned over base"], rows)
        + (
            "<details><summary>Right answers by kind and by difficulty</summary>"
            f'<div class="{columns}">{groups}</div></details>'
            if groups
            else ""
        )
    )


def _cells(roles: Sequence[Contestant], figures: Mapping[Contestant, Metric]) -> str:
    return "".join(
        _figure(who, figures) if who in figures else '<td class="figure">–</td>' for who in roles
    )


def _figure(who: Contestant, figures: Mapping[Contestant, Metric]) -> str:
    metric, marks = figures[who], notation.marks(figures, who)
    look = "down" if "▼" in marks else "up"
    between = notation.interval_of(metric)
    return (
        f'<td class="figure{" few" if notation.few(metric) else ""}">'
        f'{_escape(notation.value_of(metric))} <span class="{look}">{marks}</span>'
        f"<small>{_escape(between)}{', ' if between else ''}n {metric.n:,}</small>"
        f"{_range(who, metric, _scale(figures.values()))}</td>"
    )


def _groups(title: str, groups: Sequence[GroupAccuracy]) -> str:
    roles = notation.contestants(who for group in groups for who in group.accuracy)
    rows = [
        f"<tr><th>{_escape(words.kind_label(group.group))}</th>{_cells(roles, group.accuracy)}</tr>"
        for group in groups
    ]
    return "<div>" + _wide([title, *(CONTESTANTS[who] for who in roles)], rows) + "</div>"


# -- pictures, answers, lists --------------------------------------------------------------------


def _pictures(report: EvaluationReport, images: Mapping[str, bytes]) -> str:
    shown = []
    for name, caption in words.pictures(report, images):
        data = base64.b64encode(images[name]).decode("ascii")
        small = ' class="small"' if name == report.loss_curve else ""
        shown.append(
            f'<figure><figcaption class="soft">{_escape(caption)}</figcaption><div class="wide">'
            f'<img{small} alt="{_escape(caption)}" src="data:image/png;base64,{data}"></div>'
            "</figure>"
        )
    return "<h2>Plots</h2>" + "".join(shown) if shown else ""


def _answers(answers: Sequence[Answered]) -> str:
    parts = ["<h2>Answers</h2>"]
    for one in words.shown_answers(answers):
        parts.append(
            f"<h3>{_escape(words.SHORT[one.section].capitalize())}: "
            f"{'right' if one.right else 'wrong'} "
            f'<span class="soft">{len(one.answers)} of {one.total}, all are in answers.jsonl</span>'
            "</h3>"
        )
        parts += [_answer(row) for row in one.answers]
    return "".join(parts) if len(parts) > 1 else ""


def _answer(row: Answered) -> str:
    about = f"{words.kind_label(row.kind)}, {row.difficulty}"
    written = (
        f"<h4>{_escape(CONTESTANTS[who])} {_right(row.answers[who])}</h4>{_text(row.answers[who])}"
        for who in notation.contestants(row.answers)
    )
    return (
        f"<details><summary>{_code(row.question)} "
        f'<span class="soft">{_escape(about)}</span></summary>'
        f"<h4>expected</h4><pre>{_escape(row.expected)}</pre>{''.join(written)}</details>"
    )


def _code(text: str) -> str:
    """Text whose back-ticked parts are shown as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))


def _right(answer: ScoredAnswer) -> str:
    said = (
        '<span class="good">✓ right</span>' if answer.right else '<span class="bad">✗ wrong</span>'
    )
    return said + ("" if answer.stopped else ' <span class="soft">cut at the limit</span>')


def _text(answer: ScoredAnswer) -> str:
    text = "".join(
        f"<mark>{_escape(piece)}</mark>" if unsupported else _escape(piece)
        for piece, unsupported in words.marked(answer.text.strip(), answer.unsupported)
    )
    claims = ", ".join(
        f"<code>{_escape(claim)}</code>" for claim in words.claims_text(answer.unsupported)
    )
    told = f'<p class="soft">Supported by nothing: {claims}</p>' if claims else ""
    return f"<pre>{text or '(nothing)'}</pre>{told}"


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{_escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _wide(
        head if any(head) else (),
        ["<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows],
    )


def _wide(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table of finished rows that scrolls by itself where it is wider than the page."""
    top = "".join(f"<th>{_escape(name)}</th>" for name in head)
    return (
        '<div class="wide"><table>'
        + (f"<thead><tr>{top}</tr></thead>" if top else "")
        + f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
