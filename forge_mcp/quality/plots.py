"""Histograms of scores and of their parts, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from forge_mcp.quality.scores import WEIGHTS
from forge_mcp.quality.validator import Judged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 20
DPI = 110
ALL, KEPT = "#a9b7c4", "#2f6f9f"


def score_histogram(judged: Sequence[Judged]) -> bytes:
    """Scores of all and of the kept examples."""
    figure = _figure(7.0, 3.0)
    axes = figure.add_subplot()
    _bars(axes, [j.score.value for j in judged], [j.score.value for j in _kept(judged)])
    axes.set_xlabel("quality score")
    axes.set_ylabel("examples")
    axes.legend(frameon=False, loc="upper left")
    return _png(figure)


def part_histograms(judged: Sequence[Judged]) -> bytes:
    """Every part of the scores of all and of the kept examples, side by side."""
    figure = _figure(9.0, 4.2)
    grid = figure.subplots(2, (len(WEIGHTS) + 1) // 2, sharey=True)
    kept = _kept(judged)
    for axes, part in zip(grid.flat, WEIGHTS, strict=False):
        _bars(axes, [j.score.parts()[part] for j in judged], [j.score.parts()[part] for j in kept])
        axes.set_title(f"{part} ({WEIGHTS[part]:.2f})", fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in grid.flat[len(WEIGHTS) :]:
        axes.set_axis_off()
    return _png(figure)


def _kept(judged: Sequence[Judged]) -> list[Judged]:
    return [j for j in judged if not j.reasons]


def _bars(axes: Axes, every: list[float], kept: list[float]) -> None:
    edges = [step / BINS for step in range(BINS + 1)]
    axes.hist(every, bins=edges, label=f"all ({len(every)})", color=ALL)
    axes.hist(kept, bins=edges, label=f"kept ({len(kept)})", color=KEPT)
    axes.set_xlim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    written = BytesIO()
    figure.savefig(written, dpi=DPI, metadata={"Software": ""})
    return written.getvalue()
