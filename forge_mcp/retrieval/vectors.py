"""The vectors of a corpus, kept in immutable Chroma indexes.

    FORGE_HOME/cache/retrieval/PROJECT-ENCODER/     locked while it is read or written
        KEY/                                        one index: Chroma's files and their checksums
        encoded/                                    vectors of a build that is going on, or stopped
        .…/                                         being written or read; swept by the next build

KEY comes from the ids and texts of the blocks. Vectors of texts that an earlier index (or a stopped
build) of the same encoder holds are taken from there: only what has changed is encoded anew. An
index is built in a folder of its own and renamed when it is whole. Opening Chroma writes into its
files, so a reader opens a copy, for a moment. All of it can be computed again.

Vectors are read from Chroma once and compared exactly: with 10,000 of them that takes less time
than a query to Chroma, and finds what Chroma's approximate search may miss.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge_mcp.errors import ForgeError, Unavailable, from_os_error
from forge_mcp.locks import FileLock
from forge_mcp.retrieval.text import naturalised
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.workspace import fsync_path, hash_file, hash_inputs, is_full, slug, write_file

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Encoder, Vectors

COLLECTION = "blocks"
CHECKSUMS = "checksums.json"
ENCODED = "encoded"
TEXTS_AT_ONCE = 512  # between two writes: what a stopped build loses at most
ROWS_AT_ONCE = 5000  # Chroma takes 5,461 at most
KEPT = 2  # indexes of one project and encoder: the latest, and one to take vectors from


@dataclass(frozen=True)
class Reporting:
    """How indexing tells of its work.

    progress: texts encoded, texts in all. say: one sentence. check: raises to stop the work.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    say: Callable[[str], None] = lambda message: None
    check: Callable[[], None] = lambda: None


def block_vectors(
    blocks: Sequence[CodeBlock],
    encoder: Encoder,
    cache: Path,
    project: str,
    reporting: Reporting | None = None,
) -> Vectors:
    """The vectors of some blocks, in their order: float32 of shape (blocks, dimensions).

    Args:
        blocks: with ids of their own, at least one.
        encoder: makes the vectors that no index holds.
        cache: the folder of all indexes.
        project: whose indexes share vectors.
        reporting: how it tells of its work.

    Raises:
        Unavailable: chromadb is not installed.
        OutOfSpace, ForgeError: the index cannot be written.
    """
    reporting = reporting or Reporting()
    chroma = _chroma()
    texts = {block.id: naturalised(block) for block in blocks}
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    key = hash_inputs(hashes)[:16]
    home = cache / f"{slug(project)}-{encoder.fingerprint[:12]}"
    with FileLock(home, folder=True) as lock, _translated(home):
        lock.wait(
            reporting.check,
            lambda: reporting.say("Another process is indexing this project; waiting for it."),
        )
        index = home / key
        found = _read(chroma, index) if index.is_dir() else None
        if found is None or {name: text for name, (text, _) in found.items()} != hashes:
            if index.is_dir():
                reporting.say(f"The index {index} is damaged and is built again.")
                shutil.rmtree(index)
            by_hash = {hashes[name]: text for name, text in texts.items()}
            vectors = _encoded(chroma, home, by_hash, encoder, reporting)
            _write(chroma, home, index, blocks, hashes, vectors)
            _prune(home)
            return _stacked([vectors[hashes[block.id]] for block in blocks])
        os.utime(index)  # gc and `_prune` go by when it was last used
        return _stacked([found[block.id][1] for block in blocks])


def _encoded(
    chroma: Any, home: Path, texts: Mapping[str, str], encoder: Encoder, reporting: Reporting
) -> dict[str, Any]:
    """The vectors of texts by their hashes: those that are known, and the others encoded."""
    import numpy as np

    vectors = {one: row for one, row in _stopped(home / ENCODED) if one in texts}
    for path in _indexes(home):
        if len(vectors) < len(texts):
            held = _read(chroma, path) or {}
            vectors |= {one: row for one, row in held.values() if one in texts}
    missing = sorted(texts.keys() - vectors.keys(), key=lambda one: (len(texts[one]), one))
    if missing:
        reporting.progress(0, len(missing))
    for start in range(0, len(missing), TEXTS_AT_ONCE):
        part = missing[start : start + TEXTS_AT_ONCE]

        def told(done: int, _: int, start: int = start) -> None:
            reporting.progress(start + done, len(missing))

        rows = encoder.encode([texts[one] for one in part], "document", told)
        content = io.BytesIO()
        np.savez(content, hashes=np.array(part), vectors=rows)
        write_file(home / ENCODED / f"{part[0][:16]}.npz", content.getvalue())
        vectors.update(zip(part, rows, strict=True))
    return vectors


def _stopped(folder: Path) -> Iterator[tuple[str, Any]]:
    """What a stopped build had encoded; a file that cannot be read is encoded again."""
    import numpy as np

    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path) as file:
                yield from zip(file["hashes"].tolist(), file["vectors"], strict=True)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            path.unlink()


def _write(
    chroma: Any,
    home: Path,
    index: Path,
    blocks: Sequence[CodeBlock],
    hashes: Mapping[str, str],
    vectors: Mapping[str, Any],
) -> None:
    """Build an index in a folder of its own and give it its name."""
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
    try:
        with _client(chroma, staging) as client:
            collection = client.create_collection(
                COLLECTION,
                embedding_function=None,
                configuration={"hnsw": {"space": "ip"}},  # "cosine" would scale the vectors again
            )
            for start in range(0, len(blocks), ROWS_AT_ONCE):
                part = blocks[start : start + ROWS_AT_ONCE]
                collection.add(
                    ids=[block.id for block in part],
                    embeddings=[vectors[hashes[block.id]] for block in part],
                    metadatas=[
                        {"text": hashes[b.id], "path": b.path, "name": b.qualified_name}
                        for b in part
                    ],
                )
        write_file(staging / CHECKSUMS, json.dumps(_checksums(staging), indent=2) + "\n")
        for path in [*staging.rglob("*"), staging]:
            fsync_path(path)
        staging.rename(index)
        fsync_path(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already where all went well


def _prune(home: Path) -> None:
    """Remove all but the last indexes, and what builds and readers have left behind."""
    left = [path for path in home.iterdir() if path.name.startswith(".") or path.name == ENCODED]
    for path in [*left, *_indexes(home)[KEPT:]]:
        shutil.rmtree(path)


def _indexes(home: Path) -> list[Path]:
    """The indexes of a project and encoder, the last used first."""
    found = [path for path in home.iterdir() if (path / CHECKSUMS).is_file()]
    found = [path for path in found if not path.name.startswith(".")]
    return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path.name))


def _checksums(index: Path) -> dict[str, str]:
    return {
        path.relative_to(index).as_posix(): hash_file(path)
        for path in sorted(index.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }


def _read(chroma: Any, index: Path) -> dict[str, tuple[str, Any]] | None:
    """Of every block (by id) the hash of its text and its vector; None where it is damaged."""
    import numpy as np

    try:
        if json.loads((index / CHECKSUMS).read_bytes()) != _checksums(index):
            return None
    except (FileNotFoundError, ValueError):
        return None
    with tempfile.TemporaryDirectory(prefix=".reading-", dir=index.parent) as copy:
        shutil.copytree(index, copy, dirs_exist_ok=True)
        with _client(chroma, Path(copy)) as client:
            collection = client.get_collection(COLLECTION, embedding_function=None)
            got = collection.get(include=["embeddings", "metadatas"])
    rows = np.asarray(got["embeddings"], np.float32)
    hashes = [str(fields["text"]) for fields in got["metadatas"]]
    return dict(zip(got["ids"], zip(hashes, rows, strict=True), strict=True))


def _stacked(vectors: Sequence[Any]) -> Vectors:
    import numpy as np

    return np.stack(vectors).astype(np.float32)


def _chroma() -> Any:
    """The chromadb module.

    Raises:
        Unavailable: it is not installed.
    """
    try:
        import chromadb
        import chromadb.config
        import chromadb.errors
    except ImportError as error:
        raise Unavailable(
            "Dense retrieval keeps its vectors in Chroma, which is not installed.",
            cause=str(error),
            next_step="Install it with: pip install 'forge-mcp[dense]', or set retrieval.method "
            "to bm25.",
        ) from error
    return chromadb


@contextmanager
def _client(chroma: Any, path: Path) -> Iterator[Any]:
    """A client on a folder; closed, it holds no file open and forgets the folder."""
    client = chroma.PersistentClient(
        path=str(path), settings=chroma.config.Settings(anonymized_telemetry=False)
    )
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _translated(home: Path) -> Iterator[None]:
    """Errors of the disk and of Chroma in words."""
    try:
        yield
    except OSError as error:
        raise from_os_error(error, "keep the index of vectors") from error
    except Exception as error:
        if not type(error).__module__.startswith("chromadb"):
            raise
        if is_full(home):
            full = OSError(28, str(error), str(home))
            raise from_os_error(full, "keep the index of vectors") from error
        raise ForgeError(
            "The index of vectors cannot be used.",
            cause=str(error),
            next_step=f"Delete {home} (it is only a cache) and ask again.",
        ) from error
