"""The gate for what somebody wrote: a teacher model, or the agent itself.

Nothing that was written is believed. A new question is accepted with an answer that rests on a
verbatim part of the code, names nothing that is not there, and asks something new; a paraphrase
only where it still asks for the same fact. Everything else comes back as a `Refusal` that says
why and what to do. What no gate can see is whether a well-formed explanation is right: such rows
carry their author's name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from forge_mcp.raft.explained import EXPLAINED, WRITTEN_KINDS, supports
from forge_mcp.raft.facts import value_items
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    BEGIN_QUOTE,
    END_QUOTE,
    escape,
    quote,
    render_answer,
)
from forge_mcp.schemas.raft_examples import Fact, RaftExample

GATE_VERSION = 1  # part of what a dataset is made from: raise it when the gate accepts other text

MIN_QUESTION, MAX_QUESTION = 12, 300  # characters
MIN_ANSWER_WORDS = 3
MAX_TEXT = 1_400  # characters of reasoning and answer together, citations included

ADVICE = {
    "unknown_kind": f"Use one of the kinds {', '.join(WRITTEN_KINDS)}.",
    "question_form": f"Ask one question on one line, {MIN_QUESTION} to {MAX_QUESTION} characters, "
    "that ends in '?'.",
    "subject_missing": "Name the definition in the question exactly as the task does.",
    "repeated_question": "Ask something that is not asked yet.",
    "repeated_answer": "Say something about this block that is not said yet.",
    "answer_in_question": "Take the answer out of the question.",
    "no_answer": "Answer from the code in at least three words, or leave the question out.",
    "no_quote": "Give a verbatim part of the code in 'quote', or cite it in the reasoning as "
    f"{BEGIN_QUOTE}code{END_QUOTE}.",
    "unverified_quote": "Copy the quote from the task's source, byte for byte.",
    "weak_quote": "Quote the one to six lines that the answer rests on.",
    "unknown_name": "Name only what stands in the source or in the question; describe what is new "
    "in plain words.",
    "code_block": "Describe code in words; back-ticks are for names.",
    "foreign_address": "Leave addresses out that do not stand in the source.",
    "unrelated": "Let reasoning or answer speak of what the quote shows.",
    "markers": "Leave the markers of documents, chats and answers out.",
    "control_characters": "Write plain text without control characters.",
    "too_long": f"Keep reasoning and answer under {MAX_TEXT} characters.",
    "secret": "Leave keys, tokens and passwords out.",
    "other_question": "Ask for the very same fact, in other words.",
}


@dataclass(frozen=True)
class Written:
    """A question and its answer about one block, as somebody wrote them; not yet trusted.

    `quote` is the part of the code that the answer rests on; where it is empty, the first
    citation of the reasoning counts.
    """

    kind: str
    question: str
    quote: str
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Refusal:
    """Why something was not accepted: a word to count by, what exactly, and what to do."""

    reason: str
    detail: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return ADVICE[self.reason]


@dataclass(frozen=True)
class Draft:
    """What was accepted, in the form of an example's fields."""

    question: str
    fact: Fact
    reasoning: str
    answer: str


@dataclass(frozen=True)
class Subject:
    """A block that may be asked about, and how a question must name it."""

    block: CodeBlock
    ambiguous: bool

    @property
    def name(self) -> str:
        """The name that stands in back-ticks: a file's path, or the qualified name."""
        block = self.block
        return block.path if block.block_type == "module" else block.qualified_name

    @property
    def symbol(self) -> str:
        """E.g. '`Cart.add`', with its path where the name alone could mean another block."""
        where = f" ({self.block.path})" if self.ambiguous else ""
        return f"`{self.name}`{where}"


class Gate:
    """What has been asked so far, and the decision on what comes next.

    Args:
        examples: the dataset's own, of every split; none of their questions is asked again.
    """

    def __init__(self, examples: Iterable[RaftExample]) -> None:
        self._asked: set[str] = set()
        self._said: set[tuple[str, str]] = set()
        for example in examples:
            self._note(example.question, example.fact, example.final_answer)

    def _note(self, question: str, fact: Fact, answer: str) -> None:
        self._asked.add(normalised(question))
        if fact.kind == EXPLAINED:
            self._said.add((fact.block, normalised(answer)))

    def new_example(self, written: Written, subject: Subject) -> Draft | Refusal:
        """Accept a question with its answer, or say why not. What is accepted is remembered."""
        written = _trimmed(written)
        refusal = next(self._faults(written, subject), None)
        if refusal is not None:
            return refusal
        support = _support(written)
        fact = Fact(kind=EXPLAINED, block=subject.block.id, value=support, subject=written.kind)
        self._note(written.question, fact, written.answer)
        return Draft(written.question, fact, _reasoning(written, subject), written.answer)

    def paraphrase(self, text: str, example: RaftExample) -> str | Refusal:
        """Accept another wording of an example's question, or say why not."""
        text = " ".join(text.split())
        refusal = next(self._drifts(text, example), None)
        if refusal is not None:
            return refusal
        self._asked.add(normalised(text))
        return text

    def _faults(self, written: Written, subject: Subject) -> Iterator[Refusal]:
        """What is wrong with a question and its answer, the plainest first."""
        block = subject.block
        if written.kind not in WRITTEN_KINDS:
            yield Refusal("unknown_kind", f"{written.kind!r} is no kind of question")
        yield from self._question_faults(written.question)
        wanted = [subject.name, *([block.path] if subject.ambiguous else [])]
        for name in wanted:
            if not stands_in(name, written.question):
                yield Refusal("subject_missing", f"the question does not name {subject.symbol}")
        words = written.answer.split()
        if len(words) < MIN_ANSWER_WORDS or _EVASION.search(written.answer):
            yield Refusal("no_answer", f"the answer is {written.answer[:80]!r}")
        support = _support(written)
        if not support:
            yield Refusal("no_quote", "nothing says which code the answer rests on")
        for cited in [support, *citations(written.reasoning)]:
            if cited not in block.source_code:
                yield Refusal("unverified_quote", f"{cited[:80]!r} does not stand in the code")
        if problem := supports(support, block):
            yield Refusal("weak_quote", f"{support[:80]!r}: {problem}")
        asked = normalised(written.question)
        if any(_contained(part, asked) for part in (written.answer, support)):
            yield Refusal("answer_in_question", "the question holds its own answer or quote")
        if (block.id, normalised(written.answer)) in self._said:
            yield Refusal("repeated_answer", "the same answer was given to another question")
        yield from _text_faults(written, subject)

    def _question_faults(self, question: str) -> Iterator[Refusal]:
        one_line = "\n" not in question
        if not (one_line and MIN_QUESTION <= len(question) <= MAX_QUESTION):
            yield Refusal("question_form", f"{question[:80]!r} is no question on one line")
        if not question.endswith("?") or len(question.split()) < 3:
            yield Refusal("question_form", f"{question[:80]!r} is no question")
        if normalised(question) in self._asked:
            yield Refusal("repeated_question", f"{question[:80]!r} is asked already")

    def _drifts(self, text: str, example: RaftExample) -> Iterator[Refusal]:
        """What tells a wording from another question than the one that it should be."""
        original, fact = example.question, example.fact
        yield from self._question_faults(text)
        for name in ticked(original):
            if f"`{name}`" not in text:
                yield Refusal("subject_missing", f"it does not name `{name}`")
        for place in re.findall(r"\([\w./-]+\)", original):
            if place not in text:
                yield Refusal("subject_missing", f"it does not say {place}")
        for name in ticked(text):
            if name not in ticked(original):
                yield Refusal("unknown_name", f"`{name}` is not in the question")
        asks, never = REPHRASED[fact.kind]
        plain = re.sub(r"`[^`]*`", "", text).lower()
        before = re.sub(r"`[^`]*`", "", original).lower()
        if not asks.search(plain):
            yield Refusal("other_question", f"it does not ask for the {fact.kind}")
        # What is absent is what a question about a default asks for.
        for pattern in (never,) if fact.kind == "default" else (never, _TURNS):
            for turned in pattern.findall(plain):
                if turned not in pattern.findall(before):
                    yield Refusal("other_question", f"{turned!r} asks for something else")
        for item in value_items(fact):
            if stands_in(item, text) and not stands_in(item, original):
                yield Refusal("answer_in_question", f"it holds {item[:60]!r}")
        yield from _plain_faults(text)


# What a wording must ask for, and what would make it ask for something else, by kind of fact.
# Kinds whose questions have a direction (what calls what, what extends what) are left as they are:
# no pattern tells a turned question from a rephrased one.
REPHRASED: Mapping[str, tuple[re.Pattern[str], re.Pattern[str]]] = {
    kind: (re.compile(rf"\b(?:{asks})"), re.compile(rf"\b(?:{never})"))
    for kind, (asks, never) in {
        "signature": ("signature|declar|prototype|header", "return|rais|default"),
        "parameters": ("param|argument|accept|input", "type|default|annot|optional|required"),
        "default": (
            "default|omit|without|unless|left out|leav|missing|fall|not (?:given|passed)", "type",
        ),
        "annotation": ("type|annot|kind of value", "default"),
        "decorators": ("decorat|annot", "default"),
        "raises": ("rais|throw|exception|error|panic", "catch|caught|handl|suppress|when|why"),
        "guard": ("when|condition|circumstance|check|case|lead|trigger", "catch|caught|handl"),
        "returns": ("return|g[ia]ve|result|produc|output", "type|annot|when|rais"),
        "returns_when": ("return|g[ia]ve|result|produc|output", "type|annot|rais"),
        "methods": ("method|function|operation", "call|overrid|return"),
        "constant": ("value|set|assign|equal|hold|defin|stand", "type|why"),
        "location": ("where|file|line|locat|find|found|path", "call|used|import"),
        "purpose": ("purpose|do\\b|does|for|role|responsib|goal|aim|achiev|job",
                    "return|rais|throw|param|argument|default|type|call"),
    }.items()
}  # fmt: skip
_TURNS = re.compile(r"\b(?:not|never|other than|except|without|how many|number of)\b|n't\b")
_EVASION = re.compile(
    rf"^{re.escape(ABSTAIN_ANSWER)}|\bas an ai\b|\bi (?:cannot|can't|don't|do not) ",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(?:\w+://|www\.)[^\s`)>\]]+|\b[\w.+-]+@[\w-]+\.[\w.]+\b")
# Code without back-ticks: names with an underscore inside, and calls.
_BARE_CODE = re.compile(r"(?<![\w`])(?:\w*[^\W_]_\w+|[\w.]*\w\(\))")
_LITERALS = frozenset(
    ("True", "False", "None", "true", "false", "null", "nil", "undefined", "self", "this", "super")
)


def normalised(text: str) -> str:
    """Words and signs of a text in lower case, so that spacing and case make no difference."""
    return " ".join(re.findall(r"\w+|[^\w\s`.,;:!?\"']", text.lower()))


def citations(reasoning: str) -> list[str]:
    """The quotes in a reasoning, without their markers."""
    return re.findall(f"{BEGIN_QUOTE}(.*?){END_QUOTE}", reasoning, flags=re.DOTALL)


def ticked(text: str) -> list[str]:
    """What stands in back-ticks."""
    return re.findall(r"`([^`\n]+)`", text)


def stands_in(item: str, text: str) -> bool:
    """Whether `item` stands in `text`, white space collapsed, and not inside a longer word."""
    item, text = " ".join(item.split()), " ".join(text.split())
    left = r"(?<!\w)" if item[:1].isalnum() or item[:1] == "_" else ""
    right = r"(?!\w)" if item[-1:].isalnum() or item[-1:] == "_" else ""
    return bool(item) and re.search(f"{left}{re.escape(item)}{right}", text) is not None


def _contained(part: str, question: str) -> bool:
    words = normalised(part)
    return len(words) > 0 and f" {words} " in f" {question} "


def _trimmed(written: Written) -> Written:
    """Without white space around; a quote keeps its own, but not around its lines."""
    return Written(
        kind=written.kind.strip(),
        question=written.question.strip(),
        quote=written.quote.strip("\r\n"),
        reasoning=written.reasoning.strip(),
        answer=written.answer.strip(),
    )


def _support(written: Written) -> str:
    """The code that the answer rests on; "" where nothing says so."""
    return (written.quote or next(iter(citations(written.reasoning)), "")).strip()


def _reasoning(written: Written, subject: Subject) -> str:
    """The reasoning, which cites what the answer rests on in any case."""
    support = _support(written)
    if support in citations(written.reasoning):
        return written.reasoning
    path = subject.block.path
    named = "the file" if subject.block.block_type == "module" else f"`{subject.name}`"
    return f"In {path}, {named} has {quote(support)}. {written.reasoning}".strip()


def _text_faults(written: Written, subject: Subject) -> Iterator[Refusal]:
    """What is wrong with the words themselves."""
    block = subject.block
    prose = re.sub(f"{BEGIN_QUOTE}.*?{END_QUOTE}", " ", written.reasoning, flags=re.DOTALL)
    texts = (written.question, prose, written.answer)
    whole = "\n".join(texts)
    yield from _plain_faults(whole)
    if "```" in whole or whole.count("`") % 2:
        yield Refusal("code_block", "there is a block of code or a back-tick that is not closed")
    code = "\n".join((block.source_code, block.signature, block.path, block.qualified_name))
    # A new requirement may bring names of its own, where the question says so.
    grounds = code if written.kind != "extend" else f"{code}\n{written.question}"
    for text, ground in ((written.question, grounds), (whole, f"{code}\n{written.question}")):
        for name in [*ticked(text), *_BARE_CODE.findall(re.sub(r"`[^`]*`", " ", text))]:
            bare = name.removesuffix("()")
            if bare not in _LITERALS and not (stands_in(bare, ground) or stands_in(name, ground)):
                yield Refusal("unknown_name", f"{name!r} stands neither in the code nor before")
        for address in _ADDRESS.findall(text):
            if address.rstrip(".,;") not in ground:
                yield Refusal("foreign_address", f"{address!r} does not stand in the code")
    if not _subwords(_support(written)) & _subwords(f"{prose} {written.answer}"):
        yield Refusal("unrelated", "neither reasoning nor answer shares a word with the quote")
    if len(render_answer(_reasoning(written, subject), written.answer)) > MAX_TEXT:
        yield Refusal("too_long", f"reasoning and answer have more than {MAX_TEXT} characters")


def _plain_faults(text: str) -> Iterator[Refusal]:
    """What no text of a dataset may hold: markers, control characters, secrets."""
    from forge_mcp.mining.secrets import redact

    if escape(text) != text:
        yield Refusal("markers", "it holds a marker of a document, a chat or a quote")
    strange = [c for c in text if c == "�" or (c != "\n" and unicodedata.category(c)[0] == "C")]
    if strange:
        yield Refusal("control_characters", f"it holds U+{ord(strange[0]):04X}")
    if redact(text)[1]:
        yield Refusal("secret", "it holds what looks like a key or a password")


def _subwords(text: str) -> set[str]:
    """Words of three letters or more, identifiers taken apart, in lower case."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return {word.lower() for word in re.findall(r"[^\W\d_]{3,}", apart)}
