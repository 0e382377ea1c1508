"""The loss on answers: cross-entropy at their tokens alone, the prompt is only read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from forge_mcp import machine
from forge_mcp.training.batching import Example, Row


def answer_logits(model: Any, example: Example) -> Any:
    """Logits (answer tokens, vocabulary) that predict each token of the answer, in float32."""
    mx = machine.mlx()
    inputs = mx.array(example.tokens[:-1])[None]
    hidden = model.model(inputs)[0, example.start - 1 :]
    tied = model.args.tie_word_embeddings
    logits = model.model.embed_tokens.as_linear(hidden) if tied else model.lm_head(hidden)
    return logits.astype(mx.float32)


def row_loss(model: Any, row: Row) -> Any:
    """Weighted sum (scalar, float32) of the cross-entropy in nats over the row's answer tokens."""
    mx = machine.mlx()
    total = mx.array(0.0)
    for example in row.examples:
        targets = mx.array(example.tokens[example.start :])
        logits = answer_logits(model, example)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        losses = mx.logsumexp(logits, axis=-1) - picked
        if example.weights is not None:
            losses = losses * mx.array(example.weights)
        total = total + losses.sum()
    return total


class Evaluation(NamedTuple):
    """Over all answer tokens: mean loss in nats, share predicted rightly, number of tokens.

    Every token counts 1 here, whatever its weight in training: losses of runs with other weights
    can be compared.
    """

    loss: float
    accuracy: float
    tokens: int


def evaluate(model: Any, rows: Sequence[Row]) -> Evaluation:
    """Loss and accuracy on rows of examples, by tokens."""
    mx = machine.mlx()
    loss, right, tokens = 0.0, 0, 0
    for example in (example for row in rows for example in row.examples):
        targets = mx.array(example.tokens[example.start :])
        logits = answer_logits(model, example)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        summed = (mx.logsumexp(logits, axis=-1) - picked).sum()
        hits = (logits.argmax(axis=-1) == targets).sum()
        mx.eval(summed, hits)
        loss += summed.item()
        right += hits.item()
        tokens += example.answer_tokens
    return Evaluation(loss / max(tokens, 1), right / max(tokens, 1), tokens)
