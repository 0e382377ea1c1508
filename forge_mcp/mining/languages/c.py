"""C: declarators name what they declare, comments above document, `static` is private."""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

from tree_sitter import Node, Tree

from forge_mcp.mining.comments import clean_comments
from forge_mcp.mining.languages import c_macros
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
from forge_mcp.schemas.code_blocks import BlockType

SPECIFIERS = frozenset({"struct_specifier", "union_specifier", "enum_specifier", "class_specifier"})
# Node types around a definition that belong to it.
WRAPPERS = frozenset({"template_declaration", "friend_declaration", "linkage_specification"})
NAMES = frozenset(
    {"identifier", "field_identifier", "type_identifier", "qualified_identifier", "operator_name"}
    | {"destructor_name", "operator_cast", "template_function", "primitive_type"}
)
# What error recovery may take for a function's name.
KEYWORDS = frozenset({"if", "else", "for", "while", "do", "switch", "return", "sizeof", "defined"})
QUALIFIERS = ("const", "volatile", "restrict")
MACROS_AROUND = re.compile(r"^(?:[A-Z][A-Z0-9_]+\s+)+(?=\w)|(?:\s+[A-Z][A-Z0-9_]+)+$")
# A comment on the member before it, or one that speaks to a tool.
DIRECTIVE = re.compile(
    r"//[/!]<|/\*[*!]<"
    r"|/[/*]+\s*(?:clang-format|NOLINT|IWYU|[LG]COV_|cppcheck|coverity|lint\b|NOSONAR)"
)
RULER = re.compile(r"^[ \t]*[-=*/#~+_]{3,}[ \t]*|[ \t]*[-=*/#~+_]{3,}$", re.MULTILINE)
FILE_COMMENT = re.compile(r"[@\\]file\b")


class Declared(NamedTuple):
    """What a declarator says: the name's node, and the innermost function declarator."""

    name: Node | None
    function: Node | None
    direct: bool  # only pointers and references stand around the function


class C(Language):
    """Functions with a body, macros with parameters, types with a body and typedefs.

    Prototypes and macros without parameters are no definitions. A struct without a name has that
    of its typedef. Plain comments right above a definition document it, as Doxygen's do.
    """

    name = "c"
    extensions: ClassVar[tuple[str, ...]] = (".c", ".h")
    package = "tree-sitter-c"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_definition": ("function", ""),
        "struct_specifier": ("class", "struct"),
        "union_specifier": ("class", "union"),
        "enum_specifier": ("class", "enum"),
        "type_definition": ("class", "typedef"),
        "preproc_function_def": ("function", "macro"),
    }
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "for_statement",
            "while_statement",
            "do_statement",
            "conditional_expression",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression", "case_statement"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "case"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"preproc_include"})
    decorators: ClassVar[frozenset[str]] = frozenset({"attribute_declaration"})
    plain_comments_document: ClassVar[bool] = True
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(" + NAME + rb"(?:(?:\.|->)" + NAME + rb")*)\s*\("
    )
    return_fields: ClassVar[tuple[str, ...]] = ()
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(
        r"(?!.*\binline\b)(?:\w+\s+)*?static\s", re.IGNORECASE
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test_|Test[A-Z_]")
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests?|testsuite|unittests?)/"
        r"|(?:^|/)test_[^/]*$|[_-](?:unit)?tests?\.\w+$|(?:^|/)tests?\.\w+$"
    )

    def parse(self, source: bytes) -> Tree:
        """Without the macros that the grammar cannot place."""
        return c_macros.parse(self.grammar, source)

    def opens(self, node: Node) -> Opened | None:
        """What has a body; a type of its own, or one that a typedef gives a name."""
        kind, label = self.definitions[node.type]
        if node.type == "function_definition":
            return self._function(node)
        if node.type == "type_definition":
            specifier = node.child_by_field_name("type")
            if specifier is not None and specifier.child_by_field_name("body") is not None:
                return None
            return Opened(kind, name, node, node, label=label) if (name := _typedef(node)) else None
        if node.type in SPECIFIERS and node.child_by_field_name("body") is None:
            return None
        outer = self.outer(node)
        name = text(node.child_by_field_name("name"))
        if not name and outer.type == "type_definition":
            name = _typedef(outer)
        return Opened(kind, name, node, outer, label=label) if name else None

    def _function(self, node: Node) -> Opened | None:
        declared = declaration(node.child_by_field_name("declarator"))
        name = text(declared.name)
        if is_statement(node, declared):
            return None
        if declared.function is None:  # NAME(x) { … }: a macro that makes a function
            name = text(node.child_by_field_name("type"))
        if not name.isidentifier() or name in KEYWORDS or self.body(node) is None:
            return None
        return Opened("function", name, node, self.outer(node))

    def outer(self, node: Node) -> Node:
        """With `template <…>`, `friend`, `extern "C"`, `typedef`, or the variables of a type."""
        outer, parent = node, node.parent
        if parent is not None and node.type in SPECIFIERS:
            declares = parent.type in ("declaration", "field_declaration")
            if parent.type == "type_definition" or (declares and not _has_value(parent)):
                outer, parent = parent, parent.parent
        while parent is not None and parent.type in WRAPPERS:
            outer, parent = parent, parent.parent
        return outer

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also what a function returns, with its pointers."""
        described = super().describe(opened, first)
        if opened.function.type == "function_definition":
            described.returns = self.returned(opened.function)
        return described

    def returned(self, node: Node) -> str:
        """`const char *` of `static const char *f(void)`."""
        kind = node.child_by_field_name("type")
        declared = declaration(node.child_by_field_name("declarator"))
        if kind is None or declared.name is None or declared.function is None:
            return ""
        if not declared.direct:
            return text(kind)
        qualifiers = [c for c in of_type(node.children, "type_qualifier") if text(c) in QUALIFIERS]
        start = min(child.start_byte for child in (kind, *qualifiers))
        found = text_between(node, start, declared.name.start_byte).strip()
        without = MACROS_AROUND.sub("", found)
        return without if any(character.islower() for character in without) else found

    def body(self, node: Node) -> Node | None:
        """The body; the text of a macro."""
        if node.type == "preproc_function_def":
            return node.child_by_field_name("value")
        return super().body(node)

    def statements(self, function: Node) -> list[Node] | None:
        """A macro's text is its only statement."""
        body = self.body(function)
        if body is not None and body.type == "preproc_arg":
            return [body]
        return super().statements(function)

    def parameters(self, node: Node) -> list[Parameter]:
        """Of the function, not of what it returns; `(void)` has none."""
        if node.type == "preproc_function_def":
            listed = node.child_by_field_name("parameters")
            names = listed.children if listed is not None else []
            return [self.macro_parameter(child) for child in of_type(names, "identifier", "...")]
        declared = declaration(node.child_by_field_name("declarator"))
        if declared.function is None:
            return []
        found = super().parameters(declared.function)
        return [] if [tuple(p)[:2] for p in found] == [("void", "void")] else found

    def macro_parameter(self, node: Node) -> Parameter:
        """`x` or `...` of a macro."""
        kind = "var_positional" if node.type == "..." else "positional_only"
        return Parameter(text(node), kind=kind)

    def parameter(self, node: Node) -> Parameter | None:
        """`const char *name`; where the type stands on both sides of the name, all of it."""
        if node.type not in PARAMETERS:
            return Parameter(text(node), kind="var_positional") if "variadic" in node.type else None
        declarator = node.child_by_field_name("declarator")
        name = declaration(declarator).name
        default = node.child_by_field_name("default_value")
        kind = "var_positional" if "variadic" in node.type else "positional_only"
        end = declarator.end_byte if declarator is not None else node.end_byte
        if name is None:
            whole = text(node).partition("=")[0].strip()
            return Parameter(whole, whole, text(default), kind)
        to = name.start_byte if name.end_byte == end else end
        annotation = text_between(node, node.start_byte, to).strip()
        return Parameter(text(name), annotation, text(default), kind)

    def decorations(self, opened: Opened, first: Node) -> list[str]:
        """`nodiscard` of `[[nodiscard]]`."""
        return [found.rstrip("] ") for found in super().decorations(opened, first)]

    def is_directive(self, comment: str) -> bool:
        """`// clang-format off` and the like."""
        return bool(DIRECTIVE.match(comment))

    def docstring(self, opened: Opened, first: Node) -> str:
        """Without rulers (`/*=====*/`), and without the second asterisk of a frame."""
        docstring = RULER.sub("", super().docstring(opened, first)).strip()
        lines = docstring.split("\n")
        if all(line.startswith("*") for line in lines if line.strip()):
            lines = [line.removeprefix("*").removeprefix(" ") for line in lines]
        return "\n".join(lines).strip()

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        r"""A leading comment with Doxygen's `\file`."""
        for child in root.children:
            if child.type != "comment":
                break
            if FILE_COMMENT.search(comment := text(child)):
                return child, clean_comments(comment)
        return None, ""

    def imports(self, node: Node) -> list[Import]:
        """`#include` brings in all names of a file."""
        path = text(node.child_by_field_name("path"))
        return [Import("*", path[1:-1], "*")] if path.startswith(('"', "<")) else []

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`#define NAME value` and `const` variables, also within `#ifdef` and `extern "C"`."""
        if node.type in ("preproc_ifdef", "preproc_if", "linkage_specification"):
            inside = [*node.named_children]
            for body in of_type(node.named_children, "declaration_list"):
                inside += body.named_children
            return [found for child in inside for found in self.constants(child)]
        if node.type == "preproc_def":
            name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
            return [(text(name), text(value).strip())] if value is not None else []
        qualifiers = {text(child) for child in of_type(node.named_children, "type_qualifier")}
        if node.type != "declaration" or not qualifiers & {"const", "constexpr"}:
            return []
        found = []
        for child in of_type(node.named_children, "init_declarator"):
            name = declaration(child.child_by_field_name("declarator")).name
            value = child.child_by_field_name("value")
            if name is not None and value is not None and value.type != "lambda_expression":
                found.append((text(name), text(value)))
        return found


PARAMETERS = frozenset(
    {"parameter_declaration", "optional_parameter_declaration", "variadic_parameter_declaration"}
)


def declaration(declarator: Node | None) -> Declared:
    """The name in a declarator: `f` of `*(*f(int a))(int)`."""
    function, direct = None, True
    node = declarator
    while node is not None and node.type not in NAMES:
        if node.type == "function_declarator":
            direct = direct and function is None
            function = node
        elif function is None and node.type == "parenthesized_declarator":
            direct = False
        inner = node.child_by_field_name("declarator")
        if inner is None:  # these have no such field: parentheses, references, attributes
            inner = next((c for c in node.named_children if c.type in NAMES | DECLARATORS), None)
        node = inner
    return Declared(node, function, direct)


DECLARATORS = frozenset(
    {"pointer_declarator", "function_declarator", "array_declarator", "reference_declarator"}
    | {"parenthesized_declarator", "attributed_declarator", "variadic_declarator"}
)


def is_statement(node: Node, declared: Declared) -> bool:
    """Whether a macro with a block in a function (`FOREACH(x) {…}`) reads as a definition.

    GNU's nested functions have a type and a plain declarator.
    """
    parent = node.parent
    if parent is None or not parent.type.endswith(("compound_statement", "case_statement")):
        return False
    typed = node.child_by_field_name("type") is not None
    return not (typed and declared.direct and declared.function is not None)


def _typedef(node: Node) -> str:
    """The name that a typedef makes; the first that is no pointer to what it names."""
    declarators = node.children_by_field_name("declarator")
    plain = of_type(declarators, "type_identifier", "primitive_type") or declarators
    return text(declaration(plain[0]).name) if plain else ""


def _has_value(node: Node) -> bool:
    return any(child.type in ("init_declarator", "=") for child in node.children)
