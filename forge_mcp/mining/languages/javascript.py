"""JavaScript (with JSX): functions, classes, and function values that are bound to a name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.languages.base import (
    ANONYMOUS,
    BRANCH,
    CALL,
    DECORATOR,
    IMPORT,
    LOGICAL,
    OPEN,
    RAISE,
    RETURN,
    Described,
    Import,
    Language,
    Opened,
    Parameter,
    clean_block_comment,
    dotted,
    named_type,
    of_type,
    path_has_folder,
    text,
    text_between,
)

FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})
CLASS_VALUES = frozenset({"class"})
DECLARATIONS = frozenset({"lexical_declaration", "variable_declaration"})
FILE_COMMENT = re.compile(r"@(?:file|fileoverview|overview|module|packageDocumentation)\b")


class JavaScript(Language):
    """ECMAScript modules and CommonJS."""

    name = "javascript"
    extensions: ClassVar[tuple[str, ...]] = (".js", ".jsx", ".mjs", ".cjs")
    package = "tree-sitter-javascript"
    comments: ClassVar[frozenset[str]] = frozenset({"comment", "hash_bang_line", "html_comment"})
    roles: ClassVar[dict[str, frozenset[str]]] = {
        OPEN: frozenset(
            {
                "function_declaration",
                "generator_function_declaration",
                "class_declaration",
                "class",
                "method_definition",
                "variable_declarator",
                "assignment_expression",
                "field_definition",
                "pair",
                "function_expression",
                "generator_function",
                "export_statement",
            }
        ),
        ANONYMOUS: frozenset({"arrow_function"}),
        CALL: frozenset({"call_expression", "new_expression"}),
        RAISE: frozenset({"throw_statement"}),
        RETURN: frozenset({"return_statement"}),
        BRANCH: frozenset(
            {
                "if_statement",
                "for_statement",
                "for_in_statement",
                "while_statement",
                "do_statement",
                "catch_clause",
                "ternary_expression",
                "switch_case",
            }
        ),
        LOGICAL: frozenset({"binary_expression"}),
        IMPORT: frozenset({"import_statement", "variable_declarator"}),
        DECORATOR: frozenset({"decorator"}),
    }

    def opens(self, node: Node) -> Opened | None:
        """Declarations, methods, and values with a name; anonymous functions open nothing."""
        kind = node.type
        name = node.child_by_field_name("name")
        if kind in ("function_declaration", "generator_function_declaration"):
            return Opened("function", text(name), node, _exported(node))
        if kind == "class_declaration":
            return Opened("class", text(name), node, _exported(node))
        if kind == "method_definition":
            return Opened("method", text(name), node, node)
        if kind == "export_statement":
            value = node.child_by_field_name("value")  # export default <expression>
            return _bound("default", value, node) if _is_definition(value) else None
        if kind == "variable_declarator":
            return _bound(text(name), node.child_by_field_name("value"), _declaration(node))
        if kind in ("field_definition", "public_field_definition"):
            field = node.child_by_field_name("property") or name
            value = node.child_by_field_name("value")
            opened = _bound(text(field), value, node)
            if opened and opened.kind == "function":
                opened.kind = "method"
            return opened
        if kind == "pair":
            key = text(node.child_by_field_name("key")).strip("'\"")
            return _bound(key, node.child_by_field_name("value"), node)
        if kind == "assignment_expression":
            return _assigned(node)
        # A function or class expression with a name of its own, bound to nothing.
        if name is not None:
            return Opened("class" if kind == "class" else "function", text(name), node, node)
        return None

    def describe(self, opened: Opened, first: Node, in_class: bool) -> Described:
        """Signature from the declaration's start to its body; JSDoc as the docstring."""
        node = opened.function
        decorated = [opened.outer, node] if node.id != opened.outer.id else [node]
        inside = [c for owner in decorated for c in of_type(owner.children, "decorator")]
        inside += _preceding_decorators(opened.outer)
        inside.sort(key=lambda child: child.start_byte)
        start = opened.outer.start_byte
        for decorator in inside:
            if (
                start <= decorator.start_byte
                and not text_between(opened.outer, start, decorator.start_byte).strip()
            ):
                start = decorator.end_byte
        body = node.child_by_field_name("body") or node.child_by_field_name("value")
        whole = body is None or opened.label == "type"
        end = opened.outer.end_byte if whole or body is None else body.start_byte
        comment = first if first.type == "comment" else None
        described = Described(
            signature=text_between(opened.outer, start, end).strip(),
            docstring=clean_block_comment(text(comment)) if comment is not None else "",
            decorators=[text(child)[1:].strip() for child in inside],
        )
        if opened.kind == "class":
            described.bases = self._bases(node)
            return described
        described.parameters = self._parameters(node)
        described.returns = _annotation(node.child_by_field_name("return_type"))
        described.extra["is_async"] = any(child.type == "async" for child in node.children)
        return described

    def _bases(self, node: Node) -> list[str]:
        heritage = of_type(node.named_children, "class_heritage")
        return [text(base) for base in (heritage[0].named_children if heritage else [])]

    def _parameters(self, node: Node) -> list[Parameter]:
        single = node.child_by_field_name("parameter")
        if single is not None:  # x => x + 1
            return [Parameter(text(single), kind="positional_only")]
        listed = node.child_by_field_name("parameters")
        return [
            _parameter(child)
            for child in (listed.named_children if listed else [])
            if child.type != "comment" and text(child.child_by_field_name("pattern")) != "this"
        ]

    def statements(self, function: Node) -> list[Node]:
        """The body's statements; an expression body is its own only one."""
        body = function.child_by_field_name("body")
        if body is not None and body.type not in ("statement_block", "class_body"):
            return [body]
        return super().statements(function)

    def implicit_return(self, function: Node) -> str:
        """`x + 1` of `x => x + 1`."""
        body = function.child_by_field_name("body")
        if function.type != "arrow_function" or body is None or body.type == "statement_block":
            return ""
        return text(body)

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """A leading JSDoc comment with @file, @module or the like."""
        for child in root.children:
            if child.type not in self.comments:
                break
            if self.is_doc_comment(child) and FILE_COMMENT.search(text(child)):
                return child, clean_block_comment(text(child))
        return None, ""

    def callee(self, node: Node) -> str:
        """`a.b` of `a.b(x)`, `A` of `new A(x)`."""
        return dotted(node.child_by_field_name("function") or _constructor(node))

    def raised(self, node: Node) -> str:
        """`TypeError` of `throw new TypeError(x)`."""
        value = next((c for c in node.named_children if c.type not in self.comments), None)
        if value is None:
            return ""
        if value.type == "call_expression":
            return named_type(dotted(value.child_by_field_name("function")))
        return named_type(dotted(_constructor(value)))

    def imports(self, node: Node) -> list[Import]:
        """ES imports, and `const … = require('…')`."""
        if node.type == "variable_declarator":
            return _required(node)
        module = text(node.child_by_field_name("source")).strip("'\"`")
        found = []
        for clause in of_type(node.named_children, "import_clause"):
            for part in clause.named_children:
                if part.type == "identifier":
                    found.append(Import(text(part), module, "default"))
                elif part.type == "namespace_import":
                    found.append(Import(text(part.named_child(0)), module, None))
                else:
                    for spec in of_type(part.named_children, "import_specifier"):
                        name = text(spec.child_by_field_name("name"))
                        alias = text(spec.child_by_field_name("alias"))
                        found.append(Import(alias or name, module, name))
        for clause in of_type(node.named_children, "import_require_clause"):
            source = text(clause.child_by_field_name("source")).strip("'\"`")
            found.append(Import(text(clause.named_child(0)), source, None))
        return found

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """Top-level `const NAME = value`, but for functions, classes and `require`."""
        declaration = node.child_by_field_name("declaration") or node
        if declaration.type != "lexical_declaration" or not text(declaration).startswith("const"):
            return []
        found = []
        for child in of_type(declaration.named_children, "variable_declarator"):
            name, value = child.child_by_field_name("name"), child.child_by_field_name("value")
            if (
                name is not None
                and name.type == "identifier"
                and value is not None
                and not _is_definition(value)
                and not _required(child)
            ):
                found.append((text(name), text(value)))
        return found

    def is_private(self, name: str, opened_text: str) -> bool:
        """`#x` and `_x`; in TypeScript also the modifiers `private` and `protected`."""
        return name.startswith(("#", "_")) or bool(
            re.match(r"(?:static\s+)?(?:private|protected)\s", opened_text)
        )

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """Tests are calls (`it(…)`) in test files; no name makes one."""
        return False

    def is_test_file(self, path: str) -> bool:
        """`__tests__/`, `tests/`, `test/`, `x.test.js`, `x.spec.ts`."""
        name = path.rpartition("/")[2]
        return path_has_folder(path, "__tests__", "__mocks__", "tests", "test", "e2e") or bool(
            re.search(r"[.\-_](?:test|spec|e2e)\.\w+$", name)
        )


def _exported(node: Node) -> Node:
    parent = node.parent
    return parent if parent is not None and parent.type == "export_statement" else node


def _declaration(declarator: Node) -> Node:
    """The whole `export const f = …`, or the declarator alone where it has siblings."""
    parent = declarator.parent
    if parent is None or parent.type not in DECLARATIONS:
        return declarator
    if len(of_type(parent.named_children, "variable_declarator")) != 1:
        return declarator
    return _exported(parent)


def _is_definition(value: Node | None) -> bool:
    return value is not None and value.type in FUNCTION_VALUES | CLASS_VALUES


def _bound(name: str, value: Node | None, outer: Node) -> Opened | None:
    """A function, class or object that is bound to a name."""
    if value is None or not name or not name.isprintable():
        return None
    if value.type in FUNCTION_VALUES:
        return Opened("function", name, value, outer)
    if value.type in CLASS_VALUES:
        return Opened("class", name, value, outer)
    if value.type == "object":
        return Opened(None, name, value, outer)
    return None


def _assigned(node: Node) -> Opened | None:
    """`Foo.prototype.bar = function`, `exports.bar = () =>`, `this.bar = function`."""
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    target = dotted(left)
    if not target or not _is_definition(right):
        return None
    parent = node.parent
    outer = parent if parent is not None and parent.type == "expression_statement" else node
    parts = [
        part
        for part in target.split(".")
        if part not in ("prototype", "module", "exports", "this", "window", "globalThis")
    ]
    if not parts:  # module.exports = function () {}
        own = right.child_by_field_name("name") if right is not None else None
        parts = [text(own) or "exports"]
    opened = _bound(parts[-1], right, outer)
    if opened is not None:
        opened.prefix = ".".join(parts[:-1])
        if ".prototype." in target and opened.kind == "function":
            opened.kind = "method"
    return opened


def _preceding_decorators(node: Node) -> list[Node]:
    """TypeScript puts a method's decorators before it, as its siblings."""
    found = []
    before = node.prev_sibling
    while before is not None and before.type == "decorator":
        found.append(before)
        before = before.prev_sibling
    return found


def _constructor(node: Node) -> Node | None:
    return node.child_by_field_name("constructor")


def _annotation(node: Node | None) -> str:
    """`number` of `: number`."""
    return text(node).removeprefix(":").strip()


def _parameter(node: Node) -> Parameter:
    kind = "positional_only"
    if node.type == "assignment_pattern":
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        return Parameter(text(left), "", text(right), kind)
    pattern = node.child_by_field_name("pattern") or node
    if pattern.type == "rest_pattern":
        kind, pattern = "var_positional", pattern.named_child(0) or pattern
    return Parameter(
        text(pattern),
        _annotation(node.child_by_field_name("type")),
        text(node.child_by_field_name("value")),
        kind,
    )


def _required(declarator: Node) -> list[Import]:
    value = declarator.child_by_field_name("value")
    name = declarator.child_by_field_name("name")
    if value is None or name is None or value.type != "call_expression":
        return []
    arguments = value.child_by_field_name("arguments")
    first = arguments.named_child(0) if arguments is not None else None
    called = text(value.child_by_field_name("function"))
    if called != "require" or first is None or first.type != "string":
        return []
    module = text(first).strip("'\"`")
    if name.type == "identifier":
        return [Import(text(name), module, None)]
    found = []
    for part in name.named_children:
        if part.type == "shorthand_property_identifier_pattern":
            found.append(Import(text(part), module, text(part)))
        elif part.type == "pair_pattern":
            key, local = part.child_by_field_name("key"), part.child_by_field_name("value")
            found.append(Import(text(local), module, text(key)))
    return found
