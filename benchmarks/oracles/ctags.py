"""universal-ctags 5.9: names and lines of definitions, found with hand-written scanners."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from forge_mcp.errors import ForgeError, Unavailable
from oracles import ctags_errors
from oracles.comparison import Definition
from oracles.ctags_errors import Tag

ANONYMOUS = re.compile(r"__anon|^anonymous")


@dataclass(frozen=True)
class CtagsOracle:
    """One language of ctags.

    Attributes:
        language: as ctags names it.
        kinds: the kinds that are definitions.
        correct: the tags of a file (ctags' JSON) and its lines → the tags that are believed.
    """

    language: str
    kinds: frozenset[str]
    correct: Callable[[list[Tag], list[str]], list[Tag]] = ctags_errors.none

    def __call__(
        self, root: Path, sources: Mapping[str, bytes], cache: Path
    ) -> tuple[list[Definition], list[str]]:
        """(definitions, nothing: ctags reads every file) of the files below `root`.

        Raises:
            Unavailable: ctags is not installed, or was built without JSON.
        """
        tags: dict[str, list[Tag]] = defaultdict(list)
        for tag in _tags(root, self.language, sorted(sources)):
            if tag["kind"] in self.kinds and not ANONYMOUS.search(tag["name"]):
                tags[tag["path"]].append(tag)
        found: list[Definition] = []
        for path, listed in tags.items():
            lines = sources[path].split(b"\n")
            texts = [line.decode("utf-8", errors="replace") for line in lines]
            starts = _starts(lines)
            for tag in self.correct(listed, texts):
                at = tag["line"] - 1
                found.append(
                    Definition(
                        path=path,
                        kind=tag["kind"],
                        names=(tag["name"],),
                        line=tag["line"],
                        start=starts[at] + _name_offset(lines[at], tag["name"]),
                        end_line=tag.get("end"),
                        to_name=True,
                    )
                )
        return found, []


def _starts(lines: list[bytes]) -> list[int]:
    at, starts = 0, []
    for line in lines:
        starts.append(at)
        at += len(line) + 1
    return starts


def _name_offset(line: bytes, name: str) -> int:
    """Bytes before the name in its line; before the first word where ctags made the name up."""
    parts = rb"\s*".join(re.escape(part).encode() for part in name.split())
    found = re.search(rb"(?<![\w$])%b(?![\w$])" % parts, line)
    return found.start() if found else len(line) - len(line.lstrip())


def _tags(root: Path, language: str, paths: list[str]) -> list[Tag]:
    command = [
        *("ctags", "--options=NONE", "--output-format=json", "--fields=+neKSZl"),
        *(f"--language-force={language}", "-L", "-", "-f", "-"),
    ]
    try:
        done = subprocess.run(
            command, cwd=root, input="\n".join(paths), capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise Unavailable(
            "ctags is not installed.",
            cause=f"it is the oracle for {language}",
            next_step="Install universal-ctags, or compare other languages with --language.",
        ) from error
    except subprocess.CalledProcessError as error:
        raise ForgeError(
            f"ctags failed for {language}.",
            cause=error.stderr.strip()[-400:],
            next_step="Use universal-ctags 5.9 or newer, with JSON (ctags --list-features).",
        ) from error
    tags = [json.loads(line) for line in done.stdout.splitlines()]
    return [tag for tag in tags if tag["_type"] == "tag"]
