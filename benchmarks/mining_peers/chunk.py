"""Chunk files with another project's chunker: python -m mining_peers.chunk PEER REQUEST

REQUEST is a JSON file {root, files: {path: language}, functions: {path: [source text]}}. Prints
JSON: seconds of CPU and wall time (best of three), the number of chunks, the files that the chunker
refused, and the functions that are whole in none of the chunks of their file.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mining_peers.usage import best_of_rounds

CHUNK_CHARACTERS = 1500
PEERS = ("chonkie", "llama-index")

Chunker = Callable[[str], list[str]]


def chunker(peer: str, language: str) -> Chunker:
    """A peer's splitter: text → texts of at most about 1,500 characters.

    Args:
        peer: one of `PEERS`.
        language: as tree-sitter-language-pack names it.
    """
    if peer == "chonkie":
        chonkie: Any = importlib.import_module("chonkie")
        code = chonkie.CodeChunker(
            tokenizer="character", chunk_size=CHUNK_CHARACTERS, language=language
        )
        return lambda text: [chunk.text for chunk in code.chunk(text)]
    parsers: Any = importlib.import_module("llama_index.core.node_parser")
    splitter = parsers.CodeSplitter(language=language, max_chars=CHUNK_CHARACTERS)
    return lambda text: list(splitter.split_text(text))


def lost_functions(
    functions: Mapping[str, Iterable[str]], chunks: Mapping[str, list[str]]
) -> dict[str, int]:
    """How many functions of each file are whole in none of its chunks; only files that lose some.

    Args:
        functions: path → source texts.
        chunks: path → texts.
    """
    lost = {
        path: sum(not any(text in chunk for chunk in chunks.get(path, ())) for text in texts)
        for path, texts in functions.items()
    }
    return {path: count for path, count in lost.items() if count}


def main(peer: str, request: Path) -> None:
    """Measure one peer."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    root, files = Path(asked["root"]), asked["files"]
    chunkers = {language: chunker(peer, language) for language in sorted(set(files.values()))}
    chunks: dict[str, list[str]] = {}
    refused: list[str] = []

    def chunk_all() -> None:
        chunks.clear()
        refused.clear()
        for path, language in files.items():
            text = (root / path).read_bytes().decode()
            try:
                chunks[path] = chunkers[language](text)
            except Exception:  # of any kind: what counts is that it has no chunks
                refused.append(path)

    usage = best_of_rounds({peer: chunk_all})[peer]
    lost = lost_functions(asked["functions"], chunks)
    answer = {
        "cpu": usage.cpu,
        "wall": usage.wall,
        "chunks": sum(map(len, chunks.values())),
        "refused": len(refused),
        "lost": sum(lost.values()),
        "lost_in_refused": sum(lost.get(path, 0) for path in refused),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
