"""Syntax match: the share of the reference's sub-trees that the prediction has too.

Ren et al. 2020, section 3.2. A sub-tree is a node that has children, or the root, with everything
below it: the types of the named nodes, the fields that they fill, and nothing of the names and
literals in them. That is what tree-sitter's S-expressions show, and two sub-trees are equal where
their S-expressions are. Each is given a number here instead: the S-expressions of all sub-trees
grow with the square of the depth, and tree-sitter overflows the stack when it writes that of tens
of thousands of brackets in each other.
"""

from __future__ import annotations

from tree_sitter import Tree, TreeCursor

# The S-expression of a node in which something is wrong says what no node does: which tokens that
# have no name are missing. It is written up to this many levels, which every thread's stack holds.
DEEPEST_ERROR = 500

Below = list[tuple[str | None, int]]  # the named nodes in a node: their fields and numbers
Shape = tuple[str, tuple[tuple[str | None, int], ...]]  # what a node is, and what is below it


def matches(prediction: Tree, reference: Tree) -> tuple[int, int]:
    """How many of the reference's sub-trees occur in the prediction, and how many it has (>= 1)."""
    numbers: dict[Shape, int] = {}
    ours = set(sub_trees(prediction, numbers))
    theirs = sub_trees(reference, numbers)
    return sum(number in ours for number in theirs), len(theirs)


def sub_trees(tree: Tree, numbers: dict[Shape, int]) -> list[int]:
    """The number of every sub-tree of a tree, the root's last.

    Args:
        tree: the tree.
        numbers: of the shapes met so far; new ones are added. Sub-trees of several trees are equal
            where their numbers are, if those were given the same `numbers`.
    """
    found: list[int] = []
    open_nodes = [_Open()]  # the nodes on the way from the root to the cursor, after one above it
    cursor = tree.walk()
    while True:
        while cursor.goto_first_child():
            open_nodes.append(_Open())
        node = _Open()
        while True:
            number = _number(cursor, node, numbers)
            if node.height or len(open_nodes) == 1:
                found.append(number)
            if len(open_nodes) == 1:
                return found
            open_nodes[-1].add(cursor, number, node)
            if cursor.goto_next_sibling():
                break
            cursor.goto_parent()
            node = open_nodes.pop()


class _Open:
    """A node of which some children were met."""

    __slots__ = ("below", "height")

    def __init__(self) -> None:
        self.below: Below = []
        self.height = 0

    def add(self, cursor: TreeCursor, number: int, child: _Open) -> None:
        """The child that the cursor is at."""
        node = cursor.node
        if node is not None and node.is_named:  # those without a name have no named ones in them
            self.below.append((cursor.field_name, number))
        self.height = max(self.height, child.height + 1)


def _number(cursor: TreeCursor, met: _Open, numbers: dict[Shape, int]) -> int:
    node = cursor.node
    assert node is not None  # noqa: S101 - a cursor is always at one
    if node.has_error and met.height <= DEEPEST_ERROR:
        return numbers.setdefault((str(node), ()), len(numbers))
    return numbers.setdefault((node.type, tuple(met.below)), len(numbers))
