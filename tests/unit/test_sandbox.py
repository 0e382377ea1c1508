"""Generated code is contained: every attack here fails, at every level that this machine has.

As root on Linux that is namespaces, user namespaces (their mechanism; for other users) and
Landlock; what a level has no need of is said where its test differs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from forge_mcp import machine
from forge_mcp.errors import OutOfSpace, Unavailable
from forge_mcp.judging import sandbox
from forge_mcp.judging import sandbox_linux as linux
from forge_mcp.judging.sandbox import Limits, Outcome, protections, run_in_sandbox

LINUX = sys.platform == "linux"
ROOT = os.geteuid() == 0


def _works(level: str) -> bool:
    try:
        return sandbox._run(level, "", Limits(), "").status == "passed"
    except sandbox._Refused:
        return False


KNOWN = ("namespaces", "user_namespaces", "landlock") if LINUX else ("seatbelt",)
LEVELS = [level for level in KNOWN if (ROOT or level != "namespaces") and _works(level)]
# RLIMIT_NPROC does not bind root, which therefore never gets this level outside this file.
COUNTING = [level for level in LEVELS if not (ROOT and level == "user_namespaces")]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every level that works here, as if it were the only one; already found by trying."""
    monkeypatch.setattr(sandbox, "_level", lambda: request.param)
    return str(request.param)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """A word in the command line of every process that the sandbox starts, and of its forks."""
    word = f"sandboxed_{secrets.token_hex(8)}"
    monkeypatch.setattr(sandbox, "LAUNCH", f"{sandbox.LAUNCH} # {word}")
    return word


@pytest.fixture
def victim() -> Iterator[Path]:
    """A folder with a file that every user of this machine may read, change and remove."""
    folder = Path(tempfile.mkdtemp(prefix="victim-"))
    folder.chmod(0o777)
    (folder / "diary.txt").write_text("dear diary")
    (folder / "diary.txt").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


def running(word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word in part for part in process.cmdline()):
                found.append(process)
    return found


def soon(true: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def run(program: str, stdin: str = "", **limits: float) -> Outcome:
    given = replace(Limits(seconds=20), **limits)  # type: ignore[arg-type]
    return run_in_sandbox(textwrap.dedent(program), limits=given, stdin=stdin)


# -- What it is for ----------------------------------------------------------------------------


def test_there_is_a_level_here() -> None:
    assert LEVELS


def test_a_program_runs_and_is_heard(level: str) -> None:
    outcome = run(
        """
        import sys, typing, math, hashlib, random, sqlite3
        print(input(), sys.argv, __name__, sys.modules["__main__"].__dict__ is globals())
        print("π", file=sys.stderr)
        """,
        stdin="grüße\n",
    )
    assert outcome.stdout == "grüße ['program.py'] __main__ True\n"
    assert outcome.stderr == "π\n"
    assert (outcome.status, outcome.exit_code, outcome.error) == ("passed", 0, None)
    assert 0 < outcome.seconds < 20


@pytest.mark.parametrize(
    ("program", "status", "error", "code"),
    [
        ("assert 1 == 2", "failed", "AssertionError", 1),
        ("def (:", "failed", "SyntaxError", 1),
        ("x = '\\ud800'\nexec(x)", "failed", "UnicodeEncodeError", 1),
        ("raise SystemExit(0)", "failed", "SystemExit", 1),
        ("import os; os._exit(0)", "failed", None, 0),
        ("import os; os._exit(3)", "failed", None, 3),
        ("import ctypes; ctypes.string_at(0)", "killed", None, -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", None, -9),
        ("def f(): f()\nf()", "failed", "RecursionError", 1),
        ("import numpy", "failed", "ModuleNotFoundError", 1),
        ("import forge_mcp", "failed", "ModuleNotFoundError", 1),
        ("import sys; sys.stdout.close(); sys.stderr = 1; {}[0]", "failed", "KeyError", 1),
    ],
)  # fmt: skip
def test_how_a_program_ended(
    level: str, program: str, status: str, error: str | None, code: int
) -> None:
    outcome = run(program)
    assert (outcome.status, outcome.error, outcome.exit_code) == (status, error, code)


def test_a_traceback_shows_the_program_alone(level: str) -> None:
    outcome = run("def f():\n    raise KeyError('x')\nf()\n")
    assert outcome.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "program.py", line 3, in <module>',
        '  File "program.py", line 2, in f',
        "KeyError: 'x'",
    ]


def test_an_interpreter_may_lie_in_the_folder_for_temporary_files(
    level: str, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sandbox._library_folders()
    program = f"""
        import tempfile
        print(open("{victim}/diary.txt").read())
        try: open("{victim}/diary.txt", "a")
        except OSError: print("read-only")
        try: print(tempfile.TemporaryFile().write(b"12"))
        except OSError: print("nothing can be written")
        """
    written = "2" if level in sandbox.NAMESPACES else "nothing can be written"
    assert run(program).error in ("FileNotFoundError", "PermissionError")
    monkeypatch.setattr(sandbox, "_library_folders", lambda: [*found, str(victim)])
    assert run(program).stdout.splitlines() == ["dear diary", "read-only", written]


def test_the_order_of_a_set_is_the_same_in_every_run(level: str) -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}))"
    assert len({run(program).stdout for _ in range(3)}) == 1


def test_several_run_at_the_same_time(level: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda n: run(f"print({n} ** 2)").stdout, range(6)))
    assert found == [f"{n * n}\n" for n in range(6)]


def test_nothing_is_left_behind(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = len(list(Path("/dev/fd").iterdir()))
    for _ in range(3):
        run("open('x', 'w').write('1')")
        run("while True: pass", seconds=0.05)
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


def test_a_passed_test_cannot_be_claimed_by_accident(level: str) -> None:
    """What a program writes into every open descriptor is not taken for the launcher's report."""
    outcome = run(
        """
        import contextlib, os
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(descriptor, b"ended \\n" + b"x ended \\n" * 20000)
        os._exit(0)
        """
    )
    assert outcome.status == "failed"


def test_a_fork_that_reaches_the_end_is_not_the_program(level: str) -> None:
    outcome = run(
        """
        import os
        if os.fork():
            os.wait()
            os._exit(0)
        """
    )
    assert outcome.status == "failed"


# -- Contained ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", COUNTING, indirect=True)
def test_fork_bomb(level: str, token: str) -> None:
    outcome = run("import os\nwhile True: os.fork()\n", seconds=3, processes=16)
    assert outcome.status in ("failed", "timeout")
    assert not running(token)


@pytest.mark.parametrize("level", COUNTING, indirect=True)
def test_processes_are_counted(level: str, token: str) -> None:
    outcome = run(
        """
        import os, time
        made = 0
        try:
            while made < 100:
                if not os.fork(): time.sleep(60)
                made += 1
        except OSError: pass
        print(made)
        """,
        processes=10,
    )
    made = int(outcome.stdout)
    assert made == 0 if level not in sandbox.NAMESPACES else 0 < made <= 10
    assert not running(token)


@pytest.mark.parametrize("level", COUNTING, indirect=True)
def test_threads_are_counted(level: str) -> None:
    outcome = run(
        """
        import threading
        stop = threading.Event()
        made = 0
        try:
            while made < 100:
                threading.Thread(target=stop.wait, daemon=True).start()
                made += 1
        except RuntimeError: pass
        print(made)
        """,
        processes=10,
    )
    # Without namespaces or a user of its own, their stacks' memory alone bounds them.
    counted = level in sandbox.NAMESPACES or ROOT
    assert 0 < int(outcome.stdout) <= (10 if counted else 100)


def test_endless_loop(level: str, token: str) -> None:
    outcome = run("while True: pass", seconds=0.3)
    assert (outcome.status, outcome.exit_code) == ("timeout", None)
    assert 0.3 <= outcome.seconds < 5
    assert not running(token)


def test_an_endless_loop_that_takes_no_signal(level: str, token: str) -> None:
    outcome = run(
        """
        import signal
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        print("deaf", flush=True)
        while True: pass
        """,
        seconds=0.5,
    )
    assert (outcome.status, outcome.stdout) == ("timeout", "deaf\n")
    assert not running(token)


def test_a_program_that_closes_everything_is_ended(level: str, token: str) -> None:
    outcome = run("import os, time\nos.closerange(0, 99)\ntime.sleep(60)\n", seconds=0.5)
    assert outcome.status == "timeout"
    assert not running(token)


def test_time_of_the_processor_is_limited_too(level: str) -> None:
    """The launcher's own limit, where Forge itself were stopped."""
    program = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU))"
    assert run(program, seconds=7.2).stdout == "(9, 10)\n"
    ended = run("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)")
    assert (ended.status, ended.exit_code) == ("timeout", -signal.SIGXCPU)


def test_memory_hog(level: str) -> None:
    outcome = run("x = []\nwhile True: x.append(bytearray(1 << 20))\n", memory_bytes=200 << 20)
    assert outcome.status == "memory"
    assert outcome.seconds < 20


if LINUX:  # a Mac looks at memory that is used alone

    def test_memory_that_is_asked_for_and_not_used(level: str) -> None:
        outcome = run("x = bytearray(1 << 30)", memory_bytes=200 << 20)
        assert (outcome.status, outcome.error) == ("memory", "MemoryError")


def test_a_memory_hog_of_many_processes(level: str, token: str) -> None:
    outcome = run(
        """
        import os, time
        for _ in range(5):
            if not os.fork(): break
        x = bytearray(b"x") * (60 << 20)
        time.sleep(60)
        """,
        memory_bytes=200 << 20,
    )
    assert outcome.status == ("memory" if level in sandbox.NAMESPACES else "failed")
    assert not running(token)


if LINUX:  # its system calls

    @pytest.mark.parametrize(
        "call",
        [
            "l.syscall(N['memfd_create'], b'x', 0)",
            "l.shmget(0, 1 << 20, 0o1600)",
            "l.msgget(0, 0o1600)",
            "l.syscall(N['io_uring_setup'], 1, bytes(120))",
            "l.syscall(N['keyctl'], 0, -3, 0)",
            "l.unshare(0x10000000)",
            "l.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        ],
    )
    def test_memory_that_no_limit_counts_and_doors_into_the_kernel(level: str, call: str) -> None:
        column, _ = linux.architecture(os.uname().machine)
        numbers = {name: pair[column] for name, pair in linux.FORBIDDEN.items()}
        outcome = run(
            f"""
            import ctypes
            N = {numbers}
            l = ctypes.CDLL(None, use_errno=True)
            print({call}, ctypes.get_errno())
            """
        )
        assert outcome.stdout == f"-1 {errno.EPERM}\n"


def test_deletion_of_files(level: str, victim: Path) -> None:
    outcome = run(
        f"""
        import os, shutil
        def tried(act):
            try: act()
            except OSError: pass
        for path in ("{victim}/diary.txt", "{victim}"):
            tried(lambda: os.remove(path))
            tried(lambda: os.truncate(path, 0))
            tried(lambda: os.rename(path, path + "x"))
            tried(lambda: os.chmod(path, 0))
            tried(lambda: os.utime(path, (0, 0)))
            tried(lambda: open(path, "w"))
            tried(lambda: open(path + "/new", "w"))
            tried(lambda: os.mkdir(path + "/folder"))
        shutil.rmtree("{victim}", ignore_errors=True)
        """
    )
    assert outcome.status == "passed", outcome.stderr
    assert [path.name for path in victim.iterdir()] == ["diary.txt"]
    assert (victim / "diary.txt").read_text() == "dear diary"
    assert (victim / "diary.txt").stat().st_mode & 0o777 == 0o666
    assert (victim / "diary.txt").stat().st_mtime > 1


def test_the_system_cannot_be_written_to(level: str) -> None:
    library = str(Path(os.__file__).parent)
    outcome = run(
        f"""
        import os
        for folder in ("/", "/usr", "/usr/bin", "/dev", "/var/tmp", "{library}"):
            try: open(os.path.join(folder, "planted"), "w")
            except OSError: continue
            print(folder)
        """
    )
    assert (outcome.status, outcome.stdout) == ("passed", ""), outcome.stderr
    assert not Path("/usr/planted").exists()


def test_symbolic_links_out_of_the_folder(level: str, victim: Path) -> None:
    outcome = run(
        f"""
        import os
        def tried(act):
            try: act()
            except OSError: pass
        tried(lambda: os.symlink("{victim}/diary.txt", "link"))
        tried(lambda: os.symlink("{victim}", "folder"))
        tried(lambda: os.link("{victim}/diary.txt", "hard"))
        tried(lambda: open("link", "w").write("burnt"))
        tried(lambda: open("hard", "w").write("burnt"))
        tried(lambda: open("folder/new", "w").write("planted"))
        tried(lambda: print(open("link").read()))
        tried(lambda: print(open("../diary.txt").read()))
        """
    )
    assert (outcome.status, outcome.stdout) == ("passed", ""), outcome.stderr
    assert [path.name for path in victim.iterdir()] == ["diary.txt"]
    assert (victim / "diary.txt").read_text() == "dear diary"


def test_its_own_folder_has_a_bottom(level: str) -> None:
    outcome = run(
        """
        written = 0
        try:
            for number in range(100):
                with open(f"file{number}", "wb") as file:
                    written += file.write(bytes(1 << 20))
        except OSError as error: print(error.errno)
        print(written >> 20)
        """,
        file_bytes=4 << 20,
    )
    within = f"{errno.ENOSPC}\n4\n" if level in sandbox.NAMESPACES else f"{errno.EACCES}\n0\n"
    assert outcome.stdout == within


def test_reading_the_home_folder(level: str, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(8)
    (victim / ".ssh").mkdir()
    (victim / ".ssh" / secret).write_text(secret)
    monkeypatch.setenv("HOME", str(victim))
    real = Path("~root" if ROOT else "~").expanduser()
    names = {path.name for path in real.iterdir()}
    outcome = run(
        f"""
        import os
        for folder in ("{victim}", "{victim}/.ssh", "{real}", "/home", "/Users", "/etc/shadow"):
            try: print(os.listdir(folder))
            except OSError: pass
        for file in ("{victim}/.ssh/{secret}", "{victim}/diary.txt", "/etc/passwd"):
            try: print(open(file).read())
            except OSError: pass
        """
    )
    assert outcome.status == "passed", outcome.stderr
    assert secret not in outcome.stdout and "diary" not in outcome.stdout
    # Of the true home no more than the way to the interpreter's library is there.
    library = set(Path(sys.base_prefix).parts)
    assert names & set(re.findall(r"'([^']*)'", outcome.stdout)) <= library
    assert "root:" not in outcome.stdout


def test_network_call(level: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o777)
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(folder / "s"))
        (folder / "s").chmod(0o777)
        local.listen()
        listeners = [tcp, local]
        abstract = b"\0forge-" + secrets.token_hex(8).encode()
        if LINUX:
            listeners.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            listeners[-1].bind(abstract)
            listeners[-1].listen()
        program = textwrap.dedent(
            f"""
            import socket
            def tried(kind, how, *address):
                try:
                    s = socket.socket(kind, how)
                    s.settimeout(2)
                    s.connect(*address)
                    s.send(b"secret")
                except OSError: return
                print("reached", address)
            tried(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {tcp.getsockname()[1]}))
            tried(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {udp.getsockname()[1]}))
            tried(socket.AF_UNIX, socket.SOCK_STREAM, "{folder}/s")
            tried(socket.AF_UNIX, socket.SOCK_STREAM, {abstract!r})
            """
        )

        def heard() -> int:
            calls = 0
            for listener in listeners:
                listener.settimeout(0.05)
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    listener.accept()[0].close()
                    calls += 1
            udp.settimeout(0.05)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                calls += udp.recv(9) == b"secret"
            return calls

        outcome = run(program)
        assert (outcome.status, outcome.stdout) == ("passed", ""), outcome.stderr
        assert heard() == 0
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        assert heard() == len(listeners) + 1  # or else this test could not fail


ORPHANS = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        os.setsid()
        os.closerange(0, 64)
        time.sleep(60)
    os._exit(0)
"""


def test_a_process_that_outlives_its_parent(level: str, token: str) -> None:
    outcome = run(ORPHANS + "time.sleep(0.2)\n")
    assert outcome.status == ("passed" if level in sandbox.NAMESPACES else "failed"), outcome.stderr
    assert not running(token)


def test_a_process_that_outlives_the_time(level: str, token: str) -> None:
    orphans = ORPHANS if level in sandbox.NAMESPACES else "import time\n"
    outcome = run(orphans + "time.sleep(60)\n", seconds=0.5)
    assert outcome.status == "timeout"
    assert not running(token)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_gigabyte_of_output(level: str, stream: str, token: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = run(
        f"""
        import sys
        text = "x" * (1 << 20)
        for _ in range(1024): sys.{stream}.write(text)
        """
    )
    assert (outcome.status, outcome.exit_code) == ("output", None)
    assert len(getattr(outcome, stream)) == sandbox.KEPT_BYTES
    unit = 1 << 10 if LINUX else 1
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 100 << 20
    assert not running(token)


def test_much_output_is_cut_and_not_held_against_a_program(level: str) -> None:
    outcome = run("print('π' * 200_000)")
    assert outcome.status == "passed"
    assert outcome.stdout.startswith("πππ") and len(outcome.stdout) == sandbox.KEPT_BYTES / 2


def test_secrets_of_the_environment(
    level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = secrets.token_hex(8)
    monkeypatch.setenv("API_TOKEN", secret)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / secret))
    outcome = run(
        """
        import ctypes, os, sys
        print(dict(os.environ), sys.argv, sys.path)
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        print(getenv(b"API_TOKEN"), getenv(b"HOME"))
        for pid in ("self", os.getppid(), 1):
            for name in ("environ", "cmdline", "maps"):
                try: print(open(f"/proc/{pid}/{name}").read())
                except OSError: pass
        """
    )
    assert outcome.status == "passed", outcome.stderr
    assert secret not in outcome.stdout
    assert outcome.stdout.startswith("{} ['program.py'] ")
    assert outcome.stdout.endswith("\nNone None\n")
    assert str(sandbox.PACKAGE_ROOT) not in outcome.stdout.split("[")[2].split(", ")


def test_other_processes_cannot_be_reached(level: str) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        program = textwrap.dedent(
            f"""
            import ctypes, os, resource, signal
            def tried(act):
                try: act()
                except (OSError, AttributeError): return
                print("reached")
            libc = ctypes.CDLL(None, use_errno=True)
            tried(lambda: os.kill({sleeper.pid}, signal.SIGTERM))
            tried(lambda: os.setpriority(os.PRIO_PROCESS, {sleeper.pid}, 19))
            tried(lambda: resource.prlimit({sleeper.pid}, resource.RLIMIT_NOFILE, (5, 5)))
            tried(lambda: os.sched_setaffinity({sleeper.pid}, [0]))
            tried(lambda: signal.pidfd_send_signal(os.pidfd_open({sleeper.pid}), 15))
            if libc.ptrace(16, {sleeper.pid}, 0, 0) == 0: print("reached")
            """
        )
        outcome = run(program)
        assert (outcome.status, outcome.stdout) == ("passed", ""), outcome.stderr
        assert sleeper.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, sleeper.pid) < 19
        subprocess.run([sys.executable, "-c", program], check=True)
        assert sleeper.wait(10) == -signal.SIGTERM  # or else this test could not fail
    finally:
        sleeper.kill()
        sleeper.wait()


def test_it_dies_with_forge(level: str, token: str, tmp_path: Path) -> None:
    program = ORPHANS if level in sandbox.NAMESPACES else "import time\n"
    forge = textwrap.dedent(
        f"""
        from forge_mcp import machine
        from forge_mcp.judging import sandbox
        machine.sandboxes = lambda: ({level!r},)
        sandbox.LAUNCH += " # {token}"
        limits = sandbox.Limits(seconds=60)
        sandbox.run_in_sandbox({program + "time.sleep(60)"!r}, limits=limits)
        """
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", forge], env=environment)
    try:
        processes = 4 if level in sandbox.NAMESPACES else 1
        # The launcher, pid 1, the program and its orphan; this Forge's command line has the word.
        assert soon(lambda: len(running(token)) >= processes + 1)
        time.sleep(0.3)
        process.kill()
        process.wait()
        assert soon(lambda: not running(token))
    finally:
        process.kill()
        process.wait()


def test_it_dies_with_an_interrupted_wait(level: str, token: str) -> None:
    """Ctrl-C, or an error in Forge itself, leaves nothing behind."""

    def broken(self: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox._Running, "_look_at_memory", broken)
        with pytest.raises(KeyboardInterrupt):
            run("while True: pass")
    assert not running(token)


def test_a_stream_that_somebody_else_holds_open_is_not_waited_for() -> None:
    """Another thread may start a process at the same moment."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    process = subprocess.Popen(["true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process, os.fdopen(ours), os.fdopen(theirs):
        watched = sandbox._Running(process, "landlock", ours, "word", Limits())
        watched.watch()
    assert watched.broken is None and watched.told == {}


# -- What is said, and refused -----------------------------------------------------------------


@pytest.mark.parametrize("name", LEVELS)
def test_the_protections_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "sandboxes", lambda: (name,))
    sandbox._level.cache_clear()
    found = protections()
    sandbox._level.cache_clear()
    assert found.level == name
    assert all(len(text) > 5 for text in found.model_dump().values())
    assert found == sandbox.PROTECTIONS[name]


def test_the_best_level_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox._level.cache_clear()
    wanted = [one for one in machine.sandboxes() if one in LEVELS]
    assert protections().level == wanted[0]
    sandbox._level.cache_clear()


def test_without_any_level_nothing_runs(monkeypatch: pytest.MonkeyPatch, victim: Path) -> None:
    monkeypatch.setattr(machine, "sandboxes", lambda: ())
    sandbox._level.cache_clear()
    with pytest.raises(Unavailable) as error:
        run_in_sandbox(f"open('{victim}/planted', 'w')")
    assert "cannot be run" in error.value.message and error.value.next_step
    assert not (victim / "planted").exists()


if LINUX and ROOT:  # whose capabilities can be taken away

    def test_root_without_its_capabilities_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container that drops them all: no namespaces, no other user to become."""
        command = sandbox._command

        def bare(*arguments: object) -> list[str]:
            return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command(*arguments)]  # type: ignore[arg-type]

        monkeypatch.setattr(sandbox, "_command", bare)
        sandbox._level.cache_clear()
        with pytest.raises(Unavailable) as error:
            protections()
        assert re.search(
            r"namespaces: .*unshare.*; landlock: .*Operation not permitted", error.value.cause
        )
        sandbox._level.cache_clear()


if LINUX and ROOT and "landlock" in LEVELS:

    def test_root_in_a_container_without_namespaces_gets_landlock(
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        command = sandbox._command

        def without_sys_admin(*arguments: object) -> list[str]:
            return ["setpriv", "--bounding-set=-sys_admin", *command(*arguments)]  # type: ignore[arg-type]

        monkeypatch.setattr(sandbox, "_command", without_sys_admin)
        sandbox._level.cache_clear()
        assert protections().level == "landlock"
        assert run("print(1)").stdout == "1\n"
        sandbox._level.cache_clear()


def test_root_with_no_other_user_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """RLIMIT_NPROC would not bind it."""
    maps = tmp_path / "uid_map"
    maps.write_text("         0       1000          1\n")
    monkeypatch.setattr(sandbox, "UID_MAP", maps)
    with pytest.raises(sandbox._Refused, match="no unprivileged user id"):
        sandbox._spare_user()
    monkeypatch.setattr(sandbox, "UID_MAP", tmp_path / "none")
    with pytest.raises(sandbox._Refused, match="No such file"):
        sandbox._spare_user()
    monkeypatch.setattr(sandbox, "UID_MAP", maps)
    maps.write_text("0 100000 65536\n70000 1 1\n")
    assert 32000 < sandbox._spare_user() < 65534
    maps.write_text("0 0 4294967295\n")
    found = {sandbox._spare_user() for _ in range(50)}
    assert len(found) > 40 and min(found) > 0x60000000 and max(found) < 0x7FFFFFFF


def test_a_level_that_stops_working_is_named(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable, match=f"no longer works.*\n.*{level}: .*nowhere") as error:
        run("print(1)")
    assert error.value.next_step


def test_a_launcher_that_fails_is_told_with_its_words(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LAUNCH", "raise ValueError('torn')")
    with pytest.raises(Unavailable, match="ValueError: torn"):
        run("print(1)")


def test_a_launcher_that_hangs_is_given_up(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LAUNCH", "import time; time.sleep(60)")
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.3)
    with pytest.raises(Unavailable, match="nothing was started"):
        run("print(1)")


def test_an_empty_program_that_fails_is_no_level(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Outcome(status="failed", exit_code=1, error="E", stdout="", stderr="torn", seconds=0)
    monkeypatch.setattr(sandbox, "_run", lambda *_: failed)
    monkeypatch.setattr(machine, "sandboxes", lambda: ("landlock",))
    sandbox._level.cache_clear()
    with pytest.raises(Unavailable, match="landlock: an empty program ended with failed torn"):
        protections()


@pytest.mark.parametrize(
    ("platform", "user", "levels"),
    [
        ("darwin", 501, ("seatbelt",)),
        ("linux", 0, ("namespaces", "landlock")),
        ("linux", 1000, ("user_namespaces", "landlock")),
        ("win32", 0, ()),
    ],
)
def test_which_levels_a_system_may_have(
    monkeypatch: pytest.MonkeyPatch, platform: str, user: int, levels: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert machine.sandboxes() == levels


def test_without_room_for_its_folder_nothing_runs(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    with pytest.raises(OutOfSpace, match="run generated code"):
        run("print(1)")


def test_signals_that_forge_ignores_do_not_matter(level: str) -> None:
    forge = textwrap.dedent(
        f"""
        import signal
        from forge_mcp import machine
        from forge_mcp.judging import sandbox
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGCHLD, signal.SIGTERM}})
        machine.sandboxes = lambda: ({level!r},)
        limits = sandbox.Limits(seconds=1)
        for program in ("print(1)", "assert 0", "while True: pass"):
            print(sandbox.run_in_sandbox(program, limits=limits).status)
        if {level in sandbox.NAMESPACES}:  # elsewhere the status is in the exit code itself
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            print(sandbox.run_in_sandbox("assert 0").error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", forge], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split()[:3] == ["passed", "failed", "timeout"]
    assert done.stdout.split()[3:] == ["AssertionError"] * (level in sandbox.NAMESPACES)


def test_an_interpreter_that_is_the_home_folder_is_refused_on_macs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(Path(sys.base_prefix) / "someone"))
    with pytest.raises(sandbox._Refused, match="is installed into"):
        sandbox.seatbelt_profile()


def test_the_profile_for_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it can be read: what is denied, and balanced brackets (sandbox-exec is a Mac's)."""
    monkeypatch.setenv("HOME", "/Users/ada")
    command = sandbox._command("seatbelt", 3, 4)
    profile = sandbox.seatbelt_profile()
    assert command[:3] == ["/usr/bin/sandbox-exec", "-p", profile]
    assert command[3] == sys.executable
    outside_strings = re.sub(r'"[^"]*"', "", profile)
    assert outside_strings.count("(") == outside_strings.count(")")
    for rule in ("network*", "process-fork", "mach-lookup", "file-write*", "signal"):
        assert f"(deny {rule})" in profile
    assert '(deny file-read* (subpath "/Users/ada")' in profile
    assert profile.index("(deny file-read*") < profile.index("(allow file-read*")


# -- The filter of system calls ----------------------------------------------------------------

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026


def decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """What a filter answers: a small machine for the BPF that it is written in."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit, 0, *values)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, register = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:
            (register,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            test = {0x15: register == value, 0x25: register > value, 0x45: register & value}
            at += if_true if test[operation] else if_false


@pytest.mark.parametrize("name", linux.ARCHITECTURES)
def test_the_filter_forbids_what_it_says(name: str) -> None:
    column, audit = linux.ARCHITECTURES[name]
    light, strict = linux.seccomp_program(name), linux.seccomp_program(name, alone=77)
    assert len(strict) // 8 < 4096  # BPF_MAXINSNS
    for numbers in linux.FORBIDDEN.values():
        assert decide(light, audit, numbers[column] or 0) == EPERM
        assert decide(strict, audit, numbers[column] or 0) == EPERM
    for numbers in linux.FORBIDDEN_OUTSIDE.values():
        number = numbers[column]
        if number is not None:
            assert decide(light, audit, number) == ALLOW
            assert decide(strict, audit, number) == EPERM
    for program in (light, strict):
        assert decide(program, 0x40000003, 1) == KILL  # i386
        assert decide(program, audit, linux.NEWEST + 1) == ENOSYS
        assert decide(program, audit, 0x40000000 | 41) == ENOSYS  # x32
        assert decide(program, audit, 0) == ALLOW


@pytest.mark.parametrize("name", linux.ARCHITECTURES)
def test_the_filter_looks_at_arguments(name: str) -> None:
    column, audit = linux.ARCHITECTURES[name]
    strict = linux.seccomp_program(name, alone=77)

    def answer(numbers: linux.Numbers, *arguments: int) -> int:
        assert numbers[column] is not None
        return decide(strict, audit, numbers[column] or 0, *arguments)

    thread, fork = 0x3D0F00, 0x1200011
    assert (answer(linux.CLONE, thread), answer(linux.CLONE, fork)) == (ALLOW, EPERM)
    assert answer(linux.CLONE3, 0) == ENOSYS
    for numbers in linux.OWN_PROCESS.values():
        assert (answer(numbers, 77, 9), answer(numbers, 78, 9)) == (ALLOW, EPERM)
        assert answer(numbers, 0xFFFFFFFF, 9) == EPERM  # -1: everybody
    assert [answer(linux.PRLIMIT, pid) for pid in (0, 77, 1)] == [ALLOW, ALLOW, EPERM]
    for numbers, index, values in linux.FORBIDDEN_VALUES.values():
        for value in values:
            assert answer(numbers, *[5] * index, value) == EPERM
        assert answer(numbers, *[5] * index, 4) == ALLOW


def test_an_architecture_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="riscv64"):
        linux.seccomp_program("riscv64")
