"""Which workers there are, and starting the one of this machine.

    FORGE_HOME/workers/<name>.lock   held by a living worker; the kernel lets it go at its death
    FORGE_HOME/workers/<name>.json   what it said last: ready, draining, or why it could not start

With SQLite there is one worker, "local". On PostgreSQL each machine that shares FORGE_HOME has
one, named after the machine; FORGE_WORKER names one otherwise.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, ValidationError

import forge_mcp
from forge_mcp.errors import ForgeError, Unavailable, from_dict, from_os_error
from forge_mcp.jobs.database import on_postgres
from forge_mcp.jobs.folder import jobs_root
from forge_mcp.locks import is_held
from forge_mcp.schemas.base import Schema
from forge_mcp.workspace import is_full, slug, write_file

START_SECONDS = 60.0
POLL_SECONDS = 0.05
LOG = "worker.log"
LOG_BYTES = 5_000_000  # the log begins anew beyond this
LOG_LINES_SHOWN = 5


class WorkerRecord(Schema):
    """What a worker says of itself."""

    model_config = ConfigDict(extra="ignore")

    name: str
    pid: int
    host: str
    version: str
    state: Literal["starting", "ready", "draining", "failed"]
    heartbeat: float = 0.0
    error: dict[str, str] | None = None


class Handover(Schema):
    """A newer version asks a worker to end after what it runs, and to start its successor."""

    version: str
    executable: str


class WorkerPlace:
    """The files of one worker."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self.home = home
        root = home / "workers"
        self.lock = root / f"{name}.lock"
        self.record_file = root / f"{name}.json"
        self.handover_file = root / f"{name}.handover.json"

    @property
    def alive(self) -> bool:
        """Whether the worker lives (asked of the kernel: on this machine only)."""
        return is_held(self.lock)

    @property
    def record(self) -> WorkerRecord | None:
        """What it said last."""
        try:
            return WorkerRecord.model_validate_json(self.record_file.read_text("utf-8"))
        except (OSError, ValidationError):
            return None

    @record.setter
    def record(self, record: WorkerRecord) -> None:
        write_file(self.record_file, record.model_dump_json() + "\n")

    @property
    def serving(self) -> WorkerRecord | None:
        """What the living worker said, once it is ready (or drains).

        Before a new worker's first words, those of the last one still stand there.
        """
        record = self.record
        if not self.alive or record is None or record.state not in ("ready", "draining"):
            return None
        return record if _runs(record.pid) else None

    @property
    def handover(self) -> Handover | None:
        """Whom it shall hand its work to."""
        try:
            return Handover.model_validate_json(self.handover_file.read_text("utf-8"))
        except (OSError, ValidationError):
            return None

    def ask_for_handover(self) -> None:
        """Ask an older worker to make room for one of this version."""
        asked = Handover(version=forge_mcp.__version__, executable=sys.executable)
        write_file(self.handover_file, asked.model_dump_json() + "\n")

    def handed_over(self) -> None:
        """The request was followed."""
        self.handover_file.unlink(missing_ok=True)


def worker_name() -> str:
    """Of this machine's worker."""
    named = os.environ.get("FORGE_WORKER")
    if named:
        return slug(named)
    return slug(platform.node()) if on_postgres() else "local"


def places(home: Path) -> list[WorkerPlace]:
    """Of all workers that ever were."""
    return [WorkerPlace(home, path.stem) for path in sorted((home / "workers").glob("*.lock"))]


def ensure_worker(home: Path) -> None:
    """Have a worker on this machine; return when it is ready.

    Raises:
        ForgeError: it could not start; the error says why.
    """
    place = WorkerPlace(home, worker_name())
    if (serving := place.serving) is not None:
        if newer(forge_mcp.__version__, serving.version):
            place.ask_for_handover()
        return
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        if place.alive:
            if place.serving is not None:
                return
        elif process is None:
            process = start(home, _executable(place))
        elif process.poll() is not None:
            record = place.record
            if record is not None and record.pid == process.pid and record.error is not None:
                raise from_dict(record.error)
            if process.returncode != 0:
                raise _did_not_start(home, process.returncode)
            process = None  # another one was faster, and has ended meanwhile
        time.sleep(POLL_SECONDS)
    raise _did_not_start(home, None)


def _executable(place: WorkerPlace) -> str:
    """This Python, or that of a newer version that has asked to take over.

    Between the end of an older worker and its successor's start, a client of the older version
    sees no worker: one of its own version would undo the handover.
    """
    asked = place.handover
    if asked is None or not newer(asked.version, forge_mcp.__version__):
        return sys.executable
    return asked.executable if Path(asked.executable).is_file() else sys.executable


def start(home: Path, executable: str) -> subprocess.Popen[bytes]:
    """Start a worker that outlives this process.

    Raises:
        OutOfSpace, BadInput, ForgeError: its log cannot be written, or it cannot be started.
    """
    log = home / "logs" / LOG
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        jobs_root(home).mkdir(parents=True, exist_ok=True)
        grown = log.is_file() and log.stat().st_size > LOG_BYTES
        with log.open("wb" if grown else "ab") as output:
            return subprocess.Popen(
                [executable, "-m", "forge_mcp.jobs.worker"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env=os.environ | {"FORGE_HOME": str(home)},
            )
    except OSError as error:
        raise from_os_error(error, "start the worker that runs jobs") from error


def _runs(pid: int) -> bool:
    """Whether a process lives; one that ended and that its parent has not asked about does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def newer(one: str, other: str) -> bool:
    """Whether version `one` comes after `other`."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(one) > Version(other)
    except InvalidVersion:
        return False


def _did_not_start(home: Path, code: int | None) -> ForgeError:
    if is_full(home):
        return from_os_error(OSError(28, "no byte is left", str(home)), "start the worker")
    log = home / "logs" / LOG
    last = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    how = "it is not ready after a minute" if code is None else f"it ended with exit code {code}"
    return Unavailable(
        "The worker that runs jobs could not start.",
        cause=f"{how}; it said: {' / '.join(last) or 'nothing'}",
        next_step=f"See {log}; a skill without --detach runs in the foreground, without it.",
    )
