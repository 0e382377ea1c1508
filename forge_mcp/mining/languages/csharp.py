"""C#: XML documentation and attributes come first; members without a modifier are private."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from tree_sitter import Node, Tree

from forge_mcp.mining.languages.base import (
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    of_type,
    text,
    text_between,
)
from forge_mcp.mining.languages.repair import parse_repaired
from forge_mcp.schemas.code_blocks import BlockType

NAME = rb"@?[A-Za-z_\x80-\xff][\w\x80-\xff]*+"
DIRECTIVE = re.compile(rb"[ \t]*#[ \t]*(if|elif|else|endif|[a-z]+)\b")
ACCESS = re.compile(r"(?:\w+\s+)*?(?:public|internal|protected|private|file)\s")
PROPERTIES = frozenset({"property_declaration", "indexer_declaration", "event_declaration"})
TYPES = frozenset({"class_declaration", "struct_declaration", "record_declaration"})


class CSharp(Language):
    """Types and members; a property, an indexer or an event is a definition where it has code of
    its own, not where the compiler writes it (`{ get; set; }`). A namespace in braces lends its
    name; one that is stated for the whole file does not.
    """

    name = "csharp"
    extensions: ClassVar[tuple[str, ...]] = (".cs",)
    package = "tree-sitter-c-sharp"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "struct_declaration": ("class", "struct"),
        "interface_declaration": ("class", "interface"),
        "enum_declaration": ("class", "enum"),
        "record_declaration": ("class", "record"),
        "delegate_declaration": ("class", "delegate"),
        "method_declaration": ("method", ""),
        "constructor_declaration": ("method", ""),
        "destructor_declaration": ("method", ""),
        "operator_declaration": ("method", "operator"),
        "conversion_operator_declaration": ("method", "operator"),
        "property_declaration": ("method", "property"),
        "indexer_declaration": ("method", "indexer"),
        "event_declaration": ("method", "event"),
        "local_function_statement": ("function", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"namespace_declaration"})
    anonymous: ClassVar[frozenset[str]] = frozenset(
        {"lambda_expression", "anonymous_method_expression"}
    )
    calls: ClassVar[frozenset[str]] = frozenset(
        {"invocation_expression", "object_creation_expression"}
    )
    raises: ClassVar[frozenset[str]] = frozenset({"throw_statement", "throw_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "for_statement",
            "foreach_statement",
            "while_statement",
            "do_statement",
            "catch_clause",
            "conditional_expression",
            "switch_expression_arm",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression", "switch_section"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "??", "case"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"using_directive"})
    decorators: ClassVar[frozenset[str]] = frozenset({"attribute_list"})
    doc_comment: ClassVar[re.Pattern[str]] = re.compile(r"///(?!/)|/\*\*(?!/)")
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:new\s+)?(?!nameof\b)(" + NAME + rb"(?:[?!]?\." + NAME + rb")*+)"
        rb"(?:<[\w\s,.<>\[\]?]*>)?\s*[({]"
    )
    return_fields: ClassVar[tuple[str, ...]] = ("returns", "type")
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(r"(?:\w+\s+)*?(?:private|file)\s")
    test_decorators: ClassVar[frozenset[str]] = frozenset(
        {
            "Test",
            "TestCase",
            "TestCaseSource",
            "TestFixture",
            "Fact",
            "Theory",
            "TestMethod",
            "DataTestMethod",
            "TestClass",
        }
    )
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:[\w.]+\.)?(?:Unit|Integration)?[Tt]ests?/|Tests?\.cs$"
    )

    def parse(self, source: bytes) -> Tree:
        """Directives amid a statement or a list are errors to the grammar: such a file is parsed
        again without its directives, and then with the first branch of each `#if` alone.
        """
        return parse_repaired(self.parser, source, _repairs(source))

    def opens(self, node: Node) -> Opened | None:
        """Also operators and indexers, which have no name of their own, and `I` of `I.F()`."""
        kind = node.type
        name = self.name_of(node)
        if kind == "operator_declaration":
            name = f"operator {text(node.child_by_field_name('operator'))}"
        elif kind == "conversion_operator_declaration":
            form = "".join(text(c) for c in node.children if c.type in ("implicit", "explicit"))
            name = f"{form} operator {text(node.child_by_field_name('type'))}"
        elif kind == "indexer_declaration":
            name = "this"
        elif kind == "destructor_declaration":
            name = f"~{name}"
        if not name or (kind in PROPERTIES and not _has_code(node)):
            return None
        block, label = self.definitions.get(kind, (None, ""))
        explicit = of_type(node.named_children, "explicit_interface_specifier")
        prefix = text(explicit[0]).split("<")[0].strip(". ") if explicit else ""
        return Opened(block, name, node, self.outer(node), prefix, label)

    def outer(self, node: Node) -> Node:
        """The node itself, or the statement around a function at the top of a script."""
        parent = node.parent
        return parent if parent is not None and parent.type == "global_statement" else node

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether the definition is private for want of a modifier, and asynchronous."""
        described = super().describe(opened, first)
        if not ACCESS.match(described.signature):
            described.is_private = _private_by_default(opened)
        modifiers = map(text, of_type(opened.function.named_children, "modifier"))
        if opened.kind != "class" and "async" in modifiers:
            described.extra["is_async"] = True
        return described

    def body(self, node: Node) -> Node | None:
        """A block, an arrow clause or a list of accessors."""
        for name in ("body", "accessors", "value"):
            if (found := node.child_by_field_name(name)) is not None:
                return found
        return None

    def signature(self, opened: Opened, body: Node | None) -> str:
        """From the first modifier on: comments may stand behind the attributes."""
        outer, node = opened.outer, opened.function
        skipped = self.comments | self.decorators
        start = next(child.start_byte for child in node.children if child.type not in skipped)
        end = body.start_byte if body is not None else outer.end_byte
        return text_between(outer, start, end).strip().removesuffix(";").rstrip()

    def decorations(self, opened: Opened, first: Node) -> list[str]:
        """Every attribute of `[A, B(1)]`."""
        return [
            text(attribute)
            for listed in of_type(opened.function.named_children, *self.decorators)
            for attribute in of_type(listed.named_children, "attribute")
        ]

    def bases(self, node: Node) -> list[str]:
        """The base class and interfaces, without arguments for the base's constructor."""
        return [
            text(base.child_by_field_name("type") or base)
            for listed in of_type(node.named_children, "base_list")
            for base in listed.named_children
            if base.type not in ("argument_list", *self.comments)
        ]

    def parameters(self, node: Node) -> list[Parameter]:
        """`ref int x`, `int x = 1`; the grammar has no node around `params int[] rest`."""
        listed = node.child_by_field_name("parameters")
        found = []
        for child in of_type(listed.named_children if listed is not None else [], "parameter"):
            name, kind = child.child_by_field_name("name"), child.child_by_field_name("type")
            marks = of_type(child.named_children, "modifier") + ([kind] if kind is not None else [])
            start, end = (marks[0].start_byte, marks[-1].end_byte) if marks else (0, 0)
            annotation = text_between(child, start, end)
            default = child.named_children[-1] if "=" in map(text, child.children) else None
            found.append(Parameter(text(name), annotation, text(default)))
        if listed is not None and (name := listed.child_by_field_name("name")) is not None:
            annotation = text(listed.child_by_field_name("type"))
            found.append(Parameter(text(name), annotation, kind="var_positional"))
        return found

    def implicit_return(self, function: Node) -> str:
        """`x + 1` of `int F(int x) => x + 1`."""
        return text(_arrow(self.body(function)))

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression body is its own only one."""
        expression = _arrow(self.body(function))
        return [expression] if expression is not None else super().statements(function)

    def imports(self, node: Node) -> list[Import]:
        """`using A.B` brings in all of a namespace; `using X = A.B` one name."""
        path = text(node.named_children[-1])
        alias = text(node.child_by_field_name("name"))
        if not alias:
            return [Import(path, path, None)]
        module, _, name = path.split("<")[0].rpartition(".")
        return [Import(alias, module, name) if module else Import(alias, path, None)]


def _repairs(source: bytes) -> Iterator[bytes]:
    yield source
    yield _without_directives(source, first_branch=False)
    yield _without_directives(source, first_branch=True)


def _without_directives(source: bytes, first_branch: bool) -> bytes:
    """Directives, and if asked for all but the first branch of every `#if`, as white space."""
    lines, active = [], [True]
    for line in source.split(b"\n"):
        directive = DIRECTIVE.match(line)
        word = directive[1] if directive else b""
        if word == b"if":
            active.append(True)
        elif word in (b"elif", b"else") and len(active) > 1:
            active[-1] = not first_branch
        elif word == b"endif" and len(active) > 1:
            active.pop()
        keep = directive is None and all(active)
        lines.append(line if keep else re.sub(rb"[^\r]", b" ", line))
    return b"\n".join(lines)


def _has_code(node: Node) -> bool:
    """Whether a property's accessors have bodies."""
    arrow = node.child_by_field_name("value")
    if arrow is not None and arrow.type == "arrow_expression_clause":
        return True
    accessors = node.child_by_field_name("accessors")
    listed = accessors.named_children if accessors is not None else []
    return any(accessor.child_by_field_name("body") is not None for accessor in listed)


def _private_by_default(opened: Opened) -> bool:
    """Of a definition without a modifier: True in a class, False in an interface."""
    node = opened.function
    if opened.prefix or node.type in ("local_function_statement", "destructor_declaration"):
        return False
    if node.type == "constructor_declaration" and "static" in map(text, node.children):
        return False
    around = opened.outer.parent
    while around is not None and around.type.startswith(("preproc_", "declaration_list")):
        around = around.parent
    return around is not None and around.type in TYPES


def _arrow(body: Node | None) -> Node | None:
    """The expression of `=> x`."""
    if body is None or body.type != "arrow_expression_clause":
        return None
    return body.named_children[-1]
