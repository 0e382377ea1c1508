"""Chat rows to token sequences, their order, and rows of several examples without padding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from forge_mcp.errors import BadInput, CorruptArtifact, UnsupportedModel
from forge_mcp.schemas.prompt import ANSWER, BEGIN_QUOTE, END_QUOTE
from forge_mcp.schemas.raft_examples import ChatRow

QUOTE = re.compile(f"{BEGIN_QUOTE}.*?{END_QUOTE}", flags=re.DOTALL)


@dataclass(frozen=True)
class Example:
    """One tokenised chat.

    tokens: the chat up to and with the answer's end token; start: index of the answer's first
    token. The tokens from `start` on are learnt, those before are only read. weights: how much
    each learnt token counts in the loss; None = all 1.
    """

    tokens: list[int]
    start: int
    weights: list[float] | None = None

    @property
    def answer_tokens(self) -> int:
        """Number of tokens that are learnt."""
        return len(self.tokens) - self.start

    @property
    def weight(self) -> float:
        """Sum of the weights of the learnt tokens."""
        return float(self.answer_tokens) if self.weights is None else sum(self.weights)


@dataclass(frozen=True)
class Row:
    """Examples that are computed together, one behind the other, each seeing only itself."""

    examples: tuple[Example, ...]

    @property
    def length(self) -> int:
        """Tokens, none of them padding."""
        return sum(len(example.tokens) for example in self.examples)


class PartWeights(NamedTuple):
    """How much a token counts in the loss, by the part of an answer that it stands in.

    quote: `##begin_quote##…##end_quote##` with its markers; answer: from `<ANSWER>:` to the end
    token; reasoning: what else is before it.
    """

    reasoning: float = 1.0
    quote: float = 1.0
    answer: float = 1.0


class Tokenised(NamedTuple):
    """Examples that fit, and how many were left out because they are longer than allowed."""

    examples: list[Example]
    too_long: int


def read_rows(path: Path) -> Iterator[ChatRow]:
    """The rows of a train/valid/test.jsonl.

    Raises:
        CorruptArtifact: a row that is no chat; file and line are named.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = ChatRow.model_validate(json.loads(line))
                if len(row.messages) < 2 or row.messages[-1].role != "assistant":
                    raise ValueError("the last message must be the assistant's")
            except (ValueError, ValidationError) as error:
                raise CorruptArtifact(
                    f"{path.name}, line {number}: this is no training row.",
                    cause=str(error).splitlines()[0],
                    next_step="Make the dataset again: 'forge-mcp synthesize'.",
                ) from error
            yield row


def tokenise(
    rows: Iterable[ChatRow], tokenizer: Any, max_length: int, weights: PartWeights | None = None
) -> Tokenised:
    """Render rows with the tokenizer's chat template.

    Prompt and answer are tokenised apart and joined: at inference, too, the prompt is tokenised
    without the answer.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper.
        max_length: tokens; longer examples are counted and left out, never cut.
        weights: of the parts of an answer; None, or all 1, is the plain loss.

    Raises:
        UnsupportedModel: no chat template, or one that does not end answers with an end token; or
            weights for a tokenizer that does not tell where its tokens stand.
    """
    if not tokenizer.has_chat_template:
        raise UnsupportedModel(
            "The base model's tokenizer has no chat template.",
            next_step="Choose an instruction-tuned base, or one with a chat template.",
        )
    found = [encode_row(row, tokenizer, weights) for row in rows]
    kept = [example for example in found if len(example.tokens) <= max_length]
    return Tokenised(kept, len(found) - len(kept))


def encode_row(row: ChatRow, tokenizer: Any, weights: PartWeights | None = None) -> Example:
    """One row as tokens; see `tokenise`."""
    messages = [message.model_dump() for message in row.messages]
    prompt = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(prompt):
        raise UnsupportedModel(
            "The base model's chat template writes a prompt differently once it is answered.",
            next_step="Choose another base, or correct its chat template.",
        )
    head = tokenizer.encode(prompt, add_special_tokens=False)
    text = whole[len(prompt) :]
    answer = tokenizer.encode(text, add_special_tokens=False)
    ends = [at for at, token in enumerate(answer) if token in tokenizer.eos_token_ids]
    if not ends:
        raise UnsupportedModel(
            "The base model's chat template does not end an answer with an end token.",
            cause=f"end tokens: {sorted(tokenizer.eos_token_ids)}",
            next_step="Choose an instruction-tuned base: a model trained on this would never stop.",
        )
    counts = None
    if weights is not None and weights != PartWeights():
        counts = _token_weights(text, answer, tokenizer, weights)[: ends[-1] + 1]
    return Example(head + answer[: ends[-1] + 1], len(head), counts)


def _token_weights(
    text: str, tokens: list[int], tokenizer: Any, weights: PartWeights
) -> list[float]:
    """A weight for each token of an answer, by the part of its first character."""
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            "reasoning_weight, quote_weight and answer_weight cannot be used with this base.",
            cause="its tokenizer does not tell which characters its tokens stand for",
            next_step="Set all three to 1, or choose a base with a tokenizer.json.",
        )
    found = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    if found.ids != tokens:  # or the weights would be put on the wrong tokens
        raise UnsupportedModel(
            "reasoning_weight, quote_weight and answer_weight cannot be used with this base.",
            cause="its tokenizer reads a text differently when it is asked for positions",
            next_step="Set all three to 1, or choose another base.",
        )
    answer_begins = max(text.find(ANSWER), 0)  # a row without reasoning is all answer
    quotes = [match.span() for match in QUOTE.finditer(text)]

    def weight(at: int) -> float:
        if at >= answer_begins:
            return weights.answer
        quoted = any(begin <= at < end for begin, end in quotes)
        return weights.quote if quoted else weights.reasoning

    return [weight(begin) for begin, _ in found.offsets]


def sample(rows: Sequence[ChatRow], count: int, seed: int) -> list[ChatRow]:
    """At most `count` rows, drawn by the seed, in their own order."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[index] for index in sorted(chosen)]


def batches(
    count: int, examples_per_step: int, seed: int, first_step: int = 0
) -> Iterator[list[int]]:
    """Endless batches of indices, shuffled anew each epoch.

    The order is a function of seed and epoch alone, so `first_step` enters it anywhere: this is
    all the state that a resumed run needs. The last batch of an epoch may be smaller.
    """
    per_epoch = steps_per_epoch(count, examples_per_step)
    step = first_step
    while True:
        epoch, at = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for begin in range(at * examples_per_step, count, examples_per_step):
            yield [int(index) for index in order[begin : begin + examples_per_step]]
            step += 1


def steps_per_epoch(count: int, examples_per_step: int) -> int:
    """Optimiser steps in which every example is seen once."""
    return -(-count // examples_per_step)


def check_not_empty(kept: Tokenised, max_length: int) -> None:
    """Raises:
    BadInput: no example fits.
    """
    if not kept.examples:
        raise BadInput(
            "There is nothing to train on.",
            cause=f"all {kept.too_long} examples are longer than {max_length} tokens"
            if kept.too_long
            else "train.jsonl is empty",
            next_step="Raise training.max_seq_length, or make a dataset with shorter documents."
            if kept.too_long
            else "Make a dataset with more examples.",
        )


def pack(examples: Sequence[Example], max_tokens: int, max_examples: int) -> list[Row]:
    """Put examples into few rows of at most `max_tokens` tokens and `max_examples` examples.

    An example that is longer by itself has a row of its own. Long ones come first and those of
    like length lie together, in rows as even as can be: where the cores share a row's examples,
    all have the same to do. The same examples in the same order give the same rows.
    """
    ordered = sorted(examples, key=lambda one: -len(one.tokens))
    rows = _filled(ordered, max_tokens, max_examples)
    for count in range(-(-len(ordered) // max(len(rows), 1)), max_examples):
        if len(_filled(ordered, max_tokens, count)) == len(rows):
            max_examples = count
            break
    too_few, enough = 0, max_tokens
    while enough - too_few > 1:
        tokens = (too_few + enough) // 2
        if len(_filled(ordered, tokens, max_examples)) == len(rows):
            enough = tokens
        else:
            too_few = tokens
    return _filled(ordered, enough, max_examples)


def _filled(ordered: Sequence[Example], max_tokens: int, max_examples: int) -> list[Row]:
    """Rows that are closed when the next example does not fit."""
    rows: list[list[Example]] = []
    used = 0
    for example in ordered:
        length = len(example.tokens)
        if not rows or len(rows[-1]) == max_examples or used + length > max_tokens:
            rows.append([])
            used = 0
        rows[-1].append(example)
        used += length
    return [Row(tuple(row)) for row in rows]
