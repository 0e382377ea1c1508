"""What the tests of dependencies share: files, a block, and what it depends on."""

from __future__ import annotations

from pathlib import Path

from mining_helpers import mine, write

# Files, a block, and what it depends on.
Case = tuple[dict[str, str], str, list[str]]


def check(tmp_path: Path, case: Case) -> None:
    files, block, expected = case
    mined = mine(write(tmp_path, dict(files)))
    assert mined.every[block].dependencies == expected


DEF = "def g(): return 1\n"  # another file's function
