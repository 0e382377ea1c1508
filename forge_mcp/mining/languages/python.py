"""Python: decorated definitions, docstrings inside the body, underscores for private."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Sequence
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    BRANCH,
    CALL,
    DECORATOR,
    IMPORT,
    OPEN,
    RAISE,
    RETURN,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    dotted,
    named_type,
    of_type,
    path_has_folder,
    text,
    text_between,
)

CONSTANT = re.compile(r"_{0,2}[A-Z][A-Z0-9_]*|__\w+__")


class Python(Language):
    """Python 3. Lambdas are expressions, not definitions."""

    name = "python"
    extensions: ClassVar[tuple[str, ...]] = (".py", ".pyi", ".pyw")
    package = "tree-sitter-python"
    roles: ClassVar[dict[str, frozenset[str]]] = {
        OPEN: frozenset({"function_definition", "class_definition"}),
        CALL: frozenset({"call"}),
        RAISE: frozenset({"raise_statement"}),
        RETURN: frozenset({"return_statement"}),
        BRANCH: frozenset(
            {
                "if_statement",
                "elif_clause",
                "for_statement",
                "while_statement",
                "except_clause",
                "conditional_expression",
                "boolean_operator",
                "case_clause",
                "for_in_clause",
                "if_clause",
            }
        ),
        IMPORT: frozenset({"import_statement", "import_from_statement", "future_import_statement"}),
        DECORATOR: frozenset({"decorator"}),
    }

    def opens(self, node: Node) -> Opened | None:
        """Functions and classes, with their decorators."""
        parent = node.parent
        decorated = parent is not None and parent.type == "decorated_definition"
        return Opened(
            kind="class" if node.type == "class_definition" else "function",
            name=text(node.child_by_field_name("name")),
            function=node,
            outer=parent if decorated and parent is not None else node,
        )

    def describe(self, opened: Opened, first: Node, in_class: bool) -> Described:
        """Signature without its colon; docstring as `ast.get_docstring` gives it."""
        node = opened.function
        decorators = [
            text(child)[1:].strip() for child in of_type(opened.outer.named_children, "decorator")
        ]
        head = [
            node.child_by_field_name(name)
            for name in ("name", "type_parameters", "parameters", "superclasses", "return_type")
        ]
        end = max(part.end_byte for part in head if part is not None)
        described = Described(
            signature=text_between(node, node.start_byte, end),
            docstring=self.docstring(node.child_by_field_name("body")),
            decorators=decorators,
        )
        if opened.kind == "class":
            bases = node.child_by_field_name("superclasses")
            described.bases = [
                text(base)
                for base in (bases.named_children if bases else [])
                if base.type not in ("keyword_argument", "comment")
            ]
            return described
        described.returns = text(node.child_by_field_name("return_type"))
        described.parameters = _parameters(node.child_by_field_name("parameters"))
        receiver = in_class and "staticmethod" not in decorators
        if receiver and described.parameters and "positional" in described.parameters[0].kind:
            del described.parameters[0]
        described.extra["is_async"] = bool(node.children) and node.children[0].type == "async"
        return described

    def docstring(self, body: Node | None) -> str:
        """What `ast.get_docstring` returns for a definition with this body."""
        node = _docstring_node(body)
        return _literal(text(node)) if node is not None else ""

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The module's docstring."""
        node = _docstring_node(root)
        return node, self.docstring(root)

    def statements(self, function: Node) -> list[Node]:
        """The body's statements behind the docstring."""
        body = function.child_by_field_name("body")
        found = super().statements(function)
        return found[1:] if _docstring_node(body) is not None else found

    def end_of(self, outer: Node) -> int:
        """The grammar counts indented comments behind the last statement in; Python does not."""
        node = outer
        while True:
            children = [child for child in node.children if child.type != "comment"]
            if not children:
                return node.end_byte
            node = children[-1]

    def callee(self, node: Node) -> str:
        """`json.dumps` of `json.dumps(x)`; of `super().f()` only the whole."""
        called = dotted(node.child_by_field_name("function"))
        return "" if called == "super" else called

    def raised(self, node: Node) -> str:
        """`ValueError` of `raise ValueError(x) from e`; '' where a variable is raised."""
        values = [child for child in node.named_children if child.type != "comment"]
        if not values:
            return ""
        value = values[0]
        called = value.child_by_field_name("function") if value.type == "call" else value
        return named_type(dotted(called))

    def imports(self, node: Node) -> list[Import]:
        """`import a.b`, `import a as b`, `from .a import b as c`."""
        future = "__future__" if node.type == "future_import_statement" else ""
        origin = future or text(node.child_by_field_name("module_name"))
        found = []
        for child in node.children_by_field_name("name"):
            name = text(child.child_by_field_name("name")) if _aliased(child) else text(child)
            alias = text(child.child_by_field_name("alias")) if _aliased(child) else ""
            if origin:
                found.append(Import(alias or name, origin, name))
            else:  # 'import a.b' binds a, and a.b is written out at every use
                found.append(Import(alias or name, name, None))
        return found

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Assignments to upper-case and dunder names."""
        if node.type != "expression_statement":
            return []
        found = []
        for child in of_type(node.named_children, "assignment"):
            left, right = child.child_by_field_name("left"), child.child_by_field_name("right")
            if right is not None and CONSTANT.fullmatch(text(left)):
                found.append((text(left), text(right)))
        return found

    def is_private(self, name: str, opened_text: str) -> bool:
        """A leading underscore, dunder names excepted."""
        return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """`test_…` functions; a class is a test by its file or its base (`TestClient` is none)."""
        return kind != "class" and name.startswith("test_")

    def is_test_file(self, path: str) -> bool:
        """`tests/`, `test/`, `test_x.py`, `x_test.py`, `conftest.py`."""
        stem = path.rpartition("/")[2].rpartition(".")[0]
        return (
            path_has_folder(path, "tests", "test")
            or stem.startswith("test_")
            or stem.endswith("_test")
            or stem in ("tests", "conftest")
        )


def _aliased(node: Node) -> bool:
    return node.type == "aliased_import"


def _docstring_node(body: Node | None) -> Node | None:
    """The string literal that stands first in a body, also in parentheses or in pieces."""
    if body is None:
        return None
    statements = [child for child in body.named_children if child.type != "comment"]
    if not statements or statements[0].type != "expression_statement":
        return None
    values = [child for child in statements[0].named_children if child.type != "comment"]
    if len(values) != 1 or text(statements[0]).rstrip("; \t").endswith(","):
        return None
    value = values[0]
    while value.type == "parenthesized_expression" and value.named_child_count == 1:
        value = value.named_children[0]
    if value.type not in ("string", "concatenated_string"):
        return None
    pieces = of_type(value.named_children, "string") or [value]
    prefixes = [text(piece).lower().split("'")[0].split('"')[0] for piece in pieces]
    return None if any(set(prefix) & set("bf") for prefix in prefixes) else value


def _literal(source: str) -> str:
    """Value of a string literal, cleaned; its text where Python itself could not read it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, which Python reports but reads
            value = ast.literal_eval(f"({source})")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = source
    # Lone surrogates ("\ud800") are legal in a literal, but not in a UTF-8 file.
    return inspect.cleandoc(str(value)).encode("utf-8", "backslashreplace").decode()


def _parameters(node: Node | None) -> list[Parameter]:
    """Parameters with the kinds of `inspect.Parameter`."""
    found: list[Parameter] = []
    kind = "positional_or_keyword"
    for child in node.named_children if node else []:
        if child.type == "positional_separator":
            found = [p._replace(kind="positional_only") for p in found]
        elif child.type == "keyword_separator":
            kind = "keyword_only"
        elif child.type != "comment":
            parameter = _parameter(child, kind)
            if parameter.kind == "var_positional":
                kind = "keyword_only"
            found.append(parameter)
    return found


def _parameter(node: Node, kind: str) -> Parameter:
    if node.type in ("default_parameter", "typed_default_parameter"):
        return Parameter(
            text(node.child_by_field_name("name")),
            text(node.child_by_field_name("type")),
            text(node.child_by_field_name("value")),
            kind,
        )
    inner, annotation = node, ""
    if node.type == "typed_parameter":
        inner, annotation = node.named_children[0], text(node.child_by_field_name("type"))
    name = text(inner).lstrip("* ")
    if inner.type == "list_splat_pattern":
        kind = "var_positional"
    elif inner.type == "dictionary_splat_pattern":
        kind = "var_keyword"
    return Parameter(name, annotation, "", kind)
