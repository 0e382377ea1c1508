"""Does the gate tell knowledge of a repository from having learned a template?

    python benchmarks/verdicts.py [REPO OTHER] [--steps 400] [--out FOLDER]

On each of two repositories (by default this one and the installed package httpcore) forge-nano is
tuned for some minutes and judged against its base and against a control: the same base tuned as
long on the other repository. Then it is tuned again with the final answers of the training rows
shuffled, which teaches the template and nothing true, and judged; and the first run is judged on
its own training rows. Prints every verdict with its figures; ends with 1 unless the gate let the
two true runs through and refused all else. What FOLDER already holds is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from forge_mcp.machine import describe
from forge_mcp.schemas.prompt import ANSWER
from forge_mcp.workspace import Workspace, hash_inputs

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
ROOT = Path(__file__).parents[1]
SETTINGS = {
    "rank": 64,
    "lora_alpha": 64,
    "learning_rate": 1e-3,
    "max_seq_length": 640,  # so that two cores need some minutes
    "num_train_epochs": 100,  # the steps decide
    "early_stopping_patience": 0,
}
SHOWN = (
    "open_book.fact_perplexity",
    "open_book.answer_accuracy",
    "closed_book.fact_perplexity",
    "closed_book.fact_choice",
)


def forge(home: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """A command's exit code and its JSON."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FORGE_")}
    done = subprocess.run(
        [FORGE, *arguments, "--json"],
        env=environment | {"FORGE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode, json.loads(done.stdout)


def succeed(home: Path, *arguments: str) -> dict[str, Any]:
    """A command's JSON, where it must succeed."""
    code, result = forge(home, *arguments)
    if code:
        raise SystemExit(f"forge-mcp {' '.join(arguments)}: {result}")
    return result


def make_dataset(home: Path, repo: Path) -> str:
    """A validated dataset of a repository."""
    name = ("--set", f"project.name={repo.name}")
    corpus = succeed(home, "extract", str(repo), *name)["corpus_id"]
    raw = succeed(home, "synthesize", corpus, *name)["dataset_id"]
    validated: str = succeed(home, "validate", raw, *name)["dataset_id"]
    return validated


def variant(home: Path, dataset_id: str, how: str) -> str:
    """The dataset with shuffled final answers in training, or with its training rows as test."""
    workspace = Workspace(home)
    dataset = workspace.load(dataset_id, "dataset")
    inputs_hash = hash_inputs({"of": dataset_id, "how": how})
    found = workspace.find("dataset", dataset.manifest.project, inputs_hash)
    if found is None:
        with workspace.stage("dataset", dataset.manifest.project) as staged:
            shutil.copytree(dataset.path, staged.path, dirs_exist_ok=True)
            (staged.path / "manifest.json").unlink()
            if how == "shuffled":
                shuffle_answers(staged.path / "train.jsonl")
            else:
                swap_splits(staged.path)
            found = staged.commit(
                id=workspace.new_id("dataset", dataset.manifest.project, inputs_hash),
                inputs_hash=inputs_hash,
                parents=dataset.manifest.parents,
                result=dataset.manifest.result,
            )
    return found.id


def shuffle_answers(path: Path) -> None:
    """Give every row the final answer of another one; the reasoning stays."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    taken = [row["messages"][-1]["content"].partition(ANSWER) for row in rows]
    answers = [answer for _, _, answer in taken]
    random.Random(5).shuffle(answers)
    for row, (reasoning, marker, _), answer in zip(rows, taken, answers, strict=True):
        row["messages"][-1]["content"] = reasoning + marker + answer
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def swap_splits(folder: Path) -> None:
    """Call the training rows the test split."""
    names = {"train": "test", "test": "train", "valid": "valid"}
    path = folder / "examples.jsonl"
    examples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for example in examples:
        example["split"] = names[example["split"]]
    lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    path.write_text("".join(lines), "utf-8")
    (folder / "train.jsonl").rename(folder / "swap")
    (folder / "test.jsonl").rename(folder / "train.jsonl")
    (folder / "swap").rename(folder / "test.jsonl")


def train(home: Path, dataset: str, steps: int) -> tuple[str, float]:
    """A run on forge-nano, and the seconds of its training."""
    settings = [
        part for name, value in SETTINGS.items() for part in ("--set", f"training.{name}={value}")
    ]
    done = succeed(home, "train", dataset, "--max-steps", str(steps), *settings)
    return done["run_id"], done["seconds"]


def judge(home: Path, title: str, *arguments: str) -> bool | None:
    """Print a verdict; whether the gate said yes (None: it refused to judge)."""
    code, result = forge(home, "evaluate", *arguments)
    if "passed" not in result:
        print(f"\n{title}: exit code {code}, {result['error']['code']}")
        print(f"  {result['error']['message']} {result['error']['cause']}")
        return None if result["error"]["code"] == "refused" else True
    verdict = "deploy" if result["passed"] else "do not deploy"
    print(f"\n{title}: {verdict} (exit code {code}, {result['seconds']:.0f} s)")
    for reason in result["reasons"]:
        print(f"  because {reason}")
    report = json.loads((Path(result["path"]) / "report.json").read_text("utf-8"))
    for comparison in report["comparisons"]:
        found = {metric["name"]: metric for metric in comparison["differences"]}
        for name in SHOWN:
            if name in found:
                metric = found[name]
                print(
                    f"  against the {comparison['against']:<8} {name:<28} {metric['value']:+.3f} "
                    f"({metric['low']:+.3f} to {metric['high']:+.3f}, n={metric['n']})"
                )
    print(f"  {result['path']}/report.html", flush=True)
    return bool(result["passed"])


def main() -> int:
    """Everything on both repositories; 0 where all verdicts are the right ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("repos", nargs="*", type=Path, metavar="REPO")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=ROOT / ".demo" / "verdicts")
    options = parser.parse_args()
    found = importlib.util.find_spec("httpcore")
    assert found and found.origin
    repos = [path.resolve() for path in options.repos] or [ROOT, Path(found.origin).parent]
    if len(repos) != 2:
        parser.error("two repositories, or none")
    home = options.out.resolve()
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    datasets, runs = [], []
    for repo in repos:
        dataset = make_dataset(home, repo)
        run, seconds = train(home, dataset, options.steps)
        print(f"{repo.name}: {dataset}, {run} ({options.steps} steps, {seconds:.0f} s)", flush=True)
        datasets.append(dataset)
        runs.append(run)
    right = True
    started = time.monotonic()
    for repo, dataset, run, control in zip(repos, datasets, runs, reversed(runs), strict=True):
        right &= judge(home, f"{repo.name}, tuned", run, "--control", control) is True
        own = variant(home, dataset, "its own training rows")
        title = f"{repo.name}, judged on its own training rows"
        right &= judge(home, title, run, "--dataset", own) is None
    for repo, dataset in zip(repos, datasets, strict=True):
        shuffled, _ = train(home, variant(home, dataset, "shuffled"), options.steps)
        right &= judge(home, f"{repo.name}, tuned on shuffled answers", shuffled) is False
    print(
        f"\n{'All as they should be' if right else 'NOT as they should be'}, "
        f"{(time.monotonic() - started) / 60:.0f} minutes"
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
