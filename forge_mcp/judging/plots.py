"""The two pictures of a report: how training went, and how the models compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_mcp.schemas.base import Metric

COLOURS = {"base": "#8a8f98", "tuned": "#1f6feb", "deployed": "#d29922"}
SHARES = (
    ("answer_accuracy", "answer accuracy ↑"),
    ("citation_precision", "citation precision ↑"),
    ("citation_recall", "citation recall ↑"),
    ("abstention_accuracy", "abstention accuracy ↑"),
    ("false_abstention_rate", "false abstention ↓"),
    ("hallucination_rate", "hallucination rate ↓"),
    ("stopped_at_eos", "stopped by itself ↑"),
)
Curve = Sequence[tuple[int, float]]


def loss_curve(path: Path, train: Curve, valid: Curve) -> None:
    """Training and validation loss by optimiser step, as PNG; each a list of (step, nats a token)."""
    figure, axes = _figure((7.0, 3.8), 1)
    axis = axes[0]
    axis.plot(*_columns(train), color=COLOURS["base"], linewidth=1.0, label="training (batch)")
    if valid:
        axis.plot(
            *_columns(valid),
            color=COLOURS["tuned"],
            linewidth=1.8,
            marker="o",
            markersize=4,
            label="validation",
        )
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("loss (nats per answer token)")
    axis.set_title("Loss while training", loc="left")
    axis.legend(frameon=False)
    axis.set_ylim(bottom=0)
    _save(figure, path)


def metric_comparison(path: Path, metrics: Mapping[str, Sequence[Metric]]) -> None:
    """Perplexity and all shares of each contestant with 95% intervals, as PNG."""
    figure, (left, right) = _figure((10.5, 4.6), 2, width_ratios=[1, 2.4])
    named = {role: {m.name: m for m in measured} for role, measured in metrics.items()}

    roles = [role for role in named if "perplexity" in named[role]]
    for place, role in enumerate(roles):
        metric = named[role]["perplexity"]
        left.bar(place, metric.value, color=COLOURS[role], width=0.6)
        left.errorbar(place, metric.value, yerr=_errors(metric), color="#24292f", capsize=4)
        left.annotate(
            f"{metric.value:.3g}",
            (place, metric.high),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
        )
    left.set_xticks(range(len(roles)), roles)
    left.set_xlim(-0.6, len(roles) - 0.4)
    left.margins(y=0.12)
    left.set_title("Perplexity of answers ↓", loc="left")

    shown = [(name, label) for name, label in SHARES if any(name in m for m in named.values())]
    step = 0.22
    for offset, (role, measured) in enumerate(named.items()):
        shift = (offset - (len(named) - 1) / 2) * step
        places = [
            (at + shift, measured[name]) for at, (name, _) in enumerate(shown) if name in measured
        ]
        right.errorbar(
            [100 * metric.value for _, metric in places],
            [at for at, _ in places],
            xerr=[
                [100 * (metric.value - metric.low) for _, metric in places],
                [100 * (metric.high - metric.value) for _, metric in places],
            ],
            fmt="o",
            color=COLOURS[role],
            capsize=3,
            label=role,
        )
    right.set_yticks(range(len(shown)), [label for _, label in shown])
    right.set_ylim(len(shown) - 0.5, -0.5)
    right.set_xlim(-3, 103)
    right.set_xlabel("% (95% intervals)")
    right.set_title("Answers to held-out questions", loc="left")
    right.grid(axis="x", color="#d0d7de", linewidth=0.6)
    figure.legend(
        *right.get_legend_handles_labels(), frameon=False, loc="upper right", ncols=len(named)
    )
    _save(figure, path)


def _errors(metric: Metric) -> list[list[float]]:
    return [[metric.value - metric.low], [metric.high - metric.value]]


def _columns(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [loss for _, loss in curve]


def _figure(
    size: tuple[float, float], columns: int, width_ratios: list[float] | None = None
) -> tuple[Any, list[Any]]:
    """A figure that needs no display and leaves pyplot's global state alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, columns, width_ratios=width_ratios)
    axes = [figure.add_subplot(grid[0, column]) for column in range(columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    # Without its metadata the same numbers give the same bytes.
    figure.savefig(path, metadata={"Software": None})
