"""Chunk files with another project's chunker: python -m mining_peers.chunk PEER REQUEST

REQUEST is a JSON file {root, files: {path: language}, functions: {path: [source text]}}. Prints
JSON: seconds of CPU and wall time (best of three), the number of chunks, the files without any, and
the number of functions that are whole in none of the chunks of their file.
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


def told_of_chunks(
    functions: Mapping[str, Iterable[str]], chunks: Mapping[str, list[str]]
) -> dict[str, int]:
    """The number of chunks, of files without any, and of functions that are whole in none.

    Args:
        functions: path → source texts.
        chunks: path → texts, for every file.
    """
    lost = [
        text
        for path, texts in functions.items()
        for text in texts
        if not any(text in chunk for chunk in chunks[path])
    ]
    return {
        "chunks": sum(map(len, chunks.values())),
        "files_without": sum(not texts for texts in chunks.values()),
        "lost": len(lost),
    }


def main(peer: str, request: Path) -> None:
    """Measure one peer."""
    asked = json.loads(request.read_text(encoding="utf-8"))
    root, files = Path(asked["root"]), asked["files"]
    chunkers = {language: chunker(peer, language) for language in sorted(set(files.values()))}
    chunks: dict[str, list[str]] = {}

    def chunk_all() -> None:
        chunks.clear()
        for path, language in files.items():
            text = (root / path).read_bytes().decode()
            try:
                chunks[path] = chunkers[language](text)
            except ValueError:  # llama-index: it could not parse it
                chunks[path] = []

    usage = best_of_rounds({peer: chunk_all})[peer]
    answer = {**usage._asdict(), **told_of_chunks(asked["functions"], chunks)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
