"""A job's folder: what it was asked, what shall become of it, how far it is, what it told.

    FORGE_HOME/jobs/<job_id>/
        spec.json       what was asked                        written once, by who queued it
        control.json    run, pause or cancel                  replaced by whoever asks
        progress.json   how far it is                         replaced by its worker
        events.jsonl    every event, one a line               appended by its worker
        log.txt         what its processes printed            appended by them

The state itself (queued, running, …) is the workflow's in jobs.db.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from forge_mcp.errors import NotFound, from_os_error
from forge_mcp.schemas.events import Event
from forge_mcp.schemas.jobs import Control, JobProgress, JobSpec
from forge_mcp.workspace import write_file

SPEC, CONTROL, PROGRESS = "spec.json", "control.json", "progress.json"
EVENTS, LOG = "events.jsonl", "log.txt"


def jobs_root(home: Path) -> Path:
    """Where the folders of jobs stand."""
    return home / "jobs"


class JobFolder:
    """The folder of one job. Cheap to make; nothing is read before it is asked for."""

    def __init__(self, home: Path, job_id: str) -> None:
        self.job_id = job_id
        self.path = jobs_root(home) / job_id

    @property
    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self.path.is_dir()

    @property
    def log(self) -> Path:
        """What the job's processes printed."""
        return self.path / LOG

    def create(self, spec: JobSpec) -> None:
        """Make the folder of a job that is about to be queued.

        Raises:
            OutOfSpace, BadInput, ForgeError: the disk said no.
        """
        try:
            self.path.mkdir(parents=True)
            write_file(self.path / SPEC, spec.model_dump_json(indent=2) + "\n")
            self.control = Control()
        except OSError as error:
            self.remove()
            raise from_os_error(error, "write down the job") from error

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    @property
    def control(self) -> Control:
        """What shall become of the job; 'run' where nothing can be read."""
        try:
            return Control.model_validate_json((self.path / CONTROL).read_text("utf-8"))
        except (OSError, ValidationError):
            return Control()

    @control.setter
    def control(self, control: Control) -> None:
        write_file(self.path / CONTROL, control.model_dump_json() + "\n")

    @property
    def progress(self) -> JobProgress:
        """How far the job is; a blank one before it began."""
        try:
            return JobProgress.model_validate_json((self.path / PROGRESS).read_text("utf-8"))
        except (OSError, ValidationError):
            return JobProgress()

    @progress.setter
    def progress(self, progress: JobProgress) -> None:
        # Replaced twice a second: atomically, but without waiting for the disk each time.
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=self.path, prefix=f".{PROGRESS}.", delete=False
        ) as file:
            file.write(progress.model_dump_json())
        Path(file.name).replace(self.path / PROGRESS)

    def mark_ended(self) -> None:
        """Nothing will be read or made for the job any more, unless it is retried."""
        self.progress = self.progress.model_copy(update={"state": "ended", "eta_seconds": None})

    def append(self, event: Event) -> None:
        """Write an event down."""
        with (self.path / EVENTS).open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json() + "\n")

    def events(self, offset: int = 0) -> Iterator[tuple[Event, int]]:
        """The events from a byte offset on, each with the offset that follows it.

        A last line that is still being written, or was cut by a crash, is left out.
        """
        path = self.path / EVENTS
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                offset += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    yield Event.model_validate(json.loads(line)), offset
                except ValueError:  # two writers' halves after a crash
                    continue


def existing_folder(home: Path, job_id: str) -> JobFolder:
    """The folder of a job that was queued.

    Raises:
        NotFound: no such job.
    """
    folder = JobFolder(home, job_id)
    if not job_id or "/" in job_id or job_id.startswith(".") or not (folder.path / SPEC).is_file():
        newest = sorted(
            (p.parent for p in jobs_root(home).glob(f"job-*/{SPEC}")),
            key=lambda p: p.stat().st_mtime,
            reverse=True,
        )[:3]
        known = f", e.g. {', '.join(path.name for path in newest)}" if newest else ""
        raise NotFound(
            f"There is no job '{job_id}'.",
            cause=f"nothing of that name in {jobs_root(home)}",
            next_step=f"Give the id of a job{known}; 'forge-mcp jobs list' shows them.",
        )
    return folder
