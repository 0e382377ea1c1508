"""False values that look true: one fact of an answer, changed in one place.

A false value is another one of the repository (an exception, a default of the same type, a
sibling's callee) or a symbol that does not exist, made by editing a real one. What may mean the
same in another spelling is never offered.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath

from forge_mcp.raft.facts import RELATED_KINDS, fact_value, value_items
from forge_mcp.raft.scan import closing, mask
from forge_mcp.raft.splits import draw
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

TRIES = 12  # other values that are looked at
_NAMES = frozenset(
    ("parameters", "raises", "calls", "bases", "methods", "decorators", "callers", "tests")
) | {"overrides", "imports"}
_SAME = (frozenset({"OSError", "IOError", "EnvironmentError", "WindowsError", "error"}),)
_WRAPPERS = frozenset({"Optional", "Union", "List", "Dict", "Tuple", "Set", "Type", "None"}) | {
    "null", "undefined", "Array", "Readonly", "ReadonlyArray", "list", "dict", "tuple", "set",
    "type", "typing", "final", "const", "collections", "abc", "t", "readonly",
}  # fmt: skip
_OPPOSITE = (
    (r"\bis not None\b", "is None"), (r"\bis None\b", "is not None"),
    (r"\bnot in\b", "in"), (r"\bis not\b", "is"), (r"^not\s+", ""), (r"!==", "==="),
    (r"===", "!=="), (r"!=", "=="), (r"==", "!="), (r"<=", ">"), (r">=", "<"),
    (r"(?<![-<=])<(?!=)", ">="), (r"(?<![-=>])>(?![=>])", "<="), (r"^!(?=[\w(])", ""),
    (r"\bis\b(?! not)", "is not"), (r"(?<!not )\bin\b", "not in"),
)  # fmt: skip
_UNTYPED = ("python", "ruby", "javascript")  # a parameter needs no type
_TYPED_FIRST = frozenset({"java", "c", "cpp", "csharp", "php"})
_NAME_FIRST = re.compile(
    r"\s*(?:(?:mut|vararg|val|var|\.\.\.|\*{1,2}|&)\s*)*(?P<parameter>[A-Za-z_]\w*)\s*\??"
    r"(?:\s*:\s*(?P<type>[^\s=](?:[^=]|=>)*?)|\s[^=:]+)?(?:\s*=\s*(?P<default>[^=>].*?))?\s*"
)
_TYPE_FIRST = re.compile(
    r"[^=]*[\s*&$](?P<parameter>[A-Za-z_]\w*)\s*(?:=\s*(?P<default>[^=].*?))?\s*"
)
_VERBS = {
    "get": "fetch", "set": "assign", "is": "has", "has": "holds", "add": "attach", "make": "form",
    "load": "obtain", "read": "scan", "write": "emit", "create": "produce", "remove": "discard",
    "delete": "erase", "find": "locate", "check": "inspect", "parse": "decode", "build": "shape",
    "update": "revise", "to": "into", "from": "out", "new": "fresh",
}  # fmt: skip


class FalseValues:
    """The values of a dataset's facts, from which false ones are taken.

    Args:
        facts: the facts and the file of each.
        known: names of the corpus' definitions; an invented name is none of them.
        seed: of every draw.
    """

    def __init__(
        self, facts: Iterable[tuple[Fact, str]], known: Collection[str], seed: int
    ) -> None:
        self.known = known
        self.seed = seed
        self._items: dict[str, dict[str, str]] = defaultdict(dict)  # family → item → its block
        self._near: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        for fact, path in facts:
            kind = _shelf(family(fact.kind), path)
            for item in value_items(fact):
                self._items[kind].setdefault(item, fact.block)
                self._near[(kind, path)].setdefault(item, fact.block)
        self._lists = {kind: list(items) for kind, items in self._items.items()}

    def of(self, fact: Fact, block: CodeBlock) -> Iterator[tuple[str, str]]:
        """(false value, what was done) of a fact about a block, the most plausible first.

        The caller checks that they are false.
        """
        items = value_items(fact)
        if fact.kind == "code":
            yield from self._code(fact, block.name)
            return
        place = draw(self.seed, "corrupt", fact.block, fact.kind, fact.subject) % len(items)
        true = items[place]
        for false, how in self._instead(fact, block, true, items):
            changed = (*items[:place], false, *items[place + 1 :])
            yield fact_value(fact.kind, changed), f"{true!r} replaced by {false!r}, {how}"

    def _instead(
        self, fact: Fact, block: CodeBlock, true: str, items: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        kind, path = family(fact.kind), block.path
        chance = draw(self.seed, "how", fact.block, fact.kind, fact.subject)
        if kind == "guard":
            yield from _opposites(true, block.language)
        elif kind == "signature":
            own = fact.subject or block.name  # the subject of a callee's is the callee
            yield from self._changed_signature(true, own, path, block.language)
            return
        elif kind == "annotation":
            asked = fact.subject == "return"
            types = self._types(true, path, chance)
            yield from ((new, how) for new, how in types if asked or new != "None")
            return
        elif kind == "usage":
            callee = true.split("(", 1)[0]
            yield from (
                (true.replace(callee, name, 1), how) for name, how in self._invented(callee, chance)
            )
        elif kind in _NAMES and kind != "imports" and chance % 3 == 0:
            yield from self._invented(true, chance)
        # Another test may call the block too: only one that does not exist is certainly false.
        for other, source in self._others(kind, path, chance) if kind != "tests" else ():
            if other not in items and all(differs(kind, other, item) for item in items):
                yield other, f"of {source}"
        if kind in _NAMES:
            yield from self._invented(true, chance)
        elif kind == "location":
            yield from _moved(true)
        else:
            yield from _edited(true)
            if re.fullmatch(r"[A-Za-z_$][\w.$]*", true):
                yield from self._invented(true, chance)

    def _others(
        self, kind: str, path: str, chance: int, tries: int = TRIES
    ) -> Iterator[tuple[str, str]]:
        """Values of the same kind: of the same file first, then of all, from a drawn place on."""
        near, everywhere = self._near[(kind, path)], self._items[kind]
        own, names = list(near), self._lists.get(kind, [])
        for at in range(min(tries, len(own))):
            item = own[(chance + at) % len(own)]
            yield item, near[item]
        for at in range(min(tries, len(names))):
            item = names[(chance + at) % len(names)]
            yield item, everywhere[item]

    def _invented(self, name: str, chance: int) -> Iterator[tuple[str, str]]:
        """A name that no definition has, made from a real one."""
        match = re.search(r"([A-Za-z_$][\w$]*)(?=\W*$)", name.split("(", 1)[0])
        if match is None:
            return
        word = match.group(1)
        first = re.match(r"_*([a-z]+)(?=[A-Z_])", word)
        edits = []
        if first and first.group(1) in _VERBS:
            at = first.start(1)
            edits.append(word[:at] + _VERBS[first.group(1)] + word[first.end(1) :])
        endings = (
            ("_all", "_once", "_for") if "_" in word or word.islower() else ("All", "Once", "For")
        )
        if word.endswith(("Error", "Exception")):
            endings = ("Failure", "Fault", "Problem")
            edits += [re.sub(r"(?:Error|Exception)$", ending, word) for ending in endings]
        edits += [word + ending for ending in (*endings[chance % 3 :], *endings[: chance % 3])]
        for edit in edits:
            if edit not in self.known:
                changed = name[: match.start(1)] + edit + name[match.end(1) :]
                yield changed, "which does not exist"

    def _types(self, true: str, path: str, chance: int) -> Iterator[tuple[str, str]]:
        """Other types that are declared in the language, those of the same file first."""
        kind = _shelf("annotation", path)
        for other, source in self._others(kind, path, chance, len(self._lists.get(kind, ()))):
            literal = _type(other) in ("bool", "number", "text")
            if not literal and differs("annotation", other, true):
                yield other, f"of {source}"

    def _changed_signature(
        self, true: str, name: str, path: str, language: str
    ) -> Iterator[tuple[str, str]]:
        """A signature with one parameter, default or type changed; its own name stays."""
        masked = mask(true, language)
        opened = re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])[^()]*\(", masked)
        if opened is None:
            return
        begin, end = opened.end(), closing(masked, opened.end() - 1)
        chance = draw(self.seed, "signature", path, true)
        edits: list[list[tuple[str, str]]] = []
        for start, stop in _parts(masked, begin, end):
            parts = _parameter(masked[start:stop], language)
            for what, (left, right) in parts.items():
                old = true[start + left : start + right]
                edits.append(
                    [
                        (true[: start + left] + new + true[start + right :], f"another {what}")
                        for new in self._parts_instead(what, old, true, path, chance)
                    ]
                )
        returned = re.search(r"->\s*(\S.*)", true[end:]) if language == "python" else None
        if returned is not None:
            at = end + returned.start(1)
            types = self._types(returned.group(1), path, chance)
            edits.append([(true[:at] + other, "another return type") for other, _ in types])
        if not true[begin:end].strip() and language in _UNTYPED:
            words = [*self._parts_instead("parameter", "value", true, path, chance), "value"]
            edits.append([(true[:begin] + word + true[end:], "one more") for word in words])
        for number in range(len(edits)):
            yield from edits[(chance + number) % len(edits)]

    def _parts_instead(
        self, what: str, old: str, signature: str, path: str, chance: int
    ) -> Iterator[str]:
        """What may stand in a signature instead of a parameter's name, type or default."""
        if what == "type":
            yield from (new for new, _ in self._types(old, path, chance) if new != "None")
        elif what == "default":
            others = self._others("default", path, chance)
            yield from (new for new, _ in others if differs("default", new, old))
            yield from (new for new, _ in _edited(old))
        else:
            for new, _ in self._others("parameters", path, chance):
                if re.fullmatch(r"\w+", new) and not re.search(rf"\b{new}\b", signature):
                    yield new
            yield f"{old}_value"

    def _code(self, fact: Fact, own: str) -> Iterator[tuple[str, str]]:
        """The code with one call renamed, one of the repository's own where there is one."""
        code = fact.value
        calls = re.findall(r"(?<![\w$])([A-Za-z_]\w{2,})(?=\()", code)
        names = set(calls) - _KEYWORDS - {own}
        for name in sorted(names, key=lambda n: (n not in self.known, calls.index(n))):
            for false, _ in islice(self._invented(name, len(name)), 1):
                changed = re.sub(rf"(?<![\w$]){re.escape(name)}(?=\()", false, code)
                yield changed, f"{name!r} replaced by {false!r}, which does not exist"


_KEYWORDS = frozenset(("if", "for", "while", "switch", "catch", "return", "function", "func"))


def family(kind: str) -> str:
    """Kinds whose values look alike: a callee's location is a location."""
    if kind == "returns_when":
        return "returns"
    return kind.partition("_")[2] or kind if kind in RELATED_KINDS else kind


def _shelf(kind: str, path: str) -> str:
    """Where values of a family are kept: types of every language apart."""
    return f"{kind} {PurePosixPath(path).suffix}" if kind == "annotation" else kind


def _parts(masked: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans of [begin, end) between commas that no bracket surrounds."""
    depth, start = 0, begin
    for at in range(begin, end):
        sign = masked[at]
        if sign in "([{<":
            depth += 1
        elif sign in ")]}" or (sign == ">" and masked[at - 1] not in "-="):
            depth -= 1
        elif sign == "," and depth == 0:
            yield start, at
            start = at + 1
    yield start, end


def _parameter(masked: str, language: str) -> dict[str, tuple[int, int]]:
    """Where a parameter's name, its type and its default stand; nothing for a receiver."""
    form = _TYPE_FIRST if language in _TYPED_FIRST else _NAME_FIRST
    match = form.fullmatch(masked)
    if match is None or match["parameter"] in ("self", "cls", "this"):
        return {}
    return {what: match.span(what) for what, held in match.groupdict().items() if held}


def differs(kind: str, one: str, other: str) -> bool:
    """Whether two values certainly do not mean the same, and are of one type."""
    a, b = _plain(one), _plain(other)
    if a == b:
        return False
    if kind == "purpose":
        first, second = set(re.findall(r"\w+", one.lower())), set(re.findall(r"\w+", other.lower()))
        return len(first & second) <= 0.5 * min(len(first), len(second))
    if kind == "annotation":
        first, second = _words(one), _words(other)
        if first and second:
            return first != second
        words = [set(re.findall(r"\w+", text.lower())) for text in (one, other)]
        return all(words) and words[0].isdisjoint(words[1])
    if kind in ("raises", "bases", "decorators"):
        last = {text.split("(")[0].rpartition(".")[2] for text in (a, b)}
        return len(last) == 2 and not any(last <= same for same in _SAME)
    if kind in ("calls", "methods", "callers", "tests", "overrides"):
        return a.rpartition(".")[2] != b.rpartition(".")[2]
    if kind in ("default", "constant", "returns"):
        return _type(a) == _type(b) != "other" and a.rpartition(".")[2] != b.rpartition(".")[2]
    return True


def _plain(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("'", '"').rstrip(";")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text)) - _WRAPPERS


def _type(text: str) -> str:
    """The type of a literal, as far as its text shows it."""
    forms = {
        "bool": r"(?i:true|false)",
        "number": r"-?\d[\w.]*",
        "text": r'[rbfu]?".*"',
        "list": r"\[.+\]",
        "mapping": r"\{.+\}",
        "call": r"[\w.$]+\(.*\)",
        "name": r"(?!(?i:none|null|nil|undefined)$)[A-Za-z_$][\w.$]*",
    }
    return next((name for name, form in forms.items() if re.fullmatch(form, text)), "other")


def _opposites(condition: str, language: str) -> Iterator[tuple[str, str]]:
    """A condition that holds where the true one does not; of one part only."""
    if re.search(r"\b(?:and|or|for|if)\b|&&|\|\||\?", condition):
        return
    for pattern, instead in _OPPOSITE:
        changed, times = re.subn(pattern, instead, condition)
        if times == 1:
            yield changed, "the opposite"
    if re.fullmatch(r"[\w.]+(?:\([^()]*\))?", condition):
        yield f"{'not ' if language == 'python' else '!'}{condition}", "the opposite"


def _edited(text: str) -> Iterator[tuple[str, str]]:
    """A literal changed a little."""
    swaps = {"True": "False", "False": "True", "true": "false", "false": "true", "None": "False",
             "null": "false", "nil": "false", "undefined": "null"}  # fmt: skip
    if text in swaps:
        yield swaps[text], "another value"
    elif re.fullmatch(r"-?\d+", text):
        yield str(int(text) + 1), "another value"
    elif match := re.fullmatch(r"""([rbfu]?)(["'])(.*)\2""", text):
        yield f"{match[1]}{match[2]}{match[3]}_{match[2]}", "another value"


def _moved(place: str) -> Iterator[tuple[str, str]]:
    """Lines of the same length elsewhere in the file."""
    match = re.fullmatch(r"(.*):(\d+)-(\d+)", place)
    if match:
        by = int(match[3]) - int(match[2]) + 3
        yield f"{match[1]}:{int(match[2]) + by}-{int(match[3]) + by}", "lines further below"
