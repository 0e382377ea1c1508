"""Held-out cases, datasets of them, and contestants, for the tests of judging."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from forge_mcp.judging.gate import Answers, Paper
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.knowledge import Likelihood
from forge_mcp.judging.perplexity import Perplexity
from forge_mcp.judging.results import Contestant, ScoredAnswer, SectionName
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, quote, render_answer, render_messages
from forge_mcp.schemas.raft_examples import ChatRow, Fact, RaftExample, Split
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, write_jsonl

PROJECT = "demo"


def make_block(number: int, path: str = "a.py") -> CodeBlock:
    source = f"def f{number}(x):\n    return x + {number}\n"
    return CodeBlock(
        id=f"{path}::f{number}",
        content_hash=hash_inputs({"source": source}),
        path=path,
        language="python",
        block_type="function",
        name=f"f{number}",
        qualified_name=f"f{number}",
        source_code=source,
        start_line=1,
        end_line=2,
        start_byte=0,
        end_byte=len(source),
        tokens=12,
    )


def make_case(number: int, *, split: Split = "test", absent: bool = False) -> Case:
    block, other = make_block(number), make_block(number + 1000)
    shown = (other,) if absent else (block,)
    answer = ABSTAIN_ANSWER if absent else f"`x + {number}`"
    reasoning = "" if absent else f"`f{number}` ends in {quote(f'return x + {number}')}."
    example = RaftExample(
        id=f"e{number}",
        question=f"What does `f{number}` return?",
        oracle_ids=[block.id],
        distractor_ids=[other.id] if absent else [],
        oracle_absent=absent,
        reasoning=reasoning,
        final_answer=answer,
        difficulty=("easy", "medium", "hard")[number % 3],
        fact=Fact(kind=("returns", "signature")[number % 2], block=block.id, value=answer),
        split=split,
    )
    row = ChatRow(
        messages=render_messages(
            shown, example.question, render_answer(reasoning, answer), "Answer."
        )
    )
    return Case(example, row, shown, (block,))


def make_closed(number: int, *, split: Split = "test") -> Case:
    """The same question without documents."""
    case = make_case(number, split=split)
    example = case.example.model_copy(
        update={
            "id": f"c{number}",
            "closed_book": True,
            "question": f"Give back what `f{number}` does.",
            "reasoning": f"`f{number}` stands in a.py.",
        }
    )
    text = render_answer(example.reasoning, example.final_answer)
    row = ChatRow(messages=render_messages((), example.question, text, "Answer."))
    return Case(example, row, (), case.oracles)


def make_function(number: int) -> Case:
    """A training row about a function that is long enough to be written again."""
    case, name = make_case(number, split="train"), f"g{number}"
    source = (
        f'def {name}(items, limit):\n    """Count the items below a limit."""\n    count = 0\n'
        f"    for item in items:\n        if item < limit + {number}:\n            count += 1\n"
        "    return count\n"
    )
    block = case.oracles[0].model_copy(
        update={
            "id": f"a.py::{name}",
            "content_hash": hashlib.sha256(source.encode()).hexdigest(),
            "name": name,
            "qualified_name": name,
            "signature": f"def {name}(items, limit)",
            "docstring": "Count the items below a limit.",
            "source_code": source,
            "end_line": 7,
            "end_byte": len(source),
        }
    )
    fact = case.example.fact.model_copy(update={"block": block.id})
    update = {"id": f"g{number}", "oracle_ids": [block.id], "fact": fact}
    example = case.example.model_copy(update=update)
    return Case(example, case.row, (block,), (block,))


def make_corpus(workspace: Workspace, blocks: Sequence[CodeBlock]) -> Artifact:
    with workspace.stage("corpus", PROJECT) as staged:
        write_jsonl(staged.path / "blocks.jsonl", list(blocks))
        write_jsonl(staged.path / "rejected.jsonl", [])
        inputs_hash = hash_inputs({"blocks": [block.id for block in blocks]})
        return staged.commit(
            id=workspace.new_id("corpus", PROJECT, inputs_hash), inputs_hash=inputs_hash
        )


def make_dataset(workspace: Workspace, cases: Sequence[Case], salt: str = "") -> Artifact:
    blocks = {b.id: b for c in cases for b in (*c.oracles, *c.documents)}
    corpus = make_corpus(workspace, list(blocks.values()))
    with workspace.stage("dataset", PROJECT) as staged:
        write_jsonl(staged.path / "documents.jsonl", list(blocks.values()))
        write_jsonl(staged.path / "examples.jsonl", [c.example for c in cases])
        for split in ("train", "valid", "test"):
            rows = [c.row for c in cases if c.example.split == split]
            write_jsonl(staged.path / f"{split}.jsonl", rows)
        write_jsonl(staged.path / "preferences.jsonl", [])
        (staged.path / "validation.json").write_text(json.dumps({"passed": True}))
        inputs_hash = hash_inputs({"ids": [c.example.id for c in cases], "salt": salt})
        return staged.commit(
            id=workspace.new_id("dataset", PROJECT, inputs_hash),
            inputs_hash=inputs_hash,
            parents=[corpus.id],
        )


def answer(*, right: bool = True, **changed: Any) -> ScoredAnswer:
    fields: dict[str, Any] = {
        "text": "t",
        "final_answer": "t",
        "right": right,
        "abstained": False,
        "stopped": True,
        "quotes": 1,
        "verified_quotes": 1,
        "claims": 2,
        "unsupported": [],
    }
    return ScoredAnswer.model_validate(fields | changed)


def likelihood(nll: Sequence[float], ids: Sequence[str], chosen: Sequence[bool] = ()) -> Likelihood:
    """Answers of ten tokens, of which four are the fact's with half of the likelihood."""
    values, tokens = np.array(nll, dtype=np.float64), np.full(len(nll), 10.0)
    return Likelihood(
        ids=list(ids),
        answers=Perplexity(values, tokens, 2 * tokens),
        with_facts=list(range(len(nll))),
        facts=Perplexity(values / 2, tokens - 6, tokens, "fact_perplexity"),
        chosen=dict(enumerate(chosen)),
    )


def make_paper(
    contestant: Contestant,
    nll: Sequence[float],
    right: Sequence[bool],
    section: SectionName = "open_book",
    chosen: Sequence[bool] = (),
    **changed: Any,
) -> Paper:
    make = make_closed if section == "closed_book" else make_case
    cases = [make(number) for number in range(max(len(nll), len(right)))]
    ids = [case.example.id for case in cases]
    scored = [answer(right=one, **changed) for one in right]
    return Paper(
        contestant,
        f"model-{contestant}",
        likelihood={section: likelihood(nll, ids[: len(nll)], chosen)} if nll else {},
        answers={section: Answers(cases[: len(right)], scored)} if right else {},
    )
