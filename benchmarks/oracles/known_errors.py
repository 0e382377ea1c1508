"""Mistakes of oracles, each looked at in the source: `known_oracle_errors.json`.

An entry names a definition that an oracle reports and that is none, or whose lines it has wrong,
with the line's text as evidence. The definition is left out of the comparison and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from forge_mcp.errors import ForgeError
from oracles.comparison import Definition

FILE = Path(__file__).parent / "known_oracle_errors.json"


def without_known_errors(
    expected: Iterable[Definition], sources: Mapping[str, bytes], task: str, package: str
) -> tuple[list[Definition], int]:
    """(definitions that are to be compared, number of those that were taken out).

    Raises:
        ForgeError: an entry names no definition, or its evidence is not what the line says.
    """
    wrong = {
        (entry["path"], entry["line"], entry["name"]): entry["evidence"]
        for group in json.loads(FILE.read_text())
        if (group["task"], group["package"]) == (task, package)
        for entry in group["entries"]
    }
    kept, used = [], set()
    for definition in expected:
        key = (definition.path, definition.line, definition.names[0])
        if key not in wrong:
            kept.append(definition)
            continue
        used.add(key)
        line = sources[definition.path].split(b"\n")[definition.line - 1]
        if line.decode("utf-8", errors="replace").strip() != wrong[key]:
            raise _stale(key)
    if unused := wrong.keys() - used:
        raise _stale(min(unused))
    return kept, len(used)


def _stale(key: tuple[str, int, str]) -> ForgeError:
    path, line, name = key
    return ForgeError(
        f"{FILE.name} names {path}:{line} {name}, which is not there.",
        cause="the package or the oracle has changed",
        next_step="Look at it again and correct the entry.",
    )
