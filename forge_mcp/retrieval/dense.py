"""Retrieval by the cosine of sentence vectors, and together with BM25."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from forge_mcp.retrieval.bm25 import Retriever
from forge_mcp.retrieval.ranking import Ranking
from forge_mcp.schemas.code_blocks import CodeBlock

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Encoder, Vectors
    from forge_mcp.retrieval.ranking import Scores

QUERIES_AT_ONCE = 256
BM25_WEIGHT, DENSE_WEIGHT = 0.3, 0.7  # of z-scores; measured on Django, benchmarks/retrieval.py


class DenseRetriever(Ranking):
    """Blocks by the cosine of their vectors and the query's; compared exactly.

    Args:
        blocks: what is searched.
        vectors: theirs, in their order: float32 of shape (blocks, dimensions), each of length 1.
        encoder: makes the vectors of queries.
    """

    def __init__(self, blocks: Sequence[CodeBlock], vectors: Vectors, encoder: Encoder) -> None:
        super().__init__(blocks)
        self._vectors = vectors
        self._encoder = encoder

    def score_rows(self, queries: Sequence[str]) -> Iterator[Scores]:
        """For each query the cosine with every block: float64 of shape (blocks,)."""
        import numpy as np

        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = self._encoder.encode(queries[start : start + QUERIES_AT_ONCE], "query")
            for vector in part:
                yield (self._vectors @ vector).astype(np.float64)


class HybridRetriever(Ranking):
    """0.3 z(BM25) + 0.7 z(cosine), where z are the scores of all blocks in standard deviations.

    Args:
        sparse, dense: over the same blocks in the same order.
    """

    def __init__(self, sparse: Retriever, dense: DenseRetriever) -> None:
        super().__init__(sparse.blocks)
        self._sparse = sparse
        self._dense = dense

    def score_rows(self, queries: Sequence[str]) -> Iterator[Scores]:
        """For each query the weighted sum of both: float64 of shape (blocks,)."""
        both = zip(self._sparse.score_rows(queries), self._dense.score_rows(queries), strict=True)
        for sparse, dense in both:
            yield BM25_WEIGHT * _z(sparse) + DENSE_WEIGHT * _z(dense)


def _z(scores: Any) -> Any:
    """Scores in standard deviations from their mean; zeros where all are equal."""
    deviation = scores.std()
    return (scores - scores.mean()) / deviation if deviation > 0 else scores * 0.0
