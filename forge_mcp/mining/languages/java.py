"""Java: everything stands in a type; Javadoc, modifiers and annotations come first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    ANONYMOUS,
    BRANCH,
    CALL,
    DECORATOR,
    IMPORT,
    LOGICAL,
    OPEN,
    RAISE,
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

TYPES = {
    "class_declaration": "",
    "interface_declaration": "interface",
    "enum_declaration": "enum",
    "record_declaration": "record",
    "annotation_type_declaration": "annotation",
}
METHODS = frozenset(
    {"method_declaration", "constructor_declaration", "compact_constructor_declaration"}
)


class Java(Language):
    """Types and methods, also those of anonymous classes."""

    name = "java"
    extensions: ClassVar[tuple[str, ...]] = (".java",)
    package = "tree-sitter-java"
    comments: ClassVar[frozenset[str]] = frozenset({"line_comment", "block_comment"})
    roles: ClassVar[dict[str, frozenset[str]]] = {
        OPEN: METHODS | TYPES.keys() | {"enum_constant"},
        ANONYMOUS: frozenset({"lambda_expression"}),
        CALL: frozenset({"method_invocation", "object_creation_expression"}),
        RAISE: frozenset({"throw_statement"}),
        RETURN: frozenset({"return_statement"}),
        BRANCH: frozenset(
            {
                "if_statement",
                "for_statement",
                "enhanced_for_statement",
                "while_statement",
                "do_statement",
                "catch_clause",
                "ternary_expression",
                "switch_label",
            }
        ),
        LOGICAL: frozenset({"binary_expression"}),
        IMPORT: frozenset({"import_declaration"}),
        DECORATOR: frozenset({"annotation", "marker_annotation"}),
    }

    def opens(self, node: Node) -> Opened | None:
        """Types, methods and constructors; an enum constant with a body lends its name."""
        name = text(node.child_by_field_name("name"))
        if node.type in TYPES:
            return Opened("class", name, node, node, label=TYPES[node.type])
        if node.type in METHODS:
            return Opened("method", name, node, node)
        return Opened(None, name, node, node)

    def describe(self, opened: Opened, first: Node, in_class: bool) -> Described:
        """Signature without annotations and body; Javadoc as the docstring."""
        node = opened.function
        modifiers = of_type(node.named_children, "modifiers")
        annotations = of_type(
            modifiers[0].named_children if modifiers else [], *self.roles[DECORATOR]
        )
        start = node.start_byte
        for annotation in annotations:
            if not text_between(node, start, annotation.start_byte).strip():
                start = annotation.end_byte
        body = node.child_by_field_name("body")
        end = body.start_byte if body is not None else node.end_byte
        documented = first.type in self.comments
        described = Described(
            signature=text_between(node, start, end).strip().removesuffix(";"),
            docstring=clean_block_comment(text(first)) if documented else "",
            decorators=[text(annotation)[1:].strip() for annotation in annotations],
        )
        if opened.kind == "class":
            described.bases = _bases(node)
            return described
        described.parameters = [
            _parameter(child)
            for child in of_type(
                _children(node.child_by_field_name("parameters")),
                "formal_parameter",
                "spread_parameter",
            )
        ]
        described.returns = text(node.child_by_field_name("type"))
        thrown = [text(t) for c in of_type(node.named_children, "throws") for t in c.named_children]
        if thrown:
            described.extra["throws"] = thrown
        return described

    def callee(self, node: Node) -> str:
        """`this.bar` of `this.bar(x)`, `Foo` of `new Foo(x)`."""
        if node.type == "object_creation_expression":
            return dotted(node.child_by_field_name("type"))
        name = node.child_by_field_name("name")
        target = node.child_by_field_name("object")
        if target is None or name is None:
            return text(name)
        called = text_between(node, target.start_byte, name.end_byte)
        return called if dotted(target) and "(" not in called else ""

    def raised(self, node: Node) -> str:
        """`IOException` of `throw new IOException(x)`."""
        value = node.named_child(0)
        created = value is not None and value.type == "object_creation_expression"
        return text(value.child_by_field_name("type")) if created and value is not None else ""

    def imports(self, node: Node) -> list[Import]:
        """Single-type and static imports; `import a.b.*` names nothing that could be resolved."""
        path = "".join(text(child) for child in of_type(node.named_children, "scoped_identifier"))
        if not path or of_type(node.named_children, "asterisk"):
            return []
        module, _, name = path.rpartition(".")
        return [Import(name, module, name)]

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Java has none outside of types."""
        return []

    def is_private(self, name: str, opened_text: str) -> bool:
        """The modifier `private`."""
        return bool(re.match(r"(?:(?:static|final|abstract)\s+)*private\s", opened_text))

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """The annotations of JUnit and TestNG."""
        names = {decorator.split("(")[0].rpartition(".")[2] for decorator in decorators}
        return bool(names & {"Test", "ParameterizedTest", "RepeatedTest", "TestFactory"})

    def is_test_file(self, path: str) -> bool:
        """`src/test/`, `FooTest.java`, `FooTests.java`, `FooIT.java`."""
        stem = path.rpartition("/")[2].removesuffix(".java")
        return path_has_folder(path, "test", "tests") or stem.endswith(("Test", "Tests", "IT"))


def _children(node: Node | None) -> list[Node]:
    return node.named_children if node is not None else []


def _bases(node: Node) -> list[str]:
    """`extends` and `implements`, in that order."""
    found: list[str] = []
    for clause in of_type(
        node.named_children, "superclass", "super_interfaces", "extends_interfaces"
    ):
        for child in clause.named_children:
            listed = child.named_children if child.type == "type_list" else [child]
            found += [text(base) for base in listed]
    return found


def _parameter(node: Node) -> Parameter:
    if node.type == "formal_parameter":
        return Parameter(
            text(node.child_by_field_name("name")),
            text(node.child_by_field_name("type")),
            kind="positional_only",
        )
    declarator = of_type(node.named_children, "variable_declarator")
    kinds = [c for c in node.named_children if c.type not in ("modifiers", "variable_declarator")]
    return Parameter(
        text(declarator[0]) if declarator else "",
        text(kinds[0]) if kinds else "",
        kind="var_positional",
    )
