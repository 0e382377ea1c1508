"""RAFT by the specification's names, for one who has blocks and wants examples of the parts.

generate_qa_pairs                  blocks → questions with their answers
retrieve_oracle_and_distractors    a query → what answers it, and what stands beside it
generate_chain_of_thought          a query and its documents → reasoning that cites them

`build_dataset` goes further: it verifies distractors against the fact that a row is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from forge_mcp.errors import BadInput
from forge_mcp.raft.documents import MAX_SIMILARITY, overlap, similarity
from forge_mcp.raft.facts import CorpusIndex
from forge_mcp.raft.pairs import QAPair, block_pairs
from forge_mcp.raft.phrases import CorpusNames, fill, name_of
from forge_mcp.raft.quotes import clip, header
from forge_mcp.raft.reasoning import SECOND
from forge_mcp.retrieval import Retriever, subtokens
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, quote

QUESTIONS_PER_BLOCK = 5


def generate_qa_pairs(
    code_blocks: Sequence[CodeBlock], per_block: int = QUESTIONS_PER_BLOCK, seed: int = 0
) -> list[QAPair]:
    """Up to `per_block` questions about every block, with answers that were derived twice."""
    names, index = CorpusNames(code_blocks), CorpusIndex(code_blocks)
    skipped: Counter[str] = Counter()
    return [
        pair
        for block in code_blocks
        for pair in block_pairs(
            block, names, index.related(block), count=per_block, seed=seed, skipped=skipped
        )
    ]


def retrieve_oracle_and_distractors(
    query: str,
    all_blocks: Sequence[CodeBlock],
    oracle_idx: int,
    k: int = 3,
    num_distractors: int = 2,
) -> tuple[list[CodeBlock], list[CodeBlock]]:
    """The documents of a query: those that answer it, and those that do not.

    Args:
        query: in plain words.
        all_blocks: to choose from.
        oracle_idx: which of them answers for certain.
        k: oracles wanted: that block, and the ones that retrieval finds nearest to the query.
        num_distractors: weakly relevant blocks wanted, which share no code with an oracle and are
            no near copy of one; fewer where there are no more.

    Returns:
        (oracle_docs, distractor_docs), the certain oracle first.

    Raises:
        BadInput: there is no block of that index, or `k` is below 1.
    """
    if not 0 <= oracle_idx < len(all_blocks) or k < 1:
        raise BadInput(
            f"There is no oracle {oracle_idx} among {len(all_blocks)} blocks (k = {k}).",
            cause="the index or the number of oracles is out of range",
            next_step="Give an index from 0 to one less than the number of blocks, and k of 1.",
        )
    certain = all_blocks[oracle_idx]
    ranked = [block for block, _ in Retriever(all_blocks).search(query, len(all_blocks))]
    found = {block.id for block in ranked}
    ranked += [block for block in all_blocks if block.id not in found]
    oracles = [certain]
    for block in ranked:
        if len(oracles) < k and not any(overlap(block, o) or block.id == o.id for o in oracles):
            oracles.append(block)
    distractors: list[CodeBlock] = []
    for block in ranked:
        if len(distractors) < num_distractors and all(
            block.id != other.id and not overlap(block, other) for other in [*oracles, *distractors]
        ):
            near = any(similarity(block, oracle) > MAX_SIMILARITY for oracle in oracles)
            distractors += [] if near else [block]
    return oracles, distractors


def generate_chain_of_thought(query: str, oracle_docs: Sequence[CodeBlock]) -> str:
    """Reasoning that cites of every document the line nearest to the query.

    Every `##begin_quote##…##end_quote##` is a byte substring of its document as it is rendered.
    """
    parts = []
    for number, block in enumerate(oracle_docs):
        template = "Looking at `{n}` in {f}, we see {q}." if not number else f"{SECOND[0]}."
        line = _nearest(query, block)
        parts.append(fill(template, n=name_of(block), f=escape(block.path), q=quote(line)))
    return " ".join(parts)


def _nearest(query: str, block: CodeBlock) -> str:
    """The line of a block that shares most sub-tokens with a query; its header where none does."""
    asked = set(subtokens(query)) - set(subtokens(block.name))
    lines = [line.strip() for line in block.source_code.splitlines() if line.strip()]
    best = max(lines, key=lambda line: len(asked & set(subtokens(line))))
    if not asked & set(subtokens(best)):
        best = header(block) or best
    return clip(best, 0, 1) or best
