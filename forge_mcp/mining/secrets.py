"""Credentials in source text, found by rules in the manner of gitleaks, and taken out.

Each secret becomes a placeholder that says what stood there, e.g. `REDACTED_AWS_KEY`. The rules
are the tables of `mining.secret_rules`. What they do not know is shown to the plugins of
detect-secrets, but only the few places that hold a random-looking run of characters.

find_secrets      where the credentials of a text stand
redact            a text without them
replace_secrets   any text without the credentials that were found in another one
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from forge_mcp.mining.secret_rules import (
    ANCHORED,
    ASSIGNED_KINDS,
    ASSIGNMENTS,
    HEAD_REACH,
    HEADS,
    NAME_REACH,
    NAME_START,
    PASSWORD_NAME,
    PRIVATE_KEY,
    PUBLIC_NAME,
    RUN,
    RUN_CHARACTERS,
    STRONG_NAME,
    TOKEN_PATTERNS,
    TOKENS,
    UUID,
    is_bare_token,
    is_password,
    is_token,
    looks_random,
    piece_length,
)

if TYPE_CHECKING:
    from detect_secrets.plugins.base import BasePlugin

__all__ = ["PRIVATE_KEY", "Secret", "find_secrets", "redact", "replace_secrets"]


@dataclass(frozen=True, order=True)
class Secret:
    """A credential in a text: [start, end) in characters, its text, and what replaces it."""

    start: int
    end: int
    text: str
    placeholder: str


class Found(NamedTuple):
    """What a rule takes for a credential: [start, end) in characters."""

    start: int
    end: int
    placeholder: str


def find_secrets(text: str) -> list[Secret]:
    """All credentials in a text, in order and without overlap.

    Where two rules match overlapping characters, one secret covers both, and the more exact rule
    names its placeholder.
    """
    # Credentials are ASCII, which is searched faster; one character for each keeps the offsets.
    plain = text if text.isascii() else text.encode("ascii", "replace").decode("ascii")
    lowered = plain.lower()
    runs = list(_runs(plain))
    found = _merge(
        [
            *_private_keys(plain),
            *_tokens(plain, runs),
            *_anchored(plain, lowered),
            *_assigned(plain, lowered),
        ]
    )
    found = _merge([*found, *_second_opinion(plain, runs, found)])
    return [Secret(f.start, f.end, text[f.start : f.end], f.placeholder) for f in found]


def redact(text: str) -> tuple[str, int]:
    """The text with every credential replaced by its typed placeholder, and their number.

    Nothing is found in it any more.
    """
    count = 0
    # Once is enough, unless credentials stand so close that one hid the beginning of the next.
    while secrets := find_secrets(text):
        text = replace_secrets(text, secrets)
        count += len(secrets)
    return text, count


def replace_secrets(text: str, secrets: list[Secret]) -> str:
    """Every occurrence of the given credentials in any text replaced, the longest first."""
    for secret in sorted(secrets, key=lambda s: len(s.text), reverse=True):
        text = text.replace(secret.text, secret.placeholder)
    return text


def _merge(found: Iterable[Found]) -> list[Found]:
    """In order, overlapping ones joined under the placeholder of the one that was given first."""
    merged: list[tuple[int, Found]] = []
    for rank, here in sorted(enumerate(found), key=lambda pair: pair[1].start):
        if merged and here.start < merged[-1][1].end:
            other, last = merged.pop()
            end = max(last.end, here.end)
            name = last.placeholder if other < rank else here.placeholder
            rank, here = min(other, rank), Found(last.start, end, name)
        merged.append((rank, here))
    return [here for _, here in merged]


# -- private keys ------------------------------------------------------------------------------

KEY_BEGIN = r"-{4,5} ?BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}"
KEY_MARKER = re.compile(
    rf"(?P<begin>{KEY_BEGIN}|PuTTY-User-Key-File-[0-9]:)"
    rf"|{KEY_BEGIN.replace('BEGIN', 'END')}|Private-(?:MAC|Hash): ?[0-9a-f]{{40,64}}"
)
KEY_LINE = r"[A-Za-z0-9+/]{32,}+={0,2}+"
# In source text the lines of a key stand in quotes, behind comment signs, or end in '\n'. The
# last one of a key that is cut off may be short.
KEY_LINES = re.compile(
    rf"(?:(?:\\[nr]|[\s\"'`+,;#*>\\])*+{KEY_LINE})+"
    r"(?:(?:\\n|\n)[ \t#*]*+(?=[a-z]*[0-9A-Z+/])[A-Za-z0-9+/]++={0,2}+)?"
)


def _private_keys(text: str) -> Iterator[Found]:
    """Keys of PEM, PGP, SSH2 and PuTTY; of one that is cut off, the marker and what follows."""
    if "PRIVATE KEY" not in text and "PuTTY-User-Key-File-" not in text:
        return
    markers = list(KEY_MARKER.finditer(text))
    for begin, end in zip_longest(markers, markers[1:]):
        if not begin["begin"]:
            continue
        if end is not None and not end["begin"]:
            body = text[begin.end() : end.start()]
            # Code that reads keys names both markers too, but what it has between them is code.
            if re.search(KEY_LINE, body) and piece_length(body) < 2.75:
                yield Found(begin.start(), end.end(), PRIVATE_KEY)
                continue
        lines = KEY_LINES.match(text, begin.end())
        if lines and piece_length(lines[0]) < 2.75:
            yield Found(begin.start(), lines.end(), PRIVATE_KEY)


# -- the rules ---------------------------------------------------------------------------------

SHAPE = bytes(ord("w" if chr(code) in RUN_CHARACTERS else " ") for code in range(256))
# More heads in one run are no tokens, but text that was made to cost time.
HEADS_IN_A_RUN = 8


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of every place where RUN and more token characters stand in a row.

    No regex looks at each character: with this, eighty prefixes cost no more than one.
    """
    shape = text.encode("ascii").translate(SHAPE)
    start = shape.find(b"w" * RUN)
    while start >= 0:
        end = shape.find(b" ", start + RUN)
        end = len(shape) if end < 0 else end
        yield start, end
        start = shape.find(b"w" * RUN, end)


def _tokens(text: str, runs: list[tuple[int, int]]) -> Iterator[Found]:
    done = 0
    for start, end in runs:
        here = max(done, start - HEAD_REACH)
        for _ in range(HEADS_IN_A_RUN):
            head = HEADS.search(text, here, end + 1)  # one more: the dot of 'SG.'
            if head is None:
                break
            here = head.start() + 1
            number = int(str(head.lastgroup)[1:])
            token = TOKEN_PATTERNS[number].match(text, head.start())
            if token and TOKENS[number].gate(token[0]):
                yield Found(*token.span(), TOKENS[number].placeholder)
                done = here = token.end()


def _anchored(text: str, lowered: str) -> Iterator[Found]:
    for rule in ANCHORED:
        if rule.anchor in lowered:
            for match in rule.pattern.finditer(text):
                if rule.gate(match["secret"]):
                    yield Found(*match.span("secret"), rule.placeholder)


def _assigned(text: str, lowered: str) -> Iterator[Found]:
    for keyword, pattern in ASSIGNMENTS.items():
        if keyword not in lowered:
            continue
        for match in pattern.finditer(lowered):
            before = lowered[max(0, match.start() - NAME_REACH) : match.start()]
            opening, first_part = NAME_START.findall(before)[0]
            if match["default"] and not opening:
                continue  # two items of a list
            start, end = match.span("quoted" if match["quoted"] else "bare")
            name, literal = first_part + lowered[match.start() : start], text[start:end]
            if _is_assigned_secret(name, literal, match):
                yield Found(start, end, _kind_of(name, literal))


def _is_assigned_secret(name: str, literal: str, match: re.Match[str]) -> bool:
    strong = bool(STRONG_NAME.search(name))
    if PUBLIC_NAME.search(name) or ((match["call"] or match["default"]) and not strong):
        return False
    if strong and UUID.fullmatch(literal):
        return True
    if match["bare"]:
        return is_bare_token(literal)
    if PASSWORD_NAME.search(name):
        return is_password(literal)
    return looks_random(literal) if strong else is_token(literal)


def _kind_of(name: str, literal: str) -> str:
    return next(
        placeholder
        for placeholder, of_name, of_literal in ASSIGNED_KINDS
        if of_name.search(name) and of_literal.fullmatch(literal)
    )


# -- the second opinion ------------------------------------------------------------------------

# Left out of detect-secrets: the entropy and keyword plugins fire in most source files, on hashes,
# identifiers and test data; BasicAuth takes every 'user:password@host' of a docstring, and an IP
# address is no secret; PrivateKey finds the marker and not the key.
LEFT_OUT = (
    "Base64HighEntropyString",
    "BasicAuthDetector",
    "HexHighEntropyString",
    "IPPublicDetector",
    "KeywordDetector",
    "PrivateKeyDetector",
)
# A longer run is data. The bounds also limit what the plugins' patterns can cost.
LONGEST_RUN, BEFORE, BEHIND = 300, 100, 100


@cache
def _plugins() -> list[BasePlugin]:
    # Imported here: it takes 0.1 s, much of it for requests, with which it could ask the issuers
    # whether a secret is valid. Nothing here does.
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    every: Iterable[type[BasePlugin]] = get_mapping_from_secret_type_to_class().values()
    return [plugin() for plugin in every if plugin.__name__ not in LEFT_OUT]


def _second_opinion(text: str, runs: list[tuple[int, int]], known: list[Found]) -> Iterator[Found]:
    """What detect-secrets finds at the random-looking runs that no rule has taken."""
    taken = iter([*known, Found(len(text), len(text), "")])
    over = next(taken)
    for start, end in runs:
        while over.end <= start:
            over = next(taken)
        run = text[start:end]
        if over.start < end or len(run) > LONGEST_RUN or not is_token(run):
            continue
        first = max(text.rfind("\n", 0, start) + 1, start - BEFORE)
        last = text.find("\n", end, end + BEHIND)
        window = text[first : last if last >= 0 else end + BEHIND]
        for plugin in _plugins():
            for raw in plugin.analyze_string(window):
                secret = raw.strip(" \t\"'=:")
                at = first + window.find(secret)
                if at < end and start < at + len(secret) and is_token(secret):
                    kind = re.sub(r"[^A-Z0-9]+", "_", plugin.secret_type.upper())
                    yield Found(at, at + len(secret), f"REDACTED_{kind}")
