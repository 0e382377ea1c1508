"""PEFT's adapters on small random matrices; write.py calls `write_adapters`.

adapters.npz    by case, as "case.array":
                pissa_tall, pissa_wide, pissa_full: weight, a, b, residual, and rank, alpha
                lora, rslora, dora: weight, bias, a, b, x, y = layer(x), cotangent, and the
                gradients of sum(y * cotangent): a_gradient, b_gradient, x_gradient; dora also
                magnitude (as trained), magnitude_gradient, initial_magnitude; rank 4, alpha 8
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear

SEED = 23
NAME = "default"
PISSA_CASES = {  # out, in, rank, alpha
    "pissa_tall": (56, 20, 5, 3),
    "pissa_wide": (20, 56, 16, 40),
    "pissa_full": (16, 24, 16, 8),
}
RANK, ALPHA = 4, 8


def write_adapters(folder: Path) -> None:
    """All cases into one file."""
    torch.manual_seed(SEED)
    arrays: dict[str, np.ndarray] = {}
    for case, (out, inner, rank, alpha) in PISSA_CASES.items():
        arrays |= {f"{case}.{key}": value for key, value in pissa(out, inner, rank, alpha).items()}
    for case in ("lora", "rslora", "dora"):
        arrays |= {f"{case}.{key}": value for key, value in trained(case).items()}
    np.savez_compressed(folder / "adapters.npz", **arrays)


def pissa(out: int, inner: int, rank: int, alpha: int) -> dict[str, np.ndarray]:
    """The split of one matrix."""
    layer = torch.nn.Linear(inner, out, bias=False)
    weight = layer.weight.detach().clone()
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="pissa")
    adapted = Linear(
        layer, NAME, config=config, r=rank, lora_alpha=alpha, init_lora_weights="pissa"
    )
    return {
        "weight": weight.numpy(),
        "a": _numpy(adapted.lora_A[NAME].weight),
        "b": _numpy(adapted.lora_B[NAME].weight),
        "residual": _numpy(adapted.base_layer.weight),
        "rank": np.int64(rank),
        "alpha": np.float64(alpha),
    }


def trained(case: str) -> dict[str, np.ndarray]:
    """Output and gradients of an adapter that is somewhere in its training."""
    layer = torch.nn.Linear(40, 24)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, use_rslora=case == "rslora", use_dora=case == "dora"
    )
    adapted = Linear(layer, NAME, config=config, r=RANK, lora_alpha=ALPHA)
    a, b = adapted.lora_A[NAME].weight, adapted.lora_B[NAME].weight
    with torch.no_grad():
        b.normal_(std=0.3)
    parts = {}
    if case == "dora":
        magnitude = adapted.lora_magnitude_vector[NAME].weight
        parts["initial_magnitude"] = _numpy(magnitude).copy()
        with torch.no_grad():
            magnitude.mul_(1 + 0.2 * torch.randn_like(magnitude))
    x = torch.randn(5, 40, requires_grad=True)
    y = adapted(x)
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    if case == "dora":
        parts["magnitude"] = _numpy(magnitude)
        parts["magnitude_gradient"] = _numpy(magnitude.grad)
    return parts | {
        "weight": _numpy(layer.weight),
        "bias": _numpy(layer.bias),
        "a": _numpy(a),
        "b": _numpy(b),
        "x": _numpy(x),
        "y": _numpy(y),
        "cotangent": _numpy(cotangent),
        "a_gradient": _numpy(a.grad),
        "b_gradient": _numpy(b.grad),
        "x_gradient": _numpy(x.grad),
    }


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()
