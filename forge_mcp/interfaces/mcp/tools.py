"""Every skill as an MCP tool: schema from its models, progress, cancel, errors in words."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from forge_mcp.errors import ForgeError
from forge_mcp.interfaces.mcp.schemas import returned_model
from forge_mcp.interfaces.terminal import describe_metrics, describe_progress
from forge_mcp.jobs.skills import JobResult
from forge_mcp.pipeline.context import make_request, open_context
from forge_mcp.pipeline.faults import in_words
from forge_mcp.pipeline.skill import Skill, SkillContext, SkillRequest, SkillResult
from forge_mcp.schemas.events import Event
from forge_mcp.workspace import Workspace

POLL_SECONDS = 0.25  # progress is sent at most this often
HEARTBEAT_SECONDS = 10.0  # and at least this often, so that no client takes a long call for dead
NUDGE = 1e-4  # progress must strictly increase, even where a stage counts from zero again
ANSWER_SECONDS = 5.0  # a long skill's tool waits so long for its job, then answers how far it is
LONG_NOTE = """
Runs as a job and answers with it within seconds. Until `state` says that it has ended, call \
job_status(job_id, wait_seconds=60); then `result` holds the outcome. Leaving the call does not \
stop the job; job_cancel does."""
OF_ONE_PROJECT = (
    "Name of the project, or absolute path of its repository (default: the one that a given id "
    "belongs to, or that the server was started in)."
)
OF_ALL_PROJECTS = "Only this project: its name, or absolute path of its repository (default: all)."


@dataclass
class Progress:
    """What a running skill last said of its work. Written by its threads, read by the server."""

    update: tuple[float, float | None, str] | None = None
    sent: float = 0.0
    began: float = field(default_factory=time.monotonic)
    sent_at: float = field(default_factory=time.monotonic)
    _stages: tuple[int, int] | None = None
    _metrics: str = ""
    _streamed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        payload = event.payload
        with self._lock:
            if event.kind == "metric":
                self._metrics = describe_metrics(payload)
            elif event.kind == "log":
                self._tell(None, None, str(payload.get("message", "")))
            elif event.kind == "state" and "number" in payload:
                self._stages = (int(payload["number"]), int(payload["of"]))
                self._metrics = ""
                self._tell(0, None, str(payload["stage"]))
            elif event.kind == "progress" and "text" in payload:
                self._streamed += len(payload["text"])
                self._tell(self._streamed, None, f"{self._streamed} characters answered")
            elif event.kind == "progress":
                done, total = payload["done"], payload.get("total")
                message = payload.get("message") or ""
                text = describe_progress(event.stage, done, total, message, self._metrics)
                self._tell(done, total, text)

    def _tell(self, done: float | None, total: float | None, text: str) -> None:
        if self._stages is not None:
            number, of = self._stages
            share = done / total if done and total else 0.0
            self.update = (number - 1 + min(share, 1.0), of, text)
        else:
            self.update = (self.sent if done is None else done, total, text)

    def take(self) -> tuple[float, float | None, str] | None:
        """The next notification (progress, total, message), or None where nothing is new."""
        with self._lock:
            now = time.monotonic()
            update, self.update = self.update, None
            if update is None:
                if now - self.sent_at < HEARTBEAT_SECONDS:
                    return None
                update = (self.sent, None, f"still working ({now - self.began:.0f} s)")
            progress, total, text = update
            if progress <= self.sent:
                progress = self.sent + NUDGE
            self.sent, self.sent_at = progress, now
            return progress, total, text


class SkillTools:
    """Runs skills for the server: long ones as jobs, of the others one that changes something at
    a time, readers beside it.

    Args:
        workspace: where they work.
        answer_seconds: how long the tool of a long skill waits for its job.
    """

    def __init__(self, workspace: Workspace, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.workspace = workspace
        self.answer_seconds = answer_seconds
        self.running: set[threading.Event] = set()
        self.stopping = False
        self._writer = anyio.Lock()

    def add_to(self, server: MCPServer[Any], skill: Skill) -> None:
        """Declare a skill as a tool of the server."""
        server.add_tool(
            self._handler(skill),
            name=skill.name,
            title=skill.title,
            description=description_of(skill),
            annotations=hints(skill),
            structured_output=True,
        )

    def stop(self) -> None:
        """Cancel what runs, and let nothing new begin."""
        self.stopping = True
        for cancel in list(self.running):
            cancel.set()

    async def call(
        self, skill: Skill, arguments: dict[str, Any], project: str | None, ctx: Context[Any, Any]
    ) -> SkillResult:
        """Run a skill on a worker thread, or its job in the worker.

        Raises:
            ToolError: it failed; the text says what, why and what next.
        """
        progress, cancel = Progress(), threading.Event()

        def work() -> SkillResult | ForgeError:
            # A connection of its own: SQLite's must not be shared between calls.
            workspace = Workspace(self.workspace.home)
            try:
                request, context = open_context(
                    skill,
                    make_request(skill, arguments),
                    workspace=workspace,
                    project=project,
                    sink=progress,
                    cancel=cancel,
                    face="mcp",
                )
                if skill.long:
                    return self._run_job(skill, request, context)
                return skill.function(request, context)
            except Exception as fault:
                return in_words(fault, skill.name, workspace.home)

        outcome: SkillResult | ForgeError
        self.running.add(cancel)
        try:
            async with anyio.create_task_group() as group:
                # Leaving the call cancels the group; the thread is only told through `cancel`,
                # and is waited for, so that nothing half done is left behind.
                group.start_soon(self._report, progress, cancel, ctx)
                if self.stopping:
                    cancel.set()
                # What returns a job only talks to the queue; the work is done elsewhere.
                if skill.read_only or returned_model(skill) is JobResult:
                    outcome = await anyio.to_thread.run_sync(work)
                else:
                    if self._writer.locked():
                        progress(_log("waiting for another call to finish"))
                    async with self._writer:
                        outcome = await anyio.to_thread.run_sync(work)
                group.cancel_scope.cancel()
        finally:
            self.running.discard(cancel)
        if isinstance(outcome, ForgeError):
            raise ToolError(str(outcome)) from outcome
        return outcome

    def _run_job(self, skill: Skill, request: SkillRequest, context: SkillContext) -> JobResult:
        """Start a job and wait for it a little, so that what is quick is answered at once.

        Raises:
            ForgeError: it could not be started, or has failed.
        """
        from forge_mcp.jobs.queue import Jobs, error_of

        context.check()
        with Jobs(context.workspace.home) as jobs:
            started = jobs.start(skill, request, context)
            status = jobs.wait(
                started.job_id, self.answer_seconds, sink=context.sink, cancel=context.cancel
            )
        error = error_of(status)
        if status.state == "failed" and error is not None:
            error.next_step = f"{status.next_step} The job is {status.job_id}."
            raise error
        return JobResult.model_validate(status.model_dump())

    async def _report(
        self, progress: Progress, cancel: threading.Event, ctx: Context[Any, Any]
    ) -> None:
        try:
            while True:
                await anyio.sleep(POLL_SECONDS)
                if update := progress.take():
                    await ctx.report_progress(*update)
        finally:
            cancel.set()

    def _handler(self, skill: Skill) -> Callable[..., Any]:
        """A function with the signature that the SDK makes the tool's schema from."""

        async def handle(ctx: Context[Any, Any], **arguments: Any) -> SkillResult:
            project = arguments.pop("project", None)
            return await self.call(skill, arguments, project, ctx)

        parameters = [inspect.Parameter("ctx", _KEYWORD, annotation=Context)]
        for name, one in skill.request.model_fields.items():
            parts: tuple[Any, ...] = (
                one.annotation,
                *one.metadata,
                Field(description=one.description),
            )
            described: Any = Annotated[parts]
            default = (
                inspect.Parameter.empty
                if one.is_required()
                else one.get_default(call_default_factory=True)
            )
            parameters.append(
                inspect.Parameter(name, _KEYWORD, annotation=described, default=default)
            )
        if takes_project(skill):
            text = OF_ALL_PROJECTS if skill.scope == "all" else OF_ONE_PROJECT
            kind: Any = Annotated[str | None, Field(description=text)]
            parameters.append(inspect.Parameter("project", _KEYWORD, annotation=kind, default=None))
        handle.__name__ = skill.name
        handle.__annotations__ = {p.name: p.annotation for p in parameters} | {
            "return": returned_model(skill)
        }
        handle.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=returned_model(skill)
        )
        return handle


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def takes_project(skill: Skill) -> bool:
    """Whether a tool has the argument `project`; a job knows its own."""
    return "job_id" not in skill.request.model_fields


def description_of(skill: Skill) -> str:
    """A tool's description."""
    return inspect.cleandoc(skill.description) + (f"\n{LONG_NOTE}" if skill.long else "")


def hints(skill: Skill) -> ToolAnnotations:
    """MCP's hints for a skill."""
    return ToolAnnotations(
        title=skill.title,
        read_only_hint=skill.read_only,
        destructive_hint=skill.destructive,
        idempotent_hint=skill.idempotent,
        open_world_hint=skill.open_world,
    )


def _log(message: str) -> Event:
    payload = {"level": "info", "message": message}
    return Event(time=time.time(), stage="", kind="log", payload=payload)
