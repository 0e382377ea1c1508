"""Adapters on a frozen, quantised linear layer, and how a model gets and loses them.

pissa          the principal part of the weights, over their quantised residual (pissa.py)
lora, rslora   B = 0 over the quantised weights (arXiv 2106.09685, 2312.03732)
dora           LoRA with each row's magnitude trained apart (arXiv 2402.09353)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, UnsupportedModel
from forge_mcp.settings import QUANTIZATION_GROUP_SIZES, TrainingSettings
from forge_mcp.training.bases import materialise
from forge_mcp.training.pissa import (
    BLOCK_ELEMENTS,
    Matrix,
    compute_lora_init,
    compute_qpissa_init,
    power_iterations,
    subtract,
)
from forge_mcp.training.quantisation import Quantisation, Quantised, quantise

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402

Notices = dict[str, list[str]]  # what is told, and of which layers
FACTORS, MAGNITUDE = ("lora_a", "lora_b"), "lora_m"
HEAD = "lm_head"
PACKED_ARRAYS = ("weight", "scales", "biases")  # of a quantised layer of mlx
SMALLEST_NORM = 1e-6  # of a row, so that one of zeros divides nothing by zero


class AdapterLinear(nn.Module):  # type: ignore[misc]
    """y = x Q^T + scaling * (x A^T) B^T + bias, with Q frozen and quantised.

    A is `lora_a` (rank, in), B is `lora_b` (out, rank), as PEFT stores them. With DoRA the row o of
    Q + scaling * B A is brought to the length `lora_m`[o]: y = m / |Q + scaling * B A| * (x Q^T +
    scaling * (x A^T) B^T) + bias, where the gradient takes the norm as constant (arXiv 2402.09353,
    equation 11). Dropout is applied to what goes into A, while training.

    Args:
        frozen: Q (out, in).
        a, b: float32.
        scaling: s = alpha / rank, or what else the method says.
        bias: (out,), frozen.
        magnitude: (out,) float32, for DoRA.
        dropout: share of the input.
        dense: hold Q dequantised, as float32. The numbers are the same; on a CPU, where
            `quantized_matmul` is slow, it is the default.
    """

    def __init__(
        self,
        frozen: Quantised,
        a: Any,
        b: Any,
        scaling: float,
        bias: Any = None,
        *,
        magnitude: Any = None,
        dropout: float = 0.0,
        dense: bool | None = None,
    ) -> None:
        super().__init__()
        self.scaling = scaling
        self.dense = machine.on_cpu() if dense is None else dense
        if self.dense:
            self.weight = frozen.dequantised()
        else:
            self.frozen = frozen  # no parameter: it is saved by run.py in its own form
        if bias is not None:
            self.bias = bias
        self.lora_a, self.lora_b = a, b
        if dropout:
            self.dropout = nn.Dropout(dropout)
        if magnitude is not None:
            self.lora_m = magnitude
            self._squares = mx.square(row_norms(frozen))
            mx.eval(self._squares)  # threads that compute with one layer share no open graph
            self._settled: Any = None

    def __call__(self, x: Any) -> Any:
        """(…, in) to (…, out)."""
        y = x @ self.weight.T if self.dense else self.frozen.matmul(x)
        z = self.dropout(x) if "dropout" in self else x
        z = (self.scaling * (z @ self.lora_a.T)) @ self.lora_b.T
        y = y + z.astype(y.dtype)
        if MAGNITUDE in self:
            y = y * self._stretch().astype(y.dtype)
        return y + self.bias if "bias" in self else y

    def merged(self) -> Any:
        """The plain weight that computes the same, (out, in) float32: Q + scaling * B A, its rows
        brought to their magnitude with DoRA."""
        weight = self.weight if self.dense else self.frozen.dequantised()
        delta = self.lora_b.astype(mx.float32) @ self.lora_a.astype(mx.float32)
        weight = weight + self.scaling * delta
        return weight * self._stretch()[:, None] if MAGNITUDE in self else weight

    def settle(self) -> None:
        """Compute DoRA's norms once and for all: the adapter changes no more.

        They cost as much as `rank` tokens, which is a lot where tokens come one at a time.
        """
        if MAGNITUDE in self:
            self._settled = self._stretch()
            mx.eval(self._settled)

    def _stretch(self) -> Any:
        """m / |Q + scaling * B A| by row, (out,) float32."""
        if self._settled is not None:
            return self._settled
        return self.lora_m / mx.stop_gradient(self._norms(self.lora_a, self.lora_b))

    def _norms(self, a: Any, b: Any) -> Any:
        """|Q + s B A| by row without that matrix: |q|^2 + 2 s b·(A q) + s^2 b·(A A^T b)."""
        crossed = (a @ self.weight.T if self.dense else self.frozen.matmul(a)).T
        squares = (
            self._squares
            + 2 * self.scaling * (b * crossed).sum(axis=1)
            + self.scaling**2 * (b * (b @ (a @ a.T))).sum(axis=1)
        )
        return mx.sqrt(mx.maximum(squares, SMALLEST_NORM**2))


@dataclass
class Adapters:
    """What `attach_adapters` made, by module path: to be saved with the run.

    errors: squared Frobenius norms of what quantising has lost and of the base's weight.
    """

    frozen: dict[str, Quantised] = field(default_factory=dict)
    initial: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Of all frozen weights together, scales included."""
        return 8 * sum(one.nbytes for one in self.frozen.values()) / self._weights

    @property
    def quantisation_error(self) -> float:
        """Relative: the Frobenius norm of what is lost over that of the weights, all layers."""
        lost, whole = (sum(pair) for pair in zip(*self.errors.values(), strict=True))
        return math.sqrt(lost / whole) if whole else 0.0

    def summary(self) -> str:
        """In words: how many layers, their size against 16-bit floats, the error."""
        trainable = sum(int(array.size) for array in self.initial.values())
        error, saved = self.quantisation_error, 1 - self.bits_per_weight / 16
        return (
            f"{len(self.frozen)} layers with {self._weights / 1e6:,.1f}M frozen weights in "
            f"{self.bits_per_weight:.2f} bits a weight, {saved:.0%} smaller than "
            "16-bit floats; "
            + (f"quantisation error {error:.1%}" if error else "the base's own quantisation")
            + f"; {trainable / 1e6:,.2f}M trainable"
        )

    @property
    def _weights(self) -> int:
        return sum(math.prod(one.shape) for one in self.frozen.values())


class _Start(NamedTuple):
    """frozen (out, in), a (rank, in), b (out, rank); error and norm: Frobenius, of what quantising
    has lost and of the base's weight."""

    frozen: Quantised
    a: Matrix
    b: Matrix
    error: float
    norm: float


def decoder_linears(model: Any) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every linear layer of the decoder; embeddings and head are none of them.

    A layer that is reached by several paths comes with each.
    """
    modules = model.named_modules()
    blocks = {id(block) for block in model.layers}
    inside = tuple(f"{path}." for path, module in modules if id(module) in blocks)
    for path, module in modules:
        if path.startswith(inside) and isinstance(module, nn.Linear | nn.QuantizedLinear):
            yield path, module


def select_targets(model: Any, wanted: str | list[str]) -> list[tuple[str, Any]]:
    """The layers to adapt, in the model's order, each once.

    Args:
        wanted: "all-linear", or last parts of paths such as "q_proj"; "lm_head" is the head.

    Raises:
        InvalidSettings: a name that no layer has, an empty list, or a head that is the embeddings.
    """
    linears = list(decoder_linears(model))
    heads = [
        (path, module)
        for path, module in model.named_modules()
        if _last(path) == HEAD and isinstance(module, nn.Linear | nn.QuantizedLinear)
    ]
    if wanted == "all-linear":
        return _once(linears)
    linears += heads
    names = sorted({_last(path) for path, _ in linears})
    unknown = sorted(set(wanted) - set(names))
    if unknown or not wanted:
        tied = unknown == [HEAD]
        raise InvalidSettings(
            "training.target_modules names layers that this base does not have."
            if unknown
            else "training.target_modules is empty.",
            cause=f"its {HEAD} is its embeddings (they are tied), which are not adapted"
            if tied
            else f"unknown: {', '.join(unknown) or 'nothing is named'}",
            next_step=f"Use 'all-linear' or some of: {', '.join(names)}.",
        )
    return _once([item for item in linears if _last(item[0]) in wanted])


def attach_adapters(
    model: Any, settings: TrainingSettings, dtype: str, *, dense: bool | None = None
) -> Adapters:
    """Replace the target layers by adapters over their quantised residual (or weight, for LoRA).

    Layer by layer: the weights of a lazily loaded model are read, split, quantised and let go
    before the next, so that at most two float32 copies of the largest stand beside the quantised
    model (the exact SVD, which is for small ones, takes some more). Then the rest is read.

    An already quantised base is split from its dequantised weights; for LoRA, rsLoRA and DoRA, a
    layer in the format that is asked for keeps its own quantised weights.

    Args:
        model: an mlx-lm model; changed in place, and frozen but for the adapters.
        dtype: in which the base stores its floats.
        dense: as `AdapterLinear` takes it.

    Raises:
        InvalidSettings: see `select_targets`.
        UnsupportedModel: a layer whose width no group size divides, or weights that are no numbers.
    """
    made = Adapters()
    notices: Notices = {}
    targets = select_targets(model, settings.target_modules)
    formats = [
        _quantisation(path, _shape(linear)[1], settings, notices) for path, linear in targets
    ]
    for number, ((path, linear), how) in enumerate(zip(targets, formats, strict=True)):
        start = _start(path, linear, how, settings, dtype, settings.seed + number, notices)
        replace_linear(
            model,
            path,
            start.frozen,
            mx.array(start.a),
            mx.array(start.b),
            settings.scaling,
            magnitude=row_norms(start.frozen) if settings.init_method == "dora" else None,
            dropout=settings.lora_dropout,
            dense=dense,
        )
        made.frozen[path] = start.frozen
        made.errors[path] = (start.error**2, start.norm**2)
        mx.clear_cache()
    materialise(model)
    freeze_base(model)
    made.initial = adapter_weights(model)
    made.notices = [_notice(text, paths) for text, paths in notices.items()]
    return made


def replace_linear(
    model: Any,
    path: str,
    frozen: Quantised,
    a: Any,
    b: Any,
    scaling: float,
    *,
    magnitude: Any = None,
    dropout: float = 0.0,
    dense: bool | None = None,
) -> None:
    """Put an adapter in the place of the linear layer at `path`, keeping its bias.

    Where other paths lead to the same layer, they lead to the same adapter afterwards.
    """
    parent, name = _parent(model, path)
    linear = getattr(parent, name)
    bias = linear.bias if "bias" in linear else None
    layer = AdapterLinear(
        frozen, a, b, scaling, bias, magnitude=magnitude, dropout=dropout, dense=dense
    )
    layer.train(linear.training)
    mx.eval(layer.parameters())
    for other in [other for other, module in model.named_modules() if module is linear]:
        parent, name = _parent(model, other)
        setattr(parent, name, layer)


def freeze_base(model: Any) -> None:
    """Leave only the adapters trainable."""
    model.freeze()
    for _, layer in adapter_layers(model):
        keys = [key for key in (*FACTORS, MAGNITUDE) if key in layer]
        layer.unfreeze(recurse=False, keys=keys, strict=True)


def adapter_layers(model: Any) -> list[tuple[str, AdapterLinear]]:
    """(path, layer) of every adapted layer, in the model's order, each once."""
    return _once([item for item in model.named_modules() if isinstance(item[1], AdapterLinear)])


def adapter_weights(model: Any) -> dict[str, Any]:
    """The adapters by parameter name, e.g. 'model.layers.0.self_attn.q_proj.lora_a'."""
    return {
        f"{path}.{key}": layer[key]
        for path, layer in adapter_layers(model)
        for key in (*FACTORS, MAGNITUDE)
        if key in layer
    }


def set_adapter_weights(model: Any, weights: dict[str, Any]) -> None:
    """Put adapters (as `adapter_weights` gives them) into a model."""
    model.load_weights(list(weights.items()), strict=False)


def row_norms(frozen: Quantised) -> Any:
    """Euclidean norm of each row of a weight, (out,) float32."""
    norms = []
    for _, rows in frozen.dequantised_rows():
        norms.append(mx.linalg.norm(rows, axis=1))
        mx.eval(norms[-1])
    return mx.concatenate(norms)


def _parent(model: Any, path: str) -> tuple[Any, str]:
    parent: Any = model
    *parts, name = path.split(".")
    for part in parts:
        parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
    return parent, name


def _last(path: str) -> str:
    return path.rpartition(".")[-1]


def _natural(path: str) -> list[tuple[bool, int | str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in path.split(".")]


def _once(items: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """In the order of their paths; of several paths to one module, the first."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in sorted(items, key=lambda item: _natural(item[0])):
        found.setdefault(id(module), (path, module))
    return list(found.values())


def _shape(linear: Any) -> tuple[int, int]:
    if isinstance(linear, nn.QuantizedLinear):
        return linear.weight.shape[0], linear.weight.shape[1] * 32 // linear.bits
    return linear.weight.shape[0], linear.weight.shape[1]


def _start(
    path: str,
    linear: Any,
    how: Quantisation,
    settings: TrainingSettings,
    dtype: str,
    seed: int,
    notices: Notices,
) -> _Start:
    """With what a layer's adapter begins; the layer itself has lost its weight afterwards."""
    shape = _shape(linear)
    if settings.rank > min(shape):
        told = f"rank {settings.rank} is more than the layer has: {min(shape)} is used"
        notices.setdefault(told, []).append(path)
    if settings.init_method == "pissa":
        weight, norm = _take_weight(path, linear)
        niter = _niter(settings, shape)
        iterations = settings.qpissa_iterations
        start = compute_qpissa_init(
            weight, settings.rank, settings.scaling, how, dtype, iterations, niter, seed
        )
        return _Start(start.frozen, start.a, start.b, start.error, norm)
    a, b = compute_lora_init(shape, settings.rank, seed)
    own = _own_quantised(path, linear, how, notices)
    if own is not None:
        norm = float(mx.linalg.norm(row_norms(own)).item())
        _require_finite(path, norm)
        return _Start(own, a, b, 0.0, norm)
    weight, norm = _take_weight(path, linear)
    frozen = quantise(weight, how, dtype)
    subtract(weight, frozen)
    return _Start(frozen, a, b, float(np.linalg.norm(weight)), norm)


def _take_weight(path: str, linear: Any) -> tuple[Matrix, float]:
    """A layer's weight (out, in), which the layer holds no longer, and its Frobenius norm.

    Read a block at a time, so that no second copy in float32 is made.
    """
    shape = _shape(linear)
    weight = np.empty(shape, np.float32)
    rows = max(1, BLOCK_ELEMENTS // shape[1])
    for start in range(0, shape[0], rows):
        here = slice(start, start + rows)
        packed = isinstance(linear, nn.QuantizedLinear)
        block = _packed(linear, here).dequantised() if packed else linear.weight[here]
        weight[here] = np.asarray(block.astype(mx.float32))
    for name in PACKED_ARRAYS:
        linear.pop(name, None)
    norm = float(np.linalg.norm(weight))
    _require_finite(path, norm)
    return weight, norm


def _packed(linear: Any, rows: slice = slice(None)) -> Quantised:
    """What a layer that mlx-lm has loaded quantised holds, or some rows of it."""
    how = Quantisation(linear.mode, linear.bits, linear.group_size)
    arrays = {name: linear[name][rows] for name in PACKED_ARRAYS if name in linear}
    return Quantised(how, (len(arrays["weight"]), _shape(linear)[1]), arrays)


def _own_quantised(path: str, linear: Any, how: Quantisation, notices: Notices) -> Quantised | None:
    """The layer's own quantised weights where they have the format that is asked for."""
    if not isinstance(linear, nn.QuantizedLinear):
        return None
    own = _packed(linear)
    if own.how == how:
        mx.eval(own.arrays)
        return own
    told = (
        f"the base's {linear.bits}-bit {linear.mode} weights (groups of {linear.group_size}) are "
        f"quantised again to {how.bits}-bit {how.type} (groups of {how.group_size}), as the "
        "settings ask, and lose a little more"
    )
    notices.setdefault(told, []).append(path)
    return None


def _require_finite(path: str, norm: float) -> None:
    if not math.isfinite(norm):
        raise UnsupportedModel(
            f"The layer {path} of the base cannot be used.",
            cause="its weights hold values that are no finite numbers",
            next_step="Fetch the model again, or choose another base.",
        )


def _niter(settings: TrainingSettings, shape: tuple[int, int]) -> int | None:
    if settings.svd_niter == "auto":
        return power_iterations(shape, settings.rank)
    return None if settings.svd_niter == "exact" else settings.svd_niter


def _quantisation(
    path: str, width: int, settings: TrainingSettings, notices: Notices
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
        told = f"group size {wanted} does not divide {width}; {fitting[0]} is used"
        notices.setdefault(told, []).append(path)
    return Quantisation(
        settings.quantization_type,
        settings.quantization_bits,
        fitting[0],
        settings.quantization_type == "nf4" and settings.double_quantization,
    )


def _notice(text: str, paths: list[str]) -> str:
    others = len(paths) - 1
    more = f" and {others} more layer{'s' if others > 1 else ''}" if others else ""
    return f"{paths[0]}{more}: {text}."
