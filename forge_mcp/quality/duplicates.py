"""Duplicates and near duplicates among texts.

Equal normalised texts first, then MinHash with banding to find candidates, then the exact Jaccard
similarity of word 3-shingles decides. Of 128 permutations in b bands a pair of similarity s becomes
a candidate with probability 1 − (1 − s^(128/b))^b: the fewest bands are taken that find 99.9% of
the pairs at the threshold, because every candidate costs a comparison.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

PERMUTATIONS = 128
RECALL = 0.999
SEED = 17
FEW = 32  # so many texts are compared each with each


def normalised(text: str) -> str:
    """A text without differences that do not matter: white space, and the case of its prose.

    In backticks case matters: `append(Object)` and `append(object)` are two functions.
    """
    parts = text.split("`")
    parts[::2] = [part.lower() for part in parts[::2]]
    return " ".join("`".join(parts).split())


def shingles(text: str) -> frozenset[str]:
    """Word 3-shingles of a normalised text; all its words as one where there are fewer.

    Brackets count as words: `f(long[])` and `f(long)` are two functions.
    """
    words = re.findall(r"\w+|[][<>*&]", normalised(text))
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def bands(threshold: float) -> int:
    """The fewest bands with which `RECALL` of the pairs at a similarity become candidates."""
    for number in (8, 16, 32):
        if 1 - (1 - threshold ** (PERMUTATIONS // number)) ** number >= RECALL:
            return number
    return 64


def find_duplicates(
    texts: Sequence[str], threshold: float, topics: Sequence[Hashable] | None = None
) -> dict[int, int]:
    """Which texts repeat an earlier one: {index: index of the earliest kept text it repeats}.

    Args:
        texts: in order of precedence; the first of a group is kept.
        threshold: Jaccard similarity from which two texts are one; 0.5 or more, as the settings
            demand, because below it the bands would miss pairs.
        topics: of the texts; two that are not equal are one only within a topic.
    """
    repeats: dict[int, int] = {}
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        kept = first.setdefault(normalised(text), index)
        if kept != index:
            repeats[index] = kept
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(texts)):
        if index not in repeats:
            groups[topics[index] if topics else None].append(index)
    for group in groups.values():
        if len(group) > 1:
            sets = [shingles(texts[index]) for index in group]
            repeats.update({group[a]: group[b] for a, b in _near(sets, threshold).items()})
    return repeats


def _near(sets: Sequence[frozenset[str]], threshold: float) -> dict[int, int]:
    """The same among sets of shingles: {index: index of the earliest kept set it repeats}."""
    repeats: dict[int, int] = {}
    candidates = _candidates(sets, threshold) if len(sets) > FEW else None
    for here in range(len(sets)):
        for there in range(here) if candidates is None else sorted(candidates[here]):
            if there >= here:
                break
            if there not in repeats and _jaccard(sets[here], sets[there]) >= threshold:
                repeats[here] = there
                break
    return repeats


def _candidates(sets: Sequence[frozenset[str]], threshold: float) -> list[list[int]]:
    """For every set the indices of those that may be as similar, itself among them."""
    from rensa import RMinHash, RMinHashLSH

    # Sorted: a set's own order changes from process to process.
    hashes = RMinHash.from_token_sets([sorted(s) for s in sets], PERMUTATIONS, SEED)
    index = RMinHashLSH(threshold, PERMUTATIONS, bands(threshold))
    index.insert_many(hashes)
    found: list[list[int]] = index.query_all(hashes)
    return found


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
