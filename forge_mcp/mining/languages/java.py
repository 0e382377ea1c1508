"""Java: everything stands in a type; Javadoc, modifiers and annotations come first."""

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
    of_type,
    text,
)
from forge_mcp.schemas.code_blocks import BlockType


class Java(Language):
    """Types and methods, also those of anonymous classes and enum constants."""

    name = "java"
    extensions: ClassVar[tuple[str, ...]] = (".java",)
    package = "tree-sitter-java"
    comments: ClassVar[frozenset[str]] = frozenset({"line_comment", "block_comment"})
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "interface_declaration": ("class", "interface"),
        "enum_declaration": ("class", "enum"),
        "record_declaration": ("class", "record"),
        "annotation_type_declaration": ("class", "annotation"),
        "method_declaration": ("method", ""),
        "constructor_declaration": ("method", ""),
        "annotation_type_element_declaration": ("method", ""),
        "compact_constructor_declaration": ("method", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"enum_constant"})
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda_expression"})
    calls: ClassVar[frozenset[str]] = frozenset({"method_invocation", "object_creation_expression"})
    raises: ClassVar[frozenset[str]] = frozenset({"throw_statement"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "for_statement",
            "enhanced_for_statement",
            "while_statement",
            "do_statement",
            "catch_clause",
            "ternary_expression",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression", "switch_label"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "case"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"import_declaration"})
    decorators: ClassVar[frozenset[str]] = frozenset({"annotation", "marker_annotation"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:new\s+)?(" + NAME + rb"(?:\." + NAME + rb")*)(?:<[\w\s,.<>?&\[\]]*>)?\s*\("
    )
    return_fields: ClassVar[tuple[str, ...]] = ("type",)
    class_is_scope: ClassVar[bool] = True
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:(?:static|final|abstract)\s+)*private\s"
    )
    test_decorators: ClassVar[frozenset[str]] = frozenset(
        {"Test", "ParameterizedTest", "RepeatedTest", "TestFactory"}
    )
    test_paths: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|/)tests?/|(?:Test|Tests|IT)\.java$")

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also the checked exceptions that a method declares."""
        described = super().describe(opened, first)
        if opened.kind != "class" and "throws" in described.signature:
            thrown = [
                text(kind)
                for clause in of_type(opened.function.named_children, "throws")
                for kind in clause.named_children
            ]
            if thrown:
                described.extra["throws"] = thrown
        return described

    def bases(self, node: Node) -> list[str]:
        """`extends` and `implements`, in that order."""
        found: list[str] = []
        for clause in of_type(
            node.named_children, "superclass", "super_interfaces", "extends_interfaces"
        ):
            for child in clause.named_children:
                listed = child.named_children if child.type == "type_list" else [child]
                found += [text(base) for base in listed]
        return found

    def parameter(self, node: Node) -> Parameter | None:
        """`int x`, `int... rest`; a receiver (`Foo this`) is none."""
        if node.type == "formal_parameter":
            return super().parameter(node)
        if node.type != "spread_parameter":
            return None
        declarator = of_type(node.named_children, "variable_declarator")
        kinds = [
            c for c in node.named_children if c.type not in ("modifiers", "variable_declarator")
        ]
        return Parameter(
            text(declarator[0]) if declarator else "",
            text(kinds[0]) if kinds else "",
            kind="var_positional",
        )

    def imports(self, node: Node) -> list[Import]:
        """`import a.b.C`, `import static a.b.C.f`, `import a.b.*`."""
        path = "".join(
            text(child) for child in of_type(node.named_children, "scoped_identifier", "identifier")
        )
        if not path:
            return []
        if of_type(node.named_children, "asterisk"):
            return [Import("*", path, "*")]
        module, _, name = path.rpartition(".")
        return [Import(name, module, name)]
