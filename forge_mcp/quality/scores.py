"""How good an example is, 0 to 1, out of parts that anybody can measure again.

    score = verified · Σ WEIGHTS[part] · part

verified      0 if any check of `forge_mcp.quality.checks` says no, else 1
relevance     1 if retrieval finds what the question is about first, 0.75 at rank 4 (what `query`
              gives to the model by default), falling on to 0 at rank 13 (relevance.py)
irrelevance   1 − the largest similarity of a distractor to an oracle (Jaccard of sub-token
              3-shingles); 1 where there is no distractor
support       share of the answer's words that quotes and headings of the oracles show
specificity   n / (n + 3) for n sub-tokens of the answer that the question does not hold: what the
              answer tells
depth         0.4 easy, 0.7 medium, 1 hard: how much has to be read for it
length        1 for a chat of 150 to 6,000 characters, falling to 0 at 0 and 12,000
substance     mean quality score that mining gave the oracles (documentation, complexity, size)

docs/data_quality.md says why, and shows the distribution on real repositories.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from forge_mcp.quality.among import faults_among
from forge_mcp.quality.answers import support
from forge_mcp.quality.checks import validate_raft_example
from forge_mcp.quality.reasons import reason_of
from forge_mcp.quality.relevance import rank_of, relevance, split_retrievers
from forge_mcp.raft.documents import example_documents, similarity
from forge_mcp.raft.facts import KINDS, RELATED_KINDS
from forge_mcp.retrieval import Retriever, subtokens
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import render_answer
from forge_mcp.schemas.raft_examples import DIFFICULTIES, RaftExample

WEIGHTS = {
    "relevance": 0.20,
    "irrelevance": 0.15,
    "support": 0.20,
    "specificity": 0.15,
    "depth": 0.10,
    "length": 0.05,
    "substance": 0.15,
}
LENGTHS = (0, 150, 6_000, 12_000)  # characters: worth nothing, everything, everything, nothing
DEPTHS = {"easy": 0.4, "medium": 0.7, "hard": 1.0}
HALF_SPECIFIC = 3  # sub-tokens of an answer beyond its question that are worth one half


@dataclass(frozen=True)
class ExampleScore:
    """The parts of one example's score, each 0 to 1, and what is wrong with it.

    `irrelevance` is None where the example has no distractor.
    """

    relevance: float
    irrelevance: float | None
    support: float
    specificity: float
    depth: float
    length: float
    substance: float
    messages: list[str]

    @property
    def value(self) -> float:
        """The score; 0 where anything in the example is wrong."""
        if self.messages:
            return 0.0
        parts = self.parts()
        return sum(weight * parts[name] for name, weight in WEIGHTS.items())

    def parts(self) -> dict[str, float]:
        """The parts by their names in `WEIGHTS`; without a distractor nothing is relevant."""
        return {
            "relevance": self.relevance,
            "irrelevance": 1.0 if self.irrelevance is None else self.irrelevance,
            "support": self.support,
            "specificity": self.specificity,
            "depth": self.depth,
            "length": self.length,
            "substance": self.substance,
        }


def score_example(
    example: RaftExample, documents: Mapping[str, CodeBlock], retriever: Retriever
) -> ExampleScore:
    """The score of one example against the documents of its split."""
    _, messages = validate_raft_example(example, documents)
    unusable = {"malformed", "missing_document", "no_oracle"}
    if not unusable.isdisjoint(reason_of(message) for message in messages):
        return ExampleScore(0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0, messages)
    asked = documents[example.fact.block]
    return _scored(example, documents, rank_of(example.question, asked, retriever), messages)


def _scored(
    example: RaftExample,
    documents: Mapping[str, CodeBlock],
    rank: int | None,
    messages: list[str],
) -> ExampleScore:
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    distractors = [documents[block_id] for block_id in example.distractor_ids]
    irrelevance = None
    if distractors:
        answering = any(reason_of(message) == "answering_distractor" for message in messages)
        nearest = max(similarity(d, o) for d in distractors for o in oracles)
        irrelevance = 0.0 if answering else 1 - nearest
    answer = render_answer(example.reasoning, example.final_answer)
    size = len(example.question) + len(answer)
    size += sum(len(d.source_code) for d in example_documents(example, documents))
    return ExampleScore(
        relevance=relevance(rank),
        irrelevance=irrelevance,
        support=support(example, oracles),
        specificity=_specificity(example),
        depth=DEPTHS[example.difficulty],
        length=_trapezoid(size, *LENGTHS),
        substance=fmean(oracle.quality_score for oracle in oracles),
        messages=messages,
    )


def _specificity(example: RaftExample) -> float:
    """How much the answer tells beyond what the question says."""
    new = set(subtokens(example.final_answer)) - set(subtokens(example.question))
    told = len(new) if new else float(bool(example.final_answer.strip()))
    return told / (told + HALF_SPECIFIC)


def _trapezoid(x: float, low: float, full: float, still: float, high: float) -> float:
    if x <= low or x >= high:
        return 0.0
    if x < full:
        return (x - low) / (full - low)
    return 1.0 if x <= still else (high - x) / (high - still)


def score_data_quality(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    *,
    scores: Sequence[ExampleScore] | None = None,
    duplicate_threshold: float = 0.9,
) -> dict[str, float]:
    """Scores of a whole dataset, all in 0-1.

    Args:
        examples: of the dataset.
        documents: by id.
        scores: of the examples, with what is wrong with them among the others, where they are
            known already.
        duplicate_threshold: Jaccard similarity from which two examples are one.

    Returns:
        overall: mean score of the examples.
        relevance, distractor_irrelevance, support, …: means of the parts.
        diversity: entropy of the kinds of fact, 1 = all kinds equally often.
        difficulty_balance: entropy of the difficulties, 1 = all three equally often.
        duplicate_rate: share of examples that repeat another one of any split.
        leak_rate: share of examples that show a document of another split.
    """
    if not examples:
        return dict.fromkeys(DIMENSIONS, 0.0)
    if scores is None:
        retrievers = split_retrievers(examples, documents)
        alone = [
            score_example(e, documents, retrievers.get(e.split, retrievers["train"]))
            for e in examples
        ]
        sound = [not score.messages for score in alone]
        among = faults_among(examples, documents, duplicate_threshold, sound)
        scores = [with_messages(s, more) for s, more in zip(alone, among, strict=True)]
    beside = [score.irrelevance for score in scores if score.irrelevance is not None]
    reasons = [{reason_of(message) for message in score.messages} for score in scores]
    found = {"overall": fmean(score.value for score in scores)}
    for part in WEIGHTS:
        found[_DIMENSION.get(part, part)] = fmean(score.parts()[part] for score in scores)
    found["distractor_irrelevance"] = fmean(beside) if beside else 1.0
    found["diversity"] = _evenness(
        Counter(e.fact.kind for e in examples), len({*KINDS, *RELATED_KINDS})
    )
    found["difficulty_balance"] = _evenness(
        Counter(e.difficulty for e in examples), len(DIFFICULTIES)
    )
    repeats = [any(reason.startswith("duplicate") for reason in r) for r in reasons]
    found["duplicate_rate"] = fmean(repeats)
    found["leak_rate"] = fmean("split_leak" in r for r in reasons)
    return found


def with_messages(score: ExampleScore, messages: Sequence[str]) -> ExampleScore:
    """The same score with more that is wrong; it is worth 0 then."""
    if not messages:
        return score
    return ExampleScore(**(vars(score) | {"messages": [*score.messages, *messages]}))


_DIMENSION = {"irrelevance": "distractor_irrelevance"}
DIMENSIONS = (
    "overall",
    *(_DIMENSION.get(part, part) for part in WEIGHTS),
    "diversity",
    "difficulty_balance",
    "duplicate_rate",
    "leak_rate",
)


def _evenness(counts: Mapping[str, int], classes: int) -> float:
    """Shannon entropy of a distribution divided by the largest that so many classes allow."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return max(0.0, -sum(share * math.log(share) for share in shares) / math.log(classes))
