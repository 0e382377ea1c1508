"""The forms in which a dataset is written, and its card."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from raft_blocks import SHOP, blocks_of

from forge_mcp.errors import BadInput, Unavailable
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.synthesize import SynthesizeRequest, synthesize
from forge_mcp.raft import Dataset, build_dataset
from forge_mcp.raft.card import SIZES, dataset_card
from forge_mcp.raft.formats import FORMATS, parse_formats, raft_row, write_formats
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, render_answer
from forge_mcp.schemas.raft_examples import SPLITS
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace, write_jsonl

BLOCKS = blocks_of(SHOP)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset(BLOCKS, load_settings().raft)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("messages",)),
        ("completion, raft", ("messages", "raft", "completion")),
        ("parquet,completion,raft,messages", FORMATS),
    ],
)
def test_formats_are_read_from_a_list(text: str, expected: tuple[str, ...]) -> None:
    assert parse_formats(text) == expected


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(BadInput, match="'alpaca, csv'") as raised:
        parse_formats("csv,raft,alpaca")
    assert "messages, raft, completion, parquet" in str(raised.value.cause)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_format_holds_the_same_examples(dataset: Dataset, tmp_path: Path) -> None:
    import pyarrow.parquet

    documents = {d.id: d for d in dataset.documents}
    files = write_formats(tmp_path, dataset.examples, documents, FORMATS, "Be exact.")
    names = (*SPLITS, "raft", "completion")
    assert files == [f"{name}.{ending}" for name in names for ending in ("jsonl", "parquet")]
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    for name in names:
        written = rows_of(tmp_path / f"{name}.jsonl")
        assert pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist() == written
    for split in SPLITS:
        chats = [row.model_dump() for row in dataset.rows(split, "Be exact.")]
        assert rows_of(tmp_path / f"{split}.jsonl") == chats
    for kind in ("raft", "completion"):
        assert len(rows_of(tmp_path / f"{kind}.jsonl")) == len(dataset.examples)
    messages = {
        m["messages"][1]["content"] for s in SPLITS for m in rows_of(tmp_path / f"{s}.jsonl")
    }
    for row in rows_of(tmp_path / "raft.jsonl"):
        assert row["instruction"] in messages and row["system"] == "Be exact."
    for row in rows_of(tmp_path / "completion.jsonl"):
        system, _, asked = row["prompt"].rstrip("\n").partition("\n\n")
        assert system == "Be exact." and asked in messages and "<ANSWER>:" in row["completion"]


def test_the_fields_are_those_of_the_paper(dataset: Dataset) -> None:
    documents = {d.id: d for d in dataset.documents}
    for example in dataset.examples:
        row = raft_row(example, documents)
        assert list(row)[:7] == [
            "id", "type", "question", "context", "oracle_context", "cot_answer", "instruction",
        ]  # fmt: skip
        (titles,), (sentences,) = row["context"]["title"], row["context"]["sentences"]
        shown = len(example.distractor_ids) + (not example.oracle_absent) * len(example.oracle_ids)
        assert len(titles) == len(sentences) == (0 if example.closed_book else shown)
        oracle = documents[example.oracle_ids[0]].source_code
        assert row["oracle_context"].startswith(oracle)
        assert (oracle in sentences) == (not example.oracle_absent and not example.closed_book)
        assert row["cot_answer"] == render_answer(example.reasoning, example.final_answer)
        assert row["cot_answer"].endswith(ABSTAIN_ANSWER) == example.oracle_absent


def test_only_messages_are_written_unless_more_is_asked_for(
    dataset: Dataset, tmp_path: Path
) -> None:
    documents = {d.id: d for d in dataset.documents}
    assert write_formats(tmp_path, dataset.examples, documents) == [f"{s}.jsonl" for s in SPLITS]
    only = [e for e in dataset.examples if e.split == "train"]
    files = write_formats(tmp_path, only, documents, ("messages", "parquet"))
    assert files == ["train.jsonl", "train.parquet", "valid.jsonl", "test.jsonl"]


def test_without_pyarrow_there_is_no_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pyarrow":
            raise ImportError("No module named 'pyarrow'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable, match="pyarrow") as raised:
        parse_formats("parquet")
    assert "forge-mcp[parquet]" in str(raised.value.next_step)
    assert parse_formats("raft") == ("messages", "raft")


# -- the card ----------------------------------------------------------------------------------


def card_of(dataset: Dataset, licenses: list[str | None], **changes: Any) -> tuple[Any, str]:
    documents = [
        block.model_copy(update={"license": licenses[n % len(licenses)]})
        for n, block in enumerate(dataset.documents)
    ]
    given = {"project": "shop", "settings": {"seed": 17, "oracle_absent_mode": "abstain"}} | changes
    text = dataset_card("ds-shop-1", dataset.examples, documents, dataset.preferences,
                        files=["train.jsonl"], **given)  # fmt: skip
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_a_card_says_what_is_in_the_dataset(dataset: Dataset) -> None:
    header, body = card_of(dataset, ["MIT"], revision="abc")
    assert header["license"] == "mit"
    assert header["size_categories"] == ["n<1K"]
    assert header["tags"] == ["code", "raft", "python"]
    splits = {row["split"]: row["path"] for row in header["configs"][0]["data_files"]}
    assert splits == {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
    difficulty, split = dataset.counts()
    for name, count in {**difficulty, **split}.items():
        assert f"| {name} | {count} |" in body
    assert f"| MIT | {len(dataset.documents)} |" in body
    assert "at revision `abc`" in body and "seed 17" in body
    assert f"forge ({len(dataset.examples)})" in body


def test_a_card_names_every_licence_and_hurts_no_markdown(dataset: Dataset) -> None:
    header, body = card_of(dataset, ["Apache-2.0", None], project="a|b<c>`d")
    assert header["license"] == ["apache-2.0", "unknown"]
    assert "# a\\|b&lt;c>'d: questions" in body
    assert "at revision" not in body


def test_a_card_of_a_split_that_is_empty_names_only_the_others() -> None:
    made = build_dataset(BLOCKS[:1], load_settings().raft)
    header, _ = card_of(made, ["MIT"])
    assert [row["split"] for row in header["configs"][0]["data_files"]] == ["train"]
    empty, text = card_of(Dataset(documents=made.documents), ["MIT"])
    assert empty["configs"][0]["data_files"] == [] and "0 rows" in text and "(0%)" in text


def test_sizes_are_those_that_hubs_know(dataset: Dataset) -> None:
    assert [name for _, name in SIZES] == ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M"]
    many = Dataset(documents=dataset.documents, examples=dataset.examples * 20)
    assert card_of(many, ["MIT"])[0]["size_categories"] == ["1K<n<10K"]


def test_synthesize_writes_the_formats_and_the_card(tmp_path: Path) -> None:
    context = SkillContext(Workspace(tmp_path / "forge"), load_settings(), "shop")
    with context.workspace.stage("corpus", "shop") as staged:
        write_jsonl(staged.path / "blocks.jsonl", BLOCKS)
        write_jsonl(staged.path / "rejected.jsonl", [])
        staged.commit(id="corpus-shop-1", inputs_hash="1")
    plain = synthesize(SynthesizeRequest(corpus="corpus-shop-1"), context)
    more = synthesize(
        SynthesizeRequest(corpus="corpus-shop-1", formats="raft,completion,parquet"), context
    )
    assert plain.dataset_id != more.dataset_id
    made = context.workspace.load(more.dataset_id, "dataset")
    assert {"README.md", "raft.jsonl", "completion.jsonl", "raft.parquet", "train.parquet"} <= set(
        made.manifest.checksums
    )
    made.verify()
    card = made.file("README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: unknown\n") and more.dataset_id in card
    other = context.workspace.load(plain.dataset_id, "dataset")
    assert not any("parquet" in name for name in other.manifest.checksums)
    assert list(other.rows("train.jsonl")) == list(made.rows("train.jsonl"))
    with pytest.raises(BadInput, match="csv"):
        synthesize(SynthesizeRequest(corpus="corpus-shop-1", formats="csv"), context)
