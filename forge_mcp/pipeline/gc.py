"""The skill `gc`: what nothing needs any more leaves the workspace.

Artifacts form a graph along the parents in their manifests. Some are needed for their own sake
(`_roots`); every other one stays only where a needed one was made from it. So what stays never
lacks a parent, and what goes goes children first: a gc that is killed anywhere leaves nothing
behind that was made from something that is gone.

A folder goes in two steps: one rename takes it out of everybody's sight, into a folder under
staging/ that this process holds; then it is deleted. What a kill leaves there has lost its holder,
and the next writer or gc sweeps it.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from forge_mcp.errors import Cancelled, ForgeError, NotFound
from forge_mcp.locks import FileLock, is_held
from forge_mcp.pipeline.context import ALL_PROJECTS
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.pipeline.tryout import remove_abandoned
from forge_mcp.schemas.base import Schema
from forge_mcp.schemas.jobs import JobProgress, JobSpec
from forge_mcp.schemas.manifests import ArtifactKind
from forge_mcp.workspace import (
    FOLDERS,
    MANIFEST,
    STALE_STAGING_SECONDS,
    UNFINISHED,
    Artifact,
    Workspace,
    fsync_path,
    slug,
)

DAY = 24 * 3600.0
CACHE_DAYS = 30.0  # a cache only costs disk; without it the next extract takes seconds more
WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")  # the shape of an id


class GcRequest(SkillRequest):
    """How much shall stay, and whether anything is really removed."""

    apply: bool = Field(
        default=False, description="Remove; without it nothing is changed, only listed."
    )
    keep_newest: int = Field(
        default=1,
        ge=0,
        description="Artifacts of each kind that a project keeps in any case, the newest ones, "
        "with all that they were made from.",
    )
    older_than_days: float = Field(
        default=1.0, ge=0, description="Nothing younger than this many days is removed."
    )


class Removed(Schema):
    """Something that goes, or would go."""

    id: str
    kind: ArtifactKind | Literal["unfinished", "staging", "cache"] = Field(
        description="unfinished: a run that was stopped; staging: what a killed writer left; "
        "cache: what would be computed again if it were wanted, and long was not."
    )
    project: str = Field(
        description="Its short form for 'unfinished', empty for 'staging' and 'cache'."
    )
    bytes: int
    reason: str


class GcResult(SkillResult):
    """What went, or would go, and what stays."""

    applied: bool = Field(description="False: nothing was removed, this is what would be.")
    removed: list[Removed]
    kept: dict[str, int] = Field(description="How many of each kind stay.")
    freed_bytes: int
    damaged: list[str] = Field(
        description="Artifacts that cannot be read. They are never removed: look at them, then "
        "delete their folders by hand."
    )
    seconds: float


class Going(NamedTuple):
    """A folder that goes, and how it is told of."""

    path: Path
    entry: Removed


@dataclass(frozen=True)
class House:
    """Every artifact of the workspace, as it was read once."""

    artifacts: dict[str, Artifact]
    damaged: dict[str, Path]

    def mentioned(self, text: str) -> set[str]:
        """The artifacts that a text names: by id, in a path, or by the name of a model."""
        words = set(WORD.findall(text))
        return {name for name in self.artifacts if {name, name.removeprefix("deploy-")} & words}

    def with_ancestors(self, names: Iterable[str]) -> set[str]:
        """These artifacts and all that they were made from; what is not there is left out."""
        found: set[str] = set()
        level = set(names) & self.artifacts.keys()
        while level:
            found |= level
            parents = {p for name in level for p in self.artifacts[name].manifest.parents}
            level = (parents & self.artifacts.keys()) - found
        return found

    def with_reports(self, needed: set[str]) -> set[str]:
        """Reports tell what other artifacts are worth, so they stay as long as those do."""
        reports = {
            name
            for name, artifact in self.artifacts.items()
            if artifact.manifest.kind == "report" and artifact.manifest.parents
            if needed.issuperset(artifact.manifest.parents)
        }
        return needed | reports

    def children_first(self, names: set[str]) -> list[Artifact]:
        """These artifacts in an order in which none goes before what was made from it."""
        sorter: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(sorted(names), ()))
        for name in sorted(names):
            for parent in sorted(names.intersection(self.artifacts[name].manifest.parents)):
                sorter.add(parent, name)
        return [self.artifacts[name] for name in sorter.static_order()]


@dataclass(frozen=True)
class Job:
    """A job that has not ended. `project` is None where its files do not say it."""

    text: str
    project: str | None


@skill(
    title="Clean up the workspace",
    destructive=True,
    scope="all",
    examples=("forge-mcp gc", "forge-mcp gc --apply --older-than-days 7"),
)
def gc(request: GcRequest, context: SkillContext) -> GcResult:
    """Free disk space: remove the artifacts that nothing deployed, running or recent needs.

    Use this when the disk fills up; doctor tells how much is free. Without `apply` it only lists
    what would go. It looks at all projects unless `project` names one. Kept are: what the active
    and the previous model of every project need, so that query and rollback work as before; what
    a job that has not ended reads or has made; the newest artifacts of each kind; all that is
    younger than a day. A model that was deployed earlier still, and is not the newest, goes, from
    Ollama too. What cannot be read is reported as damaged and left alone.
    """
    started = time.perf_counter()
    workspace = context.workspace
    with FileLock(workspace.home / "locks" / "gc") as lock:
        if request.apply:
            lock.wait(context.check, lambda: context.log("Another gc is at work; waiting for it."))
            remove_abandoned(context)
        house = _survey(workspace)
        jobs = list(_running_jobs(workspace.home))
        leftovers, waiting = _leftovers(jobs, request, context)
        needed = house.with_reports(
            house.with_ancestors(_roots(house, jobs, waiting, request, context))
        )
        # What Ollama holds and would not let go stays, with all that it was made from.
        needed |= house.with_ancestors(_out_of_reach(_deployments(house, needed), context))
        if request.apply:
            needed |= house.with_ancestors(_undeploy(_deployments(house, needed), context))
        doomed = house.children_first(house.artifacts.keys() - needed)
        going = [_artifact_goes(one) for one in doomed] + leftovers
        removed = _remove(going, context) if request.apply else [one.entry for one in going]
        if request.apply:
            _sweep_servers(context)
    gone = {one.id for one in removed if one.kind in FOLDERS}
    kept: Counter[str] = Counter(
        artifact.manifest.kind
        for name, artifact in house.artifacts.items()
        if name not in gone and context.project in (ALL_PROJECTS, artifact.manifest.project)
    )
    return GcResult(
        applied=request.apply,
        removed=removed,
        kept=dict(kept),
        freed_bytes=sum(one.bytes for one in removed),
        damaged=sorted(house.damaged),
        seconds=round(time.perf_counter() - started, 3),
    )


def _sweep_servers(context: SkillContext) -> None:
    """Records and logs of model servers that have died; those that live watch their own files."""
    from forge_mcp.serving.llamacpp_server import sweep_servers

    for model in sweep_servers(context.workspace):
        context.log(f"Removed what a server of {model} that had died left behind.")


# -- what there is ---------------------------------------------------------------------------------


def _survey(workspace: Workspace) -> House:
    artifacts: dict[str, Artifact] = {}
    damaged: dict[str, Path] = {}
    for kind in FOLDERS:
        for artifact in workspace.artifacts(kind):
            if artifact.id == artifact.path.name:
                artifacts[artifact.id] = artifact
            else:  # a copy made by hand: what its manifest says is true of another folder
                damaged[artifact.path.name] = artifact.path
        for name in workspace.damaged(kind):
            path = workspace.folder(kind) / name
            if path.is_dir():  # and not one that another gc has just taken
                damaged[name] = path
    return House(artifacts, damaged)


def _running_jobs(home: Path) -> Iterator[Job]:
    """What has not ended; a job of which that cannot be read is taken to run."""
    for folder in sorted((home / "jobs").glob("*/")):
        spec, progress = _text(folder / "spec.json"), _text(folder / "progress.json")
        with suppress(ValidationError):
            if JobProgress.model_validate_json(progress).state == "ended":
                continue
        project = None
        with suppress(ValidationError):
            project = JobSpec.model_validate_json(spec).project
        yield Job(spec + progress, project)


def _leftovers(
    jobs: list[Job], request: GcRequest, context: SkillContext
) -> tuple[list[Going], list[Path]]:
    """What goes of unfinished/ and staging/, and the unfinished runs that stay."""
    home = context.workspace.home
    going: list[Going] = []
    waiting: list[Path] = []
    for path in _entries(home / UNFINISHED):
        project = path.name.partition("-")[2].rpartition("-")[0]
        days = (time.time() - _touched(path)) / DAY
        resumable = any(job.project is None or slug(job.project) == project for job in jobs)
        if days < request.older_than_days or resumable or is_held(path):
            waiting.append(path)
        elif context.project == ALL_PROJECTS or slug(context.project) == project:
            reason = f"stopped {days:.1f} days ago, and nobody went on with it"
            going.append(_leftover_goes(path, "unfinished", project, reason))
    if context.project == ALL_PROJECTS:
        for path in _entries(home / "staging"):
            with suppress(FileNotFoundError):  # swept by a writer meanwhile
                # The age first: a folder that was only just made may not be locked yet.
                old = time.time() - path.stat().st_mtime >= STALE_STAGING_SECONDS
                if old and not is_held(path):
                    going.append(_leftover_goes(path, "staging", "", "its writer was killed"))
        caches = home / "cache"
        for path in (
            *_entries(caches / "mining"),
            *_entries(caches / "retrieval"),
            caches / "teacher",
            caches / "humaneval",
        ):
            if not path.is_dir():
                continue
            days = (time.time() - max(one.stat().st_mtime for one in (path, *path.iterdir()))) / DAY
            if days >= max(request.older_than_days, CACHE_DAYS) and not is_held(path):
                reason = f"it was last written {days:.0f} days ago"
                going.append(_leftover_goes(path, "cache", "", reason))
    return going, waiting


# -- what stays ------------------------------------------------------------------------------------


def _roots(
    house: House, jobs: list[Job], waiting: list[Path], request: GcRequest, context: SkillContext
) -> set[str]:
    """What is needed for its own sake."""
    from forge_mcp.training.child import REQUEST
    from forge_mcp.training.supervise import SCRATCH

    roots: set[str] = set()
    for row in _in_use(context.workspace.database):
        roots |= {row["id"], row["run"], row["export"]}
    # Texts that name what somebody reads: jobs, trainings that run (whoever started them), and
    # manifests that are damaged or of a newer version.
    texts = [job.text for job in jobs]
    texts += [_text(one) for path in waiting for one in path.glob(f"{SCRATCH}*/{REQUEST}")]
    texts += [_text(path / MANIFEST) for path in house.damaged.values()]
    for text in texts:
        roots |= house.mentioned(text)
    seen: Counter[tuple[str, str]] = Counter()
    for name, artifact in house.artifacts.items():  # of each kind, newest first
        group = (artifact.manifest.project, artifact.manifest.kind)
        seen[group] += 1
        newest = seen[group] <= request.keep_newest
        other = context.project not in (ALL_PROJECTS, artifact.manifest.project)
        if newest or other or _days_old(artifact) < request.older_than_days:
            roots.add(name)
    return roots


def _in_use(database: sqlite3.Connection) -> list[sqlite3.Row]:
    """The registry's rows of the active and the previous deployment of every project."""
    return database.execute(
        "SELECT d.* FROM deployments d JOIN active a ON d.id IN (a.deployment, a.previous)"
    ).fetchall()


def _deployments(house: House, needed: set[str]) -> list[Artifact]:
    """The deployments among what is not needed."""
    spare = sorted(house.artifacts.keys() - needed)
    return [house.artifacts[n] for n in spare if house.artifacts[n].manifest.kind == "deployment"]


def _out_of_reach(deployments: list[Artifact], context: SkillContext) -> set[str]:
    """Those in an Ollama that does not answer now: removed here, they would stay there for ever."""
    from forge_mcp.serving.ollama import check_ollama_status

    inside = [(one, _ollama_host(one)) for one in deployments]
    answers = {host: check_ollama_status(host) for host in {host for _, host in inside} if host}
    stay = {one.id: host for one, host in inside if host and not answers[host]}
    for name, host in sorted(stay.items()):
        context.log(f"{name} stays: Ollama does not answer at {host}.", warning=True)
    return set(stay)


# -- removing --------------------------------------------------------------------------------------


def _undeploy(deployments: list[Artifact], context: SkillContext) -> set[str]:
    """Take deployments out of the registry and out of Ollama; returns those that must stay.

    One transaction: nobody activates one of them, or deploys, between the last look and the end.
    A kill within it leaves rows whose model is gone from Ollama; `activate` says so, and the next
    gc takes them.
    """
    stay: set[str] = set()
    with context.workspace.database as database:
        database.execute("BEGIN IMMEDIATE")
        in_use = {row["id"] for row in _in_use(database)}
        for one in deployments:
            if one.id in in_use or not _leaves_ollama(one, context):
                stay.add(one.id)
            else:
                database.execute("DELETE FROM deployments WHERE id = ?", (one.id,))
    return stay


def _leaves_ollama(deployment: Artifact, context: SkillContext) -> bool:
    """Whether no model of this deployment is in Ollama any more."""
    from forge_mcp.serving.ollama import delete_ollama_model

    host = _ollama_host(deployment)
    if host is None:
        return True
    try:
        delete_ollama_model(deployment.manifest.result["model"], host=host)
    except NotFound:  # removed there by hand
        return True
    except ForgeError as error:
        context.log(f"{deployment.id} stays: {error.message} {error.cause}", warning=True)
        return False
    return True


def _ollama_host(deployment: Artifact) -> str | None:
    """Where a deployment's model was created in Ollama; None where it was not."""
    if deployment.manifest.result.get("target") != "ollama":
        return None
    return str(deployment.manifest.settings["serving"]["ollama_host"])


def _remove(going: list[Going], context: SkillContext) -> list[Removed]:
    """Remove them in this order; returns the entries of those that really went.

    Raises:
        Cancelled: it was stopped on the way; what is left is whole.
    """
    staging = context.workspace.home / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    trash = Path(tempfile.mkdtemp(prefix="gc-", dir=staging))
    removed: list[Removed] = []
    with FileLock(trash) as lock:
        lock.acquire()
        try:
            for number, one in enumerate(going):
                context.progress(number, len(going), one.entry.id)
                if _take(one, trash / str(number)):
                    removed.append(one.entry)
        except (Cancelled, KeyboardInterrupt) as stop:
            raise Cancelled(
                "gc was stopped.",
                cause="a client, a user or a signal asked for it",
                next_step=f"{len(removed)} of {len(going)} were removed, and what is left is "
                "whole; run it again for the rest.",
            ) from stop
        finally:
            shutil.rmtree(trash, ignore_errors=True)
    if trash.exists():
        context.log(f"Some files could not be deleted and lie in {trash}.", warning=True)
    return removed


def _take(one: Going, target: Path) -> bool:
    """Rename a folder out of sight, and see that the disk knows before a parent follows."""
    with FileLock(one.path, folder=True) as lock:
        if one.entry.kind == "unfinished" and not lock.acquire():  # somebody went on with it
            return False
        try:
            one.path.rename(target)
        except FileNotFoundError:  # deleted by hand, or swept
            return False
    fsync_path(one.path.parent)
    return True


# -- small things ----------------------------------------------------------------------------------


def _artifact_goes(artifact: Artifact) -> Going:
    entry = Removed(
        id=artifact.id,
        kind=artifact.manifest.kind,
        project=artifact.manifest.project,
        bytes=_size(artifact.path),
        reason=f"made {_days_old(artifact):.1f} days ago, and nothing that stays needs it",
    )
    return Going(artifact.path, entry)


def _leftover_goes(
    path: Path, kind: Literal["unfinished", "staging", "cache"], project: str, reason: str
) -> Going:
    size = _size(path)
    return Going(path, Removed(id=path.name, kind=kind, project=project, bytes=size, reason=reason))


def _days_old(artifact: Artifact) -> float:
    """Age by the manifest; one that says no date is younger than anything, and so stays."""
    try:
        return (time.time() - datetime.fromisoformat(artifact.manifest.created).timestamp()) / DAY
    except ValueError:
        return float("-inf")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _inside(path: Path) -> Iterator[Path]:
    yield path
    for folder, folders, files in os.walk(path):
        yield from (Path(folder) / name for name in (*folders, *files))


def _size(path: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for one in _inside(path):
        with suppress(FileNotFoundError):  # its folder is being removed by somebody else
            total += one.lstat().st_size if one.is_file() else 0
    return total


def _touched(path: Path) -> float:
    """When something was last written in a folder."""
    times = [0.0]
    for one in _inside(path):
        with suppress(FileNotFoundError):
            times.append(one.lstat().st_mtime)
    return max(times)


def _text(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
