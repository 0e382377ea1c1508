"""Scoring a dataset, dropping what is below the thresholds, and the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev

from forge_mcp.machine import without_collection
from forge_mcp.quality.among import faults_among
from forge_mcp.quality.checks import example_text
from forge_mcp.quality.contamination import Contamination, load_humaneval
from forge_mcp.quality.reasons import reason_of
from forge_mcp.quality.relevance import split_retrievers
from forge_mcp.quality.rows import RowFault
from forge_mcp.quality.scores import (
    ExampleScore,
    score_data_quality,
    score_example,
    with_messages,
)
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.metrics import DataQualityMetrics
from forge_mcp.schemas.raft_examples import DIFFICULTIES, RaftExample
from forge_mcp.settings import QualitySettings

VALIDATOR_VERSION = 2  # part of a validated dataset's inputs
NAMED_FAILURES = 10
PROGRESS_EVERY = 100  # examples
EXACT = 1e-9  # 1 − (1 − 0.3) is a little more than 0.3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judged:
    """An example, its score, and why it is dropped (nothing: it is kept)."""

    example: RaftExample
    score: ExampleScore
    reasons: list[str]


@dataclass(frozen=True)
class Validation:
    """What `validate_dataset` found.

    `before` and `after` are the dimensions of `score_data_quality` for all examples and for the
    kept ones; `reasons` says why the gate refused (nothing: it passed). `malformed` are rows that
    are no examples; `documents` holds what the examples show, by id.
    """

    judged: list[Judged]
    before: dict[str, float]
    after: dict[str, float]
    metrics: DataQualityMetrics
    dropped: dict[str, int]
    reasons: list[str]
    malformed: list[RowFault] = field(default_factory=list)
    documents: Mapping[str, CodeBlock] = field(default_factory=dict)
    preferences: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> list[RaftExample]:
        """The examples to train on, with their quality filled in."""
        return [
            judged.example.model_copy(update={"quality": round(judged.score.value, 4)})
            for judged in self.judged
            if not judged.reasons
        ]

    @property
    def passed(self) -> bool:
        """Whether the gate lets the dataset through."""
        return not self.reasons


def validate_dataset(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    settings: QualitySettings,
    progress: Progress = lambda done, total: None,
    *,
    malformed: Sequence[RowFault] = (),
) -> Validation:
    """Score every example, drop the bad ones, and decide whether the rest may be trained on.

    Args:
        examples: the rows of the dataset.
        documents: what they show, by id.
        settings: the quality section.
        progress: called as (examples done, examples in all).
        malformed: rows that could not be read as examples; they are counted and reported.

    Raises:
        BadInput: quality.humaneval_path is no file of HumanEval problems.
    """
    with without_collection():
        return _validate(examples, documents, settings, progress, malformed)


def _validate(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    settings: QualitySettings,
    progress: Progress,
    malformed: Sequence[RowFault],
) -> Validation:
    contamination = None
    if settings.humaneval_path:
        contamination = Contamination(load_humaneval(Path(settings.humaneval_path).expanduser()))
    retrievers = split_retrievers(examples, documents)
    scores: list[ExampleScore] = []
    for index, example in enumerate(examples):
        retriever = retrievers.get(example.split, retrievers["train"])
        score = score_example(example, documents, retriever)
        scores.append(with_messages(score, _contaminated(example, documents, contamination)))
        if index % PROGRESS_EVERY == 0:
            progress(index, len(examples))
    progress(len(examples), len(examples))
    sound = [not score.messages for score in scores]
    among = faults_among(examples, documents, settings.duplicate_threshold, sound)
    judged = []
    for example, alone, more in zip(examples, scores, among, strict=True):
        score = with_messages(alone, more)
        reasons = [reason_of(message) for message in score.messages] or _below(score, settings)
        judged.append(Judged(example, score, list(dict.fromkeys(reasons))))
    kept = [j for j in judged if not j.reasons]
    before, after = (
        score_data_quality([j.example for j in some], documents, scores=[j.score for j in some])
        for some in (judged, kept)
    )
    values = [j.score.value for j in kept]
    dropped = Counter(reason for j in judged for reason in j.reasons)
    dropped.update(fault.reason for fault in malformed)
    metrics = DataQualityMetrics(
        total_examples=len(examples) + len(malformed),
        valid_examples=len(kept),
        quality_score_mean=fmean(values) if values else 0.0,
        quality_score_std=pstdev(values) if values else 0.0,
        difficulty_distribution={
            d: sum(j.example.difficulty == d for j in kept) for d in DIFFICULTIES
        },
        duplicate_rate=before["duplicate_rate"],
        avg_oracle_relevance=after["relevance"],
        avg_distractor_irrelevance=after["distractor_irrelevance"],
        failure_modes=[reason for reason, _ in dropped.most_common(NAMED_FAILURES)],
        diversity=after["diversity"],
        difficulty_balance=after["difficulty_balance"],
        leak_rate=before["leak_rate"],
        contaminated_examples=dropped["contaminated"] if contamination else None,
    )
    return Validation(
        judged,
        before,
        after,
        metrics,
        dict(sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))),
        _gate(metrics, settings),
        list(malformed),
        documents,
    )


def _contaminated(
    example: RaftExample, documents: Mapping[str, CodeBlock], contamination: Contamination | None
) -> list[str]:
    """What of an example is a HumanEval problem's."""
    if contamination is None:
        return []
    found = []
    if contamination.in_text(example_text(example)):
        found.append("contaminated: question, reasoning or answer")
    for block_id in (*example.oracle_ids, *example.distractor_ids):
        block = documents.get(block_id)
        if block and contamination.in_document(block.content_hash, block.source_code):
            found.append(f"contaminated: {block_id}")
    return found


def _below(score: ExampleScore, settings: QualitySettings) -> list[str]:
    """The thresholds that a true example does not reach."""
    reasons = []
    if score.value < settings.min_quality_score:
        reasons.append("low_quality")
    if score.relevance < settings.min_oracle_relevance:
        reasons.append("low_oracle_relevance")
    if (
        score.irrelevance is not None
        and 1 - score.irrelevance > settings.max_distractor_relevance + EXACT
    ):
        reasons.append("high_distractor_relevance")
    return reasons


def _gate(metrics: DataQualityMetrics, settings: QualitySettings) -> list[str]:
    reasons = []
    if metrics.valid_examples < settings.min_examples:
        reasons.append(
            f"{metrics.valid_examples} good examples are left, {settings.min_examples} are needed "
            "(quality.min_examples)"
        )
    if metrics.quality_score_mean < settings.min_quality_score:
        reasons.append(
            f"the mean score is {metrics.quality_score_mean:.2f}, "
            f"{settings.min_quality_score:.2f} is needed (quality.min_quality_score)"
        )
    return reasons
