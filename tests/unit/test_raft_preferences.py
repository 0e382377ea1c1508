"""Preference pairs: the rejected answer is plausible, near the true one, and certainly false."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.mining.miner import parse_repository
from forge_mcp.raft import Dataset, build_dataset, check
from forge_mcp.raft.corruptions import FalseValues, differs, family
from forge_mcp.raft.facts import RELATED_KINDS, derive, value_items
from forge_mcp.raft.preferences import corrupt
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, parse_answer
from forge_mcp.schemas.raft_examples import Fact, PreferencePair
from forge_mcp.settings import RaftSettings, load_settings

BLOCKS = blocks_of(SHOP)
BY_ID = {block.id: block for block in BLOCKS}
KNOWN = {block.name for block in BLOCKS}
LANGUAGES = Path(__file__).parents[1] / "fixtures" / "languages"


def raft(**changes: Any) -> RaftSettings:
    return load_settings().raft.model_copy(update=changes)


def false_of(pair: PreferencePair) -> str:
    """The value that the rejected answer states."""
    answer = parse_answer(pair.rejected).final_answer
    if pair.fact.kind == "code":
        return re.sub(r"^```\w*\n[ \t]*|\n```$", "", answer)
    return answer


def assert_false(made: Dataset) -> Counter[str]:
    documents = {d.id: d for d in made.documents}
    rows = {
        (e.fact.kind, e.fact.block, e.fact.subject): e
        for e in reversed(made.examples)
        if e.split == "train" and not e.oracle_absent
    }
    kinds: Counter[str] = Counter()
    for pair in made.preferences:
        fact = pair.fact
        example = rows[fact.kind, fact.block, fact.subject]
        oracles = [documents[i] for i in example.oracle_ids]
        chosen, rejected = parse_answer(pair.chosen), parse_answer(pair.rejected)
        assert chosen.reasoning == rejected.reasoning
        assert escape(fact.value) in chosen.final_answer != rejected.final_answer
        false = fact.model_copy(update={"value": false_of(pair)})
        assert not check(false, oracles)
        if fact.kind in RELATED_KINDS:
            for oracle in oracles:
                alone = false.model_copy(update={"kind": family(fact.kind), "block": oracle.id})
                assert not check(alone, [oracle])
        true, stated = value_items(fact), value_items(false)
        assert len(stated) == len(true)
        assert sum(a != b for a, b in zip(true, stated, strict=True)) == 1
        assert pair.corruption.startswith(f"{fact.kind}: ")
        assert example.question in pair.prompt or escape(example.question) in pair.prompt
        kinds[fact.kind] += 1
    keys = [(p.fact.kind, p.fact.block, p.fact.subject) for p in made.preferences]
    assert len(set(keys)) == len(keys)
    return kinds


def test_every_pair_of_the_shop_is_false_in_one_place() -> None:
    made = build_dataset(BLOCKS, raft(examples_per_block=20, oracle_absent_share=0.0))
    kinds = assert_false(made)
    asked = {e.fact.kind for e in made.examples if e.split == "train"}
    assert asked <= set(kinds) | {"decorators", "purpose"}
    assert len(kinds) >= 12
    assert build_dataset(BLOCKS, raft(preferences=False)).preferences == []


def test_every_pair_of_every_language_is_false_in_one_place() -> None:
    loaded = load_settings()
    one = loaded.mining.model_copy(update={"workers": 1, "require_docstring": False})
    mined = parse_repository(LANGUAGES, loaded.model_copy(update={"mining": one}))
    made = build_dataset(mined.blocks, raft(examples_per_block=12), others=mined.rejected)
    assert len(assert_false(made)) >= 12
    held = {e.fact.block for e in made.examples if e.split == "train"}
    assert {pair.fact.block for pair in made.preferences} <= held


def corrupted(fact: Fact, *others: Fact, known: set[str] = KNOWN) -> tuple[str, str] | None:
    block = BY_ID[fact.block]
    values = FalseValues([(fact, block.path), *((o, block.path) for o in others)], known, seed=17)
    return corrupt(fact, block, [block], values)


def fact(kind: str, of: str, value: str, subject: str = "") -> Fact:
    return Fact(kind=kind, block=f"shop/{of}", value=value, subject=subject)


def test_an_exception_becomes_another_or_one_that_does_not_exist() -> None:
    true = fact("raises", "prices.py::parse_price", "`ValueError`")
    other = fact("raises", "prices.py::apply_rate", "`RateError`")
    found = corrupted(true, other)
    assert found is not None and found[0] in ("`RateError`", "`ValueFailure`", "`ValueFault`")
    alone = corrupted(true)
    assert alone is not None and re.fullmatch("`Value(Failure|Fault|Problem)`", alone[0])
    assert "does not exist" in alone[1]


def test_a_value_becomes_another_of_its_type() -> None:
    true = fact("default", "cart.py::Cart.add", "`1`", "count")
    assert corrupted(true) == ("`2`", "'1' replaced by '2', another value")
    number = fact("default", "prices.py::discount", "`10.0`", "percent")
    text = fact("default", "prices.py::parse_price", '`"EUR"`', "currency")
    assert corrupted(true, text, number) == (
        "`10.0`",
        "'1' replaced by '10.0', of shop/prices.py::discount",
    )
    assert corrupted(text) == ('`"EUR_"`', "'\"EUR\"' replaced by '\"EUR_\"', another value")
    flag = fact("default", "cart.py::Basket.lift", "`True`", "carefully")
    assert corrupted(flag) == ("`False`", "'True' replaced by 'False', another value")


def test_a_name_that_is_returned_becomes_one_that_does_not_exist() -> None:
    stated = fact("returns", "store.py::Store.load", "`self.carts`")
    found = corrupted(stated)
    assert found is not None and found[0].startswith("`self.carts") and found[0] != "`self.carts`"


@pytest.mark.parametrize(
    ("condition", "opposite"),
    [
        ("x is None", "x is not None"), ("x is not None", "x is None"), ("not x", "x"),
        ("a == b", "a != b"), ("a != b", "a == b"), ("a < b", "a >= b"), ("a <= b", "a > b"),
        ("a > b", "a <= b"), ("a >= b", "a < b"), ("x in y", "x not in y"),
        ("x not in y", "x in y"),
        ("a === b", "a !== b"), ("a !== b", "a === b"), ("!x.y", "x.y"), ("x", "not x"),
        ("x.f()", "not x.f()"), ("x is y", "x is not y"), ("x is not y", "x is y"),
    ],
)  # fmt: skip
def test_a_condition_becomes_its_opposite(condition: str, opposite: str) -> None:
    stated = fact("guard", "cart.py::Cart.add", f"`{condition}`", "ValueError")
    values = FalseValues([], KNOWN, 17)
    offered = [value for value, _ in values.of(stated, BY_ID[stated.block])]
    assert offered[0] == f"`{opposite}`"


def test_a_condition_of_another_language_is_negated_in_it() -> None:
    go = BY_ID["shop/cart.py::Cart.add"].model_copy(update={"language": "go"})
    stated = fact("guard", "cart.py::Cart.add", "`ready`", "panic")
    assert next(FalseValues([], KNOWN, 17).of(stated, go))[0] == "`!ready`"


def test_another_spelling_of_the_true_value_is_not_taken() -> None:
    true = fact("default", "prices.py::discount", "`10.0`", "percent")
    spelt = fact("default", "cart.py::Cart.add", "`10.00`", "count")
    assert corrupted(true, spelt) is None
    other = fact("default", "cart.py::Cart.__init__", "`2.5`", "limit")
    found = corrupted(true, spelt, other)
    assert found is not None and found[0] == "`2.5`"


def test_a_condition_of_several_parts_has_no_plain_opposite() -> None:
    stated = fact("guard", "cart.py::Cart.add", "`a == b and c`", "ValueError")
    assert list(FalseValues([], KNOWN, 17).of(stated, BY_ID[stated.block])) == []
    assert corrupted(stated) is None


def test_a_place_becomes_another_of_the_file() -> None:
    true = fact("location", "prices.py::discount", "`shop/prices.py:8-10`")
    assert corrupted(true) == (
        "`shop/prices.py:13-15`",
        "'shop/prices.py:8-10' replaced by 'shop/prices.py:13-15', lines further below",
    )


def test_code_has_one_call_renamed_and_keeps_its_own_name() -> None:
    add = BY_ID["shop/cart.py::Cart.add"]
    (stated,) = [f for f in derive(add) if f.kind == "code"]
    found = corrupted(stated)
    assert found is not None
    assert "def add(self" in found[0] and "self.inspect_room(count)" in found[0]
    taken = corrupted(stated, known=KNOWN | {"inspect_room"})
    assert taken is not None and "self.check_room_" in taken[0]
    bare = fact("code", "cart.py::Cart.add", "def add(self): pass", "x")
    assert corrupted(bare) is None


def test_a_signature_has_one_parameter_renamed() -> None:
    (stated,) = [f for f in derive(BY_ID["shop/prices.py::discount"]) if f.kind == "signature"]
    other = fact("parameters", "cart.py::Cart.add", "`item`, `count`")
    found = corrupted(stated, other)
    assert found is not None and re.search(r"\b(item|count)\b", found[0])
    alone = corrupted(stated)
    assert alone is not None and "_value" in alone[0]
    empty = fact("signature", "prices.py::discount", "`def discount()`")
    offered = [v for v, _ in FalseValues([], KNOWN, 17).of(empty, BY_ID[empty.block])]
    assert offered and all(value.startswith("`def ") for value in offered)


def test_a_type_becomes_another_one_that_is_declared() -> None:
    true = fact("annotation", "cart.py::Cart.add", "`None`", "return")
    assert corrupted(true) is None  # never a literal, nor a name that does not exist
    others = [fact("annotation", "cart.py::Cart.add", f"`{text}`", text)
              for text in ("None", "True", "1", '"x"', "Item")]  # fmt: skip
    found = corrupted(true, *others)
    assert found is not None and found[0] == "`Item`"
    parameter = fact("annotation", "cart.py::Cart.add", "`Item`", "item")
    assert corrupted(parameter, *others) is None


@pytest.mark.parametrize(
    ("signature", "language", "expected"),
    [
        ("def discount(self, a: dict[str, int] = x, *, b=1) -> int", "python",
         {"def discount(self, total: dict[str, int] = x, *, b=1) -> int",
          "def discount(self, a: Item = x, *, b=1) -> int",
          "def discount(self, a: dict[str, int] = x, *, b=2) -> int",
          "def discount(self, a: dict[str, int] = x, *, total=1) -> int",
          "def discount(self, a: dict[str, int] = x, *, b=1) -> Item"}),
        ("def discount()", "python", {"def discount(total)", "def discount(value)"}),
        ("int discount(final String a)", "java", {"int discount(final String total)"}),
        ("int discount()", "java", set()),
        ("function other()", "javascript", set()),
    ],
)  # fmt: skip
def test_a_signature_keeps_its_name(signature: str, language: str, expected: set[str]) -> None:
    block = BY_ID["shop/prices.py::discount"].model_copy(update={"language": language})
    stated = fact("signature", "prices.py::discount", f"`{signature}`")
    others = [fact("annotation", "cart.py::Cart.add", "`Item`", "x"),
              fact("parameters", "cart.py::Cart.add", "`total`")]  # fmt: skip
    values = FalseValues([(other, block.path) for other in others], KNOWN, 17)
    offered = {value.strip("`") for value, _ in values.of(stated, block)}
    assert expected <= offered and bool(offered) == bool(expected)
    assert all("discount(" in value for value in offered)


def test_a_call_names_something_that_does_not_exist() -> None:
    stated = fact("usage", "prices.py::discount", "`apply_rate(price, 1)`", "apply_rate")
    found = corrupted(stated)
    assert found is not None and re.fullmatch(r"`apply_rate_\w+\(price, 1\)`", found[0])


def test_what_is_no_name_cannot_be_edited_into_one() -> None:
    stated = fact("bases", "cart.py::Cart", "`[]`")
    assert list(FalseValues([], KNOWN, 17).of(stated, BY_ID[stated.block])) == []
    odd = fact("location", "cart.py::Cart", "`nowhere`")
    assert list(FalseValues([], KNOWN, 17).of(odd, BY_ID[odd.block])) == []


def test_a_test_is_never_replaced_by_another_test() -> None:
    true = fact("tests", "prices.py::discount", "`TestPrices.test_discount`")
    other = fact("tests", "cart.py::Cart.add", "`test_everything`")
    values = FalseValues([(true, "t"), (other, "t")], KNOWN, 17)
    offered = [value for value, _ in values.of(true, BY_ID[true.block])]
    assert offered and "`test_everything`" not in offered


def test_a_value_that_is_true_of_a_document_shown_is_not_taken() -> None:
    caller, callee = BY_ID["shop/cart.py::Cart.add"], BY_ID["shop/cart.py::Cart.check_room"]
    true = fact("callee_raises", "cart.py::Cart.add", "`CartFull`", "check_room")
    own = fact("raises", "cart.py::Cart.add", "`ValueError`")
    values = FalseValues([(true, caller.path), (own, caller.path)], KNOWN, 17)
    found = corrupt(true, caller, [caller, callee], values)
    assert found is not None and found[0] != "`ValueError`"


@pytest.mark.parametrize(
    ("kind", "one", "other", "expected"),
    [
        ("raises", "OSError", "IOError", False),
        ("raises", "errors.Gone", "Gone", False),
        ("raises", "KeyError", "ValueError", True),
        ("annotation", "Optional[str]", "str | None", False),
        ("annotation", "str", "int", True),
        ("annotation", "None", "str", True),
        ("annotation", "list", "List[str]", False),
        ("default", "'x'", '"x"', False),
        ("default", "1", "'x'", False),
        ("default", "None", "1", False),
        ("default", "1", "2", True),
        ("default", "[1]", "[2]", True),
        ("returns", "self.x", "x", False),
        ("returns", "f(x)", "g(x)", True),
        ("calls", "self.add", "other.add", False),
        ("calls", "self.add", "self.remove", True),
        ("purpose", "Read the file.", "Read the file again.", False),
        ("purpose", "Read the file.", "Send mail to a customer.", True),
        ("constant", "{'a': 1}", "{'b': 1}", True),
        ("parameters", "a", "b", True),
    ],
)
def test_what_may_mean_the_same_is_not_offered(
    kind: str, one: str, other: str, expected: bool
) -> None:
    assert differs(kind, one, other) is expected
    assert differs(kind, other, one) is expected


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(BLOCKS), st.integers(0, 99))
def test_no_false_value_is_true(block: CodeBlock, seed: int) -> None:
    everything = [(f, b.path) for b in BLOCKS for f in derive(b)]
    values = FalseValues(everything, KNOWN, seed)
    for stated in derive(block):
        found = corrupt(stated, block, [block], values)
        if found is not None:
            assert found[0] != stated.value
            assert not check(stated.model_copy(update={"value": found[0]}), [block])
