"""PiSSA's start: randomised against exact SVD, the memory it takes, and what it does to the loss.

    python benchmarks/pissa_init.py [REPO] [--quick] [--only svd|memory|loss]

svd     One layer of each kind of Llama-3.2-3B (hidden 3,072), rank 64, split both ways in turn; the
        exact SVD once, the randomised one (4 power iterations) the median of three. The weights
        are random with singular values that fall like i^-0.5; what a decomposition costs does not
        depend on them. Whole model: these times by the number of its layers of each kind. On a
        busy machine the threads of BLAS wait for each other and CPU seconds say more; set
        OPENBLAS_NUM_THREADS=1 there.
memory  A base of 4 blocks (hidden 2,048, MLP 6,144) in bfloat16 on the disk, loaded lazily and
        split into packed weights in a process of its own: the highest resident memory above what
        the process held before, against twice the largest layer in float32 plus all that stays.
loss    forge-nano on a dataset of REPO (the installed httpcore by default), 60 steps from the exact
        and from the randomised split, three seeds: the final validation losses.

--quick: layers and base of a quarter of the width, and no loss.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from convergence import make_dataset

from forge_mcp import machine

RANK = 64
KINDS = {  # of Llama-3.2-3B's layers: (out, in), how many a block
    "q_proj, o_proj": ((3072, 3072), 2),
    "k_proj, v_proj": ((1024, 3072), 2),
    "gate_proj, up_proj": ((8192, 3072), 2),
    "down_proj": ((3072, 8192), 1),
}
BLOCKS = 28
SEEDS = (17, 18, 19)
STEPS = 60
LONGEST = 640  # tokens of an example
MiB = 2**20


def random_weight(out: int, inner: int) -> Any:
    """float32, with singular values that fall like i^-0.5."""
    rng = np.random.default_rng(out * inner)
    small = min(out, inner)
    left = rng.standard_normal((out, small), np.float32)
    left *= np.arange(1, small + 1, dtype=np.float32) ** -0.5
    return left @ rng.standard_normal((small, inner), np.float32) / np.float32(inner)


def measure_svd(scale: int) -> None:
    """Both decompositions of one layer of each kind, in turn."""
    from forge_mcp.training.pissa import POWER_ITERATIONS, compute_pissa_init

    print(f"\nSVD of one layer of each kind, rank {RANK}, this machine's LAPACK through NumPy")
    print(
        "| layer | out x in | exact s (CPU s) | randomised s (CPU s) | ratio (of CPU s) | "
        "residual against the optimum |"
    )
    print("|---|---|---|---|---|---|")
    whole = np.zeros((2, 2))  # exact, randomised; wall-clock and CPU seconds
    for name, (shape, count) in KINDS.items():
        out, inner = (size // scale for size in shape)
        weight = random_weight(out, inner)
        spent: dict[int | None, list[tuple[float, float]]] = {None: [], POWER_ITERATIONS: []}
        residuals: dict[int | None, float] = {}
        for niter in (POWER_ITERATIONS, None, POWER_ITERATIONS, POWER_ITERATIONS):
            started = time.perf_counter(), time.process_time()
            made = compute_pissa_init(weight, RANK, RANK, niter)
            spent[niter].append(
                (time.perf_counter() - started[0], time.process_time() - started[1])
            )
            residuals[niter] = float(np.linalg.norm(made.residual))
        exact, fast = (np.median(spent[niter], axis=0) for niter in (None, POWER_ITERATIONS))
        whole += BLOCKS * count * np.stack([exact, fast])
        excess = residuals[POWER_ITERATIONS] / residuals[None] - 1
        print(
            f"| {name} | {out} x {inner} | {exact[0]:.2f} ({exact[1]:.2f}) | "
            f"{fast[0]:.3f} ({fast[1]:.3f}) | {exact[0] / fast[0]:.0f} "
            f"({exact[1] / fast[1]:.0f}) | +{excess:.3%} |",
            flush=True,
        )
    ratios = whole[0] / whole[1]
    print(
        f"the model's {BLOCKS} blocks, by these times: exact {whole[0, 0] / 60:.1f} min, "
        f"randomised {whole[1, 0] / 60:.2f} min: {ratios[0]:.1f}x faster ({ratios[1]:.1f}x in CPU "
        "seconds; target: 20x)"
    )


def write_base(folder: Path, scale: int) -> Path:
    """A random Llama in bfloat16, with forge-nano's tokenizer."""
    mx = machine.mlx()
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    nano = Path(str(files("forge_mcp").joinpath("assets/forge-nano")))
    shutil.copytree(nano, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = {
        "model_type": "llama",
        "hidden_size": 2048 // scale,
        "intermediate_size": 6144 // scale,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    weights = {name: value.astype(mx.bfloat16) for name, value in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


def highest_resident() -> int:
    """The most memory in bytes that this process has held at a time."""
    if sys.platform == "linux":  # getrusage there also counts the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def split_base(base: str, changed: dict[str, Any]) -> dict[str, float]:
    """In a process of its own: what attaching adapters takes, in bytes and seconds."""
    import psutil

    mx = machine.mlx()
    from mlx.utils import tree_flatten

    from forge_mcp.settings import TrainingSettings, defaults
    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.bases import load_base

    square = np.ones((512, 512), np.float32)  # what the libraries keep for themselves, before
    np.linalg.svd(square @ square)
    mx.eval(mx.array(square) @ mx.array(square))
    settings = TrainingSettings.model_validate(
        defaults()["training"] | {"rank": RANK, "lora_alpha": float(RANK)} | changed
    )
    loaded = load_base(base, lazy=True)
    held = psutil.Process().memory_info().rss
    mx.reset_peak_memory()
    started = time.perf_counter()
    made = attach_adapters(loaded.model, settings, loaded.dtype, dense=False)
    seconds = time.perf_counter() - started
    peak = highest_resident() - held
    rest = sum(value.nbytes for _, value in tree_flatten(loaded.model.parameters()))
    sizes = [one.shape[0] * one.shape[1] for one in made.frozen.values()]
    return {
        "peak": peak,
        "mlx_peak": mx.get_peak_memory(),
        "stays": rest + sum(one.nbytes for one in made.frozen.values()),
        "largest": 4 * max(sizes),
        "float": 4 * sum(sizes),
        "bits": made.bits_per_weight,
        "error": made.quantisation_error,
        "seconds": seconds,
    }


def measure_memory(folder: Path, scale: int) -> None:
    """Formats and iterations, each in a fresh process."""
    base = write_base(folder / "base", scale)
    cases: list[dict[str, Any]] = [
        {"quantization_type": kind, "qpissa_iterations": iterations}
        for kind, iterations in (("affine", 1), ("affine", 5), ("nf4", 1), ("nf4", 5), ("nvfp4", 1))
    ]
    cases.append({"quantization_type": "nf4", "init_method": "dora"})
    print("\nMemory of the start, MiB above what the process held before, weights kept packed")
    print(
        "| method | format | T | in float32 | stays | largest layer | bound: 2 x largest + stays | "
        "peak resident | peak / bound | MLX's own peak | bits a weight | error | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        done = subprocess.run(
            [sys.executable, __file__, "--split", str(base), json.dumps(case)],
            stdout=subprocess.PIPE,
            check=True,
            env=dict(os.environ) | machine.CHILD_ENVIRONMENT,
        )
        got = json.loads(done.stdout)
        bound = 2 * got["largest"] + got["stays"]
        print(
            f"| {case.get('init_method', 'pissa')} | {case['quantization_type']} | "
            f"{case.get('qpissa_iterations', '-')} | {got['float'] / MiB:.0f} | "
            f"{got['stays'] / MiB:.0f} | {got['largest'] / MiB:.0f} | {bound / MiB:.0f} | "
            f"{got['peak'] / MiB:.0f} | {got['peak'] / bound:.2f} | {got['mlx_peak'] / MiB:.0f} | "
            f"{got['bits']:.2f} | {got['error']:.2%} | {got['seconds']:.0f} |",
            flush=True,
        )


def final_loss(dataset: Path, niter: int | str, seed: int) -> float:
    """Validation loss of one run."""
    from forge_mcp.settings import TrainingSettings, defaults
    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.batching import read_rows, sample, tokenise
    from forge_mcp.training.trainer import FineTuneTrainer

    mx = machine.mlx()
    mx.random.seed(seed)
    changed = {
        "svd_niter": niter,
        "seed": seed,
        "rank": 16,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "num_train_epochs": 1000.0,
        "eval_steps": STEPS,
        "early_stopping_patience": 0,
        "max_seq_length": LONGEST,
    }
    settings = TrainingSettings.model_validate(defaults()["training"] | changed)
    loaded = load_base("forge-nano", lazy=True)
    rows = list(read_rows(dataset / "train.jsonl"))
    held_out = sample(list(read_rows(dataset / "valid.jsonl")), 32, 0)
    train, valid = (tokenise(part, loaded.tokenizer, LONGEST) for part in (rows, held_out))
    attach_adapters(loaded.model, settings, loaded.dtype)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FineTuneTrainer(loaded.model, settings, Path(folder))
        loss = trainer.train(train.examples, valid.examples).valid_loss
    assert loss is not None
    return loss


def measure_loss(repo: str, folder: Path) -> None:
    """The same data, order and seeds from both splits."""
    dataset = make_dataset(repo, folder)
    print(f"\nforge-nano, {STEPS} steps, rank 16: validation loss at the end")
    print("| seed | exact | randomised | difference |")
    print("|---|---|---|---|")
    exact, fast = [], []
    for seed in SEEDS:
        exact.append(final_loss(dataset, "exact", seed))
        fast.append(final_loss(dataset, 4, seed))
        print(
            f"| {seed} | {exact[-1]:.4f} | {fast[-1]:.4f} | {fast[-1] - exact[-1]:+.4f} |",
            flush=True,
        )
    print(
        f"mean {statistics.mean(exact):.4f} and {statistics.mean(fast):.4f}; between the seeds "
        f"the exact one's losses spread over {max(exact) - min(exact):.4f}"
    )


def main() -> None:
    """The three parts."""
    if sys.argv[1:2] == ["--split"]:
        print(json.dumps(split_base(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("repo", nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["svd", "memory", "loss"])
    arguments = parser.parse_args()
    scale = 4 if arguments.quick else 1
    wanted = [arguments.only] if arguments.only else ["svd", "memory", "loss"]
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    if "svd" in wanted:
        measure_svd(scale)
    with tempfile.TemporaryDirectory() as folder:
        if "memory" in wanted:
            measure_memory(Path(folder), scale)
        if "loss" in wanted and not arguments.quick:
            repo = arguments.repo or _installed("httpcore")
            measure_loss(repo, Path(folder))


def _installed(package: str) -> str:
    found = importlib.util.find_spec(package)
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent)


if __name__ == "__main__":
    main()
