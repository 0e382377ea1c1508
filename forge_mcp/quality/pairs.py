"""Whether a preference pair is what it claims: a true answer and a false one to the same prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from forge_mcp.quality.checks import holds_secret
from forge_mcp.quality.reasons import reason_of
from forge_mcp.raft.verify import check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, parse_answer, render_answer
from forge_mcp.schemas.raft_examples import PreferencePair, RaftExample


def validate_preference(
    pair: PreferencePair, example: RaftExample | None, documents: Mapping[str, CodeBlock]
) -> list[str]:
    """What is wrong with a preference pair.

    Args:
        pair: to look at.
        example: the kept training example that has its prompt, or None.
        documents: of the dataset, by id.

    Returns:
        Messages, each beginning with its reason.
    """
    if example is None:
        return [f"unknown_prompt: {pair.prompt[-80:]!r}"]
    return list(_faults(pair, example, documents))


def _faults(
    pair: PreferencePair, example: RaftExample, documents: Mapping[str, CodeBlock]
) -> Iterator[str]:
    if pair.chosen != render_answer(example.reasoning, example.final_answer):
        yield "false_chosen: it is not the answer of its example"
    rejected = parse_answer(pair.rejected)
    answer = rejected.final_answer
    if not rejected.complete or not answer:
        yield "empty_text: the rejected text has no answer"
    if " ".join(answer.split()) == " ".join(example.final_answer.split()):
        yield "same_answer: the rejected answer is the chosen one"
    elif _is_true(answer, example, documents):
        yield f"true_rejected: {answer[:80]} follows from the code"
    if holds_secret(pair.rejected):
        yield "secret: the rejected text holds a credential"


def _is_true(answer: str, example: RaftExample, documents: Mapping[str, CodeBlock]) -> bool:
    """Whether an answer states what follows from its example's documents too."""
    fact = example.fact
    if fact.kind == "code":
        return " ".join(escape(fact.value).split()) in " ".join(answer.split())
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    return check(fact.model_copy(update={"value": answer}), oracles)


def check_preferences(
    pairs: Iterable[PreferencePair],
    by_prompt: Mapping[str, RaftExample],
    documents: Mapping[str, CodeBlock],
) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that hold, and numbers: kept, and dropped by reason.

    Args:
        pairs: of a dataset.
        by_prompt: the kept training examples by their rendered prompts.
        documents: of the dataset, by id.
    """
    kept: list[PreferencePair] = []
    counts: Counter[str] = Counter(kept=0)
    for pair in pairs:
        messages = validate_preference(pair, by_prompt.get(pair.prompt), documents)
        if not messages:
            kept.append(pair)
        counts[reason_of(messages[0]) if messages else "kept"] += 1
    return kept, dict(counts)
