"""Whether a training is well: losses that are no numbers, divergence, and what is left then."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import ForgeError, TrainingFailed
from forge_mcp.training.callbacks import Callback, Row, Stop
from forge_mcp.training.checkpoints import latest_checkpoint

DIVERGED_FACTOR = 1.5
RECENT_LOSSES = 10
FEWEST_LOSSES = 5


class DivergenceGuard(Callback):
    """Ends a run whose losses have gone well above those with which it began.

    The limit is 1.5 times the first step's loss, or the validation loss before it where that is
    higher. Diverged is a run where the median of the last ten losses (of five at least) is above
    it: one hard batch, or few, is none. A validation loss that rises alone is no divergence but
    overfitting, for which there is `EarlyStopping`.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._recent: list[float] = []

    @property
    def suspicious(self) -> bool:
        """Whether the newest loss is above the limit: its state is not saved over a good one."""
        return bool(self._recent) and self._recent[-1] > DIVERGED_FACTOR * self._began

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """See the losses of before."""
        self._began, self._recent, self.stop = 0.0, [], None
        for row in history:
            self._look(row)

    def on_step(self, row: Row) -> None:
        """Judge a step."""
        self._look(row)
        if len(self._recent) < FEWEST_LOSSES:
            return
        median = statistics.median_low(self._recent)
        if median > DIVERGED_FACTOR * self._began:
            message = (
                f"Training has diverged at step {row['step']}: the median of the last "
                f"{len(self._recent)} losses is {median:.1f}, and it began with {self._began:.1f}."
            )
            self.stop = Stop(diverged(message), save=False)

    def _look(self, row: Row) -> None:
        if row["step"] <= 1:
            self._began = max(self._began, row.get("loss", 0.0), row.get("valid_loss", 0.0))
        if "loss" in row:
            self._recent = [*self._recent, row["loss"]][-RECENT_LOSSES:]


def diverged(message: str) -> TrainingFailed:
    """The error of a training whose loss has left all bounds."""
    return TrainingFailed(
        message,
        cause="the learning rate is too high for this base, or the data is damaged",
        next_step="Train again with a learning_rate of a third; that is another run, which begins "
        "at its step 0.",
    )


def not_a_number(what: str, model: Any, run: Path, made: int) -> ForgeError:
    """Why `what` is no number after `made` steps: broken weights, if there are any, else the
    training."""
    broken = broken_weights(model)
    if broken:
        more = f", and so do {len(broken) - 1} more" if broken[1:] else ""
        return TrainingFailed(
            f"The {what} is not a number after step {made}: the base's weights are damaged.",
            cause=f"{broken[0]} holds values that are no numbers{more}",
            next_step="Fetch the base model again, or choose another one.",
        )
    if made == 0:
        return TrainingFailed(
            f"The {what} is not a number before anything was trained.",
            cause="the base computes values that are no numbers from these examples, though its "
            "weights are numbers: too large ones, most likely",
            next_step="Choose another base.",
        )
    return with_last_good(diverged(f"The {what} is not a number after step {made}."), run)


def with_last_good(error: ForgeError, run: Path) -> ForgeError:
    """The same error, which also says what state is left."""
    last = latest_checkpoint(run)
    left = f"the last good state is {last}" if last else "no checkpoint had been saved before"
    return type(error)(error.message, cause=f"{error.cause}; {left}", next_step=error.next_step)


def broken_weights(model: Any) -> list[str]:
    """Names of the frozen weights that hold values which are no numbers."""
    from mlx.utils import tree_flatten

    from forge_mcp.training.adapters import adapter_weights

    mx = machine.mlx()
    trained = adapter_weights(model)
    return [
        name
        for name, array in tree_flatten(model.parameters())
        if name not in trained
        and mx.issubdtype(array.dtype, mx.floating)
        and not mx.isfinite(array).all().item()
    ]
