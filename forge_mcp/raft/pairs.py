"""Facts → questions with their answers: what is asked about a block, and what is true.

Nothing here chooses documents; `forge_mcp.raft.generator` puts pairs and documents together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from forge_mcp.raft.documents import overlap
from forge_mcp.raft.facts import RELATED_KINDS, derive, derive_kind, make_fact, value_items
from forge_mcp.raft.phrases import question, reasoning, symbol
from forge_mcp.raft.splits import draw
from forge_mcp.raft.verify import check, linked
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape, find_quote, parse_answer, render_answer
from forge_mcp.schemas.raft_examples import Fact
from forge_mcp.settings import RaftSettings

MAX_PER_FACT = 2  # questions on one fact, in different words and with other documents
MAX_OF_KIND = 2  # e.g. defaults of one block


@dataclass(frozen=True)
class QAPair:
    """A question with what is true: its fact, and the blocks that show it."""

    question: str
    fact: Fact
    oracles: tuple[CodeBlock, ...]
    reasoning: str
    answer: str


class CorpusNames:
    """Which names are unique in a corpus, so that a question can name a block for certain."""

    def __init__(self, blocks: Iterable[CodeBlock]) -> None:
        self._names: Counter[str] = Counter()
        self._places: Counter[tuple[str, str]] = Counter()
        self._short: Counter[str] = Counter()
        for block in blocks:
            self._names[block.qualified_name] += 1
            self._places[(block.path, block.qualified_name)] += 1
            self._short[block.name] += block.parent is None

    def ambiguous(self, block: CodeBlock) -> bool:
        """Whether two blocks of one file share the name: no question can tell them apart."""
        return self._places[(block.path, block.qualified_name)] > 1

    def unique_top_level(self, block: CodeBlock) -> bool:
        """Whether no other top-level block of the corpus has this name."""
        return self._short[block.name] == 1

    def symbol(self, block: CodeBlock) -> str:
        """How a question names the block."""
        return symbol(block, unique=self._names[block.qualified_name] == 1)


def generate_qa_pairs(
    blocks: Sequence[CodeBlock],
    settings: RaftSettings,
    *,
    names: CorpusNames | None = None,
    related: Mapping[str, CodeBlock] | None = None,
    skipped: Counter[str] | None = None,
) -> list[QAPair]:
    """Up to `settings.examples_per_block` questions for every block.

    Every fact passes `check` and every quote stands in its oracle, else it is counted in
    `skipped` and left out. Facts of different kinds come first; a block with few facts is asked
    about the same one again in other words, at most `MAX_PER_FACT` times.

    Args:
        blocks: the blocks to ask about.
        settings: the raft section.
        names: of the whole corpus; of `blocks` by default.
        related: blocks by id that may be a second oracle; none by default.
        skipped: counts by reason are added to it.
    """
    names = names or CorpusNames(blocks)
    skipped = Counter() if skipped is None else skipped
    pairs: list[QAPair] = []
    for block in blocks:
        if names.ambiguous(block):
            skipped["ambiguous_name"] += 1
            continue
        true: list[QAPair] = []
        for fact, oracles in _facts(block, names, related or {}, settings.seed):
            if not check(fact, oracles):
                skipped["fact_not_confirmed"] += 1
                continue
            pair = _qa_pair(fact, oracles, names, draw(settings.seed, block.id, fact.kind))
            if pair is None:
                skipped["no_quote"] += 1
                continue
            true.append(pair)
        if not true:
            skipped["block_without_facts"] += 1
        pairs += _rounds(true, names, settings)
    return pairs


def _rounds(true: Sequence[QAPair], names: CorpusNames, settings: RaftSettings) -> list[QAPair]:
    """At most `examples_per_block` pairs: every fact once, then again in other words."""
    chosen: list[QAPair] = []
    asked: set[str] = set()
    for again in range(MAX_PER_FACT):
        for pair in true:
            if len(chosen) >= settings.examples_per_block:
                return chosen
            fact = pair.fact
            phrasing = draw(settings.seed, fact.block, fact.kind) + again
            text = question(fact, names.symbol(pair.oracles[0]), phrasing)
            if text not in asked:
                asked.add(text)
                chosen.append(QAPair(text, fact, pair.oracles, pair.reasoning, pair.answer))
    return chosen


def _facts(
    block: CodeBlock, names: CorpusNames, related: Mapping[str, CodeBlock], seed: int
) -> list[tuple[Fact, list[CodeBlock]]]:
    """The facts to ask about, shuffled; at most `MAX_OF_KIND` of a kind, kinds by turns."""
    found = [(fact, [block]) for fact in derive(block)]
    found += _related_facts(block, names, related)
    found.sort(key=lambda pair: draw(seed, block.id, pair[0].kind, pair[0].subject))
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int, Fact, list[CodeBlock]]] = []
    for fact, oracles in found:
        turn[fact.kind] += 1
        if turn[fact.kind] <= MAX_OF_KIND:
            ranked.append((turn[fact.kind], len(ranked), fact, oracles))
    return [(fact, oracles) for _, _, fact, oracles in sorted(ranked, key=lambda r: r[:2])]


def _related_facts(
    block: CodeBlock, names: CorpusNames, related: Mapping[str, CodeBlock]
) -> list[tuple[Fact, list[CodeBlock]]]:
    """Facts that need a second document: what `block` calls or extends, where mining knows it."""
    found = []
    for other_id in block.dependencies:
        other = related.get(other_id)
        if other is None or names.ambiguous(other) or overlap(block, other):
            continue
        if other.path != block.path and not names.unique_top_level(other):
            continue
        for kind in RELATED_KINDS:
            how, _, what = kind.partition("_")
            if not linked(block, other, how):
                continue
            for fact in derive_kind(other, what):
                twin = make_fact(kind, block, value_items(fact), other.name)
                if twin is not None:
                    found.append((twin, [block, other]))
    return found


def _qa_pair(
    fact: Fact, oracles: Sequence[CodeBlock], names: CorpusNames, phrasing: int
) -> QAPair | None:
    text = generate_chain_of_thought(fact, oracles)
    if text is None:
        return None
    asked = question(fact, names.symbol(oracles[0]), phrasing)
    return QAPair(asked, fact, tuple(oracles), text, escape(fact.value))


def generate_chain_of_thought(fact: Fact, oracles: Sequence[CodeBlock]) -> str | None:
    """Reasoning that cites its oracles, or None where a quote cannot be verified.

    Every `##begin_quote##…##end_quote##` is a byte substring of an oracle as it is rendered.
    """
    text = reasoning(fact, oracles)
    if text is None:
        return None
    quotes = parse_answer(render_answer(text, "")).quotes
    verified = quotes and all(find_quote(quoted, oracles) for quoted in quotes)
    return text if verified else None


def also_answers(fact: Fact, oracles: Sequence[CodeBlock], other: CodeBlock) -> bool:
    """Whether another block states the same about a symbol of the same name, or holds an oracle."""
    for oracle in oracles:
        if other.content_hash == oracle.content_hash:
            return True
        if other.id == oracle.id or overlap(other, oracle):
            return True
    subject = oracles[-1]
    if other.name != subject.name:
        return False
    kind = fact.kind.partition("_")[2] if fact.kind in RELATED_KINDS else fact.kind
    about = "" if fact.kind in RELATED_KINDS else fact.subject
    return any(f.value == fact.value and f.subject == about for f in derive_kind(other, kind))
