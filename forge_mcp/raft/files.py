"""The files of a dataset's folder, as every skill that makes a dataset writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_mcp.raft.card import dataset_card
from forge_mcp.raft.formats import write_formats
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import PreferencePair, RaftExample
from forge_mcp.workspace import write_file, write_jsonl

CARD = "README.md"


def write_dataset(
    folder: Path,
    dataset_id: str,
    examples: Sequence[RaftExample],
    documents: Sequence[CodeBlock],
    preferences: Sequence[PreferencePair],
    *,
    project: str,
    made_from: Mapping[str, Any],
    revision: str | None,
) -> None:
    """Write documents, examples, preference pairs, the wanted formats and the dataset card.

    Args:
        folder: of the artifact in the making.
        dataset_id: it will have.
        examples: in their order.
        documents: that they show or ask about.
        preferences: the pairs.
        project: name of the repository.
        made_from: `raft` (settings), `formats` and `system_prompt`, as its manifest will say.
        revision: of the repository, where it has one.

    Raises:
        Unavailable: Parquet is wanted and pyarrow is not installed.
    """
    write_jsonl(folder / "documents.jsonl", documents)
    write_jsonl(folder / "examples.jsonl", examples)
    write_jsonl(folder / "preferences.jsonl", preferences)
    files = write_formats(
        folder,
        examples,
        {block.id: block for block in documents},
        made_from["formats"],
        made_from["system_prompt"],
    )
    card = dataset_card(
        dataset_id,
        examples,
        documents,
        preferences,
        project=project,
        settings=made_from["raft"],
        files=files,
        revision=revision,
    )
    write_file(folder / CARD, card)
