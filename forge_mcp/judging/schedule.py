"""How much is examined, how far that is, and how long it will take.

Work is counted in units of about equal time: scoring a question without documents is one. What is
left is reckoned from how long the units took so far. Where there is a budget of minutes, a few
questions are tried first, and every part is cut by the same factor, so that the shares between the
parts stay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forge_mcp.settings import JudgingSettings

FEWEST = 8  # questions of a part that a budget never goes below
# The time left is told from this share of the work on: the first question also waits for the model.
KNOWN_FROM = 0.02
# About how many units one item of a part takes (measured with forge-nano on two cores).
UNITS = {
    "scored_open": 4.0,
    "scored_closed": 1.0,
    "answered_open": 8.0,
    "answered_closed": 3.0,
    "answered_retrieval": 9.0,
    "text": 0.01,
    "written": 8.0,
    "programs": 5.0,
}

# Units done, units in all, seconds left (None: not known yet), what is being done.
Tell = Callable[[float, float, float | None, str], None]


@dataclass(frozen=True)
class Sizes:
    """How many items each part has, for one model: questions, tokens of text, functions,
    programs."""

    scored_open: int
    scored_closed: int
    answered_open: int
    answered_closed: int
    text: int
    written: int
    programs: int

    @classmethod
    def wanted(cls, settings: JudgingSettings, *, programs: int) -> Sizes:
        """What the settings ask for."""
        return cls(
            scored_open=settings.perplexity_examples,
            scored_closed=settings.perplexity_examples,
            answered_open=settings.max_examples,
            answered_closed=settings.closed_book_examples,
            text=settings.text_tokens,
            written=settings.reconstruction_blocks,
            programs=programs,
        )

    def cut(self, factor: float) -> Sizes:
        """Every part times a factor, with `FEWEST` items at least where it had them; of text a
        hundred tokens an item."""

        def fewer(items: int, least: int = FEWEST) -> int:
            return min(items, max(least, math.floor(items * factor)))

        return Sizes(
            fewer(self.scored_open),
            fewer(self.scored_closed),
            fewer(self.answered_open),
            fewer(self.answered_closed),
            fewer(self.text, 100 * FEWEST),
            fewer(self.written, 1),
            fewer(self.programs, 1),
        )


def seconds_needed(sizes: Sizes, rates: Mapping[str, float], models: Mapping[str, int]) -> float:
    """How long an examination takes.

    Args:
        sizes: of its parts.
        rates: seconds an item of each part of `UNITS`.
        models: how many models do each of them.
    """
    items: dict[str, int] = {**vars(sizes), "answered_retrieval": sizes.answered_closed}
    return sum(rates[part] * items[part] * models[part] for part in UNITS)


def rates_from(tried: Mapping[str, float]) -> dict[str, float]:
    """Seconds an item of every part, from those that were tried; the others by their units."""
    per_unit = sum(seconds / UNITS[part] for part, seconds in tried.items()) / len(tried)
    return {part: tried.get(part, units * per_unit) for part, units in UNITS.items()}


def fit(
    sizes: Sizes, rates: Mapping[str, float], models: Mapping[str, int], seconds: float
) -> tuple[Sizes, str]:
    """The sizes that a budget allows, and what to tell of it ("" = nothing was cut)."""
    needed = seconds_needed(sizes, rates, models)
    if needed <= seconds:
        return sizes, ""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if seconds_needed(sizes.cut(middle), rates, models) <= seconds:
            low = middle
        else:
            high = middle
    cut = sizes.cut(low)
    note = (
        f"What the settings ask for takes about {needed / 60:.1f} minutes. To keep to the budget "
        f"every part was cut, to {low:.0%} or to {FEWEST} questions: intervals are wider than they "
        "would be."
    )
    least = seconds_needed(cut, rates, models)
    if least > seconds:
        note += f" Even the fewest questions take about {least / 60:.1f} minutes."
    return cut, note


class Clock:
    """Tells how far the work is."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._total = 0.0
        self._done = 0.0
        self._started = time.monotonic()

    def expect(self, sizes: Sizes, models: Mapping[str, int]) -> None:
        """What there is to do, now that it is known."""
        self._total = seconds_needed(sizes, UNITS, models)
        self._started = time.monotonic()

    def watch(self, part: str, what: str, items: int) -> Callable[[int, int], None]:
        """A callback for one stretch of `items` items of a part, which is told (done, in all)."""
        before, units = self._done, items * UNITS[part]

        def told(done: int, of: int) -> None:
            self._done = before + units * done / of
            passed = time.monotonic() - self._started
            known = self._done >= KNOWN_FROM * self._total > 0
            left = max(0.0, self._total - self._done) * passed / self._done if known else None
            self._tell(self._done, max(self._total, self._done), left, f"{what} {done}/{of}")

        return told
