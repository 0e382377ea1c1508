"""How likely a model finds the facts themselves: apart from the words around them.

A tuned model has learnt the form of the answers too, and form makes most of their tokens. So the
tokens of the final answer that hold a letter or a digit are scored apart, the reference's reasoning
given: `fact_perplexity`. Signs are left out, because back-ticks and commas are form as well.

Even so a model may only have learnt what answers look like in this repository. `fact_choice` asks
for more: the true answer must be more likely, by token, than three answers to the same kind of
question about other code of the same repository. Guessing gives a quarter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import Floats, share
from forge_mcp.judging.perplexity import Perplexity, token_nll
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.prompt import ANSWER, render_answer
from forge_mcp.schemas.raft_examples import ChatRow
from forge_mcp.training.batching import Example, encode_row

ALTERNATIVES = 3
_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Likelihood:
    """What was measured on some cases, in their order.

    `answers`: of all tokens of the reference answers. `facts`: of the facts in them, of the cases
    `with_facts` (indices) that have one. `chosen`: by index, whether the true fact won against its
    alternatives; cases without three of these are absent.
    """

    ids: list[str]
    answers: Perplexity
    with_facts: list[int]
    facts: Perplexity
    chosen: dict[int, bool]

    def metrics(self, seed: int) -> list[Metric]:
        """perplexity, bits_per_byte, fact_perplexity and fact_choice, where there are such."""
        found = self.answers.metrics(seed)
        if self.with_facts:
            found += [m for m in self.facts.metrics(seed) if m.name == self.facts.name]
        chosen = share("fact_choice", sum(self.chosen.values()), len(self.chosen))
        return found + ([chosen] if chosen else [])

    def facts_of(self, ids: Sequence[str]) -> Perplexity:
        """The likelihood of the facts of these cases, in that order; all must have one."""
        place = {self.ids[index]: at for at, index in enumerate(self.with_facts)}
        return self.facts.select([place[id] for id in ids])

    @property
    def fact_ids(self) -> list[str]:
        """Ids of the cases with a fact."""
        return [self.ids[index] for index in self.with_facts]


@dataclass(frozen=True)
class Question:
    """A case as tokens, for one tokenizer.

    `fact`: which of the answer's tokens are of the fact (booleans). `others`: the same question
    with other answers, each with its own such marks.
    """

    case: Case
    example: Example
    fact: list[bool]
    others: list[tuple[Example, list[bool]]]


def questions(
    cases: Sequence[Case],
    tokenizer: Any,
    alternatives: Mapping[str, Sequence[str]],
    seed: int,
) -> list[Question]:
    """Cases as tokens, with alternatives to their answers.

    Args:
        cases: open- or closed-book.
        tokenizer: an mlx-lm TokenizerWrapper.
        alternatives: final answers by kind of fact, to draw from.
        seed: of the draws; a case has the same ones in every evaluation.
    """
    made = []
    for case in cases:
        example, fact = _encoded(case.row, tokenizer)
        kind, truth = case.example.fact.kind, case.example.final_answer
        found: list[tuple[Example, list[bool]]] = []
        # Of an answer that nothing is said, or that is a whole definition, there is no fact token
        # to speak of, or another definition would be told by its length.
        if not case.abstains and kind != "code":
            pool = sorted(set(alternatives.get(kind, ())) - {truth})
            if len(pool) >= ALTERNATIVES:
                drawn = random.Random(f"{seed} {case.example.id}").sample(  # noqa: S311
                    pool, ALTERNATIVES
                )
                found = [_encoded(_answered(case, other), tokenizer) for other in drawn]
        else:
            fact = [False] * len(fact)
        made.append(Question(case, example, fact, found))
    return made


def measure(
    model: Any,
    asked: Sequence[Question],
    window: int,
    on_example: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Score the answers to questions, and the alternatives to them.

    Args:
        model: an mlx-lm model in eval mode.
        asked: what `questions` made with this model's tokenizer, at least one.
        window: tokens of the model's context.
        on_example: called with (scored, in all).
    """
    rows = [question.example for question in asked]
    spans = []
    for question in asked:
        spans.append(slice(len(rows), len(rows) + len(question.others)))
        rows += [example for example, _ in question.others]
    values = token_nll(model, rows, window=window, on_example=on_example)
    nll = np.array([value.sum() for value in values[: len(asked)]])
    tokens = np.array([float(len(value)) for value in values[: len(asked)]])
    sizes = np.array([float(len(question.case.reference.encode())) for question in asked])
    facts = [np.array(question.fact) for question in asked]
    with_facts = [index for index, marks in enumerate(facts) if marks.any()]
    chosen = {
        index: all(
            _mean(values[index], facts[index]) < _mean(value, np.array(marks))
            for value, (_, marks) in zip(values[span], asked[index].others, strict=True)
        )
        for index, span in enumerate(spans)
        if asked[index].others and facts[index].any()
    }
    return Likelihood(
        ids=[question.case.example.id for question in asked],
        answers=Perplexity(nll, tokens, sizes),
        with_facts=with_facts,
        facts=Perplexity(
            np.array([values[index][facts[index]].sum() for index in with_facts]),
            np.array([float(facts[index].sum()) for index in with_facts]),
            np.array([float(len(asked[i].case.example.final_answer.encode())) for i in with_facts]),
            "fact_perplexity",
        ),
        chosen=chosen,
    )


def _mean(values: Floats, marks: Any) -> float:
    return float(values[marks].mean()) if marks.any() else float("inf")


def _answered(case: Case, final_answer: str) -> ChatRow:
    """The case's row with another final answer behind the same reasoning."""
    *turns, last = case.row.messages
    content = render_answer(case.example.reasoning, final_answer)
    return ChatRow(messages=[*turns, last.model_copy(update={"content": content})])


def _encoded(row: ChatRow, tokenizer: Any) -> tuple[Example, list[bool]]:
    """A row as tokens, and which tokens of its answer are of the fact."""
    example = encode_row(row, tokenizer)
    answer = example.tokens[example.start :]
    text = row.messages[-1].content
    head = text[: text.find(ANSWER) + len(ANSWER)]
    begins = _tokens_of(head, answer, tokenizer)
    ends = set(tokenizer.eos_token_ids)
    return example, [
        at >= begins and token not in ends and bool(_WORD.search(tokenizer.decode([token])))
        for at, token in enumerate(answer)
    ]


def _tokens_of(head: str, answer: Sequence[int], tokenizer: Any) -> int:
    """How many of the first tokens it takes to say `head`."""
    alone = tokenizer.encode(head, add_special_tokens=False)
    if list(answer[: len(alone)]) == alone:
        return len(alone)
    # Where a token joins the marker with what follows, or the template puts something before it.
    wanted = head.rstrip().rpartition(ANSWER)[1]
    return next(
        (
            count
            for count in range(1, len(answer) + 1)
            if wanted in tokenizer.decode(list(answer[:count]))
        ),
        len(answer),
    )
