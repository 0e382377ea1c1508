"""A tuned run against its base, against what is deployed and against a control, in one sitting.

One model is in memory at a time. All are asked the same questions, of which each leaves out those
that do not fit into its own context; what is compared is compared on what both were asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import BadInput, GateRefused
from forge_mcp.judging.gate import compare
from forge_mcp.judging.heldout import Examination, Learnt
from forge_mcp.judging.schedule import Clock, Tell
from forge_mcp.judging.sitting import (
    Evaluation,
    Exam,
    Opponent,
    Sitting,
    context_length,
    fits,
)
from forge_mcp.settings import JudgingSettings
from forge_mcp.training.bases import load_base
from forge_mcp.training.run import load_run
from forge_mcp.workspace import Artifact

MOST_SEEN = 0.5  # share of the questions that a run may have been trained on; they are left out


def evaluate_run(
    run: Artifact,
    learnt: Learnt,
    exam: Exam,
    opponents: Sequence[Opponent],
    settings: JudgingSettings,
    tell: Tell,
) -> Evaluation:
    """Measure all contestants and hold the gate.

    Args:
        run: the tuned model.
        learnt: what it was trained on: such questions are left out.
        exam: what is asked.
        opponents: what is deployed, a control.
        settings: how many questions, the budget, the gate's limit, the seed of the samples.
        tell: told how far the work is.

    Raises:
        GateRefused: the run was trained on most of the questions.
        BadInput: no held-out question fits into the model's context.
        CorruptArtifact, NotFound: a run, its base or the dataset is damaged or gone.
    """
    cases, seen = _unseen(exam.cases, learnt, run.id)
    tuned = load_run(run)
    room = context_length(tuned.base_path)
    fitting = _that_fit(cases, tuned.tokenizer, room, settings.max_tokens)
    if not fitting.open_book:
        raise BadInput(
            "No held-out question fits into the model's context.",
            cause=f"the context holds {room} tokens, of which an answer may take "
            f"{settings.max_tokens}",
            next_step="Lower judging.max_tokens or raft.max_document_chars, or choose a base "
            "with a longer context.",
        )
    sitting = Sitting(exam, fitting, learnt, settings, Clock(tell), opponents)
    left_out = len(cases.open_book) + len(cases.closed_book)
    left_out -= len(fitting.open_book) + len(fitting.closed_book)
    if left_out:
        sitting.note("open_book", f"{left_out} questions are too long for the model's context.")
    if seen:
        sitting.note("open_book", f"{seen} questions were left out: the run was trained on them.")
    sitting.plan(tuned, room)

    base_path, base_config = tuned.base_path, tuned.config["base"]
    base_name = str(base_config["name"])
    after = sitting.examine("tuned", run.id, run.manifest.inputs_hash, tuned, room)
    del tuned
    machine.mlx().clear_cache()
    loaded = load_base(str(base_path))
    before = sitting.examine("base", base_name, base_config["weights_sha256"], loaded, room)
    del loaded
    machine.mlx().clear_cache()

    limit, seed = settings.max_perplexity_ratio, settings.seed
    comparisons = [compare(after, before, limit, seed)]
    for opponent in opponents:
        other = load_run(opponent.run)
        context = context_length(other.base_path)
        identity = opponent.run.manifest.inputs_hash
        paper = sitting.examine(opponent.contestant, opponent.run.id, identity, other, context)
        del other
        machine.mlx().clear_cache()
        unfair = _seen_by(opponent, fitting)
        comparisons.append(compare(after, paper, limit, seed, unfair))
    return sitting.finish(comparisons, base_name)


def _unseen(cases: Examination, learnt: Learnt, run: str) -> tuple[Examination, int]:
    """The questions that a run was not trained on, and how many it was.

    Raises:
        GateRefused: most of them: then the questions are not held out, whatever the split is
            called, and what is left of them would be no fair sample.
    """
    unseen = Examination(
        [case for case in cases.open_book if not learnt.holds(case)],
        [case for case in cases.closed_book if not learnt.holds(case)],
    )
    total = len(cases.open_book) + len(cases.closed_book)
    seen = total - len(unseen.open_book) - len(unseen.closed_book)
    if not unseen.open_book or seen > MOST_SEEN * total:
        raise GateRefused(
            f"{run} cannot be judged on these questions: it was trained on them.",
            cause=f"{seen} of {total} questions, or the code that they are about, stand in the "
            "run's own training data",
            next_step="Judge it on the dataset that it was trained on, whose test split was held "
            "out, or on another one whose test files it has not seen.",
        )
    # Closed-book questions are about what was trained on; about other code they show nothing.
    known = [case for case in unseen.closed_book if learnt.knows(case)]
    return replace(unseen, closed_book=known), seen


def _that_fit(cases: Examination, tokenizer: Any, room: int, max_tokens: int) -> Examination:
    return Examination(
        [case for case in cases.open_book if fits(case, tokenizer, room, max_tokens)],
        [case for case in cases.closed_book if fits(case, tokenizer, room, max_tokens)],
    )


def _seen_by(opponent: Opponent, cases: Examination) -> set[str]:
    """Ids of open-book questions that another run was trained on.

    Where none would be left, the comparison is made on all, which can only favour the other.
    """
    if opponent.learnt is None:
        return set()
    ids = {case.example.id for case in cases.open_book}
    seen = {case.example.id for case in cases.open_book if opponent.learnt.holds(case)}
    return seen if ids - seen else set()
