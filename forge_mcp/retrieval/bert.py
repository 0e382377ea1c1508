"""The forward pass of BERT and RoBERTa in MLX: from token ids to one hidden state a token.

Devlin et al. 2018 (arXiv 1810.04805) and Liu et al. 2019 (arXiv 1907.11692), post-norm, as Hugging
Face stores them. RoBERTa differs in one thing: its positions are counted from `pad_token_id + 1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from forge_mcp import machine

FAMILIES = ("bert", "roberta", "xlm-roberta")
# Older files call the parameters of a layer norm as TensorFlow did.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class BertConfig(BaseModel):
    """What the forward pass needs of a config.json; `num_attention_heads` divides `hidden_size`."""

    model_type: str
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    position_embedding_type: str | None = "absolute"

    def problem(self) -> str | None:
        """Why this model cannot be run here, or None."""
        if self.model_type not in FAMILIES:
            return f"its model_type is {self.model_type!r}; known are {', '.join(FAMILIES)}"
        if self.position_embedding_type not in (None, "absolute"):
            return f"its positions are {self.position_embedding_type!r}, not absolute"
        if self.hidden_act not in _ACTIVATIONS:
            return f"its activation is {self.hidden_act!r}; known are {', '.join(_ACTIVATIONS)}"
        if self.hidden_size % self.num_attention_heads:
            return f"{self.hidden_size} hidden units do not divide by {self.num_attention_heads}"
        return None

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1

    @property
    def max_tokens(self) -> int:
        """The longest input, special tokens included."""
        return self.max_position_embeddings - self.first_position


class Bert:
    """A BERT or RoBERTa whose weights (float32) are in memory.

    Args:
        config: one that has no `problem`.
        weights: safetensors file.

    Raises:
        KeyError: a weight is missing; it is named.
        ValueError: a weight has another shape than the config says.
    """

    def __init__(self, config: BertConfig, weights: Path) -> None:
        self.config = config
        mx = machine.mlx()
        stored = {_plain(name): array for name, array in mx.load(str(weights)).items()}
        needed = _shapes(config)
        for name, shape in needed.items():
            if name not in stored:
                raise KeyError(f"{name} is missing")
            # Some sizes (of the feed-forward layer) are not in the config: any is right.
            if any(w not in (None, s) for w, s in zip(shape, stored[name].shape, strict=True)):
                raise ValueError(f"{name} has the shape {stored[name].shape}, not {shape}")
        self._weights = {name: stored[name].astype(mx.float32) for name in needed}
        mx.eval(self._weights)

    def hidden_states(self, ids: Any, mask: Any) -> Any:
        """The last layer's output.

        Args:
            ids: int array of shape (texts, tokens), padded on the right.
            mask: bool array of the same shape, true where there is a token.

        Returns:
            float32 of shape (texts, tokens, hidden_size); what stands at padding means nothing.
        """
        mx = machine.mlx()
        config, weight = self.config, self._weights
        positions = mx.arange(ids.shape[1]) + config.first_position
        hidden = weight["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + weight["embeddings.position_embeddings.weight"][positions]
        hidden = hidden + weight["embeddings.token_type_embeddings.weight"][0]
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        seen = mx.where(mask, 0.0, float("-inf"))[:, None, None, :].astype(mx.float32)
        activation = _ACTIVATIONS[config.hidden_act]
        for number in range(config.num_hidden_layers):
            layer = f"encoder.layer.{number}."
            hidden = self._norm(
                hidden + self._attention(hidden, seen, layer), f"{layer}attention.output.LayerNorm"
            )
            inner = activation(mx, self._linear(hidden, f"{layer}intermediate.dense"))
            hidden = self._norm(
                hidden + self._linear(inner, f"{layer}output.dense"), f"{layer}output.LayerNorm"
            )
        return hidden

    def _attention(self, hidden: Any, seen: Any, layer: str) -> Any:
        mx = machine.mlx()
        texts, tokens, size = hidden.shape
        heads = self.config.num_attention_heads

        def split(name: str) -> Any:
            states = self._linear(hidden, f"{layer}attention.self.{name}")
            return states.reshape(texts, tokens, heads, -1).transpose(0, 2, 1, 3)

        mixed = mx.fast.scaled_dot_product_attention(
            split("query"), split("key"), split("value"), scale=(size // heads) ** -0.5, mask=seen
        )
        mixed = mixed.transpose(0, 2, 1, 3).reshape(texts, tokens, size)
        return self._linear(mixed, f"{layer}attention.output.dense")

    def _linear(self, hidden: Any, name: str) -> Any:
        mx = machine.mlx()
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return mx.addmm(bias, hidden, weight.T)

    def _norm(self, hidden: Any, name: str) -> Any:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return machine.mlx().fast.layer_norm(hidden, weight, bias, self.config.layer_norm_eps)


def _plain(name: str) -> str:
    """A weight's name without the prefix of a model with a head, as BertModel saves it."""
    for family in ("bert.", "roberta."):
        name = name.removeprefix(family)
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def _shapes(config: BertConfig) -> Mapping[str, tuple[int | None, ...]]:
    """The weights of the forward pass and their shapes; None where the config does not say."""
    size = config.hidden_size
    shapes: dict[str, tuple[int | None, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, size),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, size),
        "embeddings.token_type_embeddings.weight": (None, size),
    }
    norms = ["embeddings.LayerNorm"]
    linears: dict[str, tuple[int | None, int | None]] = {}
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linears[f"{layer}attention.{name}"] = (size, size)
        linears[f"{layer}intermediate.dense"] = (None, size)
        linears[f"{layer}output.dense"] = (size, None)
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}
    for name in norms:
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return shapes


def _gelu(mx: Any, x: Any) -> Any:
    return x * 0.5 * (1.0 + mx.erf(x * 2**-0.5))


def _gelu_tanh(mx: Any, x: Any) -> Any:
    return 0.5 * x * (1.0 + mx.tanh((2 / mx.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _relu(mx: Any, x: Any) -> Any:
    return mx.maximum(x, 0.0)


_ACTIVATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}
