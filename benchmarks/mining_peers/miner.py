"""The miner's side of benchmarks/mining.py: what is measured, each piece in its own process."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from forge_mcp.machine import without_collection
from forge_mcp.mining.files import SourceFile, header_language, list_files
from forge_mcp.mining.languages import language
from forge_mcp.mining.repository import mine_repository
from forge_mcp.mining.text import decode, text_skip_reason
from forge_mcp.settings import Settings, load_settings
from mining_peers.chunk import told_of_chunks
from mining_peers.usage import Usage, best_of_rounds, spent


def one_process() -> Settings:
    """The defaults, but for the number of processes: their CPU time is then that of the work."""
    return load_settings(call={"mining": {"workers": 1}})


def parsed_files(root: Path, settings: Settings) -> list[SourceFile]:
    """The files of a repository that the miner parses; those that it skips on reading are not."""
    project, limit = settings.project, settings.mining.max_file_bytes
    found = []
    for file in list_files(root, project.include, project.exclude, limit).files:
        data = (root / file.path).read_bytes()
        header = file.language == "c" and file.path.endswith(".h")
        name = header_language(data) if header else file.language
        if not text_skip_reason(data, decode(data, name, file.path), file.path):
            found.append(SourceFile(file.path, name))
    return found


def parse_all(root: Path, files: Iterable[SourceFile]) -> None:
    """Read and parse files, and nothing more."""
    with without_collection():
        for file in files:
            language(file.language).parse((root / file.path).read_bytes())


def mine(root: Path, settings: Settings, into: Path, cache: Path | None = None) -> None:
    """Write blocks.jsonl and rejected.jsonl of a repository into a folder."""
    with (
        mine_repository(root, settings, cache=cache) as mining,
        (into / "blocks.jsonl").open("wb") as blocks,
        (into / "rejected.jsonl").open("wb") as rejected,
    ):
        for trained, others in mining.lines():
            blocks.write(trained)
            rejected.write(others)


def mine_without_secrets(root: Path, settings: Settings, into: Path) -> None:
    """`mine`, but no credential is looked for."""
    with patch("forge_mcp.mining.repository.find_secrets", lambda text: []):
        mine(root, settings, into)


def corpus_costs(root: Path) -> tuple[int, float, dict[str, Usage]]:
    """(files, their megabytes, what parsing and mining them costs)."""
    settings = one_process()
    files = parsed_files(root, settings)
    size = sum((root / file.path).stat().st_size for file in files) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        costs = best_of_rounds(
            {
                "parse": lambda: parse_all(root, files),
                "mine without secrets": lambda: mine_without_secrets(root, settings, into),
                "mine": lambda: mine(root, settings, into),
            }
        )
    return len(files), size, costs


def mine_with_cache(root: Path, cache: Path) -> tuple[Usage, str]:
    """What it costs, and a SHA-256 (hex) of the lines."""
    settings = load_settings()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        usage = spent(lambda: mine(root, settings, into, cache))
        lines = hashlib.sha256()
        for name in ("blocks.jsonl", "rejected.jsonl"):
            lines.update((into / name).read_bytes())
    return usage, lines.hexdigest()


def our_blocks(request: Path) -> dict[str, Any]:
    """The miner's answer to what mining_peers/chunk.py is asked for.

    Blocks that are not trained on count: chunkers leave nothing out. Credentials are left in
    where functions are looked for: a function in which one was replaced is not lost.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    root, settings = Path(asked["root"]), one_process()
    blocks: dict[str, list[str]] = {path: [] for path in asked["files"]}
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        usage = best_of_rounds({"mine": lambda: mine(root, settings, into)})["mine"]
        mine_without_secrets(root, settings, into)
        for name in ("blocks.jsonl", "rejected.jsonl"):
            for line in (into / name).read_bytes().splitlines():
                row = json.loads(line)
                blocks[row["path"]].append(row["source_code"])
    return {**usage._asdict(), **told_of_chunks(asked["functions"], blocks)}


def excerpt(root: Path, files: Iterable[SourceFile], into: Path) -> None:
    """Copy some files of a repository."""
    for file in files:
        target = into / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file.path, target)


def is_utf8(data: bytes) -> bool:
    """Whether bytes are text in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
