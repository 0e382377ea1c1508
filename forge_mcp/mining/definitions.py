"""One walk over a file's syntax tree finds every definition and what it says.

The walk visits every node, because a walk that is pruned to known statements misses definitions
in the statements that it forgot. A stack of scopes says to which definition a call, a `raise` or
a `return` belongs: to the innermost one, but values returned by an anonymous function belong to
nobody. Leaves are counted on the way, so a definition's tokens cost nothing more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

from tree_sitter import Node, Tree

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
    text,
)
from forge_mcp.schemas.code_blocks import BlockType

TRIVIAL = re.compile(
    r"pass|\.\.\.|return(?:\s+[\w.&*]+)?;?|[\w.]+"
    r"|(?:self|this|cls|\w+)\.\w+\s*=\s*\w+;?"
    r"|raise NotImplementedError(?:\(.*\))?"
    r"|throw new \w*(?:NotImplemented|Unsupported)\w*\(.*\);?",
    re.DOTALL,
)


@dataclass(slots=True, eq=False)
class Definition:
    """A definition of one file, with offsets into its UTF-8 source.

    `start_row` and `end_row` are 0-based and inclusive; `tokens` is a count of leaves.
    """

    kind: BlockType
    name: str
    qualified_name: str
    parent: Definition | None
    parent_name: str | None
    described: Described
    start_byte: int
    end_byte: int
    start_row: int
    end_row: int
    label: str = ""
    tokens: int = 0
    branches: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    raises: dict[str, None] = field(default_factory=dict)
    returns: dict[str, None] = field(default_factory=dict)
    methods: dict[str, None] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)
    is_private: bool = False
    is_test: bool = False
    is_trivial: bool = False
    has_error: bool = False


@dataclass(slots=True)
class ImportStatement:
    """An import anywhere in a file."""

    text: str
    start_byte: int
    end_byte: int
    names: list[Import]


@dataclass
class FileDefinitions:
    """All definitions of a file in source order, and its imports."""

    module: Definition | None
    definitions: list[Definition]
    imports: list[ImportStatement]
    docstring: str
    constants: list[tuple[str, str]]

    @cached_property
    def imported(self) -> list[Import]:
        """Every name that any import of the file brings in."""
        return [name for statement in self.imports for name in statement.names]


@dataclass(slots=True)
class _Scope:
    """A node that is being walked and that owns something."""

    depth: int
    owner: Definition | None
    name: str
    leaves: int
    transparent: bool = True  # False within an anonymous function
    definition: Definition | None = None  # what ends with this scope


def find_definitions(tree: Tree, source: bytes, language: Language) -> FileDefinitions:
    """Walk a parsed file.

    Args:
        tree: parsed from `source`.
        source: UTF-8 bytes.
        language: whose grammar made the tree.
    """
    walk = _Walk(tree, source, language)
    walk.run()
    _spread_tests(walk.definitions)
    return _file(walk, tree.root_node, source, language)


def count_leaves(node: Node) -> int:
    """Leaves of a subtree."""
    cursor, leaves, depth = node.walk(), 0, 0
    while True:
        if cursor.goto_first_child():
            depth += 1
            continue
        leaves += 1
        while depth == 0 or not cursor.goto_next_sibling():
            if depth == 0:
                return leaves
            cursor.goto_parent()
            depth -= 1


class _Walk:
    """The state of one walk: position, scopes, and what was found."""

    def __init__(self, tree: Tree, source: bytes, language: Language) -> None:
        self.tree = tree
        self.source = source
        self.language = language
        self.depth = 0
        self.leaves = 0
        self.decorator_depth: int | None = None
        self.scopes = [_Scope(depth=-1, owner=None, name="", leaves=0)]
        self.functions: set[int] = set()  # ids of nodes that an open scope has claimed
        self.definitions: list[Definition] = []
        self.imports: list[ImportStatement] = []
        self.module_calls: dict[str, int] = {}
        self.module_branches: list[int] = []

    def run(self) -> None:
        cursor = self.tree.root_node.walk()
        roles = self.language.role_of
        while True:
            node = cast(Node, cursor.node)  # None only for a cursor without a tree
            role = roles.get(node.type)
            if role is not None and node.is_named:
                self.visit(node, role)
            if cursor.goto_first_child():
                self.depth += 1
                continue
            self.leaves += 1
            while True:
                self.leave()
                if cursor.goto_next_sibling():
                    break
                if not cursor.goto_parent():
                    return
                self.depth -= 1

    def visit(self, node: Node, role: str) -> None:
        """Take note of a node whose type has a role."""
        scope = self.scopes[-1]
        owner = scope.owner
        if role == OPEN:
            if node.id in self.functions:
                return
            opened = self.language.opens(node)
            if opened is not None and opened.name:
                self.open(opened, node)
                return
            if node.type in self.language.roles[IMPORT]:
                self.note_import(node)
            if node.type.endswith(("function_expression", "generator_function")):
                self.push(None, "", transparent=False)
        elif role == ANONYMOUS:
            if node.id not in self.functions:
                self.push(None, "", transparent=False)
        elif role == CALL:
            if self.decorator_depth is None and (callee := self.language.callee(node)):
                calls = owner.calls if owner is not None else self.module_calls
                calls.setdefault(callee, node.start_byte)
        elif role == RAISE:
            raised = self.language.raised(node)
            if raised and owner is not None and scope.transparent:
                owner.raises.setdefault(raised)
        elif role == RETURN:
            returned = self.language.returned(node)
            if returned and owner is not None and scope.transparent:
                owner.returns.setdefault(returned)
        elif role == BRANCH or (role == LOGICAL and self.is_logical(node)):
            if node.type == "switch_label" and text(node).startswith("default"):
                return
            if owner is not None:
                owner.branches += 1
            else:
                self.module_branches.append(node.start_byte)
        elif role == IMPORT:
            self.note_import(node)
        elif role == DECORATOR and self.decorator_depth is None:
            self.decorator_depth = self.depth

    def is_logical(self, node: Node) -> bool:
        operator = node.child_by_field_name("operator")
        return operator is not None and operator.type in self.language.logical_operators

    def note_import(self, node: Node) -> None:
        """Any import, wherever it stands."""
        names = self.language.imports(node)
        if names or node.type not in self.language.roles[OPEN]:
            whole = node
            if node.type == "variable_declarator" and node.parent is not None:
                whole = node.parent
            self.imports.append(
                ImportStatement(text(whole), whole.start_byte, whole.end_byte, names)
            )

    def push(self, definition: Definition | None, name: str, transparent: bool = True) -> None:
        """Enter a node: a definition, a container with a name, or an anonymous function."""
        around = self.scopes[-1]
        self.scopes.append(
            _Scope(
                depth=self.depth,
                owner=definition or around.owner,
                name=name,
                leaves=self.leaves,
                transparent=transparent and (definition is not None or around.transparent),
                definition=definition,
            )
        )

    def open(self, opened: Opened, node: Node) -> None:
        """Enter a definition or a container."""
        self.functions.add(opened.function.id)
        if opened.kind is None:
            self.push(None, opened.name)
            return
        parent = self.scopes[-1].owner
        # Directly in a class, not in an object or an enum constant that a class holds.
        around = self.scopes[-1].definition
        in_class = around is not None and around.kind == "class"
        kind: BlockType = "method" if in_class and opened.kind == "function" else opened.kind
        names = [scope.name for scope in self.scopes if scope.name]
        qualified = ".".join([*names, *filter(None, [opened.prefix]), opened.name])
        parent_name = parent.qualified_name if parent is not None else opened.prefix or None
        language = self.language
        first = language.first_node(opened)
        described = language.describe(opened, first, in_class)
        end = language.end_of(opened.outer)
        end -= len(chunk := self.source[first.start_byte : end]) - len(chunk.rstrip())
        statements = language.statements(opened.function)
        implicit = language.implicit_return(opened.function)
        definition = Definition(
            kind=kind,
            name=opened.name,
            qualified_name=qualified,
            parent=parent,
            parent_name=parent_name,
            described=described,
            start_byte=first.start_byte,
            end_byte=end,
            start_row=first.start_point.row,
            end_row=first.start_point.row + self.source.count(b"\n", first.start_byte, end),
            label=opened.label,
            tokens=self.leaves_outside(opened, node, first),
            returns={implicit: None} if implicit else {},
            methods=dict.fromkeys(language.methods(opened)) if opened.kind == "class" else {},
            is_private=language.is_private(opened.name, described.signature)
            or (parent is not None and parent.kind == "class" and parent.is_private),
            is_test=language.is_test(opened.name, kind, described.decorators),
            is_trivial=_is_trivial(opened, statements, described),
            has_error=opened.outer.has_error,
        )
        if in_class and parent is not None and kind == "method":
            parent.methods.setdefault(opened.name)
        self.definitions.append(definition)
        self.push(definition, f"{opened.prefix}.{opened.name}".lstrip("."))

    def leaves_outside(self, opened: Opened, node: Node, first: Node) -> int:
        """Leaves of a block that the walk does not pass below the node where it was opened:
        doc comments, decorators, `export`, `const`.
        """
        outside = 0
        before: Node | None = first
        while before is not None and before.id != opened.outer.id:
            outside += count_leaves(before)
            before = before.next_sibling
        if opened.outer.id != node.id:
            outside += count_leaves(opened.outer) - count_leaves(node)
        return outside

    def leave(self) -> None:
        """A node is finished: close what began at it."""
        if self.decorator_depth == self.depth:
            self.decorator_depth = None
        while self.scopes[-1].depth == self.depth:
            scope = self.scopes.pop()
            definition = scope.definition
            if definition is not None:
                definition.tokens += self.leaves - scope.leaves
                if definition.parent is not None and definition.parent.kind == "class":
                    definition.parent.branches += definition.branches


def _is_trivial(opened: Opened, statements: list[Node], described: Described) -> bool:
    """A getter, a setter, a body that does nothing; an empty class with a docstring says more."""
    if opened.kind == "class":
        bare = opened.function.child_by_field_name("body") is not None and not described.docstring
        return bare and all(text(statement) in ("pass", "...") for statement in statements)
    if not statements:
        return True
    return len(statements) == 1 and bool(TRIVIAL.fullmatch(text(statements[0]).strip()))


def _spread_tests(definitions: list[Definition]) -> None:
    """A class with a test method is a test class, and all within a test is test."""
    for definition in definitions:
        parent = definition.parent
        if definition.is_test and parent is not None and parent.kind == "class":
            parent.is_test = True
    for definition in definitions:  # parents come before their children
        if definition.parent is not None and definition.parent.is_test:
            definition.is_test = True


def _file(walk: _Walk, root: Node, source: bytes, language: Language) -> FileDefinitions:
    documented, docstring = language.file_docstring(root)
    limit = min((d.start_byte for d in walk.definitions), default=len(source) + 1)
    run: list[Node] = []
    for child in root.children:
        if child.end_byte > limit or child.start_byte >= limit:
            break
        if run or child.type not in language.comments or child == documented:
            run.append(child)
    while run and run[-1].type in language.comments and run[-1] != documented:
        run.pop()
    constants = [pair for child in root.children for pair in language.constants(child)]
    module = None
    if run:
        start, end = run[0].start_byte, run[-1].end_byte
        end -= len(chunk := source[start:end]) - len(chunk.rstrip())
        module = Definition(
            kind="module",
            name="",
            qualified_name="",
            parent=None,
            parent_name=None,
            described=Described(signature="", docstring=docstring),
            start_byte=start,
            end_byte=end,
            start_row=run[0].start_point.row,
            end_row=run[0].start_point.row + source.count(b"\n", start, end),
            tokens=sum(count_leaves(child) for child in run),
            branches=sum(start <= at < end for at in walk.module_branches),
            calls={name: at for name, at in walk.module_calls.items() if start <= at < end},
            imports=list(
                dict.fromkeys(
                    statement.text
                    for statement in walk.imports
                    if start <= statement.start_byte and statement.end_byte <= end
                )
            ),
            constants=[pair for child in run for pair in language.constants(child)],
        )
    return FileDefinitions(module, walk.definitions, walk.imports, docstring, constants)
