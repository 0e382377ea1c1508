"""Ruby: comments right above document; a bare `private` hides what stands below it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import PurePosixPath
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.comments import clean_comments
from forge_mcp.mining.languages.base import (
    MANY_STATEMENTS,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    first_child,
    of_type,
    text,
    text_between,
)
from forge_mcp.schemas.code_blocks import BlockType

DIRECTIVE = re.compile(r"#!|#.*-\*-|#\s*(?:frozen_string_literal|(?:en)?coding|warn_indent|typed):")
CHECKER = re.compile(r"(?m)^\s*#\s*rubocop:.*\n?")  # it stands among documentation
VISIBILITY = frozenset({"private", "protected", "public", "module_function"})
HIDING = re.compile(r"(?:private|protected)(?:_class_method|_constant)?")
BODIES = frozenset({"body_statement", "block_body", "then"})
MAKERS = {"Struct.new": "struct", "Data.define": "struct", "Class.new": "", "Module.new": "module"}
FUNCTIONS = frozenset({"lambda", "proc", "Proc.new"})
KINDS = {
    "identifier": "positional_only",
    "optional_parameter": "positional_only",
    "destructured_parameter": "positional_only",
    "block_parameter": "positional_only",
    "splat_parameter": "var_positional",
    "forward_parameter": "var_positional",
    "keyword_parameter": "keyword_only",
    "hash_splat_parameter": "var_keyword",
}
NAME = rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*+"
STEP = rb"(?:(?:&?\.|::)" + NAME + rb"[?!]?)"


class Ruby(Language):
    """Modules, classes, methods and singleton methods; constants that hold a lambda, a `Struct.new`
    or a `Class.new`. Methods that run-time calls make (`attr_reader`, `define_method`) are none.
    """

    name = "ruby"
    extensions: ClassVar[tuple[str, ...]] = (".rb", ".rake", ".gemspec", ".ru")
    package = "tree-sitter-ruby"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "module": ("class", "module"),
        "class": ("class", ""),
        "method": ("function", ""),
        "singleton_method": ("method", "singleton"),
        "assignment": ("function", ""),
    }
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda"})
    calls: ClassVar[frozenset[str]] = frozenset({"call"})
    raises: ClassVar[frozenset[str]] = frozenset({"argument_list"})  # of the method `raise`
    returns: ClassVar[frozenset[str]] = frozenset({"return"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if",
            "elsif",
            "unless",
            "if_modifier",
            "unless_modifier",
            "while",
            "until",
            "while_modifier",
            "until_modifier",
            "for",
            "when",
            "in_clause",
            "rescue",
            "rescue_modifier",
            "conditional",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "and", "or"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"string"})
    plain_comments_document: ClassVar[bool] = True
    # What begins as a sentence is documentation, even where most of it is an example.
    doc_comment: ClassVar[re.Pattern[str]] = re.compile(
        r"=begin|(?:#+\s+)*#*(?:[A-Z][\w'-]*[,.:;]?(?:[ \t]+[^\s=(){}\[\]]+){2}|@\w+|:[\w-]+:|=+ )"
    )
    # `a.b x` and `A::B.c` are calls as they stand; `x` alone may be the local variable of `x[1]`.
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?!raise\b)((?:@{0,2}|\$)" + NAME + STEP + rb"++"
        rb"|" + NAME + rb"[?!]?(?![\[\w]|\s*&?\.|::))"
    )
    raised_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:(?<=\braise )|(?<=\bfail )|(?<=\braise)\()\s*(?:::)?"
        rb"([A-Z]\w*+(?:::[A-Z]\w*+)*+)(?=\s*(?:\Z|,|\)|\.(?:new|exception)\b))"
    )
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:\w+\s+)*?(?:private|protected)(?:_class_method)?\b"
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test_")
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests?|specs?|features)/|_(?:test|spec)\.rb$|(?:^|/)test_[^/]*\.rb$"
    )

    def opens(self, node: Node) -> Opened | None:
        """Declarations with what wraps them (`private def …`), and constants that hold code."""
        if node.type == "assignment":
            return _constant(node)
        block, label = self.definitions[node.type]
        named = node.child_by_field_name("name")
        scope, _, name = text(named).rpartition("::")
        if node.type == "singleton_method":
            holder = text(node.child_by_field_name("object"))
            scope = "" if holder == "self" else holder
        if not name:
            return None
        return Opened(block, name, node, _wrapped(node), scope.replace("::", "."), label)

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether a section or a later call makes a method private."""
        described = super().describe(opened, first)
        parent = opened.outer.parent
        if parent is not None and parent.type in BODIES:
            name = opened.name if opened.kind == "class" or opened.label else f":{opened.name}"
            sections, named = hidden(parent)
            if opened.outer.id in sections or name in named:
                described.is_private = True
        return described

    def body(self, node: Node) -> Node | None:
        """A body; of a constant, the block or the lambda's body."""
        value = node.child_by_field_name("right")
        if value is None:
            return node.child_by_field_name("body")
        return value.child_by_field_name("block") or value.child_by_field_name("body")

    def signature(self, opened: Opened, body: Node | None) -> str:
        """Up to the parameters or the superclass: a comment may stand before the body."""
        node = opened.function
        if node.type == "assignment":
            return super().signature(opened, body)
        parts = ("name", "parameters", "superclass")
        end = max(p.end_byte for part in parts if (p := node.child_by_field_name(part)))
        return text_between(opened.outer, opened.outer.start_byte, end)

    def bases(self, node: Node) -> list[str]:
        """The superclass; of `Class.new(Base)`, its argument."""
        inherited = node.child_by_field_name("superclass")
        value = node.child_by_field_name("right")
        if value is not None and text(value).startswith("Class.new"):
            inherited = value.child_by_field_name("arguments")
        base = first_child(inherited)
        return [text(base)] if base is not None else []

    def parameters(self, node: Node) -> list[Parameter]:
        """Of a method, or of the lambda or block that a constant holds."""
        value = node.child_by_field_name("right")
        if value is not None:
            node = value.child_by_field_name("block") or value
        return super().parameters(node)

    def parameter(self, node: Node) -> Parameter | None:
        """A parameter without a name (`*`, `&`, `...`) is named by its mark."""
        kind = KINDS.get(node.type)
        if kind is None:
            return None
        name = node.child_by_field_name("name")
        default = text(node.child_by_field_name("value"))
        return Parameter(text(name if name is not None else node), "", default, kind)

    def implicit_return(self, function: Node) -> str:
        """`x + 1` of `def f(x) = x + 1`."""
        body = self.body(function)
        endless = any(child.type == "=" for child in function.children)
        return text(body) if endless and function.type.endswith("method") else ""

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression is its own only one."""
        body = self.body(function)
        if body is not None and body.type in ("block", "do_block"):
            body = body.child_by_field_name("body")
        if body is None:
            return []
        if body.type not in BODIES:
            return [body]
        if body.named_child_count > MANY_STATEMENTS:
            return None
        return [child for child in body.named_children if child.type not in self.comments]

    def first_node(self, opened: Opened) -> Node:
        """The grammar puts the comment before the first member of a class beside the class body."""
        outer = opened.outer
        parent = outer.parent
        inside = parent is not None and parent.type in BODIES
        if parent is None or not inside or outer.prev_sibling is not None:
            return super().first_node(opened)
        body = Opened(opened.kind, opened.name, opened.function, parent)
        first = super().first_node(body)
        return outer if first.id == parent.id else first

    def docstring(self, opened: Opened, first: Node) -> str:
        """The comments above, without what they tell a checker."""
        if first.type not in self.comments:
            return ""
        comment = CHECKER.sub("", self.comment_text(first, opened.outer))
        if comment.startswith("=begin"):
            return comment.removeprefix("=begin").removesuffix("=end").strip()
        return clean_comments(comment)

    def is_directive(self, comment: str) -> bool:
        """The shebang and magic comments."""
        return bool(DIRECTIVE.match(comment))

    def import_of(self, node: Node) -> tuple[Node | None, list[Import]]:
        """`require 'a/b'` and its like."""
        given = node.parent
        call = given.parent if given is not None and given.type == "argument_list" else None
        if call is None or call.type != "call" or call.child_by_field_name("receiver") is not None:
            return None, []
        method, path = text(call.child_by_field_name("method")), text(node)[1:-1]
        if method not in ("require", "require_relative", "load", "autoload"):
            return None, []
        if method == "require_relative" and not path.startswith("."):
            path = f"./{path}"
        return call, [Import(PurePosixPath(path).stem, path, None)]

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Top-level `NAME = value`, but for functions and classes."""
        left = node.child_by_field_name("left")
        if node.type != "assignment" or left is None or left.type != "constant":
            return []
        value = node.child_by_field_name("right")
        return [] if _constant(node) is not None else [(text(left), text(value))]


@lru_cache(maxsize=8)  # all methods of a class ask for the same body
def hidden(body: Node) -> tuple[frozenset[int], frozenset[str]]:
    """What a class body makes private.

    Returns:
        Ids of the nodes below a bare `private`, and the names that calls hide: `:name` of
        `private :name`, `name` of `private_class_method :name` or `private_constant :name`.
    """
    nodes: set[int] = set()
    names: set[str] = set()
    section = "public"
    for child in body.children:
        if child.type == "identifier" and text(child) in VISIBILITY:
            section = text(child)
        elif child.type == "call" and HIDING.fullmatch(text(child.child_by_field_name("method"))):
            listed = child.child_by_field_name("arguments")
            given = listed.named_children if listed is not None else []
            symbols = [text(symbol) for symbol in of_type(given, "simple_symbol")]
            own = "_" in text(child.child_by_field_name("method"))
            names.update(symbol.removeprefix(":") if own else symbol for symbol in symbols)
        elif child.type in ("method", "call") and section in ("private", "protected"):
            nodes.add(child.id)
    return frozenset(nodes), frozenset(names)


def _wrapped(node: Node) -> Node:
    """`private def f … end`, `private memoize def f … end`."""
    while (given := node.parent) is not None and given.type == "argument_list":
        call = given.parent
        if call is None or given.named_child_count != 1 or text(given).startswith("("):
            break
        if call.child_by_field_name("receiver") is not None:
            break
        if call.start_point.row != node.start_point.row:
            break
        node = call
    return node


def _constant(node: Node) -> Opened | None:
    """`F = ->(x) { … }`, `F = lambda { … }`, `Point = Struct.new(:x) do … end`."""
    left, value = node.child_by_field_name("left"), node.child_by_field_name("right")
    if left is None or value is None or left.type not in ("constant", "scope_resolution"):
        return None
    scope, _, name = text(left).rpartition("::")
    scope = scope.replace("::", ".")
    if value.type == "lambda":
        return Opened("function", name, node, node, scope)
    if value.type != "call":
        return None
    method, receiver = value.child_by_field_name("method"), value.child_by_field_name("receiver")
    called = f"{text(receiver)}.{text(method)}" if receiver is not None else text(method)
    if called in MAKERS:
        return Opened("class", name, node, node, scope, MAKERS[called])
    if called in FUNCTIONS and value.child_by_field_name("block") is not None:
        return Opened("function", name, node, node, scope)
    return None
