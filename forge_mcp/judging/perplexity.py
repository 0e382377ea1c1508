"""How well a model predicts the answers of held-out examples.

perplexity = exp(sum of NLL / number of tokens), where NLL is the negative natural logarithm of the
probability that the model gives to an answer's token, and the sums run over the *answer* tokens of
all examples: the prompt (system prompt, documents, question) is given and not scored, the token
that ends the turn is scored. This is Hugging Face's definition ("Perplexity of fixed-length
models") for texts that fit into the context, with the prompt's labels masked.

bits per byte = sum of NLL / ln 2 / bytes of the answers in UTF-8, comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from forge_mcp.judging.intervals import Floats, Indices, bootstrap
from forge_mcp.machine import mlx
from forge_mcp.schemas.base import Metric
from forge_mcp.training.batching import Example

PREFILL_STEP = 2048  # tokens of a prompt that are computed at once
SCORE_STEP = 256  # answer positions whose logits are held at once


@dataclass(frozen=True)
class Perplexity:
    """Likelihood of n answers, one value an example in the order given; arrays of shape (n,).

    `nll` in nats, summed over an answer's tokens. A model that diverged shows as a value that is
    not finite.
    """

    nll: Floats
    tokens: Floats
    answer_bytes: Floats

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
        """perplexity and bits_per_byte with bootstrap intervals over the examples.

        A model that diverged on one of them has no such figure: then there are none.
        """
        if not np.isfinite(self.per_example).all():
            return []
        n = len(self.nll)
        return [
            bootstrap("perplexity", n, seed, self._perplexity),
            bootstrap("bits_per_byte", n, seed, self._bits_per_byte),
        ]

    def ratio_to(self, other: Perplexity, seed: int) -> Metric:
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

        return bootstrap("perplexity_ratio", len(self.nll), seed, ratio)

    def select(self, indices: Sequence[int]) -> Perplexity:
        """The same for some of the examples."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Perplexity(self.nll[chosen], self.tokens[chosen], self.answer_bytes[chosen])

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


class Scorer:
    """A model that scores answers. Keeps the KV cache of the last row, so that a prompt that
    begins like the one before (system prompt, documents) is computed only from where it differs.

    Logits exist only at answer positions: MLX is lazy, and of a prompt only the cache is asked for.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: list[Any] = []
        self.held: list[int] = []  # the tokens that the cache holds

    def score(self, example: Example) -> float:
        """The summed NLL (nats) of the example's answer given its prompt."""
        mx = mlx()
        begin, end = example.start - 1, len(example.tokens) - 1
        self._read(example.tokens[:begin])
        total = 0.0
        for at in range(begin, end, SCORE_STEP):
            until = min(at + SCORE_STEP, end)
            inputs = mx.array(example.tokens[at:until])
            targets = mx.array(example.tokens[at + 1 : until + 1])
            logits = self.model(inputs[None], cache=self.cache)[0].astype(mx.float32)
            picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            total += float((mx.logsumexp(logits, axis=-1) - picked).sum().item())
        self.held = example.tokens[:end]
        return total

    def _read(self, tokens: list[int]) -> None:
        """Make the cache hold exactly these tokens."""
        mx = mlx()
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        shared = 0
        for ours, theirs in zip(self.held, tokens, strict=False):
            if ours != theirs:
                break
            shared += 1
        surplus = len(self.held) - shared
        if shared == 0 or trim_prompt_cache(self.cache, surplus) != surplus:
            self.cache, shared = make_prompt_cache(self.model), 0
        for at in range(shared, len(tokens), PREFILL_STEP):
            self.model(mx.array(tokens[at : at + PREFILL_STEP])[None], cache=self.cache)
            mx.eval([layer.state for layer in self.cache])
        self.held = list(tokens)


def compute_perplexity(
    model: Any,
    examples: Sequence[Example],
    answer_bytes: Sequence[int],
    on_example: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Score the answers of tokenised chats.

    Args:
        model: an mlx-lm model in eval mode, called as model(tokens (1, T), cache=…).
        examples: at least one, each with a prompt and an answer.
        answer_bytes: length of each answer's text in UTF-8.
        on_example: called with (examples done, examples in all) after each.

    Returns:
        Values in the order of `examples`.

    Raises:
        ValueError: there is no example, or one without prompt or answer.
    """
    if not examples or any(e.start < 1 or e.answer_tokens < 1 for e in examples):
        raise ValueError("perplexity needs examples with a prompt and an answer")
    scorer = Scorer(model)
    nll = np.zeros(len(examples))
    # Sorted by their tokens, prompts with the same documents follow each other.
    order = sorted(range(len(examples)), key=lambda index: examples[index].tokens)
    for done, index in enumerate(order, start=1):
        nll[index] = scorer.score(examples[index])
        if on_example:
            on_example(done, len(examples))
    return Perplexity(
        nll=nll,
        tokens=np.array([example.answer_tokens for example in examples], dtype=np.float64),
        answer_bytes=np.array(answer_bytes, dtype=np.float64),
    )
