"""`manifest.json`: what an artifact is, what it was made from, and how to check it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forge_mcp.schemas.base import Schema

ArtifactKind = Literal["corpus", "dataset", "run", "report", "export", "deployment"]
SCHEMA_VERSION = 1


class RepositoryState(Schema):
    """Which state of the repository an artifact describes."""

    path: str
    revision: str | None = Field(description="Commit hash, or null where it is no git repository.")
    dirty: bool = False


class Manifest(Schema):
    """Written last into an artifact's folder, before the folder gets its name."""

    schema_version: int = SCHEMA_VERSION
    kind: ArtifactKind
    id: str
    project: str
    parents: list[str]
    inputs_hash: str
    repository: RepositoryState | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    created: str
    checksums: dict[str, str] = Field(description="SHA-256 (hex) of every file, by relative path.")
    result: dict[str, Any] = Field(default_factory=dict, description="What the skill returned.")
