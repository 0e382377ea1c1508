"""Kotlin: KDoc and annotations come first; most constructs are told by the types of children."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from tree_sitter import Node, Parser, Tree

from forge_mcp.mining.languages.base import (
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    clean_decorator,
    of_type,
    text,
    text_between,
)
from forge_mcp.mining.languages.repair import parse_repaired
from forge_mcp.schemas.code_blocks import BlockType

NAME = rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*+"
FUNCTION_VALUES = frozenset({"lambda_literal", "anonymous_function"})
CLASS_BODIES = frozenset({"class_body", "enum_class_body"})
BODIES = ("class_body", "enum_class_body", "function_body", "block", "getter", "setter")
TYPES = ("user_type", "nullable_type", "function_type", "parenthesized_type", "non_nullable_type")
STUCK_CALLS, STUCK_BYTES, CHUNK_BYTES = 500, 25, 8192
UPPER_CASE = re.compile(r"[A-Z][A-Z0-9_]*")
# An annotation, and all that begin a line. At the top of a file the grammar may read them, and what
# they annotate, as an expression.
STRING = rb'"(?:[^"\\\n]|\\.)*+"'
PARENTHESES = rb"\((?:[^()\"]|" + STRING + rb"|\((?:[^()\"]|" + STRING + rb"|\([^()]*+\))*+\))*+\)"
ANNOTATION = re.compile(
    rb"@(?!file:)(?:[a-z]+:)?(?:\w++\.)*+[A-Z]\w*+(?:<[^<>\n]*+>)?(?:" + PARENTHESES + rb")?"
)
LAST_PAIR = re.compile(rb"(?s).*[^\r\n]{2}")
ANNOTATIONS = re.compile(rb"(?m)^(?:" + ANNOTATION.pattern + rb"[ \t]*+)++")
# An annotation at the very end of a file, which the grammar's scanner would never leave.
LAST_ANNOTATION = re.compile(rb"@(?=(?:[^\s(]|\([^)\n]*+\))*+(?:\([^)\n]*+)?\Z)")
# The grammar asks for a separator before the brace that ends a class body on the same line, and
# does not let these keywords be names.
LAST_MEMBER = re.compile(rb"(?<=[^\s{;>])[ \t](?=[ \t]*\})")
SOFT_KEYWORD = re.compile(
    rb"\b(?:suspend|actual|expect|final|inner|open|operator|infix|data|value)"
    rb"(?=\s*(?:[{=:,).]|->)|\()"
)
ACTUAL_CONSTRUCTOR = re.compile(rb"\bactual(?=\s+constructor\b)")


class Kotlin(Language):
    """Types, objects, functions, secondary constructors, and functions that a property holds.

    A property is a definition where it has a getter or a setter, which are part of it; `init`
    blocks and the primary constructor are part of their class. The receiver of an extension is
    its prefix. Every entry of a `when` counts as a branch, `else` as well.
    """

    name = "kotlin"
    extensions: ClassVar[tuple[str, ...]] = (".kt", ".kts")
    package = "tree-sitter-kotlin"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "object_declaration": ("class", "object"),
        "companion_object": ("class", "companion object"),
        "type_alias": ("class", "typealias"),
        "function_declaration": ("function", ""),
        "secondary_constructor": ("method", "constructor"),
        "property_declaration": ("function", "property"),
        "lambda_literal": ("function", ""),
        "anonymous_function": ("function", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"enum_entry", "object_literal"})
    anonymous: ClassVar[frozenset[str]] = FUNCTION_VALUES
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression"})
    raises: ClassVar[frozenset[str]] = frozenset({"throw_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_expression"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_expression",
            "when_entry",
            "for_statement",
            "while_statement",
            "do_while_statement",
            "catch_block",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "?:"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"import"})
    decorators: ClassVar[frozenset[str]] = frozenset({"annotation"})
    comments: ClassVar[frozenset[str]] = frozenset({"line_comment", "block_comment"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(" + NAME + rb"(?:@\w+)?(?:(?:\?|!!)?\." + NAME + rb")*+)"
        rb"(?:<[\w\s,.<>?*]*>)?[ \t]*[({]"
    )
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(r"(?:[a-z]+\s+)*?private\s")
    test_decorators: ClassVar[frozenset[str]] = frozenset(
        {"Test", "ParameterizedTest", "RepeatedTest", "TestFactory"}
    )
    test_paths: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|/)(?:tests?|\w*Test)/|Tests?\.kt$")

    def parse(self, source: bytes) -> Tree:
        """Annotations at the top of a file are comments to the parser, as the grammar takes some
        of them, with what they annotate, for expressions.

        Raises:
            ValueError: the grammar would never finish.
        """
        finite = (copy for copy in _repairs(source) if _finishes(self.parser, copy))
        return parse_repaired(self.parser, source, finite)

    def opens(self, node: Node) -> Opened | None:
        """Declarations; function values, objects and accessors that belong to a property."""
        kind = node.type
        if kind in FUNCTION_VALUES or kind == "object_literal":
            return _held(node, None if kind == "object_literal" else "function")
        if kind == "property_declaration" and not of_type(node.children, "getter", "setter"):
            return None
        name = self.name_of(node)
        if not name:
            return None
        block, label = self.definitions.get(kind, (None, ""))
        if kind == "class_declaration":
            label = _label(node)
        elif block == "function" and node.parent is not None and node.parent.type in CLASS_BODIES:
            block = "method"
        return Opened(block, name, node, node, _receiver(node), label)

    def name_of(self, node: Node) -> str:
        """The name without back-ticks; a companion has one even where none is written."""
        if node.type == "secondary_constructor":
            return "constructor"
        named: list[Node] = of_type(node.named_children, "variable_declaration") or [node]
        found = of_type(named[0].named_children, "identifier")
        if not found:
            return "Companion" if node.type == "companion_object" else ""
        return text(node.child_by_field_name("name") or found[0]).strip("`")

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also the type that a function returns or a property has, and whether it suspends."""
        described = super().describe(opened, first)
        if opened.kind != "class":
            if opened.label != "constructor":
                described.returns = _type_of(opened.function)
            if re.match(r"(?:[a-z]+\s+)*?suspend\s", described.signature):
                described.extra["is_async"] = True
        return described

    def body(self, node: Node) -> Node | None:
        """The body of a class or a function; the first accessor of a property."""
        found = of_type(node.children, *BODIES)
        if not found:
            return node if node.type == "lambda_literal" else None
        return found[0]

    def first_node(self, opened: Opened) -> Node:
        """Also from the first of the annotations that are comments to the parser."""
        first = super().first_node(opened)
        before = first.prev_sibling
        while before is not None and before.type in self.comments:
            if _is_annotation(before):
                first = before = super().first_node(replace(opened, outer=before))
            elif first.start_point.row - before.end_point.row > 1:
                break
            before = before.prev_sibling
        return first

    def comment_text(self, first: Node, end: Node) -> str:
        """The KDoc among annotations and plain comments."""
        lines = []
        node: Node | None = first
        while node is not None and node.start_byte < end.start_byte:
            if node.type in self.comments and self.doc_comment.match(text(node)):
                lines.append(text(node))
            node = node.next_sibling
        return "\n".join(lines)

    def decorations(self, opened: Opened, first: Node) -> list[str]:
        """Annotations before the modifiers, and among them."""
        found, node, parent = [], first, opened.outer.parent
        while parent is not None and node.start_byte < opened.outer.start_byte:
            after = node.next_sibling or opened.outer
            if _is_annotation(node):
                annotation = text_between(parent, node.start_byte, after.start_byte)
                found.append(clean_decorator(annotation))
            node = after
        return found + super().decorations(opened, opened.outer)

    def bases(self, node: Node) -> list[str]:
        """Supertypes, without arguments and delegates."""
        found = []
        for listed in of_type(node.named_children, "delegation_specifiers"):
            for base in of_type(listed.named_children, "delegation_specifier"):
                inner = base.named_child(0)
                wrapped = inner is not None and inner.type not in TYPES
                found.append(text(inner.named_child(0) if inner is not None and wrapped else inner))
        return found

    def parameters(self, node: Node) -> list[Parameter]:
        """Parameters of a function or a lambda; defaults stand beside them."""
        found: list[Parameter] = []
        for listed in of_type(node.named_children, "lambda_parameters"):
            for child in listed.named_children:
                named = of_type(child.named_children, "identifier")
                name = text(named[0]) if named else text(child)
                found.append(Parameter(name, _type_of(child), kind="positional_only"))
        for listed in of_type(node.named_children, "function_value_parameters"):
            vararg, assigned = False, False
            for child in listed.children:
                if child.type == "parameter":
                    kind = "var_positional" if vararg else "positional_or_keyword"
                    name = text(child.named_child(0))
                    found.append(Parameter(name, _type_of(child), kind=kind))
                elif assigned and found:
                    found[-1] = found[-1]._replace(default=text(child))
                vararg = child.type == "parameter_modifiers" and "vararg" in text(child)
                assigned = child.type == "="
        return found

    def implicit_return(self, function: Node) -> str:
        """`x + 1` of `fun f(x: Int) = x + 1`; a body of several lines says nothing of its value."""
        value = text(_expression(self.body(function)))
        return "" if "\n" in value else value

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression body is its own only one."""
        expression = _expression(self.body(function))
        if expression is not None:
            return [expression]
        found = super().statements(function)
        blocks = of_type(found or [], "block")
        return (
            [c for c in blocks[0].named_children if c.type not in self.comments]
            if blocks
            else found
        )

    def imports(self, node: Node) -> list[Import]:
        """Single names; `import a.b.*` names nothing that could be resolved."""
        path = "".join(map(text, of_type(node.named_children, "qualified_identifier")))
        if any(child.type == "*" for child in node.children):
            return []
        alias = of_type(node.named_children, "identifier")
        module, _, name = path.rpartition(".")
        local = text(alias[0]) if alias else name
        return [Import(local, module, name) if module else Import(local, path, None)]

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Top-level `const val`, and other values with an upper-case name."""
        if node.type != "property_declaration" or not any(c.type == "=" for c in node.children):
            return []
        name, value = self.name_of(node), node.named_children[-1]
        is_constant = UPPER_CASE.fullmatch(name) and any(c.type == "val" for c in node.children)
        if not is_constant or value.type in (*FUNCTION_VALUES, "getter", "setter"):
            return []
        return [(name, text(value))]


def _repairs(source: bytes) -> Iterator[bytes]:
    source = LAST_ANNOTATION.sub(b" ", source)
    hidden = ANNOTATIONS.sub(lambda run: ANNOTATION.sub(_as_comment, run[0]), source)
    yield hidden
    renamed = SOFT_KEYWORD.sub(lambda word: word[0][:-1] + word[0][-1:].upper(), hidden)
    renamed = ACTUAL_CONSTRUCTOR.sub(b"      ", renamed)
    yield LAST_MEMBER.sub(b";", renamed)


def _finishes(parser: Parser, source: bytes) -> bool:
    """Whether the grammar comes to an end: its scanner may repeat an empty token for ever.

    Such a parse stays at one offset. So does one that is done and balances its tree, for a while
    that grows with the size of the file (a tenth of the limit here).
    """
    reached, calls = -1, 0

    def is_stuck(offset: int, has_error: bool) -> bool:
        nonlocal reached, calls
        calls = calls + 1 if offset <= reached else 0
        reached = max(reached, offset)
        return calls > STUCK_CALLS + len(source) // STUCK_BYTES

    def chunk(offset: int, point: object) -> bytes:
        return source[offset : offset + CHUNK_BYTES]

    try:
        parser.parse(chunk, progress_callback=is_stuck)
    except ValueError:  # stopped by the callback
        parser.reset()
        return False
    return True


def _as_comment(annotation: re.Match[bytes]) -> bytes:
    """An annotation as a block comment of its length, with its line breaks."""
    found = annotation[0]
    last = LAST_PAIR.match(found)  # the mark that ends the comment must stand on one line
    end = last.end() if last is not None else 0
    if end < len("/**/"):
        return found
    inner = re.sub(rb"[/*]", b" ", found[2 : end - 2])
    return b"/*" + inner + b"*/" + re.sub(rb"[^\r\n]", b" ", found[end:])


def _is_annotation(comment: Node) -> bool:
    """Whether a comment to the parser is an annotation in the source."""
    return comment.type == "block_comment" and text(comment).startswith("@")


def _held(value: Node, kind: BlockType | None) -> Opened | None:
    """`val f = { … }`, `val f = fun(x: Int) …`, `val o = object : T { … }`."""
    declared = value.parent
    if declared is None or declared.type != "property_declaration":
        return None
    variable = of_type(declared.named_children, "variable_declaration")
    name = text(variable[0].named_child(0)) if variable else ""
    in_class = declared.parent is not None and declared.parent.type in CLASS_BODIES
    block: BlockType | None = "method" if kind is not None and in_class else kind
    return Opened(block, name, value, declared) if name else None


def _label(node: Node) -> str:
    """What the declaration says beside or instead of `class`."""
    if any(child.type == "interface" for child in node.children):
        return "interface"
    modifiers = "".join(map(text, of_type(node.named_children, "modifiers"))).split()
    return next((word for word in modifiers if word in ("enum", "annotation")), "")


def _receiver(node: Node) -> str:
    """`List` of `fun <T> List<T>.f()` and of `val List<T>.p`."""
    types: list[Node] = []
    for child in node.children:
        if child.type == ".":
            return re.split(r"[<?(]", text(types[-1]))[0].strip() if types else ""
        if child.type in TYPES:
            types.append(child)
    return ""


def _type_of(node: Node) -> str:
    """The type behind a colon, of a function, a parameter or a property."""
    variable = of_type(node.named_children, "variable_declaration")
    after = False
    for child in (variable[0] if variable else node).children:
        if after and child.type not in ("line_comment", "block_comment"):
            return text(child)
        after = child.type == ":"
    return ""


def _expression(body: Node | None) -> Node | None:
    """The expression of `= x`."""
    if body is None or body.type != "function_body" or not body.named_child_count:
        return None
    last = body.named_children[-1]
    return None if last.type == "block" else last
