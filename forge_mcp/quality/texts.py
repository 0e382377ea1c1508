"""What can be wrong with a text as a text, and the names that it mentions.

A text is the question, the reasoning or the answer of a row. Code inside it (quotes, fenced
blocks, spans in backticks) is not read as prose.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache

from forge_mcp.schemas.prompt import BEGIN_QUOTE, END_QUOTE

_QUOTE = re.compile(f"{BEGIN_QUOTE}.*?{END_QUOTE}", re.DOTALL)
_FENCE = re.compile(r"^```[^\n]*\n.*?^```[ \t]*$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]*)`")
_WORD = re.compile(r"\w+")

# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter before a continuation byte's.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00c4\u00c5\u00d0\u00d1][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d"
    "\u017e\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
    "|\u00e2\u20ac|\u00ef\u00bb\u00bf|\u00ef\u00bf\u00bd|\u00f0\u0178"
)
_ESCAPED = re.compile(
    r"&(?:amp|lt|gt|quot|#\d{1,5});|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|%[2-7]\d%"
)
_MARKUP = re.compile(
    r"</?(?:table|tbody|tr|td|th|div|span|p|br|b|i|ul|ol|li|h[1-6]|img|script|style|a)\b[^<>]*>"
    r"|&nbsp;|\]\(\w+:"
)
_LEFTOVER = re.compile(
    r"\{\{?\s*\w{1,30}\s*\}?\}"
    r"|\[[A-Za-z]+(?:[ _][A-Za-z]+)+\]|<(?:function|class|method|name|symbol|parameter)[ _\w]*>"
    r"|\b(?:TODO|FIXME|TBD|XXX|lorem ipsum)\b"
    r"|\bas an? (?:AI|artificial|large language|language)\b|\bI(?:'m| am) (?:sorry|unable)\b"
    r"|\bI can(?:no|')t (?:help|answer|assist|provide)\b|\bmy (?:training data|knowledge cutoff)\b"
    r"|\b(?:sure|certainly|of course)[,!] (?:here|I)\b|\blet me know if\b|\bhope this helps\b",
    re.IGNORECASE,
)
INJECTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:(?:all|any|every|the|your|these|those|of|my"
    r")\s+)*(?:previous|prior|above|earlier|preceding|foregoing|former|system|given)\s+(?:\w+\s+)?"
    r"(?:instructions?|prompts?|messages?|directions?|rules?|context|documents?|guidelines?)"
    r"|\b(?:reveal|print|show|repeat|leak|output)\s+(?:me\s+)?(?:your|the)\s+(?:hidden\s+|full\s+)?"
    r"(?:system\s+prompt|initial\s+prompt|secret\s+instructions|instructions\s+above)"
    r"|\byou\s+are\s+now\s+(?:an?\s|in\s+\w+\s+mode|DAN\b|free\b|no longer\b)"
    r"|\b(?:do anything now|developer mode enabled|jailbreak(?:ed)?\b)"
    r"|\bfrom now on,?\s+(?:you|answer|respond|always)\b"
    r"|\b(?:new|updated)\s+(?:system\s+)?instructions?\s*:",
    re.IGNORECASE,
)
_TURN = re.compile(
    r"^\s*(?:###\s*)?(?:system|assistant|user|human)\s*:", re.IGNORECASE | re.MULTILINE
)
# One of them stands in nearly every English sentence; a few of other languages, for teachers.
_COMMON_WORDS = (
    "a all an and any are as at be by can code complete define definition describe do does "
    "each explain file find for from function give given has have how if implement in into "
    "is it its line lines list many method name of on or return returns show state tell that "
    "the this to use used was what when where which who why will with write documents not no "
    "call calls das der die ein est et la le les quel quelle que und welche welcher wie wo "
    "el es por un una"
)
_COMMON = frozenset(_COMMON_WORDS.split())
WORDY = 4  # so many words are a sentence, and one of them is a common one
_ENDS = (*".?!:;)]}`\"'…", END_QUOTE)
_REPEATED_WORDS = re.compile(r"\b(\w+)(?:\W+\1\b){3,}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!](?:\s|$)|\n")
_SENTENCE = re.compile(r"[^.?!\n]{12,}[.?!\n]")
# Names as code writes them: snake_case, camelCase, CamelCase, a call.
_CODE_WORD = re.compile(
    r"(?<![\w./-])(?:[A-Za-z]\w*_\w+|[a-z]+[A-Z]\w*|(?:[A-Z][a-z0-9]+){2,}|\w+(?=\(\)))(?![\w/-])"
)
_PATH = re.compile(
    r"(?<![\w.`/-])(?:[\w@+-][\w.@+-]*/)*[\w@+-][\w.@+-]*\.[a-z]\w{0,5}(?::\d+(?:-\d+)?)?"
)


def without_quotes(text: str) -> str:
    """The text without what it quotes."""
    return _QUOTE.sub(" ", text)


@lru_cache(maxsize=64)  # the texts of one row are looked at by many checks
def prose(text: str) -> str:
    """The text without quotes, fenced code and spans in backticks."""
    return (
        _SPAN.sub(" ` ", _FENCE.sub(" ", _QUOTE.sub(" ", text)))
        if "`" in text or "#" in text
        else text
    )


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of quotes and fenced code."""
    if "`" not in text:
        return []
    return [span for span in _SPAN.findall(_FENCE.sub(" ", _QUOTE.sub(" ", text))) if span.strip()]


def words(text: str) -> frozenset[str]:
    """The distinct words of a text, as it writes them."""
    return frozenset(_WORD.findall(text))


@lru_cache(maxsize=16384)
def known_words(text: str) -> frozenset[str]:
    """`words` of a document, kept."""
    return words(text)


@lru_cache(maxsize=16384)
def squeezed(text: str) -> str:
    """A document without white space, so that line breaks and spacing do not matter; kept."""
    return "".join(text.split())


def junk(text: str, shown: Iterable[str]) -> str:
    """Characters that no text has unless its documents do: controls, bidi marks, mojibake.

    Returns:
        What was found, as it may be shown; '' where nothing was.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return ""
    found = {c for c in text if c not in "\n\t" and unicodedata.category(c) in _NO_TEXT}
    found |= {c for c in text if c == "\ufffd"}
    found |= set(_MOJIBAKE.findall(text))
    odd = [part for part in sorted(found) if not any(part in document for document in shown)]
    return ", ".join(ascii(part) for part in odd[:3])


_NO_TEXT = frozenset({"Cc", "Cf", "Co", "Cn", "Cs"})


def faults(what: str, text: str, shown: list[str]) -> Iterator[str]:
    """What is wrong with one text of a row.

    Args:
        what: "question", "reasoning" or "answer".
        text: the text.
        shown: sources of the row's documents; what stands there may be cited.
    """
    odd = junk(text, shown)
    if odd:
        yield f"garbled_text: the {what} holds {odd}"
    plain = prose(text)
    if "&" in plain or "\\" in plain or "%" in plain:
        found = _ESCAPED.search(plain)
        if found and not any(found.group() in document for document in shown):
            yield f"garbled_text: the {what} holds {found.group()}, which was escaped"
    leftover = _LEFTOVER.search(plain)
    if leftover and not any(leftover.group() in document for document in shown):
        yield f"leftover: {leftover.group()!r} in the {what}"
    markup = _MARKUP.search(plain)
    if markup and not any(markup.group() in document for document in shown):
        yield f"garbled_text: the {what} holds {markup.group()!r}, markup of a web page"
    order = INJECTION.search(plain) or _TURN.search(plain)
    if order and not any(order.group() in document for document in shown):
        yield f"injection: {' '.join(order.group().split())!r} in the {what}"
    again = repeated(plain) or _period(text)
    if again:
        yield f"garbled_text: the {what} repeats {again!r}"
    if plain.count("`") % 2 and not _SPAN.search(text):
        yield f"cut_text: a backtick of the {what} is never closed"


def _period(text: str) -> str:
    """What a text is that consists of nothing but itself, four times or more; '' for another."""
    parts = text.split()
    for size in range(1, len(parts) // 4 + 1):
        if len(parts) % size == 0 and parts == parts[:size] * (len(parts) // size):
            return " ".join(parts[:size])
    return ""


def repeated(text: str) -> str:
    """A sentence, or four times a word in a row, that a text repeats; '' where it does not."""
    found = _REPEATED_WORDS.search(text)
    if found:
        return found.group(1)
    seen: set[str] = set()
    for sentence in _SENTENCE.findall(text):
        key = " ".join(sentence.lower().split())
        if key in seen and len(key.split()) >= 4:
            return key
        seen.add(key)
    return ""


def is_sentence(text: str) -> bool:
    """Whether a text looks like words of a language and not like a run of letters.

    It has a common word, or letters beyond ASCII, which the list of common words does not cover.
    """
    plain = prose(text)
    found = [word.lower() for word in _WORD.findall(plain)]
    if len(found) < 2:
        return False
    letters = sum(character.isalpha() or character.isspace() for character in plain)
    if letters < 0.6 * len(plain.replace("`", "")):
        return False
    return not _COMMON.isdisjoint(found) or any(not w.isascii() and w.isalpha() for w in found)


def wordless(text: str) -> str:
    """The first sentence of a text that has no common word of English; '' where all have one.

    Only sentences of `WORDY` words or more are looked at, names and places left aside.
    """
    for sentence in _SENTENCE_END.split(_PATH.sub(" ", prose(text))):
        found = [word.lower() for word in _WORD.findall(sentence) if word.isalpha()]
        plain = all(word.isascii() for word in found)
        if len(found) >= WORDY and plain and _COMMON.isdisjoint(found):
            return " ".join(sentence.split())
    return ""


def is_cut(text: str) -> bool:
    """Whether a sentence ends without a full stop, a question mark, or anything like it."""
    return not text.rstrip().endswith(_ENDS)


def code_words(text: str) -> list[str]:
    """Names in prose that are written as code writes them."""
    return _CODE_WORD.findall(prose(text))


def paths(text: str) -> list[str]:
    """Paths of files in prose, with their lines where they are given."""
    return [
        found.rstrip(".") for found in _PATH.findall(prose(text)) if "/" in found or ":" in found
    ]
