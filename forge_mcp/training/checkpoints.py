"""Folders that hold all a run needs to go on: staged, checked, fsynced, renamed.

    checkpoints/step-N/
        adapters.safetensors   as they are after step N
        best.safetensors       those with the lowest validation loss so far
        optimizer.safetensors  the optimiser's state, by its names
        history.jsonl          the rows of metrics.jsonl up to step N
        progress.json          see `Progress`
        checksums.json         SHA-256 of each of these; written last

The order of the examples and the learning rate are functions of the step and the settings, so N is
all there is to know of them. A checkpoint in which one byte is not what was written is not used.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forge_mcp import machine
from forge_mcp.errors import CorruptArtifact, OutOfSpace
from forge_mcp.training.callbacks import Row, read_metrics
from forge_mcp.workspace import fsync_path, hash_file, is_full

FOLDER = "checkpoints"
STAGED = ".staged"
CHECKSUMS, PROGRESS, HISTORY = "checksums.json", "progress.json", "history.jsonl"
ADAPTERS, BEST, OPTIMIZER = "adapters.safetensors", "best.safetensors", "optimizer.safetensors"
FILES = (ADAPTERS, BEST, OPTIMIZER, HISTORY, PROGRESS)


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    step: optimiser steps made; also the sampler's cursor (`batching.batches`) and the schedule's
    position. best_loss: the lowest validation loss so far, None where there is no validation.
    random_state: MLX's key, two 32-bit words. identity: of the run; only the same run goes on.
    """

    step: int
    best_loss: float | None
    best_step: int
    random_state: list[int]
    identity: str


class Checkpoint(NamedTuple):
    """All that is saved. Arrays by name; history: rows of metrics.jsonl from step 0 on."""

    progress: Progress
    adapters: dict[str, Any]
    best: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[Row]


def save_checkpoint(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write checkpoints/step-N; of the older ones the newest `keep - 1` stay.

    Raises:
        OutOfSpace: the disk is full. The older checkpoints are untouched.
    """
    folder = run / FOLDER
    staged = folder / STAGED
    target = folder / f"step-{checkpoint.progress.step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        _write(staged, checkpoint)
        for path in (*staged.iterdir(), staged):
            fsync_path(path)
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
        fsync_path(folder)
    except (OSError, RuntimeError) as error:  # MLX tells of a failed write as a RuntimeError
        full = _says_full(error) or (isinstance(error, RuntimeError) and is_full(folder))
        shutil.rmtree(staged, ignore_errors=True)
        if not full:
            raise
        raise OutOfSpace(
            f"The checkpoint of step {checkpoint.progress.step} could not be saved: no space left "
            f"on the disk of {run}.",
            cause=str(error),
            next_step=f"Free some space and run it again: {_goes_on(run)}.",
        ) from error
    for path in _newest_first(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def discard_checkpoints(run: Path) -> None:
    """Remove those of a former training in the same folder, which would count among the newest."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run's folder, or None; whether it is whole `load_newest` tells."""
    return next(iter(_newest_first(run)), None)


def load_newest(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none.

    Args:
        warn: told of each one that is damaged. They are removed: nothing can go on from them.
    """
    for path in _newest_first(run):
        try:
            return load_checkpoint(path)
        except CorruptArtifact as error:
            shutil.rmtree(path, ignore_errors=True)
            before = latest_checkpoint(run)
            follows = f"the one before, {before.name}, is used" if before else "there is no other"
            warn(f"{error.message.removesuffix('.')} ({error.cause}); {follows}.")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """What `save_checkpoint` was given.

    Raises:
        CorruptArtifact: a file is missing, or is not what was written; it is named.
    """
    mx = machine.mlx()
    _verify(path)
    try:
        progress = Progress(**json.loads((path / PROGRESS).read_text("utf-8")))
        adapters, best, optimizer = (
            mx.load(str(path / name)) for name in (ADAPTERS, BEST, OPTIMIZER)
        )
        mx.eval(adapters, best, optimizer)
        history = read_metrics(path / HISTORY)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return Checkpoint(progress, adapters, best, optimizer, history)


def random_state() -> list[int]:
    """MLX's random key: two 32-bit words."""
    words: list[int] = machine.mlx().random.state[0].tolist()
    return words


def set_random_state(words: list[int]) -> None:
    """Go on drawing where `random_state` was taken: a seed of 64 bits is the key itself."""
    high, low = words
    machine.mlx().random.seed((high << 32) | low)


def _write(staged: Path, checkpoint: Checkpoint) -> None:
    mx = machine.mlx()
    for name, arrays in (
        (ADAPTERS, checkpoint.adapters),
        (BEST, checkpoint.best),
        (OPTIMIZER, checkpoint.optimizer),
    ):
        mx.save_safetensors(str(staged / name), arrays)
    rows = "".join(json.dumps(row) + "\n" for row in checkpoint.history)
    (staged / HISTORY).write_text(rows, "utf-8")
    (staged / PROGRESS).write_text(json.dumps(asdict(checkpoint.progress)) + "\n", "utf-8")
    sums = {name: hash_file(staged / name) for name in FILES}
    (staged / CHECKSUMS).write_text(_render(sums), "utf-8")


def _verify(path: Path) -> None:
    """Raises:
    CorruptArtifact: see `load_checkpoint`.
    """
    try:
        text = (path / CHECKSUMS).read_text("utf-8")
        sums = json.loads(text)
        # Rendered again it must be the same text: so no byte of this file is unwatched either.
        if sums.keys() != set(FILES) or _render(sums) != text:
            raise ValueError("it is not what was written")
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, f"{CHECKSUMS}: {_reason(error)}") from error
    for name, expected in sums.items():
        try:
            right = hash_file(path / name) == expected
        except OSError as error:
            raise _damaged(path, f"{name}: {_reason(error)}") from error
        if not right:
            raise _damaged(path, f"{name} is not what was written")


def _render(sums: dict[str, str]) -> str:
    return json.dumps(sums, indent=2) + "\n"


def _reason(error: Exception) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def _damaged(path: Path, cause: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"The checkpoint {path.name} is damaged.",
        cause=cause,
        next_step=f"Delete {path} and train again.",
    )


def _newest_first(run: Path) -> list[Path]:
    found = [path for path in (run / FOLDER).glob("step-*") if path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def _says_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _goes_on(run: Path) -> str:
    last = latest_checkpoint(run)
    return f"it goes on from {last.name}" if last else "it begins anew"
