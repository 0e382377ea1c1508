"""Which part of a document shows a fact: every quote is a byte substring of the block's source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from forge_mcp.raft.facts import value_items
from forge_mcp.raft.scan import mask
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

MAX_QUOTE = 120  # characters of a line
MAX_PASSAGE = 240  # characters of a declaration, or of a condition with what it guards
WHOLE_LINES = 3  # longer lists are quoted item by item, not line by line


def evidence(fact: Fact, block: CodeBlock) -> list[str]:
    """The parts of `block` that show a fact of one document; empty where none can be quoted.

    Lists of up to `WHOLE_LINES` items are shown by the lines they stand on, longer ones by the
    items themselves. Where one item cannot be found, nothing is returned.
    """
    items = value_items(fact)
    kind = fact.kind
    if kind == "purpose":
        found = purpose_line(fact.value, block)
        return [found] if found else []
    if kind in ("signature", "location", "bases", "overrides"):
        return [line] if (line := declaration(block)) else []
    if kind == "parameters":
        line = declaration(block)
        if line and all(item in line for item in items):
            return [line]
    if kind in ("guard", "returns_when"):
        return _guarded(fact, items[0], block)
    return _listed(fact, items, block)


def call_line(name: str, block: CodeBlock) -> str | None:
    """The line of `block`, below its header, that calls `name`; else one that names it."""
    short = re.split(r"\W+", name)[-1]
    below = _body(block)
    for text, follows in ((name, "(<"), (short, "(<"), (short, "")):
        for start, end in _found(block, text, follows, below, member=True):
            return _line(block.source_code, start, end)
    return None


def header(block: CodeBlock) -> str | None:
    """The line that declares a block, decorators and comments passed over."""
    source = block.source_code
    if block.block_type == "module":
        found = re.search(r"\S[^\n]*", source)
        return clip(found.group().strip(), 0, 1) if found else None
    first = block.signature.split("\n", 1)[0].strip()
    for text in (first, block.name):
        for start, _ in _found(block, text):
            return _line(source, start, start + 1)
    return None


def declaration(block: CodeBlock) -> str | None:
    """The declaration: whole where it is short, else the beginning of its first line."""
    whole = block.signature.strip()
    line = header(block)
    if whole and len(whole) <= MAX_PASSAGE and whole in block.source_code:
        return line if line and whole in line else whole
    return line


def clip(text: str, start: int, end: int) -> str | None:
    """At most `MAX_QUOTE` characters of a line that hold [start, end), cut between words."""
    if len(text) <= MAX_QUOTE:
        return text
    if end - start > MAX_QUOTE:
        return None
    left = 0 if end <= MAX_QUOTE else start
    cut = text[left : left + MAX_QUOTE]
    if left + MAX_QUOTE < len(text):
        shorter = re.sub(r"[\w.]+$", "", cut)
        cut = shorter if len(shorter) >= end - left else cut
    return cut.strip()


def loosely(code: str) -> str:
    """A pattern for code that was put on one line: white space and trailing commas may differ."""
    parts: list[str] = []
    for space, word, sign in re.findall(r"(\s+)|(\w+)|([^\w\s])", code.strip()):
        if space:
            parts.append(r"\s+" if parts and parts[-1] != r"\s*" else "")
        elif word:
            parts.append(word)
        else:
            comma = ",?" if sign in ")]}" else ""
            if parts and parts[-1] == r"\s+":
                parts[-1] = r"\s*"
            parts += [r"\s*" if parts and parts[-1] != r"\s*" else "", comma]
            parts += [r"\s*" if comma else "", re.escape(sign), r"\s*"]
    return "".join(parts).removesuffix(r"\s*")


def purpose_line(sentence: str, block: CodeBlock) -> str | None:
    """A docstring's first sentence as it stands in the source, or its first line."""
    if sentence in block.source_code:
        return sentence
    first = block.docstring.strip().split("\n", 1)[0].strip()
    shown = sentence if first.startswith(sentence) else clip(first, 0, 1) or ""
    return shown if shown and sentence.startswith(shown) and shown in block.source_code else None


# -- where a kind's items stand ----------------------------------------------------------------


def _before(item: str) -> str:
    """A pattern for what does not stand before an item: it is no part of a longer name."""
    return r"(?<![\w$])(?<![\w)\]?]\.)" if re.match(r"[\w$]", item) else ""


def _default(fact: Fact, item: str, block: CodeBlock) -> str:
    subject = _itself(fact, fact.subject, block)
    return rf"{subject}(?![\w$])(?:[^=,]*|[^\n]*?)=\s*{loosely(item)}"


def _annotation(fact: Fact, item: str, block: CodeBlock) -> str:
    declared = _itself(fact, item, block)
    if fact.subject == "return":
        name = re.escape(block.name)
        return rf"(?:->|\)\s*:?)\s*{declared}|{declared}\s+{name}\b|{declared}(?=[^\n]*\b{name}\b)"
    subject = _itself(fact, fact.subject, block)
    between = r"[\s:?*&.!]{0,6}"
    return rf"{subject}{between}{declared}|{declared}{between}{subject}(?![\w$])"


def _raises(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"\b(?:raise|throws?|panic|return)\b[^\n;]*?{_before(item)}{loosely(item)}\b"


def _returns(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"(?:\breturn\b|=>)\s*\(?\s*{loosely(item)}"


def _calls(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"{_before(item)}{loosely(item)}\s*[(<!?]"


def _methods(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"(?:\b(?:async\s+)?(?:def|func|fun|fn)\s+)?\b{re.escape(item)}\s*[(<=:]"


def _imports(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"\b(?:import|from|require|use|include)\b[^\n]*?{_before(item)}{re.escape(item)}"


def _constant(fact: Fact, item: str, block: CodeBlock) -> str:
    return rf"\b{re.escape(fact.subject)}\b[^=\n]*?=\s*{loosely(item)}"


def _itself(fact: Fact, item: str, block: CodeBlock) -> str:
    return f"{_before(item)}{loosely(item)}"


_PATTERNS = {
    "parameters": _itself,
    "default": _default,
    "annotation": _annotation,
    "decorators": _itself,
    "raises": _raises,
    "returns": _returns,
    "calls": _calls,
    "methods": _methods,
    "imports": _imports,
    "constant": _constant,
    "usage": _itself,
}
# How most items stand, {i} with {s}, the fact's subject: found without a pattern, much faster.
_PLAIN: dict[str, tuple[str, ...]] = {
    "parameters": ("{i}",),
    "default": ("{s}={i}", "{s} = {i}"),
    "annotation": ("{s}: {i}",),
    "decorators": ("{i}",),
    "raises": ("raise {i}", "throw new {i}"),
    "returns": ("return {i}",),
    "calls": ("{i}",),
    "methods": ("def {i}",),
    "imports": ("import {i}", "from {i}"),
    "constant": ("{s} = {i}",),
    "usage": ("{i}",),
}
_FOLLOWS = {"calls": "(", "methods": "("}

# -- finding them ------------------------------------------------------------------------------


def _places(block: CodeBlock, pattern: str, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Where a pattern stands in the code, comments and strings passed over, in order."""
    masked = mask(block.source_code, block.language)
    for match in re.compile(pattern).finditer(_code(block.source_code, masked), begin):
        start = match.start()
        first = block.source_code[start : start + 1]
        if first in ('"', "'", "`") or masked[start : start + 1] == first:
            yield match.span()


def _found(
    block: CodeBlock, text: str, follows: str = "", begin: int = 0, *, member: bool = False
) -> Iterator[tuple[int, int]]:
    """Where a text stands verbatim in the code, one of `follows` behind it.

    What begins with a name must be no part of a longer one; of a dotted one only as `member`.
    """
    source, masked = block.source_code, mask(block.source_code, block.language)
    name = text[:1].isalnum() or text[:1] in "_$"
    longer = ("_", "$") if member else ("_", "$", ".")
    at = source.find(text, begin) if text else -1
    while at >= 0:
        end = at + len(text)
        before, behind = source[at - 1 : at], source[end : end + 1]
        whole = not name or not (before.isalnum() or before in longer)
        ends = behind in follows if follows else not (behind.isalnum() or behind == "_")
        if whole and ends and (masked[at] == source[at] or source[at] in "\"'`"):
            yield at, end
        at = source.find(text, at + 1)


@lru_cache(maxsize=16)
def _code(source: str, masked: str) -> str:
    """The source with its comments and the later lines of long strings blanked."""
    return "".join(
        char if found != " " or char.isspace() else " "
        for char, found in zip(source, masked, strict=True)
    )


def _body(block: CodeBlock) -> int:
    """Where the code below the declaration begins."""
    at = block.source_code.find(block.signature) if block.signature else -1
    return at + len(block.signature) if at >= 0 else 0


def _listed(fact: Fact, items: tuple[str, ...], block: CodeBlock) -> list[str]:
    """A quote for every item, each once; empty where one of them cannot be found."""
    spans = [_place(fact, item, block) for item in items]
    quotes: list[str] = []
    for span in spans:
        if span is None:
            return []
        whole = len(spans) <= WHOLE_LINES
        shown = _line(block.source_code, *span) if whole else block.source_code[slice(*span)]
        if shown is None or not shown.strip() or len(shown) > MAX_PASSAGE:
            return []
        quotes.append(shown)
    return [q for q in dict.fromkeys(quotes) if not any(q != o and q in o for o in quotes)]


def _place(fact: Fact, item: str, block: CodeBlock) -> tuple[int, int] | None:
    """Where an item stands: in the header or, for what is done, below it if it can."""
    below = _body(block)
    declared = fact.kind in ("parameters", "default", "annotation")
    first = 0 if declared else below
    for template in _PLAIN[fact.kind]:
        text = template.replace("{s}", fact.subject).replace("{i}", item)
        for span in _found(block, text, _FOLLOWS.get(fact.kind, ""), first):
            if not declared or span[1] <= below:
                return span
    pattern = _PATTERNS[fact.kind](fact, item, block)
    for begin in dict.fromkeys((first, 0)):
        for span in _places(block, pattern, begin):
            if not declared or span[1] <= below or not below:
                return span
    return None


def _guarded(fact: Fact, item: str, block: CodeBlock) -> list[str]:
    """A condition together with the statement that it guards, where both are near."""
    condition, then = (item, fact.subject) if fact.kind == "guard" else (fact.subject, item)
    spans = list(_found(block, f"if {condition}"))
    if not spans:
        spans = list(_places(block, rf"\bif\b\s*\(?\s*{loosely(condition)}"))
    if fact.kind == "returns_when" and len(spans) > 1:
        return []  # the case alone does not say which of them is meant
    for start, end in spans:
        after = next(_found(block, then, begin=end), None)
        if after is None:
            after = next(_places(block, f"{_before(then)}{loosely(then)}", end), None)
        shown = _line(block.source_code, start, after[1]) if after is not None else None
        if shown:
            return [shown]
    return []


def _line(source: str, start: int, end: int) -> str | None:
    """The line or lines of a span, clipped around it; None where they are too long."""
    first = source.rfind("\n", 0, start) + 1
    last = source.find("\n", end)
    text = source[first : last if last >= 0 else len(source)]
    if "\n" in source[start:end]:
        whole = text.strip()
        passage = whole if len(whole) <= MAX_PASSAGE else source[start:end]
        return passage if len(passage) <= MAX_PASSAGE else None
    indent = len(text) - len(text.lstrip())
    shown = clip(text.strip(), start - first - indent, end - first - indent)
    return shown or (source[start:end] if end - start <= MAX_PASSAGE else None)
