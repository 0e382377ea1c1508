"""Splits by file, and what is stable about chance: every draw comes from a hash of its seed."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Split

Item = TypeVar("Item")
MIN_FILES = 3  # with fewer files everything is trained on
NEAR_COPY = 0.8  # Jaccard similarity of 3-shingles of two blocks that may leak into each other
NEARLY_EQUAL = 0.9  # and of two that surely would: 1 - (1 - NEAR_COPY) / 2
PRECEDENCE: tuple[Split, ...] = ("test", "valid", "train")  # who keeps what two splits hold


def draw(*parts: object) -> int:
    """A 64-bit number that depends on nothing but `parts`; the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def shuffled(items: Sequence[Item], *seed: object) -> list[Item]:
    """The items in an order that depends on nothing but `seed` and their number."""
    order = sorted(range(len(items)), key=lambda place: draw(*seed, place))
    return [items[place] for place in order]


def assign_splits(
    blocks: Sequence[CodeBlock], valid_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """The split of every file.

    Files go in an order drawn from the seed into test and valid as long as they fit into the
    split's share of the blocks; what is left is trained on. Where there are `MIN_FILES` files or
    more, a held-out split with a share above zero has at least one file: the smallest left.
    """
    sizes = Counter(block.path for block in blocks)
    order = sorted(sizes, key=lambda path: (draw(seed, "split", path), path))
    splits: dict[str, Split] = dict.fromkeys(sorted(sizes), "train")
    if len(sizes) < MIN_FILES:
        return splits
    shares: tuple[tuple[Split, float], ...] = (("test", test_share), ("valid", valid_share))
    for split, share in shares:
        room = share * len(blocks)
        free = [path for path in order if splits[path] == "train"]
        kept = 1 + (split == "test" and valid_share > 0)  # a file to train on, one for valid
        spare = len(free) - kept
        for path in free[1:]:
            if sizes[path] <= room and spare > 0:
                splits[path] = split
                room -= sizes[path]
                spare -= 1
        if share > 0 and split not in splits.values() and len(free) > 1:
            splits[min(free, key=lambda path: (sizes[path], order.index(path)))] = split
    return splits


def follow(splits: Mapping[str, Split], uses: Iterable[tuple[str, str]]) -> dict[str, Split]:
    """The splits of further files, each with most of the files that it is used with.

    Args:
        splits: of the files that are assigned.
        uses: (path of a further file, path of the assigned file it is used with).
    """
    votes: dict[str, Counter[Split]] = defaultdict(Counter)
    for path, used in uses:
        if path not in splits:
            votes[path][splits[used]] += 1
    order = {split: place for place, split in enumerate(reversed(PRECEDENCE))}
    return {
        path: min(found, key=lambda split: (-found[split], order[split]))
        for path, found in sorted(votes.items())
    }


def leaking(
    blocks: Sequence[CodeBlock], splits: Mapping[str, Split], families: Sequence[int]
) -> set[str]:
    """Ids of blocks whose code, or a near copy of it, stands in a split that keeps it instead.

    The split with most of a family of copies keeps it, so that least is lost; of equal ones test
    keeps before valid and valid before train.

    Args:
        blocks: of all splits.
        splits: of their files.
        families: of the blocks, as `near_copies` tells them.
    """
    held_by: dict[int, list[CodeBlock]] = defaultdict(list)
    for block, family in zip(blocks, families, strict=True):
        held_by[family].append(block)
    lost: set[str] = set()
    for members in held_by.values():
        held = Counter(splits[block.path] for block in members)
        keeper = min(held, key=lambda split: (-held[split], PRECEDENCE.index(split)))
        lost.update(block.id for block in members if splits[block.path] != keeper)
    return lost


def shingles(source: str) -> frozenset[int]:
    """Hashes of the 3-shingles of a source's tokens: words and single signs."""
    words = re.findall(r"\w+|[^\w\s]", source)
    return frozenset(_hashed(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _hashed(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=6).digest(), "big")


def near_copies(blocks: Sequence[CodeBlock]) -> list[int]:
    """The family of every block: blocks with a chain of near copies between them have the same.

    Blocks whose 3-shingles have a Jaccard similarity of `NEARLY_EQUAL` are surely of one family,
    and blocks of a family have a chain in which neighbours reach `NEAR_COPY`. By prefix filtering
    (Bayardo et al. 2007): two sets that are so near share one of their rarest shingles, and only
    blocks that share one are compared. A block that is nearly equal to an earlier one is not
    looked up again; what is nearly equal to it reaches `NEAR_COPY` with that one (the Jaccard
    distance is a metric), so ten thousand copies cost ten thousand comparisons.
    """
    sets = [shingles(block.source_code) for block in blocks]
    frequency = Counter(shingle for found in sets for shingle in found)
    holders: dict[int, list[int]] = defaultdict(list)
    parents = list(range(len(blocks)))

    def family(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    # By size: a block is compared with smaller ones only, which bounds how many there are.
    for place in sorted(range(len(blocks)), key=lambda at: (len(sets[at]), at)):
        own = sets[place]
        prefix = len(own) - math.ceil(NEAR_COPY * len(own)) + 1
        rarest = sorted(own, key=lambda shingle: (frequency[shingle], shingle))[:prefix]
        nearest = 0.0
        for other in sorted({other for shingle in rarest for other in holders[shingle]}):
            common = len(own & sets[other])
            likeness = common / (len(own) + len(sets[other]) - common)
            if likeness >= NEAR_COPY:
                parents[family(place)] = family(other)
            nearest = max(nearest, likeness)
        if nearest < NEARLY_EQUAL:
            for shingle in rarest:
                holders[shingle].append(place)
    return [family(place) for place in range(len(blocks))]
