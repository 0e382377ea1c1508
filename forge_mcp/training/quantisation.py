"""How frozen weights are stored in 4 (or 8) bits, and computed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from forge_mcp import machine

QuantisationType = Literal["affine", "nf4", "mxfp4", "nvfp4"]


class Quantisation(NamedTuple):
    """A format. group_size: weights that share a scale; double: NF4's scales are quantised too."""

    type: QuantisationType
    bits: int
    group_size: int
    double: bool = False


@dataclass(frozen=True)
class Quantised:
    """A weight (out, in) in some format.

    arrays: what is stored, by name, as it is saved; for "affine" those of `mx.quantize`: weight
    (out, in * bits / 32) uint32, scales and biases (out, in / group_size).
    """

    how: Quantisation
    shape: tuple[int, int]
    arrays: dict[str, Any]

    def dequantised(self) -> Any:
        """(out, in), float32."""
        mx = machine.mlx()
        return mx.dequantize(
            self.arrays["weight"],
            self.arrays["scales"],
            self.arrays.get("biases"),
            group_size=self.how.group_size,
            bits=self.how.bits,
            mode=self.how.type,
        ).astype(mx.float32)

    def matmul(self, x: Any) -> Any:
        """x (…, in) times the transposed weight: (…, out), without keeping it dequantised."""
        return machine.mlx().quantized_matmul(
            x,
            self.arrays["weight"],
            self.arrays["scales"],
            self.arrays.get("biases"),
            transpose=True,
            group_size=self.how.group_size,
            bits=self.how.bits,
            mode=self.how.type,
        )

    @property
    def nbytes(self) -> int:
        """Bytes in memory and on the disk."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Scales included."""
        return 8 * self.nbytes / (self.shape[0] * self.shape[1])


def quantise(weight: Any, how: Quantisation, dtype: str) -> Quantised:
    """Quantise (out, in) floats; affine scales are kept in `dtype` (float16 for float32)."""
    mx = machine.mlx()
    kind = mx.bfloat16 if dtype == "bfloat16" else mx.float16
    weight = mx.array(weight)
    packed, *scales = mx.quantize(
        weight.astype(kind), group_size=how.group_size, bits=how.bits, mode=how.type
    )
    arrays = dict(zip(("weight", "scales", "biases"), (packed, *scales), strict=False))
    mx.eval(arrays)
    return Quantised(how, tuple(weight.shape), arrays)
