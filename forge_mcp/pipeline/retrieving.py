"""What is retrieved for a question: the corpus's blocks ranked, and those that it names first.

The retriever and the encoder of the last question stay loaded for the next one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.workspace import Artifact

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Encoder
    from forge_mcp.retrieval.ranking import Ranking
    from forge_mcp.retrieval.relevance import Definitions

SECRET = "secret"  # noqa: S105 - the reason for which a block is never shown to a model
NAMED = 4  # definitions of one name that come first; a name with more of them tells little
# A question is put to the model only where more than this share of its telling terms stands in one
# block. benchmarks/relevance.py: of 90 questions about three packages 2 are refused (one of them
# asks for what the package does not have), of 150 that no repository answers 135. By
# retrieval.method: a dense encoder finds what is said in other words, and how near is near differs
# from encoder to encoder; there the model itself must say that its documents do not tell.
FLOORS = {"bm25": 0.35, "hybrid": 0.0, "dense": -1.0}

_retrievers: dict[str, tuple[Ranking, Definitions]] = {}
_encoders: dict[str, Encoder | None] = {}
_indexing = threading.Lock()


@dataclass(frozen=True)
class Retrieved:
    """What was found for a question.

    `relevant`: whether any of it has to do with the question. `unknown_names`: names in the
    question that no definition has, and that do not occur in what was found.
    """

    blocks: list[CodeBlock]
    relevant: bool
    unknown_names: list[str]


def retrieve(question: str, count: int, corpus: Artifact, context: SkillContext) -> Retrieved:
    """The blocks nearest to a question, best first; definitions that it names come before all.

    Args:
        question: with the words of an earlier one where it only follows up on that.
        count: blocks at most.
        corpus: what is searched.
        context: `retrieval` of its settings counts.

    Raises:
        InvalidSettings, NotFound, UnsupportedModel, Unavailable, OutOfSpace, ForgeError: see
            `retriever`.
    """
    from forge_mcp.retrieval.relevance import names_in, share_of_terms

    ranking, definitions = _opened(corpus, context)
    hits = [block for block, _ in ranking.search(question, count)]
    rank = {block.id: place for place, block in enumerate(hits)}
    named: list[CodeBlock] = []
    undefined = []
    for name in names_in(question):
        meant = definitions.of(name)
        # Of several definitions those that fit the rest of the question.
        meant = sorted(meant, key=lambda block: rank.get(block.id, len(rank)))[:NAMED]
        named += meant
        if not meant:
            undefined.append(name)
    blocks = list({block.id: block for block in [*named, *hits]}.values())[:count]
    floor = FLOORS[context.settings.retrieval.method]
    relevant = bool(named) or share_of_terms(question, blocks) > floor
    unknown = [
        name
        for name in undefined
        if not any(name.rpartition(".")[2] in block.source_code for block in blocks)
    ]
    return Retrieved(blocks, relevant, unknown)


def retriever(corpus: Artifact, context: SkillContext) -> Ranking:
    """What retrieval.method says, over every block of a corpus but those with secrets.

    Vectors that no index holds yet are made at the first question, which may take minutes.

    Raises:
        InvalidSettings, NotFound, UnsupportedModel, Unavailable: the encoder cannot be loaded.
        OutOfSpace, ForgeError: the index of vectors cannot be written.
    """
    return _opened(corpus, context)[0]


def _opened(corpus: Artifact, context: SkillContext) -> tuple[Ranking, Definitions]:
    from forge_mcp.retrieval.opening import open_retriever
    from forge_mcp.retrieval.relevance import Definitions
    from forge_mcp.retrieval.vectors import Reporting

    settings = context.settings
    with _indexing:
        encoder = encoder_of(context)
        mark = encoder.fingerprint if encoder else ""
        key = f"{corpus.path}:{corpus.manifest.inputs_hash}:{settings.retrieval.method}:{mark}"
        if key not in _retrievers:
            _retrievers.clear()
            ranking = open_retriever(
                searchable_blocks(corpus),
                settings,
                encoder,
                cache=context.workspace.home / "cache" / "retrieval",
                project=corpus.manifest.project,
                reporting=Reporting(
                    progress=lambda done, total: context.progress(
                        done, total, "Indexing for retrieval"
                    ),
                    say=context.log,
                    check=context.check,
                ),
            )
            _retrievers[key] = ranking, Definitions(ranking.blocks)
        return _retrievers[key]


def encoder_of(context: SkillContext) -> Encoder | None:
    """What `open_encoder` gives for the settings; one for other settings takes its place."""
    from forge_mcp.retrieval.opening import open_encoder

    chosen, host = context.settings.retrieval, context.settings.serving.ollama_host
    key = f"{chosen.method}:{chosen.encoder}:{context.repository}:{host}"
    if key not in _encoders:
        _encoders.clear()
        _encoders[key] = open_encoder(context.settings, context.repository)
    return _encoders[key]


def searchable_blocks(corpus: Artifact) -> list[CodeBlock]:
    """Every block of a corpus but those with secrets."""
    blocks = [CodeBlock.model_validate(row) for row in corpus.rows("blocks.jsonl")]
    for row in corpus.rows("rejected.jsonl"):
        rejected = RejectedBlock.model_validate(row)
        if SECRET not in rejected.reasons:
            fields: dict[str, Any] = rejected.model_dump(exclude={"reasons"})
            blocks.append(CodeBlock.model_validate(fields))
    return blocks


def forget() -> None:
    """Free what stays loaded between questions."""
    with _indexing:
        _retrievers.clear()
        _encoders.clear()
