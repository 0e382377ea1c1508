"""Adapters on a frozen, quantised linear layer, and how a model gets and loses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, UnsupportedModel
from forge_mcp.settings import QUANTIZATION_GROUP_SIZES, TrainingSettings
from forge_mcp.training.pissa import compute_lora_init, compute_pissa_init, power_iterations
from forge_mcp.training.quantisation import Quantisation, Quantised, quantise

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402

ADAPTER_KEYS = ("lora_a", "lora_b")


class AdapterLinear(nn.Module):  # type: ignore[misc]
    """y = x Q^T + bias + scaling * (x A^T) B^T, with Q frozen and quantised.

    A is `lora_a` (rank, in), B is `lora_b` (out, rank), as PEFT stores them. On the CPU Q is
    dequantised once to float32, because `quantized_matmul` is slow there; the numbers are the same.
    """

    def __init__(self, frozen: Quantised, a: Any, b: Any, scaling: float, bias: Any = None) -> None:
        super().__init__()
        self.scaling = scaling
        self.frozen = frozen  # no parameter: it is saved by run.py in its own form
        self.dense = machine.on_cpu()
        if self.dense:
            self.weight = frozen.dequantised()
        if bias is not None:
            self.bias = bias
        self.lora_a = a
        self.lora_b = b

    def __call__(self, x: Any) -> Any:
        """(…, in) to (…, out)."""
        y = x @ self.weight.T if self.dense else self.frozen.matmul(x)
        if "bias" in self:
            y = y + self.bias
        z = (x @ self.lora_a.T) @ self.lora_b.T
        return y + (self.scaling * z).astype(y.dtype)

    def merged(self) -> Any:
        """The plain weight that computes the same: Q + scaling * B A, (out, in) float32."""
        weight = self.weight if self.dense else self.frozen.dequantised()
        delta = self.lora_b.astype(mx.float32) @ self.lora_a.astype(mx.float32)
        return weight + self.scaling * delta


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
    for number, (path, linear) in enumerate(select_targets(model, settings.target_modules)):
        weight = _float_weight(linear)
        how = _quantisation(path, weight.shape[1], settings, made.notices)
        if settings.rank > min(weight.shape):
            made.notices.append(f"{path}: rank {settings.rank} capped at {min(weight.shape)}.")
        seed = settings.seed + number
        if settings.init_method == "pissa":
            niter = power_iterations(weight.shape, settings.rank)
            start = compute_pissa_init(weight, settings.rank, settings.lora_alpha, niter, seed)
            a, b = start.a, start.b
            frozen = quantise(start.residual, how, dtype)
        else:
            a, b = compute_lora_init(weight.shape, settings.rank, seed)
            frozen = _own_quantised(linear, how) or quantise(weight, how, dtype)
        replace_linear(model, path, frozen, mx.array(a), mx.array(b), settings.scaling)
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


def _own_quantised(linear: Any, how: Quantisation) -> Quantised | None:
    if isinstance(linear, nn.QuantizedLinear) and (how.type, how.bits, how.group_size) == (
        linear.mode,
        linear.bits,
        linear.group_size,
    ):
        arrays = {name: linear[name] for name in ("weight", "scales", "biases") if name in linear}
        width = linear.scales.shape[1] * linear.group_size
        return Quantised(how, (linear.weight.shape[0], width), arrays)
    return None


def _quantisation(
    path: str, width: int, settings: TrainingSettings, notices: list[str]
) -> Quantisation:
    """The format asked for, with smaller groups where they do not divide the layer's width."""
    wanted = settings.group_size
    fitting = [
        size
        for size in sorted(QUANTIZATION_GROUP_SIZES[settings.quantization_type], reverse=True)
        if size <= wanted and width % size == 0
    ]
    if not fitting:
        raise UnsupportedModel(
            f"The layer {path} cannot be quantised.",
            cause=f"its width {width} is no multiple of a group size of "
            f"{settings.quantization_type}",
            next_step="Leave it out of training.target_modules, or choose another base.",
        )
    if fitting[0] != wanted:
        notices.append(
            f"{path}: group size {wanted} does not divide {width}; {fitting[0]} is used."
        )
    return Quantisation(
        settings.quantization_type,
        settings.quantization_bits,
        fitting[0],
        settings.quantization_type == "nf4" and settings.double_quantization,
    )
