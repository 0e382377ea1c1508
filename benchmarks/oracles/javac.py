"""javac's own parser: exact spans of all types and methods, those of anonymous classes included."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from forge_mcp.errors import ForgeError, Unavailable
from oracles.comparison import Definition

SCRIPT = Path(__file__).with_name("Javac.java")


def definitions(
    root: Path, sources: Mapping[str, bytes], cache: Path
) -> tuple[list[Definition], list[str]]:
    """(definitions, paths that javac cannot parse or that are not in UTF-8).

    Raises:
        Unavailable: there is no JDK.
    """
    texts: dict[str, str] = {}
    unparsed = []
    for path, data in sources.items():
        try:
            texts[path] = data.decode()
        except UnicodeDecodeError:
            unparsed.append(path)
    found = []
    widths: dict[str, list[int]] = {}
    for line in _run(root, sorted(texts)).splitlines():
        path, kind, name, start, end, first, last = line.split("\t")
        if kind == "ERROR":
            unparsed.append(path)
            continue
        if path not in widths:
            widths[path] = _byte_offsets(texts[path])
        found.append(
            Definition(
                path=path,
                kind=kind.lower(),
                names=(name,),
                line=int(first),
                start=widths[path][int(start)],
                end=widths[path][int(end)],
                end_line=int(last),
            )
        )
    return found, unparsed


def _byte_offsets(text: str) -> list[int]:
    """UTF-16 offset → offset in UTF-8."""
    offsets = [0]
    for character in text:
        size = len(character.encode())
        offsets += [offsets[-1] + size] * (2 if size == 4 else 1)
    return offsets


def _run(root: Path, paths: list[str]) -> str:
    command = ["java", str(SCRIPT), str(root)]
    asked = "\n".join(paths)
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Unavailable(
            "java is not installed.",
            cause=f"{SCRIPT.name} runs in it",
            next_step="Install a JDK 11 or newer, or compare other languages with --language.",
        ) from error
    except subprocess.CalledProcessError as error:
        raise ForgeError(
            f"{SCRIPT.name} failed.",
            cause=error.stderr.strip()[-600:],
            next_step="A JDK 11 or newer is needed, with its compiler (jdk.compiler).",
        ) from error
    return done.stdout
