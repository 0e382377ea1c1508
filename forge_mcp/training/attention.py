"""Attention within the examples of a row: each sees only itself, causally.

The examples lie one behind the other in one sequence. mlx-lm's models ask their cache for the mask;
`SegmentCache` hands them `Segments`, and a dispatcher in the model's module computes attention for
those, example by example, and leaves every other call to mlx-lm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.training.architectures import decoder

mx = machine.mlx()

QUERY_BLOCK = 128  # queries that share their scores' rectangle on the CPU
ATTENTION = "scaled_dot_product_attention"  # what mlx-lm's model modules call


@dataclass(frozen=True)
class Segments:
    """A mask: consecutive stretches of a row that see only themselves, causally.

    lengths: tokens of each. window: keys that a query sees, itself included; None = all before it.
    """

    lengths: tuple[int, ...]
    window: int | None = None


class SegmentCache:
    """What a model takes for its key-value cache: stores nothing, and makes the row's mask."""

    offset = 0

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """The same keys and values: there are none from before."""
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """The mask of a row of `length` tokens, as `create_attention_mask` asks for it."""
        segments = Segments(self.lengths, window_size)
        return block_mask(segments) if return_array else segments


def block_mask(segments: Segments) -> Any:
    """(tokens, tokens) bool: whether a query (row) sees a key (column)."""
    at = mx.arange(sum(segments.lengths))
    owner = mx.array(np.repeat(np.arange(len(segments.lengths)), segments.lengths))
    mask = (owner[:, None] == owner[None]) & (at[:, None] >= at[None])
    if segments.window is not None:
        mask = mask & (at[:, None] < at[None] + segments.window)
    return mask


def install(model: Any) -> bool:
    """Let the attention of a model's module understand `Segments`; every other call is unchanged.

    Returns:
        False where the module has attention of its own (Gemma 2): that asks for a mask array, gets
        one, and computes all of its scores, those between examples too.
    """
    module = sys.modules[type(decoder(model)).__module__]
    original = getattr(module, ATTENTION, None)
    if original is None:
        return False
    if getattr(original, "takes_segments", False):
        return True

    def dispatch(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **more: Any
    ) -> Any:
        if isinstance(mask, Segments):
            return segment_attention(queries, keys, values, scale, mask)
        return original(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)

    dispatch.takes_segments = True  # type: ignore[attr-defined]
    setattr(module, ATTENTION, dispatch)
    return True


def segment_attention(queries: Any, keys: Any, values: Any, scale: float, mask: Segments) -> Any:
    """softmax(scale Q K^T + mask) V, each segment by itself.

    Args:
        queries: (1, heads, tokens, width); keys, values: (1, key heads, tokens, width).

    Returns:
        (1, heads, tokens, width).
    """
    one: Any = blockwise_attention if machine.on_cpu() else fused_attention
    if len(mask.lengths) == 1:
        return one(queries, keys, values, scale, mask.window)
    ends = [sum(mask.lengths[:number]) for number in range(1, len(mask.lengths))]
    parts = zip(*(mx.split(array, ends, axis=2) for array in (queries, keys, values)), strict=True)
    return mx.concatenate([one(*part, scale, mask.window) for part in parts], axis=2)


def fused_attention(queries: Any, keys: Any, values: Any, scale: float, window: int | None) -> Any:
    """One segment with MLX's own kernel."""
    length = queries.shape[2]
    narrow = window is not None and window < length
    mask = block_mask(Segments((length,), window)) if narrow else "causal"
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def blockwise_attention(
    queries: Any, keys: Any, values: Any, scale: float, window: int | None
) -> Any:
    """One segment in blocks of queries, each against only the keys up to its last query.

    Half of a causal score matrix is masked, and where the exponential is what costs, not computing
    it is what saves. The probabilities are kept for the backward pass.
    """
    length = queries.shape[2]
    spans = _spans(length, QUERY_BLOCK, window)
    stream = mx.default_stream(mx.default_device())

    @mx.custom_function  # type: ignore[untyped-decorator]
    def attend(queries: Any, keys: Any, values: Any) -> Any:
        outputs, probabilities = [], []
        for first, begin, end in spans:
            scores = _fold(queries[:, :, begin:end] * scale, keys) @ keys[:, :, first:end].swapaxes(
                -1, -2
            )
            scores = scores.reshape(*scores.shape[:2], -1, end - begin, end - first)
            scores = scores + _bias(begin, end, first, window, scores.dtype)
            p = mx.softmax(scores, axis=-1, precise=True)
            p = p.reshape(*p.shape[:2], -1, p.shape[-1])
            outputs.append(_unfold(p @ values[:, :, first:end], queries, end - begin))
            probabilities.append(p)
        return (mx.concatenate(outputs, axis=2), *probabilities)

    @attend.vjp  # type: ignore[untyped-decorator]
    def gradient(primals: Any, cotangents: Any, results: Any) -> Any:
        with mx.stream(stream):
            return _gradient(primals, cotangents[0], results, spans, scale)

    return attend(queries, mx.contiguous(keys), mx.contiguous(values))[0]


def _gradient(
    primals: Any, cotangent: Any, results: Any, spans: Sequence[tuple[int, int, int]], scale: float
) -> tuple[Any, Any, Any]:
    """d queries, d keys, d values. With P the probabilities, O the outputs:
    dV = P^T dO; dS = P * (dO V^T - rowsum(dO * O)); dQ = scale dS K; dK = scale dS^T Q.
    """
    queries, keys, values = primals
    output, *probabilities = results
    rows = (cotangent * output).sum(axis=-1, keepdims=True)
    d_queries = []
    d_keys: list[Any] = [None] * len(spans)
    d_values: list[Any] = [None] * len(spans)
    for (first, begin, end), p in zip(spans, probabilities, strict=True):
        d_out = _fold(cotangent[:, :, begin:end], keys)
        row = _fold(rows[:, :, begin:end], keys)
        d_scores = p * (d_out @ values[:, :, first:end].swapaxes(-1, -2) - row)
        d_queries.append(_unfold(d_scores @ keys[:, :, first:end], queries, end - begin))
        d_key = d_scores.swapaxes(-1, -2) @ _fold(queries[:, :, begin:end], keys)
        d_value = p.swapaxes(-1, -2) @ d_out
        for number, (_, start, stop) in enumerate(spans):
            if first <= start < end:
                part = slice(start - first, stop - first)
                for sums, more in ((d_keys, d_key), (d_values, d_value)):
                    old = sums[number]
                    sums[number] = more[:, :, part] if old is None else old + more[:, :, part]
    return (
        scale * mx.concatenate(d_queries, axis=2),
        scale * mx.concatenate(d_keys, axis=2),
        mx.concatenate(d_values, axis=2),
    )


def _fold(queries: Any, keys: Any) -> Any:
    """(1, heads, n, width) to (1, key heads, heads/key heads * n, width)."""
    return queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[-1])


def _unfold(folded: Any, queries: Any, count: int) -> Any:
    """`_fold` undone, for `count` queries."""
    return folded.reshape(*queries.shape[:2], count, folded.shape[-1])


@lru_cache(maxsize=512)
def _spans(length: int, block: int, window: int | None) -> tuple[tuple[int, int, int], ...]:
    """(first key, first query, end) of each block; first keys are at borders of blocks."""
    spans = []
    for begin in range(0, length, block):
        first = 0 if window is None else max(0, begin - window + 1) // block * block
        spans.append((first, begin, min(begin + block, length)))
    return tuple(spans)


def _bias(begin: int, end: int, first: int, window: int | None, dtype: Any) -> Any:
    """(queries, keys): 0 where a query sees a key, else the least number."""
    rows, columns = mx.arange(begin, end)[:, None], mx.arange(first, end)[None]
    seen = rows >= columns
    if window is not None:
        seen = seen & (rows < columns + window)
    return mx.where(seen, 0.0, mx.finfo(dtype).min).astype(dtype)
