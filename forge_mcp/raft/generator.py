"""CodeBlock → RaftExample: question, documents, reasoning that cites them, answer.

RAFT (arXiv 2403.10131) asks a model with some documents that hold the answer and some that do
not, and has it cite before it answers. Here no language model writes anything: questions and
answers come from facts that are derived from the code and derived again before they are used, so
a row is true or it is not written.

    facts.py               what is true of a block, alone and together with others
    pairs.py, code_tasks.py  facts → questions with their answers
    shares.py              which rows are closed-book, ask for code, or get how many distractors
    build_dataset          the whole, split by file, the same bytes for the same seed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from forge_mcp.errors import BadInput
from forge_mcp.raft.code_tasks import code_pair
from forge_mcp.raft.documents import (
    TOTAL_DOCUMENTS,
    Pool,
    example_documents,
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.facts import CorpusIndex
from forge_mcp.raft.pairs import QAPair, Related, also_answers, block_pairs, usage_pair
from forge_mcp.raft.phrases import CorpusNames
from forge_mcp.raft.preferences import preference_pairs
from forge_mcp.raft.reasoning import absent_reasoning
from forge_mcp.raft.shares import (
    close,
    difficulty_of,
    held_out_closed,
    wanted_distractors,
    with_code,
)
from forge_mcp.raft.splits import assign_splits, draw, follow, leaking, near_copies
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    ABSTAIN_ANSWER,
    DEFAULT_SYSTEM_PROMPT,
    render_answer,
    render_messages,
)
from forge_mcp.schemas.raft_examples import (
    DIFFICULTIES,
    SPLITS,
    ChatRow,
    PreferencePair,
    RaftExample,
    Split,
)
from forge_mcp.settings import RaftSettings

GENERATOR_VERSION = 4  # part of a dataset's inputs: raise it when the same corpus gives other rows
ORACLES_ROOM = 0.7  # share of the documents' room that the oracles may take together

Progress = Callable[[int, int], None]


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
    split, but for held-out closed-book rows, which ask about trained blocks in words that were
    never trained on. The same blocks, settings and prompt give byte-identical files.

    Args:
        blocks: what is trained on.
        settings: the raft section.
        others: blocks of the repository that are not trained on: they keep a question from naming
            two things, and tests among them may be documents.
        system_prompt: of the preference pairs' prompts.
        progress: called as (steps done, steps in all), two steps a block.

    Raises:
        BadInput: no example can be made from these blocks.
    """
    corpus = _Corpus(blocks, list(others), settings)
    dataset = Dataset()
    done, total = 0, 2 * len(corpus.usable)  # asked about, and given their documents

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    trained: list[QAPair] = []
    for split in SPLITS:
        pairs = corpus.pairs(split, step)
        if split == "train":
            pairs = close(pairs, settings)
        else:
            pairs = held_out_closed(pairs, trained, split, settings)
        rows = corpus.assemble(pairs, split, step)
        if split == "train":
            trained = [p for p, e in zip(pairs, rows, strict=True) if not e.oracle_absent]
        dataset.examples += rows
    if not dataset.examples:
        raise BadInput(
            "No example can be made from this corpus.",
            cause=f"of {len(blocks)} blocks none gave a fact that could be confirmed; "
            f"left out: {_words(corpus.skipped)}",
            next_step="Extract a repository with more code, or raise raft.max_document_chars.",
        )
    dataset.documents = corpus.documents(dataset.examples)
    if settings.preferences:
        by_id = {block.id: block for block in dataset.documents}
        dataset.preferences = preference_pairs(
            dataset.examples, by_id, corpus.names.known, settings.seed, system_prompt
        )
    dataset.skipped = {reason: count for reason, count in sorted(corpus.skipped.items()) if count}
    return dataset


def _words(counts: Mapping[str, int]) -> str:
    found = [f"{reason.replace('_', ' ')} {n}" for reason, n in sorted(counts.items()) if n]
    return ", ".join(found) or "nothing"


class _Corpus:
    """The blocks of a corpus by splits, and what is known of them together."""

    def __init__(
        self, blocks: Sequence[CodeBlock], others: Sequence[CodeBlock], settings: RaftSettings
    ) -> None:
        self.settings = settings
        self.skipped: Counter[str] = Counter()
        self.names = CorpusNames([*blocks, *others])
        self.index = CorpusIndex(blocks, others)
        self.blocks = list(blocks)
        self._others = {block.id: block for block in others}
        original = _first_of_copies(blocks)
        self.skipped["copy_of_another"] = len(blocks) - len(original)
        splits = assign_splits(original, settings.valid_share, settings.test_share, settings.seed)
        fitting = [b for b in original if len(b.source_code) <= settings.max_document_chars]
        self.skipped["too_long"] = len(original) - len(fitting)
        related = {block.id: self._related(block) for block in fitting}
        # A test is a document beside what it tests, so its file follows that into a split.
        beside = [
            (document.path, block.path)
            for block in fitting
            for _, oracles in related[block.id]
            for document in oracles[1:]
        ]
        self.splits = splits | follow(splits, beside)
        tests = {
            document.id: document
            for found in related.values()
            for _, oracles in found
            for document in oracles[1:]
            if document.id in self._others
        }
        everything = [*fitting, *tests.values()]
        families = near_copies(everything)
        held_elsewhere = leaking(everything, self.splits, families)
        self._family = {b.id: family for b, family in zip(everything, families, strict=True)}
        self._written: set[int] = set()  # families of which the code is asked for
        self.usable = [block for block in fitting if block.id not in held_elsewhere]
        self.skipped["near_copy_in_other_split"] = len(fitting) - len(self.usable)
        self._inside = {block.id for block in self.usable} | (tests.keys() - held_elsewhere)
        self._found = related

    def _related(self, block: CodeBlock) -> list[Related]:
        """Facts of several documents that fit into the room there is."""
        room = ORACLES_ROOM * TOTAL_DOCUMENTS * self.settings.max_document_chars
        fitting: list[Related] = []
        for fact, oracles in self.index.related(block):
            if sum(len(oracle.source_code) for oracle in oracles) > room or any(
                len(oracle.source_code) > self.settings.max_document_chars for oracle in oracles
            ):
                self.skipped["documents_too_long"] += 1
            else:
                fitting.append((fact, oracles))
        return fitting

    def pairs(self, split: Split, step: Callable[[], None]) -> list[QAPair]:
        """The questions on the blocks of a split; the documents are not chosen yet."""
        settings, seed = self.settings, self.settings.seed
        facts: list[list[QAPair]] = []
        code: list[Callable[[bool], QAPair | None]] = []
        for block in self.usable:
            if self.splits[block.path] != split:
                continue
            known = self._found.pop(block.id)
            related = [one for one in known if self._together(one[1], split)]
            self.skipped["documents_in_other_splits"] += len(known) - len(related)
            count = settings.examples_per_block
            found = block_pairs(
                block, self.names, related, count=count, seed=seed, skipped=self.skipped
            )
            facts.append(found)
            code.append(partial(self._code, block, split))
            step()
        return with_code(facts, code, settings)

    def _together(self, oracles: Sequence[CodeBlock], split: Split) -> bool:
        """Whether documents all belong to a split."""
        return all(o.id in self._inside and self.splits[o.path] == split for o in oracles)

    def _code(self, block: CodeBlock, split: Split, whole: bool) -> QAPair | None:
        """A code-writing question on a block: its body or a call in it, or the other of them."""
        first, second = self._body_pair, self._call_pair
        if not whole:
            first, second = second, first
        return first(block, split) or second(block, split)

    def _body_pair(self, block: CodeBlock, split: Split) -> QAPair | None:
        callees = [
            other
            for other in self.index.callees(block)
            if len(other.source_code) <= self.settings.max_document_chars
            and self._together([other], split)
        ]
        pair = code_pair(block, callees, self.names, self.settings.seed)
        # Without a document the code must have been trained on; a held-out block's was not.
        if pair is None or (pair.closed_book and split != "train"):
            return None
        # The code of a near copy would be the same row once more.
        new = self._family[block.id] not in self._written
        self._written.add(self._family[block.id])
        return pair if new else None

    def _call_pair(self, block: CodeBlock, split: Split) -> QAPair | None:
        return usage_pair(block, self.names, self.settings.seed, self.skipped)

    def assemble(
        self, pairs: Sequence[QAPair], split: Split, step: Callable[[], None]
    ) -> list[RaftExample]:
        """Give every question its documents, and take away the oracles of the wanted share."""
        settings = self.settings
        members = [block for block in self.usable if self.splits[block.path] == split]
        pool = Pool(members)
        wanted = wanted_distractors(pairs, settings)
        beside: list[list[CodeBlock]] = []
        left = len(members)
        last = ""
        for pair, count in zip(pairs, wanted, strict=True):
            beside.append([] if pair.closed_book else self._distractors(pair, pool, count))
            self.skipped["no_distractor"] += count > 0 and not beside[-1]
            if pair.fact.block != last and left:
                step()
                left, last = left - 1, pair.fact.block
        for _ in range(left):  # blocks without questions
            step()
        wanted_absent = round(settings.oracle_absent_share * len(pairs))
        gone: set[int] = set()
        single = (n for n, pair in enumerate(pairs) if pair.single and not pair.closed_book)
        for number in sorted(
            single,
            key=lambda n: draw(settings.seed, "absent", pairs[n].question, pairs[n].fact.block),
        ):
            if len(gone) == wanted_absent:
                break
            shown = beside[number] or self._distractors(pairs[number], pool, 1)
            if shown:  # else nothing at all would be shown: the oracle stays
                beside[number] = shown
                gone.add(number)
        return [
            self._example(pair, beside[number], number in gone, split)
            for number, pair in enumerate(pairs)
        ]

    def _distractors(self, pair: QAPair, pool: Pool, count: int) -> list[CodeBlock]:
        settings = self.settings
        room = TOTAL_DOCUMENTS * settings.max_document_chars
        asked = self.index.block(pair.fact.block)
        _, found = retrieve_oracle_and_distractors(
            pool,
            pair.oracles,
            count,
            seed=draw(settings.seed, pair.fact.block, pair.variant),
            answers=partial(also_answers, pair.fact, pair.oracles),
            room=room - sum(len(oracle.source_code) for oracle in pair.oracles),
            apart=[asked] if asked else [],
        )
        return found

    def _example(
        self, pair: QAPair, distractors: Sequence[CodeBlock], gone: bool, split: Split
    ) -> RaftExample:
        settings = self.settings
        text, answer = pair.reasoning, pair.answer
        if gone:
            shown = [self.names.symbol(block) for block in distractors]
            known = settings.oracle_absent_mode == "memorise"
            text = absent_reasoning(pair.named, shown, pair.variant, known=known)
            answer = pair.answer if known else ABSTAIN_ANSWER
        oracle_ids = [oracle.id for oracle in pair.oracles]
        distractor_ids = [block.id for block in distractors]
        example = RaftExample(
            id=f"ex-{draw(settings.seed, pair.question, *oracle_ids, *distractor_ids, gone):016x}",
            question=pair.question,
            oracle_ids=oracle_ids,
            distractor_ids=distractor_ids,
            oracle_absent=gone,
            closed_book=pair.closed_book,
            reasoning=text,
            final_answer=answer,
            difficulty="easy",
            fact=pair.fact,
            split=split,
        )
        return example.model_copy(update={"difficulty": difficulty_of(example)})

    def documents(self, examples: Iterable[RaftExample]) -> list[CodeBlock]:
        """The blocks that examples show or ask about, in the corpus' order, tests last."""
        used = {i for e in examples for i in (e.fact.block, *e.oracle_ids, *e.distractor_ids)}
        fields = set(CodeBlock.model_fields)  # a rejected block is a document like any other
        tests = [
            CodeBlock.model_validate(block.model_dump(include=fields))
            for block_id, block in self._others.items()
            if block_id in used
        ]
        return [*(block for block in self.blocks if block.id in used), *tests]


def _first_of_copies(blocks: Sequence[CodeBlock]) -> list[CodeBlock]:
    """The blocks without later ones of the very same code: they say nothing new."""
    first: dict[str, str] = {}
    for block in blocks:
        first.setdefault(block.content_hash, block.id)
    kept = set(first.values())
    return [block for block in blocks if block.id in kept]


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
