"""What watches a training run: metrics on disk, events, early stopping, memory, the loss curve.

The trainer knows none of them; it tells all what `Callback` names. Trackers of other makers
(TensorBoard, W&B, MLflow) are in trackers.py.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from forge_mcp import machine
from forge_mcp.errors import ForgeError, TrainingFailed
from forge_mcp.settings import TrainingSettings
from forge_mcp.workspace import write_file

NEED_LESS = (
    "gradient_checkpointing, a smaller batch_size, rank or max_seq_length, or a smaller base needs "
    "less"
)


class Row(TypedDict, total=False):
    """One line of metrics.jsonl. Everything in it is measured.

    Every step: step, loss (weighted mean over the step's answer tokens, nats), grad_norm (before
    clipping), learning_rate, tokens (of the step's examples, none of them padding),
    tokens_per_second, peak_memory_bytes (of this process so far), seconds (of training since
    step 0, interruptions left out).
    At an evaluation also: valid_loss (mean over all answer tokens), valid_accuracy (share of them
    that is the likeliest token), valid_perplexity. There is no accuracy of training steps: the
    loss does not keep the logits from which it would be counted. Step 0 is the evaluation before
    training; it has no loss, grad_norm, learning_rate, tokens and tokens_per_second.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    seconds: float
    valid_loss: float
    valid_accuracy: float
    valid_perplexity: float


@dataclass(frozen=True)
class Stop:
    """Why a run ends before its last step. error: raised then; None for an end that is fine.

    save: whether the state is worth a checkpoint.
    """

    error: ForgeError | None = None
    save: bool = True


class Callback:
    """Told of a run by its trainer. What is not overridden does nothing.

    `stop`: set by a callback so that the run ends after this step.
    """

    stop: Stop | None = None

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """The run begins, or goes on: `history` is all that happened before, from step 0 on, and
        `total` its last step."""

    def on_step(self, row: Row) -> None:
        """A step was made; step 0, where there is one, is the evaluation before the first."""

    def on_evaluation(self, row: Row) -> None:
        """This step ended with an evaluation: the row has the keys valid_… Comes after on_step."""

    def on_end(self) -> None:
        """No step follows, for whatever reason."""


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; none where there is no such file.

    A last line that a kill cut short is left out.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class MetricsLogger(Callback):
    """Writes metrics.jsonl, a row a line, flushed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """Steps that were made after the checkpoint are made again: their rows go."""
        write_file(self.path, "".join(json.dumps(row) + "\n" for row in history))
        self._file = self.path.open("a", encoding="utf-8")

    def on_step(self, row: Row) -> None:
        """Write a row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def on_end(self) -> None:
        """Close the file."""
        self._file.close()


class Announcer(Callback):
    """Tells steps as events: a metric and a progress."""

    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit = emit
        self._tokens = 0

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """Count what was done before."""
        self._total = total
        self._tokens = sum(row.get("tokens", 0) for row in history)

    def on_step(self, row: Row) -> None:
        """Tell a step."""
        step, seconds = row["step"], row["seconds"]
        if step == 0:
            return
        self._tokens += row["tokens"]
        parts = [f"loss {row['loss']:.3f}"]
        metric: dict[str, float] = {"step": step, "loss": row["loss"]}
        if "valid_loss" in row:
            parts.append(f"valid {row['valid_loss']:.3f}")
            metric["valid_loss"] = row["valid_loss"]
        metric["tokens_per_second"] = self._tokens / seconds
        metric["eta_seconds"] = seconds / step * (self._total - step)
        metric["learning_rate"] = row["learning_rate"]
        self._emit("metric", **metric)
        self._emit("progress", done=step, total=self._total, message=", ".join(parts))


class EarlyStopping(Callback):
    """Ends a run whose validation loss has not improved for `patience` evaluations (0 = never)."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best = math.inf
        self.waited = 0

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """See the evaluations that were made before."""
        self.best, self.waited, self.stop = math.inf, 0, None
        for row in history:
            if "valid_loss" in row:
                self.on_evaluation(row)

    def on_evaluation(self, row: Row) -> None:
        """Take note of an evaluation."""
        if row["valid_loss"] < self.best:
            self.best, self.waited = row["valid_loss"], 0
        else:
            self.waited += 1
        if self.patience and self.waited >= self.patience:
            self.stop = Stop()


class MemoryMonitor(Callback):
    """Warns once when training has used a share of memory; ends it, saved, at a higher one.

    Judged is what was held last, not the peak of a moment long past: see `measure`. The memory is
    that of the device MLX computes on, or of the control group the process is in.
    """

    def __init__(self, settings: TrainingSettings, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._memory = machine.training_memory_bytes()
        self._warn_share = settings.memory_warning_share
        self._stop_share = settings.memory_stop_share
        self._warned = False
        self.used = 0
        self.peak = 0

    def measure(self) -> int:
        """Peak memory so far, in bytes; call it once a step.

        Where MLX computes on the CPU: of this process' resident set. On Metal and CUDA: of what
        MLX has held on the device; `used` is then the peak since the last call, because between
        two steps little is held.
        """
        if machine.on_cpu():
            self.used = resident_bytes()
            self.peak = max(self.peak, self.used, peak_resident_bytes())
        else:
            mx = machine.mlx()
            self.used = int(mx.get_peak_memory())
            self.peak = max(self.peak, self.used)
            mx.reset_peak_memory()
        return self.peak

    def on_step(self, row: Row) -> None:
        """Judge what `measure` has found."""
        share = self.used / self._memory
        has = (
            f"{self.used / 2**30:.1f} GiB, {share:.0%} of the {self._memory / 2**30:.1f} GiB there "
            "are"
        )
        if share >= self._stop_share:
            self.stop = Stop(
                TrainingFailed(
                    f"Training was ended after step {row['step']}, before the machine ran out of "
                    f"memory: it used {has}.",
                    cause=f"the setting training.memory_stop_share is {self._stop_share:.0%}",
                    next_step="Close other programs and run it again: it goes on from there. Or "
                    f"train another run: {NEED_LESS}.",
                )
            )
        elif share >= self._warn_share and not self._warned:
            self._warned = True
            self._warn(f"Training uses {has}; {NEED_LESS}.")


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The largest resident set that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class LossPlotter(Callback):
    """Draws the loss curve anew at every evaluation and at the end, whole at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[Row] = []
        self._drawn = -1

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """Go on with the curve of before."""
        self._rows = list(history)

    def on_step(self, row: Row) -> None:
        """Another point."""
        self._rows.append(row)

    def on_evaluation(self, row: Row) -> None:
        """Draw."""
        self._draw()

    def on_end(self) -> None:
        """Draw the last steps."""
        self._draw()

    def _draw(self) -> None:
        if any("loss" in row for row in self._rows) and len(self._rows) != self._drawn:
            self._drawn = len(self._rows)
            plot_losses(self._rows, self._path)


def plot_losses(rows: Sequence[Row], path: Path) -> None:
    """Draw training and validation loss over the steps into a PNG."""
    import io

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
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    write_file(path, drawn.getvalue())
