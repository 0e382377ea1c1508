"""Whether one document and one example are what they claim: checks that say yes or no.

A message begins with its reason, e.g. "unverified_quote: …"; reports count by that word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from forge_mcp.raft.pairs import also_answers
from forge_mcp.raft.verify import check, parse_block
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    escape,
    find_quote,
    parse_answer,
    render_answer,
)
from forge_mcp.schemas.raft_examples import RaftExample

MIN_SOURCE, MAX_SOURCE = 10, 100_000  # characters of a document
MAX_ANSWER = 1_500  # characters of reasoning and answer


def validate_code_block(
    block: CodeBlock, *, require_docstring: bool = True
) -> tuple[bool, list[str]]:
    """Whether a block is whole: not empty, of fair length, what its hash says, valid Python.

    Blocks of other languages were parsed by mining, which refuses files with a syntax error.

    Args:
        block: to look at.
        require_docstring: whether one without a docstring is refused too.

    Returns:
        (valid, messages).
    """
    messages = []
    size = len(block.source_code.strip())
    if not size:
        messages.append("empty_document: there is no code")
    elif not MIN_SOURCE <= size <= MAX_SOURCE:
        messages.append(f"document_length: {size} characters")
    if hashlib.sha256(block.source_code.encode()).hexdigest() != block.content_hash:
        messages.append("changed_document: its code is not what its hash says")
    if block.end_line < block.start_line or block.end_byte < block.start_byte:
        messages.append("document_place: it ends before it begins")
    if size and block.language == "python" and parse_block(block.source_code) is None:
        messages.append("invalid_code: Python cannot parse it")
    if require_docstring and not block.docstring.strip():
        messages.append("no_docstring: nothing says what it is for")
    return not messages, messages


def validate_raft_example(
    example: RaftExample, documents: Mapping[str, CodeBlock]
) -> tuple[bool, list[str]]:
    """Whether an example is true and well formed.

    Its documents exist and appear once; its quotes stand in its oracles; its fact follows from
    them; its answer states the fact (or abstains where the oracle is absent); no distractor
    answers the question.

    Args:
        example: to look at.
        documents: of the dataset, by id.

    Returns:
        (valid, messages).
    """
    messages = _well_formed(example)
    shown = [*example.oracle_ids, *example.distractor_ids]
    missing = [block_id for block_id in shown if block_id not in documents]
    if missing:
        return False, [*messages, f"missing_document: {', '.join(missing)}"]
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    if not oracles:
        return False, messages
    if not check(example.fact, oracles):
        messages.append(f"false_fact: {example.fact.value} does not follow from the code")
    quotes = parse_answer(render_answer(example.reasoning, example.final_answer)).quotes
    if example.oracle_absent:
        if quotes:
            messages.append("quote_of_absent: it cites a document that is not shown")
        stated = [ABSTAIN_ANSWER, escape(example.fact.value)]
    else:
        stated = [escape(example.fact.value)]
        if not quotes:
            messages.append("no_quote: the reasoning cites nothing")
        for quoted in quotes:
            if find_quote(quoted, oracles) is None:
                messages.append(f"unverified_quote: {quoted[:80]!r} stands in no oracle")
    if not any(value in example.final_answer for value in stated):
        messages.append("unstated_fact: the answer does not hold its fact's value")
    for block_id in example.distractor_ids:
        if also_answers(example.fact, oracles, documents[block_id]):
            messages.append(f"answering_distractor: {block_id}")
    return not messages, messages


def _well_formed(example: RaftExample) -> list[str]:
    """What is wrong with the parts of an example, its documents left aside."""
    messages = []
    shown = [*example.oracle_ids, *example.distractor_ids]
    if not example.oracle_ids:
        messages.append("no_oracle: nothing holds the answer")
    if len(set(shown)) < len(shown):
        messages.append("repeated_document: one document appears twice")
    if not example.question.strip() or not example.final_answer.strip():
        messages.append("empty_text: question or answer is empty")
    if not example.reasoning.strip():
        messages.append("no_reasoning: the answer is not explained")
    if len(example.reasoning) + len(example.final_answer) > MAX_ANSWER:
        messages.append("answer_length: reasoning and answer are too long")
    parsed = parse_answer(render_answer(example.reasoning, example.final_answer))
    if parsed.final_answer != example.final_answer.strip():
        messages.append("markers: reasoning or answer holds a marker of the answer's form")
    return messages


def reason_of(message: str) -> str:
    """The word that a message begins with."""
    return message.partition(":")[0]
