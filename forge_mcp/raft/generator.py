"""CodeBlock → RaftExample: question, documents, reasoning that cites them, answer.

RAFT (arXiv 2403.10131) asks a model with some documents that hold the answer and some that do
not, and has it cite before it answers. Here no language model writes anything: questions and
answers come from facts that are derived from the code and derived again before they are used, so
a row is true or it is not written.

    generate_qa_pairs               facts → questions with their answers
    retrieve_oracle_and_distractors (documents.py)
    generate_chain_of_thought       reasoning with verified quotes
    build_dataset                   the whole, split by file, byte for byte the same for a seed
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from forge_mcp.errors import BadInput
from forge_mcp.raft.documents import (
    TOTAL_DOCUMENTS,
    Pool,
    example_documents,
    overlap,
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.facts import RELATED_KINDS, derive, derive_kind, make_fact, value_items
from forge_mcp.raft.phrases import question, reasoning, symbol
from forge_mcp.raft.preferences import preference_pairs
from forge_mcp.raft.splits import assign_splits, draw, shared_content
from forge_mcp.raft.verify import check, linked
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    DEFAULT_SYSTEM_PROMPT,
    escape,
    find_quote,
    parse_answer,
    render_answer,
    render_messages,
)
from forge_mcp.schemas.raft_examples import (
    DIFFICULTIES,
    SPLITS,
    ChatRow,
    Difficulty,
    Fact,
    PreferencePair,
    RaftExample,
    Split,
)
from forge_mcp.settings import RaftSettings

GENERATOR_VERSION = 1  # part of a dataset's inputs: raise it when the same corpus gives other rows
MAX_PER_FACT = 2  # questions on one fact, in different words and with other documents
MAX_OF_KIND = 2  # e.g. defaults of one block

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class QAPair:
    """A question with what is true: its fact, and the blocks that show it."""

    question: str
    fact: Fact
    oracles: tuple[CodeBlock, ...]
    reasoning: str
    answer: str


@dataclass
class Dataset:
    """What `build_dataset` makes; `skipped` counts what was not used, by reason."""

    documents: list[CodeBlock] = field(default_factory=list)
    examples: list[RaftExample] = field(default_factory=list)
    preferences: list[PreferencePair] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def rows(self, split: Split, system_prompt: str = DEFAULT_SYSTEM_PROMPT) -> list[ChatRow]:
        """The chats of a split, in the order of its examples."""
        by_id = {block.id: block for block in self.documents}
        return [chat_row(e, by_id, system_prompt) for e in self.examples if e.split == split]

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Examples by difficulty and by split."""
        difficulty = Counter(example.difficulty for example in self.examples)
        split = Counter(example.split for example in self.examples)
        return {d: difficulty[d] for d in DIFFICULTIES}, {s: split[s] for s in SPLITS}


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


def build_dataset(
    blocks: Sequence[CodeBlock],
    settings: RaftSettings,
    *,
    others: Iterable[CodeBlock] = (),
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """The whole dataset of a corpus.

    Files are assigned to splits first; oracles and distractors of an example come from its own
    split. The same blocks, settings and prompt give byte-identical files.

    Args:
        blocks: what is trained on.
        settings: the raft section.
        others: blocks of the repository that are not trained on; they only keep a question from
            naming two things.
        system_prompt: of the preference pairs' prompts.
        progress: called as (blocks done, blocks in all).

    Raises:
        BadInput: no example can be made from these blocks.
    """
    skipped: Counter[str] = Counter()
    dataset = Dataset()
    names = CorpusNames([*blocks, *others])
    splits = assign_splits(blocks, settings.valid_share, settings.test_share, settings.seed)
    leaking = shared_content(blocks, splits)
    usable = []
    for block in blocks:
        if block.id in leaking:
            skipped["content_in_held_out"] += 1
        elif len(block.source_code) > settings.max_document_chars:
            skipped["too_long"] += 1
        else:
            usable.append(block)
    done, everywhere = 0, {block.id: block for block in usable}
    for split in SPLITS:
        members = [block for block in usable if splits[block.path] == split]
        inside = {block.id: block for block in members}
        for block in members:
            crossing = [d for d in block.dependencies if d in everywhere and d not in inside]
            skipped["dependency_in_another_split"] += len(crossing)
        pool = Pool(members)
        pairs: list[QAPair] = []
        for block in members:
            pairs += generate_qa_pairs(
                [block], settings, names=names, related=inside, skipped=skipped
            )
            done += 1
            progress(done, len(usable))
        dataset.examples += _assemble(pairs, pool, split, settings, skipped)
    if not dataset.examples:
        raise BadInput(
            "No example can be made from this corpus.",
            cause=f"of {len(blocks)} blocks none gave a fact that could be confirmed; "
            f"left out: {_words(skipped)}",
            next_step="Extract a repository with more code, or raise raft.max_document_chars.",
        )
    used = {block_id for e in dataset.examples for block_id in (*e.oracle_ids, *e.distractor_ids)}
    dataset.documents = [block for block in blocks if block.id in used]
    if settings.preferences:
        by_id = {block.id: block for block in dataset.documents}
        dataset.preferences = preference_pairs(
            dataset.examples, by_id, settings.seed, system_prompt
        )
    dataset.skipped = {reason: count for reason, count in sorted(skipped.items()) if count}
    return dataset


def _words(counts: Mapping[str, int]) -> str:
    found = [f"{reason.replace('_', ' ')} {n}" for reason, n in sorted(counts.items()) if n]
    return ", ".join(found) or "nothing"


def _assemble(
    pairs: Sequence[QAPair],
    pool: Pool,
    split: Split,
    settings: RaftSettings,
    skipped: Counter[str],
) -> list[RaftExample]:
    """Give every question its documents."""
    absent = _absent(pairs, settings, split)
    turn: dict[str, int] = defaultdict(int)
    examples: list[RaftExample] = []
    for number, pair in enumerate(pairs):
        block = pair.oracles[0]
        seed = draw(settings.seed, block.id, turn[block.id])
        count = _wanted(len(pair.oracles), draw(settings.seed, block.id) + turn[block.id], settings)
        turn[block.id] += 1
        gone = number in absent
        room = TOTAL_DOCUMENTS * settings.max_document_chars
        oracles, distractors = retrieve_oracle_and_distractors(
            pool,
            pair.oracles,
            count + gone,
            seed=seed,
            answers=partial(also_answers, pair.fact, pair.oracles),
            room=room if gone else room - sum(len(o.source_code) for o in pair.oracles),
        )
        if gone and not distractors:
            gone = False  # nothing would be shown: the oracle stays
        if count and not distractors:
            skipped["no_distractor"] += 1
        examples.append(_example(pair, oracles, distractors, gone, split, settings))
    return examples


def _absent(pairs: Sequence[QAPair], settings: RaftSettings, split: Split) -> set[int]:
    """Which pairs lose their oracle: exactly the share, among the questions with one oracle."""
    single = [number for number, pair in enumerate(pairs) if len(pair.oracles) == 1]
    single.sort(
        key=lambda n: (draw(settings.seed, "absent", pairs[n].question, pairs[n].fact.block), n)
    )
    return set(single[: round(settings.oracle_absent_share * len(pairs))])


def _wanted(oracles: int, turn: int, settings: RaftSettings) -> int:
    """How many distractors: none, then `distractors` or one less, then one more, by turns."""
    if oracles > 1:
        return settings.distractors + 1
    step = turn % 3
    if step == 0 or settings.distractors == 0:
        return 0
    if step == 2:
        return settings.distractors + 1
    return max(1, settings.distractors - turn // 3 % 2)


def _example(
    pair: QAPair,
    oracles: Sequence[CodeBlock],
    distractors: Sequence[CodeBlock],
    gone: bool,
    split: Split,
    settings: RaftSettings,
) -> RaftExample:
    text, answer = pair.reasoning, pair.answer
    if gone and settings.oracle_absent_mode == "abstain":
        text, answer = f"No document defines {_asked(pair)}.", ABSTAIN_ANSWER
    elif gone:
        text = f"No document defines {_asked(pair)}; this is known from the repository."
    beside = len(distractors) - gone
    difficulty: Difficulty = "medium"
    if len(oracles) > 1 or beside > settings.distractors:
        difficulty = "hard"
    elif beside <= 0:
        difficulty = "easy"
    shown = [*(o.id for o in oracles), *(d.id for d in distractors)]
    return RaftExample(
        id=f"ex-{draw(settings.seed, pair.question, *shown, gone):016x}",
        question=pair.question,
        oracle_ids=[o.id for o in oracles],
        distractor_ids=[d.id for d in distractors],
        oracle_absent=gone,
        reasoning=text,
        final_answer=answer,
        difficulty=difficulty,
        fact=pair.fact,
        split=split,
    )


def _asked(pair: QAPair) -> str:
    block = pair.oracles[0]
    return f"`{block.path if block.block_type == 'module' else block.qualified_name}`"


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


def chat_row(
    example: RaftExample,
    documents: Mapping[str, CodeBlock],
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
) -> ChatRow:
    """The chat that an example is trained on.

    Raises:
        KeyError: a document of the example is not in `documents`.
    """
    shown = example_documents(example, documents)
    answer = render_answer(example.reasoning, example.final_answer)
    return ChatRow(messages=render_messages(shown, example.question, answer, system_prompt))
