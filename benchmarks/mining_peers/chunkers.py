"""What chunkers are asked for, and the environment in which other projects' run."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from mining_oracles import read_sources
from oracles.catalogue import Task

from forge_mcp.mining.files import SourceFile
from mining_peers.miner import excerpt, is_utf8, one_process, parsed_files
from mining_peers.processes import run

BENCHMARKS = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
# The words of oracles for what a chunk should not cut; types are none.
FUNCTIONS = frozenset(
    ("FunctionDef", "AsyncFunctionDef", "function", "method", "constructor", "getter", "setter")
).union(("bound variable", "bound property"))


def chunking_request(task: Task, root: Path, cache: Path, folder: Path) -> tuple[Path, float, int]:
    """A file with what chunk.py is asked for, beside copies of the sources that it names.

    Args:
        task: says which files of `root` are read, and what their functions are. Files that are
            not in UTF-8 are left out: chunkers take text.
        root: of the repository.
        cache: folder of the packages that were fetched, among them the oracle's parser.
        folder: takes the file and the copies.

    Returns:
        The file, the megabytes of the sources, and the number of their functions.

    Raises:
        Unavailable: the oracle is not installed.
    """
    settings = one_process()
    found, _ = read_sources(root, task, settings)
    sources = {path: data for path, data in found.items() if is_utf8(data)}
    definitions, _ = task.oracle(root, sources, cache)
    functions: dict[str, list[str]] = defaultdict(list)
    for definition in definitions:
        if definition.kind in FUNCTIONS and definition.end is not None:
            source = sources[definition.path][definition.start : definition.end]
            # Parsers differ in whether the sign behind a class's field is a part of it.
            functions[definition.path].append(source.decode().rstrip(" ;,"))
    excerpt(root, (SourceFile(path, "") for path in sources), folder / "files")
    parsed = parsed_files(root, settings)
    asked = {
        "root": str(folder / "files"),
        "files": {file.path: file.language for file in parsed if file.path in sources},
        "functions": functions,
    }
    request = folder / "request.json"
    request.write_text(json.dumps(asked), encoding="utf-8")
    size = sum(map(len, sources.values())) / 1e6
    return request, size, sum(map(len, functions.values()))


def peers_python(cache: Path) -> Path:
    """The interpreter of the chunkers' environment, which is made where it is not there yet.

    Raises:
        ForgeError: pip cannot install it.
    """
    folder = cache / "chunkers"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        run([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)])
        installed.write_text(wanted, encoding="utf-8")  # last: an install cut short is none
    return python


def run_peer(python: Path, peer: str, request: Path) -> dict[str, Any]:
    """What mining_peers/chunk.py answers."""
    answer: dict[str, Any] = json.loads(
        run([str(python), "-m", "mining_peers.chunk", peer, str(request)], BENCHMARKS)
    )
    return answer
