"""What every kind of retrieval gives: the blocks nearest to a query, and a block's rank.

A kind of retrieval only has to score all blocks for a query (`score_rows`). Equal scores are
ordered as the blocks were given, so that results are the same on every machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from forge_mcp.schemas.code_blocks import CodeBlock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]


class Ranking(ABC):
    """Blocks that can be ranked for a query. Scores are comparable within one query only."""

    # A block whose score is not above this has nothing to do with the query.
    floor: float = float("-inf")

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        self.blocks = list(blocks)
        self._rows = {block.id: row for row, block in enumerate(self.blocks)}

    @abstractmethod
    def score_rows(self, queries: Sequence[str]) -> Iterator[Scores]:
        """For each query the score of every block: float64 of shape (blocks,)."""

    def scores(self, query: str) -> Scores:
        """The score of every block for `query`: float64 of shape (blocks,)."""
        return next(self.score_rows([query]))

    def search(self, query: str, k: int) -> list[tuple[CodeBlock, float]]:
        """The `k` blocks nearest to `query`, best first, with their scores.

        Blocks that have nothing to do with it are left out: fewer than `k` may come back.
        """
        return self.search_many([query], k)[0]

    def search_many(self, queries: Sequence[str], k: int) -> list[list[tuple[CodeBlock, float]]]:
        """`search` for many queries."""
        if not self.blocks or k <= 0:
            return [[] for _ in queries]
        return [self._best(scores, k) for scores in self.score_rows(queries)]

    def rank(self, query: str, block_id: str) -> int | None:
        """The 1-based rank of a block for `query`, or None where it has nothing to do with it."""
        return self.ranks([query], [block_id])[0]

    def ranks(self, queries: Sequence[str], block_ids: Sequence[str]) -> list[int | None]:
        """`rank` for pairs of a query and a block. Pairs of one query are best given in a row.

        Raises:
            ValueError: not as many blocks as queries.
        """
        found: list[int | None] = []
        distinct = [q for at, q in enumerate(queries) if at == 0 or q != queries[at - 1]]
        rows = self.score_rows(distinct)
        last: str | None = None
        for query, block_id in zip(queries, block_ids, strict=True):
            if query != last:
                scores, last = next(rows), query
            found.append(self._rank(scores, self._rows.get(block_id)))
        return found

    def _rank(self, scores: Scores, row: int | None) -> int | None:
        if row is None or scores[row] <= self.floor:
            return None
        own = scores[row]
        return int((scores > own).sum() + (scores[:row] == own).sum()) + 1

    def _best(self, scores: Scores, k: int) -> list[tuple[CodeBlock, float]]:
        import numpy as np

        least = np.partition(scores, -k)[-k] if k < len(scores) else scores.min()
        rows = np.flatnonzero((scores >= least) & (scores > self.floor))
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(self.blocks[row], float(scores[row])) for row in order]
