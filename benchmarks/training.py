"""How fast training is against mlx-lm's own trainer, and what each of our levers gives.

    python benchmarks/training.py [REPO] [--quick] [--repetitions 3] [--json FILE]

Makes RAFT data of a repository and trains LoRA adapters on forge-nano in float32 for one epoch over
the same examples: by `mlx_lm.tuner.trainer.train` (its batches, its loss, prompt masking), by its
parts with one lever of ours after the other, and by our trainer. Useful tokens are those of context
and answer, without padding. Every contestant is a process of its own; they run in turn, so that a
machine that changes its speed changes all alike, and ratios are taken within a turn.

The last lines are mlx-lm with a 4-bit base, with OpenBLAS as well and as it is installed: on Linux
without a GPU it computes with the reference BLAS. Both get a quarter of the examples, once, or they
would take all day. The exit status is 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.training.batching import Example, Row, pack, read_rows, tokenise

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
TARGET = 2.0  # times mlx-lm's tokens per second
BATCH, RANK, SCALE, LONGEST, SEED = 4, 16, 2.0, 2048, 17
EXAMPLES, QUICK_EXAMPLES, SLOW_SHARE = 64, 16, 4
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Contestant:
    """A way to train. environment: of its process; slow: it gets some examples, in the first turn
    only."""

    name: str
    train: Callable[[list[Example]], float]
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False


def forge_nano(*, bits: int | None = None) -> Any:
    """The embedded base in float32, or quantised by mlx-lm's own way."""
    mx = machine.mlx()
    import mlx.nn as nn

    from forge_mcp.training.bases import load_base

    model = load_base("forge-nano").model
    model.set_dtype(mx.float32)
    if bits:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return model


def with_lora(model: Any) -> Any:
    """mlx-lm's own adapters on every linear layer of the decoder."""
    import mlx.nn as nn
    from mlx_lm.tuner.utils import linear_to_lora_layers

    linear = (nn.Linear, nn.QuantizedLinear)
    keys = {path for path, one in model.layers[0].named_modules() if isinstance(one, linear)}
    config = {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": keys}
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), config)
    machine.mlx().eval(model.parameters())
    return model


def mlx_lm(examples: list[Example], *, bits: int | None = None) -> float:
    """Seconds of mlx-lm's trainer for one epoch."""
    import mlx.optimizers as optim
    from mlx_lm.tuner.trainer import TrainingArgs, default_loss, train

    mx = machine.mlx()
    model = with_lora(forge_nano(bits=bits))
    data = [(example.tokens, example.start) for example in examples]
    mx.eval(default_loss(model, mx.array([examples[0].tokens]), mx.array([[1, 9]])))  # warm
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=BATCH,
            iters=len(examples) // BATCH,
            max_seq_length=LONGEST,
            steps_per_report=10**6,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )
        started = time.perf_counter()
        train(model, optim.AdamW(learning_rate=LEARNING_RATE), data, args=args)
        return time.perf_counter() - started


def loop(examples: list[Example], gradient_of: Callable[[Any, Row], tuple[Any, Any]]) -> float:
    """Seconds of one epoch in the simplest loop around a gradient, on mlx-lm's adapters."""
    import mlx.optimizers as optim
    from mlx.utils import tree_map

    mx = machine.mlx()
    model = with_lora(forge_nano())
    optimiser = optim.AdamW(learning_rate=LEARNING_RATE)
    mx.eval(gradient_of(model, Row((examples[0],))))  # warm
    started = time.perf_counter()
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        total: Any = None
        for row in pack(batch, LONGEST, BATCH):
            gradient = gradient_of(model, row)[1]
            total = gradient if total is None else tree_map(mx.add, total, gradient)
            mx.eval(total)
        weight = sum(example.weight for example in batch)
        optimiser.update(model, tree_map(lambda leaf, by=weight: leaf / by, total))
        mx.eval(model.parameters(), optimiser.state)
    return time.perf_counter() - started


def plain(model: Any, row: Row, *, logits_everywhere: bool, attention: bool) -> Any:
    """The loss with whole logits: the levers below `row_loss`, apart."""
    import mlx.nn as nn

    from forge_mcp.training.architectures import hidden_states, logits_of
    from forge_mcp.training.attention import SegmentCache, install

    mx = machine.mlx()
    total = mx.array(0.0)
    for example in row.examples:
        install(model)
        cache = SegmentCache([len(example.tokens) - 1]) if attention else None
        hidden = hidden_states(model, mx.array(example.tokens[:-1])[None], cache)[0]
        first = 0 if logits_everywhere else example.start - 1
        targets = mx.array(example.tokens[first + 1 :])
        losses = nn.losses.cross_entropy(logits_of(model, hidden[first:]), targets)
        total = total + losses[example.start - 1 - first :].sum()
    return total


def differentiated(loss: Callable[..., Any], **how: bool) -> Callable[[Any, Row], tuple[Any, Any]]:
    """The value and gradient of a loss of model and row."""

    def gradient_of(model: Any, row: Row) -> tuple[Any, Any]:
        import mlx.nn as nn

        found: tuple[Any, Any] = nn.value_and_grad(model, lambda *a: loss(*a, **how))(model, row)
        return found

    return gradient_of


def without_padding(examples: list[Example]) -> float:
    """Each example by itself, with the logits of every position."""
    return loop(examples, differentiated(plain, logits_everywhere=True, attention=False))


def answers_only(examples: list[Example]) -> float:
    """And logits only where an answer token is predicted."""
    return loop(examples, differentiated(plain, logits_everywhere=False, attention=False))


def causal_blocks(examples: list[Example]) -> float:
    """And attention in causal blocks."""
    return loop(examples, differentiated(plain, logits_everywhere=False, attention=True))


def packed(examples: list[Example]) -> float:
    """And examples in one sequence, and the loss with its gradient in chunks."""
    from forge_mcp.training.loss import row_loss

    return loop(examples, differentiated(row_loss))


def shared_cores(examples: list[Example]) -> float:
    """And a row's examples shared out among the cores (on a GPU there is nothing to share)."""
    from forge_mcp.training.loss import loss_and_gradient

    return loop(examples, loss_and_gradient)


def our_trainer(examples: list[Example]) -> float:
    """The whole of it: `FineTuneTrainer` on our adapters over the quantised base."""
    from forge_mcp.settings import TrainingSettings, defaults
    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.trainer import FineTuneTrainer

    changed = {
        "init_method": "lora",
        "rank": RANK,
        "lora_alpha": SCALE * RANK,
        "optimizer": "adamw",
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "num_train_epochs": 1,
        "max_steps": 0,
        "max_seq_length": LONGEST,
        "eval_strategy": "no",
    }
    settings = TrainingSettings.model_validate(defaults()["training"] | changed)
    model = forge_nano()
    attach_adapters(model, settings, "float32")
    with tempfile.TemporaryDirectory() as folder:
        trained = FineTuneTrainer(model, settings, Path(folder)).train(examples, [])
    return trained.seconds


REFERENCE = {"FORGE_BLAS": "reference"}
ALLOCATOR = machine.CHILD_ENVIRONMENT
STOCK = "mlx-lm's trainer"
OURS = "our trainer"
INSTALLED = "mlx-lm as installed, 4-bit base"
CONTESTANTS = (
    Contestant(STOCK, mlx_lm),
    Contestant("  without padding", without_padding),
    Contestant("  + logits at answers only", answers_only),
    Contestant("  + attention in causal blocks", causal_blocks),
    Contestant("  + packed, loss in chunks", packed),
    Contestant("  + shared by the cores", shared_cores),
    Contestant("  + allocator settings", shared_cores, ALLOCATOR),
    Contestant(OURS, our_trainer, ALLOCATOR),
    Contestant("mlx-lm, OpenBLAS, 4-bit base", lambda some: mlx_lm(some, bits=4), slow=True),
    Contestant(INSTALLED, lambda some: mlx_lm(some, bits=4), REFERENCE, slow=True),
)


def run(number: int, examples: Path) -> dict[str, float]:
    """One contestant in a process of its own: tokens per second and peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, __file__, "--contestant", str(number), str(examples)],
        env=os.environ | CONTESTANTS[number].environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def contest(number: int, path: Path) -> None:
    """What `run` starts."""
    examples = [Example(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    if CONTESTANTS[number].slow:
        examples = sorted(examples, key=lambda one: len(one.tokens))[
            :: min(SLOW_SHARE, len(examples) // BATCH)
        ]
    mx = machine.mlx()
    mx.random.seed(SEED)
    seconds = CONTESTANTS[number].train(examples)
    tokens = sum(len(example.tokens) for example in examples)
    print()
    print(json.dumps({"speed": tokens / seconds, "memory": mx.get_peak_memory()}))


def make_examples(repo: str, count: int, folder: Path) -> Path:
    """RAFT rows of a repository as tokens of forge-nano, drawn by the seed."""
    from forge_mcp.training.bases import load_base

    environment = os.environ | {"FORGE_HOME": str(folder)}
    asked = repo
    for skill, key in (("extract", "corpus_id"), ("synthesize", "dataset_id")):
        done = subprocess.run(
            [FORGE, skill, asked, "--json"], env=environment, stdout=subprocess.PIPE, check=True
        )
        asked = json.loads(done.stdout)[key]
    rows = list(read_rows(folder / "datasets" / asked / "train.jsonl"))
    found = tokenise(rows, load_base("forge-nano").tokenizer, LONGEST).examples
    chosen = [found[at] for at in sorted(_drawn(len(found), count))]
    path = folder / "examples.json"
    path.write_text(
        json.dumps([{"tokens": one.tokens, "start": one.start} for one in chosen]), "utf-8"
    )
    lengths = [len(one.tokens) for one in chosen]
    answers = sum(one.answer_tokens for one in chosen) / sum(lengths)
    print(
        f"{len(chosen)} examples of {min(lengths)} to {max(lengths)} tokens, on average "
        f"{statistics.mean(lengths):.0f}, {answers:.0%} of them answer"
    )
    return path


def _drawn(of: int, count: int) -> list[int]:
    import numpy as np

    size = min(count, of) // BATCH * BATCH  # mlx-lm drops what fills no batch
    return [int(at) for at in np.random.default_rng(SEED).permutation(of)[:size]]


def report(turns: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Print the table; returns what `--json` writes."""
    rows = {}
    print(f"{'':<34}{'tokens/s':>10}{'x mlx-lm':>10}{'x before':>10}{'peak GiB':>10}")
    before = STOCK
    for one in CONTESTANTS:
        speed = statistics.median(turn[one.name]["speed"] for turn in turns if one.name in turn)
        ratio, step = (_ratio(turns, one.name, other) for other in (STOCK, before))
        memory = max(turn[one.name]["memory"] for turn in turns if one.name in turn) / 2**30
        rows[one.name.strip()] = {"tokens_per_second": speed, "ratio": ratio, "peak_gib": memory}
        print(f"{one.name:<34}{speed:>10.0f}{ratio:>10.2f}{step:>10.2f}{memory:>10.2f}")
        before = one.name
    ratio, installed = _ratio(turns, OURS, STOCK), _ratio(turns, OURS, INSTALLED)
    print(f"\n{OURS} / {STOCK}: {ratio:.2f} (target {TARGET})")
    print(f"{OURS} / {INSTALLED}: {installed:.1f}")
    return {"machine": machine.describe(), "rows": rows, "ratio": ratio, "installed": installed}


def _ratio(turns: Sequence[dict[str, dict[str, float]]], one: str, other: str) -> float:
    both = [turn for turn in turns if one in turn and other in turn]
    return statistics.median(turn[one]["speed"] / turn[other]["speed"] for turn in both)


def main() -> None:
    """Run all contestants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "repo", nargs="?", default=".", help="a repository (with --contestant: the examples)"
    )
    parser.add_argument("--quick", action="store_true", help="few examples, one repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--contestant", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant is not None:
        contest(options.contestant, Path(options.repo))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    with tempfile.TemporaryDirectory() as folder:
        count = QUICK_EXAMPLES if options.quick else EXAMPLES
        examples = make_examples(options.repo, count, Path(folder))
        turns = [
            {
                one.name: run(number, examples)
                for number, one in enumerate(CONTESTANTS)
                if turn == 0 or not one.slow
            }
            for turn in range(1 if options.quick else options.repetitions)
        ]
    result = report(turns)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
