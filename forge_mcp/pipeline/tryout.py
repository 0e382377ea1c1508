"""What a model must show before it may become the active one, and what is taken back if it fails.

A deployment is prepared beside the active model and takes its place in one transaction at the end.
Until then nothing that answers is touched; what was begun in Ollama under the new name is removed
when anything fails, and where the process is killed, by the next one that deploys (or by gc): the
name is written into the registry before Ollama hears of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from forge_mcp.errors import (
    BadInput,
    CorruptArtifact,
    ForgeError,
    GateRefused,
    NotFound,
    Unavailable,
)
from forge_mcp.locks import FileLock
from forge_mcp.pipeline.context import ALL_PROJECTS
from forge_mcp.pipeline.export import GGUF, MODELFILE_SETTINGS, PARITY, TOKENIZER, load_export
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.workspace import Artifact, Workspace, require_space, slug

if TYPE_CHECKING:
    from forge_mcp.serving.chat import Chat
    from forge_mcp.serving.registry import HalfMade

Target = Literal["llamacpp", "ollama"]
TRIES = 3  # questions of which one must be answered, and ended where the file is known to end
NEEDED_BYTES = 5_000_000  # of a deployment's folder and the registry's pages, with room to spare
# Where at least this share of the answers ended in the parity gate, three in a row that do not end
# are no chance (1 in 64 at most).
ENDS = 0.75
FALLBACK = "What does this repository do?"


class Tried(Schema):
    """One question of a try-out, and what came back. A row of tryout.jsonl."""

    messages: list[Message]
    answer: str
    stopped: bool
    prompt_tokens: int


@dataclass(frozen=True)
class Candidate:
    """A model that is to become active, and what it is asked.

    `create`: False where Ollama has it already, from an earlier deployment.
    """

    model: str
    target: Target
    export: Artifact
    system_prompt: str
    questions: Sequence[list[Message]]
    create: bool = True


@contextmanager
def deploying(context: SkillContext) -> Iterator[None]:
    """One deployment of a project at a time; what a killed one left in Ollama is removed first.

    Raises:
        Cancelled: it was stopped while waiting.
    """
    with _lock(context.workspace, context.project) as lock:
        lock.wait(
            context.check, lambda: context.log("Another deployment is being made; waiting for it.")
        )
        remove_half_made(context)
        yield


def remove_half_made(context: SkillContext) -> None:
    """Remove what killed deployments of the project left in Ollama. Holds the project's lock."""
    from forge_mcp.serving.registry import forget_half_made, half_made

    for one in half_made(context.workspace, context.project):
        if _leaves_ollama(one, context):
            forget_half_made(context.workspace, one)
            context.log(f"Removed {one.model} from Ollama: a deployment that was never finished.")


def remove_abandoned(context: SkillContext) -> None:
    """`remove_half_made` for every project in which nobody is deploying now.

    Where the context is of one project, only for that one.
    """
    rows = context.workspace.database.execute("SELECT DISTINCT project FROM half_made").fetchall()
    for project in sorted(row["project"] for row in rows):
        if context.project not in (ALL_PROJECTS, project):
            continue
        with _lock(context.workspace, project) as lock:
            if lock.acquire():
                remove_half_made(replace(context, project=project))


def require_sound(export: Artifact, context: SkillContext) -> Artifact:
    """What can be found before anything is loaded or sent.

    Raises:
        GateRefused: the file was never checked against its run.
        CorruptArtifact: it is not what was written, or no whole GGUF.
        OutOfSpace: the disk has no room for a deployment.
    """
    from forge_mcp.serving.gguf_file import check_gguf

    if export.manifest.result.get("parity") is None:
        raise GateRefused(
            f"{export.id} was not checked against the run that it was made from.",
            cause="; ".join(export.manifest.result.get("reasons") or ())
            or "it was exported where llama.cpp could not be used",
            next_step="What is deployed stays. 'forge-mcp doctor' says what llama.cpp lacks here; "
            "export again where it runs.",
        )
    require_space(context.workspace.home, NEEDED_BYTES, f"deploy {export.id}")
    load_export(context.workspace, export.id)
    export.verify(TOKENIZER)
    check_gguf(export.file(GGUF))
    return export


@contextmanager
def tried_out(candidate: Candidate, context: SkillContext) -> Iterator[list[Tried]]:
    """Bring a model to where it will run and let it answer; within, it can be made active.

    Yields:
        What it was asked and has answered.

    Raises:
        Unavailable, CorruptArtifact, ForgeError: it cannot be created or loaded, says nothing,
            never ends, or is given other prompts than it was trained on. What was made in Ollama
            for it is removed again, also where what is done within fails.
    """
    from forge_mcp.serving.chat import open_chat

    create = candidate.create and candidate.target == "ollama"
    begun = _create_in_ollama(candidate, context) if create else None
    try:
        chat = open_chat(
            deployed(candidate.model, candidate.target, candidate.export, context),
            context.settings.serving,
            shared_in=context.workspace if context.lives_long else None,
            say=context.log,
            check=context.check,
        )
        yield _ask(candidate, chat, context)
    except BaseException:
        if begun is not None:
            _take_back(begun, context)
        raise


def end_other_servers(context: SkillContext) -> None:
    """Free the memory of the project's models that were replaced; asked again, they are loaded."""
    from forge_mcp.serving.llamacpp_server import stop_servers
    from forge_mcp.serving.registry import standing

    active = standing(context.workspace, context.project).active
    stop_servers(context.workspace, project=context.project, keep=active.model if active else None)


def deployed(model: str, target: str, export: Artifact, context: SkillContext) -> Any:
    """Where a model of an export is to be found, for `open_chat`."""
    from forge_mcp.serving.chat import Deployed

    return Deployed(model, target, export.file(GGUF), export.file(TOKENIZER), context.project)


# -- asking ----------------------------------------------------------------------------------------


def _ask(candidate: Candidate, chat: Chat, context: SkillContext) -> list[Tried]:
    """Ask until one answer is as it must be.

    Raises:
        ForgeError: none is, or the prompts arrive otherwise than they were trained.
    """
    from forge_mcp.schemas.prompt import render_messages
    from forge_mcp.serving.chat import Sampling

    limit = int(
        candidate.export.manifest.settings.get("answer_tokens")
        or context.settings.serving.num_predict
    )
    must_end = _ends(candidate.export)
    short = render_messages([], FALLBACK, system_prompt=candidate.system_prompt)
    fitting = [
        messages
        for messages in candidate.questions[:TRIES]
        if chat.count_tokens(messages) + limit <= chat.context
    ]
    tried: list[Tried] = []
    for messages in fitting or [short]:
        context.check()
        reply = chat.chat(messages, Sampling(0.0, 1, 1.0, limit))
        tried.append(
            Tried(
                messages=list(messages),
                answer=reply.text,
                stopped=reply.stopped,
                prompt_tokens=reply.prompt_tokens,
            )
        )
        if candidate.target == "ollama" and len(tried) == 1:
            _require_own_prompt(candidate, tried[0], context)
        if reply.text.strip() and (reply.stopped or not must_end):
            return tried
    stays = "What was active stays active."
    if not any(one.answer.strip() for one in tried):
        raise ForgeError(
            f"{candidate.model} loads, but answers nothing.",
            cause=f"{len(tried)} question(s) gave no text",
            next_step=f"{stays} Train longer, or on more examples.",
        )
    raise ForgeError(
        f"{candidate.model} never ends an answer where it runs ({candidate.target}).",
        cause=f"{len(tried)} answer(s) were cut after {limit} tokens, but in the parity gate the "
        "same file ended its answers: its end-of-turn token is not seen",
        next_step=f"{stays} Deploy to the other target, or export the run again.",
    )


def _ends(export: Artifact) -> bool:
    """Whether this very file is known to end its answers, by the parity gate."""
    export.verify(PARITY)
    try:
        facts = json.loads(export.file(PARITY).read_text("utf-8"))
        asked, ended = int(facts["answers_asked"]), int(facts["answers_stopped"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(
            f"{export.id}: its {PARITY} cannot be read.",
            cause=f"{type(error).__name__}: {error}",
            next_step="Export the run again.",
        ) from error
    return asked > 0 and ended >= ENDS * asked


def _require_own_prompt(candidate: Candidate, tried: Tried, context: SkillContext) -> None:
    """Compare the prompt's length in Ollama with the one of the embedded runtime.

    Another chat template, or a second BOS, gives another number of tokens.

    Raises:
        ForgeError: they differ.
    """
    from forge_mcp.serving.chat import Sampling
    from forge_mcp.serving.llamacpp import LlamaCppChat

    serving = context.settings.serving
    try:
        runtime = LlamaCppChat(
            candidate.export.file(GGUF), num_ctx=serving.num_ctx, threads=serving.threads
        )
    except Unavailable as missing:
        context.log(
            f"Ollama's prompts are not compared with those of the training: {missing.message}",
            warning=True,
        )
        return
    try:
        own = runtime.chat(tried.messages, Sampling(0.0, 1, 1.0, 1)).prompt_tokens
    finally:
        runtime.close()
    if tried.prompt_tokens != own:
        raise ForgeError(
            f"Ollama gives {candidate.model} other prompts than it was trained on.",
            cause=f"a question is {tried.prompt_tokens} tokens there and {own} by the file's own "
            "chat template: another template, or a doubled begin-of-text token",
            next_step="What was active stays active. Update Ollama (it must use the template "
            "inside the GGUF), or deploy with --target llamacpp.",
        )


# -- Ollama ----------------------------------------------------------------------------------------


def _create_in_ollama(candidate: Candidate, context: SkillContext) -> HalfMade | None:
    """Create the model; what is returned is to be taken back on failure (None: it was there).

    Raises:
        BadInput: somebody else has a model of that name in this Ollama.
        ForgeError: see `create_ollama_model`; nothing is left.
    """
    from forge_mcp.serving.ollama import create_ollama_model, list_ollama_models, require_ollama
    from forge_mcp.serving.registry import HalfMade, remember_half_made

    serving, workspace = context.settings.serving, context.workspace
    require_ollama(serving.ollama_host, start=serving.start_ollama, say=context.log)
    known = {name.removesuffix(":latest") for name in list_ollama_models(serving.ollama_host)}
    begun = None
    if candidate.model not in known:
        begun = HalfMade(candidate.model, serving.ollama_host, context.project)
        remember_half_made(workspace, begun)
    elif not _is_ours(workspace, candidate.model):
        raise BadInput(
            f"Ollama already has a model '{candidate.model}' that was not made here.",
            cause=f"it is in {serving.ollama_host}, and this workspace has deployed none of that "
            "name",
            next_step=f"Remove it ('ollama rm {candidate.model}') if nothing uses it, or deploy "
            "with --target llamacpp.",
        )
    try:
        create_ollama_model(
            candidate.model,
            candidate.export.file(GGUF),
            candidate.system_prompt,
            serving.model_dump(include=MODELFILE_SETTINGS),
            host=serving.ollama_host,
            timeout=serving.ollama_timeout,
            progress=context.log,
            on_bytes=lambda doing, done, total: context.progress(done, total, doing),
            sha256=candidate.export.manifest.checksums[GGUF],
        )
    except BaseException:
        if begun is not None:
            _take_back(begun, context)
        raise
    return begun


def _is_ours(workspace: Workspace, model: str) -> bool:
    """Whether a deployment of this workspace has, or had, that name."""
    rows = workspace.database.execute("SELECT 1 FROM deployments WHERE model = ?", (model,))
    kept = workspace.folder("deployment") / f"deploy-{model}"
    return rows.fetchone() is not None or kept.is_dir()


def _take_back(begun: HalfMade, context: SkillContext) -> None:
    """Remove what was begun, as far as Ollama can be reached; else the next deployment does it."""
    from forge_mcp.serving.registry import forget_half_made

    if _leaves_ollama(begun, context):
        forget_half_made(context.workspace, begun)


def _leaves_ollama(begun: HalfMade, context: SkillContext) -> bool:
    """Whether nothing of that name is in Ollama any more. Works for a cancelled context too."""
    from forge_mcp.serving.ollama import delete_ollama_model

    try:
        delete_ollama_model(begun.model, host=begun.host)
    except NotFound:  # it never came so far
        return True
    except ForgeError as error:
        if not context.cancel.is_set():
            context.log(
                f"{begun.model} could not be removed from Ollama and will be at the next "
                f"deployment: {error.message}",
                warning=True,
            )
        return False
    return True


def _lock(workspace: Workspace, project: str) -> FileLock:
    return FileLock(workspace.home / "locks" / f"deploy-{slug(project)}")
