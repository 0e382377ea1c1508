"""Adapters on a frozen, quantised linear layer, and how a model gets and loses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, UnsupportedModel
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.pissa import compute_lora_init, compute_pissa_init, power_iterations

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402

GROUP_SIZES = (128, 64, 32)
ADAPTER_KEYS = ("lora_a", "lora_b")


@dataclass(frozen=True)
class Quantised:
    """An affine-quantised weight as `mx.quantize` writes it.

    weight: (out, in * bits / 32) uint32; scales, biases: (out, in / group_size) floats.
    """

    weight: Any
    scales: Any
    biases: Any
    bits: int
    group_size: int

    def dequantised(self) -> Any:
        """(out, in), in the type of the scales."""
        return mx.dequantize(
            self.weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits
        )

    @property
    def nbytes(self) -> int:
        """Bytes in memory and on the disk."""
        return int(self.weight.nbytes + self.scales.nbytes + self.biases.nbytes)


class AdapterLinear(nn.Module):  # type: ignore[misc]
    """y = x Q^T + bias + scaling * (x A^T) B^T, with Q frozen and quantised.

    A is `lora_a` (rank, in), B is `lora_b` (out, rank), as PEFT stores them. On the CPU Q is
    dequantised once to float32, because `quantized_matmul` is slow there; the numbers are the same.
    """

    def __init__(self, frozen: Quantised, a: Any, b: Any, scaling: float, bias: Any = None) -> None:
        super().__init__()
        self.scaling = scaling
        self.bits = frozen.bits
        self.group_size = frozen.group_size
        self.quantised = not machine.on_cpu()
        if self.quantised:
            self.weight, self.scales, self.biases = frozen.weight, frozen.scales, frozen.biases
        else:
            self.weight = frozen.dequantised().astype(mx.float32)
        if bias is not None:
            self.bias = bias
        self.lora_a = a
        self.lora_b = b

    def __call__(self, x: Any) -> Any:
        """(…, in) to (…, out)."""
        if self.quantised:
            y = mx.quantized_matmul(
                x,
                self.weight,
                self.scales,
                self.biases,
                transpose=True,
                group_size=self.group_size,
                bits=self.bits,
            )
        else:
            y = x @ self.weight.T
        if "bias" in self:
            y = y + self.bias
        z = (x @ self.lora_a.T) @ self.lora_b.T
        return y + (self.scaling * z).astype(y.dtype)

    def merged(self) -> Any:
        """The plain weight that computes the same: Q + scaling * B A, (out, in) float32."""
        weight = self.weight
        if self.quantised:
            weight = mx.dequantize(
                weight, self.scales, self.biases, group_size=self.group_size, bits=self.bits
            )
        delta = self.lora_b.astype(mx.float32) @ self.lora_a.astype(mx.float32)
        return weight.astype(mx.float32) + self.scaling * delta


@dataclass
class Adapters:
    """What `attach_adapters` made, by module path: to be saved with the run."""

    frozen: dict[str, Quantised] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def decoder_linears(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every linear layer of the decoder; embeddings and head are none of them."""
    for path, module in model.named_modules():
        if path.startswith("model.layers.") and isinstance(module, nn.Linear | nn.QuantizedLinear):
            yield path, module


def select_targets(model: Any, wanted: str | list[str]) -> list[tuple[str, Any]]:
    """The layers to adapt, in the model's order.

    Args:
        wanted: "all-linear", or last parts of paths such as "q_proj".

    Raises:
        InvalidSettings: a name that no layer has, or an empty list.
    """
    linears = sorted(decoder_linears(model), key=lambda item: _natural(item[0]))
    if wanted == "all-linear":
        return linears
    names = sorted({path.rsplit(".", 1)[-1] for path, _ in linears})
    unknown = sorted(set(wanted) - set(names))
    if unknown or not wanted:
        raise InvalidSettings(
            "training.target_modules names layers that this base does not have."
            if unknown
            else "training.target_modules is empty.",
            cause=f"unknown: {', '.join(unknown) or 'nothing is named'}",
            next_step=f"Use 'all-linear' or some of: {', '.join(names)}.",
        )
    return [item for item in linears if item[0].rsplit(".", 1)[-1] in wanted]


def quantise(weight: Any, bits: int, group_size: int, dtype: str) -> Quantised:
    """Quantise (out, in) floats; scales and biases are kept in `dtype` (float16 for float32)."""
    kind = mx.bfloat16 if dtype == "bfloat16" else mx.float16
    packed, scales, biases = mx.quantize(
        mx.array(weight).astype(kind), group_size=group_size, bits=bits
    )
    mx.eval(packed, scales, biases)
    return Quantised(packed, scales, biases, bits, group_size)


def attach_adapters(model: Any, settings: TrainingSettings, dtype: str) -> Adapters:
    """Replace the target layers by adapters over their quantised residual (or weight, for LoRA).

    An already quantised base is split from its dequantised weights; for LoRA, a base with the
    same bits and group size keeps its own quantised weights.

    Args:
        model: an mlx-lm model; changed in place, and frozen but for the adapters.
        dtype: in which the base stores its floats.

    Raises:
        InvalidSettings: see `select_targets`.
        UnsupportedModel: a layer whose width no group size divides.
    """
    made = Adapters()
    scaling = settings.alpha / settings.rank
    for number, (path, linear) in enumerate(select_targets(model, settings.target_modules)):
        weight = _float_weight(linear)
        group_size = _group_size(path, weight.shape[1], settings, made.notices)
        if settings.rank > min(weight.shape):
            made.notices.append(f"{path}: rank {settings.rank} capped at {min(weight.shape)}.")
        seed = settings.seed + number
        if settings.init_method == "pissa":
            niter = power_iterations(weight.shape, settings.rank)
            start = compute_pissa_init(weight, settings.rank, settings.alpha, niter, seed)
            a, b = start.a, start.b
            frozen = quantise(start.residual, settings.quantization_bits, group_size, dtype)
        else:
            a, b = compute_lora_init(weight.shape, settings.rank, seed)
            frozen = _own_quantised(linear, settings) or quantise(
                weight, settings.quantization_bits, group_size, dtype
            )
        replace_linear(model, path, frozen, mx.array(a), mx.array(b), scaling)
        made.frozen[path] = frozen
    freeze_base(model)
    made.initial = adapter_weights(model)
    return made


def replace_linear(
    model: Any, path: str, frozen: Quantised, a: Any, b: Any, scaling: float
) -> None:
    """Put an adapter in the place of the linear layer at `path`, keeping its bias."""
    parent: Any = model
    *parts, name = path.split(".")
    for part in parts:
        parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
    linear = getattr(parent, name)
    bias = linear.bias if "bias" in linear else None
    layer = AdapterLinear(frozen, a, b, scaling, bias)
    mx.eval(layer.parameters())
    setattr(parent, name, layer)


def freeze_base(model: Any) -> None:
    """Leave only the adapters trainable."""
    model.freeze()
    for _, module in model.named_modules():
        if isinstance(module, AdapterLinear):
            module.unfreeze(recurse=False, keys=list(ADAPTER_KEYS), strict=True)


def adapter_weights(model: Any) -> dict[str, Any]:
    """The adapters by parameter name, e.g. 'model.layers.0.self_attn.q_proj.lora_a'."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.trainable_parameters()))


def set_adapter_weights(model: Any, weights: dict[str, Any]) -> None:
    """Put adapters (as `adapter_weights` gives them) into a model."""
    model.load_weights(list(weights.items()), strict=False)


def _natural(path: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in path.split(".")]


def _float_weight(linear: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight,
            linear.scales,
            linear.biases if "biases" in linear else None,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    return np.array(weight.astype(mx.float32))


def _own_quantised(linear: Any, settings: TrainingSettings) -> Quantised | None:
    if (
        isinstance(linear, nn.QuantizedLinear)
        and linear.mode == "affine"
        and linear.bits == settings.quantization_bits
        and linear.group_size == settings.quantization_group_size
    ):
        return Quantised(
            linear.weight, linear.scales, linear.biases, linear.bits, linear.group_size
        )
    return None


def _group_size(path: str, width: int, settings: TrainingSettings, notices: list[str]) -> int:
    wanted = settings.quantization_group_size
    if width % wanted == 0:
        return int(wanted)
    for size in GROUP_SIZES:
        if size < wanted and width % size == 0:
            notices.append(f"{path}: group size {wanted} does not divide {width}; {size} is used.")
            return size
    raise UnsupportedModel(
        f"The layer {path} cannot be quantised.",
        cause=f"its width {width} is no multiple of {GROUP_SIZES[-1]}",
        next_step="Leave it out of training.target_modules, or choose another base.",
    )
