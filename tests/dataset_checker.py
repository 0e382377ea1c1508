"""The examiner of datasets: says what in one is false, leaked or miscounted.

It was written from the contract alone (issue 5; schemas/), apart from the generator and from the
validator, and looks into the repository's files with readers of its own: dataset_readers.py,
dataset_tokens.py and dataset_facts.js find what is defined, dataset_rules.py holds one rule for
each kind of fact.

    found = check_dataset(dataset_folder, corpus_folder, repository_root)
    assert not found.problems, found.table()
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_readers import Bounds
from dataset_rules import Repository, Undecided, bare, holds, items_of, prose, squash

from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, escape, render_answer, render_question
from forge_mcp.schemas.raft_examples import SPLITS, ChatRow, Fact, PreferencePair, RaftExample

QUOTE = re.compile(r"##begin_quote##(.*?)##end_quote##", re.DOTALL)
SHINGLE = 3
NEAR = 0.9
# Kinds whose question is about the caller: a document that states the same about a symbol of
# this name answers too.
WHOLE_FILE = ("imports", "constant")


@dataclass(frozen=True)
class Problem:
    """Something wrong: which check, which row, and what."""

    check: str
    where: str
    what: str


@dataclass
class Findings:
    """What `check_dataset` found.

    Attributes:
        checked: how much was looked at, by check; facts also by kind.
        undecided: facts that the rules could not tell.
    """

    checked: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    undecided: list[Problem] = field(default_factory=list)

    def add(self, check: str, where: str, what: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(check, where, what))

    @property
    def counts(self) -> Counter[str]:
        """Problems by check."""
        return Counter(problem.check for problem in self.problems)

    @property
    def undecided_share(self) -> float:
        """Facts that could not be told, of all."""
        facts = self.checked["facts"]
        return len(self.undecided) / facts if facts else 0.0

    def table(self, most: int = 5) -> str:
        """Counts as Markdown, and the first problems of each check."""
        lines = ["| check | looked at | wrong |", "| --- | ---: | ---: |"]
        names = sorted(set(self.checked) | set(self.counts))
        lines += [f"| {name} | {self.checked[name]} | {self.counts[name]} |" for name in names]
        lines += [f"| undecided facts | {self.checked['facts']} | {len(self.undecided)} |", ""]
        shown: Counter[str] = Counter()
        for problem in [*self.problems, *self.undecided]:
            shown[problem.check] += 1
            if shown[problem.check] <= most:
                lines.append(f"- {problem.check}: {problem.where}: {problem.what}"[:600])
        return "\n".join(lines)


@dataclass
class Dataset:
    """The rows of a dataset's folder."""

    documents: dict[str, CodeBlock]
    examples: list[RaftExample]
    rows: dict[str, list[ChatRow]]
    preferences: list[PreferencePair]


def rows_of(path: Path) -> Iterator[str]:
    """The lines of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from file


def read_dataset(folder: Path) -> Dataset:
    """Every row of a dataset, by its schema."""
    documents = [
        CodeBlock.model_validate_json(line) for line in rows_of(folder / "documents.jsonl")
    ]
    return Dataset(
        documents={document.id: document for document in documents},
        examples=[
            RaftExample.model_validate_json(line) for line in rows_of(folder / "examples.jsonl")
        ],
        rows={
            split: [
                ChatRow.model_validate_json(line) for line in rows_of(folder / f"{split}.jsonl")
            ]
            for split in SPLITS
        },
        preferences=[
            PreferencePair.model_validate_json(line)
            for line in rows_of(folder / "preferences.jsonl")
        ],
    )


def read_corpus(folder: Path) -> dict[str, CodeBlock]:
    """Every block of a corpus by its id, those that were rejected last."""
    blocks: list[CodeBlock] = [
        CodeBlock.model_validate_json(line) for line in rows_of(folder / "blocks.jsonl")
    ]
    blocks += [
        RejectedBlock.model_validate_json(line) for line in rows_of(folder / "rejected.jsonl")
    ]
    return {block.id: block for block in blocks}


def check_dataset(
    folder: Path,
    corpus: Path,
    root: Path,
    *,
    typescript: Path | None = None,
    absent_share: float | None = 0.2,
    closed_book_share: float | None = 0.2,
) -> Findings:
    """Look for everything that a dataset must not hold.

    Args:
        folder: with documents, examples, splits and preferences.
        corpus: folder with blocks.jsonl and rejected.jsonl.
        root: of the repository.
        typescript: folder of the npm package typescript; without it, facts about JavaScript and
            TypeScript are undecided.
        absent_share: of open-book rows whose oracles must be absent; None: not looked at.
        closed_book_share: of all rows; None: not looked at.
    """
    found = Findings()
    dataset = read_dataset(folder)
    repository = Repository(root, read_corpus(corpus), typescript)
    used = {
        repository.blocks[i].path
        for e in dataset.examples
        for i in e.oracle_ids
        if i in repository.blocks
    }
    used |= {document.path for document in dataset.documents.values()}
    used |= {e.fact.block.partition("::")[0] for e in dataset.examples}
    repository.read(sorted(used))
    check_ids(dataset, found)
    check_documents(dataset, repository, found)
    check_quotes(dataset, repository, found)
    check_facts(dataset, repository, found)
    check_distractors(dataset, repository, found)
    check_rows(dataset, found)
    check_shares(dataset, found, absent_share, closed_book_share)
    check_leaks(dataset, repository, found)
    check_preferences(dataset, repository, found)
    return found


def check_ids(dataset: Dataset, found: Findings) -> None:
    """Ids of examples are unique; the documents of an example exist, once each."""
    seen: set[str] = set()
    for example in dataset.examples:
        found.checked["ids"] += 1
        if example.id in seen:
            found.add("ids", example.id, "two examples have this id")
        seen.add(example.id)
        shown = [*example.oracle_ids, *example.distractor_ids]
        if len(set(shown)) != len(shown):
            found.add("ids", example.id, "a document occurs twice among oracles and distractors")
        for identity in shown:
            if identity not in dataset.documents:
                found.add("ids", example.id, f"{identity} is no document of the dataset")
        if not example.oracle_ids:
            found.add("ids", example.id, "no oracle")


def check_documents(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """A document is its corpus' block, and stands in its file at the stated lines."""
    for document in dataset.documents.values():
        found.checked["documents"] += 1
        block = repository.blocks.get(document.id)
        if block is None:
            found.add("documents", document.id, "no block of the corpus has this id")
            continue
        for name in ("source_code", "start_line", "end_line", "path", "content_hash"):
            if getattr(block, name) != getattr(document, name):
                found.add("documents", document.id, f"{name} is not the corpus'")
        if document.metadata.get("secrets_redacted"):
            continue
        lines = repository.lines(document.path)
        for offset, line in enumerate(document.source_code.split("\n")):
            number = document.file_line(offset)
            if not document.start_line <= number <= document.end_line:
                found.add("documents", document.id, f"line {offset} stands outside, at {number}")
                break
            # In a skeleton, dots stand where bodies were taken out.
            parts = line.split("...") if document.metadata.get("skeleton") else [line]
            if any(part.strip() not in lines[number - 1] for part in parts):
                found.add("documents", document.id, f"line {number} of the file is not {line!r}")
                break


def check_quotes(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """Every quote is a substring of an oracle that is shown, and of its file at its lines."""
    for example in dataset.examples:
        quotes = QUOTE.findall(example.reasoning)
        if example.reasoning.count("##begin_quote##") != len(quotes) or example.reasoning.count(
            "##end_quote##"
        ) != len(quotes):
            found.add("quotes", example.id, "markers of quotes are not paired")
        found.checked["quotes"] += len(quotes)
        if (example.oracle_absent or example.closed_book) and quotes:
            found.add("quotes", example.id, "cites a document that is not shown")
            continue
        if not quotes and not (example.oracle_absent or example.closed_book):
            if example.fact.kind != "code":
                found.add("quotes", example.id, "an open-book answer without any quote")
            continue
        oracles = [dataset.documents[i] for i in example.oracle_ids if i in dataset.documents]
        for text in quotes:
            holding = [document for document in oracles if text in escape(document.source_code)]
            if not text.strip() or not holding:
                found.add("quotes", example.id, f"no oracle holds {text[:80]!r}")
            elif not any(_in_file(text, document, repository) for document in holding):
                found.add("quotes", example.id, f"not in the file's lines: {text[:80]!r}")


def _in_file(text: str, document: CodeBlock, repository: Repository) -> bool:
    """Whether the file has the quote at the lines at which its document says that it stands."""
    lines = repository.lines(document.path)
    source = escape(document.source_code)
    at = source.find(text)
    while at >= 0:
        first = document.file_line(source.count("\n", 0, at))
        there = escape("\n".join(lines[first - 1 : first + text.count("\n")]))
        if document.start_line <= first <= document.end_line and text in there:
            return True
        at = source.find(text, at + 1)
    return bool(document.metadata.get("secrets_redacted"))


def oracles_of(example: RaftExample, blocks: Mapping[str, CodeBlock]) -> list[CodeBlock]:
    """What its fact rests on: `fact.block` first, then its other oracles."""
    ids = [i for i in example.oracle_ids if i != example.fact.block]
    if example.fact.kind == "code":
        ids = []
    return [blocks[i] for i in [example.fact.block, *ids] if i in blocks]


def check_facts(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """Every fact is derived again from the file; its value is what the answer states."""
    for example in dataset.examples:
        fact = example.fact
        found.checked["facts"] += 1
        found.checked[f"facts: {fact.kind}"] += 1
        if fact.block not in repository.blocks:
            found.add("facts", example.id, f"{fact.block} is no block of the corpus")
            continue
        if fact.kind != "code" and fact.block not in example.oracle_ids:
            found.add("facts", example.id, f"{fact.block} is none of the oracles")
            continue
        try:
            true = holds(fact, oracles_of(example, repository.blocks), repository)
        except Undecided as reason:
            found.undecided.append(
                Problem("undecided", example.id, f"{fact.kind} of {fact.block}: {reason}")
            )
            continue
        if not true:
            found.add(
                "facts",
                f"{example.id} {fact.kind} of {fact.block}",
                f"{fact.value[:160]!r} (subject {fact.subject!r}) is not in the file",
            )
        check_answer(example, found)


def check_answer(example: RaftExample, found: Findings) -> None:
    """The answer states the fact, or abstains where the oracle is absent."""
    found.checked["answers"] += 1
    abstains = example.final_answer == ABSTAIN_ANSWER
    if abstains and not example.oracle_absent:
        found.add("answers", example.id, "abstains although it is to answer")
    if abstains:
        return
    value = example.fact.value if example.fact.kind != "code" else example.fact.value.strip("\n")
    stated = example.final_answer
    if value not in stated and squash(value.strip("`")) not in squash(stated):
        found.add("answers", example.id, f"{stated[:100]!r} does not state {value[:100]!r}")


def check_distractors(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """No distractor answers the question as well."""
    for example in dataset.examples:
        oracles = oracles_of(example, repository.blocks)
        asked = [
            *oracles,
            *(
                repository.blocks[i]
                for i in example.oracle_ids
                if i in repository.blocks and example.fact.kind == "code"
            ),
        ]
        for identity in example.distractor_ids:
            other = dataset.documents.get(identity)
            found.checked["distractors"] += 1
            if other is None or not oracles:
                continue
            reason = _answers(example, asked, other, repository)
            if reason:
                found.add(
                    "distractors", f"{example.id} {example.question!r}", f"{identity} {reason}"
                )


def _answers(
    example: RaftExample, oracles: Sequence[CodeBlock], other: CodeBlock, repository: Repository
) -> str:
    """Why a distractor answers too, or nothing."""
    fact, lead = example.fact, oracles[0]
    if other.id in {oracle.id for oracle in oracles}:
        return "is an oracle"
    text = squash(other.source_code)
    for oracle in oracles:
        source = squash(oracle.source_code)
        if source in text and fact.kind != "location":
            return f"holds the text of {oracle.id}"
        inside = other.path == oracle.path and other.block_type == "class"
        inside = (
            inside and other.start_line <= oracle.start_line <= oracle.end_line <= other.end_line
        )
        head = squash(oracle.signature)
        if inside and head and head in text and oracle.id == oracles[-1].id:
            return f"shows {oracle.id} with its lines around"
    # The asked symbol: of a fact about two blocks, what the answer describes is the last one.
    target = oracles[-1] if fact.kind.startswith(("callee_", "base_")) else lead
    if other.qualified_name == target.qualified_name and target.path not in example.question:
        named = f"`{target.qualified_name}`" in example.question
        if named and fact.kind not in WHOLE_FILE and other.block_type == target.block_type:
            return f"is another {target.qualified_name}; the question does not say which"
    if fact.kind == "callers" and other.id in repository.callers.get(lead.id, ()):
        return f"calls {lead.id}"
    if fact.kind == "tests" and re.search(rf"\b{re.escape(lead.name)}\b", other.source_code):
        looks = re.search("test|spec", f"{other.path} {other.name}", re.IGNORECASE)
        return f"is a test that names {lead.name}" if looks else ""
    same_name = other.name == target.name or (
        fact.kind in WHOLE_FILE and other.block_type == "module"
    )
    if same_name and _same_fact(fact, oracles, target, other, repository):
        return f"states the same about {other.qualified_name}"
    if fact.kind == "usage" and f"`{lead.name}`" not in example.question:
        call = squash(fact.value.strip("`"))
        if call in text and lead.qualified_name not in example.question:
            return f"makes the same call as {lead.id}"
    return ""


def _same_fact(
    fact: Fact,
    oracles: Sequence[CodeBlock],
    target: CodeBlock,
    other: CodeBlock,
    repository: Repository,
) -> bool:
    kind = fact.kind.removeprefix("callee_").removeprefix("base_")
    subject = fact.subject
    if fact.kind.startswith(("callee_", "base_")):
        subject = fact.subject.rpartition(".")[2] if kind == "default" else ""
    if kind in ("callers", "tests", "location", "overrides"):
        return False
    if other.block_type == "module" and kind not in ("constant", "purpose"):
        return False
    asked = Fact(kind=kind, block=other.id, value=fact.value, subject=subject)
    try:
        shown = [fact.value] if kind in ("purpose", "code") else items_of(fact.value)
        source = squash(prose(other.source_code) if kind == "purpose" else other.source_code)
        if not all(squash(item) in source for item in shown):
            return False
        if kind in ("raises", "calls", "returns"):
            bounds: Bounds = getattr(repository.definition(other), kind)
            if {bare(text) for text in bounds.own} != {bare(item) for item in shown}:
                return False
        return holds(asked, [other], repository)
    except LookupError:
        return False
    except Undecided:
        return False


_DOCUMENT = re.compile(r"^<DOCUMENT> (.*?):(\d+)-(\d+) (.*)$", re.MULTILINE)


def check_rows(dataset: Dataset, found: Findings) -> None:
    """The chats are exactly those of the examples, with the documents that these claim."""
    for split in SPLITS:
        examples = [example for example in dataset.examples if example.split == split]
        rows = dataset.rows[split]
        if len(rows) != len(examples):
            found.add("rows", split, f"{len(rows)} chats for {len(examples)} examples")
        for example, row in zip(examples, rows, strict=False):
            found.checked["rows"] += 1
            for problem in _row_problems(example, row, dataset.documents):
                found.add("rows", f"{split} {example.id}", problem)
            for problem in _difficulty_problems(example):
                found.add("difficulty", example.id, problem)
            found.checked["difficulty"] += 1


def _row_problems(
    example: RaftExample, row: ChatRow, documents: Mapping[str, CodeBlock]
) -> Iterator[str]:
    if [message.role for message in row.messages] != ["system", "user", "assistant"]:
        yield "not a system, a user and an assistant turn"
        return
    user, assistant = row.messages[1].content, row.messages[2].content
    if assistant != render_answer(example.reasoning, example.final_answer):
        yield "the assistant's turn is not the example's reasoning and answer"
    shown = [] if example.closed_book else list(example.distractor_ids)
    shown += [] if example.closed_book or example.oracle_absent else example.oracle_ids
    count = user.count("\n</DOCUMENT>")
    headers = _DOCUMENT.findall(user)
    if len(headers) != len(shown) or count != len(shown):
        yield f"{len(headers)} documents are shown, {len(shown)} are claimed"
        return
    by_header: dict[tuple[str, str, str, str], list[CodeBlock]] = defaultdict(list)
    for identity in shown:
        if (block := documents.get(identity)) is not None:
            key = (
                escape(block.path),
                str(block.start_line),
                str(block.end_line),
                escape(block.qualified_name),
            )
            by_header[key].append(block)
    ordered = [by_header[key].pop() for key in headers if by_header.get(key)]
    if user != render_question(ordered, example.question):
        yield "the user's turn is not the example's documents and question"


def _difficulty_problems(example: RaftExample) -> Iterator[str]:
    """Easy: one oracle, no distractor. Medium: 1-2 distractors. Hard: 3 or more."""
    number = len(example.distractor_ids)
    if example.closed_book:
        if number:
            yield f"a closed-book row claims {number} distractors"
        return
    if example.oracle_absent and not number:
        yield "the oracle is absent, and no document is there in its place"
    # Where the oracle is absent, its place may be taken by one more distractor.
    possible = {number, number - len(example.oracle_ids)} if example.oracle_absent else {number}
    most = {"easy": 0, "medium": 2}.get(example.difficulty, number)
    least = {"medium": 1, "hard": 3}.get(example.difficulty, 0)
    if not any(least <= count <= most for count in possible):
        yield f"{example.difficulty} with {number} distractors"
    if example.difficulty == "easy" and len(example.oracle_ids) > 1:
        yield f"easy with {len(example.oracle_ids)} oracles"


def check_shares(
    dataset: Dataset, found: Findings, absent: float | None, closed: float | None
) -> None:
    """Shares of rows without oracle and without documents are what was claimed, within 0.05."""
    examples = dataset.examples
    opened = [example for example in examples if not example.closed_book]
    if len(examples) < 100 or not opened:
        return
    missing = sum(example.oracle_absent for example in examples)
    # "Share of rows" may be read as of all rows, or of those that could have an oracle.
    for name, claimed, shares in (
        ("oracle absent", absent, (missing / len(opened), missing / len(examples))),
        ("closed book", closed, (1 - len(opened) / len(examples),)),
    ):
        found.checked["shares"] += 1
        if claimed is not None and all(abs(share - claimed) > 0.05 for share in shares):
            found.add("shares", name, f"{shares[0]:.3f} of the rows, {claimed} claimed")


# -- leaks ---------------------------------------------------------------------------------------


def check_leaks(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """Nothing that is held out is trained on: no file, no near copy of its code, no question."""
    opened = [example for example in dataset.examples if not example.closed_book]
    split_of: dict[str, str] = {}
    code: dict[str, tuple[str, str]] = {}
    for example in opened:
        for identity in [*example.oracle_ids, *example.distractor_ids]:
            document = dataset.documents.get(identity)
            if document is None:
                continue
            found.checked["leaks: files"] += 1
            before = split_of.setdefault(document.path, example.split)
            if before != example.split:
                found.add("leaks: files", document.path, f"in {before} and {example.split}")
        # Whether shown or only asked for, this is what is learnt.
        for identity in {*example.oracle_ids, example.fact.block}:
            if (block := repository.blocks.get(identity)) is not None:
                code[identity] = (example.split, block.source_code)
    for one, other, value in near_copies({i: text for i, (_, text) in code.items()}):
        if code[one][0] != code[other][0]:
            found.add(
                "leaks: code", one, f"{value:.2f} like {other}, {code[one][0]}/{code[other][0]}"
            )
    found.checked["leaks: code"] += len(code)
    trained = {" ".join(e.question.split()) for e in dataset.examples if e.split == "train"}
    known = {e.fact.block for e in dataset.examples if e.split == "train"}
    known |= {i for e in dataset.examples if e.split == "train" for i in e.oracle_ids}
    seen: dict[str, str] = {}
    for example in dataset.examples:
        question = " ".join(example.question.split())
        before = seen.setdefault(question, example.split)
        found.checked["leaks: questions"] += 1
        if example.split != "train" and question in trained:
            found.add("leaks: questions", example.id, f"in train too: {question!r}")
        elif before != example.split:
            found.add("leaks: questions", example.id, f"in {before} and {example.split}")
        if example.closed_book and example.fact.block not in known:
            found.add("leaks: closed book", example.id, f"{example.fact.block} is never trained on")
        found.checked["leaks: closed book"] += example.closed_book


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Token 3-shingles of code; of shorter code, all its tokens as one."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    if len(tokens) < SHINGLE:
        return frozenset([tuple(tokens)])
    return frozenset(tuple(tokens[i : i + SHINGLE]) for i in range(len(tokens) - SHINGLE + 1))


def near_copies(texts: Mapping[str, str], least: float = NEAR) -> Iterator[tuple[str, str, float]]:
    """All pairs with a Jaccard similarity of at least `least`, exactly.

    Prefix filter: two sets so alike share one of the rarest `(1 - least) · size + 1` shingles.
    """
    sets = {name: shingles(text) for name, text in texts.items()}
    frequency = Counter(part for parts in sets.values() for part in parts)
    index: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(sets, key=lambda name: (len(sets[name]), name)):
        parts = sorted(sets[name], key=lambda part: (frequency[part], part))
        prefix = parts[: int((1 - least) * len(parts) + 1e-9) + 1]
        candidates = {other for part in prefix for other in index[part]}
        for other in sorted(candidates):
            if len(sets[other]) < least * len(sets[name]):
                continue
            shared = len(sets[name] & sets[other])
            value = shared / (len(sets[name]) + len(sets[other]) - shared)
            if value >= least:
                yield other, name, value
        for part in prefix:
            index[part].append(name)


# -- preferences ---------------------------------------------------------------------------------


def final_answer(turn: str) -> str:
    """What stands behind the last answer marker."""
    return turn.rpartition("<ANSWER>:")[2].strip()


def check_preferences(dataset: Dataset, repository: Repository, found: Findings) -> None:
    """The chosen answer is true, the rejected one is another, and false."""
    by_prompt: dict[str, list[RaftExample]] = defaultdict(list)
    trained = [example for example in dataset.examples if example.split == "train"]
    for example, row in zip(trained, dataset.rows["train"], strict=False):
        by_prompt[row.messages[1].content].append(example)
    for number, pair in enumerate(dataset.preferences):
        where = f"pair {number} {pair.fact.kind} of {pair.fact.block}"
        found.checked["preferences"] += 1
        rows = by_prompt.get(pair.prompt, [])
        if not rows:
            found.add("preferences", where, "its prompt is no row of train")
            continue
        example = rows[0]
        chosen, rejected = final_answer(pair.chosen), final_answer(pair.rejected)
        if chosen != example.final_answer:
            found.add("preferences", where, f"chosen {chosen[:80]!r} is not the example's answer")
        if squash(chosen) == squash(rejected):
            found.add("preferences", where, "chosen and rejected are the same")
            continue
        if not rejected:
            found.add("preferences", where, "the rejected answer is empty")
            continue
        if chosen == ABSTAIN_ANSWER or rejected == ABSTAIN_ANSWER:
            continue  # what is preferred is whether to answer at all
        claimed = pair.fact.model_copy(update={"value": stated_value(example, rejected)})
        try:
            if holds(claimed, oracles_of(example, repository.blocks), repository):
                found.add("preferences", where, f"the rejected answer is true: {rejected[:160]!r}")
        except Undecided as reason:
            if not str(reason).startswith(("no item", "a backtick", "items are not")):
                found.undecided.append(Problem("undecided", where, str(reason)))


def stated_value(example: RaftExample, answer: str) -> str:
    """The value in an answer that has the words of the true one around another value."""
    before, _, behind = example.final_answer.partition(example.fact.value)
    if before == example.final_answer:
        return answer
    return answer.removeprefix(before).removesuffix(behind) if before or behind else answer


def same_bytes(one: Path, other: Path, names: Iterable[str]) -> list[str]:
    """Files of two builds that differ."""
    return [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def as_json(found: Findings) -> str:
    """The counts, for programs."""
    return json.dumps(
        {
            "checked": found.checked,
            "problems": found.counts,
            "undecided": len(found.undecided),
        },
        indent=2,
        sort_keys=True,
    )
