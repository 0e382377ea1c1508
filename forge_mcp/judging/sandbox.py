"""Runs programs that nobody has read: no network, no files, few processes, little time and memory.

    run_in_sandbox(program)   → Outcome: how it ended and what it printed
    protections()             → what holds on this machine, and by which mechanism
    sandbox_child.py          the process that shuts itself in and runs the program
    sandbox_linux.py          namespaces, Landlock, seccomp

Four levels; the best one that this machine has is found by trying, and where none is, programs are
refused rather than run with less:

- namespaces (Linux, root): mounts, network and processes of its own, and a user of its own.
- user_namespaces (Linux, not root): the same, as far as they are this user's to make.
- landlock (Linux, where namespaces are forbidden: many containers, AppArmor): Landlock for files,
  seccomp for the network; no other process can be started, no file written.
- seatbelt (macOS): sandbox-exec; no other process can be started, no file written. Not
  yet tried on a Mac; where Python does not start in it, programs are refused.

RLIMIT_NPROC does not bind root, so root always hands a program to a user id that nobody else has.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from forge_mcp import machine
from forge_mcp.errors import Unavailable, from_os_error
from forge_mcp.judging import sandbox_child, sandbox_linux
from forge_mcp.schemas.base import Schema

Level = Literal["namespaces", "user_namespaces", "landlock", "seatbelt"]
# timeout: of the clock or of the processor. memory: MemoryError, or too much in all processes
# together. output: more than was read. killed: by a signal that was not ours. failed: an
# exception (SystemExit too), or an exit before the end of the program.
Status = Literal["passed", "failed", "timeout", "memory", "output", "killed"]

NAMESPACES = ("namespaces", "user_namespaces")
OF_ROOT = ("namespaces", "landlock")  # hand a program to another user
KEPT_BYTES = 1 << 16  # of each of stdout and stderr
WATCH_SECONDS = 0.05  # between two looks at the memory of all processes
START_SECONDS = 60.0  # for the launcher, on a machine that is very busy
END_SECONDS = 10.0  # for a whole PID namespace to end
READ_BYTES = 1 << 16
UID_MAP = Path("/proc/self/uid_map")
PACKAGE_ROOT = Path(__file__).parents[2]
LAUNCH = (
    "import sys; sys.path.append(sys.argv.pop());"
    f"from {sandbox_child.__name__} import main; sys.path.pop(); main()"
)


@dataclass(frozen=True)
class Limits:
    """What a program may take. memory_bytes: each process, and all together. file_bytes: each
    file, and all together. output_bytes: of stdout and stderr together; past it the program is
    ended, and of each only the first `KEPT_BYTES` are kept."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20
    output_bytes: int = 16 << 20
    open_files: int = 64


class Outcome(Schema):
    """How a program ended. passed: it ran to its end. error: the exception that ended it.
    exit_code: negative for a signal, None where the sandbox ended it. seconds: of the program."""

    status: Status
    exit_code: int | None
    error: str | None
    stdout: str
    stderr: str
    seconds: float


class Protections(Schema):
    """What holds for every program on this machine, each with its mechanism."""

    level: Level
    network: str
    processes: str
    memory: str
    cpu: str
    files: str
    home: str
    output: str
    environment: str


OUTPUT = "read up to a limit and no further; the program is ended there, nothing is written to disk"
ENVIRONMENT = "empty; no arguments, no open files but the three streams; a session of its own"
CPU = "time by the clock, and RLIMIT_CPU for each process"
MEMORY = "RLIMIT_AS for each process; all together watched every 50 ms"
NAMESPACE_FILES = (
    "mount namespace: the system's programs and libraries and the interpreter's library read-only, "
    "an empty folder in memory to write to, nothing else"
)
PROTECTIONS: dict[str, Protections] = {
    "namespaces": Protections(
        level="namespaces",
        network="network namespace without an interface",
        processes="RLIMIT_NPROC of an unprivileged user id of its own; a PID namespace, ended as a "
        "whole",
        memory=MEMORY,
        cpu=CPU,
        files=NAMESPACE_FILES,
        home="not there (mount namespace)",
        output=OUTPUT,
        environment=ENVIRONMENT,
    ),
    "user_namespaces": Protections(
        level="user_namespaces",
        network="network namespace without an interface",
        processes="RLIMIT_NPROC in a user namespace of its own, without capabilities; a PID "
        "namespace, ended as a whole",
        memory=MEMORY,
        cpu=CPU,
        files=NAMESPACE_FILES,
        home="not there (mount namespace)",
        output=OUTPUT,
        environment=ENVIRONMENT,
    ),
    "landlock": Protections(
        level="landlock",
        network="seccomp: no socket can be opened",
        processes="seccomp: none can be started, none but itself gets a signal; root "
        "hands it to an unprivileged user id, with RLIMIT_NPROC for its threads",
        memory="RLIMIT_AS of the one process",
        cpu=CPU,
        files="Landlock: only the system's programs and libraries and the interpreter's library "
        "can be read, nothing written or removed; whether a file exists can be seen",
        home="not readable (Landlock)",
        output=OUTPUT,
        environment=ENVIRONMENT,
    ),
    "seatbelt": Protections(
        level="seatbelt",
        network="sandbox-exec: denied",
        processes="sandbox-exec: none can be started",
        memory="watched every 50 ms",
        cpu=CPU,
        files="sandbox-exec: nothing can be written or removed",
        home="sandbox-exec: not readable",
        output=OUTPUT,
        environment=ENVIRONMENT,
    ),
}


class _Refused(Exception):
    """The launcher could not apply a protection; the program was not run."""


def protections() -> Protections:
    """What holds for programs on this machine; found by running one.

    Raises:
        Unavailable: no level works here; each is named with what was missing.
    """
    return PROTECTIONS[_level()]


@cache
def _level() -> str:
    failures = []
    for level in machine.sandboxes():
        try:
            tried = _run(level, "import random, typing", Limits(seconds=30), "")
        except _Refused as refused:
            failures.append(f"{level}: {refused}")
            continue
        if tried.status == "passed":
            return level
        failures.append(f"{level}: an empty program ended with {tried.status} {tried.stderr}")
    raise Unavailable(
        "Generated code cannot be run on this machine.",
        cause="it runs only without network, with limited processes and without the user's "
        f"files, and this could not be had: {'; '.join(failures) or 'unknown system'}",
        next_step="Run as an ordinary user with user namespaces, as root with CAP_SYS_ADMIN, or "
        "on Linux 6.2 or newer with an interpreter that all users may read; or leave out what "
        'runs generated code (judging.humaneval = "").',
    )


def run_in_sandbox(program: str, *, limits: Limits = Limits(), stdin: str = "") -> Outcome:
    """Run a Python program where it can do no harm, and wait for its end.

    Args:
        program: source text; it runs as `__main__` in this interpreter's version, with the
            standard library and no other package.
        limits: what it may take.
        stdin: what it can read from its standard input.

    Raises:
        Unavailable: this machine has no level of protection; nothing was run.
        OutOfSpace, ForgeError: there is no room for its temporary folder.
    """
    level = _level()
    try:
        return _run(level, program, limits, stdin)
    except OSError as error:
        raise from_os_error(error, "run generated code") from error
    except _Refused as refused:
        raise Unavailable(
            "The sandbox for generated code no longer works on this machine.",
            cause=f"{level}: {refused}",
            next_step="Run it again; if it fails again, leave out what runs generated code "
            '(judging.humaneval = "").',
        ) from refused


def _run(level: str, program: str, limits: Limits, stdin: str) -> Outcome:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="forge-sandbox-"))
        Path(folder).chmod(0o755)  # the program stands in it, perhaps as another user
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(stdin.encode("utf-8", "replace"))
        given.seek(0)
        word = secrets.token_hex(8)
        request = {
            "level": level,
            "program": program,
            "word": word,
            "parent": os.getpid(),
            "uid": _spare_user() if level in OF_ROOT and os.geteuid() == 0 else None,
            "root": folder,
            "readable": [*sandbox_linux.SYSTEM_PATHS, *_library_folders()],
            "cpu_seconds": math.ceil(limits.seconds) + 1,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "file_bytes": limits.file_bytes,
            "open_files": limits.open_files,
        }
        request_read, request_write = os.pipe()
        report_read, report_write = os.pipe()
        stack.callback(os.close, report_read)
        try:
            process = subprocess.Popen(
                _command(level, request_read, report_write),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(request_read, report_write),
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},  # the same order of sets whenever it is run
                start_new_session=True,
            )
        except OSError as error:
            os.close(request_write)
            raise _Refused(str(error)) from error
        finally:
            os.close(request_read)
            os.close(report_write)
        stack.enter_context(process)
        running = _Running(process, level, report_read, word, limits)
        stack.callback(running.end)
        with contextlib.suppress(BrokenPipeError), os.fdopen(request_write, "wb") as file:
            marshal.dump(request, file)
        running.watch()
        return running.outcome()


def _command(level: str, request: int, report: int) -> list[str]:
    """The launcher: no site-packages, no user's folder or script's folder on its path."""
    python = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", LAUNCH]
    arguments = [str(request), str(report), str(PACKAGE_ROOT)]
    if level == "seatbelt":
        python = ["/usr/bin/sandbox-exec", "-p", seatbelt_profile(), *python]
    return [*python, *arguments]


def seatbelt_profile() -> str:
    """macOS: the profile for sandbox-exec. The last rule that matches counts.

    Mach services are denied because launchd would start programs outside the sandbox.

    Raises:
        _Refused: the interpreter is installed into the home folder itself.
    """
    home = Path.home().resolve()
    readable = {
        Path(path).resolve()
        for path in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, PACKAGE_ROOT / "forge_mcp")
    }
    if any(path in (home, *home.parents) for path in readable):
        raise _Refused(f"the interpreter is installed into {home} itself")
    allowed = "".join(f"(subpath {json.dumps(str(path))})" for path in sorted(readable))
    return (
        "(version 1)(allow default)(deny network*)(deny mach-lookup)(deny process-fork)"
        "(deny signal)(allow signal (target self))"
        '(deny file-write*)(allow file-write* (literal "/dev/null"))'
        f'(deny file-read* (subpath {json.dumps(str(home))}) (subpath "/Users"))'
        f"(allow file-read* {allowed})(allow file-read-metadata)"
    )


def _library_folders() -> list[str]:
    """Where the interpreter's standard library, and what that links to, lies outside the system's
    own folders."""
    folders = {
        str(Path(prefix, name))
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        for name in ("lib", sys.platlibdir)
    }
    return sorted(folder for folder in folders if not folder.startswith("/usr/"))


def _spare_user() -> int:
    """A user id that nobody else has, so that limits and signals of one program are its own.

    Raises:
        _Refused: this root has no other user to hand a program to.
    """
    try:
        lines = UID_MAP.read_text("ascii").splitlines()
    except OSError as error:
        raise _Refused(str(error)) from error
    extents = [[int(number) for number in line.split()] for line in lines]
    first, _, count = max(extents, key=lambda extent: extent[2])
    highest = min(first + count - 1, 0x7FFFFFFF) - 2  # past 65534, which is nobody
    spare = min(count // 2, 1 << 28)
    if spare < 1 << 10:
        raise _Refused("root here has no unprivileged user id to give to a program")
    return highest - secrets.randbelow(spare)


class _Running:
    """A launcher that has been started, until nothing of it is left."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        level: str,
        report: int,
        word: str,
        limits: Limits,
    ) -> None:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101 - PIPE
        self.process = process
        self.level = level
        self.word = word
        self.limits = limits
        self.report = report
        self.stdout, self.stderr = process.stdout.fileno(), process.stderr.fileno()
        self.kept = {self.stdout: bytearray(), self.stderr: bytearray()}
        self.line = b""  # of the report, not yet whole
        self.read = 0
        self.told: dict[str, str] = {}
        self.started: float | None = None
        self.ended = 0.0
        self.broken: Status | None = None

    def watch(self) -> None:
        """Read and look until the program has ended or breaks a limit; then nothing of it runs."""
        with selectors.DefaultSelector() as selector:
            for descriptor in (self.report, *self.kept):
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ)
            late = time.monotonic() + START_SECONDS
            look = 0.0
            while self.broken is None and self.process.poll() is None:
                now = time.monotonic()
                if now >= late:
                    self.broken = "timeout"
                    break
                if self.started and now >= look:
                    look = now + WATCH_SECONDS
                    self._look_at_memory()
                wake = min(late, look) if self.started else late
                for key, _ in selector.select(max(0.0, wake - now)):
                    if self._take(key.fd) == 0:
                        selector.unregister(key.fd)
                        self._expect_end()
                if self.started is None and "started" in self.told:
                    self.started = time.monotonic()
                    late = self.started + self.limits.seconds
                    look = self.started + WATCH_SECONDS
        self.ended = time.monotonic()
        self.end()
        for descriptor in (self.report, *self.kept):  # nobody is left to write more
            while self._take(descriptor):
                pass

    def _take(self, descriptor: int) -> int | None:
        """Read once. Returns the number of bytes: 0 at the end, None where there are none now, or
        where it has been enough."""
        try:
            data = os.read(descriptor, READ_BYTES)
        except BlockingIOError:
            return None
        self.read += len(data)
        if self.read > self.limits.output_bytes:
            self.broken = self.broken or "output"
            return None
        if descriptor == self.report:
            self._hear(data)
        else:
            kept = self.kept[descriptor]
            kept += data[: KEPT_BYTES - len(kept)]
        return len(data)

    def _hear(self, data: bytes) -> None:
        """The launcher's lines; what the program itself may write there lacks the word."""
        *lines, rest = (self.line + data).split(b"\n")
        self.line = rest[-KEPT_BYTES:]
        for line in lines:
            word, key, value = (*line.decode("utf-8", "replace").split(" ", 2), "", "")[:3]
            if word == self.word:
                self.told[key] = value

    def _expect_end(self) -> None:
        """A closed stream mostly means that the process is about to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(WATCH_SECONDS)

    def _look_at_memory(self) -> None:
        """Memory of all processes together; what they share counts for each."""
        import psutil

        used = 0
        with contextlib.suppress(psutil.Error):
            launcher = psutil.Process(self.process.pid)
            for process in (launcher, *launcher.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used += process.memory_info().rss
        if used > self.limits.memory_bytes:
            self.broken = "memory"

    def end(self) -> None:
        """Kill all that still runs; returns when it is gone."""
        if self.level in NAMESPACES:
            # The launcher ends the PID namespace first. Killed, it would leave that to the kernel,
            # which does not say when it is done.
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
        self.process.kill()
        self.process.wait()

    def outcome(self) -> Outcome:
        """How it ended.

        Raises:
            _Refused: a protection could not be had, and nothing was run.
        """
        printed = [
            bytes(self.kept[stream]).decode("utf-8", "replace")
            for stream in (self.stdout, self.stderr)
        ]
        if self.started is None and "started" not in self.told:
            raise _Refused(self.told.get("refused") or printed[1].strip() or "nothing was started")
        code: int | None = self.process.returncode
        if self.level in NAMESPACES:  # the launcher's own says nothing
            code = int(self.told["exit_code"]) if "exit_code" in self.told else None
        return Outcome(
            status=self._status(code),
            exit_code=None if self.broken else code,
            error=self.told.get("ended") or None,
            stdout=printed[0],
            stderr=printed[1],
            seconds=round(self.ended - (self.started or self.ended), 4),
        )

    def _status(self, code: int | None) -> Status:
        if self.broken:
            return self.broken
        if code == -signal.SIGXCPU:
            return "timeout"
        if code is None or code < 0:
            return "killed"
        if self.told.get("ended") == "MemoryError":
            return "memory"
        if code == 0 and self.told.get("ended") == "":
            return "passed"
        return "failed"
