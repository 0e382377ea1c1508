"""What a language module describes, and the helpers that all of them share."""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, Tree

from forge_mcp.errors import Unavailable
from forge_mcp.schemas.code_blocks import BlockType

# What the walk does at a node; see definitions.py.
OPEN, ANONYMOUS, CALL, RAISE, RETURN, BRANCH, LOGICAL, IMPORT, DECORATOR = (
    "open",
    "anonymous",
    "call",
    "raise",
    "return",
    "branch",
    "logical",
    "import",
    "decorator",
)

DOTTED = re.compile(r"(?:super\(\)|[A-Za-z_$#][\w$]*)(?:\??\.[A-Za-z_$#][\w$]*)*")


class Import(NamedTuple):
    """A name that an import brings into a file.

    `name` is None where `local` stands for the module itself.
    """

    local: str
    module: str
    name: str | None


class Parameter(NamedTuple):
    """One parameter; every text is verbatim source. `kind` is named as in Python's `inspect`."""

    name: str
    annotation: str = ""
    default: str = ""
    kind: str = "positional_or_keyword"


@dataclass(slots=True)
class Opened:
    """What begins at a node.

    Attributes:
        kind: the block's type; None for a container that only lends its name (a namespace, an
            object bound to a name).
        name: the definition's own name.
        function: the node that has parameters and a body.
        outer: the node with everything that belongs to the definition: decorators, `export`, …
        prefix: qualifier that the source itself names (a Go receiver, `Foo.prototype.`).
        label: the language's word where `kind` is coarser ("struct", "interface", "enum").
    """

    kind: BlockType | None
    name: str
    function: Node
    outer: Node
    prefix: str = ""
    label: str = ""


@dataclass(slots=True)
class Described:
    """A definition in words. All texts are verbatim source, but for the cleaned docstring."""

    signature: str
    docstring: str = ""
    parameters: list[Parameter] | None = None
    returns: str = ""
    decorators: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


class Language(ABC):
    """A language: its grammar, the roles of its node types, and how its definitions read."""

    name: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    package: ClassVar[str]
    entry: ClassVar[str] = "language"
    # role -> node types; OPEN may hold types of which `opens` refuses some.
    roles: ClassVar[dict[str, frozenset[str]]]
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||", "??"})
    comments: ClassVar[frozenset[str]] = frozenset({"comment"})
    private_modifier: ClassVar[str] = ""

    @cached_property
    def role_of(self) -> dict[str, str]:
        """Node type → role. A type that may open a definition has no other role."""
        flat = {kind: role for role, kinds in self.roles.items() for kind in kinds}
        return flat | dict.fromkeys(self.roles[OPEN], OPEN)

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

    def parse(self, source: bytes) -> Tree:
        """The syntax tree of UTF-8 source. tree-sitter never fails: look at `has_error`."""
        return Parser(self.grammar).parse(source)

    # -- definitions -------------------------------------------------------------------------

    @abstractmethod
    def opens(self, node: Node) -> Opened | None:
        """What begins at a node whose role is OPEN, or None."""

    @abstractmethod
    def describe(self, opened: Opened, first: Node, in_class: bool) -> Described:
        """A definition in words.

        Args:
            opened: what `opens` returned.
            first: the first node of the block; a leading doc comment or decorator, or `outer`.
            in_class: whether it stands directly in a class.
        """

    @abstractmethod
    def callee(self, node: Node) -> str:
        """Text of what a CALL node calls, or '' where it has no plain dotted name."""

    @abstractmethod
    def raised(self, node: Node) -> str:
        """Text of the exception type of a RAISE node, or ''."""

    @abstractmethod
    def imports(self, node: Node) -> list[Import]:
        """The names that an IMPORT node brings in."""

    @abstractmethod
    def constants(self, node: Node) -> list[tuple[str, str]]:
        """(name, value text) of the constants that a top-level statement defines."""

    @abstractmethod
    def is_private(self, name: str, opened_text: str) -> bool:
        """Whether a definition is private by its name or its modifiers."""

    @abstractmethod
    def is_test(self, name: str, kind: str, decorators: Sequence[str]) -> bool:
        """Whether a definition is a test by its name, in any file."""

    @abstractmethod
    def is_test_file(self, path: str) -> bool:
        """Whether a file (path from the repository's root) holds tests."""

    def returned(self, node: Node) -> str:
        """Text of the value of a RETURN node, or ''."""
        values = [child for child in node.named_children if child.type not in self.comments]
        return span_text(values[0], values[-1]) if values else ""

    def implicit_return(self, function: Node) -> str:
        """Text of a body that is itself the returned value (an arrow function's), or ''."""
        return ""

    def statements(self, function: Node) -> list[Node]:
        """Statements of a definition's body, without comments and docstring."""
        body = function.child_by_field_name("body")
        if body is None:
            return []
        return [child for child in body.named_children if child.type not in self.comments]

    def methods(self, opened: Opened) -> list[str]:
        """Method names that a class states in its span, but not as blocks of their own."""
        return []

    # -- spans -------------------------------------------------------------------------------

    def first_node(self, opened: Opened) -> Node:
        """Where a definition begins: its leading doc comment or decorator, or `outer`."""
        first = opened.outer
        while True:
            before = first.prev_sibling
            if before is None or not self._belongs(before, first):
                return first
            first = before

    def _belongs(self, before: Node, first: Node) -> bool:
        if before.type in self.roles.get(DECORATOR, ()):
            return True
        return (
            before.type in self.comments
            and self.is_doc_comment(before)
            and first.start_point.row - before.end_point.row <= 1
            and not _stands_behind_code(before)
            and first.type not in self.comments
        )

    def is_doc_comment(self, comment: Node) -> bool:
        """Whether a comment right before a definition documents it."""
        return text(comment).startswith("/**")

    def end_of(self, outer: Node) -> int:
        """End byte of a definition."""
        return outer.end_byte

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The node that documents the whole file, and the cleaned text; (None, '') without one."""
        return None, ""


def text(node: Node | None) -> str:
    """Verbatim source of a node; '' for None."""
    return node.text.decode() if node is not None and node.text is not None else ""


def span_text(first: Node, last: Node) -> str:
    """Verbatim source from one node to another with the same parent."""
    if first.id == last.id or first.parent is None:
        return text(first)
    return text_between(first.parent, first.start_byte, last.end_byte)


def text_between(node: Node, start: int, end: int) -> str:
    """Verbatim source from one byte offset of the file to another; both lie within `node`."""
    whole = node.text or b""
    return whole[start - node.start_byte : end - node.start_byte].decode()


def dotted(node: Node | None) -> str:
    """A node's text where it is a plain dotted name, else ''."""
    found = text(node)
    return found if DOTTED.fullmatch(found) else ""


def of_type(nodes: Iterable[Node], *types: str) -> list[Node]:
    """The nodes of some types."""
    return [node for node in nodes if node.type in types]


def clean_block_comment(comment: str) -> str:
    """Text of a JSDoc or Javadoc comment without its frame of asterisks."""
    inner = comment.replace("\r\n", "\n").removeprefix("/**").removeprefix("/*")
    inner = inner.removesuffix("*/").rstrip("*")
    lines = [re.sub(r"^\s*\*? ?", "", line).rstrip() for line in inner.split("\n")]
    return "\n".join(lines).strip()


def named_type(name: str) -> str:
    """`name` where its last part reads as an exception type (`ValueError`, `socket.error`)."""
    last = name.rpartition(".")[2]
    return name if last[:1].isupper() or last.endswith(("error", "timeout", "Error")) else ""


def path_has_folder(path: str, *folders: str) -> bool:
    """Whether one of a path's folders (not its file name) has one of the names."""
    return any(part in folders for part in path.split("/")[:-1])


def _stands_behind_code(comment: Node) -> bool:
    """A comment at the end of a line of code documents that line, not what follows."""
    before = comment.prev_sibling
    return before is not None and before.end_point.row == comment.start_point.row
