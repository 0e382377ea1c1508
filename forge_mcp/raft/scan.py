"""Reading code as text: strings and comments masked, brackets matched, `if` and what it guards.

This is one of the two ways to a fact. It knows no grammar; the other way, `raft.verify`, parses.
A construct that these rules misread (a regular expression with a quote in it, say) makes the two
ways disagree, and the fact is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

_DOUBLE = r'"(?:\\.|[^"\\\n])*"'
_SINGLE = r"'(?:\\.|[^'\\\n])*'"
_TRIPLE = r'"""(?:\\.|[^\\])*?"""'
_SLASHES = r"//[^\n]*|/\*.*?\*/"
_CURLY = rf"(?P<comment>{_SLASHES})|{_TRIPLE}|{_DOUBLE}|{_SINGLE}|`(?:\\.|[^`\\])*`"
_HASH = rf"(?P<comment>\#[^\n]*)|{_TRIPLE}|'''(?:\\.|[^\\])*?'''|{_DOUBLE}|{_SINGLE}"
# JavaScript's regular expressions: a slash behind what no value can end with.
_REGEX = (
    r"(?:(?<=[(=,:!&|?\[{};])[ ]?|(?<=\breturn) )"
    r"/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*"
)
_TOKENS = {
    "python": re.compile(_HASH, re.DOTALL),
    "ruby": re.compile(_HASH, re.DOTALL),
    "bash": re.compile(_HASH, re.DOTALL),
    "php": re.compile(rf"(?P<comment>{_SLASHES}|\#(?!\[)[^\n]*)|{_DOUBLE}|{_SINGLE}", re.DOTALL),
    # A Rust lifetime is no string, a character is one character.
    "rust": re.compile(rf"(?P<comment>{_SLASHES})|{_DOUBLE}|'(?:\\[^']+|[^'\\\n])'", re.DOTALL),
    "go": re.compile(rf"(?P<comment>{_SLASHES})|{_DOUBLE}|{_SINGLE}|`[^`]*`", re.DOTALL),
    "javascript": re.compile(
        rf"(?P<comment>{_SLASHES})|{_DOUBLE}|{_SINGLE}|`(?:\\.|[^`\\])*`|{_REGEX}", re.DOTALL
    ),
}
_TOKENS["typescript"] = _TOKENS["tsx"] = _TOKENS["javascript"]
_OTHER = re.compile(_CURLY, re.DOTALL)
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _blank(match: re.Match[str]) -> str:
    found = match.group()
    if match["comment"] is not None:
        return re.sub(r"[^\n]", " ", found)
    first, mark, rest = found.partition("\n")
    # The lines of a string are no lines of code: only the first shows that something is there.
    return '"' * len(first) + mark + re.sub(r"[^\n]", " ", rest)


@lru_cache(maxsize=64)
def mask(source: str, language: str) -> str:
    """The source with comments blanked and strings filled with `"`: every offset stays."""
    return _TOKENS.get(language, _OTHER).sub(_blank, source)


def closing(masked: str, opened: int) -> int:
    """The offset of the bracket that closes the one at `opened`; -1 where none does."""
    stack: list[str] = []
    for match in re.compile(r"[()\[\]{}]").finditer(masked, opened):
        found = match.group()
        if found in _CLOSING:
            stack.append(_CLOSING[found])
        elif stack.pop() != found:
            return -1
        elif not stack:
            return match.start()
    return -1


@dataclass(frozen=True)
class Branch:
    """An `if` that no other branch surrounds, and what stands in it.

    `condition` and `body` are verbatim; `masked` is the body with strings and comments masked.
    """

    condition: str
    body: str
    masked: str


class Code:
    """The text of one function, read by lines (Python) or by braces."""

    def __init__(self, source: str, language: str) -> None:
        self.source = source
        self.language = language
        self.masked = mask(source, language)

    def branches(self) -> Iterator[Branch]:
        """Every `if` of the function's own body, or of a loop or a `with` in it.

        Those within another branch, a `try` or a nested function are left out, and so is every
        `else`: there the condition alone would not say when the body is reached.
        """
        yield from self._python() if self.language == "python" else self._braces()

    def held(self, offset: int, words: frozenset[str]) -> bool:
        """Whether what stands at an offset is within one of some statements, e.g. a `try`."""
        if self.language == "python":
            line = self.masked.count("\n", 0, offset)
            return any(self._word(at) in words for at in self._above(line))
        return any(head in words for head in self._heads(offset))

    # -- Python: lines and their indentation --------------------------------------------------

    @cached_property
    def _lines(self) -> list[str]:
        return self.masked.split("\n")

    @cached_property
    def _verbatim(self) -> list[str]:
        return self.source.split("\n")

    @cached_property
    def _header(self) -> int:
        """The line with the function's own `def`."""
        for number, line in enumerate(self._lines):
            if re.match(r"\s*(?:async\s+)?def\b", line):
                return number
        return len(self._lines)

    def _indent(self, number: int) -> int:
        line = self._lines[number]
        # The first line of a block stands without its indentation.
        return -1 if number <= self._header else len(line) - len(line.lstrip())

    def _word(self, number: int) -> str:
        match = re.match(r"\s*(?:async\s+)?(\w+)", self._lines[number])
        return match.group(1) if match else ""

    def _above(self, number: int) -> Iterator[int]:
        """The lines that hold a line, the nearest first, the function's own header left out."""
        indent = self._indent(number)
        for at in range(number - 1, self._header, -1):
            if self._lines[at].strip() and self._indent(at) < indent:
                indent = self._indent(at)
                yield at

    def _python(self) -> Iterator[Branch]:
        base = min(
            (
                self._indent(n)
                for n in range(self._header + 1, len(self._lines))
                if self._lines[n].strip()
            ),
            default=0,
        )
        for number in range(self._header + 1, len(self._lines)):
            match = re.match(
                r"\s*if\b[ \t(](?P<test>.+?):[ \t]*(?P<rest>\S.*)?$", self._lines[number]
            )
            if match is None or self._indent(number) < base:
                continue
            if any(self._word(at) not in ("for", "while", "with") for at in self._above(number)):
                continue
            line = self._verbatim[number]
            begin = self._lines[number].index("if") + 2
            end = self._colon(self._lines[number], begin)
            if end < 0:
                continue
            condition, rest = line[begin:end].strip(), line[end + 1 :].strip()
            if self._lines[number][end + 1 :].strip():
                yield Branch(condition, rest, self._lines[number][end + 1 :].strip())
                continue
            last = number
            for at in range(number + 1, len(self._lines)):
                if self._lines[at].strip():
                    if self._indent(at) <= self._indent(number):
                        break
                    last = at
            body = "\n".join(self._verbatim[number + 1 : last + 1])
            yield Branch(condition, body, "\n".join(self._lines[number + 1 : last + 1]))

    @staticmethod
    def _colon(line: str, begin: int) -> int:
        """Where an `if` ends: the first colon in no bracket, of no lambda and no walrus."""
        depth = 0
        for match in re.compile(r"[()\[\]{}:]|\blambda\b").finditer(line, begin):
            found = match.group()
            if found == "lambda":
                return -1
            if found in "([{":
                depth += 1
            elif found in ")]}":
                depth -= 1
            elif depth == 0 and line[match.end() : match.end() + 1] != "=":
                return match.start()
        return -1

    # -- languages with braces ----------------------------------------------------------------

    @cached_property
    def _spans(self) -> list[tuple[int, int, str]]:
        """(open, close, what it belongs to) of every brace."""
        spans, stack = [], []
        for match in re.finditer(r"[{}]", self.masked):
            if match.group() == "{":
                stack.append(match.start())
            elif stack:
                opened = stack.pop()
                spans.append((opened, match.start(), self._head(opened)))
        return sorted(spans)

    def _head(self, opened: int) -> str:
        """The word that a brace belongs to: if, for, else, try, …; '' for another one's."""
        before = self.masked[:opened].rstrip()
        if self.language == "go":
            match = re.match(r"\s*(?:\}\s*)?(\w*)", before[before.rfind("\n") + 1 :])
            return match.group(1) if match else ""
        if before.endswith(")"):
            depth = 0
            for at in range(len(before) - 1, -1, -1):
                depth += (before[at] == ")") - (before[at] == "(")
                if depth == 0:
                    before = before[:at].rstrip()
                    break
        match = re.search(r"([\w$]+|=>|[=(,:{};])$", before)
        return match.group(1) if match else ""

    def _heads(self, offset: int) -> list[str]:
        """What the braces around an offset belong to, but for the function's own."""
        around = [head for opened, closed, head in self._spans if opened < offset < closed]
        return around[1:]

    def _braces(self) -> Iterator[Branch]:
        go = self.language == "go"
        for match in re.finditer(r"\bif\b\s*(?=[^\s{])" if go else r"\bif\s*(?=\()", self.masked):
            if re.search(r"\belse\s*$", self.masked[max(0, match.start() - 20) : match.start()]):
                continue
            plain = {"for", "while", "do", "synchronized"}
            if any(head not in plain for head in self._heads(match.start())):
                continue
            if go:
                begin, end = match.end(), self.masked.find("{", match.end())
                if end < 0 or ";" in self.masked[begin:end]:
                    continue
                after = end
            else:
                begin, end = match.end() + 1, closing(self.masked, match.end())
                after = end + 1
            if end < 0:
                continue
            found = self._body(after)
            if found is not None:
                first, last = found
                condition = self.source[begin:end].strip()
                yield Branch(condition, self.source[first:last], self.masked[first:last])

    def _body(self, after: int) -> tuple[int, int] | None:
        """The span of a body: between braces, or one statement up to its semicolon."""
        start = after
        while self.masked[start : start + 1].isspace():
            start += 1
        if self.masked[start : start + 1] == "{":
            end = closing(self.masked, start)
            return (start + 1, end) if end >= 0 else None
        if re.match(r"(?:return|throw)\b", self.masked[start : start + 8]):
            end = self.masked.find(";", start)
            return (start, end + 1) if end >= 0 else None
        return None
