"""The likelihood of each scored token of many texts, whose common beginnings are read once.

Judging asks many questions on the same documents, and several answers to one question. The texts
are sorted, so that those that begin alike follow each other, and read as the tree that they make:
what a branch has in common is read once, and its keys and values serve all texts of the branch.
Every token keeps its place, so nothing is approximated.

Logits exist only at scored positions, and of some of them at a time. On the CPU, where MLX
computes everything but matrix products on one core, every core reads texts of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from forge_mcp import machine
from forge_mcp.judging.intervals import Floats
from forge_mcp.training.architectures import decoder, logits_of, places_are_fixed
from forge_mcp.training.batching import Example
from forge_mcp.training.loss import chunks, on_cores

mx = machine.mlx()

MIN_SHARED = 16  # tokens; to read fewer apart costs more than to read them twice
SHARE_TOKENS = 2048  # that a core reads before it gets new ones
# Tokens that go through the model at once. Half of a causal score matrix is masked: in pieces most
# of that half is never computed, which on the CPU is what attention costs.
PIECE, PIECE_GPU = 128, 2048


class _Read:
    """What a layer keeps of the tokens before: mlx-lm's models take it for their key-value cache.

    Nothing is changed in place, so a copy goes on by itself from where it was made.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.held: tuple[Any, Any] | None = None

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Keys and values of all tokens up to now, (1, heads, tokens, width)."""
        self.offset += keys.shape[2]
        if self.held is not None:
            keys = mx.concatenate([self.held[0], keys], axis=2)
            values = mx.concatenate([self.held[1], values], axis=2)
        self.held = keys, values
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Any:
        """The mask of the next `length` tokens, as `create_attention_mask` asks for it."""
        total = self.offset + length
        narrow = window_size is not None and window_size < total
        if not narrow and not return_array:
            return "causal"
        queries, keys = mx.arange(self.offset, total)[:, None], mx.arange(total)[None]
        mask = queries >= keys
        return mask & (queries < keys + window_size) if narrow else mask


def scored_tokens(
    model: Any, examples: Sequence[Example], on_done: Callable[[int], None]
) -> list[Floats]:
    """The negative log-likelihood in nats of each token from `start` on, given those before it.

    Args:
        model: an mlx-lm model in eval mode.
        examples: each with at least one token before `start` and one from there on.
        on_done: called with an example's index once it is computed.

    Returns:
        For each example an array (answer tokens,).
    """
    found: list[Floats] = [np.empty(0)] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: examples[index].tokens)
    shares = _shares([examples[index] for index in order])
    firsts = [0, *accumulate(map(len, shares))]
    for number, values in on_cores(model, shares, lambda share: _Reader(model).read(share)):
        for index, value in zip(order[firsts[number] :], values, strict=False):
            found[index] = np.array(value, dtype=np.float64)
            on_done(index)
    return found


def _shares(ordered: Sequence[Example]) -> list[list[Example]]:
    """Neighbours that are read together: `SHARE_TOKENS` tokens, or two shares a core if that is
    less. What a text has in common with the one before it is no work; texts that have most in
    common stay together longer, because each share reads by itself."""
    same = [0, *(_common(one.tokens, other.tokens) for one, other in pairwise(ordered))]
    lengths = [len(example.tokens) for example in ordered]
    cores = machine.cores() if machine.on_cpu() else 1
    room = min(SHARE_TOKENS, (sum(lengths) - sum(same)) / (2 * cores))
    shares: list[list[Example]] = []
    first, more = 0, 0  # tokens of a share's first text, and of those behind it
    for example, length, common in zip(ordered, lengths, same, strict=True):
        full = first + more >= room and (2 * common <= length or more >= SHARE_TOKENS)
        if not shares or full:
            shares.append([])
            first, more = length, 0
        else:
            more += length - common
        shares[-1].append(example)
    return shares


class _Stretch(NamedTuple):
    """Values of the tokens from `first` on."""

    first: int
    values: Any


class _Reader:
    """A model that reads texts; `last` is computed before anything that is read from now on."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.whole = not places_are_fixed(model)
        self.piece = PIECE if machine.on_cpu() else PIECE_GPU
        self.last: list[Any] = []

    def read(self, ordered: Sequence[Example]) -> list[Any]:
        """The values of texts in the order of their tokens, each (answer tokens,) float32."""
        layers = [_Read() for _ in decoder(self.model).layers]
        if self.whole:
            return [self._leaf(example, 0, layers, []) for example in ordered]
        return self._branch(ordered, 0, layers, [])

    def _branch(
        self, ordered: Sequence[Example], at: int, layers: list[_Read], known: list[_Stretch]
    ) -> list[Any]:
        """Values of texts that begin alike; `layers` hold their first `at` tokens, and `known` the
        values of these and of the next one."""
        if len(ordered) == 1:
            return [self._leaf(ordered[0], at, layers, known)]
        # The last token in common is read by each: what it predicts is another token for each.
        until = _common(ordered[0].tokens, ordered[-1].tokens) - 1
        if until - at >= MIN_SHARED:
            layers = [copy.copy(layer) for layer in layers]
            first = max(at + 1, min(example.start for example in ordered))
            values = self._run(ordered[0].tokens, at, until, first, layers)
            known, at = [*known, _Stretch(first, values)], until
        found: list[Any] = []
        for ahead, group in groupby(ordered, lambda one: one.tokens[at : at + MIN_SHARED + 1]):
            branch = list(group)
            if len(ahead) > MIN_SHARED:
                found += self._branch(branch, at, layers, known)
            else:
                found += [self._leaf(example, at, layers, known) for example in branch]
        return found

    def _leaf(
        self, example: Example, at: int, layers: list[_Read], known: Sequence[_Stretch]
    ) -> Any:
        """The values of one text, of which `layers` hold the first `at` tokens."""
        layers = [copy.copy(layer) for layer in layers]
        first = max(at + 1, example.start)
        # The last token predicts nothing; it is read where the length counts.
        until = len(example.tokens) - (0 if self.whole else 1)
        rest = self._run(example.tokens, at, until, first, layers)
        parts = [
            values[max(example.start - begin, 0) :]
            for begin, values in [*known, _Stretch(first, rest)]
        ]
        return mx.concatenate(parts)

    def _run(
        self, tokens: Sequence[int], at: int, until: int, first: int, layers: list[_Read]
    ) -> Any:
        """Read tokens[at:until] into `layers`. Returns the values of tokens[first:until + 1]."""
        hidden = []
        size = until - at if self.whole else self.piece
        for begin in range(at, until, size):
            inputs = mx.array(tokens[begin : min(begin + size, until)])
            inputs = mx.depends(inputs, self.last)
            hidden.append(decoder(self.model)(inputs[None], layers)[0])
        if first > until:
            return mx.zeros((0,))
        return self._values(mx.concatenate(hidden)[first - 1 - at :], tokens[first : until + 1])

    def _values(self, hidden: Any, tokens: Sequence[int]) -> Any:
        """(n,) from the hidden states (n, width) before n tokens."""
        targets = mx.array(tokens)
        parts = []
        for part in chunks(self.model, len(tokens)):
            # Only when the chunk before is done, or the logits of several stand in memory.
            states = mx.depends(hidden[part], self.last)
            logits = logits_of(self.model, states).astype(mx.float32)
            picked = mx.take_along_axis(logits, targets[part][:, None], axis=-1)[:, 0]
            self.last = [mx.logsumexp(logits, axis=-1) - picked]
            parts += self.last
        return mx.concatenate(parts)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common from their beginning on."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))
