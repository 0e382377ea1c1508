"""BM25 over the stemmed sub-tokens of identifiers: the retrieval that needs no download.

A block is indexed as the terms of its source, documentation, path and names; the names count
several times. On Django (benchmarks/retrieval.py) this finds at an MRR@10 of .51 what BM25 over
plain words finds at .26.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from forge_mcp.retrieval.ranking import Ranking
from forge_mcp.retrieval.text import terms
from forge_mcp.schemas.code_blocks import CodeBlock

if TYPE_CHECKING:
    from forge_mcp.retrieval.ranking import Scores

# Chosen on Django, guava, gin and MapLibre (all four gain over k1 = 1.5, b = 0.75): code repeats
# its words more than prose does, and long definitions say a little of everything.
K1, B = 2.0, 0.9
NAME_WEIGHT = 3  # how often names are repeated in a block's text
QUALIFIED_BOOST = 1.0  # of the query's best BM25 score, for a block whose full name is given
NAME_BOOST = 0.5
WORD_BOOST = 0.2  # for a name that might also be an ordinary word of the query
PATH_BOOST = 0.5

_MENTION = re.compile(r"`([^`\s]+)`|([\w./-]*\w)")


def block_terms(block: CodeBlock) -> list[str]:
    """The terms under which a block is indexed, its names weighted by repetition."""
    names = terms(f"{block.parent or ''} {block.qualified_name} {block.name}")
    text = f"{block.path} {block.docstring} {block.source_code}"
    return names * NAME_WEIGHT + terms(text)


class Retriever(Ranking):
    """A BM25 index (Lucene's variant) over blocks, with exact-name boosts.

    A block that shares nothing with a query has the score 0 and is not found.
    """

    floor = 0.0

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        super().__init__(blocks)
        self._by_name = _rows_by([block.name for block in self.blocks])
        self._by_qualified_name = _rows_by([block.qualified_name for block in self.blocks])
        self._by_path = _rows_by([block.path for block in self.blocks])
        self._index = _bm25_index([block_terms(block) for block in self.blocks])

    def score_rows(self, queries: Sequence[str]) -> Iterator[Scores]:
        """For each query the score of every block: float64 of shape (blocks,)."""
        import numpy as np

        vocabulary = self._index.vocab_dict if self._index else {}
        for query in queries:
            known = [vocabulary[term] for term in terms(query) if term in vocabulary]
            if known:
                scores = self._index.get_scores_from_ids(known).astype(np.float64)
            else:
                scores = np.zeros(len(self.blocks))
            best = float(scores.max(initial=0.0)) or 1.0
            yield scores + best * self._boosts(query)

    def _boosts(self, query: str) -> Any:
        """The exact-name boost of every block: that of its best mention, and of its path."""
        import numpy as np

        named, placed = np.zeros(len(self.blocks)), np.zeros(len(self.blocks))
        for ticked, bare in set(_MENTION.findall(query)):
            word = ticked or bare
            code_like = bool(ticked) or not word.isalpha() or not (word.islower() or word.istitle())
            for rows, boost in (
                (self._by_qualified_name.get(word), QUALIFIED_BOOST),
                (self._by_name.get(word), NAME_BOOST),
            ):
                if rows is not None:
                    named[rows] = np.maximum(named[rows], boost if code_like else WORD_BOOST)
            if (rows := self._by_path.get(word)) is not None:
                placed[rows] = PATH_BOOST
        return named + placed


def _rows_by(keys: Sequence[str]) -> dict[str, Any]:
    """The rows of each key: int arrays."""
    import numpy as np

    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return {key: np.array(found) for key, found in rows.items()}


def _bm25_index(corpus: list[list[str]]) -> Any:
    """A bm25s index, or None where there is not one term to index."""
    if not any(corpus):
        return None
    import bm25s

    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in doc] for doc in corpus]
    index = bm25s.BM25(k1=K1, b=B)
    index.index((ids, vocabulary), show_progress=False)
    return index
