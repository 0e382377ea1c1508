"""Retrieval: sub-tokens, names before text, determinism."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.retrieval import Retriever, subtokens
from forge_mcp.retrieval.text import CODE_PARTS, naturalised, terms

BLOCKS = blocks_of(SHOP)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("getHTTPResponse_v2", ["get", "http", "response", "v", "2"]),
        ("snake_case __dunder__", ["snake", "case", "dunder"]),
        ("MAX_SIZE = 10", ["max", "size", "10"]),
        ("", []),
        ("→ !?", []),
        ("Größe getÖffnung äöü2 Σύνολο", ["größe", "get", "öffnung", "äöü", "2", "σύνολο"]),
        ("数据 переменная", ["数据", "переменная"]),
    ],
)
def test_subtokens_split_identifiers(text: str, expected: list[str]) -> None:
    assert subtokens(text) == expected


@given(st.text())
def test_subtokens_are_lower_case_parts_of_the_text(text: str) -> None:
    for token in subtokens(text):
        assert token == token.lower()
        assert token in text.lower()


def test_terms_are_stemmed_and_tell_something() -> None:
    assert terms("the cached Handlers that handle") == ["cach", "handler", "handl"]
    assert terms("What does it return?") == ["return"]


def test_naturalised_text_says_where_and_what() -> None:
    block = next(block for block in BLOCKS if block.qualified_name == "Store.load")
    head, docs, code = naturalised(block).split("\n")
    assert head == "store load (shop store)"
    assert docs == block.docstring
    assert code.startswith("def load self encoding str utf 8 dict read all carts")
    long = block.model_copy(update={"source_code": block.source_code + "\nx = y" * 500})
    *_, code = naturalised(long).split("\n")
    assert len(code.split()) == CODE_PARTS + len(subtokens(block.docstring))
    bare = block.model_copy(update={"path": "Makefile", "docstring": ""})
    assert naturalised(bare).startswith("store load (makefile)\ndef load")


def test_a_qualified_name_is_found_first() -> None:
    retriever = Retriever(BLOCKS)
    for block in BLOCKS:
        query = f"What does `{block.qualified_name}` ({block.path}) do?"
        assert retriever.search(query, 1)[0][0].id == block.id
        assert retriever.rank(query, block.id) == 1


def test_a_description_without_the_name_finds_the_block() -> None:
    found = [block.name for block, _ in Retriever(BLOCKS).search("lower price by percent", 3)]
    assert found[0] == "discount"


def test_results_are_sorted_limited_and_score_something() -> None:
    retriever = Retriever(BLOCKS)
    hits = retriever.search("price rate count", 4)
    scores = [score for _, score in hits]
    assert len(hits) == 4
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    assert retriever.search("zzzz qqqq", 4) == []
    assert retriever.search("price", 0) == []


def test_ranks_agree_with_the_search() -> None:
    retriever = Retriever(BLOCKS)
    for query in ("add an item", "`add`", "carts of a file", "shop/mail.py"):
        for place, (block, _) in enumerate(retriever.search(query, 10), start=1):
            assert retriever.rank(query, block.id) == place
    assert retriever.rank("zzzz", BLOCKS[0].id) is None
    assert retriever.rank("price", "no such block") is None


def test_many_queries_give_what_one_gives() -> None:
    retriever = Retriever(BLOCKS)
    queries = ["add an item", "add an item", "price", "zzzz", "`add`", "price"]
    ids = [BLOCKS[n].id for n in (0, 1, 2, 3, 4)] + ["no such block"]
    assert retriever.ranks(queries, ids) == [
        retriever.rank(query, name) for query, name in zip(queries, ids, strict=True)
    ]
    assert retriever.search_many(queries, 3) == [retriever.search(q, 3) for q in queries]
    assert retriever.ranks([], []) == []
    with pytest.raises(ValueError, match="zip"):
        retriever.ranks(queries, ids[:2])


def test_stop_words_find_nothing() -> None:
    assert Retriever(BLOCKS).search("What does it do with the", 3) == []


def test_a_hundred_thousand_ranks_take_a_minute_at_most() -> None:
    many = [
        block.model_copy(update={"id": f"{n}:{block.id}"}) for n in range(450) for block in BLOCKS
    ]  # 9,000
    retriever = Retriever(many)
    queries = [f"Which exceptions does `{b.qualified_name}` in {b.path} raise?" for b in BLOCKS]
    begin = time.process_time()
    retriever.ranks(queries * 10, [block.id for block in many[: 10 * len(queries)]])
    assert (time.process_time() - begin) / (10 * len(queries)) * 100_000 < 60


def test_equal_scores_keep_the_order_of_the_blocks() -> None:
    twins = [BLOCKS[3].model_copy(update={"id": f"twin{n}"}) for n in range(5)]
    hits = Retriever(twins).search(BLOCKS[3].name, 5)
    assert [block.id for block, _ in hits] == [f"twin{n}" for n in range(5)]
    assert len({score for _, score in hits}) == 1


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_any_query_is_answered(query: str) -> None:
    hits = Retriever(BLOCKS[:6]).search(query, 3)
    assert len(hits) <= 3


def test_an_empty_index_finds_nothing() -> None:
    assert Retriever([]).search("anything", 3) == []
    bare = BLOCKS[0].model_copy(
        update=dict.fromkeys(("path", "name", "qualified_name", "source_code", "docstring"), "")
        | {"parent": None}
    )
    assert Retriever([bare]).search("anything", 3) == []


def test_thousands_of_blocks_are_indexed_in_seconds() -> None:
    many = [
        block.model_copy(update={"id": f"{n}:{block.id}", "name": f"{block.name}_{n}"})
        for n in range(200)
        for block in BLOCKS
    ]
    begin = time.process_time()
    retriever = Retriever(many)
    assert time.process_time() - begin < 5
    assert retriever.search("`discount_123`", 1)[0][0].id.startswith("123:")
