"""skills.yaml: every skill in a form that other orchestrators read. Generated, never edited.

python -m forge_mcp.interfaces.catalogue          write it
python -m forge_mcp.interfaces.catalogue --check  exit code 1 if it is stale
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from forge_mcp.interfaces.shared_files import shared_root
from forge_mcp.jobs.skills import skills
from forge_mcp.pipeline.skill import Skill
from forge_mcp.workspace import write_file

HEAD = """\
# The skills of AI Forge: a command each, and an MCP tool where `tool` is true. Where `job` is true,
# the tool starts a job and the command does so with --detach. `aliases` are the specification's
# names for the same skills. Generated from the code by
# 'python -m forge_mcp.interfaces.catalogue'; a test fails when it is stale.
"""


def catalogue(registry: Mapping[str, Skill]) -> dict[str, Any]:
    """The content of skills.yaml."""
    aliases = [
        {
            "name": alias,
            "skill": skill.name,
            "description": first_sentence(skill),
            "command": skill.command,
        }
        for skill in registry.values()
        for alias in skill.aliases
    ]
    return {"skills": [_entry(skill) for skill in registry.values()], "aliases": aliases}


def render(registry: Mapping[str, Skill]) -> str:
    """skills.yaml as text."""
    body = yaml.safe_dump(
        catalogue(registry),
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=False,
    )
    return f"{HEAD}\n{body}"


def first_sentence(skill: Skill) -> str:
    """The first line of a skill's description."""
    return inspect.cleandoc(skill.description).splitlines()[0]


def _entry(skill: Skill) -> dict[str, Any]:
    return {
        "name": skill.name,
        "title": skill.title,
        "description": " ".join(inspect.cleandoc(skill.description).split()),
        "command": skill.command,
        "tool": skill.tool,
        "job": skill.long,
        "annotations": {
            "read_only": skill.read_only,
            "destructive": skill.destructive,
            "idempotent": skill.idempotent,
            "open_world": skill.open_world,
        },
        "aliases": list(skill.aliases),
    }


def main() -> int:
    """Write the file, or compare with --check."""
    path: Path = shared_root() / "skills.yaml"
    text = render(skills())
    if sys.argv[1:] == ["--check"]:
        return 0 if path.read_text(encoding="utf-8") == text else 1
    write_file(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
