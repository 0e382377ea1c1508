"""The caches of texts that are written together: cohorts of about one length, without much padding.

mlx-lm's caches of a batch pad every row to the longest. On the CPU, where attention is most of what
a token costs, rows therefore stand in cohorts: a matrix product of the model takes all rows, and
attention a cohort at a time. On a GPU, and with attention that is not mlx-lm's, there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

from forge_mcp import machine
from forge_mcp.training.architectures import decoder
from forge_mcp.training.attention import ATTENTION

mx = machine.mlx()
from mlx_lm.models.cache import BatchKVCache  # noqa: E402

COHORTS = 4  # of a batch at most: each costs some ten operations a layer
SIMILAR = 0.75  # a length over the longest of its cohort, at least


class GroupedMasks(BatchKVCache):  # type: ignore[misc]
    """Gemma 2 has attention of its own, whose scores have an axis more, for the query heads that
    share a key head: mlx-lm's mask of a batch does not fit them."""

    def make_mask(self, *args: Any, **named: Any) -> Any:
        """(rows, 1, 1, 1, keys) instead of (rows, 1, 1, keys)."""
        return mx.expand_dims(super().make_mask(*args, **named), 1)


class Cohorts:
    """A layer's cache. It looks like one of mlx-lm's to the model that fills it.

    parts: mlx-lm's caches of a batch. What a model does not only hand on to its attention (keys,
    values, masks) are arrays where there is one part, else tuples with one for each.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)

    @property
    def offset(self) -> Any:
        """(rows,) where the next token stands in each text."""
        return mx.concatenate([part.offset for part in self.parts])

    @property
    def state(self) -> Any:
        """The arrays, to be computed."""
        return [part.state for part in self.parts]

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Take the keys and values (rows, heads, 1, width) of a token, and give all."""
        if len(self.parts) == 1:
            found: tuple[Any, Any] = self.parts[0].update_and_fetch(keys, values)
            return found
        borders = self._borders()[:-1]
        new = zip(self.parts, mx.split(keys, borders), mx.split(values, borders), strict=True)
        all_keys, all_values = zip(
            *(part.update_and_fetch(*arrays) for part, *arrays in new), strict=True
        )
        return all_keys, all_values

    def make_mask(self, *args: Any, **named: Any) -> Any:
        """As `create_attention_mask` asks for it."""
        masks = tuple(part.make_mask(*args, **named) for part in self.parts)
        return masks[0] if len(masks) == 1 else masks

    def filter(self, kept: Sequence[int]) -> None:
        """Leave only these rows, given in their order."""
        parts, begin = [], 0
        for part, end in zip(self.parts, self._borders(), strict=True):
            inside = [row - begin for row in kept if begin <= row < end]
            if inside:
                if len(inside) < end - begin:
                    part.filter(inside)
                parts.append(part)
            begin = end
        self.parts = parts

    def unite(self, at: int) -> None:
        """Make one of two neighbours, the first of which is `at`."""
        self.parts[at].extend(self.parts.pop(at + 1))

    def _borders(self) -> list[int]:
        """The row behind each part's last."""
        return list(accumulate(part.offset.shape[0] for part in self.parts))


def cohorts_of(model: Any) -> int:
    """How many cohorts a batch of a model may have."""
    return COHORTS if machine.on_cpu() and hasattr(_module(model), ATTENTION) else 1


def form(model: Any, read: Sequence[tuple[int, Sequence[Any]]], most: int) -> list[Cohorts]:
    """Layer by layer the caches of several texts as those of a batch, in the order given.

    Args:
        read: length and caches, which mlx-lm has filled, of each.
        most: cohorts that there may be; neighbours of about one length share one.
    """
    groups: list[list[Sequence[Any]]] = []
    longest = 0
    for length, caches in read:
        if not groups or (length < SIMILAR * longest or longest < SIMILAR * length):
            groups.append([])
            longest = 0
        groups[-1].append(caches)
        longest = max(longest, length)
    layers = [
        Cohorts([_merge(model, number, [caches[number] for caches in group]) for group in groups])
        for number in range(len(read[0][1]))
    ]
    limit(layers, most)
    return layers


def limit(layers: Sequence[Cohorts], most: int) -> None:
    """Unite neighbours, the most alike first, until there are no more cohorts than that."""
    while len(layers[0].parts) > most:
        # Windowed layers hold no more than their window: the longest cache tells the length.
        widths = [
            max(layer.parts[at].size() for layer in layers) for at in range(len(layers[0].parts))
        ]
        apart = [abs(one - other) for one, other in pairwise(widths)]
        for layer in layers:
            layer.unite(apart.index(min(apart)))


@contextmanager
def cohort_attention(model: Any) -> Iterator[None]:
    """Meanwhile the attention of a model's module understands cohorts; all else is unchanged."""
    module = _module(model)
    original = getattr(module, ATTENTION, None)
    if original is None:
        yield
        return

    def dispatch(
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, **more: Any
    ) -> Any:
        if not isinstance(keys, tuple):
            return original(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)
        borders = list(accumulate(one.shape[0] for one in keys))[:-1]
        parts = zip(mx.split(queries, borders), keys, values, mask, strict=True)
        return mx.concatenate(
            [original(q, k, v, cache=cache, scale=scale, mask=m, **more) for q, k, v, m in parts]
        )

    setattr(module, ATTENTION, dispatch)
    try:
        yield
    finally:
        setattr(module, ATTENTION, original)


def _module(model: Any) -> Any:
    return sys.modules[type(decoder(model)).__module__]


def _merge(model: Any, number: int, caches: Sequence[Any]) -> Any:
    attention = decoder(model).layers[number].self_attn
    if model.model_type == "gemma2" and attention.repeats > 1:
        return GroupedMasks.merge(caches)
    return caches[0].merge(caches)
