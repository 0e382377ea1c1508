"""What watches a training run: metrics on disk, early stopping, memory, the loss curve."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from forge_mcp import machine
from forge_mcp.workspace import write_file

MEMORY_ALERT_SHARE = 0.8


class Row(TypedDict, total=False):
    """One line of metrics.jsonl.

    Every step: step, loss (mean over the step's answer tokens, nats), grad_norm (before clipping),
    learning_rate, tokens_per_second (all tokens of the step's examples, none of them padding),
    peak_memory_bytes, seconds (since the start; of this process, where a run was resumed).
    At an evaluation also: valid_loss, valid_accuracy, valid_perplexity. Step 0 is the evaluation
    before training.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    peak_memory_bytes: int
    seconds: float
    valid_loss: float
    valid_accuracy: float
    valid_perplexity: float


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; none where there is no such file.

    A last line that a kill cut short is left out.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsLogger:
    """Appends rows to metrics.jsonl, one line each, flushed."""

    def __init__(self, path: Path, keep_until: int = -1) -> None:
        """`keep_until`: the step of the checkpoint that is resumed; later rows are dropped."""
        kept = [row for row in read_metrics(path) if row["step"] <= keep_until]
        write_file(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: Row) -> None:
        """Write one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EarlyStopping:
    """Says when the validation loss has not improved for `patience` evaluations (0 = never)."""

    def __init__(self, patience: int, best: float = math.inf, waited: int = 0) -> None:
        self.patience = patience
        self.best = best
        self.waited = waited

    def improved(self, loss: float) -> bool:
        """Take note of an evaluation; True where it is the best so far."""
        if loss < self.best:
            self.best, self.waited = loss, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether patience is at its end."""
        return bool(self.patience) and self.waited >= self.patience


class MemoryMonitor:
    """Warns once when this process has used more than a share of the machine's memory."""

    def __init__(self, warn: Callable[[str], None], share: float = MEMORY_ALERT_SHARE) -> None:
        self._warn = warn
        self._limit = share * machine.memory_bytes()
        self._share = share
        self._warned = False

    def check(self) -> int:
        """Peak memory so far, in bytes; see `peak_memory_bytes`."""
        peak = peak_memory_bytes()
        if peak > self._limit and not self._warned:
            self._warned = True
            self._warn(
                f"Training has used {peak / 2**30:.1f} GiB, more than {self._share:.0%} of this "
                "machine's memory. A smaller batch_size, rank or max_seq_length needs less."
            )
        return peak


def peak_memory_bytes() -> int:
    """Peak memory of this process in bytes.

    Where MLX computes on the CPU: the largest resident set. On Metal or CUDA: what MLX has held at
    most on the device (`mx.get_peak_memory`).
    """
    if not machine.on_cpu():
        return int(machine.mlx().get_peak_memory())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def plot_losses(rows: list[Row], path: Path) -> None:
    """Draw training and validation loss over the steps into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    trained = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    judged = [(row["step"], row["valid_loss"]) for row in rows if "valid_loss" in row]
    axes.plot(*zip(*trained, strict=True), color="0.65", linewidth=1, label="training")
    if judged:
        axes.plot(*zip(*judged, strict=True), "o-", color="C0", markersize=4, label="validation")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss on answers (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})
