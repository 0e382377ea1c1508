"""The process in which one stage of a job runs: `python -m forge_mcp.jobs.stage < TASK.json`.

Whatever a stage does to its process (memory that is not given back, a native crash, a hang), the
worker survives it. Standard output carries events, one JSON object a line: {"kind": …,
"payload": …}, where kind is that of an Event (with its stage), or "heartbeat", "result", "error".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict

from forge_mcp import machine
from forge_mcp.errors import ForgeError
from forge_mcp.jobs.folder import JobFolder
from forge_mcp.pipeline.faults import in_words
from forge_mcp.pipeline.retrain import STAGES, perform_stage
from forge_mcp.pipeline.skill import SkillContext, skills
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import JobSpec
from forge_mcp.settings import settings_from
from forge_mcp.workspace import Workspace

POLL_SECONDS = 0.25
HEARTBEAT_SECONDS = 2.0


class StageTask(BaseModel):
    """What the process is asked to do."""

    model_config = ConfigDict(extra="forbid")

    home: Path
    job_id: str
    stage: str
    spec: JobSpec
    request: dict[str, Any]
    parent: int


def main() -> int:
    """Perform the task on standard input; returns the exit code."""
    # The pipe to the worker is kept apart, so that no library can write into it.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(kind: str, payload: dict[str, Any], stage: str = "", at: float = 0.0) -> None:
        row = {"kind": kind, "payload": payload, "stage": stage, "time": at or time.time()}
        with lock:
            pipe.write(json.dumps(row) + "\n")
            pipe.flush()

    home = Path()
    name = "stage"
    try:
        task = StageTask.model_validate_json(sys.stdin.read())
        home, name = task.home, task.stage
        cancel = _watch(task, tell)
        result = perform(task, cancel, tell)
        tell("result", result)
        return 0
    except BrokenPipeError:  # the worker is gone; nobody listens any more
        return 1
    except Exception as fault:
        error: ForgeError = in_words(fault, name, home)
        tell("error", error.as_dict())
        return 1


def perform(task: StageTask, cancel: threading.Event, tell: Any) -> dict[str, Any]:
    """Run the stage; returns its result as JSON values.

    Raises:
        ForgeError: see the skill.
    """
    spec = task.spec

    def sink(event: Event) -> None:
        tell(event.kind, event.payload, event.stage, event.time)

    context = SkillContext(
        workspace=Workspace(task.home),
        settings=settings_from(spec.settings),
        project=spec.project,
        repository=Path(spec.repository) if spec.repository else None,
        sink=sink,
        cancel=cancel,
        stage=task.stage,
        face="job",
    )
    skill = skills()[task.stage]
    request = skill.request.model_validate(task.request)
    if spec.skill == "retrain" and task.stage in STAGES:
        result = perform_stage(task.stage, request, context)
    else:
        result = skill.function(request, context)
    fields: dict[str, Any] = result.model_dump(mode="json", by_alias=True)
    return fields


def _watch(task: StageTask, tell: Any) -> threading.Event:
    """Look after the parent, the control file and the signals; returns the flag that says stop."""
    cancel = threading.Event()
    folder = JobFolder(task.home, task.job_id)

    def stop(number: int, frame: FrameType | None) -> None:
        cancel.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is not for this process
    machine.die_with_parent()

    def look() -> None:
        while True:
            if os.getppid() != task.parent:
                os._exit(1)
            if folder.control.want != "run":
                cancel.set()
            time.sleep(POLL_SECONDS)

    def beat() -> None:
        while True:
            try:
                tell("heartbeat", {})
            except (BrokenPipeError, ValueError):
                return
            time.sleep(HEARTBEAT_SECONDS)

    for work in (look, beat):
        threading.Thread(target=work, daemon=True).start()
    return cancel


if __name__ == "__main__":
    sys.exit(main())
