"""The process of a model's server: `python -m forge_mcp.serving.llamacpp_process LOCK`.

It reads its task (`ServerTask`, JSON) from stdin, holds LOCK as long as it lives, loads the model,
and lets llama.cpp's own server answer: no code of ours stands between a face and the model. It ends
when nobody has asked it anything for a while, when its file is replaced, when its record is taken
away, and on SIGTERM, after the answer that is being written.
"""

from __future__ import annotations

import faulthandler
import os
import re
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from forge_mcp.errors import ForgeError
from forge_mcp.locks import FileLock
from forge_mcp.serving.llamacpp_runtime import ERRORS, Load, start_server
from forge_mcp.serving.llamacpp_server import (
    GRACE_SECONDS,
    HOST,
    ServerPlace,
    ServerRecord,
    ServerTask,
)

LOOK_SECONDS = 0.5
# Counters of llama.cpp that move with every request that reads or writes tokens.
_COUNTERS = re.compile(
    r"^llamacpp:(?:prompt_tokens_total|prompt_tokens_cached_total|tokens_predicted_total) (\S+)",
    re.MULTILINE,
)
_BUSY = re.compile(r"^llamacpp:(?:requests_processing|requests_deferred) ([1-9]\S*)", re.MULTILINE)


def main(lock_file: Path) -> int:
    """Serve until there is a reason to end; the exit code."""
    task = ServerTask.model_validate_json(sys.stdin.read())
    faulthandler.enable()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place = ServerPlace(lock_file.parent.parent, lock_file.stem)
    with FileLock(place.lock) as lock:
        if not lock.acquire():
            return 0  # another one was faster
        record = ServerRecord(task=task, pid=os.getpid(), started=_started(), state="loading")
        place.record = record
        try:
            key = secrets.token_urlsafe(32)
            load = Load(
                Path(task.gguf),
                task.num_ctx,
                task.threads,
                host=HOST,
                key=key,
                name=task.model,
                verbosity=ERRORS,
            )
            server = start_server(load)
        except ForgeError as error:
            place.record = record.model_copy(update={"state": "failed", "error": error.as_dict()})
            return 1
        port = int(server.listening_address.rpartition(":")[2])
        ready = record.model_copy(update={"state": "ready", "port": port, "key": key})
        place.record = ready
        try:
            _serve(server, place, ready, stopping)
        finally:
            if place.record == ready:
                place.record_file.unlink()
            _finish(server)
            del server  # stops it
    return 0


def _serve(
    server: Any, place: ServerPlace, record: ServerRecord, stopping: threading.Event
) -> None:
    """Look at the server now and then; return when there is a reason to end."""
    patience = record.task.unload_after
    look = min(LOOK_SECONDS, patience / 4)
    last, counters = time.monotonic(), ""
    while not stopping.wait(look):
        seen = server.handle_metrics()
        now = "".join(_COUNTERS.findall(seen))
        if now != counters or _BUSY.search(seen):
            last, counters = time.monotonic(), now
        unwanted = not record.task.file_is_there or place.record != record
        if unwanted or time.monotonic() - last > patience:
            return


def _finish(server: Any) -> None:
    """Wait for the answer that is being written, not for ever."""
    deadline = time.monotonic() + GRACE_SECONDS
    while _BUSY.search(server.handle_metrics()) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS / 5)


def _started() -> float:
    import psutil

    return float(psutil.Process().create_time())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
