"""A dataset: RAFT examples (arXiv 2403.10131), their facts, and preference pairs."""

from __future__ import annotations

from typing import Literal

from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.code_blocks import CodeBlock

Split = Literal["train", "valid", "test"]
Difficulty = Literal["easy", "medium", "hard"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
DIFFICULTIES: tuple[Difficulty, ...] = ("easy", "medium", "hard")


class Fact(Schema):
    """What an answer states, in a form that can be derived again from the code and compared.

    `subject` says which parameter, constant or callee of the block the value belongs to, where
    the kind needs it; `value` is the text that a true answer holds.
    """

    kind: str
    block: str
    value: str
    subject: str = ""


class RaftExample(Schema):
    """A question about the code, documents, and an answer that cites them.

    A row of `examples.jsonl`; documents are ids of rows of `documents.jsonl`.

    `oracle_absent`: the oracles are not shown, only the distractors. `closed_book`: no document is
    shown at all, and the answer is known from training; its oracles still say where it stands.
    `author`: "forge" where question and reasoning are ours, else the teacher that wrote them.
    """

    id: str
    question: str
    oracle_ids: list[str]
    distractor_ids: list[str]
    oracle_absent: bool = False
    closed_book: bool = False
    reasoning: str
    final_answer: str
    difficulty: Difficulty
    fact: Fact
    split: Split
    author: str = "forge"
    quality: float | None = None


class PreferencePair(Schema):
    """A true answer and the same answer with one fact made false: a row of `preferences.jsonl`."""

    prompt: str
    chosen: str
    rejected: str
    fact: Fact
    corruption: str


class Message(Schema):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRow(Schema):
    """A row of `train/valid/test.jsonl`, in the form that mlx-lm, TRL and Unsloth read."""

    messages: list[Message]


Document = CodeBlock
