"""How much memory a training needs, estimated from a model's shape before anything is loaded.

The sum of (D hidden size, T tokens of a row, r rank; "float" is 2 bytes on Metal and CUDA and 4
on the CPU, where frozen weights are dequantised to float32):

    frozen weights    the linear layers at their bits and scales, embedding and head as they are
    adapters          r (in + out) float32 numbers a layer: the weight, its gradient, the best one
                      so far, and Adam's two moments (8 bits each with adamw_8bit)
    layers' inputs    layers x T x D floats, kept for the backward pass; with gradient checkpointing
                      that is all which is kept, and one layer at a time is computed again
    layers            T (6 D + 2 (q + k + v) + 3.5 I) floats and half of heads x T^2 scores, for
                      each layer that is kept and once more for gradients
    logits            LOGIT_POSITIONS answer positions at a time, 3 float32 each a vocabulary entry
    overhead          interpreter and libraries

It is an estimate. The layers' factors were fitted to what two small models took on a CPU
(docs/bases.md); what an allocator keeps and what a kernel needs besides is not in it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from forge_mcp.settings import TrainingSettings

LOGIT_POSITIONS = 256
OVERHEAD_BYTES = 400_000_000
PACKED_BITS = 4.5  # of an embedding in a 4-bit repository: groups of 64 with scale and bias
FUSED = ("phi3",)  # one matrix for q, k and v, and one for gate and up


class Shape(BaseModel):
    """What decides the size of a decoder.

    intermediate: width of the MLP; vocabulary: rows of the embedding; tied: the head is the
    embedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The shape that a config.json describes.

        Raises:
            KeyError: it lacks a number that has no usual value.
        """
        text = {**config, **config.get("text_config", {})}
        heads = text.get("num_attention_heads", 8)
        gemma = str(config["model_type"]).startswith("gemma")
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            intermediate=text["intermediate_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or (4 if gemma else heads),
            head_dim=text.get("head_dim") or (256 if gemma else text["hidden_size"] // heads),
            vocabulary=text.get("vocab_size", 262208 if gemma else 0),
            tied=text.get("tie_word_embeddings", gemma),
        )

    @property
    def _attention(self) -> tuple[int, int]:
        return self.heads * self.head_dim, self.kv_heads * self.head_dim

    def linears(self, architecture: str) -> list[tuple[int, int]]:
        """(out, in) of every linear layer of one decoder layer."""
        q, kv = self._attention
        d, i = self.hidden, self.intermediate
        if architecture in FUSED:
            return [(q + 2 * kv, d), (d, q), (2 * i, d), (d, i)]
        return [(q, d), (kv, d), (kv, d), (d, q), (i, d), (i, d), (d, i)]

    def parameters(self, architecture: str) -> int:
        """Numbers in the whole language model, norms and biases included."""
        q, kv = self._attention
        small = 2 * self.hidden
        if architecture == "qwen2":
            small += q + 2 * kv  # biases
        if architecture in ("gemma2", "gemma3", "gemma3_text"):
            small += 2 * self.hidden  # norms behind attention and MLP too
        if architecture in ("qwen3", "gemma3", "gemma3_text"):
            small += 2 * self.head_dim  # norms of queries and keys
        layer = small + sum(out * width for out, width in self.linears(architecture))
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + tables + self.hidden


def training_bytes(
    shape: Shape,
    architecture: str,
    settings: TrainingSettings,
    *,
    on_cpu: bool,
    table_bits: float = PACKED_BITS,
) -> int:
    """Memory that training needs at its peak, in bytes: the estimate described above.

    Args:
        shape: of the base.
        architecture: its model_type.
        settings: rank, quantisation, optimiser, max_seq_length, gradient checkpointing count.
        on_cpu: MLX computes on the CPU: everything frozen is float32 there.
        table_bits: bits a weight in which embedding and head are stored.
    """
    number = 4 if on_cpu else 2
    tokens = settings.max_seq_length
    linears = shape.linears(architecture)
    weights = shape.layers * sum(out * width for out, width in linears)
    tables = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    packed = weights * (settings.quantization_bits + 32 / settings.group_size) / 8
    frozen = packed + 4 * (weights + tables) if on_cpu else packed + tables * table_bits / 8
    rank = settings.rank
    adapters = (
        shape.layers
        * sum(min(rank, out, width) * (out + width) for out, width in linears)
        * (4 * 3 + (8 if settings.optimizer == "adamw" else 2))
    )
    kept = shape.layers * tokens * shape.hidden
    attention = shape.heads + 2 * shape.kv_heads
    layer = tokens * (6 * shape.hidden + 2 * attention * shape.head_dim + 3.5 * shape.intermediate)
    scores = shape.heads * tokens * tokens / 2
    alive = 1 if settings.gradient_checkpointing else shape.layers
    activations = number * (kept + (1 + alive) * (layer + scores))
    logits = 3 * 4 * LOGIT_POSITIONS * shape.vocabulary
    return int(frozen + adapters + activations + logits + OVERHEAD_BYTES)
