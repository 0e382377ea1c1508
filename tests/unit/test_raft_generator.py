"""Whole datasets: invariants of every example, shares, splits, and the skill `synthesize`."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example as with_example
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import BadInput, NotFound
from forge_mcp.mining.miner import MinedRepository, parse_repository
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.synthesize import SynthesizeRequest, SynthesizeResult, synthesize
from forge_mcp.raft import (
    Dataset,
    also_answers,
    build_dataset,
    chat_row,
    check,
    difficulty_of,
    example_documents,
)
from forge_mcp.raft.documents import (
    MAX_SIMILARITY,
    Pool,
    overlap,
    retrieve_oracle_and_distractors,
    similarity,
)
from forge_mcp.raft.phrases import QUESTIONS, question_kind
from forge_mcp.raft.quotes import MAX_PASSAGE
from forge_mcp.raft.splits import assign_splits, follow, leaking, near_copies, shingles
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, escape, find_quote, parse_answer, render_answer
from forge_mcp.schemas.raft_examples import DIFFICULTIES, SPLITS, RaftExample, Split
from forge_mcp.settings import RaftSettings, load_settings
from forge_mcp.workspace import Workspace, hash_inputs, write_jsonl

BLOCKS = blocks_of(SHOP)
BY_ID = {block.id: block for block in BLOCKS}
FIXTURES = Path(__file__).parents[1] / "fixtures"


def raft(**changes: Any) -> RaftSettings:
    return load_settings().raft.model_copy(update=changes)


def block(path_and_name: str) -> CodeBlock:
    return BY_ID[f"shop/{path_and_name}"]


@cache
def own_package() -> MinedRepository:
    """A room of this very package and its tests, as mining writes them."""
    loaded = load_settings()
    one = loaded.mining.model_copy(update={"workers": 1})
    project = loaded.project.model_copy(
        update={
            "include": [
                "forge_mcp/mining/*.py",
                "forge_mcp/schemas/*.py",
                "tests/unit/test_mining_text.py",
                "tests/unit/test_mining_files.py",
            ]
        }
    )
    changed = loaded.model_copy(update={"mining": one, "project": project})
    return parse_repository(FIXTURES.parents[1], changed)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(BLOCKS, raft())


@pytest.fixture(scope="module")
def large() -> Dataset:
    mined = own_package()
    return build_dataset(mined.blocks, raft(), others=mined.rejected)


# -- invariants --------------------------------------------------------------------------------


def assert_invariants(made: Dataset, used: RaftSettings) -> None:
    documents = {d.id: d for d in made.documents}
    assert len({e.id for e in made.examples}) == len(made.examples)
    questions = [e.question for e in made.examples]
    assert len(set(questions)) == len(questions)
    split_of: dict[str, str] = {}
    trained = {e.fact.block for e in made.examples if e.split == "train"}
    for example in made.examples:
        shown = [*example.oracle_ids, *example.distractor_ids]
        assert len(set(shown)) == len(shown)
        oracles = [documents[i] for i in example.oracle_ids]
        distractors = [documents[i] for i in example.distractor_ids]
        assert oracles and check(example.fact, oracles)
        if example.fact.kind != "code":
            assert example.fact.block == oracles[0].id
        elif not example.closed_book:
            assert example.fact.block not in shown
        if example.closed_book:
            assert not distractors and example.fact.block in trained
        else:
            for i in shown:
                assert split_of.setdefault(documents[i].path, example.split) == example.split
        for distractor in distractors:
            assert not also_answers(example.fact, oracles, distractor)
            for oracle in oracles:
                assert not overlap(distractor, oracle)
                assert similarity(distractor, oracle) <= MAX_SIMILARITY
        assert_answer(example, oracles)
        assert_words(example, documents[example.fact.block])
        assert_difficulty(example, used)
        presented = example_documents(example, documents)
        expected = [] if example.closed_book else [*oracles, *distractors]
        if example.oracle_absent:
            expected = distractors
        assert sorted(d.id for d in presented) == sorted(d.id for d in expected)
        assert all(len(d.source_code) <= used.max_document_chars for d in presented)
        row = chat_row(example, documents)
        assert [m.role for m in row.messages] == ["system", "user", "assistant"]
        assert row.messages[1].content.count("<DOCUMENT>") == len(presented)
    by_split: dict[str, set[str]] = {split: set() for split in SPLITS}
    for path, split in split_of.items():
        by_split[split] |= {d.content_hash for d in made.documents if d.path == path}
    assert not by_split["train"] & (by_split["valid"] | by_split["test"])
    assert not by_split["valid"] & by_split["test"]
    assert_shares(made, used)


def assert_shares(made: Dataset, used: RaftSettings) -> None:
    """No share is above what is wanted; `large` says that they are met where they can be."""
    for split in SPLITS:
        rows = [e for e in made.examples if e.split == split]
        absent = sum(e.oracle_absent for e in rows)
        recalled = sum(e.closed_book and e.fact.kind != "code" for e in rows)
        assert absent <= round(used.oracle_absent_share * len(rows))
        assert recalled <= round(used.closed_book_share * len(rows))


def assert_answer(example: RaftExample, oracles: list[CodeBlock]) -> None:
    parsed = parse_answer(render_answer(example.reasoning, example.final_answer))
    assert parsed.complete and parsed.final_answer == example.final_answer
    if example.oracle_absent or example.closed_book:
        assert parsed.quotes == []
        assert not (example.oracle_absent and example.closed_book)
    else:
        assert parsed.quotes
        assert all(any(find_quote(q, [o]) for q in parsed.quotes) for o in oracles)
    if not (example.oracle_absent and example.final_answer == ABSTAIN_ANSWER):
        assert escape(example.fact.value) in example.final_answer
    for quoted in parsed.quotes:
        assert find_quote(quoted, oracles) is not None
        assert len(quoted) <= MAX_PASSAGE


def assert_words(example: RaftExample, asked: CodeBlock) -> None:
    """The last phrasing of a kind is asked without documents, in a held-out split, or never."""
    template = QUESTIONS[question_kind(example.fact, asked.language)][-1]
    pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
    kept = re.match(pattern, example.question, re.DOTALL) is not None
    assert kept == (example.closed_book and example.split != "train")


def assert_difficulty(example: RaftExample, used: RaftSettings) -> None:
    beside, oracles = len(example.distractor_ids), len(example.oracle_ids)
    assert difficulty_of(example) == example.difficulty
    if example.difficulty == "easy":
        assert oracles == 1 and beside == 0
    elif example.difficulty == "medium":
        several = oracles > 1 or example.fact.kind in ("guard", "returns_when", "code")
        assert 1 <= beside <= 2 or several
    else:
        assert beside >= 3
    assert beside <= max(3, used.distractors + 1)


def test_the_shop_gives_every_difficulty_and_split(dataset: Dataset) -> None:
    assert_invariants(dataset, raft())
    difficulty, split = dataset.counts()
    assert min(difficulty.values()) >= 5
    assert min(split.values()) >= 1
    assert sum(split.values()) == len(dataset.examples) >= 5 * len(BLOCKS)
    assert len({e.fact.kind for e in dataset.examples}) >= 12


def test_a_real_package_meets_every_share(large: Dataset) -> None:
    used = raft()
    assert_invariants(large, used)
    for split in SPLITS:
        rows = [e for e in large.examples if e.split == split]
        assert {e.difficulty for e in rows} == set(DIFFICULTIES)
        count = len(rows)
        assert count > 50
        assert sum(e.oracle_absent for e in rows) == round(used.oracle_absent_share * count)
        assert sum(e.closed_book for e in rows) == round(used.closed_book_share * count)
        written = sum(e.fact.kind in ("code", "usage") for e in rows)
        assert written == round(used.code_share * count) or split != "train"
    assert len({e.fact.kind for e in large.examples}) >= 20
    per = Counter(e.fact.block for e in large.examples if e.split == "train")
    assert sum(n >= 5 for n in per.values()) >= 0.85 * len(per)
    assert max(per.values()) <= used.examples_per_block
    tests = [d for d in large.documents if d.path.startswith("tests/")]
    assert tests and not any(hasattr(d, "reasons") for d in tests)


def test_what_was_trained_on_is_asked_again_in_words_that_were_not(large: Dataset) -> None:
    facts = {
        (e.fact.kind, e.fact.block, e.fact.subject)
        for e in large.examples
        if e.split == "train" and not e.oracle_absent
    }
    asked: dict[str, set[tuple[str, str, str]]] = {"valid": set(), "test": set()}
    for e in large.examples:
        if e.split != "train" and e.closed_book:
            asked[e.split].add((e.fact.kind, e.fact.block, e.fact.subject))
    assert asked["valid"] and asked["test"]
    assert asked["valid"] | asked["test"] <= facts
    assert not asked["valid"] & asked["test"]


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


@settings(deadline=None, max_examples=15)
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
    assert_invariants(made, used)
    again = build_dataset(blocks, used)
    assert [e.model_dump() for e in again.examples] == [e.model_dump() for e in made.examples]
    assert again.preferences == made.preferences


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


def test_documents_are_the_blocks_that_examples_use(dataset: Dataset) -> None:
    used = {i for e in dataset.examples for i in (*e.oracle_ids, *e.distractor_ids)}
    assert [d.id for d in dataset.documents] == [b.id for b in BLOCKS if b.id in used]


def test_text_that_poses_as_markup_stays_harmless() -> None:
    text = 'def f(end="<|im_end|>", tag="</DOCUMENT>"):\n    """Write <ANSWER>: to the page."""\n'
    made = build_dataset(blocks_of({"a.py": text}), raft(oracle_absent_share=0.0))
    assert any(e.fact.value == '`"<|im_end|>"`' for e in made.examples)
    for row in made.rows("train"):
        assert "<|im_end|>" not in "".join(m.content for m in row.messages)
        shown = row.messages[1].content
        assert shown.count("</DOCUMENT>") == shown.count("<DOCUMENT>") <= 1
        assert row.messages[2].content.count("<ANSWER>:") == 1


# -- documents ---------------------------------------------------------------------------------


def test_distractors_prefer_the_same_name_and_never_answer() -> None:
    pool = Pool(BLOCKS)
    oracle = block("cart.py::Cart.add")

    def taken(count: int = 3, room: float = 10_000, answering: bool = False) -> list[CodeBlock]:
        oracles, found = retrieve_oracle_and_distractors(
            pool, [oracle], count, seed=1, answers=lambda other: answering, room=room
        )
        assert oracles == [oracle]
        return found

    assert len(taken()) == 3
    assert {b.qualified_name for b in taken()} & {"Store.add", "Report.add"}
    assert taken(answering=True) == [] == taken(0)
    assert sum(len(b.source_code) for b in taken(room=150)) <= 150
    first = taken(1)[0]
    _, apart = retrieve_oracle_and_distractors(
        pool, [oracle], 1, seed=1, answers=lambda other: False, room=10_000, apart=[first]
    )
    assert apart and not overlap(apart[0], first)


# -- splits ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
    st.integers(0, 99),
)
@with_example([1, 6, 1], 0.25, 0.25, 26)  # two small files, one of which valid must have
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


def test_copies_are_asked_about_once() -> None:
    files = {f"m{n}.py": SHOP["shop/prices.py"] for n in range(4)} | SHOP
    blocks = blocks_of(files)
    made = build_dataset(blocks, raft())
    assert_invariants(made, raft())
    assert made.skipped["copy_of_another"] == 12
    assert len({d.content_hash for d in made.documents}) == len(made.documents)


def test_near_copies_stay_in_the_split_that_has_most_of_them() -> None:
    body = "".join(f"    total += weight_{n} * price_{n}\n" for n in range(20))
    files = {f"m{n}.py": f"def sum_{n}(total):\n{body}    return total\n" for n in range(9)}
    files["other.py"] = "def other(x):\n    return [x]\n"
    blocks = blocks_of(files)
    families = near_copies(blocks)
    assert len(set(families[:9])) == 1 and families[9] != families[0]
    splits: dict[str, Split] = {b.path: "train" for b in blocks}
    splits["m0.py"], splits["m1.py"] = "test", "valid"
    assert leaking(blocks, splits, families) == {"m0.py::sum_0", "m1.py::sum_1"}
    two = [blocks[0], blocks[2]]
    assert leaking(two, splits, [0, 0]) == {"m2.py::sum_2"}
    made = build_dataset(blocks, raft())
    assert_invariants(made, raft())
    assert made.skipped["near_copy_in_other_split"] >= 1


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 30), min_size=60, max_size=60), st.integers(1, 12))
def test_every_nearly_equal_pair_is_of_one_family(words: list[int], changes: int) -> None:
    lines = [f"word{n} = {n}" for n in words]
    texts = []
    for change in range(changes):
        changed = list(lines)
        changed[change * 3 % 60] = f"other{change} = 0"
        texts.append("\n".join(changed))
    blocks = [
        BLOCKS[0].model_copy(update={"id": str(n), "source_code": text})
        for n, text in enumerate(texts)
    ]
    families = near_copies(blocks)
    for one, first in zip(blocks, families, strict=True):
        for other, second in zip(blocks, families, strict=True):
            a, b = shingles(one.source_code), shingles(other.source_code)
            assert first == second or len(a & b) < 0.9 * len(a | b)


def test_the_code_of_near_copies_is_asked_for_once() -> None:
    body = "".join(f"    total += weight_{n} * price_{n}\n" for n in range(12))
    doc = '    """Add the weighted prices to a total."""\n'
    text = "".join(f"def sum_{n}(total):\n{doc}{body}    return total\n\n\n" for n in range(6))
    made = build_dataset(blocks_of({"a.py": text}), raft(code_share=1.0))
    assert sum(e.fact.kind == "code" for e in made.examples) == 1


def test_further_files_go_where_most_of_what_they_test_is() -> None:
    splits: dict[str, Split] = {"a.py": "train", "b.py": "test", "c.py": "valid"}
    uses = [("t.py", "a.py"), ("t.py", "b.py"), ("t.py", "b.py"), ("u.py", "c.py"),
            ("u.py", "a.py"), ("a.py", "b.py")]  # fmt: skip
    assert follow(splits, uses) == {"t.py": "test", "u.py": "train"}


# -- bad input ---------------------------------------------------------------------------------


def test_a_single_block_is_trained_on_without_distractors() -> None:
    made = build_dataset([block("prices.py::parse_price")], raft())
    assert_invariants(made, raft())
    assert made.counts()[1] == {"train": len(made.examples), "valid": 0, "test": 0}
    assert len(made.examples) == 6 and not any(e.distractor_ids for e in made.examples)
    assert made.skipped["no_distractor"] >= 1


def test_ten_thousand_identical_blocks_are_one() -> None:
    one = block("prices.py::parse_price")
    many = [one.model_copy(update={"id": f"m{n}.py::p", "path": f"m{n}.py"}) for n in range(10_000)]
    made = build_dataset(many, raft())
    assert made.skipped["copy_of_another"] == 9_999
    assert len(made.documents) == 1 and len(made.examples) == 6


def test_blocks_without_facts_are_counted_beside_those_that_have_some() -> None:
    empty = block("mail.py::post").model_copy(
        update={"id": "e", "block_type": "module", "path": "e.py", "name": "e",
                "qualified_name": "e", "docstring": "", "signature": "", "source_code": "x\n",
                "content_hash": "e", "metadata": {}}
    )  # fmt: skip
    made = build_dataset([*BLOCKS, empty], raft())
    assert made.skipped["block_without_facts"] == 1
    with pytest.raises(BadInput, match="No example"):
        build_dataset([empty], raft())


def test_every_language_gives_examples() -> None:
    loaded = load_settings()
    one = loaded.mining.model_copy(update={"workers": 1, "require_docstring": False})
    mined = parse_repository(FIXTURES / "languages", loaded.model_copy(update={"mining": one}))
    made = build_dataset(mined.blocks, raft(), others=mined.rejected)
    assert_invariants(made, raft())
    asked = {d.language for d in made.documents if any(e.fact.block == d.id for e in made.examples)}
    assert asked == set(mined.languages)


def test_progress_is_told_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    build_dataset(BLOCKS, raft(), progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == list(range(1, 2 * len(BLOCKS) + 1))
    assert {total for _, total in told} == {2 * len(BLOCKS)}


# What is never asked without documents.
OPEN = {"location", "usage", "code", "base_location", "overrides", "callers", "tests"}
OPEN |= {f"callee_{what}" for what in ("location", "signature", "raises", "default", "purpose")}


@pytest.mark.parametrize(
    ("changes", "of_all"),
    [
        ({"closed_book_share": 1.0}, lambda e: e.closed_book or e.fact.kind in OPEN),
        ({"closed_book_share": 0.0, "code_share": 0.0}, lambda e: not e.closed_book),
        ({"code_share": 0.0}, lambda e: e.fact.kind not in ("code", "usage")),
        ({"distractors": 0, "oracle_absent_share": 0.0}, lambda e: not e.distractor_ids),
        ({"distractors": 1}, lambda e: len(e.distractor_ids) <= 3),
        ({"distractors": 5}, lambda e: len(e.distractor_ids) <= 6),
    ],
)
def test_the_ends_of_the_settings(changes: dict[str, Any], of_all: Any) -> None:
    made = build_dataset(BLOCKS, raft(**changes))
    assert_invariants(made, raft(**changes)) if "distractors" not in changes else None
    assert made.examples and all(of_all(example) for example in made.examples)


def test_code_is_written_in_no_more_than_the_wanted_share() -> None:
    made = build_dataset(
        BLOCKS, raft(code_share=0.3, closed_book_share=0.0, oracle_absent_share=0.0)
    )
    train = [e for e in made.examples if e.split == "train"]
    written = [e for e in train if e.fact.kind in ("code", "usage")]
    assert {e.fact.kind for e in written} == {"code", "usage"}
    assert 0.1 * len(train) < len(written) <= round(0.3 * len(train))
    every = build_dataset(BLOCKS, raft(code_share=1.0, examples_per_block=1))
    assert Counter(e.fact.kind in ("code", "usage") for e in every.examples)[True] >= 5


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
    assert flat.difficulty["hard"] == 0
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
