"""What a skill is, and the registry from which every face makes its tools, routes and commands.

A skill is declared once:

    @skill(title="Extract code", read_only=False, …)
    def extract(request: ExtractRequest, context: SkillContext) -> ExtractResult:
        '''Mine a repository …'''

The function's name is the skill's name, its docstring the description, its first parameter's
type the request and its return type the result.
"""

from __future__ import annotations

import importlib
import threading
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from forge_mcp.errors import Cancelled
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.events import Event, EventKind
from forge_mcp.settings import Settings
from forge_mcp.workspace import Workspace

# Order of the line; faces list the skills in it.
MODULES = (
    "init",
    "extract",
    "synthesize",
    "questions",
    "validate",
    "plan",
    "train",
    "evaluate",
    "export",
    "deploy",
    "models",
    "bundle",
    "query",
    "retrain",
    "pull",
    "doctor",
    "gc",
)

Scope = Literal["project", "anywhere", "all"]
Face = Literal["python", "cli", "mcp", "rest", "job"]
EventSink = Callable[[Event], None]


class SkillResult(Schema):
    """What a skill returns: one JSON object. A refusal by a gate carries its result too."""


class SkillRequest(Schema):
    """What a skill is asked. A field's description is its help in every face."""


@dataclass(frozen=True)
class SkillContext:
    """Where a skill runs, how it tells of its work, and how it learns that it shall stop.

    `face` is the way it was called: what is deployed remembers it.
    """

    workspace: Workspace
    settings: Settings
    project: str
    repository: Path | None = None
    sink: EventSink = lambda event: None
    cancel: threading.Event = field(default_factory=threading.Event)
    stage: str = ""
    face: Face = "python"

    @property
    def lives_long(self) -> bool:
        """Whether the face outlives this call, and so shares a model's server with others."""
        return self.face in ("mcp", "rest")

    def for_stage(self, stage: str) -> SkillContext:
        """The same context for a named part of the work."""
        return replace(self, stage=stage)

    def emit(self, kind: EventKind, **payload: Any) -> None:
        """Tell the caller something.

        Raises:
            Cancelled: the work shall stop.
        """
        self.check()
        self.sink(Event(time=time.time(), stage=self.stage, kind=kind, payload=payload))

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """How far the stage is. Cheap: call it once an item.

        Raises:
            Cancelled: the work shall stop.
        """
        self.emit("progress", done=done, total=total, message=message)

    def log(self, message: str, *, warning: bool = False) -> None:
        """One sentence for the user.

        Raises:
            Cancelled: the work shall stop.
        """
        self.emit("log", level="warning" if warning else "info", message=message)

    def check(self) -> None:
        """Raises:
        Cancelled: the work shall stop.
        """
        if self.cancel.is_set():
            raise Cancelled(
                f"{self.stage or 'The work'} was cancelled.",
                cause="a client, a user or a signal asked for it",
                next_step="Nothing was changed; run it again when you like.",
            )


@dataclass(frozen=True)
class Skill:
    """A declared skill. The four hints are MCP's tool annotations."""

    name: str
    title: str
    description: str
    request: type[SkillRequest]
    result: type[SkillResult]
    function: Callable[[Any, SkillContext], SkillResult]
    positional: tuple[str, ...]
    read_only: bool
    destructive: bool
    idempotent: bool
    open_world: bool
    long: bool
    loads_model: bool
    scope: Scope
    tool: bool
    words: tuple[str, ...]
    aliases: tuple[str, ...]
    examples: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line, e.g. 'forge-mcp extract REPO'."""
        words = [
            name.upper() if self.request.model_fields[name].is_required() else f"[{name.upper()}]"
            for name in self.positional
        ]
        return " ".join(["forge-mcp", *self.words, *words])


_registry: dict[str, Skill] = {}
Request = TypeVar("Request", bound=SkillRequest)
Result = TypeVar("Result", bound=SkillResult)
SkillFunction = Callable[[Request, SkillContext], Result]


def skill(
    *,
    title: str,
    positional: tuple[str, ...] = (),
    read_only: bool = False,
    destructive: bool = False,
    idempotent: bool = True,
    open_world: bool = False,
    long: bool = False,
    loads_model: bool = False,
    scope: Scope = "project",
    tool: bool = True,
    words: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    examples: tuple[str, ...] = (),
) -> Callable[[SkillFunction[Request, Result]], SkillFunction[Request, Result]]:
    """Declare a skill.

    Args:
        title: two to four words for a menu.
        positional: request fields that the command line takes without a name, in order.
        read_only: it changes nothing.
        destructive: it may replace or remove something that is in use.
        idempotent: asked twice for the same, it does it once.
        open_world: it talks to something outside this machine.
        long: it may take longer than an agent's client waits, so agents get a job.
        loads_model: as a job it waits for its turn: few such jobs run at a time.
        scope: "project": it must be clear which project is meant; "anywhere": it also helps where
            there is none yet, or its settings are broken; "all": it works on all projects at once
            unless one is named.
        tool: agents see it as well.
        words: of the command line, where they are not the function's name.
        aliases: further names (the specification's), listed in skills.yaml.
        examples: command lines that show its use.
    """

    def declare(function: SkillFunction[Request, Result]) -> SkillFunction[Request, Result]:
        hints = typing.get_type_hints(function)
        request = next(kind for name, kind in hints.items() if name == "request")
        name = function.__name__
        _registry[name] = Skill(
            name=name,
            title=title,
            description=(function.__doc__ or "").strip(),
            request=request,
            result=hints["return"],
            function=function,
            positional=positional,
            read_only=read_only,
            destructive=destructive,
            idempotent=idempotent,
            open_world=open_world,
            long=long,
            loads_model=loads_model,
            scope=scope,
            tool=tool,
            words=words or (name,),
            aliases=aliases,
            examples=examples,
        )
        return function

    return declare


@cache
def skills() -> dict[str, Skill]:
    """Every skill by its name, in the order of the line. Imports the pipeline's modules."""
    for module in MODULES:
        importlib.import_module(f"forge_mcp.pipeline.{module}")
    order = {f"forge_mcp.pipeline.{module}": rank for rank, module in enumerate(MODULES)}
    declared = [one for one in registered() if one.function.__module__ in order]
    ranked = sorted(declared, key=lambda s: order[s.function.__module__])
    return {found.name: found for found in ranked}


def registered() -> list[Skill]:
    """Every skill whose module was imported, in the order of declaration."""
    return list(_registry.values())


def is_refusal(result: SkillResult) -> bool:
    """Whether a gate said no, and the result tells why."""
    return getattr(result, "passed", True) is False or getattr(result, "state", "") == "refused"


def drop_unset(**fields: Any) -> dict[str, Any]:
    """The fields that a request gave (not None), to lay over a section of the settings."""
    return {name: value for name, value in fields.items() if value is not None}


def overlay(section: BaseModel, **fields: Any) -> Any:
    """A section of the settings with the given (not None) fields of a request over it, checked."""
    return type(section).model_validate(section.model_dump() | drop_unset(**fields))
