"""The pictures of a report: every metric with its interval, and perplexity example by example."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_mcp.judging import notation, words
from forge_mcp.judging.results import CONTESTANTS, SECTIONS, Contestant, EvaluationReport
from forge_mcp.schemas.base import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind tell apart; the marks differ as well.
COLOURS: dict[Contestant, str] = {
    "base": "#6e7781",
    "base_retrieval": "#e69f00",
    "tuned": "#0072b2",
    "tuned_retrieval": "#56b4e9",
    "deployed": "#d55e00",
    "control": "#009e73",
}
MARKS: dict[Contestant, str] = {
    "base": "o",
    "base_retrieval": "D",
    "tuned": "s",
    "tuned_retrieval": "P",
    "deployed": "^",
    "control": "v",
}
# How a figure that rests on few observations is drawn.
ROUGH: dict[str, Any] = {
    "linewidth": 1.2,
    "linestyle": (0, (2, 1.5)),
    "markerfacecolor": "white",
}
INK, GRID, BAND = "#24292f", "#d0d7de", "#f2f4f7"
DPI = 130
WIDTH = 11.0  # inches
ROW, LINE, FRAME = 0.17, 0.105, 0.72  # inches of a row, of each contestant in it, of a panel


@dataclass(frozen=True)
class Panel:
    """Metrics of one unit on one axis: a row each."""

    title: str
    unit: str
    rows: list[tuple[str, dict[Contestant, Metric]]]

    @property
    def shown(self) -> list[Contestant]:
        """Who is in it."""
        return notation.contestants(who for _, figures in self.rows for who in figures)

    @property
    def height(self) -> float:
        """Inches."""
        return len(self.rows) * (ROW + LINE * len(self.shown)) + FRAME


def metric_distribution(path: Path, report: EvaluationReport) -> None:
    """Every metric of every contestant with its interval, as PNG: perplexities and times on the
    left, shares by section on the right; faint where it rests on few observations."""
    shown = notation.contestants(who for section in report.sections for who in section.metrics)
    columns = [panels for panels in (_number_panels(report), _share_panels(report)) if panels]
    tall = [sum(panel.height for panel in panels) for panels in columns]
    figure = _figure(WIDTH, max(tall) + 0.5)
    for column, part in enumerate(figure.subfigures(1, len(columns), squeeze=False)[0]):
        panels = columns[column]
        rest = max(tall) - tall[column]  # what the other column has more
        grid = part.add_gridspec(
            len(panels) + 1, 1, height_ratios=[*(panel.height for panel in panels), rest + 1e-3]
        )
        for row, panel in enumerate(panels):
            _intervals(part.add_subplot(grid[row, 0]), panel)
    figures = [
        m for panels in columns for panel in panels for _, row in panel.rows for m in row.values()
    ]
    _legend(figure, shown, rough=any(map(notation.few, figures)))
    _save(figure, path)


def _number_panels(report: EvaluationReport) -> list[Panel]:
    """Perplexities, bits per byte and milliseconds, each on an axis of its own."""
    kinds = (
        ("Perplexity ↓", "perplexity", lambda name: name.endswith("perplexity")),
        ("Bits per byte ↓", "bits per byte", lambda name: name == "bits_per_byte"),
        ("Time ↓", "ms", lambda name: notation.unit_of(name) == "ms"),
    )
    panels = []
    for title, unit, belongs in kinds:
        rows = [
            (f"{notation.plain_label(name)}\n{words.SHORT[section.name]}", figures)
            for section in report.sections
            for name, figures in notation.metric_rows(section)
            if belongs(name)
        ]
        if rows:
            panels.append(Panel(title, unit, rows))
    return panels


def _share_panels(report: EvaluationReport) -> list[Panel]:
    """The shares of each section."""
    panels = []
    for section in report.sections:
        rows = [
            (notation.label(name), figures)
            for name, figures in notation.metric_rows(section)
            if notation.unit_of(name) == "share"
        ]
        if rows:
            panels.append(Panel(SECTIONS[section.name], "%", rows))
    return panels


def _intervals(axes: Axes, panel: Panel) -> None:
    """One row a metric, in it one line a contestant."""
    scale, shown = 100 if panel.unit == "%" else 1, panel.shown
    step = 0.78 / max(len(shown), 2)
    for at, (_, figures) in enumerate(panel.rows):
        if at % 2 == 0:
            axes.axhspan(at - 0.5, at + 0.5, color=BAND, zorder=0)
        for who, metric in figures.items():
            place = at + (shown.index(who) - (len(shown) - 1) / 2) * step
            look: dict[str, Any] = ROUGH if notation.few(metric) else {"linewidth": 2}
            axes.plot(
                [scale * at for at in (metric.low, metric.value, metric.high)],
                [place] * 3,
                color=COLOURS[who],
                marker=MARKS[who],
                markevery=[1],
                markersize=5.5,
                **look,
            )
    axes.set_yticks(range(len(panel.rows)), [name for name, _ in panel.rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    if panel.unit == "%":
        axes.set_xlim(-2, 102)
    else:
        _number_axis(axes, [m for _, figures in panel.rows for m in figures.values()])
    axes.set_xlabel(panel.unit, fontsize=8)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_title(panel.title, loc="left", fontsize=10)


def _number_axis(axes: Axes, metrics: Iterable[Metric]) -> None:
    """A logarithmic axis, because perplexities of sections differ by powers of ten."""
    bounds = [bound for metric in metrics for bound in (metric.low, metric.high)]
    low, high = min(bounds), max(bounds)
    if low <= 0:
        axes.set_xlim(0, None)
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.2, high * 1.2)
    _log_ticks(axes.xaxis, low, high)


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks with plain numbers: the closer the values, the more between the powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps = (
        (1.0,) if high / low > 200 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 6, 8)
    )
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def per_example(path: Path, report: EvaluationReport) -> None:
    """Perplexity by example in the order asked, a panel a section, as PNG. What is not finite is a
    gap in its line.

    Raises:
        ValueError: the report has no `divergence`.
    """
    found = report.divergence
    sections = [name for name in SECTIONS if any(one.section == name for one in found)]
    if not sections:
        raise ValueError("the report has no perplexities by example")
    figure = _figure(WIDTH, 2.5 * len(sections) + 0.4)
    for number, section in enumerate(sections):
        axes = figure.add_subplot(len(sections), 1, number + 1)
        lines = {
            one.contestant: [math.nan if value is None else value for value in one.per_example]
            for one in found
            if one.section == section
        }
        for who in notation.contestants(lines):
            axes.plot(
                range(1, len(lines[who]) + 1),
                lines[who],
                MARKS[who] + "-",
                color=COLOURS[who],
                linewidth=0.8,
                markersize=3,
            )
        values = [value for line in lines.values() for value in line if math.isfinite(value)]
        axes.set_yscale("log")
        if values:
            _log_ticks(axes.yaxis, min(values), max(values))
        axes.set_ylabel("perplexity")
        axes.set_title(SECTIONS[section], loc="left", fontsize=10)
        axes.grid(color=GRID, linewidth=0.6)
    axes.set_xlabel("example, in the order asked")
    _legend(figure, notation.contestants(one.contestant for one in found))
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    # Without pyplot: no display is needed, and its global state stays alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, shown: Sequence[Contestant], *, rough: bool = False) -> None:
    """Who is who. rough: and how a figure that rests on little is drawn."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[who], marker=MARKS[who], label=CONTESTANTS[who])
        for who in shown
    ]
    if rough:
        label = f"fewer than {notation.FEW} observations"
        handles.append(Line2D([], [], color=INK, marker="o", label=label, **ROUGH))
    columns = len(handles) if len(handles) < 4 else (len(handles) + 1) // 2
    figure.legend(handles=handles, frameon=False, loc="outside upper left", ncols=columns)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8.5, labelcolor=INK)
    # Without its metadata the same numbers give the same bytes.
    figure.savefig(path, metadata={"Software": None})
