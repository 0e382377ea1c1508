"""Facts → questions with their answers: what is asked about a block, and what is true.

Nothing here chooses documents; `forge_mcp.raft.generator` puts pairs and documents together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from forge_mcp.raft.explained import EXPLAINED
from forge_mcp.raft.facts import RELATED_KINDS, derive, derive_kind, value_items
from forge_mcp.raft.phrases import CorpusNames, question
from forge_mcp.raft.reasoning import generate_reasoning, recalled, variant_of
from forge_mcp.raft.splits import draw
from forge_mcp.raft.verify import answers, check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape
from forge_mcp.schemas.raft_examples import Fact

MAX_PER_FACT = 3  # questions on one fact, in different words; every kind has four that may be used
MAX_OF_KIND = 2  # e.g. defaults of one block
MAX_RELATED = 2  # facts of several documents a block, as long as it has others
_DONE = frozenset({"calls", "raises", "returns", "usage"})  # what a body does
CODE_KINDS = ("code", "usage")  # asked for apart, in a share of their own
# A place is no knowledge of the code: it moves with every commit. Asked with documents only.
OPEN_ONLY = frozenset({"location", "callee_location", "base_location"})

Related = tuple[Fact, Sequence[CodeBlock]]


@dataclass(frozen=True)
class QAPair:
    """A question with what is true: its fact, and the blocks that show it.

    `named` is the subject as the question names it; `variant` chose the words.
    """

    question: str
    fact: Fact
    oracles: tuple[CodeBlock, ...]
    reasoning: str
    answer: str
    named: str
    variant: int = 0
    closed_book: bool = False

    @property
    def single(self) -> bool:
        """Whether one document is all that it takes."""
        return len(self.oracles) == 1 and self.fact.kind != "code"


def block_pairs(
    block: CodeBlock,
    names: CorpusNames,
    related: Sequence[Related],
    *,
    count: int,
    seed: int,
    skipped: Counter[str],
) -> list[QAPair]:
    """Up to `count` questions about a block.

    Every fact passes `check` and every quote stands in its oracle, else it is counted in
    `skipped` and left out. Facts of different kinds come first; a block with few facts is asked
    about the same one again in other words, at most `MAX_PER_FACT` times.

    Args:
        block: to ask about.
        names: of the whole corpus.
        related: its facts of several documents, with their oracles.
        count: wanted questions.
        seed: of every draw.
        skipped: counts by reason are added to it.
    """
    if names.ambiguous(block):
        skipped["ambiguous_name"] += 1
        return []
    true: list[QAPair] = []
    for fact, oracles in _ordered(block, related, seed):
        if len(true) == count:
            break
        pair = _pair(fact, oracles, names, seed, skipped)
        if pair is not None:
            true.append(pair)
    if not true:
        skipped["block_without_facts"] += 1
    return _rounds(true, count, skipped)


def usage_pair(
    block: CodeBlock, names: CorpusNames, seed: int, skipped: Counter[str]
) -> QAPair | None:
    """The question for a call of the repository's own as it stands in a block, or None."""
    if names.ambiguous(block):
        return None
    for fact in derive_kind(block, "usage"):
        if fact.subject.rpartition(".")[2] in names.known:
            pair = _pair(fact, [block], names, seed, skipped)
            if pair is not None:
                return pair
    return None


def again(pair: QAPair, step: int) -> QAPair:
    """The same question in other words, `step` further on than the pair's own."""
    variant = pair.variant + step
    asked = question(pair.fact, pair.named, variant, pair.oracles[0].language)
    text = generate_reasoning(pair.fact, pair.oracles, variant) or pair.reasoning
    return replace(pair, question=asked, reasoning=text, variant=variant)


def kept_back(pair: QAPair) -> QAPair:
    """The question without documents, in the phrasing that is never trained on."""
    asked = question(pair.fact, pair.named, -1, pair.oracles[0].language)
    return closed(replace(pair, question=asked))


def gives_away(pair: QAPair) -> bool:
    """Whether all of the answer stands in the question, its path too, besides the names in it."""
    fact = pair.fact
    label = pair.named[: pair.named.find("`", 1) + 1]  # without the path behind it
    typed = label.endswith(")`")  # an overload, named with its types
    if typed and fact.kind == "annotation" and fact.subject != "return":
        return True
    rest = pair.question.replace(label, " ").replace(f"`{fact.subject}`", " ")
    return all(_stands(item, rest) for item in value_items(fact))


def _stands(item: str, text: str) -> bool:
    """Whether an item stands in a text as a word of its own."""
    at = text.find(item)
    while at >= 0:
        around = text[at - 1 : at] + text[at + len(item) : at + len(item) + 1]
        if not re.search(r"[\w$]", around):
            return True
        at = text.find(item, at + 1)
    return False


def closed(pair: QAPair) -> QAPair:
    """The same question without documents: the answer is known or it is not."""
    return replace(pair, reasoning=recalled(pair.oracles[0], pair.variant), closed_book=True)


def also_answers(fact: Fact, oracles: Sequence[CodeBlock], other: CodeBlock) -> bool:
    """Whether a document other than the oracles answers the question too, or gives it away.

    See `verify.answers`; besides, the very block that is asked about always does, and so does one
    that holds a copy of an oracle, one that names the block in a question on callers or tests, and
    one of the same name of which mining says the same, or whose text might, confirmed or not.
    """
    if other.id == fact.block or answers(fact, oracles, other):
        return True
    if any(oracle.source_code in other.source_code for oracle in oracles):
        return True
    if fact.kind in ("callers", "tests"):
        return re.search(rf"\b{re.escape(oracles[0].name)}\b", other.source_code) is not None
    if fact.kind == "overrides":
        return other.qualified_name in value_items(fact)
    if fact.kind == EXPLAINED or other.name != oracles[-1].name:
        return False
    # Stated of the same name, though only one of the two ways says so.
    kind, subject = fact.kind, fact.subject
    if kind in RELATED_KINDS:
        kind = kind.partition("_")[2]
        subject = subject.rpartition(".")[2] if kind == "default" else ""
    items = ["".join(item.split()) for item in value_items(fact)]
    if kind == "signature":  # one that begins alike reads as the same
        return items[0] in "".join(other.signature.split())
    if kind in _DONE and all(item in "".join(other.source_code.split()) for item in items):
        return True  # it does so too, and perhaps more
    said = derive_kind(other, kind)
    return any(one.value == fact.value and one.subject == subject for one in said)


def _ordered(block: CodeBlock, related: Sequence[Related], seed: int) -> Iterable[Related]:
    """The facts to ask about, shuffled; at most `MAX_OF_KIND` of a kind, kinds by turns.

    The first of several documents comes early, so that a block that has one is asked about it.
    """
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int, int, Related]] = []
    alone: list[Related] = [(fact, (block,)) for fact in derive(block)]
    for family, found in enumerate((related, alone)):
        for fact, oracles in sorted(
            found, key=lambda one: draw(seed, block.id, one[0].kind, one[0].subject)
        ):
            if fact.kind in CODE_KINDS:
                continue
            # Where something stands is asked last: it says least about the code.
            turn[fact.kind] += 2 if fact.kind == "location" else 1
            early = not family and sum(not rank[1] for rank in ranked) < MAX_RELATED
            if turn[fact.kind] <= MAX_OF_KIND:
                late = turn[fact.kind] + (0 if early or family else 1)
                ranked.append((late, family, len(ranked), (fact, oracles)))
    return [one for *_, one in sorted(ranked, key=lambda rank: rank[:3])]


def _pair(
    fact: Fact,
    oracles: Sequence[CodeBlock],
    names: CorpusNames,
    seed: int,
    skipped: Counter[str],
) -> QAPair | None:
    """The first question on a fact, or None where it is not certain or cannot be quoted."""
    block, variant = oracles[0], variant_of(fact, seed)
    named = names.symbol(block)
    # A test's name alone is an answer only where it is one test's.
    if fact.kind == "tests" and not names.unique(oracles[1]):
        skipped["ambiguous_name"] += 1
        return None
    if not check(fact, oracles):
        skipped["fact_not_confirmed"] += 1
        return None
    text = generate_reasoning(fact, oracles, variant)
    if text is None:
        skipped["no_quote"] += 1
        return None
    asked = question(fact, named, variant, block.language)
    return QAPair(asked, fact, tuple(oracles), text, escape(fact.value), named, variant)


def _rounds(true: Sequence[QAPair], count: int, skipped: Counter[str]) -> list[QAPair]:
    """At most `count` pairs: every fact once, then again in other words."""
    chosen: list[QAPair] = []
    asked: set[str] = set()
    for step in range(MAX_PER_FACT):
        for pair in true:
            if len(chosen) >= count:
                return chosen
            other = again(pair, step) if step else pair
            if gives_away(other):
                skipped["answer_in_question"] += 1
            elif other.question not in asked:
                asked.add(other.question)
                chosen.append(other)
    return chosen
