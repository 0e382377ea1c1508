"""A workspace with a real worker, driven through `Jobs` as the faces do it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from driven_line import OPEN, SAMPLE

from forge_mcp.jobs.queue import Jobs
from forge_mcp.jobs.skills import skills
from forge_mcp.jobs.workers import places
from forge_mcp.pipeline.context import make_request, open_context
from forge_mcp.schemas.jobs import JobStatus
from forge_mcp.workspace import Workspace

WORKER, STAGE, TRAINING = (
    "forge_mcp.jobs.worker",
    "forge_mcp.jobs.stage",
    "forge_mcp.training.child",
)
SETTINGS = OPEN | {"FORGE_JOBS__IDLE_SECONDS": "2", "FORGE_JOBS__KEEP_AWAKE": "false"}


def steps(number: int, save: int = 1000) -> dict[str, Any]:
    """Settings of a training of so many steps, with a checkpoint every `save`."""
    return {
        "training": {
            "max_steps": number,
            "num_train_epochs": 1e6,
            "eval_steps": number,
            "save_steps": save,
        }
    }


# A training that is still under way whenever a test has found its process.
LONG = steps(1000)


class JobLine:
    """One FORGE_HOME and some repositories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "forge"
        self.jobs = Jobs(self.home)

    def repository(self, name: str = "sample") -> Path:
        """A repository of its own, so a project of its own."""
        path = self.folder / name
        if not path.is_dir():
            shutil.copytree(SAMPLE, path)
        return path

    def start(self, skill: str, settings: dict[str, Any] | None = None, **fields: Any) -> JobStatus:
        """Queue a skill, as a face does."""
        declared = skills()[skill]
        if "repo" in declared.request.model_fields:
            fields.setdefault("repo", str(self.repository()))
        request, context = open_context(
            declared,
            make_request(declared, fields),
            workspace=Workspace(self.home),
            overrides=settings,
        )
        return self.jobs.start(declared, request, context)

    def end(self, job: JobStatus, seconds: float = 300) -> JobStatus:
        """Wait for a job; it must come to rest."""
        status = self.jobs.wait(job.job_id, seconds)
        assert status.state in ("succeeded", "refused", "failed", "cancelled", "paused"), status
        return status

    def events(self, job: JobStatus) -> list[Any]:
        """All that a job has told."""
        from forge_mcp.jobs.folder import JobFolder

        return [event for event, _ in JobFolder(self.home, job.job_id).events()]

    def stages_begun(self, job: JobStatus) -> list[str]:
        """The stages in the order in which they began, or were found done."""
        found = [e for e in self.events(job) if e.kind == "state" and "number" in e.payload]
        return [event.payload["stage"] for event in found]

    def processes(self, module: str) -> list[psutil.Process]:
        """The living processes of this workspace that run a module."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            with suppress(psutil.Error):
                if (
                    module in (process.info["cmdline"] or ())
                    and process.info["status"] != psutil.STATUS_ZOMBIE
                    and process.environ().get("FORGE_HOME") == str(self.home)
                ):
                    found.append(process)
        return found

    def wait_for(self, module: str) -> psutil.Process:
        """A process that runs a module, as soon as there is one."""
        found: psutil.Process = until(
            lambda: next(iter(self.processes(module)), None), f"process of {module}"
        )
        return found

    def kill(self, module: str) -> None:
        """Kill -9 whatever runs a module now."""
        for process in self.processes(module):
            with suppress(psutil.Error):
                process.kill()

    def close(self) -> None:
        """End every worker of the workspace, and with it what it has started."""
        self.jobs.close()
        for place in places(self.home):
            record = place.record
            if place.alive and record is not None:
                with suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while any(self.processes(m) for m in (WORKER, STAGE, TRAINING)):
            if time.monotonic() > deadline:
                for module in (WORKER, STAGE, TRAINING):
                    self.kill(module)
                raise AssertionError("the worker did not end after SIGTERM")
            time.sleep(0.05)


def until(look: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """The first true value of `look`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.02)
    return found


@contextmanager
def job_line(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: str) -> Iterator[JobLine]:
    """A workspace with few steps and open gates; its worker is ended afterwards."""
    line = JobLine(folder)
    for name, value in (SETTINGS | {"FORGE_HOME": str(line.home)} | more).items():
        monkeypatch.setenv(name, value)
    try:
        yield line
    finally:
        line.close()
