"""The training loop: optimiser on the adapters, validation, the best kept, checkpoints.

`FineTuneTrainer` works on a model that already has its adapters, in this process. A run of its own
(child process, artifact) is made by supervise.py and child.py.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.errors import Cancelled, TrainingFailed
from forge_mcp.schemas.events import EventKind
from forge_mcp.settings import TrainingSettings
from forge_mcp.training import adapters as adapters_module
from forge_mcp.training.architectures import checkpoint_layers
from forge_mcp.training.batching import Example, batches, pack, steps_per_epoch
from forge_mcp.training.batching import Row as TokenRow
from forge_mcp.training.callbacks import (
    Announcer,
    Callback,
    EarlyStopping,
    LossPlotter,
    MemoryMonitor,
    MetricsLogger,
    Row,
    Stop,
)
from forge_mcp.training.checkpoints import (
    Checkpoint,
    Progress,
    discard_checkpoints,
    latest_checkpoint,
    load_newest,
    random_state,
    save_checkpoint,
    set_random_state,
)
from forge_mcp.training.dry_run import DryRun, dry_run
from forge_mcp.training.health import DivergenceGuard, not_a_number, with_last_good
from forge_mcp.training.loss import evaluate, loss_and_gradient
from forge_mcp.training.optimisers import build_optimiser, learning_rate
from forge_mcp.workspace import hash_inputs

RECENT_STEPS = 10  # over which train_loss is averaged

Emit = Callable[..., None]


@dataclass(frozen=True)
class Trained:
    """What came out. Losses are means over answer tokens, in nats.

    train_loss: over the last 10 steps; valid_loss: of the adapters that were kept, None where
    there was no validation. seconds and tokens_per_second count training, not set-up.
    """

    steps: int
    best_step: int
    train_loss: float
    valid_loss: float | None
    initial_valid_loss: float | None
    tokens_per_second: float
    peak_memory_bytes: int
    stopped_early: bool
    seconds: float


def silent(kind: EventKind, **payload: Any) -> None:
    """An `emit` for callers that do not listen."""


class FineTuneTrainer:
    """Trains the adapters of a model.

    Args:
        model: with adapters attached (`adapters.attach_adapters`).
        settings: learning rate, schedule, batch, stopping; what is said of the adapters
            themselves is already in the model.
        run: folder for metrics.jsonl, loss.png and checkpoints/.
        emit: takes events as `SkillContext.emit` does: emit(kind, **payload).
        check: called every step; raises to stop. On `Cancelled` a checkpoint is written first.
        watchers: further callbacks, e.g. those of trackers.py.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        run: Path,
        emit: Emit = silent,
        check: Callable[[], None] = lambda: None,
        watchers: Sequence[Callback] = (),
    ) -> None:
        self.model = model
        self.settings = settings
        self.run = run
        self.emit = emit
        self.check = check
        self.optimizer = build_optimiser(settings)
        self.optimizer.init(model.trainable_parameters())
        self.stopping = EarlyStopping(settings.early_stopping_patience)
        self.guard = DivergenceGuard()
        self.memory = MemoryMonitor(settings, lambda text: self._log(text, "warning"))
        self.watchers: list[Callback] = [
            MetricsLogger(run / "metrics.jsonl"),
            LossPlotter(run / "loss.png"),
            Announcer(emit),
            self.memory,
            self.stopping,
            self.guard,
            *watchers,
        ]
        self.step = self.best_step = self.saved = 0
        self.best: dict[str, Any] = {}
        self.best_loss: float | None = None
        self.history: list[Row] = []

    def train(self, train: list[Example], valid: list[Example], *, resume: bool = False) -> Trained:
        """Train to the end and leave the model with its best adapters.

        Args:
            train: at least one example.
            valid: may be empty; then the last adapters are kept and nothing stops early.
            resume: go on from the newest whole checkpoint in the run's folder, if there is one.
                On the CPU all is, bit for bit, that of a run that was never interrupted.

        Raises:
            Cancelled: `check` raised it; a checkpoint was saved.
            TrainingFailed: the loss is no number any more or has diverged, or memory runs out;
                the step is named. Or the checkpoint is another run's.
            OutOfSpace: a checkpoint could not be saved; the ones before are whole.
        """
        total = total_steps(len(train), self.settings)
        if self._warmup(total) < self.settings.warmup_steps:
            self._log(f"Warm-up is {self._warmup(total)} steps: the run has only {total}.")
        self.run.mkdir(parents=True, exist_ok=True)
        self._identity = self._identify(train, valid)
        if valid and self.settings.eval_strategy == "no":
            self._log("training.eval_strategy is 'no': the last adapters are kept.")
            valid = []
        elif not valid:
            self._log("There is no validation example: the last adapters are kept.", "warning")
        self.history = []
        self.step = self.best_step = self.saved = 0
        resumed = resume and self._restore()
        try:
            for watcher in self.watchers:
                watcher.on_start(self.history, total)
            if not resumed:
                self._begin(valid)
            self._loop(train, valid, total)
        except BaseException:
            for watcher in self.watchers:
                with suppress(Exception):  # of the two errors the first one counts
                    watcher.on_end()
            raise
        for watcher in self.watchers:
            watcher.on_end()
        if valid:
            adapters_module.set_adapter_weights(self.model, self.best)
        self.model.eval()
        return self._trained(bool(valid), total)

    def dry_run(self, train: list[Example], valid: Sequence[Example] = ()) -> DryRun:
        """See `dry_run.dry_run`."""
        return dry_run(self, train, valid)

    def _begin(self, valid: list[Example]) -> None:
        """Step 0: what the base can do before it is trained."""
        discard_checkpoints(self.run)
        machine.mlx().random.seed(self.settings.seed)
        self.best = adapters_module.adapter_weights(self.model)
        self.best_loss, self.best_step = None, 0
        row = Row(step=0, peak_memory_bytes=self.memory.measure(), seconds=0.0)
        if valid:
            self._evaluate(row, valid)
        self._tell(row)

    def _loop(self, train: list[Example], valid: list[Example], total: int) -> None:
        settings = self.settings
        per_epoch = steps_per_epoch(len(train), settings.examples_per_step)
        batch_of = batches(len(train), settings.examples_per_step, settings.seed, self.step)
        before = self.history[-1]["seconds"]
        started = time.perf_counter()
        self.model.train()
        due = False
        while self.step < total and self._stop() is None:
            try:
                self.check()
            except Cancelled:
                if self.step > self.saved and not self.guard.suspicious:
                    self._save()  # so that the run can go on from here
                raise
            begun = time.perf_counter()
            batch = [train[index] for index in next(batch_of)]
            loss, norm, rate = self.update(batch, self.step + 1, total)
            self.step += 1
            tokens = sum(len(example.tokens) for example in batch)
            now = time.perf_counter()
            row = Row(
                step=self.step,
                loss=loss,
                grad_norm=norm,
                learning_rate=rate,
                tokens=tokens,
                tokens_per_second=tokens / (now - begun),
                peak_memory_bytes=self.memory.measure(),
                seconds=before + now - started,
            )
            if valid and self.evaluates(self.step, total, per_epoch):
                self._evaluate(row, valid)
            row["seconds"] = before + time.perf_counter() - started
            self._tell(row)
            stop = self._stop()
            due = due or self.step % settings.save_steps == 0
            last = self.step == total or stop is not None
            if (last or (due and not self.guard.suspicious)) and (stop is None or stop.save):
                self._save()
                due = False
        stop = self._stop()
        if stop is not None and stop.error is not None:
            raise stop.error if stop.save else with_last_good(stop.error, self.run)

    def update(self, batch: list[Example], step: int, total: int) -> tuple[float, float, float]:
        """One optimiser step: (mean loss, gradient's norm before clipping, learning rate)."""
        from mlx.optimizers import clip_grad_norm

        mx = machine.mlx()
        loss, gradient = self._gradient(batch)
        gradient, norm = clip_grad_norm(gradient, self.settings.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm.item())):
            raise not_a_number("loss or its gradient", self.model, self.run, self.step)
        rate = learning_rate(step, total, self._warmup(total), self.settings)
        self.optimizer.learning_rate = rate
        self.optimizer.update(self.model, gradient)
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        return loss, norm.item(), rate

    def _gradient(self, batch: list[Example]) -> tuple[float, Any]:
        """Mean loss and gradient over the answer tokens of a step's examples, row by row."""
        from mlx.utils import tree_map

        mx = machine.mlx()
        summed, gradient = 0.0, None
        checkpointing = self.settings.gradient_checkpointing
        with checkpoint_layers(self.model) if checkpointing else nullcontext():
            for row in self.rows(batch):
                loss, one = loss_and_gradient(self.model, row)
                gradient = one if gradient is None else tree_map(mx.add, gradient, one)
                mx.eval(gradient)
                summed += loss
        weight = sum(example.weight for example in batch)
        return summed / weight, tree_map(lambda leaf: leaf / weight, gradient)

    def rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """Examples in rows that are computed together."""
        return pack(examples, self.settings.max_seq_length, self.settings.batch_size)

    def evaluates(self, step: int, total: int, per_epoch: int) -> bool:
        """Whether a step ends with an evaluation: the last one always does."""
        every = self.settings.eval_steps if self.settings.eval_strategy == "steps" else per_epoch
        return self.settings.eval_strategy != "no" and (step % every == 0 or step == total)

    def _evaluate(self, row: Row, valid: Sequence[Example]) -> None:
        """Put an evaluation into a row, and keep the adapters if they are the best so far."""
        self.model.eval()
        result = evaluate(self.model, self.rows(valid))
        self.model.train()
        if not math.isfinite(result.loss):
            raise not_a_number("validation loss", self.model, self.run, row["step"])
        row["valid_loss"] = result.loss
        row["valid_accuracy"] = result.accuracy
        row["valid_perplexity"] = math.exp(min(result.loss, 700.0))
        if self.best_loss is None or result.loss < self.best_loss:
            self.best_loss, self.best_step = result.loss, row["step"]
            self.best = adapters_module.adapter_weights(self.model)

    def _tell(self, row: Row) -> None:
        self.history.append(row)
        for watcher in self.watchers:
            watcher.on_step(row)
        if "valid_loss" in row:
            for watcher in self.watchers:
                watcher.on_evaluation(row)

    def _stop(self) -> Stop | None:
        """Why to end here; an error before a good end."""
        stops = [watcher.stop for watcher in self.watchers if watcher.stop]
        return min(stops, key=lambda stop: stop.error is None, default=None)

    def _save(self) -> None:
        from mlx.utils import tree_flatten

        weights = adapters_module.adapter_weights(self.model)
        progress = Progress(
            step=self.step,
            best_loss=self.best_loss,
            best_step=self.best_step,
            random_state=random_state(),
            identity=self._identity,
        )
        best = weights if self.best_loss is None else self.best
        state = dict(tree_flatten(self.optimizer.state))
        checkpoint = Checkpoint(progress, weights, best, state, self.history)
        save_checkpoint(self.run, checkpoint, self.settings.keep_checkpoints)
        self.saved = self.step

    def _restore(self) -> bool:
        """Go on from the newest whole checkpoint; False where there is none."""
        from mlx.utils import tree_unflatten

        there_was_one = latest_checkpoint(self.run) is not None
        found = load_newest(self.run, lambda text: self._log(text, "warning"))
        if found is None:
            if there_was_one:
                self._log("No checkpoint is whole: training begins anew.", "warning")
            return False
        progress = found.progress
        if progress.identity != self._identity:
            raise TrainingFailed(
                f"The checkpoint of step {progress.step} belongs to another run.",
                cause="it was written with other settings, adapters or examples",
                next_step="Train again without resuming.",
            )
        adapters_module.set_adapter_weights(self.model, found.adapters)
        self.optimizer.state = tree_unflatten(list(found.optimizer.items()))
        set_random_state(progress.random_state)
        self.history, self.best = found.history, found.best
        self.best_loss, self.best_step = progress.best_loss, progress.best_step
        self.step = self.saved = progress.step
        self._log(f"Resumed after step {progress.step}.")
        return True

    def _identify(self, train: Sequence[Example], valid: Sequence[Example]) -> str:
        """A hash of all that decides the run but the base's weights."""
        tokens = hashlib.sha256()
        for example in (*train, *valid):
            tokens.update(np.array([example.start, *example.tokens], dtype=np.int64).tobytes())
        weights = adapters_module.adapter_weights(self.model)
        return hash_inputs(
            {
                "settings": self.settings.model_dump(),
                "adapters": {name: list(array.shape) for name, array in weights.items()},
                "examples": [len(train), len(valid), tokens.hexdigest()],
            }
        )

    def _trained(self, validated: bool, total: int) -> Trained:
        losses = [row["loss"] for row in self.history if "loss" in row][-RECENT_STEPS:]
        seconds = self.history[-1]["seconds"]
        return Trained(
            steps=self.step,
            best_step=self.best_step if validated else self.step,
            train_loss=sum(losses) / len(losses),
            valid_loss=self.best_loss if validated else None,
            initial_valid_loss=self.history[0]["valid_loss"] if validated else None,
            tokens_per_second=sum(row.get("tokens", 0) for row in self.history) / seconds,
            peak_memory_bytes=self.memory.measure(),
            stopped_early=self.step < total,
            seconds=seconds,
        )

    def _warmup(self, total: int) -> int:
        return min(self.settings.warmup_steps, total // 2)

    def _log(self, message: str, level: str = "info") -> None:
        self.emit("log", level=level, message=message)


def total_steps(examples: int, settings: TrainingSettings) -> int:
    """Optimiser steps of a run: by epochs, at most max_steps where that is not 0."""
    by_epochs = math.ceil(
        settings.num_train_epochs * steps_per_epoch(examples, settings.examples_per_step)
    )
    return min(by_epochs, settings.max_steps) if settings.max_steps else by_epochs
