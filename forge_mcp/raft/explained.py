"""The one kind of fact that nobody derives: an explanation, and the line of code it rests on.

Why code is as it is, or how it could be extended, stands in no syntax tree; a teacher or an agent
writes it. What can be checked is what it rests on: `value` is a verbatim part of the block, and
`subject` is what kind of question was answered (`WRITTEN_KINDS`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

EXPLAINED = "explained"

# The kinds of questions that need an author, and what they ask for.
WRITTEN_KINDS: dict[str, str] = {
    "why": "why the code is written as it is: a check, an order, a data structure, a call",
    "how": "how it works, step by step",
    "edge_case": "what it does with an unusual input or state that the code visibly handles",
    "usage": "how, when and with what it is called",
    "extend": "how it could be extended to meet a small new requirement that the question states",
}

MIN_SUPPORT, MAX_SUPPORT = 10, 400  # characters of the code that an explanation rests on
MAX_SUPPORT_LINES = 6


def supports(text: str, block: CodeBlock) -> str:
    """Why `text` cannot be what an explanation of `block` rests on; "" where it can.

    It must be a verbatim part of the block, long enough to say something, short enough to point
    at one place.
    """
    if text not in block.source_code:
        return "it is no verbatim part of the code"
    stripped = text.strip()
    if len(stripped) < MIN_SUPPORT or not re.search(r"[^\W\d_]{3}", stripped):
        return f"it is too short to show anything ({MIN_SUPPORT} characters are needed)"
    if len(text) > MAX_SUPPORT or text.count("\n") >= MAX_SUPPORT_LINES:
        return f"it is longer than {MAX_SUPPORT} characters or {MAX_SUPPORT_LINES} lines"
    return ""


def check_explained(fact: Fact, oracles: Sequence[CodeBlock]) -> bool:
    """Whether what an explanation rests on stands in its one oracle, the block that it is about."""
    return (
        fact.kind == EXPLAINED
        and fact.subject in WRITTEN_KINDS
        and len(oracles) == 1
        and oracles[0].id == fact.block
        and not supports(fact.value, oracles[0])
    )


def also_explains(fact: Fact, other: CodeBlock) -> bool:
    """Whether another block holds the very code that an explanation rests on."""
    return _words(fact.value) in _words(other.source_code)


def _words(code: str) -> str:
    words = " ".join(re.findall(r"[^\W_]+|[^\w\s]", code))
    return f" {words} "
