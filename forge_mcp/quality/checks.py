"""Whether one document and one example are what they claim: checks that say yes or no.

A message begins with its reason, e.g. "unverified_quote: …"; `forge_mcp.quality.reasons` says
what each means. Example and document are looked at alone here; what only shows among the others
(duplicates, leaks between splits) is the validator's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

from pydantic import ValidationError

from forge_mcp.quality.answers import Answered, answer_faults
from forge_mcp.quality.code import parses
from forge_mcp.quality.questions import question_faults
from forge_mcp.quality.texts import INJECTION, faults, without_quotes
from forge_mcp.raft.explained import EXPLAINED
from forge_mcp.raft.facts import KINDS, RELATED_KINDS
from forge_mcp.raft.pairs import also_answers
from forge_mcp.raft.shares import difficulty_of
from forge_mcp.raft.verify import check
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import render_answer
from forge_mcp.schemas.raft_examples import RaftExample

MIN_SOURCE, MAX_SOURCE = 10, 100_000  # characters of a document
MAX_DOCUMENTS = 12  # of one row: three oracles and what the settings allow beside them


def validate_code_block(
    block: CodeBlock, *, require_docstring: bool = True
) -> tuple[bool, list[str]]:
    """Whether a block is whole: not empty, of fair length, what its hash says, valid code.

    Code of other languages than Python was parsed by mining inside its file; alone it need not be
    a file of its language, so that only its hash vouches for it.

    Args:
        block: to look at.
        require_docstring: whether one without a docstring is refused too.

    Returns:
        (valid, messages).
    """
    place = (block.start_line, block.end_line, block.start_byte, block.end_byte)
    spans = _spans_its_lines(block)
    messages = list(
        _code_faults(block.source_code, block.content_hash, block.language, place, spans)
    )
    if require_docstring and not block.docstring.strip():
        messages.append("no_docstring: nothing says what it is for")
    return not messages, messages


def _code_faults(
    source: str, content_hash: str, language: str, place: tuple[int, int, int, int], spans: bool
) -> Iterator[str]:
    """What is wrong with a document's code and place; `spans` says that its lines are its own."""
    size = len(source.strip())
    start_line, end_line, start_byte, end_byte = place
    if not size:
        yield "empty_document: there is no code"
    elif not MIN_SOURCE <= size <= MAX_SOURCE:
        yield f"document_length: {size} characters"
    if hashlib.sha256(source.encode()).hexdigest() != content_hash:
        yield "changed_document: its code is not what its hash says"
    if end_line < start_line or end_byte < start_byte:
        yield "document_place: it ends before it begins"
    elif size and not spans:
        yield "document_place: its lines are not those from its first to its last"
    if size and language == "python" and not parses(source, "python"):
        yield "invalid_code: Python cannot parse it"


def _spans_its_lines(block: CodeBlock) -> bool:
    """Whether a block has as many lines as it says; what was redacted may have lost some."""
    if block.metadata.get("secrets_redacted"):
        return True
    return block.file_line(block.source_code.count("\n")) == block.end_line


def validate_raft_example(
    example: RaftExample, documents: Mapping[str, CodeBlock]
) -> tuple[bool, list[str]]:
    """Whether an example is true and well formed.

    Its documents exist, are whole, appear once and fit its difficulty and flags; the question
    names its subject, asks for the fact and does not hold it; the fact follows from the oracles;
    quotes stand in them; the answer states the fact (or abstains where the oracle is absent) and
    nothing against it; every name resolves; no distractor answers; no text holds a credential,
    junk, or orders to a model.

    Args:
        example: to look at; a row that was edited by hand or by a program, whatever is in it.
        documents: of the dataset, by id.

    Returns:
        (valid, messages).
    """
    try:
        example = RaftExample.model_validate(example.model_dump(warnings=False))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return False, [f"malformed: {place}: {first['msg']}"]
    messages = [*_fields(example), *_documents(example, documents)]
    needed = {*example.oracle_ids, *example.distractor_ids, example.fact.block}
    missing = sorted(block_id for block_id in needed if block_id not in documents)
    if missing:
        messages.append(f"missing_document: {', '.join(missing)}")
    messages += _flags(example)
    if missing or not example.oracle_ids:
        return False, messages
    oracles = [documents[block_id] for block_id in example.oracle_ids]
    distractors = [documents[block_id] for block_id in example.distractor_ids]
    row = Answered(example, documents[example.fact.block], oracles, distractors)
    messages += _fact(row)
    messages += question_faults(example, row.block, oracles)
    messages += answer_faults(row)
    messages += _texts(row)
    return not messages, list(dict.fromkeys(messages))


def _fields(example: RaftExample) -> Iterator[str]:
    """What no type says of a row's fields."""
    for name in ("id", "author"):
        if not getattr(example, name).strip():
            yield f"malformed: {name}: it is empty"
    if example.quality is not None and not 0 <= example.quality <= 1:
        yield f"malformed: quality: {example.quality} is not between 0 and 1"


def _documents(example: RaftExample, documents: Mapping[str, CodeBlock]) -> Iterator[str]:
    """What is wrong with the documents of an example."""
    shown = [*example.oracle_ids, *example.distractor_ids]
    if not example.oracle_ids:
        yield "no_oracle: nothing holds the answer"
    if len(set(shown)) < len(shown):
        yield "repeated_document: one document appears twice"
    if len(shown) > MAX_DOCUMENTS:
        yield f"too_many_documents: {len(shown)}"
    contents = set()
    asked = [example.fact.block] if example.fact.kind == "code" else []
    for block_id in dict.fromkeys([*shown, *asked]):
        block = documents.get(block_id)
        if block is None:
            continue
        if block.content_hash in contents and block_id in example.distractor_ids:
            yield f"repeated_document: {block_id} has the code of another document"
        contents.add(block.content_hash)
        for message in document_faults(block):
            reason, _, what = message.partition(": ")
            yield f"{reason}: {block_id}: {what}"


def document_faults(block: CodeBlock) -> tuple[str, ...]:
    """Why a document must not be shown; kept, because many rows show the same one."""
    return _document_faults(
        (block.content_hash, block.language, block.path),
        (block.start_line, block.end_line, block.start_byte, block.end_byte),
        _spans_its_lines(block),
        block.source_code,
    )


@lru_cache(maxsize=65536)
def _document_faults(
    identity: tuple[str, str, str], place: tuple[int, int, int, int], spans: bool, source: str
) -> tuple[str, ...]:
    content_hash, language, path = identity
    messages = list(_code_faults(source, content_hash, language, place, spans))
    if holds_secret(f"{path}\n{source}"):
        messages.append("secret: its code holds a credential")
    order = INJECTION.search(source)
    if order:
        messages.append(f"injection: {' '.join(order.group().split())!r} in its code")
    return tuple(messages)


def _flags(example: RaftExample) -> Iterator[str]:
    """What is wrong with an example's flags and its difficulty."""
    oracles, beside = len(example.oracle_ids), len(example.distractor_ids)
    kind = example.fact.kind
    if kind not in KINDS and kind not in RELATED_KINDS and kind != EXPLAINED:
        yield f"unknown_kind: {kind!r}"
    elif oracles and not _count_fits(kind, oracles):
        yield f"oracle_count: {oracles} oracles for {kind}"
    if example.closed_book:
        other = kind == "code" and example.oracle_ids != [example.fact.block]
        if beside or example.oracle_absent or other:
            yield "closed_book_documents: it shows documents or calls its oracle absent"
    else:
        if example.oracle_absent and not beside:
            yield "nothing_shown: the oracle is absent and nothing stands beside it"
    if example.difficulty != difficulty_of(example):
        yield f"wrong_difficulty: {example.difficulty} with {oracles} oracles, {beside} distractors"


# Kinds that need more than one document; "code" is written from any number of them.
_SEVERAL = {"callers": (2, 3), "tests": (2, 2), "overrides": (2, 2), "code": (1, 3)}


def _count_fits(kind: str, oracles: int) -> bool:
    least, most = _SEVERAL.get(kind, (2, 2) if kind in RELATED_KINDS else (1, 1))
    return least <= oracles <= most


def _fact(row: Answered) -> Iterator[str]:
    """Whether the fact follows from its documents, and from no distractor."""
    fact = row.example.fact
    if fact.kind not in KINDS and fact.kind not in RELATED_KINDS and fact.kind != EXPLAINED:
        return
    written = fact.kind == "code"  # the block is asked for, and not shown
    if not check(fact, [row.block] if written else row.oracles):
        yield f"false_fact: {fact.value[:80]!r} does not follow from the code"
    elif written and not row.example.closed_book:
        if not check(fact, row.oracles):
            yield "false_fact: the code does not use the documents that are shown"
        if any(also_answers(fact, [row.block], oracle) for oracle in row.oracles):
            yield "answer_shown: a document holds the code that is asked for"
    for distractor in row.distractors:
        if also_answers(fact, [row.block, *row.oracles] if written else row.oracles, distractor):
            yield f"answering_distractor: {distractor.id}"


def _texts(row: Answered) -> Iterator[str]:
    """What is wrong with the three texts as texts."""
    example = row.example
    shown = [row.block.source_code, *(d.source_code for d in row.oracles)]
    shown += [d.path for d in row.oracles]
    yield from faults("question", example.question, shown)
    yield from faults("reasoning", example.reasoning, shown)
    yield from faults("answer", example.final_answer, shown)
    # Quotes and code stand in documents, which were searched; what does not stand there is said to.
    own = f"{example.question}\n{without_quotes(example.reasoning)}\n"
    if holds_secret(own if example.fact.kind == "code" else own + example.final_answer):
        yield "secret: a text holds a credential"


def holds_secret(text: str) -> bool:
    """Whether a text holds a credential."""
    from forge_mcp.mining.secrets import find_secrets

    return bool(find_secrets(text))


def example_text(example: RaftExample) -> str:
    """Question, reasoning and answer of a row."""
    return f"{example.question}\n{render_answer(example.reasoning, example.final_answer)}"
