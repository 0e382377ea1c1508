"""Source text as CodeBLEU sees it: comments (and Python's docstrings) taken out, then parsed."""

from __future__ import annotations

import importlib
import re
from functools import cache

from tree_sitter import Language, Parser, Tree

from forge_mcp.errors import Unavailable

# The wheel of each grammar, and the function in it that gives the language.
GRAMMARS = {
    "python": ("tree-sitter-python", "language"),
    "javascript": ("tree-sitter-javascript", "language"),
    "typescript": ("tree-sitter-typescript", "language_typescript"),
    "tsx": ("tree-sitter-typescript", "language_tsx"),
    "go": ("tree-sitter-go", "language"),
    "java": ("tree-sitter-java", "language"),
    "rust": ("tree-sitter-rust", "language"),
    "c": ("tree-sitter-c", "language"),
    "cpp": ("tree-sitter-cpp", "language"),
}
_COMMENT_OR_STRING = re.compile(
    r"""
      (?P<comment> //[^\n]* | /\*.*?\*/ )
    | '(?:[^\\'] | \\.)*'
    | "(?:[^\\"] | \\.)*"
    """,
    re.VERBOSE | re.DOTALL,
)
_PYTHON_TOKEN = re.compile(
    r"""
      (?P<comment> \#[^\r\n]* )
    | (?P<string>
        (?i: b | u | f | r | br | rb | fr | rf )?
        (?: '''(?:[^\\]|\\.)*?''' | \"""(?:[^\\]|\\.)*?\"""
          | '(?!'')(?:[^\\'\n] | \\\r?\n | \\[^\n])*' | "(?!"")(?:[^\\"\n] | \\\r?\n | \\[^\n])*" )
      )
    | (?P<unfinished> (?i: b | u | f | r | br | rb | fr | rf )? (?: ''' | \""" ) )
    | (?P<newline> \r?\n )
    | (?P<joined> \\\r?\n )
    | (?P<space> [ \t\f]+ )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<other> \w+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_TAB = 8  # columns


@cache
def _parser(language: str) -> Parser:
    package, entry = GRAMMARS[language]
    try:
        module = importlib.import_module(package.replace("-", "_"))
        return Parser(Language(getattr(module, entry)()))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise Unavailable(
            f"The grammar for {language} cannot be loaded, so CodeBLEU cannot be computed.",
            cause=str(error),
            next_step=f"Install it: pip install -U {package} tree-sitter",
        ) from error


def parse(text: str, language: str) -> tuple[Tree, bytes]:
    """The syntax tree of a text without its comments, and the bytes that its nodes point into.

    Any text has a tree; what is no code in `language` is in nodes of type ERROR.

    Raises:
        Unavailable: the grammar is not installed.
    """
    source = without_comments(text, language).encode("utf-8", "replace")
    return _parser(language).parse(source), source


def without_comments(text: str, language: str) -> str:
    """The text without comments, docstrings and blank lines."""
    if language == "python":
        kept = _without_python_comments(text)
        if kept is None:  # as it is: of what is not even tokens, nothing is taken out
            return text
    else:
        kept = _COMMENT_OR_STRING.sub(lambda found: " " if found["comment"] else found[0], text)
    return "\n".join(line for line in kept.split("\n") if line.strip())


def _without_python_comments(text: str) -> str | None:
    """None where the text ends inside brackets or a string, or has an impossible indentation.

    Does what the `codebleu` package does with the tokens of Python 3.11's `tokenize`, whose tokens
    are others from 3.12 on: so the score does not depend on the Python that runs it. A string is
    taken for a docstring where it begins a line and follows an indentation or the end of a
    statement (not a comment, a blank line or the end of a block), and wherever it begins in the
    first column. White space becomes spaces, but for the first line of an indented block.
    """
    kept: list[str] = []
    indents, depth, column = [0], 0, 0
    line_start, fresh, follows = 0, True, "indent"
    for token in _PYTHON_TOKEN.finditer(text):
        kind, value = str(token.lastgroup), token[0]
        starts = fresh and kind not in ("space", "newline", "comment")
        if starts:  # a statement: is it further in, or out, than the one before?
            fresh = False
            if column > indents[-1]:
                indents.append(column)
                kept[-1] = text[line_start : token.start()]
                follows = "indent"
            while column < indents[-1]:
                if column not in indents:
                    return None
                indents.pop()
                follows = "dedent"
        if kind == "unfinished":
            return None
        if kind == "space":
            if fresh:
                column = _column(value)
            kept.append(" " * len(value))
            continue
        if kind in ("newline", "joined"):
            line_start, column = token.end(), 0
            if kind == "newline":
                kept.append(value)
                follows = "blank" if fresh or depth > 0 else "statement"
                fresh = depth == 0
            elif kept and not starts:  # what is before the backslash goes with it
                kept[-1] = kept[-1].rstrip(" ")
            continue
        if kind == "string":
            if token.start() > line_start and follows not in ("indent", "statement"):
                kept.append(value)
            line_start = value.rfind("\n") + 1 + token.start() if "\n" in value else line_start
        elif kind != "comment":
            kept.append(value)
            depth += (kind == "open") - (kind == "close")
        follows = kind
    return None if depth else "".join(kept)


def _column(space: str) -> int:
    """How far in a line begins: a tab goes to the next multiple of eight, a form feed back to 0."""
    column = 0
    for character in space:
        if character == "\f":
            column = 0
        else:
            column = (column // _TAB + 1) * _TAB if character == "\t" else column + 1
    return column
