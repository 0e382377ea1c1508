"""bitsandbytes' NF4, its 8-bit blocks and its 8-bit AdamW, on a few numbers: nf4.npz.

All by bitsandbytes' reference kernels, in plain PyTorch, which do what those for CUDA do. Its
native library for CPUs is left out: it looks codes up in a coarser table, and gives some small
numbers a neighbouring code. So this is a script of its own, which write.py starts: PEFT, which that
one imports, has it loaded already.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED = 17
# Rows, columns, group: more than 256 groups and no multiple of it; one group a row; few groups.
NF4_SHAPES = {"g32": (24, 384, 32), "g64": (12, 64, 64), "g128": (4, 640, 128)}
SPECIAL_ROWS = {0: 0.0, 1: 1e-6, 2: 6e4}  # the first rows: zeros, and very small and large weights
ADAM_STEPS = 12
ADAM = {"lr": 0.01, "weight_decay": 0.1}


def import_bitsandbytes() -> Any:
    """bitsandbytes without its native library, and without compiling its kernels."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    load = ctypes.cdll.LoadLibrary

    def load_others(name: str) -> Any:
        if "bitsandbytes" in str(name):
            raise OSError("left out")
        return load(name)

    ctypes.cdll.LoadLibrary = load_others  # type: ignore[method-assign]
    import bitsandbytes

    ctypes.cdll.LoadLibrary = load  # type: ignore[method-assign]
    return bitsandbytes


def nf4_arrays(functional: Any, name: str, rows: int, columns: int, group: int) -> dict[str, Any]:
    """Weights of one shape, their codes and absmax, plain and double quantised.

    Of the dequantised weights the first four rows are kept.
    """
    weight = torch.randn(rows, columns) * 0.02
    for row, scale in SPECIAL_ROWS.items():
        weight[row] = weight[row] / weight[row].abs().max() * scale
    weight = weight.half()
    arrays = {"weight": weight.numpy()}
    for double in (False, True):
        codes, state = functional.quantize_4bit(
            weight.float(), blocksize=group, quant_type="nf4", compress_statistics=double
        )
        kind = "double" if double else "plain"
        arrays["codes"] = codes.numpy().reshape(rows, columns // 2)
        arrays[f"{kind}_absmax"] = state.absmax.numpy().reshape(rows, columns // group)
        arrays[f"{kind}_dequantised"] = functional.dequantize_4bit(codes, state).numpy()[:4]
        if double:
            arrays["absmax_scales"] = state.state2.absmax.numpy()
            arrays["absmax_mean"] = state.offset.numpy().reshape(1)
    return {f"{name}_{key}": array for key, array in arrays.items()}


def block_arrays(functional: Any) -> dict[str, Any]:
    """Both dynamic maps, and the codes of 1,000 numbers of many sizes (four blocks, one short)."""
    numbers = (torch.randn(1000) * torch.exp(3 * torch.randn(1000))).half()
    numbers[256:300] = 0
    arrays = {"numbers": numbers.numpy()}
    for name, signed in (("signed", True), ("unsigned", False)):
        table = functional.create_dynamic_map(signed)
        given = numbers.float() if signed else numbers.float().abs()
        codes, state = functional.quantize_blockwise(given, code=table, blocksize=256)
        arrays[f"{name}_map"] = table.numpy()
        arrays[f"{name}_codes"] = codes.numpy()
        arrays[f"{name}_absmax"] = state.absmax.numpy()
        arrays[f"{name}_dequantised"] = functional.dequantize_blockwise(codes, state).numpy()
    return {f"blocks_{key}": array for key, array in arrays.items()}


def adam_arrays(bitsandbytes: Any) -> dict[str, Any]:
    """Steps of AdamW8bit down a bowl: loss = sum(steepness * (weight - target)^2) / 2.

    60 x 81 numbers: above the 4,096 that bitsandbytes asks for, and the last block is short. The
    steepness spans a factor of 10 ("even") or 10,000 ("uneven") within every block.
    """
    start = torch.randn(60, 81).half()
    away = torch.rand(60, 81) + 0.5
    target = (start + torch.where(torch.rand(60, 81) < 0.5, away, -away)).half()
    arrays: dict[str, Any] = {
        "start": start.numpy(),
        "target": target.numpy(),
        "settings": np.array([ADAM["lr"], ADAM["weight_decay"], ADAM_STEPS]),
    }
    for name, decades in (("even", 1), ("uneven", 4)):
        steepness = torch.logspace(-decades, 0, 81).half()
        weight = torch.nn.Parameter(start.float())
        optimiser = bitsandbytes.optim.AdamW8bit([weight], **ADAM)
        for step in range(1, ADAM_STEPS + 1):
            weight.grad = steepness.float() * (weight.detach() - target.float())
            optimiser.step()
            if step == 1 and name == "even":
                state = optimiser.state[weight]
                for moment, key in (("m", "1"), ("v", "2")):
                    arrays[moment] = state[f"state{key}"].numpy().copy()
                    arrays[f"{moment}_absmax"] = state[f"absmax{key}"].numpy().copy()
        arrays[f"{name}_steepness"] = steepness.numpy()
        arrays[f"{name}_weight"] = weight.detach().numpy()
    return {f"adam_{key}": array for key, array in arrays.items()}


def main(target: str) -> None:
    """Write nf4.npz into `target`."""
    bitsandbytes = import_bitsandbytes()
    functional = bitsandbytes.functional
    torch.manual_seed(SEED)
    arrays: dict[str, Any] = {}
    for name, (rows, columns, group) in NF4_SHAPES.items():
        arrays |= nf4_arrays(functional, name, rows, columns, group)
    arrays |= block_arrays(functional)
    arrays |= adam_arrays(bitsandbytes)
    np.savez_compressed(Path(target) / "nf4.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
