"""Whether blocks have anything to do with a question at all, and which ones it names.

BM25 ranks; its scores do not say whether the best block is any good. What does is how many of a
question's telling terms stand together in one block (benchmarks/relevance.py measures that on
questions that developers ask and on ones that no repository answers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from forge_mcp.retrieval.bm25 import block_terms
from forge_mcp.retrieval.text import terms
from forge_mcp.schemas.code_blocks import CodeBlock

# Words of questions that say nothing about their subject, beside BM25's own stop words.
_ASKING = (
    "happen explain tell me my i you your we our us many much why would could should when which "
    "show give get got there used use using work way best any some all each this that thing called "
    "did done mean become long far deep tall safe "
    # With which one asks about any definition: they tell nothing about which.
    "parameter argument take accept return raise function class method define implement default "
    "value"
)
_TICKED = re.compile(r"`([^`\s]+)`")
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def share_of_terms(question: str, blocks: Iterable[CodeBlock]) -> float:
    """The largest share (0 to 1) of a question's telling terms that stands in one of the blocks.

    1 for a question without a telling term: nothing speaks against it.
    """
    asked = frozenset(terms(question)) - _asking()
    if not asked:
        return 1.0
    return max((len(asked.intersection(block_terms(b))) / len(asked) for b in blocks), default=0.0)


def names_in(question: str) -> list[str]:
    """The names of code that a question mentions, in order: in back-ticks, or written like code.

    Like code are names with an underscore, a dot or a capital inside: `read_rows`, `Pool.close`,
    `ConnectionPool`. A plain word counts only between back-ticks.
    """
    names = []
    for ticked in _TICKED.findall(question):
        names += _DOTTED.findall(ticked.partition("(")[0])[:1]
    for word in _DOTTED.findall(_TICKED.sub(" ", question)):
        camel = any(c.isupper() for c in word[1:]) and not word.isupper()
        if camel or "." in word or "_" in word:
            names.append(word)
    return list(dict.fromkeys(names))


class Definitions:
    """The blocks of a corpus by what they are called.

    `Pool.close` is found by its qualified name, by any longer dotted name that ends in it
    (`http.Pool.close`), and by `close`.
    """

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        self._named: dict[str, list[CodeBlock]] = {}
        for block in blocks:
            if block.block_type != "module":
                for name in {block.qualified_name, block.name}:
                    self._named.setdefault(name, []).append(block)

    def of(self, name: str) -> list[CodeBlock]:
        """The definitions that a name means: those of its longest known end."""
        parts = name.split(".")
        for first in range(len(parts)):
            found = self._named.get(".".join(parts[first:]))
            if found:
                return found
        return []


@cache
def _asking() -> frozenset[str]:
    return frozenset(terms(_ASKING))
