"""TypeScript and TSX: JavaScript with types, interfaces, enums, namespaces and modifiers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from tree_sitter import Node, Tree

from forge_mcp.mining.languages.base import Opened, of_type, text
from forge_mcp.mining.languages.javascript import JavaScript
from forge_mcp.mining.languages.repair import blank, parse_repaired
from forge_mcp.schemas.code_blocks import BlockType

NAMESPACES = frozenset({"internal_module", "module"})
SIGNATURES = frozenset({"method_signature", "abstract_method_signature"})
# What the grammar does not know: `<in out T>`, `export type * from`, `import("x").T<U>`, and an
# escaped backtick in the type of a template.
GAP = rb"(?:\s|//[^\n]*+|/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/)"
VARIANCE = re.compile(
    rb"(?<=[<,])(" + GAP + rb"*+(?:const[ \t]+)?)(in[ \t]+out|in|out)"
    rb"(?=[ \t]+(?!(?:extends|as|satisfies|in|of|instanceof)\b)[A-Za-z_$])"
)
TYPE_EXPORT = re.compile(rb"(?<=\bexport )type(?=\s*\*)")
IMPORTED_TYPE = re.compile(rb"(?<=\bimport)\((?:\"[^\"\n]*+\"|'[^'\n]*+')\)(?=(?:\.[\w$]++)++<)")
ESCAPE = re.compile(rb"\\[^\r\n]")
# A call signature with type parameters below a member that no semicolon ends: the grammar reads
# on, and takes them for the arguments of the type above.
PARAMETERS = rb"[^<>]*+"
for _ in range(5):  # one in another
    PARAMETERS = rb"(?:[^<>=]++|=>?|<" + PARAMETERS + rb">){0,50}+"
CALL_SIGNATURE = re.compile(
    rb"(?:[\w$)\]}'\"]|(?<!=)>)(?<!\bdefault)(?<!\bextends)"
    + (GAP + rb"*?\n[ \t]*[ \t](?=<" + PARAMETERS + rb">\s*\()")
)


class TypeScript(JavaScript):
    """Overloads and abstract methods are definitions without a body; the members of an interface
    are part of it.
    """

    name = "typescript"
    extensions: ClassVar[tuple[str, ...]] = (".ts", ".mts", ".cts")
    package = "tree-sitter-typescript"
    entry = "language_typescript"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        **JavaScript.definitions,
        "abstract_class_declaration": ("class", ""),
        "interface_declaration": ("class", "interface"),
        "enum_declaration": ("class", "enum"),
        "type_alias_declaration": ("class", "type"),
        "function_signature": ("function", ""),
        "method_signature": ("method", ""),
        "abstract_method_signature": ("method", ""),
    }
    containers: ClassVar[frozenset[str]] = JavaScript.containers | NAMESPACES
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:static\s+)?(?:private|protected)\s"
    )

    def parse(self, source: bytes) -> Tree:
        """Where the grammar finds an error, without what it does not know."""
        return parse_repaired(self.parser, source, _repairs(source))

    def opens(self, node: Node) -> Opened | None:
        """Also interfaces, enums and type aliases (as classes with a label), and namespaces."""
        kind = node.type
        if kind in NAMESPACES:
            name = text(node.child_by_field_name("name")).strip("'\"")
            return Opened(None, name, node, node) if name else None
        if kind in SIGNATURES:
            parent = node.parent
            if parent is None or parent.type != "class_body":
                return None
            return Opened("method", text(node.child_by_field_name("name")), node, node)
        if kind == "function_signature":
            parent = node.parent
            wrapped = parent is not None and parent.type in (
                "export_statement",
                "ambient_declaration",
            )
            outer = parent if wrapped and parent is not None else node
            return Opened("function", text(node.child_by_field_name("name")), node, outer)
        return super().opens(node)

    def body(self, node: Node) -> Node | None:
        """A type alias has none: its value belongs to its signature."""
        return node.child_by_field_name("body")

    def bases(self, node: Node) -> list[str]:
        """`extends` and `implements`."""
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
        """Method signatures of interfaces."""
        body = self.body(opened.function)
        return [
            text(child.child_by_field_name("name"))
            for child in of_type(
                body.named_children if body is not None else [], "method_signature"
            )
        ]


class Tsx(TypeScript):
    """TypeScript with JSX: a grammar of its own."""

    name = "tsx"
    extensions: ClassVar[tuple[str, ...]] = (".tsx",)
    entry = "language_tsx"


def _repairs(source: bytes) -> Iterator[bytes]:
    yield source
    source = VARIANCE.sub(lambda found: found[1] + b" " * len(found[2]), source)
    source = TYPE_EXPORT.sub(blank, source)
    source = IMPORTED_TYPE.sub(lambda found: b"_" * len(found[0]), source)
    source = ESCAPE.sub(lambda found: b"  " if found[0] in (b"\\`", b"\\$") else found[0], source)
    yield source
    yield CALL_SIGNATURE.sub(lambda found: found[0][:-1] + b";", source)
