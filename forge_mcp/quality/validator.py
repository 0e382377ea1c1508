"""Scoring a dataset, dropping what is below the thresholds, and the gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from forge_mcp.quality.checks import reason_of, validate_code_block
from forge_mcp.quality.duplicates import find_duplicates
from forge_mcp.quality.scores import (
    ExampleScore,
    example_text,
    score_data_quality,
    score_example,
    split_retrievers,
)
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.metrics import DataQualityMetrics
from forge_mcp.schemas.raft_examples import DIFFICULTIES, RaftExample, Split
from forge_mcp.settings import QualitySettings

VALIDATOR_VERSION = 1  # part of a validated dataset's inputs

# Who keeps a repeated example: a held-out split does, so that training never sees its questions.
PRECEDENCE: tuple[Split, ...] = ("test", "valid", "train")
NAMED_FAILURES = 10

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
    kept ones; `reasons` says why the gate refused (nothing: it passed).
    """

    judged: list[Judged]
    before: dict[str, float]
    after: dict[str, float]
    metrics: DataQualityMetrics
    dropped: dict[str, int]
    reasons: list[str]

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
) -> Validation:
    """Score every example, drop the bad ones, and decide whether the rest may be trained on."""
    from forge_mcp.mining.secrets import redact  # the one thing taken from mining

    bad_documents = _bad_documents(documents)
    retrievers = split_retrievers(examples, documents)
    scores = []
    for done, example in enumerate(examples, start=1):
        scores.append(score_example(example, documents, retrievers[example.split]))
        progress(done, len(examples))
    repeated = _repeated(examples, settings.duplicate_threshold)
    judged = []
    for index, (example, score) in enumerate(zip(examples, scores, strict=True)):
        reasons = [reason_of(message) for message in score.messages]
        shown = [*example.oracle_ids, *example.distractor_ids]
        reasons += [bad_documents[block_id] for block_id in shown if block_id in bad_documents]
        if redact(example_text(example))[1]:
            reasons.append("secret")
        if index in repeated:
            reasons.append(repeated[index])
        reasons += _below(score, settings)
        judged.append(Judged(example, score, list(dict.fromkeys(reasons))))
    kept = [j for j in judged if not j.reasons]
    kept_examples = [j.example for j in kept]
    before = score_data_quality(
        examples, documents, scores=scores, duplicate_threshold=settings.duplicate_threshold
    )
    after = score_data_quality(
        kept_examples,
        documents,
        scores=[j.score for j in kept],
        duplicate_threshold=settings.duplicate_threshold,
    )
    values = [j.score.value for j in kept]
    dropped = Counter(reason for j in judged for reason in j.reasons)
    metrics = DataQualityMetrics(
        total_examples=len(examples),
        valid_examples=len(kept),
        quality_score_mean=fmean(values) if values else 0.0,
        quality_score_std=pstdev(values) if values else 0.0,
        difficulty_distribution={
            d: sum(e.difficulty == d for e in kept_examples) for d in DIFFICULTIES
        },
        duplicate_rate=before["duplicate_rate"],
        avg_oracle_relevance=after["relevance"],
        avg_distractor_irrelevance=after["distractor_irrelevance"],
        failure_modes=[reason for reason, _ in dropped.most_common(NAMED_FAILURES)],
    )
    reasons = _gate(metrics, leaked_documents(kept_examples, documents), settings)
    return Validation(judged, before, after, metrics, dict(dropped.most_common()), reasons)


def _bad_documents(documents: Mapping[str, CodeBlock]) -> dict[str, str]:
    """Documents that must not be shown, with the reason."""
    from forge_mcp.mining.secrets import redact

    bad = {}
    for block_id, block in documents.items():
        valid, messages = validate_code_block(block, require_docstring=False)
        if not valid:
            bad[block_id] = reason_of(messages[0])
        elif redact(f"{block.path}\n{block.source_code}")[1]:
            bad[block_id] = "secret"
    return bad


def _repeated(examples: Sequence[RaftExample], threshold: float) -> dict[int, str]:
    """Indices of examples that repeat another one, with the reason."""
    order = sorted(range(len(examples)), key=lambda i: (PRECEDENCE.index(examples[i].split), i))
    found = find_duplicates([example_text(examples[i]) for i in order], threshold)
    return {
        order[later]: "duplicate"
        if examples[order[later]].split == examples[order[kept]].split
        else "duplicate_across_splits"
        for later, kept in found.items()
    }


def _below(score: ExampleScore, settings: QualitySettings) -> list[str]:
    """The thresholds that a true example does not reach."""
    if score.messages:
        return []
    reasons = []
    if score.value < settings.min_quality_score:
        reasons.append("low_quality")
    if score.relevance < settings.min_oracle_relevance:
        reasons.append("low_oracle_relevance")
    if score.irrelevance is not None and 1 - score.irrelevance > settings.max_distractor_relevance:
        reasons.append("high_distractor_relevance")
    return reasons


def leaked_documents(
    examples: Sequence[RaftExample], documents: Mapping[str, CodeBlock]
) -> list[str]:
    """Ids of training documents whose code a held-out example shows too."""
    held_out: set[str] = set()
    trained: dict[str, str] = {}
    for example in examples:
        for block_id in (*example.oracle_ids, *example.distractor_ids):
            content = documents[block_id].content_hash
            if example.split == "train":
                trained.setdefault(content, block_id)
            else:
                held_out.add(content)
    return sorted(trained[content] for content in held_out & trained.keys())


def _gate(metrics: DataQualityMetrics, leaked: list[str], settings: QualitySettings) -> list[str]:
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
    if leaked:
        reasons.append(
            f"{len(leaked)} documents of held-out examples are also trained on, "
            f"e.g. {leaked[0]}: make the dataset again with synthesize"
        )
    return reasons
