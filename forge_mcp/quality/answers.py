"""Whether reasoning and answer say what the fact says, cite it, and name only what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from forge_mcp.quality.code import fenced, parses
from forge_mcp.quality.texts import (
    code_words,
    is_cut,
    known_words,
    paths,
    prose,
    spans,
    squeezed,
    wordless,
    words,
)
from forge_mcp.raft.explained import EXPLAINED
from forge_mcp.raft.facts import RELATED_KINDS, value_items
from forge_mcp.retrieval import subtokens
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    BEGIN_QUOTE,
    END_QUOTE,
    escape,
    parse_answer,
    render_answer,
    render_document,
)
from forge_mcp.schemas.raft_examples import RaftExample

MAX_ANSWER = 1_500  # characters of reasoning and answer
MAX_CODE_ANSWER = 4_000  # the same where the answer is code
MAX_QUOTE = 500  # characters of one quote
WHOLE_LINES = 8  # a document of more lines is not quoted whole

_CHANGED_MIND = re.compile(
    r"\b(?:actually|correction|scratch that|on second thoughts?|just kidding|or rather|no, wait"
    r"|wait, no|in reality|to be precise, not|i was wrong|that is wrong|that's wrong)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no longer|instead of|rather than|other than|except|cannot)|n't)"
    r"(?:[ \t]+[\w,]+){0,3}[ \t]*[\"'(]*\x00|\x00[^.?!\n]{0,40}\b(?:is|are|was|were)\s+"
    r"(?:not|wrong|false|incorrect|never)\b",
    re.IGNORECASE,
)
_LISTED_ON = re.compile(r"\x00\s*(?:,|;|/|\||\band\b|\bor\b|&|\+)\s*(?:(?:and|or|also)\s+)*`")
_LISTED_BEFORE = re.compile(r"`\s*(?:,|;|/|\||\band\b|\bor\b|&|\+)\s*(?:(?:and|or|also)\s+)*\x00")
_CONCLUDES = re.compile(r"\b(?:answer|value|result) is:? *`([^`]+)`", re.IGNORECASE)
_SYMBOL = re.compile(r"[\w.$@]+(?:\(.*\))?")  # a name, perhaps with the types of its parameters


@lru_cache(maxsize=16384)
def shown_text(source: str) -> str:
    """A document's code as the prompt shows it; kept."""
    return escape(source)


@lru_cache(maxsize=64)
def quotes_of(reasoning: str) -> tuple[str, ...]:
    """What a reasoning cites."""
    return tuple(parse_answer(render_answer(reasoning, "")).quotes)


@dataclass(frozen=True)
class Answered:
    """A row with its documents, as the checks of its answer need them.

    `oracles` hold the answer (shown or not), `block` is what the fact is about, `distractors` are
    shown beside.
    """

    example: RaftExample
    block: CodeBlock
    oracles: list[CodeBlock]
    distractors: list[CodeBlock]

    @cached_property
    def quotes(self) -> tuple[str, ...]:
        """What the reasoning cites."""
        return quotes_of(self.example.reasoning)

    @cached_property
    def places(self) -> list[str]:
        """Path and lines, names and path of every document."""
        documents = [self.block, *self.oracles, *self.distractors]
        return [
            f"{d.path}:{d.start_line}-{d.end_line} {d.qualified_name} {d.name}" for d in documents
        ]

    @cached_property
    def stated(self) -> str:
        """Places and fact, which hold names too."""
        return " ".join([*self.places, self.example.fact.value, self.example.fact.subject])

    @cached_property
    def named(self) -> frozenset[str]:
        """The words that a text may use as names."""
        return words(self.stated).union(*(known_words(d.source_code) for d in self._documents))

    @property
    def _documents(self) -> list[CodeBlock]:
        return [self.block, *self.oracles, *self.distractors]

    def resolves(self, item: str, *, by_question: bool = True) -> bool:
        """Whether a name or a piece of code stands in the documents, the fact or the question."""
        if by_question and item in self.example.question:
            return True
        if _SYMBOL.fullmatch(item):
            return words(item) <= self.named
        tight = squeezed(item)
        if tight in "".join(self.stated.split()):
            return True
        return any(tight in squeezed(d.source_code) for d in self._documents)

    def is_placed(self, item: str) -> bool:
        """Whether an item is the name or the place of a document, as where none of them answers."""
        return (
            words(item.partition("(")[0]) <= words(self.stated) or self.example.fact.value == item
        )


def answer_faults(row: Answered) -> Iterator[str]:
    """What is wrong with reasoning and answer of a row."""
    yield from _form(row)
    yield from _quotes(row)
    yield from _stated(row)
    yield from _names(row)


def _form(row: Answered) -> Iterator[str]:
    example = row.example
    reasoning, answer = example.reasoning, example.final_answer
    if not answer.strip():
        yield "empty_text: the answer is empty"
    if not reasoning.strip():
        yield "no_reasoning: the answer is not explained"
    elif is_cut(reasoning):
        yield f"cut_text: the reasoning ends in {reasoning[-20:]!r}"
    elif len(words(prose(reasoning))) < 2:
        yield "no_reasoning: there are no words around the quotes"
    most = MAX_CODE_ANSWER if example.fact.kind == "code" else MAX_ANSWER
    if len(reasoning) + len(answer) > most:
        yield f"answer_length: {len(reasoning) + len(answer)} characters of reasoning and answer"
    without = reasoning
    for quoted in row.quotes:
        without = without.replace(f"{BEGIN_QUOTE}{quoted}{END_QUOTE}", " ", 1)
    parsed = parse_answer(render_answer(reasoning, answer))
    if (
        parsed.final_answer != answer.strip()
        or escape(without) != without
        or escape(answer) != answer
    ):
        yield "markers: reasoning or answer holds a marker of the form of prompts"
    elif any(BEGIN_QUOTE in quoted for quoted in row.quotes):
        yield "markers: a quote begins inside another one"
    elif escape(example.question) != example.question and not any(
        escape(d.source_code) != d.source_code for d in row.oracles
    ):
        yield "markers: the question holds a marker of the form of prompts"


def _quotes(row: Answered) -> Iterator[str]:
    example = row.example
    if example.oracle_absent or example.closed_book:
        if row.quotes:
            yield "quote_of_absent: it cites a document that is not shown"
        return
    if not row.quotes:
        yield "no_quote: the reasoning cites nothing"
    cited = set()
    telling = _telling(row)
    for quoted in row.quotes:
        if not re.search(r"\w", quoted) or (
            len(quoted.strip()) < 2 and quoted.strip() not in value_items(example.fact)
        ):
            yield f"trivial_quote: {quoted!r} says nothing"
            continue
        holding = [d.id for d in row.oracles if quoted in shown_text(d.source_code)]
        if not holding:
            yield f"unverified_quote: {quoted[:80]!r} stands in no oracle"
            continue
        cited.update(holding)
        whole = any(quoted.strip() == shown_text(d.source_code).strip() for d in row.oracles)
        if len(quoted) > MAX_QUOTE or (whole and quoted.count("\n") >= WHOLE_LINES):
            yield f"unfocused_quote: {len(quoted)} characters are quoted"
        if telling.isdisjoint(subtokens(quoted)) and not _bears(row, quoted):
            yield f"irrelevant_quote: {quoted[:80]!r} says nothing of {example.fact.kind}"
    if row.quotes and example.final_answer.strip() and not support(example, row.oracles):
        yield "irrelevant_quote: no quote shows a word of the answer"
    if example.fact.kind in RELATED_KINDS and row.quotes:
        for oracle in row.oracles:
            if oracle.id not in cited:
                yield f"uncited_oracle: {oracle.id}"


def _bears(row: Answered, quoted: str) -> bool:
    """Whether a quote without a telling word holds an item of the value, or shows a place."""
    if any(item and escape(item) in quoted for item in value_items(row.example.fact)):
        return True
    return row.example.fact.kind.endswith("location")  # any line says which definition is meant


def _telling(row: Answered) -> set[str]:
    """Sub-tokens of which a quote that bears on the fact has one."""
    fact = row.example.fact
    names = " ".join(f"{o.name} {o.parent or ''}" for o in row.oracles)
    return set(subtokens(f"{fact.value} {fact.subject} {names}"))


def support(example: RaftExample, oracles: Sequence[CodeBlock]) -> float:
    """Share of the answer's words that quotes and headings of the oracles show, 0 to 1.

    An answer that abstains has nothing to show, and a closed-book one shows nothing: they have 1.
    """
    if example.closed_book or example.final_answer.strip() == ABSTAIN_ANSWER:
        return 1.0
    if example.oracle_absent:
        return 0.0
    cited = quotes_of(example.reasoning)
    headings = [render_document(oracle).partition("\n")[0] for oracle in oracles]
    shown = " ".join([*cited, *headings, example.question if example.fact.kind == "code" else ""])
    stated = words(example.final_answer)
    if not stated:  # e.g. `()`
        return float(example.final_answer.strip("`") in shown)
    return len(stated & words(shown)) / len(stated)


def _stated(row: Answered) -> Iterator[str]:
    """Whether the answer holds the fact's value, and nothing that takes it back."""
    example, fact = row.example, row.example.fact
    answer = example.final_answer.strip()
    abstains = ABSTAIN_ANSWER in answer
    if example.oracle_absent and answer == ABSTAIN_ANSWER:
        if not any(_says(example.reasoning, name) for name in (row.block.name, row.block.path)):
            yield f"unnamed_subject: the reasoning does not name {row.block.qualified_name}"
        return
    if abstains:
        what = "holds the value and abstains" if example.oracle_absent else "abstains"
        yield f"contradiction: the answer {what}"
        return
    if fact.kind == "code":
        yield from _stated_code(row, answer)
        return
    if fact.kind == EXPLAINED:  # the value is what the answer rests on, not what it says
        if escape(fact.value) not in row.quotes:
            yield "unstated_fact: the reasoning does not cite what the answer rests on"
        return
    value = escape(fact.value)
    if value not in answer:
        yield f"unstated_fact: the answer does not hold {fact.value[:80]}"
        return
    rest = answer.replace(value, "\0", 1)
    if _DENIED.search(rest) or _LISTED_ON.search(rest) or _LISTED_BEFORE.search(rest):
        yield f"contradiction: {answer[:80]!r} denies the fact or adds to it"
    elif _CHANGED_MIND.search(rest) or _CHANGED_MIND.search(prose(example.reasoning)):
        yield "contradiction: the text takes back what it said"
    for concluded in _CONCLUDES.findall(example.reasoning):
        if concluded not in fact.value:
            yield f"contradiction: the reasoning concludes {concluded!r}"


def _stated_code(row: Answered, answer: str) -> Iterator[str]:
    """Whether the answer is the code of the fact, in one fenced block, and parses."""
    found = fenced(answer)
    if found is None:
        yield "cut_text: the answer holds no closed block of code"
        return
    tag, code = found
    if tag not in ("", row.block.language):
        yield f"contradiction: {row.block.language} is called {tag}"
    if squeezed(code) != squeezed(escape(row.example.fact.value)):
        yield "unstated_fact: the answer's code is not the fact's"
    if not parses(code, row.block.language):
        yield f"invalid_code: the answer's code is no {row.block.language}"


def _names(row: Answered) -> Iterator[str]:
    """Names and places in reasoning and answer that stand nowhere."""
    example = row.example
    answer = "" if example.fact.kind == "code" else example.final_answer
    value = escape(example.fact.value)
    if answer:
        answer = answer.replace(value, " ", 1)
    for what, text in (("reasoning", example.reasoning), ("answer", answer)):
        for item in spans(text):
            shown = row.is_placed(item) if example.oracle_absent else row.resolves(item)
            if not shown:
                yield f"unknown_name: `{item[:80]}` stands in no document"
        for word in code_words(text):
            if word not in row.named and word not in example.question:
                yield f"unknown_name: {word[:80]} stands in no document"
        for place in paths(text):
            if not any(place in known for known in row.places) and place not in example.question:
                yield f"wrong_place: {place} is the place of no document"
        odd = wordless(text)
        if odd:
            yield f"garbled_text: {odd[:60]!r} in the {what} is no sentence"
    if example.fact.kind != "code":  # else the question shows a header and its documentation
        for item in spans(example.question):
            if not row.resolves(item, by_question=False):
                yield f"unknown_name: `{item[:80]}` of the question stands in no document"
    for place in paths(example.question.partition("\n")[0]):
        if not any(place in known for known in row.places):
            yield f"wrong_place: the question names {place}"


def _says(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(escape(name))}(?!\w)", text) is not None
