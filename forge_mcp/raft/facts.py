"""Facts of a corpus: what is derived, and from what.

kinds.py        the closed set, and the text of a value
derivation.py   the facts that one block gives, from what mining noted and from its text
related.py      the facts that several blocks give together: callees, bases, callers, tests
scan.py         code read as text
verify.py       every fact derived a second time, from a parse of its own
"""

from forge_mcp.raft.derivation import derive, derive_kind, first_sentence
from forge_mcp.raft.kinds import (
    KINDS,
    MAX_CODE,
    MAX_VALUE,
    RELATED_KINDS,
    fact_value,
    location,
    make_fact,
    value_items,
)
from forge_mcp.raft.related import CorpusIndex

__all__ = [
    "KINDS",
    "MAX_CODE",
    "MAX_VALUE",
    "RELATED_KINDS",
    "CorpusIndex",
    "derive",
    "derive_kind",
    "fact_value",
    "first_sentence",
    "location",
    "make_fact",
    "value_items",
]
