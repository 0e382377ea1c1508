"""What may stand between a block's first character and the definition that an oracle reports.

A block begins with its leading doc comments, decorators or attributes, and modifiers. A parser's
node begins at one of these or behind them; ctags knows only where the name stands. `leftover`
takes away what a block may begin with, and returns what remains: nothing, where the block is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"' + r"|'(?:[^'\\\n]|\\.)*'" + r"|`(?:[^`\\]|\\.)*`")
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">"}
SPACE = re.compile(r"\s+")
WORD = re.compile(r"[\w$]+")


@dataclass(frozen=True)
class Syntax:
    """How a language writes what stands before a definition.

    Attributes:
        line_comments: what begins a comment that the line ends.
        block_comments: (begin, end) of other comments.
        nested: whether block comments nest.
        attributes: a pattern that a decorator or attribute begins with; brackets right behind it
            belong to it.
        modifiers: words that may stand before a parser's node.
        head: what may stand before the name that ctags reports, comments and attributes apart.
    """

    line_comments: tuple[str, ...] = ()
    block_comments: tuple[tuple[str, str], ...] = ()
    nested: bool = False
    attributes: re.Pattern[str] | None = None
    modifiers: frozenset[str] = frozenset()
    head: re.Pattern[str] | None = None


def leftover(gap: str, syntax: Syntax, to_name: bool) -> str:
    """What of a gap no block may begin with; '' where it is all in order.

    Args:
        gap: from the block's first character to where the oracle's definition begins.
        syntax: of the language.
        to_name: the gap ends at the definition's name, not at a parser's node.
    """
    code = _without_comments(gap, syntax)
    if to_name and syntax.head is not None:
        return "" if syntax.head.fullmatch(code.strip()) else _short(code)
    words = [word for word in code.split() if word not in syntax.modifiers]
    return _short(" ".join(words))


def _without_comments(gap: str, syntax: Syntax) -> str:
    kept, at = [], 0
    while at < len(gap):
        end = _comment_end(gap, at, syntax)
        attribute = syntax.attributes.match(gap, at) if syntax.attributes is not None else None
        if end == at and attribute:
            end = _brackets_end(gap, attribute.end(), syntax)
        if end > at:
            kept.append(" ")
            at = end
            continue
        found = WORD.match(gap, at) or SPACE.match(gap, at) or STRING.match(gap, at)
        end = found.end() if found else at + 1
        kept.append(gap[at:end])
        at = end
    return "".join(kept)


def _comment_end(text: str, at: int, syntax: Syntax) -> int:
    """Where the comment that begins at `at` ends; `at` where none begins there."""
    if text.startswith(syntax.line_comments, at):
        end = text.find("\n", at)
        return len(text) if end < 0 else end
    for begin, close in syntax.block_comments:
        if not text.startswith(begin, at):
            continue
        depth, at = 1, at + len(begin)
        while depth and at < len(text):
            if text.startswith(close, at):
                depth, at = depth - 1, at + len(close)
            elif syntax.nested and text.startswith(begin, at):
                depth, at = depth + 1, at + len(begin)
            else:
                at += 1
        return at
    return at


def _brackets_end(text: str, at: int, syntax: Syntax) -> int:
    """The end of the brackets that begin at `at`, and of calls and members behind them."""
    while at < len(text) and text[at] in BRACKETS:
        at = _close(text, at, syntax)
        member = re.compile(r"\.[\w$]+").match(text, at)
        at = member.end() if member else at
    return at


def _close(text: str, at: int, syntax: Syntax) -> int:
    """The position behind the bracket that closes the one at `at`."""
    expected = [BRACKETS[text[at]]]
    at += 1
    while expected and at < len(text):
        found = STRING.match(text, at)
        end = _comment_end(text, at, syntax)
        if found:
            at = found.end()
        elif end > at:
            at = end
        else:
            if text[at] == expected[-1]:
                expected.pop()
            elif text[at] in "([{":
                expected.append(BRACKETS[text[at]])
            at += 1
    return at


def _short(code: str) -> str:
    flat = " ".join(code.split())
    return flat if len(flat) <= 60 else f"{flat[:40]} … {flat[-17:]}"
