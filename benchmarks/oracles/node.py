"""Oracles that run in node: parsers from npm, driven by the .js files beside this one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.errors import ForgeError, Unavailable
from oracles.comparison import Definition
from oracles.packages import Package, fetch

HERE = Path(__file__).parent


@dataclass(frozen=True)
class NodeOracle:
    """A parser from npm and the script that makes definitions of its trees."""

    script: str
    parser: Package

    def __call__(
        self, root: Path, sources: Mapping[str, bytes], cache: Path
    ) -> tuple[list[Definition], list[str]]:
        """(definitions, paths that it cannot parse) of the files below `root`.

        Raises:
            Unavailable: node is not installed, or npm cannot deliver the parser.
        """
        # Node reads a file as UTF-8: in any other encoding its offsets would not be the file's.
        readable = {path for path, data in sources.items() if _is_utf8(data)}
        module = fetch(self.parser, cache) / "package"
        found: list[Definition] = []
        unparsed = sorted(sources.keys() - readable)
        for result in _run(HERE / self.script, module, root, sorted(readable)):
            path = result["path"]
            if "error" in result:
                unparsed.append(path)
                continue
            found += [
                Definition(path=path, **{**fields, "names": tuple(fields["names"])})
                for fields in result["definitions"]
            ]
        return found, unparsed


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _run(script: Path, module: Path, root: Path, paths: list[str]) -> list[dict[str, Any]]:
    command = ["node", "--stack-size=4000", str(script), str(module)]
    asked = json.dumps({"root": str(root), "paths": paths})
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Unavailable(
            "node is not installed.",
            cause=f"{script.name} runs in it",
            next_step="Install Node.js, or compare other languages with --language.",
        ) from error
    except subprocess.CalledProcessError as error:
        raise ForgeError(
            f"{script.name} failed.",
            cause=error.stderr.strip()[-600:],
            next_step="Run it alone with the same files.",
        ) from error
    return [json.loads(line) for line in done.stdout.splitlines()]
