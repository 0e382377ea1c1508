"""Definitions whose first and last lines were read in the source, for want of a parser.

`hand_checked/LANGUAGE.json` names whole files, with the SHA-256 of what was read, and lists all
their classes, types, functions, methods and constructors; no properties, subscripts and objects
without a name. Nothing in it comes from the miner. The first line is that of the
definition itself, its attributes included, its comments not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.errors import ForgeError
from oracles.comparison import Definition

FOLDER = Path(__file__).parent / "hand_checked"


@dataclass(frozen=True)
class HandChecked:
    """One language's list."""

    language: str

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are listed."""
        return tuple(file["path"] for file in self._files())

    def _files(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads((FOLDER / f"{self.language}.json").read_text())
        return listed

    def __call__(
        self, root: Path, sources: Mapping[str, bytes], cache: Path
    ) -> tuple[list[Definition], list[str]]:
        """(definitions of the listed files of the package at `root`, other files).

        Raises:
            ForgeError: a listed file is not what was read, or is not mined.
        """
        found: list[Definition] = []
        listed = [
            file
            for file in self._files()
            if root.name.startswith(file["package"].replace("/", "_") + "-")
        ]
        for file in listed:
            source = sources.get(file["path"])
            if source is None or hashlib.sha256(source).hexdigest() != file["sha256"]:
                raise ForgeError(
                    f"{file['path']} of {file['package']} is not what was checked by hand.",
                    cause="it is not mined" if source is None else "its SHA-256 is another",
                    next_step=f"Read it again and correct hand_checked/{self.language}.json.",
                )
            found += _definitions(file["path"], source, file["definitions"])
        return found, sorted(sources.keys() - {file["path"] for file in listed})


def _definitions(path: str, source: bytes, listed: list[dict[str, Any]]) -> list[Definition]:
    lines = source.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    return [
        Definition(
            path=path,
            kind=entry["kind"],
            names=(entry["name"],),
            line=entry["start_line"],
            start=starts[entry["start_line"]] - len(lines[entry["start_line"] - 1].lstrip()) - 1,
            end_line=entry["end_line"],
        )
        for entry in listed
    ]
