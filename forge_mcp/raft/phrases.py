"""The words of questions and of reasoning: several phrasings a kind, one regular answer form."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forge_mcp.raft.facts import value_items
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, quote
from forge_mcp.schemas.raft_examples import Fact

MAX_QUOTE = 120  # characters of a line
MAX_HEADER = 200  # characters of a declaration that is written on several lines

# {s} is the symbol with its path where that is needed, {p} the fact's subject.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "signature": (
        "What is the signature of {s}?",
        "How is {s} declared?",
        "Give the signature of {s}.",
    ),
    "parameters": (
        "Which parameters does {s} take?",
        "List the parameters of {s}.",
        "What arguments can be passed to {s}?",
    ),
    "default": (
        "What is the default value of `{p}` in {s}?",
        "Which default does the parameter `{p}` of {s} have?",
        "When {s} is called without `{p}`, which value is used for it?",
    ),
    "annotation": (
        "How is the parameter `{p}` of {s} annotated?",
        "What is the declared type of `{p}` in {s}?",
        "Which type does {s} expect for `{p}`?",
    ),
    "return_annotation": (
        "What return type does {s} declare?",
        "How is the return value of {s} annotated?",
        "Which type is {s} declared to return?",
    ),
    "decorators": (
        "Which decorators does {s} have?",
        "How is {s} decorated?",
        "List the decorators of {s}.",
    ),
    "raises": (
        "Which exceptions does {s} raise?",
        "What exceptions might {s} raise itself?",
        "Which errors are raised in {s}?",
    ),
    "guard": (
        "When does {s} raise `{p}`?",
        "Under which condition does {s} raise `{p}`?",
        "What does {s} check before it raises `{p}`?",
    ),
    "returns": (
        "What does {s} return?",
        "What stands in the return statements of {s}?",
        "What is given back by {s}?",
    ),
    "calls": (
        "Which functions does {s} call?",
        "What does {s} call?",
        "What are the calls that {s} makes?",
    ),
    "bases": (
        "Which classes does {s} inherit from?",
        "What are the base classes of {s}?",
        "What does {s} extend?",
    ),
    "methods": (
        "Which methods does {s} define?",
        "List the methods of {s}.",
        "What methods can be found in {s}?",
    ),
    "imports": (
        "What does {s} import?",
        "Which modules are imported by {s}?",
        "List the imports of {s}.",
    ),
    "constant": (
        "What is the value of `{p}` in {s}?",
        "To what is `{p}` set in {s}?",
        "Which value does {s} give to `{p}`?",
    ),
    "location": (
        "Where is {s} defined?",
        "In which file and lines does {s} stand?",
        "Where can the definition of {s} be found?",
    ),
    "purpose": (
        "What is the purpose of {s}?",
        "What does {s} do?",
        "What is {s} for?",
    ),
    "callee_location": (
        "Where is the `{p}` that {s} calls defined?",
        "{s} calls `{p}`. In which file and lines does that stand?",
    ),
    "callee_signature": (
        "What is the signature of the `{p}` that {s} calls?",
        "{s} calls `{p}`. How is that declared?",
    ),
    "callee_raises": (
        "Which exceptions does the `{p}` that {s} calls raise?",
        "{s} calls `{p}`. Which exceptions might that raise?",
    ),
    "base_location": (
        "Where is the base class of {s} defined?",
        "In which file and lines does the class stand that {s} extends?",
    ),
}

REASONS: dict[str, str] = {
    "signature": "`{n}` is declared as {q}.",
    "parameters": "`{n}` is declared as {q}.",
    "default": "`{n}` declares {q}.",
    "annotation": "`{n}` declares {q}.",
    "decorators": "`{n}` is decorated with {q}.",
    "raises": "`{n}` has the statement {q}.",
    "guard": "`{n}` checks {q}.",
    "returns": "`{n}` has the statement {q}.",
    "calls": "`{n}` has the line {q}.",
    "bases": "The class begins with {q}.",
    "methods": "`{n}` defines {q}.",
    "imports": "The file has the line {q}.",
    "constant": "The file has the line {q}.",
    "location": "`{n}` is declared as {q}.",
    "purpose": "The documentation of `{n}` says {q}.",
}


def symbol(block: CodeBlock, *, unique: bool) -> str:
    """How a question names a block, so that it can be told whether a document is about it."""
    if block.block_type == "module":
        return f"`{block.path}`"
    return f"`{block.qualified_name}`" + ("" if unique else f" ({block.path})")


def question(fact: Fact, named: str, phrasing: int) -> str:
    """The question for a fact, in one of its phrasings (counted round)."""
    kind = fact.kind
    if kind == "annotation" and fact.subject == "return":
        kind = "return_annotation"
    templates = QUESTIONS[kind]
    text = templates[phrasing % len(templates)]
    return text.replace("{s}", named).replace("{p}", fact.subject)


def reasoning(fact: Fact, oracles: Sequence[CodeBlock]) -> str | None:
    """One or two sentences that cite the oracles; None where no line can be quoted.

    Every citation stands in an oracle's source as it is.
    """
    block = oracles[0]
    if len(oracles) == 1:
        cited = find_quote_for(fact, block)
        if cited is None:
            return None
        text = REASONS[fact.kind].replace("{n}", name_of(block)).replace("{q}", quote(cited))
        path = escape(block.path)
        return f"In {path}, {text}" if text.startswith("`") else f"In {path}: {text}"
    other = oracles[1]
    pattern = rf"\b{re.escape(other.name)}\s*\(" if fact.kind.startswith("callee") else None
    leading = _line(block, pattern, skip_header=True) if pattern else header(block)
    kind = fact.kind.partition("_")[2]
    cited = find_quote_for(Fact(kind=kind, block=other.id, value=fact.value), other)
    if leading is None or cited is None:
        return None
    verb = "calls" if pattern else "extends"
    tail = REASONS[kind].replace("{n}", name_of(other)).replace("{q}", quote(cited))
    return f"`{name_of(block)}` {verb} it in {quote(leading)}. In {escape(other.path)}, {tail}"


def name_of(block: CodeBlock) -> str:
    """The block's name in reasoning, made harmless: a file's name is repository text too."""
    return escape(block.path if block.block_type == "module" else block.qualified_name)


def find_quote_for(fact: Fact, block: CodeBlock) -> str | None:
    """The part of one line of `block` that shows the fact, or None.

    Only a short declaration is quoted over several lines.
    """
    items = value_items(fact)
    first = re.escape(items[0].splitlines()[0]) if items else ""
    subject = re.escape(fact.subject)
    whole = "\n" in block.signature and len(block.signature) <= MAX_HEADER
    if fact.kind in ("signature", "parameters") and whole and block.signature in block.source_code:
        return block.signature
    if fact.kind in ("signature", "parameters", "location", "bases"):
        return header(block)
    if fact.kind == "annotation" and fact.subject == "return":
        return _line(block, rf"(?:->|:|\)).*{first}") or _line(block, first) or header(block)
    patterns = {
        "default": rf"\b{subject}\b\s*(?:[?:].*?)?=\s*{first}",
        "annotation": rf"\b{subject}\b.*{first}|{first}\s+{subject}\b",
        "decorators": first,
        "raises": rf"\b(?:raise|throw)\b.*{first}|{first}",
        "guard": rf"\bif\s+{first}\s*:",
        "returns": rf"\breturn\b\s*\(?{first}",
        "calls": rf"(?<![\w.]){first}\s*\(",
        "methods": rf"\b{first}\s*[(<=:]",
        "imports": rf"\b(?:import|from|require)\b.*{first}|{first}",
        "constant": rf"\b{subject}\b.*=",
    }
    if fact.kind == "purpose":
        return _purpose_line(fact.value, block)
    return _line(block, patterns[fact.kind], skip_header=fact.kind == "calls")


def header(block: CodeBlock) -> str | None:
    """The line that declares a block, decorators and comments passed over."""
    if block.block_type == "module":
        return _line(block, r"\S")
    declared = block.signature.split("\n", 1)[0].strip()
    line = _line(block, re.escape(declared)) if declared else None
    return line or _line(block, rf"^(?!//|/\*|\*|#|@).*\b{re.escape(block.name)}\b")


def _line(block: CodeBlock, pattern: str, skip_header: bool = False) -> str | None:
    """The first line that matches, clipped around the match; None where none does."""
    declared = header(block) if skip_header else None
    for line in block.source_code.splitlines():
        text = line.strip()
        match = re.search(pattern, text)
        if match and text and text != declared:
            return clip(text, match.start(), match.end())
    return None


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


def _purpose_line(sentence: str, block: CodeBlock) -> str | None:
    """The first line of a docstring's first sentence, as it stands in the source."""
    for line in block.docstring.strip().splitlines()[:1]:
        text = line.strip()
        shown = sentence if text.startswith(sentence) else text
        shown = clip(shown, 0, 1) or ""
        if shown and sentence.startswith(shown) and shown in block.source_code:
            return shown
    return None


__all__ = [
    "MAX_QUOTE",
    "QUESTIONS",
    "clip",
    "find_quote_for",
    "header",
    "name_of",
    "question",
    "reasoning",
    "symbol",
]
