"""AdamW, AdamW with its state in 8 bits, and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import Any

from forge_mcp import machine
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.blockwise import Blocks, dequantise_blocks, quantise_blocks

mx = machine.mlx()
import mlx.optimizers as optim  # noqa: E402

SMALLEST_8BIT = 4096  # parameters with fewer numbers keep a float32 state, as in bitsandbytes


class AdamW8bit(optim.AdamW):  # type: ignore[misc]
    """AdamW whose two moments are held as 8-bit blocks (arXiv 2110.02861): a quarter of the memory.

    Each update dequantises a parameter's moments, makes AdamW's step with them (bias-corrected,
    decoupled weight decay), and quantises them again. The state of a parameter: m (signed map) and
    v (unsigned map), uint8 in its shape, m_absmax and v_absmax, float32, one for 256 numbers.
    Parameters below 4,096 numbers have m and v in float32.

    One thing is not as in bitsandbytes: a v above 0 is never rounded down to 0. Where gradients in
    a block differ by a factor of some thousand it would be, and m / (sqrt(0) + eps) then throws the
    parameter far away.

    Args:
        learning_rate: may be set between steps.
        weight_decay: share of a parameter, times the learning rate, taken off in each step.
    """

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, bias_correction=True)

    def init_single(self, parameter: Any, state: dict[str, Any]) -> None:
        """Zero moments."""
        zeros = mx.zeros(parameter.shape, dtype=mx.float32)
        if parameter.size < SMALLEST_8BIT:
            state.update(m=zeros, v=zeros)
        else:
            self._store(zeros, zeros, state)

    def apply_single(self, gradient: Any, parameter: Any, state: dict[str, Any]) -> Any:
        """One parameter's step: its new value, in its own type."""
        gradient, wide = gradient.astype(mx.float32), parameter.astype(mx.float32)
        if "m_absmax" not in state:
            return super().apply_single(gradient, wide, state).astype(parameter.dtype)
        moments = {
            "m": dequantise_blocks(Blocks(state["m"], state["m_absmax"]), signed=True),
            "v": dequantise_blocks(Blocks(state["v"], state["v_absmax"]), signed=False),
        }
        updated = super().apply_single(gradient, wide, moments)
        self._store(moments["m"], moments["v"], state)
        return updated.astype(parameter.dtype)

    def _store(self, m: Any, v: Any, state: dict[str, Any]) -> None:
        state["m"], state["m_absmax"] = quantise_blocks(m, signed=True)
        codes, state["v_absmax"] = quantise_blocks(v, signed=False)
        state["v"] = mx.maximum(codes, (v > 0).astype(mx.uint8))


def build_optimiser(settings: TrainingSettings) -> Any:
    """The optimiser of `settings.optimizer`, an `mlx.optimizers.Optimizer` with beta 0.9, 0.999.

    Its `state` is a tree of arrays alone: saved, and set again on a new one, it goes on bit for
    bit.
    """
    if settings.optimizer == "adamw_8bit":
        return AdamW8bit(settings.learning_rate, settings.weight_decay)
    return optim.AdamW(
        settings.learning_rate, weight_decay=settings.weight_decay, bias_correction=True
    )


def learning_rate(step: int, total: int, warmup: int, settings: TrainingSettings) -> float:
    """The rate of a step (from 1): linear warm-up, then the schedule.

    Cosine and linear fall from the peak right after the warm-up to nearly 0 at the last step.
    """
    peak = settings.learning_rate
    if step <= warmup:
        return peak * step / warmup
    done = (step - 1 - warmup) / max(total - warmup, 1)
    if settings.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak * (1 - done) if settings.schedule == "linear" else peak
