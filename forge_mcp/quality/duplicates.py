"""Duplicates and near duplicates among texts.

Equal normalised texts first, then MinHash with banding to find candidates (128 permutations in
32 bands: recall 1.00 at a Jaccard similarity of 0.7 in our measurements), then the exact Jaccard
similarity of word 3-shingles decides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PERMUTATIONS = 128
BANDS = 32
SEED = 17


def shingles(text: str) -> frozenset[str]:
    """Word 3-shingles of a text, lower-cased; all its words as one where there are fewer."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def find_duplicates(texts: Sequence[str], threshold: float) -> dict[int, int]:
    """Which texts repeat an earlier one: {index: index of the earliest kept text it repeats}.

    Args:
        texts: in order of precedence; the first of a group is kept.
        threshold: Jaccard similarity from which two texts are one; 0.5 or more, as the settings
            demand, because below it the bands would miss pairs.
    """
    repeats: dict[int, int] = {}
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        kept = first.setdefault(" ".join(text.lower().split()), index)
        if kept != index:
            repeats[index] = kept
    unique = [index for index in range(len(texts)) if index not in repeats]
    if not unique:
        return repeats
    from rensa import RMinHash, RMinHashLSH

    sets = [shingles(texts[index]) for index in unique]
    # Sorted: a set's own order changes from process to process.
    hashes = RMinHash.from_token_sets([sorted(s) for s in sets], PERMUTATIONS, SEED)
    index_of_pairs = RMinHashLSH(threshold, PERMUTATIONS, BANDS)
    index_of_pairs.insert_many(hashes)
    for here, candidates in enumerate(index_of_pairs.query_all(hashes)):
        for there in sorted(candidates):
            if there >= here:
                break
            kept = unique[there]
            if kept not in repeats and _jaccard(sets[here], sets[there]) >= threshold:
                repeats[unique[here]] = kept
                break
    return repeats


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
