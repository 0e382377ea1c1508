"""Parsing what a grammar does not know: it is changed in a copy that only the parser sees."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import itemgetter

from tree_sitter import Node, Parser, Tree


def parse_repaired(parser: Parser, source: bytes, copies: Iterable[bytes]) -> Tree:
    """Parse copies of a file in turn, until the grammar finds no error, and take the best tree.

    Args:
        parser: of the language.
        source: UTF-8 bytes.
        copies: the source itself, and the source changed where the grammar is known to fail. All
            have its length and its line breaks, so that positions stay true.

    Returns:
        The tree with the fewest errors. The texts of its nodes are those of `source`.

    Raises:
        ValueError: there is no copy.
    """
    trees: list[tuple[int, Tree]] = []
    tried: list[bytes] = []
    for copy in copies:
        if copy in tried:
            continue
        tried.append(copy)
        buffer = bytearray(copy)
        tree = parser.parse(source if copy == source else buffer)
        buffer[:] = source  # a node's text is looked up in the buffer when it is asked for
        trees.append((_errors(tree.root_node), tree))
        if not trees[-1][0]:
            break
    if not trees:
        raise ValueError("The grammar cannot parse the file in any form.")
    return min(trees, key=itemgetter(0))[1]


def blank(found: re.Match[bytes]) -> bytes:
    """What a pattern finds as white space of its length, with its line breaks."""
    return re.sub(rb"[^\r\n]", b" ", found[0])


def _errors(node: Node) -> int:
    """Bytes in ERROR nodes, and one for each node that is missing."""
    errors, nodes = 0, [node]
    while nodes:
        node = nodes.pop()
        if node.is_error or node.is_missing:
            errors += max(node.end_byte - node.start_byte, 1)
        elif node.has_error:
            nodes += node.children
    return errors
