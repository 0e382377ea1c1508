"""What a model answers, and how right that is.

Everything scored is mechanical and can be checked by hand; no other model judges:

- **right**: the final answer equals the expected one after `normalise`; where it lists code items
  whose order says nothing (`UNORDERED_KINDS`), in any order.
- **verified quote**: a citation that is, byte for byte, part of a document given (`find_quote`).
- **claim**: the fact that a final answer states, a citation, or an identifier between back-ticks.
  A stated fact is supported where it is the expected one or follows from the code by the same
  derivation that training data must pass (`raft.verify.check`); a citation where a document given
  or the repository holds it; an identifier where it stands as a word in the user's turn or in the
  repository, or is a literal such as None. Unsupported claims over all claims is the
  hallucination rate: RAGAS' faithfulness (arXiv 2309.15217, section 3) turned round. Claims in
  other words are not seen, nor is code that was asked for taken for a claim.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from forge_mcp.judging.heldout import Case
from forge_mcp.judging.intervals import share
from forge_mcp.judging.results import ScoredAnswer
from forge_mcp.raft.kinds import LIMITS, fact_value
from forge_mcp.raft.verify import check
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, escape, find_quote, parse_answer
from forge_mcp.schemas.raft_examples import Fact, Message

UNORDERED_KINDS = frozenset(
    {"raises", "calls", "methods", "imports", "returns", "callee_raises", "callers"}
)
# Answers in a sentence or a definition of their own: whether such a one is true cannot be derived.
IN_WORDS = frozenset({"purpose", "callee_purpose", "explained", "code"})
LITERALS = frozenset({"None", "True", "False", "null", "undefined", "nil", "true", "false"})

_SPAN = re.compile(r"`([^`\n]+)`")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")

OnAnswer = Callable[[int, int], None]


class Reply(NamedTuple):
    """What a model wrote; `stopped` is False where it was cut at the limit."""

    text: str
    stopped: bool


class Backend(Protocol):
    """Anything that answers chats: a model in MLX, or a file in the runtime that serves it."""

    def answer_all(
        self, chats: Sequence[Sequence[Message]], max_tokens: int, on_answer: OnAnswer | None
    ) -> list[Reply]:
        """The most likely answer to every chat, in their order."""
        ...


class MlxBackend:
    """An mlx-lm model and its TokenizerWrapper, asked in batches.

    `context`: tokens that it holds, prompt and answer together.
    """

    def __init__(self, model: Any, tokenizer: Any, context: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context = context

    def prompts(self, chats: Sequence[Sequence[Message]]) -> list[list[int]]:
        """The chats as tokens, up to the assistant's turn."""
        rendered = [
            self.tokenizer.apply_chat_template(
                [message.model_dump() for message in chat],
                tokenize=False,
                add_generation_prompt=True,
            )
            for chat in chats
        ]
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in rendered]

    def answer_all(
        self,
        chats: Sequence[Sequence[Message]],
        max_tokens: int,
        on_answer: OnAnswer | None = None,
    ) -> list[Reply]:
        """See `Backend`."""
        from forge_mcp.judging.generation import generate

        made = generate(
            self.model,
            self.tokenizer,
            self.prompts(chats),
            max_tokens,
            on_done=on_answer,
            context=self.context,
        )
        return [Reply(one.text, one.stopped) for one in made]


class Answering(Protocol):
    """A runtime that answers one chat at a time (serving.chat)."""

    def answer(self, messages: Sequence[Message], max_tokens: int) -> Any:
        """An object with `text` and `stopped`."""
        ...


class RuntimeBackend:
    """A deployed or exported model in its own runtime."""

    def __init__(self, runtime: Answering) -> None:
        self.runtime = runtime

    def answer_all(
        self,
        chats: Sequence[Sequence[Message]],
        max_tokens: int,
        on_answer: OnAnswer | None = None,
    ) -> list[Reply]:
        """See `Backend`."""
        replies = []
        for done, chat in enumerate(chats, start=1):
            reply = self.runtime.answer(chat, max_tokens)
            replies.append(Reply(reply.text, reply.stopped))
            if on_answer:
                on_answer(done, len(chats))
        return replies


class Repository:
    """What stands in a repository: the names, and the text that citations may come from."""

    def __init__(self, blocks: Iterable[CodeBlock]) -> None:
        names: set[str] = set()
        self._sources: list[str] = []
        for block in blocks:
            names.update(_IDENTIFIER.findall(block.source_code))
            names.update(_IDENTIFIER.findall(f"{block.path} {block.qualified_name}"))
            self._sources.append(escape(block.source_code))
        self.names = frozenset(names)

    def holds(self, quoted: str) -> bool:
        """Whether a block has this text, byte for byte as prompts show it."""
        return bool(quoted.strip()) and any(quoted in source for source in self._sources)


def score_answers(
    backend: Backend,
    cases: Sequence[Case],
    repository: Repository,
    max_tokens: int,
    on_answer: OnAnswer | None = None,
) -> list[ScoredAnswer]:
    """Let a model answer every case, and score what it wrote.

    Args:
        backend: the model, in MLX or in the runtime that serves it.
        cases: the questions with their documents.
        repository: what the names and citations in answers are looked up in.
        max_tokens: an answer is cut after so many.
        on_answer: called with (answers done, answers in all).

    Returns:
        The scored answers, in the order of `cases`.
    """
    chats = [case.row.messages[:-1] for case in cases]
    replies = backend.answer_all(chats, max_tokens, on_answer)
    return [
        score_answer(case, reply.text, reply.stopped, repository)
        for case, reply in zip(cases, replies, strict=True)
    ]


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


def score_answer(case: Case, text: str, stopped: bool, repository: Repository) -> ScoredAnswer:
    """Compare what a model wrote with the reference, the documents of a case and the repository."""
    parsed = parse_answer(text)
    fact, final = case.example.fact, parsed.final_answer
    right = parsed.complete and same_answer(fact.kind, final, case.example.final_answer)
    abstained = normalise(final) == normalise(ABSTAIN_ANSWER)
    verified = sum(find_quote(quoted, case.documents) is not None for quoted in parsed.quotes)
    stated = parsed.complete and bool(final) and not abstained and fact.kind not in IN_WORDS
    unsupported = []
    if stated and not right and not states_a_fact(final, case):
        unsupported.append(final)
    unsupported += [
        quoted
        for quoted in parsed.quotes
        if find_quote(quoted, case.documents) is None and not repository.holds(quoted)
    ]
    names = set(_names(text if fact.kind != "code" else parsed.reasoning))
    told = set(_IDENTIFIER.findall(case.prompt)) | LITERALS
    unsupported += sorted(names - told - repository.names)
    return ScoredAnswer(
        text=text,
        final_answer=final,
        right=right,
        abstained=abstained,
        stopped=stopped,
        quotes=len(parsed.quotes),
        verified_quotes=verified,
        claims=stated + len(parsed.quotes) + len(names),
        unsupported=unsupported,
    )


def states_a_fact(final: str, case: Case) -> bool:
    """Whether a final answer is a true statement of the kind that was asked for, in another form
    than the expected one: derived again from the code, as training data is."""
    fact = case.example.fact
    if fact.kind not in LIMITS:
        return False
    items = tuple(span.strip() for span in _SPAN.findall(final)) or (normalise(final),)
    if not all(items) or len(items) > LIMITS[fact.kind]:
        return False
    said = Fact(
        kind=fact.kind,
        block=fact.block,
        value=fact_value(fact.kind, items),
        subject=fact.subject,
    )
    return check(said, case.oracles)


def _names(text: str) -> Iterator[str]:
    for span in _SPAN.findall(text):
        yield from _IDENTIFIER.findall(span)


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
    cited = [answer for case, answer in pairs if case.cites]
    absent = [answer for case, answer in pairs if case.abstains]
    present = [answer for case, answer in pairs if not case.abstains]
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
        sum(len(answer.unsupported) for answer in answers),
        sum(answer.claims for answer in answers),
    )
