"""The launcher: a trusted process that shuts itself in, step by step, and then runs the program.

The program runs in the launcher's own interpreter, so an interpreter that lies in a home folder,
where the program's user may not go, need not be started again. Started by sandbox.py as
`python -c "… main()"` without site-packages and environment; only the standard library is here.
A step that fails ends it before the program is read: nothing runs with a protection missing.

    namespaces, user_namespaces     Forge ── launcher ── init (pid 1) ── program ── its children
    landlock, seatbelt              Forge ── launcher = program, which can have no children

The launcher dies with Forge, init with the launcher, and with init the kernel ends all that is in
its PID namespace, whatever session or group it is in.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import signal
import sys

from forge_mcp.judging import sandbox_linux as linux

TYPE_CHECKING = False  # the module typing takes longer to import than the rest of the launcher
if TYPE_CHECKING:
    from typing import Any, NoReturn

WATCH_SECONDS = 0.1  # how often a launcher without the kernel's help looks for its parent


class Report:
    """What Forge is told, a line each: a word that the program is not told, a key, a value.

    The word keeps a program from being taken for a passed one by accident; one that looks for it
    in its own interpreter's frames can find it, and so can cheat, but not get out.
    """

    def __init__(self, descriptor: int, word: str) -> None:
        self.descriptor = descriptor
        self.word = word

    def tell(self, key: str, value: str = "") -> None:
        """One line; short enough to be written at once."""
        line = f"\n{self.word} {key} {' '.join(value.split())}\n"
        os.write(self.descriptor, line.encode("utf-8", "replace"))


def main() -> NoReturn:
    """Read the request from the descriptor in argv, shut this process in, run the program."""
    with open(int(sys.argv[1]), "rb") as file:  # noqa: PTH123 - a descriptor
        request = marshal.load(file)  # noqa: S302 - Forge itself wrote it
    report = Report(int(sys.argv[2]), request["word"])
    for number in (signal.SIGCHLD, signal.SIGTERM):  # whatever Forge does with them
        signal.signal(number, signal.SIG_DFL)
    try:
        enter(request, report)
    except OSError as error:
        report.tell("refused", str(error))
        os._exit(1)
    run(request["program"], report)


def enter(request: dict[str, Any], report: Report) -> None:
    """Apply the protections of request["level"]; returns in the process that runs the program.

    Raises:
        OSError: one of them is not to be had.
    """
    level = request["level"]
    if level == "seatbelt":  # sandbox-exec has applied the profile already
        _watch_parent(request["parent"])
        _limit(request, processes=None, address_space=False)
        return
    linux.leave_keyring()
    linux.first_to_be_killed()
    if level == "landlock":
        # Threads of a user that has others are bounded by their stacks' memory alone.
        _limit(request, processes=None if request["uid"] is None else request["processes"])
        if request["uid"] is not None:
            linux.become(request["uid"], request["uid"])
        linux.give_up_privileges(keep=linux.reading_rights())
        linux.die_with_parent()  # after the change of user, which undoes it
        _check_parent(request["parent"])
        linux.landlock(request["readable"])
        linux.seccomp(os.uname().machine, alone=os.getpid())
        return
    linux.die_with_parent()
    _check_parent(request["parent"])
    linux.own_namespaces(user=level == "user_namespaces")
    uid = os.getuid() if request["uid"] is None else request["uid"]
    gid = os.getgid() if request["uid"] is None else request["uid"]
    _become_init(report)
    linux.new_root(request["root"], request["readable"], uid, gid, request["file_bytes"])
    _fork_program(report)
    _limit(request, processes=request["processes"])
    if request["uid"] is not None:
        linux.become(uid, gid)
    linux.give_up_privileges()
    linux.seccomp(os.uname().machine)


def _check_parent(parent: int) -> None:
    """Forge may have died before this process asked to die with it."""
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    """End this process when its parent is gone, where the kernel does not do so."""
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _become_init(report: Report) -> None:
    """Fork the first process of the PID namespace and return in it; the launcher waits for it.

    SIGTERM to the launcher ends everything: it kills pid 1, and ends itself only when that is
    gone, and so all that was in the namespace.
    """
    awaited = {signal.SIGTERM, signal.SIGCHLD}
    ours, lifeline = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    init = os.fork()
    if init == 0:
        os.close(lifeline)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        linux.die_with_parent()
        os.set_blocking(ours, False)
        try:
            os.read(ours, 1)
        except BlockingIOError:
            os.close(ours)
            return
        os._exit(1)  # closed: the launcher died before
    os.close(ours)
    os.close(report.descriptor)
    if signal.sigwait(awaited) == signal.SIGTERM:
        os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    os._exit(0)


def _fork_program(report: Report) -> None:
    """Fork the process that will run the program and return in it; pid 1 waits for it, and ends
    everything else by ending itself."""
    program = os.fork()
    if program == 0:
        return
    linux.refuse_debuggers()
    while True:
        ended, status = os.wait()  # orphans of the program too
        if ended == program:
            report.tell("exit_code", str(os.waitstatus_to_exitcode(status)))
            os._exit(0)


def _limit(request: dict[str, Any], processes: int | None, address_space: bool = True) -> None:
    cpu = request["cpu_seconds"]
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, then SIGKILL
        resource.RLIMIT_FSIZE: (request["file_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (request["open_files"],) * 2,
        resource.RLIMIT_CORE: (0, 0),
    }
    if address_space:
        limits[resource.RLIMIT_AS] = (request["memory_bytes"],) * 2
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = (processes,) * 2
    for kind, (soft, hard) in limits.items():
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:  # nobody may raise what Forge itself was given
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def run(program: str, report: Report) -> NoReturn:
    """Run a program as `__main__` and tell how it ended: "ended", the exception's name or nothing.

    Every other end (os._exit, a signal) tells nothing. Threads that still run are not waited for.
    """
    me, process_id, leave = os.getpid(), os.getpid, os._exit
    os.closerange(3, report.descriptor)
    os.closerange(report.descriptor + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.environ.clear()
    sys.argv = ["program.py"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "forge_mcp"]:
        del sys.modules[name]
    module = type(sys)("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    ended = ""
    report.tell("started")
    try:
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException as error:
        ended = type(error).__name__
        _show(error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112 - closed or replaced by the program
            continue
    if process_id() == me:  # not a child that the program has forked
        report.tell("ended", ended)
    leave(1 if ended else 0)


def _show(error: BaseException) -> None:
    """Print what ended a program, as Python does; in its own frames only."""
    inside = error.__traceback__ and error.__traceback__.tb_next
    try:
        sys.__excepthook__(type(error), error.with_traceback(inside), inside)
    except BaseException:  # no memory, no stderr: the name of the error has to do
        return
