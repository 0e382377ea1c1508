"""An oracle's definitions against the miner's blocks, one by one."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from forge_mcp.schemas.code_blocks import CodeBlock
from oracles.gaps import Syntax, leftover

Verdict = Literal["missing", "wrong span", "wrong docstring", "extra"]
TRAILING = re.compile(rb"\s*[;,]\Z")


@dataclass(frozen=True, slots=True)
class Definition:
    """What an oracle says of a definition.

    Attributes:
        path: of its file, from the root, with forward slashes.
        kind: the oracle's own word.
        names: the names that are right for it; most have one.
        line: where it (or, for `to_name`, its name) stands, 1-based.
        start: byte offset of the same place.
        end: byte offset behind it, or None where the oracle knows only a line or nothing.
        end_line: 1-based and inclusive, or None where the oracle does not know it.
        to_name: `start` is where the name stands, not where the definition begins.
        docstring: None where the oracle does not tell.
    """

    path: str
    kind: str
    names: tuple[str, ...]
    line: int
    start: int
    end: int | None = None
    end_line: int | None = None
    to_name: bool = False
    docstring: str | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """One difference; `kind` groups those that look alike."""

    verdict: Verdict
    kind: str
    path: str
    line: int
    name: str
    detail: str = ""


@dataclass
class Comparison:
    """All differences, and how many definitions were equal."""

    expected: int = 0
    endless: int = 0  # of these: the oracle does not know where they end
    matched: int = 0
    misses: list[Miss] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Definitions that the miner has right, of those of the oracle."""
        return self.matched / self.expected if self.expected else 0.0

    def count(self, verdict: Verdict) -> int:
        """How many differences have this verdict."""
        return sum(miss.verdict == verdict for miss in self.misses)


def compare(
    expected: Iterable[Definition],
    blocks: Iterable[CodeBlock],
    sources: Mapping[str, bytes],
    syntax: Syntax | None,
) -> Comparison:
    """Hold the miner's blocks to an oracle's definitions.

    A definition is matched by one block of its file that has its name and its span. What is left
    over is paired by name and overlap, and is a wrong span; what has no partner is missing, or
    extra. Blocks of modules are no definitions.

    Args:
        expected: the oracle's.
        blocks: the miner's, rejected ones included.
        sources: path → the bytes that the offsets of both refer to.
        syntax: what a block may begin with; None where spans must be exactly equal.
    """
    definitions: dict[str, list[Definition]] = defaultdict(list)
    for definition in expected:
        definitions[definition.path].append(definition)
    mined: dict[str, list[CodeBlock]] = defaultdict(list)
    for block in blocks:
        if block.block_type != "module":
            mined[block.path].append(block)
    listed = [definition for found in definitions.values() for definition in found]
    endless = sum(d.end is None and d.end_line is None for d in listed)
    result = Comparison(expected=len(listed), endless=endless)
    for path in sorted(definitions.keys() | mined.keys()):
        _compare_file(result, definitions[path], mined[path], sources[path], syntax)
    return result


def _compare_file(
    result: Comparison,
    definitions: list[Definition],
    blocks: list[CodeBlock],
    source: bytes,
    syntax: Syntax | None,
) -> None:
    by_name: dict[str, list[CodeBlock]] = defaultdict(list)
    for block in blocks:
        by_name[plain_name(block.name)].append(block)
    used: set[int] = set()

    def free(definition: Definition) -> list[CodeBlock]:
        """Blocks of its name that no other definition has taken, the nearest first."""
        names = dict.fromkeys(plain_name(name) for name in definition.names)
        found = [b for name in names for b in by_name[name] if id(b) not in used]
        return sorted(found, key=lambda b: abs(b.start_byte - definition.start))

    unmatched = []
    for definition in definitions:
        near = (b for b in free(definition) if _overlap(definition, b))
        right = next((b for b in near if not span_fault(definition, b, source, syntax)), None)
        if right is None:
            unmatched.append(definition)
            continue
        used.add(id(right))
        if definition.docstring is not None and right.docstring != definition.docstring:
            detail = f"{right.docstring[:60]!r} instead of {definition.docstring[:60]!r}"
            result.misses.append(_miss("wrong docstring", definition, definition.kind, detail))
        else:
            result.matched += 1
    for definition in unmatched:
        closest = next((b for b in free(definition) if _overlap(definition, b)), None)
        if closest is not None:
            used.add(id(closest))
            fault, detail = span_fault(definition, closest, source, syntax) or ("", "")
            kind = f"{definition.kind}: {fault}"
            result.misses.append(_miss("wrong span", definition, kind, detail))
        else:
            kind = definition.kind if blocks else f"{definition.kind}, no block of its file"
            result.misses.append(_miss("missing", definition, kind))
    for block in blocks:
        if id(block) not in used:
            kind = block.metadata.get("label") or block.block_type
            result.misses.append(Miss("extra", kind, block.path, block.start_line, block.name))


def span_fault(
    definition: Definition, block: CodeBlock, source: bytes, syntax: Syntax | None
) -> tuple[str, str] | None:
    """(kind of the fault, what is seen) of a block's span; None where it is right."""
    if syntax is None:
        return _exact_fault(definition, block)
    first, last = _line(source, block.start_byte), _line(source, block.end_byte - 1)
    if (first, last) != (block.start_line, block.end_line):
        return "bytes and lines differ", f"bytes say lines {first} to {last}"
    if block.start_byte > definition.start:
        detail = f"block from line {block.start_line}, definition from line {definition.line}"
        return "begins late", detail
    if definition.end is not None:
        wanted, got = _end(source, definition.end), _end(source, block.end_byte)
        if wanted != got:
            where = "late" if got > wanted else "early"
            return f"ends {where}", f"{source[min(wanted, got) : max(wanted, got)][:60]!r}"
    elif definition.end_line is not None and definition.end_line != block.end_line:
        where = "late" if block.end_line > definition.end_line else "early"
        return f"ends {where}", f"line {block.end_line} instead of {definition.end_line}"
    gap = source[block.start_byte : definition.start].decode("utf-8", errors="replace")
    if rest := leftover(gap, syntax, definition.to_name):
        return "begins early", f"before it stands: {rest}"
    return None


def _exact_fault(definition: Definition, block: CodeBlock) -> tuple[str, str] | None:
    wanted = (definition.start, definition.end, definition.line, definition.end_line)
    got = (block.start_byte, block.end_byte, block.start_line, block.end_line)
    names = ("first byte", "last byte", "first line", "last line")
    wrong = [name for name, a, b in zip(names, wanted, got, strict=True) if a != b]
    return (", ".join(wrong), f"{got} instead of {wanted}") if wrong else None


def _overlap(definition: Definition, block: CodeBlock) -> bool:
    """Whether a block may be meant for a definition of the same name."""
    if definition.end is not None:
        return block.start_byte < definition.end and definition.start < block.end_byte
    return block.start_line <= definition.line <= block.end_line


@lru_cache(maxsize=1)
def _line_starts(source: bytes) -> list[int]:
    return [0, *(match.end() for match in re.finditer(b"\n", source))]


def _line(source: bytes, offset: int) -> int:
    return bisect_right(_line_starts(source), offset)


def _end(source: bytes, end: int) -> int:
    """An end without a `;` or `,` that one of the two counts in."""
    tail = source[max(0, end - 40) : end]
    found = TRAILING.search(tail)
    return end - (len(found.group()) if found else 0)


def _miss(verdict: Verdict, definition: Definition, kind: str, detail: str = "") -> Miss:
    return Miss(verdict, kind, definition.path, definition.line, definition.names[0], detail)


def plain_name(name: str) -> str:
    """A name without quotes and white space, which oracles write differently."""
    return re.sub(r"\s+", "", name).strip("'\"`")
