"""The closed set of fact kinds, and the text of a fact's value.

A fact is one true statement about one definition: its kind, which part of the block it is about
(`subject`: a parameter, an exception, a callee, a condition), and its value. The value is also
the final answer's text: code items in backticks joined by commas; one sentence for a purpose;
the whole definition for code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

MAX_VALUE = 180  # characters of a value
MAX_SUBJECT = 120
MAX_CODE = 1_500  # characters of a definition that is asked for

USAGE = range(6, 121)  # characters of a call expression

FUNCTIONS = ("function", "method")
SCRIPTS = frozenset({"javascript", "typescript", "tsx"})
BRACES = SCRIPTS | {"go", "java"}
DEEP = BRACES | {"python"}  # languages of which every kind is derived

Items = tuple[str, ...]
Derived = Iterator[tuple[str, Items]]  # (subject, items) of the facts of one kind

# kind: the most items that one answer may list
KINDS: dict[str, int] = {
    "signature": 1,
    "parameters": 8,
    "default": 1,
    "annotation": 1,
    "decorators": 4,
    "raises": 5,
    "guard": 1,
    "returns": 3,
    "returns_when": 1,
    "calls": 6,
    "bases": 4,
    "methods": 8,
    "imports": 6,
    "constant": 1,
    "location": 1,
    "purpose": 1,
    "usage": 1,
    "code": 1,
}
# Facts that only several documents together give; the leading one is the block asked about.
RELATED: dict[str, int] = {
    "callee_location": 1,
    "callee_signature": 1,
    "callee_raises": 5,
    "callee_default": 1,
    "callee_purpose": 1,
    "base_location": 1,
    "overrides": 1,
    "callers": 2,
    "tests": 1,
}
RELATED_KINDS = tuple(RELATED)
LIMITS = {**KINDS, **RELATED}
_PLAIN = frozenset({"purpose", "callee_purpose", "code", "explained"})


def fact_value(kind: str, items: Items) -> str:
    """The text of a value: code items in backticks, a purpose or a definition as it is."""
    return items[0] if kind in _PLAIN else ", ".join(f"`{item}`" for item in items)


def value_items(fact: Fact) -> Items:
    """The items of a fact's value; inverse of `fact_value`."""
    if fact.kind in _PLAIN:
        return (fact.value,)
    return tuple(re.findall(r"`([^`]*)`", fact.value))


def make_fact(kind: str, block: CodeBlock, items: Items, subject: str = "") -> Fact | None:
    """A fact, or None where the items do not fit into one short line (code: into `MAX_CODE`)."""
    if not items or len(items) > LIMITS[kind] or not all(item.strip() for item in items):
        return None
    value = fact_value(kind, items)
    if kind == "code":
        return Fact(kind=kind, block=block.id, value=value, subject=subject)
    if kind not in _PLAIN and any("`" in item for item in items):
        return None
    if len(value) > MAX_VALUE or len(subject) > MAX_SUBJECT:
        return None
    if "\n" in value or "\r" in value or "\n" in subject or "`" in subject:
        return None
    return Fact(kind=kind, block=block.id, value=value, subject=subject)


def location(block: CodeBlock) -> str:
    """Where a block stands, e.g. 'src/app.py:10-24'."""
    return f"{block.path}:{block.start_line}-{block.end_line}"


def texts(block: CodeBlock, key: str) -> list[str]:
    """A list of texts that mining noted under a key."""
    return [str(text).strip() for text in block.metadata.get(key) or []]


def unique(found: Sequence[str]) -> Items:
    """Each text once, in order."""
    return tuple(dict.fromkeys(found))
