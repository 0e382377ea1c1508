"""A sample file of each language, its definitions, and how tests spell what is said of them."""

from __future__ import annotations

from pathlib import Path

from forge_mcp.mining.definitions import Definition, FileDefinitions, find_definitions
from forge_mcp.mining.languages import language

SAMPLES = Path(__file__).parent.parent / "fixtures" / "languages"
FILES = {
    "rust": "shelf.rs",
    "c": "ring.c",
    "cpp": "matrix.cpp",
    "swift": "Player.swift",
    "scala": "Planner.scala",
    "ruby": "inventory.rb",
    "csharp": "Ledger.cs",
    "php": "Router.php",
    "kotlin": "Session.kt",
    "bash": "deploy.sh",
    "javascript": "queue.js",
    "typescript": "shapes.ts",
    "tsx": "Badge.tsx",
    "go": "cache.go",
    "java": "Account.java",
}
MARKS = {
    "positional_only": "/ ",
    "keyword_only": "k ",
    "var_positional": "* ",
    "var_keyword": "** ",
}


def sample(name: str) -> bytes:
    """A language's sample."""
    return (SAMPLES / FILES[name]).read_bytes()


def read(name: str, source: bytes | str | None = None) -> FileDefinitions:
    """The definitions of a source, or of a language's sample."""
    data = sample(name) if source is None else source
    data = data.encode() if isinstance(data, str) else data
    return find_definitions(language(name).parse(data), data, language(name))


def named(name: str, source: str | None = None) -> dict[str, Definition]:
    """The definitions by qualified name."""
    return {d.qualified_name: d for d in read(name, source).definitions}


def flagged(name: str, flag: str) -> set[str]:
    """The definitions of a sample of which something is true."""
    return {d.qualified_name for d in read(name).definitions if getattr(d, flag)}


def documented(name: str) -> dict[str, str]:
    """The docstrings of a sample."""
    described = [(d.qualified_name, d.described.docstring) for d in read(name).definitions]
    return {qualified: docstring for qualified, docstring in described if docstring}


def outline(found: FileDefinitions) -> list[tuple[str, int, int]]:
    """Qualified names, first and last lines."""
    return [(d.qualified_name, d.start_row + 1, d.end_row + 1) for d in found.definitions]


def parameters(definition: Definition) -> list[tuple[str, str, str]]:
    """Name, annotation and default of every parameter."""
    return [
        (found.name, found.annotation, found.default)
        for found in definition.described.parameters or []
    ]


def spelled(definition: Definition) -> str:
    """Parameters as `name: annotation = default`; the kind as a mark before it."""
    return "; ".join(
        MARKS.get(p.kind, "")
        + p.name
        + (f": {p.annotation}" if p.annotation else "")
        + (f" = {p.default}" if p.default else "")
        for p in definition.described.parameters or ()
    )
