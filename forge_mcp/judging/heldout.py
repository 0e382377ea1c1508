"""The questions of an examination, from a dataset's held-out rows, and what a run learnt.

Open-book questions are about files that were held out, with their documents given. Closed-book
questions are about code that was trained on, in the phrasing that no training row has, and show no
document. What a run was trained on is never asked: see `Learnt`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    find_quote,
    parse_answer,
    render_document,
    render_messages,
)
from forge_mcp.schemas.raft_examples import ChatRow, RaftExample, Split
from forge_mcp.workspace import Artifact


@dataclass(frozen=True)
class Case:
    """One held-out question: the example, its chat as the model is trained on such, and documents.

    `documents` are the blocks that stand in the prompt, `oracles` those that hold the answer; where
    the oracle was taken away it is no document.
    """

    example: RaftExample
    row: ChatRow
    documents: tuple[CodeBlock, ...]
    oracles: tuple[CodeBlock, ...]

    @property
    def prompt(self) -> str:
        """The user's turn: everything the model is told about the code."""
        return self.row.messages[-2].content

    @property
    def reference(self) -> str:
        """The assistant's turn as it should be."""
        return self.row.messages[-1].content

    @property
    def abstains(self) -> bool:
        """Whether the right answer is that the documents do not say."""
        return self.example.final_answer.strip() == ABSTAIN_ANSWER

    @cached_property
    def cites(self) -> bool:
        """Whether the reference has a quote of a document given."""
        quotes = parse_answer(self.reference).quotes
        return any(find_quote(quoted, self.documents) is not None for quoted in quotes)

    def with_documents(self, documents: Sequence[CodeBlock]) -> Case:
        """The same question with other documents given."""
        system = self.row.messages[0].content
        messages = render_messages(documents, self.example.question, self.reference, system)
        return replace(self, row=ChatRow(messages=messages), documents=tuple(documents))


@dataclass(frozen=True)
class Examination:
    """The questions that a split has, in the order of examples.jsonl."""

    open_book: list[Case]
    closed_book: list[Case]


def held_out(dataset: Artifact, split: Split = "test") -> Examination:
    """The questions of a split.

    Raises:
        BadInput: the split has no open-book question.
        CorruptArtifact: its files do not belong together.
    """
    blocks = {row["id"]: CodeBlock.model_validate(row) for row in dataset.rows("documents.jsonl")}
    examples = [
        example
        for example in map(RaftExample.model_validate, dataset.rows("examples.jsonl"))
        if example.split == split
    ]
    rows = [ChatRow.model_validate(row) for row in dataset.rows(f"{split}.jsonl")]
    if len(rows) != len(examples):
        raise CorruptArtifact(
            f"{dataset.id}: {split}.jsonl does not belong to examples.jsonl.",
            cause=f"{len(rows)} rows, but {len(examples)} examples of that split",
            next_step=f"Delete {dataset.path} and run the step that made it again.",
        )
    if all(example.closed_book for example in examples):
        raise BadInput(
            f"The {split} split of {dataset.id} is empty, so there is nothing to judge on.",
            cause="no file of the repository was held out, or all its examples were dropped",
            next_step=f"Raise raft.{split}_share, or mine more files, and run 'forge-mcp "
            "synthesize', 'validate' and 'train' again.",
        )
    found = Examination([], [])
    for example, row in zip(examples, rows, strict=True):
        oracles = tuple(blocks[id] for id in example.oracle_ids)
        named = (*oracles, *(blocks[id] for id in example.distractor_ids))
        shown = tuple(b for b in named if render_document(b) in row.messages[-2].content)
        case = Case(example, row, shown, oracles)
        (found.closed_book if example.closed_book else found.open_book).append(case)
    return found


@dataclass(frozen=True)
class Learnt:
    """What a run was trained on.

    `questions`: the user's turns of its training rows; `blocks`: content hashes of the blocks
    that these ask about; `answers`: their final answers by kind of fact.
    """

    questions: frozenset[str]
    blocks: frozenset[str]
    answers: dict[str, list[str]]

    def holds(self, case: Case) -> bool:
        """Whether a question was trained on, and so shows nothing.

        An open-book one is where its row or any of its oracles was; a closed-book one, which is
        about trained code by intent, only where that very question was.
        """
        if case.prompt in self.questions:
            return True
        if case.example.closed_book:
            return False
        return any(oracle.content_hash in self.blocks for oracle in case.oracles)

    def knows(self, case: Case) -> bool:
        """Whether the code that a closed-book question is about was trained on."""
        return all(oracle.content_hash in self.blocks for oracle in case.oracles)


def learnt_from(dataset: Artifact) -> Learnt:
    """What the training split of a dataset teaches."""
    asked: set[str] = set()
    answers: dict[str, list[str]] = defaultdict(list)
    for example in map(RaftExample.model_validate, dataset.rows("examples.jsonl")):
        if example.split == "train":
            asked.update((example.fact.block, *example.oracle_ids))
            if not example.oracle_absent:
                answers[example.fact.kind].append(example.final_answer)
    rows = map(ChatRow.model_validate, dataset.rows("train.jsonl"))
    return Learnt(
        questions=frozenset(row.messages[-2].content for row in rows),
        blocks=frozenset(
            row["content_hash"] for row in dataset.rows("documents.jsonl") if row["id"] in asked
        ),
        answers=dict(answers),
    )


def sample(cases: Sequence[Case], n: int, seed: int) -> list[Case]:
    """At most n cases, in which kinds of fact and difficulties keep their shares.

    Within each stratum (kind, difficulty, oracle absent) the order is random; case i of a stratum
    of size m gets the place (i + u) / m with one random u a stratum, and the first n places win. So
    the sample of a smaller n is part of that of a larger one. Returned in the order given.
    """
    generator = random.Random(seed)  # noqa: S311 - a sample, no secret
    strata: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        example = case.example
        strata[example.fact.kind, example.difficulty, example.oracle_absent].append(index)
    places = []
    for key in sorted(strata):
        members = strata[key]
        generator.shuffle(members)
        offset = generator.random()
        places += [((rank + offset) / len(members), index) for rank, index in enumerate(members)]
    return [cases[index] for index in sorted(index for _, index in sorted(places)[:n])]
