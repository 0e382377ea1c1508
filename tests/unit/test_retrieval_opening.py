"""From the settings to a retriever; the retriever of `query`: kept, released, never replaced."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from raft_blocks import SHOP, blocks_of
from retrieval_encoders import CountingEncoder, write_encoder

from forge_mcp.errors import Cancelled, InvalidSettings, NotFound
from forge_mcp.pipeline import query, retrieving
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.retrieval import Retriever
from forge_mcp.retrieval.dense import DenseRetriever, HybridRetriever
from forge_mcp.retrieval.opening import open_encoder, open_retriever
from forge_mcp.schemas.code_blocks import RejectedBlock
from forge_mcp.schemas.events import Event
from forge_mcp.settings import Settings, load_settings
from forge_mcp.workspace import Artifact, Workspace, write_jsonl

BLOCKS = blocks_of(SHOP)
KINDS = {"bm25": Retriever, "dense": DenseRetriever, "hybrid": HybridRetriever}


def settings_of(method: str, encoder: str = "") -> Settings:
    return load_settings(None, {"retrieval": {"method": method, "encoder": encoder}})


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    workspace = Workspace(tmp_path / "forge")
    with workspace.stage("corpus", "shop") as staged:
        write_jsonl(staged.path / "blocks.jsonl", BLOCKS[:-2])
        hidden = [
            RejectedBlock(**BLOCKS[-2].model_dump(), reasons=["too_short"]),
            RejectedBlock(**BLOCKS[-1].model_dump(), reasons=["secret"]),
        ]
        write_jsonl(staged.path / "rejected.jsonl", hidden)
        return staged.commit(id="corpus-shop-1234", inputs_hash="1234")


@pytest.fixture
def encoder(tmp_path: Path) -> Iterator[str]:
    write_encoder(tmp_path / "shop" / "tiny")
    yield "tiny"
    query.release()


def context_of(tmp_path: Path, settings: Settings, events: list[Event]) -> SkillContext:
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"),
        settings=settings,
        project="shop",
        repository=tmp_path / "shop",
        sink=events.append,
    )


@pytest.mark.parametrize("method", KINDS)
def test_the_method_decides(tmp_path: Path, encoder: str, method: str) -> None:
    settings = settings_of(method, encoder)
    loaded = open_encoder(settings, tmp_path / "shop")
    assert (loaded is None) == (method == "bm25")
    opened = open_retriever(BLOCKS, settings, loaded, cache=tmp_path / "cache", project="shop")
    assert type(opened) is KINDS[method]
    assert opened.search("lower price by percent", 3)
    empty = open_retriever([], settings, loaded, cache=tmp_path / "cache", project="shop")
    assert empty.search("price", 3) == []


@pytest.mark.parametrize("method", ["dense", "hybrid"])
def test_a_method_without_its_encoder_is_an_error(method: str) -> None:
    with pytest.raises(InvalidSettings, match=r"retrieval\.encoder is empty"):
        open_encoder(settings_of(method), None)
    with pytest.raises(NotFound, match="hf download acme/none"):
        open_encoder(settings_of(method, "acme/none"), None)


@pytest.mark.parametrize("method", KINDS)
def test_query_searches_all_blocks_but_those_with_secrets(
    tmp_path: Path, corpus: Artifact, encoder: str, method: str
) -> None:
    events: list[Event] = []
    context = context_of(tmp_path, settings_of(method, encoder), events)
    found = retrieving.retriever(corpus, context)
    assert type(found) is KINDS[method]
    assert {block.id for block in found.blocks} == {block.id for block in BLOCKS[:-1]}
    assert retrieving.retriever(corpus, context) is found
    told = [event for event in events if "Indexing" in str(event.payload)]
    assert bool(told) == (method != "bm25")
    query.release()
    again = retrieving.retriever(corpus, context)
    assert again is not found
    assert [block.id for block, _ in again.search("price", 3)] == [
        block.id for block, _ in found.search("price", 3)
    ]
    assert (tmp_path / "forge" / "cache" / "retrieval").exists() == (method != "bm25")


def test_other_settings_open_another_retriever(
    tmp_path: Path, corpus: Artifact, encoder: str
) -> None:
    kinds = [
        type(retrieving.retriever(corpus, context_of(tmp_path, settings_of(method, encoder), [])))
        for method in ("bm25", "dense", "hybrid", "bm25")
    ]
    assert kinds == [Retriever, DenseRetriever, HybridRetriever, Retriever]
    assert len(retrieving._retrievers) == len(retrieving._encoders) == 1


def test_no_fall_back_to_bm25(tmp_path: Path, corpus: Artifact) -> None:
    context = context_of(tmp_path, settings_of("hybrid", "./gone"), [])
    for _ in range(2):
        with pytest.raises(NotFound, match=r"no encoder '\./gone'"):
            retrieving.retriever(corpus, context)


def test_indexing_can_be_cancelled(tmp_path: Path, corpus: Artifact, encoder: str) -> None:
    context = context_of(tmp_path, settings_of("dense", encoder), [])
    assert isinstance(context.cancel, threading.Event)
    context.cancel.set()
    with pytest.raises(Cancelled):
        retrieving.retriever(corpus, context)
    context.cancel.clear()
    assert retrieving.retriever(corpus, context).search("price", 1)


def test_an_open_retriever_of_nothing_needs_no_index(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    settings = settings_of("hybrid", "any")
    opened = open_retriever([], settings, encoder, cache=tmp_path / "cache", project="shop")
    assert opened.ranks(["price"], ["none"]) == [None]
    assert not (tmp_path / "cache").exists()


def test_bm25_imports_no_heavy_package() -> None:
    script = (
        "import sys; from forge_mcp.retrieval import Retriever; import forge_mcp.retrieval.opening;"
        "import forge_mcp.pipeline.query;"
        "print([m for m in ('chromadb', 'mlx', 'transformers', 'tokenizers', 'bm25s', 'numpy', "
        "'snowballstemmer', 'ollama') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
