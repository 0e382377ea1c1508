"""JavaScript (with JSX): functions, classes, and function values that are bound to a name."""

from __future__ import annotations

import re
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.comments import clean_block_comment
from forge_mcp.mining.languages.base import (
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

DOTTED = re.compile(r"[A-Za-z_$#][\w$]*(?:\??\.#?[A-Za-z_$][\w$]*)*")
DECLARATIONS = frozenset({"lexical_declaration", "variable_declaration"})
# What binds a value to a name.
BINDERS = frozenset(
    {"variable_declarator", "pair", "field_definition", "public_field_definition"}
    | {"assignment_expression", "export_statement"}
)
FILE_COMMENT = re.compile(r"@(?:file|fileoverview|overview|module|packageDocumentation)\b")
# What a file is told to export or to make global says nothing of the definition's own name.
HOLDERS = frozenset({"prototype", "module", "exports", "this", "window", "globalThis", "self"})


class JavaScript(Language):
    """ECMAScript modules and CommonJS."""

    name = "javascript"
    extensions: ClassVar[tuple[str, ...]] = (".js", ".jsx", ".mjs", ".cjs")
    package = "tree-sitter-javascript"
    comments: ClassVar[frozenset[str]] = frozenset({"comment", "hash_bang_line", "html_comment"})
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_declaration": ("function", ""),
        "generator_function_declaration": ("function", ""),
        "function_expression": ("function", ""),
        "generator_function": ("function", ""),
        "arrow_function": ("function", ""),
        "method_definition": ("method", ""),
        "class_declaration": ("class", ""),
        "class": ("class", ""),
    }
    containers: ClassVar[frozenset[str]] = frozenset({"object"})
    anonymous: ClassVar[frozenset[str]] = frozenset(
        {"arrow_function", "function_expression", "generator_function"}
    )
    rebinds_this: ClassVar[frozenset[str]] = frozenset(
        {"function_expression", "generator_function"}
    )
    calls: ClassVar[frozenset[str]] = frozenset({"call_expression", "new_expression"})
    raises: ClassVar[frozenset[str]] = frozenset({"throw_statement"})
    returns: ClassVar[frozenset[str]] = frozenset({"return_statement"})
    branches: ClassVar[frozenset[str]] = frozenset(
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
    )
    logical: ClassVar[frozenset[str]] = frozenset({"binary_expression"})
    imports_at: ClassVar[frozenset[str]] = frozenset(
        {"import_statement", "export_statement", "variable_declarator"}
    )
    decorators: ClassVar[frozenset[str]] = frozenset({"decorator"})
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:__tests__|__mocks__|tests?|e2e)/|[.\-_](?:test|spec|e2e)\.\w+$"
    )

    def opens(self, node: Node) -> Opened | None:
        """Declarations, methods, and values with a name; anonymous functions open nothing."""
        kind = node.type
        if kind == "object":
            held = self._bound(node, None)
            if held is not None:
                held.is_scope = False
            return held
        block, label = self.definitions[kind]
        if kind == "method_definition":
            return Opened("method", text(node.child_by_field_name("name")), node, node)
        if kind.endswith("_declaration"):
            name = text(node.child_by_field_name("name"))
            return Opened(block, name, node, _exported(node), label=label) if name else None
        opened = self._bound(node, block)
        if opened is None and (name := text(node.child_by_field_name("name"))):
            return Opened(block, name, node, node)  # it has a name of its own
        return opened

    def _bound(self, value: Node, kind: BlockType | None) -> Opened | None:
        """A function, class or object that its surroundings bind to a name."""
        parent = value.parent
        while parent is not None and parent.type in ("parenthesized_expression", "as_expression"):
            parent = parent.parent
        if parent is None or parent.type not in BINDERS:
            return None
        where, name, outer = parent.type, "", parent
        if where == "variable_declarator":
            name, outer = text(parent.child_by_field_name("name")), _declaration(parent)
        elif where == "pair":
            name = text(parent.child_by_field_name("key")).strip("'\"`")
        elif where in ("field_definition", "public_field_definition"):
            named = parent.child_by_field_name("property") or parent.child_by_field_name("name")
            name = text(named)
            kind = "method" if kind == "function" else kind
        elif where == "assignment_expression":
            right = parent.child_by_field_name("right")
            inside = right is not None and right.start_byte <= value.start_byte
            return _assigned(value, parent, kind) if inside else None
        elif where == "export_statement" and kind is not None:  # export default <expression>
            name = text(value.child_by_field_name("name")) or "default"
        if not name or not name.isprintable() or name[0] in "{[":
            return None
        return Opened(kind, name, value, outer)

    def describe(self, opened: Opened, first: Node) -> Described:
        """Also whether a function is asynchronous."""
        described = super().describe(opened, first)
        described.keeps_receiver = opened.function.type == "arrow_function"
        if opened.kind != "class":
            described.extra["is_async"] = any(
                child.type == "async" for child in opened.function.children[:4]
            )
        return described

    def bases(self, node: Node) -> list[str]:
        """`extends`."""
        heritage = of_type(node.named_children, "class_heritage")
        return [text(base) for base in (heritage[0].named_children if heritage else [])]

    def parameters(self, node: Node) -> list[Parameter]:
        """Of a list, or the single one of `x => x + 1`."""
        single = node.child_by_field_name("parameter")
        if single is not None:
            return [Parameter(text(single), kind="positional_only")]
        return [p for p in super().parameters(node) if p.name != "this"]

    def parameter(self, node: Node) -> Parameter | None:
        """With its default, as a rest parameter, or as a pattern."""
        kind = "positional_only"
        if node.type == "assignment_pattern":
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            return Parameter(text(left), "", text(right), kind)
        pattern = node.child_by_field_name("pattern") or node
        if pattern.type == "rest_pattern":
            kind = "var_positional"
            pattern = first_child(pattern) or pattern
        annotation = text(node.child_by_field_name("type")).removeprefix(":").strip()
        return Parameter(text(pattern), annotation, text(node.child_by_field_name("value")), kind)

    def statements(self, function: Node) -> list[Node] | None:
        """The body's statements; an expression body is its own only one."""
        body = self.body(function)
        if body is not None and body.type not in ("statement_block", "class_body"):
            return [body]
        return super().statements(function)

    def implicit_return(self, function: Node) -> str:
        """`x + 1` of `x => x + 1`."""
        if function.type != "arrow_function":
            return ""
        body = self.body(function)
        return "" if body is None or body.type == "statement_block" else text(body)

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """A leading JSDoc comment with @file, @module or the like."""
        for child in root.children:
            if child.type not in self.comments:
                break
            comment = text(child)
            if self.doc_comment.match(comment) and FILE_COMMENT.search(comment):
                return child, clean_block_comment(comment)
        return None, ""

    def import_of(self, node: Node) -> tuple[Node | None, list[Import]]:
        """An `import` statement, `export … from`, or the declaration around `require('…')`."""
        if node.type == "import_statement":
            return node, self.imports(node)
        if node.type == "export_statement":
            found = _passed_on(node)
            return (node, found) if found else (None, [])
        found = _required(node)
        return (node.parent, found) if found else (None, [])

    def imports(self, node: Node) -> list[Import]:
        """The names of an `import` statement."""
        module = text(node.child_by_field_name("source")).strip("'\"`")
        found = []
        for clause in of_type(node.named_children, "import_clause"):
            for part in clause.named_children:
                if part.type == "identifier":
                    found.append(Import(text(part), module, "default"))
                elif part.type == "namespace_import":
                    found.append(Import(text(first_child(part)), module, None))
                else:
                    for spec in of_type(part.named_children, "import_specifier"):
                        name = text(spec.child_by_field_name("name"))
                        alias = text(spec.child_by_field_name("alias"))
                        found.append(Import(alias or name, module, name))
        for clause in of_type(node.named_children, "import_require_clause"):
            source = text(clause.child_by_field_name("source")).strip("'\"`")
            found.append(Import(text(first_child(clause)), source, None))
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
                and value.type not in self.definitions
                and not _required(child)
            ):
                found.append((text(name), text(value)))
        return found

    def rebinds(self, node: Node) -> str:
        """`f` of `f = wrap(f)`."""
        assignment = first_child(node) if node.type == "expression_statement" else None
        if assignment is None or assignment.type != "assignment_expression":
            return ""
        left, right = (assignment.child_by_field_name(side) for side in ("left", "right"))
        if left is None or left.type != "identifier":
            return ""
        defined = right is not None and right.type in self.definitions
        return "" if defined else text(left)

    def is_private(self, name: str, signature: str) -> bool:
        """`#x` and `_x`; in TypeScript also the modifiers `private` and `protected`."""
        return name.startswith(("#", "_")) or bool(self.private_modifiers.match(signature))


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


def _assigned(value: Node, node: Node, kind: BlockType | None) -> Opened | None:
    """`Foo.prototype.bar = function`, `exports.bar = () =>`, `this.bar = function`."""
    target = text(node.child_by_field_name("left"))
    if not DOTTED.fullmatch(target):
        return None
    parent = node.parent
    outer = parent if parent is not None and parent.type == "expression_statement" else node
    parts = [part.rstrip("?") for part in target.split(".") if part not in HOLDERS]
    if not parts:  # module.exports = function () {}
        parts = [text(value.child_by_field_name("name")) or "exports"]
    if ".prototype." in target and kind == "function":
        kind = "method"
    return Opened(
        kind,
        parts[-1],
        value,
        outer,
        prefix=".".join(parts[:-1]),
        is_lexical="." not in target,
        receiver="this" if kind == "method" else "",
    )


def _passed_on(export: Node) -> list[Import]:
    """The names of `export {a as b} from './x'`, `export * from './x'`, `export {a as b}` and
    `export default`.
    """
    module = text(export.child_by_field_name("source")).strip("'\"`")
    if of_type(export.children, "*"):
        return [Import("*", module, "*", True)]
    declared = export.child_by_field_name("declaration") or export.child_by_field_name("value")
    if declared is not None and of_type(export.children, "default"):
        named = declared.child_by_field_name("name")
        value = declared if declared.type == "identifier" else named
        return [Import("default", "", text(value), True)] if value is not None else []
    found = [
        Import(text(first_child(held)), module, None, True)
        for held in of_type(export.named_children, "namespace_export")
    ]
    for clause in of_type(export.named_children, "export_clause"):
        for spec in of_type(clause.named_children, "export_specifier"):
            name = text(spec.child_by_field_name("name"))
            alias = text(spec.child_by_field_name("alias"))
            found.append(Import(alias or name, module, name, True))
    return found


def _required(declarator: Node) -> list[Import]:
    value = declarator.child_by_field_name("value")
    if value is None or value.type != "call_expression":
        return []
    name = declarator.child_by_field_name("name")
    if name is None or text(value.child_by_field_name("function")) != "require":
        return []
    arguments = value.child_by_field_name("arguments")
    given = arguments.named_children if arguments is not None else []
    if not given or given[0].type != "string":
        return []
    module = text(given[0]).strip("'\"`")
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
