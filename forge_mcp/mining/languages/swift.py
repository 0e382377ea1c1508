"""Swift: extensions lend their type's name, computed properties are definitions."""

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

# Definitions without a name of their own: the keyword is their name.
KEYWORDS = {
    "init_declaration": "init",
    "deinit_declaration": "deinit",
    "subscript_declaration": "subscript",
}
NO_VALUE = re.compile(r"_statement$|_declaration$|^assignment$|^directive$|^ERROR$")
SINGLE = frozenset({"class", "struct", "enum", "protocol", "func", "var", "let", "typealias"})
TEST_CASES = frozenset({"XCTestCase", "QuickSpec", "AsyncSpec"})


class Swift(Language):
    """Types, protocols with what they ask for, functions, `init`, `deinit`, subscripts and type
    aliases; properties that are computed, and constants of a file or a type that hold a closure.

    What stands in an extension is named as if it stood in the type; the extension itself is no
    definition. Stored properties, also with observers, and cases of an enum are none either.
    """

    name = "swift"
    extensions: ClassVar[tuple[str, ...]] = (".swift",)
    package = "tree-sitter-swift"
    comments: ClassVar[frozenset[str]] = frozenset({"comment", "multiline_comment"})
    doc_comment: ClassVar[re.Pattern[str]] = re.compile(r"///(?!/)|/\*\*(?![*/])")
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "protocol_declaration": ("class", "protocol"),
        "typealias_declaration": ("class", "type"),
        "function_declaration": ("function", ""),
        "protocol_function_declaration": ("method", ""),
        "init_declaration": ("method", ""),
        "deinit_declaration": ("method", ""),
        "subscript_declaration": ("method", ""),
        "property_declaration": ("function", "property"),
        "macro_declaration": ("function", "macro"),
    }
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda_literal"})
    calls: ClassVar[frozenset[str]] = frozenset(
        {"call_expression", "constructor_expression", "macro_invocation"}
    )
    raises: ClassVar[frozenset[str]] = frozenset({"control_transfer_statement"})
    returns: ClassVar[frozenset[str]] = frozenset({"control_transfer_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "guard_statement",
            "for_statement",
            "while_statement",
            "repeat_while_statement",
            "catch_block",
            "ternary_expression",
            "conjunction_expression",
            "disjunction_expression",
            "nil_coalescing_expression",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"switch_entry"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"case"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"import_declaration"})
    decorators: ClassVar[frozenset[str]] = frozenset({"attribute"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(#?" + NAME + rb"(?:[?!]?\." + NAME + rb")*)(?:<[\w\s,.<>?:\[\]]*>)?[?!]?\s*[({]"
    )
    # An error is mostly a case of an enum: `throw ParserError.missing(name)`
    raised_pattern: ClassVar[re.Pattern[bytes]] = re.compile(rb"throw\s+([A-Z]\w*(?:\.[A-Z]\w*)*)")
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:(?!(?:func|init|var|let|subscript|typealias|struct|enum|class|protocol|macro)\b)"
        r"@?\w+(?:\([^)]*\))?\s+)*?(?:file)?private\s"
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test(?=[A-Z_\d]|$)")
    test_decorators: ClassVar[frozenset[str]] = frozenset({"Test", "Suite"})
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests|\w*Tests)/|(?:Tests?|Spec)\.swift$"
    )

    def opens(self, node: Node) -> Opened | None:
        """Everything but extensions; properties only with code of their own."""
        kind, label = self.definitions[node.type]
        if node.type == "class_declaration":
            label = text(node.child_by_field_name("declaration_kind"))
            if label == "extension":
                return None
            label = "" if label == "class" else label
        name = KEYWORDS.get(node.type, "") or self.name_of(node)
        around = _type_around(node)
        if node.type == "property_declaration" and not self._has_code(node, around):
            return None
        opened = Opened(kind, name, node, node, label=label)
        if around is not None and _is_extension(around):
            opened.prefix = text(around.child_by_field_name("name")).partition("<")[0]
            opened.kind = "method" if kind == "function" else kind
        return opened if name else None

    def name_of(self, node: Node) -> str:
        """The first of the fields `name`; the others hold types."""
        names = node.children_by_field_name("name")
        if node.type == "property_declaration":
            bound = [
                c for c in of_type(names, "pattern") if c.child_by_field_name("bound_identifier")
            ]
            return text(bound[0]) if len(bound) == 1 else ""
        if node.type == "macro_declaration":
            names = of_type(node.children, "simple_identifier")
        return text(names[0]) if names else ""

    def _has_code(self, node: Node, around: Node | None) -> bool:
        if node.child_by_field_name("computed_value") is not None:
            return True
        value, top = node.child_by_field_name("value"), node.parent
        constant = any(text(c) == "let" for c in of_type(node.children, "value_binding_pattern"))
        closure = value is not None and value.type == "lambda_literal"
        at_top = around is not None or (top is not None and top.type == "source_file")
        return closure and constant and at_top

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether it is asynchronous, and what the type around it says of a definition."""
        described = super().describe(opened, first)
        node, around = opened.function, _type_around(opened.function)
        if opened.kind == "class":
            described.is_test = bool(TEST_CASES.intersection(described.bases))
            return described
        described.returns = _returned(node)
        if values := self._returns(node):
            described.extra["return_expressions"] = values
        if of_type(node.children, "async"):
            described.extra["is_async"] = True
        if around is not None and _is_extension(around):
            modifiers = "".join(text(child) for child in of_type(around.children, "modifiers"))
            if re.search(r"\b(?:file)?private\b", modifiers):
                described.is_private = True
        return described

    def _returns(self, function: Node) -> list[str]:
        """What a function returns by `return`: the grammar has one node type for it and `throw`."""
        found: dict[str, None] = {}
        stack = [function]
        while stack:
            node = stack.pop()
            if node.type == "control_transfer_statement":
                value = node.child_by_field_name("result")
                if value is not None and text(node).startswith("return"):
                    found[text(value)] = None
                continue
            within = [c for c in node.named_children if b"return" in (c.text or b"")]
            inner = self.anonymous | self.definitions.keys()
            stack += reversed([child for child in within if child.type not in inner])
        return list(found)

    def body(self, node: Node) -> Node | None:
        """The body of a function or a type, of a property's or a subscript's accessors, a closure;
        what a requirement of a protocol must offer (`{ get }`) is none.
        """
        for name in ("body", "computed_value", "definition"):
            if (body := node.child_by_field_name(name)) is not None:
                return body
        if node.type == "property_declaration":
            return node.child_by_field_name("value")
        computed = of_type(node.children, "computed_property")
        return computed[0] if computed else None

    def bases(self, node: Node) -> list[str]:
        """Superclass and protocols."""
        return [text(child) for child in of_type(node.named_children, "inheritance_specifier")]

    def parameters(self, node: Node) -> list[Parameter]:
        """Named as they are called inside; with an own label they are passed by it."""
        if node.type == "property_declaration":
            closure = node.child_by_field_name("value")
            kind = closure.child_by_field_name("type") if closure is not None else None
            listed = of_type(kind.named_children if kind else [], "lambda_function_type_parameters")
            return [
                Parameter(text(child.child_by_field_name("name")), kind="positional_only")
                for child in of_type(listed[0].named_children if listed else [], "lambda_parameter")
            ]
        found: list[Parameter] = []
        children = node.children
        for at, child in enumerate(children):
            if child.type == "parameter":
                found.append(_parameter(child))
            elif child.type == "=" and found and at + 1 < len(children):
                found[-1] = found[-1]._replace(default=text(children[at + 1]))
        return found

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements (the grammar wraps them in a node)."""
        found = super().statements(function)
        if found is not None and len(found) == 1 and found[0].type == "statements":
            return [c for c in found[0].named_children if c.type not in self.comments]
        return found

    def implicit_return(self, function: Node) -> str:
        """The only expression of a body."""
        if not _returned(function) or function.type == "macro_declaration":
            return ""
        found = self.statements(function) or []
        if len(found) != 1 or NO_VALUE.search(found[0].type):
            return ""
        return text(found[0]) if found[0].type != "computed_getter" else ""

    def imports(self, node: Node) -> list[Import]:
        """`import A` brings in all names of a module, `import struct A.B` one."""
        path = "".join(text(child) for child in of_type(node.named_children, "identifier"))
        if any(child.type in SINGLE for child in node.children):
            module, _, name = path.rpartition(".")
            return [Import(name, module, name)]
        return [Import("*", path, "*")] if path else []

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`let NAME = value`, but for closures."""
        if node.type != "property_declaration" or not text(node).lstrip().startswith(
            ("let ", "public let ", "internal let ", "private let ", "fileprivate let ")
        ):
            return []
        value = node.child_by_field_name("value")
        name = self.name_of(node)
        if value is None or value.type == "lambda_literal" or not name:
            return []
        return [(name, text(value))]


def _type_around(node: Node) -> Node | None:
    """The type, protocol or extension that a definition stands directly in."""
    body = node.parent
    if body is None or body.type not in ("class_body", "enum_class_body", "protocol_body"):
        return None
    return body.parent


def _is_extension(node: Node) -> bool:
    return text(node.child_by_field_name("declaration_kind")) == "extension"


def _returned(node: Node) -> str:
    """The type behind the arrow, or the annotation of a property."""
    for child in node.children:
        if child.type == "->" and child.next_named_sibling is not None:
            return text(child.next_named_sibling)
        if child.type == "type_annotation":
            return text(child).removeprefix(":").strip()
    return ""


def _parameter(node: Node) -> Parameter:
    """`label name: Type`; a type ends in `...` where several values may be passed."""
    name = text(node.child_by_field_name("name"))
    annotation = text(node).partition(":")[2].strip()
    kind = "keyword_only"
    if annotation.endswith("..."):
        kind = "var_positional"
    elif text(node.child_by_field_name("external_name")) == "_":
        kind = "positional_only"
    return Parameter(name, annotation, "", kind)
