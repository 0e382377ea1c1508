"""Datasets, runs, reports and the deployed models as MCP resources."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from mcp.types import Resource

from forge_mcp.errors import ForgeError, NotFound
from forge_mcp.jobs.skills import skills
from forge_mcp.pipeline.context import open_context
from forge_mcp.schemas.manifests import ArtifactKind
from forge_mcp.workspace import FOLDERS, Artifact, Workspace

SHOWN_EXAMPLES = 5
LISTED = 5  # newest artifacts of a kind in resources/list
MARKDOWN, JSON = "text/markdown", "application/json"
MIME_TYPES: dict[ArtifactKind, str] = {"dataset": MARKDOWN, "report": MARKDOWN, "run": JSON}


def add_resources(server: MCPServer[Any], workspace: Workspace) -> None:
    """Declare forge://datasets, reports, runs (by id) and forge://models."""

    @server.resource("forge://datasets/{id}", title="Dataset", mime_type=MARKDOWN)
    def dataset(id: str) -> str:
        """A dataset in figures, and its first examples as the model sees them."""
        return _read(lambda: dataset_page(workspace.load(id, "dataset")))

    @server.resource("forge://reports/{id}", title="Report", mime_type=MARKDOWN)
    def report(id: str) -> str:
        """A quality or evaluation report."""
        return _read(lambda: report_page(workspace.load(id, "report")))

    @server.resource("forge://runs/{id}", title="Run", mime_type=JSON)
    def run(id: str) -> str:
        """A training run: its result, settings and origin."""
        return _read(lambda: run_page(workspace.load(id, "run")))

    @server.resource("forge://models", title="Models", mime_type=JSON)
    def models() -> str:
        """Every project's active and previous model."""
        return _read(lambda: models_page(workspace))


def recent_artifacts(workspace: Workspace) -> list[Resource]:
    """The newest artifacts as resources, so that a client can offer them; damaged ones last."""
    listed: list[Resource] = []
    for kind, mime_type in MIME_TYPES.items():
        about = {
            artifact.id: f"{kind} of {artifact.manifest.project}, {artifact.manifest.created}"
            for artifact in workspace.artifacts(kind)[:LISTED]
        }
        about |= {id: f"damaged: {error.cause}" for id, error in workspace.damaged(kind).items()}
        listed += [
            Resource(
                uri=f"forge://{FOLDERS[kind]}/{id}", name=id, description=text, mime_type=mime_type
            )
            for id, text in about.items()
        ]
    return listed


def dataset_page(artifact: Artifact) -> str:
    """A dataset as Markdown."""
    manifest = artifact.manifest
    lines = [
        f"# {artifact.id}",
        "",
        f"Dataset of project {manifest.project}, made {manifest.created} from "
        f"{', '.join(manifest.parents) or 'nothing'}. Files: {artifact.path}",
        "",
        "```json",
        json.dumps(manifest.result, indent=1, ensure_ascii=False),
        "```",
    ]
    for number, example in enumerate(
        itertools.islice(artifact.rows("examples.jsonl"), SHOWN_EXAMPLES), start=1
    ):
        lines += [
            "",
            f"## Example {number} ({example['difficulty']}, {example['split']}, "
            f"quality {example['quality']})",
            "",
            f"Question: {example['question']}",
            "",
            f"Reasoning: {example['reasoning']}",
            "",
            f"Answer: {example['final_answer']}",
        ]
    return "\n".join(lines) + "\n"


def report_page(artifact: Artifact) -> str:
    """A report's Markdown, as it was written."""
    artifact.verify("report.md")
    return artifact.file("report.md").read_text("utf-8")


def run_page(artifact: Artifact) -> str:
    """A run as JSON: everything of its manifest but the checksums."""
    manifest = artifact.manifest.model_dump(mode="json", exclude={"checksums"})
    return json.dumps(manifest | {"path": str(artifact.path)}, indent=1, ensure_ascii=False)


def models_page(workspace: Workspace) -> str:
    """The result of the skill `models` for every project that has deployed something."""
    skill = skills()["models"]
    names = workspace.database.execute(
        "SELECT project FROM active UNION SELECT project FROM deployments ORDER BY project"
    )
    pages = {}
    for row in names.fetchall():
        try:
            request, context = open_context(
                skill, skill.request(), workspace=workspace, project=row["project"]
            )
            result = skill.function(request, context)
        except NotFound as gone:  # the repository was moved: told, and the others are shown
            pages[row["project"]] = gone.as_dict()
            continue
        pages[row["project"]] = result.model_dump(mode="json", by_alias=True)
    return json.dumps(pages, indent=1, ensure_ascii=False)


def _read(page: Callable[[], str]) -> str:
    try:
        return page()
    except NotFound as error:
        raise ResourceNotFoundError(str(error)) from error
    except ForgeError as error:
        raise ResourceError(str(error)) from error
