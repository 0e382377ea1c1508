"""prompts/*.md as MCP prompts.

A file's head names what the client shows, its body is the message:

    ---
    title: Repo Guardian
    description: …
    arguments:
      repository: Absolute path of the repository.
    ---
    You look after {{repository}} …

An argument that is left away is told as "the current repository" and the like: `defaults` in the
head gives the words.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from mcp.server import MCPServer
from mcp.server.mcpserver.prompts import Prompt
from pydantic import Field

from forge_mcp.errors import CorruptArtifact
from forge_mcp.interfaces.shared_files import shared_root

_FILE = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class PromptFile:
    """A parsed prompt; `arguments` are descriptions by name, all optional."""

    name: str
    title: str
    description: str
    arguments: dict[str, str]
    defaults: dict[str, str]
    body: str

    def render(self, **given: str | None) -> str:
        """The body with its slots filled."""
        values = self.defaults | {name: value for name, value in given.items() if value}
        return _SLOT.sub(lambda slot: values[slot.group(1)], self.body).strip() + "\n"


def read_prompt(path: Path) -> PromptFile:
    """Parse one file.

    Raises:
        CorruptArtifact: it lacks its head, or a slot has no argument and default.
    """
    parts = _FILE.match(path.read_text(encoding="utf-8"))
    head = yaml.safe_load(parts.group(1)) if parts else None
    if parts is None or not isinstance(head, dict):
        raise _damaged(path, "it does not begin with a YAML head between '---' lines")
    arguments, defaults = head.get("arguments", {}), head.get("defaults", {})
    body = parts.group(2)
    slots = set(_SLOT.findall(body))
    if not slots == set(arguments) == set(defaults):
        raise _damaged(path, "its slots, arguments and defaults differ")
    return PromptFile(
        path.stem, head["title"], head["description"].strip(), arguments, defaults, body
    )


def prompt_files() -> list[PromptFile]:
    """Every prompt that ships, by name."""
    return [read_prompt(path) for path in sorted((shared_root() / "prompts").glob("*.md"))]


def add_prompts(server: MCPServer[Any]) -> None:
    """Declare every prompt file as a prompt of the server."""
    for found in prompt_files():
        server.add_prompt(_declare(found))


def _declare(found: PromptFile) -> Prompt:
    def render(**given: str | None) -> str:
        return found.render(**given)

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[str | None, Field(description=description)],
            default=None,
        )
        for name, description in found.arguments.items()
    ]
    render.__signature__ = inspect.Signature(parameters, return_annotation=str)  # type: ignore[attr-defined]
    render.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": str}
    return Prompt.from_function(
        render, name=found.name, title=found.title, description=found.description
    )


def _damaged(path: Path, cause: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"The prompt {path.name} cannot be used.",
        cause=cause,
        next_step="Install AI Forge again: pip install --force-reinstall forge-mcp",
    )
