"""A job from its first stage to its last: what the durable workflow does.

Every stage is a durable step: its outcome is written into jobs.db before the next one begins, and
a job that is entered again (after a crash, a pause, an upgrade) does not run it again. A kill
between a stage's artifact and its step's record makes the stage run again; it then finds its
artifact by the hash of its inputs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from forge_mcp.errors import ForgeError, GateRefused, from_dict
from forge_mcp.jobs.estimates import Durations, Estimate
from forge_mcp.jobs.folder import JobFolder
from forge_mcp.jobs.stage import StageTask
from forge_mcp.jobs.supervise import Stage
from forge_mcp.pipeline.faults import in_words
from forge_mcp.pipeline.retrain import STAGES, RetrainRequest, RetrainResult, line
from forge_mcp.pipeline.skill import SkillRequest, SkillResult, is_refusal, skills
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import JobProgress, JobSpec
from forge_mcp.settings import settings_from

PROGRESS_SECONDS = 0.5  # between two versions of progress.json
COMPUTED_SHARE = 0.5  # a stage faster than this share of its own figure has found its artifact
ID_FIELDS = ("corpus_id", "dataset_id", "run_id", "report_id", "export_id", "deployment_id")


class Outcome(Schema):
    """How a stage or a whole job ended; what DBOS stores."""

    state: Literal["succeeded", "refused", "failed"]
    result: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    elapsed: float = Field(default=0.0, description="Seconds that this took here.")


RunStep = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]


class Job:
    """One job in the hands of a worker.

    Args:
        step: makes a call durable: step(name, call) runs it once, whatever happens.
        shutting_down: set when the worker ends.
        still_mine: False where another worker has taken the job over.
    """

    def __init__(
        self,
        home: Path,
        job_id: str,
        spec: JobSpec,
        *,
        step: RunStep,
        shutting_down: threading.Event,
        still_mine: Callable[[], bool],
    ) -> None:
        self.home = home
        self.spec = spec
        self.folder = JobFolder(home, job_id)
        self.step = step
        self.shutting_down = shutting_down
        self.still_mine = still_mine
        self.durations = Durations(home)
        stages = STAGES if spec.skill == "retrain" else (spec.skill,)
        self.record = Record(self.folder, Estimate(self.durations, spec, stages), stages)
        self.elapsed = 0.0

    def run(self) -> Outcome:
        """To its end.

        Raises:
            Stopped: it was paused or cancelled, or the worker ends (see supervise.py).
        """
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.record.begin()
        try:
            result = self._result()
            state: Literal["succeeded", "refused"] = (
                "refused" if is_refusal(result) else "succeeded"
            )
            fields = result.model_dump(mode="json", by_alias=True)
            outcome = Outcome(state=state, result=fields, elapsed=self.elapsed)
        except GateRefused as error:
            outcome = Outcome(state="refused", error=error.as_dict(), elapsed=self.elapsed)
        except ForgeError as error:
            outcome = Outcome(state="failed", error=error.as_dict(), elapsed=self.elapsed)
        self.record.end(outcome.state)
        return outcome

    def _result(self) -> SkillResult:
        skill = skills()[self.spec.skill]
        try:
            request = skill.request.model_validate(self.spec.request)
        except ValidationError as error:
            raise _strange_request(self.spec, error) from error
        if isinstance(request, RetrainRequest):
            fields = line(request, self._stage)
            return RetrainResult.model_validate(fields | {"seconds": self.elapsed})
        return self._stage(self.spec.skill, request)

    def _stage(self, name: str, request: SkillRequest) -> SkillResult:
        """A stage, unless its outcome is known already.

        Raises:
            ForgeError: it failed.
        """
        kind = skills()[name].result
        self.record.stage(name)
        stored = self.step(name, lambda: self._perform(name, request).model_dump(mode="json"))
        try:
            result = _result_of(stored, kind)
        except ValidationError:  # another version stored it; the artifact is found again
            again = f"{name} again"
            stored = self.step(again, lambda: self._perform(name, request).model_dump(mode="json"))
            result = _result_of(stored, kind)
        self.elapsed += stored.get("elapsed", 0.0)
        self.record.made(result)
        return result

    def _perform(self, name: str, request: SkillRequest) -> Outcome:
        """A stage in its process; a failure is an outcome too, so that it is not tried again."""
        task = StageTask(
            home=self.home,
            job_id=self.folder.job_id,
            stage=name,
            spec=self.spec,
            request=request.model_dump(mode="json"),
            parent=os.getpid(),
        )
        started = time.monotonic()
        try:
            settings = settings_from(self.spec.settings).jobs
            stage = Stage(
                task, self.folder, self.record, settings, self.shutting_down, self.still_mine
            )
            result = stage.run()
        except (ForgeError, OSError) as fault:
            error = in_words(fault, name, self.home)
            return Outcome(
                state="refused" if isinstance(error, GateRefused) else "failed",
                error=error.as_dict(),
                elapsed=time.monotonic() - started,
            )
        elapsed = time.monotonic() - started
        if elapsed > COMPUTED_SHARE * float(result.get("seconds", 0.0)):
            self.durations.note(self.spec, name, elapsed)
        return Outcome(state="succeeded", result=result, elapsed=elapsed)


def _result_of(stored: dict[str, Any], kind: type[SkillResult]) -> SkillResult:
    """The result in a stored outcome.

    Raises:
        ForgeError: the stage failed, or a gate refused.
        ValidationError: this version writes such results otherwise.
    """
    outcome = Outcome.model_validate(stored)
    if outcome.error is not None:
        raise from_dict(outcome.error)
    return kind.model_validate(outcome.result)


def _strange_request(spec: JobSpec, error: ValidationError) -> ForgeError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return ForgeError(
        f"This version of AI Forge does not understand the job's request: '{field}'.",
        cause=f"{first['msg']}; version {spec.version} queued it",
        next_step=f"Start '{spec.skill}' anew with this version.",
    )


class Record:
    """Writes down what a job tells: every event, and a short progress.json now and then."""

    def __init__(self, folder: JobFolder, estimate: Estimate, stages: tuple[str, ...]) -> None:
        self.folder = folder
        self.estimate = estimate
        self.stages = stages
        self.state = JobProgress()
        self._written = 0.0

    def begin(self) -> None:
        """A worker takes the job, perhaps again."""
        before = self.folder.progress
        self.state = JobProgress(
            started_at=before.started_at or time.time(),
            artifacts=before.artifacts,
            progress=before.progress,
            of=len(self.stages),
        )
        self._write()

    def stage(self, name: str) -> None:
        """A stage begins, or is found done."""
        number = self.stages.index(name) + 1
        self.state.stage, self.state.number = name, number
        self.state.done = self.state.total = None
        self.state.metrics, self.state.message = {}, ""
        payload = {"stage": name, "number": number, "of": len(self.stages)}
        self(Event(time=time.time(), stage=name, kind="state", payload=payload))
        self._write()

    def __call__(self, event: Event) -> None:
        """Take in one event of the running stage."""
        payload = event.payload
        self.folder.append(event)
        if event.kind == "progress" and "done" in payload:
            self.state.done, self.state.total = payload["done"], payload.get("total")
            self.state.message = payload.get("message") or self.state.message
        elif event.kind == "metric":
            self.state.metrics |= payload
        elif event.kind == "log":
            self.state.message = str(payload.get("message", ""))
        if time.monotonic() - self._written > PROGRESS_SECONDS:
            self._write()

    def made(self, result: SkillResult) -> None:
        """A stage has made, or found, an artifact."""
        for field in ID_FIELDS:
            value = getattr(result, field, None)
            if isinstance(value, str) and value not in self.state.artifacts:
                self.state.artifacts.append(value)
        self._write(share=1.0)

    def end(self, state: str) -> None:
        """The job has ended."""
        self.state.state = "ended"
        self.state.eta_seconds = 0.0
        if state == "succeeded":
            self.state.progress = 1.0
        payload = {"state": state}
        self.folder.append(
            Event(time=time.time(), stage=self.state.stage, kind="state", payload=payload)
        )
        self._write()

    def _write(self, share: float | None = None) -> None:
        state = self.state
        if state.stage and state.state == "active":
            if share is None:
                share = state.done / state.total if state.done and state.total else 0.0
            # Never backwards: a stage that begins again has not lost what it had.
            state.progress = max(state.progress, self.estimate.progress(state.stage, share))
            told = state.metrics.get("eta_seconds") if share < 1.0 else None
            state.eta_seconds = self.estimate.left(state.stage, share, told)
        state.updated = time.time()
        self.folder.progress = state
        self._written = time.monotonic()
