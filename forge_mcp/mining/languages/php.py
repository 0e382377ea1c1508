"""PHP: PHPDoc and attributes come first; names are separated by a backslash."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.comments import clean_block_comment, is_license_header
from forge_mcp.mining.languages.base import (
    Import,
    Language,
    Opened,
    Parameter,
    of_type,
    text,
)
from forge_mcp.schemas.code_blocks import BlockType

NAME = rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*+"
QUALIFIED = NAME + rb"(?:\\" + NAME + rb")*+"
FUNCTION_VALUES = frozenset({"anonymous_function", "arrow_function"})
INCLUDES = frozenset(
    {
        "include_expression",
        "include_once_expression",
        "require_expression",
        "require_once_expression",
    }
)
HEADER = re.compile(r"This file is part of\b")  # a licence in the words of many projects


class Php(Language):
    """Functions, types and their methods (also those of anonymous classes), closures that are
    assigned to a variable, and properties with hooks. A namespace in braces lends its name; one
    that is stated for the whole file does not.
    """

    name = "php"
    extensions: ClassVar[tuple[str, ...]] = (".php", ".phtml")
    package = "tree-sitter-php"
    entry = "language_php"
    fragment_prefix: ClassVar[bytes] = b"<?php "
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "interface_declaration": ("class", "interface"),
        "trait_declaration": ("class", "trait"),
        "enum_declaration": ("class", "enum"),
        "function_definition": ("function", ""),
        "method_declaration": ("method", ""),
        "property_declaration": ("method", "property"),
        "anonymous_function": ("function", ""),
        "arrow_function": ("function", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"namespace_definition"})
    anonymous: ClassVar[frozenset[str]] = FUNCTION_VALUES
    calls: ClassVar[frozenset[str]] = frozenset(
        {
            "function_call_expression",
            "member_call_expression",
            "nullsafe_member_call_expression",
            "scoped_call_expression",
            "object_creation_expression",
        }
    )
    raises: ClassVar[frozenset[str]] = frozenset({"throw_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "else_if_clause",
            "for_statement",
            "foreach_statement",
            "while_statement",
            "do_statement",
            "case_statement",
            "match_conditional_expression",
            "catch_clause",
            "conditional_expression",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "??", "and", "or"})
    imports_at: ClassVar[frozenset[str]] = INCLUDES | {"namespace_use_declaration"}
    decorators: ClassVar[frozenset[str]] = frozenset({"attribute_list"})
    base_nodes: ClassVar[frozenset[str]] = frozenset({"base_clause", "class_interface_clause"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?=(?:new\s+(?!(?:class|static|self|parent)\b))?(?!new\b)"
        rb"(\\?\$?" + QUALIFIED + rb"(?:(?:\??->|::)\$?" + NAME + rb")*+))(?:new\s|\1\s*\()"
    )
    raised_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"throw\s+(?:new\s+)?\\?(" + QUALIFIED + rb")\s*(?:\Z|;|\(|::)"
    )
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:(?:abstract|final|static|readonly)\s+)*private\b"
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test(?:_|[A-Z])")
    test_decorators: ClassVar[frozenset[str]] = frozenset({"Test"})
    test_paths: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|/)[Tt]ests?/|Test\.php$")

    def opens(self, node: Node) -> Opened | None:
        """Declarations; closures with a name; properties with hooks; namespaces in braces."""
        if node.type in FUNCTION_VALUES:
            return _assigned(node)
        if node.type == "property_declaration":
            return _hooked(node)
        opened = super().opens(node)
        if opened is not None and opened.kind is None:
            opened.name = opened.name.replace("\\", ".")
        return opened

    def body(self, node: Node) -> Node | None:
        """The body of a definition; of a property, its hooks."""
        hooks = of_type(node.named_children, "property_hook_list")
        return hooks[0] if hooks else node.child_by_field_name("body")

    def signature(self, opened: Opened, body: Node | None) -> str:
        """What stands before the body, also before the arrow of `fn ($x) => …`."""
        return super().signature(opened, body).removesuffix("=>").rstrip()

    def decorations(self, opened: Opened, first: Node) -> list[str]:
        """Every attribute of `#[A, B(1)]`."""
        return [
            text(attribute)
            for listed in of_type(opened.function.named_children, *self.decorators)
            for group in listed.named_children
            for attribute in of_type(group.named_children, "attribute")
        ]

    def parameter(self, node: Node) -> Parameter | None:
        """`int $x = 1`, `private int $x`, `int ...$rest`; names keep their `$`."""
        described = super().parameter(node)
        variadic = node.type == "variadic_parameter"
        kind = "var_positional" if variadic else "positional_or_keyword"
        return described._replace(kind=kind) if described is not None else None

    def implicit_return(self, function: Node) -> str:
        """`$x + 1` of `fn ($x) => $x + 1`."""
        return text(self.body(function)) if function.type == "arrow_function" else ""

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression body is its own only one."""
        body = self.body(function)
        if body is not None and function.type == "arrow_function":
            return [body]
        return super().statements(function)

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The first docblock, where no definition but `namespace` or the like follows it."""
        for child in root.named_children:
            comment = text(child)
            if child.type in self.comments and self.doc_comment.match(comment):
                below = child.next_named_sibling
                documents = below is not None and below.type in self.definitions
                if documents or HEADER.search(comment) or is_license_header(comment):
                    break
                return child, clean_block_comment(comment)
            if child.type not in (*self.comments, "text", "php_tag"):
                break
        return None, ""

    def import_of(self, node: Node) -> tuple[Node | None, list[Import]]:
        """`use`, or the whole statement of an `include`."""
        if node.type not in INCLUDES:
            return node, self.imports(node)
        parent = node.parent
        whole = parent if parent is not None and parent.type == "expression_statement" else node
        path = re.search(r"(['\"])([^'\"]+)\1\s*\)?$", text(node))
        if path is None:
            return whole, []
        relative = path[2].startswith("/") and "__DIR__" in text(node)
        module = f".{path[2]}" if relative else path[2]
        return whole, [Import(PurePosixPath(module).stem, module, None)]

    def imports(self, node: Node) -> list[Import]:
        """`use A\\B`, `use A\\{B, C as D}`, also with `function` or `const`; `\\` is the root."""
        prefix = "".join(f"{text(name)}\\" for name in of_type(node.children, "namespace_name"))
        groups = of_type(node.named_children, "namespace_use_group")
        found = []
        listed = (groups[0] if groups else node).named_children
        for clause in of_type(listed, "namespace_use_clause"):
            alias = clause.child_by_field_name("alias")
            path = text(clause.named_child(0)).removeprefix("\\")
            module, _, name = f"{prefix}{path}".rpartition("\\")
            found.append(Import(text(alias) or name, module or "\\", name))
        return found

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Top-level `const NAME = value` and `define('NAME', value)`."""
        if node.type == "const_declaration":
            elements = of_type(node.named_children, "const_element")
            return [(text(e.named_child(0)), text(e.named_children[-1])) for e in elements]
        call = node.named_child(0) if node.type == "expression_statement" else None
        if call is None or text(call.child_by_field_name("function")) != "define":
            return []
        listed = call.child_by_field_name("arguments")
        given = of_type(listed.named_children if listed is not None else [], "argument")
        return [(text(given[0]).strip("'\""), text(given[1]))] if len(given) > 1 else []


def _assigned(value: Node) -> Opened | None:
    """`$f = function () { … };` and `$f = fn () => …;`."""
    assignment = value.parent
    if assignment is None or assignment.type != "assignment_expression":
        return None
    name = assignment.child_by_field_name("left")
    if name is None or name.type != "variable_name":
        return None
    parent = assignment.parent
    whole = parent is not None and parent.type == "expression_statement"
    outer = parent if parent is not None and whole else assignment
    return Opened("function", text(name), value, outer)


def _hooked(node: Node) -> Opened | None:
    """`public string $name { get => … }`."""
    element = of_type(node.named_children, "property_element")
    if not element or not of_type(node.named_children, "property_hook_list"):
        return None
    name = text(element[0].child_by_field_name("name"))
    return Opened("method", name, node, node, label="property")
