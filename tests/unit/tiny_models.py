"""Tiny random models in memory, of every architecture, and rows of tokens for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from training_models import CONFIGS, SHAPE, make_config

from forge_mcp import machine
from forge_mcp.training.batching import Example, Row

mx = machine.mlx()

# Kinds beside those of training_models: positions that are scaled, or that are not only relative.
MORE: dict[str, dict[str, Any]] = {
    "yarn": {
        "model_type": "qwen3",
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    },
    "ministral3": {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 24,
        "rope_parameters": {
            "rope_theta": 10000.0,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        },
    },
}
KINDS = [*CONFIGS, *MORE]
VOCABULARY = int(SHAPE["vocab_size"])


def make_model(kind: str = "llama", *, tied: bool = True, **changed: Any) -> Any:
    """A model in float32 with everything frozen."""
    from mlx.utils import tree_map_with_path
    from mlx_lm.utils import _get_classes

    config = make_config("llama" if kind in MORE else kind, tied=tied)
    config |= {"model_type": kind, **MORE[kind]} if kind in MORE else {}
    config |= changed
    mx.random.seed(5)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if kind.startswith("gemma3"):
        text = model.language_model if kind == "gemma3" else model
        text.sanitize({})  # without weights of a head the embedding is the head

    def value(path: str, array: Any) -> Any:
        if path.endswith("bias") or (array.ndim == 1 and kind.startswith("gemma")):
            return 0.1 * mx.random.normal(array.shape)
        return array

    model.update(tree_map_with_path(value, model.parameters()))
    model.freeze()
    mx.eval(model.parameters())
    return model


def trainable(model: Any) -> Any:
    """The same model, with what feeds attention and what follows it trained."""
    for layer in model.layers:
        for path, module in layer.named_modules():
            if path.endswith(("v_proj", "qkv_proj", "down_proj")):
                module.unfreeze(keys=["weight"])
    return model


def make_example(
    length: int, answer: int, seed: int = 0, weights: list[float] | None = None
) -> Example:
    """Random tokens, the last `answer` of which are learnt."""
    tokens = np.random.default_rng([seed, length]).integers(0, VOCABULARY, length)
    return Example([int(token) for token in tokens], length - answer, weights)


def make_row(*shapes: tuple[int, int]) -> Row:
    """A row of examples of (length, answer tokens)."""
    return Row(tuple(make_example(*shape, seed=at) for at, shape in enumerate(shapes)))


def plain_loss(model: Any, row: Row) -> Any:
    """The loss of mlx-lm's own model, each example by itself, with all of its logits."""
    import mlx.nn as nn

    total = mx.array(0.0)
    for example in row.examples:
        logits = model(mx.array(example.tokens[:-1])[None])[0].astype(mx.float32)
        losses = nn.losses.cross_entropy(logits, mx.array(example.tokens[1:]))
        weights = example.weights or [1.0] * example.answer_tokens
        total = total + (losses[example.start - 1 :] * mx.array(weights)).sum()
    return total


def close(found: Any, expected: Any, share: float) -> bool:
    """Whether two trees of arrays differ by at most a share of the largest expected number."""
    from mlx.utils import tree_flatten

    found, expected = dict(tree_flatten(found)), dict(tree_flatten(expected))
    assert found.keys() == expected.keys() and expected
    largest = max(mx.abs(array).max().item() for array in expected.values())
    assert largest > 0
    return all(
        mx.abs(found[name] - array).max().item() <= share * largest
        for name, array in expected.items()
    )
