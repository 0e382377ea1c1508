"""The skill `query`: a question about the repository, answered by the deployed model.

`answer_chat` is the way of every face: the skill's own, and a chat with its earlier turns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.grounding import Citation, Grounding, ground
from forge_mcp.pipeline.retrieving import forget, retrieve
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import (
    escape,
    parse_answer,
    render_answer,
    render_messages,
    render_question,
)
from forge_mcp.schemas.raft_examples import Message

if TYPE_CHECKING:
    from forge_mcp.serving.chat import Chat, OnText

SPARE = 3  # candidates looked at for each document wanted, because long ones are left out
NOTHING_MATCHES = "Nothing in this repository matches the question."


class QueryRequest(SkillRequest):
    """A question about the project's code."""

    text: str = Field(
        min_length=1, description="The question, in plain words; names in back-ticks."
    )
    history: list[Message] = Field(
        default_factory=list,
        description="Earlier turns of the chat, oldest first: the user's questions and the "
        "assistant's answers, in turn. On the command line one --history a turn, as JSON: "
        '{"role": "user", "content": "..."}.',
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

    @field_validator("history", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        """The command line gives text."""
        if not isinstance(value, list):
            return value
        return [Message.model_validate_json(one) if isinstance(one, str) else one for one in value]


class Source(Schema):
    """A block that was given to the model. Lines are 1-based and inclusive."""

    path: str
    start_line: int
    end_line: int
    name: str


class QueryResult(SkillResult):
    """An answer. Only quotes found word for word in the sources are citations."""

    answer: str = Field(
        description="The final answer, or all that the model wrote where it gave none."
    )
    found: bool = Field(
        description="False: the model says that the code it was given does not tell, or nothing "
        "in the repository matches the question (then no model was asked)."
    )
    reasoning: str = ""
    citations: list[Citation] = Field(default_factory=list)
    unverified_quotes: int = Field(
        default=0, description="Quotes that stand in none of the sources."
    )
    grounding: Grounding = Field(
        default="none",
        description="quoted: every quote of the answer stands in the sources; partly: some do; "
        "invented: none does, so do not trust it; none: it quotes nothing.",
    )
    sources: list[Source] = Field(default_factory=list)
    complete: bool = Field(description="Whether the model came to a final answer and stopped.")
    notes: list[str] = Field(
        default_factory=list,
        description="What to know of this answer, e.g. that earlier turns were left out.",
    )
    model: str
    target: Literal["llamacpp", "ollama"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retrieval_seconds: float
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
    blocks are retrieved and given to the model, those that the question names first; citations are
    quotes that were found word for word in them, with path and lines, so that you can check
    (`stale`: the file has changed there since). A model this small can be wrong: trust an answer
    with citations more than one without. Give `history` for a question that follows up.
    """
    return answer_chat(
        [*request.history, Message(role="user", content=request.text)],
        context,
        model=request.model,
        max_documents=request.max_documents,
    )


@dataclass(frozen=True)
class Turn:
    """A question that was asked before, and its answer."""

    question: str
    answer: str

    def messages(self) -> list[Message]:
        """As the model is shown it: without its documents, and of the answer what came out."""
        final = parse_answer(self.answer).final_answer or self.answer
        return [
            Message(role="user", content=render_question([], self.question)),
            Message(role="assistant", content=render_answer("", escape(final.strip()))),
        ]


def answer_chat(
    messages: Sequence[Message],
    context: SkillContext,
    on_text: OnText | None = None,
    *,
    model: str | None = None,
    max_documents: int | None = None,
) -> QueryResult:
    """Answer the last turn of a chat about the repository.

    Documents are retrieved for the newest question, and given for it alone; one that names nothing
    of its own is looked up with the words of the question that it follows up on. Where the context
    does not hold all turns, the oldest are left out, and the result's notes say so.

    Args:
        messages: user and assistant in turn, the newest question last. System messages at the
            beginning are laid behind the project's own system prompt.
        context: the project and its settings; is told the text as it comes (`progress` events).
        on_text: is given each piece of text too. What it raises ends the answer.
        model: a deployed model's name; the active one by default.
        max_documents: see `QueryRequest`.

    Raises:
        BadInput: the chat is not of that form, or its newest question is longer than the context.
        NotFound: no model is deployed, or none of that name.
        ForgeError: retrieval or the model's runtime failed.
    """
    started = time.perf_counter()
    from forge_mcp.pipeline.tryout import deployed
    from forge_mcp.serving.chat import Sampling, open_chat
    from forge_mcp.serving.lineage import corpus_of
    from forge_mcp.serving.registry import find_deployment, get_active_model

    def tell(text: str) -> None:
        context.emit("progress", text=text)
        if on_text is not None:
            on_text(text)

    workspace, settings = context.workspace, context.settings
    system, turns, question = _taken_apart(messages)
    deployment = (
        get_active_model(workspace, context.project)
        if model is None
        else find_deployment(workspace, context.project, model)
    )
    artifact = workspace.load(deployment.id, "deployment")
    export = workspace.load(deployment.export, "export")
    prompt = "\n\n".join([artifact.manifest.settings["system_prompt"], *system])

    notes: list[str] = []
    candidates: list[CodeBlock] = []
    relevant = True
    wanted = settings.retrieval.documents if max_documents is None else max_documents
    corpus = corpus_of(workspace, artifact) if wanted else None
    before = time.perf_counter()
    if corpus is not None:
        context.progress(0, 3, "Looking for the code that it is about")
        searched = _with_its_subject(question, turns)
        found = retrieve(searched, wanted * SPARE, corpus, context)
        candidates, relevant = found.blocks, found.relevant
        if found.unknown_names:
            names = ", ".join(f"`{name}`" for name in found.unknown_names)
            notes.append(f"Nothing that was found in this repository is called {names}.")
    elif wanted:
        notes.append(
            "The model was asked without documents: its code is not on this machine. Run "
            "'forge-mcp extract' in the repository for answers that cite it."
        )
    retrieval_seconds = time.perf_counter() - before

    def finished(**answer: Any) -> QueryResult:
        for note in notes:
            context.log(note)
        fields = answer | {
            "notes": notes,
            "model": deployment.model,
            "target": deployment.target,
            "retrieval_seconds": round(retrieval_seconds, 4),
            "seconds": round(time.perf_counter() - started, 3),
        }
        return QueryResult.model_validate(fields)

    if not relevant:
        tell(NOTHING_MATCHES)
        return finished(answer=NOTHING_MATCHES, found=False, complete=True)
    context.progress(1, 3, f"Asking {deployment.model} ({deployment.target})")
    chat = open_chat(
        deployed(deployment.model, deployment.target, export, context),
        settings.serving,
        shared_in=workspace if context.lives_long else None,
        say=context.log,
        check=context.check,
    )
    fitted = _fitted(chat, prompt, turns, question, candidates, wanted, context)
    if fitted.dropped:
        notes.append(
            f"The oldest {fitted.dropped} of {len(turns)} earlier questions did not fit the "
            "model's context and were left out."
        )
    context.progress(2, 3, f"Reading {fitted.tokens} tokens")
    reply = chat.chat(fitted.messages, Sampling.of(settings.serving), on_text=tell)

    grounded = ground(reply.text, fitted.documents, context.repository, settings.mining)
    return finished(
        answer=grounded.answer,
        found=grounded.found,
        complete=grounded.complete and reply.stopped,
        reasoning=grounded.reasoning,
        citations=grounded.citations,
        unverified_quotes=grounded.unverified_quotes,
        grounding=grounded.grounding,
        sources=[
            Source(
                path=block.path,
                start_line=block.start_line,
                end_line=block.end_line,
                name=block.qualified_name,
            )
            for block in fitted.documents
        ],
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
    )


def release() -> None:
    """Free the models that stay loaded between questions, with their folders on the disk."""
    from forge_mcp.serving.chat import unload

    unload()
    forget()


def _taken_apart(messages: Sequence[Message]) -> tuple[list[str], list[Turn], str]:
    """The system messages' texts, the earlier turns, and the newest question of a chat.

    Raises:
        BadInput: it is not user and assistant in turn with a question at its end.
    """
    system = list(itertools.takewhile(lambda message: message.role == "system", messages))
    rest = messages[len(system) :]
    roles = [message.role for message in rest]
    wanted = [("user", "assistant")[place % 2] for place in range(len(rest))]
    if roles != wanted or len(rest) % 2 == 0:
        raise BadInput(
            "The chat cannot be answered: its turns are not in order.",
            cause=f"after {len(system)} system messages come: {', '.join(roles) or 'none'}",
            next_step="Give user and assistant in turn, beginning with the user and ending with "
            "the user's new question.",
        )
    question = rest[-1].content.strip()
    if not question:
        raise BadInput("The question is empty.", next_step="Ask something about the code.")
    turns = [
        Turn(asked.content, answered.content)
        for asked, answered in zip(rest[:-1:2], rest[1:-1:2], strict=True)
    ]
    return [message.content for message in system], turns, question


def _with_its_subject(question: str, turns: Sequence[Turn]) -> str:
    """What is looked up for a question: with it the earlier ones, back to one that names something.

    A question that names a definition stands for itself.
    """
    from forge_mcp.retrieval.relevance import names_in

    parts = [question]
    for turn in reversed(turns):
        if names_in(parts[0]):
            break
        parts.insert(0, turn.question)
    return "\n".join(parts)


@dataclass(frozen=True)
class Fitted:
    """What is given to the model. `tokens`: of the whole prompt; `dropped`: turns left out."""

    messages: list[Message]
    documents: list[CodeBlock]
    tokens: int
    dropped: int


def _fitted(
    chat: Chat,
    prompt: str,
    turns: Sequence[Turn],
    question: str,
    candidates: Sequence[CodeBlock],
    wanted: int,
    context: SkillContext,
) -> Fitted:
    """What fits the context beside an answer: the question first, then the turn before it, the
    best documents, and the other turns from the newest on. Documents left out are told.

    Raises:
        BadInput: the question alone does not fit.
    """
    serving = context.settings.serving
    room = min(chat.context, serving.num_ctx) - serving.num_predict

    def written(kept: int, documents: Sequence[CodeBlock]) -> list[Message]:
        earlier = [message for turn in turns[len(turns) - kept :] for message in turn.messages()]
        alone = render_messages(documents, question, system_prompt=prompt)
        return [*alone[:-1], *earlier, alone[-1]]

    def tokens(kept: int, documents: Sequence[CodeBlock]) -> int:
        return chat.count_tokens(written(kept, documents))

    alone = tokens(0, [])
    if alone > room:
        raise BadInput(
            "The question is longer than the model's context.",
            cause=f"{alone} tokens; {room} fit beside an answer of {serving.num_predict}",
            next_step="Shorten it, raise serving.num_ctx, or lower serving.num_predict.",
        )
    kept = 1 if turns and tokens(1, []) <= room else 0
    documents: list[CodeBlock] = []
    for block in candidates:
        context.check()
        if len(documents) == wanted:
            break
        if tokens(kept, [*documents, block]) <= room:
            documents.append(block)
        else:
            context.log(
                f"Left out {block.path}:{block.start_line}-{block.end_line}: it does not fit."
            )
    while 0 < kept < len(turns) and tokens(kept + 1, documents) <= room:
        kept += 1
    messages = written(kept, documents)
    return Fitted(messages, documents, tokens(kept, documents), len(turns) - kept)
