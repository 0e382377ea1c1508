"""BM25 over the sub-tokens of identifiers: the retrieval that needs no download.

A block is indexed as the sub-tokens of its source, docstring, path and names; the names count
several times. Splitting identifiers and adding path and names doubled the mean reciprocal rank
of plain BM25 over words in our measurements on a large Python repository (.174 to .412).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from forge_mcp.schemas.code_blocks import CodeBlock

NAME_WEIGHT = 3  # how often names and path are repeated in a block's text
QUALIFIED_BOOST = 1.0  # of the query's best BM25 score, for a block whose full name is given
NAME_BOOST = 0.5
WORD_BOOST = 0.2  # for a name that might also be an ordinary word of the query
PATH_BOOST = 0.5

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9]*|\d+")
_SUBTOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MENTION = re.compile(r"`([^`\s]+)`|([\w./-]*\w)")


def subtokens(text: str) -> list[str]:
    """Lower-cased parts of identifiers: 'getHTTPResponse_v2' → get, http, response, v, 2."""
    return [part.lower() for word in _IDENTIFIER.findall(text) for part in _SUBTOKEN.findall(word)]


def block_tokens(block: CodeBlock) -> list[str]:
    """The sub-tokens under which a block is indexed, names and path weighted by repetition."""
    names = subtokens(f"{block.path} {block.parent or ''} {block.qualified_name} {block.name}")
    return names * NAME_WEIGHT + subtokens(block.docstring) + subtokens(block.source_code)


class Retriever:
    """A BM25 index (k1 = 1.5, b = 0.75, Lucene's variant) over blocks, with exact-name boosts.

    Deterministic: equal scores are ordered as the blocks were given.
    """

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        self.blocks = list(blocks)
        self._rows = {block.id: row for row, block in enumerate(self.blocks)}
        self._by_name: dict[str, list[int]] = {}
        self._by_qualified_name: dict[str, list[int]] = {}
        self._by_path: dict[str, list[int]] = {}
        for row, block in enumerate(self.blocks):
            self._by_name.setdefault(block.name, []).append(row)
            self._by_qualified_name.setdefault(block.qualified_name, []).append(row)
            self._by_path.setdefault(block.path, []).append(row)
        self._index = _bm25_index([block_tokens(block) for block in self.blocks])

    def search(self, query: str, k: int) -> list[tuple[CodeBlock, float]]:
        """The `k` blocks nearest to `query`, best first, with their scores.

        Scores are comparable within one query only. Blocks that share nothing with the query
        (score 0) are left out, so fewer than `k` may come back.
        """
        import numpy as np

        if not self.blocks or k <= 0:
            return []
        scores = self.scores(query)
        least = np.partition(scores, -k)[-k] if k < len(scores) else scores.min()
        rows = np.flatnonzero((scores >= least) & (scores > 0))
        order = rows[np.lexsort((rows, -scores[rows]))][:k]
        return [(self.blocks[row], float(scores[row])) for row in order]

    def rank(self, query: str, block_id: str) -> int | None:
        """The 1-based rank of a block for `query`, or None where it shares nothing with it."""
        row = self._rows.get(block_id)
        if row is None:
            return None
        scores = self.scores(query)
        own = scores[row]
        if own <= 0:
            return None
        return int((scores > own).sum() + (scores[:row] == own).sum()) + 1

    def scores(self, query: str) -> Any:
        """The score of every block for `query`: a float array of shape (blocks,)."""
        import numpy as np

        known = [t for t in subtokens(query) if self._index and t in self._index.vocab_dict]
        if known:
            scores = np.asarray(self._index.get_scores(known), dtype=np.float64)
        else:
            scores = np.zeros(len(self.blocks))
        best = float(scores.max(initial=0.0)) or 1.0
        for row, boost in self._boosts(query).items():
            scores[row] += boost * best
        return scores

    def _boosts(self, query: str) -> dict[int, float]:
        """The exact-name boosts of a query, by row; the largest counts, a path adds to it."""
        named: dict[int, float] = {}
        placed: dict[int, float] = {}
        for ticked, bare in _MENTION.findall(query):
            word = ticked or bare
            code_like = bool(ticked) or not word.isalpha() or not (word.islower() or word.istitle())
            for row in self._by_qualified_name.get(word, ()):
                named[row] = max(named.get(row, 0.0), QUALIFIED_BOOST if code_like else WORD_BOOST)
            for row in self._by_name.get(word, ()):
                named[row] = max(named.get(row, 0.0), NAME_BOOST if code_like else WORD_BOOST)
            for row in self._by_path.get(word, ()):
                placed[row] = PATH_BOOST
        return {row: named.get(row, 0.0) + placed.get(row, 0.0) for row in named | placed}


def _bm25_index(corpus: list[list[str]]) -> Any:
    """A bm25s index, or None where there is not one token to index."""
    if not any(corpus):
        return None
    import bm25s

    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(token, len(vocabulary)) for token in doc] for doc in corpus]
    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index((ids, vocabulary), show_progress=False)
    return index
