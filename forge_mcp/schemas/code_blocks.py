"""A corpus: the definitions of a repository."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forge_mcp.schemas.base import Schema

BlockType = Literal["function", "method", "class", "module"]


class CodeBlock(Schema):
    """One whole definition of a repository: a row of `blocks.jsonl`."""

    id: str = Field(description="Stable within a corpus, e.g. 'src/app.py::Foo.bar' (+ '#2' …).")
    content_hash: str = Field(description="SHA-256 (hex) of source_code.")
    path: str = Field(description="Relative to the repository's root, with forward slashes.")
    language: str
    block_type: BlockType
    name: str
    qualified_name: str = Field(description="Dotted path within its file, e.g. 'Foo.bar'.")
    parent: str | None = Field(default=None, description="Qualified name of the enclosing block.")
    signature: str = ""
    docstring: str = Field(default="", description="Cleaned as inspect.cleandoc does.")
    source_code: str = Field(description="Whole definition, with its decorators.")
    start_line: int = Field(ge=1, description="1-based, inclusive, decorators included.")
    end_line: int = Field(ge=1, description="1-based, inclusive.")
    start_byte: int = Field(ge=0)
    end_byte: int = Field(ge=0)
    tokens: int = Field(ge=0, description="Number of leaves of the syntax tree.")
    dependencies: list[str] = Field(
        default_factory=list, description="Block ids where resolved, else plain names."
    )
    quality_score: float = Field(default=0.0, ge=0.0, le=1.0)
    license: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    def file_line(self, offset: int) -> int:
        """The line of the file (1-based) on which a line of `source_code` (from 0) stands.

        Of a skeleton, from which bodies were taken out, `metadata.skeleton` tells it.
        """
        pieces = self.metadata.get("skeleton") or [[0, self.start_line]]
        # A piece begins behind a body, within a line that an earlier piece began.
        line, there = max((piece for piece in pieces if piece[0] < offset), default=pieces[0])
        return int(there + offset - line)


class RejectedBlock(CodeBlock):
    """A block that is not trained on, and why: a row of `rejected.jsonl`."""

    reasons: list[str]
