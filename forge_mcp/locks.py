"""Locks between processes that the kernel lets go when their holder dies, however it dies.

`flock` on a file or a folder: kill -9, a crash or a power cut leaves no stale lock behind. The
file itself stays; whether somebody holds it is asked of the kernel, never of the file's content.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

POLL_SECONDS = 0.2


class FileLock:
    """An exclusive lock on a path, held by this object until `release` (or the process's end)."""

    def __init__(self, path: Path, *, folder: bool = False) -> None:
        """`folder`: what is missing is made as a folder, not as an empty file."""
        self.path = path
        self._folder = folder
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None

    @property
    def in_place(self) -> bool:
        """Whether it is held, and what was locked still stands under the path."""
        return self._descriptor is not None and self._still_there(self._descriptor)

    def acquire(self) -> bool:
        """Take it without waiting; False where somebody else holds it."""
        if self.held:
            return True
        descriptor = self._open()
        if not _lock_alone(descriptor):
            os.close(descriptor)
            return False
        if not self._still_there(descriptor):  # renamed or removed between opening and locking
            os.close(descriptor)
            return self.acquire()
        self._descriptor = descriptor
        return True

    def wait(self, check: Callable[[], None], waiting: Callable[[], None] = lambda: None) -> None:
        """Take it, however long that needs.

        Args:
            check: called again and again; raises to give up.
            waiting: called once, where it has to wait.
        """
        wait_for_one([self], check, waiting)

    def release(self) -> None:
        """Let it go."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        """Holds what `acquire` or `wait` took; takes nothing itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it go."""
        self.release()

    def _open(self) -> int:
        if self._folder or self.path.is_dir():
            # Its holder may rename or remove it between any two of these calls.
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(parents=True)
            try:
                return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return self._open()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def _still_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def wait_for_one(
    locks: Sequence[FileLock],
    check: Callable[[], None],
    waiting: Callable[[], None] = lambda: None,
) -> FileLock:
    """Take whichever of several locks is free first; see `FileLock.wait`."""
    told = False
    while True:
        check()
        for lock in locks:
            if lock.acquire():
                return lock
        if not told:
            told = True
            waiting()
        time.sleep(POLL_SECONDS)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock on a path right now; nothing is made there."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    """Lock it unless somebody holds it; who only asks (`is_held`) shares it and does not count."""
    while not _lock(descriptor, fcntl.LOCK_EX):
        if not _lock(descriptor, fcntl.LOCK_SH):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
