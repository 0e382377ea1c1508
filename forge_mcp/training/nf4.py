"""NF4, the 4-bit format of QLoRA (Dettmers et al., arXiv 2305.14314, section 3).

Sixteen values, the quantiles of a normal distribution scaled to [-1, 1], with an exact zero. A
group of weights shares its largest magnitude (absmax); a weight is the code of the value nearest to
weight / absmax. Double quantisation stores the absmax, less their mean, in 8-bit blocks of 256.

MLX has no such format: it is built here from MLX's array operations, so that it is the same on CPU,
Metal and CUDA. Codes and absmax are those of bitsandbytes on the same weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.training.blockwise import (
    SMALLEST_MAXIMUM,
    Blocks,
    dequantise_blocks,
    quantise_blocks,
)

# QLoRA, appendix E.
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


# Halfway between neighbours, as float32.
BOUNDS = tuple(((np.array(VALUES[:-1]) + np.array(VALUES[1:])).astype(np.float32) / 2).tolist())


@cache
def _pairs() -> Any:
    """(256, 2): the two values of a byte. One look-up gives both."""
    mx = machine.mlx()
    values = mx.array(VALUES)
    byte = mx.arange(256)
    return mx.stack([values[byte >> 4], values[byte & 15]], axis=1)


def quantise_rows(weight: Any, group_size: int) -> tuple[Any, Any]:
    """(codes, absmax) of weight (out, in), float32.

    Returns:
        codes: (out, in / 2) uint8, two a byte, the first in the high bits.
        absmax: (out, in / group_size) float32.
    """
    mx = machine.mlx()
    groups = weight.reshape(weight.shape[0], -1, group_size)
    absmax = mx.abs(groups).max(axis=-1, keepdims=True)
    scaled = mx.clip(groups * (1 / mx.maximum(absmax, SMALLEST_MAXIMUM)), -1, 1)
    codes = mx.zeros(scaled.shape, dtype=mx.uint8)
    for bound in BOUNDS:  # seven times faster than mx.searchsorted on a CPU
        codes = codes + (scaled > bound)
    codes = codes.reshape(weight.shape[0], -1, 2)
    return (codes[..., 0] << 4) | codes[..., 1], absmax.squeeze(-1)


def pack_absmax(absmax: Any, double: bool) -> dict[str, Any]:
    """The absmax as they are stored: float32, or 8-bit codes, their scales and their mean."""
    if not double:
        return {"absmax": absmax}
    mean = absmax.mean()
    blocks = quantise_blocks(absmax - mean, signed=True)
    return {
        "absmax": blocks.codes,
        "absmax_scales": blocks.absmax,
        "absmax_mean": mean.reshape(1),
    }


def unpack_absmax(arrays: dict[str, Any]) -> Any:
    """(out, in / group_size) float32, of what `pack_absmax` gave."""
    absmax = arrays["absmax"]
    if "absmax_mean" in arrays:
        blocks = Blocks(absmax, arrays["absmax_scales"])
        absmax = dequantise_blocks(blocks, signed=True) + arrays["absmax_mean"]
    return absmax


def dequantise(arrays: dict[str, Any], group_size: int) -> Any:
    """(out, in) float32, of "weight" (the codes) and what `pack_absmax` gave."""
    absmax = unpack_absmax(arrays)
    rows = arrays["weight"].shape[0]
    values = _pairs()[arrays["weight"]].reshape(rows, -1, group_size)
    return (values * absmax[..., None]).reshape(rows, -1)
