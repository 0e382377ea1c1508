"""Jobs as every face sees them: start, look, wait, pause, resume, cancel, retry, forget."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forge_mcp
from forge_mcp.errors import BadInput, ForgeError, from_dict
from forge_mcp.jobs import database
from forge_mcp.jobs.folder import JobFolder, existing_folder, jobs_root
from forge_mcp.jobs.line import Outcome
from forge_mcp.jobs.workers import ensure_worker
from forge_mcp.locks import FileLock
from forge_mcp.pipeline.skill import Skill, SkillContext, SkillRequest
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import Control, JobError, JobSpec, JobState, JobStatus
from forge_mcp.settings import differences
from forge_mcp.workspace import hash_inputs, slug

POLL_SECONDS = 0.25
WATCH_WORKER_SECONDS = 2.0  # between looks at whether the worker still lives, while waiting
RESTING: frozenset[JobState] = frozenset({"succeeded", "refused", "failed", "cancelled", "paused"})


class Jobs:
    """The jobs of a workspace.

    Args:
        home: FORGE_HOME.
        client: of a worker that has one already; by default one is opened when needed.
    """

    def __init__(self, home: Path, client: Any = None) -> None:
        self.home = home
        self._client = client
        self._in_worker = client is not None

    # -- starting ------------------------------------------------------------------------------

    def start(self, skill: Skill, request: SkillRequest, context: SkillContext) -> JobStatus:
        """Queue a skill. Asked again for what is already queued or running, it returns that job.

        Raises:
            ForgeError: the worker cannot start, or the database cannot be used.
        """
        spec = JobSpec(
            skill=skill.name,
            request=request.model_dump(mode="json"),
            project=context.project,
            repository=str(context.repository) if context.repository else None,
            settings=differences(context.settings),
            version=forge_mcp.__version__,
            created=time.time(),
        )
        ensure_worker(self.home)
        job_id = f"job-{skill.name}-{slug(spec.project)}-{secrets.token_hex(3)}"
        folder = JobFolder(self.home, job_id)
        folder.create(spec)
        same = spec.model_dump(mode="json", exclude={"created", "version"})
        try:
            with database.in_words(self.home):
                handle = self.client.enqueue(
                    {
                        "workflow_name": database.WORKFLOW,
                        "queue_name": queue_of(skill),
                        "workflow_id": job_id,
                        "app_version": database.APPLICATION_VERSION,
                        "deduplication_id": hash_inputs(same),
                        "duplication_policy": "return-existing",
                    },
                    spec.model_dump(mode="json"),
                )
        except BaseException:
            folder.remove()
            raise
        if handle.workflow_id != job_id:
            folder.remove()
        # The worker may have ended for want of work just before.
        return self.status(handle.workflow_id)

    # -- looking -------------------------------------------------------------------------------

    def status(self, job_id: str) -> JobStatus:
        """Where a job is. Starts a worker where the job needs one and none lives.

        Raises:
            NotFound: no such job.
            ForgeError: the database cannot be used, or the worker cannot start.
        """
        folder = existing_folder(self.home, job_id)
        rows = self._rows(workflow_ids=[job_id])
        status = self._describe(rows[0]) if rows else _lost(folder)
        if status.state in ("queued", "running", "pausing") and not self._in_worker:
            ensure_worker(self.home)
        return status

    def recent(
        self,
        *,
        project: str | None = None,
        states: Sequence[JobState] = (),
        limit: int = 20,
    ) -> list[JobStatus]:
        """The newest jobs first, without their results."""
        if not self._has_database():
            return []
        found = []
        everything = project is None and not states
        for row in self._rows(sort_desc=True, limit=limit if everything else None):
            status = self._describe(row)
            if (project in (None, status.project)) and (not states or status.state in states):
                found.append(status.model_copy(update={"result": None}))
                if len(found) == limit:
                    break
        if any(status.state in ("queued", "running", "pausing") for status in found):
            ensure_worker(self.home)
        return found

    def wait(
        self,
        job_id: str,
        seconds: float | None = None,
        *,
        sink: Callable[[Event], None] = lambda event: None,
        cancel: threading.Event | None = None,
        from_start: bool = True,
    ) -> JobStatus:
        """Wait until the job rests (ended or paused), at most `seconds`.

        Args:
            seconds: None for as long as it takes.
            sink: receives the job's events meanwhile.
            cancel: ends the waiting, not the job.
            from_start: also the events from before.

        Raises:
            NotFound: no such job.
            ForgeError: see `status`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        offset = 0
        folder = existing_folder(self.home, job_id)
        if not from_start:
            offset = max((end for _, end in folder.events()), default=0)
        watched = float("-inf")
        while True:
            status = self._glance(job_id)
            for event, end in folder.events(offset):
                offset = end
                sink(event)
            now = time.monotonic()
            if status.state in RESTING or (deadline is not None and now >= deadline):
                return status
            if cancel is not None and cancel.is_set():
                return status
            if now - watched > WATCH_WORKER_SECONDS:
                watched = now
                ensure_worker(self.home)
            time.sleep(POLL_SECONDS)

    def log(self, job_id: str, lines: int) -> list[str]:
        """The last lines of what the job told and its processes printed, oldest first."""
        folder = existing_folder(self.home, job_id)
        told = [text for event, _ in folder.events() if (text := describe_event(event))]
        printed: list[str] = []
        if folder.log.is_file():
            printed = folder.log.read_text("utf-8", errors="replace").splitlines()
        return [*told[-lines:], *(f"| {line}" for line in printed[-lines:])]

    # -- deciding ------------------------------------------------------------------------------

    def cancel(self, job_id: str) -> JobStatus:
        """Stop a job for good. What it has finished stays; `retry` takes it up again.

        Raises:
            NotFound: no such job.
            BadInput: it has ended already.
        """
        with self._deciding(job_id) as status:
            if status.state == "cancelled":
                return status
            self._require(status, "cancelled", ("queued", "running", "pausing", "paused"))
            self._stop(job_id, Control(want="cancel"))
        return self.status(job_id)

    def pause(self, job_id: str) -> JobStatus:
        """Stop a job for now: a training writes a checkpoint first, others may use the machine.

        Raises:
            NotFound: no such job.
            BadInput: it has ended, or is being cancelled.
        """
        with self._deciding(job_id) as status:
            if status.state not in ("paused", "pausing"):
                self._require(status, "paused", ("queued", "running"))
                if JobFolder(self.home, job_id).control.want == "cancel":
                    raise _too_late(status, "paused", "it is being cancelled")
            self._stop(job_id, Control(want="pause"))
        return self.status(job_id)

    def resume(self, job_id: str) -> JobStatus:
        """Go on with a paused job where it was; it takes its old place in the queue.

        Raises:
            NotFound: no such job.
            BadInput: it is not paused.
        """
        with self._deciding(job_id) as status:
            if status.state in ("queued", "running"):
                return status
            self._require(status, "resumed", ("paused", "pausing"))
            if status.state == "pausing":  # a checkpoint is being written
                status = self.wait(job_id)
                if status.state != "paused":  # it was faster, and has ended
                    return status
            self._again(job_id, status, rewind=False)
        return self.status(job_id)

    def retry(self, job_id: str) -> JobStatus:
        """Run a job again that failed, was refused, or was cancelled. Finished stages are found
        again; a training goes on from its checkpoint.

        Raises:
            NotFound: no such job.
            BadInput: it has not ended, or it succeeded.
        """
        with self._deciding(job_id) as status:
            self._require(status, "retried", ("failed", "refused", "cancelled"))
            self._again(job_id, status, rewind=True)
        return self.status(job_id)

    def clean(self, older_than_days: float) -> list[str]:
        """Forget jobs that ended so long ago; artifacts stay. Returns their ids."""
        before = time.time() - older_than_days * 24 * 3600
        forgotten = []
        if not self._has_database():
            return []
        for row in self._rows():
            ended = (row.completed_at or row.updated_at or 0) / 1000
            status = self._describe(row)
            if status.final and ended < before:
                with database.in_words(self.home):
                    self.client.delete_workflow(row.workflow_id)
                JobFolder(self.home, row.workflow_id).remove()
                forgotten.append(row.workflow_id)
        self._remove_unqueued(before)
        return forgotten

    def __enter__(self) -> Jobs:
        """Use it in a `with` to give the connection back at its end."""
        return self

    def __exit__(self, *error: object) -> None:
        """See `close`."""
        self.close()

    def close(self) -> None:
        """Give the connection back; the next call opens one again."""
        if self._client is not None and not self._in_worker:
            self._client.destroy()
            self._client = None

    # -- how -----------------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """DBOS's client; the tables must be there (a worker has made them)."""
        if self._client is None:
            from dbos import DBOSClient

            with database.in_words(self.home):
                self._client = DBOSClient(
                    system_database_url=database.database_url(self.home),
                    system_database_engine=database.engine(self.home),
                    serializer=database.serializer(),
                    application_name=database.APPLICATION,
                    retry_connection_errors=False,
                )
        return self._client

    def _rows(self, **filters: Any) -> list[Any]:
        with database.in_words(self.home):
            return list(self.client.list_workflows(name=database.WORKFLOW, **filters))

    def _has_database(self) -> bool:
        return database.on_postgres() or database.database_path(self.home).is_file()

    def _glance(self, job_id: str) -> JobStatus:
        rows = self._rows(workflow_ids=[job_id])
        return self._describe(rows[0]) if rows else _lost(existing_folder(self.home, job_id))

    def _describe(self, row: Any) -> JobStatus:
        """What a row of DBOS and the job's folder say together."""
        folder = JobFolder(self.home, row.workflow_id)
        progress, control = folder.progress, folder.control
        spec = JobSpec.model_validate(row.input["args"][0])
        state, result, error = _state(row, control)
        begun = state not in ("queued",)
        return JobStatus(
            job_id=row.workflow_id,
            skill=spec.skill,
            project=spec.project,
            state=state,
            stage=progress.stage,
            progress=1.0 if state == "succeeded" else progress.progress,
            eta_seconds=progress.eta_seconds if state == "running" else None,
            message=progress.message if begun else "",
            created_at=(row.created_at or 0) / 1000,
            started_at=progress.started_at,
            error=error,
            result=result,
            next_step=next_step(row.workflow_id, spec.skill, state, result, error, control),
        )

    def _deciding(self, job_id: str) -> _Deciding:
        return _Deciding(self, job_id)

    @staticmethod
    def _require(status: JobStatus, verb: str, states: Sequence[JobState]) -> None:
        """Raises:
        BadInput: the job is in none of these states.
        """
        if status.state not in states:
            raise _too_late(status, verb, f"it is {status.state}")

    def _stop(self, job_id: str, control: Control) -> None:
        """Say it in the control file; what nobody runs yet is taken out of the queue as well."""
        folder = JobFolder(self.home, job_id)
        folder.control = control
        rows = self._rows(workflow_ids=[job_id])
        if rows and rows[0].status in ("ENQUEUED", "DELAYED"):
            with database.in_words(self.home):
                self.client.cancel_workflow(job_id)
        if control.want == "cancel" and rows and rows[0].status != "PENDING":
            folder.mark_ended()  # where it runs, its worker does this

    def _again(self, job_id: str, status: JobStatus, *, rewind: bool) -> None:
        """Put a job back into its queue. Its control file comes first, or the worker would stop
        it again; after a crash in between it is shown as paused.
        """
        from forge_mcp.pipeline.skill import skills

        folder = JobFolder(self.home, job_id)
        queue = queue_of(skills()[status.skill])
        before = folder.control
        folder.control = Control()
        try:
            with database.in_words(self.home):
                if rewind:
                    progress = folder.progress
                    folder.progress = progress.model_copy(
                        update={"progress": 0.0, "state": "active", "eta_seconds": None}
                    )
                    self.client.rewind_workflow(job_id, queue_name=queue)
                else:
                    self.client.resume_workflow(job_id, queue_name=queue)
        except BaseException:
            folder.control = before
            raise

    def _remove_unqueued(self, before: float) -> None:
        """Folders whose starter was killed before it could queue the job."""
        known = {row.workflow_id for row in self._rows(load_input=False, load_output=False)}
        for path in jobs_root(self.home).glob("job-*"):
            if path.name not in known and path.stat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)


class _Deciding:
    """One decision on a job at a time: what is read is still true when it is acted on."""

    def __init__(self, jobs: Jobs, job_id: str) -> None:
        self._jobs = jobs
        self._folder = existing_folder(jobs.home, job_id)
        self._lock = FileLock(self._folder.path)

    def __enter__(self) -> JobStatus:
        """The job's state, which no other decision changes until the end of the block."""
        self._lock.wait(lambda: None)
        return self._jobs._glance(self._folder.job_id)

    def __exit__(self, *error: object) -> None:
        """Let others decide."""
        self._lock.release()


def queue_of(skill: Skill) -> str:
    """The queue in which a skill waits for its turn."""
    return database.TURNS_QUEUE if skill.loads_model else database.OTHERS_QUEUE


def describe_event(event: Event) -> str:
    """An event as a line of a log; '' for what a log does not show."""
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    payload = event.payload
    if event.kind == "log":
        warning = "warning: " if payload.get("level") == "warning" else ""
        return f"{when} {event.stage}: {warning}{payload.get('message', '')}"
    if event.kind == "state" and "number" in payload:
        return f"{when} [{payload['number']}/{payload['of']}] {payload['stage']}"
    if event.kind == "state":
        return f"{when} {payload.get('state', '')}"
    return ""


def next_step(
    job_id: str,
    skill: str,
    state: JobState,
    result: dict[str, Any] | None,
    error: JobError | None,
    control: Control,
) -> str:
    """One sentence for a person or an agent."""
    if state in ("queued", "running"):
        if control.want == "cancel":
            return f"It is being cancelled: job_status(job_id='{job_id}') says when."
        return (
            f"Call job_status(job_id='{job_id}', wait_seconds=60) until it ends "
            f"('forge-mcp jobs wait {job_id}'); job_cancel stops it."
        )
    if state == "pausing":
        return "It stops as soon as it has written a checkpoint."
    if state == "paused":
        why = " It goes on by itself when there is power." if control.by == "battery" else ""
        return f"'forge-mcp jobs resume {job_id}' (job_resume) goes on.{why}"
    if state == "succeeded":
        deployed = skill == "retrain" and bool((result or {}).get("deployed"))
        return "Ask the model: query." if deployed else "Take the id in `result` to the next step."
    if state == "refused":
        return "A gate said no; what is deployed was not changed. `result` or `error` says why."
    if state == "cancelled":
        return f"'forge-mcp jobs retry {job_id}' (job_retry) takes it up again."
    said = f"{error.next_step} " if error and error.next_step else ""
    return f"{said}Then 'forge-mcp jobs retry {job_id}' (job_retry) goes on where it was."


def _state(row: Any, control: Control) -> tuple[JobState, dict[str, Any] | None, JobError | None]:
    """(state, result, error) from DBOS's row and what was wanted."""
    if row.status in ("ENQUEUED", "DELAYED"):
        return "queued", None, None
    if row.status == "PENDING":
        return ("pausing" if control.want == "pause" else "running"), None, None
    if row.status == "CANCELLED":
        return ("cancelled" if control.want == "cancel" else "paused"), None, None
    if row.status == "SUCCESS":
        outcome = Outcome.model_validate(row.output)
        error = JobError.model_validate(outcome.error) if outcome.error else None
        return outcome.state, outcome.result, error
    if row.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        message = "The job was given up: its worker died again and again."
        return "failed", None, JobError(code="failed", message=message)
    message = f"The job's workflow broke off: {row.error}"
    return "failed", None, JobError(code="failed", message=message)


def _lost(folder: JobFolder) -> JobStatus:
    """A job whose folder is there but which the queue does not know."""
    spec = JobSpec.model_validate_json((folder.path / "spec.json").read_text("utf-8"))
    error = JobError(
        code="failed",
        message="The queue does not know this job.",
        cause="its starter was killed before it was queued, or the jobs' database was replaced",
        next_step=f"Start '{spec.skill}' anew; finished stages are found again.",
    )
    return JobStatus(
        job_id=folder.job_id,
        skill=spec.skill,
        project=spec.project,
        state="failed",
        stage=folder.progress.stage,
        progress=folder.progress.progress,
        eta_seconds=None,
        message="",
        created_at=spec.created,
        error=error,
        next_step=error.next_step,
    )


def _too_late(status: JobStatus, verb: str, why: str) -> BadInput:
    return BadInput(f"{status.job_id} cannot be {verb}.", cause=why, next_step=status.next_step)


def error_of(status: JobStatus) -> ForgeError | None:
    """The error with which a job ended, to be raised at the face that asked."""
    return from_dict(status.error.model_dump()) if status.error else None
