"""What a model answers to held-out questions, with the documents given, and how right that is.

Answers are generated greedily. Everything scored is mechanical and can be checked by hand:

- **right**: the final answer equals the expected one after `normalise`; where it lists code items
  whose order says nothing (`UNORDERED_KINDS`), in any order.
- **verified quote**: a citation that is, byte for byte, part of a document given (`find_quote`).
- **claim**: a citation, or an identifier between back-ticks. A citation is supported when it is
  verified; an identifier when it stands as a word in the user's turn (documents or question), or
  is a literal such as None. Unsupported claims over all claims is the hallucination rate: RAGAS'
  faithfulness (arXiv 2309.15217, section 3) turned round. Claims in other words are not seen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import share
from forge_mcp.machine import mlx
from forge_mcp.schemas.base import Metric, Schema
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, find_quote, parse_answer
from forge_mcp.training.batching import Example

BATCH = 16  # prompts that are answered together
UNORDERED_KINDS = frozenset(
    {"raises", "calls", "methods", "imports", "returns", "callee_raises", "callers"}
)
LITERALS = frozenset({"None", "True", "False", "null", "undefined", "nil", "true", "false"})

_SPAN = re.compile(r"`([^`\n]+)`")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


class ScoredAnswer(Schema):
    """One generated answer and what was found in it. `stopped`: the model ended its turn itself."""

    text: str
    final_answer: str
    right: bool
    abstained: bool
    stopped: bool
    quotes: int
    verified_quotes: int
    claims: int
    unsupported_claims: int


def normalise(answer: str) -> str:
    """A final answer for comparison: NFC, no back-ticks, single blanks, no full stop at the end.

    Upper and lower case stay, because names in code differ by them.
    """
    text = unicodedata.normalize("NFC", answer).replace("`", "")
    return " ".join(text.split()).rstrip(".").rstrip()


def same_answer(kind: str, given: str, expected: str) -> bool:
    """Whether a final answer says what is expected of this kind of fact."""
    if normalise(given) == normalise(expected):
        return True
    if kind not in UNORDERED_KINDS:
        return False
    # Around the items nothing may stand but what joins them.
    (items, around), (wanted, frame) = map(_take_apart, (given, expected))
    return items == wanted and bool(items) and around == frame


def _take_apart(answer: str) -> tuple[list[str], str]:
    """The items between back-ticks, sorted, and the text around them without commas and blanks."""
    items = sorted(" ".join(span.split()) for span in _SPAN.findall(answer))
    return items, normalise(_SPAN.sub("", answer).replace(",", "")).replace(" ", "")


def score_answer(case: Case, text: str, stopped: bool) -> ScoredAnswer:
    """Compare what a model wrote with the reference and the documents of a case."""
    parsed = parse_answer(text)
    final = normalise(parsed.final_answer)
    verified = sum(find_quote(quoted, case.documents) is not None for quoted in parsed.quotes)
    named = {word for span in _SPAN.findall(text) for word in _IDENTIFIER.findall(span)}
    told = set(_IDENTIFIER.findall(case.prompt)) | LITERALS
    return ScoredAnswer(
        text=text,
        final_answer=parsed.final_answer,
        right=parsed.complete
        and same_answer(case.example.fact.kind, parsed.final_answer, case.example.final_answer),
        abstained=final == normalise(ABSTAIN_ANSWER),
        stopped=stopped,
        quotes=len(parsed.quotes),
        verified_quotes=verified,
        claims=len(parsed.quotes) + len(named),
        unsupported_claims=len(parsed.quotes) - verified + len(named - told),
    )


def generate_answers(
    model: Any,
    tokenizer: Any,
    cases: Sequence[Case],
    examples: Sequence[Example],
    max_tokens: int,
    on_answer: Callable[[int, int], None] | None = None,
) -> list[ScoredAnswer]:
    """Let a model answer every case greedily, in batches of prompts of about one length.

    Args:
        model: an mlx-lm model in eval mode.
        tokenizer: its mlx-lm TokenizerWrapper.
        cases: the questions.
        examples: the same, tokenised; only their prompts are given to the model.
        max_tokens: an answer is cut after so many.
        on_answer: called with (answers done, answers in all) after each batch.

    Returns:
        The scored answers, in the order of `cases`.
    """
    mlx()
    from mlx_lm import batch_generate

    prompts = [example.tokens[: example.start] for example in examples]
    order = sorted(range(len(cases)), key=lambda index: len(prompts[index]))
    scored: dict[int, ScoredAnswer] = {}
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        response = batch_generate(
            model,
            tokenizer,
            [prompts[index] for index in batch],
            max_tokens=max_tokens,
            return_token_ids=True,
        )
        for index, text, tokens in zip(batch, response.texts, response.token_ids, strict=True):
            # The token that ends the turn is not among them, so a whole answer is a shorter one.
            scored[index] = score_answer(cases[index], text, stopped=len(tokens) < max_tokens)
        if on_answer:
            on_answer(len(scored), len(cases))
    return [scored[index] for index in range(len(cases))]


def answer_metrics(cases: Sequence[Case], answers: Sequence[ScoredAnswer]) -> list[Metric]:
    """The shares over a set of answers, with Wilson intervals; what had nothing to count is absent.

    answer_accuracy        right answers / all
    citation_precision     verified quotes / quotes made (quotes are taken as independent)
    citation_recall        answers with a verified quote / cases whose reference has one
    abstention_accuracy    abstentions / cases where the documents do not say
    false_abstention_rate  abstentions / cases where they do
    hallucination_rate     unsupported claims / claims (claims are taken as independent)
    stopped_at_eos         answers that the model ended itself / all
    """
    pairs = list(zip(cases, answers, strict=True))
    cited = [a for case, a in pairs if _verified_in_reference(case)]
    absent = [a for case, a in pairs if case.abstains]
    present = [a for case, a in pairs if not case.abstains]
    found = [
        share("answer_accuracy", sum(a.right for a in answers), len(answers)),
        share(
            "citation_precision",
            sum(a.verified_quotes for a in answers),
            sum(a.quotes for a in answers),
        ),
        share("citation_recall", sum(a.verified_quotes > 0 for a in cited), len(cited)),
        share("abstention_accuracy", sum(a.abstained for a in absent), len(absent)),
        share("false_abstention_rate", sum(a.abstained for a in present), len(present)),
        evaluate_hallucination_rate(answers),
        share("stopped_at_eos", sum(a.stopped for a in answers), len(answers)),
    ]
    return [metric for metric in found if metric is not None]


def evaluate_hallucination_rate(answers: Sequence[ScoredAnswer]) -> Metric | None:
    """Unsupported claims over all claims of some answers; None where none claims anything."""
    return share(
        "hallucination_rate",
        sum(answer.unsupported_claims for answer in answers),
        sum(answer.claims for answer in answers),
    )


def _verified_in_reference(case: Case) -> bool:
    quotes = parse_answer(case.reference).quotes
    return any(find_quote(quoted, case.documents) is not None for quoted in quotes)
