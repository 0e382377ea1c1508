"""Held-out cases, datasets of them, and contestants, for the tests of judging."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from forge_mcp.judging.answers import ScoredAnswer
from forge_mcp.judging.gate import Contestant, Role
from forge_mcp.judging.heldout import Case
from forge_mcp.judging.perplexity import Perplexity
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


def make_dataset(workspace: Workspace, cases: Sequence[Case], salt: str = "") -> Artifact:
    with workspace.stage("dataset", PROJECT) as staged:
        blocks = {b.id: b for c in cases for b in (*c.oracles, *c.documents)}
        write_jsonl(staged.path / "documents.jsonl", list(blocks.values()))
        write_jsonl(staged.path / "examples.jsonl", [c.example for c in cases])
        for split in ("train", "valid", "test"):
            rows = [c.row for c in cases if c.example.split == split]
            write_jsonl(staged.path / f"{split}.jsonl", rows)
        write_jsonl(staged.path / "preferences.jsonl", [])
        (staged.path / "validation.json").write_text(json.dumps({"passed": True}))
        inputs_hash = hash_inputs({"ids": [c.example.id for c in cases], "salt": salt})
        return staged.commit(
            id=workspace.new_id("dataset", PROJECT, inputs_hash), inputs_hash=inputs_hash
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
        "unsupported_claims": 0,
    }
    return ScoredAnswer.model_validate(fields | changed)


def contestant(role: Role, nll: Sequence[float], right: Sequence[bool]) -> Contestant:
    count = max(len(nll), len(right))
    cases = [make_case(number) for number in range(count)]
    tokens = np.full(len(nll), 10.0)
    return Contestant(
        role,
        f"model-{role}",
        cases[: len(nll)],
        Perplexity(np.array(nll, dtype=np.float64), tokens, 2 * tokens),
        cases[: len(right)],
        [answer(right=one) for one in right],
    )
