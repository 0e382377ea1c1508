"""A training that is killed -9 again and again, each time at a given step, and resumed.

    python killed_training.py REQUEST.json STEP …

The libraries are imported once; each attempt is a process of its own, forked before anything was
computed, that runs the training child's own `main`. It is killed at a random moment after it has
made STEP steps, so now in the middle of a step, now of a checkpoint. The last attempt is left
alone.
Prints one JSON object: the step that each killed attempt had reached, and how the last one ended.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import mlx_lm.models.llama
import mlx_lm.tokenizer_utils
import mlx_lm.utils  # noqa: F401
import transformers

from forge_mcp.training import adapters, bases, batching, child, run, trainer  # noqa: F401

transformers.PreTrainedTokenizerFast  # noqa: B018 -- imported lazily
SECONDS = 60
LONGEST_STEP = 0.05


def main(request: str, steps: list[int]) -> None:
    """See above."""
    while not Path(request).exists():  # it names this process as the parent
        time.sleep(0.01)
    metrics = Path(json.loads(Path(request).read_text())["run"]) / "metrics.jsonl"
    dice = random.Random(6)
    reached = []
    for step in steps:
        attempt = start(request)
        deadline = time.monotonic() + SECONDS
        while last_step(metrics) < step:
            assert os.waitpid(attempt, os.WNOHANG) == (0, 0), "it ended by itself"
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.001)
        time.sleep(dice.uniform(0, LONGEST_STEP))
        os.kill(attempt, signal.SIGKILL)
        os.waitpid(attempt, 0)
        reached.append(last_step(metrics))
    _, status = os.waitpid(start(request), 0)
    print(json.dumps({"killed_after": reached, "exit_code": os.waitstatus_to_exitcode(status)}))


def start(request: str) -> int:
    """An attempt; its process id. What it tells goes to events.jsonl beside the request."""
    sys.stdout.flush()
    attempt = os.fork()
    if attempt:
        return attempt
    told = os.open(Path(request).with_name("events.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(told, 1)
    os._exit(child.main([request]))


def last_step(metrics: Path) -> int:
    """Of the rows that are whole; -1 where there is none."""
    try:
        lines = metrics.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return -1
    return json.loads(lines[-1])["step"] if lines else -1


if __name__ == "__main__":
    main(sys.argv[1], [int(step) for step in sys.argv[2:]])
