"""What an evaluation measured: `EvaluationReport`, written as report.json.

The pages (markdown.py, page.py, plots.py) show what stands here and compute nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forge_mcp.schemas.base import Metric, Schema

# Who was asked: the models, and models that are given the documents that retrieval finds.
Contestant = Literal["base", "base_retrieval", "tuned", "tuned_retrieval", "deployed", "control"]
CONTESTANTS: dict[Contestant, str] = {
    "base": "base",
    "base_retrieval": "base + retrieval",
    "tuned": "tuned",
    "tuned_retrieval": "tuned + retrieval",
    "deployed": "deployed",
    "control": "control (tuned on another repository)",
}

# What was asked. open_book: held-out files, documents given. closed_book: trained code in words
# that no training row has, no documents (or those that retrieval finds). text: held-out source
# code. code: functions written again from their headers. humaneval: programs that are run.
SectionName = Literal["open_book", "closed_book", "text", "code", "humaneval", "speed"]
SECTIONS: dict[SectionName, str] = {
    "open_book": "Does it read? Held-out files, documents given",
    "closed_book": "Does it know? Trained code, new words, no documents",
    "text": "Held-out source code",
    "code": "Functions written from their headers",
    "humaneval": "HumanEval",
    "speed": "Speed",
}
LOWER_IS_BETTER = frozenset(
    {
        "perplexity",
        "bits_per_byte",
        "fact_perplexity",
        "false_abstention_rate",
        "hallucination_rate",
        "ms_per_token",
        "prompt_ms",
    }
)
# All other metrics are shares in 0-1.
NO_SHARES = frozenset(
    {"perplexity", "bits_per_byte", "fact_perplexity", "ms_per_token", "prompt_ms"}
)
MEANINGS = {
    "perplexity": "exp of the mean negative log-likelihood of the tokens that are scored",
    "bits_per_byte": "the same likelihood in bits, per byte of the text",
    "fact_perplexity": "perplexity of the words of the final answers alone, the reasoning given",
    "fact_choice": "the true fact is more likely than three of the same kind about other code / "
    "all; guessing gives a quarter",
    "answer_accuracy": "final answers equal to the expected one / all",
    "citation_precision": "citations that are, byte for byte, in a given document / citations",
    "citation_recall": "answers with such a citation / questions whose reference has one",
    "abstention_accuracy": "'do not say' / questions whose documents do not say",
    "false_abstention_rate": "'do not say' / questions whose documents do say",
    "hallucination_rate": "claims (the stated fact, citations, back-ticked names) that neither the "
    "given documents nor the repository support / claims",
    "stopped_at_eos": "answers that the model ended by itself / all",
    "codebleu": "CodeBLEU of what was written against the repository's code, mean over functions",
    "edit_similarity": "1 - edit distance / length of the longer, of the code below what was given",
    "embedding_similarity": "cosine of the encoder's vectors of what was written and of the code",
    "compiles": "written functions without a syntax error / all",
    "pass@1": "problems that one program solves, expected",
    "pass@10": "problems that one of ten programs solves, expected",
    "ms_per_token": "milliseconds per generated token, one question at a time",
    "prompt_ms": "milliseconds until the first token of an answer",
}


class ScoredAnswer(Schema):
    """One generated answer and what was found in it. `stopped`: the model ended its turn itself;
    `unsupported`: the claims that nothing supports."""

    text: str
    final_answer: str
    right: bool
    abstained: bool
    stopped: bool
    quotes: int
    verified_quotes: int
    claims: int
    unsupported: list[str]


class Answered(Schema):
    """A question, what was expected, and what each contestant wrote: a row of answers.jsonl."""

    id: str
    section: SectionName
    kind: str
    difficulty: str
    question: str
    expected: str
    answers: dict[Contestant, ScoredAnswer]


class GroupAccuracy(Schema):
    """Right answers to one group of questions: of one kind of fact or one difficulty."""

    group: str
    accuracy: dict[Contestant, Metric]


class Section(Schema):
    """One part of the examination. `of`: how many questions there were to choose from."""

    name: SectionName
    asked: int
    of: int
    metrics: dict[Contestant, list[Metric]]
    by_kind: list[GroupAccuracy] = Field(default_factory=list)
    by_difficulty: list[GroupAccuracy] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list, description="What a reader has to know.")
    seconds: float


class Target(Schema):
    """A threshold of the specification, from the settings; `met` is null where nothing was
    measured. Targets are shown; they decide nothing."""

    name: str
    section: SectionName
    metric: str
    value: Metric | None
    threshold: float
    at_most: bool
    met: bool | None


class Comparison(Schema):
    """The tuned model against one other, on the same questions, paired.

    `differences`: ratios of perplexities (below 1 is better) and differences of shares (above 0 is
    better). `better`, `worse`: which of them are so beyond the noise.
    """

    against: Contestant
    differences: list[Metric]
    better: list[str]
    worse: list[str]
    reasons: list[str] = Field(description="Why this comparison says no; empty: it says yes.")
    n_left_out: int = Field(
        default=0, description="Questions that the other model was trained on, left out here."
    )


class Divergence(Schema):
    """Perplexity by example in the order asked; null where it is no number, or no finite one: the
    model has diverged."""

    contestant: Contestant
    section: SectionName
    per_example: list[float | None]


class EvaluationReport(Schema):
    """Everything that an evaluation measured, and nothing else; `report.json`."""

    model_name: str
    base_model: str
    deployed_model: str | None
    control_model: str | None
    training_date: str
    dataset: str
    num_training_examples: int
    num_eval_examples: int

    passed: bool
    reasons: list[str] = Field(description="Why not; empty where it passed.")
    targets: list[Target]
    comparisons: list[Comparison]

    # The specification's figures of the tuned model; null: not measured, and a note says why.
    perplexity: float | None
    codebleu_score: float | None
    humaneval_pass_rate: float | None
    reconstruction_score: float | None
    hallucination_rate: float | None
    improvement_over_base: dict[str, float] = Field(
        description="Percent of the base's value, positive where tuned is better. By 'metric' for "
        "open-book questions, else 'section.metric'."
    )

    sections: list[Section]
    divergence: list[Divergence]
    budget_note: str = Field(description="What was left out to keep to --minutes; '' = nothing.")
    not_measured: list[str]
    settings: dict[str, Any]
    machine: dict[str, str]
    seconds: float
    loss_curve: str = "loss_curve.png"
    metric_distribution: str = "metrics.png"

    def section(self, name: SectionName) -> Section | None:
        """The section of a name, where it was held."""
        return next((one for one in self.sections if one.name == name), None)
