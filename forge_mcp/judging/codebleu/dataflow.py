"""Data-flow match: the share of the reference's data flow that the prediction has too.

Ren et al. 2020, section 3.3, after Guo et al. 2021 (GraphCodeBERT, section 3): every use of a name
is an edge to the places in the text from which its value comes ("comesFrom"), every assignment one
to what it is computed from ("computedFrom"). `walks.py` finds them. Names are then numbered in the
order in which they appear, so that a renaming changes nothing; equal edges are matched one to one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tree_sitter import Tree

from forge_mcp.judging.codebleu.walks import Edge, Incomplete, walk

NormalEdge = tuple[str, str, tuple[str, ...]]  # variable, relation, variables it comes from


def matches(
    prediction: tuple[Tree, bytes], reference: tuple[Tree, bytes], language: str
) -> tuple[int, int]:
    """How many of the reference's edges the prediction has too, and how many there are (>= 0)."""
    ours = Counter(normalised(edges_of(*prediction, language)))
    theirs = Counter(normalised(edges_of(*reference, language)))
    return (ours & theirs).total(), theirs.total()


def edges_of(tree: Tree, source: bytes, language: str) -> list[Edge]:
    """The data flow of a text: at most one edge a token, in the order of the text.

    Tokens that neither come from others nor are come from have none. Empty where a node that the
    walk needs is missing, which is so in some texts with errors.
    """
    try:
        edges = walk(tree, source, language)
    except Incomplete:
        return []
    connected = {edge.at for edge in edges if edge.origins}
    connected.update(origin for edge in edges for origin in edge.origins)
    tokens: dict[int, list[Edge]] = {}
    for edge in sorted(edges, key=lambda edge: edge.at):
        if edge.at in connected:
            tokens.setdefault(edge.at, []).append(edge)
    return [Edge.joined(group) for group in tokens.values()]


def normalised(edges: Sequence[Edge]) -> list[NormalEdge]:
    """The edges with every name replaced by a number, given in the order of appearance."""
    numbers: dict[str, str] = {}
    found: list[NormalEdge] = []
    for edge in edges:
        sources = tuple(numbers.setdefault(name, f"var_{len(numbers)}") for name in edge.sources)
        name = numbers.setdefault(edge.name, f"var_{len(numbers)}")
        found.append((name, edge.relation, sources))
    return found
