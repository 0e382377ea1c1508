"""The embedded runtime as a server of its own process, which all faces of a workspace share.

    FORGE_HOME/servers/NAME.json       what the server says of itself, with its key: mode 0600
    FORGE_HOME/servers/NAME.lock       held by a living server; the kernel lets it go at its death
    FORGE_HOME/servers/NAME.starting   held by the face that is starting it
    FORGE_HOME/logs/server-NAME.log    llama.cpp's errors

NAME comes from the file and the settings that need another load. A face that finds no living
server starts one; it serves on 127.0.0.1 at a port that the system chooses, answers nobody without
its key, and ends when nobody has asked it anything for `serving.unload_after` seconds. A crash of
llama.cpp ends that process alone: the next question starts another.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, ValidationError

from forge_mcp.errors import ForgeError, Unavailable, from_dict, from_os_error
from forge_mcp.locks import FileLock, is_held
from forge_mcp.machine import available_bytes
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import Check, Deployed, OnText, Reply, Sampling, Say
from forge_mcp.serving.llamacpp_http import (
    SILENT_SECONDS,
    Endpoints,
    ServerGone,
    Streamed,
    chat_request,
    exchange,
    raise_error,
    stream,
)
from forge_mcp.serving.llamacpp_runtime import size_of
from forge_mcp.settings import ServingSettings
from forge_mcp.workspace import Workspace, hash_inputs, package_versions, slug, write_file

HOST = "127.0.0.1"
LOAD_SECONDS = 600.0  # a large file from a slow disk
HEALTH_SECONDS = 10.0
# What a server may still need to finish an answer, and then to end.
GRACE_SECONDS, END_SECONDS = 20.0, 10.0
POLL_SECONDS = 0.02
LOG_BYTES = 1_000_000  # the log begins anew beyond this
LOG_LINES_SHOWN = 5
CRASH = "Fatal Python error"  # the first line of what faulthandler writes

Found = TypeVar("Found")


class ServerTask(Schema):
    """What a server loads. `size` and `changed` (nanoseconds) tell when the file was replaced."""

    model: str
    project: str
    gguf: str
    size: int
    changed: int
    num_ctx: int
    threads: int
    unload_after: float

    @property
    def name(self) -> str:
        """The same for two tasks that one server can do."""
        made_of = {
            "gguf": self.gguf,
            "num_ctx": self.num_ctx,
            "threads": self.threads,
            "runtime": _runtime_version(),
        }
        return f"{slug(self.model)}-{hash_inputs(made_of)[:8]}"

    @property
    def file_is_there(self) -> bool:
        """Whether the file is still the one that was to be loaded."""
        try:
            found = Path(self.gguf).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.changed)


class ServerRecord(Schema):
    """What a server says of itself. `started`: seconds since the epoch, as the system tells it."""

    model_config = ConfigDict(extra="ignore")

    task: ServerTask
    pid: int
    started: float
    state: Literal["loading", "ready", "failed"]
    port: int = 0
    key: str = ""
    error: dict[str, str] | None = None


class ServerPlace:
    """The files of one server."""

    def __init__(self, home: Path, name: str) -> None:
        root = home / "servers"
        self.name = name
        self.lock = root / f"{name}.lock"
        self.starting = root / f"{name}.starting"
        self.record_file = root / f"{name}.json"
        self.log = home / "logs" / f"server-{name}.log"

    @property
    def alive(self) -> bool:
        """Whether the server's process lives (asked of the kernel)."""
        return is_held(self.lock)

    @property
    def record(self) -> ServerRecord | None:
        """What it said last; None where it has ended by itself, or never was."""
        try:
            return ServerRecord.model_validate_json(self.record_file.read_text("utf-8"))
        except (OSError, ValidationError):
            return None

    @record.setter
    def record(self, record: ServerRecord) -> None:
        write_file(self.record_file, record.model_dump_json() + "\n", mode=0o600)

    def last_words(self) -> str:
        """The end of its log; of a crash only what it was, not where."""
        try:
            lines = self.log.read_text("utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        crashes = [at for at, line in enumerate(lines) if line.startswith(CRASH)]
        end = crashes[-1] + 1 if crashes else len(lines)
        shown = lines[max(0, end - LOG_LINES_SHOWN) : end]
        return " / ".join(line.strip() for line in shown) or "nothing"


class ServerChat(Endpoints):
    """A deployed model in its server's process; see `open_server`.

    A server that is gone is started once more within a call, unless some of an answer had come.
    Several threads may call at a time; the server answers one after the other.
    """

    def __init__(self, workspace: Workspace, task: ServerTask, say: Say, check: Check) -> None:
        self._place = ServerPlace(workspace.home, task.name)
        self._home = workspace.home
        self._task = task
        self._say = say
        self._check = check
        self.context = size_of(Path(task.gguf), task.num_ctx).num_ctx
        self._record = self._ensure()

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat. What `on_text` raises ends the answer and is raised here.

        Raises:
            BadInput: the prompt is longer than the context.
            ForgeError: llama.cpp refused otherwise, or its process died twice, or while it wrote.
        """
        request = chat_request(messages, sampling)

        def work(record: ServerRecord) -> Reply:
            streamed = Streamed(on_text)
            chunks = stream(_connect(record), record.key, "/v1/chat/completions", request)
            with contextlib.closing(chunks):
                for chunk in chunks:
                    streamed.take(chunk)
            return streamed.reply()

        return self._asked(work)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request to the server's other endpoints, and its answer.

        Raises:
            BadInput, ForgeError: llama.cpp refused, or its process died twice.
        """
        answer = self._asked(lambda record: exchange(_connect(record), record.key, path, body))
        raise_error(answer)
        return answer

    def close(self) -> None:
        """Nothing: the server belongs to all faces, and ends by itself."""

    def _asked(self, work: Callable[[ServerRecord], Found]) -> Found:
        """The outcome of a request; another server is asked where the first is gone."""
        try:
            return work(self._record)
        except ServerGone as gone:
            if gone.begun:
                raise self._died(gone) from gone
        self._record = self._ensure()
        try:
            return work(self._record)
        except ServerGone as gone:
            raise self._died(gone) from gone

    def _ensure(self) -> ServerRecord:
        return ensure_server(self._home, self._task, self._say, self._check)

    def _died(self, gone: ServerGone) -> ForgeError:
        return ForgeError(
            f"The server of {self._task.model} ended in the middle of an answer.",
            cause=f"{gone}; it said: {self._place.last_words()}",
            next_step=f"Ask again: it is started anew. If that happens again, see {self._place.log}"
            " and run 'forge-mcp doctor'.",
        )


def open_server(
    workspace: Workspace,
    deployed: Deployed,
    settings: ServingSettings,
    *,
    say: Say = lambda message: None,
    check: Check = lambda: None,
) -> ServerChat:
    """The server of a deployed model, started where none is running for its file and settings.

    Args:
        workspace: whose faces share it.
        deployed: the model; its file is loaded.
        settings: `num_ctx`, `threads`, and `unload_after` (of the face that starts it).
        say: is told where it has to wait, or a server had died.
        check: called while waiting; raises to give up.

    Raises:
        NotFound: the file is missing.
        CorruptArtifact: it is damaged, or llama.cpp cannot load it.
        Unavailable: xllamacpp cannot be used, or the process does not start.
        ForgeError: it does not fit into memory.
    """
    size_of(deployed.gguf, settings.num_ctx)  # a missing or damaged file, in words
    found = deployed.gguf.stat()
    task = ServerTask(
        model=deployed.model,
        project=deployed.project,
        gguf=str(deployed.gguf.resolve()),
        size=found.st_size,
        changed=found.st_mtime_ns,
        num_ctx=settings.num_ctx,
        threads=settings.threads,
        unload_after=settings.unload_after,
    )
    return ServerChat(workspace, task, say, check)


def ensure_server(home: Path, task: ServerTask, say: Say, check: Check) -> ServerRecord:
    """The record of a server that is ready for a task.

    Raises:
        NotFound, CorruptArtifact, Unavailable, ForgeError: see `open_server`.
    """
    place = ServerPlace(home, task.name)
    record = _usable(place, task)
    if record is not None:
        return record
    try:
        place.lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"start the server of {task.model}") from error
    with FileLock(place.starting) as lock:
        lock.wait(check, lambda: say(f"Another process is loading {task.model}; waiting for it."))
        record = _usable(place, task)
        if record is not None:
            return record
        left = place.record
        if place.alive:
            if left is not None and left.task.changed == task.changed:
                say(f"The server of {task.model} does not answer and is ended.")
            _end(place)
        elif left is not None and left.state == "ready":
            say(f"The server of {task.model} had died; it is started again.")
        _make_room(home, task, say)
        return _start(place, task, check)


def running_servers(workspace: Workspace) -> list[ServerRecord]:
    """The servers that live, by name."""
    records = [place.record for place in _places(workspace.home) if place.alive]
    return [record for record in records if record is not None]


def stop_server(workspace: Workspace, model: str) -> bool:
    """End a model's servers, after the answer that they are writing; whether there was one."""
    return bool(_stop(workspace.home, lambda task: task.model == model))


def stop_servers(
    workspace: Workspace, *, project: str | None = None, keep: str | None = None
) -> list[str]:
    """End servers, after the answers that they are writing; returns the names of their models.

    Args:
        workspace: whose servers.
        project: of this project alone; of all by default.
        keep: a model whose server stays.
    """
    return _stop(
        workspace.home, lambda task: project in (None, task.project) and task.model != keep
    )


def sweep_servers(workspace: Workspace) -> list[str]:
    """Remove what dead servers have left; returns the names of their models."""
    swept = []
    for place in _places(workspace.home):
        with FileLock(place.starting) as starting, FileLock(place.lock) as lock:
            if not (starting.acquire() and lock.acquire()):
                continue
            record = place.record
            if record is not None:
                swept.append(record.task.model)
            for path in (place.record_file, place.log, place.lock, place.starting):
                path.unlink(missing_ok=True)
    return swept


def dead_servers(workspace: Workspace) -> list[str]:
    """Models whose servers have died and left their records; `sweep_servers` removes them."""
    places = [place for place in _places(workspace.home) if not place.alive]
    return [record.task.model for place in places if (record := place.record) is not None]


@cache
def _runtime_version() -> str:
    """Of xllamacpp: what another one has loaded is not used after an upgrade."""
    return package_versions().get("xllamacpp", "")


def _places(home: Path) -> list[ServerPlace]:
    return [ServerPlace(home, path.stem) for path in sorted((home / "servers").glob("*.lock"))]


def _stop(home: Path, chosen: Callable[[ServerTask], bool]) -> list[str]:
    stopped = []
    for place in _places(home):
        record = place.record
        if record is not None and place.alive and chosen(record.task):
            _end(place)
            stopped.append(record.task.model)
    return stopped


def _end(place: ServerPlace) -> None:
    """Have a server end; after its answer if that does not take long."""
    deadline = time.monotonic() + GRACE_SECONDS + END_SECONDS
    told = False
    while place.alive:
        record = place.record
        if record is not None and not told:
            told = _kill(record, signal.SIGTERM)
        if time.monotonic() > deadline:
            if record is not None:
                _kill(record, signal.SIGKILL)
            deadline += END_SECONDS
        time.sleep(POLL_SECONDS)
    place.record_file.unlink(missing_ok=True)


def _kill(record: ServerRecord, with_signal: signal.Signals) -> bool:
    """Signal a server's process, unless its number has become another one's; whether it was."""
    import psutil

    try:
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started) > 1:
            return False
        process.send_signal(with_signal)
    except psutil.Error:
        return False
    return True


def _usable(place: ServerPlace, task: ServerTask) -> ServerRecord | None:
    """The record of a server that lives, holds the right file, and answers."""
    record = place.record
    if record is None or record.state != "ready" or not place.alive:
        return None
    if (record.task.size, record.task.changed) != (task.size, task.changed):
        return None
    connection = http.client.HTTPConnection(HOST, record.port, timeout=HEALTH_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return record if connection.getresponse().status == 200 else None
        except (OSError, http.client.HTTPException):
            return None


def _make_room(home: Path, task: ServerTask, say: Say) -> None:
    """Where memory is short, end the other servers: they are started again when asked."""
    needed = size_of(Path(task.gguf), task.num_ctx).total_bytes
    if available_bytes() >= needed:
        return
    for model in _stop(home, lambda other: other.name != task.name):
        say(f"The server of {model} was ended to make room for {task.model}.")


def _start(place: ServerPlace, task: ServerTask, check: Check) -> ServerRecord:
    """Start a server's process and wait until it has loaded its model."""
    place.record_file.unlink(missing_ok=True)
    try:
        place.log.parent.mkdir(parents=True, exist_ok=True)
        grown = place.log.is_file() and place.log.stat().st_size > LOG_BYTES
        with place.log.open("wb" if grown else "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "forge_mcp.serving.llamacpp_process", str(place.lock)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=os.environ | {"FORGE_HOME": str(place.lock.parent.parent)},
            )
    except OSError as error:
        raise from_os_error(error, f"start the server of {task.model}") from error
    assert process.stdin is not None  # noqa: S101 -- Popen was given a pipe
    with contextlib.suppress(BrokenPipeError):  # it died at once; its log says why
        process.stdin.write(task.model_dump_json().encode())
        process.stdin.close()
    # It outlives this call, and perhaps this process; where it does not, somebody must reap it.
    threading.Thread(target=process.wait, daemon=True).start()
    deadline = time.monotonic() + LOAD_SECONDS
    try:
        while time.monotonic() < deadline:
            check()
            ended = process.poll() is not None  # asked first: what it said last must be seen
            record = place.record
            if record is not None and record.pid == process.pid:
                if record.state == "ready":
                    return record
                if record.error is not None:
                    place.record_file.unlink(missing_ok=True)
                    raise from_dict(record.error)
            if ended:
                break
            time.sleep(POLL_SECONDS)
    except BaseException:
        process.terminate()
        raise
    how = f"it ended with exit code {process.returncode}" if ended else "it is still not ready"
    process.kill()
    place.record_file.unlink(missing_ok=True)
    raise Unavailable(
        f"The server of {task.model} could not start.",
        cause=f"{how}; it said: {place.last_words()}",
        next_step=f"See {place.log}, and run 'forge-mcp doctor'.",
    )


def _connect(record: ServerRecord) -> Callable[[], http.client.HTTPConnection]:
    return lambda: http.client.HTTPConnection(HOST, record.port, timeout=SILENT_SECONDS)
