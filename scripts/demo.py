"""`make demo`: the whole line on one repository, then questions to the deployed model.

    python scripts/demo.py [REPO] [--question TEXT] [--home DIR] [--max-steps N]

Everything is done through the `forge-mcp` command, as a user would. Without --question it asks
three that the model has not seen: they come from the dataset's held-out files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
# Sized so that two cores need a few minutes; a real project trains for whole epochs.
DEMO_STEPS = 120
# Where MLX has only its own BLAS (Linux, no OpenBLAS, no GPU) a step takes ten times as long.
SLOW_STEPS = 30
# forge-nano was pre-trained on rows in other words than today's, so it has a long way to go in few
# steps: validation loss on this repository 1.09 at the default 3e-4, 0.78 at 1e-3, 0.72 here.
LEARNING_RATE = 3e-3


def forge(*arguments: str) -> dict[str, Any]:
    """Run a forge-mcp command; its progress goes to the terminal. Exits where it fails."""
    print(f"\n$ forge-mcp {' '.join(arguments)}", flush=True)
    done = subprocess.run([FORGE, *arguments, "--json"], stdout=subprocess.PIPE, check=False)
    result: dict[str, Any] = json.loads(done.stdout or b"{}")
    if done.returncode not in (0, 3):
        print(json.dumps(result, indent=2))
        sys.exit(done.returncode)
    return result


def held_out_questions(dataset: Path, count: int) -> list[str]:
    """Questions of the test split whose answer is in the repository, one of a kind of fact."""
    kinds: dict[str, str] = {}
    with (dataset / "examples.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["split"] == "test" and not row["oracle_absent"]:
                kinds.setdefault(row["fact"]["kind"], row["question"])
    preferred = ["raises", "default", "signature", "returns", "calls", "purpose", "location"]
    ranked = sorted(kinds, key=lambda k: preferred.index(k) if k in preferred else len(preferred))
    return [kinds[kind] for kind in ranked[:count]]


def main() -> int:
    """Run the demo; returns the process's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("repo", nargs="?", default=".")
    parser.add_argument("--question", action="append", help="ask this instead; repeatable")
    parser.add_argument("--home", default=".demo", help="workspace of the demo")
    parser.add_argument("--max-steps", type=int, help=f"default {DEMO_STEPS}, or {SLOW_STEPS}")
    options = parser.parse_args()

    os.environ["FORGE_HOME"] = str(Path(options.home).resolve())
    health = forge("doctor")
    for check in health["checks"]:
        if check["state"] != "ok":
            print(f"{check['name']}: {check['detail']}\n  {check['next_step']}")
    slow = health["machine"]["blas"] == "reference"
    steps = options.max_steps or (SLOW_STEPS if slow else DEMO_STEPS)
    print(f"The demo trains for {steps} steps.", "Fewer, because of the BLAS." if slow else "")
    started = time.monotonic()
    rate = f"training.learning_rate={LEARNING_RATE}"
    line = forge("retrain", options.repo, "--max-steps", str(steps), "--set", rate)
    if line["state"] != "succeeded":
        print("A gate said no; nothing was deployed:")
        for reason in line["reasons"]:
            print(f"  - {reason}")
        return 3
    trained = time.monotonic() - started

    questions = options.question or held_out_questions(Path(line["synthesize"]["path"]), 3)
    for question in questions:
        answer = forge("query", question, "--project", str(Path(options.repo).resolve()))
        print(f"\nQ: {question}\nA: {answer['answer']}")
        for cited in answer["citations"]:
            print(f"   cited: {cited['path']}:{cited['start_line']}-{cited['end_line']}")
        print(f"   ({answer['model']}, {answer['seconds']:.1f} s)")

    judged = line["evaluate"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    print("\nWhat was done")
    for stage in ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy"):
        seconds = line[stage].get("seconds")
        print(f"  {stage:<11}{'' if seconds is None else f'{seconds:7.1f} s'}")
    print(f"  whole line {trained:7.1f} s, largest process {peak_bytes / 2**30:.2f} GiB")
    print(f"  blocks {line['extract']['blocks']}, examples {line['synthesize']['examples']}")
    print("On held-out examples (95% interval)")
    report = json.loads((Path(judged["path"]) / "report.json").read_text(encoding="utf-8"))
    for section in report["sections"]:
        measured = {
            model: {metric["name"]: metric for metric in section["metrics"].get(model, [])}
            for model in ("base", "tuned")
        }
        for name, base in measured["base"].items():
            if name in measured["tuned"]:
                label = f"{section['name']} {name}"
                tuned = figure(measured["tuned"][name])
                print(f"  {label:<34} base {figure(base)} → tuned {tuned}")
    print(f"  report: {Path(judged['path']) / 'report.html'}")
    return 0


def figure(metric: dict[str, float]) -> str:
    """A figure of a report with its interval."""
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
