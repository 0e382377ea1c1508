"""Examples that somebody wrote, added to a dataset: which blocks may be asked about, and rows.

Only blocks of the training split are asked about, so what a model is measured with is always
derived from code; and only documents of the dataset are shown beside them, so nothing crosses the
splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from forge_mcp.raft.documents import TOTAL_DOCUMENTS, Pool, retrieve_oracle_and_distractors
from forge_mcp.raft.pairs import also_answers
from forge_mcp.raft.shares import HARD_DISTRACTORS, difficulty_of
from forge_mcp.raft.splits import draw
from forge_mcp.raft.written import REPHRASED, Gate, Refusal, Subject, Written
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import escape
from forge_mcp.schemas.raft_examples import RaftExample
from forge_mcp.settings import RaftSettings

MAX_SOURCE = 12_000  # characters of a block that is asked about


class Ground:
    """A dataset that written examples are added to.

    Args:
        examples: its own.
        documents: its own.
        settings: the raft section that it was made with.
    """

    def __init__(
        self,
        examples: Sequence[RaftExample],
        documents: Sequence[CodeBlock],
        settings: RaftSettings,
    ) -> None:
        self.settings = settings
        self.gate = Gate(examples)
        by_id = {block.id: block for block in documents}
        # Closed-book rows are about trained blocks in every split; the others tell a file's split.
        trained = {
            by_id[block_id].path
            for example in examples
            if example.split == "train" and not example.closed_book
            for block_id in example.oracle_ids
        }
        self._training = [block for block in documents if block.path in trained]
        self.rows: dict[str, list[RaftExample]] = {}
        for example in examples:
            if example.split == "train":
                self.rows.setdefault(example.fact.block, []).append(example)
        names = Counter(block.qualified_name for block in documents)
        places = Counter((block.path, block.qualified_name) for block in documents)
        self.subjects = {
            block.id: Subject(block, names[block.qualified_name] > 1)
            for block in self._training
            if block.id in self.rows
            and places[(block.path, block.qualified_name)] == 1
            and _is_verbatim(block)
        }

    @cached_property
    def _pool(self) -> Pool:
        return Pool(self._training)

    def stated(self, block_id: str) -> list[RaftExample]:
        """The training examples on a block, but for those whose answer is its code itself."""
        return [example for example in self.rows[block_id] if example.fact.kind != "code"]

    def rephrasable(self, block_id: str) -> list[RaftExample]:
        """The training examples on a block whose questions may be put into other words."""
        return [
            example
            for example in self.rows[block_id]
            if example.fact.kind in REPHRASED and not example.oracle_absent
        ]

    def add(self, written: Written, subject: Subject, author: str) -> RaftExample | Refusal:
        """A written question and answer as an example with its documents, or why not."""
        draft = self.gate.new_example(written, subject)
        if isinstance(draft, Refusal):
            return draft
        block, settings = subject.block, self.settings
        seed = draw(settings.seed, "written", block.id, draft.question)
        most = max(HARD_DISTRACTORS, settings.distractors + 1) if settings.distractors else 0
        _, distractors = retrieve_oracle_and_distractors(
            self._pool,
            [block],
            seed % (most + 1),
            seed=seed,
            answers=lambda other: also_answers(draft.fact, [block], other),
            room=TOTAL_DOCUMENTS * settings.max_document_chars - len(block.source_code),
        )
        shown = [distractor.id for distractor in distractors]
        example = RaftExample(
            id=f"ex-{draw(seed, author, draft.answer, *shown):016x}",
            question=draft.question,
            oracle_ids=[block.id],
            distractor_ids=shown,
            reasoning=draft.reasoning,
            final_answer=draft.answer,
            difficulty="easy",
            fact=draft.fact,
            split="train",
            author=author,
        )
        return example.model_copy(update={"difficulty": difficulty_of(example)})

    def rephrase(self, example: RaftExample, text: str, author: str) -> RaftExample | Refusal:
        """The same example asked in other words, or why not."""
        question = self.gate.paraphrase(text, example)
        if isinstance(question, Refusal):
            return question
        return example.model_copy(
            update={
                "id": f"ex-{draw(self.settings.seed, 'rephrased', example.id, question):016x}",
                "question": question,
                "author": author,
            }
        )


def _is_verbatim(block: CodeBlock) -> bool:
    """Whether any part of a block's text that is shown also stands in its file.

    It does not where bodies or credentials were taken out, nor where a marker of ours is escaped.
    """
    text = block.source_code
    changed = block.metadata.get("skeleton") or block.metadata.get("secrets_redacted")
    return not changed and len(text) <= MAX_SOURCE and escape(text) == text
