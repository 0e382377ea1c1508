"""How a report writes its figures: names, units, intervals, and marks of what is beyond noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from forge_mcp.judging.gate import metric_key
from forge_mcp.judging.results import (
    CONTESTANTS,
    LOWER_IS_BETTER,
    MEANINGS,
    NO_SHARES,
    Contestant,
    EvaluationReport,
    Section,
    SectionName,
)
from forge_mcp.schemas.base import Metric

FEW = 20  # a figure of fewer observations is shown as uncertain
SCORES = frozenset({"codebleu", "edit_similarity", "embedding_similarity"})  # 0 to 1, no percent
NAMES = {
    "codebleu": "CodeBLEU",
    "ms_per_token": "time per token",
    "prompt_ms": "time to the first token",
    "stopped_at_eos": "ended by itself",
    "fact_choice": "true fact chosen",
    "compiles": "compiling",
}
READING = (
    "Intervals are 95%. ↓ marks metrics of which less is better. ▲ and ▼: better and worse than "
    "the base; ★: the best of three or more; each where the intervals lie apart. Without a mark it "
    f"may be chance. Figures that rest on fewer than {FEW} observations have a ≈ before them: "
    "they say little."
)


def unit_of(name: str) -> Literal["share", "ms", "number"]:
    """In what a metric is given."""
    if name not in NO_SHARES:
        return "share"
    return "ms" if name in ("ms_per_token", "prompt_ms") else "number"


def label(name: str) -> str:
    """A metric's name for people, with ↓ where less is better."""
    return plain_label(name) + (" ↓" if name in LOWER_IS_BETTER else "")


def plain_label(name: str) -> str:
    """A metric's name for people."""
    return NAMES.get(name, name.replace("_", " "))


def few(metric: Metric) -> bool:
    """Whether so little was observed that the value alone would mislead."""
    return metric.n < FEW


def number(value: float) -> str:
    """Three digits that count."""
    if value and (abs(value) < 0.01 or abs(value) >= 1e7):
        return f"{value:.2e}"
    for limit, digits in ((10, 2), (100, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def signed(value: float, digits: int = 0) -> str:
    """'+12', '−3', '0'."""
    text = f"{value:+,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text[1:]


def quantity(name: str, value: float, *, whole: bool = False) -> str:
    """A value in its unit. whole: percent without a decimal."""
    if name in SCORES:
        return f"{value:.2f}"
    if unit_of(name) == "share":
        return f"{100 * value:.{0 if whole else 1}f}%"
    return number(value) + (" ms" if unit_of(name) == "ms" else "")


def value_of(metric: Metric) -> str:
    """The value, with ≈ and without decimals where it rests on little."""
    rough = few(metric)
    return ("≈ " if rough else "") + quantity(metric.name, metric.value, whole=rough)


def interval_of(metric: Metric) -> str:
    """'59 to 83' in the unit of the value; '' where a figure has no sampling error."""
    if metric.low == metric.high:
        return ""
    if metric.name in SCORES:
        return f"{metric.low:.2f} to {metric.high:.2f}"
    if unit_of(metric.name) == "share":
        digits = 1 if metric.high - metric.low < 0.05 else 0
        return f"{100 * metric.low:.{digits}f} to {100 * metric.high:.{digits}f}"
    return f"{number(metric.low)} to {number(metric.high)}"


def with_interval(metric: Metric) -> str:
    """Value and interval: '73.0% (59 to 83)'."""
    between = interval_of(metric)
    return value_of(metric) + (f" ({between})" if between else "")


def gain_of(report: EvaluationReport, section: SectionName, name: str) -> str:
    """The tuned model's improvement over the base in percent of the base's value."""
    gain = report.improvement_over_base.get(metric_key(section, name))
    metric = measured(report, section, name, "tuned")
    if gain is None or metric is None:
        return "–"
    return f"{'≈ ' if few(metric) else ''}{signed(gain)}%"


def apart(first: Metric, second: Metric) -> bool:
    """Whether two intervals have nothing in common; False where a figure has none, because what
    was measured once may be chance."""
    if first.low == first.high or second.low == second.high:
        return False
    return first.low > second.high or first.high < second.low


def best(measured: Mapping[Contestant, Metric]) -> Contestant | None:
    """Who of three or more is better than every other beyond the noise, if anyone is."""
    if len(measured) < 3:
        return None
    (name,) = {metric.name for metric in measured.values()}
    leader = (min if name in LOWER_IS_BETTER else max)(
        measured, key=lambda who: measured[who].value
    )
    others = (metric for who, metric in measured.items() if who != leader)
    return leader if all(apart(measured[leader], other) for other in others) else None


def marks(figures: Mapping[Contestant, Metric], who: Contestant) -> str:
    """'▲' or '▼' where one is better or worse than the base, '★' where better than all others."""
    base, metric = figures.get("base"), figures[who]
    found = ""
    if base and apart(base, metric):
        found = "▲" if is_better(metric, base) else "▼"
    return found + ("★" if best(figures) == who else "")


def is_better(one: Metric, other: Metric) -> bool:
    """Whether a value is on the better side of another."""
    return (one.value < other.value) == (one.name in LOWER_IS_BETTER)


def metric_rows(section: Section) -> list[tuple[str, dict[Contestant, Metric]]]:
    """The section's metrics, each with its value by contestant, in the order of `MEANINGS`."""
    names = {metric.name for measured in section.metrics.values() for metric in measured}
    order = [*(name for name in MEANINGS if name in names), *sorted(names - MEANINGS.keys())]
    return [
        (
            name,
            {
                who: metric
                for who in contestants(section.metrics)
                for metric in section.metrics[who]
                if metric.name == name
            },
        )
        for name in order
    ]


def contestants(among: Iterable[Contestant]) -> list[Contestant]:
    """Those contestants in the order in which tables show them."""
    there = set(among)
    return [who for who in CONTESTANTS if who in there]


def measured(
    report: EvaluationReport, section: SectionName, name: str, who: Contestant
) -> Metric | None:
    """One figure of one contestant, where it was measured."""
    held = report.section(section)
    figures = held.metrics.get(who, []) if held else []
    return next((metric for metric in figures if metric.name == name), None)
