"""Every skill as an MCP tool: schema from its models, progress, cancel, errors in words."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping
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
from forge_mcp.interfaces.terminal import describe_metrics, describe_progress
from forge_mcp.pipeline.context import make_request, open_context
from forge_mcp.pipeline.faults import in_words
from forge_mcp.pipeline.skill import Skill, SkillResult
from forge_mcp.schemas.events import Event
from forge_mcp.workspace import Workspace

POLL_SECONDS = 0.25  # progress is sent at most this often
HEARTBEAT_SECONDS = 10.0  # and at least this often, so that no client takes a long call for dead
NUDGE = 1e-4  # progress must strictly increase, even where a stage counts from zero again
PROJECT_ARGUMENT = Annotated[
    str | None,
    Field(
        description="Name of the project, or absolute path of its repository (default: the one "
        "that a given id belongs to, or that the server was started in)."
    ),
]


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
    """Runs skills for the server: one that changes something at a time, readers beside it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.running: set[threading.Event] = set()
        self.stopping = False
        self._writer = anyio.Lock()

    def add_to(self, server: MCPServer[Any], skill: Skill) -> None:
        """Declare a skill as a tool of the server."""
        server.add_tool(
            self._handler(skill),
            name=skill.name,
            title=skill.title,
            description=inspect.cleandoc(skill.description),
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
        """Run a skill on a worker thread.

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
                )
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
                if skill.read_only:
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
            project = arguments.pop("project")
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
        parameters.append(
            inspect.Parameter("project", _KEYWORD, annotation=PROJECT_ARGUMENT, default=None)
        )
        handle.__name__ = skill.name
        handle.__annotations__ = {p.name: p.annotation for p in parameters} | {
            "return": skill.result
        }
        handle.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            parameters, return_annotation=skill.result
        )
        return handle


_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def hints(skill: Skill) -> ToolAnnotations:
    """MCP's hints for a skill."""
    return ToolAnnotations(
        title=skill.title,
        read_only_hint=skill.read_only,
        destructive_hint=skill.destructive,
        idempotent_hint=skill.idempotent,
        open_world_hint=skill.open_world,
    )


def without_titles(schema: Any) -> Any:
    """A JSON schema without the titles that pydantic derives from names: fewer tokens to read."""
    if isinstance(schema, list):
        return [without_titles(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {name: without_titles(inner) for name, inner in value.items()}
        else:
            kept[key] = without_titles(value)
    return kept


def with_results_named(schema: dict[str, Any], results: Mapping[str, str]) -> dict[str, Any]:
    """An output schema in which the results of other skills are named instead of spelled out.

    Args:
        schema: of a skill that returns other skills' results.
        results: name of a result model → the skill that returns it.
    """
    definitions = dict(schema.get("$defs", {}))
    for model in definitions.keys() & results.keys():
        definitions[model] = {"type": "object", "description": f"What {results[model]} returns."}
    while True:
        text = json.dumps([{**schema, "$defs": {}}, definitions])
        unused = [name for name in definitions if f'"#/$defs/{name}"' not in text]
        if not unused:
            break
        for name in unused:
            del definitions[name]
    rest = {key: value for key, value in schema.items() if key != "$defs"}
    return {"$defs": definitions, **rest} if definitions else rest


def _log(message: str) -> Event:
    payload = {"level": "info", "message": message}
    return Event(time=time.time(), stage="", kind="log", payload=payload)
