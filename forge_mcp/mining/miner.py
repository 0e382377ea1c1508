"""A repository → blocks: the specification's miner.

parse_repository      a folder → every definition of it, with what is trained on
extract_functions     source → (name, docstring, source) of its functions and methods
extract_classes       source → (name, docstring, method names) of its classes
extract_module_info   source → docstring, imports, constants of the file
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.mining.definitions import FileDefinitions, find_definitions
from forge_mcp.mining.languages import language
from forge_mcp.mining.repository import Mining, Progress, mine_repository
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.settings import Settings

BOM = b"\xef\xbb\xbf"


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
    repo_path: str | Path,
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    since: str | None = None,
) -> MinedRepository:
    """Every definition of a repository.

    Args:
        repo_path: a folder; its files are chosen as `files.list_files` says.
        settings: the repository's own by default; `mining` and `project` count.
        progress: called as (files done, files in all, path) after each file; what it raises
            stops the work.
        cache: folder in which what was mined is kept for the next time.
        since: a git revision; only blocks of files that have changed since.

    Raises:
        NotFound, BadInput: the folder is not there or cannot be read; an unknown revision.
        Unavailable: the grammar of a language that the repository uses is not installed, or git.
    """
    blocks: list[CodeBlock] = []
    rejected: list[RejectedBlock] = []
    with mine_repository(repo_path, settings, progress, cache=cache, since=since) as mining:
        for trained, others in mining.lines():
            blocks += [CodeBlock.model_validate_json(line) for line in trained.splitlines()]
            rejected += [RejectedBlock.model_validate_json(line) for line in others.splitlines()]
        return _result(mining, blocks, rejected)


def _result(
    mining: Mining, blocks: list[CodeBlock], rejected: list[RejectedBlock]
) -> MinedRepository:
    counts = mining.counts
    return MinedRepository(
        root=mining.root,
        blocks=blocks,
        rejected=rejected,
        files=counts.files,
        languages=dict(sorted(counts.languages.items())),
        rejected_reasons=dict(sorted(counts.reasons.items())),
        skipped_files=dict(sorted(counts.skipped.items())),
        secrets_redacted=counts.secrets,
        hashes=mining.hashes,
    )


# -- source text -----------------------------------------------------------------------------


def _definitions(code_bytes: bytes, language_name: str) -> tuple[FileDefinitions, bytes]:
    """Definitions of source text; those with a syntax error in or around them are left out."""
    spoken = language(language_name)
    source = code_bytes.removeprefix(BOM).decode("utf-8", errors="replace").encode()
    found = find_definitions(spoken.parse(source), source, spoken)
    found.definitions = [d for d in found.definitions if not (d.has_error or d.in_error)]
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
        "imports": list(dict.fromkeys(filter(None, (i.text for i in found.imports)))),
        "dependencies": list(dict.fromkeys(filter(None, (name.module for name in found.imported)))),
        "constants": [{"name": name, "value": value} for name, value in found.constants],
        "functions": [d.name for d in top if d.kind == "function"],
        "classes": [d.name for d in top if d.kind == "class"],
    }
