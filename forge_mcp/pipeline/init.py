"""A repository becomes a project: forge.toml."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pydantic import Field

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.context import claim_project, existing_folder, require_free_name
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.settings import PROJECT_FILE, Settings, load_settings
from forge_mcp.workspace import write_file

TEMPLATE = """\
# AI Forge: the settings of this project. What stands here goes over the defaults and under the
# environment (FORGE_SECTION__KEY) and a call's own values. Every key of every section can be set;
# 'forge-mcp <command> --set SECTION.KEY=VALUE' tries one out.

[project]
name = {name}
# A known base or a folder in Hugging Face format.
base = {base}
# Globs, e.g. ["src/**"]; an empty list means the whole repository.
include = []
# Globs that are taken out after include.
exclude = []
# system_prompt = "You are the expert on this project. Answer from the documents."

# Gates: what they refuse is not deployed.
[quality]
# A dataset whose mean score is lower is not trained on,
min_quality_score = {min_quality_score}
# nor one with fewer examples.
min_examples = {min_examples}

[judging]
# Perplexity of the tuned model / of the base on held-out examples, at most.
max_perplexity_ratio = {max_perplexity_ratio}
"""


class InitRequest(SkillRequest):
    """Which repository becomes a project."""

    repo: str = Field(default=".", description="Folder of the repository.")
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="Name of the project (default: the folder's name).",
    )
    base: str | None = Field(
        default=None, description="Base model: a known name or a folder (default: forge-nano)."
    )
    force: bool = Field(default=False, description="Write over a forge.toml that is there.")


class InitResult(SkillResult):
    """The project that was made."""

    project: str
    path: str = Field(description="The forge.toml that was written.")
    repository: str
    base: str


@skill(
    title="Set up a project",
    scope="anywhere",
    positional=("repo",),
    destructive=True,
    idempotent=False,
    examples=("forge-mcp init", "forge-mcp init ../flask --name flask --base forge-nano"),
)
def init(request: InitRequest, context: SkillContext) -> InitResult:
    """Write a commented forge.toml into a repository, so that it is a project with settings.

    Use this when a repository needs its own name, base model, included paths or gates; `extract`
    and `retrain` also work without it, on the defaults. An existing forge.toml is never replaced
    unless `force` is true.
    """
    repository = context.repository or existing_folder(request.repo)
    path = repository / PROJECT_FILE
    if path.exists() and not request.force:
        raise BadInput(
            f"{path} is there already.",
            cause="it would be overwritten",
            next_step="Edit it, or give force (--force) to write a fresh one.",
        )
    name = request.name or repository.name or "project"
    base = request.base or context.settings.project.base
    text = render(name, base, context.settings)
    require_free_name(context.workspace, name, repository)
    write_file(path, text)
    load_settings(repository)
    claim_project(context.workspace, name, repository)
    return InitResult(project=name, path=str(path), repository=str(repository), base=base)


def render(name: str, base: str, settings: Settings) -> str:
    """The text of a fresh forge.toml.

    Raises:
        BadInput: name or base holds characters that TOML cannot carry, or a path separator.
    """
    text = TEMPLATE.format(
        name=json.dumps(name, ensure_ascii=False),
        base=json.dumps(base, ensure_ascii=False),
        min_quality_score=settings.quality.min_quality_score,
        min_examples=settings.quality.min_examples,
        max_perplexity_ratio=settings.judging.max_perplexity_ratio,
    )
    try:
        project = tomllib.loads(text)["project"]
        sound = (project["name"], project["base"]) == (name, base)
    except tomllib.TOMLDecodeError:
        sound = False
    if not sound or Path(name).name != name:
        raise BadInput(
            f"{name!r} is no name for a project.",
            cause="it holds a path separator or characters that TOML cannot carry",
            next_step="Give a plain one: --name NAME",
        )
    return text
