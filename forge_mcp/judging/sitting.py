"""The sitting: one model after the other does the same examination."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forge_mcp.judging.answers import MlxBackend, Repository, score_answers
from forge_mcp.judging.coding import Embed, Programs, write_functions, write_programs
from forge_mcp.judging.gate import Answers, Paper
from forge_mcp.judging.generation import latency
from forge_mcp.judging.heldout import Case, Examination, Learnt, sample
from forge_mcp.judging.knowledge import measure, questions
from forge_mcp.judging.perplexity import compute_perplexity, text_bytes, text_examples
from forge_mcp.judging.reconstruction import Task
from forge_mcp.judging.results import CONTESTANTS, Comparison, Contestant, SectionName
from forge_mcp.judging.schedule import Clock, Sizes, fit, rates_from
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import JudgingSettings
from forge_mcp.training.batching import encode_row
from forge_mcp.workspace import Artifact

TRIED = 4  # questions from which the time of all is reckoned
LATENCY_TOKENS = 32
# Who is asked closed-book questions with retrieved documents too.
BESIDE: dict[Contestant, Contestant] = {"base": "base_retrieval", "tuned": "tuned_retrieval"}
Retrieve = Callable[[Sequence[str]], list[list[CodeBlock]]]


@dataclass(frozen=True)
class Opponent:
    """Another run. `learnt`: what it was trained on; None where its dataset is gone."""

    contestant: Literal["deployed", "control"]
    run: Artifact
    learnt: Learnt | None


@dataclass(frozen=True)
class Exam:
    """What is asked.

    `cases`: the questions of a dataset's test split. `repository`: what answers may speak of.
    `texts`: held-out source code. `tasks`: functions to be written again. `programs`: problems
    whose solutions are run, where that was asked for. `retrieve`: blocks for questions, best
    first, of which the first `documents` that fit are given. `embed`: the encoder, where there is
    one.
    """

    cases: Examination
    repository: Repository
    texts: Sequence[str]
    tasks: Sequence[Task]
    programs: Programs | None
    retrieve: Retrieve
    documents: int
    embed: Embed | None


@dataclass
class Evaluation:
    """All that was measured. `papers`: base and tuned first. `of`: how many questions (functions,
    problems) there were to choose from. `notes`: what a reader of a section has to know."""

    papers: dict[Contestant, Paper]
    comparisons: list[Comparison]
    base_name: str
    asked: dict[SectionName, int]
    of: dict[SectionName, int]
    notes: dict[SectionName, list[str]]
    seconds: dict[SectionName, float]
    budget_note: str

    @property
    def reasons(self) -> list[str]:
        """Why the gate says no; empty where it says yes."""
        return [reason for comparison in self.comparisons for reason in comparison.reasons]


def fits(case: Case, tokenizer: Any, room: int, max_tokens: int) -> bool:
    """Whether a case, and a generated answer to it, stay within a context of `room` tokens."""
    example = encode_row(case.row, tokenizer)
    return max(len(example.tokens), example.start + max_tokens) <= room


def context_length(base: Path) -> int:
    """Tokens of a base's context, from its config.json."""
    return int(json.loads((base / "config.json").read_text("utf-8"))["max_position_embeddings"])


@dataclass
class Sitting:
    """Lets one model after the other do the same."""

    exam: Exam
    cases: Examination
    learnt: Learnt
    settings: JudgingSettings
    clock: Clock
    opponents: Sequence[Opponent]
    papers: dict[Contestant, Paper] = field(default_factory=dict)
    notes: dict[SectionName, list[str]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[SectionName, float] = field(default_factory=lambda: defaultdict(float))
    budget_note: str = ""

    def note(self, section: SectionName, text: str) -> None:
        """Something that a reader of a section has to know; said once."""
        if text not in self.notes[section]:
            self.notes[section].append(text)

    @contextmanager
    def timed(self, section: SectionName) -> Iterator[None]:
        """Adds what passes to the section's time."""
        started = time.perf_counter()
        yield
        self.seconds[section] += time.perf_counter() - started

    def plan(self, tuned: Any, room: int) -> None:
        """Choose the questions, fewer where a budget asks for it."""
        programs = self.exam.programs
        sizes = Sizes.wanted(self.settings, programs=len(programs.problems) if programs else 0)
        sizes = Sizes(
            scored_open=min(sizes.scored_open, len(self.cases.open_book)),
            scored_closed=min(sizes.scored_closed, len(self.cases.closed_book)),
            answered_open=min(sizes.answered_open, len(self.cases.open_book)),
            answered_closed=min(sizes.answered_closed, len(self.cases.closed_book)),
            text=sizes.text if self.exam.texts else 0,
            written=min(sizes.written, len(self.exam.tasks)),
            programs=sizes.programs,
        )
        whole = 2 + len(self.opponents)
        deployed = 2 + sum(one.contestant == "deployed" for one in self.opponents)
        models = {
            "scored_open": whole,
            "scored_closed": whole,
            "answered_open": whole,
            "answered_closed": whole,
            "answered_retrieval": 2,
            "text": deployed,
            "written": deployed,
            "programs": 2,
        }
        if self.settings.minutes:
            started = time.perf_counter()
            rates = rates_from(self._try(tuned, room))
            left = 60 * self.settings.minutes - (time.perf_counter() - started)
            sizes, self.budget_note = fit(sizes, rates, models, max(left, 1.0))
        self.clock.expect(sizes, models)
        seed = self.settings.seed
        self.scored_open = sample(self.cases.open_book, sizes.scored_open, seed)
        self.asked_open = sample(self.cases.open_book, sizes.answered_open, seed)
        self.scored_closed = sample(self.cases.closed_book, sizes.scored_closed, seed)
        self.asked_closed = sample(self.cases.closed_book, sizes.answered_closed, seed)
        self.text_tokens = sizes.text
        self.tasks = list(self.exam.tasks[: sizes.written])
        self.programs = programs.first(sizes.programs) if programs else None
        self.found = self._with_retrieved(tuned.tokenizer, room)

    def _try(self, tuned: Any, room: int) -> dict[str, float]:
        """Seconds a question of each part that has questions, from a few of them."""
        backend = MlxBackend(tuned.model, tuned.tokenizer, room)
        found = {}
        for book, cases in (("open", self.cases.open_book), ("closed", self.cases.closed_book)):
            few = sample(cases, TRIED, self.settings.seed)
            if not few:
                continue
            started = time.perf_counter()
            asked = questions(few, tuned.tokenizer, self.learnt.answers, self.settings.seed)
            measure(tuned.model, asked, room)
            scored = time.perf_counter()
            backend.answer_all([case.row.messages[:-1] for case in few], self.settings.max_tokens)
            found[f"scored_{book}"] = (scored - started) / len(few)
            found[f"answered_{book}"] = (time.perf_counter() - scored) / len(few)
        return found

    def _with_retrieved(self, tokenizer: Any, room: int) -> list[Case]:
        """The closed-book questions with the best documents that fit, as `query` gives them."""
        cases = self.asked_closed
        hits = self.exam.retrieve([case.example.question for case in cases]) if cases else []
        found = []
        for case, blocks in zip(cases, hits, strict=True):
            chosen: list[CodeBlock] = []
            for block in blocks:
                if len(chosen) == self.exam.documents:
                    break
                wider = case.with_documents([*chosen, block])
                if fits(wider, tokenizer, room, self.settings.max_tokens):
                    chosen.append(block)
            found.append(case.with_documents(chosen))
        return found

    def examine(
        self, contestant: Contestant, name: str, identity: str, loaded: Any, room: int
    ) -> Paper:
        """Let one model, a LoadedRun or LoadedBase, do everything that it shall.

        `identity` tells it from any other, whatever it is called.
        """
        paper = self.papers[contestant] = Paper(contestant, name)
        tokenizer, settings = loaded.tokenizer, self.settings
        backend = MlxBackend(loaded.model, tokenizer, room)

        def within(cases: Sequence[Case]) -> list[Case]:
            return [case for case in cases if fits(case, tokenizer, room, settings.max_tokens)]

        books: tuple[tuple[SectionName, str, list[Case], list[Case]], ...] = (
            ("open_book", "open", within(self.scored_open), within(self.asked_open)),
            ("closed_book", "closed", within(self.scored_closed), within(self.asked_closed)),
        )
        for section, book, scored, asked in books:
            with self.timed(section):
                if scored:
                    encoded = questions(scored, tokenizer, self.learnt.answers, settings.seed)
                    watch = self.clock.watch(f"scored_{book}", f"{name}: scored", len(encoded))
                    paper.likelihood[section] = measure(loaded.model, encoded, room, watch)
                if asked:
                    watch = self.clock.watch(f"answered_{book}", f"{name}: answered", len(asked))
                    paper.answers[section] = self._answers(backend, asked, watch)
        if contestant in BESIDE:
            found = within(self.found)
            if found:
                with self.timed("closed_book"):
                    other = BESIDE[contestant]
                    watch = self.clock.watch(
                        "answered_retrieval", f"{name} with retrieval: answered", len(found)
                    )
                    beside = Paper(other, name)
                    beside.answers["closed_book"] = self._answers(backend, found, watch)
                    self.papers[other] = beside
            self._measure_speed(paper, backend)
        if contestant != "control":
            self._measure_text(paper, loaded, room)
            self._measure_code(paper, loaded, room)
        if self.programs and contestant in ("base", "tuned"):
            with self.timed("humaneval"):
                watch = self.clock.watch(
                    "programs", f"{name}: programs", len(self.programs.problems)
                )
                result = write_programs(self.programs, name, identity, loaded, room, watch)
                paper.others["humaneval"] = result.metrics
                for text in result.notes:
                    self.note("humaneval", text)
        return paper

    def _answers(
        self, backend: MlxBackend, cases: list[Case], watch: Callable[[int, int], None]
    ) -> Answers:
        limit = self.settings.max_tokens
        return Answers(cases, score_answers(backend, cases, self.exam.repository, limit, watch))

    def _measure_text(self, paper: Paper, loaded: Any, room: int) -> None:
        """Perplexity of held-out source code, in windows of the context."""
        if not self.text_tokens:
            return
        with self.timed("text"):
            examples = text_examples(loaded.tokenizer, self.exam.texts, self.text_tokens)
            if not examples:  # texts of one token each have nothing to score
                return
            watch = self.clock.watch("text", f"{paper.name}: texts", self.text_tokens)
            perplexity = compute_perplexity(
                loaded.model,
                examples,
                text_bytes(loaded.tokenizer, examples),
                window=room,
                on_example=watch,
            )
            paper.others["text"] = perplexity.metrics(self.settings.seed)

    def _measure_code(self, paper: Paper, loaded: Any, room: int) -> None:
        """Functions written again from their headers."""
        if not self.tasks:
            return
        with self.timed("code"):
            watch = self.clock.watch("written", f"{paper.name}: functions", len(self.tasks))
            written = write_functions(
                self.tasks, loaded, room, self.exam.embed, self.settings.seed, watch
            )
            paper.others["code"] = written.metrics
            paper.written = written.codes
            for text in written.notes:
                self.note("code", text)

    def _measure_speed(self, paper: Paper, backend: MlxBackend) -> None:
        """Time per token, one question by itself, as a user meets it."""
        with self.timed("speed"):
            (prompt,) = backend.prompts([self.asked_open[0].row.messages[:-1]])
            found = latency(backend.model, backend.tokenizer, prompt, LATENCY_TOKENS)
            paper.others["speed"] = [
                Metric(name=name, value=value, low=value, high=value, n=found.tokens)
                for name, value in (
                    ("ms_per_token", found.milliseconds_per_token),
                    ("prompt_ms", found.prompt_milliseconds),
                )
            ]
            self.note(
                "speed",
                f"One question of {len(prompt)} tokens, {found.tokens} tokens of answer, on this "
                "machine in MLX; no interval, because it was measured once.",
            )

    def finish(self, comparisons: list[Comparison], base_name: str) -> Evaluation:
        """Everything, in the order of the pages: base first."""
        asked: dict[SectionName, int] = {
            "open_book": len(self.scored_open),
            "closed_book": len(self.scored_closed),
            "text": self.text_tokens,
            "code": len(self.tasks),
            "humaneval": len(self.programs.problems) if self.programs else 0,
            "speed": 1,
        }
        of: dict[SectionName, int] = {
            "open_book": len(self.cases.open_book),
            "closed_book": len(self.cases.closed_book),
            "text": self.text_tokens,
            "code": len(self.exam.tasks),
            "humaneval": len(self.exam.programs.problems) if self.exam.programs else 0,
            "speed": 1,
        }
        self.note("open_book", f"{len(self.asked_open)} questions were answered by generation.")
        if self.asked_closed:
            self.note(
                "closed_book", f"{len(self.asked_closed)} questions were answered by generation."
            )
        return Evaluation(
            papers={one: self.papers[one] for one in CONTESTANTS if one in self.papers},
            comparisons=comparisons,
            base_name=base_name,
            asked={name: n for name, n in asked.items() if n},
            of=of,
            notes=dict(self.notes),
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
            budget_note=self.budget_note,
        )
