"""How much memory a training step takes with a large vocabulary, against mlx-lm's step.

    python benchmarks/training_memory.py [--quick] [--json FILE]

A random Llama in forge-nano's shape with a vocabulary of 128,256 (that of Llama 3) in float32, LoRA
adapters of rank 16 on every linear layer, one row of 2,048 tokens of which the last quarter is
answer: value and gradient of the loss. Peak memory above the weights is MLX's own count; every
contestant is a process of its own. --quick takes a row of 512 tokens. The exit status is 0 whatever
the figures are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.training.batching import Example, Row

TARGET = 0.2  # of mlx-lm's peak
VOCABULARY, ANSWER_SHARE, RANK, SEED = 128_256, 4, 16, 17
TOKENS, QUICK_TOKENS = 2048, 512


def make_model() -> Any:
    """The model with mlx-lm's adapters."""
    mx = machine.mlx()
    import mlx.nn as nn
    from mlx_lm.models import llama
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.random.seed(SEED)
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=256,
            num_hidden_layers=6,
            intermediate_size=768,
            num_attention_heads=4,
            head_dim=64,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
        )
    )
    keys = {path for path, one in model.layers[0].named_modules() if isinstance(one, nn.Linear)}
    model.freeze()
    linear_to_lora_layers(
        model, len(model.layers), {"rank": RANK, "scale": 2.0, "dropout": 0.0, "keys": keys}
    )
    mx.eval(model.parameters())
    return model


def make_example(tokens: int) -> Example:
    """Random tokens, the last quarter of them answer."""
    import numpy as np

    drawn = np.random.default_rng(SEED).integers(0, VOCABULARY, tokens)
    return Example([int(token) for token in drawn], tokens - tokens // ANSWER_SHARE)


def mlx_lm(model: Any, example: Example) -> None:
    """A step of mlx-lm: its loss differentiated."""
    mx = machine.mlx()
    import mlx.nn as nn
    from mlx_lm.tuner.trainer import default_loss

    batch = mx.array([example.tokens])
    lengths = mx.array([[example.start, len(example.tokens)]])
    mx.eval(nn.value_and_grad(model, default_loss)(model, batch, lengths))


def mlx_lm_checkpointed(model: Any, example: Example) -> None:
    """The same with its gradient checkpointing, which changes the layers' class for good."""
    from mlx_lm.tuner.trainer import grad_checkpoint

    grad_checkpoint(model.layers[0])
    mlx_lm(model, example)


def ours(model: Any, example: Example, *, checkpointed: bool = False, pieces: int = 1) -> None:
    """Our step; `pieces`: the same tokens as so many examples."""
    from forge_mcp.training.architectures import checkpoint_layers
    from forge_mcp.training.loss import loss_and_gradient

    length = len(example.tokens) // pieces
    examples = [
        Example(example.tokens[at : at + length], length - length // ANSWER_SHARE)
        for at in range(0, pieces * length, length)
    ]
    with checkpoint_layers(model) if checkpointed else nullcontext():
        loss_and_gradient(model, Row(tuple(examples)))


STOCK, OURS = "mlx-lm", "ours"
CONTESTANTS: dict[str, Callable[[Any, Example], None]] = {
    STOCK: mlx_lm,
    "mlx-lm, gradient checkpointing": mlx_lm_checkpointed,
    OURS: ours,
    "ours, gradient checkpointing": lambda *of: ours(*of, checkpointed=True),
    "ours, four examples in the row": lambda *of: ours(*of, pieces=4),
}


def measure(name: str, tokens: int) -> dict[str, float]:
    """Peak bytes above the weights, and seconds, of one contestant in this process."""
    mx = machine.mlx()
    model, example = make_model(), make_example(tokens)
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    started = time.perf_counter()
    CONTESTANTS[name](model, example)
    seconds = time.perf_counter() - started
    return {"peak_bytes": mx.get_peak_memory() - weights, "seconds": seconds}


def main() -> None:
    """Measure every contestant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    tokens = QUICK_TOKENS if options.quick else TOKENS
    if options.contestant:
        print(json.dumps(measure(options.contestant, tokens)))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    print(f"vocabulary {VOCABULARY:,}, {tokens:,} tokens, {tokens // ANSWER_SHARE} of them answer")
    print(f"{'':<34}{'peak GiB':>10}{'x mlx-lm':>10}{'seconds':>10}")
    rows: dict[str, dict[str, float]] = {}
    for name in CONTESTANTS:
        command = [sys.executable, __file__, "--contestant", name]
        done = subprocess.run(
            [*command, "--quick"] if options.quick else command, stdout=subprocess.PIPE, check=True
        )
        rows[name] = row = json.loads(done.stdout)
        row["ratio"] = row["peak_bytes"] / rows[STOCK]["peak_bytes"]
        gib = row["peak_bytes"] / 2**30
        print(f"{name:<34}{gib:>10.2f}{row['ratio']:>10.3f}{row['seconds']:>10.1f}", flush=True)
    print(f"\n{OURS} / {STOCK}: {rows[OURS]['ratio']:.3f} (target {TARGET} at most)")
    if options.json:
        result = {"machine": machine.describe(), "tokens": tokens, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
