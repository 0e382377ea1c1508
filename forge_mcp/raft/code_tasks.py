"""Code-writing rows: a header with its documentation is given, the whole definition is asked for.

The documents beside it are what the code calls, so that it can be written from them; where it
calls nothing of the repository the row is closed-book. The block itself is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from forge_mcp.raft.documents import overlap
from forge_mcp.raft.facts import derive_kind
from forge_mcp.raft.pairs import QAPair
from forge_mcp.raft.phrases import CorpusNames, name_of, question
from forge_mcp.raft.quotes import declaration
from forge_mcp.raft.reasoning import listed, variant_of
from forge_mcp.raft.scan import closing, mask
from forge_mcp.raft.verify import check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, find_quote, quote
from forge_mcp.schemas.raft_examples import Fact

MAX_ANSWER = 1_200  # characters of a definition that is asked for
MIN_BODY = 24  # characters that are to be written; less is no task
MAX_SHOWN = 3  # documents to write it from
MAX_DOCSTRING = 600
# From the colon of a Python header to the end of its docstring.
_DOCUMENTED = re.compile(
    r":(?:\s|\#[^\n]*)*[rRuU]?"
    r"(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}"
    r"|\"(?!\"\")(?:\\.|[^\"\\\n])*\"|'(?!'')(?:\\.|[^'\\\n])*')",
    re.DOTALL,
)


def code_pair(
    block: CodeBlock,
    callees: Sequence[CodeBlock],
    names: CorpusNames,
    seed: int,
    *,
    documented: bool = True,
) -> QAPair | None:
    """The code-writing question on a block, or None where it makes no good one.

    Args:
        block: a function or method.
        callees: blocks of its split that it calls; the first ones are its oracles.
        names: of the whole corpus.
        seed: of every draw.
        documented: whether it must have a docstring; training never asks for what has none.
    """
    facts = derive_kind(block, "code")
    enough = MAX_DOCSTRING >= len(block.docstring) >= documented
    start = stub(block, documented=documented)
    if not facts or not enough or not start or names.ambiguous(block):
        return None
    fact = facts[0]
    body = len(indentation(block) + fact.value) - len(start)
    # What would be escaped in a prompt would be learnt as code with the backslash.
    if len(fact.value) > MAX_ANSWER or body < MIN_BODY or "```" in fact.value:
        return None
    if escape(fact.value) != fact.value or not check(fact, [block]):
        return None
    apart = [other for other in callees if not overlap(other, block)]
    oracles = [other for other in apart if check(fact, [other])][:MAX_SHOWN]
    variant = variant_of(fact, seed)
    named = names.symbol(block)
    reasoning = _reasoning(block, oracles)
    if reasoning is None:
        return None
    return QAPair(
        asking(fact, block, named, variant, start),
        fact,
        tuple(oracles) or (block,),
        reasoning,
        fenced(block),
        named,
        variant,
        closed_book=not oracles,
    )


def asking(fact: Fact, block: CodeBlock, named: str, phrasing: int, start: str) -> str:
    """The question: what is wanted, where it belongs, and how it begins."""
    place = "" if named.endswith(")") else f" ({block.path})"
    text = question(fact, f"{named}{place}", phrasing, block.language)
    return f"{text}\n{fence(start, block.language)}"


def stub(block: CodeBlock, *, documented: bool = True) -> str:
    """How a definition begins, byte for byte: what stands above it, its header, its documentation.

    It is the beginning of what `fenced` holds; '' where its end cannot be told. A Python function
    without a docstring has one only where it need not be `documented`.
    """
    source = block.source_code
    masked = mask(source, block.language)
    if block.language == "python":
        opened = re.search(rf"\bdef\s+{re.escape(block.name)}\b[^(]*\(", masked)
        end = closing(masked, opened.end() - 1) + 1 if opened else 0
        colon = masked.find(":", end) if end else -1
        told = colon >= 0 and (documented or block.docstring)
        found = _DOCUMENTED.match(source, colon) if told else None
        until = found.end() if found else 0 if documented else colon + 1
        return indentation(block) + source[:until] if until else ""
    at = source.find(block.signature)
    while at >= 0 and masked[at : at + 1] != source[at : at + 1]:  # a comment holds it too
        at = source.find(block.signature, at + 1)
    return indentation(block) + source[: at + len(block.signature)] if at >= 0 else ""


def fenced(block: CodeBlock) -> str:
    """The whole definition as it stands in its file, its first line indented as there."""
    return fence(indentation(block) + block.source_code, block.language)


def fence(code: str, language: str) -> str:
    """Code in a Markdown fence."""
    return f"```{language}\n{code}\n```"


def indentation(block: CodeBlock) -> str:
    """What stands before the first line of a block in its file; the block begins behind it."""
    lines = block.source_code.split("\n")
    if len(lines) == 1:
        return ""
    if block.language != "python":  # the closing brace or `end` stands below the first line
        return lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]
    at = block.source_code.find(block.signature)
    below = block.source_code[at + len(block.signature) :].split("\n")[1:]
    body = next((line for line in below if line.strip()), "")
    margin = body[: len(body) - len(body.lstrip())]
    depth = block.qualified_name.count(".")
    return margin[: len(margin) * depth // (depth + 1)]


def _reasoning(block: CodeBlock, oracles: Sequence[CodeBlock]) -> str | None:
    """What the definition is written from, every document cited; None where one cannot be."""
    place = f"`{name_of(block)}` belongs to {escape(block.path)}"
    if not oracles:
        return f"{place} and calls nothing else of the repository."
    lines = [declaration(other) for other in oracles]
    if not all(line and find_quote(escape(line), oracles) for line in lines):
        return None
    seen = [
        f"`{name_of(o)}` with {quote(line or '')}" for o, line in zip(oracles, lines, strict=True)
    ]
    return f"{place}. It calls what the documents show: {listed(seen)}."
