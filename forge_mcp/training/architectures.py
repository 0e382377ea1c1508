"""The models that can be trained: where their hidden states, heads and layers are.

mlx-lm's models go from tokens to logits in one call. A loss that wants few logits needs the two
halves of it: the decoder up to its last norm, and the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import UnsupportedModel

mx = machine.mlx()
from mlx_lm.models.rope_utils import DynamicNTKScalingRoPE  # noqa: E402

# model_type of config.json. Families whose parameters bear the same names in mlx-lm and in Hugging
# Face files, so that a tuned model can be written back; mlx-lm itself loads many more.
ARCHITECTURES = (
    "llama",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi3",
)


def check_architecture(model_type: object, name: str) -> None:
    """Raises:
    UnsupportedModel: models of this type cannot be trained; type and base `name` are named.
    """
    if model_type not in ARCHITECTURES:
        raise UnsupportedModel(
            f"The base model '{name}' has an architecture that AI Forge cannot tune.",
            cause=f"its model_type is {model_type!r}; known are {', '.join(ARCHITECTURES)}",
            next_step="Choose another base: docs/bases.md names those that are known.",
        )


def text_model(model: Any) -> Any:
    """The part that reads and writes text: Gemma 3 with images keeps it one level down."""
    check_architecture(model.model_type, type(model).__name__)
    return model.language_model if "language_model" in model else model


def decoder(model: Any) -> Any:
    """Embedding, layers and the last norm."""
    return text_model(model).model


def hidden_states(model: Any, inputs: Any, cache: Any = None) -> Any:
    """(rows, tokens) token ids to the hidden states (rows, tokens, width) behind the last norm.

    Args:
        cache: one cache object that every layer is given; None = plain causal attention.
    """
    part = decoder(model)
    return part(inputs, None if cache is None else [cache] * len(part.layers))


def logits_of(model: Any, hidden: Any) -> Any:
    """Hidden states (…, width) to logits (…, vocabulary): what `model` itself would compute."""
    text = text_model(model)
    if "lm_head" in text:
        logits = text.lm_head(hidden)
    else:
        logits = text.model.embed_tokens.as_linear(hidden)
    cap = getattr(text, "final_logit_softcapping", None)
    return logits if cap is None else mx.tanh(logits / cap) * cap


def head_parameters(model: Any) -> Any:
    """The head's trainable parameters, in a tree like the text model's; mostly there are none."""
    text = text_model(model)
    if "lm_head" in text:
        return {"lm_head": text.lm_head.trainable_parameters()}
    return {"model": {"embed_tokens": text.model.embed_tokens.trainable_parameters()}}


def positions_are_relative(model: Any) -> bool:
    """Whether a shift of all positions changes nothing: attention sees only their differences.

    Not so with Ministral 3's scale on queries, which grows with the position, and with dynamic NTK
    scaling, whose base depends on the row's length: their rows hold one example.
    """
    if text_model(model).model_type == "ministral3":
        return bool(decoder(model).args.rope_parameters["llama_4_scaling_beta"] == 0)
    return places_are_fixed(model)


def places_are_fixed(model: Any) -> bool:
    """Whether a token's keys depend only on its place, so that they serve texts of any length.

    Not so with dynamic NTK scaling.
    """
    modules = decoder(model).modules()
    return not any(isinstance(module, DynamicNTKScalingRoPE) for module in modules)


@contextmanager
def checkpoint_layers(model: Any) -> Iterator[None]:
    """Gradient checkpointing: meanwhile each decoder layer keeps only what goes into it, and is
    computed again in the backward pass.

    Only this model's layers change, and only meanwhile: their class, in fact, so that the names of
    the parameters stay. Dropout falls on the same numbers both times.
    """
    layers = list(decoder(model).layers)
    classes: list[Any] = [type(layer) for layer in layers]
    for layer, kind in zip(layers, classes, strict=True):
        layer.__class__ = _checkpointed(kind)
    try:
        yield
    finally:
        for layer, kind in zip(layers, classes, strict=True):
            layer.__class__ = kind


@cache
def _checkpointed(kind: Any) -> type:
    def call(self: Any, x: Any, *others: Any, **named: Any) -> Any:
        stream = mx.default_stream(mx.default_device())
        drawn_from = _random_key()
        calls = 0

        def layer(parameters: Any, x: Any) -> Any:
            nonlocal calls
            calls += 1
            before, now = self.trainable_parameters(), _random_key()
            self.update(parameters)
            mx.random.seed(drawn_from)
            try:
                with mx.stream(stream):
                    return kind.__call__(self, x, *others, **named)
            finally:
                self.update(before)
                if calls > 1:  # what is computed again draws nothing new
                    mx.random.seed(now)

        return mx.checkpoint(layer)(self.trainable_parameters(), x)

    return type(f"Checkpointed{kind.__name__}", (kind,), {"__call__": call})


def _random_key() -> int:
    """MLX's random state as a seed that brings it back."""
    high, low = mx.random.state[0].tolist()
    return int(high) << 32 | int(low)
