"""Indexes of vectors: immutable, shared, built again when damaged, and dense retrieval on them."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raft_blocks import SHOP, blocks_of
from retrieval_encoders import CountingEncoder, write_encoder

from forge_mcp.errors import BadInput, Cancelled, ForgeError, OutOfSpace, Unavailable
from forge_mcp.locks import FileLock
from forge_mcp.retrieval import Retriever, vectors
from forge_mcp.retrieval.dense import DenseRetriever, HybridRetriever
from forge_mcp.retrieval.encoder import load_encoder
from forge_mcp.retrieval.text import naturalised
from forge_mcp.retrieval.vectors import Reporting, block_vectors
from forge_mcp.schemas.code_blocks import CodeBlock

BLOCKS = blocks_of(SHOP)


def with_code(block: CodeBlock, code: str) -> CodeBlock:
    return block.model_copy(update={"source_code": code})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def indexes(cache: Path) -> list[Path]:
    return sorted(path for path in cache.glob("*/[!.]*") if (path / "checksums.json").is_file())


def expected(blocks: list[CodeBlock]) -> Any:
    return CountingEncoder().encode([naturalised(block) for block in blocks])


def test_vectors_come_in_the_order_of_the_blocks(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    found = block_vectors(BLOCKS, encoder, tmp_path, "My Shop")
    assert (found == expected(BLOCKS)).all()
    assert found.dtype == np.float32
    turned = block_vectors(BLOCKS[::-1], encoder, tmp_path, "My Shop")
    assert (turned == found[::-1]).all()
    assert len(encoder.texts) == len(BLOCKS)
    (index,) = indexes(tmp_path)
    assert index.parent.name == f"my-shop-{encoder.fingerprint[:12]}"
    assert sorted(path.name for path in index.parent.iterdir()) == [index.name]


def test_a_reader_changes_nothing_and_encodes_nothing(tmp_path: Path) -> None:
    first = block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    before = contents(tmp_path)
    reader = CountingEncoder()
    for _ in range(2):
        assert (block_vectors(BLOCKS, reader, tmp_path, "shop") == first).all()
    assert reader.texts == []
    assert contents(tmp_path) == before


def test_only_changed_blocks_are_encoded_anew(tmp_path: Path) -> None:
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    (first,) = indexes(tmp_path)
    kept = contents(first)
    changed = [with_code(BLOCKS[0], "def other(): ..."), *BLOCKS[2:]]
    encoder = CountingEncoder()
    found = block_vectors(changed, encoder, tmp_path, "shop")
    assert encoder.texts == [naturalised(changed[0])]
    assert (found == expected(changed)).all()
    assert contents(first) == kept
    assert len(indexes(tmp_path)) == 2


def test_a_moved_block_is_encoded_anew_and_copies_once(tmp_path: Path) -> None:
    moved = BLOCKS[0].model_copy(update={"path": "other/place.py"})
    twins = [BLOCKS[1].model_copy(update={"id": f"twin{n}"}) for n in range(5)]
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    encoder = CountingEncoder()
    found = block_vectors([moved, *twins], encoder, tmp_path, "shop")
    assert encoder.texts == [naturalised(moved)]
    assert (found[1:] == found[1]).all()
    assert (found == expected([moved, *twins])).all()


def test_projects_and_encoders_share_nothing(tmp_path: Path) -> None:
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    for encoder, project in ((CountingEncoder("other"), "shop"), (CountingEncoder(), "office")):
        block_vectors(BLOCKS, encoder, tmp_path, project)
        assert len(encoder.texts) == len(BLOCKS)
    assert len(indexes(tmp_path)) == 3


def test_old_indexes_and_leftovers_go(tmp_path: Path) -> None:
    for number in range(4):
        blocks = [with_code(BLOCKS[0], f"def number{number}(): ...")]
        block_vectors(blocks, CountingEncoder(), tmp_path, "shop")
        (home,) = tmp_path.iterdir()
        (home / f".staging-{number}").mkdir()
    # The last two: what is asked for again, and what came before it.
    assert len(indexes(tmp_path)) == vectors.KEPT
    reader = CountingEncoder()
    block_vectors([with_code(BLOCKS[0], "def number2(): ...")], reader, tmp_path, "shop")
    block_vectors([with_code(BLOCKS[0], "def number3(): ...")], reader, tmp_path, "shop")
    assert reader.texts == []
    block_vectors([with_code(BLOCKS[0], "def last(): ...")], reader, tmp_path, "shop")
    assert [path.name for path in home.glob(".*")] == []


def test_what_a_stopped_build_has_encoded_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "TEXTS_AT_ONCE", 4)
    stopped = CountingEncoder(fail_at=10)
    with pytest.raises(KeyboardInterrupt):
        block_vectors(BLOCKS, stopped, tmp_path, "shop")
    assert indexes(tmp_path) == []
    damaged, *_ = sorted(tmp_path.glob("*/encoded/*.npz"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    encoder = CountingEncoder()
    told: list[tuple[int, int]] = []
    reporting = Reporting(progress=lambda done, total: told.append((done, total)))
    found = block_vectors(BLOCKS, encoder, tmp_path, "shop", reporting)
    # Two parts of four were whole, and one of these was damaged since.
    assert len(encoder.texts) == len(BLOCKS) - 4
    assert (found == expected(BLOCKS)).all()
    assert told[0] == (0, len(BLOCKS) - 4)
    assert told[-1] == (len(BLOCKS) - 4, len(BLOCKS) - 4)
    assert told == sorted(told)
    assert not list(tmp_path.glob("*/encoded"))


def test_a_damaged_index_is_built_again_and_told(tmp_path: Path) -> None:
    first = block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    (index,) = indexes(tmp_path)
    for name in sorted({path.name for path in index.rglob("*") if path.is_file()}):
        (file,) = index.rglob(name)  # in a folder that Chroma names anew each time
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] + b"\0")
        said: list[str] = []
        encoder = CountingEncoder()
        reporting = Reporting(say=said.append)
        assert (block_vectors(BLOCKS, encoder, tmp_path, "shop", reporting) == first).all()
        assert len(encoder.texts) == len(BLOCKS)
        assert [text for text in said if "damaged" in text and index.name in text] == said != []
    (index / "checksums.json").unlink()
    encoder = CountingEncoder()
    block_vectors(BLOCKS, encoder, tmp_path, "shop")
    assert len(encoder.texts) == len(BLOCKS)


def test_many_blocks_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ROWS_AT_ONCE", 7)
    found = block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    again = block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    assert (found == expected(BLOCKS)).all()
    assert (again == found).all()


def test_two_wait_for_each_other(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    home = tmp_path / f"shop-{encoder.fingerprint[:12]}"
    lock = FileLock(home, folder=True)
    assert lock.acquire()
    said: list[str] = []

    def check() -> None:
        if said:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        block_vectors(BLOCKS, encoder, tmp_path, "shop", Reporting(say=said.append, check=check))
    assert "waiting" in said[0]
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(block_vectors(BLOCKS, encoder, tmp_path, "shop"))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    lock.release()
    for thread in threads:
        thread.join()
    assert (results[0] == results[1]).all()
    assert len(encoder.texts) == len(BLOCKS)


def test_without_chroma_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("chromadb"):
            raise ImportError("No module named 'chromadb'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    encoder = CountingEncoder()
    with pytest.raises(Unavailable, match=r"pip install 'forge-mcp\[dense\]'"):
        block_vectors(BLOCKS, encoder, tmp_path, "shop")
    assert encoder.texts == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutOfSpace),
        (PermissionError(errno.EACCES, "Permission denied"), BadInput),
    ],
)
def test_errors_of_the_disk_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[ForgeError]
) -> None:
    def fails(path: Path) -> None:
        raise error

    monkeypatch.setattr(vectors, "fsync_path", fails)
    with pytest.raises(kind, match="index of vectors"):
        block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    assert [path.name for path in tmp_path.glob("*/*")] == ["encoded"]
    monkeypatch.undo()
    encoder = CountingEncoder()
    block_vectors(BLOCKS, encoder, tmp_path, "shop")
    assert encoder.texts == []  # nothing was lost


@pytest.mark.parametrize(("full", "kind"), [(True, OutOfSpace), (False, ForgeError)])
def test_errors_of_chroma_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, kind: type[ForgeError]
) -> None:
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    (index,) = indexes(tmp_path)
    (index / "chroma.sqlite3").write_bytes(b"no database" * 500)
    # As if this Chroma could not read what another version has written.
    (index / "checksums.json").write_text(json.dumps(vectors._checksums(index)))
    monkeypatch.setattr(vectors, "is_full", lambda path: full)
    with pytest.raises(kind, match="index of vectors") as told:
        block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    assert type(told.value) is kind
    shutil.rmtree(index.parent)  # what the error advises
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")


def test_an_encoders_own_error_passes(tmp_path: Path) -> None:
    class Broken(CountingEncoder):
        def encode(self, *args: Any, **kwargs: Any) -> Any:
            raise Unavailable("Gone.")

    with pytest.raises(Unavailable, match="Gone"):
        block_vectors(BLOCKS, Broken(), tmp_path, "shop")


def test_chroma_calls_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []

    def refuse(*address: object) -> None:
        called.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for _ in range(2):
        block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    assert called == []


def test_use_is_noted_for_gc(tmp_path: Path) -> None:
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    (index,) = indexes(tmp_path)
    os.utime(index, (1, 1))
    block_vectors(BLOCKS, CountingEncoder(), tmp_path, "shop")
    assert index.stat().st_mtime > 1


# -- retrieval -------------------------------------------------------------------------------------


def dense_retriever(blocks: list[CodeBlock] = BLOCKS) -> DenseRetriever:
    return DenseRetriever(blocks, expected(blocks), CountingEncoder())


def test_dense_scores_are_cosines() -> None:
    retriever = dense_retriever()
    for block in BLOCKS[:4]:
        (first, score), *others = retriever.search(naturalised(block), len(BLOCKS))
        assert first.id == block.id
        assert score == pytest.approx(1)
        assert len(others) == len(BLOCKS) - 1  # every block has a cosine
        assert all(other < 1 for _, other in others)


def test_many_queries_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.retrieval.dense.QUERIES_AT_ONCE", 2)
    queries = ["one", "two", "three", "three", "four"]
    ids = [block.id for block in BLOCKS[:5]]
    sparse, dense = Retriever(BLOCKS), dense_retriever()
    for retriever in (sparse, dense, HybridRetriever(sparse, dense)):
        assert retriever.ranks(queries, ids) == [
            retriever.rank(query, name) for query, name in zip(queries, ids, strict=True)
        ]
        assert retriever.search_many(queries, 3) == [retriever.search(q, 3) for q in queries]


def test_the_hybrid_weighs_both() -> None:
    sparse, dense = Retriever(BLOCKS), dense_retriever()
    query = "add an item to the cart"
    wanted = sum(
        weight * (scores - scores.mean()) / scores.std()
        for weight, scores in ((0.3, sparse.scores(query)), (0.7, dense.scores(query)))
    )
    found = HybridRetriever(sparse, dense).scores(query)
    np.testing.assert_allclose(found, wanted)
    nothing = HybridRetriever(sparse, dense).scores("zzzz")  # BM25 finds nothing to weigh
    np.testing.assert_allclose(
        nothing,
        0.7 * (dense.scores("zzzz") - dense.scores("zzzz").mean()) / dense.scores("zzzz").std(),
    )


def test_a_real_encoder_finds_a_block_by_its_own_text(tmp_path: Path) -> None:
    encoder = load_encoder(str(write_encoder(tmp_path / "tiny")), ollama_host="")
    found = block_vectors(BLOCKS, encoder, tmp_path / "cache", "shop")
    retriever = DenseRetriever(BLOCKS, found, encoder)
    for block in BLOCKS[:3]:
        assert retriever.rank(naturalised(block), block.id) == 1
