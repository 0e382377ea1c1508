"""95% intervals: for shares, for statistics of examples, and for the difference of two contestants.

Sources: Wilson (1927), as recommended by Brown, Cai and DasGupta (2001); Bonett and Price,
"Adjusted Wald confidence interval for a difference of binomial proportions based on paired data"
(J. Educ. Behav. Stat. 37, 2012); the percentile bootstrap of Efron (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from forge_mcp.schemas.base import Metric

Z = 1.959963984540054  # the 97.5% quantile of the normal distribution
RESAMPLES = 2000
Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


def share(name: str, successes: int, n: int) -> Metric | None:
    """`successes` of `n` with its Wilson interval; None where nothing was observed (n = 0)."""
    if n == 0:
        return None
    p = successes / n
    middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    # Rounding must not push the bounds past the value where p is 0 or 1.
    return Metric(
        name=name,
        value=p,
        low=max(0.0, min(p, middle - half)),
        high=min(1.0, max(p, middle + half)),
        n=n,
    )


def resamples(n: int, seed: int) -> Indices:
    """`RESAMPLES` bootstrap samples of n examples: indices, (RESAMPLES, n).

    The same n and seed give the same samples: statistics of several contestants on the same
    examples are so resampled together (paired).
    """
    drawn: Indices = np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))
    return drawn


def bootstrap(name: str, n: int, seed: int, statistic: Callable[[Indices], Floats]) -> Metric:
    """A statistic of n examples with its percentile bootstrap interval.

    Args:
        name: of the metric.
        n: number of examples, at least 1.
        seed: of the resampling.
        statistic: from indices of shape (samples, n) to one value a sample, shape (samples,).
    """
    value = float(statistic(np.arange(n, dtype=np.int64)[None])[0])
    low, high = np.quantile(statistic(resamples(n, seed)), (0.025, 0.975))
    # A percentile interval of a skewed statistic of very few examples may miss the value itself.
    return Metric(
        name=name, value=value, low=min(float(low), value), high=max(float(high), value), n=n
    )


def paired_difference(name: str, first: Sequence[bool], second: Sequence[bool]) -> Metric:
    """Share of successes of `second` minus that of `first` on the same examples.

    The interval is Bonett and Price's: the two kinds of disagreement, each with half a pseudo
    observation a cell more, so that it stays honest for few examples and at shares of 0 and 1. Its
    middle is not quite `value`.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} outcomes cannot be paired")
    n = len(first)
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    p_won, p_lost = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    middle = p_won - p_lost
    half = Z * math.sqrt((p_won + p_lost - middle * middle) / (n + 2))
    value = (won - lost) / n
    return Metric(
        name=name,
        value=value,
        low=max(-1.0, min(value, middle - half)),
        high=min(1.0, max(value, middle + half)),
        n=n,
    )
