"""Training in a child process: started, listened to, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from forge_mcp import machine
from forge_mcp.errors import Cancelled, TrainingFailed, from_dict
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.child import OUT_OF_MEMORY_ADVICE, REQUEST, STOP, ChildRequest

LOG = "training.log"
POLL_SECONDS = 0.1
# A child that is asked to stop ends after its current step; then it is told more firmly.
CONTROL_SECONDS = 5.0
TERMINATE_SECONDS = 3.0
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
) -> dict[str, Any]:
    """Train in a process of its own and wait for it.

    Args:
        train, valid: chat rows as JSONL.
        base: name or folder, see `bases.resolve_base`.
        run: folder that receives the run's files (see run.py) and the child's log.
        emit: receives the child's events: emit(kind, **payload). May raise to stop.
        cancel: set by somebody else to stop.
        base_name: what the run calls its base; by default what `base` resolves to.
        resume: go on from the newest checkpoint in `run`.

    Returns:
        The fields of `trainer.Trained`.

    Raises:
        Cancelled: `cancel` was set; the child is gone.
        TrainingFailed: the child died; the cause says how.
        ForgeError: whatever the child reported.
    """
    with tempfile.TemporaryDirectory(prefix="forge-train-") as folder:
        control = Path(folder) / STOP
        request = ChildRequest(
            train=train,
            valid=valid,
            base=base,
            base_name=base_name,
            settings=settings,
            run=run,
            control=control,
            parent=os.getpid(),
            resume=resume,
        )
        asked = Path(folder) / REQUEST
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        with (run / LOG).open("ab") as log:
            child = _start(asked, log)
        try:
            return _listen(child, run / LOG, emit, cancel)
        finally:
            # Whatever happened (an error, Ctrl-C, a cancelled event), no child survives this call.
            stop(child, control)


def stop(child: subprocess.Popen[str], control: Path) -> None:
    """End the child: ask by the control file, then SIGTERM, then SIGKILL to its whole group."""
    if child.poll() is None:
        control.touch()
        _wait(child, CONTROL_SECONDS)
    for number, patience in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, None)):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            _wait(child, patience)
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
    child: subprocess.Popen[str], log: Path, emit: Emit, cancel: threading.Event
) -> dict[str, Any]:
    """Pass the child's events on until it ends; returns its result."""
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
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            break
        event = json.loads(line)
        if event["kind"] == "error":
            raise from_dict(event["payload"])
        if event["kind"] == "result":
            result = event["payload"]
        else:
            emit(event["kind"], **event["payload"])
    code = child.wait()
    if result is None or code != 0:
        raise _death(code, log)
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


def _death(code: int, log: Path) -> TrainingFailed:
    """A child that ended without a word, in words."""
    last = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    said = f"; it said: {' / '.join(last)}" if last else ""
    if code < 0:
        name = signal.Signals(-code).name
        killed = -code in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
        return TrainingFailed(
            f"The training process was killed ({name}).",
            cause=("most likely the machine ran out of memory" if killed else "a signal") + said,
            next_step=OUT_OF_MEMORY_ADVICE if killed else "Run it again.",
        )
    return TrainingFailed(
        f"The training process ended unexpectedly (exit code {code}).",
        cause=said.removeprefix("; ") or "it said nothing",
        next_step="Run it again; if it fails again, run 'forge-mcp doctor'.",
    )
