"""The quality gate: every way in which a dataset can be bad is seen, good ones pass."""

from __future__ import annotations

import gzip
import hashlib
import json
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
    score_data_quality,
    score_example,
    validate_code_block,
    validate_dataset,
    validate_raft_example,
)
from forge_mcp.quality.among import leaking
from forge_mcp.quality.duplicates import bands, find_duplicates, normalised, shingles
from forge_mcp.quality.plots import part_histograms, score_histogram
from forge_mcp.quality.reasons import reason_of
from forge_mcp.quality.relevance import split_retrievers
from forge_mcp.quality.scores import WEIGHTS
from forge_mcp.raft import Dataset, build_dataset, chat_row
from forge_mcp.schemas.code_blocks import CodeBlock
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
    end = block.start_line + source.count("\n")
    changes = {"source_code": source, "content_hash": digest, "end_line": end} | fields
    return block.model_copy(update=changes)


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


def test_a_blocks_lines_are_those_of_its_code_unless_some_were_redacted() -> None:
    block = BLOCKS[2].model_copy(update={"end_line": BLOCKS[2].end_line + 2})
    assert validate_code_block(block)[1] == [
        "document_place: its lines are not those from its first to its last"
    ]
    redacted = {**block.metadata, "secrets_redacted": 1}
    assert validate_code_block(block.model_copy(update={"metadata": redacted}))[0]


def test_code_of_other_languages_is_not_read_as_python() -> None:
    block = changed(BLOCKS[2], "func F() int {\n\treturn 1\n}", language="go")
    assert validate_code_block(block)[0]


# -- examples ----------------------------------------------------------------------------------


def test_generated_examples_are_valid(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    for example in dataset.examples:
        assert validate_raft_example(example, documents) == (True, [])


# -- duplicates --------------------------------------------------------------------------------


def test_repeated_texts_point_to_the_first() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs away from the big bad wolf today"
    texts = [long, "something else entirely", long.upper(), long + " again", "x", "x"]
    assert find_duplicates(texts, 0.9) == {2: 0, 3: 0, 5: 4}
    assert find_duplicates(texts, 1.0) == {2: 0, 5: 4}
    assert find_duplicates([], 0.9) == {}
    assert find_duplicates(texts, 0.9, topics=range(6)) == {2: 0, 5: 4}


def test_case_and_brackets_matter_in_code_only() -> None:
    overloads = ["What is `f(Object)`?", "What is `f(object)`?", "What is `f(object[])`?"]
    assert find_duplicates([*overloads, "what  IS `f(Object)`?"], 0.9) == {3: 0}


def test_near_copies_among_many_texts_are_found() -> None:
    words = [f"word{n}" for n in range(3000)]
    texts = [" ".join(words[n : n + 60]) for n in range(0, 2900, 10)]
    copies = [f"{text} again" for text in texts]
    found = find_duplicates([*texts, *copies], 0.9)
    assert found == {len(texts) + n: n for n in range(len(texts))}


@pytest.mark.parametrize(("threshold", "number"), [(0.9, 16), (0.7, 32), (0.5, 64), (1.0, 8)])
def test_as_many_bands_as_the_threshold_needs(threshold: float, number: int) -> None:
    assert bands(threshold) == number


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
        same = normalised(texts[first]) == normalised(texts[later])
        assert same or len(one & other) / len(one | other) >= threshold
    kept = [normalised(text) for index, text in enumerate(texts) if index not in found]
    assert len(set(kept)) == len(kept)


# -- scores ------------------------------------------------------------------------------------


def test_weights_add_up_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


def test_good_data_scores_between_070_and_090(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    found = validate_dataset(dataset.examples, documents, quality())
    values = [judged.score.value for judged in found.judged]
    assert min(values) >= 0.6
    assert sum(0.7 <= value <= 0.9 for value in values) >= 0.9 * len(values)
    dimensions = score_data_quality(dataset.examples, documents)
    assert dimensions == found.before
    assert all(0.0 <= value <= 1.0 for value in dimensions.values())
    assert dimensions["relevance"] > 0.95
    assert dimensions["distractor_irrelevance"] > 0.7
    assert dimensions["difficulty_balance"] > 0.8


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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_quality_score": 0.9}, "low_quality"),
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


def test_what_retrieval_does_not_find_is_dropped(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    # The question says more of another definition than of the one it asks about.
    good = next(
        e
        for e in dataset.examples
        if e.fact.kind == "purpose" and e.fact.block == "shop/cart.py::Cart"
    )
    vague = good.model_copy(
        update={"id": "vague", "question": "What is Cart for, beside `Store.add` and `Store.load`?"}
    )
    found = validate_dataset([*dataset.examples, vague], documents, quality(min_oracle_relevance=1))
    assert found.judged[-1].reasons == ["low_oracle_relevance"]
    assert 0.0 < found.judged[-1].score.relevance < 1.0


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


def test_a_row_with_documents_of_another_split_is_dropped(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    assert leaking(dataset.examples, documents) == {}
    moved = plain(dataset).model_copy(update={"id": "moved", "split": "test", "author": "hand"})
    found = validate_dataset([*dataset.examples, moved], documents, quality())
    assert found.judged[-1].reasons[-1] == "split_leak"
    assert found.dropped["split_leak"] == 1
    assert found.before["leak_rate"] > 0 == found.after["leak_rate"]


def test_code_that_is_held_out_elsewhere_is_not_trained_on(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    example = plain(dataset)
    oracle = documents[example.oracle_ids[0]]
    held = next(e for e in dataset.examples if e.split == "test" and not e.closed_book)
    shown = documents[held.oracle_ids[0]]
    copy = oracle.model_copy(
        update={"content_hash": shown.content_hash, "source_code": shown.source_code}
    )
    found = leaking(dataset.examples, documents | {oracle.id: copy})
    index = dataset.examples.index(example)
    assert "is held out" in found[index]


def test_a_broken_row_does_not_drag_a_good_one_down(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    other = good.fact.model_copy(update={"value": "`never()`"})
    broken = good.model_copy(update={"fact": other, "split": "train"})
    found = validate_dataset([broken, *dataset.examples], documents, quality())
    assert [e.id for e in found.kept] == [e.id for e in dataset.examples]
    assert found.judged[0].score.messages[0].startswith("false_fact")


def test_the_same_question_in_nearly_the_same_words_is_a_repeat(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    good = plain(dataset)
    again = good.question[0].lower() + good.question[1:]
    near = good.model_copy(update={"id": "near", "question": f"Please, {again}"})
    found = validate_dataset([*dataset.examples, near], documents, quality())
    assert found.dropped == {"duplicate": 1} and found.judged[-1].reasons == ["duplicate"]


def test_one_question_with_two_answers_is_dropped(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    pair = [e for e in dataset.examples if e.fact.kind == "purpose" and not e.oracle_absent][:2]
    ask = "What do these do, `{}` and `{}`?".format(*(documents[e.fact.block].name for e in pair))
    both = [e.model_copy(update={"id": f"{e.id}-2", "question": ask}) for e in pair]
    found = validate_dataset([*dataset.examples, *both], documents, quality())
    assert found.dropped == {"conflicting_answers": 2}


def test_held_out_closed_book_rows_ask_about_what_is_trained_on(
    dataset: Dataset, documents: dict[str, CodeBlock]
) -> None:
    held = [e for e in dataset.examples if e.closed_book and e.split == "test"]
    assert held
    untrained = [e for e in dataset.examples if e.split != "train"]
    found = validate_dataset(untrained, documents, quality())
    assert found.dropped["untrained_closed_book"] >= len(held)


def test_a_repeated_id_is_dropped(dataset: Dataset, documents: dict[str, CodeBlock]) -> None:
    one, other = [e for e in dataset.examples if e.split == "train"][:2]
    rows = [e if e is not other else e.model_copy(update={"id": one.id}) for e in dataset.examples]
    assert validate_dataset(rows, documents, quality()).dropped == {"repeated_id": 1}


def test_humaneval_is_looked_for_where_it_is_given(
    dataset: Dataset, documents: dict[str, CodeBlock], tmp_path: Path
) -> None:
    oracle = documents[plain(dataset).oracle_ids[0]]
    problem = {"prompt": oracle.source_code, "canonical_solution": "    return 1\n"}
    file = tmp_path / "HumanEval.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(problem).encode() + b"\n"))
    found = validate_dataset(dataset.examples, documents, quality(humaneval_path=str(file)))
    assert found.metrics.contaminated_examples == found.dropped["contaminated"] > 0
    assert not any(
        oracle.id in (*e.oracle_ids, *e.distractor_ids) and not e.closed_book for e in found.kept
    )
    text = generate_quality_report(found, title="x", thresholds={})
    assert f"{found.dropped['contaminated']} held a HumanEval problem." in text
    clean = validate_dataset(dataset.examples, documents, quality())
    assert clean.metrics.contaminated_examples is None
    assert "HumanEval was not looked for" in generate_quality_report(
        clean, title="x", thresholds={}
    )


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
    assert "false fact" in text and "Make the dataset again with synthesize" in text
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


def test_report_json_and_histograms(mixed: Validation) -> None:
    facts = report_json(mixed, dataset_id="ds-shop", thresholds={"min_examples": 20})
    assert json.loads(json.dumps(facts))["metrics"]["total_examples"] == len(mixed.judged)
    assert facts["worst"][0]["id"] == "ex-bad"
    assert score_histogram(mixed.judged).startswith(b"\x89PNG")
    assert part_histograms(mixed.judged).startswith(b"\x89PNG")
    assert score_histogram([]).startswith(b"\x89PNG")


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
    result = validate(ValidateRequest(dataset=source, min_quality_score=0.8), context)
    assert result.passed and result.reasons == [] and result.dataset_id != source
    assert result.dropped["low_quality"] > 0
    made = context.workspace.load(result.dataset_id, "dataset")
    assert made.manifest.parents == [source]
    verdict = json.loads(made.file("validation.json").read_text())
    assert verdict["passed"] is True and verdict["report_id"] == result.report_id
    examples = [RaftExample.model_validate(row) for row in made.rows("examples.jsonl")]
    assert len(examples) == result.metrics.valid_examples
    assert all(e.quality is not None and e.quality >= 0.8 for e in examples)
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
    assert report.file("report.html").read_text().startswith("<!doctype html>")
    assert "Preference pairs: kept" in report.file("report.md").read_text()


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


def test_malformed_rows_are_left_out_and_reported(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    artifact = context.workspace.load(source)
    with context.workspace.stage("dataset", "shop") as staged:
        for name in artifact.manifest.checksums:
            text = artifact.file(name).read_text()
            broken = '{"id": "no row"}\n' if name in ("examples.jsonl", "preferences.jsonl") else ""
            (staged.path / name).write_text(broken + text)
        written = staged.commit(
            id=context.workspace.new_id("dataset", "shop", hash_inputs({"by": "hand"})),
            inputs_hash=hash_inputs({"by": "hand"}),
        )
    result = validate(ValidateRequest(dataset=written.id), context)
    assert result.passed and result.dropped == {"malformed": 1}
    report = Path(result.report).read_text()
    assert "examples.jsonl, line 1: malformed" in report and "malformed 1." in report


def test_a_manifest_without_a_prompt_is_refused(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    artifact = context.workspace.load(source)
    with context.workspace.stage("dataset", "shop") as staged:
        for name in artifact.manifest.checksums:
            (staged.path / name).write_text(artifact.file(name).read_text())
        made = staged.commit(
            id=context.workspace.new_id("dataset", "shop", hash_inputs({"no": "prompt"})),
            inputs_hash=hash_inputs({"no": "prompt"}),
            settings={"system_prompt": 7},
        )
    with pytest.raises(CorruptArtifact, match="does not say its system prompt"):
        validate(ValidateRequest(dataset=made.id), context)


def test_bad_datasets_are_named(tmp_path: Path) -> None:
    context, source = make_dataset(tmp_path)
    with pytest.raises(NotFound, match="ds-nope-0000"):
        validate(ValidateRequest(dataset="ds-nope-0000"), context)
    file = context.workspace.load(source).file("examples.jsonl")
    text = file.read_text()
    file.write_text(text.replace("train", "valid", 1))
    with pytest.raises(CorruptArtifact, match=r"examples\.jsonl is not what was written"):
        validate(ValidateRequest(dataset=source), context)
    lines = text.splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:50])
    with pytest.raises(CorruptArtifact, match=r"Line 5 of examples\.jsonl is cut off"):
        validate(ValidateRequest(dataset=source), context)
    assert file.read_text().endswith(lines[4][:50])


def test_the_result_is_json() -> None:
    fields = ValidateResult.model_fields
    contract = {"dataset_id", "passed", "quality_score", "metrics", "dropped", "report", "seconds"}
    assert contract <= set(fields)
