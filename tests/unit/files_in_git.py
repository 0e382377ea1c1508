"""Folders for the tests of listing, with and without git, safe from the settings of the user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mining_helpers import write

from forge_mcp.mining.files import list_files

CODE = "def f(a):\n    return [a, a, a]\n"


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git as it is where nobody has set anything; autouse where a module imports it."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def git(root: Path, *words: str) -> str:
    """What a git command prints."""
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    allowing = ("-c", "protocol.file.allow=always")
    done = subprocess.run(
        ["git", *who, *allowing, *words], cwd=root, check=True, capture_output=True
    )
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def repository(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder in which files are committed."""
    write(root, files)
    git(root, "init")
    git(root, "add", "-A")
    git(root, "commit", "--allow-empty", "-m", "first")
    return root


def listed(root: Path, max_bytes: int = 100_000) -> tuple[list[str], dict[str, int]]:
    """(paths that would be mined, why how many others are not)."""
    listing = list_files(root, [], [], max_bytes)
    return [file.path for file in listing.files], dict(listing.skipped)
