"""Reading the rows of a dataset, whoever wrote them.

A file that was cut, or is no JSON, is refused: nobody knows what is missing. A row that is JSON
but no example is counted and left out; the others are good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from forge_mcp.errors import CorruptArtifact
from forge_mcp.schemas.base import Schema

Row = TypeVar("Row", bound=Schema)


@dataclass(frozen=True)
class RowFault:
    """A row that is none of its kind: file, line (1-based), and what is wrong."""

    file: str
    line: int
    message: str

    @property
    def reason(self) -> str:
        """As in the messages of checks."""
        return "malformed"


def read_rows(path: Path, kind: type[Row]) -> tuple[list[Row], list[RowFault]]:
    """The rows of a JSONL file, and those that are no `kind`.

    Raises:
        CorruptArtifact: a line is no JSON, or no UTF-8; file and line are named.
    """
    rows: list[Row] = []
    faults: list[RowFault] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise _damaged(path, number, line, error) from error
            try:
                rows.append(kind.model_validate(value))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "the row"
                faults.append(RowFault(path.name, number, f"malformed: {place}: {first['msg']}"))
    return rows, faults


def _damaged(path: Path, number: int, line: bytes, error: ValueError) -> CorruptArtifact:
    cut = not line.endswith(b"\n")
    return CorruptArtifact(
        f"Line {number} of {path.name} {'is cut off' if cut else 'is no JSON'}.",
        cause=f"{path}, line {number}: {error}",
        next_step="Make the dataset again with synthesize; where the file was written by hand, "
        "correct that line.",
    )
