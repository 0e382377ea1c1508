"""A dataset in the forms that other tools read.

messages     train/valid/test.jsonl: {"messages": […]}, as mlx-lm, TRL and Unsloth read it
raft         raft.jsonl: the fields of the RAFT paper's own code
completion   completion.jsonl: {"prompt", "completion"}
parquet      the same rows as Parquet, one file beside each of the others; needs pyarrow
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from forge_mcp.errors import BadInput, Unavailable
from forge_mcp.raft.documents import example_documents
from forge_mcp.raft.generator import chat_row
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import DEFAULT_SYSTEM_PROMPT, render_answer, render_question
from forge_mcp.schemas.raft_examples import SPLITS, RaftExample
from forge_mcp.workspace import write_jsonl

FORMATS = ("messages", "raft", "completion", "parquet")
ROW_GROUP = 2_000
_TEXTS = {
    "raft": (
        "id", "type", "question", "oracle_context", "cot_answer", "instruction", "system", "split",
    ),
    "completion": ("prompt", "completion", "split"),
}  # fmt: skip


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats of a comma-separated list, in the order of `FORMATS`; messages always.

    Raises:
        BadInput: one of them is unknown.
        Unavailable: Parquet is wanted and pyarrow is not installed.
    """
    wanted = {part.strip() for part in text.split(",") if part.strip()} | {"messages"}
    unknown = sorted(wanted.difference(FORMATS))
    if unknown:
        raise BadInput(
            f"There is no format {', '.join(unknown)!r}.",
            cause=f"a dataset is written as {', '.join(FORMATS)}",
            next_step="Give --formats some of these, separated by commas.",
        )
    if "parquet" in wanted:
        _pyarrow()
    return tuple(name for name in FORMATS if name in wanted)


def raft_row(
    example: RaftExample,
    documents: Mapping[str, CodeBlock],
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> dict[str, Any]:
    """An example in the fields of the paper's code (ShishirPatil/gorilla, folder raft/).

    `context` holds the shown documents in their order, one list of titles and one of texts;
    `oracle_context` the text that the answer rests on, shown or not. `system` and `split` are ours.
    """
    shown = example_documents(example, documents)
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    return {
        "id": example.id,
        "type": "general",
        "question": example.question,
        "context": {
            "title": [[f"{block.path}:{block.qualified_name}" for block in shown]],
            "sentences": [[block.source_code for block in shown]],
        },
        "oracle_context": "\n\n".join(block.source_code for block in oracles),
        "cot_answer": render_answer(example.reasoning, example.final_answer),
        "instruction": render_question(shown, example.question),
        "system": system_prompt,
        "split": example.split,
    }


def completion_row(
    example: RaftExample,
    documents: Mapping[str, CodeBlock],
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> dict[str, Any]:
    """An example as prompt and completion, without a chat template; `split` is ours."""
    asked = render_question(example_documents(example, documents), example.question)
    return {
        "prompt": f"{system_prompt}\n\n{asked}\n",
        "completion": render_answer(example.reasoning, example.final_answer),
        "split": example.split,
    }


def write_formats(
    folder: Path,
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    formats: Sequence[str] = ("messages",),
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> list[str]:
    """Write a dataset's examples into a folder, one file a format (messages: one a split).

    Args:
        folder: must be there.
        examples: in their order.
        documents: by id.
        formats: as `parse_formats` returns them.
        system_prompt: of the chats.

    Returns:
        names of the files.

    Raises:
        Unavailable: Parquet is wanted and pyarrow is not installed.
    """
    files: dict[str, list[RaftExample]] = {}
    rows = {"raft": raft_row, "completion": completion_row}
    for split in SPLITS:
        files[split] = [example for example in examples if example.split == split]
    for name in rows:
        if name in formats:
            files[name] = list(examples)
    written = []
    for name, chosen in files.items():

        def made(name: str = name, chosen: list[RaftExample] = chosen) -> Iterator[dict[str, Any]]:
            for example in chosen:
                if name in rows:
                    yield rows[name](example, documents, system_prompt)
                else:
                    yield chat_row(example, documents, system_prompt).model_dump()

        write_jsonl(folder / f"{name}.jsonl", made())
        written.append(f"{name}.jsonl")
        if "parquet" in formats and chosen:
            _write_parquet(folder / f"{name}.parquet", made(), name)
            written.append(f"{name}.parquet")
    return written


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], kind: str) -> None:
    """Write rows in groups of `ROW_GROUP`, so that a large dataset needs little memory."""
    pyarrow = _pyarrow()
    text, nested = pyarrow.string(), pyarrow.list_(pyarrow.list_(pyarrow.string()))
    turn = pyarrow.struct([("role", text), ("content", text)])
    plain = dict.fromkeys(_TEXTS.get(kind, ()), text)
    if kind == "raft":
        plain["context"] = pyarrow.struct([("title", nested), ("sentences", nested)])
    columns = plain or {"messages": pyarrow.list_(turn)}
    schema = pyarrow.schema(list(columns.items()))
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        source = iter(rows)
        while group := list(islice(source, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Unavailable(
            "Parquet cannot be written: pyarrow is not installed.",
            cause=str(error),
            next_step="Run pip install 'forge-mcp[parquet]', or leave parquet out of --formats.",
        ) from error
    return pyarrow
