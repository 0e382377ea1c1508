"""The official HumanEval problems: every solution passes, and no broken one.

They are not part of this project: FORGE_HUMANEVAL names the file, or it lies in ../shared/data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forge_mcp.judging.humaneval import Problem, extract_completion, load_problems
from forge_mcp.judging.sandbox import Outcome, run_in_sandbox

ROOT = Path(__file__).parents[2]
BESIDE = ROOT.parent / "shared" / "data" / "HumanEval.jsonl.gz"
FILE = Path(os.environ.get("FORGE_HUMANEVAL") or BESIDE)

pytestmark = [
    pytest.mark.humaneval,
    pytest.mark.skipif(
        not FILE.exists() and not os.environ.get("FORGE_HUMANEVAL"),
        reason=f"set FORGE_HUMANEVAL to HumanEval.jsonl.gz (it is not at {BESIDE})",
    ),
]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    found = load_problems(str(FILE))
    assert len(found) == 164
    return found


def run_all(problems: list[Problem], completion: Callable[[Problem], str]) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda one: run_in_sandbox(one.program(completion(one))), problems))


def test_every_solution_passes(problems: list[Problem]) -> None:
    outcomes = run_all(problems, lambda problem: problem.canonical_solution)
    assert [
        (problem.task_id, outcome)
        for problem, outcome in zip(problems, outcomes, strict=True)
        if outcome.status != "passed"
    ] == []


def test_every_solution_passes_as_a_chat_model_writes_it(problems: list[Problem]) -> None:
    def answered(problem: Problem) -> str:
        whole = problem.prompt + problem.canonical_solution
        calls = f"print({problem.entry_point}())\nif __name__ == '__main__':\n    1 / 0\n"
        return extract_completion(f"Sure:\n\n```python\n{whole}\n{calls}```\nDone.", problem)

    outcomes = run_all(problems, answered)
    assert [
        (problem.task_id, outcome)
        for problem, outcome in zip(problems, outcomes, strict=True)
        if outcome.status != "passed"
    ] == []


@pytest.mark.parametrize("broken", ["    return None\n", "    raise SystemExit(0)\n"])
def test_no_broken_one_passes(problems: list[Problem], broken: str) -> None:
    """A wrong value, and an end that looks like success but comes before the test."""
    outcomes = run_all(problems, lambda _: broken)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 164
