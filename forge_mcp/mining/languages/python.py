"""Python: decorated definitions, docstrings inside the body, underscores for private."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    MANY_STATEMENTS,
    NAME,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    first_child,
    of_type,
    text,
)
from forge_mcp.schemas.code_blocks import BlockType

CONSTANT = re.compile(r"_{0,2}[A-Z][A-Z0-9_]*|__\w+__")
TRY_CLAUSES = frozenset({"except_clause", "except_group_clause", "finally_clause"})
PREFIXED = re.compile(r"\s*([A-Za-z]*)(\"\"\"|'''|\"|')")


class Python(Language):
    """Python 3. Lambdas are expressions, not definitions."""

    name = "python"
    extensions: ClassVar[tuple[str, ...]] = (".py", ".pyi", ".pyw")
    package = "tree-sitter-python"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_definition": ("function", ""),
        "class_definition": ("class", ""),
    }
    anonymous: ClassVar[frozenset[str]] = frozenset({"lambda"})
    calls: ClassVar[frozenset[str]] = frozenset({"call"})
    raises: ClassVar[frozenset[str]] = frozenset({"raise_statement"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
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
    )
    imports_at: ClassVar[frozenset[str]] = frozenset(
        {"import_statement", "import_from_statement", "future_import_statement"}
    )
    decorators: ClassVar[frozenset[str]] = frozenset({"decorator"})
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"((?:super\(\)|(?!super\()" + NAME + rb")(?:\." + NAME + rb")*)\s*\("
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test_")
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)tests?/|(?:^|/)(?:test_[^/]*|[^/]*_test|tests|conftest)\.\w+$"
    )

    def outer(self, node: Node) -> Node:
        """With its decorators."""
        parent = node.parent
        decorated = parent is not None and parent.type == "decorated_definition"
        return parent if decorated and parent is not None else node

    def first_node(self, opened: Opened) -> Node:
        """Comments before a definition are not part of it."""
        return opened.outer

    def describe(self, opened: Opened, first: Node) -> Described:
        """Signature without its colon; docstring as `ast.get_docstring` gives it."""
        node = opened.function
        start = node.start_byte
        described = Described("")
        end, source = 0, node.text or b""
        for child in node.children:
            kind = child.type
            if kind == "block":
                statement = _first_statement(child)
                if (literal := _docstring_of(statement)) is not None and statement is not None:
                    described.docstring = _literal(text(literal))
                    described.documented_to = statement.end_byte
            elif kind == "parameters":
                described.parameters = _parameters(child)
            elif kind == "type":
                described.returns = text(child)
            elif kind == "argument_list":
                described.bases = [
                    text(base)
                    for base in child.named_children
                    if base.type not in ("keyword_argument", "comment")
                ]
            elif kind == "async":
                described.extra["is_async"] = True
            elif kind == ":" or kind == "comment":
                continue
            if kind != "block":
                end = child.end_byte - start
        described.signature = source[:end].decode()
        if opened.outer.id != node.id:
            described.decorators = [
                text(child)[1:].strip() for child in of_type(opened.outer.children, "decorator")
            ]
        if opened.kind == "function":
            described.extra.setdefault("is_async", False)
        return described

    def adopt(self, described: Described) -> str:
        """The receiver, `self` or `cls`, is no parameter of a method."""
        parameters = described.parameters
        if (
            parameters
            and "staticmethod" not in described.decorators
            and "positional" in parameters[0].kind
        ):
            return parameters.pop(0).name
        return ""

    def rebinds(self, node: Node) -> str:
        """`f` of `f = wrap(f)`."""
        if node.type != "expression_statement":
            return ""
        assignment = first_child(node)
        if assignment is None or assignment.type != "assignment":
            return ""
        left = assignment.child_by_field_name("left")
        return text(left) if left is not None and left.type == "identifier" else ""

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The module's docstring."""
        node = _docstring_of(_first_statement(root))
        return node, _literal(text(node)) if node is not None else ""

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements behind the docstring."""
        body = self.body(function)
        if body is None or body.named_child_count > MANY_STATEMENTS:
            return None
        found = [child for child in body.named_children if child.type != "comment"]
        if len(found) <= 2 and _docstring_of(_first_statement(body)) is not None:
            return found[1:]
        return found

    def ends_whole(self, outer: Node) -> bool:
        """Not behind a colon, nor with a `try` alone: the grammar lets both pass."""
        node = outer
        while children := node.children:
            if node.type == "try_statement" and not of_type(children, *TRY_CLAUSES):
                return False
            node = children[-1]
        return node.type not in (":", "block")

    def end_of(self, outer: Node) -> int:
        """The grammar counts indented comments behind the last statement in; Python does not."""
        whole = outer.text or b""
        if b"#" not in whole[whole.rfind(b"\n") + 1 :]:
            return outer.end_byte
        node = outer
        while True:
            last = None
            for at in range(node.child_count - 1, -1, -1):
                last = node.child(at)
                if last is None or last.type != "comment":
                    break
            if last is None or last.type == "comment":
                return node.end_byte
            node = last

    def imports(self, node: Node) -> list[Import]:
        """`import a.b`, `import a as b`, `from .a import b as c`, `from a import *`."""
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
                package = name.partition(".")[0]
                if not alias and package != name:
                    found.append(Import(package, package, None))
        if of_type(node.children, "wildcard_import"):
            found.append(Import("*", origin, "*"))
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

    def is_private(self, name: str, signature: str) -> bool:
        """A leading underscore, dunder names excepted."""
        return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _aliased(node: Node) -> bool:
    return node.type == "aliased_import"


def _first_statement(body: Node) -> Node | None:
    for at in range(body.named_child_count):
        statement = body.named_child(at)
        if statement is not None and statement.type != "comment":
            return statement
    return None


def _docstring_of(statement: Node | None) -> Node | None:
    """The string literal that a body's first statement is, also in parentheses or in pieces."""
    if statement is None or statement.type != "expression_statement":
        return None
    value = first_child(statement)
    if value is None or value.type in ("parenthesized_expression", "comment"):
        return _wrapped_docstring(statement)
    if of_type(statement.children, ","):  # a tuple
        return None
    return _string(value)


def _wrapped_docstring(statement: Node) -> Node | None:
    values = [child for child in statement.named_children if child.type != "comment"]
    if len(values) != 1 or statement.child_count > 1:
        return None
    value = values[0]
    while value.type == "parenthesized_expression":
        inside = [child for child in value.named_children if child.type != "comment"]
        if len(inside) != 1:
            return None
        value = inside[0]
    return _string(value)


def _string(value: Node) -> Node | None:
    """The node, if it is a literal of text: no bytes, no f-string, no template."""
    if value.type not in ("string", "concatenated_string"):
        return None
    for piece in of_type(value.named_children, "string") or [value]:
        match = PREFIXED.match(text(piece))
        if match is None or set(match[1].lower()) & set("bft"):
            return None
    return value


def _literal(source: str) -> str:
    """Value of a string literal, cleaned; its text where Python itself could not read it."""
    match = PREFIXED.match(source)
    simple = match is not None and source.endswith(match[2]) and source.count(match[2]) == 2
    if match is not None and simple and "r" not in match[1].lower() and "\\" not in source:
        return _clean(source[match.end() : -len(match[2])].replace("\r\n", "\n"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes, which Python reports but reads
            value = str(ast.literal_eval(f"({source})"))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = source
    # Lone surrogates ("\ud800") are legal in a literal, but not in a UTF-8 file.
    return _clean(value.encode("utf-8", "backslashreplace").decode())


def _clean(value: str) -> str:
    """`inspect.cleandoc`, with the ordinary cases done fast."""
    return inspect.cleandoc(value) if "\n" in value or "\t" in value else value.lstrip()


def _parameters(node: Node) -> list[Parameter]:
    """Parameters with the kinds of `inspect.Parameter`."""
    found: list[Parameter] = []
    kind = "positional_or_keyword"
    for child in node.named_children:
        sort = child.type
        if sort == "identifier":
            found.append(Parameter(text(child), "", "", kind))
        elif sort == "positional_separator":
            found = [p._replace(kind="positional_only") for p in found]
        elif sort == "keyword_separator":
            kind = "keyword_only"
        elif sort != "comment":
            parameter = _parameter(child, sort, kind)
            if parameter.kind == "var_positional":
                kind = "keyword_only"
            found.append(parameter)
    return found


def _parameter(node: Node, sort: str, kind: str) -> Parameter:
    if sort in ("default_parameter", "typed_default_parameter"):
        return Parameter(
            text(node.child_by_field_name("name")),
            text(node.child_by_field_name("type")),
            text(node.child_by_field_name("value")),
            kind,
        )
    inner, annotation = node, ""
    if sort == "typed_parameter":
        inner, annotation = node.named_children[0], text(node.child_by_field_name("type"))
    name = text(inner).lstrip("* ")
    if inner.type == "list_splat_pattern":
        kind = "var_positional"
    elif inner.type == "dictionary_splat_pattern":
        kind = "var_keyword"
    return Parameter(name, annotation, "", kind)
