"""What a language module describes, and the helpers that all of them share.

A language says in tables which node types of its grammar begin a definition, branch, call, raise
and so on; which comments document; what is private and what is a test. Where a table is not
enough, a method is overridden. docs/languages.md shows how one is added.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, Tree

from forge_mcp.errors import Unavailable
from forge_mcp.mining.comments import clean_comments, is_license_header, looks_like_code
from forge_mcp.schemas.code_blocks import BlockType

# Roles of node types: what the walk in definitions.py does at the end of such a node.
(
    DEFINITION,
    CONTAINER,
    ANONYMOUS,
    CALL,
    RAISE,
    RETURN,
    BRANCH,
    LOGICAL,
    IMPORT,
    DECORATOR,
    ERROR,
) = range(1, 12)
HEADER_ROWS = 5  # a licence header begins within them
MANY_STATEMENTS = 4  # a longer body is not looked at: it does more than get or set something
ERROR_KIND = 0xFFFF  # tree-sitter's kind id of an ERROR node

NAME = rb"[A-Za-z_$\x80-\xff][\w$\x80-\xff]*"
# A dotted name that is called: `a.b(`, `new a.B<T>(`; the group is the name.
CALLEE = re.compile(
    rb"(?:new\s+)?((?:super\(\)|#?" + NAME + rb")(?:\??\.#?" + NAME + rb")*)"
    rb"(?:<[\w\s,.<>\[\]?&|]*>)?\s*(?:\?\.)?[(<{]"
)
# A type that is thrown: `throw new a.B(…)`, `raise a.B(…) from e`, `raise B`.
RAISED = re.compile(
    rb"(?:throw|raise)\s+(?:new\s+)?(" + NAME + rb"(?:(?:\.|::)" + NAME + rb")*)"
    rb"\s*(?:\Z|;|,|[(<{]|from\b)"
)
DECORATOR_END = re.compile(r"[(\s]")  # behind its name


class Import(NamedTuple):
    """A name that an import brings into a file.

    `name` is None where `local` stands for the module itself. `passed_on`: it is exported under
    `local` and not known in the file itself; `module` is "" where the file's own `name` is meant.
    """

    local: str
    module: str
    name: str | None
    passed_on: bool = False


class Parameter(NamedTuple):
    """One parameter; every text is verbatim source. `kind` is named as in Python's `inspect`."""

    name: str
    annotation: str = ""
    default: str = ""
    kind: str = "positional_or_keyword"


@dataclass(slots=True)
class Opened:
    """What a node defines.

    Attributes:
        kind: the block's type; None for a container that only lends its name (a namespace, an
            `impl`, an object bound to a name).
        name: the definition's own name.
        function: the node that has parameters and a body.
        outer: the node with everything that belongs to the definition: decorators, `export`, …
        prefix: qualifier that the source itself names (a Go receiver, `Foo::` in C++).
        label: the language's word where `kind` is coarser ("struct", "interface", "enum").
        receiver: the name by which a Go method calls its own value.
        is_scope: whether bare names that it holds are visible in it.
        is_lexical: whether its name is bound where it stands, not assigned to some object.
    """

    kind: BlockType | None
    name: str
    function: Node
    outer: Node
    prefix: str = ""
    label: str = ""
    receiver: str = ""
    is_scope: bool = True  # bare names that it holds are visible in it
    is_lexical: bool = True  # its name is bound where it stands, not assigned to some object
    marks: list[Node] | None = None  # filled by `Language.marks`


@dataclass(slots=True)
class Described:
    """A definition in words. All texts are verbatim source, but for the cleaned docstring."""

    signature: str
    docstring: str = ""
    parameters: list[Parameter] | None = None
    returns: str = ""
    decorators: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    documented_to: int = 0  # end byte of a docstring inside the body; 0 without one
    is_private: bool | None = None  # where neither name nor modifiers say it, but the place
    is_test: bool = False  # likewise
    keeps_receiver: bool = True  # a nested function in which `this` is that of what is around it
    extra: dict[str, Any] = field(default_factory=dict)


class Language:
    """A language: its grammar, the roles of its node types, and how its definitions read."""

    name: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    package: ClassVar[str]
    entry: ClassVar[str] = "language"

    # Node type → the block's type and a label; `opens` may refuse a node of these types.
    definitions: ClassVar[dict[str, tuple[BlockType, str]]]
    # Node types that lend their name to what stands in them: namespaces, `impl` blocks, objects.
    containers: ClassVar[frozenset[str]] = frozenset()
    anonymous: ClassVar[frozenset[str]] = frozenset()  # functions without a name
    calls: ClassVar[frozenset[str]] = frozenset()
    raises: ClassVar[frozenset[str]] = frozenset()
    returns: ClassVar[frozenset[str]] = frozenset()
    branches: ClassVar[frozenset[str]] = frozenset()
    # Node types that branch if one of their first two children is one of `logical_operators`.
    logical: ClassVar[frozenset[str]] = frozenset()
    imports_at: ClassVar[frozenset[str]] = frozenset()
    decorators: ClassVar[frozenset[str]] = frozenset()
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "??"})

    fragment_prefix: ClassVar[bytes] = b""  # what a part of a file needs before it to be parsed
    comments: ClassVar[frozenset[str]] = frozenset({"comment"})
    doc_comment: ClassVar[re.Pattern[str]] = re.compile(r"/\*\*(?!/)")  # what marks one
    plain_comments_document: ClassVar[bool] = False  # comments without such a mark do as well
    callee_pattern: ClassVar[re.Pattern[bytes]] = CALLEE
    raised_pattern: ClassVar[re.Pattern[bytes]] = RAISED
    private_modifiers: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    parameter_fields: ClassVar[tuple[str, ...]] = ("parameters",)
    return_fields: ClassVar[tuple[str, ...]] = ("return_type", "type")
    base_nodes: ClassVar[frozenset[str]] = frozenset()  # children that list what it derives from
    self_name: ClassVar[str] = "this"
    rebinds_this: ClassVar[frozenset[str]] = frozenset()  # anonymous functions with their own
    class_is_scope: ClassVar[bool] = False  # bare names in a class may mean its members
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    test_decorators: ClassVar[frozenset[str]] = frozenset()
    test_paths: ClassVar[re.Pattern[str]] = re.compile(r"(?:^|/)tests?/")

    @cached_property
    def grammar(self) -> Grammar:
        """The grammar from its official wheel.

        Raises:
            Unavailable: the wheel is not installed or was built for another tree-sitter.
        """
        try:
            module = importlib.import_module(self.package.replace("-", "_"))
            return Grammar(getattr(module, self.entry)())
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise Unavailable(
                f"The grammar for {self.name} cannot be loaded.",
                cause=str(error),
                next_step=f"Install it: pip install -U {self.package} tree-sitter",
            ) from error

    @cached_property
    def parser(self) -> Parser:
        """One parser, used for every file."""
        return Parser(self.grammar)

    def parse(self, source: bytes) -> Tree:
        """The syntax tree of UTF-8 source. tree-sitter never fails: look at `has_error`."""
        return self.parser.parse(source)

    @cached_property
    def roles(self) -> bytes:
        """Role of every kind id of the grammar (0: none); 65,536 long, so that no id is outside."""
        by_name = {
            **dict.fromkeys(self.logical, LOGICAL),
            **dict.fromkeys(self.branches, BRANCH),
            **dict.fromkeys(self.returns, RETURN),
            **dict.fromkeys(self.raises, RAISE),
            **dict.fromkeys(self.calls, CALL),
            **dict.fromkeys(self.imports_at, IMPORT),
            **dict.fromkeys(self.decorators, DECORATOR),
            **dict.fromkeys(self.anonymous, ANONYMOUS),
            **dict.fromkeys(self.containers, CONTAINER),
            **dict.fromkeys(self.definitions, DEFINITION),
        }
        grammar, table = self.grammar, bytearray(ERROR_KIND + 1)
        for kind in range(grammar.node_kind_count):
            if grammar.node_kind_is_named(kind):
                table[kind] = by_name.get(grammar.node_kind_for_id(kind) or "", 0)
        table[ERROR_KIND] = ERROR
        return bytes(table)

    @cached_property
    def logical_kinds(self) -> frozenset[int]:
        """Kind ids of the operators and keywords that branch."""
        grammar = self.grammar
        return frozenset(
            kind
            for kind in range(grammar.node_kind_count)
            if grammar.node_kind_for_id(kind) in self.logical_operators
        )

    # -- definitions -------------------------------------------------------------------------

    def opens(self, node: Node) -> Opened | None:
        """What a node of `definitions` or `containers` begins, or None."""
        name = self.name_of(node)
        if not name:
            return None
        kind, label = self.definitions.get(node.type, (None, ""))
        return Opened(kind, name, node, self.outer(node), label=label)

    def name_of(self, node: Node) -> str:
        """The name in the node's field `name`."""
        return text(node.child_by_field_name("name"))

    def outer(self, node: Node) -> Node:
        """The node itself, or what wraps it: decorators, `export`."""
        return node

    def describe(self, opened: Opened, first: Node) -> Described:
        """A definition in words.

        Args:
            opened: what `opens` returned.
            first: the first node of the block: a leading doc comment, a decorator, or `outer`.
        """
        node = opened.function
        body = self.body(node)
        described = Described(
            signature=self.signature(opened, body), docstring=self.docstring(opened, first)
        )
        described.decorators = self.decorations(opened, first)
        if opened.kind == "class":
            described.bases = self.bases(node)
            return described
        described.parameters = self.parameters(node)
        for name in self.return_fields:
            if (returned := node.child_by_field_name(name)) is not None:
                described.returns = text(returned).removeprefix(":").removeprefix("->").strip()
                break
        return described

    def body(self, node: Node) -> Node | None:
        """The body of a definition."""
        return node.child_by_field_name("body")

    def signature(self, opened: Opened, body: Node | None) -> str:
        """What stands before the body, without decorators."""
        outer = opened.outer
        whole, begin = outer.text or b"", outer.start_byte
        start = 0
        for child in self.marks(opened):
            if not whole[start : child.start_byte - begin].strip():
                start = child.end_byte - begin
        end = body.start_byte - begin if body is not None else len(whole)
        return whole[start:end].decode().strip().removesuffix(";").rstrip(" =")

    def marks(self, opened: Opened) -> list[Node]:
        """Decorators that a definition begins with, looked for once."""
        if opened.marks is None:
            opened.marks = self.inside(opened.outer)
            if opened.function.id != opened.outer.id:
                opened.marks += self.inside(opened.function)
        return opened.marks

    def inside(self, node: Node) -> list[Node]:
        """Decorators that a node begins with, also those among its `modifiers`."""
        found: list[Node] = []
        for at in range(node.child_count if self.decorators else 0):
            child = node.child(at)
            kind = child.type
            if kind == "modifiers":
                found += [inner for inner in child.children if inner.type in self.decorators]
            elif kind in self.decorators:
                found.append(child)
            elif kind not in self.comments and kind not in ("export", "default"):
                break
        return found

    def decorations(self, opened: Opened, first: Node) -> list[str]:
        """Texts of the decorators, annotations or attributes, without their mark."""
        found: dict[int, Node] = {}
        node: Node | None = first
        while node is not None and node.end_byte <= opened.outer.start_byte:
            if node.type in self.decorators:
                found[node.id] = node
            node = node.next_sibling
        for child in self.marks(opened):
            found[child.id] = child
        return [clean_decorator(text(child)) for child in found.values()]

    def bases(self, node: Node) -> list[str]:
        """What a class derives from."""
        return [
            text(base)
            for clause in node.named_children
            if clause.type in self.base_nodes
            for base in clause.named_children
            if base.type not in self.comments
        ]

    def parameters(self, node: Node) -> list[Parameter]:
        """Parameters of a function."""
        for name in self.parameter_fields:
            if (listed := node.child_by_field_name(name)) is not None:
                return [
                    found
                    for child in listed.named_children
                    if child.type not in self.comments and (found := self.parameter(child))
                ]
        return []

    def parameter(self, node: Node) -> Parameter | None:
        """One parameter by the fields `name`, `type` and `value`; None for what is none."""
        name = node.child_by_field_name("name") or node.child_by_field_name("pattern")
        annotation = text(node.child_by_field_name("type")).removeprefix(":").strip()
        default = node.child_by_field_name("value") or node.child_by_field_name("default_value")
        return Parameter(
            text(name) if name is not None else text(node),
            annotation,
            text(default),
            "positional_only",
        )

    def import_of(self, node: Node) -> tuple[Node | None, list[Import]]:
        """The whole import statement of a node (None where it is none), and its names."""
        return node, self.imports(node)

    def imports(self, node: Node) -> list[Import]:
        """The names that an import brings in."""
        return []

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """(name, value text) of the constants that a top-level statement defines."""
        return []

    def is_private(self, name: str, signature: str) -> bool:
        """Whether a definition is private by its name or its modifiers."""
        return bool(self.private_modifiers.match(signature))

    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """Whether a definition is a test by its name or its decorators, in any file."""
        known = self.test_decorators
        if known and any(DECORATOR_END.split(d)[0].rpartition(".")[2] in known for d in decorators):
            return True
        return kind != "class" and bool(self.test_names.match(name))

    def is_test_file(self, path: str) -> bool:
        """Whether a file (path from the repository's root) holds tests."""
        return bool(self.test_paths.search(path))

    def implicit_return(self, function: Node) -> str:
        """Text of a body that is itself the returned value (an arrow function's), or ''."""
        return ""

    def statements(self, function: Node) -> list[Node] | None:
        """Statements of a body without comments and docstring; None for a body of more than
        MANY_STATEMENTS, comments counted.
        """
        body = self.body(function)
        if body is None:
            return []
        if body.named_child_count > MANY_STATEMENTS:
            return None
        return [child for child in body.named_children if child.type not in self.comments]

    def adopt(self, described: Described) -> str:
        """The name by which what stands directly in a class calls its own object, '' for none;
        Python takes it off the parameters.
        """
        return self.self_name

    def rebinds(self, node: Node) -> str:
        """The name that a top-level statement assigns, or ''."""
        return ""

    def methods(self, opened: Opened) -> list[str]:
        """Method names that a class states in its span, but not as blocks of their own."""
        return []

    # -- documentation and spans -------------------------------------------------------------

    def first_node(self, opened: Opened) -> Node:
        """Where a definition begins: its leading doc comment or decorator, or `outer`.

        Line comments without a blank line between them are one comment. A comment at the end of
        a line of code documents that line; a licence header and commented-out code document
        nothing.
        """
        first, run = opened.outer, opened.outer  # what belongs for sure; the topmost comment seen
        while (before := run.prev_sibling) is not None:
            kind = before.type
            if kind in self.decorators:
                first = run = before
            elif (
                kind not in self.comments
                or run.start_point.row - last_row(before) > 1
                or not self._documents(before)
                or _stands_behind_code(before)
            ):
                break
            else:
                block = text(before).startswith("/*")
                if block and text(run).startswith("//"):  # line comments stand between
                    break
                run = before
                if block:
                    break
        if run.id == first.id:
            return first
        comments = self.comment_text(run, first)
        if run.start_point.row <= HEADER_ROWS and is_license_header(comments):
            return first
        if not self.doc_comment.match(comments) and looks_like_code(comments):
            return first
        return run

    def _documents(self, comment: Node) -> bool:
        if self.plain_comments_document:
            return not self.is_directive(text(comment))
        return bool(self.doc_comment.match(text(comment)))

    def is_directive(self, comment: str) -> bool:
        """Whether a comment speaks to a tool (`//go:build`, `#!/bin/sh`)."""
        return False

    def comment_text(self, first: Node, end: Node) -> str:
        """The text of comments from one sibling up to another."""
        lines = []
        node: Node | None = first
        while node is not None and node.id != end.id and node.start_byte < end.start_byte:
            if node.type in self.comments:
                lines.append(text(node).rstrip("\r\n"))
            node = node.next_sibling
        return "\n".join(lines)

    def run_end(self, comment: Node) -> Node:
        """The last of the comments that stand line by line below one."""
        while (below := comment.next_sibling) is not None:
            if below.type not in self.comments or below.start_point.row - last_row(comment) > 1:
                break
            comment = below
        return comment

    def docstring(self, opened: Opened, first: Node) -> str:
        """The text of the leading doc comment without its marks."""
        if first.type not in self.comments:
            return ""
        return clean_comments(self.comment_text(first, opened.outer))

    def ends_whole(self, outer: Node) -> bool:
        """Whether the last definition of a file is complete: asked where the file ends with it,
        since some grammars take a file that was cut off for whole.
        """
        return True

    def end_of(self, outer: Node) -> int:
        """End byte of a definition."""
        return outer.end_byte

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The node that documents the whole file, and the cleaned text; (None, '') without one."""
        return None, ""


def text(node: Node | None) -> str:
    """Verbatim source of a node; '' for None."""
    return (node.text or b"").decode() if node is not None else ""


def text_between(node: Node, start: int, end: int) -> str:
    """Verbatim source from one byte offset of the file to another; both lie within `node`."""
    whole = node.text or b""
    return whole[max(start - node.start_byte, 0) : max(end - node.start_byte, 0)].decode()


def first_child(node: Node | None) -> Node | None:
    """The first named child, or None (tree-sitter itself raises IndexError)."""
    return node.named_child(0) if node is not None and node.named_child_count else None


def of_type(nodes: Sequence[Node], *types: str) -> list[Node]:
    """The nodes of some types."""
    return [node for node in nodes if node.type in types]


def is_named_type(name: bytes) -> bool:
    """Whether a name's last part reads as an exception type (`ValueError`, `socket.error`)."""
    if b"::" in name:  # C++'s own are in lower case: std::bad_alloc
        return True
    last = name.rpartition(b".")[2]
    return last[:1].isupper() or last.endswith((b"error", b"timeout", b"Error"))


def clean_decorator(decorator: str) -> str:
    """`Test(x)` of `@Test(x)`, `#[Test(x)]` or `[Test(x)]`."""
    return decorator.strip().removeprefix("#").lstrip("@[").removesuffix("]").strip()


def last_row(comment: Node) -> int:
    """The row on which a comment ends; some grammars count its line break in."""
    end = comment.end_point
    return end.row - 1 if end.column == 0 and end.row > comment.start_point.row else end.row


def _stands_behind_code(comment: Node) -> bool:
    """A comment at the end of a line of code documents that line, not what follows."""
    before = comment.prev_sibling
    return before is not None and last_row(before) == comment.start_point.row and before.is_named
