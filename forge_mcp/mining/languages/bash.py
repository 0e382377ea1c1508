"""Bash and POSIX shell: comments before a function document it; a function states no parameters."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import ClassVar

from tree_sitter import Node

from forge_mcp.mining.comments import clean_comments, is_license_header, looks_like_code
from forge_mcp.mining.languages.base import Import, Language, Opened, last_row, of_type, text
from forge_mcp.schemas.code_blocks import BlockType

DIRECTIVE = re.compile(r"#!|#\s*(?:vim?|ex):|#.*-\*-")
CHECKER = re.compile(r"(?m)^\s*#\s*shellcheck\s+\w+=.*\n?")  # it stands among documentation
UPPER_CASE = re.compile(r"[A-Z][A-Z0-9_]*")


class Bash(Language):
    """Functions in both syntaxes, with any compound command as their body.

    Which command is a function cannot be told from one file: every command with the name of an
    identifier is a call. Every pattern of a `case` counts as a branch, `*)` as well.
    """

    name = "bash"
    extensions: ClassVar[tuple[str, ...]] = (".sh", ".bash")
    package = "tree-sitter-bash"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "function_definition": ("function", ""),
    }
    calls: ClassVar[frozenset[str]] = frozenset({"command"})
    branches: ClassVar[frozenset[str]] = frozenset(
        {
            "if_statement",
            "elif_clause",
            "for_statement",
            "c_style_for_statement",
            "while_statement",
            "case_item",
            "ternary_expression",
        }
    )
    logical: ClassVar[frozenset[str]] = frozenset({"list", "binary_expression"})
    logical_operators: ClassVar[frozenset[str]] = frozenset({"&&", "||"})
    imports_at: ClassVar[frozenset[str]] = frozenset({"command_name"})
    plain_comments_document: ClassVar[bool] = True
    callee_pattern: ClassVar[re.Pattern[bytes]] = re.compile(
        rb"(?:\w+=\S*\s+)*(?!(?:return|break|continue)\b)([A-Za-z_][\w-]*(?:::[\w-]+)*)(?=[\s;|&()<>`]|\Z)"
    )
    test_names: ClassVar[re.Pattern[str]] = re.compile(r"test(?:_|[A-Z])")
    test_paths: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:^|/)(?:tests?|spec)/|(?:^|/)test[_-][^/]*$|[._-](?:test|spec)\.\w+$"
    )

    def outer(self, node: Node) -> Node:
        """The function with all redirections behind its body."""
        parent = node.parent
        return parent if parent is not None and parent.type == "redirected_statement" else node

    def signature(self, opened: Opened, body: Node | None) -> str:
        """`name()` or `function name`, without a comment before the body."""
        return super().signature(opened, body).split("\n")[0].strip()

    def docstring(self, opened: Opened, first: Node) -> str:
        """The comments above, without what they tell a checker."""
        if first.type not in self.comments:
            return ""
        return clean_comments(CHECKER.sub("", self.comment_text(first, opened.outer)))

    def is_directive(self, comment: str) -> bool:
        """The shebang and an editor's mode line."""
        return bool(DIRECTIVE.match(comment))

    def file_docstring(self, root: Node) -> tuple[Node | None, str]:
        """The first comment behind the shebang, unless it documents the function right below."""
        comments: list[Node] = []
        below: Node | None = None
        for below in root.children:
            apart = bool(comments) and below.start_point.row - last_row(comments[-1]) > 1
            if below.type not in self.comments or apart:
                break
            if not self.is_directive(text(below)):
                comments.append(below)
        if not comments or below is None:
            return None, ""
        near = below.start_point.row - last_row(comments[-1]) <= 1
        comment = "\n".join(map(text, comments))
        if (near and below.type in self.definitions) or is_license_header(comment):
            return None, ""
        return (None, "") if looks_like_code(comment) else (comments[0], clean_comments(comment))

    def import_of(self, node: Node) -> tuple[Node | None, list[Import]]:
        """`. file` and `source file`."""
        command = node.parent
        if command is None or text(node) not in (".", "source"):
            return None, []
        given = command.child_by_field_name("argument")
        path = text(given).strip("'\"")
        return command, [Import(PurePosixPath(path).stem, path, None)] if path else []

    def constants(self, node: Node) -> list[tuple[str, str]]:
        """`readonly` and `declare -r`; assignments to upper-case names."""
        if node.type == "variable_assignment":
            assigned = [node] if UPPER_CASE.fullmatch(_name(node)) else []
        elif node.type == "declaration_command" and re.match(
            r"readonly\b|(?:declare|typeset)\s+-\w*r", text(node)
        ):
            assigned = of_type(node.named_children, "variable_assignment")
        else:
            return []
        return [(_name(child), text(child.child_by_field_name("value"))) for child in assigned]

    def is_private(self, name: str, signature: str) -> bool:
        """A leading underscore."""
        return name.startswith("_")


def _name(assignment: Node) -> str:
    return text(assignment.child_by_field_name("name"))
