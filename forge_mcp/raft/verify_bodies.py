"""What a function of JavaScript, TypeScript, Go or Java does, read off its syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tree_sitter import Node

from forge_mcp.raft.verify_trees import (
    ANONYMOUS,
    CLASSES,
    FUNCTIONS,
    field_of,
    parameter_rows,
    parts_of,
    text_of,
    walk,
)

_NAMED_FUNCTIONS = (FUNCTIONS | CLASSES | {"class_body"}) - ANONYMOUS
_LOOPS = frozenset(
    {
        "for_statement",
        "for_in_statement",
        "while_statement",
        "do_statement",
        "enhanced_for_statement",
        "synchronized_statement",
        "statement_block",
        "block",
        "statement_list",
    }
)
_SIMPLE = frozenset(
    {
        "expression_statement",
        "lexical_declaration",
        "variable_declaration",
        "local_variable_declaration",
        "short_var_declaration",
        "assignment_statement",
        "var_declaration",
    }
)
_CONVERSIONS = frozenset(
    {
        *("bool", "byte", "rune", "string", "error", "any", "uintptr", "float32", "float64"),
        *("int", "int8", "int16", "int32", "int64", "complex64", "complex128"),
        *("uint", "uint8", "uint16", "uint32", "uint64"),
    }
)


class Body:
    """The body of one function."""

    def __init__(self, node: Node, body: Node, language: str) -> None:
        self.node = node
        self.body = body
        self.language = language
        # An arrow function's body may be the very expression that it returns.
        self.expression = body.type not in ("statement_block", "block", "constructor_body")

    def _nodes(self, but: frozenset[str] = frozenset()) -> list[Node]:
        own = [self.body] if self.expression else []
        return own + list(walk(self.body, but))

    # -- raises -------------------------------------------------------------------------------

    def raises(self) -> list[str] | None:
        """Types that are thrown; None where anything else is, as what was caught or given."""
        if self.language == "go":
            return _certain(self._go_errors())
        every = [n for n in self._nodes() if n.type == "throw_statement"]
        own = [
            n
            for n in self._nodes(FUNCTIONS | CLASSES | ANONYMOUS | {"class_body"})
            if n.type == "throw_statement"
        ]
        if len(every) != len(own) or any(self._caught(node) for node in own):
            return None
        hidden = self.local_names()
        names = [self._thrown(node) for node in own]
        return _certain(["?" if name in hidden else name for name in names])

    def _thrown(self, node: Node) -> str:
        """The name of a thrown type; "?" for anything else, as a variable or what was caught."""
        value = parts_of(node)[0]
        called = field_of(value, "constructor", "type", "function")
        if value.type not in ("new_expression", "object_creation_expression", "call_expression"):
            return "?"
        name = re.sub(r"\s+|<.*", "", text_of(called))
        last = name.rpartition(".")[2].lstrip("_")
        plain = re.fullmatch(r"[\w$.]+", name) and last[:1].isupper()
        return name if plain else "?"

    def _caught(self, node: Node) -> bool:
        """Whether a statement stands in the body of a `try` that catches."""
        inner: Node = node
        while (outer := inner.parent) is not None and inner.id != self.body.id:
            if outer.type in ("try_statement", "try_with_resources_statement"):
                held = field_of(outer, "body")
                catches = any(c.type == "catch_clause" for c in outer.children)
                if catches and held is not None and held.id == inner.id:
                    return True
            inner = outer
        return False

    def _go_errors(self) -> list[str] | None:
        """Named error values in the last place of every return statement."""
        returned = text_of(field_of(self.node, "result"))
        if not re.search(r"\berror\)?$", returned) or "panic" in self.every_call():
            return None
        found = []
        for node in self._nodes(ANONYMOUS):
            if node.type == "return_statement":
                values = parts_of(parts_of(node)[0]) if parts_of(node) else []
                last = text_of(values[-1]) if values else "?"
                if last != "nil":
                    found.append(last if _is_error(last) else "?")
        return found

    # -- returns ------------------------------------------------------------------------------

    def returns(self) -> list[str] | None:
        """What is returned, each expression once; None for a generator."""
        if "generator" in self.node.type or any(c.type == "*" for c in self.node.children):
            return None
        if self.expression:
            return [text_of(self.body)]
        found = [
            self._returned(n)
            for n in self._nodes(FUNCTIONS | CLASSES | ANONYMOUS | {"class_body"})
            if n.type == "return_statement"
        ]
        return [value for value in found if value]

    @staticmethod
    def _returned(node: Node) -> str:
        return text_of(node).removeprefix("return").strip().removesuffix(";").rstrip()

    # -- branches -----------------------------------------------------------------------------

    def _branches(self) -> Iterator[tuple[str, list[Node]]]:
        """(condition, statements) of every `if` that no other branch or `try` surrounds."""
        stack = [self.body]
        while stack:
            node = stack.pop()
            if node.type == "if_statement":
                held = field_of(node, "consequence")
                test = field_of(node, "condition")
                if test is None or held is None or field_of(node, "initializer") is not None:
                    continue
                condition = text_of(test)
                if test.type in ("parenthesized_expression", "condition") and self.language != "go":
                    condition = condition[1:-1].strip()
                yield condition, _statements(held)
            elif node.type in _LOOPS or node.id == self.body.id:
                stack += reversed(node.named_children)

    def guard(self, raised: str) -> list[str] | None:
        """The condition of the `if` that ends in the only statement that raises."""
        all_raising = [n for n in self._nodes() if self._raising(n) == raised]
        for condition, statements in self._branches():
            if not statements or any(n.type not in _SIMPLE for n in statements[:-1]):
                continue
            last = statements[-1]
            if len(all_raising) == 1 and all_raising[0].id == last.id:
                return [condition]
        return None

    def _raising(self, node: Node) -> str:
        """What a statement raises; of Go, the named error that it returns, or 'panic'."""
        if self.language != "go":
            return self._thrown(node) if node.type == "throw_statement" else ""
        if node.type == "expression_statement":
            call = parts_of(node)[0]
            return (
                "panic"
                if call.type == "call_expression" and text_of(field_of(call, "function")) == "panic"
                else ""
            )
        if node.type == "return_statement" and parts_of(node):
            last = text_of(parts_of(parts_of(node)[0])[-1]) if parts_of(parts_of(node)[0]) else ""
            return last if _is_error(last) else ""
        return ""

    def returned_when(self, condition: str) -> list[str] | None:
        """What the one `if` of a condition returns, when it holds nothing else."""
        if "generator" in self.node.type or any(c.type == "*" for c in self.node.children):
            return None
        found = [statements for test, statements in self._branches() if test == condition]
        if len(found) != 1 or len(found[0]) != 1 or found[0][0].type != "return_statement":
            return None
        value = self._returned(found[0][0])
        return [value] if value else None

    # -- calls --------------------------------------------------------------------------------

    def _call_nodes(self, nodes: Sequence[Node]) -> list[Node]:
        kinds = (
            "call_expression",
            "new_expression",
            "method_invocation",
            "object_creation_expression",
            "explicit_constructor_invocation",
        )
        return [n for n in nodes if n.type in kinds]

    def every_call(self) -> list[str]:
        """The names of everything that is called, nested functions included."""
        given = field_of(self.node, "parameters")  # default values are called for, too
        nodes = [*(walk(given, frozenset()) if given is not None else ()), *self._nodes()]
        return [callee_of(node) for node in self._call_nodes(nodes)]

    def calls(self) -> list[str] | None:
        """Names of what is called but not thrown; "?" for a callee without a name."""
        own = self._called(self._nodes(_NAMED_FUNCTIONS))
        # What a nested function calls is neither clearly called by this one nor clearly not.
        return own if set(own) == set(self._called(self._nodes())) else None

    def _called(self, nodes: Sequence[Node]) -> list[str]:
        raising = [n for n in nodes if n.type == "throw_statement" and self._thrown(n) != "?"]
        thrown = {parts_of(n)[0].id for n in raising}
        found = [callee_of(n) for n in self._call_nodes(nodes) if n.id not in thrown]
        found += ["?" for n in nodes if n.type in ("class_body", "decorator")]
        if self.language == "go":
            found = [name for name in found if name not in _CONVERSIONS]
        return [name for name in found if name]

    def usage(self, callee: str) -> list[str] | None:
        """The only call of anything of a callee's last name, which is not thrown."""
        last = callee.rpartition(".")[2]
        found = [
            n for n in self._call_nodes(self._nodes()) if callee_of(n).rpartition(".")[2] == last
        ]
        if len(found) != 1 or callee_of(found[0]) != callee:
            return None
        around = found[0].parent
        if around is not None and around.type == "throw_statement" and self._thrown(around) != "?":
            return None
        return [text_of(found[0])]

    def local_names(self) -> set[str]:
        """Parameters, and what the body declares."""
        rows = parameter_rows(self.node) or []
        names = {word for name, _, _ in rows for word in re.findall(r"[\w$]+", name)}
        for node in self._nodes():
            if node.type in (
                "variable_declarator",
                "function_declaration",
                "var_spec",
                "const_spec",
            ):
                names |= set(re.findall(r"[\w$]+", text_of(field_of(node, "name"))))
            elif node.type in ("short_var_declaration", "range_clause", "for_in_statement"):
                names |= set(re.findall(r"\w+", text_of(field_of(node, "left"))))
            elif node.type in ("arrow_function", "function_expression"):
                names |= {
                    word
                    for row in parameter_rows(node) or []
                    for word in re.findall(r"[\w$]+", row[0])
                }
        return names


def _certain(names: list[str] | None) -> list[str] | None:
    """The names, or None where one of them is not known."""
    return None if names is None or "?" in names else names


def _is_error(name: str) -> bool:
    return bool(re.fullmatch(r"(?:\w+\.)?(?:(?:err|Err)[A-Z]\w*|EOF)", name))


def _statements(node: Node) -> list[Node]:
    if node.type not in ("statement_block", "block", "statement_list"):
        return [node]
    found = []
    for child in parts_of(node):
        found += _statements(child) if child.type == "statement_list" else [child]
    return found


def callee_of(node: Node) -> str:
    """The dotted name of what is called; '' for a function without one, "?" for what else."""
    if node.type == "explicit_constructor_invocation":
        return "?"
    if node.type == "method_invocation":
        owner = field_of(node, "object")
        name = text_of(field_of(node, "name"))
        dotted = _dotted(owner) if owner is not None else ""
        return name if owner is None else (f"{dotted}.{name}" if dotted else "?")
    if node.type == "object_creation_expression":  # `outer.new Inner()` begins otherwise
        plain = text_of(node).startswith("new")
        return re.sub(r"\s+|<.*", "", text_of(field_of(node, "type"))) if plain else "?"
    target, arguments = field_of(node, "function", "constructor"), field_of(node, "arguments")
    if target is None or (arguments is not None and arguments.type == "template_string"):
        return "?"
    if target.type == "parenthesized_expression":
        target = parts_of(target)[0]
        return "" if target.type in ANONYMOUS else "?"
    return "" if target.type in ANONYMOUS else _dotted(target) or "?"


def _dotted(node: Node) -> str:
    """'a.b.c' of identifiers behind each other, else ''."""
    if node.type in (
        "identifier",
        "this",
        "super",
        "property_identifier",
        "type_identifier",
        "field_identifier",
        "import",
    ):
        return text_of(node)
    if node.type == "class_literal":  # Java's `Foo.class`
        return re.sub(r"\s+", "", text_of(node))
    if node.type in ("member_expression", "selector_expression", "field_access"):
        owner = field_of(node, "object", "operand")
        name = field_of(node, "property", "field")
        if owner is None or name is None or any(c.type == "optional_chain" for c in node.children):
            return ""
        before = _dotted(owner)
        return f"{before}.{text_of(name)}" if before else ""
    return ""
