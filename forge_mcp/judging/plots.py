"""The picture in which a report compares its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from forge_mcp.judging.gate import Role
from forge_mcp.schemas.base import Metric

COLOURS: dict[Role, str] = {"base": "#8a8f98", "tuned": "#1f6feb", "deployed": "#d29922"}
SHARES = (
    ("answer_accuracy", "answer accuracy ↑"),
    ("citation_precision", "citation precision ↑"),
    ("citation_recall", "citation recall ↑"),
    ("abstention_accuracy", "abstention accuracy ↑"),
    ("false_abstention_rate", "false abstention ↓"),
    ("hallucination_rate", "hallucination rate ↓"),
    ("stopped_at_eos", "stopped by itself ↑"),
)


def metric_comparison(path: Path, metrics: Mapping[Role, Sequence[Metric]]) -> None:
    """Perplexity and all shares of each contestant with 95% intervals, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no display is needed, and its global state stays alone.
    figure = Figure(figsize=(10.5, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.4])
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
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
        *right.get_legend_handles_labels(),
        frameon=False,
        loc="outside upper right",
        ncols=len(named),
    )
    # Without its metadata the same numbers give the same bytes.
    figure.savefig(path, metadata={"Software": None})


def _errors(metric: Metric) -> list[list[float]]:
    return [[metric.value - metric.low], [metric.high - metric.value]]
