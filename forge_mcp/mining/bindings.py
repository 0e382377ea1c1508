"""Names that are hidden in a function by its parameters and variables.

What a bare name means is certain only where nothing between the block and the file's top level
binds it again. Told from the text around the name, and rather too often than too seldom: a name
that is taken for hidden stays a plain name, one that is overlooked becomes a wrong edge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from forge_mcp.mining.definitions import Definition

WORD = re.compile(r"[^\W\d]\w*")
KEY = re.compile(r"\w+\s*:")  # of a pattern: `{x: y}` binds y
NAMED_RESULT = re.compile(r"[(,]\s*(\w+)\s+[\w*\[(]")  # Go's `(n int, err error)`


class _Binding(NamedTuple):
    """Signs that an occurrence of a name binds it: what stands behind it, what stands before it on
    its line, or both at once.
    """

    behind: re.Pattern[str]
    before: re.Pattern[str]
    both: tuple[re.Pattern[str], re.Pattern[str]]


NEVER = re.compile(r"(?!)")
PYTHON = _Binding(
    re.compile(r"\s*(?::[^=\n,()]+)?=(?!=)|\s*:=|\s*,[^=\n():]*[^=!<>\n]=(?!=)"),
    re.compile(r"\b(?:for\b[^:]*|as\s+\(?[^:]*|lambda\b[^:]*|(?:global|nonlocal|case)\b.*)$"),
    (NEVER, NEVER),
)
SCRIPT = _Binding(
    re.compile(r"\s*=(?!=)|[^=;\n]*[}\]]\s*=(?![=>])|[^()\n]*\)\s*(?::[^=\n{]+)?=>"),
    re.compile(r"\b(?:(?:const|let|var|for)\b[^;=]*|catch\s*\(\s*|function\b[^()]*\([^()]*)$"),
    (re.compile(r"[\w$]\s*\([^()]*$"), re.compile(r"[^()\n]*\)\s*(?::[^=\n{]+)?\{")),
)
GO = _Binding(
    re.compile(r"\s*(?:,[^=\n{}]*)?:="),
    re.compile(r"\bvar\s+[^=]*$"),
    (re.compile(r"[(,]\s*$"), re.compile(r"\s+[\w*\[\]]|\s*,[^()=]*\)\s*[\w({]")),
)
JAVA = _Binding(
    re.compile(r"\s*->|[^()\n]*\)\s*->"),
    NEVER,
    (re.compile(r"[\w>\]]\s+$"), re.compile(r"\s*[=;:,)]")),
)
BINDINGS = {
    "python": PYTHON,
    "javascript": SCRIPT,
    "typescript": SCRIPT,
    "tsx": SCRIPT,
    "go": GO,
    "java": JAVA,
}
# There a package's names are known without an import: those of other files count as well.
PACKAGES = frozenset({"go", "java"})


class Bodies:
    """The bodies of a file's outermost functions, each decoded once."""

    def __init__(self, source: bytes) -> None:
        """`source` is the file in UTF-8."""
        self._source = source
        self._texts: dict[int, str] = {}

    def around(self, definition: Definition) -> str:
        """The body of the outermost function around a definition."""
        whole = definition.outermost or definition
        start = whole.start_byte if whole.body_byte < 0 else whole.body_byte
        if start not in self._texts:
            self._texts[start] = self._source[start : whole.end_byte].decode()
        return self._texts[start]


def hidden_names(
    definition: Definition, bodies: Bodies, language: str, uses: Iterable[str], known: set[str]
) -> list[str]:
    """First parts of used names that a variable hides, and the names of all parameters.

    Args:
        definition: of a file.
        bodies: of the same file.
        language: only those of `BINDINGS` are looked at.
        uses: dotted names that the definition uses.
        known: first parts of names that mean something in the file.
    """
    if language not in BINDINGS or definition.kind in ("class", "module"):
        return []
    hidden = set(definition.foreign)
    function: Definition | None = definition
    while function is not None:  # a closure sees the variables of what is around it
        for parameter in function.described.parameters or ():
            name = parameter.name
            if name.isidentifier():
                hidden.add(name)
            else:
                hidden.update(WORD.findall(KEY.sub("", name)))
        hidden.update(NAMED_RESULT.findall(function.described.returns))
        function = function.parent if function.outermost is not None else None
    heads = {name.partition(".")[0].rstrip("?") for name in uses} - hidden
    if language not in PACKAGES:
        heads &= known
    heads -= {"super()", "super", definition.receiver}
    if heads:
        text = bodies.around(definition)
        hidden.update(head for head in heads if _is_bound(head, text, BINDINGS[language]))
    return sorted(hidden)


def _is_bound(name: str, text: str, binding: _Binding) -> bool:
    length = len(name)
    at = text.find(name)
    while at >= 0:
        end = at + length
        first, last = text[at - 1 : at], text[end : end + 1]
        if not (first.isalnum() or (first in "_.$" and first)) and not (
            last.isalnum() or last == "_"
        ):
            if binding.behind.match(text, end):
                return True
            line = text[text.rfind("\n", 0, at) + 1 : at]
            if binding.before.search(line):
                return True
            if binding.both[1].match(text, end) and binding.both[0].search(line):
                return True
        at = text.find(name, end)
    return False
