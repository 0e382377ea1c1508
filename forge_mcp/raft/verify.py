"""Deriving a fact a second time, from the code itself, before it may be taught.

Nothing that mining noted is believed here, and no code is shared with the derivation: Python is
parsed with the standard library's `ast` (verify_python.py), JavaScript, TypeScript, Go and Java
with their grammars and walks of their own (verify_source.py), and in the other languages a value
must stand in the text in the form that its kind prescribes (verify_text.py). Lists are compared
whole: one item too few or too many makes a fact false.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from forge_mcp.raft import verify_python, verify_text
from forge_mcp.raft.explained import EXPLAINED, also_explains, check_explained
from forge_mcp.raft.kinds import LIMITS, RELATED_KINDS, fact_value, value_items
from forge_mcp.raft.verify_python import parse_block
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

TREES = frozenset({"javascript", "typescript", "tsx", "go", "java"})


class Verifier(Protocol):
    """What a module that reads some languages offers."""

    def states(self, fact: Fact, block: CodeBlock) -> bool:
        """Whether the fact of one document follows from the block's source."""

    def calls(self, block: CodeBlock, other: CodeBlock) -> bool:
        """Whether the block calls `other` by its name, and nothing else of that name."""

    def mentions(self, source: str, language: str, name: str) -> bool:
        """Whether code calls something of a name."""

    def bases(self, block: CodeBlock) -> list[str]:
        """What a class derives from, as it is written."""

    def overrides(self, block: CodeBlock) -> bool:
        """Whether a method's own code says that it overrides: `@Override`, `override`, `super`."""

    def parses(self, source: str, language: str, block_type: str) -> bool:
        """Whether a definition's source has no syntax error."""


def _verifier(language: str) -> Verifier:
    if language == "python":
        return verify_python
    if language in TREES:
        from forge_mcp.raft import verify_source  # loads grammars

        return verify_source
    return verify_text


def check(fact: Fact, oracles: Sequence[CodeBlock]) -> bool:
    """Whether `fact` follows from the source of `oracles`.

    Args:
        fact: of any kind of `KINDS` or `RELATED_KINDS`; False for any other.
        oracles: the block that the fact is about, then its callee, base, callers or test. For
            `code` the documents that the code was to be written from, or the block itself.
    """
    if not oracles:
        return False
    if fact.kind in LIMITS:
        items = value_items(fact)
        if not 0 < len(items) <= LIMITS[fact.kind] or fact.value != fact_value(fact.kind, items):
            return False
        if not fact.value:  # of a purpose or of code
            return False
    if fact.kind == "code":
        return _code(fact, oracles)
    if fact.block != oracles[0].id or len({oracle.id for oracle in oracles}) < len(oracles):
        return False
    if fact.kind == EXPLAINED:
        return check_explained(fact, oracles)
    if fact.kind in RELATED_KINDS:
        return _related(fact, oracles[0], oracles[1:])
    if len(oracles) != 1:
        return False
    if fact.kind == "location":
        return _location(fact, oracles[0])
    return _states(fact, oracles[0])


_KNOWN: dict[tuple[str, ...], bool] = {}  # what was found out about facts of one document
_MOST_KNOWN = 50_000


def _states(fact: Fact, block: CodeBlock) -> bool:
    """Whether a fact of one document holds; a block is asked about again for each caller."""
    asked = (fact.kind, fact.subject, fact.value)
    key = (*asked, block.language, block.block_type, block.name, block.source_code)
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = _verifier(block.language).states(fact, block)
        if len(_KNOWN) > _MOST_KNOWN:
            _KNOWN.clear()
    return found


def answers(fact: Fact, oracles: Sequence[CodeBlock], other: CodeBlock) -> bool:
    """Whether another block also answers the question that `fact` answers.

    It does where it holds or shares code of an oracle, has the content of one, or where it is a
    definition of the asked name about which the same statement holds. Of a test and of callers,
    where it is one more.
    """
    for oracle in oracles:
        same_code = other.path == oracle.path and (
            other.start_byte < oracle.end_byte and oracle.start_byte < other.end_byte
        )
        if other.id == oracle.id or other.content_hash == oracle.content_hash or same_code:
            return True
    if fact.kind == "code":
        return other.id == fact.block or fact.value.strip() in other.source_code
    if fact.kind == EXPLAINED:
        return also_explains(fact, other)
    if fact.kind in ("tests", "callers"):
        return _verifier(other.language).calls(other, oracles[0])
    subject = oracles[-1]
    if other.name != subject.name:
        return False
    if fact.kind == "overrides":
        return False  # the answer is a qualified name, which only its own block has
    kind = fact.kind.partition("_")[2] if fact.kind in RELATED_KINDS else fact.kind
    about = fact.subject
    if fact.kind in RELATED_KINDS:
        about = fact.subject.rpartition(".")[2] if kind == "default" else ""
    return check(Fact(kind=kind, block=other.id, value=fact.value, subject=about), [other])


def _location(fact: Fact, block: CodeBlock) -> bool:
    """The place is that of the block, and its text has as many lines as the place says.

    Where the last body was taken out of a class, its text ends before the class does.
    """
    last = block.file_line(block.source_code.rstrip("\n").count("\n"))
    place = f"`{block.path}:{block.start_line}-{block.end_line}`"
    ends = last <= block.end_line if block.metadata.get("skeleton") else last == block.end_line
    return fact.value == place and ends


def _code(fact: Fact, oracles: Sequence[CodeBlock]) -> bool:
    """The code is what its hash says, has no syntax error, and calls every document shown.

    None of the documents holds it: it is to be written, not copied.
    """
    language, code = oracles[0].language, fact.value
    if hashlib.sha256(code.encode()).hexdigest() != fact.subject:
        return False
    verifier = _verifier(language)
    if oracles[0].id == fact.block:
        whole = len(oracles) == 1 and oracles[0].source_code == code
        return whole and verifier.parses(code, language, oracles[0].block_type)
    for oracle in oracles:
        if oracle.id == fact.block or oracle.language != language or code in oracle.source_code:
            return False
    parsed = any(verifier.parses(code, language, kind) for kind in ("function", "method"))
    return parsed and all(verifier.mentions(code, language, oracle.name) for oracle in oracles)


def _related(fact: Fact, block: CodeBlock, others: Sequence[CodeBlock]) -> bool:
    if not others or any(other.language != block.language for other in others):
        return False
    if fact.kind == "callers":
        names = [other.qualified_name for other in others]
        return list(value_items(fact)) == names and all(
            _verifier(other.language).calls(other, block) for other in others
        )
    if len(others) != 1:
        return False
    other = others[0]
    if fact.kind == "tests":
        return fact.value == f"`{other.qualified_name}`" and _verifier(other.language).calls(
            other, block
        )
    if fact.kind == "overrides":
        return (
            fact.value == f"`{other.qualified_name}`"
            and fact.subject == other.name == block.name
            and block.block_type == other.block_type == "method"
            and (block.path, block.parent) != (other.path, other.parent)
            and _verifier(block.language).overrides(block)
        )
    how, _, kind = fact.kind.partition("_")
    name, _, parameter = fact.subject.partition(".")
    if name != other.name:
        return False
    if how == "base":
        if not _derives_from(block, other):
            return False
    elif not _verifier(block.language).calls(block, other):
        return False
    return check(Fact(kind=kind, block=other.id, value=fact.value, subject=parameter), [other])


def _derives_from(block: CodeBlock, other: CodeBlock) -> bool:
    """Whether a class has a single base, and that is called as `other` is, type arguments aside."""
    if other.block_type != "class" or block.id == other.id:
        return False
    named = _verifier(block.language).bases(block)
    return len(named) == 1 and re.split(r"[<\[]", named[0])[0].rpartition(".")[2] == other.name


__all__ = ["answers", "check", "parse_block"]
