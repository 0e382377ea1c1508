"""The skill `query`: a question about the repository, answered by the deployed model."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.export import GGUF, TOKENIZER
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.prompt import find_quote, parse_answer, render_messages
from forge_mcp.workspace import Artifact

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Encoder
    from forge_mcp.retrieval.ranking import Ranking
    from forge_mcp.serving.chat import Chat

SPARE = 3  # candidates looked at for each document wanted, because long ones are left out
SECRET = "secret"  # noqa: S105 - the reason for which a block is never shown to a model


class QueryRequest(SkillRequest):
    """A question about the project's code."""

    text: str = Field(
        min_length=1, description="The question, in plain words; names in back-ticks."
    )
    model: str | None = Field(
        default=None, description="A deployed model's name. Default: the active one."
    )
    max_documents: int | None = Field(
        default=None,
        ge=0,
        le=16,
        description="Code blocks given to the model; 0 asks it closed-book. Default: the "
        "project's.",
    )


class Place(Schema):
    """Lines of a file, 1-based and inclusive."""

    path: str
    start_line: int
    end_line: int


class Source(Place):
    """A block that was given to the model."""

    name: str


class QueryResult(SkillResult):
    """An answer. Only quotes found word for word in the sources are citations."""

    answer: str = Field(
        description="The final answer, or all that the model wrote where it gave none."
    )
    reasoning: str
    citations: list[Place]
    unverified_quotes: int = Field(description="Quotes that stand in none of the sources.")
    sources: list[Source]
    complete: bool = Field(description="Whether the model came to a final answer and stopped.")
    model: str
    target: Literal["llamacpp", "ollama"]
    seconds: float


@skill(
    title="Ask the model",
    positional=("text",),
    read_only=True,
    examples=('forge-mcp query "What does `Flask.route` return?"',),
)
def query(request: QueryRequest, context: SkillContext) -> QueryResult:
    """Answer a question about the repository with its own deployed model, and cite the code.

    Use this for questions about this code base that a local model shall answer. The nearest code
    blocks are retrieved and given to the model; citations are quotes that were found word for
    word in them, with path and lines, so that you can check. A model this small can be wrong:
    trust an answer with citations more than one without.
    """
    started = time.perf_counter()
    from forge_mcp.serving.chat import Deployed, Sampling, open_chat
    from forge_mcp.serving.lineage import ancestor
    from forge_mcp.serving.registry import find_deployment, get_active_model

    workspace, settings = context.workspace, context.settings
    if not request.text.strip():
        raise BadInput("The question is empty.", next_step="Ask something about the code.")
    deployment = (
        get_active_model(workspace, context.project)
        if request.model is None
        else find_deployment(workspace, context.project, request.model)
    )
    artifact = workspace.load(deployment.id, "deployment")
    export = workspace.load(deployment.export, "export")
    corpus = ancestor(workspace, artifact, "corpus")
    prompt = artifact.manifest.settings["system_prompt"]

    wanted = (
        settings.retrieval.documents if request.max_documents is None else request.max_documents
    )
    candidates: list[CodeBlock] = []
    if wanted:
        hits = retriever(corpus, context).search(request.text, wanted * SPARE)
        candidates = [block for block, _ in hits]
    context.log(f"Asking {deployment.model} ({deployment.target}).")
    chat = open_chat(
        Deployed(deployment.model, deployment.target, export.file(GGUF), export.file(TOKENIZER)),
        settings.serving,
    )
    documents = _fitting(chat, candidates, wanted, request.text, prompt, context)
    reply = chat.chat(
        render_messages(documents, request.text, system_prompt=prompt),
        Sampling.of(settings.serving),
        on_text=lambda text: context.emit("progress", text=text),
    )

    parsed = parse_answer(reply.text)
    found = [find_quote(quoted, documents) for quoted in parsed.quotes]
    places = [
        Place(path=cited.block.path, start_line=cited.start_line, end_line=cited.end_line)
        for cited in found
        if cited is not None
    ]
    return QueryResult.model_validate(
        {
            "answer": parsed.final_answer if parsed.complete else reply.text.strip(),
            "reasoning": parsed.reasoning if parsed.complete else "",
            "citations": list({repr(place): place for place in places}.values()),
            "unverified_quotes": found.count(None),
            "sources": [
                Source(
                    path=block.path,
                    start_line=block.start_line,
                    end_line=block.end_line,
                    name=block.qualified_name,
                )
                for block in documents
            ],
            "complete": parsed.complete and reply.stopped,
            "model": deployment.model,
            "target": deployment.target,
            "seconds": round(time.perf_counter() - started, 3),
        }
    )


def _fitting(
    chat: Chat,
    candidates: list[CodeBlock],
    wanted: int,
    question: str,
    prompt: str,
    context: SkillContext,
) -> list[CodeBlock]:
    """The best candidates that fit the context beside the answer; those left out are told.

    Raises:
        BadInput: the question alone does not fit.
    """
    serving = context.settings.serving
    room = serving.num_ctx - serving.num_predict

    def tokens(documents: list[CodeBlock]) -> int:
        return chat.count_tokens(render_messages(documents, question, system_prompt=prompt))

    alone = tokens([])
    if alone > room:
        raise BadInput(
            "The question is longer than the model's context.",
            cause=f"{alone} tokens; {room} fit beside an answer of {serving.num_predict}",
            next_step="Shorten it, raise serving.num_ctx, or lower serving.num_predict.",
        )
    chosen: list[CodeBlock] = []
    for block in candidates:
        if len(chosen) == wanted:
            break
        if tokens([*chosen, block]) <= room:
            chosen.append(block)
        else:
            context.log(
                f"Left out {block.path}:{block.start_line}-{block.end_line}: it does not fit."
            )
    return chosen


def release() -> None:
    """Free the models that stay loaded between questions, with their folders on the disk."""
    from forge_mcp.serving.chat import unload

    unload()
    with _indexing:
        _retrievers.clear()
        _encoders.clear()


# The last ones stay, so that the next question finds them loaded.
_retrievers: dict[str, Ranking] = {}
_encoders: dict[str, Encoder | None] = {}
_indexing = threading.Lock()


def retriever(corpus: Artifact, context: SkillContext) -> Ranking:
    """What retrieval.method says, over every block of a corpus but those with secrets.

    Vectors that no index holds yet are made at the first question, which may take minutes.

    Raises:
        InvalidSettings, NotFound, UnsupportedModel, Unavailable: the encoder cannot be loaded.
        OutOfSpace, ForgeError: the index of vectors cannot be written.
    """
    from forge_mcp.retrieval.opening import open_retriever
    from forge_mcp.retrieval.vectors import Reporting

    settings = context.settings
    with _indexing:
        encoder = encoder_of(context)
        mark = encoder.fingerprint if encoder else ""
        key = f"{corpus.path}:{corpus.manifest.inputs_hash}:{settings.retrieval.method}:{mark}"
        if key not in _retrievers:
            _retrievers.clear()
            _retrievers[key] = open_retriever(
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
