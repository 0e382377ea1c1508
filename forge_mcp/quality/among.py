"""What is wrong with an example only beside the others: repeated, leaking, contradictory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from forge_mcp.quality.duplicates import find_duplicates
from forge_mcp.quality.texts import prose, words
from forge_mcp.raft.splits import PRECEDENCE
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import RaftExample

SAME_WORDS = 0.8  # share of the words of two questions on one fact that makes them one


def faults_among(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    threshold: float,
    sound: Sequence[bool],
) -> list[list[str]]:
    """For every example, messages on what is wrong with it among the others.

    Args:
        examples: of one dataset.
        documents: by id; ids that are not there are overlooked.
        threshold: Jaccard similarity from which two examples are one.
        sound: whether nothing is wrong with an example alone; one that is broken never makes
            another one a repeat or a contradiction.
    """
    found: list[list[str]] = [[] for _ in examples]
    order = sorted(range(len(examples)), key=lambda i: (not sound[i], _precedence(examples[i]), i))
    seen: set[str] = set()
    for index in order:
        if examples[index].id in seen:
            found[index].append(f"repeated_id: {examples[index].id}")
        seen.add(examples[index].id)
    for index, message in repeated(examples, threshold, order).items():
        found[index].append(message)
    single = [index for index in order if sound[index] and not found[index]]
    for index in conflicting(examples, single):
        found[index].append(f"conflicting_answers: {examples[index].question[:80]!r}")
    for index, message in leaking(examples, documents).items():
        found[index].append(message)
    for index in untrained(examples):
        found[index].append(f"untrained_closed_book: {examples[index].fact.block}")
    return found


def compared_text(example: RaftExample) -> str:
    """What is compared between examples: question and answer, not the reasoning.

    What is shown is part of the task: the same question with and without documents is no repeat.
    """
    shown = "closed" if example.closed_book else "absent" if example.oracle_absent else "open"
    return f"{shown} {example.question}\n{example.final_answer}"


def repeated(
    examples: Sequence[RaftExample], threshold: float, order: Sequence[int]
) -> dict[int, str]:
    """Indices of examples that repeat one that comes earlier in `order`, with the message."""
    texts = [compared_text(examples[i]) for i in order]
    found = find_duplicates(texts, threshold, [_topic(examples[i]) for i in order])
    asked: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, index in enumerate(order):
        if place not in found:
            for kept in asked[_asked(examples[index])]:
                if _near(examples[order[kept]], examples[index]):
                    found[place] = kept
                    break
            else:
                asked[_asked(examples[index])].append(place)
    messages = {}
    for later, kept in found.items():
        one, other = examples[order[later]], examples[order[kept]]
        reason = "duplicate" if one.split == other.split else "duplicate_across_splits"
        messages[order[later]] = f"{reason}: of {other.id}"
    return messages


def _topic(example: RaftExample) -> tuple[str, ...]:
    """What two rows must share to be nearly one: the fact, or that they are code.

    The questions on two overloads differ in one word, which is the one that matters.
    """
    fact = example.fact
    return ("code",) if fact.kind == "code" else (fact.kind, fact.block, fact.subject)


def _asked(example: RaftExample) -> tuple[str, ...]:
    """What rows share that may ask the same in nearly the same words: all but the question."""
    fact = example.fact
    shown = "closed" if example.closed_book else "absent" if example.oracle_absent else "open"
    return (shown, fact.kind, fact.block, fact.subject, example.final_answer)


def _near(one: RaftExample, other: RaftExample) -> bool:
    """Whether two questions on one fact have nearly the same words, names and code left aside."""
    a, b = (words(prose(example.question).lower()) for example in (one, other))
    return len(a ^ b) <= 1 or len(a & b) >= SAME_WORDS * len(a | b)


def _precedence(example: RaftExample) -> int:
    """Who keeps a repeated example: a held-out split, so that training never sees its questions."""
    return PRECEDENCE.index(example.split) if example.split in PRECEDENCE else len(PRECEDENCE)


def conflicting(examples: Sequence[RaftExample], indices: Sequence[int]) -> list[int]:
    """Those of the indices whose very question has another answer elsewhere.

    Rows that abstain are left aside: the same question is answered where its oracle is shown.
    """
    answers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    asked: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        example = examples[index]
        if not example.oracle_absent:
            question = " ".join(example.question.split())
            answers[question].add((example.fact.block, example.fact.value))
            asked[question].append(index)
    return [i for question, found in answers.items() if len(found) > 1 for i in asked[question]]


def leaking(examples: Sequence[RaftExample], documents: Mapping[str, CodeBlock]) -> dict[int, str]:
    """Indices of examples that show a document of another split, with the message.

    A file belongs to the split in which most rows show it; rows of other splits that show it
    leak. Code that stands in a training and a held-out file is held out. Closed-book rows show
    nothing and are about trained definitions by design.
    """
    shown: list[list[CodeBlock]] = []
    owners: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        ids = [] if example.closed_book else [*example.oracle_ids, *example.distractor_ids]
        blocks = [documents[block_id] for block_id in ids if block_id in documents]
        shown.append(blocks)
        for path in {block.path for block in blocks}:
            owners[path][example.split] += 1
    owner = {path: counts.most_common(1)[0][0] for path, counts in owners.items()}
    found: dict[int, str] = {}
    held_out: dict[str, str] = {}
    for index, (example, blocks) in enumerate(zip(examples, shown, strict=True)):
        foreign = next((block for block in blocks if owner[block.path] != example.split), None)
        if foreign is not None:
            found[index] = f"split_leak: {foreign.path} belongs to {owner[foreign.path]}"
        elif example.split != "train":
            for block in blocks:
                held_out.setdefault(block.content_hash, block.id)
    for index, (example, blocks) in enumerate(zip(examples, shown, strict=True)):
        copied = [block for block in blocks if block.content_hash in held_out]
        if example.split == "train" and index not in found and copied:
            found[index] = f"split_leak: the code of {held_out[copied[0].content_hash]} is held out"
    return found


def untrained(examples: Sequence[RaftExample]) -> list[int]:
    """Indices of held-out closed-book examples about a definition that no training row is about."""
    trained = {example.fact.block for example in examples if example.split == "train"}
    trained |= {i for example in examples if example.split == "train" for i in example.oracle_ids}
    return [
        index
        for index, example in enumerate(examples)
        if example.closed_book and example.split != "train" and example.fact.block not in trained
    ]
