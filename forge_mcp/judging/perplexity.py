"""How well a model predicts texts: the answers of chats, or source code.

perplexity = exp(sum of NLL / number of tokens), where NLL is the negative natural logarithm of the
probability that the model gives to a scored token. Of a chat the tokens of the *answer* are scored:
the prompt (system prompt, documents, question) is given, the token that ends the turn is scored.

This is Hugging Face's definition (transformers' documentation, "Perplexity of fixed-length
models"). A text that is longer than the context is read in windows of up to `window` tokens that
begin every `stride` tokens; of each window only the tokens that no window before it held are scored
(`windows`). Their snippet adds up the windows' mean losses, weighted by the number of a window's
labels less one "because of the internal shift of the labels". That is the number of scored tokens
in the first window; in the later ones the token before the first label is in the window, so one
more is scored than counts. `compute_perplexity` weights as they do, so that its figures are theirs.

bits per byte = NLL / ln 2 / bytes of the text in UTF-8, comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from forge_mcp.judging.intervals import Floats, Indices, bootstrap
from forge_mcp.schemas.base import Metric
from forge_mcp.training.batching import Example


@dataclass(frozen=True)
class Perplexity:
    """Likelihood of n texts, one value an example in the order given; arrays of shape (n,).

    `nll` in nats: an example's mean over its tokens as Hugging Face weights it, times `tokens`. A
    model that diverged shows as a value that is not finite.
    """

    nll: Floats
    tokens: Floats
    answer_bytes: Floats
    name: str = "perplexity"

    @cached_property
    def value(self) -> float:
        """The perplexity over all answers; infinite or NaN where the model diverged."""
        return float(self._perplexity(np.arange(len(self.nll))[None])[0])

    @cached_property
    def per_example(self) -> Floats:
        """The perplexity of each answer by itself, (n,)."""
        with np.errstate(over="ignore"):
            values: Floats = np.exp(self.nll / self.tokens)
        return values

    def metrics(self, seed: int) -> list[Metric]:
        """`name` and bits_per_byte with bootstrap intervals over the examples.

        A model that diverged on one of them has no such figure: then there are none.
        """
        if not np.isfinite(self.per_example).all():
            return []
        n = len(self.nll)
        return [
            bootstrap(self.name, n, seed, self._perplexity),
            bootstrap("bits_per_byte", n, seed, self._bits_per_byte),
        ]

    def ratio_to(self, other: Perplexity, seed: int, name: str = "perplexity_ratio") -> Metric:
        """This model's perplexity over another's on the same answers, paired by example.

        exp((NLL of this - NLL of the other) / tokens of this): where both have one tokenizer this
        is the quotient of the perplexities; where not, it still is what the comparison of bits per
        byte says, on the scale of this model's tokens.
        """

        def ratio(indices: Indices) -> Floats:
            gained = (self.nll - other.nll)[indices].sum(axis=1)
            with np.errstate(over="ignore"):
                values: Floats = np.exp(gained / self.tokens[indices].sum(axis=1))
            return values

        return bootstrap(name, len(self.nll), seed, ratio)

    def select(self, indices: Sequence[int]) -> Perplexity:
        """The same for some of the examples."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Perplexity(
            self.nll[chosen], self.tokens[chosen], self.answer_bytes[chosen], self.name
        )

    def _perplexity(self, indices: Indices) -> Floats:
        with np.errstate(over="ignore"):
            values: Floats = np.exp(
                self.nll[indices].sum(axis=1) / self.tokens[indices].sum(axis=1)
            )
        return values

    def _bits_per_byte(self, indices: Indices) -> Floats:
        values: Floats = (
            self.nll[indices].sum(axis=1) / math.log(2) / self.answer_bytes[indices].sum(axis=1)
        )
        return values


class Window(NamedTuple):
    """A stretch [begin, end) of a text that is read at once; [scored, end) is scored in it."""

    begin: int
    scored: int
    end: int


def windows(example: Example, window: int, stride: int | None = None) -> list[Window]:
    """The windows of a text in which something is scored; together they score it once.

    Args:
        window: tokens of one.
        stride: tokens between the beginnings of two; None = half a window.

    Raises:
        ValueError: `stride` is not in 1 … window - 1 (with a stride of `window` the first token of
            each window would have no other before it, and could not be scored), or there is no
            prompt or answer.
    """
    if example.start < 1 or example.answer_tokens < 1:
        raise ValueError("perplexity needs examples with a prompt and an answer")
    stride = window // 2 if stride is None else stride
    if not 0 < stride < window:
        raise ValueError(f"a stride of {stride} does not go with windows of {window} tokens")
    found = []
    begin = read = 0
    while read < len(example.tokens):
        end = min(begin + window, len(example.tokens))
        if end > example.start:
            found.append(Window(begin, max(read, example.start), end))
        begin, read = begin + stride, end
    return found


def token_nll(
    model: Any,
    examples: Sequence[Example],
    *,
    window: int,
    stride: int | None = None,
    on_example: Callable[[int, int], None] | None = None,
) -> list[Floats]:
    """The negative log-likelihood in nats of each token from `start` on, given what is before it.

    Args:
        model: an mlx-lm model in eval mode.
        examples: each with a prompt and an answer. Those that have the same prompt cost little
            more than one of them.
        window: tokens that are read at once; longer texts are read in several windows.
        stride: tokens between the beginnings of windows; None = half a window.
        on_example: called with (examples done, examples in all).

    Returns:
        For each example, in their order, an array (answer tokens,). Values of a model that
        diverged are not finite.

    Raises:
        ValueError: an example without prompt or answer, or a stride that does not go with `window`.
    """
    from forge_mcp.judging.likelihood import scored_tokens

    pieces = [
        (index, Example(example.tokens[begin:end], scored - begin))
        for index, example in enumerate(examples)
        for begin, scored, end in windows(example, window, stride)
    ]
    left = Counter(index for index, _ in pieces)
    done = 0

    def count(piece: int) -> None:
        nonlocal done
        index = pieces[piece][0]
        left[index] -= 1
        if not left[index]:
            done += 1
            if on_example:
                on_example(done, len(examples))

    values = scored_tokens(model, [piece for _, piece in pieces], count)
    found: list[list[Floats]] = [[] for _ in examples]
    for (index, _), value in zip(pieces, values, strict=True):
        found[index].append(value)
    return [np.concatenate(parts) for parts in found]


def compute_perplexity(
    model: Any,
    examples: Sequence[Example],
    answer_bytes: Sequence[int],
    *,
    window: int,
    stride: int | None = None,
    name: str = "perplexity",
    on_example: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Score the answers of tokenised chats, or texts.

    Args:
        model, examples, window, stride, on_example: as in `token_nll`; at least one example.
        answer_bytes: length of each answer's text in UTF-8.
        name: of the metric.

    Returns:
        Values in the order of `examples`.

    Raises:
        ValueError: there is no example, or as in `token_nll`.
    """
    if not examples:
        raise ValueError("perplexity needs examples with a prompt and an answer")
    scored = token_nll(model, examples, window=window, stride=stride, on_example=on_example)
    means = [
        _mean(values, windows(example, window, stride), example.start)
        for values, example in zip(scored, examples, strict=True)
    ]
    tokens = np.array([example.answer_tokens for example in examples], dtype=np.float64)
    return Perplexity(
        nll=np.array(means) * tokens,
        tokens=tokens,
        answer_bytes=np.array(answer_bytes, dtype=np.float64),
        name=name,
    )


def _mean(values: Floats, read: Sequence[Window], start: int) -> float:
    """The mean over a text's tokens as Hugging Face weights it: see the module's docstring."""
    means, weights = [], []
    at = 0
    for begin, scored, end in read:
        count = end - scored
        means.append(values[at : at + count].mean())
        # A whole text's first token is a label that nothing predicts: that is the one less.
        weights.append(count if begin == 0 and start == 1 else count - 1)
        at += count
    if not any(weights):  # one scored token
        return float(values.mean())
    return float(np.dot(means, weights) / sum(weights))


def text_examples(tokenizer: Any, texts: Sequence[str], max_tokens_in_all: int) -> list[Example]:
    """Plain texts, e.g. source files, to be scored from their second token on.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper. Where it begins a text with a token of its own
            (BOS), so does the example, and all of the text is scored.
        texts: in the order of preference.
        max_tokens_in_all: the last text that is taken is cut here; later ones are left out.

    Returns:
        One example a text, those of less than two tokens left out.
    """
    found: list[Example] = []
    room = max_tokens_in_all
    for text in texts:
        tokens = tokenizer.encode(text)[: max(room, 0)]
        if len(tokens) > 1:
            found.append(Example(tokens, 1))
            room -= len(tokens)
    return found


def text_bytes(tokenizer: Any, examples: Sequence[Example]) -> list[int]:
    """How many bytes of UTF-8 the scored tokens of texts stand for.

    A character that is cut by the end of a text counts as the mark that replaces it.
    """

    def length(tokens: Sequence[int]) -> int:
        text = tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return len(text.encode())

    # A tokenizer may write a text's first token differently from what follows another.
    return [length(one.tokens) - length(one.tokens[: one.start]) for one in examples]
