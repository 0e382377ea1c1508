"""The training loop: AdamW on the adapters, validation, early stopping, checkpoints.

`FineTuneTrainer` works on a model that already has its adapters, in this process. A run of its own
(child process, artifact) is made by supervise.py and child.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import Cancelled, TrainingFailed
from forge_mcp.schemas.events import EventKind
from forge_mcp.settings import TrainingSettings
from forge_mcp.training import adapters as adapters_module
from forge_mcp.training.batching import Example, batches, pack, steps_per_epoch
from forge_mcp.training.callbacks import (
    EarlyStopping,
    MemoryMonitor,
    MetricsLogger,
    Row,
    plot_losses,
    read_metrics,
)
from forge_mcp.training.checkpoints import (
    Progress,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from forge_mcp.training.loss import evaluate, row_loss
from forge_mcp.workspace import hash_inputs

RECENT_STEPS = 10  # over which train_loss is averaged and divergence is judged
DIVERGED_FACTOR = 1.5

Emit = Callable[..., None]


@dataclass(frozen=True)
class Trained:
    """What came out. Losses are means over answer tokens, in nats.

    train_loss: over the last 10 steps; valid_loss: of the adapters that were kept, None where
    there is no validation example. seconds and tokens_per_second count training, not set-up.
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
    """

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        run: Path,
        emit: Emit = silent,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        import mlx.optimizers as optim

        self.model = model
        self.settings = settings
        self.run = run
        self.emit = emit
        self.check = check
        self.optimizer = optim.AdamW(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self.optimizer.init(model.trainable_parameters())
        self.memory = MemoryMonitor(lambda text: emit("log", level="warning", message=text))

    def train(self, train: list[Example], valid: list[Example], *, resume: bool = False) -> Trained:
        """Train to the end and leave the model with its best adapters.

        Args:
            train: at least one example.
            valid: may be empty; then the last adapters are kept and nothing stops early.
            resume: go on from the newest checkpoint in the run's folder, if there is one. The
                losses are those of a run that was never interrupted.

        Raises:
            TrainingFailed: the loss is no number any more or has diverged; the step is named.
        """
        import mlx.nn as nn
        from mlx.optimizers import clip_grad_norm

        mx = machine.mlx()
        settings = self.settings
        total = total_steps(len(train), settings)
        warmup = min(settings.warmup_steps, total // 2)
        if warmup < settings.warmup_steps:
            self._log(f"Warm-up is {warmup} steps: the run has only {total}.")
        state = self._start(valid, resume)
        stopping = EarlyStopping(
            settings.early_stopping_patience,
            math.inf if state.best_loss is None else state.best_loss,
            state.waited,
        )
        step, best_step, tokens, before = (
            state.step,
            state.best_step,
            state.tokens,
            state.seconds,
        )
        recent, first_loss = list(state.recent_losses), state.first_loss
        metrics = MetricsLogger(self.run / "metrics.jsonl", keep_until=step)
        loss_and_gradient = nn.value_and_grad(self.model, row_loss)
        batch_of = batches(len(train), settings.examples_per_step, settings.seed, step)
        started = time.perf_counter()
        self.model.train()

        saved = step

        def save() -> None:
            nonlocal saved
            saved = step
            self._save(
                Progress(
                    step=step,
                    best_loss=stopping.best if valid else None,
                    best_step=best_step if valid else step,
                    waited=stopping.waited,
                    recent_losses=recent,
                    first_loss=first_loss,
                    tokens=tokens,
                    seconds=before + time.perf_counter() - started,
                    settings_hash=self._settings_hash(),
                )
            )

        while step < total and not stopping.stop:
            try:
                self.check()
            except Cancelled:
                if step > saved:
                    save()  # so that the run can go on from here
                raise
            begun = time.perf_counter()
            batch = [train[index] for index in next(batch_of)]
            mean, gradient = self._gradient(batch, loss_and_gradient)
            gradient, norm = clip_grad_norm(gradient, settings.max_grad_norm)
            rate = learning_rate(step + 1, total, warmup, settings)
            self.optimizer.learning_rate = rate
            step += 1
            self._refuse_divergence(step, mean, norm.item(), first_loss, recent)
            self.optimizer.update(self.model, gradient)
            mx.eval(self.model.trainable_parameters(), self.optimizer.state)
            recent = [*recent, mean][-RECENT_STEPS:]
            first_loss = first_loss or mean
            used = sum(len(example.tokens) for example in batch)
            tokens += used
            now = time.perf_counter()
            row = Row(
                step=step,
                loss=mean,
                grad_norm=norm.item(),
                learning_rate=rate,
                tokens_per_second=used / (now - begun),
                peak_memory_bytes=self.memory.check(),
                seconds=before + now - started,
            )
            if valid and (step % settings.eval_steps == 0 or step == total):
                row.update(self._evaluate(valid))
                if stopping.improved(row["valid_loss"]):
                    self.best, best_step = adapters_module.adapter_weights(self.model), step
            metrics.log(row)
            self._tell(row, step, total, tokens, before + time.perf_counter() - started)
            if step % settings.save_steps == 0 or step == total or stopping.stop:
                save()
        metrics.close()
        seconds = before + time.perf_counter() - started
        if valid:
            adapters_module.set_adapter_weights(self.model, self.best)
        self.model.eval()
        rows = read_metrics(self.run / "metrics.jsonl")
        plot_losses(rows, self.run / "loss.png")
        return Trained(
            steps=step,
            best_step=best_step if valid else step,
            train_loss=sum(recent) / len(recent),
            valid_loss=stopping.best if valid else None,
            initial_valid_loss=rows[0]["valid_loss"] if valid else None,
            tokens_per_second=tokens / seconds,
            peak_memory_bytes=self.memory.check(),
            stopped_early=stopping.stop and step < total,
            seconds=seconds,
        )

    def _gradient(self, batch: list[Example], loss_and_gradient: Any) -> tuple[float, Any]:
        """Mean loss and gradient over the answer tokens of a step's examples, row by row."""
        from mlx.utils import tree_map

        mx = machine.mlx()
        summed, gradient = 0.0, None
        for row in pack(batch, self.settings.max_seq_length, self.settings.batch_size):
            loss, one = loss_and_gradient(self.model, row)
            gradient = one if gradient is None else tree_map(mx.add, gradient, one)
            mx.eval(loss, gradient)  # frees this row's activations before the next
            summed += loss.item()
        weight = sum(example.weight for example in batch)
        return summed / weight, tree_map(lambda leaf: leaf / weight, gradient)

    def _start(self, valid: list[Example], resume: bool) -> Progress:
        """The checkpoint's progress, or step 0 with its evaluation as the one to beat."""
        path = latest_checkpoint(self.run) if resume else None
        if path is not None:
            return self._restore(path)
        self.run.mkdir(parents=True, exist_ok=True)
        self.best = adapters_module.adapter_weights(self.model)
        row = Row(step=0, peak_memory_bytes=self.memory.check(), seconds=0.0)
        best: float | None = None
        if valid:
            row.update(self._evaluate(valid))
            best = row["valid_loss"]
        else:
            self._log("There is no validation example: the last adapters are kept.", "warning")
        metrics = MetricsLogger(self.run / "metrics.jsonl")
        metrics.log(row)
        metrics.close()
        return Progress(0, best, 0, 0, [], 0.0, 0, 0.0, self._settings_hash())

    def _restore(self, path: Path) -> Progress:
        from mlx.utils import tree_unflatten

        progress, weights, self.best, optimizer_state = load_checkpoint(path)
        if progress.settings_hash != self._settings_hash():
            raise TrainingFailed(
                f"The checkpoint {path.name} belongs to another run.",
                cause="it was written with other training settings",
                next_step="Train again without resuming.",
            )
        adapters_module.set_adapter_weights(self.model, weights)
        self.optimizer.state = tree_unflatten(list(optimizer_state.items()))
        self._log(f"Resumed after step {progress.step}.")
        return progress

    def _save(self, progress: Progress) -> None:
        from mlx.utils import tree_flatten

        weights = adapters_module.adapter_weights(self.model)
        optimizer_state = dict(tree_flatten(self.optimizer.state))
        best = self.best if progress.best_loss is not None else weights
        save_checkpoint(self.run, progress, weights, best, optimizer_state)

    def _evaluate(self, valid: list[Example]) -> Row:
        self.model.eval()
        rows = pack(valid, self.settings.max_seq_length, self.settings.batch_size)
        result = evaluate(self.model, rows)
        self.model.train()
        if not math.isfinite(result.loss):
            raise _diverged("The validation loss is not a number.")
        return Row(
            valid_loss=result.loss,
            valid_accuracy=result.accuracy,
            valid_perplexity=math.exp(min(result.loss, 700.0)),
        )

    def _refuse_divergence(
        self, step: int, loss: float, norm: float, first: float, recent: list[float]
    ) -> None:
        """A loss that is no number, or that stays well above that of guessing, ends the run."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _diverged(f"The loss or its gradient is not a number at step {step}.")
        guessing = max(first, math.log(self.model.args.vocab_size))
        if len(recent) == RECENT_STEPS and min(recent) > DIVERGED_FACTOR * guessing:
            raise _diverged(
                f"Training has diverged at step {step}: the loss of the last {RECENT_STEPS} steps "
                f"was at least {min(recent):.1f}, and {guessing:.1f} is guessing."
            )

    def _tell(self, row: Row, step: int, total: int, tokens: int, seconds: float) -> None:
        parts = [f"loss {row['loss']:.3f}"]
        metric: dict[str, float] = {"step": step, "loss": row["loss"]}
        if "valid_loss" in row:
            parts.append(f"valid {row['valid_loss']:.3f}")
            metric["valid_loss"] = row["valid_loss"]
        metric["tokens_per_second"] = tokens / seconds
        metric["eta_seconds"] = seconds / step * (total - step)
        metric["learning_rate"] = row["learning_rate"]
        self.emit("metric", **metric)
        self.emit("progress", done=step, total=total, message=", ".join(parts))

    def _log(self, message: str, level: str = "info") -> None:
        self.emit("log", level=level, message=message)

    def _settings_hash(self) -> str:
        return hash_inputs(self.settings.model_dump())


def total_steps(examples: int, settings: TrainingSettings) -> int:
    """Optimiser steps of a run: by epochs, at most max_steps where that is not 0."""
    by_epochs = math.ceil(
        settings.num_train_epochs * steps_per_epoch(examples, settings.examples_per_step)
    )
    return min(by_epochs, settings.max_steps) if settings.max_steps else by_epochs


def learning_rate(step: int, total: int, warmup: int, settings: TrainingSettings) -> float:
    """The rate of a step (from 1): linear warm-up, then the schedule down to 0 after `total`."""
    peak = settings.learning_rate
    if step <= warmup:
        return peak * step / warmup
    done = (step - 1 - warmup) / max(total - warmup, 1)
    if settings.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak * (1 - done) if settings.schedule == "linear" else peak


def _diverged(message: str) -> TrainingFailed:
    return TrainingFailed(
        message,
        cause="the learning rate is too high for this base, or the data is damaged",
        next_step="Train again with a learning_rate of a third.",
    )
