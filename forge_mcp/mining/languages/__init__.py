"""The languages that can be mined, by name and by file extension."""

from __future__ import annotations

from functools import cache
from pathlib import PurePosixPath

from forge_mcp.errors import BadInput
from forge_mcp.mining.languages.base import Language
from forge_mcp.mining.languages.bash import Bash
from forge_mcp.mining.languages.c import C
from forge_mcp.mining.languages.cpp import Cpp
from forge_mcp.mining.languages.csharp import CSharp
from forge_mcp.mining.languages.go import Go
from forge_mcp.mining.languages.java import Java
from forge_mcp.mining.languages.javascript import JavaScript
from forge_mcp.mining.languages.kotlin import Kotlin
from forge_mcp.mining.languages.php import Php
from forge_mcp.mining.languages.python import Python
from forge_mcp.mining.languages.ruby import Ruby
from forge_mcp.mining.languages.rust import Rust
from forge_mcp.mining.languages.scala import Scala
from forge_mcp.mining.languages.swift import Swift
from forge_mcp.mining.languages.typescript import Tsx, TypeScript

LANGUAGES: dict[str, type[Language]] = {
    kind.name: kind
    for kind in (
        Python,
        JavaScript,
        TypeScript,
        Tsx,
        Go,
        Java,
        CSharp,
        Ruby,
        Php,
        Kotlin,
        Bash,
        Rust,
        C,
        Cpp,
        Swift,
        Scala,
    )
}
# Their names are resolved through imports and scopes to the blocks that they mean.
FIRST_TIER = frozenset({"python", "javascript", "typescript", "tsx", "go", "java"})
EXTENSIONS: dict[str, str] = {
    extension: kind.name for kind in LANGUAGES.values() for extension in kind.extensions
}


@cache
def language(name: str) -> Language:
    """A language by its name.

    Raises:
        BadInput: it is none of `LANGUAGES`.
    """
    if name not in LANGUAGES:
        raise BadInput(
            f"The language '{name}' cannot be mined.",
            cause=f"known languages: {', '.join(LANGUAGES)}",
            next_step="Give one of them.",
        )
    return LANGUAGES[name]()


def language_of(path: str) -> str | None:
    """The name of a file's language by its extension, or None."""
    return EXTENSIONS.get(PurePosixPath(path).suffix.lower())


__all__ = ["EXTENSIONS", "FIRST_TIER", "LANGUAGES", "Language", "language", "language_of"]
