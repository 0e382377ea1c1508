"""One walk over a file's syntax tree finds every definition and what it says.

The walk visits every node, because a walk that is pruned to known statements misses definitions
in the statements that it forgot. It looks only at inner nodes, when it leaves them: whatever
stands in a definition has been seen by then, and is taken off the end of a list. Leaves are
counted on the way, so a definition's tokens cost nothing more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import cast

from tree_sitter import Node, Tree

from forge_mcp.mining.languages.base import (
    ANONYMOUS,
    BRANCH,
    CALL,
    CONTAINER,
    DECORATOR,
    DEFINITION,
    ERROR,
    IMPORT,
    LOGICAL,
    RAISE,
    RETURN,
    Described,
    Import,
    Language,
    Opened,
    is_named_type,
    text,
)
from forge_mcp.schemas.code_blocks import BlockType

FOREIGN = 100  # a call on the `this` of a function without a name
FIRST = itemgetter(0)
TRIVIAL_TOKENS = 80  # a longer definition is none, whatever its decorators and comments are
WHITE = b" \t\r\n\f\v"
TRIVIAL = re.compile(
    r"pass|\.\.\.|return(?:\s+[\w.&*>$:@-]+)?;?|[\w.$@]+"
    r"|(?:self|this|cls|\$this|\w+)(?:\.|->)\w+\s*=\s*\$?\w+;?"
    r"|@\w+\s*=\s*\w+"
    r"|raise NotImplementedError(?:\(.*\))?"
    r"|throw new \w*(?:NotImplemented|Unsupported)\w*\(.*\);?",
    re.DOTALL,
)


@dataclass(slots=True, eq=False)
class Definition:
    """A definition of one file, with offsets into its UTF-8 source.

    `start_row` and `end_row` are 0-based and inclusive; `tokens` is a count of leaves. A container
    (`kind` None) lends its name to what stands in it and is no definition of its own.
    """

    kind: BlockType | None
    name: str
    described: Described
    start_byte: int
    end_byte: int
    start_row: int
    end_row: int
    first_leaf: int
    body_byte: int = -1  # where the body begins; -1 without one
    prefix: str = ""
    label: str = ""
    foreign: set[str] = field(default_factory=set)  # calls on the `this` of something else
    receiver: str = ""  # the name by which it calls its own object: `self`, `this`, a Go receiver
    owner: str = ""  # qualified name of that object's class
    is_scope: bool = True
    is_lexical: bool = True
    # Where bare names are looked up, innermost first.
    scopes: list[str] = field(default_factory=list)
    outermost: Definition | None = None  # the outermost function around it, or itself
    local_imports: list[Import] = field(default_factory=list)
    qualified_name: str = ""
    parent: Definition | None = None
    parent_name: str | None = None
    in_class: bool = False  # directly, not in an object or an enum constant that a class holds
    tokens: int = 0
    branches: int = 0
    calls: dict[str, None] = field(default_factory=dict)
    raises: dict[str, None] = field(default_factory=dict)
    returns: dict[str, None] = field(default_factory=dict)
    methods: dict[str, None] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)
    is_private: bool = False
    is_test: bool = False
    is_trivial: bool = False
    has_error: bool = False  # within it
    in_error: bool = False  # it stands within one: it may be a fragment of something else
    children: list[Definition] = field(default_factory=list)  # while the file is walked


@dataclass(slots=True)
class ImportStatement:
    """An import anywhere in a file; `text` is '' for an export of the file's own names."""

    text: str
    start_byte: int
    end_byte: int
    names: list[Import]
    local: bool = False  # within a function


@dataclass
class FileDefinitions:
    """All definitions of a file in source order, and its imports."""

    module: Definition | None
    definitions: list[Definition]
    imports: list[ImportStatement]
    docstring: str
    constants: list[tuple[str, str]]
    rebound: set[str]  # names that the top level assigns
    has_error: bool

    @cached_property
    def imported(self) -> list[Import]:
        """Every name that any import of the file brings in."""
        return [name for statement in self.imports for name in statement.names]

    @cached_property
    def top_imports(self) -> list[Import]:
        """The names that are known in the whole file."""
        return [
            name for statement in self.imports if not statement.local for name in statement.names
        ]


def find_definitions(tree: Tree, source: bytes, language: Language) -> FileDefinitions:
    """Walk a parsed file.

    Args:
        tree: parsed from `source`.
        source: UTF-8 bytes.
        language: whose grammar made the tree.
    """
    walk = _Walk(tree, source, language)
    walk.run()
    definitions = walk.finished()
    return _file(walk, definitions, tree.root_node, source, language)


def count_leaves(node: Node) -> int:
    """Leaves of a subtree."""
    if not node.child_count:
        return 1
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
    """What one walk has found and not yet given to the definition around it."""

    def __init__(self, tree: Tree, source: bytes, language: Language) -> None:
        self.tree = tree
        self.source = source
        self.language = language
        self.last_byte = len(source.rstrip())
        self.broken_file = tree.root_node.has_error
        # (first leaf, role, text) of calls, branches and so on that no definition has claimed
        self.loose: list[tuple[int, int, bytes]] = []
        self.open: list[Definition] = []  # without a parent so far, in source order
        self.imports: list[ImportStatement] = []

    def run(self) -> None:
        """Every node once. Calls and branches, by far the most frequent, are noted right here."""
        cursor = self.tree.walk()
        roles, leave, source = self.language.roles, self.leave, self.source
        callee, note = self.language.callee_pattern.match, self.loose.append
        down, right, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
        leaves = 0
        marks: list[int] = []  # leaves that were counted when the walk went below a node
        while True:
            if down():
                marks.append(leaves)
                continue
            leaves += 1
            while not right():
                if not up():
                    return
                node = cursor.node
                first = marks.pop()
                role = roles[node.kind_id]  # type: ignore[union-attr]  # a cursor has a node
                if not role:
                    continue
                if role == CALL:
                    match = callee(source, node.start_byte)  # type: ignore[union-attr]
                    if match is not None:
                        note((first, CALL, match[1]))
                elif role == BRANCH:
                    note((first, BRANCH, b""))
                else:
                    leave(cast(Node, node), role, first, leaves)

    def leave(self, node: Node, role: int, first: int, leaves: int) -> None:
        """Take note of an inner node whose type has a role, all below it being known."""
        language, source = self.language, self.source
        if role == LOGICAL:
            operators = language.logical_kinds
            if any(child.kind_id in operators for child in node.children[:2]):
                self.loose.append((first, BRANCH, b""))
        elif role == RETURN:
            statement = source[node.start_byte : node.end_byte]
            if statement.startswith(b"return"):
                value = statement[6:].strip().removesuffix(b";").rstrip()
                if value:
                    self.loose.append((first, RETURN, value))
        elif role == RAISE:
            match = language.raised_pattern.match(source, node.start_byte, node.end_byte)
            if match is not None and is_named_type(match[1]):
                self.loose.append((first, RAISE, match[1]))
        elif role == DEFINITION:
            opened = language.opens(node)
            if opened is not None:
                self.close(opened, node, first, leaves)
            elif node.type in language.anonymous:
                self.keep(first, CALL, BRANCH, FOREIGN)
                if node.type in language.rebinds_this:
                    self.estrange(first)
        elif role == CONTAINER:
            if self.open and self.open[-1].first_leaf >= first:
                opened = language.opens(node)
                if opened is not None:
                    self.contain(opened, first)
        elif role == ANONYMOUS:  # what it returns and raises belongs to nobody
            self.keep(first, CALL, BRANCH, FOREIGN)
        elif role == DECORATOR:
            self.keep(first, BRANCH)
        elif role == IMPORT:
            self.note_import(node)
        elif role == ERROR:
            for definition in reversed(self.open):
                if definition.first_leaf < first:
                    break
                definition.in_error = True

    def keep(self, first: int, *roles: int) -> None:
        """Of what was found from a leaf on, keep only some roles."""
        loose = self.loose
        at = len(loose)
        while at and loose[at - 1][0] >= first:
            at -= 1
        loose[at:] = [entry for entry in loose[at:] if entry[1] in roles]

    def estrange(self, first: int) -> None:
        """A function without a name has a `this` of its own: the calls on it mean another object
        than those of the definition around it.
        """
        loose = self.loose
        for at in range(len(loose) - 1, -1, -1):
            start, role, found = loose[at]
            if start < first:
                break
            if role == CALL and found.startswith(b"this."):
                loose[at] = (start, FOREIGN, found)

    def note_import(self, node: Node) -> None:
        """Any import, wherever it stands."""
        whole, names = self.language.import_of(node)
        if whole is not None:
            stated = text(whole).strip() if not names or any(name.module for name in names) else ""
            self.imports.append(ImportStatement(stated, whole.start_byte, whole.end_byte, names))

    def children(self, first: int) -> list[Definition]:
        """Take the definitions that begin at a leaf or behind it."""
        found, at = self.open, len(self.open)
        while at and found[at - 1].first_leaf >= first:
            at -= 1
        taken = found[at:]
        del found[at:]
        return taken

    def contain(self, opened: Opened, first: int) -> None:
        """A namespace, or an object with a name, around definitions."""
        container = Definition(
            None, opened.name, Described(""), 0, 0, 0, 0, first, prefix=opened.prefix
        )
        container.is_scope = opened.is_scope
        container.children = self.children(first)
        self.open.append(container)

    def close(self, opened: Opened, node: Node, first: int, leaves: int) -> None:
        """A definition is complete: describe it and give it what was found in it."""
        language, source = self.language, self.source
        beginning = language.first_node(opened)
        outer = opened.outer
        described = language.describe(opened, beginning)
        start = beginning.start_byte
        end = language.end_of(outer)
        while end > start and source[end - 1] in WHITE:
            end -= 1
        row = beginning.start_point.row
        body = language.body(opened.function)
        definition = Definition(
            opened.kind,
            opened.name,
            described,
            start,
            end,
            row,
            row + source.count(b"\n", start, end),
            first,
            body_byte=body.start_byte if body is not None else -1,
            prefix=opened.prefix,
            label=opened.label,
            receiver=opened.receiver,
            is_lexical=opened.is_lexical,
            tokens=leaves - first + _leaves_beside(outer, node, beginning),
            has_error=(self.broken_file and outer.has_error)
            or (end >= self.last_byte and not language.ends_whole(outer)),
        )
        if implicit := language.implicit_return(opened.function):
            definition.returns[implicit] = None
        self.claim(definition, first)
        is_class = opened.kind == "class"
        if is_class:
            definition.methods = dict.fromkeys(language.methods(opened))
        definition.children = self.children(first)
        for child in definition.children:
            if is_class and child.kind is not None:
                child.in_class = True
                if child.kind == "function":
                    child.kind = "method"
                if child.kind == "method":
                    definition.methods[child.name] = None
                definition.branches += child.branches
        definition.is_trivial = _is_trivial(opened, language, described, definition.tokens)
        self.open.append(definition)

    def claim(self, definition: Definition, first: int) -> None:
        """Give a definition what was found in it and in no definition within it."""
        loose = self.loose
        at = len(loose)
        while at and loose[at - 1][0] >= first:
            at -= 1
        for _, role, found in sorted(loose[at:], key=FIRST):  # as they stand in the source
            if role == BRANCH:
                definition.branches += 1
            elif role == CALL:
                definition.calls[found.decode()] = None
            elif role == FOREIGN:
                definition.calls[found.decode()] = None
                definition.foreign.add(found.decode())
            elif role == RETURN:
                definition.returns[found.decode()] = None
            else:
                definition.raises[found.decode()] = None
        del loose[at:]

    def finished(self) -> list[Definition]:
        """All definitions in source order, with what they have from those around them."""
        found = []
        stack: list[tuple[Definition, Definition | None, Definition | None]] = [
            (definition, None, None) for definition in reversed(self.open)
        ]
        while stack:  # a definition, what it stands in, and the next real definition around it
            definition, holder, around = stack.pop()
            own = f"{definition.prefix}.{definition.name}" if definition.prefix else definition.name
            definition.qualified_name = f"{holder.qualified_name}.{own}" if holder else own
            scopes = holder.scopes if holder is not None else []
            visible = definition.is_scope
            if definition.kind == "class":
                visible = self.language.class_is_scope
            if definition.kind is not None:
                self.settle(definition, holder, around)
                found.append(definition)
            definition.scopes = [definition.qualified_name, *scopes] if visible else scopes
            inner = around if definition.kind is None else definition
            for child in reversed(definition.children):
                child.in_error = child.in_error or definition.in_error
                stack.append((child, definition, inner))
            definition.children = []  # parents know no children: no cycle keeps the tree alive
        self.place_imports(found)
        _spread_tests(found)
        return found

    def settle(
        self, definition: Definition, holder: Definition | None, around: Definition | None
    ) -> None:
        """What a definition is, now that it is known where it stands."""
        language, described = self.language, definition.described
        definition.parent = around
        if around is not None:
            definition.parent_name = around.qualified_name
        elif definition.prefix:
            definition.parent_name = definition.qualified_name[: -len(definition.name) - 1]
        if definition.in_class and around is not None:
            definition.receiver, definition.owner = language.adopt(described), around.qualified_name
        elif definition.receiver:
            definition.owner = definition.prefix
        elif around is not None and holder is around and described.keeps_receiver:
            own = [parameter.name for parameter in described.parameters or ()]
            if around.receiver not in own:
                definition.receiver, definition.owner = around.receiver, around.owner
        if around is not None and around.kind != "class":
            definition.outermost = around.outermost or around
        private = described.is_private
        if private is None:
            private = language.is_private(definition.name, described.signature)
        inherited = around is not None and around.kind == "class" and around.is_private
        definition.is_private = private or inherited
        definition.is_test = described.is_test or language.is_test(
            definition.name, definition.kind or "", described.decorators
        )

    def place_imports(self, definitions: list[Definition]) -> None:
        """An import within a function is known there alone."""
        functions = [d for d in definitions if d.kind != "class"]
        for statement in self.imports:
            for function in functions:
                if function.start_byte > statement.start_byte:
                    break
                inside = 0 <= function.body_byte <= statement.start_byte
                if inside and statement.end_byte <= function.end_byte:
                    statement.local = True
                    function.local_imports += statement.names


def _leaves_beside(outer: Node, node: Node, first: Node) -> int:
    """Leaves of a block that do not stand below the node where the walk found it: doc comments,
    decorators, `export`, `const`.
    """
    beside = 0
    before: Node | None = first
    while before is not None and before.end_byte <= outer.start_byte:
        beside += count_leaves(before)
        before = before.next_sibling
    while outer.id != node.id:
        start, end, inner = node.start_byte, node.end_byte, node
        for child in outer.children:
            if inner is node and child.start_byte <= start and child.end_byte >= end:
                inner = child
            else:
                beside += count_leaves(child)
        outer = inner
    return beside


def _is_trivial(opened: Opened, language: Language, described: Described, tokens: int) -> bool:
    """A getter, a setter, a body that does nothing; an empty class with a docstring says more."""
    if tokens > TRIVIAL_TOKENS:
        return False
    statements = language.statements(opened.function)
    if opened.kind == "class":
        if described.docstring or language.body(opened.function) is None or statements is None:
            return False
        return all(text(statement) in ("pass", "...") for statement in statements)
    if statements is None or len(statements) > 1:
        return False
    return not statements or bool(TRIVIAL.fullmatch(text(statements[0]).strip()))


def _spread_tests(definitions: list[Definition]) -> None:
    """A class with a test method is a test class, and all within a test is test."""
    for definition in definitions:
        parent = definition.parent
        if definition.is_test and parent is not None and parent.kind == "class":
            parent.is_test = True
    for definition in definitions:  # parents come before their children
        if definition.parent is not None and definition.parent.is_test:
            definition.is_test = True


def _file(
    walk: _Walk, definitions: list[Definition], root: Node, source: bytes, language: Language
) -> FileDefinitions:
    """The file's own facts, and its module block: what stands before the first definition."""
    documented, docstring = language.file_docstring(root)
    documented_to = language.run_end(documented).start_byte if documented is not None else -1
    limit = min((d.start_byte for d in definitions), default=len(source) + 1)
    run: list[Node] = []
    behind = False
    rebound = set()
    constants: list[tuple[str, str]] = []
    own: list[tuple[str, str]] = []
    for child in root.children:
        found = language.constants(child)
        constants += found
        if name := language.rebinds(child):
            rebound.add(name)
        behind = behind or child.end_byte > limit or child.type == "ERROR"
        if child.start_byte == child.end_byte:  # a token that the parser missed
            continue
        if not behind and (run or child.type not in language.comments or child == documented):
            run.append(child)
            own += found
    while run and run[-1].type in language.comments and run[-1].start_byte > documented_to:
        run.pop()
    module = None
    if run:
        start, end = run[0].start_byte, run[-1].end_byte
        while end > start and source[end - 1] in WHITE:
            end -= 1
        row = run[0].start_point.row
        module = Definition(
            "module",
            "",
            Described(signature="", docstring=docstring),
            start,
            end,
            row,
            row + source.count(b"\n", start, end),
            first_leaf=0,
            tokens=sum(map(count_leaves, run)),
            constants=own,
            has_error=any(child.has_error for child in run),
        )
        last = module.tokens + sum(
            count_leaves(child) for child in root.children if child.end_byte <= start
        )
        walk.loose = [entry for entry in walk.loose if entry[0] < last]
        walk.claim(module, 0)
        module.returns, module.raises = {}, {}
        module.imports = list(
            dict.fromkeys(
                statement.text
                for statement in walk.imports
                if statement.text and start <= statement.start_byte and statement.end_byte <= end
            )
        )
    return FileDefinitions(
        module, definitions, walk.imports, docstring, constants, rebound, root.has_error
    )
