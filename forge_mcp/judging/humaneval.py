"""HumanEval: the share of programming problems that a model solves (arXiv 2107.03374).

    load_problems, draw         the problems, and a sample of them     (humaneval_problems.py)
    humaneval_prompts           how a chat model is asked
    extract_completion          what of its answer is run              (completions.py)
    run_humaneval_subset        writes, runs in the sandbox, counts; goes on where it was stopped
    pass_at_k                   the unbiased estimator

Generated code runs in the sandbox alone (sandbox.py); where that has no protection, nothing runs.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from forge_mcp.errors import BadInput, CorruptArtifact, from_os_error
from forge_mcp.judging.completions import GENERATION_STOPS, STOP_SEQUENCES, extract_completion
from forge_mcp.judging.humaneval_problems import OWN_SUITE, Problem, draw, load_problems
from forge_mcp.judging.intervals import Floats, bootstrap, share
from forge_mcp.judging.sandbox import Limits, Outcome, Protections, protections, run_in_sandbox
from forge_mcp.schemas.base import Metric, Schema
from forge_mcp.schemas.prompt import escape
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.workspace import write_file

# Of one program. A right one takes milliseconds; the official harness gives 3 s on a machine that
# does nothing else.
LIMITS = Limits(seconds=10.0, memory_bytes=1 << 30)
# Problems that are written together; those of a stop and the ones before it may be written again.
PROBLEMS_AT_ONCE = 4
LEDGER_VERSION = 1
KS = (1, 10)

Result = Literal["passed", "wrong", "error", "syntax", "timeout", "memory", "output", "killed"]
# (problems, samples) → (index of the problem, number of the sample, what the model wrote), each
# pair once, in any order.
Write = Callable[[Sequence[Problem], int], Iterator[tuple[int, int, str]]]


class Attempt(Schema):
    """One program and how it ended: a row of a ledger.

    result: passed; wrong = an assertion of the test; error = another exception; syntax = it is not
    Python; the others as in sandbox.Status.
    """

    task_id: str
    problem: str = Field(description="Problem.digest.")
    sample: int
    completion: str
    result: Result
    error: str | None
    seconds: float


class Solved(Schema):
    """Of n programs for a problem, c passed its test."""

    task_id: str
    n: int
    c: int


class HumanEvalResult(Schema):
    """`metrics`: pass@1, and pass@10 from ten samples on, means over the problems with bootstrap
    intervals (Wilson's where all or none are solved). `resumed`: problems that an earlier call had
    finished. `seconds`: of this call."""

    metrics: list[Metric]
    samples: int
    problems: list[Solved]
    outcomes: dict[Result, int]
    protections: Protections
    resumed: int
    seconds: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k programs passes, where c of n did, without bias.

    1 - C(n-c, k) / C(n, k) as the product 1 - prod(1 - k/i, i = n-c+1 … n), which stays in 0-1
    (arXiv 2107.03374, section 2.1).

    Raises:
        ValueError: not 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@{k} cannot be estimated from {c} of {n}")
    if n - c < k:  # the product is 0, but may overflow before it comes to that factor
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def humaneval_chat(problem: Problem) -> list[Message]:
    """How a chat model is asked for a function."""
    text = (
        "Complete this Python function. Answer with the whole function in one code block.\n\n"
        f"```python\n{escape(problem.prompt.rstrip())}\n```"
    )
    return [Message(role="user", content=text)]


def humaneval_prompts(tokenizer: Any, problems: Sequence[Problem]) -> list[list[int]]:
    """The problems as tokens, up to the assistant's turn, by the tokenizer's chat template.

    tokenizer: an mlx-lm TokenizerWrapper with a chat template.
    """
    rendered = [
        tokenizer.apply_chat_template(
            [message.model_dump() for message in humaneval_chat(problem)],
            tokenize=False,
            add_generation_prompt=True,
        )
        for problem in problems
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in rendered]


def run_humaneval_subset(
    write: Write,
    problems: Sequence[Problem],
    num_samples: int,
    workers: int,
    ledger: Path | None = None,
    *,
    model: str = "",
    seed: int = 0,
    limits: Limits = LIMITS,
    on_done: Callable[[int, int], None] | None = None,
) -> HumanEvalResult:
    """Have programs written, run each in the sandbox, and count those that pass their test.

    While programs of some problems run, those of the next are written.

    Args:
        write: the model; asked for all samples of a few problems at a time.
        problems: at least one.
        num_samples: programs a problem.
        workers: programs that run at the same time.
        ledger: a file that keeps each program and its outcome; a later call with the same model
            and number of samples does not repeat the problems in it that are whole.
        model: whatever the programs depend on, in one string: the model, how it samples.
        seed: of the bootstrap.
        limits: of each program.
        on_done: told (problems done, problems in all) after every few.

    Raises:
        Unavailable: this machine has no sandbox; nothing was written or run.
        BadInput: no problem, or the ledger of another model or number of samples.
        CorruptArtifact: a ledger that is damaged elsewhere than at its end.
        OutOfSpace, ForgeError: the ledger cannot be written.
    """
    begun = time.monotonic()
    if not problems:
        raise BadInput("There is no HumanEval problem to solve.", next_step="Choose at least one.")
    holds = protections()
    book = _Ledger(ledger, model, num_samples)
    missing = [problem for problem in problems if not book.whole(problem)]
    resumed = len(problems) - len(missing)
    waiting: list[Future[None]] = []
    with ThreadPoolExecutor(workers, "sandbox") as pool:
        try:
            for at in range(0, len(missing), PROBLEMS_AT_ONCE):
                group = missing[at : at + PROBLEMS_AT_ONCE]
                running = [
                    pool.submit(_attempt, book, group[index], sample, text, limits)
                    for index, sample, text in write(group, num_samples)
                ]
                _finish(waiting)
                waiting = running
                if on_done:
                    on_done(resumed + at, len(problems))
            _finish(waiting)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if on_done:
        on_done(len(problems), len(problems))
    return _result(problems, book, holds, resumed, seed, time.monotonic() - begun)


def _finish(running: Sequence[Future[None]]) -> None:
    """Wait for programs; the first error of one is raised."""
    for future in running:
        future.result()


def _attempt(book: _Ledger, problem: Problem, sample: int, text: str, limits: Limits) -> None:
    completion = extract_completion(text, problem)
    outcome = run_in_sandbox(problem.program(completion), limits=limits)
    book.add(
        Attempt(
            task_id=problem.task_id,
            problem=problem.digest,
            sample=sample,
            completion=completion,
            result=judge(outcome),
            error=outcome.error,
            seconds=outcome.seconds,
        )
    )


def judge(outcome: Outcome) -> Result:
    """What the end of a program says of it."""
    if outcome.status != "failed":
        return outcome.status
    if outcome.error == "AssertionError":
        return "wrong"
    return "syntax" if outcome.error in ("SyntaxError", "IndentationError", "TabError") else "error"


def _result(
    problems: Sequence[Problem],
    book: _Ledger,
    holds: Protections,
    resumed: int,
    seed: int,
    seconds: float,
) -> HumanEvalResult:
    attempts = [book.attempts(problem) for problem in problems]
    solved = [
        Solved(
            task_id=problem.task_id,
            n=len(those),
            c=sum(one.result == "passed" for one in those),
        )
        for problem, those in zip(problems, attempts, strict=True)
    ]
    metrics = []
    for k in (k for k in KS if k <= book.samples):
        values = np.array([pass_at_k(one.n, one.c, k) for one in solved])
        metrics.append(_mean(f"pass@{k}", values, seed))
    return HumanEvalResult(
        metrics=metrics,
        samples=book.samples,
        problems=solved,
        outcomes=dict(Counter(one.result for those in attempts for one in those)),
        protections=holds,
        resumed=resumed,
        seconds=round(seconds, 3),
    )


def _mean(name: str, values: Floats, seed: int) -> Metric:
    """The mean over problems with its bootstrap interval; Wilson's where all were solved or none,
    because samples of equal values have no width."""
    alike = values.min() == values.max() and values[0] in (0.0, 1.0)
    found = share(name, int(values.sum()), len(values)) if alike else None
    return found or bootstrap(name, len(values), seed, lambda i: values[i].mean(axis=1))


class _Ledger:
    """What was written and run, in memory and, where a path is given, in a file.

    Its first line says of which model and how many samples it is, each further one is an Attempt.
    Only whole problems are taken over: samples of two calls may have the same seeds.
    """

    def __init__(self, path: Path | None, model: str, samples: int) -> None:
        self.path = path
        self.samples = samples
        self.head = {"humaneval_ledger": LEDGER_VERSION, "model": model, "samples": samples}
        self.found: dict[tuple[str, str], dict[int, Attempt]] = {}
        self.lock = threading.Lock()
        if path is not None:
            self._take_over(path)

    def whole(self, problem: Problem) -> bool:
        """Whether all samples of a problem have been run."""
        return len(self.found.get((problem.task_id, problem.digest), ())) == self.samples

    def attempts(self, problem: Problem) -> list[Attempt]:
        """The attempts at a problem, in the order of their numbers.

        Raises:
            ValueError: the writer has not given each sample once.
        """
        those = self.found.get((problem.task_id, problem.digest), {})
        if sorted(those) != list(range(self.samples)):
            raise ValueError(f"{problem.task_id}: samples {sorted(those)} of {self.samples}")
        return [those[number] for number in sorted(those)]

    def add(self, attempt: Attempt) -> None:
        """Keep an attempt; in the file at once."""
        with self.lock:
            self._remember(attempt)
            if self.path is not None:
                try:
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(attempt.model_dump_json() + "\n")
                except OSError as error:
                    raise from_os_error(error, "keep the outcome of a program") from error

    def _remember(self, attempt: Attempt) -> None:
        those = self.found.setdefault((attempt.task_id, attempt.problem), {})
        those[attempt.sample] = attempt

    def _take_over(self, path: Path) -> None:
        """Read the file, and write it again without what is not whole."""
        try:
            lines = path.read_bytes().split(b"\n") if path.exists() else []
            for number, line in enumerate(lines, start=1):
                self._read(path, number, line, last=number == len(lines))
            self.found = {
                key: those for key, those in self.found.items() if len(those) == self.samples
            }
            kept = [one for those in self.found.values() for one in those.values()]
            rows = [json.dumps(self.head), *(one.model_dump_json() for one in kept)]
            write_file(path, "\n".join(rows) + "\n")
        except OSError as error:
            raise from_os_error(error, "read and write the outcomes of programs") from error

    def _read(self, path: Path, number: int, line: bytes, last: bool) -> None:
        if last:  # nothing, or what was being written when it was stopped
            return
        try:
            if number == 1:
                head = json.loads(line)
            else:
                self._remember(Attempt.model_validate_json(line))
        except ValueError as error:
            raise CorruptArtifact(
                f"The outcomes {path} cannot be read.",
                cause=f"line {number}: {str(error).splitlines()[0]}",
                next_step="Remove the file; the programs are then written and run again.",
            ) from error
        if number == 1 and head != self.head:
            raise BadInput(
                f"The outcomes {path} are of something else.",
                cause=f"they are of {head}, and wanted are those of {self.head}",
                next_step="Remove the file, or give another one.",
            )


__all__ = [
    "GENERATION_STOPS",
    "LIMITS",
    "OWN_SUITE",
    "STOP_SEQUENCES",
    "Attempt",
    "HumanEvalResult",
    "Problem",
    "Solved",
    "Write",
    "draw",
    "extract_completion",
    "humaneval_chat",
    "humaneval_prompts",
    "judge",
    "load_problems",
    "pass_at_k",
    "run_humaneval_subset",
]
