"""Loss against steps of PiSSA, LoRA and DoRA, each at its best learning rate, on a real repository.

    python benchmarks/convergence.py [REPO] [--steps 100] [--out FOLDER] [--plot PNG]

Makes a dataset of the repository, trains forge-nano with every method at five learning rates (one
seed), then each method at its best rate with two more seeds. Prints the validation loss at every
tenth of the way as mean and range over the seeds, and the steps that PiSSA and DoRA need to reach
what LoRA reaches at the end. Runs that FOLDER already holds are not made again.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

from forge_mcp import machine

METHODS = ("pissa", "lora", "dora")
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (17, 18, 19)
RANK = 16
EVALUATIONS = 10
LONGEST = 640  # tokens of an example, so that a sweep ends within the hour on two cores
FORGE = str(Path(sys.executable).with_name("forge-mcp"))


def make_dataset(repo: str, out: Path) -> Path:
    """Extract, synthesize and validate; returns the dataset's folder."""
    told = out / "dataset.json"
    if not told.is_file():
        home = ("--set", f"project.name={Path(repo).resolve().name}")
        asked = repo
        for skill, key in (
            ("extract", "corpus_id"),
            ("synthesize", "dataset_id"),
            ("validate", "dataset_id"),
        ):
            done = subprocess.run(
                [FORGE, skill, asked, "--json", *(home if skill == "extract" else ())],
                stdout=subprocess.PIPE,
                check=True,
                env={**_environment(), "FORGE_HOME": str(out / "forge")},
            )
            asked = json.loads(done.stdout)[key]
        told.write_text(json.dumps({"dataset": asked}))
    dataset: str = json.loads(told.read_text())["dataset"]
    return out / "forge" / "datasets" / dataset


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FORGE_")}


def train(dataset: Path, method: str, rate: float, seed: int, steps: int, out: Path) -> list[Any]:
    """One run in this process; returns [(step, validation loss)]."""
    kept = out / f"{method}-{rate:g}-{seed}-{steps}.json"
    if kept.is_file():
        found: list[Any] = json.loads(kept.read_text())
        return found
    from forge_mcp.errors import TrainingFailed
    from forge_mcp.settings import TrainingSettings, defaults
    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.batching import read_rows, sample, tokenise
    from forge_mcp.training.trainer import FineTuneTrainer

    mx = machine.mlx()
    mx.random.seed(seed)
    how = {
        "init_method": method,
        "rank": RANK,
        "lora_alpha": float(RANK),
        "learning_rate": rate,
        "seed": seed,
        "max_steps": steps,
        "num_train_epochs": 1000.0,
        "eval_steps": max(steps // EVALUATIONS, 1),
        "save_steps": steps,
        "warmup_steps": max(steps // 20, 1),
        "early_stopping_patience": 0,
        "max_seq_length": LONGEST,
    }
    settings = TrainingSettings.model_validate(defaults()["training"] | how)
    loaded = load_base("forge-nano")
    rows = list(read_rows(dataset / "train.jsonl"))
    held_out = sample(list(read_rows(dataset / "valid.jsonl")), 64, 0)
    examples = [tokenise(part, loaded.tokenizer, LONGEST).examples for part in (rows, held_out)]
    attach_adapters(loaded.model, settings, loaded.dtype)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            FineTuneTrainer(loaded.model, settings, Path(folder)).train(*examples)
        except TrainingFailed as failure:  # diverged: a result too
            print(f"{method} at {rate:g}: {failure.message}")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    history = [
        (row["step"], row["valid_loss"]) for row in map(json.loads, lines) if "valid_loss" in row
    ]
    print(
        f"{method:6} rate {rate:<8g} seed {seed}: {history[0][1]:.3f} -> {history[-1][1]:.3f} "
        f"({time.perf_counter() - started:.0f} s, {len(examples[0])} examples)",
        flush=True,
    )
    kept.write_text(json.dumps(history))
    return history


def plot(curves: dict[str, list[list[Any]]], rates: dict[str, float], path: Path) -> None:
    """Mean and range over the seeds, one line a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for number, (method, runs) in enumerate(curves.items()):
        steps = [step for step, _ in runs[0]]
        losses = list(zip(*([loss for _, loss in run] for run in runs), strict=True))
        means = [statistics.mean(row) for row in losses]
        label = f"{method} (rate {rates[method]:g})"
        axes.plot(steps, means, color=f"C{number}", marker="o", markersize=3, label=label)
        low, high = [min(row) for row in losses], [max(row) for row in losses]
        axes.fill_between(steps, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("validation loss (nats per answer token)")
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def steps_to_reach(history: list[Any], loss: float) -> float | None:
    """The step, interpolated between evaluations, at which a curve first is at `loss`."""
    for (step, above), (later, below) in pairwise(history):
        if below <= loss:
            share = (above - loss) / (above - below) if above > below else 0.0
            return float(step + max(share, 0.0) * (later - step))
    return None


def main() -> None:
    """Sweep, repeat, print, plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("repo", nargs="?", default=".")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()) / "forge-convergence"
    )
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    dataset = make_dataset(arguments.repo, out)
    steps: int = arguments.steps

    final: dict[str, dict[float, float]] = {}
    for method in METHODS:
        final[method] = {
            rate: train(dataset, method, rate, SEEDS[0], steps, out)[-1][1] for rate in RATES
        }
    best = {method: min(found, key=lambda rate: found[rate]) for method, found in final.items()}
    curves = {
        method: [train(dataset, method, best[method], seed, steps, out) for seed in SEEDS]
        for method in METHODS
    }
    print("\nvalidation loss after the last step, seed", SEEDS[0])
    print("| method | " + " | ".join(f"{rate:g}" for rate in RATES) + " |")
    print("|---|" + "---|" * len(RATES))
    for method in METHODS:
        cells = [f"{final[method][rate]:.3f}" for rate in RATES]
        print(f"| {method} | " + " | ".join(cells) + " |")
    print(f"\nmean over seeds {SEEDS} (lowest to highest), each at its best rate")
    marks = [step for step, _ in curves["lora"][0]]
    print("| step | " + " | ".join(f"{method} {best[method]:g}" for method in METHODS) + " |")
    print("|---|" + "---|" * len(METHODS))
    for number, step in enumerate(marks):
        cells = []
        for method in METHODS:
            losses = [run[number][1] for run in curves[method]]
            cells.append(f"{statistics.mean(losses):.3f} ({min(losses):.3f}-{max(losses):.3f})")
        print(f"| {step} | " + " | ".join(cells) + " |")
    target = statistics.mean(run[-1][1] for run in curves["lora"])
    for method in METHODS:
        means = [
            (step, statistics.mean(run[number][1] for run in curves[method]))
            for number, step in enumerate(marks)
        ]
        reached = steps_to_reach(means, target)
        told = "never" if reached is None else f"after {reached:.0f} steps"
        print(f"{method}: reaches LoRA's last loss ({target:.3f}) {told}")
    if arguments.plot:
        plot(curves, best, arguments.plot)


if __name__ == "__main__":
    main()
