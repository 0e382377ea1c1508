"""What the tests of teachers share: a small shop, its dataset, and a good answer."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from raft_blocks import SHOP, blocks_of

from forge_mcp.raft import Dataset, build_dataset
from forge_mcp.raft.authored import Ground
from forge_mcp.raft.explained import WRITTEN_KINDS
from forge_mcp.raft.teacher import NEW, WORDS
from forge_mcp.raft.written import Subject, Written
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import TeacherSettings, load_settings

ADD = "shop/cart.py::Cart.add"
KEY = "sk-test-of-a-key"


def settings(**changed: Any) -> TeacherSettings:
    usual = load_settings().teacher
    quick = {"timeout_seconds": 5.0, "retries": 0, "max_wait_seconds": 2.0}
    return usual.model_copy(update=quick | changed)


@cache
def shop() -> Dataset:
    return build_dataset(blocks_of(SHOP), load_settings().raft)


def ground() -> Ground:
    dataset = shop()
    return Ground(dataset.examples, dataset.documents, load_settings().raft)


@cache
def add_block() -> CodeBlock:
    return next(block for block in blocks_of(SHOP) if block.id == ADD)


def subject(ambiguous: bool = False) -> Subject:
    return Subject(add_block(), ambiguous)


GOOD = Written(
    kind="why",
    question="Why does `Cart.add` call `self.check_room` before it extends the list?",
    quote="self.check_room(count)",
    reasoning="The call stands before the line that extends the list of items.",
    answer="So that no item is put into the cart when there is no room for the whole count.",
)


def good_teacher(user: str, body: dict[str, Any]) -> str:
    """Plays a capable model: reads the prompt as a model would, and answers in form."""
    source = user.split("\n", 1)[1].split("\n</DOCUMENT>")[0]
    if WORDS in user:
        questions = re.findall(r"^(\d+)\. (.*)$", user, flags=re.MULTILINE)
        rows: list[dict[str, Any]] = [
            {"number": int(number), "question": f"Please tell me: {text.rstrip('.?').lower()}?"}
            if "`" not in text
            else {"number": int(number), "question": f"Tell me, {text.rstrip('.?')}?"}
            for number, text in questions
        ]
        return json.dumps({WORDS: rows})
    symbol = re.findall(r"questions about (`[^`]+`(?: \([^)]*\))?)", user)[0]
    line = next(text.strip() for text in source.splitlines()[::-1] if len(text.strip()) >= 12)
    kinds = re.findall(r"^- (\w+): ", user.split("with their answers:")[1], flags=re.MULTILINE)
    word = next(iter(re.findall(r"[a-z]{3,}", line)))
    return json.dumps({
        NEW: [
            {
                "kind": kind,
                "question": f"Seen as a matter of {kind}, what is there to say of {symbol}?",
                "quote": line,
                "reasoning": f"The line shows it, see the word {word}.",
                "answer": f"As a matter of {kind} it has to do with {word} and little else.",
            }
            for kind in [name for name in kinds if name in WRITTEN_KINDS]
        ]
    })  # fmt: skip
