"""A repository → blocks: the specification's miner.

parse_repository      a folder → every definition of it, with what is trained on
extract_functions     source → (name, docstring, source) of its functions and methods
extract_classes       source → (name, docstring, method names) of its classes
extract_module_info   source → docstring, imports, constants of the file
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge_mcp.errors import ForgeError
from forge_mcp.machine import cores
from forge_mcp.mining.blocks import MinedBlock, make_blocks
from forge_mcp.mining.definitions import FileDefinitions, find_definitions
from forge_mcp.mining.dependencies import Resolver
from forge_mcp.mining.files import (
    BOM,
    SourceFile,
    decode,
    list_files,
    resolve_root,
    text_skip_reason,
)
from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import
from forge_mcp.mining.licenses import license_of_file, license_of_repository
from forge_mcp.mining.secrets import find_secrets
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.settings import MiningSettings, Settings, load_settings

# Change it with anything that changes what is mined from the same files.
MINING_VERSION = 2
PARALLEL_FROM_FILES = 200
CHUNK_FILES = 25

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FileResult:
    """What one file gave, or why it was skipped. It crosses a process border."""

    path: str
    language: str
    sha256: str
    skipped: str = ""
    blocks: list[MinedBlock] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    secrets: int = 0


@dataclass(frozen=True)
class MinedRepository:
    """All blocks of a repository in order of paths and lines, and what was counted.

    `hashes` holds the SHA-256 (hex) of every file that was read, by its path.
    """

    root: Path
    blocks: list[CodeBlock]
    rejected: list[RejectedBlock]
    files: int
    languages: dict[str, int]
    rejected_reasons: dict[str, int]
    skipped_files: dict[str, int]
    secrets_redacted: int
    hashes: dict[str, str]


def parse_repository(
    repo_path: str | Path, settings: Settings | None = None, progress: Progress | None = None
) -> MinedRepository:
    """Every definition of a repository.

    Args:
        repo_path: a folder; its files are chosen as `files.list_files` says.
        settings: the repository's own by default; `mining` and `project` count.
        progress: called as (files done, files in all, path) after each file; what it raises
            stops the work.

    Raises:
        NotFound, BadInput: the folder is not there or cannot be read.
        Unavailable: the grammar of a language that the repository uses is not installed, or git.
    """
    root = resolve_root(repo_path)
    settings = settings or load_settings(root)
    mining, project = settings.mining, settings.project
    listing = list_files(root, project.include, project.exclude, mining.max_file_bytes)
    for name in sorted({file.language for file in listing.files}):
        _ = language(name).grammar  # a missing one is reported before any work
    job = _Job(root, mining, project.allow_licenses, license_of_repository(root))
    results: list[FileResult] = []
    for result in _mine_all(job, listing.files):
        results.append(result)
        if progress is not None:
            progress(len(results), len(listing.files), result.path)
    results.sort(key=lambda result: result.path)
    return _gather(root, results, listing.skipped)


def scan_repository(repo_path: str | Path, settings: Settings) -> dict[str, str]:
    """SHA-256 (hex) of every file that `parse_repository` would read, by path; unreadable: ''.

    Raises:
        NotFound, BadInput, Unavailable: as `parse_repository`.
    """
    root = resolve_root(repo_path)
    project = settings.project
    listing = list_files(root, project.include, project.exclude, settings.mining.max_file_bytes)
    hashes = {}
    for file in listing.files:
        try:
            hashes[file.path] = hashlib.sha256((root / file.path).read_bytes()).hexdigest()
        except OSError:
            hashes[file.path] = ""
    return hashes


@dataclass(frozen=True)
class _Job:
    """What every file of a repository is mined with."""

    root: Path
    mining: MiningSettings
    allow_licenses: list[str]
    license: str | None


def _mine_all(job: _Job, files: list[SourceFile]) -> Iterator[FileResult]:
    workers = job.mining.workers or cores()
    if workers == 1 or len(files) <= PARALLEL_FROM_FILES:
        for file in files:
            yield mine_file(job, file)
        return
    # Spawned, not forked: the caller may have threads (a server) or a GPU open.
    executor = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_ignore_interrupts,
    )
    try:
        futures: list[Future[list[FileResult]]] = [
            executor.submit(_mine_chunk, job, files[start : start + CHUNK_FILES])
            for start in range(0, len(files), CHUNK_FILES)
        ]
        for future in as_completed(futures):
            yield from future.result()
    except BrokenProcessPool as error:
        raise ForgeError(
            "A process that mined files died.",
            cause="it was killed, perhaps for want of memory",
            next_step="Run it again with fewer processes: --set mining.workers=1",
        ) from error
    finally:  # also on Ctrl-C: what runs finishes its few files, the rest never starts
        executor.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _mine_chunk(job: _Job, files: list[SourceFile]) -> list[FileResult]:
    return [mine_file(job, file) for file in files]


def mine_file(job: _Job, file: SourceFile) -> FileResult:
    """One file: read, decoded, parsed, walked. Never raises for what the file holds."""
    try:
        data = (job.root / file.path).read_bytes()
    except OSError:
        return FileResult(file.path, file.language, "", skipped="unreadable")
    digest = hashlib.sha256(data).hexdigest()
    decoded = decode(data, file.language)
    reason = text_skip_reason(data, decoded)
    if reason or decoded is None:
        return FileResult(file.path, file.language, digest, skipped=reason)
    spoken = language(file.language)
    tree = spoken.parse(decoded.utf8)
    if tree.root_node.has_error:
        return FileResult(file.path, file.language, digest, skipped="syntax_error")
    found = find_definitions(tree, decoded.utf8, spoken)
    secrets = find_secrets(decoded.text)
    blocks = make_blocks(
        file.path,
        spoken,
        decoded,
        found,
        secrets,
        license_of_file(decoded.text) or job.license,
        job.mining,
        job.allow_licenses,
    )
    return FileResult(file.path, file.language, digest, "", blocks, found.imported, len(secrets))


def _gather(root: Path, results: list[FileResult], skipped: Counter[str]) -> MinedRepository:
    mined = [result for result in results if not result.skipped]
    every = [block for result in mined for block in result.blocks]
    resolver = Resolver(
        (entry.block for entry in every), {result.path: result.imports for result in mined}
    )
    blocks: list[CodeBlock] = []
    rejected: list[RejectedBlock] = []
    for entry in every:
        entry.block.dependencies = resolver.dependencies(entry.block)
        if entry.reasons:
            fields = entry.block.model_dump()
            rejected.append(RejectedBlock(**fields, reasons=entry.reasons))
        else:
            blocks.append(entry.block)
    reasons = Counter(reason for entry in every for reason in entry.reasons)
    skipped = skipped + Counter(result.skipped for result in results if result.skipped)
    return MinedRepository(
        root=root,
        blocks=blocks,
        rejected=rejected,
        files=len(mined),
        languages=dict(sorted(Counter(block.language for block in blocks).items())),
        rejected_reasons=dict(sorted(reasons.items())),
        skipped_files=dict(sorted(skipped.items())),
        secrets_redacted=sum(result.secrets for result in mined),
        hashes={result.path: result.sha256 for result in results},
    )


# -- source text -----------------------------------------------------------------------------


def _definitions(code_bytes: bytes, language_name: str) -> tuple[FileDefinitions, bytes]:
    """Definitions of source text; those with a syntax error inside are left out."""
    spoken = language(language_name)
    source = code_bytes.removeprefix(BOM).decode("utf-8", errors="replace").encode()
    found = find_definitions(spoken.parse(source), source, spoken)
    found.definitions = [d for d in found.definitions if not d.has_error]
    return found, source


def extract_functions(
    code_bytes: bytes, language: str, include_private: bool = False, include_tests: bool = False
) -> list[tuple[str, str, str]]:
    """(name, docstring, whole source) of every function and method, nested ones included.

    Args:
        code_bytes: source in UTF-8. Definitions with a syntax error inside are left out.
        language: a name of `languages.LANGUAGES`.
        include_private: also those that are private in their language.
        include_tests: also those that are tests by their name or their class.

    Raises:
        BadInput: an unknown language.
        Unavailable: its grammar is not installed.
    """
    found, source = _definitions(code_bytes, language)
    return [
        (d.name, d.described.docstring, source[d.start_byte : d.end_byte].decode())
        for d in found.definitions
        if d.kind in ("function", "method")
        and (include_private or not d.is_private)
        and (include_tests or not d.is_test)
    ]


def extract_classes(code_bytes: bytes, language: str) -> list[tuple[str, str, list[str]]]:
    """(name, docstring, method names) of every class, interface, enum, record or Go type.

    Raises:
        BadInput, Unavailable: as `extract_functions`.
    """
    found, _ = _definitions(code_bytes, language)
    methods: dict[str, list[str]] = {}
    for d in found.definitions:  # a Go method stands beside its type, not in it
        if d.kind == "method" and d.parent is None and d.parent_name:
            methods.setdefault(d.parent_name, []).append(d.name)
    return [
        (
            d.name,
            d.described.docstring,
            list(dict.fromkeys([*d.methods, *methods.get(d.qualified_name, [])])),
        )
        for d in found.definitions
        if d.kind == "class"
    ]


def extract_module_info(code_bytes: bytes, language: str = "python") -> dict[str, Any]:
    """What a file says of itself.

    Returns:
        docstring: of the file; '' without one.
        imports: the text of every import statement.
        dependencies: the modules that they name.
        constants: [{"name", "value"}] of the top level.
        functions, classes: names of the top level.

    Raises:
        BadInput, Unavailable: as `extract_functions`.
    """
    found, _ = _definitions(code_bytes, language)
    top = [d for d in found.definitions if d.parent is None]
    return {
        "docstring": found.docstring,
        "imports": list(dict.fromkeys(statement.text for statement in found.imports)),
        "dependencies": list(dict.fromkeys(name.module for name in found.imported)),
        "constants": [{"name": name, "value": value} for name, value in found.constants],
        "functions": [d.name for d in top if d.kind == "function"],
        "classes": [d.name for d in top if d.kind == "class"],
    }
