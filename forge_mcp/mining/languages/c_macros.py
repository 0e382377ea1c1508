"""Parsing C and C++ before the preprocessor has run.

A grammar cannot know that `LUA_API` or `LOCKS_EXCLUDED(mu)` stands for nothing, nor which branch
of an `#if` opens the brace that is closed below. What it cannot place is hidden from it: the
parser skips these bytes, while all offsets, and the text of every node, stay those of the file.
First comes what a pattern can tell, then, round by round, the words where parsing failed.
Anything else that does not parse stays a syntax error.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, Point, Range, Tree

Span = tuple[int, int]

MACRO = rb"[A-Z][A-Z0-9_]+"
# Balanced up to four levels, without statements and blocks.
IN_PARENTHESES = (
    rb"\((?:[^(){};\"]++|\"(?:[^\"\\\n]|\\.)*+\""
    rb"|\((?:[^(){};]++|\((?:[^(){};]++|\([^(){};]*+\))*+\))*+\))*+\)"
)
ANNOTATION = MACRO + rb"(?:[ \t]*" + IN_PARENTHESES + rb")?"
INITIALIZER = rb"\w+(?:<[^<>(){};]*>)?\s*(?:" + IN_PARENTHESES + rb"|\{[^{}();]*\})"
# `class EXPORT Foo : Base {`: without an error, the grammar takes EXPORT for the name.
CLASS_MACRO = re.compile(
    rb"\b(?:class|struct|union|enum)\s+(?:class\s+)?(" + ANNOTATION + rb")\s+"
    rb"(?!final\b)(?=[A-Za-z_][\w:]*\s*(?:<[^;{}()]{0,200}>\s*)?(?:final\s*)?(?::[^:]|\{))"
)
# The guard of a header, of which everything else would be a branch.
BLANK = rb"(?:\s++|//[^\n]*+|(?>/\*.*?\*/))*+"
GUARD = re.compile(
    BLANK + rb"(\#[ \t]*ifndef[ \t]+(\w+)[^\n]*)\n\s*\#[ \t]*define[ \t]+\2\b", re.DOTALL
)
GUARD_END = re.compile(rb"(\#[ \t]*endif)" + BLANK + rb"\Z", re.DOTALL)
# Comments and literals, in which nothing counts; directives; brackets.
LEXEME = re.compile(
    rb"//(?:[^\n\\]|\\.)*|/\*.*?(?:\*/|\Z)|R\"([^(\s]*)\(.*?(?:\)\1\"|\Z)"
    rb"|\"(?:[^\"\\\n]|\\.)*\""
    rb"|'(?:[^'\\\n]|\\.)+'"
    rb"|^[ \t]*\#[ \t]*(?P<directive>[a-z]+)(?:[^\n\\/]|\\.|/(?![/*])|//[^\n]*|/\*.*?\*/)*"
    rb"|[{}()]",
    re.DOTALL | re.MULTILINE,
)
DIRECTIVE_LINE = re.compile(rb"^[ \t]*\#(?:[^\n\\]|\\.)*", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(rb"/\*.*?\*/|//[^\n]*", re.DOTALL)
CONTINUED_COMMENT = re.compile(rb"/\*.*?\*/(?=.*\\$)", re.DOTALL | re.MULTILINE)
COMPLETE = b";}{,:"  # a branch that ends so can stay beside the branch before it
PATTERNS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        # On lines of their own: FMT_BEGIN_NAMESPACE, Q_OBJECT
        rb"(?:\A|[;{}>:]|^[ \t]*\#[^\n]*|\*/|//[^\n]*)\s*^[ \t]*"
        rb"(" + ANNOTATION + rb"(?:[ \t]*\n\s*" + ANNOTATION + rb")*)[ \t]*$"
        rb"(?=\s*(?:\Z|[#/}]|\n[ \t]*\n|(?:namespace|template|class|struct|enum|union|using"
        rb"|typedef|public|private|protected)\b))",
        # A call on a line of its own: `DEFINE_FLAG(int, limit, 256 << 10);`, `NON_NULL(2)`
        rb"^(" + MACRO + IN_PARENTHESES + rb"[ \t]*;?)[ \t]*$(?!\s*\{)",
        rb"^[ \t]+(" + MACRO + IN_PARENTHESES + rb")[ \t]*$(?=\s*[A-Za-z_])",
        # A type as an argument: `ASSERT_HEX(unsigned int, 12);`
        rb"^[ \t]+(" + MACRO + rb"\(\s*(?:unsigned|signed|long|short|const|int|char|bool|float"
        rb"|double|size_t|u?int\d+_t)\b[^(){};]*\)[ \t]*;)",
        # Sections of a class: `PRIVATE_UNLESS_TESTED:`, `public slots:`
        rb"^[ \t]*((?:" + MACRO + rb"|signals)[ \t]*:)[ \t]*$",
        rb"\b(?:public|private|protected)[ \t]+(\w+)[ \t]*:",
        # Before what can have no type: `EXPORT template <…>`, `INLINE explicit Foo(`, `API ~Foo(`
        rb"\b(" + ANNOTATION + rb")[ \t]+(?=(?:template|using|namespace|typedef|explicit)\b|~)",
        rb"\bexplicit\s+(" + ANNOTATION + rb")(?=\s)",
        # Types behind a macro, which the grammar takes for the type: `API std::string name(`
        rb"^[ \t]*(?:inline[ \t]+)?" + MACRO + rb"\s+((?:[A-Za-z_]\w*(?:::\w+)*(?:<[^<>(){};]*>)?"
        rb"[\s*&]+){1,8})(?=(?:operator\b|\w+\s*\())",
        # Statements: `JSON_TRY {`, `BOOST_FOREACH(a, b) {`
        rb"^[ \t]+(" + MACRO + rb")[ \t]*$(?=\s*\{)",
        rb"^[ \t]+\}?[ \t]*([A-Z_]*(?:CATCH|TRY|EACH|LOOP)[A-Z_]*\s*"
        + IN_PARENTHESES
        + rb")(?=\s*\{)",
        # Behind `template <…>`: `template <typename T> CONSTEXPR INLINE void f(`
        rb">\s*((?:" + ANNOTATION + rb"\s+)+)(?=[A-Za-z_~])",
        # The last parameter of a template: `template <typename T, ENABLE_IF(is_integral<T>)>`
        rb"(,\s*" + MACRO + IN_PARENTHESES + rb")\s*>",
        # Initializers, for which there is no place behind a type: `CONSTEXPR rgb() : r(0) {}`
        rb"\b" + MACRO + rb"\s+\w+\s*" + IN_PARENTHESES + rb"(?:\s*noexcept)?\s*"
        rb"(:\s*" + INITIALIZER + rb"(?:\s*,\s*" + INITIALIZER + rb")*\s*)(?=\{)",
        # Between a type and a function's name: `static void printflike(1, 2) log_debug(`
        rb"\s(\w+\([\d\s,]+\))\s+\w+\s*\(",
        # Behind the parameters of a function: `int size() const LOCKS_EXCLUDED(mu_) {`
        rb"\w\s*" + IN_PARENTHESES + rb"(?:\s*(?:const|noexcept|override|final)\b)*"
        rb"\s*((?:\b" + ANNOTATION + rb"\s*)+)(?=[;{])",
        # Behind a field: `int size GUARDED_BY(mu_);`
        rb"[\w>\]][*&\s]+(?!return\b|else\b|do\b|new\b|throw\b|case\b)[A-Za-z_]\w*\s+"
        rb"(" + MACRO + IN_PARENTHESES + rb")\s*(?=;)",
    )
)
CONTROL = re.compile(rb"\b(?:if|for|while|switch|return|sizeof|else|do|case)\s*\(")
WORDS = re.compile(rb"(?:[A-Za-z_]\w*+[\s*&]*+)++")
MACRO_CALL = re.compile(MACRO + IN_PARENTHESES + rb"\s*;?")
EXPRESSIONS = frozenset(
    {"argument_list", "binary_expression", "unary_expression", "call_expression"}
)
MACRO_WORD = re.compile(rb"\b((?:" + MACRO + rb"|__\w+)(?:" + IN_PARENTHESES + rb")?)")
PARAMETER_END = re.compile(rb"[,)=;{]")
FIRST_WORD = re.compile(
    rb"\s*\b((?!(?:const|volatile|struct|union|enum|unsigned|signed|long|short|int|char|void"
    rb"|float|double|bool)\b)[A-Za-z_]\w*(?:" + IN_PARENTHESES + rb")?)\s+(?=[A-Za-z_])"
)
PARAMETERS = frozenset(
    {"parameter_list", "parameter_declaration", "optional_parameter_declaration"}
    | {"pointer_declarator"}
)
JOINED = re.compile(rb"\w\w")  # without what stands between, two words would be read as one
# Where a word too many is a mistake, not a macro.
STATEMENTS = re.compile(r"(?<!compound)_(?:statement|expression|clause)$")
LEADING = re.compile(rb"\s*\b(" + ANNOTATION + rb")\s+(?=[A-Za-z_~])")
ROUNDS = 4
HALVINGS = 2


class _Parsed:
    """A tree, what was hidden from it, its errors, and how many bytes are in error."""

    def __init__(self, tree: Tree, hidden: set[Span]) -> None:
        self.tree = tree
        self.hidden = hidden
        self.errors = list(_errors(tree.root_node))
        # A missing token counts as one byte.
        self.extent = sum(max(e.end_byte - e.start_byte, 1) for e in self.errors)


@dataclass
class _Branch:
    """A branch of an `#if`: where its content stands, and what brackets it leaves open."""

    start: int
    depth: int
    lowest: int
    is_first: bool


def parse(grammar: Grammar, source: bytes) -> Tree:
    """The tree of a file with as few errors as hiding macros can bring about."""
    hidden = {match.span(1) for match in CLASS_MACRO.finditer(source)}
    if guard := GUARD.match(source):
        end = GUARD_END.search(source, source.rfind(b"#", guard.end()))
        hidden |= {guard.span(1), end.span(1)} if end else set()
    tree = _parse(grammar, source, hidden)
    if not tree.root_node.has_error:
        return tree
    attempts: list[Callable[[list[Node]], Iterable[Span]]] = [
        lambda errors: _conditionals(source),
        lambda errors: _patterns(source),
        *[lambda errors: chain.from_iterable(_unplaced(e, source) for e in errors)] * ROUNDS,
        *[lambda errors: chain.from_iterable(_annotations(e, source) for e in errors)] * 2,
    ]
    best = _Parsed(tree, hidden)
    refused: set[Span] = set()
    for attempt in attempts:
        found = set(attempt(best.errors)) - best.hidden
        if found and found != refused:
            better = _improved(grammar, source, best, found, HALVINGS)
            refused = found if better is best else set()
            best = better
    return best.tree


def _improved(
    grammar: Grammar, source: bytes, best: _Parsed, found: set[Span], halvings: int
) -> _Parsed:
    """With more spans hidden, or with half of them where all together make it worse."""
    better = _Parsed(_parse(grammar, source, best.hidden | found), best.hidden | found)
    if better.extent < best.extent:
        return better
    if halvings and len(found) > 1:
        ordered = sorted(found)
        middle = len(ordered) // 2
        for half in (ordered[:middle], ordered[middle:]):
            best = _improved(grammar, source, best, set(half), halvings - 1)
    return best


def _parse(grammar: Grammar, source: bytes, hidden: set[Span]) -> Tree:
    if not hidden:
        return Parser(grammar).parse(source)
    rows = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def point(at: int) -> Point:
        row = bisect_right(rows, at) - 1
        return Point(row, at - rows[row])

    ranges, at = [], 0
    for start, end in [*sorted(hidden), (len(source), len(source))]:
        if start > at:
            ranges.append(Range(point(at), point(start), at, start))
        at = max(at, end)
    return Parser(grammar, included_ranges=ranges).parse(source)


def _conditionals(source: bytes) -> Iterator[Span]:
    """Lines of `#if` … `#endif`, branches that cannot stand beside the one before them, and
    comments within `#define`, behind which the grammar loses the rest of a macro.
    """
    groups: list[_Branch] = []
    depth = 0
    for match in LEXEME.finditer(source):
        directive = match["directive"]
        if directive is None:
            step = {b"{": 1, b"(": 1, b"}": -1, b")": -1}.get(match[0], 0)
            depth += step
            if groups:
                groups[-1].lowest = min(groups[-1].lowest, depth)
            continue
        if directive == b"define":
            for comment in CONTINUED_COMMENT.finditer(match[0]):
                yield match.start() + comment.start(), match.start() + comment.end()
        elif directive in (b"if", b"ifdef", b"ifndef"):
            yield match.span()
            groups.append(_Branch(match.end(), depth, depth, is_first=True))
        elif directive in (b"elif", b"else", b"endif") and groups:
            branch = groups[-1]
            content = COMMENT.sub(b"", source[branch.start : match.start()])
            content = DIRECTIVE_LINE.sub(b"", content).strip()
            whole = depth == branch.depth == branch.lowest
            if not branch.is_first and content and not (whole and content[-1:] in COMPLETE):
                yield branch.start, match.start() - 1
                depth = branch.depth
            yield match.span()
            if directive == b"endif":
                groups.pop()
            else:
                groups[-1] = _Branch(match.end(), depth, depth, is_first=False)


def _patterns(source: bytes) -> Iterator[Span]:
    """What PATTERNS find outside of comments, literals and directives."""
    passive = [m.span() for m in LEXEME.finditer(source) if m.end() - m.start() > 1]
    starts = [start for start, _ in passive]
    for pattern in PATTERNS:
        for match in pattern.finditer(source):
            start = match.start(1)
            at = bisect_right(starts, start) - 1
            line = source[source.rfind(b"\n", 0, match.start()) + 1 : match.end()]
            if (at < 0 or passive[at][1] <= start) and not CONTROL.search(line):
                yield match.span(1)


def _errors(root: Node) -> Iterator[Node]:
    """ERROR and MISSING nodes, the outermost ones."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            yield node
        elif node.has_error:
            stack += reversed(node.children)


def _unplaced(node: Node, source: bytes) -> Iterator[Span]:
    """What to hide of an error: words, a part of macro arguments, a directive, or a call that is
    followed by a block or by nothing.
    """
    parent = node.parent or node  # the root itself can be an error
    span, error = (node.start_byte, node.end_byte), source[node.start_byte : node.end_byte]
    if node.is_missing:
        kind = parent.children[0].type
        if parent.type == "expression_statement" and kind in ("call_expression", "identifier"):
            yield parent.start_byte, parent.end_byte
        elif parent.type == "compound_literal_expression":  # `T x = {}` as a parameter
            equals = parent.prev_sibling
            if equals is not None and equals.type == "=":
                yield equals.start_byte, parent.end_byte
    elif parent.type in PARAMETERS and WORDS.fullmatch(error):
        yield from _parameter_macro(span, source)
    elif (WORDS.fullmatch(error) and not STATEMENTS.search(parent.type)) or error[:1] == b"#":
        before, behind = node.prev_sibling, node.next_sibling
        if behind is not None and behind.type == "parameter_list" and before is not None:
            span = before.start_byte, before.end_byte  # the last word is the name
        yield span
    elif match := MACRO_CALL.match(error):
        yield span[0], span[0] + match.end()
    elif [child.type for child in node.children] == ["call_expression"]:
        if node.next_sibling is not None and node.next_sibling.type == "compound_statement":
            yield span
    elif parent.type in EXPRESSIONS | PARAMETERS and not set(error) & set(b"(){};"):
        if not JOINED.match(source[span[0] - 1 : span[0]] + source[span[1] : span[1] + 1]):
            yield span
    elif parent.type == "function_definition" and error.startswith(b":"):
        yield span  # the initializers of a constructor behind a macro


def _parameter_macro(error: Span, source: bytes) -> Iterator[Span]:
    """The macro of a parameter that has a word too many: `const char *name UNUSED`, `IN int x`.

    The word at which parsing failed is mostly the name.
    """
    begin = max(source.rfind(mark, 0, error[0]) for mark in (b"(", b",", b";", b"{")) + 1
    behind = PARAMETER_END.search(source, error[1])
    match = MACRO_WORD.search(source, begin, behind.start() if behind else len(source))
    match = match or FIRST_WORD.match(source, begin, error[1])
    if match:
        yield match.span(1)


def _annotations(node: Node, source: bytes) -> Iterator[Span]:
    """The macros before other words in an error."""
    for match in LEADING.finditer(source, node.start_byte, node.end_byte):
        yield match.span(1)
