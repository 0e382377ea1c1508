"""What an answer rests on: its quotes looked up in the documents, and those in today's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ABSTAIN_ANSWER, find_quote, parse_answer
from forge_mcp.settings import MiningSettings

Grounding = Literal["quoted", "partly", "invented", "none"]


class Citation(Schema):
    """Lines of a file, 1-based and inclusive, as it was when it was mined."""

    path: str
    start_line: int
    end_line: int
    stale: bool | None = Field(
        default=None,
        description="Whether the definition that these lines belong to stands there otherwise "
        "now; null where the repository is not there to compare.",
    )


@dataclass(frozen=True)
class Grounded:
    """A model's words, taken apart and checked; see `QueryResult`."""

    answer: str
    reasoning: str
    found: bool
    complete: bool
    citations: list[Citation]
    unverified_quotes: int
    grounding: Grounding


def ground(
    text: str,
    documents: Sequence[CodeBlock],
    repository: Path | None,
    mining: MiningSettings,
) -> Grounded:
    """Look up what a model wrote.

    Args:
        text: the assistant's whole turn.
        documents: what it was given.
        repository: where their files stand now, if that is known.
        mining: how they were mined.
    """
    parsed = parse_answer(text)
    found = not _refuses(parsed.final_answer)
    places = [find_quote(quoted, documents) for quoted in parsed.quotes]
    verified = [place for place in places if place is not None]
    # What does not answer the question is no reference for an answer.
    cited = {(place.block.path, place.start_line, place.end_line): place for place in verified}
    cited = cited if found else {}
    stale = stale_among([place.block for place in cited.values()], repository, mining)
    return Grounded(
        answer=parsed.final_answer if parsed.complete else text.strip(),
        reasoning=parsed.reasoning if parsed.complete else "",
        found=found,
        complete=parsed.complete,
        citations=[
            Citation(path=path, start_line=start, end_line=end, stale=stale[place.block.id])
            for (path, start, end), place in cited.items()
        ],
        unverified_quotes=len(places) - len(verified),
        grounding=_grounding(len(places), len(verified)),
    )


def stale_among(
    blocks: Sequence[CodeBlock], repository: Path | None, mining: MiningSettings
) -> dict[str, bool | None]:
    """By id, whether a block's file does not hold the very same definition on the same lines now.

    The files are mined again. True also where a file is gone or no code any more; None where there
    is no repository to compare with.
    """
    if repository is None or not repository.is_dir():
        return dict.fromkeys((block.id for block in blocks), None)
    there = {
        (block.path, block.language): _definitions(repository, block, mining) for block in blocks
    }
    return {
        block.id: (block.start_line, block.end_line, block.content_hash)
        not in there[block.path, block.language]
        for block in blocks
    }


def _definitions(
    repository: Path, block: CodeBlock, mining: MiningSettings
) -> set[tuple[int, int, str]]:
    """First and last line and content hash of every definition in a block's file as it is now."""
    from forge_mcp.mining.blocks import make_blocks
    from forge_mcp.mining.definitions import find_definitions
    from forge_mcp.mining.languages import language
    from forge_mcp.mining.text import decode

    try:
        data = (repository / block.path).read_bytes()
    except OSError:
        return set()
    decoded = decode(data, block.language, block.path)
    if decoded is None:
        return set()
    spoken = language(block.language)
    try:
        found = find_definitions(spoken.parse(decoded.utf8), decoded.utf8, spoken)
    except (LookupError, RecursionError, ValueError):  # as the miner does: no code that it can read
        return set()
    made = make_blocks(block.path, spoken, decoded, found, [], None, mining, [])
    return {(one.row["start_line"], one.row["end_line"], one.row["content_hash"]) for one in made}


def _refuses(final_answer: str) -> bool:
    """Whether a final answer says that the documents do not tell (the words that were trained)."""
    from forge_mcp.judging.answers import normalise

    return normalise(final_answer).startswith(normalise(ABSTAIN_ANSWER))


def _grounding(quotes: int, verified: int) -> Grounding:
    if quotes == 0:
        return "none"
    if verified == quotes:
        return "quoted"
    return "partly" if verified else "invented"
