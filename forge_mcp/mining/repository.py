"""All files of a repository: listed, mined in parallel or taken from the cache, resolved.

The lines of a corpus come out in order of paths and positions, byte for byte the same whatever
the number of processes and whether the cache was warm: what is mined from a file depends on that
file and the settings alone, and its dependencies are resolved afterwards, in one place.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import posixpath
import re
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import cast

from pydantic_core import from_json, to_json

from forge_mcp.errors import ForgeError
from forge_mcp.machine import cores, without_collection
from forge_mcp.mining.blocks import MinedBlock, make_blocks
from forge_mcp.mining.cache import (
    DamagedRow,
    Known,
    MiningCache,
    Names,
    consulting,
    fresh_stamp,
    stamp_of,
)
from forge_mcp.mining.definitions import FileDefinitions, find_definitions
from forge_mcp.mining.dependencies import FileTable, Resolver
from forge_mcp.mining.files import SourceFile, header_language, list_files, resolve_root
from forge_mcp.mining.git import changed_since
from forge_mcp.mining.languages import FIRST_TIER, language
from forge_mcp.mining.licenses import Licenses, license_of_file
from forge_mcp.mining.modules import Modules, package_of
from forge_mcp.mining.secrets import find_secrets
from forge_mcp.mining.text import decode, text_skip_reason
from forge_mcp.settings import MiningSettings, Settings, load_settings

# Change it with anything that changes what is mined from the same files.
MINING_VERSION = 6
PARALLEL_FROM_FILES = 200
CHUNK_FILES = 25
AHEAD = 4  # chunks a process, waiting or done

NO_NAMES = Names([], [], [], [], None).to_json()

Progress = Callable[[int, int, str], None]


@dataclass
class Counts:
    """What was counted over all files, or those that changed."""

    files: int = 0
    blocks: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    secrets: int = 0
    undocumented: int = 0  # blocks that fall only for want of a docstring
    broken_files: int = 0  # files with a syntax error, of which the rest was mined


@dataclass(frozen=True)
class FileResult:
    """What one file gave, or why it was skipped. It crosses a process border.

    `names` are JSON, and so are `rows`, without `dependencies` and the closing brace. `unchanged`:
    the content is that of the cache, and nothing else is given.
    """

    path: str
    known: Known
    names: bytes = NO_NAMES
    rows: tuple[bytes, ...] = ()
    unchanged: bool = False


@dataclass(frozen=True)
class _Task:
    """A file to read; `old` where the cache has it, mined with the same key."""

    file: SourceFile
    license: str | None
    key: str
    old: Known | None


@dataclass(frozen=True)
class _Job:
    """What every file of a repository is mined with."""

    root: Path
    mining: MiningSettings
    allow_licenses: list[str]


class Mining:
    """A repository whose files are mined; `lines` resolves their names and gives the corpus.

    A context manager: the cache is open until it ends.
    """

    def __init__(self, job: _Job, cache: MiningCache | None, go_modules: dict[str, str]) -> None:
        self.root = job.root
        self.counts = Counts()
        self.hashes: dict[str, str] = {}
        self.cache = cache
        self._known: dict[str, Known] = {}
        # With the place of its names and rows in the spool: the start, and where each ends.
        self._new: dict[str, tuple[Known, int, int, int]] = {}
        self._last: tuple[str, Names] | None = None  # names that were looked at
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._skipped: Counter[str] = Counter()
        self.only: set[str] | None = None  # the files whose lines are asked for; None: all
        self._job = job
        self._tasks: dict[str, _Task] = {}
        self._go_modules = go_modules
        self.licenses: dict[str, str | None] = {}  # that hold for a folder

    def __enter__(self) -> Mining:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spool.close()
        if self.cache is not None:
            self.cache.close()

    def lines(self) -> Iterator[tuple[bytes, bytes]]:
        """For each file in order: its lines of blocks.jsonl and of rejected.jsonl.

        Afterwards `counts` is complete, and the cache holds what was mined.
        """
        with without_collection():
            yield from self._lines()

    def _lines(self) -> Iterator[tuple[bytes, bytes]]:
        languages = {path: known.language for path, known in self._current() if not known.skipped}
        modules = Modules(languages, self._go_modules)
        resolver = Resolver(modules, self._table, FIRST_TIER)
        stale = self._stale(languages)
        counts = self.counts = Counts(skipped=Counter(self._skipped))
        for path, known in sorted(self._current(), key=lambda item: item[0]):
            wanted = self.only is None or path in self.only
            if known.skipped:
                counts.skipped.update([known.skipped] if wanted else [])
                lines = (b"", b"")
                if self.cache is not None and path in self._new:
                    self.cache.put(path, known, NO_NAMES, lines)
            elif path in stale:
                lines = self._resolve(resolver, path)
            elif wanted:
                lines = self._cached_lines(resolver, path)
            if wanted and not known.skipped:
                _count(counts, known)
                yield lines
        if self.cache is not None:
            self.cache.commit()

    def _current(self) -> Iterator[tuple[str, Known]]:
        for path, (known, _, _, _) in self._new.items():
            yield path, known
        for path, known in self._known.items():
            if path not in self._new:
                yield path, known

    @property
    def _cached(self) -> MiningCache:
        """Only with a cache is there a file that was not read."""
        return cast(MiningCache, self.cache)

    def _table(self, path: str) -> FileTable:
        return self._names(path).table(path)

    def _names(self, path: str) -> Names:
        if self._last is None or self._last[0] != path:
            self._last = path, Names.from_json(self._names_json(path))
        return self._last[1]

    def _names_json(self, path: str) -> bytes:
        if path not in self._new:
            try:
                return self._cached.names(path)
            except DamagedRow:
                self._mine_again(path)
        _, start, end, _ = self._new[path]
        return self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        self._spool.seek(start)
        return self._spool.read(end - start)

    def _cached_lines(self, resolver: Resolver, path: str) -> tuple[bytes, bytes]:
        try:
            return self._cached.lines(path)
        except DamagedRow:
            self._mine_again(path)
            return self._resolve(resolver, path)

    def _mine_again(self, path: str) -> None:
        """A row of the cache is damaged: the file itself says what stood there."""
        task = self._tasks[path]
        self.add(mine_file(self._job, replace(task, old=None)))

    def _stale(self, languages: dict[str, str]) -> set[str]:
        """Files whose names must be resolved: new ones, and those that looked at changed ones."""
        if self.cache is None:
            return set(languages)
        before = self.cache.files()
        if {path for path, known in before.items() if not known.skipped} != set(languages):
            self.cache.remove(before.keys() - {path for path, _ in self._current()})
            return set(languages)  # a name may now mean a file that was not there
        changed = set()
        for path, (known, _, _, _) in self._new.items():
            if path in languages and before[path].digest != known.digest:
                changed |= {path, f"{package_of(path)}/"}
        return (consulting(before, changed) | self._new.keys()) & languages.keys()

    def _resolve(self, resolver: Resolver, path: str) -> tuple[bytes, bytes]:
        names = self._names(path)
        rows = self._rows(path, names)
        used = resolver.resolve_file(path, names.symbols)
        blocks: list[bytes] = []
        others: list[bytes] = []
        for row, rejected, found in zip(rows, names.rejected, used, strict=True):
            line = b'%b,"dependencies":%b}\n' % (row, to_json(found))
            (others if rejected else blocks).append(line)
        lines = b"".join(blocks), b"".join(others)
        if self.cache is not None:
            known = self._new[path][0] if path in self._new else self._known[path]
            looked_at = to_json(sorted(resolver.consulted))
            self.cache.put(path, replace(known, consulted=looked_at), self._names_json(path), lines)
        return lines

    def _rows(self, path: str, names: Names) -> list[bytes]:
        """Rows without their dependencies, in the order of the file."""
        if path in self._new:
            _, _, start, end = self._new[path]
            return self._read(start, end).split(b"\n") if end > start else []
        try:
            cached = self._cached.lines(path)
        except DamagedRow:
            self._mine_again(path)
            return self._rows(path, names)
        blocks, others = (iter(lines.splitlines()) for lines in cached)
        rows = [next(others if rejected else blocks) for rejected in names.rejected]
        return [row[: row.rindex(b',"dependencies":[')] for row in rows]

    def keep(self, known: Known, task: _Task) -> None:
        """Take a file as the cache has it."""
        path = task.file.path
        self.hashes[path] = known.sha256
        self._known[path] = known
        self._tasks[path] = task

    def expect(self, task: _Task) -> None:
        """A file that will be read."""
        self._tasks[task.file.path] = task

    def add(self, result: FileResult) -> None:
        """Take a file that was read, and mined unless it is as the cache has it."""
        path, known = result.path, result.known
        self.hashes[path] = known.sha256
        if result.unchanged and self.cache is not None:
            self.cache.touch(path, known)
            self._known[path] = known
            return
        data = b"\n".join(result.rows)
        start = self._spool.seek(0, os.SEEK_END)  # rows may have been read meanwhile
        end = start + len(result.names)
        self._new[path] = (known, start, end, end + len(data))
        self._spool.write(result.names + data)

    def skip(self, reasons: Counter[str]) -> None:
        """Count files that were not read."""
        self._skipped.update(reasons)

    def restrict(self, paths: set[str]) -> None:
        """Give only the lines of some files."""
        self.only = paths


def _count(counts: Counts, known: Known) -> None:
    found = from_json(known.counts)
    counts.files += 1
    counts.blocks += found["blocks"]
    if found["blocks"]:
        counts.languages[known.language] += found["blocks"]
    counts.reasons.update(found["reasons"])
    counts.secrets += found["secrets"]
    counts.undocumented += found["undocumented"]
    counts.broken_files += found["broken"]


def mine_repository(
    repo_path: str | Path,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    since: str | None = None,
) -> Mining:
    """Read and mine what the cache does not know; see `parse_repository` in miner.py.

    The result is a context manager; `hashes` is known at once, the rest after `lines`.
    """
    root = resolve_root(repo_path)
    settings = settings or load_settings(root)
    mining, project = settings.mining, settings.project
    listing = list_files(root, project.include, project.exclude, mining.max_file_bytes)
    for name in sorted({file.language for file in listing.files}):
        _ = language(name).grammar  # a missing one is reported before any work
    changed = changed_since(root, since) if since is not None else None
    job = _Job(root, mining, project.allow_licenses)
    go_modules = _go_modules(root, listing.files)
    found = Mining(job, MiningCache.open(cache, root) if cache is not None else None, go_modules)
    try:
        found.skip(listing.skipped)
        if changed is not None:
            found.restrict(changed)
        todo = _tasks(job, listing.files, found, go_modules)
        with without_collection():
            for done, result in enumerate(_mine_all(job, todo), 1):
                found.add(result)
                if progress is not None:
                    progress(done, len(todo), result.path)
    except BaseException:
        found.__exit__(None, None, None)
        raise
    return found


def _tasks(
    job: _Job, files: list[SourceFile], found: Mining, go_modules: dict[str, str]
) -> list[_Task]:
    """The files that must be read; the others are taken from the cache."""
    known = found.cache.files() if found.cache is not None else {}
    licenses = Licenses(job.root)
    base = f"{MINING_VERSION} {version('tree-sitter')} {job.allow_licenses} " + repr(
        sorted(job.mining.model_dump(exclude={"workers"}).items())
    )
    grammars: dict[str, str] = {}
    todo = []
    for file in files:
        package = language(file.language).package
        grammar = grammars.get(package) or grammars.setdefault(package, version(package))
        license_name = licenses.of(file.path)
        found.licenses.setdefault(posixpath.dirname(file.path), license_name)
        others = ""
        if file.language == "go":  # its names are resolved by them
            others = str(go_modules)
        elif file.path.endswith(".h"):  # it may be C++
            others = version(language("cpp").package)
        key = hashlib.sha256(f"{base} {grammar} {license_name} {others}".encode()).hexdigest()[:16]
        old = known.get(file.path)
        task = _Task(file, license_name, key, old if old is not None and old.key == key else None)
        if task.old is not None and task.old.stamp == _stamp(job.root / file.path):
            found.keep(task.old, task)
        else:
            found.expect(task)
            todo.append(task)
    return todo


def _stamp(path: Path) -> str:
    """A file's stamp as it is now; one that no row has where it cannot be looked at."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return "?"


def _go_modules(root: Path, files: list[SourceFile]) -> dict[str, str]:
    """Module paths that go.mod files state, by folder; the most specific ones first."""
    folders = {""}
    for file in files:
        if file.language == "go":
            parts = file.path.split("/")[:-1]
            folders.update("/".join(parts[:n]) for n in range(1, len(parts) + 1))
    found = {}
    for folder in sorted(folders):
        try:
            text = (root / folder / "go.mod").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if match := re.search(r"^\s*module\s+\"?([^\s\"]+)", text, re.MULTILINE):
            found[folder] = match[1]
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _mine_all(job: _Job, tasks: list[_Task]) -> Iterator[FileResult]:
    workers = min(job.mining.workers or cores(), len(tasks) // CHUNK_FILES)
    if workers <= 1 or len(tasks) <= PARALLEL_FROM_FILES:
        for task in tasks:
            yield mine_file(job, task)
        return
    # Spawned, not forked: the caller may have threads (a server) or a GPU open.
    executor = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ignore_interrupts,
    )
    try:
        # Few at a time: results that wait for a slow caller would fill the memory.
        chunks = (tasks[at : at + CHUNK_FILES] for at in range(0, len(tasks), CHUNK_FILES))
        running = deque(
            executor.submit(_mine_chunk, job, chunk) for chunk in islice(chunks, AHEAD * workers)
        )
        while running:
            results = running.popleft().result()
            running.extend(executor.submit(_mine_chunk, job, chunk) for chunk in islice(chunks, 1))
            yield from results
    except BrokenProcessPool as error:
        raise ForgeError(
            "A process that mined files died.",
            cause="it was killed, perhaps for want of memory; or a script called this outside of "
            "`if __name__ == '__main__':`, which every process imports",
            next_step="Run it again with fewer processes: --set mining.workers=1",
        ) from error
    finally:  # also on Ctrl-C: what runs finishes its few files, the rest never starts
        executor.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _mine_chunk(job: _Job, tasks: list[_Task]) -> list[FileResult]:
    with without_collection():
        return [mine_file(job, task) for task in tasks]


def mine_file(job: _Job, task: _Task) -> FileResult:
    """One file. Whatever goes wrong in it is told as its reason, and the others are mined."""
    try:
        return _mine_file(job, task)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        file = task.file
        return FileResult(
            file.path, Known("", task.key, "", file.language, "miner_failed", "", b"{}")
        )


def _mine_file(job: _Job, task: _Task) -> FileResult:
    """Read, decode, parse, walk."""
    path, name = task.file.path, task.file.language
    known = Known("", task.key, "", name, "unreadable", "", b"{}")
    try:
        with (job.root / path).open("rb") as file:
            stamp = fresh_stamp(os.fstat(file.fileno()), time.time_ns())
            data = file.read()
    except OSError:
        return FileResult(path, known)
    digest = hashlib.sha256(data).hexdigest()
    if task.old is not None and task.old.sha256 == digest:
        return FileResult(path, replace(task.old, stamp=stamp), unchanged=True)
    known = replace(known, stamp=stamp, sha256=digest)
    if name == "c" and path.endswith(".h"):
        name = header_language(data)
        _ = language(name).grammar
    decoded = decode(data, name, path)
    reason = text_skip_reason(data, decoded, path)
    if reason or decoded is None:
        return FileResult(path, replace(known, skipped=reason))
    spoken = language(name)
    found = find_definitions(spoken.parse(decoded.utf8), decoded.utf8, spoken)
    secrets = find_secrets(decoded.text)
    blocks = make_blocks(
        path,
        spoken,
        decoded,
        found,
        secrets,
        license_of_file(decoded.text) or task.license,
        job.mining,
        job.allow_licenses,
    )
    if found.has_error and not blocks:
        return FileResult(path, replace(known, skipped="syntax_error"))
    names = Names(
        [block.symbol for block in blocks],
        found.top_imports,
        [bool(block.reasons) for block in blocks],
        sorted(found.rebound),
        _public(found),
    )
    known = replace(
        known,
        language=name,
        skipped="",
        digest=names.digest(),
        counts=_counts(blocks, len(secrets), found.has_error),
    )
    return FileResult(path, known, names.to_json(), tuple(map(_row, blocks)))


def _public(found: FileDefinitions) -> list[str] | None:
    """The names of Python's `__all__`; None where the file does not say it."""
    stated = [value for name, value in found.constants if name == "__all__"]
    return re.findall(r"[\"'](\w+)[\"']", " ".join(stated)) if stated else None


def _row(block: MinedBlock) -> bytes:
    row = block.row
    return bytes(to_json({**row, "reasons": block.reasons} if block.reasons else row))[:-1]


def _counts(blocks: list[MinedBlock], secrets: int, broken: bool) -> bytes:
    return to_json(
        {
            "blocks": sum(not block.reasons for block in blocks),
            "reasons": Counter(reason for block in blocks for reason in block.reasons),
            "undocumented": sum(block.reasons == ["no_docstring"] for block in blocks),
            "secrets": secrets,
            "broken": broken,
        }
    )
