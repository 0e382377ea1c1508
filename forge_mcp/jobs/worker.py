"""The process that runs the jobs of a workspace: `python -m forge_mcp.jobs.worker`.

Any face starts it when needed. It outlives its starter, there is one per workspace (and machine),
and it ends when nothing has been left to do for a while. It supervises; the work itself is done in
processes of its own (stage.py), so that a crash or a full memory there does not take it along.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import forge_mcp
from forge_mcp import machine
from forge_mcp.errors import ForgeError
from forge_mcp.jobs import database
from forge_mcp.jobs.folder import JobFolder
from forge_mcp.jobs.line import Job
from forge_mcp.jobs.supervise import Stopped
from forge_mcp.jobs.workers import WorkerPlace, WorkerRecord, newer, places, start, worker_name
from forge_mcp.locks import FileLock
from forge_mcp.pipeline.faults import in_words
from forge_mcp.schemas.jobs import Control, JobSpec
from forge_mcp.settings import JobsSettings, forge_home, load_settings

TURN_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
PEERS_SECONDS = 5.0
PEER_DEAD_SECONDS = 60.0  # without a new heartbeat, for a peer on another machine
BATTERY_SECONDS = 10.0
BATTERY_MARGIN = 5  # percent above the limit before a job goes on without a plug
DRAIN_SECONDS = 30.0
BY_BATTERY = "battery"
CLEAN_SECONDS = 3600.0


class Worker:
    """DBOS launched for one workspace, and what is looked after beside the jobs."""

    def __init__(
        self,
        home: Path,
        place: WorkerPlace,
        settings: JobsSettings,
        battery: Callable[[], machine.Battery | None] = machine.battery,
    ) -> None:
        self.home = home
        self.place = place
        self.settings = settings
        self.battery = battery
        self.shutting_down = threading.Event()
        self.asked_to_stop = False  # by a signal: then no successor is started either
        self.running: set[str] = set()
        self._waits_for_power = False
        self._idle_since = time.monotonic()
        self._done: dict[str, float] = {}
        self._peers: dict[str, tuple[float, float]] = {}

    # -- life ----------------------------------------------------------------------------------

    def launch(self) -> None:
        """Open the database (made or migrated if need be), recover what was left, take work.

        Raises:
            ForgeError: the database cannot be used.
        """
        from dbos import DBOS, DBOSClient

        logging.getLogger("dbos").setLevel(logging.WARNING)
        url = database.database_url(self.home)
        serializer = database.serializer()
        with database.in_words(self.home):
            DBOS(
                config={
                    "name": database.APPLICATION,
                    "system_database_url": url,
                    "application_version": database.APPLICATION_VERSION,
                    "executor_id": self.place.name,
                    "serializer": serializer,
                    "log_level": "WARNING",
                }
            )

            @DBOS.workflow(name=database.WORKFLOW)
            def workflow(spec: dict[str, Any]) -> dict[str, Any]:
                return self._workflow(spec)

            DBOS.launch()
            for name, count in (
                (database.TURNS_QUEUE, self.settings.concurrent_trainings),
                (database.OTHERS_QUEUE, self.settings.concurrent_others),
            ):
                DBOS.register_queue(
                    name,
                    worker_concurrency=count,
                    global_concurrency=count if name == database.TURNS_QUEUE else None,
                    polling_interval_sec=database.POLLING_SECONDS,
                    on_conflict="always_update",
                )
            self.client = DBOSClient(
                system_database_url=url,
                serializer=serializer,
                application_name=database.APPLICATION,
            )
        self._say("ready")

    def serve(self) -> None:
        """Until nothing is left to do, a newer version takes over, or a signal comes."""
        while not self.shutting_down.is_set():
            time.sleep(TURN_SECONDS)
            try:
                if self._due("heartbeat", HEARTBEAT_SECONDS):
                    self._say("ready")
                if self._due("battery", BATTERY_SECONDS):
                    self.watch_battery()
                if database.on_postgres() and self._due("peers", PEERS_SECONDS):
                    self._recover_peers()
                if self._due("clean", CLEAN_SECONDS):
                    self._forget_old()
                if self._superseded() and not self.running:
                    return
                if self._idle():
                    return
            except Exception as fault:  # database away, disk full: for a moment; the jobs go on
                print(f"worker: {fault}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Stop what still runs, so that its next worker can go on with it."""
        self._say("draining")
        self.shutting_down.set()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.running and time.monotonic() < deadline:
            time.sleep(TURN_SECONDS / 5)

    # -- jobs ----------------------------------------------------------------------------------

    def _workflow(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The one durable workflow: a job, by its specification; returns its outcome."""
        from dbos import DBOS, error

        job_id = DBOS.workflow_id
        assert job_id is not None  # noqa: S101 -- inside a workflow
        folder = JobFolder(self.home, job_id)

        def step(name: str, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            def perform() -> dict[str, Any]:
                try:
                    return call()
                except Stopped as stop:
                    # Not where somebody has resumed it while its process was still ending.
                    if stop.kind in ("pause", "cancel") and folder.control.want != "run":
                        self.client.cancel_workflow(job_id)
                        if stop.kind == "cancel":
                            folder.mark_ended()
                    # DBOS records nothing for a step that ends so: it runs again later.
                    raise error.DBOSWorkflowCancelledError(f"{job_id}: {stop.kind}") from stop

            return DBOS.run_step({"name": name}, perform)

        if self.shutting_down.is_set() or self._superseded():
            raise error.DBOSWorkflowCancelledError(f"{job_id} is left to the next worker")
        self.running.add(job_id)
        try:
            job = Job(
                self.home,
                job_id,
                JobSpec.model_validate(spec),
                step=step,
                shutting_down=self.shutting_down,
                still_mine=lambda: self._still_mine(job_id),
            )
            return job.run().model_dump(mode="json")
        except error.DBOSWorkflowCancelledError:
            raise
        except Exception as fault:
            folder.mark_ended()
            told = in_words(fault, str(spec.get("skill", "job")), self.home)
            return {"state": "failed", "error": told.as_dict()}
        finally:
            self.running.discard(job_id)

    def _still_mine(self, job_id: str) -> bool:
        """False where another worker runs the job: this machine slept, or was cut off."""
        found = self._rows(workflow_ids=[job_id])
        if not found:
            return False
        row = found[0]
        return not (row.status == "PENDING" and row.executor_id != self.place.name)

    def _rows(self, **filters: Any) -> list[Any]:
        return list(self.client.list_workflows(load_input=False, load_output=False, **filters))

    # -- what is looked after beside the jobs --------------------------------------------------

    def watch_battery(self) -> None:
        """Pause running jobs when the battery gets low; go on when there is power again."""
        from forge_mcp.jobs.queue import Jobs

        limit = self.settings.pause_below_battery
        state = self.battery() if limit else None
        if state is not None and not state.plugged and state.percent < limit:
            for job_id in list(self.running):
                folder = JobFolder(self.home, job_id)
                if folder.control.want == "run":
                    folder.control = Control(want="pause", by=BY_BATTERY)
        paused = self._paused_by_battery()
        if state is None or state.plugged or state.percent >= limit + BATTERY_MARGIN:
            for job_id in paused:
                Jobs(self.home, self.client).resume(job_id)
        self._waits_for_power = bool(paused)

    def _paused_by_battery(self) -> list[str]:
        paused = []
        for row in self._rows(status="CANCELLED", name=database.WORKFLOW):
            control = JobFolder(self.home, row.workflow_id).control
            if control.want == "pause" and control.by == BY_BATTERY:
                paused.append(row.workflow_id)
        return paused

    def _recover_peers(self) -> None:
        """Take over the jobs of workers that are gone (PostgreSQL: several machines)."""
        from dbos import DBOS

        for place in places(self.home):
            if place.name != self.place.name and self._gone(place):
                DBOS._recover_pending_workflows([place.name])

    def _gone(self, place: WorkerPlace) -> bool:
        record = place.record
        if place.alive or record is None:
            return False
        if record.host == platform.node():
            return True
        # Another machine's lock may not be seen here, and its clock may differ from ours: what
        # counts is that its heartbeat has not changed while we were watching.
        heartbeat, seen = self._peers.get(place.name, (0.0, 0.0))
        now = time.monotonic()
        if record.heartbeat != heartbeat:
            self._peers[place.name] = (record.heartbeat, now)
            return False
        return now - seen > PEER_DEAD_SECONDS

    def _forget_old(self) -> None:
        from forge_mcp.jobs.queue import Jobs

        Jobs(self.home, self.client).clean(self.settings.keep_days)

    def _superseded(self) -> bool:
        handover = self.place.handover
        return handover is not None and newer(handover.version, forge_mcp.__version__)

    def _idle(self) -> bool:
        """Nothing has been left to do for a while."""
        if self.running or self._waits_for_power or has_work(self.client):
            self._idle_since = time.monotonic()
            return False
        return time.monotonic() - self._idle_since >= self.settings.idle_seconds

    def _due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now - self._done.get(what, float("-inf")) < seconds:
            return False
        self._done[what] = now
        return True

    def _say(self, state: Any, error: ForgeError | None = None) -> None:
        say(self.place, state, error)


def say(place: WorkerPlace, state: Any, error: ForgeError | None = None) -> None:
    """Write down what this worker is doing."""
    place.record = WorkerRecord(
        name=place.name,
        pid=os.getpid(),
        host=platform.node(),
        version=forge_mcp.__version__,
        state=state,
        heartbeat=time.time(),
        error=error.as_dict() if error else None,
    )


def has_work(client: Any) -> bool:
    """Whether any job waits or runs."""
    return bool(
        client.list_workflows(
            status=["ENQUEUED", "PENDING", "DELAYED"],
            name=database.WORKFLOW,
            limit=1,
            load_input=False,
            load_output=False,
        )
    )


def main() -> int:
    """Run the worker of this workspace; returns the exit code."""
    home = forge_home()
    place = WorkerPlace(home, worker_name())
    lock = FileLock(place.lock)
    if not lock.acquire():
        return 0  # there is one already
    try:
        say(place, "starting")
        place.handed_over()
        worker = Worker(home, place, load_settings().jobs)
        worker.launch()
    except Exception as fault:
        error = in_words(fault, "worker", home)
        print(error, file=sys.stderr, flush=True)
        say(place, "failed", error)
        return 1

    def stop(number: int, frame: FrameType | None) -> None:
        worker.asked_to_stop = True
        worker.shutting_down.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    worker.serve()
    handover = place.handover
    worker.end()
    lock.release()
    # Work that came in the last moment would find no worker: its client saw the lock held.
    if not worker.asked_to_stop and has_work(worker.client):
        start(home, handover.executable if handover else sys.executable)
    sys.stdout.flush()
    # DBOS's threads wait for outcomes that other workers will bring; nothing of ours runs any more.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
