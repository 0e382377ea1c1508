"""From what a caller said to a checked request and the context that a skill runs in.

Every face calls `make_request` and `open_context`. Which project a call belongs to is decided by
the first of these that says so:

1. `project`: the name of a project that was used before, or the path of a repository;
2. the request's own `repo`, a path other than ".";
3. the artifact that the request names (its manifest carries the project);
4. the repository stood in: the nearest folder upwards with a forge.toml or .git; a skill that
   takes a `repo` takes the folder itself where there is none (but not the home folder or the
   root of the disk, where some agents start their servers), others the nearest folder that was
   used as a project before;
5. the only project that this workspace knows.

A repository that is named is taken as it is, never widened to a folder above it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import ValidationError

from forge_mcp.errors import BadInput, InvalidSettings, NotFound
from forge_mcp.pipeline.skill import EventSink, Face, Skill, SkillContext, SkillRequest
from forge_mcp.schemas.manifests import ArtifactKind
from forge_mcp.settings import PROJECT_FILE, Settings, defaults, load_settings
from forge_mcp.workspace import Artifact, Workspace

HERE = "."
ARTIFACT_FIELDS: dict[str, tuple[ArtifactKind, ...]] = {
    "corpus": ("corpus",),
    "dataset": ("dataset",),
    "run": ("run",),
    "run_or_export": ("run", "export"),
}
ALL_PROJECTS = ""  # the project in the context of a skill that works on all of them


class Place(NamedTuple):
    """Where a call belongs. No name: it stands in the repository's settings."""

    repository: Path | None
    name: str | None


def make_request(skill: Skill, fields: Mapping[str, Any]) -> SkillRequest:
    """The request model of a skill from loose values (text is converted).

    Raises:
        BadInput: a field is missing, unknown or not valid; it is named.
    """
    try:
        return skill.request.model_validate(dict(fields))
    except ValidationError as error:
        raise bad_request(skill, error) from error


def bad_request(skill: Skill, error: ValidationError) -> BadInput:
    """What is wrong with a request, in words."""
    known = skill.request.model_fields
    problems = []
    for one in error.errors():
        name = str(one["loc"][0]) if one["loc"] else "request"
        if one["type"] == "missing":
            problems.append(f"'{name}' is missing")
        elif one["type"] == "extra_forbidden":
            problems.append(f"'{name}' is not known")
        else:
            problems.append(f"'{name}': {one['msg']} (given: {one.get('input')!r})"[:300])
    return BadInput(
        f"{skill.name} cannot be called like this.",
        cause="; ".join(dict.fromkeys(problems)),
        next_step=f"{skill.name} takes: {', '.join(known) or 'nothing'}. "
        f"See 'forge-mcp {' '.join(skill.words)} --help'.",
    )


def open_context(
    skill: Skill,
    request: SkillRequest,
    *,
    workspace: Workspace | None = None,
    project: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    sink: EventSink = lambda event: None,
    cancel: threading.Event | None = None,
    face: Face = "python",
) -> tuple[SkillRequest, SkillContext]:
    """The request with its repository filled in, and the context to run the skill in.

    Args:
        skill: what will run.
        request: its checked request.
        workspace: FORGE_HOME by default.
        project: a project's name or a repository's path; see the module's rule.
        overrides: nested settings of this call, {section: {key: value}}.
        sink: gets the skill's events.
        cancel: set it to stop the skill.
        face: which way the call came.

    Raises:
        BadInput: no project can be told, or the call names two.
        NotFound: a project, repository or artifact that is not there.
        InvalidSettings: forge.toml, the environment or the overrides say nothing valid.
    """
    workspace = workspace or Workspace()
    artifact = next(_artifacts(request, workspace), None)
    everywhere = project is None and skill.scope == "all"
    place = (
        Place(None, ALL_PROJECTS) if everywhere else _locate(request, workspace, project, artifact)
    )
    if place is None:
        if skill.scope != "anywhere":
            raise _which_project(workspace)
        place = Place(None, None)
    try:
        settings = load_settings(place.repository, overrides)
    except InvalidSettings:
        # A project that was named must not be taken for another one, by its folder's name.
        if overrides or not (everywhere or skill.scope == "anywhere"):
            raise
        settings = Settings.model_validate(defaults())
    name = place.name
    if name is None:
        folder = place.repository.name if place.repository else ""
        name = settings.project.name or folder or "project"
    if artifact is not None and artifact.manifest.project != name:
        raise BadInput(
            f"{artifact.id} is not of project '{name}'.",
            cause=f"it belongs to '{artifact.manifest.project}'",
            next_step="Leave 'project' away: an artifact knows its own.",
        )
    if place.repository and "repo" in skill.request.model_fields:
        request = request.model_copy(update={"repo": str(place.repository)})
    if place.repository and not skill.read_only and skill.scope == "project":
        claim_project(workspace, name, place.repository)
    context = SkillContext(
        workspace=workspace,
        settings=settings,
        project=name,
        repository=place.repository,
        sink=sink,
        cancel=cancel or threading.Event(),
        stage=skill.name,
        face=face,
    )
    if place.name and place.repository is None:
        context.log(
            f"The repository of project '{name}' is not where it was: its forge.toml is not read, "
            "and the default settings count.",
            warning=True,
        )
    return request, context


def claim_project(workspace: Workspace, name: str, repository: Path) -> None:
    """Remember where a project stands; two living repositories never share a name.

    Raises:
        BadInput: another repository, still there, has this name.
    """
    if require_free_name(workspace, name, repository) != repository:
        workspace.remember_project(name, repository)


def require_free_name(workspace: Workspace, name: str, repository: Path) -> Path | None:
    """Where the project of this name stood until now; None for a new name.

    Raises:
        BadInput: another repository, still there, has this name.
    """
    row = workspace.database.execute("SELECT root FROM projects WHERE name = ?", (name,)).fetchone()
    if row is not None and row["root"] != str(repository) and Path(row["root"]).is_dir():
        raise BadInput(
            f"Another repository is already the project '{name}'.",
            cause=f"{row['root']} has this name, {repository} would get it too",
            next_step=f"Give this one another name: forge-mcp init {repository} --name NAME",
        )
    return Path(row["root"]) if row is not None else None


def existing_folder(path: str | Path) -> Path:
    """An absolute folder from a path a user wrote.

    Raises:
        NotFound: nothing there, or no folder.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise NotFound(
            f"There is no repository at {folder}.",
            cause="it is a file" if folder.exists() else "nothing is there",
            next_step="Give the path of the repository's folder.",
        )
    return folder


def repository_above(folder: Path) -> Path | None:
    """The nearest folder from here upwards that has a forge.toml or a .git."""
    for candidate in (folder, *folder.parents):
        if (candidate / PROJECT_FILE).is_file() or (candidate / ".git").exists():
            return candidate
    return None


def known_project_above(workspace: Workspace, folder: Path) -> Path | None:
    """The nearest folder from here upwards that was used as a project before."""
    roots = {row["root"] for row in workspace.database.execute("SELECT root FROM projects")}
    return next((path for path in (folder, *folder.parents) if str(path) in roots), None)


def _locate(
    request: SkillRequest, workspace: Workspace, project: str | None, artifact: Artifact | None
) -> Place | None:
    """Where the call belongs, by the module's rule; None where nothing says so."""
    repo = cast("str | None", getattr(request, "repo", None))
    if project is not None:
        return _named_project(workspace, project, repo)
    if repo is not None and repo != HERE:
        return Place(existing_folder(repo), None)
    if artifact is not None:
        name = artifact.manifest.project
        return Place(_known_root(workspace, name), name)
    here = Path.cwd()
    everything = here in (Path.home(), Path(here.anchor))
    found = repository_above(here) or (here if repo is not None and not everything else None)
    found = found or known_project_above(workspace, here)
    if found is not None:
        return Place(found, None)
    names = _known_projects(workspace)
    return Place(_known_root(workspace, names[0]), names[0]) if len(names) == 1 else None


def _named_project(workspace: Workspace, project: str, repo: str | None) -> Place:
    """The project that the caller named, checked against the repository it names."""
    if os.sep in project or project in (HERE, "..") or project.startswith("~"):
        place = Place(existing_folder(project), None)
    else:
        place = Place(workspace.project_root(project), project)
    if repo is not None and repo != HERE and existing_folder(repo) != place.repository:
        raise BadInput(
            "The call names two repositories.",
            cause=f"repo is {existing_folder(repo)}, project '{project}' is {place.repository}",
            next_step="Give only one of them.",
        )
    return place


def _which_project(workspace: Workspace) -> BadInput:
    return BadInput(
        "Which project is meant?",
        cause=f"{Path.cwd()} lies in no repository; known projects: "
        f"{', '.join(_known_projects(workspace)) or 'none'}",
        next_step="Give 'project' (a project's name or the path of a repository), or run "
        "'forge-mcp init' in the repository first.",
    )


def _artifacts(request: SkillRequest, workspace: Workspace) -> Iterator[Artifact]:
    for field, kinds in ARTIFACT_FIELDS.items():
        value = getattr(request, field, None)
        if isinstance(value, str) and field in type(request).model_fields:
            yield workspace.load(value, *kinds)


def _known_projects(workspace: Workspace) -> list[str]:
    rows = workspace.database.execute("SELECT name FROM projects ORDER BY name")
    return [row["name"] for row in rows]


def _known_root(workspace: Workspace, name: str) -> Path | None:
    """Where a project stands, or None where its repository is gone: its artifacts stay usable."""
    try:
        return workspace.project_root(name)
    except NotFound:
        return None
