"""How long the whole line takes with OpenBLAS and with MLX's own BLAS (Linux without a GPU).

    python benchmarks/whole_line.py [REPO] [MAX_STEPS]

Runs `forge-mcp retrain` twice on the same repository, each in a fresh workspace, and prints the
seconds of every stage, the ratio, and the peak memory of the largest process. Without OpenBLAS
the default of 120 steps takes long; give fewer, the ratio stays.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from forge_mcp.machine import describe

FORGE = str(Path(sys.executable).with_name("forge-mcp"))
STAGES = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")


def line(repo: str, steps: int, blas: str) -> tuple[dict[str, Any], int]:
    """One run of the line; returns its result and the largest process's peak memory in bytes."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"FORGE_HOME": home, "FORGE_BLAS": blas}
        process = subprocess.Popen(
            [FORGE, "retrain", repo, "--max-steps", str(steps), "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        scale = 1 if sys.platform == "darwin" else 1024
        return json.loads(output), usage.ru_maxrss * scale


def main(repo: str, steps: int) -> None:
    """Measure both and print them side by side."""
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    results = {name: line(repo, steps, name) for name in ("openblas", "reference")}
    fast, slow = results["openblas"][0], results["reference"][0]
    print(f"{'stage':<12}{'openblas':>10}{'reference':>11}{'ratio':>8}")
    for name in (*STAGES, "whole"):
        a = fast["seconds"] if name == "whole" else (fast[name] or {}).get("seconds", 0.0)
        b = slow["seconds"] if name == "whole" else (slow[name] or {}).get("seconds", 0.0)
        print(f"{name:<12}{a:>9.1f}s{b:>10.1f}s{b / a if a else 0:>8.2f}")
    for name, (result, peak) in results.items():
        print(f"{name}: {result['state']}, peak {peak / 2**30:.2f} GiB (parent or child)")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".", int(sys.argv[2]) if len(sys.argv) > 2 else 120)
