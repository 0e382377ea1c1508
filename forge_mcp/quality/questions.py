"""Whether a question asks for what its answer states: subject, kind, and nothing given away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from forge_mcp.quality.texts import is_cut, is_sentence, prose, spans
from forge_mcp.raft.explained import EXPLAINED
from forge_mcp.raft.facts import RELATED_KINDS, value_items
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import RaftExample

MIN_QUESTION, MAX_QUESTION = 10, 2_400  # characters; a code task holds signature and docstring
CODE_KINDS = frozenset({"code", "usage"})  # what they ask for is written, not looked up

# Beginnings of words, one of which a question of the kind has outside of names and code.
_ASKING = {
    "signature": "signature|declar|defin|header|prototype|look",
    "parameters": "param|argument|accept|take|input|pass|receiv",
    "default": "default|omit|without|leav|left|not given|value|unless|missing|fall",
    "annotation": "type|annotat|kind of value|expect",
    "decorators": "decorat|annotat|wrap|mark|written|above",
    "raises": "rais|throw|exception|error|fail|panic|catch",
    "guard": "when|condition|check|rais|throw|why|handle|trigger|cause|make|reject|refus|case|fail",
    "returns": "return|giv|result|produc|yield|output|come|back",
    "returns_when": "return|giv|result|produc|happen|handl|when|if|case|back|output",
    "calls": "call|invok|use|depend|rel|function",
    "bases": "inherit|base|parent|extend|super|subclass|deriv|implement|descend|ancestor",
    "methods": "method|function|member|defin|operation|offer|provid",
    "imports": "import|depend|module|package|use|rel|need",
    "constant": "value|constant|set|equal|assign|defin|hold|stand",
    "location": "where|file|line|locat|stand|find|found|path|place",
    "purpose": "purpose|do|for|why|what|descri|document|responsib|expla|mean|help|role|task",
    "code": "code|complet|writ|implement|giv|body|fill|finish",
    "usage": "us|call|invo|writ|show|complet|express",
    "overrides": "overrid|redefin|replac|base|inherit|super|parent|in place|instead",
    "callers": "call|use|depend|invok|who|where",
    "tests": "test|exercis|cover|verif|check",
}
_PLACE = re.compile(r"\S*/\S*|\S+\.\w+")  # a path, a dotted name
# Words that a question about a purpose has only where it asks for something else.
_OTHER_THAN_PURPOSE = re.compile(
    r"\b(?:exceptions?|raises?|throws?|defaults?|decorat\w*|signature|parameters?|arguments?"
    r"|annotat\w*|imports?|overrid\w*|inherits?|callers?|return type|which (?:file|lines?))\b"
)


def question_faults(
    example: RaftExample, block: CodeBlock, others: list[CodeBlock]
) -> Iterator[str]:
    """What is wrong with the question of a row.

    Args:
        example: the row.
        block: the definition that its fact is about.
        others: its other oracles.
    """
    text, fact = example.question.strip(), example.fact
    if not text:
        yield "empty_text: the question is empty"
        return
    if not MIN_QUESTION <= len(text) <= MAX_QUESTION:
        yield f"question_length: {len(text)} characters"
    if not is_sentence(text):
        yield f"garbled_text: the question {text[:60]!r} is no sentence"
    elif is_cut(text) or (text.endswith("`") and not text.endswith("```")):
        yield f"cut_text: the question ends in {text[-20:]!r}"
    missing = _unnamed(example, text, block)
    if missing:
        yield f"unnamed_subject: the question does not name {missing}"
    if not asks_for(fact.kind, text.partition("\n")[0]):
        yield f"question_kind: it does not ask for {fact.kind.replace('_', ' ')}"
    if fact.kind not in CODE_KINDS and _gives_away(example, [block, *others]):
        yield "answer_in_question: the question holds the fact's value"


def _unnamed(example: RaftExample, text: str, block: CodeBlock) -> str:
    """What the question should name and does not; '' where nothing is missing."""
    if block.block_type == "module":
        if block.path not in text and block.name not in text:
            return block.path
    elif not _mentions(text, block.name):
        return block.qualified_name
    subject, kind = example.fact.subject, example.fact.kind
    if not subject or subject == "return" or kind in (*CODE_KINDS, EXPLAINED, "base_location"):
        return ""
    parts = subject.rsplit(".", 1) if kind == "callee_default" else [subject]
    return next((part for part in parts if part not in text), "")


def _mentions(text: str, name: str) -> bool:
    at = text.find(name)
    while at >= 0:
        before = text[at - 1 : at]
        after = text[at + len(name) : at + len(name) + 1]
        if not (before.isalnum() or before == "_" or after.isalnum() or after == "_"):
            return True
        at = text.find(name, at + 1)
    return False


def asks_for(kind: str, text: str) -> bool:
    """Whether a question, its names and code left aside, may ask for a fact of a kind."""
    what = kind.partition("_")[2] if kind in RELATED_KINDS and kind not in _ASKING else kind
    asking = _ASKING.get(what, "")
    plain = _PLACE.sub(" ", prose(text)).lower()
    if what == "purpose" and _OTHER_THAN_PURPOSE.search(plain):
        return False
    return _begins(asking).search(plain) is not None


@cache
def _begins(words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{words})")


def _gives_away(example: RaftExample, blocks: list[CodeBlock]) -> bool:
    """Whether all that the answer lists stands in the question besides the names.

    A function that calls one of its own name gives nothing away, nor does a word of English that
    happens to be the answer.
    """
    names = {example.fact.subject}
    for block in blocks:
        names |= {block.qualified_name, block.path, block.name}
    items = [item.strip() for item in value_items(example.fact)]
    given = set(spans(example.question)) - names
    plain = prose(example.question)
    return bool(items) and all(
        item in given or (_is_telling(item) and item not in names and _mentions(plain, item))
        for item in items
    )


def _is_telling(item: str) -> bool:
    """Whether an item is no word that a question may hold by chance."""
    return len(item) > 3 and not (item.isalpha() and item.islower())
