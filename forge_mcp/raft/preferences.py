"""Preference pairs: a true answer, and the same answer with its one fact made false.

Only what the code says decides between the two, so a model that prefers the first has learnt to
read, not to write nicer sentences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from forge_mcp.raft.code_tasks import fence, indentation
from forge_mcp.raft.corruptions import FalseValues, family
from forge_mcp.raft.documents import example_documents
from forge_mcp.raft.facts import RELATED_KINDS, derive_kind
from forge_mcp.raft.verify import check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, render_answer, render_messages
from forge_mcp.schemas.raft_examples import Fact, PreferencePair, RaftExample


def preference_pairs(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    known: Collection[str],
    seed: int,
    system_prompt: str,
) -> list[PreferencePair]:
    """One pair for every fact of the training split whose answer is given.

    `prompt` is the user's turn; the system prompt is the dataset's. `corruption` says what was
    done to the rejected answer. A fact for which no false value can be had has no pair.

    Args:
        examples: of a dataset.
        documents: of the dataset, by id.
        known: names of the corpus' definitions.
        seed: of every draw.
        system_prompt: of the chats.
    """
    asked = [e for e in examples if e.split == "train" and not e.oracle_absent]
    shown = dict.fromkeys(i for e in asked for i in e.oracle_ids)
    types = [fact for i in shown for fact in derive_kind(documents[i], "annotation")]
    told = [*(example.fact for example in asked), *types]
    values = FalseValues(((fact, documents[fact.block].path) for fact in told), known, seed)
    pairs, seen = [], set()
    for example in asked:
        fact = example.fact
        key = (fact.kind, fact.block, fact.subject)
        if key in seen:
            continue
        seen.add(key)
        oracles = [documents[block_id] for block_id in example.oracle_ids]
        block = documents[fact.block]
        found = corrupt(fact, block, oracles, values)
        if found is None:
            continue
        value, corruption = found
        rejected = escape(value)
        if fact.kind == "code":
            rejected = fence(indentation(block) + value, block.language)
        beside = example_documents(example, documents)
        messages = render_messages(beside, example.question, system_prompt=system_prompt)
        pairs.append(
            PreferencePair(
                prompt=messages[-1].content,
                chosen=render_answer(example.reasoning, example.final_answer),
                rejected=render_answer(example.reasoning, rejected),
                fact=fact,
                corruption=f"{fact.kind}: {corruption}",
            )
        )
    return pairs


def corrupt(
    fact: Fact, block: CodeBlock, oracles: Sequence[CodeBlock], values: FalseValues
) -> tuple[str, str] | None:
    """A plausible value, false for `fact` and of every oracle, and what was done; or None."""
    for value, corruption in values.of(fact, block):
        if value != fact.value and not _true(fact, oracles, value):
            return value, corruption
    return None


def _true(fact: Fact, oracles: Sequence[CodeBlock], value: str) -> bool:
    """Whether a value would be true of the fact, or of any document that is shown with it."""
    if check(fact.model_copy(update={"value": value}), oracles):
        return True
    if fact.kind not in RELATED_KINDS:
        return False
    kind = family(fact.kind)
    return any(
        check(Fact(kind=kind, block=oracle.id, value=value, subject=fact.subject), [oracle])
        for oracle in oracles
    )
