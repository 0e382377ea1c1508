"""One step of a training, to see whether it fits and how long the whole will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forge_mcp import machine
from forge_mcp.training.adapters import adapter_weights, set_adapter_weights
from forge_mcp.training.batching import Example, batches, steps_per_epoch
from forge_mcp.training.checkpoints import random_state, set_random_state
from forge_mcp.training.loss import evaluate

if TYPE_CHECKING:
    from forge_mcp.training.trainer import FineTuneTrainer


@dataclass(frozen=True)
class DryRun:
    """What one step has shown: the step of the first epoch that has the longest row.

    tokens, step_seconds, tokens_per_second: of that step. steps, estimated_seconds: of the whole
    run with its evaluations, at that step's pace; shorter rows are rather faster, so it is rather
    too long, and early stopping is not foreseen. memory_bytes: what there is on the device, see
    `machine.training_memory_bytes`.
    """

    steps: int
    tokens: int
    longest_row: int
    step_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    memory_bytes: int
    estimated_seconds: float


def dry_run(
    trainer: FineTuneTrainer, train: list[Example], valid: Sequence[Example] = ()
) -> DryRun:
    """Make a step forward, backward and update. Adapters, optimiser and files stay as they are.

    It is made twice and timed the second time: the first one also warms up.

    Raises:
        TrainingFailed: its loss is no number.
    """
    from mlx.utils import tree_map

    from forge_mcp.training.trainer import total_steps

    settings = trainer.settings
    total = total_steps(len(train), settings)
    per_epoch = steps_per_epoch(len(train), settings.examples_per_step)
    order = batches(len(train), settings.examples_per_step, settings.seed)
    steps = [[train[index] for index in next(order)] for _ in range(per_epoch)]
    longest, number = max(
        (max(row.length for row in trainer.rows(step)), number) for number, step in enumerate(steps)
    )
    batch = steps[number]

    weights = adapter_weights(trainer.model)
    state, key = tree_map(lambda leaf: leaf, trainer.optimizer.state), random_state()
    trainer.model.train()
    try:
        for _ in range(2):
            begun = time.perf_counter()
            trainer.update(batch, 1, total)
            seconds = time.perf_counter() - begun
    finally:
        set_adapter_weights(trainer.model, weights)
        trainer.optimizer.state = state
        set_random_state(key)
        trainer.model.eval()
    tokens = sum(len(example.tokens) for example in batch)
    all_tokens = sum(len(example.tokens) for example in train) * total / per_epoch
    evaluations = sum(trainer.evaluates(step, total, per_epoch) for step in range(total + 1))
    evaluating = evaluations * _seconds_of_evaluation(trainer, valid) if evaluations else 0.0
    return DryRun(
        steps=total,
        tokens=tokens,
        longest_row=longest,
        step_seconds=seconds,
        tokens_per_second=tokens / seconds,
        peak_memory_bytes=trainer.memory.measure(),
        memory_bytes=machine.training_memory_bytes(),
        estimated_seconds=all_tokens * seconds / tokens + evaluating,
    )


def _seconds_of_evaluation(trainer: FineTuneTrainer, valid: Sequence[Example]) -> float:
    """Of all of them, by the pace of the longest row."""
    rows = trainer.rows(valid)
    if not rows:
        return 0.0
    longest = max(rows, key=lambda row: row.length)
    begun = time.perf_counter()
    evaluate(trainer.model, [longest])
    return (time.perf_counter() - begun) * sum(row.length for row in rows) / longest.length
