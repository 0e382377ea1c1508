"""8-bit blocks: 256 numbers share a float32 maximum, and each is a code of a dynamic map.

The dynamic map spends its first bits on the power of ten and what is left on the fraction, so that
numbers of very different size in one block keep their first digits (Dettmers et al., "8-bit
Optimizers via Block-wise Quantization", arXiv 2110.02861, sections 1.3 and 2). Map and rounding are
those of bitsandbytes' reference kernels. NF4's double quantisation and the 8-bit AdamW use it.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from forge_mcp import machine

BLOCK = 256  # numbers that share a maximum
DECADES = 7  # powers of ten that the map spans
SMALLEST_MAXIMUM = 1e-38  # a block that is all below it (or zero) becomes zeros


class Blocks(NamedTuple):
    """codes uint8, in the shape of the numbers; absmax (ceil(size / 256),) float32."""

    codes: Any
    absmax: Any


@cache
def dynamic_map(signed: bool) -> Any:
    """(256,) float32 in rising order, from -1 (signed) or 0 to 1.

    A decade 10^-k is cut into 2^(6-k) steps (unsigned: twice as many) from 0.1 to 1, whose middles
    are the values; 0 and 1 are added.
    """
    values = [np.float32(0), np.float32(1)]
    for number in range(DECADES):
        steps = 2 ** (number if signed else number + 1)
        edges = _evenly(steps)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        decade = np.float32(10.0 ** (number - DECADES + 1)) * middles
        values += [*decade, *-decade] if signed else [*decade]
    return machine.mlx().array(np.sort(np.array(values, dtype=np.float32)))


def _evenly(steps: int) -> Any:
    """steps + 1 numbers from 0.1 to 1 with the rounding of torch.linspace: from the nearer end."""
    step = float((np.float32(1) - np.float32(0.1)) / np.float32(steps))
    number = np.arange(steps + 1)
    upward, downward = float(np.float32(0.1)) + step * number, 1 - step * number[::-1]
    return np.where(number < (steps + 1) // 2, upward, downward).astype(np.float32)


@cache
def _bounds(signed: bool) -> Any:
    values = dynamic_map(signed)
    return (values[:-1] + values[1:]) / 2


def quantise_blocks(numbers: Any, *, signed: bool) -> Blocks:
    """Numbers of any shape, in blocks of their flattened order; the last may be shorter.

    signed False: for numbers that are never negative.
    """
    mx = machine.mlx()
    flat = numbers.astype(mx.float32).reshape(-1)
    missing = -flat.size % BLOCK
    blocks = (mx.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)
    absmax = mx.abs(blocks).max(axis=1, keepdims=True)
    scaled = mx.clip(blocks * (1 / mx.maximum(absmax, SMALLEST_MAXIMUM)), -1, 1)
    codes = mx.searchsorted(_bounds(signed), scaled).astype(mx.uint8)
    return Blocks(codes.reshape(-1)[: flat.size].reshape(numbers.shape), absmax.reshape(-1))


def dequantise_blocks(blocks: Blocks, *, signed: bool) -> Any:
    """float32, in the shape of the codes."""
    mx = machine.mlx()
    flat = dynamic_map(signed)[blocks.codes.reshape(-1)]
    missing = -flat.size % BLOCK
    padded = (mx.pad(flat, (0, missing)) if missing else flat).reshape(-1, BLOCK)
    numbers = (padded * blocks.absmax[:, None]).reshape(-1)[: flat.size]
    return numbers.reshape(blocks.codes.shape)
