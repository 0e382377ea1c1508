"""Splits by file, and what is stable about chance: every draw comes from a hash of its seed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TypeVar

from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Split

Item = TypeVar("Item")
MIN_FILES = 3  # with fewer files everything is trained on


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
        for path in free[1:]:  # at least one file is trained on
            if sizes[path] <= room:
                splits[path] = split
                room -= sizes[path]
        if share > 0 and split not in splits.values() and len(free) > 1:
            splits[min(free, key=lambda path: (sizes[path], order.index(path)))] = split
    return splits


def shared_content(blocks: Sequence[CodeBlock], splits: dict[str, Split]) -> set[str]:
    """Ids of training blocks whose very code also stands in a held-out file: they would leak."""
    places: dict[str, set[Split]] = defaultdict(set)
    for block in blocks:
        places[block.content_hash].add(splits[block.path])
    return {
        block.id
        for block in blocks
        if splits[block.path] == "train" and len(places[block.content_hash]) > 1
    } | {
        block.id  # between the two held-out splits, test keeps it
        for block in blocks
        if splits[block.path] == "valid" and "test" in places[block.content_hash]
    }
