"""One holder at a time, whoever dies; a lock goes with its holder and follows a rename."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from forge_mcp.errors import Cancelled
from forge_mcp.locks import FileLock, is_held, wait_for_one

PROCESSES, TURNS = 6, 40

HOLDER = """
    import sys
    from pathlib import Path
    from forge_mcp.locks import FileLock
    assert FileLock(Path(sys.argv[1])).acquire()
    print("held", flush=True)
    sys.stdin.read()
"""
# Between its two lines a worker lets the others run, and after them it gives them a turn.
WORKER = """
    import os, sys, time
    from pathlib import Path
    from forge_mcp import locks
    from forge_mcp.locks import FileLock
    path, log, how, turns = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    locks.POLL_SECONDS = 0.0005
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    me = os.getpid()
    def write(word):
        os.write(out, f"{word} {me}\\n".encode())
    print("ready", flush=True)
    sys.stdin.read()
    for turn in range(turns):
        with FileLock(path, folder=how != "stays") as lock:
            lock.wait(lambda: None)
            write("enter")
            time.sleep(0.0005)
            assert lock.in_place
            write("leave")
            if how == "removed":
                path.rmdir()
            elif how == "renamed":
                path.rename(path.with_name(f"{me}-{turn}"))
        time.sleep(0.001)
"""


def start(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """A process that prints a word when it is there, and goes on when its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() in ("held\n", "ready\n")
    return process


def never() -> None:
    """A check that does not give up."""


def give_up_at(call: int) -> Callable[[], None]:
    calls = iter(range(1, call + 1))

    def check() -> None:
        if next(calls) == call:
            raise Cancelled("stop")

    return check


@pytest.mark.parametrize("folder", [False, True])
def test_one_holder_at_a_time(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "deep" / "lock"
    first, second = FileLock(path, folder=folder), FileLock(path, folder=folder)
    assert not is_held(path)
    assert not path.exists(), "who asks makes nothing"
    assert first.acquire()
    assert first.acquire(), "again is no harm"
    assert path.is_dir() == folder
    assert (first.held, second.acquire(), second.held) == (True, False, False)
    assert is_held(path)
    first.release()
    assert (first.held, is_held(path)) == (False, False)
    with second:
        assert second.acquire()
        assert is_held(path)
    assert not is_held(path)


def test_a_file_where_a_folder_shall_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        FileLock(tmp_path / "file", folder=True).acquire()


def test_who_only_asks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another one that asks, nor one that takes it in that very moment."""
    path = tmp_path / "lock"
    path.touch()
    mine = FileLock(path)
    real = fcntl.flock
    with path.open() as asker:
        real(asker.fileno(), fcntl.LOCK_SH)  # as `is_held` does for a moment

        def flock(descriptor: int, operation: int) -> None:
            if operation == fcntl.LOCK_UN:
                real(asker.fileno(), fcntl.LOCK_UN)  # which is over now
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        assert not is_held(path)
        assert mine.acquire()
    assert is_held(path)


def test_it_goes_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = start(HOLDER, path)
    mine = FileLock(path)
    assert not mine.acquire()
    holder.kill()
    holder.communicate()
    assert not is_held(path)
    assert mine.acquire()


def test_a_program_that_the_holder_started_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = FileLock(path)
    assert mine.acquire()
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        mine.release()
        assert not is_held(path)
    finally:
        child.communicate()


@pytest.mark.parametrize("how", ["stays", "removed", "renamed"])
def test_never_two_holders(tmp_path: Path, how: str) -> None:
    """Also where each holder takes the folder away under those that wait for it."""
    log = tmp_path / "log"
    log.touch()
    workers = [start(WORKER, tmp_path / "lock", log, how, str(TURNS)) for _ in range(PROCESSES)]
    try:
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.close()
        assert [worker.wait(timeout=120) for worker in workers] == [0] * PROCESSES
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()

    rows = [line.split() for line in log.read_text().splitlines()]
    assert [word for word, _ in rows] == ["enter", "leave"] * (PROCESSES * TURNS)
    assert all(rows[at][1] == rows[at + 1][1] for at in range(0, len(rows), 2))
    turns = Counter(who for _, who in rows)
    assert sorted(turns.values()) == [2 * TURNS] * PROCESSES
    # They did compete: it is not one process after the other.
    order = [who for _, who in rows[::2]]
    assert sum(a != b for a, b in pairwise(order)) > 3 * PROCESSES


@pytest.mark.parametrize("taken_away", ["renamed", "removed"])
def test_a_folder_lock_follows_its_folder(tmp_path: Path, taken_away: str) -> None:
    """Who waited gets a new, empty folder under the name; the old one stays its holder's."""
    path, target = tmp_path / "unfinished", tmp_path / "done"
    first, second = FileLock(path, folder=True), FileLock(path, folder=True)
    assert first.acquire()
    (path / "work").write_text("done")
    waiting = threading.Event()
    waiter = threading.Thread(target=second.wait, args=(never, waiting.set))
    waiter.start()
    assert waiting.wait(10)
    if taken_away == "renamed":
        path.rename(target)
        assert is_held(target), "the lock went with the folder"
    else:
        (path / "work").unlink()
        path.rmdir()
    waiter.join(10)
    assert second.in_place
    assert (first.held, first.in_place) == (True, False)
    assert list(path.iterdir()) == []
    second.release()
    assert is_held(target) == (taken_away == "renamed")
    first.release()
    assert not is_held(target)


def test_waiting_is_told_once_and_can_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder, mine = FileLock(path), FileLock(path)
    told: list[str] = []
    assert holder.acquire()
    with pytest.raises(Cancelled):
        mine.wait(give_up_at(3), lambda: told.append("waiting"))
    assert told == ["waiting"]
    assert not mine.held
    holder.release()
    mine.wait(never, lambda: told.append("again"))
    assert mine.held
    assert told == ["waiting"], "who need not wait says nothing"


def test_whichever_of_several_is_free_is_taken(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    holders = [FileLock(path) for path in paths]
    assert wait_for_one(holders, never) is holders[0]
    mine = [FileLock(path) for path in paths]
    assert wait_for_one(mine, never) is mine[1], "the first is somebody else's"
    mine[1].release()
    assert holders[1].acquire()
    with pytest.raises(Cancelled):
        wait_for_one(mine, give_up_at(2))
    assert not any(lock.held for lock in mine)
    holders[0].release()
    assert wait_for_one(mine, never) is mine[0]
