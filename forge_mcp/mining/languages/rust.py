"""Rust: attributes and doc comments come first, `impl` blocks lend their type's name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from tree_sitter import Node, Tree

from forge_mcp.mining.comments import clean_comments, is_license_header
from forge_mcp.mining.languages.base import (
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    clean_decorator,
    last_row,
    of_type,
    text,
    text_between,
)
from forge_mcp.schemas.code_blocks import BlockType

RUST_NAME = rb"(?:r#)?[A-Za-z_\x80-\xff][\w\x80-\xff]*"
TEST_ATTRIBUTE = re.compile(
    r"(?:\w+::)*(?:test|rstest|test_case|bench|quickcheck|proptest)\s*(?:\(|$)"
    r"|cfg\((?:all\(\s*)?test\b"
)
MACRO_WITH_ITEMS = re.compile(rb"\w![ \t]*\{")
INNER_DOC = re.compile(r"//!|/\*!")
# Node types at the end of a body that are no value of the function.
NO_VALUE = re.compile(r"_item$|_declaration$|_statement$|_definition$|^ERROR$")
DIVERGING = re.compile(r"(?:panic|todo|unimplemented|unreachable)!")
NAMES = frozenset({"identifier", "scoped_identifier", "use_as_clause", "self", "super", "crate"})
# Types that are written around the type that an `impl` is for, and the field that holds it.
WRAPPERS = {
    "generic_type": "type",
    "reference_type": "type",
    "pointer_type": "type",
    "scoped_type_identifier": "name",
    "dynamic_type": "trait",
}


class Rust(Language):
    """Functions, types, traits with their methods, and `macro_rules!`.

    Functions of an `extern` block are declared elsewhere and no definitions; closures belong to
    the function that holds them. The `self` of a method is no parameter. A `match` counts every
    arm as a branch.
    """

    name = "rust"
    extensions: ClassVar[tuple[str, ...]] = (".rs",)
    package = "tree-sitter-rust"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_item": ("function", ""),
        "function_signature_item": ("method", ""),
        "struct_item": ("class", "struct"),
        "enum_item": ("class", "enum"),
        "union_item": ("class", "union"),
        "trait_item": ("class", "trait"),
        "type_item": ("class", "type"),
        "macro_definition": ("function", "macro"),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"mod_item"})
    anonymous: ClassVar[frozenset[str]] = frozenset({"closure_expression", "async_block"})
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression", "macro_invocation"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_expression"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {"if_expression", "for_expression", "while_expression", "match_arm"}
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression", "let_chain"})
    imports_at: ClassVar[frozenset[str]] = frozenset(
        {"use_declaration", "extern_crate_declaration"}
    )
    decorators: ClassVar[frozenset[str]] = frozenset({"attribute_item"})
    comments: ClassVar[frozenset[str]] = frozenset({"line_comment", "block_comment"})
    doc_comment: ClassVar[re.Pattern[str]] = re.compile(r"///(?!/)|/\*\*(?![*/])")
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(" + RUST_NAME + rb"(?:(?:::|\.)" + RUST_NAME + rb")*!?)"
        rb"(?:::<[\w\s,:<>&'\[\]]*>)?\s*[(\[{]"
    )
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests|benches)/|(?:^|/)(?:[^/]*_)?tests?\.rs$"
    )

    def parse(self, source: bytes) -> Tree:
        """The tree of a file in which macros around items (`cfg_rt! { fn f() {} }`) are blanked.

        To the grammar their content is mere tokens; where it reads as items, it is taken as such.
        Offsets stay what they are.
        """
        tree = super().parse(source)
        while MACRO_WITH_ITEMS.search(source):
            blanked = bytearray(source)
            for node in _item_macros(tree.root_node):
                self._blank(node, blanked)
            if blanked == source:
                break
            source = bytes(blanked)
            tree = super().parse(source)
        return tree

    def _blank(self, macro: Node, source: bytearray) -> None:
        """Take `name! {` and `}` from around items; nothing where there are none."""
        tokens = of_type(macro.children, "token_tree")
        if not tokens or tokens[0].child(0).type != "{" or tokens[0].is_missing:
            return
        start, end = tokens[0].start_byte + 1, tokens[0].end_byte - 1
        inner = super().parse(bytes(source[start:end])).root_node
        items = of_type(inner.children, *self.definitions, "impl_item", "macro_invocation")
        if items and not inner.has_error:
            for at in (*range(macro.start_byte, start), end):
                source[at] = source[at] if source[at : at + 1] in b"\r\n" else 0x20

    def opens(self, node: Node) -> Opened | None:
        """What stands in an `impl` belongs to its type; `extern` functions are none."""
        opened, around = super().opens(node), _item_around(node)
        is_declared_only = node.type == "function_signature_item"
        if opened is None or around is None:
            return None if is_declared_only else opened
        if around.type == "impl_item":
            opened.prefix = _type_name(around.child_by_field_name("type"))
            opened.kind = "method" if opened.kind == "function" else opened.kind
        elif is_declared_only and around.type != "trait_item":
            return None
        return opened

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether a function is asynchronous, and what its surroundings make of it."""
        described = super().describe(opened, first)
        node = opened.function
        if node.type == "macro_definition":
            exported = any(d.startswith("macro_export") for d in described.decorators)
            described.is_private = not exported
        elif any("async" in text(child) for child in of_type(node.children, "function_modifiers")):
            described.extra["is_async"] = True
        around = _item_around(node)
        if around is not None and (
            around.type == "trait_item" or around.child_by_field_name("trait") is not None
        ):
            described.is_private = False  # as visible as the trait
        if _is_configured_for_tests(node):
            described.is_test = True
        return described

    def signature(self, opened: Opened, body: Node | None) -> str:
        """That of a macro is its name; its rules are its body."""
        name = opened.function.child_by_field_name("name")
        if opened.function.type == "macro_definition" and name is not None:
            return text_between(opened.outer, opened.outer.start_byte, name.end_byte)
        return super().signature(opened, body)

    def body(self, node: Node) -> Node | None:
        """The fields of a tuple struct belong to its signature."""
        body = super().body(node)
        return None if body is None or body.type == "ordered_field_declaration_list" else body

    def bases(self, node: Node) -> list[str]:
        """The traits that a trait asks for, without lifetimes."""
        bounds = node.child_by_field_name("bounds") if node.type == "trait_item" else None
        listed = bounds.named_children if bounds is not None else []
        return [text(base) for base in listed if base.type not in ("lifetime", *self.comments)]

    def parameter(self, node: Node) -> Parameter | None:
        """`mut x: u8`, `(a, b): (u8, u8)`, `...`; `self` in all its forms is none."""
        pattern = node.child_by_field_name("pattern")
        if node.type == "variadic_parameter" and pattern is None:
            return Parameter("...", kind="var_positional")
        if node.type != "parameter" or pattern is None or pattern.type == "self":
            return None
        return Parameter(
            text(pattern), text(node.child_by_field_name("type")), "", "positional_only"
        )

    def implicit_return(self, function: Node) -> str:
        """The expression at the end of a body, where the function says what it returns."""
        body = self.body(function)
        if body is None or function.child_by_field_name("return_type") is None:
            return ""
        listed = [child for child in body.named_children if child.type not in self.comments]
        value = text(listed[-1]) if listed and not NO_VALUE.search(listed[-1].type) else ""
        return "" if DIVERGING.match(value) else value

    def first_node(self, opened: Opened) -> Node:
        """Attributes and doc comments belong to the next item, whatever stands between them."""
        first = node = opened.outer
        while (before := node.prev_sibling) is not None:
            if before.type == "attribute_item":
                first = before
            elif before.type not in self.comments or _stands_behind_code(before):
                break
            elif self.doc_comment.match(comment := text(before)):
                if is_license_header(comment):
                    break
                first = before
            node = before
        return first

    def docstring(self, opened: Opened, first: Node) -> str:
        """The doc comments without marks; line comments that stand together are cleaned as one."""
        groups: list[list[str]] = []
        node: Node | None = first
        while node is not None and node.id != opened.outer.id:
            comment = text(node).rstrip("\r\n")
            if node.type in self.comments and self.doc_comment.match(comment):
                lines = comment.startswith("//")
                if lines and groups and groups[-1][0].startswith("//"):
                    groups[-1].append(comment)
                else:
                    groups.append([comment])
            node = node.next_sibling
        return "\n".join(clean_comments("\n".join(group)) for group in groups)

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """`//!` and `/*!` at the top of a file."""
        found: list[Node] = []
        for child in root.children:
            if child.type in self.comments and INNER_DOC.match(text(child)):
                found.append(child)
            elif found or child.type not in (*self.comments, "inner_attribute_item", "shebang"):
                break
        if not found:
            return None, ""
        return found[0], clean_comments("\n".join(text(node).rstrip("\r\n") for node in found))

    def imports(self, node: Node) -> list[Import]:
        """`use a::{self, b as c, d::*}` and `extern crate a as b`."""
        if node.type == "extern_crate_declaration":
            name = text(node.child_by_field_name("name"))
            return [Import(text(node.child_by_field_name("alias")) or name, name, None)]
        argument = node.child_by_field_name("argument")
        return list(_used(argument, "")) if argument is not None else []

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`const` and `static` items."""
        if node.type not in ("const_item", "static_item"):
            return []
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        return [(text(name), text(value))] if value is not None and text(name) != "_" else []

    def is_private(self, name: str, signature: str) -> bool:
        """No `pub` of any reach."""
        return not signature.startswith("pub")

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """`#[test]` and the like, also of a crate (`#[tokio::test]`), and `#[cfg(test)]`."""
        return any(TEST_ATTRIBUTE.match(decorator) for decorator in decorators)


def _item_macros(node: Node) -> Iterator[Node]:
    """Macros that are called where items stand."""
    for child in node.named_children:
        if child.type == "expression_statement":  # a call with braces at the top of a file
            yield from of_type(child.named_children, "macro_invocation")
        elif child.type == "macro_invocation":
            yield child
        elif child.type in ("mod_item", "impl_item", "trait_item"):
            for body in of_type(child.named_children, "declaration_list"):
                yield from _item_macros(body)


def _item_around(node: Node) -> Node | None:
    """The `impl`, `trait`, `mod` or `extern` block that an item stands in."""
    listed = node.parent
    return listed.parent if listed is not None and listed.type == "declaration_list" else None


def _type_name(node: Node | None) -> str:
    """`Map` of `&'a collections::Map<K, V>`; the whole text of a tuple or a slice."""
    while node is not None:
        if node.type == "bounded_type":
            node = next(iter(node.named_children), None)
        elif node.type in WRAPPERS:
            node = node.child_by_field_name(WRAPPERS[node.type])
        else:
            break
    return "".join(text(node).split())


def _is_configured_for_tests(node: Node) -> bool:
    """Whether an item stands in a `#[cfg(test)] mod`."""
    around: Node | None = node.parent
    while around is not None:
        if around.type == "mod_item":
            before = around.prev_sibling
            while before is not None and before.type in ("attribute_item", "line_comment"):
                if TEST_ATTRIBUTE.match(clean_decorator(text(before))):
                    return True
                before = before.prev_sibling
        around = around.parent
    return False


def _stands_behind_code(comment: Node) -> bool:
    before = comment.prev_sibling
    return (
        before is not None
        and before.is_named
        and last_row(before) == comment.start_point.row
        and before.type != "attribute_item"
    )


def _used(node: Node, path: str) -> Iterator[Import]:
    """The names that a part of a `use` declaration brings in; `path` stands before it."""
    kind = node.type
    if kind in ("use_list", "scoped_use_list"):
        inner = _joined(path, text(node.child_by_field_name("path")))
        listed = node.child_by_field_name("list") or node
        for child in listed.named_children:
            yield from _used(child, inner)
    elif kind == "use_wildcard":
        origin = "".join(text(child) for child in node.named_children)
        yield Import("*", _joined(path, origin), "*")
    elif kind in NAMES:
        alias = text(node.child_by_field_name("alias"))
        whole = text(node.child_by_field_name("path")) if kind == "use_as_clause" else text(node)
        whole = path if whole == "self" and path else _joined(path, whole)
        module, _, name = whole.rpartition("::")
        if alias != "_":  # a trait that is only to be in scope
            yield Import(alias or name, module or name, name if module else None)


def _joined(path: str, name: str) -> str:
    return f"{path}::{name}" if path and name else path or name
