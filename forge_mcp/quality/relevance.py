"""How well retrieval finds what a question is about: the scale of oracle relevance.

A rank is counted over names, as a question gives them: overloads of one function count as one,
and a file, which a question names by its path, is not held to be behind the definitions in it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from forge_mcp.retrieval import Retriever
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import SPLITS, RaftExample

_OVERLOAD = re.compile(r"`([\w.$]+)\(([^`]*)\)`")  # a name with the types of its parameters
RANK_SPAN = 12  # a rank is worth 1 − (rank − 1) / RANK_SPAN


def relevance(rank: int | None) -> float:
    """1 for the first rank, 0.75 for the fourth, 0 from the thirteenth on or without a rank."""
    return max(0.0, 1 - (rank - 1) / RANK_SPAN) if rank else 0.0


def split_retrievers(
    examples: Sequence[RaftExample], documents: Mapping[str, CodeBlock]
) -> dict[str, Retriever]:
    """One index a split, over the documents that its examples show or ask about."""
    retrievers: dict[str, Retriever] = {}
    for split in SPLITS:
        used = {
            block_id
            for example in examples
            if example.split == split
            for block_id in (*example.oracle_ids, *example.distractor_ids, example.fact.block)
        }
        blocks = [block for block_id, block in documents.items() if block_id in used]
        retrievers[split] = Retriever(blocks)
    return retrievers


class Ranks:
    """The ranks that an index gives to blocks, as the scale counts them."""

    def __init__(self, retriever: Retriever) -> None:
        self._rows: dict[str, int] = {}
        self._together: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row, block in enumerate(retriever.blocks):
            self._rows[block.id] = row
            self._together[(block.path, "")].append(row)
            self._together[(block.path, block.qualified_name)].append(row)

    def rank(self, retriever: Retriever, question: str, block: CodeBlock) -> int | None:
        """The 1-based rank of a block, or None where it has nothing to do with the question."""
        row = self._rows.get(block.id)
        if row is None:
            return None
        scores = retriever.scores(_OVERLOAD.sub(r"`\1` \2", question))
        own = scores[row]
        if own <= retriever.floor:
            return None
        name = "" if block.block_type == "module" else block.qualified_name
        beside = scores[self._together[(block.path, name)]]
        before = int((scores > own).sum()) - int((beside > own).sum())
        return before + 1


_RANKS: WeakKeyDictionary[Retriever, Ranks] = WeakKeyDictionary()


def rank_of(question: str, block: CodeBlock, retriever: Retriever) -> int | None:
    """The rank of what a question is about among the documents of an index."""
    ranks = _RANKS.get(retriever)
    if ranks is None:
        ranks = _RANKS[retriever] = Ranks(retriever)
    return ranks.rank(retriever, question, block)
