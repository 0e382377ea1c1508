"""Work in new processes, and what memory it takes there."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import psutil

from forge_mcp.errors import ForgeError

SAMPLE_SECONDS, CHILDREN_SECONDS = 0.05, 0.5

P = ParamSpec("P")
T = TypeVar("T")


class Memory(NamedTuple):
    """Peaks of resident memory in bytes; `both` is that of one moment."""

    parent: int
    children: int
    both: int


@contextmanager
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A new process for one measurement: nothing of another one is in its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a new process."""
    with fresh_process() as executor:
        return executor.submit(work, *args, **kwargs).result()


def watched(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, Memory]:
    """Call a function in a new process, and look at its memory from outside meanwhile."""
    with fresh_process() as executor:
        process = psutil.Process(executor.submit(os.getpid).result())
        future = executor.submit(work, *args, **kwargs)
        peak = _peak(process, future)
        return future.result(), peak


def _peak(process: psutil.Process, future: Future[Any]) -> Memory:
    peak, children, looked = Memory(0, 0, 0), [], 0.0
    while not wait([future], timeout=SAMPLE_SECONDS).done:
        with suppress(psutil.Error):  # one that has just ended
            if time.monotonic() - looked > CHILDREN_SECONDS:  # it reads all of /proc
                children, looked = process.children(recursive=True), time.monotonic()
            parent = process.memory_info().rss
            others = sum(_resident(child) for child in children)
            peak = Memory(*map(max, peak, (parent, others, parent + others)))
    return peak


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def run(command: list[str], folder: Path | None = None) -> str:
    """Standard output of a command that runs in a folder.

    Raises:
        ForgeError: it failed.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ForgeError(
            f"{' '.join(command[:4])} … failed.",
            cause=done.stderr.strip()[-800:],
            next_step="Read the cause; where it is the network, run it again.",
        )
    return done.stdout
