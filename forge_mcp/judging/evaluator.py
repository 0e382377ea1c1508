"""A tuned run against its base, and against what is deployed, on the same held-out examples.

One model is in memory at a time: the run, then its base, then the deployed run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import BadInput
from forge_mcp.judging.answers import generate_answers
from forge_mcp.judging.gate import Comparison, Contestant, Role, compare
from forge_mcp.judging.heldout import Case, held_out, learnt_from, sample
from forge_mcp.judging.perplexity import compute_perplexity
from forge_mcp.settings import JudgingSettings
from forge_mcp.training.bases import load_base
from forge_mcp.training.batching import Example, encode_row
from forge_mcp.training.run import load_run
from forge_mcp.workspace import Artifact

# What is done, out of how much, in words.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Deployed:
    """The run that is deployed, and the dataset it was trained on (None where that is gone)."""

    run: Artifact
    dataset: Artifact | None


@dataclass(frozen=True)
class Evaluation:
    """All that was measured. `contestants` begins with the base and the tuned run."""

    contestants: list[Contestant]
    comparisons: list[Comparison]
    base_name: str
    too_long: int
    seen_by_deployed: int
    seconds: dict[str, float]

    @property
    def reasons(self) -> list[str]:
        """Why the gate says no; empty where it says yes."""
        return [reason for comparison in self.comparisons for reason in comparison.reasons]


def evaluate_run(
    run: Artifact,
    dataset: Artifact,
    deployed: Deployed | None,
    settings: JudgingSettings,
    progress: Progress,
) -> Evaluation:
    """Measure the contestants and hold the gate.

    Args:
        run: the tuned model.
        dataset: the one it was trained on; its test split is asked.
        deployed: another run that is in use, if any.
        settings: how many examples, the gate's limits, the seed of the samples.
        progress: told after every example and batch of answers.

    Raises:
        BadInput: no held-out example, or none that fits into the model's context.
        CorruptArtifact, NotFound: a run, its base or the dataset is damaged or gone.
    """
    cases = held_out(dataset)
    seconds: dict[str, float] = {}
    arena = _Arena(settings, progress, models=3 if deployed else 2)

    tuned = load_run(run)
    room = context_length(tuned.base_path)
    fitting = [
        case
        for case in cases
        if fits(encode_row(case.row, tuned.tokenizer), room, settings.max_tokens)
    ]
    if not fitting:
        raise BadInput(
            f"No held-out example of {dataset.id} fits into the model's context.",
            cause=f"the context holds {room} tokens, of which an answer may take "
            f"{settings.max_tokens}",
            next_step="Lower judging.max_tokens or raft.max_document_chars, or choose a base "
            "with a longer context.",
        )
    scored = sample(fitting, settings.perplexity_examples, settings.seed)
    asked = sample(fitting, settings.max_examples, settings.seed)
    base_path, base_name = tuned.base_path, str(tuned.config["base"]["name"])
    after = arena.examine("tuned", run.id, tuned, room, scored, asked)
    del tuned
    seconds["tuned"] = arena.lap()

    before = arena.examine("base", base_name, load_base(str(base_path)), room, scored, asked)
    seconds["base"] = arena.lap()
    contestants = [before, after]
    comparisons = [compare(after, before, settings.max_perplexity_ratio, settings.seed)]

    seen = 0
    if deployed:
        loaded = load_run(deployed.run)
        current = arena.examine(
            "deployed", deployed.run.id, loaded, context_length(loaded.base_path), scored, asked
        )
        del loaded
        seconds["deployed"] = arena.lap()
        contestants.append(current)
        learnt = learnt_from(deployed.dataset) if deployed.dataset else set()
        fair, seen = _fair_ids(current.scored, current.asked, learnt)
        comparisons.append(
            compare(
                after.only(fair),
                current.only(fair),
                settings.max_perplexity_ratio,
                settings.seed,
            )
        )
    return Evaluation(contestants, comparisons, base_name, len(cases) - len(fitting), seen, seconds)


def fits(example: Example, room: int, max_tokens: int) -> bool:
    """Whether an example, and a generated answer to it, stay within a context of `room` tokens."""
    return max(len(example.tokens), example.start + max_tokens) <= room


def context_length(base: Path) -> int:
    """Tokens of a base's context, from its config.json."""
    return int(json.loads((base / "config.json").read_text("utf-8"))["max_position_embeddings"])


class _Arena:
    """Lets one model after the other do the same, and tells of it."""

    def __init__(self, settings: JudgingSettings, progress: Progress, models: int) -> None:
        self.settings = settings
        self.progress = progress
        self.models = models
        self.done = 0
        self.since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last call; frees what the last model held."""
        machine.mlx().clear_cache()
        now = time.perf_counter()
        passed, self.since = now - self.since, now
        return round(passed, 3)

    def examine(
        self,
        role: Role,
        name: str,
        loaded: Any,
        room: int,
        scored: Sequence[Case],
        asked: Sequence[Case],
    ) -> Contestant:
        """Measure one model, a LoadedRun or LoadedBase, on the cases that fit into its context."""
        total = self.models * (len(scored) + len(asked))
        encoded = {
            case.example.id: encode_row(case.row, loaded.tokenizer) for case in (*scored, *asked)
        }

        def within(cases: Sequence[Case]) -> list[Case]:
            return [
                case
                for case in cases
                if fits(encoded[case.example.id], room, self.settings.max_tokens)
            ]

        scored, asked = within(scored), within(asked)
        before = self.done

        def tell(what: str, offset: int) -> Callable[[int, int], None]:
            def told(done: int, of: int) -> None:
                self.done = before + offset + done
                self.progress(self.done, total, f"{role}: {what} {done}/{of}")

            return told

        perplexity = compute_perplexity(
            loaded.model,
            [encoded[case.example.id] for case in scored],
            [len(case.reference.encode()) for case in scored],
            tell("scored", 0),
        )
        answers = generate_answers(
            loaded.model,
            loaded.tokenizer,
            asked,
            [encoded[case.example.id] for case in asked],
            self.settings.max_tokens,
            tell("answered", len(scored)),
        )
        return Contestant(role, name, list(scored), perplexity, list(asked), answers)


def _fair_ids(
    scored: Sequence[Case], asked: Sequence[Case], learnt: set[str]
) -> tuple[set[str], int]:
    """Ids of the cases on which a model is compared, and how many it has learnt from.

    Those that it learnt from are left out. Where none would be left to score or to ask, the
    comparison is made on all, which can only favour it.
    """
    known = {
        case.example.id
        for case in (*scored, *asked)
        if any(oracle.content_hash in learnt for oracle in case.oracles)
    }
    ids = [{case.example.id for case in cases} for cases in (scored, asked)]
    every = ids[0] | ids[1]
    return (every - known if all(one - known for one in ids) else every), len(known)
