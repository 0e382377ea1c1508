"""The words of reasoning: what is seen in which document, every claim beside its quote.

The form is the specification's: "Looking at X, we see …. Comparing with Y, we see …."
"""

from __future__ import annotations

from collections.abc import Sequence

from forge_mcp.raft.facts import RELATED_KINDS
from forge_mcp.raft.phrases import fill, name_of, throwing
from forge_mcp.raft.quotes import call_line, declaration, evidence
from forge_mcp.raft.splits import draw
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, find_quote, parse_answer, quote, render_answer
from forge_mcp.schemas.raft_examples import Fact

# {n} the block's name, {f} its file, {q} the quotes.
OPENINGS = (
    "Looking at `{n}` in {f}, we see {q}",
    "In {f}, `{n}` has {q}",
    "The document of {f} shows `{n}` with {q}",
    "To answer this, look at `{n}` in {f}: there stands {q}",
)
# What the quote is, by kind: {p} is the fact's subject.
SEEN: dict[str, tuple[str, ...]] = {
    "signature": ("; that is its declaration.", ", which declares it."),
    "parameters": ("; its parameters are listed there.", ", which names what it takes."),
    "default": ("; so `{p}` has a default.", ", where `{p}` gets its default."),
    "annotation": ("; the type stands beside `{p}`.", ", which declares the type of `{p}`."),
    "return_annotation": ("; the return type stands there.", ", which declares what comes back."),
    "decorators": ("; that is applied to it.", " above its definition."),
    "raises": ("; nothing else is {thrown} in it.", ", and it {throws} nothing else itself."),
    "guard": ("; the condition stands before `{p}`.", ", so `{p}` depends on that condition."),
    "returns": ("; these are all its results.", ", and it returns nothing else."),
    "returns_when": ("; that is the case `{p}`.", ", which handles the case `{p}`."),
    "calls": ("; it calls nothing else.", ", and these are all its calls."),
    "bases": ("; its header names what it extends.", ", which says from what it inherits."),
    "methods": ("; these are defined in it.", ", and it defines no other."),
    "imports": ("; these are its imports.", ", and it imports nothing else."),
    "constant": ("; that sets `{p}`.", ", where `{p}` gets its value."),
    "location": ("; the document's first line says where that is.", ", and its place is given."),
    "purpose": ("; so says its documentation.", ", which tells what it is for."),
    "usage": ("; that is the call of `{p}`.", ", where `{p}` is called."),
}
_LINKS = {
    "callee": "Looking at `{n}` in {f}, we see {q}: it calls `{p}`.",
    "base": "Looking at `{n}` in {f}, we see {q}: it extends `{p}`.",
    "overrides": "Looking at `{n}` in {f}, we see {q}.",
    "callers": "Looking at `{n}` in {f}, we see {q}; that is what is called.",
    "tests": "Looking at `{n}` in {f}, we see {q}; that is what is tested.",
}
SECOND = ("Comparing with `{n}` in {f}, we see {q}", "And with `{n}` in {f}: {q}")
_CLOSINGS = {
    "overrides": ", which has the same name in the base class.",
    "callers": ", a call of it.",
    "tests": ", so the test uses it.",
}
# Closed-book rows have nothing to quote: they say where the answer stands.
RECALLED = (
    "`{n}` stands in {f}.",
    "This is about `{n}` in {f}.",
    "The repository defines `{n}` in {f}.",
)
RECALLED_MODULE = (
    "`{f}` is a file of the repository.",
    "This is about the file `{f}`.",
    "The repository has a file `{f}`.",
)
ABSENT = (
    "The documents show {d}; {s} is not among them.",
    "None of the documents shows {s}: they are about {d}.",
    "Looking for {s}, we find only {d}.",
)


def generate_reasoning(fact: Fact, oracles: Sequence[CodeBlock], variant: int = 0) -> str | None:
    """Reasoning that cites every oracle, or None where a quote cannot be verified.

    Every `##begin_quote##…##end_quote##` is a byte substring of an oracle as it is rendered.

    Args:
        fact: what is to be shown.
        oracles: the block that is asked about first.
        variant: which words are used.
    """
    related = fact.kind in RELATED_KINDS
    text = _several(fact, oracles, variant) if related else _single(fact, oracles[0], variant)
    if text is None:
        return None
    quotes = parse_answer(render_answer(text, "")).quotes
    return text if quotes and all(find_quote(quoted, oracles) for quoted in quotes) else None


def recalled(block: CodeBlock, variant: int) -> str:
    """The reasoning of a closed-book row."""
    templates = RECALLED_MODULE if block.block_type == "module" else RECALLED
    return fill(templates[variant % len(templates)], n=name_of(block), f=escape(block.path))


def absent_reasoning(symbol: str, shown: Sequence[str], variant: int, *, known: bool) -> str:
    """The reasoning of a row whose oracle is not shown.

    Args:
        symbol: what is asked about, as the question names it.
        shown: what the documents are about, named likewise.
        variant: which words are used.
        known: whether the answer follows all the same (mode memorise).
    """
    names = escape(listed(list(dict.fromkeys(shown))))
    text = fill(ABSENT[variant % len(ABSENT)], s=escape(symbol), d=names)
    return f"{text} It is known from the repository." if known else text


def listed(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def variant_of(fact: Fact, seed: int) -> int:
    """Which words the first row on a fact uses; the next row takes the next number."""
    return draw(seed, "words", fact.block, fact.kind, fact.subject) % 64


def _single(fact: Fact, block: CodeBlock, variant: int) -> str | None:
    quotes = evidence(fact, block)
    if not quotes:
        return None
    returned = fact.kind == "annotation" and fact.subject == "return"
    seen = SEEN["return_annotation" if returned else fact.kind]
    template = OPENINGS[variant % len(OPENINGS)] + seen[variant // len(OPENINGS) % 2]
    return _said(template, block, quotes, fact.subject)


def _several(fact: Fact, oracles: Sequence[CodeBlock], variant: int) -> str | None:
    block, others = oracles[0], oracles[1:]
    how, _, what = fact.kind.partition("_")
    callee = fact.subject.rpartition(".")[0] if fact.kind == "callee_default" else fact.subject
    asked = fact.subject.rpartition(".")[2] if fact.kind == "callee_default" else ""
    leading = call_line(callee, block) if how == "callee" else declaration(block)
    if leading is None:
        return None
    parts = [_said(_LINKS[how], block, [leading], callee)]
    for number, other in enumerate(others):
        if what:
            inner = Fact(kind=what, block=other.id, value=fact.value, subject=asked)
            quotes = evidence(inner, other)
            closing = SEEN[what][variant % 2]
        else:
            line = declaration(other) if how == "overrides" else call_line(block.name, other)
            quotes = [line] if line else []
            closing = _CLOSINGS[how]
        if not quotes:
            return None
        parts.append(_said(SECOND[min(number, 1)] + closing, other, quotes, asked))
    return " ".join(parts)


def _said(template: str, block: CodeBlock, quotes: Sequence[str], subject: str) -> str:
    """A template with what it says about a block."""
    throw, thrown = throwing(block.language)
    return fill(
        template,
        n=name_of(block),
        f=escape(block.path),
        q=listed([quote(text) for text in quotes]),
        p=escape(subject),
        throws=f"{throw}s",
        thrown=thrown,
    )
