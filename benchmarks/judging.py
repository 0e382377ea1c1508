"""How fast answers are generated beside mlx-lm's two ways, and how long an evaluation takes.

    python benchmarks/judging.py [REPO] [--dataset DATASET] [--run RUN] [--prompts 48] [--quick]
    python benchmarks/judging.py --part evaluation --run RUN

generation: prompts of a RAFT dataset's test split (300 tokens and more, so most with documents) are
answered greedily, at most 128 tokens each, by one model: forge-nano, or with --run a tuned run of
FORGE_HOME. Contestants: mlx_lm.generate one by one (its loop, `stream_generate`, which hands out
tokens), mlx_lm.batch_generate, ours. They take turns in one process; figures are medians, ratios
are taken within a turn. Tokens per second are generated tokens over all the time, reading the
prompts included. The dataset is one of FORGE_HOME, or is made of a repository (this one, where none
is named) in a temporary workspace.

evaluation: `forge-mcp evaluate RUN` with its defaults, against the bound of five minutes.

The exit status is 0 whatever the figures are.
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
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.training.batching import encode_row, read_rows
from forge_mcp.workspace import Workspace

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
TARGET = 3.0  # times mlx_lm.generate's tokens per second
BOUND = 300.0  # seconds of the default evaluation
SHORTEST, NEW_TOKENS, SEED = 300, 128, 17
PROMPTS, QUICK_PROMPTS = 48, 8
ONE_BY_ONE, BATCHED, OURS = "mlx_lm.generate, one by one", "mlx_lm.batch_generate", "ours"

Prompts = list[list[int]]
Answers = list[list[int]]


def one_by_one(model: Any, tokenizer: Any, prompts: Prompts) -> Answers:
    """mlx-lm's loop, a prompt at a time."""
    from mlx_lm import stream_generate

    answers = []
    for prompt in prompts:
        written = stream_generate(model, tokenizer, prompt, max_tokens=NEW_TOKENS)
        answers.append(
            [one.token for one in written if one.token not in tokenizer.eos_token_ids],
        )
    return answers


def batched(model: Any, tokenizer: Any, prompts: Prompts) -> Answers:
    """mlx-lm's batches."""
    from mlx_lm import batch_generate

    response = batch_generate(
        model, tokenizer, prompts, max_tokens=NEW_TOKENS, return_token_ids=True
    )
    found: Answers = response.token_ids
    return found


def ours(model: Any, tokenizer: Any, prompts: Prompts) -> Answers:
    """`forge_mcp.judging.generation`."""
    from forge_mcp.judging.generation import Throughput, generate

    done = Throughput()
    found = generate(model, tokenizer, prompts, NEW_TOKENS, throughput=done)
    share = done.computed_tokens / done.prompt_tokens
    print(f"ours computed {share:.0%} of the prompts' tokens; the rest was shared")
    return [one.tokens for one in found]


CONTESTANTS: dict[str, Callable[[Any, Any, Prompts], Answers]] = {
    ONE_BY_ONE: one_by_one,
    BATCHED: batched,
    OURS: ours,
}


def forge(*arguments: str, home: Path | None = None) -> dict[str, Any]:
    """The result of a command."""
    environment = os.environ | ({"FORGE_HOME": str(home)} if home else {})
    done = subprocess.run(
        [FORGE, *arguments, "--json"], env=environment, stdout=subprocess.PIPE, check=False
    )
    if not done.stdout:
        sys.exit(f"forge-mcp {' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def questions(options: argparse.Namespace) -> list[Any]:
    """The test rows of the dataset named, or of one made of the repository."""
    if options.dataset:
        dataset = Workspace().load(options.dataset, "dataset")
        return list(read_rows(dataset.file("test.jsonl")))
    with tempfile.TemporaryDirectory() as folder:
        corpus = forge("extract", options.repo, home=Path(folder))["corpus_id"]
        made = forge("synthesize", corpus, home=Path(folder))["dataset_id"]
        return list(read_rows(Path(folder) / "datasets" / made / "test.jsonl"))


def load(run: str | None) -> tuple[Any, Any, int]:
    """(model, tokenizer, context) of a run, or of forge-nano."""
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.run import load_run

    loaded: Any = load_run(Workspace().load(run, "run")) if run else load_base("forge-nano")
    folder = loaded.base_path if run else loaded.path
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return loaded.model, loaded.tokenizer, int(config["max_position_embeddings"])


def choose_prompts(rows: Sequence[Any], tokenizer: Any, context: int, count: int) -> Prompts:
    """Prompts that leave room for the answer, drawn by the seed."""
    import numpy as np

    examples = [encode_row(row, tokenizer) for row in rows]
    fitting = [
        example.tokens[: example.start]
        for example in examples
        if SHORTEST <= example.start <= context - NEW_TOKENS
    ]
    if not fitting:
        sys.exit(f"the dataset's test split has no prompt of {SHORTEST} tokens and more")
    order = np.random.default_rng(SEED).permutation(len(fitting))[:count]
    chosen = [fitting[int(at)] for at in order]
    lengths = [len(prompt) for prompt in chosen]
    print(
        f"{len(chosen)} prompts of {min(lengths)} to {max(lengths)} tokens, on average "
        f"{statistics.mean(lengths):.0f}; at most {NEW_TOKENS} new ones each"
    )
    return chosen


def turn(model: Any, tokenizer: Any, prompts: Prompts) -> dict[str, dict[str, float]]:
    """Every contestant once: tokens a second, seconds, peak memory, answers like one by one."""
    mx = machine.mlx()
    rows: dict[str, dict[str, float]] = {}
    expected: Answers = []
    for name, write in CONTESTANTS.items():
        mx.clear_cache()
        mx.reset_peak_memory()
        before, started = mx.get_active_memory(), time.perf_counter()
        answers = write(model, tokenizer, prompts)
        seconds = time.perf_counter() - started
        expected = expected or answers
        rows[name] = {
            "tokens_per_second": sum(map(len, answers)) / seconds,
            "seconds": seconds,
            "peak_gib": (mx.get_peak_memory() - before) / 2**30,
            "same": sum(map(list.__eq__, answers, expected)),
        }
    return rows


def generation(options: argparse.Namespace) -> dict[str, Any]:
    """Print the table of the contestants; returns what `--json` writes."""
    model, tokenizer, context = load(options.run)
    count = QUICK_PROMPTS if options.quick else options.prompts
    prompts = choose_prompts(questions(options), tokenizer, context, count)
    for write in CONTESTANTS.values():  # warm
        write(model, tokenizer, [prompt[:SHORTEST] for prompt in prompts[:2]])
    turns = [
        turn(model, tokenizer, prompts) for _ in range(1 if options.quick else options.repetitions)
    ]
    print(f"{'':<30}{'tokens/s':>10}{'seconds':>10}{'x mlx-lm':>10}{'peak GiB':>10}{'same':>8}")
    rows = {}
    for name in CONTESTANTS:
        row = {key: statistics.median(one[name][key] for one in turns) for key in turns[0][name]}
        row["ratio"] = _ratio(turns, name, ONE_BY_ONE)
        rows[name] = row
        print(
            f"{name:<30}{row['tokens_per_second']:>10.1f}{row['seconds']:>10.1f}"
            f"{row['ratio']:>10.2f}{row['peak_gib']:>10.2f}{row['same']:>5.0f}/{len(prompts)}"
        )
    ratios = ", ".join(f"{_ratio([one], OURS, ONE_BY_ONE):.2f}" for one in turns)
    print(f"\nours / {ONE_BY_ONE}: {rows[OURS]['ratio']:.2f} ({ratios}), aimed at {TARGET}")
    print(f"ours / {BATCHED}: {_ratio(turns, OURS, BATCHED):.2f}")
    return {"prompts": len(prompts), "rows": rows, "turns": turns}


def _ratio(turns: Sequence[dict[str, dict[str, float]]], one: str, other: str) -> float:
    return statistics.median(
        turn[one]["tokens_per_second"] / turn[other]["tokens_per_second"] for turn in turns
    )


def evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Print how long the default evaluation of a run takes."""
    if not options.run:
        sys.exit("--part evaluation needs --run")
    started = time.perf_counter()
    result = forge("evaluate", options.run)
    seconds = time.perf_counter() - started
    if "report_id" not in result:
        sys.exit(f"no report: {result}")
    print(f"{result['report_id']}: {seconds:.0f} s from a cold start, bound {BOUND:.0f} s")
    return {"seconds": seconds, "bound": BOUND, "passed": result["passed"]}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repo", nargs="?", default=".", help="a repository to make questions of")
    parser.add_argument("--part", choices=["generation", "evaluation"], default="generation")
    parser.add_argument("--dataset", help="id in FORGE_HOME; instead of a repository")
    parser.add_argument("--run", help="id in FORGE_HOME; otherwise forge-nano answers")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few prompts, one repetition")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loads = [f"{load:.1f}" for load in os.getloadavg()]
    print(", ".join(f"{name} {value}" for name, value in machine.describe().items()))
    print(f"load before: {' '.join(loads)}")
    result = {"generation": generation, "evaluation": evaluation}[options.part](options)
    if options.json:
        result["machine"] = machine.describe()
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
