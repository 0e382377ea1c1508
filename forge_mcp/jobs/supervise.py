"""One stage of a job in a process of its own: started, listened to, watched, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import psutil

from forge_mcp import machine
from forge_mcp.errors import Cancelled, ForgeError, TrainingFailed, from_dict
from forge_mcp.jobs.folder import JobFolder
from forge_mcp.jobs.stage import StageTask
from forge_mcp.schemas.events import Event
from forge_mcp.settings import JobsSettings
from forge_mcp.training.supervise import LONGEST_CONTROL_SECONDS, TERMINATE_SECONDS, describe_death

POLL_SECONDS = 0.2
WATCH_SECONDS = 2.0
OWNER_SECONDS = 5.0
TERM_SECONDS = 10.0  # from SIGTERM to SIGKILL
SLEPT_SECONDS = 30.0  # of wall clock beyond the monotonic one: the machine was asleep

# pause, cancel: the user wants it. shutdown: the worker ends. lost: another worker has the job.
StopKind = Literal["pause", "cancel", "shutdown", "lost"]


class Stopped(Exception):
    """The stage was stopped on purpose; its process is gone."""

    def __init__(self, kind: StopKind) -> None:
        super().__init__(kind)
        self.kind = kind


class Stage:
    """A stage that runs in its process.

    Args:
        task: what it does.
        folder: of the job.
        sink: receives its events.
        settings: limits.
        shutting_down: set when the worker ends.
        still_mine: asked now and then; False where another worker has the job.
    """

    def __init__(
        self,
        task: StageTask,
        folder: JobFolder,
        sink: Callable[[Event], None],
        settings: JobsSettings,
        shutting_down: threading.Event,
        still_mine: Callable[[], bool] = lambda: True,
    ) -> None:
        self.task = task
        self.folder = folder
        self.sink = sink
        self.settings = settings
        self.shutting_down = shutting_down
        self.still_mine = still_mine

    def run(self) -> dict[str, Any]:
        """Perform it to its end; returns the skill's result.

        Raises:
            Stopped: somebody wanted it.
            ForgeError: the stage failed, its process died, hung, or took too much memory.
        """
        if kind := self._wanted():
            raise Stopped(kind)
        with self.folder.log.open("ab") as log:
            earlier = log.tell()
            child = self._start(log)
        with contextlib.ExitStack() as stack:
            stack.callback(self._end, child)
            if self.settings.keep_awake and self._loads_model():
                # Said once in a line, at its longest stage.
                say = self._say if self._trains() else lambda message: None
                stack.enter_context(machine.keep_awake(child.pid, say))
            return self._listen(child, earlier)

    def _start(self, log: Any) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "forge_mcp.jobs.stage"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=os.environ | machine.CHILD_ENVIRONMENT,
        )
        assert child.stdin is not None  # noqa: S101 -- Popen was given a pipe
        with contextlib.suppress(BrokenPipeError):  # it died at once; `_listen` says how
            child.stdin.write(self.task.model_dump_json())
            child.stdin.close()
        return child

    def _listen(self, child: subprocess.Popen[str], earlier: int) -> dict[str, Any]:
        """`earlier`: bytes that the job's log held before."""
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        clock = Clock(self._say)
        asked: StopKind | None = None
        outcome: dict[str, Any] | ForgeError | None = None
        while True:
            line = _next(lines)
            clock.tick(bool(line))
            if line is None:
                break
            if line.endswith("\n"):  # a kill cuts the last line short
                row = json.loads(line)
                if row["kind"] == "result":
                    outcome = row["payload"]
                elif row["kind"] == "error":
                    outcome = from_dict(row["payload"])
                elif row["kind"] != "heartbeat":
                    self.sink(Event.model_validate(row))
            if not clock.due("look", POLL_SECONDS):  # many lines may come in a row
                continue
            if asked is None and (asked := self._wanted()):
                self._ask(child, asked)
                clock.asked()
            self._escalate(child, clock, asked)
            if asked is None and clock.due("watch", WATCH_SECONDS):
                self._check_limits(child, clock)
            if asked is None and clock.due("owner", OWNER_SECONDS) and not self.still_mine():
                asked = "lost"
                self._ask(child, asked)
                clock.asked()
        code = child.wait()
        if isinstance(outcome, dict):  # finished, perhaps in spite of a stop that came too late
            return outcome
        if asked is not None:
            raise Stopped(asked)
        if isinstance(outcome, Cancelled) and (late := self._wanted()):
            raise Stopped(late)
        what = f"process of '{self.task.stage}'"
        raise outcome or describe_death(what, code, self.folder.log, earlier)

    def _wanted(self) -> StopKind | None:
        if self.shutting_down.is_set():
            return "shutdown"
        want = self.folder.control.want
        return None if want == "run" else want

    def _ask(self, child: subprocess.Popen[str], kind: StopKind) -> None:
        """pause and cancel stand in the control file, which the process reads itself."""
        if kind in ("shutdown", "lost"):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    def _escalate(self, child: subprocess.Popen[str], clock: Clock, asked: StopKind | None) -> None:
        """What was asked nicely is told, then forced. A training may need its last step first."""
        if asked is None:
            return
        patience = LONGEST_CONTROL_SECONDS + TERMINATE_SECONDS if self._trains() else TERM_SECONDS
        if asked in ("shutdown", "lost"):
            patience = TERM_SECONDS
        if clock.since_asked() > patience + TERM_SECONDS:
            _kill(child)
        elif clock.since_asked() > patience and clock.due("terminate", TERM_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)

    def _check_limits(self, child: subprocess.Popen[str], clock: Clock) -> None:
        """Raises:
        TrainingFailed, ForgeError: the process hangs, or takes too much memory.
        """
        if clock.silent() > self.settings.silent_seconds:
            raise ForgeError(
                f"The process of '{self.task.stage}' gave no sign of life for "
                f"{clock.silent():.0f} s and was ended.",
                cause="it hung, or the machine had no time for it",
                next_step=f"Run 'forge-mcp jobs retry {self.task.job_id}'; finished stages are "
                "kept, and a training goes on from its checkpoint.",
            )
        used = memory_of(child.pid)
        limit = self.settings.max_memory_share * machine.memory_bytes()
        if used > limit:
            raise TrainingFailed(
                f"'{self.task.stage}' was ended: it used {used / 2**30:.1f} GiB, more than "
                f"{self.settings.max_memory_share:.0%} of this machine's memory.",
                cause="the setting jobs.max_memory_share, so that the machine stays usable",
                next_step="Train with a smaller batch_size, rank or max_seq_length, on a smaller "
                "base, or raise the setting.",
            )

    def _end(self, child: subprocess.Popen[str]) -> None:
        """Whatever happened, no process of the stage survives."""
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(TERM_SECONDS)
        if child.poll() is None:
            _kill(child)
            child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _loads_model(self) -> bool:
        from forge_mcp.pipeline.skill import skills

        return skills()[self.task.stage].loads_model

    def _trains(self) -> bool:
        return self.task.stage == "train"

    def _say(self, message: str, warning: bool = False) -> None:
        level = "warning" if warning else "info"
        payload = {"level": level, "message": message}
        self.sink(Event(time=time.time(), stage=self.task.stage, kind="log", payload=payload))


class Clock:
    """Times that a sleeping machine or a jumping clock cannot make long.

    All spans are of the monotonic clock, which stands still while the machine sleeps. A span in
    which this process itself did not run (stopped, or starved) does not count as silence either.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        now = time.monotonic()
        self._say = say
        self._sign = self._tick = now
        self._wall = time.time()
        self._asked: float | None = None
        self._done: dict[str, float] = {}

    def tick(self, sign: bool) -> None:
        """Call it in every turn of the loop; `sign`: the process gave a sign of life."""
        now, wall = time.monotonic(), time.time()
        slept = (wall - self._wall) - (now - self._tick)
        if slept > SLEPT_SECONDS:
            self._say(f"The machine slept for {slept / 60:.0f} min; the job goes on.")
        if sign or now - self._tick > SLEPT_SECONDS or slept > SLEPT_SECONDS:
            self._sign = now
        self._tick, self._wall = now, wall

    def silent(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._sign

    def asked(self) -> None:
        """The process was asked to stop now."""
        self._asked = time.monotonic()

    def since_asked(self) -> float:
        """Seconds since it was asked to stop."""
        return 0.0 if self._asked is None else time.monotonic() - self._asked

    def due(self, what: str, seconds: float) -> bool:
        """Whether `what` was last due so long ago; then it is done now."""
        now = time.monotonic()
        if now - self._done.get(what, float("-inf")) < seconds:
            return False
        self._done[what] = now
        return True


def memory_of(pid: int) -> int:
    """Resident memory of a process and all that it has started, in bytes."""
    total = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def _next(lines: queue.Queue[str | None]) -> str | None:
    """The next line, '' where none came for a moment, None at the end."""
    try:
        return lines.get(timeout=POLL_SECONDS)
    except queue.Empty:
        return ""


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None  # noqa: S101 -- Popen was given a pipe
    with contextlib.suppress(ValueError, OSError):
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _kill(child: subprocess.Popen[str]) -> None:
    """SIGKILL to the process and all below it, also what has a session of its own."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(child.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
