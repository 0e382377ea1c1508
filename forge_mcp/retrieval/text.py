"""Text as retrieval sees it: identifiers in parts, words in stems, code as prose.

subtokens    text → the parts of its identifiers and words, lower-case
terms        the same, stemmed and without stop words: what BM25 counts
naturalised  a block as a sentence encoder reads it
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

from forge_mcp.schemas.code_blocks import CodeBlock

# Lucene's list for English, and the words that questions begin with. In code they are rare, so
# that BM25 would take them for the most telling words of a question: leaving them out lifts
# MRR@10 on Django from .42 to .50.
_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then "
    "there these they this to was will with "
    "can do does from has have how its what when where which who"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())

# A vector is a mean over all that was read, so more code drowns the name: on Django the hybrid's
# MRR@10 is .591 with so much of it, .585 with all that MiniLM reads, at 1.5 times the time.
CODE_PARTS = 100

_WORD = re.compile(r"[^\W_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def subtokens(text: str) -> list[str]:
    """Lower-cased parts of identifiers: 'getHTTPResponse_v2' → get, http, response, v, 2."""
    return [part for word in _WORD.findall(text) for part in _parts(word)]


def terms(text: str) -> list[str]:
    """The sub-tokens that tell something, stemmed: 'the cached Handlers' → cach, handler."""
    return [term for word in _WORD.findall(text) for term in _terms(word)]


def naturalised(block: CodeBlock) -> str:
    """A block as prose for a sentence encoder: where and what it is, its documentation, its code.

    Of the code only the beginning (its documentation, where it stands inside, does not count).
    """
    place = " ".join(subtokens(block.path.rpartition(".")[0] or block.path))
    name = " ".join(subtokens(block.qualified_name))
    length = CODE_PARTS + len(subtokens(block.docstring))
    code = " ".join(subtokens(block.source_code)[:length])
    return "\n".join(part for part in (f"{name} ({place})", block.docstring, code) if part)


@lru_cache(maxsize=1 << 16)
def _parts(word: str) -> tuple[str, ...]:
    if word.isascii():
        return tuple(part.lower() for part in _PART.findall(word))
    return tuple(part.lower() for part in _humps(word))


def _humps(word: str) -> list[str]:
    """The parts of a word in any script, at a capital after a small letter and at numbers."""
    parts, start = [], 0
    for at in range(1, len(word)):
        one, two = word[at - 1], word[at]
        if (one.islower() and two.isupper()) or one.isdecimal() != two.isdecimal():
            parts.append(word[start:at])
            start = at
    return [*parts, word[start:]]


@lru_cache(maxsize=1 << 16)
def _terms(word: str) -> tuple[str, ...]:
    return tuple(_stem(part) for part in _parts(word) if part not in STOP_WORDS)


@lru_cache(maxsize=1 << 16)
def _stem(part: str) -> str:
    stemmed: str = _stemmer().stemWord(part)
    return stemmed


@cache
def _stemmer() -> Any:
    # Not snowballstemmer.stemmer(): it would take PyStemmer where that is installed, whose
    # version, and with it the stems, may differ from machine to machine.
    from snowballstemmer.english_stemmer import EnglishStemmer

    return EnglishStemmer()
