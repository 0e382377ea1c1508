"""The quality gate: every way in which a dataset can be bad is seen, good ones pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import CorruptArtifact, NotFound
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.synthesize import SynthesizeRequest, synthesize
from forge_mcp.pipeline.validate import ValidateRequest, ValidateResult, validate
from forge_mcp.quality import (
    Validation,
    generate_quality_report,
    report_json,
    save_histogram,
    score_data_quality,
    score_example,
    validate_code_block,
    validate_dataset,
    validate_raft_example,
)
from forge_mcp.quality.checks import reason_of
from forge_mcp.quality.duplicates import find_duplicates, shingles
from forge_mcp.quality.scores import WEIGHTS, split_retrievers
from forge_mcp.quality.validator import leaked_documents
from forge_mcp.raft import Dataset, build_dataset, chat_row
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import quote
from forge_mcp.schemas.raft_examples import SPLITS, Fact, RaftExample
from forge_mcp.settings import QualitySettings, load_settings
from forge_mcp.workspace import Workspace, hash_inputs, write_jsonl

BLOCKS = blocks_of(SHOP)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(BLOCKS, load_settings().raft)


@pytest.fixture(scope="module")
def documents(dataset: Dataset) -> dict[str, CodeBlock]:
    return {d.id: d for d in dataset.documents}


def quality(**changes: Any) -> QualitySettings:
    return load_settings().quality.model_copy(update=changes)


def plain(dataset: Dataset, **wanted: Any) -> RaftExample:
    """The first example of the training split that shows its oracle and has distractors."""
    return next(
        e
        for e in dataset.examples
        if e.split == "train"
        and not e.oracle_absent
        and len(e.oracle_ids) == 1
        and e.distractor_ids
        and all(getattr(e, name) == value for name, value in wanted.items())
    )


# -- blocks ------------------------------------------------------------------------------------


def changed(block: CodeBlock, source: str, **fields: Any) -> CodeBlock:
    digest = hashlib.sha256(source.encode()).hexdigest()
    return block.model_copy(update={"source_code": source, "content_hash": digest} | fields)


def test_mined_blocks_are_valid() -> None:
    for block in BLOCKS:
        valid, messages = validate_code_block(block, require_docstring=False)
        assert valid and messages == []
    assert validate_code_block(BLOCKS[2]) == (True, [])


@pytest.mark.parametrize(
    ("source", "fields", "reason"),
    [
        ("", {}, "empty_document"),
        ("   \n\t", {}, "empty_document"),
        ("x = 1", {}, "document_length"),
        ("def f(:\n    return 1\n", {}, "invalid_code"),
        ("def f():\n    return 'never closed\n", {}, "invalid_code"),
        ("x" * 200_000, {}, "document_length"),
        ("def f():\n    return 1\n", {"docstring": " "}, "no_docstring"),
        ("def f():\n    return 1\n", {"content_hash": "0" * 64}, "changed_document"),
        ("def f():\n    return 1\n", {"start_line": 9, "end_line": 3}, "document_place"),
    ],
)
def test_a_broken_block_is_refused(source: str, fields: dict[str, Any], reason: str) -> None:
    valid, messages = validate_code_block(changed(BLOCKS[2], source, **fields))
    assert not valid
    assert reason in [reason_of(message) for message in messages]


def test_code_of_other_languages_is_not_read_as_python() -> None:
    block = changed(BLOCKS[2], "func F() int {\n\treturn 1\n}", language="go")
    assert validate_code_block(block)[0]


# -- examples ----------------------------------------------------------------------------------


def test_generated_examples_are_valid(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    for example in dataset.examples:
        assert validate_raft_example(example, documents) == (True, [])


Change = Callable[[RaftExample], dict[str, Any]]

SPOILT: list[tuple[str, Change]] = [
    ("unverified_quote", lambda e: {"reasoning": f"It says {quote('never written anywhere')}."}),
    ("no_quote", lambda e: {"reasoning": "Because I say so."}),
    ("no_reasoning", lambda e: {"reasoning": "  "}),
    ("unstated_fact", lambda e: {"final_answer": "`something else`"}),
    ("false_fact", lambda e: {"fact": e.fact.model_copy(update={"value": "`never()`"})}),
    ("false_fact", lambda e: {"fact": e.fact.model_copy(update={"kind": "no such kind"})}),
    ("empty_text", lambda e: {"question": ""}),
    ("empty_text", lambda e: {"final_answer": " "}),
    ("no_oracle", lambda e: {"oracle_ids": []}),
    ("repeated_document", lambda e: {"distractor_ids": [*e.distractor_ids, e.oracle_ids[0]]}),
    ("repeated_document", lambda e: {"distractor_ids": e.distractor_ids * 2}),
    ("missing_document", lambda e: {"distractor_ids": ["gone.py::f"]}),
    ("missing_document", lambda e: {"oracle_ids": ["gone.py::f"]}),
    ("answer_length", lambda e: {"reasoning": e.reasoning + " and so on" * 300}),
    ("markers", lambda e: {"reasoning": f"{e.reasoning} <ANSWER>: no"}),
    ("quote_of_absent", lambda e: {"oracle_absent": True}),
]


@pytest.mark.parametrize(("reason", "change"), SPOILT)
def test_a_spoilt_example_is_refused_and_scores_nothing(
    reason: str, change: Change, dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    bad = good.model_copy(update=change(good))
    valid, messages = validate_raft_example(bad, documents)
    assert not valid
    assert reason in [reason_of(message) for message in messages]
    retriever = split_retrievers(dataset.examples, documents)["train"]
    assert score_example(good, documents, retriever).value > 0.6
    assert score_example(bad, documents, retriever).value == 0.0


def test_a_distractor_that_answers_is_found(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    oracle = documents[good.oracle_ids[0]]
    twin = oracle.model_copy(update={"id": "copy.py::twin", "path": "copy.py"})
    bad = good.model_copy(update={"distractor_ids": [twin.id]})
    more = documents | {twin.id: twin}
    assert [reason_of(m) for m in validate_raft_example(bad, more)[1]] == ["answering_distractor"]
    retriever = split_retrievers(dataset.examples, documents)["train"]
    assert score_example(bad, more, retriever).irrelevance == 0.0


# -- duplicates --------------------------------------------------------------------------------


def test_repeated_texts_point_to_the_first() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs away from the big bad wolf today"
    texts = [long, "something else entirely", long.upper(), long + " again", "x", "x"]
    assert find_duplicates(texts, 0.9) == {2: 0, 3: 0, 5: 4}
    assert find_duplicates(texts, 1.0) == {2: 0, 5: 4}
    assert find_duplicates([], 0.9) == {}


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join), max_size=12),
    st.sampled_from([0.7, 0.9, 1.0]),
)
def test_duplicates_agree_with_the_definition(texts: list[str], threshold: float) -> None:
    found = find_duplicates(texts, threshold)
    for later, first in found.items():
        assert first < later and first not in found
        one, other = shingles(texts[first]), shingles(texts[later])
        same = " ".join(texts[first].lower().split()) == " ".join(texts[later].lower().split())
        assert same or len(one & other) / len(one | other) >= threshold
    kept = [text for index, text in enumerate(texts) if index not in found]
    assert len({" ".join(text.lower().split()) for text in kept}) == len(kept)


# -- scores ------------------------------------------------------------------------------------


def test_weights_add_up_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_good_data_scores_between_070_and_095(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    found = score_data_quality(dataset.examples, documents)
    assert 0.70 <= found["overall"] <= 0.95
    assert all(0.0 <= value <= 1.0 for value in found.values())
    assert found["relevance"] > 0.9
    assert found["distractor_irrelevance"] > 0.7
    assert found["difficulty_balance"] > 0.8


def test_scores_of_nothing_and_of_one(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    nothing = score_data_quality([], {})
    assert set(nothing) == set(score_data_quality(dataset.examples[:1], documents))
    assert set(nothing.values()) == {0.0}
    assert score_data_quality(dataset.examples[:1], documents)["diversity"] == 0.0


def test_an_oracle_that_retrieval_misses_lowers_the_score(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    vague = good.model_copy(update={"question": "Zzz?"})
    retriever = split_retrievers(dataset.examples, documents)["train"]
    assert score_example(good, documents, retriever).relevance == 1.0
    assert score_example(vague, documents, retriever).relevance == 0.0


def test_a_documented_oracle_is_worth_more(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    example = plain(dataset)
    retriever = split_retrievers(dataset.examples, documents)["train"]
    values = []
    for substance in (0.0, 1.0):
        oracle = documents[example.oracle_ids[0]].model_copy(update={"quality_score": substance})
        values.append(score_example(example, documents | {oracle.id: oracle}, retriever).value)
    assert values[1] - values[0] == pytest.approx(WEIGHTS["substance"])


# -- the gate ----------------------------------------------------------------------------------


def test_a_good_dataset_passes(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    seen: list[tuple[int, int]] = []
    found = validate_dataset(
        dataset.examples, documents, quality(), progress=lambda d, t: seen.append((d, t))
    )
    assert found.passed and found.reasons == []
    assert found.metrics.valid_examples >= 0.9 * len(dataset.examples)
    assert all(e.quality is not None and e.quality >= 0.6 for e in found.kept)
    assert seen[-1] == (len(dataset.examples), len(dataset.examples))


def test_bad_examples_are_dropped_and_the_good_ones_stay(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    spoilt = [
        good.model_copy(
            update={"id": f"bad-{n}", "question": f"{good.question} {n}"} | change(good)
        )
        for n, (_, change) in enumerate(SPOILT)
    ]
    clean = validate_dataset(dataset.examples, documents, quality())
    mixed = validate_dataset([*dataset.examples, *spoilt], documents, quality())
    assert [e.id for e in mixed.kept] == [e.id for e in clean.kept]
    assert {reason for reason, _ in SPOILT} <= set(mixed.dropped)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_quality_score": 0.99}, "low_quality"),
        ({"max_distractor_relevance": 0.0}, "high_distractor_relevance"),
    ],
)
def test_thresholds_filter(
    changes: dict[str, float],
    reason: str,
    dataset: Dataset,
    documents: dict[str, CodeBlock],
) -> None:
    found = validate_dataset(dataset.examples, documents, quality(**changes))
    assert found.dropped[reason] > 0
    assert found.metrics.valid_examples < len(dataset.examples)


def test_low_relevance_is_dropped(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    vague = [e.model_copy(update={"question": f"Q{n}?"}) for n, e in enumerate(dataset.examples)]
    found = validate_dataset(vague, documents, quality())
    assert found.dropped["low_oracle_relevance"] > 0.9 * len(vague)
    assert not found.passed


def test_a_duplicate_across_splits_is_dropped_from_training(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    held = next(e for e in dataset.examples if e.split == "test")
    copy = held.model_copy(update={"id": "copy", "split": "train"})
    twice = next(e for e in dataset.examples if e.split == "train")
    again = twice.model_copy(update={"id": "again"})
    found = validate_dataset([copy, *dataset.examples, again], documents, quality())
    kept = {e.id for e in found.kept}
    assert held.id in kept and "copy" not in kept and "again" not in kept
    assert found.dropped["duplicate_across_splits"] == 1
    assert found.dropped["duplicate"] == 1
    assert found.metrics.duplicate_rate == pytest.approx(2 / (len(dataset.examples) + 2))


def test_documents_of_two_splits_are_a_leak(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    assert leaked_documents(dataset.examples, documents) == []
    moved = plain(dataset).model_copy(update={"split": "test", "question": "Another `add`?"})
    both = [*dataset.examples, moved]
    assert set(leaked_documents(both, documents)) >= set(moved.oracle_ids)
    found = validate_dataset(both, documents, quality(min_oracle_relevance=0.0))
    assert not found.passed
    assert any("also trained on" in reason for reason in found.reasons)


def test_secrets_are_looked_for_again(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    token = "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2
    example = plain(dataset)
    oracle = documents[example.oracle_ids[0]]
    leaky = changed(oracle, oracle.source_code + f"\n    # token = '{token[:40]}'")
    found = validate_dataset(dataset.examples, documents | {leaky.id: leaky}, quality())
    assert found.dropped["secret"] >= 1
    assert not any(leaky.id in (*e.oracle_ids, *e.distractor_ids) for e in found.kept)


def test_too_few_examples_are_refused(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    found = validate_dataset(dataset.examples[:5], documents, quality())
    assert not found.passed
    assert "quality.min_examples" in found.reasons[0]
    empty = validate_dataset([], {}, quality())
    assert not empty.passed and empty.metrics.quality_score_mean == 0.0


# -- the report --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(dataset: Dataset, documents: dict[str, CodeBlock]) -> Validation:
    good = plain(dataset)
    bad = good.model_copy(
        update={
            "id": "ex-bad",
            "question": "What | is `this`?",
            "fact": Fact(kind="raises", block=good.fact.block, value="`Nothing`"),
        }
    )
    return validate_dataset([*dataset.examples, bad], documents, quality())


def test_the_report_tells_what_is_wrong_and_what_to_do(mixed: Validation) -> None:
    text = generate_quality_report(mixed, title="ds-shop", thresholds=quality().model_dump())
    assert text.startswith("# Data quality of ds-shop: passed")
    for heading in ("Before and after", "Failure modes", "Worst examples", "Thresholds"):
        assert f"## {heading}" in text
    assert "false fact" in text and "make it again with synthesize" in text
    assert "ex-bad" in text and "What \\| is `this`?" in text
    assert "![Histogram of the scores](quality.png)" in text
    assert "quality.png" not in generate_quality_report(
        mixed, title="x", thresholds={}, histogram=False
    )


def test_a_refusal_stands_on_top(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    found = validate_dataset(dataset.examples[:3], documents, quality())
    text = generate_quality_report(found, title="ds-few", thresholds={})
    assert "REFUSED" in text.splitlines()[0]
    assert "quality.min_examples" in text.splitlines()[1]


def test_report_json_and_histogram(mixed: Validation, tmp_path: Path) -> None:
    facts = report_json(mixed, dataset_id="ds-shop", thresholds={"min_examples": 20})
    assert json.loads(json.dumps(facts))["metrics"]["total_examples"] == len(mixed.judged)
    assert facts["worst"][0]["id"] == "ex-bad"
    save_histogram(mixed, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


# -- the skill ---------------------------------------------------------------------------------


def make_dataset(tmp_path: Path, **request: Any) -> tuple[SkillContext, str]:
    context = SkillContext(
        workspace=Workspace(tmp_path / "forge"), settings=load_settings(), project="shop"
    )
    inputs_hash = hash_inputs({"shop": 1})
    with context.workspace.stage("corpus", "shop") as staged:
        write_jsonl(staged.path / "blocks.jsonl", BLOCKS)
        write_jsonl(staged.path / "rejected.jsonl", [])
        corpus = staged.commit(
            id=context.workspace.new_id("corpus", "shop", inputs_hash), inputs_hash=inputs_hash
        )
    result = synthesize(SynthesizeRequest(corpus=corpus.id, **request), context)
    return context, result.dataset_id


def test_validate_writes_a_new_dataset_and_a_report(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    result = validate(ValidateRequest(dataset=source, min_quality_score=0.85), context)
    assert result.passed and result.reasons == [] and result.dataset_id != source
    assert result.dropped["low_quality"] > 0
    made = context.workspace.load(result.dataset_id, "dataset")
    assert made.manifest.parents == [source]
    verdict = json.loads(made.file("validation.json").read_text())
    assert verdict["passed"] is True and verdict["report_id"] == result.report_id
    examples = [RaftExample.model_validate(row) for row in made.rows("examples.jsonl")]
    assert len(examples) == result.metrics.valid_examples
    assert all(e.quality is not None and e.quality >= 0.85 for e in examples)
    documents = {r["id"]: CodeBlock.model_validate(r) for r in made.rows("documents.jsonl")}
    for split in SPLITS:
        expected = [chat_row(e, documents).model_dump() for e in examples if e.split == split]
        assert list(made.rows(f"{split}.jsonl")) == expected
    prompts = {row["messages"][1]["content"] for row in made.rows("train.jsonl")}
    pairs = list(made.rows("preferences.jsonl"))
    assert pairs and {row["prompt"] for row in pairs} <= prompts
    report = context.workspace.load(result.report_id, "report")
    assert report.manifest.parents == [source, made.id]
    assert Path(result.report) == report.file("report.md")
    assert json.loads(report.file("report.json").read_text())["passed"] is True
    assert report.file("quality.png").stat().st_size > 1000


def test_validate_is_idempotent_and_survives_a_lost_dataset(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    first = validate(ValidateRequest(dataset=source), context)
    assert validate(ValidateRequest(dataset=source), context) == first
    folder = context.workspace.load(first.dataset_id).path
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    second = validate(ValidateRequest(dataset=source), context)
    assert second.dataset_id == first.dataset_id
    assert context.workspace.load(second.dataset_id).file("validation.json")


def test_a_refusal_changes_nothing_but_leaves_a_report(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    result = validate(ValidateRequest(dataset=source, min_examples=10_000), context)
    assert not result.passed
    assert result.dataset_id == source
    assert "10000 are needed" in result.reasons[0]
    assert [d.id for d in context.workspace.artifacts("dataset")] == [source]
    assert "REFUSED" in Path(result.report).read_text()
    assert validate(ValidateRequest(dataset=source, min_examples=10_000), context) == result


def test_the_rows_keep_the_prompt_of_their_dataset(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    other = context.settings.project.model_copy(update={"system_prompt": "Another prompt."})
    later = SkillContext(
        workspace=context.workspace,
        settings=context.settings.model_copy(update={"project": other}),
        project="shop",
    )
    result = validate(ValidateRequest(dataset=source), later)
    rows = context.workspace.load(result.dataset_id).rows("train.jsonl")
    assert "Another prompt." not in {row["messages"][0]["content"] for row in rows}


def test_bad_datasets_are_named(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    with pytest.raises(NotFound, match="ds-nope-0000"):
        validate(ValidateRequest(dataset="ds-nope-0000"), context)
    file = context.workspace.load(source).file("examples.jsonl")
    file.write_text(file.read_text().replace("train", "valid", 1))
    with pytest.raises(CorruptArtifact, match=r"examples\.jsonl"):
        validate(ValidateRequest(dataset=source), context)


def test_the_result_is_json() -> None:
    fields = ValidateResult.model_fields
    contract = {"dataset_id", "passed", "quality_score", "metrics", "dropped", "report", "seconds"}
    assert contract <= set(fields)
