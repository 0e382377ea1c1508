"""Preference pairs: a true answer, and the same answer with its one fact made false.

Only what the code says decides between the two, so a model that prefers the first has learnt to
read, not to write nicer sentences.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from forge_mcp.raft.documents import example_documents
from forge_mcp.raft.facts import RELATED_KINDS, value_items
from forge_mcp.raft.splits import draw
from forge_mcp.raft.verify import check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, render_answer, render_messages
from forge_mcp.schemas.raft_examples import Fact, PreferencePair, RaftExample

TRIES = 8  # false values looked at before a fact gets no pair


def preference_pairs(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    seed: int,
    system_prompt: str,
) -> list[PreferencePair]:
    """One pair for every fact of the training split whose oracle is shown.

    The false value is another block's value of the same kind; `check` says that it is false here.
    `prompt` is the user's turn; the system prompt is the dataset's.
    """
    asked = [e for e in examples if e.split == "train" and not e.oracle_absent]
    values: dict[str, list[Fact]] = defaultdict(list)
    for example in asked:
        values[_family(example.fact.kind)].append(example.fact)
    pairs, seen = [], set()
    for example in asked:
        fact = example.fact
        key = (fact.kind, fact.block, fact.subject)
        oracles = [documents[block_id] for block_id in example.oracle_ids]
        other = None if key in seen else corrupt(fact, oracles, values[_family(fact.kind)], seed)
        if other is None:
            continue
        seen.add(key)
        shown = example_documents(example, documents)
        messages = render_messages(shown, example.question, system_prompt=system_prompt)
        pairs.append(
            PreferencePair(
                prompt=messages[-1].content,
                chosen=render_answer(example.reasoning, example.final_answer),
                rejected=render_answer(example.reasoning, escape(other.value)),
                fact=fact,
                corruption=f"{_family(fact.kind)} of {other.block}",
            )
        )
    return pairs


def corrupt(
    fact: Fact, oracles: Sequence[CodeBlock], others: Sequence[Fact], seed: int
) -> Fact | None:
    """A fact of another block whose value is plausible but false for `fact`, or None."""
    start = draw(seed, "corrupt", fact.block, fact.kind, fact.subject)
    true = sorted(value_items(fact))
    for step in range(min(TRIES, len(others))):
        other = others[(start + step) % len(others)]
        false = fact.model_copy(update={"value": other.value})
        differs = sorted(value_items(other)) != true and other.block != fact.block
        if differs and not check(false, oracles):
            return other
    return None


def _family(kind: str) -> str:
    """Kinds whose values look alike: a callee's location is a location."""
    return kind.partition("_")[2] if kind in RELATED_KINDS else kind
