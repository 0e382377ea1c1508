"""Which documents stand beside a question: oracles, distractors, and their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest

from forge_mcp.raft.splits import draw, shuffled
from forge_mcp.retrieval import Retriever, subtokens
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import RaftExample

RETRIEVED = 12  # candidates that retrieval adds
MAX_SIMILARITY = 0.3  # of a distractor and an oracle; a nearer copy might answer too
TOTAL_DOCUMENTS = 2.5  # all documents of an example, in times max_document_chars


@lru_cache(maxsize=16384)
def _shingles(source: str) -> frozenset[tuple[str, ...]]:
    words = subtokens(source)
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def similarity(one: CodeBlock, other: CodeBlock) -> float:
    """Jaccard similarity of the 3-shingles of two blocks' sub-tokens, in 0-1."""
    a, b = _shingles(one.source_code), _shingles(other.source_code)
    return len(a & b) / len(a | b)


def overlap(one: CodeBlock, other: CodeBlock) -> bool:
    """Whether two blocks share code of one file, as a class and its method do."""
    return (
        one.path == other.path
        and one.start_byte < other.end_byte
        and other.start_byte < one.end_byte
    )


class Pool:
    """The documents of one split, and how distractors are found among them."""

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        self.blocks = list(blocks)
        self.retriever = Retriever(self.blocks)
        self._by_name: dict[str, list[CodeBlock]] = defaultdict(list)
        self._by_parent: dict[tuple[str, str | None], list[CodeBlock]] = defaultdict(list)
        self._by_path: dict[str, list[CodeBlock]] = defaultdict(list)
        self._near: tuple[str, list[CodeBlock]] = ("", [])  # of the block asked last
        for block in self.blocks:
            self._by_name[block.name].append(block)
            self._by_parent[(block.path, block.parent)].append(block)
            self._by_path[block.path].append(block)

    def candidates(self, block: CodeBlock, seed: int) -> Iterator[CodeBlock]:
        """Hard documents first: same name, then siblings and retrieval hits by turns."""
        yield from shuffled(self._by_name[block.name], seed, "named", block.id)
        near = self._retrieved(block)
        siblings = self._by_parent[(block.path, block.parent)] if block.parent else []
        siblings = siblings if len(siblings) > 1 else self._by_path[block.path]
        siblings = shuffled(siblings, seed, "siblings", block.id)[:RETRIEVED]
        for one, other in zip_longest(near, siblings):
            if one is not None:
                yield one
            if other is not None:
                yield other
        for number in range(RETRIEVED):
            yield self.blocks[draw(seed, "any", block.id, number) % len(self.blocks)]

    def _retrieved(self, block: CodeBlock) -> list[CodeBlock]:
        if self._near[0] != block.id:
            hits = self.retriever.search(f"{block.qualified_name} {block.signature}", RETRIEVED)
            self._near = (block.id, [hit for hit, _ in hits])
        return self._near[1]


def retrieve_oracle_and_distractors(
    pool: Pool,
    oracles: Sequence[CodeBlock],
    count: int,
    *,
    seed: int,
    answers: Callable[[CodeBlock], bool],
    room: float,
    apart: Sequence[CodeBlock] = (),
) -> tuple[list[CodeBlock], list[CodeBlock]]:
    """The oracles, and up to `count` distractors of their split.

    A distractor is never an oracle, shares no code with an oracle or another distractor, is no
    near copy of an oracle (`MAX_SIMILARITY`), and does not answer.

    Args:
        pool: the documents of the oracles' split.
        oracles: the blocks that the answer rests on, the one that is asked about first.
        count: wanted distractors; fewer where the pool or the room has no more.
        seed: equal seeds give equal distractors.
        answers: whether a block also answers the question.
        room: characters of source code that the distractors may have together.
        apart: further blocks to which a distractor must be no nearer than to an oracle.
    """
    kept_from = [*oracles, *apart]
    taken: list[CodeBlock] = []
    if count < 1:
        return list(oracles), []
    for candidate in pool.candidates(oracles[0], seed):
        if len(taken) == count:
            break
        if len(candidate.source_code) > room or any(overlap(candidate, t) for t in taken):
            continue
        if any(
            candidate.id == o.id
            or overlap(candidate, o)
            or similarity(candidate, o) > MAX_SIMILARITY
            for o in kept_from
        ):
            continue
        if any(candidate.content_hash == t.content_hash for t in taken) or answers(candidate):
            continue
        taken.append(candidate)
        room -= len(candidate.source_code)
    return list(oracles), taken


def example_documents(example: RaftExample, documents: Mapping[str, CodeBlock]) -> list[CodeBlock]:
    """The documents of an example in the order in which its prompt shows them.

    The order is drawn from the example's id, so every reader of a dataset sees the same prompt.
    An absent oracle is not among them, and of a closed-book example nothing is.

    Raises:
        KeyError: a document of the example is not in `documents`.
    """
    if example.closed_book:
        return []
    shown = [] if example.oracle_absent else list(example.oracle_ids)
    shown += example.distractor_ids
    return [documents[block_id] for block_id in shuffled(shown, "order", example.id)]
