"""The held-out examples of a dataset, and a sample of them that represents all."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from forge_mcp.errors import BadInput, CorruptArtifact
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, render_document
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


def held_out(dataset: Artifact, split: Split = "test") -> list[Case]:
    """The cases of a split, in the order of examples.jsonl.

    Closed-book rows are left aside: they ask about trained blocks and show nothing, so that they
    neither are held out nor can be cited, abstained from or told from inventions.

    Raises:
        BadInput: the split has no other rows.
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
    cases = []
    for example, row in zip(examples, rows, strict=True):
        if example.closed_book:
            continue
        oracles = tuple(blocks[id] for id in example.oracle_ids)
        named = (*oracles, *(blocks[id] for id in example.distractor_ids))
        shown = tuple(b for b in named if render_document(b) in row.messages[-2].content)
        cases.append(Case(example, row, shown, oracles))
    return cases


def learnt_from(dataset: Artifact) -> set[str]:
    """Content hashes of the blocks that the training split of a dataset asks about."""
    asked: set[str] = set()
    for example in map(RaftExample.model_validate, dataset.rows("examples.jsonl")):
        if example.split == "train":
            asked.update((example.fact.block, *example.oracle_ids))
    return {row["content_hash"] for row in dataset.rows("documents.jsonl") if row["id"] in asked}


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
