"""What a piece of work costs, measured alike in every environment. Standard library only."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

ROUNDS = 3


class Usage(NamedTuple):
    """Seconds: `cpu` is user and system time, that of ended children included."""

    cpu: float
    wall: float


def spent(work: Callable[[], None]) -> Usage:
    """Do it once."""
    gc.collect()  # what was done before is not paid for now
    before, started = _cpu_seconds(), time.perf_counter()
    work()
    return Usage(_cpu_seconds() - before, time.perf_counter() - started)


def best(usages: list[Usage]) -> Usage:
    """The least of each: what else the machine does only ever adds."""
    return Usage(min(usage.cpu for usage in usages), min(usage.wall for usage in usages))


def best_of_rounds(sides: Mapping[str, Callable[[], None]]) -> dict[str, Usage]:
    """Every side's best, in turn: a machine that changes its speed changes all of them alike."""
    seen: dict[str, list[Usage]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, work in sides.items():
            seen[name].append(spent(work))
    return {name: best(usages) for name, usages in seen.items()}


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)
