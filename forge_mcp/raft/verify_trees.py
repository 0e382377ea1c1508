"""Syntax trees of single blocks of JavaScript, TypeScript, Go and Java.

The grammars are those that mining uses; the walks over them are not. A block is parsed by itself,
inside whatever makes it whole (a method in a class, a property in an object).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from tree_sitter import Language, Node, Parser, Tree

from forge_mcp.schemas.code_blocks import CodeBlock

SCRIPTS = frozenset({"javascript", "typescript", "tsx"})

FUNCTIONS = frozenset(
    {
        "function_declaration",
        "generator_function_declaration",
        "function_expression",
        "generator_function",
        "arrow_function",
        "method_definition",
        "function_signature",
        "method_signature",
        "abstract_method_signature",
        "method_declaration",
        "constructor_declaration",
        "compact_constructor_declaration",
        "annotation_type_element_declaration",
        "func_literal",
    }
)
CLASSES = frozenset(
    {
        "class_declaration",
        "abstract_class_declaration",
        "class",
        "interface_declaration",
        "enum_declaration",
        "type_alias_declaration",
        "record_declaration",
        "annotation_type_declaration",
        "type_spec",
        "type_alias",
    }
)
ANONYMOUS = frozenset(
    {
        "arrow_function",
        "function_expression",
        "generator_function",
        "func_literal",
        "lambda_expression",
    }
)
DECORATORS = frozenset({"decorator", "annotation", "marker_annotation"})
COMMENTS = frozenset({"comment", "line_comment", "block_comment", "html_comment"})
# What makes a block whole, by its type; the first in which nothing is wrong is taken.
_WRAPPERS: dict[str, dict[str, tuple[str, ...]]] = {
    "scripts": {
        "function": ("{}", "({{\n{}\n}})", "class X {{\n{}\n}}", "var {}", "declare {}", "({})"),
        "method": (
            "class X {{\n{}\n}}",
            "abstract class X {{\n{}\n}}",
            "({{\n{}\n}})",
            "{}",
            "class X extends Y {{\n{}\n}}",
        ),
        "class": ("{}", "({{\n{}\n}})", "var {}", "declare {}", "({})", "class X {{\n{}\n}}"),
        "module": ("{}",),
    },
    "go": {
        "function": ("{}\n", "var (\n{}\n)\n"),
        "method": ("{}\n",),
        "class": ("{}\n", "type (\n{}\n)\n"),
        "module": ("{}\n",),
    },
    "java": {
        "function": ("class X {{\n{}\n}}",),
        "method": (
            "class X {{\n{}\n}}",
            "@interface X {{\n{}\n}}",
            "interface X {{\n{}\n}}",
            "record X() {{\n{}\n}}",
            "enum X {{ A; \n{}\n}}",
        ),
        "class": ("{}", "class X {{\n{}\n}}"),
        "module": ("{}",),
    },
}


@dataclass(frozen=True, eq=False)
class Parsed:
    """A block's tree. `node` is the function, class or (of a module) the whole file.

    `start` is where the block begins in `source`, its wrapping left out.
    """

    tree: Tree
    source: bytes
    start: int
    node: Node


@cache
def _parser(language: str) -> Parser:
    """The language's grammar; mining has loaded it before, so it is there."""
    if language == "javascript":
        import tree_sitter_javascript as grammar

        return Parser(Language(grammar.language()))
    if language == "go":
        import tree_sitter_go

        return Parser(Language(tree_sitter_go.language()))
    if language == "java":
        import tree_sitter_java

        return Parser(Language(tree_sitter_java.language()))
    import tree_sitter_typescript

    entry = (
        tree_sitter_typescript.language_tsx
        if language == "tsx"
        else tree_sitter_typescript.language_typescript
    )
    return Parser(Language(entry()))


@lru_cache(maxsize=1024)
def parse(source: str, language: str, block_type: str) -> Parsed | None:
    """The tree of one definition, in the first wrapping in which nothing is wrong; else None."""
    group = "scripts" if language in SCRIPTS else language
    for wrapper in _WRAPPERS[group][block_type]:
        before, after = wrapper.format("\0").split("\0")
        text = (before + source + after).encode()
        tree = _parser(language).parse(text)
        if tree.root_node.has_error:
            continue
        start = len(before.encode())
        if block_type == "module":
            return Parsed(tree, text, start, tree.root_node)
        wanted = CLASSES if block_type == "class" else FUNCTIONS
        node = _find(tree.root_node, wanted, start, start + len(source.encode()))
        if node is not None:
            return Parsed(tree, text, start, node)
    return None


def _find(root: Node, wanted: frozenset[str], start: int, end: int) -> Node | None:
    """The outermost node of some types within a span; what stands in decorators is none."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.end_byte <= start or node.start_byte >= end or node.type in DECORATORS:
            continue
        if (
            node.is_named
            and node.type in wanted
            and node.start_byte >= start
            and node.end_byte <= end
        ):
            return node
        stack += reversed(node.children)
    return None


def tree_of(block: CodeBlock) -> Parsed | None:
    """The tree of a block; None where it cannot be parsed by itself."""
    source = block.source_code
    if block.metadata.get("skeleton"):  # bodies that were taken out are no code
        source = source.replace("{ ... }", "{     }")
    return parse(source, block.language, block.block_type)


def text_of(node: Node | None) -> str:
    """Verbatim source of a node; '' for None."""
    return node.text.decode() if node is not None and node.text is not None else ""


def field_of(node: Node, *names: str) -> Node | None:
    """The first of some fields that a node has."""
    for name in names:
        if (found := node.child_by_field_name(name)) is not None:
            return found
    return None


def parts_of(node: Node | None) -> list[Node]:
    """The named children of a node, comments left out."""
    return [c for c in node.named_children if c.type not in COMMENTS] if node is not None else []


def walk(node: Node, but: frozenset[str]) -> Iterator[Node]:
    """All nodes below one in the order of the source; nothing below those of some types."""
    stack = list(reversed(node.children))
    while stack:
        found = stack.pop()
        if not found.is_named:
            continue
        yield found
        if found.type not in but:
            stack += reversed(found.children)


def parameter_rows(node: Node) -> list[tuple[str, str, str]] | None:
    """(name, type, default) of every parameter; None where one has no name."""
    single = field_of(node, "parameter")
    if single is not None:
        return [(text_of(single), "", "")]
    rows: list[tuple[str, str, str]] = []
    for child in parts_of(field_of(node, "parameters")):
        kind = child.type
        if kind in ("identifier", "object_pattern", "array_pattern"):
            rows.append((text_of(child), "", ""))
        elif kind == "assignment_pattern":
            rows.append((text_of(field_of(child, "left")), "", text_of(field_of(child, "right"))))
        elif kind == "rest_pattern":
            rows.append((text_of(parts_of(child)[0]), "", ""))
        elif kind in ("required_parameter", "optional_parameter"):
            pattern = field_of(child, "pattern")
            if pattern is not None and pattern.type == "rest_pattern":
                pattern = parts_of(pattern)[0]
            if text_of(pattern) != "this":
                annotation = parts_of(field_of(child, "type"))
                rows.append(
                    (
                        text_of(pattern),
                        text_of(annotation[0]) if annotation else "",
                        text_of(field_of(child, "value")),
                    )
                )
        elif kind == "formal_parameter":
            name = text_of(field_of(child, "name"))
            if name != "this":  # Java's receiver
                dimensions = text_of(field_of(child, "dimensions"))  # `int rows[]`
                rows.append((name, text_of(field_of(child, "type")) + dimensions, ""))
        elif kind == "spread_parameter":
            declared = [c for c in parts_of(child) if c.type == "variable_declarator"]
            typed = [
                c for c in parts_of(child) if c.type not in ("variable_declarator", "modifiers")
            ]
            rows.append((text_of(field_of(declared[0], "name")), f"{text_of(typed[0])}...", ""))
        elif kind in ("parameter_declaration", "variadic_parameter_declaration"):
            names = child.children_by_field_name("name")
            dots = "..." if kind.startswith("variadic") else ""
            rows += [
                (text_of(n), dots + text_of(field_of(child, "type")), "")
                for n in names
                if n.is_named
            ]
            if not names:
                return None
    return rows
