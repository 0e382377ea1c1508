"""Go: comments before a declaration document it, lower case is private, methods name a receiver."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    ANONYMOUS,
    BRANCH,
    CALL,
    IMPORT,
    LOGICAL,
    OPEN,
    RETURN,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    clean_block_comment,
    dotted,
    of_type,
    path_has_folder,
    text,
    text_between,
)

DIRECTIVE = re.compile(r"//(?:go:|nolint|\s*\+build|export |line )")


class Go(Language):
    """Functions, methods, types, and package-level variables that hold a function."""

    name = "go"
    extensions: ClassVar[tuple[str, ...]] = (".go",)
    package = "tree-sitter-go"
    roles: ClassVar[dict[str, frozenset[str]]] = {
        OPEN: frozenset(
            {"function_declaration", "method_declaration", "type_spec", "type_alias", "var_spec"}
        ),
        ANONYMOUS: frozenset({"func_literal"}),
        CALL: frozenset({"call_expression"}),
        RETURN: frozenset({"return_statement"}),
        BRANCH: frozenset(
            {
                "if_statement",
                "for_statement",
                "expression_case",
                "type_case",
                "communication_case",
            }
        ),
        LOGICAL: frozenset({"binary_expression"}),
        IMPORT: frozenset({"import_spec"}),
    }

    def opens(self, node: Node) -> Opened | None:
        """Declarations; types also inside functions, variables only at package level."""
        name = text(node.child_by_field_name("name"))
        if node.type == "function_declaration":
            return Opened("function", name, node, node)
        if node.type == "method_declaration":
            return Opened("method", name, node, node, prefix=_receiver(node))
        outer = _whole_declaration(node)
        if node.type == "var_spec":
            values = node.child_by_field_name("value")
            value = values.named_child(0) if values is not None else None
            top = outer.parent is not None and outer.parent.type == "source_file"
            if value is None or value.type != "func_literal" or not top:
                return None
            return Opened("function", name, value, outer)
        kind = node.child_by_field_name("type")
        label = kind.type.removesuffix("_type") if kind is not None else ""
        return Opened(
            "class",
            name,
            node,
            outer,
            label=label if label in ("struct", "interface") else "type",
        )

    def describe(self, opened: Opened, first: Node, in_class: bool) -> Described:
        """Signature up to the body; the comment lines right above as the docstring."""
        node = opened.function
        body = node.child_by_field_name("body")
        end = body.start_byte if body is not None else opened.outer.end_byte
        described = Described(
            signature=text_between(opened.outer, opened.outer.start_byte, end).strip(),
            docstring=_docstring(first, opened.outer),
        )
        if opened.kind == "class":
            kind = node.child_by_field_name("type")
            if kind is not None and opened.label in ("struct", "interface"):
                open_brace = text(kind).find("{")
                end = kind.start_byte + len(text(kind)[:open_brace].encode())
                described.signature = text_between(
                    opened.outer, opened.outer.start_byte, end
                ).strip()
            described.bases = _embedded(kind)
            return described
        described.parameters = _parameters(node.child_by_field_name("parameters"))
        described.returns = text(node.child_by_field_name("result"))
        return described

    def is_doc_comment(self, comment: Node) -> bool:
        """Every comment right above a declaration, but for directives."""
        return not DIRECTIVE.match(text(comment))

    def _belongs(self, before: Node, first: Node) -> bool:
        behind = before.prev_sibling
        return (
            before.type == "comment"
            and self.is_doc_comment(before)
            and before.end_point.row + 1 == first.start_point.row
            and not (behind is not None and behind.end_point.row == before.start_point.row)
        )

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The comment right above the package clause."""
        clause = of_type(root.children, "package_clause")
        if not clause:
            return None, ""
        first = self.first_node(Opened(None, "", clause[0], clause[0]))
        if first.id == clause[0].id:
            return None, ""
        return first, _docstring(first, clause[0])

    def statements(self, function: Node) -> list[Node]:
        """The body's statements (the grammar wraps them in a list)."""
        found = super().statements(function)
        if len(found) == 1 and found[0].type == "statement_list":
            return [child for child in found[0].named_children if child.type != "comment"]
        return found

    def methods(self, opened: Opened) -> list[str]:
        """The methods that an interface asks for."""
        kind = opened.function.child_by_field_name("type")
        return [
            text(child.child_by_field_name("name"))
            for child in of_type(kind.named_children if kind is not None else [], "method_elem")
        ]

    def callee(self, node: Node) -> str:
        """`fmt.Errorf` of `fmt.Errorf(x)`."""
        return dotted(node.child_by_field_name("function"))

    def raised(self, node: Node) -> str:
        """Go raises nothing: it returns errors."""
        return ""

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

    def is_private(self, name: str, opened_text: str) -> bool:
        """Unexported: no upper-case first letter."""
        return not name[:1].isupper()

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """The file's name decides."""
        return False

    def is_test_file(self, path: str) -> bool:
        """`x_test.go`, `testdata/`."""
        return path.endswith("_test.go") or path_has_folder(path, "testdata")


def _whole_declaration(spec: Node) -> Node:
    """`type T struct {…}`, or the spec alone where a declaration in parentheses has several."""
    parent = spec.parent
    if parent is not None and parent.type == "var_spec_list":
        parent = parent.parent
    if parent is None or not parent.type.endswith("_declaration"):
        return spec
    return spec if any(child.type == "(" for child in parent.children) else parent


def _receiver(node: Node) -> str:
    """`Foo` of `func (f *Foo[T]) …`."""
    listed = node.child_by_field_name("receiver")
    parameter = listed.named_child(0) if listed is not None else None
    kind = text(parameter.child_by_field_name("type")) if parameter is not None else ""
    return kind.lstrip("*( ").split("[")[0].rstrip(") ")


def _docstring(first: Node, outer: Node) -> str:
    lines = []
    node: Node | None = first
    while node is not None and node.id != outer.id and node.type == "comment":
        comment = text(node)
        if comment.startswith("//"):
            lines.append(comment[2:].removeprefix(" ").rstrip())
        else:
            lines.append(clean_block_comment(comment))
        node = node.next_sibling
    return "\n".join(lines).strip()


def _parameters(node: Node | None) -> list[Parameter]:
    """Named parameters; `a, b int` are two."""
    found = []
    for child in node.named_children if node else []:
        variadic = child.type == "variadic_parameter_declaration"
        annotation = text(child.child_by_field_name("type"))
        for name in of_type(child.children_by_field_name("name"), "identifier"):
            kind = "var_positional" if variadic else "positional_only"
            found.append(Parameter(text(name), annotation, "", kind))
    return found


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
