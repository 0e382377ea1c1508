"""Training in a child process: started, listened to, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from forge_mcp import machine
from forge_mcp.errors import Cancelled, TrainingFailed, from_dict
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.child import LOG, OUT_OF_MEMORY_ADVICE, REQUEST, STOP, ChildRequest

SCRATCH = ".train-"  # start of the name of a folder for the request and the control file
POLL_SECONDS = 0.1
# A child that is asked to stop writes a checkpoint after its current step; it gets the time that
# its steps have been taking, between these bounds, and is then told more firmly.
CONTROL_SECONDS = 5.0
LONGEST_CONTROL_SECONDS = 120.0
STEPS_OF_PATIENCE = 3
TERMINATE_SECONDS = 3.0
# A child tells every two seconds that it lives, and of every step. One that does neither hangs:
# drivers of GPUs are known to.
SILENT_SECONDS = 120.0
STALLED_SECONDS = 900.0
STEPS_OF_STALL = 20
GAP_SECONDS = 10.0  # in which this process itself did not run; nobody else is to blame for it
LOG_LINES_SHOWN = 5

Emit = Callable[..., None]


def train_in_child(
    *,
    train: Path,
    valid: Path,
    base: str,
    settings: TrainingSettings,
    run: Path,
    emit: Emit,
    cancel: threading.Event,
    base_name: str | None = None,
    resume: bool = False,
    slots: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train in a process of its own and wait for it.

    Args:
        train, valid: chat rows as JSONL.
        base: name or folder, see `bases.resolve_base`.
        run: folder that receives the run's files (see run.py) and the child's log.
        emit: receives the child's events: emit(kind, **payload). May raise to stop.
        cancel: set by somebody else to stop.
        base_name: what the run calls its base; by default what `base` resolves to.
        resume: go on from the newest checkpoint in `run`, if there is one.
        slots: locks of which the child takes one before it loads anything.

    Returns:
        The fields of `trainer.Trained`.

    Raises:
        Cancelled: `cancel` was set; the child is gone.
        TrainingFailed: the child died; the cause says how.
        ForgeError: whatever the child reported.
    """
    return _in_child(
        emit,
        cancel,
        train=train,
        valid=valid,
        base=base,
        base_name=base_name,
        settings=settings,
        run=run,
        resume=resume,
        slots=list(slots),
    )


def dry_run_in_child(
    *,
    train: Path,
    valid: Path,
    base: str,
    settings: TrainingSettings,
    emit: Emit,
    cancel: threading.Event,
    base_name: str | None = None,
    slots: Sequence[Path] = (),
) -> dict[str, Any]:
    """Make one step of a training in a process of its own; nothing of it is kept.

    Arguments and errors as `train_in_child`.

    Returns:
        The fields of `dry_run.DryRun`.
    """
    with tempfile.TemporaryDirectory(prefix="forge-dry-run-") as run:
        return _in_child(
            emit,
            cancel,
            train=train,
            valid=valid,
            base=base,
            base_name=base_name,
            settings=settings,
            run=Path(run),
            dry_run=True,
            slots=list(slots),
        )


def _in_child(emit: Emit, cancel: threading.Event, *, run: Path, **asked: Any) -> dict[str, Any]:
    """Have a child do what a `ChildRequest` of these fields asks for; its result."""
    for left in run.glob(f"{SCRATCH}*"):  # of a child that was killed together with its parent
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=run) as folder:
        control = Path(folder) / STOP
        request = ChildRequest(run=run, control=control, parent=os.getpid(), **asked)
        written = Path(folder) / REQUEST
        written.write_text(request.model_dump_json(), encoding="utf-8")
        with (run / LOG).open("ab") as log:
            earlier = log.tell()  # what former attempts at this run have printed
            child = _start(written, log)
        pace = Pace()
        try:
            result = _listen(child, emit, cancel, pace)
            if result is None or child.returncode != 0:
                raise describe_death("training process", child.returncode, run / LOG, earlier)
            return result
        finally:
            # Whatever happened (an error, Ctrl-C, a cancelled event), no child survives this call.
            stop(child, control, pace.patience)


class Pace:
    """Whether the child lives and how long its steps take, from what it tells and when."""

    def __init__(self) -> None:
        self._sign = self._turn = time.monotonic()
        self._last: float | None = None
        self._longest = 0.0

    def sign(self) -> None:
        """The child has told something."""
        self._sign = time.monotonic()

    def step(self) -> None:
        """A step has ended now."""
        now = time.monotonic()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now

    def check(self) -> None:
        """Call it in every turn of a loop.

        Raises:
            TrainingFailed: the child hangs.
        """
        now = time.monotonic()
        if now - self._turn > GAP_SECONDS:
            self._sign = now
            self._last = None if self._last is None else now
        self._turn = now
        if now - self._sign > SILENT_SECONDS:
            raise _hung(f"gave no sign of life for {now - self._sign:.0f} s")
        allowed = max(STALLED_SECONDS, STEPS_OF_STALL * self._longest)
        if self._last is not None and now - self._last > allowed:
            raise _hung(f"has made no step for {(now - self._last) / 60:.0f} min")

    @property
    def patience(self) -> float:
        """Seconds to wait for a child that was asked to stop."""
        asked = STEPS_OF_PATIENCE * self._longest
        return min(max(asked, CONTROL_SECONDS), LONGEST_CONTROL_SECONDS)


def _hung(what: str) -> TrainingFailed:
    return TrainingFailed(
        f"The training process {what} and was ended.",
        cause="it hangs, e.g. in the driver of a GPU, or the machine had no time for it",
        next_step="Run it again: it goes on from its last checkpoint.",
    )


def stop(child: subprocess.Popen[str], control: Path, patience: float = CONTROL_SECONDS) -> None:
    """End the child: ask by the control file, then SIGTERM, then SIGKILL to its whole group."""
    if child.poll() is None:
        with contextlib.suppress(OSError):  # on a full disk it cannot be asked, only told
            control.touch()
            _wait(child, patience)
    for number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, None)):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            _wait(child, seconds)
    if child.stdout:
        child.stdout.close()


def _start(request: Path, log: IO[bytes]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "forge_mcp.training.child", str(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # its own group: Ctrl-C reaches it only through `stop`
        env={
            **os.environ,
            **machine.CHILD_ENVIRONMENT,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )


def _listen(
    child: subprocess.Popen[str], emit: Emit, cancel: threading.Event, pace: Pace
) -> dict[str, Any] | None:
    """Pass the child's events on until it ends; returns its result, if it told one."""
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    result: dict[str, Any] | None = None
    while True:
        if cancel.is_set():
            raise Cancelled(
                "Training was cancelled.",
                cause="a client, a user or a signal asked for it",
                next_step="Nothing was changed; run it again when you like.",
            )
        pace.check()
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            break
        pace.sign()
        if not line.endswith("\n"):  # a kill cuts the last line short
            continue
        event = json.loads(line)
        if event["kind"] == "error":
            raise from_dict(event["payload"])
        if event["kind"] == "result":
            result = event["payload"]
        else:
            if event["kind"] == "heartbeat":
                continue
            if event["kind"] == "metric":
                pace.step()
            emit(event["kind"], **event["payload"])
    child.wait()
    return result


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None  # noqa: S101 -- Popen was given a pipe
    with contextlib.suppress(ValueError, OSError):  # closed by `stop`
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _wait(child: subprocess.Popen[str], seconds: float | None) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


def describe_death(what: str, code: int, log: Path, start: int = 0) -> TrainingFailed:
    """A child that ended without a word, in words; it printed `log` from byte `start` on."""
    printed = log.read_bytes()[start:].decode("utf-8", errors="replace")
    last = printed.splitlines()[-LOG_LINES_SHOWN:]
    said = f"; it said: {' / '.join(last)}" if last else ""
    if code < 0:
        name = signal.Signals(-code).name
        killed = -code in (signal.SIGKILL, signal.SIGABRT, signal.SIGBUS)
        return TrainingFailed(
            f"The {what} was killed ({name}).",
            cause=("most likely the machine ran out of memory" if killed else "a signal") + said,
            next_step=OUT_OF_MEMORY_ADVICE if killed else "Run it again.",
        )
    return TrainingFailed(
        f"The {what} ended unexpectedly (exit code {code}).",
        cause=said.removeprefix("; ") or "it said nothing",
        next_step="Run it again; if it fails again, run 'forge-mcp doctor'.",
    )
