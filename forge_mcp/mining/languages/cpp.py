"""C++: C with classes, namespaces, templates, out-of-line methods and access sections."""

from __future__ import annotations

import re
from typing import ClassVar, cast

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
    text_between,
)
from forge_mcp.mining.languages.c import KEYWORDS, SPECIFIERS, C, declaration, is_statement
from forge_mcp.schemas.code_blocks import BlockType

# Macros of test frameworks that make a function: one argument names it, or a suite and a name.
TEST_MACROS = re.compile(r"(?:TYPED_)?TEST(?:_[FP])?|BOOST_(?:AUTO|FIXTURE)_TEST_CASE")
TEMPLATES = ("template_type", "template_function")
TOP = frozenset({"translation_unit", "declaration_list", "preproc_ifdef", "preproc_if"})


class Cpp(C):
    """C's definitions, classes, type aliases, concepts, and lambdas bound to a name at the top.

    `Foo::bar` defined outside of its class is named `Foo.bar`; methods that are only declared,
    defaulted or deleted are no definitions. gtest's `TEST(Suite, Name)` is named `Suite.Name`.
    """

    name = "cpp"
    extensions: ClassVar[tuple[str, ...]] = (
        *(".cc", ".cpp", ".cxx", ".c++", ".hpp", ".hh", ".hxx", ".h++"),
        *(".ipp", ".inl", ".tpp", ".ixx", ".cppm"),
    )
    package = "tree-sitter-cpp"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        **C.definitions,
        "class_specifier": ("class", ""),
        "alias_declaration": ("class", "type"),
        "concept_definition": ("class", "concept"),
        "lambda_expression": ("function", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"namespace_definition"})
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda_expression"})
    raises: ClassVar[frozenset[str]] = frozenset({"throw_statement"})
    calls: ClassVar[frozenset[str]] = C.calls | {"new_expression"}
    branches: ClassVar[frozenset[str]] = C.branches | {"for_range_loop", "catch_clause"}
    logical_operators: ClassVar[frozenset[str]] = C.logical_operators | {"and", "or"}
    imports_at: ClassVar[frozenset[str]] = C.imports_at | {
        "using_declaration",
        "namespace_alias_definition",
    }
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:new\s+)?((?:::)?" + NAME + rb"(?:(?:\.|->|::)~?" + NAME + rb")*)"
        rb"(?:<[\w\s,:.<>*&]*>)?\s*[({]"
    )

    def opens(self, node: Node) -> Opened | None:
        """Also namespaces, which lend their names."""
        if node.type == "namespace_definition":
            name = self.name_of(node).replace("::", ".")
            return Opened(None, name, node, node) if name else None
        if node.type == "lambda_expression":
            return _bound(node)
        if node.type in ("alias_declaration", "concept_definition"):
            kind, label = self.definitions[node.type]
            return Opened(kind, self.name_of(node), node, self.outer(node), label=label)
        opened = super().opens(node)
        if opened is not None and node.type in SPECIFIERS:
            opened.prefix, own = _split(node.child_by_field_name("name"))
            opened.name = text(own) or opened.name
        return opened

    def _function(self, node: Node) -> Opened | None:
        declared = declaration(node.child_by_field_name("declarator"))
        prefix, own = _split(declared.name)
        if own is None or self.body(node) is None:
            return None
        name, kind = _own_name(own), "method" if prefix else "function"
        if is_statement(node, declared) and not TEST_MACROS.fullmatch(name):
            return None
        if declared.function is None and own.type != "operator_cast":
            return None  # `MACRO name {…}`
        if TEST_MACROS.fullmatch(name) and declared.function is not None:
            listed = declared.function.child_by_field_name("parameters")
            given = [text(child) for child in (listed.named_children if listed else [])]
            if given:
                prefix, name = ("", given[0]) if len(given) == 1 else (given[0], given[1])
                kind = "function"
        if not name or name in KEYWORDS:
            return None
        return Opened(cast(BlockType, kind), name, node, self.outer(node), prefix=prefix)

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also what the access sections and the namespaces around it make of a definition."""
        described = super().describe(opened, first)
        around = opened.outer.parent
        if around is not None and around.type == "field_declaration_list":
            described.is_private = _access(opened.outer, around) == "private"
        elif _is_in_anonymous_namespace(opened.outer):
            described.is_private = True
        declarator = declaration(opened.function.child_by_field_name("declarator")).name
        if declarator is not None and TEST_MACROS.fullmatch(text(declarator)):
            described.is_test = True
            described.parameters = []
        return described

    def signature(self, opened: Opened, body: Node | None) -> str:
        """The initializers of a constructor belong to its body."""
        initializers = of_type(opened.function.children, "field_initializer_list")
        return super().signature(opened, initializers[0] if initializers else body)

    def body(self, node: Node) -> Node | None:
        """A concept's condition is its body."""
        if node.type == "concept_definition":
            return node.named_children[-1]
        return super().body(node)

    def returned(self, node: Node) -> str:
        """A trailing type, that of a conversion, or as in C."""
        declarator = declaration(node.child_by_field_name("declarator"))
        if declarator.function is not None:
            for clause in of_type(declarator.function.children, "trailing_return_type"):
                return text(clause).removeprefix("->").strip()
        _, own = _split(declarator.name)
        if own is not None and own.type == "operator_cast":
            return text(own.child_by_field_name("type"))
        members = node.parent
        around = members.parent if members is not None else None
        if around is not None and text(around.child_by_field_name("name")) == text(own):
            return ""  # a constructor behind a macro
        return super().returned(node)

    def parameters(self, node: Node) -> list[Parameter]:
        """A lambda's stand in its abstract declarator."""
        if node.type == "lambda_expression":
            declarator = node.child_by_field_name("declarator")
            return Language.parameters(self, declarator) if declarator is not None else []
        return super().parameters(node)

    def bases(self, node: Node) -> list[str]:
        """Base classes without their access."""
        return [
            text(base)
            for clause in of_type(node.named_children, "base_class_clause")
            for base in clause.named_children
            if base.type in ("type_identifier", "template_type", "qualified_identifier")
        ]

    def imports(self, node: Node) -> list[Import]:
        """`using a::b`, `using namespace a`, `namespace a = b::c` and `#include`."""
        if node.type == "preproc_include":
            return super().imports(node)
        named = [text(child) for child in node.named_children]
        if node.type == "namespace_alias_definition":
            return [Import(named[0], named[-1], None)] if len(named) > 1 else []
        if not named or any(child.type in ("namespace", "enum") for child in node.children):
            return [Import("*", name, "*") for name in named]
        module, _, name = named[-1].rpartition("::")
        return [Import(name, module, name)]

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """As in C, also within namespaces."""
        if node.type == "namespace_definition":
            body = node.child_by_field_name("body")
            inside = body.named_children if body is not None else []
            return [found for child in inside for found in self.constants(child)]
        return super().constants(node)


def _split(name: Node | None) -> tuple[str, Node | None]:
    """('a.Foo', node of `bar`) of `a::Foo<T>::bar`."""
    scopes = []
    while name is not None and name.type in ("qualified_identifier", *TEMPLATES):
        scope = name.child_by_field_name("scope")
        if scope is not None:
            inner = scope.child_by_field_name("name") if scope.type in TEMPLATES else scope
            scopes.append(text(inner))
        name = name.child_by_field_name("name")
    return ".".join(scopes), name


def _own_name(node: Node) -> str:
    """`operator bool` of `operator bool() const`, else the whole text."""
    end = node.end_byte
    inner = node.child_by_field_name("declarator")
    while inner is not None:
        end = inner.start_byte if inner.type == "abstract_function_declarator" else end
        inner = inner.child_by_field_name("declarator")
    return text_between(node, node.start_byte, end).strip()


def _bound(function: Node) -> Opened | None:
    """`auto f = […](…) {…};` that stands in no function."""
    declarator = function.parent
    if declarator is None or declarator.type != "init_declarator":
        return None
    declared, outer = declaration(declarator.child_by_field_name("declarator")), declarator.parent
    if outer is None or outer.parent is None or outer.parent.type not in TOP:
        return None
    return Opened("function", name, function, outer) if (name := text(declared.name)) else None


def _access(member: Node, members: Node) -> str:
    """The access section that a member of a class stands in."""
    around = members.parent
    access = "private" if around is not None and around.type == "class_specifier" else "public"
    for child in members.children:
        if child.start_byte >= member.start_byte:
            break
        if child.type == "access_specifier":
            access = text(child)
    return access


def _is_in_anonymous_namespace(node: Node) -> bool:
    around = node.parent
    while around is not None:
        if around.type == "namespace_definition" and around.child_by_field_name("name") is None:
            return True
        around = around.parent
    return False
