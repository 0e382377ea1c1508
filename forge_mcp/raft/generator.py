"""CodeBlock → RaftExample: question, documents, reasoning that cites them, answer.

RAFT (arXiv 2403.10131) asks a model with some documents that hold the answer and some that do
not, and has it cite before it answers. Here no language model writes anything: questions and
answers come from facts that are derived from the code and derived again before they are used, so
a row is true or it is not written.

    generate_qa_pairs                facts → questions with their answers (pairs.py)
    generate_chain_of_thought        reasoning with verified quotes (pairs.py)
    retrieve_oracle_and_distractors  the documents beside a question (documents.py)
    build_dataset                    the whole, split by file, the same bytes for the same seed
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
    retrieve_oracle_and_distractors,
)
from forge_mcp.raft.pairs import CorpusNames, QAPair, also_answers, generate_qa_pairs
from forge_mcp.raft.phrases import name_of
from forge_mcp.raft.preferences import preference_pairs
from forge_mcp.raft.splits import assign_splits, draw, shared_content
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
    Difficulty,
    PreferencePair,
    RaftExample,
    Split,
)
from forge_mcp.settings import RaftSettings

GENERATOR_VERSION = 2  # part of a dataset's inputs: raise it when the same corpus gives other rows

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
    return f"`{name_of(pair.oracles[0])}`"


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
