"""Questions, quotes, reasoning, code-writing rows, and the specification's functions."""

from __future__ import annotations

import ast
import re
import textwrap
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import BadInput
from forge_mcp.mining.miner import parse_repository
from forge_mcp.raft import (
    check,
    generate_chain_of_thought,
    generate_qa_pairs,
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.code_tasks import code_pair, fence, fenced, indentation, stub
from forge_mcp.raft.documents import overlap
from forge_mcp.raft.facts import KINDS, RELATED_KINDS, CorpusIndex, derive
from forge_mcp.raft.pairs import (
    again,
    also_answers,
    block_pairs,
    closed,
    gives_away,
    kept_back,
    usage_pair,
)
from forge_mcp.raft.phrases import QUESTIONS, CorpusNames, fill, question
from forge_mcp.raft.quotes import MAX_PASSAGE, call_line, clip, evidence, header, loosely
from forge_mcp.raft.reasoning import (
    OPENINGS,
    absent_reasoning,
    generate_reasoning,
    listed,
    recalled,
)
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import find_quote, parse_answer, render_answer
from forge_mcp.schemas.raft_examples import Fact
from forge_mcp.settings import load_settings

BLOCKS = blocks_of(SHOP)
BY_ID = {block.id: block for block in BLOCKS}
LANGUAGES = Path(__file__).parents[1] / "fixtures" / "languages"


def block(path_and_name: str) -> CodeBlock:
    return BY_ID[f"shop/{path_and_name}"]


def pairs_of(blocks: list[CodeBlock], of: CodeBlock, count: int = 30) -> list[Any]:
    index = CorpusIndex(blocks)
    return block_pairs(
        of, CorpusNames(blocks), index.related(of), count=count, seed=17, skipped=Counter()
    )


@cache
def mined() -> list[CodeBlock]:
    """The fixtures in sixteen languages, as mining writes them."""
    loaded = load_settings()
    one = loaded.mining.model_copy(update={"workers": 1, "require_docstring": False})
    return parse_repository(LANGUAGES, loaded.model_copy(update={"mining": one})).blocks


# -- phrases -----------------------------------------------------------------------------------


def test_every_kind_has_four_phrasings_and_one_that_is_kept_back() -> None:
    go = {"go_raises", "go_guard", "go_panic", "go_callee_raises"}
    assert set(QUESTIONS) == {*KINDS, *RELATED_KINDS, "return_annotation"} | go
    every = [template for templates in QUESTIONS.values() for template in templates]
    assert len(set(every)) == len(every)
    for kind, templates in QUESTIONS.items():
        assert len(templates) >= 5, kind
        for template in templates:
            assert "{s}" in template, template
            assert set(re.findall(r"\{(\w+)\}", template)) <= {"s", "p", "c", "throw", "throws"}
            assert template[-1] in "?.", template


def test_the_kept_phrasing_is_never_counted_to() -> None:
    stated = Fact(kind="default", block="b", value="`1`", subject="count")
    templates = QUESTIONS["default"]
    asked = {question(stated, "`f`", n, "python") for n in range(50)}
    kept = question(stated, "`f`", -1, "python")
    assert len(asked) == len(templates) - 1
    assert (
        kept not in asked
        and kept == "To what does `count` fall back in `f` if the caller says nothing?"
    )


@pytest.mark.parametrize(
    ("kind", "subject", "language", "expected"),
    [
        ("annotation", "return", "python", "What return type does `f` declare?"),
        ("annotation", "x", "python", "How is the parameter `x` of `f` annotated?"),
        ("raises", "", "python", "Which exceptions does `f` raise?"),
        ("raises", "", "java", "Which exceptions does `f` throw?"),
        ("raises", "", "go", "Which named errors does `f` return?"),
        ("guard", "ErrGone", "go", "When does `f` return `ErrGone`?"),
        ("guard", "panic", "go", "When does `f` panic?"),
        ("callee_raises", "g", "go", "Which named errors does the `g` that `f` calls return?"),
        ("callee_default", "Box.g.x", "python",
         "What is the default value of `x` in the `Box.g` that `f` calls?"),
        ("guard", "{s}", "python", "When does `f` raise `{s}`?"),
    ],
)  # fmt: skip
def test_a_question_in_the_words_of_its_language(
    kind: str, subject: str, language: str, expected: str
) -> None:
    stated = Fact(kind=kind, block="b", value="`1`", subject=subject)
    assert question(stated, "`f`", 0, language) == expected


def test_what_a_word_holds_is_no_mark() -> None:
    assert fill("{a} and {b}", a="{b}", b="{a}") == "{b} and {a}"


def test_a_name_that_is_not_unique_is_asked_with_its_path() -> None:
    twins = blocks_of({"a.py": SHOP["shop/prices.py"], "b.py": SHOP["shop/prices.py"]})
    for pair in generate_qa_pairs(twins):
        assert f"({pair.oracles[0].path})" in pair.question
    for pair in generate_qa_pairs(twins[:3]):
        assert "(a.py)" not in pair.question


def test_two_definitions_of_one_name_in_a_file_are_left_out() -> None:
    twice = blocks_of({"a.py": "def f(x=1):\n    return x\n\n\ndef f(x=2):\n    return x\n"})
    assert generate_qa_pairs(twice) == []
    assert usage_pair(twice[0], CorpusNames(twice), 1, Counter()) is None
    assert code_pair(twice[0], [], CorpusNames(twice), 1) is None


def test_a_module_is_asked_by_its_path_and_takes_no_name_away() -> None:
    named = block("prices.py::discount")
    module = named.model_copy(
        update={"id": "m", "block_type": "module", "qualified_name": "discount", "signature": ""}
    )
    names = CorpusNames([named, module, module])
    assert names.symbol(named) == "`discount`" and names.symbol(module) == "`shop/prices.py`"
    assert not names.ambiguous(named) and not names.ambiguous(module)
    assert names.label(module) == "shop/prices.py"
    assert recalled(module, 1) == "This is about the file `shop/prices.py`."


def java_overload(types: list[str], number: int) -> CodeBlock:
    parameters = [
        {"name": f"p{n}", "annotation": kind, "default": ""} for n, kind in enumerate(types)
    ]
    listing = ", ".join(f"{kind} p{n}" for n, kind in enumerate(types))
    signature = f"public int join({listing})"
    source = f"{signature} {{\n    return {number};\n}}"
    return block("prices.py::discount").model_copy(
        update={
            "id": f"A.java::A.join#{number}", "path": "A.java", "language": "java",
            "block_type": "method", "name": "join", "qualified_name": "A.join", "parent": "A",
            "signature": signature, "source_code": source, "docstring": "", "start_line": number,
            "end_line": number + 2, "start_byte": number * 100, "end_byte": number * 100 + 50,
            "metadata": {"parameters": parameters, "returns": "int",
                         "return_expressions": [str(number)]},
        }
    )  # fmt: skip


def test_an_overload_is_named_with_the_types_of_its_parameters() -> None:
    overloads = [java_overload(["final Object[]", "char"], 1), java_overload(["String"], 9)]
    names = CorpusNames(overloads)
    assert [names.symbol(one) for one in overloads] == [
        "`A.join(Object[], char)`",
        "`A.join(String)`",
    ]
    assert not any(names.ambiguous(one) for one in overloads)
    skipped: Counter[str] = Counter()
    found = block_pairs(overloads[1], names, [], count=20, seed=1, skipped=skipped)
    assert found and all("`A.join(String)`" in pair.question for pair in found)
    # Its question names the types of the parameters: they are not asked for.
    assert not any(p.fact.kind == "annotation" and p.fact.subject != "return" for p in found)
    same = CorpusNames([*overloads, overloads[0].model_copy(update={"id": "x"})])
    assert same.ambiguous(overloads[0])
    untyped = [one.model_copy(update={"language": "javascript"}) for one in overloads]
    assert CorpusNames(untyped).ambiguous(untyped[0])
    bare = overloads[0].model_copy(update={"metadata": {"parameters": [{"name": "p"}]}})
    assert CorpusNames([bare, overloads[1]]).ambiguous(bare)


# -- quotes ------------------------------------------------------------------------------------


@settings(deadline=None)
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


@pytest.mark.parametrize(
    ("item", "source"),
    [
        ("f(a, b)", "f(\n    a,\n    b,\n)"),
        ("{'a': 1}", "{\n  'a': 1,\n}"),
        ("a + b", "a\n  + b"),
        ("not x", "not   x"),
        ("x [0]", "x[0]"),
        ("new  Foo()", "new Foo()"),
    ],
)
def test_code_on_one_line_is_found_as_it_stands(item: str, source: str) -> None:
    assert re.fullmatch(loosely(item), source)
    assert not re.search(loosely("other"), source)


def test_what_is_too_long_is_not_clipped() -> None:
    assert clip("a" * 200, 0, 150) is None
    assert clip("a b" * 60, 0, 120) == ("a b" * 40).strip()


def function(source: str, path: str = "a.py") -> CodeBlock:
    return blocks_of({path: source})[0]


def test_a_long_line_is_quoted_in_part() -> None:
    arguments = ", ".join(f"argument_{n}: int = {n}" for n in range(12))
    made = function(f"def wide({arguments}):\n    return argument_11\n")
    stated = next(f for f in derive(made) if f.subject == "argument_11" and f.kind == "default")
    (quoted,) = evidence(stated, made)
    assert quoted.startswith("argument_11: int = 11") and len(quoted) <= 120


def test_what_stands_in_a_comment_or_docstring_is_not_quoted() -> None:
    made = function(
        'def f(x):\n    """Calls work(1) and work(2)."""\n    # work(3)\n    return work(x)\n'
    )
    assert evidence(Fact(kind="calls", block=made.id, value="`work`"), made) == ["return work(x)"]
    assert call_line("work", made) == "return work(x)"
    assert call_line("missing", made) is None
    java = made.model_copy(
        update={
            "language": "java",
            "signature": "int f(int x)",
            "source_code": "/** Set x = 1. */\nint f(int x) {\n  return g(x); // g(1)\n}",
        }
    )
    assert evidence(Fact(kind="calls", block=java.id, value="`g`"), java) == [
        "return g(x); // g(1)"
    ]


def test_a_name_in_a_longer_one_is_not_it() -> None:
    made = function("def f(x):\n    rework(1)\n    return x.work(work2(2))\n")
    assert call_line("work", made) == "return x.work(work2(2))"
    assert evidence(Fact(kind="calls", block=made.id, value="`work`"), made) == []


def test_a_parameter_is_quoted_by_itself_where_the_header_is_long() -> None:
    names = [f"argument_{n}" for n in range(40)]
    made = function(f"def wide({', '.join(names)}):\n    return argument_11\n")
    listing = ", ".join(f"`{name}`" for name in names[30:34])
    assert evidence(Fact(kind="parameters", block=made.id, value=listing), made) == names[30:34]


def test_a_member_is_called_by_its_last_name() -> None:
    made = function("def f(x):\n    x.inner.work(1)\n    return worker\n")
    assert call_line("work", made) == "x.inner.work(1)"
    assert call_line("worker", made) == "return worker"


def test_a_condition_is_quoted_with_what_it_guards() -> None:
    add = block("cart.py::Cart.add")
    stated = Fact(kind="guard", block=add.id, value="`count < 1`", subject="ValueError")
    (quoted,) = evidence(stated, add)
    assert quoted.startswith("if count < 1:\n") and "raise ValueError" in quoted
    far = stated.model_copy(update={"subject": "KeyError"})
    assert evidence(far, add) == []
    twice = function("def f(x):\n    if x:\n        return 1\n    if x:\n        return 2\n")
    case = Fact(kind="returns_when", block=twice.id, value="`2`", subject="x")
    assert evidence(case, twice) == []  # which of the two is meant?
    wide = function(
        "def f(x):\n    if x:\n" + "        y = 1\n" * 40 + "        raise OSError(x)\n"
    )
    assert evidence(Fact(kind="guard", block=wide.id, value="`x`", subject="OSError"), wide) == []


def test_a_long_list_is_quoted_item_by_item() -> None:
    made = function("def f(a):\n    one(a); two(a)\n    three(a)\n    return four(a)\n")
    stated = Fact(kind="calls", block=made.id, value="`one`, `two`, `three`, `four`")
    assert evidence(stated, made) == ["one", "two", "three", "four"]
    short = Fact(kind="calls", block=made.id, value="`one`, `two`, `three`")
    assert evidence(short, made) == ["one(a); two(a)", "three(a)"]
    assert evidence(Fact(kind="calls", block=made.id, value="`five`"), made) == []


def test_a_statement_over_several_lines_is_quoted_whole_or_not_at_all() -> None:
    short = function("def f(a):\n    return g(\n        a,\n        1,\n    )\n")
    stated = Fact(kind="returns", block=short.id, value="`g(a, 1)`")
    assert evidence(stated, short) == ["return g(\n        a,\n        1,\n    )"]
    items = [f"argument_number_{n}" for n in range(20)]
    long = function("def f(a):\n    return g(\n        " + ",\n        ".join(items) + "\n    )\n")
    assert (
        evidence(Fact(kind="returns", block=long.id, value=f"`g({', '.join(items)})`"), long) == []
    )


def test_the_header_of_a_block() -> None:
    assert header(block("cart.py::Cart.total")) == "def total(self) -> float:"
    module = block("prices.py::discount").model_copy(
        update={"block_type": "module", "source_code": "\n\nimport os\n"}
    )
    assert header(module) == "import os"
    assert header(module.model_copy(update={"source_code": " \n"})) is None
    anonymous = block("prices.py::discount").model_copy(update={"signature": "", "name": "nowhere"})
    assert header(anonymous) is None
    multi = function("def f(\n    a,\n    b=1,\n):\n    return a\n")
    multi = multi.model_copy(update={"signature": "def f(\n    a,\n    b=1,\n)"})
    stated = Fact(kind="signature", block=multi.id, value="`def f(a, b=1)`")
    assert evidence(stated, multi) == ["def f(\n    a,\n    b=1,\n)"]


def test_a_sentence_over_two_lines_is_quoted_by_its_first() -> None:
    made = function('def f(x):\n    """Read a long\n    text aloud."""\n    return x\n')
    stated = Fact(kind="purpose", block=made.id, value="Read a long text aloud.")
    assert evidence(stated, made) == ["Read a long"]
    assert evidence(stated.model_copy(update={"value": "Write a text."}), made) == []


def test_every_fact_of_every_language_is_quoted_from_its_documents() -> None:
    blocks = mined()
    index = CorpusIndex(blocks)
    kinds: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for one in blocks:
        facts = [(fact, [one]) for fact in derive(one)]
        for fact, oracles in [*facts, *index.related(one)]:
            if fact.kind == "code" or not check(fact, oracles):
                continue
            for variant in (0, 5):
                text = generate_reasoning(fact, oracles, variant)
                if text is None:
                    lost[fact.kind] += 1
                    continue
                kinds[fact.kind] += 1
                quotes = parse_answer(render_answer(text, "")).quotes
                assert quotes and all(find_quote(quoted, oracles) for quoted in quotes)
                assert all(any(find_quote(q, [o]) for q in quotes) for o in oracles)
                assert all(len(quoted) <= MAX_PASSAGE for quoted in quotes)
    assert sum(lost.values()) <= 0.05 * sum(kinds.values())
    assert len(kinds) >= 15


# -- reasoning ---------------------------------------------------------------------------------


def test_reasoning_differs_from_variant_to_variant() -> None:
    add = block("cart.py::Cart.add")
    stated = next(f for f in derive(add) if f.kind == "default")
    texts = {generate_reasoning(stated, [add], variant) for variant in range(8)}
    assert len(texts) == 2 * len(OPENINGS)
    assert any(
        str(text).startswith("Looking at `Cart.add` in shop/cart.py, we see ") for text in texts
    )


def test_reasoning_on_several_documents_compares_them() -> None:
    caller, callee = block("prices.py::discount"), block("prices.py::apply_rate")
    pairs = pairs_of(BLOCKS, caller)
    pair = next(p for p in pairs if p.fact.kind == "callee_raises")
    assert pair.answer == "`RateError`" and pair.oracles == (caller, callee)
    quotes = parse_answer(render_answer(pair.reasoning, "")).quotes
    assert quotes == ["return apply_rate(price, 1 - percent / 100)", "raise RateError(rate)"]
    assert [find_quote(q, [caller]) is not None for q in quotes] == [True, False]
    assert "Comparing with `apply_rate` in shop/prices.py, we see" in pair.reasoning
    lost = callee.model_copy(update={"source_code": "def apply_rate(): ..."})
    assert generate_reasoning(pair.fact, [caller, lost]) is None
    unrelated = block("mail.py::post")
    assert generate_reasoning(pair.fact, [unrelated, callee]) is None
    header_only = Fact(kind="callers", block=callee.id, value="`discount`")
    assert generate_reasoning(header_only, [callee, unrelated]) is None


def test_a_third_document_is_compared_too() -> None:
    files = {"a.py": "def low(x):\n    return x\n\n\ndef one(x):\n    return low(x)\n\n\n"
             "def two(x):\n    return low(x) + 1\n"}  # fmt: skip
    low, one, two = blocks_of(files)
    stated = Fact(kind="callers", block=low.id, value="`one`, `two`")
    text = generate_reasoning(stated, [low, one, two])
    assert text is not None and "Comparing with `one`" in text and "And with `two` in a.py" in text


def test_reasoning_without_documents_says_where_it_stands() -> None:
    add = block("cart.py::Cart.add")
    for variant in range(3):
        text = recalled(add, variant)
        assert "`Cart.add`" in text and "shop/cart.py" in text and "quote##" not in text


def test_reasoning_on_absent_documents_names_those_that_are_there() -> None:
    texts = {
        absent_reasoning("`f` (a.py)", ["`g`", "`h`", "`g`"], n, known=False) for n in range(3)
    }
    assert len(texts) == 3
    assert all("`f` (a.py)" in text and "`g` and `h`" in text for text in texts)
    assert absent_reasoning("`f`", ["`g`"], 0, known=True).endswith("known from the repository.")


@pytest.mark.parametrize(
    ("words", "expected"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_a_list_of_words(words: list[str], expected: str) -> None:
    assert listed(words) == expected


# -- pairs -------------------------------------------------------------------------------------


def test_pairs_of_a_block_probe_different_facts() -> None:
    pairs = pairs_of(BLOCKS, block("cart.py::Cart.add"), count=6)
    assert len(pairs) == 6
    assert len({pair.question for pair in pairs}) == 6
    assert len({pair.fact.kind for pair in pairs}) >= 4
    assert all("`Cart.add`" in pair.question for pair in pairs)
    assert any(len(pair.oracles) > 1 for pair in pairs)


def test_a_block_with_few_facts_is_asked_again_in_other_words() -> None:
    (only,) = blocks_of({"a.py": "def f():\n    pass\n"})
    pairs = pairs_of([only], only, count=6)
    facts = Counter((pair.fact.kind, pair.fact.subject) for pair in pairs)
    assert max(facts.values()) == 3
    assert len({pair.question for pair in pairs}) == len(pairs) == 6
    assert len({(pair.fact.kind, pair.reasoning) for pair in pairs}) == len(pairs)


def test_a_fact_that_the_code_refutes_or_that_cannot_be_quoted_is_counted() -> None:
    lying = block("cart.py::Cart.add").model_copy(
        update={"metadata": {"decorators": ["cached"]}, "docstring": "", "signature": ""}
    )
    skipped: Counter[str] = Counter()
    made = block_pairs(lying, CorpusNames([lying]), [], count=9, seed=1, skipped=skipped)
    assert skipped["fact_not_confirmed"] >= 1
    assert not any(pair.fact.kind == "decorators" for pair in made)
    add = block("cart.py::Cart.add")
    long = add.model_copy(update={"signature": "x", "name": "add"})
    names = CorpusNames([add])
    unquoted: Counter[str] = Counter()
    stated = Fact(kind="callers", block=add.id, value="`X`")
    block_pairs(
        long, names, [(stated, [add, block("mail.py::post")])], count=1, seed=1, skipped=unquoted
    )
    assert unquoted["fact_not_confirmed"] == 1


def test_a_question_that_holds_its_answer_is_not_asked() -> None:
    (typed,) = blocks_of({"a.py": "def f(kind: parameter) -> argument:\n    return kind\n"})
    skipped: Counter[str] = Counter()
    found = block_pairs(typed, CorpusNames([typed]), [], count=30, seed=5, skipped=skipped)
    asked = [pair.question for pair in found if pair.answer == "`parameter`"]
    assert asked and all("parameter" not in text for text in asked)
    assert skipped["answer_in_question"] >= 1
    # The case itself may be named in the question on it.
    case = Fact(kind="returns_when", block=typed.id, value="`kind`", subject="kind is None")
    pair = replace(found[0], fact=case, question=question(case, "`f`", 0, "python"))
    assert not gives_away(pair)


def test_a_path_that_holds_the_answer_gives_it_away() -> None:
    two = blocks_of({f"{at}/__init__.py": "class Api:\n    def __init__(self):\n        self.x = 1"
                     for at in ("a", "b")})  # fmt: skip
    skipped: Counter[str] = Counter()
    found = block_pairs(two[0], CorpusNames(two), [], count=30, seed=5, skipped=skipped)
    assert found and "methods" not in {pair.fact.kind for pair in found}
    assert skipped["answer_in_question"] >= 1


def test_a_test_is_an_answer_only_where_its_name_is_its_own() -> None:
    add, other = block("cart.py::Cart.add"), block("mail.py::post")
    stated = Fact(kind="tests", block=add.id, value=f"`{other.name}`")
    skipped: Counter[str] = Counter()
    names = CorpusNames([*BLOCKS, other.model_copy(update={"path": "shop/other.py"})])
    block_pairs(add, names, [(stated, [add, other])], count=1, seed=1, skipped=skipped)
    assert skipped["ambiguous_name"] == 1 and not skipped["fact_not_confirmed"]


def test_the_same_question_in_other_words_and_without_documents() -> None:
    pair = pairs_of(BLOCKS, block("cart.py::Cart.add"), count=1)[0]
    other, kept = again(pair, 1), kept_back(pair)
    assert len({pair.question, other.question, kept.question}) == 3
    assert other.fact == pair.fact == kept.fact
    row = closed(pair)
    assert kept.closed_book and kept.reasoning == row.reasoning
    assert row.closed_book and "quote##" not in row.reasoning and row.answer == pair.answer


def test_a_local_name_is_no_call_of_a_function_elsewhere() -> None:
    caller, callee = blocks_of(
        {"a.py": "def f(g):\n    return g(1)\n\n\ndef g(x):\n    return x + 1\n"}
    )
    assert caller.dependencies == [callee.id]
    assert all(len(pair.oracles) == 1 for pair in pairs_of([caller, callee], caller))


def test_what_else_answers() -> None:
    cart, add = block("cart.py::Cart"), block("cart.py::Cart.add")
    where = Fact(kind="location", block=add.id, value="`x`")
    assert overlap(cart, add) and overlap(add, cart)
    assert also_answers(where, [add], cart)
    assert not also_answers(where, [add], block("mail.py::post"))
    copied = block("mail.py::post").model_copy(
        update={"source_code": f"class Other:\n    {add.source_code}\n"}
    )
    assert also_answers(where, [add], copied)
    rate, caller = block("prices.py::apply_rate"), block("prices.py::discount")
    callers = Fact(kind="callers", block=rate.id, value="`x`")
    assert also_answers(callers, [rate], caller)
    naming = block("mail.py::post").model_copy(update={"source_code": "apply_rate  # named"})
    assert also_answers(callers, [rate], naming)
    overrides = Fact(kind="overrides", block=add.id, value="`Basket.lift`")
    lift = block("cart.py::Basket.lift")
    assert also_answers(overrides, [add, block("store.py::Store.add")], lift)
    twin = rate.model_copy(update={"id": "t", "path": "t.py", "content_hash": "other"})
    raises = Fact(kind="raises", block=rate.id, value="`RateError`")
    assert also_answers(raises, [rate], twin)
    assert not also_answers(raises, [rate], caller)
    longer = caller.model_copy(
        update={"id": "l", "path": "l.py", "content_hash": "l", "name": "apply_rate",
                "signature": "def apply_rate( x )  -> float", "source_code": "def apply_rate(: no"}
    )  # fmt: skip
    declared = Fact(kind="signature", block=rate.id, value="`def apply_rate(x)`")
    assert also_answers(declared, [rate], longer)
    told = Fact(kind="decorators", block=rate.id, value="`@cached`")
    lying = longer.model_copy(update={"metadata": {"decorators": ["cached"]}})
    assert also_answers(told, [rate], lying) and not check(
        told.model_copy(update={"block": "l"}), [lying]
    )
    doing = Fact(kind="calls", block=rate.id, value="`round`")
    more = longer.model_copy(update={"source_code": "def apply_rate(x): return round (x) + f()"})
    assert also_answers(doing, [rate], more)
    callee = Fact(kind="callee_default", block=caller.id, value="`1`", subject="apply_rate.x")
    assert not also_answers(callee, [caller, rate], lying)
    code = Fact(kind="code", block=add.id, value=add.source_code, subject=add.content_hash)
    assert also_answers(code, [rate], add) and not also_answers(code, [rate], lift)


# -- code-writing ------------------------------------------------------------------------------


def test_a_definition_is_asked_for_by_its_header_and_documentation() -> None:
    caller, callee = block("prices.py::discount"), block("prices.py::apply_rate")
    pair = code_pair(caller, [callee], CorpusNames(BLOCKS), 17)
    assert pair is not None and pair.oracles == (callee,) and not pair.closed_book
    assert '"""Lower a price by some percent."""' in pair.question
    assert "apply_rate" not in pair.question and "(shop/prices.py)" in pair.question
    assert pair.answer == f"```python\n{caller.source_code}\n```"
    assert parse_answer(render_answer(pair.reasoning, "")).quotes == [header(callee)]
    assert check(pair.fact, list(pair.oracles))
    alone = code_pair(block("prices.py::parse_price"), [], CorpusNames(BLOCKS), 17)
    assert (
        alone is not None
        and alone.closed_book
        and alone.oracles == (block("prices.py::parse_price"),)
    )
    wrong = code_pair(caller, [block("mail.py::post")], CorpusNames(BLOCKS), 17)
    assert wrong is not None and wrong.closed_book  # it does not call that


def test_a_method_keeps_the_indentation_of_its_class() -> None:
    add = block("cart.py::Cart.add")
    assert indentation(add) == "    "
    code = fenced(add).removeprefix("```python\n").removesuffix("\n```")
    assert code.endswith(add.source_code) and ast.parse(textwrap.dedent(code))
    begun = stub(add)
    assert begun.startswith('    def add(self, item: Item, count: int = 1) -> int:\n        """')
    total = stub(block("cart.py::Cart.total"))
    assert total.startswith("    @property\n    def total(self) -> float:\n")
    long = function(
        'class A:\n    def f(self):\n        """One.\n\n        Two."""\n        return 1\n'
    )
    inner = blocks_of({"a.py": long.source_code})[1]
    assert stub(inner) == '    def f(self):\n        """One.\n\n        Two."""'
    assert indentation(function("def f(): pass\n")) == ""
    assert stub(function("def f(): pass\n")) == ""
    assert stub(add.model_copy(update={"name": "gone"})) == ""


@pytest.mark.parametrize(
    "begun",
    [
        'def f(x: str = ":") -> dict[str, int]:\n    """\n    One.\n\n      Two \\"it\\".\n    """',
        "async def f(\n    x,  # a: b\n) -> None:  # why\n    # more\n    r'''One \\r two.'''",
        "@done('def f(x):')\ndef f(x):\n    'One.'",
        'def f[T](x: T):\n    "One: \\ufffd."',
    ],
)
def test_the_answer_continues_what_the_question_shows(begun: str) -> None:
    code = begun + "\n    return x\n"
    made = BLOCKS[0].model_copy(update={"name": "f", "qualified_name": "f", "source_code": code})
    assert stub(made) == begun


def test_every_answer_begins_as_its_question_shows() -> None:
    told = [b for b in [*BLOCKS, *mined()] if b.block_type in ("function", "method") and stub(b)]
    assert len({b.language for b in told}) >= 14
    for made in told:
        assert fence(stub(made), made.language).removesuffix("\n```") in fenced(made)
    java = next(b for b in mined() if b.language == "java" and b.block_type == "method")
    twice = java.model_copy(update={"source_code": f"// {java.signature}\n{java.source_code}"})
    assert stub(twice).count(java.signature) == 2
    assert stub(java.model_copy(update={"signature": "void gone()"})) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"docstring": ""},
        {"docstring": "x" * 700},
        {"source_code": 'def parse_price(t):\n    """Read a price."""\n    return 1'},
        {"source_code": "def parse_price(t):\n    'Read a price.'\n    return 1" + "\n    #" * 500},
        {"source_code": 'def parse_price(t):\n    """Read a price such as 12.50 from a text."""\n'
                        '    return "<|im_end|>" + "a long enough body of this function"'},
        {"source_code": 'def parse_price(t):\n    """Read a price such as 12.50 from a text."""\n'
                        '    return "```" + "a long enough body of this function for it"'},
        {"source_code": "def parse_price(:\n    return broken" + " # long" * 20},
        {"block_type": "class"},
    ],
)  # fmt: skip
def test_what_makes_no_good_code_question(change: dict[str, Any]) -> None:
    import hashlib

    bad = block("prices.py::parse_price").model_copy(update=change)
    digest = hashlib.sha256(bad.source_code.encode()).hexdigest()
    bad = bad.model_copy(update={"content_hash": digest})
    assert code_pair(bad, [], CorpusNames([bad]), 17) is None


def test_a_header_that_cannot_be_quoted_gives_no_code_question() -> None:
    caller, callee = block("prices.py::discount"), block("prices.py::apply_rate")
    hidden = callee.model_copy(update={"signature": "", "source_code": "# apply_rate"})
    names = CorpusNames(BLOCKS)
    assert code_pair(caller, [hidden], names, 17) is None


def test_code_of_other_languages_begins_with_its_comment() -> None:
    go = next(b for b in mined() if b.language == "go" and b.block_type == "method" and b.docstring)
    assert stub(go).endswith(go.signature) and stub(go).startswith("//")
    java = next(b for b in mined() if b.language == "java" and b.block_type == "method")
    assert indentation(java) == "    "
    assert fenced(java).startswith("```java\n    ")


def test_a_call_is_asked_for_only_where_it_is_of_the_repository() -> None:
    names = CorpusNames(BLOCKS)
    pair = usage_pair(block("prices.py::discount"), names, 17, Counter())
    assert pair is not None
    assert (
        pair.answer == "`apply_rate(price, 1 - percent / 100)`" and "`apply_rate`" in pair.question
    )
    assert usage_pair(block("report.py::Report.add"), names, 17, Counter()) is None


# -- by the specification's names --------------------------------------------------------------


def test_three_to_five_questions_a_block() -> None:
    pairs = generate_qa_pairs(BLOCKS)
    per = Counter(pair.fact.block for pair in pairs)
    assert set(per) == set(BY_ID) and min(per.values()) >= 3 and max(per.values()) == 5
    assert {"purpose", "default", "callee_location"} <= {pair.fact.kind for pair in pairs}
    assert generate_qa_pairs(BLOCKS) == pairs
    assert len(generate_qa_pairs(BLOCKS[:1], per_block=2)) == 2


def test_the_documents_of_a_query() -> None:
    query = "Put an item into the cart"
    at = BLOCKS.index(block("cart.py::Cart.add"))
    oracles, distractors = retrieve_oracle_and_distractors(query, BLOCKS, at)
    assert oracles[0] == BLOCKS[at] and len(oracles) == 3 and len(distractors) == 2
    every = [*oracles, *distractors]
    assert len({b.id for b in every}) == 5
    assert not any(overlap(a, b) for a in every for b in every if a is not b)
    alone, _ = retrieve_oracle_and_distractors(query, BLOCKS, at, k=1, num_distractors=0)
    assert alone == [BLOCKS[at]]
    few = retrieve_oracle_and_distractors("zzz", BLOCKS[:1], 0, k=3, num_distractors=5)
    assert few == (BLOCKS[:1], [])
    twins = blocks_of({f"{n}.py": SHOP["shop/mail.py"] for n in range(3)})
    _, none = retrieve_oracle_and_distractors("send", twins, 0, k=1, num_distractors=9)
    assert {b.name for b in none} == {"post"}


@pytest.mark.parametrize(("at", "k"), [(-1, 3), (99, 3), (0, 0)])
def test_an_oracle_that_is_not_there(at: int, k: int) -> None:
    with pytest.raises(BadInput, match="oracle") as raised:
        retrieve_oracle_and_distractors("x", BLOCKS, at, k=k)
    assert raised.value.next_step


def test_a_chain_of_thought_cites_every_document() -> None:
    docs = [block("cart.py::Cart.add"), block("cart.py::Cart.check_room"), block("mail.py::post")]
    text = generate_chain_of_thought("Which exception says that the count must be positive?", docs)
    quotes = parse_answer(render_answer(text, "")).quotes
    assert quotes[0] == 'raise ValueError("count must be positive")'
    assert [find_quote(q, [d]) is not None for q, d in zip(quotes, docs, strict=True)] == [True] * 3
    assert text.startswith("Looking at `Cart.add` in shop/cart.py, we see")
    assert text.count("Comparing with") == 2
    assert "async def post" in generate_chain_of_thought("zzz", [docs[2]])
