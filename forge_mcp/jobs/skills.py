"""The skills that look after jobs, and every skill there is, for the faces."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from forge_mcp.pipeline.skill import (
    Skill,
    SkillContext,
    SkillRequest,
    SkillResult,
    registered,
    skill,
)
from forge_mcp.pipeline.skill import skills as pipeline_skills
from forge_mcp.schemas.jobs import JobState, JobStatus

if TYPE_CHECKING:
    from forge_mcp.jobs.queue import Jobs

LONGEST_WAIT_SECONDS = 240.0  # HTTP clients give up near five minutes


class JobRequest(SkillRequest):
    """Which job."""

    job_id: str = Field(description="Id of a job, e.g. 'job-retrain-flask-3f9a2c'.")


class JobListRequest(SkillRequest):
    """Which jobs."""

    state: list[JobState] = Field(default=[], description="Only jobs in these states.")
    limit: int = Field(default=20, ge=1, le=1000, description="At most so many, newest first.")


class JobStatusRequest(JobRequest):
    """Which job, and how long to wait for it."""

    wait_seconds: float = Field(
        default=0.0,
        ge=0.0,
        le=LONGEST_WAIT_SECONDS,
        description="Wait up to so long until it has ended or is paused, reporting progress.",
    )


class JobWaitRequest(JobRequest):
    """Which job, and how long to wait for it."""

    timeout: float | None = Field(
        default=None, gt=0, description="Seconds; default: until it has ended or is paused."
    )


class JobLogsRequest(JobRequest):
    """Which job's log, and how much of it."""

    lines: int = Field(default=50, ge=1, le=100_000, description="The last so many lines.")


class JobCleanRequest(SkillRequest):
    """Which jobs to forget."""

    older_than_days: float = Field(
        default=30.0, ge=0, description="Only jobs that ended so long ago."
    )


class JobResult(SkillResult, JobStatus):
    """A job: its state, how far it is, what came out, and what to do next."""


class JobListResult(SkillResult):
    """Jobs, newest first, without their results."""

    jobs: list[JobStatus]


class JobLogsResult(SkillResult):
    """The last lines of a job's log; those of its processes begin with '| '."""

    job_id: str
    lines: list[str]


class JobCleanResult(SkillResult):
    """The jobs that were forgotten."""

    forgotten: list[str]


@skill(
    title="List jobs",
    words=("jobs", "list"),
    scope="all",
    read_only=True,
    examples=("forge-mcp jobs list", "forge-mcp jobs list --state running --state queued"),
)
def job_list(request: JobListRequest, context: SkillContext) -> JobListResult:
    """List the newest jobs with their states.

    Use this when you have lost a job's id, or want to see what runs and what waits.
    """
    with _jobs(context) as jobs:
        found = jobs.recent(
            project=context.project or None, states=request.state, limit=request.limit
        )
    return JobListResult(jobs=found)


@skill(
    title="Show a job",
    positional=("job_id",),
    words=("jobs", "show"),
    scope="all",
    read_only=True,
    examples=("forge-mcp jobs show job-retrain-flask-3f9a2c",),
)
def job_status(request: JobStatusRequest, context: SkillContext) -> JobResult:
    """Show how far a job is, and its result once it has ended; can wait for that.

    Use this when a skill returned a job id: call it with wait_seconds=60 again and again until
    `state` is succeeded, refused (a gate said no), failed, cancelled or paused. `next_step` says
    what to do then.
    """
    with _jobs(context) as jobs:
        if request.wait_seconds:
            jobs.wait(
                request.job_id,
                request.wait_seconds,
                sink=context.sink,
                cancel=context.cancel,
                from_start=False,
            )
        return _result(jobs.status(request.job_id))


@skill(
    title="Wait for a job",
    positional=("job_id",),
    words=("jobs", "wait"),
    scope="all",
    read_only=True,
    tool=False,
    examples=("forge-mcp jobs wait job-retrain-flask-3f9a2c --timeout 600",),
)
def job_wait(request: JobWaitRequest, context: SkillContext) -> JobResult:
    """Follow a job until it has ended or is paused. Ctrl-C ends the waiting, not the job.

    Use this when a script needs the outcome. Exit codes: 0 succeeded or paused, 3 refused by a
    gate, 1 failed or still running after the timeout, 130 cancelled.
    """
    with _jobs(context) as jobs:
        jobs.wait(request.job_id, request.timeout, sink=context.sink, cancel=context.cancel)
        context.check()
        return _result(jobs.status(request.job_id))


@skill(
    title="Cancel a job",
    positional=("job_id",),
    words=("jobs", "cancel"),
    scope="all",
    destructive=True,
    examples=("forge-mcp jobs cancel job-retrain-flask-3f9a2c",),
)
def job_cancel(request: JobRequest, context: SkillContext) -> JobResult:
    """Stop a job that waits, runs or is paused. What it has finished stays.

    Use this when its outcome is not wanted any more; job_pause keeps its place. job_retry takes a
    cancelled job up again.
    """
    with _jobs(context) as jobs:
        return _result(jobs.cancel(request.job_id))


@skill(
    title="Pause a job",
    positional=("job_id",),
    words=("jobs", "pause"),
    scope="all",
    examples=("forge-mcp jobs pause job-retrain-flask-3f9a2c",),
)
def job_pause(request: JobRequest, context: SkillContext) -> JobResult:
    """Stop a job for now, so that the machine is free: a training writes a checkpoint first.

    Use this when the user needs the machine for a while. job_resume goes on with it.
    """
    with _jobs(context) as jobs:
        return _result(jobs.pause(request.job_id))


@skill(
    title="Resume a job",
    positional=("job_id",),
    words=("jobs", "resume"),
    scope="all",
    examples=("forge-mcp jobs resume job-retrain-flask-3f9a2c",),
)
def job_resume(request: JobRequest, context: SkillContext) -> JobResult:
    """Go on with a paused job where it was. It takes its old place in the queue.

    Use this when a job is paused and the machine is free again.
    """
    with _jobs(context) as jobs:
        return _result(jobs.resume(request.job_id))


@skill(
    title="Retry a job",
    positional=("job_id",),
    words=("jobs", "retry"),
    scope="all",
    idempotent=False,
    examples=("forge-mcp jobs retry job-retrain-flask-3f9a2c",),
)
def job_retry(request: JobRequest, context: SkillContext) -> JobResult:
    """Run a job again that failed, was refused, or was cancelled.

    Use this when the cause in `error` has been dealt with. Finished stages are found again, and a
    training goes on from its last checkpoint. The settings are those it was queued with.
    """
    with _jobs(context) as jobs:
        return _result(jobs.retry(request.job_id))


@skill(
    title="Read a job's log",
    positional=("job_id",),
    words=("jobs", "logs"),
    scope="all",
    read_only=True,
    examples=("forge-mcp jobs logs job-retrain-flask-3f9a2c --lines 200",),
)
def job_logs(request: JobLogsRequest, context: SkillContext) -> JobLogsResult:
    """Read the last lines of what a job told and what its processes printed.

    Use this when a job failed and its error does not say enough.
    """
    with _jobs(context) as jobs:
        return JobLogsResult(job_id=request.job_id, lines=jobs.log(request.job_id, request.lines))


@skill(
    title="Forget old jobs",
    words=("jobs", "clean"),
    scope="all",
    destructive=True,
    tool=False,
    examples=("forge-mcp jobs clean --older-than-days 7",),
)
def job_clean(request: JobCleanRequest, context: SkillContext) -> JobCleanResult:
    """Forget jobs that ended long ago, with their logs. Artifacts and models stay.

    Use this when the list has grown long; workers do it by themselves after jobs.keep_days.
    """
    with _jobs(context) as jobs:
        return JobCleanResult(forgotten=jobs.clean(request.older_than_days))


@cache
def skills() -> dict[str, Skill]:
    """Every skill by its name: those of the line, then those that look after jobs."""
    return pipeline_skills() | {
        found.name: found for found in registered() if found.function.__module__ == __name__
    }


def _jobs(context: SkillContext) -> Jobs:
    from forge_mcp.jobs.queue import Jobs

    return Jobs(context.workspace.home)


def _result(status: JobStatus) -> JobResult:
    return JobResult.model_validate(status.model_dump())
