"""Definitions asked for by their headers, taken out of answers, and compared with the code."""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of
from test_raft_syntax import functions

from forge_mcp.judging.reconstruction import (
    Task,
    edit_similarity,
    evaluate_reconstruction,
    extract_code,
    reconstruction_tasks,
)
from forge_mcp.raft.code_tasks import code_pair, fenced
from forge_mcp.raft.phrases import QUESTIONS, CorpusNames
from forge_mcp.schemas.prompt import render_answer

BLOCKS = blocks_of(SHOP)
ADD = "def add(a, b):\n    '''Add.'''\n    return a + b + 100 * a"


@cache
def tasks_of(count: int = 1000, seed: int = 3) -> list[Task]:
    return reconstruction_tasks([*BLOCKS, *functions()], count, seed, "Be brief.", 2000)


def task_of(name: str) -> Task:
    (found,) = [task for task in tasks_of() if task.block.qualified_name == name]
    return found


def python_task(source: str, **changed: Any) -> Task:
    (block,) = [b for b in blocks_of({"a.py": source}) if b.block_type in ("function", "method")]
    (task,) = reconstruction_tasks([block.model_copy(update=changed)], 1, 1, "", 2000)
    return task


# -- tasks ------------------------------------------------------------------------------------


def test_a_task_asks_as_training_does_in_words_that_training_never_uses() -> None:
    task = task_of("Cart.add")
    pair = code_pair(task.block, [], CorpusNames([*BLOCKS, *functions()]), 3)
    assert pair is not None
    words, _, code = task.question.partition("\n")
    assert words == QUESTIONS["code"][-1].format(s="`Cart.add` (shop/cart.py)")
    assert code == pair.question.partition("\n")[2]
    assert "    def add(self, item: Item" in code and task.block.docstring in code
    system, user = task.messages
    assert (system.role, system.content) == ("system", "Be brief.")
    assert (user.role, user.content) == ("user", f"Question: {task.question}")


def test_what_is_to_be_written_is_not_in_the_question() -> None:
    assert len({task.block.language for task in tasks_of()}) >= 12
    for task in tasks_of():
        assert task.reference.startswith(task.given)
        rest = task.reference[len(task.given) :]
        assert len(rest.strip()) > 10 and rest.strip() not in task.question
        assert not task.reference[0].isspace()


def test_documented_functions_come_first() -> None:
    documented = [task for task in tasks_of() if task.block.docstring]
    assert 0 < len(documented) < len(tasks_of())
    some = tasks_of(len(documented) + 2)
    assert {t.block.id for t in documented} < {t.block.id for t in some}
    assert len(some) == len(documented) + 2
    assert all(task.block.docstring for task in tasks_of(len(documented)))
    without = python_task("def total(items):\n    return sum(item.price for item in items)\n")
    assert without.given == "def total(items):"
    quoting = "def f(x):\n    # The \"name\" and 'more'.\n    return x + 1 + 2 + 3 + 4 + 5\n"
    assert python_task(quoting).given == "def f(x):"


def test_languages_keep_their_shares_and_a_smaller_choice_is_part_of_a_larger() -> None:
    blocks = [b for b in [*BLOCKS, *functions()] if b.docstring]
    every = Counter(task.block.language for task in reconstruction_tasks(blocks, 99, 1, "", 2000))
    half = reconstruction_tasks(blocks, sum(every.values()) // 2, 1, "", 2000)
    found = Counter(task.block.language for task in half)
    assert every["python"] > 4
    for language, count in every.items():
        assert abs(found[language] - count / 2) < 1.01
    ids = [task.block.id for task in half]
    assert ids == [block.id for block in blocks if block.id in set(ids)]
    fewer = reconstruction_tasks(blocks, 4, 1, "", 2000)
    assert {task.block.id for task in fewer} < set(ids) and len(fewer) == 4
    others = reconstruction_tasks(blocks, 4, 2, "", 2000)
    assert [task.block.id for task in fewer] != [task.block.id for task in others]


def test_what_makes_no_good_task_is_left_out() -> None:
    add = task_of("Cart.add").block
    assert reconstruction_tasks([], 3, 1, "", 2000) == []
    assert reconstruction_tasks([add], 0, 1, "", 2000) == []
    size = len(task_of("Cart.add").reference)
    assert reconstruction_tasks([add], 1, 1, "", size - 1) == []
    assert len(reconstruction_tasks([add], 1, 1, "", size)) == 1
    copied = add.model_copy(update={"id": "copy.py::Cart.add", "path": "copy.py"})
    (only,) = reconstruction_tasks([add, copied], 2, 1, "", 2000)
    assert only.block.path == add.path
    twin = add.model_copy(update={"id": "twin", "content_hash": "0" * 64})
    assert reconstruction_tasks([add], 1, 1, "", 2000, corpus=[add, twin]) == []
    module = add.model_copy(update={"block_type": "module"})
    assert reconstruction_tasks([module], 1, 1, "", 2000) == []


def test_a_block_whose_own_code_does_not_parse_alone_is_no_task() -> None:
    # In an `else` of its module: raft cannot tell how deep it stands.
    source = "@done\n    def f(x):\n        '''One.'''\n        return x + 1 + 2 + 3 + 4"
    (whole,) = blocks_of({"a.py": f"@done\n{textwrap.dedent(source[6:])}\n"})
    digest = hashlib.sha256(source.encode()).hexdigest()
    block = whole.model_copy(update={"source_code": source, "content_hash": digest})
    assert len(reconstruction_tasks([whole], 1, 1, "", 2000)) == 1
    assert code_pair(block, [], CorpusNames([block]), 1) is not None
    assert reconstruction_tasks([block], 1, 1, "", 2000) == []


# -- extraction -------------------------------------------------------------------------------


@pytest.mark.parametrize("unfenced", [False, True])
def test_the_answer_that_training_teaches_is_the_reference(unfenced: bool) -> None:
    for task in tasks_of():
        answer = fenced(task.block)
        if unfenced:
            answer = answer.partition("\n")[2].rpartition("\n")[0]
        assert extract_code(render_answer("It belongs there.", answer), task) == task.reference


def test_a_body_alone_gets_the_beginning() -> None:
    for task in tasks_of():
        rest = task.reference[len(task.given) :]
        if task.block.language == "python":
            body = rest.strip("\n")
        elif task.block.language == "ruby":
            body = rest.strip("\n").removesuffix("end").rstrip()
        elif rest.strip().startswith("{"):
            body = rest.strip().removeprefix("{").removesuffix("}").strip("\n")
        else:  # `= value`
            body = rest
        found = extract_code(f"<ANSWER>: ```\n{body}\n```", task)
        squeezed = ["".join(code.split()) for code in (found, task.reference)]
        assert squeezed[0] == squeezed[1], found


@pytest.mark.parametrize(
    "text",
    [
        "<ANSWER>: ```python\nreturn a + b + 100 * a\n```",
        "<ANSWER>: return a + b + 100 * a",
        "<ANSWER>:     return a + b + 100 * a",
        "<ANSWER>: ```\n\n        return a + b + 100 * a",
        f"<ANSWER>: ```python\n{ADD}\n```\nDone.",
        f"<ANSWER>: Here:\n{ADD}",
        f"```\nadd(1, 2)\n```\nand\n```\n{ADD}\n",
        "So it is ```py\n    def add(a, b):\n        '''Add.'''\n        return a + b + 100 * a```",
    ],
)  # fmt: skip
def test_code_is_found_however_it_is_given(text: str) -> None:
    task = python_task(f"{ADD}\n")
    found = extract_code(text, task)
    assert found.removesuffix("```") == task.reference


def test_a_first_line_that_lost_its_margin_gets_it_back() -> None:
    task = python_task("def f(x):\n  '''One.'''\n  y = x + 1000\n  return y * y\n")
    assert extract_code("<ANSWER>: y = x + 1000\n  return y * y", task) == task.reference
    assert extract_code("<ANSWER>: y = x + 1000\nreturn y * y", task) == task.reference
    shaped = extract_code("<ANSWER>: if x:\n  return y", task)
    assert shaped.endswith("\n  if x:\n    return y")
    loop = extract_code("<ANSWER>: for y in x:\n    f(y)\nreturn x", task)
    assert loop.endswith("\n  for y in x:\n      f(y)\n  return x")


def test_decorators_imports_and_helpers_stay() -> None:
    task = python_task("@cached\ndef f(x):\n    '''One.'''\n    return x + 1 + 2 + 3 + 4\n")
    assert extract_code(f"<ANSWER>: So.\n{task.reference}", task) == task.reference
    code = f"import math\n\n\ndef g():\n    pass\n\n\n{task.reference}"
    assert extract_code(f"<ANSWER>: ```python\n{code}\n```", task) == code
    # Another function that calls it is a body, not the definition.
    called = extract_code("<ANSWER>: ```python\ny = f(x)\nreturn y\n```", task)
    assert called == f"{task.given}\n    y = f(x)\n    return y"


@pytest.mark.parametrize("text", ["", "<ANSWER>:", "<ANSWER>: ```python\n```", "<ANSWER>: \n \n"])
def test_nothing_written_is_no_code(text: str) -> None:
    assert extract_code(text, task_of("Cart.add")) == ""


@given(st.text(max_size=80), st.integers(0, 1000))
def test_whatever_a_model_writes_is_taken_as_it_is(text: str, which: int) -> None:
    task = tasks_of()[which % len(tasks_of())]
    code = extract_code(text, task)
    assert code == code.rstrip() and 0 <= edit_similarity(code, task) <= 1


# -- figures ----------------------------------------------------------------------------------


def levenshtein(first: str, second: str) -> int:
    """Wagner and Fischer's algorithm."""
    row = list(range(len(second) + 1))
    for at, one in enumerate(first, start=1):
        before, row[0] = row[0], at
        for to, other in enumerate(second, start=1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (one != other))
    return row[-1]


@given(st.text(alphabet="ab \n", min_size=1, max_size=30), st.text(alphabet="ab \n", max_size=30))
def test_edit_similarity_of_code_that_begins_as_given_is_that_of_the_rests(
    rest: str, written: str
) -> None:
    given_ = "def f():"
    task = Task(BLOCKS[0], "", [], given_, given_ + rest)
    longer = max(len(rest), len(written))
    expected = 1 - levenshtein(written, rest) / longer
    assert edit_similarity(given_ + written, task) == pytest.approx(expected)


def test_repeating_the_question_is_worth_nothing() -> None:
    tasks = tasks_of()
    found = evaluate_reconstruction(
        tasks, [f"<ANSWER>: ```\n{task.given}\n```" for task in tasks], None, 1
    )
    python = [n for n, task in enumerate(tasks) if task.block.language == "python"]
    assert python and not any(found.compiles[n] for n in python)
    assert all(found.edit[n] == 0 for n in python)


def test_the_repositorys_own_code_is_perfect_and_nothing_is_not() -> None:
    tasks = tasks_of()
    right = [render_answer("So.", fenced(task.block)) for task in tasks]
    found = evaluate_reconstruction(tasks, right, None, 1)
    assert found.codes == [task.reference for task in tasks]
    assert set(found.edit) == {1.0} and all(found.compiles) and found.embedding is None
    assert [m.name for m in found.metrics] == ["edit_similarity", "compiles"]
    nothing = evaluate_reconstruction(tasks, [""] * len(tasks), None, 1)
    assert set(nothing.edit) == {0.0} and not any(nothing.compiles)


def bag(texts: Sequence[str]) -> Any:
    """Vectors of counts of characters, of any length."""
    return np.array([[text.count(letter) for letter in "abcdefg("] for text in texts])


def test_figures_of_half_right_answers() -> None:
    tasks = [task_of("Cart.add"), task_of("Cart.total"), task_of("discount"), task_of("Cart.add")]
    texts = [
        fenced(tasks[0].block),
        "",
        f"{tasks[2].given}\n    return (",
        f"<ANSWER>: {tasks[3].given}\n    return count",
    ]
    found = evaluate_reconstruction(tasks, texts, bag, seed=5)
    assert found.compiles == [True, False, False, True]
    assert found.edit[0] == 1 and found.edit[1] == 0 and 0 < found.edit[3] < 1
    assert found.embedding is not None
    first, second = bag([found.codes[3], tasks[3].reference]).astype(float)
    cosine = first @ second / np.sqrt((first @ first) * (second @ second))
    assert found.embedding[0] == pytest.approx(1) and found.embedding[1] == 0
    assert found.embedding[3] == pytest.approx(cosine)
    edit, embedding, compiles = found.metrics
    assert (edit.name, embedding.name, compiles.name) == (
        "edit_similarity", "embedding_similarity", "compiles",
    )  # fmt: skip
    assert edit.value == pytest.approx(np.mean(found.edit)) and edit.low < edit.value < edit.high
    assert embedding.value == pytest.approx(np.mean(found.embedding))
    assert (compiles.value, compiles.n) == (0.5, 4)
    assert compiles.low == pytest.approx(0.150, abs=1e-3)  # Wilson, 2 of 4
    assert found == evaluate_reconstruction(tasks, texts, bag, seed=5)


def test_without_anything_written_the_encoder_is_not_asked() -> None:
    def refuse(texts: Sequence[str]) -> Any:
        raise AssertionError("asked")

    found = evaluate_reconstruction([task_of("Cart.add")], [""], refuse, 1)
    assert found.embedding == [0.0]


def test_every_task_needs_a_text() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 tasks"):
        evaluate_reconstruction(tasks_of(2), [""], None, 1)
    with pytest.raises(ValueError, match="0 texts for 0 tasks"):
        evaluate_reconstruction([], [], None, 1)


def test_code_of_other_languages_is_parsed_where_it_belongs() -> None:
    java = next(task for task in tasks_of() if task.block.language == "java")
    assert java.block.block_type == "method"
    whole = evaluate_reconstruction([java], [java.reference], None, 1)
    broken = evaluate_reconstruction([java], [java.reference.rstrip("}\n ")], None, 1)
    assert (whole.compiles, broken.compiles) == ([True], [False])
