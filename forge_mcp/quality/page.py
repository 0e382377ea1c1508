"""The quality report as one HTML file: no script, nothing loaded, readable in dark and light."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from forge_mcp.quality.plots import part_histograms, score_histogram
from forge_mcp.quality.report import (
    NAMED_ROWS,
    SCALES,
    before_after,
    failures,
    kept_lines,
    kept_tables,
    places,
    summary,
    why,
    worst_examples,
)
from forge_mcp.quality.validator import Judged, Validation

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6875; --paper: #ffffff;
  --panel: #f4f6f8; --line: #d9dfe5; --good: #1a7f4b; --bad: #b3261e; --bar: #2f6f9f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --paper: #14191f;
  --panel: #1e252d; --line: #333d47; --good: #4fc487; --bad: #ff8a80; --bar: #6fb1e0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; border-bottom: 1px solid var(--line);
  padding-bottom: .25rem; }
p { margin: .5rem 0; } .soft { color: var(--soft); font-size: .9rem; }
.verdict { display: inline-block; padding: .15rem .7rem; border-radius: 1rem; color: #fff;
  font-weight: 600; font-size: .95rem; vertical-align: middle; }
.passed { background: #1a7f4b; } .refused { background: #b3261e; }
ul.reasons { color: var(--bad); margin: .5rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr));
  gap: .75rem; margin: 1rem 0; }
.figure { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; }
.figure b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.figure span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .32rem .7rem .32rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  padding-right: 1.2rem; }
.better { color: var(--good); } .worse { color: var(--bad); }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.5rem;
  align-items: start; }
.share { position: relative; } .share i { position: absolute; left: 0; bottom: 0; height: 3px;
  background: var(--bar); border-radius: 2px; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .5rem; padding: .25rem; }
article { background: var(--panel); border-radius: .5rem; padding: .8rem 1rem; margin: .75rem 0;
  break-inside: avoid; overflow-wrap: anywhere; }
article h3 { font-size: 1rem; margin: 0 0 .25rem; }
code, pre { font: .86rem/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; margin: .3rem 0; }
.wrong { color: var(--bad); }
details { margin: .4rem 0 0; } summary { cursor: pointer; color: var(--soft); }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  tr, img, .figure { break-inside: avoid; } }
"""
NUMBERS = frozenset(
    {"before", "after", "change", "examples", "documents", "all", "easy", "medium", "hard"}
)
TEXT = 600  # characters of a reasoning that are shown
LOWER_IS_BETTER = frozenset({"duplicate rate", "leak rate"})


def quality_page(validation: Validation, *, title: str, thresholds: Mapping[str, Any]) -> str:
    """The whole report as HTML; every text from the dataset is escaped.

    Args:
        validation: what was found.
        title: of the report, e.g. the dataset's id.
        thresholds: the quality section of the settings.
    """
    passed = validation.passed
    name = html.escape(title)
    verdict = f'<span class="verdict {"passed" if passed else "refused"}">'
    verdict += f"{'passed' if passed else 'refused'}</span>"
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in validation.reasons)
    body = [
        f"<header><h1>Data quality of {name} {verdict}</h1>",
        f'<ul class="reasons">{reasons}</ul>' if reasons else "",
        f"<p>{html.escape(summary(validation))}</p>",
        _figures(validation),
        "</header>",
        "<h2>Before and after filtering</h2>",
        _before_after(validation),
        f'<p class="soft">{html.escape(SCALES)}</p>',
        "<h2>Scores</h2>",
        _image(score_histogram(validation.judged), "Histogram of the scores"),
        "<p>The parts of the scores, with their weights:</p>",
        _image(part_histograms(validation.judged), "Histograms of the parts of the scores"),
        "<h2>What was dropped, and what to do</h2>",
        _failures(validation),
        "<h2>What is kept</h2>",
        *(f"<p>{html.escape(line)}</p>" for line in kept_lines(validation)),
        '<div class="tables">',
        *(_counts(head, rows) for head, rows in kept_tables(validation)),
        "</div>",
        "<h2>Worst examples</h2>",
        *(_example(one, validation) for one in worst_examples(validation.judged)),
        "<h2>Thresholds</h2>",
        _table(("setting", "value"), ((f"quality.{k}", str(v)) for k, v in thresholds.items())),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Data quality of {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _figures(validation: Validation) -> str:
    metrics = validation.metrics
    shown = (
        (f"{metrics.valid_examples:,}", f"of {metrics.total_examples:,} examples kept"),
        (f"{metrics.quality_score_mean:.2f}", "mean score"),
        (f"{metrics.avg_oracle_relevance:.2f}", "oracle relevance"),
        (f"{1 - metrics.avg_distractor_irrelevance:.2f}", "distractor relevance"),
        (f"{100 * metrics.duplicate_rate:.1f}%", "repeated"),
        (f"{metrics.diversity:.2f}", "diversity of kinds"),
    )
    boxes = (
        f'<div class="figure"><b>{value}</b><span>{label}</span></div>' for value, label in shown
    )
    return f'<div class="figures">{"".join(boxes)}</div>'


def _image(png: bytes, label: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{html.escape(label)}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (zip(head, row, strict=True) for row in rows)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(name)}>{html.escape(cell)}</td>" for name, cell in line)
        + "</tr>"
        for line in lines
    )
    top = "".join(f"<th{_class(name)}>{html.escape(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _class(name: str) -> str:
    return ' class="number"' if name in NUMBERS else ""


def _before_after(validation: Validation) -> str:
    rows = []
    for name, before, after in before_after(validation):
        change = float(after) - float(before)
        better = change < 0 if name in LOWER_IS_BETTER else change > 0
        look = "" if abs(change) < 0.0005 else " better" if better else " worse"
        rows.append(
            f'<tr><td>{html.escape(name)}</td><td class="number">{before}</td>'
            f'<td class="number">{after}</td><td class="number{look}">{change:+.3f}</td></tr>'
        )
    head = '<th>dimension</th><th class="number">before</th><th class="number">after</th>'
    return (
        f'<div class="wide"><table><thead><tr>{head}<th class="number">change</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _counts(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of counts; a bar under each name shows its share."""
    total = sum(int(row[-1]) for row in rows) or 1
    shown = []
    for name, *numbers in rows:
        width = 100 * int(numbers[-1]) / total
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        bar = f'<i style="width:{width:.1f}%"></i>'
        shown.append(f'<tr><td class="share">{html.escape(name)}{bar}</td>{cells}</tr>')
    top = f"<th>{html.escape(head[0])}</th>"
    top += "".join(f'<th class="number">{html.escape(name)}</th>' for name in head[1:])
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(shown)}</tbody></table>"


def _failures(validation: Validation) -> str:
    if not validation.dropped:
        return "<p>No example was dropped.</p>"
    table = _table(("reason", "examples", "meaning", "what to do"), failures(validation))
    rows = "".join(
        f"<li>{html.escape(f'{row.file}, line {row.line}: {row.message}')}</li>"
        for row in validation.malformed[:NAMED_ROWS]
    )
    return table + (f"<ul>{rows}</ul>" if rows else "")


def _example(one: Judged, validation: Validation) -> str:
    example = one.example
    kept = "dropped" if one.reasons else "kept"
    heading = f"{one.score.value:.2f} {kept}: {example.question}"
    about = f"{example.id} · {example.split} · {example.difficulty} · {example.fact.kind}"
    stand = "".join(
        f"<li><code>{html.escape(place)}</code></li>" for place in places(one, validation)
    )
    reasoning = example.reasoning[:TEXT] + ("…" if len(example.reasoning) > TEXT else "")
    return (
        f"<article><h3>{html.escape(heading)}</h3>"
        f'<p class="soft">{html.escape(about)}</p>'
        f'<p class="wrong">{html.escape(why(one))}</p>'
        f"<ul>{stand}</ul>"
        f"<details open><summary>Answer</summary><pre>{html.escape(reasoning)}</pre>"
        f"<pre>{html.escape(example.final_answer[:TEXT])}</pre></details></article>"
    )
