"""What was mined from a repository the last time, so that only changed files are mined again.

One SQLite file a repository. A row is trusted if the file's size, times and inode are those at
which it was read (and the read was not so close to a change that a clock could not tell), or if
its content has the same hash. Everything here can be computed again: a database that is damaged
or of another version is thrown away, a row whose checksum is wrong is mined again, and a cache
that another process holds is done without.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic_core import from_json, to_json

from forge_mcp.locks import FileLock
from forge_mcp.mining.blocks import Symbol
from forge_mcp.mining.dependencies import FileTable
from forge_mcp.mining.languages.base import Import

VERSION = 2  # of this schema; the miner's own version is part of every row's key
# Rows are found by number, without an index: in an index damage would go unseen.
SCHEMA = """
CREATE TABLE files (
    id INTEGER PRIMARY KEY, path TEXT, stamp TEXT, key TEXT, sha256 TEXT, language TEXT,
    skipped TEXT, digest TEXT, counts BLOB, consulted BLOB, checksum TEXT, names BLOB, blocks BLOB,
    rejected BLOB
);
"""
COLUMNS = re.findall(r"(\w+) (?:INTEGER|TEXT|BLOB)", SCHEMA)
# A file that was changed less than this before it was read may be changed again within the same
# tick of the file system's clock: its stamp says nothing.
RACY_NANOSECONDS = 2_000_000_000


# What opening a damaged file raises; SQLite's message may quote bytes that are no text.
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)


class DamagedRow(Exception):
    """A row's content is not what was written."""


@dataclass(frozen=True, slots=True)
class Known:
    """A file as it was mined before.

    `stamp` is '' where times say nothing; `digest` stands for the names that others see of the
    file; `counts` and `consulted` are JSON.
    """

    stamp: str
    key: str
    sha256: str
    language: str
    skipped: str
    digest: str
    counts: bytes
    consulted: bytes = b"[]"


@dataclass(frozen=True, slots=True)
class Names:
    """A file's symbols and whether they are not trained on, in the order of its blocks; its
    imports, the names that its top level assigns, and Python's `__all__`.
    """

    symbols: list[Symbol]
    imports: list[Import]
    rejected: list[bool]
    rebound: list[str]
    public: list[str] | None

    def table(self, path: str) -> FileTable:
        """What other files see of it."""
        return FileTable.of(path, self.symbols, self.imports, self.rebound, self.public)

    def to_json(self) -> bytes:
        """As the cache and the spool keep them: far smaller than the objects."""
        return to_json([self.symbols, self.imports, self.rejected, self.rebound, self.public])

    @classmethod
    def from_json(cls, data: bytes) -> Names:
        """Inverse of `to_json`."""
        symbols, imports, rejected, rebound, public = from_json(data)
        return cls(
            [Symbol._make([*row[:-1], [Import(*one) for one in row[-1]]]) for row in symbols],
            [Import(*row) for row in imports],
            rejected,
            rebound,
            public,
        )

    def digest(self) -> str:
        """Equal where other files see the same names."""
        seen = [symbol[:6] for symbol in self.symbols if symbol.kind != "module"]
        data = to_json([seen, self.imports, self.rebound, self.public])
        return hashlib.sha256(data).hexdigest()


def stamp_of(status: os.stat_result) -> str:
    """Size, times and inode."""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def fresh_stamp(status: os.stat_result, now: int) -> str:
    """The stamp of a file that is read at `now` (nanoseconds); '' where its times may lie later."""
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    return stamp_of(status) if now - changed >= RACY_NANOSECONDS else ""


class MiningCache:
    """The cache of one repository; nothing is kept before `commit`."""

    def __init__(self, database: sqlite3.Connection, lock: FileLock) -> None:
        self._database = database
        self._lock = lock
        self._ids: dict[str, int] = {}  # of the rows, by path

    @classmethod
    def open(cls, folder: Path, root: Path) -> MiningCache | None:
        """The cache of the repository at `root`; None where another process is using it."""
        own = folder / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
        own.mkdir(parents=True, exist_ok=True)
        lock = FileLock(own, folder=True)
        if not lock.acquire():
            return None
        path = own / "mining.db"
        try:
            database = _connect(path)
        except UNREADABLE:
            for damaged in own.iterdir():
                damaged.unlink()
            database = _connect(path)
        return cls(database, lock)

    def files(self) -> dict[str, Known]:
        """All files of the last run, by path; damaged rows are removed."""
        rows = self._database.execute(
            "SELECT id, checksum, path, stamp, key, sha256, language, skipped, digest, counts, "
            "consulted FROM files"
        )
        known: dict[str, Known] = {}
        damaged: list[tuple[int]] = []
        for number, checksum, *row in rows:
            if isinstance(checksum, str) and checksum.partition(" ")[0] == _checksum(row):
                known[row[0]] = Known(*row[1:])
                self._ids[row[0]] = number
            else:
                damaged.append((number,))
        self._database.executemany("DELETE FROM files WHERE id = ?", damaged)
        return known

    def names(self, path: str) -> bytes:
        """What a file defines, uses and imports, as `Names.to_json` wrote it.

        Raises:
            DamagedRow: it is not what was written.
        """
        (data,) = self._blobs(path, "names")
        return data

    def lines(self, path: str) -> tuple[bytes, bytes]:
        """A file's lines of blocks.jsonl and of rejected.jsonl.

        Raises:
            DamagedRow: they are not what was written.
        """
        blocks, rejected = self._blobs(path, "blocks, rejected")
        return blocks, rejected

    def _blobs(self, path: str, columns: str) -> tuple[bytes, ...]:
        row = self._database.execute(
            f"SELECT checksum, {columns} FROM files WHERE id = ?",  # noqa: S608 - own words
            (self._ids[path],),
        ).fetchone()
        at = 1 if columns == "names" else 2
        if row is None or str(row[0]).split(" ")[at : at + 1] != [_checksum(row[1:])]:
            raise DamagedRow(path)
        return tuple(row[1:])

    def put(self, path: str, known: Known, names: bytes, lines: tuple[bytes, bytes]) -> None:
        """Keep a file that was mined or resolved anew; `names` as `Names.to_json` writes them."""
        row = (path, *(getattr(known, field) for field in Known.__slots__))
        checksum = " ".join(map(_checksum, (row, (names,), lines)))
        done = self._database.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._ids.get(path), *row, checksum, names, *lines),
        )
        self._ids[path] = cast(int, done.lastrowid)

    def touch(self, path: str, known: Known) -> None:
        """The same content was found under another stamp."""
        number = self._ids[path]
        (old,) = self._database.execute(
            "SELECT checksum FROM files WHERE id = ?", (number,)
        ).fetchone()
        row = (path, *(getattr(known, field) for field in Known.__slots__))
        checksum = " ".join([_checksum(row), *old.split(" ")[1:]])
        self._database.execute(
            "UPDATE files SET stamp = ?, checksum = ? WHERE id = ?",
            (known.stamp, checksum, number),
        )

    def remove(self, paths: Iterable[str]) -> None:
        """Forget files."""
        self._database.executemany(
            "DELETE FROM files WHERE id = ?", [(self._ids.pop(path),) for path in paths]
        )

    def commit(self) -> None:
        """Keep everything since `open`."""
        self._database.commit()

    def close(self) -> None:
        """Let another process use it; what was not committed is forgotten."""
        self._database.rollback()
        self._database.close()
        self._lock.release()


def consulting(files: Mapping[str, Known], keys: set[str]) -> set[str]:
    """Files whose names were resolved with a look at one of some files or packages."""
    if not keys:
        return set()
    return {
        path for path, known in files.items() if not keys.isdisjoint(from_json(known.consulted))
    }


def _checksum(values: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    # Damaged text is read too: its row's checksum tells.
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"{SCHEMA} PRAGMA user_version = {VERSION};")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version} of the cache")
        damage: Any = database.execute("PRAGMA quick_check(1)").fetchone()
        if damage != ("ok",):
            raise sqlite3.DatabaseError(str(damage))
        columns = [row[1] for row in database.execute("PRAGMA table_info(files)")]
        if columns != COLUMNS:
            raise sqlite3.DatabaseError(f"columns {columns}")
        database.execute("BEGIN IMMEDIATE")  # fails where its head says that it is only to be read
        database.rollback()
    except UNREADABLE:
        database.close()
        raise
    return database
