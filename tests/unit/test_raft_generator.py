"""RAFT synthesis: facts that are true, quotes that stand, invariants of every example."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import BadInput, NotFound
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.synthesize import SynthesizeRequest, SynthesizeResult, synthesize
from forge_mcp.raft import (
    Dataset,
    build_dataset,
    chat_row,
    check,
    example_documents,
    generate_chain_of_thought,
    generate_qa_pairs,
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.documents import MAX_SIMILARITY, Pool, overlap, similarity
from forge_mcp.raft.facts import (
    KINDS,
    RELATED_KINDS,
    derive,
    first_sentence,
    imported_modules,
    one_line,
    value_items,
)
from forge_mcp.raft.pairs import also_answers
from forge_mcp.raft.phrases import MAX_HEADER, QUESTIONS, clip
from forge_mcp.raft.preferences import corrupt
from forge_mcp.raft.splits import assign_splits, shared_content
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, find_quote, parse_answer, render_answer
from forge_mcp.schemas.raft_examples import SPLITS, Fact, RaftExample, Split
from forge_mcp.settings import RaftSettings, load_settings
from forge_mcp.workspace import Workspace, hash_inputs, write_jsonl

BLOCKS = blocks_of(SHOP)
BY_ID = {block.id: block for block in BLOCKS}


def raft(**changes: Any) -> RaftSettings:
    return load_settings().raft.model_copy(update=changes)


def block(path_and_name: str) -> CodeBlock:
    return BY_ID[f"shop/{path_and_name}"]


def fact(kind: str, of: str, value: str, subject: str = "") -> Fact:
    return Fact(kind=kind, block=f"shop/{of}", value=value, subject=subject)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(BLOCKS, raft())


# -- facts -------------------------------------------------------------------------------------

TRUE = [
    fact(
        "signature",
        "prices.py::discount",
        "`def discount(price: float, percent: float=10.0) -> float`",
    ),
    fact("parameters", "cart.py::Cart.add", "`item`, `count`"),
    fact("default", "cart.py::Cart.add", "`1`", "count"),
    fact("annotation", "cart.py::Cart.add", "`Item`", "item"),
    fact("annotation", "cart.py::Cart.add", "`int`", "return"),
    fact("decorators", "cart.py::Cart.total", "`@property`"),
    fact("raises", "prices.py::parse_price", "`ValueError`"),
    fact("guard", "cart.py::Cart.add", "`count < 1`", "ValueError"),
    fact("returns", "cart.py::Cart.add", "`len(self.items)`"),
    fact("calls", "cart.py::Cart.add", "`self.check_room`, `self.items.extend`, `len`"),
    fact("bases", "cart.py::Cart", "`Basket`"),
    fact("methods", "cart.py::Cart", "`__init__`, `add`, `check_room`, `total`"),
    fact("location", "prices.py::discount", "`shop/prices.py:8-10`"),
    fact("purpose", "cart.py::Cart.add", "Put an item into the cart."),
]  # fmt: skip


@pytest.mark.parametrize("stated", TRUE, ids=lambda f: f"{f.kind}-{f.block}")
def test_a_true_fact_is_derived_and_confirmed(stated: Fact) -> None:
    of = BY_ID[stated.block]
    assert stated in derive(of)
    assert check(stated, [of])


@pytest.mark.parametrize("stated", TRUE, ids=lambda f: f"{f.kind}-{f.block}")
def test_the_same_fact_with_another_value_is_refuted(stated: Fact) -> None:
    of = BY_ID[stated.block]
    others = [f for b in BLOCKS for f in derive(b) if f.kind == stated.kind]
    tried = 0
    for other in others:
        if sorted(value_items(other)) != sorted(value_items(stated)):
            tried += 1
            assert not check(stated.model_copy(update={"value": other.value}), [of])
    assert tried
    assert not check(stated.model_copy(update={"value": "`nonsense`"}), [of])
    assert not check(stated.model_copy(update={"block": "another"}), [of])
    assert not check(stated, [])


def test_metadata_that_lies_is_not_believed() -> None:
    lying = block("cart.py::Cart.add").model_copy(
        update={"metadata": {"raises": ["KeyError"], "calls": ["len"], "decorators": ["cached"]}}
    )
    told = {f.kind for f in derive(lying)}
    assert {"raises", "calls", "decorators"} <= told
    believed = {f.kind for f in derive(lying) if check(f, [lying])}
    assert not believed & {"raises", "calls", "decorators"}


def test_what_a_nested_function_does_is_not_said_of_the_outer_one() -> None:
    outer, inner = blocks_of(
        {"a.py": "def outer(x):\n    def inner():\n        return x\n    return inner\n"}
    )
    assert not check(Fact(kind="returns", block=outer.id, value="`inner`"), [outer])
    assert check(Fact(kind="returns", block=inner.id, value="`x`"), [inner])


def test_a_reraised_exception_hides_nothing_but_an_unknown_one_does() -> None:
    text = "def f(x):\n    try: x()\n    except OSError as e:\n        raise e\n    raise {}\n"
    named, unnamed = (
        blocks_of({"a.py": text.format(raised)})[0] for raised in ("KeyError(x)", "x.error_type(1)")
    )
    stated = Fact(kind="raises", block=named.id, value="`KeyError`")
    assert check(stated, [named])
    assert not any(check(f, [unnamed]) for f in derive(unnamed) if f.kind == "raises")


def foreign(language: str, source: str, **fields: Any) -> CodeBlock:
    base = block("prices.py::discount").model_dump()
    lines = source.count("\n") + 1
    return CodeBlock.model_validate(
        base
        | {"id": "x", "language": language, "source_code": source, "docstring": ""}
        | {"start_line": 1, "end_line": lines}
        | fields
    )


def test_other_languages_are_verified_in_the_text() -> None:
    source = (
        "/** Reads a config file from the disk. */\n"
        "export function readConfig(path, encoding = 'utf8') {\n"
        "  if (!path) throw new TypeError('no path');\n"
        "  const text = fs.readFileSync(path, encoding);\n"
        "  return JSON.parse(text);\n"
        "}"
    )
    made = foreign(
        "javascript",
        source,
        name="readConfig",
        qualified_name="readConfig",
        block_type="function",
        signature="export function readConfig(path, encoding = 'utf8')",
        docstring="Reads a config file from the disk.",
        metadata={
            "parameters": [{"name": "path"}, {"name": "encoding", "default": "'utf8'"}],
            "raises": ["TypeError"],
            "return_expressions": ["JSON.parse(text)"],
            "calls": ["fs.readFileSync", "JSON.parse"],
        },
    )
    facts = derive(made)
    expected = {
        "signature", "parameters", "default", "raises", "returns", "calls", "location", "purpose"
    }  # fmt: skip
    assert {f.kind for f in facts} == expected
    assert all(check(f, [made]) for f in facts)
    assert all(generate_chain_of_thought(f, [made]) for f in facts)
    for kind, value in (
        ("calls", "`JSON.parse`"),  # incomplete
        ("raises", "`RangeError`"),
        ("default", "`'latin1'`"),
        ("returns", "`text`"),
        ("purpose", "Writes a config file to the disk."),
        ("guard", "`!path`"),  # a kind that only Python has
    ):
        subject = "encoding" if kind == "default" else ""
        assert not check(Fact(kind=kind, block="x", value=value, subject=subject), [made]), kind


def test_a_module_is_asked_by_its_path() -> None:
    source = (
        '"""Settings that every part of the shop reads."""\n\n'
        "import os, json as j\nfrom .cart import (\n    Cart,\n)\n\n"
        "LIMIT: int = 20\nNAMES = ('a', 'b')\nTWICE = 1\nTWICE = 2\n"
    )
    made = block("prices.py::discount").model_copy(
        update={
            "id": "shop/config.py::<module>",
            "path": "shop/config.py",
            "block_type": "module",
            "name": "config",
            "qualified_name": "shop.config",
            "signature": "",
            "docstring": "Settings that every part of the shop reads.",
            "source_code": source,
            "metadata": {
                "imports": ["import os, json as j", "from .cart import (\n    Cart,\n)"],
                "constants": [
                    {"name": "LIMIT", "value": "20"},
                    {"name": "NAMES", "value": "('a', 'b')"},
                    {"name": "TWICE", "value": "1"},
                    {"name": "TWICE", "value": "2"},
                ],
            },
        }
    )
    pairs = generate_qa_pairs([made], raft(examples_per_block=20))
    answers = {(pair.fact.kind, pair.fact.subject): pair.answer for pair in pairs}
    assert answers == {
        ("imports", ""): "`os`, `json`, `.cart`",
        ("constant", "LIMIT"): "`20`",
        ("constant", "NAMES"): "`('a', 'b')`",
        ("purpose", ""): "Settings that every part of the shop reads.",
    }
    assert all("`shop/config.py`" in pair.question for pair in pairs)
    assert not check(Fact(kind="constant", block=made.id, value="`2`", subject="TWICE"), [made])


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import a.b, c as d", ["a.b", "c"]),
        ("from .. import x", [".."]),
        ("import fs, { x } from 'node:fs';", ["node:fs"]),
        ('import (\n\t"fmt"\n\t"os"\n)', ["fmt", "os"]),
        ("import java.util.List;", ["java.util.List"]),
        ("import static java.lang.Math.max;", ["java.lang.Math.max"]),
    ],
)
def test_modules_of_an_import_statement(statement: str, expected: list[str]) -> None:
    assert imported_modules(statement) == expected


def test_a_long_line_is_quoted_in_part() -> None:
    arguments = ", ".join(f"argument_{n}: int = {n}" for n in range(12))
    (made,) = blocks_of({"a.py": f"def wide({arguments}):\n    return argument_11\n"})
    stated = next(f for f in derive(made) if f.subject == "argument_11" and f.kind == "default")
    text = generate_chain_of_thought(stated, [made])
    assert text is not None
    (quoted,) = parse_answer(render_answer(text, "")).quotes
    assert quoted.startswith("argument_11: int = 11") and len(quoted) <= 120


def test_an_incomplete_list_of_another_language_is_refused() -> None:
    source = (
        'func Get(k string) int {\n\tif k == "" {\n\t\treturn 0\n\t}\n\treturn look(k).all()\n}'
    )
    for metadata in (
        {"return_expressions": ["0"]},
        {"calls": ["look"]},
    ):
        made = foreign("go", source, name="Get", qualified_name="Get", metadata=metadata)
        told = [f for f in derive(made) if f.kind in ("returns", "calls")]
        assert told
        assert not any(check(f, [made]) for f in told)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Read a price from text. More words.", "Read a price from text."),
        ("Read a price\nfrom a long text.\n\nMore.", "Read a price from a long text."),
        ("Use e.g. this one for it. Then stop.", "Use e.g. this one for it."),
        ("Too short.", ""),
        (">>> doctest of this", ""),
        ("", ""),
        ("word " * 100, ""),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring: str, expected: str) -> None:
    assert first_sentence(docstring) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(\n    a,\n    b=1,\n) -> int", "def f(a, b=1) -> int"),
        ("def f(a,  b)", "def f(a, b)"),
        ("x[\n  1\n]", "x[1]"),
    ],
)
def test_code_on_one_line(code: str, expected: str) -> None:
    assert one_line(code) == expected


@given(st.text(alphabet="ab .,(", min_size=1, max_size=400), st.data())
def test_a_clipped_line_holds_what_it_must(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    cut = clip(text, start, end)
    if cut is not None:
        assert cut in text
        assert text[start:end].strip() in cut
    else:
        assert end - start > 120


# -- questions ---------------------------------------------------------------------------------


def test_every_kind_has_questions_and_every_question_names_its_symbol() -> None:
    kinds = {*KINDS, *RELATED_KINDS, "return_annotation"}
    assert set(QUESTIONS) == kinds
    for kind, templates in QUESTIONS.items():
        assert len(set(templates)) == len(templates) >= 2
        assert all("{s}" in template for template in templates), kind


def test_pairs_of_a_block_probe_different_facts() -> None:
    pairs = generate_qa_pairs([block("cart.py::Cart.add")], raft(examples_per_block=6))
    assert len(pairs) == 6
    assert len({pair.question for pair in pairs}) == 6
    assert len({pair.fact.kind for pair in pairs}) >= 4
    assert all("`Cart.add`" in pair.question for pair in pairs)


def test_a_block_with_few_facts_is_asked_again_in_other_words() -> None:
    (only,) = blocks_of({"a.py": "def f():\n    pass\n"})
    pairs = generate_qa_pairs([only], raft(examples_per_block=6))
    facts = Counter((pair.fact.kind, pair.fact.subject) for pair in pairs)
    assert max(facts.values()) == 2
    assert len({pair.question for pair in pairs}) == len(pairs)


def test_a_name_that_is_not_unique_is_asked_with_its_path() -> None:
    twins = blocks_of({"a.py": SHOP["shop/prices.py"], "b.py": SHOP["shop/prices.py"]})
    for pair in generate_qa_pairs(twins, raft()):
        assert f"({pair.oracles[0].path})" in pair.question
    for pair in generate_qa_pairs(twins[:3], raft()):
        assert "(a.py)" not in pair.question


def test_two_definitions_of_one_name_in_a_file_are_left_out() -> None:
    twice = blocks_of({"a.py": "def f(x=1):\n    return x\n\n\ndef f(x=2):\n    return x\n"})
    skipped: Counter[str] = Counter()
    assert generate_qa_pairs(twice, raft(), skipped=skipped) == []
    assert skipped["ambiguous_name"] == 2


def test_a_question_about_a_callee_needs_both_documents() -> None:
    caller, callee = block("prices.py::discount"), block("prices.py::apply_rate")
    pairs = generate_qa_pairs([caller], raft(examples_per_block=20), related={callee.id: callee})
    hops = {pair.fact.kind: pair for pair in pairs if len(pair.oracles) == 2}
    assert set(hops) == {"callee_location", "callee_signature", "callee_raises"}
    pair = hops["callee_raises"]
    assert pair.answer == "`RateError`"
    assert "`discount`" in pair.question and "`apply_rate`" in pair.question
    quotes = parse_answer(render_answer(pair.reasoning, "")).quotes
    assert quotes == ["return apply_rate(price, 1 - percent / 100)", "raise RateError(rate)"]
    assert [find_quote(q, [caller]) is not None for q in quotes] == [True, False]
    assert check(pair.fact, [caller, callee])
    assert not check(pair.fact, [caller])
    assert not check(pair.fact, [caller, block("prices.py::parse_price")])


def test_a_base_class_is_a_second_document() -> None:
    cart, basket = block("cart.py::Cart"), block("cart.py::Basket")
    pairs = generate_qa_pairs([cart], raft(examples_per_block=20), related={basket.id: basket})
    (hop,) = {p.fact.value for p in pairs if p.fact.kind == "base_location"}
    assert hop == f"`shop/cart.py:{basket.start_line}-{basket.end_line}`"


def test_a_local_name_is_no_call_of_a_function_elsewhere() -> None:
    caller, callee = blocks_of(
        {"a.py": "def f(g):\n    return g(1)\n\n\ndef g(x):\n    return x + 1\n"}
    )
    assert caller.dependencies == [callee.id]
    pairs = generate_qa_pairs([caller], raft(examples_per_block=20), related={callee.id: callee})
    assert all(len(pair.oracles) == 1 for pair in pairs)


# -- whole datasets ----------------------------------------------------------------------------


def assert_invariants(made: Dataset, blocks: list[CodeBlock], used: RaftSettings) -> None:
    documents = {d.id: d for d in made.documents}
    splits = assign_splits(blocks, used.valid_share, used.test_share, used.seed)
    assert len({e.id for e in made.examples}) == len(made.examples)
    shown_in: dict[str, set[str]] = {split: set() for split in SPLITS}
    for example in made.examples:
        shown = [*example.oracle_ids, *example.distractor_ids]
        assert len(set(shown)) == len(shown)
        oracles = [documents[i] for i in example.oracle_ids]
        distractors = [documents[i] for i in example.distractor_ids]
        assert oracles and example.fact.block == oracles[0].id
        assert check(example.fact, oracles)
        assert {splits[documents[i].path] for i in shown} == {example.split}
        shown_in[example.split] |= {documents[i].content_hash for i in shown}
        for distractor in distractors:
            assert not also_answers(example.fact, oracles, distractor)
            for oracle in oracles:
                assert not overlap(distractor, oracle)
                assert similarity(distractor, oracle) <= MAX_SIMILARITY
        assert_answer(example, oracles)
        assert_difficulty(example, used)
        presented = example_documents(example, documents)
        expected = distractors if example.oracle_absent else [*oracles, *distractors]
        assert sorted(d.id for d in presented) == sorted(d.id for d in expected)
        assert all(len(d.source_code) <= used.max_document_chars for d in presented)
        row = chat_row(example, documents)
        assert [m.role for m in row.messages] == ["system", "user", "assistant"]
        assert row.messages[1].content.count("<DOCUMENT>") == len(presented)
    assert not shown_in["train"] & (shown_in["valid"] | shown_in["test"])
    assert not shown_in["valid"] & shown_in["test"]


def assert_answer(example: RaftExample, oracles: list[CodeBlock]) -> None:
    parsed = parse_answer(render_answer(example.reasoning, example.final_answer))
    assert parsed.complete and parsed.final_answer == example.final_answer
    if example.oracle_absent:
        assert parsed.quotes == []
        return
    assert example.final_answer == example.fact.value
    assert len(parsed.quotes) == len(oracles)
    for quoted in parsed.quotes:
        assert find_quote(quoted, oracles) is not None
        assert len(quoted) <= MAX_HEADER


def assert_difficulty(example: RaftExample, used: RaftSettings) -> None:
    beside = len(example.distractor_ids) - example.oracle_absent
    if example.difficulty == "easy":
        assert len(example.oracle_ids) == 1 and beside == 0
    elif example.difficulty == "medium":
        assert len(example.oracle_ids) == 1 and 1 <= beside <= used.distractors
    else:
        assert len(example.oracle_ids) == 2 or beside == used.distractors + 1


def test_the_shop_gives_every_difficulty_and_split(dataset: Dataset) -> None:
    assert_invariants(dataset, BLOCKS, raft())
    difficulty, split = dataset.counts()
    assert min(difficulty.values()) >= 10
    assert min(split.values()) >= 1
    assert sum(split.values()) == len(dataset.examples) >= 3 * len(BLOCKS)
    assert len({e.fact.kind for e in dataset.examples}) >= 12


@st.composite
def repositories(draw: st.DrawFn) -> dict[str, str]:
    """Small repositories with names that clash, calls that cross, and copied functions."""
    names = st.sampled_from(["load", "save", "parse", "close", "run"])
    value = st.sampled_from(["1", "None", "'x'", "(1, 2)", "3.5"])
    files = {}
    for number in range(draw(st.integers(1, 5))):
        parts = []
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
            other = draw(names)
            parts.append(
                f"def {name}({draw(st.sampled_from(['a', 'b, c', 'path']))}, size={draw(value)}):\n"
                f'    """{name.title()} what the caller gave in {number}."""\n'
                f"    if size == {draw(value)}:\n"
                f"        raise {draw(st.sampled_from(['ValueError', 'KeyError']))}(size)\n"
                f"    return {other}(size)\n"
            )
        files[f"m{number}.py"] = "\n\n".join(parts)
    return files


@settings(max_examples=15)
@given(
    repositories(),
    st.integers(0, 10_000),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.sampled_from(["abstain", "memorise"]),
)
def test_invariants_hold_for_any_repository(
    files: dict[str, str], seed: int, distractors: int, absent: float, mode: str
) -> None:
    blocks = blocks_of(files)
    used = raft(
        seed=seed, distractors=distractors, oracle_absent_share=absent, oracle_absent_mode=mode
    )
    made = build_dataset(blocks, used)
    assert_invariants(made, blocks, used)
    again = build_dataset(blocks, used)
    assert [e.model_dump() for e in again.examples] == [e.model_dump() for e in made.examples]
    documents = {d.id: d for d in made.documents}
    for pair in made.preferences:
        oracles = [documents[pair.fact.block]]
        if pair.fact.kind in RELATED_KINDS:
            continue
        false = parse_answer(pair.rejected).final_answer
        assert false != parse_answer(pair.chosen).final_answer
        assert not check(pair.fact.model_copy(update={"value": false}), oracles)


def test_another_seed_gives_another_dataset(dataset: Dataset) -> None:
    other = build_dataset(BLOCKS, raft(seed=18))
    assert [e.id for e in other.examples] != [e.id for e in dataset.examples]


def test_abstaining_rows_show_no_oracle_and_say_so(dataset: Dataset) -> None:
    absent = [e for e in dataset.examples if e.oracle_absent]
    assert len(absent) == pytest.approx(0.2 * len(dataset.examples), abs=3)
    documents = {d.id: d for d in dataset.documents}
    for example in absent:
        assert example.final_answer == ABSTAIN_ANSWER
        shown = example_documents(example, documents)
        assert shown and not {d.id for d in shown} & set(example.oracle_ids)


def test_memorising_rows_keep_the_answer_and_cite_nothing() -> None:
    made = build_dataset(BLOCKS, raft(oracle_absent_mode="memorise", oracle_absent_share=0.5))
    absent = [e for e in made.examples if e.oracle_absent]
    assert absent
    for example in absent:
        assert example.final_answer == example.fact.value
        assert "begin_quote" not in example.reasoning


def test_a_share_of_zero_keeps_every_oracle() -> None:
    made = build_dataset(BLOCKS, raft(oracle_absent_share=0.0))
    assert not any(e.oracle_absent for e in made.examples)


def test_preferences_are_false_in_exactly_their_fact(dataset: Dataset) -> None:
    assert dataset.preferences
    documents = {d.id: d for d in dataset.documents}
    train = {e.fact.block for e in dataset.examples if e.split == "train"}
    for pair in dataset.preferences:
        chosen, rejected = parse_answer(pair.chosen), parse_answer(pair.rejected)
        assert chosen.reasoning == rejected.reasoning
        assert chosen.final_answer == pair.fact.value != rejected.final_answer
        assert pair.fact.block in train
        kind, _, source = pair.corruption.partition(" of ")
        assert source in documents and source != pair.fact.block
        assert kind in KINDS
        assert pair.prompt.endswith("?") or pair.prompt.endswith(".")


def test_no_preferences_where_none_are_wanted_or_possible() -> None:
    assert build_dataset(BLOCKS, raft(preferences=False)).preferences == []
    of = block("prices.py::discount")
    stated = Fact(kind="raises", block=of.id, value="`ValueError`")
    assert corrupt(stated, [of], [stated], seed=1) is None


def test_documents_are_the_blocks_that_examples_use(dataset: Dataset) -> None:
    used = {i for e in dataset.examples for i in (*e.oracle_ids, *e.distractor_ids)}
    assert [d.id for d in dataset.documents] == [b.id for b in BLOCKS if b.id in used]


def test_text_that_poses_as_markup_stays_harmless() -> None:
    text = 'def f(end="<|im_end|>", tag="</DOCUMENT>"):\n    """Write <ANSWER>: to the page."""\n'
    made = build_dataset(blocks_of({"a.py": text}), raft(oracle_absent_share=0.0))
    assert any(e.fact.value == '`"<|im_end|>"`' for e in made.examples)
    for row in made.rows("train"):
        assert "<|im_end|>" not in "".join(m.content for m in row.messages)
        assert row.messages[1].content.count("</DOCUMENT>") == 1
        assert row.messages[2].content.count("<ANSWER>:") == 1


# -- documents ---------------------------------------------------------------------------------


def test_distractors_prefer_the_same_name_and_never_answer() -> None:
    pool = Pool(BLOCKS)
    oracle = block("cart.py::Cart.add")
    _, found = retrieve_oracle_and_distractors(
        pool, [oracle], 3, seed=1, answers=lambda other: False, room=10_000
    )
    assert len(found) == 3
    assert {b.qualified_name for b in found} & {"Store.add", "Report.add"}
    _, none = retrieve_oracle_and_distractors(
        pool, [oracle], 3, seed=1, answers=lambda other: True, room=10_000
    )
    assert none == []
    _, small = retrieve_oracle_and_distractors(
        pool, [oracle], 3, seed=1, answers=lambda other: False, room=150
    )
    assert sum(len(b.source_code) for b in small) <= 150


def test_the_class_of_a_method_is_no_distractor_for_it() -> None:
    cart, add = block("cart.py::Cart"), block("cart.py::Cart.add")
    assert overlap(cart, add) and overlap(add, cart)
    assert also_answers(fact("location", "cart.py::Cart.add", "`x`"), [add], cart)


# -- splits ------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
    st.integers(0, 99),
)
def test_files_are_split_whole_and_by_share(
    sizes: list[int], valid: float, test: float, seed: int
) -> None:
    blocks = [
        BLOCKS[0].model_copy(update={"path": f"f{number}.py", "id": f"{number}/{n}"})
        for number, size in enumerate(sizes)
        for n in range(size)
    ]
    splits = assign_splits(blocks, valid, test, seed)
    assert set(splits) == {b.path for b in blocks}
    held = Counter(splits[b.path] for b in blocks)
    assert held["train"] >= 1
    if len(sizes) < 3:
        assert set(splits.values()) == {"train"}
        return
    shares: tuple[tuple[Split, float], ...] = (("valid", valid), ("test", test))
    for split, share in shares:
        if share > 0:
            assert held[split] >= 1
            one = len([p for p, s in splits.items() if s == split]) == 1
            assert held[split] <= share * len(blocks) or one
        else:
            assert held[split] == 0


def test_code_that_stands_in_two_splits_is_not_trained_on() -> None:
    files = {f"m{n}.py": SHOP["shop/prices.py"] for n in range(4)} | SHOP
    blocks = blocks_of(files)
    used = raft()
    made = build_dataset(blocks, used)
    assert_invariants(made, blocks, used)
    splits = assign_splits(blocks, used.valid_share, used.test_share, used.seed)
    assert made.skipped.get("content_in_held_out", 0) == len(shared_content(blocks, splits)) > 0


# -- the skill ---------------------------------------------------------------------------------


def make_context(tmp_path: Path) -> SkillContext:
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"), settings=load_settings(), project="shop"
    )


def make_corpus(context: SkillContext, blocks: list[CodeBlock]) -> str:
    inputs_hash = hash_inputs({"blocks": [b.content_hash for b in blocks]})
    with context.workspace.stage("corpus", context.project) as staged:
        write_jsonl(staged.path / "blocks.jsonl", blocks)
        write_jsonl(staged.path / "rejected.jsonl", [])
        corpus = staged.commit(
            id=context.workspace.new_id("corpus", context.project, inputs_hash),
            inputs_hash=inputs_hash,
        )
    return corpus.id


def test_synthesize_writes_the_dataset_of_the_contract(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    corpus = make_corpus(context, BLOCKS)
    result = synthesize(SynthesizeRequest(corpus=corpus), context)
    dataset = context.workspace.load(result.dataset_id, "dataset")
    assert dataset.manifest.parents == [corpus]
    assert str(dataset.path) == result.path
    examples = [RaftExample.model_validate(row) for row in dataset.rows("examples.jsonl")]
    assert len(examples) == result.examples == sum(result.splits.values())
    assert sum(result.difficulty.values()) == result.examples
    documents = {r["id"]: CodeBlock.model_validate(r) for r in dataset.rows("documents.jsonl")}
    for split in SPLITS:
        expected = [chat_row(e, documents).model_dump() for e in examples if e.split == split]
        assert list(dataset.rows(f"{split}.jsonl")) == expected
        assert len(expected) == result.splits[split]
    assert len(list(dataset.rows("preferences.jsonl"))) == result.preferences > 0
    assert SynthesizeResult.model_validate(dataset.manifest.result) == result


def test_synthesize_is_idempotent_and_byte_identical(tmp_path: Path) -> None:
    one, two = make_context(tmp_path / "one"), make_context(tmp_path / "two")
    results = [
        synthesize(SynthesizeRequest(corpus=make_corpus(context, BLOCKS)), context)
        for context in (one, two)
    ]
    again = synthesize(SynthesizeRequest(corpus=make_corpus(one, BLOCKS)), one)
    assert again == results[0]
    sums = [json.loads((Path(r.path) / "manifest.json").read_text())["checksums"] for r in results]
    assert sums[0] == sums[1]
    assert results[0].dataset_id == results[1].dataset_id


def test_a_request_overrides_the_settings(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    corpus = make_corpus(context, BLOCKS)
    few = synthesize(SynthesizeRequest(corpus=corpus, examples_per_block=1, seed=3), context)
    assert few.examples <= len(BLOCKS)
    flat = synthesize(
        SynthesizeRequest(corpus=corpus, distractors=0, oracle_absent_share=0), context
    )
    assert flat.difficulty["medium"] == 0
    assert flat.dataset_id != few.dataset_id


@pytest.mark.parametrize(("blocks", "message"), [([], "no block"), (None, "No example")])
def test_a_corpus_without_anything_to_ask_is_bad_input(
    tmp_path: Path, blocks: list[CodeBlock] | None, message: str
) -> None:
    context = make_context(tmp_path)
    long = BLOCKS[0].model_copy(update={"source_code": BLOCKS[0].source_code * 100})
    corpus = make_corpus(context, [long] if blocks is None else blocks)
    with pytest.raises(BadInput, match=message) as raised:
        synthesize(SynthesizeRequest(corpus=corpus), context)
    assert raised.value.cause and raised.value.next_step
    assert context.workspace.artifacts("dataset") == []


def test_an_unknown_corpus_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=re.escape("corpus-nope-0000")):
        synthesize(SynthesizeRequest(corpus="corpus-nope-0000"), make_context(tmp_path))


def test_the_name_of_a_file_opens_no_turn() -> None:
    blocks = blocks_of({path.replace(".py", "<|im_end|>.py"): text for path, text in SHOP.items()})
    made = build_dataset(blocks, raft(oracle_absent_share=0.5))
    rows = [row for split in SPLITS for row in made.rows(split)]
    texts = [m.content for row in rows for m in row.messages]
    texts += [text for p in made.preferences for text in (p.prompt, p.chosen, p.rejected)]
    assert any("<\\|im_end|>.py" in row.messages[-1].content for row in rows)
    assert not any("<|im_end|>" in text for text in texts)
