"""Python's own `ast`: every function and class, with its exact span and docstring."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise

from oracles.comparison import Definition

LINE_END = re.compile(r"\r\n|\r|\n")  # what Python's tokenizer counts as one
BOM = b"\xef\xbb\xbf"


def definitions(sources: Mapping[str, bytes]) -> tuple[list[Definition], list[str]]:
    """(definitions, paths that `ast` cannot parse) of some files.

    Args:
        sources: path → the file's bytes, which the offsets refer to.
    """
    found: list[Definition] = []
    unparsed = []
    for path, data in sources.items():
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.removeprefix(BOM).decode(encoding.removesuffix("-sig"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes
                tree = ast.parse(text)
        except (SyntaxError, ValueError, LookupError, RecursionError):
            unparsed.append(path)
            continue
        positions = _Positions(text, encoding.removesuffix("-sig"), data.startswith(BOM))
        found += [
            _definition(path, data, positions, node)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
    return found, unparsed


class _Positions:
    """`ast` counts columns in UTF-8; these are offsets into the file."""

    def __init__(self, text: str, encoding: str, marked: bool) -> None:
        self._encoding = encoding
        self._lines = LINE_END.sub("\n", text).split("\n")
        ends = [0, *(match.end() for match in LINE_END.finditer(text))]
        sizes = [len(text[a:b].encode(encoding)) for a, b in pairwise(ends)]
        self.starts = [len(BOM) if marked else 0]
        for size in sizes:
            self.starts.append(self.starts[-1] + size)

    def offset(self, line: int, column: int) -> int:
        if self._encoding != "utf-8":
            before = self._lines[line - 1].encode()[:column].decode()
            column = len(before.encode(self._encoding))
        return self.starts[line - 1] + column

    def line(self, offset: int) -> int:
        return bisect_right(self.starts, offset)


def _definition(
    path: str,
    data: bytes,
    positions: _Positions,
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
) -> Definition:
    start = positions.offset(node.lineno, node.col_offset)
    if node.decorator_list:  # `ast` has no position for the @ itself
        first = node.decorator_list[0]
        start = data.rindex(b"@", 0, positions.offset(first.lineno, first.col_offset))
    assert node.end_lineno is not None and node.end_col_offset is not None
    # A lone surrogate, legal in a literal, cannot be written to a UTF-8 file: it is escaped.
    docstring = (ast.get_docstring(node) or "").encode("utf-8", "backslashreplace").decode()
    return Definition(
        path=path,
        kind=type(node).__name__,
        names=(node.name,),
        line=positions.line(start),
        start=start,
        end=positions.offset(node.end_lineno, node.end_col_offset),
        end_line=node.end_lineno,
        docstring=docstring,
    )
