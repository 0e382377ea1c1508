"""How frozen weights are stored in 4 (or 8) bits, and computed with.

    affine   MLX's own: a group's weights are integers times a scale plus a bias
    mxfp4    4-bit floats (E2M1), 32 share a power of two (OCP Microscaling Formats 1.0)
    nvfp4    4-bit floats (E2M1), 16 share an 8-bit float (E4M3), and the layer one power of two
    nf4      QLoRA's: see nf4.py

Weights are quantised from float32, some rows at a time, so that no second float copy of a layer is
ever held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from forge_mcp import machine
from forge_mcp.errors import TrainingFailed, UnsupportedModel
from forge_mcp.training import nf4

QuantisationType = Literal["affine", "nf4", "mxfp4", "nvfp4"]

WEIGHTS_AT_ONCE = 2**18  # 1 MiB of floats; MLX's own fp4 kernels take 24 times that for a while
LARGEST = 2.0**90  # beyond it, sums and scales leave the range of float32
SMALLEST = 2.0**-120  # below it, mxfp4's scales leave their range: taken as 0
LARGEST_SCALED = 6.0 * 448.0  # nvfp4's largest value (E2M1) times its largest scale (E4M3)
NARROWEST = 32  # MLX packs weights 32 at a time, even where fewer share a scale
FLOAT16_ROUNDING = 2.0**-11


class Quantisation(NamedTuple):
    """A format. group_size: weights that share a scale; double: NF4's scales are quantised too."""

    type: QuantisationType
    bits: int
    group_size: int
    double: bool = False


@dataclass(frozen=True)
class Quantised:
    """A weight (out, in) in some format.

    arrays: what is stored, by name, as it is saved.
        affine: those of `mx.quantize`: weight (out, in * bits / 32) uint32, scales and biases
            (out, in / group_size) float16 or bfloat16.
        mxfp4, nvfp4: weight as above, scales (out, in / group_size) uint8; nvfp4 made here also
            global_scale (1,) float32, by which all is multiplied: E4M3 alone has no range for
            weights as small as a model's.
        nf4: weight (out, in / 2) uint8, absmax (out, in / group_size) float32, or with double
            quantisation uint8, absmax_scales (ceil(absmax.size / 256),) and absmax_mean (1,).
    """

    how: Quantisation
    shape: tuple[int, int]
    arrays: dict[str, Any]

    def dequantised(self) -> Any:
        """(out, in), float32: the numbers that `matmul` multiplies a float32 x with."""
        return self._dequantised(self.arrays)

    def dequantised_rows(self) -> Iterator[tuple[slice, Any]]:
        """(which rows, their numbers), a few rows at a time, for what must not hold all at once."""
        arrays = self.arrays
        if self.how.type == "nf4":
            arrays = {"weight": arrays["weight"], "absmax": nf4.unpack_absmax(arrays)}
        step = max(WEIGHTS_AT_ONCE // self.shape[1], 1)
        for first in range(0, self.shape[0], step):
            rows = slice(first, first + step)
            some = {
                name: array if name == "global_scale" else array[rows]
                for name, array in arrays.items()
            }
            yield rows, self._dequantised(some)

    def matmul(self, x: Any) -> Any:
        """x (…, in) times the transposed weight: (…, out) in x's type; differentiable in x.

        No float copy of the weight outlives the call, nor is one kept for the backward pass.
        """
        if self.how.type == "nf4":
            return self._dequantising_matmul(x)
        mx = machine.mlx()
        scale = self.arrays.get("global_scale")
        # before the global scale, products of float16 leave float16's range
        wide = x.astype(mx.float32) if scale is not None and x.dtype == mx.float16 else x
        y = mx.quantized_matmul(
            wide,
            self.arrays["weight"],
            self.arrays["scales"],
            self.arrays.get("biases"),
            transpose=True,
            group_size=self.how.group_size,
            bits=self.how.bits,
            mode=self.how.type,
        )
        return (y if scale is None else y * scale).astype(x.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes in memory and on the disk."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])

    def _dequantised(self, arrays: dict[str, Any]) -> Any:
        if self.how.type == "nf4":
            return nf4.dequantise(arrays, self.how.group_size)
        mx = machine.mlx()
        affine = self.how.type == "affine"
        weight = mx.dequantize(
            arrays["weight"],
            # float32 scales: in their own type MLX would round every product to it
            arrays["scales"].astype(mx.float32) if affine else arrays["scales"],
            arrays["biases"].astype(mx.float32) if affine else None,
            group_size=self.how.group_size,
            bits=self.how.bits,
            mode=self.how.type,
            dtype=mx.float32,
        )
        return weight * arrays["global_scale"] if "global_scale" in arrays else weight

    def _dequantising_matmul(self, x: Any) -> Any:
        """The plain product; the backward pass dequantises again instead of keeping the weight."""
        mx = machine.mlx()

        def weight_after(needed: Any) -> Any:
            # not before it is needed, or else all layers' weights may be computed at once
            codes = mx.depends([self.arrays["weight"]], [needed])[0]
            return self._dequantised(self.arrays | {"weight": codes}).astype(x.dtype)

        @mx.custom_function  # type: ignore[untyped-decorator]
        def product(x: Any) -> Any:
            return x @ weight_after(x).T

        @product.vjp  # type: ignore[untyped-decorator]
        def backward(_x: Any, cotangent: Any, _y: Any) -> Any:
            return cotangent @ weight_after(cotangent)

        return product(x)


def quantise(weight: Any, how: Quantisation, dtype: str, name: str = "A weight") -> Quantised:
    """Quantise a weight.

    Args:
        weight: (out, in) floats, of NumPy or MLX.
        how: the format.
        dtype: in which the base computes. Affine scales are kept in bfloat16 for "bfloat16", else
            in float16 where their range allows it (bfloat16 where not).
        name: of the weight, for the error.

    Raises:
        UnsupportedModel: how.group_size (or 32, if that is more) does not divide `in`.
        TrainingFailed: the weight holds numbers that are not finite.
    """
    mx = machine.mlx()
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    step = max(how.group_size, NARROWEST)
    if shape[1] % step:
        raise UnsupportedModel(
            f"{name} cannot be quantised.",
            cause=f"its width {shape[1]} is no multiple of {step}, which {how.type} needs",
            next_step="Leave it out of training.target_modules, or choose another base.",
        )
    largest = _largest(weight, name)
    parts: list[tuple[Any, ...]] = []
    if how.type == "nf4":
        for rows in _some_rows(weight):
            parts.append(nf4.quantise_rows(rows, how.group_size))
            mx.eval(parts[-1])
        codes, absmax = (mx.concatenate(part) for part in zip(*parts, strict=True))
        arrays = {"weight": codes, **nf4.pack_absmax(absmax, how.double)}
    else:
        # A power of two: exact. mxfp4's own scales have the range and need none.
        unit = 1.0 if how.type == "mxfp4" else _power_of_two(LARGEST_SCALED, largest)
        for rows in _some_rows(weight):
            rows = mx.where(mx.abs(rows) < SMALLEST, 0, rows)
            parts.append(
                mx.quantize(rows * unit, group_size=how.group_size, bits=how.bits, mode=how.type)
            )
            mx.eval(parts[-1])
        packed, *scales = (mx.concatenate(part) for part in zip(*parts, strict=True))
        arrays = {"weight": packed}
        if how.type == "affine":
            arrays["scales"], arrays["biases"] = _compact(
                [scale * (1 / unit) for scale in scales], dtype
            )
        else:
            arrays["scales"] = scales[0]
        if how.type == "nvfp4":
            arrays["global_scale"] = mx.array([1 / unit])
    mx.eval(arrays)
    return Quantised(how, shape, arrays)


def _some_rows(weight: Any) -> Iterator[Any]:
    """The weight as float32 MLX arrays of a few rows each."""
    mx = machine.mlx()
    step = max(WEIGHTS_AT_ONCE // weight.shape[1], 1)
    for first in range(0, weight.shape[0], step):
        yield mx.array(weight[first : first + step]).astype(mx.float32)


def _largest(weight: Any, name: str) -> float:
    """The largest magnitude; refuses weights that are not finite."""
    mx = machine.mlx()
    largest, bad = 0.0, 0
    for rows in _some_rows(weight):
        magnitude = mx.abs(rows)
        bad += int((~(magnitude <= LARGEST)).sum().item())  # NaN compares false
        largest = max(largest, float(magnitude.max().item()))
    if bad:
        raise TrainingFailed(
            f"{name} cannot be quantised.",
            cause=f"{bad} of its {weight.size} numbers are NaN, infinite or above {LARGEST:.0e}",
            next_step="The files of the base are damaged: get it again, or choose another one.",
        )
    return largest


def _power_of_two(limit: float, largest: float) -> float:
    """The largest one that keeps largest * power within limit; both it and 1 / it are float32."""
    if largest == 0:
        return 1.0
    return 2.0 ** max(-126, min(126, math.floor(math.log2(limit / largest))))


def _compact(arrays: list[Any], dtype: str) -> list[Any]:
    """In 16 bits: float16 has more digits, bfloat16 the range of float32."""
    mx = machine.mlx()
    if dtype != "bfloat16":
        halves = [array.astype(mx.float16) for array in arrays]
        if all(
            mx.abs(half.astype(mx.float32) - array).max() <= FLOAT16_ROUNDING * mx.abs(array).max()
            for half, array in zip(halves, arrays, strict=True)
        ):
            return halves
    return [array.astype(mx.bfloat16) for array in arrays]
