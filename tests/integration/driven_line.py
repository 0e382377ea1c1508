"""Driving the real `forge-mcp` on a small repository, with few steps and open gates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from few_steps import FEW_STEPS, OPEN_GATE

SAMPLE = Path(__file__).parents[1] / "fixtures" / "sample_python_repo"
OPEN = FEW_STEPS | OPEN_GATE


class Line:
    """A workspace and a repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "forge"
        self.repository = folder / "sample"
        shutil.copytree(SAMPLE, self.repository)
        self.environment = os.environ | OPEN | {"FORGE_HOME": str(self.home)}

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`forge-mcp … --json` in the repository, its progress on stderr."""
        return subprocess.Popen(
            [sys.executable, "-m", "forge_mcp.interfaces.cli", *arguments, "--json"],
            cwd=self.repository,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
        """Exit code and the one JSON object on stdout."""
        process = self.start(*arguments, **environment)
        out, _ = process.communicate(timeout=240)
        return process.returncode, json.loads(out)

    def files(self) -> dict[str, bytes]:
        """Everything in the workspace but the registry's own files, logs, locks and caches."""
        return {
            path.relative_to(self.home).as_posix(): path.read_bytes()
            for path in sorted(self.home.rglob("*"))
            if path.is_file()
            and not path.name.startswith("forge.db")
            and not {"logs", "locks", "cache"} & set(path.parts)
        }
