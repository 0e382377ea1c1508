"""Code that a model writes: functions of the repository again, and programs that are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from forge_mcp.judging.answers import MlxBackend
from forge_mcp.judging.codebleu import LANGUAGES, codebleu_of
from forge_mcp.judging.generation import Sampling, generate
from forge_mcp.judging.humaneval import (
    GENERATION_STOPS,
    Problem,
    humaneval_prompts,
    run_humaneval_subset,
)
from forge_mcp.judging.intervals import bootstrap
from forge_mcp.judging.reconstruction import Task, evaluate_reconstruction
from forge_mcp.schemas.base import Metric
from forge_mcp.workspace import hash_inputs

Embed = Callable[[Sequence[str]], Any]  # texts to vectors, float array of shape (texts, width)
Watch = Callable[[int, int], None]
SPARE_TOKENS = 48  # that a written function may have beyond half as many again as the true one
PROGRAM_TOKENS = 384


@dataclass(frozen=True)
class Written:
    """Functions that a model wrote: the codes, and what they are worth."""

    codes: list[str]
    metrics: list[Metric]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Programs:
    """Problems whose solutions are run in the sandbox.

    `ledger`: a folder; what was written and run is kept there by model, so that an evaluation that
    was stopped goes on.
    """

    problems: list[Problem]
    samples: int
    temperature: float
    seed: int
    workers: int
    ledger: Path

    def first(self, count: int) -> Programs:
        """The same for the first `count` problems."""
        return replace(self, problems=self.problems[:count])


def write_functions(
    tasks: Sequence[Task],
    loaded: Any,
    room: int,
    embed: Embed | None,
    seed: int,
    watch: Watch,
) -> Written:
    """Let a model write functions from their headers, and compare them with the repository's.

    Args:
        tasks: at least one.
        loaded: a LoadedRun or LoadedBase.
        room: tokens of its context.
        embed: the encoder, where there is one.
        seed: of the resampling.
        watch: told (functions written, in all).
    """
    backend = MlxBackend(loaded.model, loaded.tokenizer, room)
    limits = [
        len(loaded.tokenizer.encode(task.reference)) * 3 // 2 + SPARE_TOKENS for task in tasks
    ]
    made = generate(
        loaded.model,
        loaded.tokenizer,
        backend.prompts([task.messages for task in tasks]),
        limits,
        on_done=watch,
        context=room,
    )
    found = evaluate_reconstruction(tasks, [one.text for one in made], embed, seed)
    metrics = list(found.metrics)
    scores = [
        codebleu_of(code, task.reference, task.block.language).score
        for task, code in zip(tasks, found.codes, strict=True)
        if task.block.language in LANGUAGES
    ]
    notes = []
    if scores:
        values = np.array(scores)
        metrics.append(bootstrap("codebleu", len(values), seed, lambda i: values[i].mean(axis=1)))
    if len(scores) < len(tasks):
        notes.append(
            f"{len(tasks) - len(scores)} functions are in languages that CodeBLEU does not know."
        )
    if embed is None:
        notes.append("Embedding similarity was not measured: retrieval has no encoder.")
    return Written(found.codes, metrics, notes)


def write_programs(
    programs: Programs,
    name: str,
    model: str,
    loaded: Any,
    room: int,
    watch: Watch,
) -> Written:
    """Let a model solve problems; every program is run in the sandbox.

    Args:
        programs: the problems.
        name: of the model, for the notes.
        model: what tells this model from any other, whatever it is called.
        loaded: a LoadedRun or LoadedBase.
        room: tokens of its context.
        watch: told (problems done, in all).

    Raises:
        Unavailable: this machine has no sandbox.
    """

    def write(problems: Sequence[Problem], samples: int) -> Iterator[tuple[int, int, str]]:
        prompts = humaneval_prompts(loaded.tokenizer, problems)
        for number, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
            # Each problem has its own random numbers, wherever an earlier call was stopped.
            seed = int(hash_inputs({"seed": programs.seed, "problem": problem.digest})[:8], 16)
            made = generate(
                loaded.model,
                loaded.tokenizer,
                [prompt] * samples,
                PROGRAM_TOKENS,
                sampling=Sampling(programs.temperature, seed=seed),
                stop=GENERATION_STOPS,
                context=room,
            )
            for sample, one in enumerate(made):
                yield number, sample, one.text

    how = {
        "model": model,
        "samples": programs.samples,
        "temperature": programs.temperature,
        "seed": programs.seed,
        "tokens": PROGRAM_TOKENS,
    }
    key = hash_inputs(how)
    programs.ledger.mkdir(parents=True, exist_ok=True)
    result = run_humaneval_subset(
        write,
        programs.problems,
        programs.samples,
        programs.workers,
        programs.ledger / f"{key[:16]}.jsonl",
        model=key,
        seed=programs.seed,
        on_done=watch,
    )
    outcomes = ", ".join(f"{count} {kind}" for kind, count in sorted(result.outcomes.items()))
    protections = "; ".join(
        f"{name}: {how}" for name, how in result.protections.model_dump().items()
    )
    return Written(
        [],
        result.metrics,
        [
            f"{result.samples} programs a problem, temperature {programs.temperature:g}.",
            f"Of {name}: {outcomes}.",
            f"Protections while programs ran: {protections}.",
        ],
    )
