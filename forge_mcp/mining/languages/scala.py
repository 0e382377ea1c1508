"""Scala 2 and 3: braces or indentation, objects and traits, extensions lend their type's name."""

from __future__ import annotations

import re
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    NAME,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    last_row,
    of_type,
    text,
)
from forge_mcp.schemas.code_blocks import BlockType

TEMPLATES = frozenset({"template_body", "with_template_body", "enum_body", "extension_definition"})
BLOCKS = frozenset({"block", "indented_block", *TEMPLATES})
SELECTED = frozenset({"namespace_wildcard", "as_renamed_identifier", "arrow_renamed_identifier"})
# What is no single value that could be quoted as what a function returns.
NO_VALUE = re.compile(
    r"_definition$|_declaration$|^(?:if|match|for|while|do_while|try|throw|return|assignment)_"
    r"|^ERROR$|block$|^unit$"
)
TEST_BASE = re.compile(r"\w*(?:Suite|Spec|Specification|TestCase|TestSuite)\b")


class Scala(Language):
    """Types (also `given` instances with a body), methods with or without one, type aliases, and
    values of a file or a type that hold a function.

    A `given` without a body is a function, if it has a name. What an `extension` adds is named as
    if it stood in the type. Cases of an enum and the classes' own parameters are no definitions.
    `&&` and `||` are methods and do not count as branches.
    """

    name = "scala"
    extensions: ClassVar[tuple[str, ...]] = (".scala", ".sc", ".sbt")
    package = "tree-sitter-scala"
    comments: ClassVar[frozenset[str]] = frozenset({"comment", "block_comment"})
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_definition": ("class", ""),
        "trait_definition": ("class", "trait"),
        "object_definition": ("class", "object"),
        "package_object": ("class", "object"),
        "enum_definition": ("class", "enum"),
        "given_definition": ("function", "given"),
        "type_definition": ("class", "type"),
        "function_definition": ("function", ""),
        "function_declaration": ("method", ""),
        "val_definition": ("function", ""),
    }
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda_expression"})
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression", "instance_expression"})
    raises: ClassVar[frozenset[str]] = frozenset({"throw_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_expression"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_expression",
            "for_expression",
            "while_expression",
            "do_while_expression",
            "case_clause",
            "guard",
        }
    )
    imports_at: ClassVar[frozenset[str]] = frozenset({"import_declaration"})
    decorators: ClassVar[frozenset[str]] = frozenset({"annotation"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:new\s+)?("
        + NAME
        + rb"(?:\."
        + NAME
        + rb")*)(?:\[[^\[\](){}]*(?:\[[^\[\](){}]*\])*\])?"
        rb"\s*[({]"
    )
    return_fields: ClassVar[tuple[str, ...]] = ("return_type",)
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:(?!(?:def|val|class|object|trait|type|given|enum)\b)\w+(?:\[\w+\])?\s+)*?"
        r"private(?:\[this\])?\s"
    )
    test_decorators: ClassVar[frozenset[str]] = frozenset({"Test"})
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests?|it)/|(?:Suite|Spec|Tests?)\.scala$"
    )

    def opens(self, node: Node) -> Opened | None:
        """Type aliases only with a type, values only with a function."""
        kind, label = self.definitions[node.type]
        name, around = self.name_of(node), node.parent
        inside = around is not None and around.type in TEMPLATES
        if node.type == "type_definition" and node.child_by_field_name("type") is None:
            return None
        if node.type == "val_definition":
            value = node.child_by_field_name("value")
            at_top = inside or (around is not None and around.type == "compilation_unit")
            if value is None or value.type != "lambda_expression" or not at_top:
                return None
        if node.type == "given_definition":
            body = self.body(node)
            kind = "class" if body is not None and body.type in TEMPLATES else "function"
            name = name or (_given_name(node) if kind == "class" else "")
        if not name or not name.isprintable():
            return None
        opened = Opened("method" if inside and kind == "function" else kind, name, node, node)
        opened.label = label
        if inside and around is not None and around.type == "extension_definition":
            opened.prefix = _extended(around)
        return opened

    def name_of(self, node: Node) -> str:
        """A value's name is a pattern; a secondary constructor is named `this`."""
        name = node.child_by_field_name("name")
        if node.type == "val_definition":
            name = node.child_by_field_name("pattern")
        return text(name)

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether a type is a test by what it extends."""
        described = super().describe(opened, first)
        described.is_test = any(TEST_BASE.match(base) for base in described.bases)
        return described

    def body(self, node: Node) -> Node | None:
        """The body, or the function that a value holds."""
        if node.type == "val_definition":
            return node.child_by_field_name("value")
        return super().body(node)

    def signature(self, opened: Opened, body: Node | None) -> str:
        """What stands before the body and the comments before it."""
        while body is not None and (before := body.prev_sibling) is not None:
            if before.type not in self.comments:
                break
            body = before
        return super().signature(opened, body)

    def bases(self, node: Node) -> list[str]:
        """What is extended, mixed in and derived; of a `given`, what it is an instance of."""
        if node.type == "given_definition":
            return [text(node.child_by_field_name("return_type"))]
        return [
            text(base)
            for clause in of_type(node.named_children, "extends_clause", "derives_clause")
            for base in clause.children_by_field_name("type")
            if base.is_named
        ]

    def parameters(self, node: Node) -> list[Parameter]:
        """Of all parameter lists in order."""
        source = node
        if node.type == "val_definition":
            source = node.child_by_field_name("value") or node
        return [
            self._parameter(child)
            for listed in of_type(source.children, "parameters", "bindings")
            for child in of_type(listed.named_children, "parameter", "binding")
        ]

    def _parameter(self, node: Node) -> Parameter:
        """`x: => Int = 1`; `Int*` takes several values."""
        kind = node.child_by_field_name("type")
        repeated = kind is not None and kind.type == "repeated_parameter_type"
        return Parameter(
            text(node.child_by_field_name("name")),
            text(kind),
            text(node.child_by_field_name("default_value")),
            "var_positional" if repeated else "positional_or_keyword",
        )

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression body is its own only one."""
        body = self.body(function)
        if body is not None and body.type not in BLOCKS:
            return [body]
        return super().statements(function)

    def implicit_return(self, function: Node) -> str:
        """The expression that a body is or ends in."""
        value = self.body(function)
        if value is None or text(function.child_by_field_name("return_type")) == "Unit":
            return ""
        procedure = function.type == "function_definition" and not of_type(function.children, "=")
        if value.type in TEMPLATES or value.type == "lambda_expression" or procedure:
            return ""
        if value.type in BLOCKS:
            listed = [c for c in value.named_children if c.type not in self.comments]
            if not listed:
                return ""
            value = listed[-1]
        return "" if NO_VALUE.search(value.type) else text(value)

    def first_node(self, opened: Opened) -> Node:
        """Without braces, the grammar puts a comment at the end of the definition before it."""
        first = super().first_node(opened)
        before, around = opened.outer.prev_sibling, opened.outer.parent
        if before is None and around is not None and around.type == "with_template_body":
            before = around.prev_sibling  # the first member's comment stands before the body
        elif first.id != opened.outer.id or before is None or before.type in self.comments:
            return first
        while before is not None and before.type not in self.comments:
            before = before.children[-1] if before.children else None
        if before is None or not self.doc_comment.match(text(before)):
            return first
        behind = before.prev_sibling
        alone = behind is None or last_row(behind) < before.start_point.row
        near = opened.outer.start_point.row - last_row(before) <= 1
        return before if alone and near else first

    def end_of(self, outer: Node) -> int:
        """Without the comments that the grammar puts at its end."""
        node = outer
        while True:
            inner = [child for child in node.children if child.type not in self.comments]
            if not inner:
                return node.end_byte
            node = inner[-1]

    def imports(self, node: Node) -> list[Import]:
        """`import a.b.{C, D as E, *}`, `import a.b, c.d`; `*` and `_` are all names."""
        found: list[Import] = []
        path: list[str] = []
        for child in [*node.children[1:], None]:
            if child is None or child.type == ",":
                found += _imported(path, None) if path else []
                path = []
            elif child.type == "namespace_selectors":
                found += [name for one in child.named_children for name in _imported(path, one)]
                path = []
            elif child.type in SELECTED:
                found += _imported(path, child)
                path = []
            elif child.is_named:
                path.append(text(child))
        return found

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`val name = value` at the top of a file."""
        value = node.child_by_field_name("value")
        if node.type != "val_definition" or value is None or value.type == "lambda_expression":
            return []
        return [(name, text(value))] if (name := self.name_of(node)).isidentifier() else []


def _imported(path: list[str], selector: Node | None) -> list[Import]:
    """One name of an import; None selects the path's last part."""
    module = ".".join(path)
    if selector is None:
        module = ".".join(path[:-1])
        return [Import(path[-1], module or path[-1], path[-1] if module else None)]
    if selector.type == "namespace_wildcard":
        return [Import("*", module, "*")]
    name = text(selector.child_by_field_name("name")) or text(selector)
    alias = text(selector.child_by_field_name("alias")) or name
    return [Import(alias, module, name)] if alias != "_" else []  # `a => _` hides a name


def _given_name(node: Node) -> str:
    """`given_Ord_Int` of `given Ord[Int]`, as the compiler names it."""
    kind = re.sub(r"\W+", "_", text(node.child_by_field_name("return_type"))).strip("_")
    return f"given_{kind}" if kind else ""


def _extended(node: Node) -> str:
    """`List` of `extension [T](xs: List[T])`."""
    for listed in of_type(node.children, "parameters"):
        for parameter in of_type(listed.named_children, "parameter"):
            kind = text(parameter.child_by_field_name("type")).partition("[")[0].strip()
            return kind if kind.replace(".", "").isidentifier() else ""
    return ""
