"""What is known of a job, from its start to its end; every face shows the same."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field

from forge_mcp.schemas.base import Schema

JobState = Literal[
    "queued", "running", "pausing", "paused", "succeeded", "refused", "failed", "cancelled"
]
Want = Literal["run", "pause", "cancel"]
FINAL: frozenset[JobState] = frozenset({"succeeded", "refused", "failed", "cancelled"})
STATES: tuple[JobState, ...] = get_args(JobState)


class JobSpec(Schema):
    """All that a worker needs to do a job, on any machine that shares the workspace.

    Written by the version that queued it and read by whichever runs it: unknown keys are left
    aside, so that neither direction of an upgrade strands a job.
    """

    model_config = ConfigDict(extra="ignore")

    skill: str
    request: dict[str, Any]
    project: str
    repository: str | None = None
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Where they differ from defaults.yaml, by section."
    )
    version: str = Field(default="", description="Of AI Forge that queued it.")
    created: float = Field(default=0.0, description="Seconds since the epoch.")


class Control(Schema):
    """`control.json`: what shall become of a job. Read by its worker and its processes."""

    model_config = ConfigDict(extra="ignore")

    want: Want = "run"
    by: str = Field(default="user", description="user, or what decided instead, e.g. battery.")


class JobProgress(Schema):
    """`progress.json`: how far a job is. Written by its worker only, replaced as a whole."""

    model_config = ConfigDict(extra="ignore")

    stage: str = ""
    number: int = 0
    of: int = 0
    done: float | None = None
    total: float | None = None
    message: str = ""
    metrics: dict[str, Any] = Field(default_factory=dict)
    progress: float = Field(default=0.0, ge=0.0, le=1.0, description="Of the whole job.")
    eta_seconds: float | None = None
    started_at: float | None = None
    updated: float = 0.0
    state: Literal["active", "ended"] = "active"
    artifacts: list[str] = Field(
        default_factory=list, description="Ids that the job reads or has made."
    )


class JobError(Schema):
    """A `ForgeError` as data."""

    code: str
    message: str
    cause: str = ""
    next_step: str = ""


class JobStatus(Schema):
    """A job as every face shows it."""

    job_id: str
    skill: str
    project: str
    state: JobState
    stage: str = Field(description="What it does, or did last; empty before it begins.")
    progress: float = Field(ge=0.0, le=1.0, description="0 to 1.")
    eta_seconds: float | None = Field(description="Left, from earlier runs; null: not known.")
    message: str = Field(description="The last thing it said.")
    created_at: float = Field(description="Seconds since the epoch.")
    started_at: float | None = None
    error: JobError | None = None
    result: dict[str, Any] | None = Field(
        default=None, description="What the skill returned, once it has."
    )
    dashboard_url: str | None = Field(default=None, description="Null: no service runs.")
    next_step: str = Field(description="What to call or do next.")

    @property
    def final(self) -> bool:
        """Whether nothing more will happen unless somebody asks."""
        return self.state in FINAL
