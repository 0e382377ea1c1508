"""Java and Go, read by a small tokenizer: for tests/dataset_checker.py.

No grammar: tokens, matched brackets, and the few shapes that definitions, calls, `return`, `if`
and `throw` have. It knows nothing of how forge_mcp reads these languages.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from dataset_readers import Bounds, Definition

_TOKEN = re.compile(
    r'(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"""(?:\\.|.)*?"""|"(?:\\.|[^"\\\n])*"'
    r"|'(?:\\.|[^'\\\n])*'|`[^`]*`)|(?P<word>[A-Za-z_$][\w$]*|[^\W\d]\w*)"
    r"|(?P<number>\.?\d(?:[\w.]|(?<=[eEpP])[+-])*)|(?P<op>\.\.\.|:=|->|::|==|!=|<=|>=|&&|\|\||[^\s])",
    re.DOTALL,
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_JAVA_WORDS = """
if for while switch catch synchronized try return new else case throw assert instanceof do
"""
_GO_WORDS = """
if for switch return func else case go defer select range map chan interface struct import
"""
_GO_BUILTINS = """
append cap clear close complex copy delete imag len make max min new panic print println real
recover string bool byte rune error any int int8 int16 int32 int64 uint uint8 uint16 uint32 uint64
uintptr float32 float64 complex64 complex128
"""
_JAVA_MODIFIERS = """
public protected private static final abstract native synchronized default strictfp transient
volatile sealed
"""
_NO_CALLEE = {True: frozenset(_JAVA_WORDS.split()), False: frozenset(_GO_WORDS.split())}
_BUILTINS = frozenset(_GO_BUILTINS.split())
_MODIFIERS = frozenset(_JAVA_MODIFIERS.split())
_TYPES = ("class", "interface", "enum", "record")


@dataclass(frozen=True)
class Token:
    """A token of a text; comments are kept apart."""

    kind: str
    text: str
    start: int
    end: int


class Source:
    """A text with its tokens and where each bracket's partner is."""

    def __init__(self, text: str, java: bool) -> None:
        self.text = text
        self.java = java
        self.tokens: list[Token] = []
        self.comments: list[Token] = []
        for match in _TOKEN.finditer(text):
            token = Token(match.lastgroup or "op", match.group(), match.start(), match.end())
            (self.comments if token.kind == "comment" else self.tokens).append(token)
        self.comment_ends = [comment.end for comment in self.comments]
        self.partner: dict[int, int] = {}
        stack: list[int] = []
        for index, token in enumerate(self.tokens):
            if token.kind != "op":
                continue
            if token.text in _PAIRS:
                stack.append(index)
            elif token.text in _PAIRS.values() and stack:
                opening = stack.pop()
                self.partner[opening] = index
                self.partner[index] = opening
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def line(self, offset: int) -> int:
        """1-based line of an offset."""
        return bisect_right(self.lines, offset)

    def slice(self, first: int, last: int) -> str:
        """Text from token `first` up to, not with, token `last`."""
        if last <= first:
            return ""
        return self.text[self.tokens[first].start : self.tokens[last - 1].end]

    def is_op(self, index: int, text: str) -> bool:
        """Whether there is such a token there that is not a string."""
        if not 0 <= index < len(self.tokens):
            return False
        return self.tokens[index].kind in ("op", "word") and self.tokens[index].text == text

    def word(self, index: int) -> str:
        """The word at an index, or nothing."""
        there = 0 <= index < len(self.tokens) and self.tokens[index].kind == "word"
        return self.tokens[index].text if there else ""

    def angle(self, index: int) -> int:
        """Behind the `>` that closes the `<` at `index`, or `index` where there is none."""
        if not self.is_op(index, "<"):
            return index
        depth, at = 0, index
        while at < len(self.tokens):
            text = self.tokens[at].text
            depth += (text == "<") - (text == ">")
            at += 1
            if depth == 0:
                return at
            if text in (";", "{", "}"):
                break
        return index

    def closed(self, index: int) -> int:
        """The partner of the bracket at `index`; the last token where it has none."""
        return self.partner.get(index, len(self.tokens) - 1)

    def split(self, first: int, last: int, by: str) -> list[tuple[int, int]]:
        """Ranges between the separators that stand outside of brackets."""
        parts, begin, at, angles = [], first, first, 0
        while at < last:
            text = self.tokens[at].text if self.tokens[at].kind == "op" else ""
            if text in _PAIRS:
                at = self.closed(at) + 1
                continue
            if self.java:
                angles += (text == "<") - (text == ">")
            if text == by and angles <= 0:
                parts.append((begin, at))
                begin = at + 1
            at += 1
        if begin < last:
            parts.append((begin, last))
        return parts

    def comment_above(self, offset: int) -> str:
        """The comments that end right above an offset."""
        found: list[str] = []
        above = bisect_right(self.comment_ends, offset)
        for comment in self.comments[above - 1 :: -1] if above else []:
            gap = self.text[comment.end : offset]
            if gap.strip() or gap.count("\n") > 1:
                break
            # A comment behind code on its line belongs to that code.
            line = self.text[self.text.rfind("\n", 0, comment.start) + 1 : comment.start]
            if line.strip():
                break
            found.append(comment.text)
            if comment.text.startswith("/**"):
                return comment.text
            offset = comment.start
        return "\n".join(reversed(found))


def token_definitions(text: str, java: bool) -> list[Definition]:
    """Everything that a Java or Go file defines, the module itself first."""
    source = Source(text, java)
    module = Definition("module", "", 1, text.count("\n") + 1)
    module.docstring = "\n".join(comment.text for comment in source.comments[:3])
    module.imports.own = list(_imports(source))
    module.imports.may = list(module.imports.own)
    module.constants = list(_constants(source, 0, len(source.tokens)))
    found = [module, *(_java(source) if java else _go(source))]
    everything = _Body(source, 0, len(source.tokens))
    module.calls, module.call_texts = everything.calls(), everything.call_texts()
    module.calls.own = []
    return found


def _imports(source: Source) -> Iterator[str]:
    at = 0
    while at < len(source.tokens):
        if source.word(at) == "import":
            if source.java:
                end = at
                while end < len(source.tokens) and not source.is_op(end, ";"):
                    end += 1
                first = at + 2 if source.word(at + 1) == "static" else at + 1
                yield source.slice(first, end)
            else:
                grouped = source.is_op(at + 1, "(")
                last = source.closed(at + 1) if grouped else at + 3
                strings = [t.text for t in source.tokens[at:last] if t.kind == "string"]
                yield from (text.strip('"`') for text in (strings if grouped else strings[:1]))
        at += 1


def _constants(source: Source, first: int, last: int) -> Iterator[tuple[str, str]]:
    """`name = value` everywhere in some tokens; who asks knows which name it wants."""
    for at in range(first, last):
        token = source.tokens[at]
        if token.kind == "op" and token.text in ("=", ":=") and source.word(at - 1):
            yield source.tokens[at - 1].text, source.slice(at + 1, _end(source, at + 1))
        # Go: const name Type = value
        if token.text == "=" and not source.java and source.word(at - 2):
            yield source.word(at - 2), source.slice(at + 1, _end(source, at + 1))


def _end(source: Source, at: int) -> int:
    """Behind the last token of the expression that begins at `at`."""
    while at < len(source.tokens):
        token = source.tokens[at]
        if token.kind == "op":
            if token.text in (";", ")", "]", "}") or (source.java and token.text == ","):
                return at
            if token.text in _PAIRS:
                at = source.closed(at)
                token = source.tokens[at]
        at += 1
        if not source.java and at < len(source.tokens):
            between = source.text[token.end : source.tokens[at].start]
            ends = token.kind != "op" or token.text in (")", "]", "}")
            if "\n" in between and ends:
                return at
    return at


# -- bodies --------------------------------------------------------------------------------------


class _Body:
    """What stands in the tokens of a body, with and without functions inside it."""

    def __init__(self, source: Source, first: int, last: int) -> None:
        self.source, self.first, self.last = source, first, last
        self.nested = bytearray(max(last - first, 0))
        for begin, end in self._inner():
            self.nested[begin - first : end + 1 - first] = b"\1" * (min(end + 1, last) - begin)

    def _inner(self) -> Iterator[tuple[int, int]]:
        """Token ranges of function literals, lambdas and anonymous classes."""
        source, at = self.source, self.first
        while at < self.last:
            if source.java and source.is_op(at, "->"):
                end = source.closed(at + 1) if source.is_op(at + 1, "{") else _end(source, at + 1)
                yield at, end
            elif source.java and source.word(at) == "new" and (brace := _anonymous(source, at)):
                yield brace, source.closed(brace)
            elif source.java and source.word(at) in _TYPES and source.word(at + 1):
                brace = at
                while brace < self.last and not source.is_op(brace, "{"):
                    brace += 1
                yield brace, source.closed(brace)
            elif not source.java and source.word(at) == "func":
                brace = at
                while brace < self.last and not source.is_op(brace, "{"):
                    nested = source.is_op(brace, "(")
                    brace = source.closed(brace) + 1 if nested else brace + 1
                yield at, source.closed(brace) if brace < self.last else at
            at += 1

    def _own(self, at: int) -> bool:
        return not self.nested[at - self.first]

    def calls(self) -> Bounds:
        found = Bounds()
        for at, chain, start in self._callees():
            source = self.source
            new = source.word(start - 1) == "new"
            name = source.tokens[at - 1].text
            plain = re.sub(r"<.*", "", chain, flags=re.DOTALL)
            found.may += [chain, f"new {chain}", name, plain, f"new {plain}"]
            if source.is_op(start - 1, ".") or new or not re.fullmatch(r"[\w$.]+", chain):
                continue
            if self._own(at) and chain not in _BUILTINS and name not in _BUILTINS:
                found.own.append(chain)
        return found

    def call_texts(self) -> list[tuple[str, str]]:
        source = self.source
        found = []
        for at, chain, start in self._callees():
            end = source.closed(at) + 1
            found.append((chain, source.slice(start, end)))
            if source.word(start - 1) == "new":
                found.append((chain, source.slice(start - 1, end)))
        return found

    def _callees(self) -> Iterator[tuple[int, str, int]]:
        """(index of the bracket, callee's text, index of its first token)."""
        source = self.source
        for at in range(self.first, self.last):
            if not source.is_op(at, "("):
                continue
            before = at - 1
            if source.java and source.is_op(before, ">"):  # new A<B>( and x.<A>y(
                while before > self.first and not source.is_op(before, "<"):
                    before -= 1
                before -= 1
            elif not source.java and source.is_op(before, "]"):
                before = source.closed(before) - 1
            name = source.word(before)
            if not name or name in _NO_CALLEE[source.java]:
                continue
            start = before
            while source.is_op(start - 1, "."):
                start -= 2
                while (
                    source.is_op(start, ")") or source.is_op(start, "]") or source.is_op(start, "}")
                ):
                    start = source.closed(start)
                    if source.word(start - 1) or source.is_op(start - 1, ")"):
                        start -= 1
            if source.word(start - 1) == "func" or source.is_op(start - 1, "@"):
                continue
            if source.java and self._declares(at, start):
                continue
            yield at, source.slice(start, at), start

    def _declares(self, at: int, start: int) -> bool:
        """Whether this is a method's declaration inside an anonymous or local class."""
        source = self.source
        behind = source.closed(at) + 1
        typed = bool(source.word(start - 1)) and source.word(start - 1) not in _NO_CALLEE[True]
        typed = typed or source.is_op(start - 1, ">") or source.is_op(start - 1, "]")
        return typed and (source.is_op(behind, "{") or source.word(behind) == "throws")

    def returns(self) -> Bounds:
        found = Bounds()
        for at in range(self.first, self.last):
            if self.source.word(at) == "return" and (value := self._value(at)):
                found.may.append(value)
                if self._own(at):
                    found.own.append(value)
        return found

    def _value(self, at: int) -> str:
        """The expression behind the keyword at `at`."""
        source = self.source
        if not source.java and at + 1 < self.last:
            between = source.text[source.tokens[at].end : source.tokens[at + 1].start]
            if "\n" in between:
                return ""
        end = at + 1
        while end < self.last:
            stop = _end(source, end)
            if not source.is_op(stop, ","):
                end = stop
                break
            end = stop + 1
        return source.slice(at + 1, min(end, self.last))

    def raises(self) -> Bounds:
        found = Bounds()
        for at in range(self.first, self.last):
            for name, certain in self._raised(at):
                found.may.append(name)
                if certain and self._own(at):
                    found.own.append(name)
        return found

    def _raised(self, at: int) -> list[tuple[str, bool]]:
        """What the statement at `at` raises: in Go, `panic`'s argument or its type may be named."""
        source = self.source
        if source.java and source.word(at) == "throw":
            if source.word(at + 1) == "new":
                end = at + 2
                while source.word(end) or source.is_op(end, "."):
                    end += 1
                return [(source.slice(at + 2, end), True)]
            value = self._value(at)
            return [(value, False), (value.split("(")[0], False)]
        if not source.java and source.word(at) == "panic" and source.is_op(at + 1, "("):
            value = source.slice(at + 2, source.closed(at + 1))
            return [("panic", False), (value, False), (f"panic({value})", False)]
        if not source.java and source.word(at) == "return":
            return _returned_error(self._value(at))
        return []

    def guards(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(exceptions with their conditions, returned values with theirs)."""
        source = self.source
        conditions: list[tuple[str, str]] = []
        values: list[tuple[str, str]] = []
        for at in range(self.first, self.last):
            if source.word(at) != "if" or not self._own(at):
                continue
            if source.java:
                close = source.closed(at + 1)
                tests = [source.slice(at + 2, close)]
                begin = close + 1
            else:
                begin = at + 1
                while begin < self.last and not source.is_op(begin, "{"):
                    nested = source.is_op(begin, "(") or source.is_op(begin, "[")
                    begin = source.closed(begin) + 1 if nested else begin + 1
                parts = source.split(at + 1, begin, ";")
                tests = [source.slice(at + 1, begin)]
                tests += [source.slice(*parts[-1])] if parts else []
            for statement in self._statements(begin):
                if source.word(statement) == "return":
                    values += [(test, self._value(statement)) for test in tests]
                for name, _ in self._raised(statement):
                    conditions += [(name, test) for test in tests]
        return conditions, values

    def _statements(self, at: int) -> Iterator[int]:
        """First tokens of what stands directly in the block, or of the statement, at `at`."""
        source = self.source
        if not source.is_op(at, "{"):
            yield at
            return
        inside, last = at + 1, source.closed(at)
        while inside < last:
            previous = source.tokens[inside - 1]
            if previous.text in ("{", ";", "}") or not source.java:
                yield inside
            opens = source.tokens[inside].kind == "op" and source.tokens[inside].text in _PAIRS
            inside = source.closed(inside) + 1 if opens else inside + 1


def _returned_error(values: str) -> list[tuple[str, bool]]:
    """Go's exceptions are values: a package's ErrName is one for certain, a made one may count."""
    value = re.sub(r"^.*,\s*(?=[^,()]*(?:\(.*\))?$)", "", values, flags=re.DOTALL)
    named = re.fullmatch(r"(?:\w+\.)*Err[A-Z]\w*", value) is not None
    return [(value, named), (re.sub(r"[({].*", "", value, flags=re.DOTALL).lstrip("&"), False)]


def _function(source: Source, begin: int, name: str, body: int, end: int) -> Definition:
    """A function from its first token, with its body from the bracket `body` to the token `end`."""
    first = source.tokens[begin].start
    definition = Definition(
        "function",
        name,
        source.line(first),
        source.line(source.tokens[end].start),
        header=source.text[
            first : source.tokens[body].start if body <= end else source.tokens[end].end
        ],
        docstring=source.comment_above(first),
    )
    inside = _Body(source, body, end if source.is_op(body, "{") else body)
    definition.calls, definition.call_texts = inside.calls(), inside.call_texts()
    definition.returns, definition.raises = inside.returns(), inside.raises()
    definition.conditions, definition.returns_when = inside.guards()
    return definition


# -- Java ----------------------------------------------------------------------------------------


def _anonymous(source: Source, at: int) -> int:
    """The brace of the class body behind `new Type(…)`, or 0."""
    end = at + 1
    while source.word(end) or source.is_op(end, "."):
        end += 1
    end = source.angle(end)
    if not source.is_op(end, "("):
        return 0
    return source.closed(end) + 1 if source.is_op(source.closed(end) + 1, "{") else 0


def _java(source: Source) -> Iterator[Definition]:
    yield from _java_members(source, 0, len(source.tokens), "")
    for at in range(len(source.tokens)):
        if source.word(at) == "new" and (brace := _anonymous(source, at)):
            yield from _java_members(source, brace + 1, source.closed(brace), "")
        elif source.word(at) in _TYPES and source.word(at + 1) and _is_local(source, at):
            begin = at
            while source.word(begin - 1) in _MODIFIERS:
                begin -= 1
            yield from _java_type(source, begin, at)


def _is_local(source: Source, at: int) -> bool:
    """Whether the type declared at `at` stands in a method's body: a statement precedes it."""
    depth_opener = at
    while depth_opener > 0:
        depth_opener -= 1
        token = source.tokens[depth_opener]
        if token.kind == "op" and token.text in _PAIRS.values():
            depth_opener = source.closed(depth_opener)
        elif token.kind == "op" and token.text == "{":
            return source.is_op(depth_opener - 1, ")")
    return False


def _java_members(source: Source, first: int, last: int, owner: str) -> Iterator[Definition]:
    begin = at = first
    while at < last:
        token = source.tokens[at]
        if token.kind == "op" and token.text in (";", "}"):
            begin = at = at + 1
        elif token.kind == "op" and token.text == "@" and source.word(at + 1) != "interface":
            at += 2
            while source.is_op(at, "."):
                at += 2
            at = source.closed(at) + 1 if source.is_op(at, "(") else at
        elif token.text in _TYPES and source.word(at + 1) and not source.is_op(at + 2, "="):
            is_record = token.text != "record" or source.is_op(source.angle(at + 2), "(")
            if is_record:
                yield from _java_type(source, begin, at)
                while not source.is_op(at, "{"):
                    at += 1
                begin = at = source.closed(at) + 1
            else:
                at += 1
        elif token.kind == "op" and token.text == "<":
            at = max(source.angle(at), at + 1)
        elif token.kind == "op" and token.text == "(" and source.word(at - 1):
            end = source.closed(at) + 1
            while end < last and not (source.is_op(end, "{") or source.is_op(end, ";")):
                end += 1
            close = source.closed(end) if source.is_op(end, "{") else end
            yield _java_method(source, begin, at, end, close)
            begin = at = close + 1
        elif token.kind == "op" and token.text == "=":
            at = _end(source, at + 1)
            while source.is_op(at, ","):
                at = _end(source, at + 1)
        elif token.kind == "op" and token.text == "{":  # an initializer, or a record's constructor
            if owner and source.word(at - 1) == owner:
                yield _function(source, begin, owner, at, source.closed(at))
            begin = at = source.closed(at) + 1
        else:
            at += 1


def _java_method(source: Source, begin: int, bracket: int, body: int, close: int) -> Definition:
    name = source.word(bracket - 1)
    definition = _function(source, begin, name, body, close)
    for first, last in source.split(bracket + 1, source.closed(bracket), ","):
        at = first
        while source.is_op(at, "@") or source.word(at) == "final":
            at += 2 if source.is_op(at, "@") else 1
            at = source.closed(at) + 1 if source.is_op(at, "(") else at
        dimensions = last
        while source.is_op(dimensions - 1, "]"):
            dimensions -= 2
        annotation = source.slice(at, dimensions - 1) + source.slice(dimensions, last)
        definition.parameters.append((source.word(dimensions - 1), annotation, ""))
    behind = source.closed(bracket) + 1
    if source.word(behind) == "throws":
        declared = [source.slice(*part) for part in source.split(behind + 1, body, ",")]
        definition.raises.may += declared
    at = begin
    while source.word(at) in _MODIFIERS or source.is_op(at, "@"):
        at = _annotation(source, at, definition) if source.is_op(at, "@") else at + 1
    at = source.angle(at)
    while source.is_op(at, "@"):
        at = _annotation(source, at, definition)
    definition.result = source.slice(at, bracket - 1)
    return definition


def _annotation(source: Source, at: int, definition: Definition) -> int:
    end = at + 2
    while source.is_op(end, "."):
        end += 2
    end = source.closed(end) + 1 if source.is_op(end, "(") else end
    definition.decorators.append(source.slice(at + 1, end))
    return end


def _java_type(source: Source, begin: int, at: int) -> Iterator[Definition]:
    """The type whose keyword is at `at`, and what it holds."""
    brace = at
    while brace < len(source.tokens) - 1 and not source.is_op(brace, "{"):
        brace = source.closed(brace) + 1 if source.is_op(brace, "(") else brace + 1
    close = source.closed(brace)
    name = source.word(at + 1)
    definition = _function(source, begin, name, brace, close)
    definition.kind = "class"
    modifier = begin
    while modifier < at:
        is_annotation = source.is_op(modifier, "@") and source.word(modifier + 1) != "interface"
        modifier = _annotation(source, modifier, definition) if is_annotation else modifier + 1
    clause = ""
    start = source.angle(at + 2)
    marks = [i for i in range(start, brace) if source.word(i) in ("extends", "implements")]
    marks = [i for i in marks if source.split(start, i + 1, "\0")[-1][1] == i + 1]
    outside = [i for i in marks if not _in_angles(source, start, i)]
    for index, mark in enumerate(outside):
        clause = source.word(mark)
        until = outside[index + 1] if index + 1 < len(outside) else brace
        for part in source.split(mark + 1, until, ","):
            text = source.slice(*part)
            definition.bases.may += [text, text.split("<")[0]]
            if clause == "extends":
                definition.bases.own.append(text.split("<")[0])
    first = brace + 1
    if source.tokens[at].text == "enum":
        while first < close and not source.is_op(first, ";"):
            if source.is_op(first, "{"):
                yield from _java_members(source, first + 1, source.closed(first), "")
            opens = source.tokens[first].kind == "op" and source.tokens[first].text in _PAIRS
            first = source.closed(first) + 1 if opens else first + 1
    members = list(_java_members(source, first, close, name))
    inside = source.line(source.tokens[brace].start), source.line(source.tokens[close].start)
    definition.methods.may = [m.name for m in members if m.kind == "function"]
    nested = [(m.start, m.end) for m in members if m.kind == "class"]
    definition.methods.own = [
        m.name
        for m in members
        if m.kind == "function"
        and m.name != name
        and inside[0] <= m.start
        and not any(start <= m.start and m.end <= end for start, end in nested)
    ]
    definition.constants = list(_constants(source, first, close))
    for member in members:
        if member.kind == "class":  # what a type inside defines is its own
            for row in member.constants:
                if row in definition.constants:
                    definition.constants.remove(row)
    yield definition
    yield from members


def _in_angles(source: Source, first: int, at: int) -> bool:
    texts = [token.text for token in source.tokens[first:at] if token.kind == "op"]
    return texts.count("<") > texts.count(">")


# -- Go ------------------------------------------------------------------------------------------


def _go(source: Source) -> Iterator[Definition]:
    receivers: list[tuple[str, str]] = []
    types: list[Definition] = []
    at = 0
    for inside in range(len(source.tokens)):  # types that a function's body declares
        named = source.word(inside) == "type" and source.word(inside + 1)
        if named and source.text[source.tokens[inside].start - 1] in "\t ":
            yield _go_type(source, inside, inside + 1)[0]
    while at < len(source.tokens):
        if source.word(at) == "func" and source.text[source.tokens[at].start - 1] in "\n":
            definition, receiver, at = _go_function(source, at)
            if definition is not None:
                receivers.append((receiver, definition.name))
                yield definition
        elif source.word(at) == "type":
            grouped = source.is_op(at + 1, "(")
            last = source.closed(at + 1) if grouped else len(source.tokens)
            inside = at + 2 if grouped else at + 1
            while inside < last and source.word(inside):
                begin = inside if grouped else at
                definition, inside = _go_type(source, begin, inside)
                types.append(definition)
                if not grouped:
                    break
            at = last + 1 if grouped else inside
        elif source.tokens[at].kind == "op" and source.tokens[at].text in _PAIRS:
            at = source.closed(at) + 1
        else:
            at += 1
    for definition in types:
        definition.methods.may += [name for on, name in receivers if on == definition.name]
        yield definition
    yield from _go_literals(source)


def _go_function(source: Source, at: int) -> tuple[Definition | None, str, int]:
    begin, receiver = at, ""
    at += 1
    if source.is_op(at, "("):
        words = [t.text for t in source.tokens[at : source.closed(at)] if t.kind == "word"]
        inner = source.slice(at + 1, source.closed(at))
        receiver = re.sub(r"\[.*", "", inner).split()[-1].lstrip("*") if words else ""
        at = source.closed(at) + 1
    name = source.word(at)
    if not name:
        return None, "", begin + 1
    at += 1
    at = source.closed(at) + 1 if source.is_op(at, "[") else at
    bracket = at
    body = source.closed(bracket) + 1
    result_start = body
    while body < len(source.tokens) and not source.is_op(body, "{"):
        if source.word(body) in ("interface", "struct") and source.is_op(body + 1, "{"):
            body = source.closed(body + 1) + 1
        elif source.is_op(body, "(") or source.is_op(body, "["):
            body = source.closed(body) + 1
        elif source.word(body) in ("func", "type", "var", "const") and body > result_start:
            break
        else:
            body += 1
    if not source.is_op(body, "{"):
        return None, "", bracket + 1
    close = source.closed(body)
    definition = _function(source, begin, name, body, close)
    definition.parameters = _go_parameters(source, bracket)
    definition.result = source.slice(result_start, body)
    return definition, receiver, close + 1


def _go_parameters(source: Source, bracket: int) -> list[tuple[str, str, str]]:
    parts = source.split(bracket + 1, source.closed(bracket), ",")
    named = any(last - first > 1 and _names(source, first) for first, last in parts)
    found: list[tuple[str, str, str]] = []
    waiting: list[str] = []
    for first, last in parts:
        if not named:
            found.append(("", source.slice(first, last), ""))
        elif last - first == 1:
            waiting.append(source.word(first))
        else:
            annotation = source.slice(first + 1, last)
            found += [(name, annotation, "") for name in [*waiting, source.word(first)]]
            waiting = []
    return found


def _names(source: Source, first: int) -> bool:
    """Whether a parameter's first token is its name: what follows is no part of a type's name."""
    reserved = ("func", "map", "chan", "struct", "interface")
    behind = source.tokens[first + 1].text
    if not source.word(first) or source.word(first) in reserved or behind == ".":
        return False
    if behind == "[":  # a []T is a name and a slice; G[T] is a type
        return source.text[source.tokens[first].end] == " "
    return True


def _go_type(source: Source, begin: int, at: int) -> tuple[Definition, int]:
    name = source.word(at)
    kind = at + 1
    if source.is_op(kind, "[") and source.word(kind + 1) and not source.is_op(kind + 1, "]"):
        kind = source.closed(kind) + 1
    shape = source.word(kind) if source.is_op(kind + 1, "{") else ""
    close = source.closed(kind + 1) if shape in ("struct", "interface") else 0
    end = close + 1 if close else _end(source, kind)
    definition = _function(source, begin, name, kind + 1 if close else end, close or end - 1)
    definition.kind = "class"
    definition.end = source.line(source.tokens[end - 1].start)
    if close:
        # Lines of the body are fields or methods; those without a name before the type embed.
        for line in _go_lines(source, kind + 2, close):
            first, last = line
            text = re.sub(r"\s*(`[^`]*`|\"[^\"]*\")$", "", source.slice(first, last))
            if shape == "interface" and source.word(first) and source.is_op(first + 1, "("):
                definition.methods.own.append(source.word(first))
                definition.methods.may.append(source.word(first))
            elif re.fullmatch(r"\*?[\w.]+(\[[^\]]*\])?", text):
                definition.bases.own.append(text.lstrip("*"))
                definition.bases.may += [text, text.lstrip("*")]
    return definition, end


def _go_lines(source: Source, first: int, last: int) -> Iterator[tuple[int, int]]:
    begin = at = first
    while at < last:
        opens = source.tokens[at].kind == "op" and source.tokens[at].text in _PAIRS
        at = source.closed(at) + 1 if opens else at + 1
        if at >= last or "\n" in source.text[source.tokens[at - 1].end : source.tokens[at].start]:
            yield begin, min(at, last)
            begin = at


def _go_literals(source: Source) -> Iterator[Definition]:
    """Function literals that are bound to a name."""
    for at in range(2, len(source.tokens)):
        bound = source.is_op(at - 1, "=") or source.is_op(at - 1, ":=") or source.is_op(at - 1, ":")
        if source.word(at) != "func" or not bound or not source.is_op(at + 1, "("):
            continue
        body = source.closed(at + 1) + 1
        while body < len(source.tokens) and not source.is_op(body, "{"):
            body = source.closed(body) + 1 if source.is_op(body, "(") else body + 1
        if body >= len(source.tokens):
            continue
        begin = at - 2
        while source.word(begin - 1) in ("var", "const") or source.is_op(begin - 1, "."):
            begin -= 1 if source.word(begin - 1) else 2
        definition = _function(source, begin, source.word(at - 2), body, source.closed(body))
        definition.parameters = _go_parameters(source, at + 1)
        definition.result = source.slice(source.closed(at + 1) + 1, body)
        yield definition
