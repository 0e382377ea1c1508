"""How good an example is, 0 to 1, out of parts that anybody can measure again.

    score = verified · (0.25 relevance + 0.20 irrelevance + 0.20 support + 0.15 length
                        + 0.20 substance)

verified      1 if the fact follows from the code and every quote stands in an oracle, else 0
relevance     1 if retrieval finds the oracle first for the question, falling to 0.75 at rank 4
              (what `query` gives to the model by default) and on to 0
irrelevance   1 − the largest similarity of a distractor to an oracle (Jaccard of sub-token
              3-shingles), 0 where a distractor answers the question itself
support       share of the answer's words that its quotes and the oracles' headings show
length        1 for a chat of 150 to 6,000 characters, falling to 0 at 0 and 12,000
substance     mean quality score that mining gave the oracles (documentation, complexity, size)

True, well retrieved rows on undocumented one-liners score about 0.8, on documented functions
about 0.95; a false or unverifiable one scores 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from forge_mcp.quality.checks import validate_raft_example
from forge_mcp.quality.duplicates import find_duplicates
from forge_mcp.raft.documents import example_documents, similarity
from forge_mcp.raft.facts import KINDS, RELATED_KINDS
from forge_mcp.retrieval import Retriever
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    parse_answer,
    render_answer,
    render_document,
)
from forge_mcp.schemas.raft_examples import DIFFICULTIES, SPLITS, RaftExample

WEIGHTS = {
    "relevance": 0.25,
    "irrelevance": 0.20,
    "support": 0.20,
    "length": 0.15,
    "substance": 0.20,
}
RANK_SPAN = 12  # a rank is worth 1 − (rank − 1) / RANK_SPAN
LENGTHS = (0, 150, 6_000, 12_000)  # characters: worth nothing, everything, everything, nothing


@dataclass(frozen=True)
class ExampleScore:
    """The parts of one example's score, each 0 to 1, and what is wrong with it.

    `irrelevance` is None where the example has no distractor.
    """

    relevance: float
    irrelevance: float | None
    support: float
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
            "length": self.length,
            "substance": self.substance,
        }


def split_retrievers(
    examples: Sequence[RaftExample], documents: Mapping[str, CodeBlock]
) -> dict[str, Retriever]:
    """One index a split, over the documents that its examples use."""
    retrievers: dict[str, Retriever] = {}
    for split in SPLITS:
        used = {
            block_id
            for example in examples
            if example.split == split
            for block_id in (*example.oracle_ids, *example.distractor_ids)
        }
        blocks = [block for block_id, block in documents.items() if block_id in used]
        retrievers[split] = Retriever(blocks)
    return retrievers


def score_example(
    example: RaftExample, documents: Mapping[str, CodeBlock], retriever: Retriever
) -> ExampleScore:
    """The score of one example against the documents of its split."""
    _, messages = validate_raft_example(example, documents)
    shown = [*example.oracle_ids, *example.distractor_ids]
    if not example.oracle_ids or any(block_id not in documents for block_id in shown):
        return ExampleScore(0.0, None, 0.0, 0.0, 0.0, messages)
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    distractors = [documents[block_id] for block_id in example.distractor_ids]
    rank = retriever.rank(example.question, oracles[0].id)
    irrelevance = None
    if distractors:
        answering = any(message.startswith("answering_distractor") for message in messages)
        nearest = max(similarity(d, o) for d in distractors for o in oracles)
        irrelevance = 0.0 if answering else 1 - nearest
    answer = render_answer(example.reasoning, example.final_answer)
    size = len(example.question) + len(answer)
    size += sum(len(d.source_code) for d in example_documents(example, documents))
    return ExampleScore(
        relevance=max(0.0, 1 - (rank - 1) / RANK_SPAN) if rank else 0.0,
        irrelevance=irrelevance,
        support=_support(example, oracles),
        length=_trapezoid(size, *LENGTHS),
        substance=fmean(oracle.quality_score for oracle in oracles),
        messages=messages,
    )


def _support(example: RaftExample, oracles: Sequence[CodeBlock]) -> float:
    """Share of the answer's words that are shown; an answer that abstains has nothing to show."""
    if example.oracle_absent:
        return 1.0 if example.final_answer == ABSTAIN_ANSWER else 0.0
    words = set(re.findall(r"\w+", example.final_answer))
    if not words:
        return 0.0
    cited = parse_answer(render_answer(example.reasoning, "")).quotes
    headings = [render_document(oracle).partition("\n")[0] for oracle in oracles]
    seen = set(re.findall(r"\w+", " ".join([*cited, *headings])))
    return len(words & seen) / len(words)


def _trapezoid(x: float, low: float, full: float, still: float, high: float) -> float:
    if x <= low or x >= high:
        return 0.0
    if x < full:
        return (x - low) / (full - low)
    return 1.0 if x <= still else (high - x) / (high - still)


def example_text(example: RaftExample) -> str:
    """What is compared between examples: question and answer."""
    return f"{example.question}\n{render_answer(example.reasoning, example.final_answer)}"


def score_data_quality(
    examples: Sequence[RaftExample],
    documents: Mapping[str, CodeBlock],
    *,
    scores: Sequence[ExampleScore] | None = None,
    duplicate_threshold: float = 0.9,
) -> dict[str, float]:
    """Scores of a whole dataset, all in 0-1.

    Returns:
        overall: mean score of the examples.
        relevance, distractor_irrelevance, support, length, substance: means of the parts.
        diversity: entropy of the kinds of fact, 1 = all kinds equally often.
        difficulty_balance: entropy of the difficulties, 1 = all three equally often.
        duplicate_rate: share of examples that repeat another one of any split.
    """
    if scores is None:
        retrievers = split_retrievers(examples, documents)
        scores = [score_example(e, documents, retrievers[e.split]) for e in examples]
    if not examples:
        names = ("overall", *WEIGHTS, "diversity", "difficulty_balance", "duplicate_rate")
        zeros = dict.fromkeys(names, 0.0)
        zeros["distractor_irrelevance"] = zeros.pop("irrelevance")
        return zeros
    beside = [score.irrelevance for score in scores if score.irrelevance is not None]
    repeats = find_duplicates([example_text(e) for e in examples], duplicate_threshold)
    return {
        "overall": fmean(score.value for score in scores),
        "relevance": fmean(score.relevance for score in scores),
        "distractor_irrelevance": fmean(beside) if beside else 1.0,
        "support": fmean(score.support for score in scores),
        "length": fmean(score.length for score in scores),
        "substance": fmean(score.substance for score in scores),
        "diversity": _evenness(
            Counter(e.fact.kind for e in examples), len(KINDS) + len(RELATED_KINDS)
        ),
        "difficulty_balance": _evenness(Counter(e.difficulty for e in examples), len(DIFFICULTIES)),
        "duplicate_rate": len(repeats) / len(examples),
    }


def _evenness(counts: Mapping[str, int], classes: int) -> float:
    """Shannon entropy of a distribution divided by the largest that so many classes allow."""
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    return max(0.0, -sum(share * math.log(share) for share in shares) / math.log(classes))
