"""Go: comments before a declaration document it, lower case is private, methods name a receiver."""

from __future__ import annotations

import re
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
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

DIRECTIVE = re.compile(r"//(?:go:|nolint|\s*\+build|export |line )")


class Go(Language):
    """Functions, methods, types, and package-level variables that hold a function."""

    name = "go"
    extensions: ClassVar[tuple[str, ...]] = (".go",)
    package = "tree-sitter-go"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_declaration": ("function", ""),
        "method_declaration": ("method", ""),
        "type_spec": ("class", "type"),
        "type_alias": ("class", "type"),
        "func_literal": ("function", ""),
    }
    anonymous: ClassVar[frozenset[str]] = frozenset({"func_literal"})
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {"if_statement", "for_statement", "expression_case", "type_case", "communication_case"}
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"import_spec"})
    plain_comments_document: ClassVar[bool] = True
    return_fields: ClassVar[tuple[str, ...]] = ("result",)
    test_paths: ClassVar[re.Pattern[str]] = re.compile(r"_test\.go$|(?:^|/)testdata/")

    def opens(self, node: Node) -> Opened | None:
        """Declarations; types also inside functions, variables only at package level."""
        if node.type == "func_literal":
            return _variable(node)
        name = text(node.child_by_field_name("name"))
        if node.type == "function_declaration":
            return Opened("function", name, node, node)
        if node.type == "method_declaration":
            receiver, prefix = _receiver(node)
            return Opened("method", name, node, node, prefix=prefix, receiver=receiver)
        kind = node.child_by_field_name("type")
        label = kind.type.removesuffix("_type") if kind is not None else ""
        return Opened(
            "class",
            name,
            node,
            _whole_declaration(node),
            label=label if label in ("struct", "interface") else "type",
        )

    def describe(self, opened: Opened, first: Node) -> Described:
        """Signature up to the body, or up to the brace of a struct or an interface."""
        if opened.kind != "class":
            return super().describe(opened, first)
        outer, kind = opened.outer, opened.function.child_by_field_name("type")
        end = outer.end_byte
        if kind is not None and opened.label in ("struct", "interface"):
            end = kind.start_byte + len(text(kind).partition("{")[0].encode())
        return Described(
            signature=text_between(outer, outer.start_byte, end).strip(),
            docstring=self.docstring(opened, first),
            bases=_embedded(kind),
        )

    def body(self, node: Node) -> Node | None:
        """The body of a function; the type that a type declaration gives a name."""
        return node.child_by_field_name("body") or node.child_by_field_name("type")

    def is_directive(self, comment: str) -> bool:
        """`//go:build` and the like."""
        return bool(DIRECTIVE.match(comment))

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The comment right above the package clause."""
        clause = of_type(root.children, "package_clause")
        if not clause:
            return None, ""
        opened = Opened(None, "", clause[0], clause[0])
        first = self.first_node(opened)
        if first.id == clause[0].id:
            return None, ""
        return first, self.docstring(opened, first)

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements (the grammar wraps them in a list)."""
        found = super().statements(function)
        if found is not None and len(found) == 1 and found[0].type == "statement_list":
            return [child for child in found[0].named_children if child.type != "comment"]
        return found

    def methods(self, opened: Opened) -> list[str]:
        """The methods that an interface asks for."""
        kind = opened.function.child_by_field_name("type")
        return [
            text(child.child_by_field_name("name"))
            for child in of_type(kind.named_children if kind is not None else [], "method_elem")
        ]

    def parameters(self, node: Node) -> list[Parameter]:
        """Named parameters; `a, b int` are two."""
        listed = node.child_by_field_name("parameters")
        found = []
        for child in listed.named_children if listed is not None else []:
            variadic = child.type == "variadic_parameter_declaration"
            annotation = text(child.child_by_field_name("type"))
            for name in of_type(child.children_by_field_name("name"), "identifier"):
                kind = "var_positional" if variadic else "positional_only"
                found.append(Parameter(text(name), annotation, "", kind))
        return found

    def imports(self, node: Node) -> list[Import]:
        """`alias "path"`; without an alias the path's last part (not a /v2) is the name."""
        path = text(node.child_by_field_name("path")).strip('"`')
        parts = [part for part in path.split("/") if not re.fullmatch(r"v\d+", part)]
        alias = text(node.child_by_field_name("name"))
        return [Import(alias or (parts[-1] if parts else path), path, None)]

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`const` declarations; a constant that repeats the one above has no text of its own."""
        if node.type != "const_declaration":
            return []
        found = []
        for spec in of_type(node.named_children, "const_spec"):
            names = spec.children_by_field_name("name")
            values = spec.child_by_field_name("value")
            if len(of_type(names, "identifier")) == 1 and values is not None:
                found.append((text(names[0]), text(values)))
        return found

    def is_private(self, name: str, signature: str) -> bool:
        """Unexported: no upper-case first letter."""
        return not name[:1].isupper()


def _variable(function: Node) -> Opened | None:
    """`var f = func() {…}` at package level."""
    listed = function.parent
    spec = listed.parent if listed is not None and listed.type == "expression_list" else None
    if spec is None or spec.type != "var_spec":
        return None
    outer = _whole_declaration(spec)
    top = outer.parent is not None and outer.parent.type == "source_file"
    in_list = outer.id == spec.id  # within 'var ( … )'
    values = spec.child_by_field_name("value")
    if values is None or values.named_child_count != 1 or not (top or in_list):
        return None
    return Opened("function", text(spec.child_by_field_name("name")), function, outer)


def _whole_declaration(spec: Node) -> Node:
    """`type T struct {…}`, or the spec alone where a declaration in parentheses has several."""
    parent = spec.parent
    if parent is not None and parent.type == "var_spec_list":
        return spec
    if parent is None or not parent.type.endswith("_declaration"):
        return spec
    return spec if any(child.type == "(" for child in parent.children) else parent


def _receiver(node: Node) -> tuple[str, str]:
    """('f', 'Foo') of `func (f *Foo[T]) …`."""
    listed = node.child_by_field_name("receiver")
    parameter = first_child(listed)
    if parameter is None:
        return "", ""
    kind = text(parameter.child_by_field_name("type"))
    name = text(parameter.child_by_field_name("name"))
    return name, kind.lstrip("*( ").split("[")[0].rstrip(") ")


def _embedded(kind: Node | None) -> list[str]:
    """Types that a struct or an interface embeds."""
    found = []
    for child in kind.named_children if kind is not None else []:
        if child.type == "field_declaration_list":
            for declared in of_type(child.named_children, "field_declaration"):
                if declared.child_by_field_name("name") is None:
                    found.append(text(declared.child_by_field_name("type")))
        elif child.type == "type_elem":
            found.append(text(child))
    return found
