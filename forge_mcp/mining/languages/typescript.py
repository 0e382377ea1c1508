"""TypeScript and TSX: JavaScript with types, interfaces, enums, namespaces and modifiers."""

from __future__ import annotations

from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import OPEN, Opened, of_type, text
from forge_mcp.mining.languages.javascript import JavaScript, _exported

TYPES = {
    "abstract_class_declaration": "class",
    "interface_declaration": "interface",
    "enum_declaration": "enum",
    "type_alias_declaration": "type",
}
NAMESPACES = frozenset({"internal_module", "module"})


class TypeScript(JavaScript):
    """Overloads and other signatures without a body are part of what surrounds them."""

    name = "typescript"
    extensions: ClassVar[tuple[str, ...]] = (".ts", ".mts", ".cts")
    package = "tree-sitter-typescript"
    entry = "language_typescript"
    roles: ClassVar[dict[str, frozenset[str]]] = JavaScript.roles | {
        OPEN: (JavaScript.roles[OPEN] - {"field_definition"})
        | {"public_field_definition"}
        | TYPES.keys()
        | NAMESPACES
    }

    def opens(self, node: Node) -> Opened | None:
        """Also interfaces, enums and type aliases (as classes with a label), and namespaces."""
        if node.type in TYPES:
            name = text(node.child_by_field_name("name"))
            label = TYPES[node.type]
            return Opened(
                "class", name, node, _exported(node), label="" if label == "class" else label
            )
        if node.type in NAMESPACES:
            name_node = node.child_by_field_name("name")
            if name_node is None:  # the keyword 'module' is a node of the same type
                return None
            return Opened(None, text(name_node).strip("'\""), node, node)
        return super().opens(node)

    def _bases(self, node: Node) -> list[str]:
        clauses = of_type(node.named_children, "class_heritage", "extends_type_clause")
        found: list[str] = []
        for clause in clauses:
            parts = of_type(clause.named_children, "extends_clause", "implements_clause")
            for part in parts or [clause]:
                found += [
                    text(base)
                    for base in part.named_children
                    if base.type not in ("type_arguments", "comment")
                ]
        return found

    def methods(self, opened: Opened) -> list[str]:
        """Method signatures of interfaces and abstract classes."""
        body = opened.function.child_by_field_name("body")
        return [
            text(child.child_by_field_name("name"))
            for child in of_type(
                body.named_children if body is not None else [],
                "method_signature",
                "abstract_method_signature",
            )
        ]


class Tsx(TypeScript):
    """TypeScript with JSX: a grammar of its own."""

    name = "tsx"
    extensions: ClassVar[tuple[str, ...]] = (".tsx",)
    entry = "language_tsx"
