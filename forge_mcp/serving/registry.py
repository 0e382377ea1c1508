"""Which model a project uses: its deployments, the active one, and how it came to that.

Rows of forge.db. Every change is one transaction that writes the active model and one entry of the
history together, so the history is a chain: each entry starts at the model where the one before it
ended, the last one ends at the active model, and starts at the one that `rollback` returns to.
"""

from __future__ import annotations

import errno
import getpass
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Literal, TypeVar

from forge_mcp.errors import BadInput, Busy, NotFound, from_os_error
from forge_mcp.workspace import Workspace, is_full

NOTHING_DEPLOYED = (
    "Run 'forge-mcp retrain' in the repository, or 'forge-mcp deploy RUN' for a run that is there."
)
Action = Literal["deploy", "activate", "rollback"]


@dataclass(frozen=True)
class Actor:
    """Who did something: user and host by name, the face (cli, mcp, rest, job), and the process."""

    user: str | None = None
    host: str | None = None
    face: str | None = None
    process: int | None = None

    @classmethod
    def here(cls, face: str) -> Actor:
        """This process."""
        return cls(_user(), socket.gethostname(), face, os.getpid())


@dataclass(frozen=True)
class Origin:
    """What a deployment was made from; null where it is not known (older rows) or not there.

    Ids of artifacts, the repository's commit and whether it had uncommitted changes, and of the
    GGUF its SHA-256 (hex), its quantisation and its size. `imported` is "HOST at TIME" for a
    deployment that came in a bundle.
    """

    corpus: str | None = None
    dataset: str | None = None
    report: str | None = None
    revision: str | None = None
    dirty: bool | None = None
    sha256: str | None = None
    quantization: str | None = None
    bytes: int | None = None
    imported: str | None = None


Part = TypeVar("Part", Origin, Actor)


@dataclass(frozen=True)
class Deployment:
    """One deployed model. `id`, `run` and `export` are ids of artifacts.

    `tried` is when it last answered here, where it runs; None for one that never was asked.
    """

    id: str
    project: str
    model: str
    target: str
    run: str
    export: str
    created: str
    tried: str | None = None
    origin: Origin = Origin()
    by: Actor = Actor()


@dataclass(frozen=True)
class Standing:
    """The active deployment of a project and the one that `rollback` returns to."""

    active: Deployment | None
    previous: Deployment | None


@dataclass(frozen=True)
class Activation:
    """One entry of the history: `to` became the active model in the place of `from_`.

    Either is None for no model. `time` is None in entries about what was active before a history
    was kept.
    """

    number: int
    action: Action
    from_: str | None
    to: str | None
    reason: str
    time: str | None
    by: Actor


@dataclass(frozen=True)
class HalfMade:
    """A model that somebody began to create in Ollama and that no deployment has yet."""

    model: str
    host: str
    project: str


# -- changes ---------------------------------------------------------------------------------------


def register(
    workspace: Workspace,
    *,
    id: str,
    project: str,
    model: str,
    target: str,
    run: str,
    export: str,
    origin: Origin | None = None,
    by: Actor | None = None,
    activate: bool = True,
    seen: Standing | None = None,
    reason: str = "",
) -> Standing:
    """Add a deployment (again, if need be) and make it the active one, in one transaction.

    Args:
        workspace: whose registry.
        id: of the deployment.
        project: whose.
        model: its name, the same everywhere.
        target: llamacpp or ollama.
        run: id.
        export: id.
        origin: what else it was made from.
        by: who deploys it.
        activate: False only adds it; it counts as never tried.
        seen: what the caller has compared it with; see `set_active_model`.
        reason: for the history.

    Raises:
        Busy: the active model is not the one in `seen` any more, or the registry is busy.
    """
    origin, by = origin or Origin(), by or Actor()
    row = {
        "id": id,
        "project": project,
        "model": model,
        "target": target,
        "run": run,
        "export": export,
        "created": _now(),
        "tried": _now() if activate else None,
        **asdict(origin),
        **asdict(by),
    }
    with _writing(workspace) as database:
        if seen is not None:
            _require_seen(workspace, project, seen, previous_too=False)
        database.execute(
            f"INSERT INTO deployments (sequence, {', '.join(row)}) VALUES "  # noqa: S608 -- our names
            "((SELECT COALESCE(MAX(sequence), 0) + 1 FROM deployments), "
            f"{', '.join(':' + name for name in row)}) "
            "ON CONFLICT (id) DO UPDATE SET tried = COALESCE(excluded.tried, tried)",
            row,
        )
        database.execute("DELETE FROM half_made WHERE model = ? AND project = ?", (model, project))
        if activate:
            _switch(database, project, id, "deploy", by, reason)
    return standing(workspace, project)


def set_active_model(
    workspace: Workspace,
    project: str,
    model: str,
    *,
    by: Actor | None = None,
    seen: Standing | None = None,
    reason: str = "",
    tried: bool = False,
) -> Standing:
    """Make a deployed model the active one; the one that was becomes the previous one.

    Args:
        workspace: whose registry.
        project: whose.
        model: name or id of a deployment.
        by: who does it.
        seen: what was active when the caller decided; where that has changed, nothing is done.
        reason: for the history.
        tried: it has just answered, where it runs.

    Raises:
        NotFound: the project has no deployment of that name.
        Busy: the active model is not the one in `seen` any more, or the registry is busy.
    """
    with _writing(workspace) as database:
        deployment = find_deployment(workspace, project, model)
        if seen is not None:
            _require_seen(workspace, project, seen, previous_too=False)
        if tried:
            database.execute(
                "UPDATE deployments SET tried = ? WHERE id = ?", (_now(), deployment.id)
            )
        database.execute(
            "DELETE FROM half_made WHERE model = ? AND project = ?", (deployment.model, project)
        )
        _switch(database, project, deployment.id, "activate", by or Actor(), reason)
    return standing(workspace, project)


def rollback(
    workspace: Workspace,
    project: str,
    *,
    by: Actor | None = None,
    seen: Standing | None = None,
    reason: str = "",
) -> Standing:
    """Take the last change of the active model back: the previous one becomes active.

    `previous` is always what was active before the present one came, however it came. So a
    rollback is a change like any other and can be taken back by another one: called twice, the two
    change places (as `helm rollback` and `kubectl rollout undo` do). Whoever wants to go further
    back activates a model by its name; the history has the names.

    Before the first model there was none, and that is nothing to go back to. Only an imported one
    gives way to none: nothing that is trained here can be compared with it and take its place.

    Raises:
        NotFound: there is no previous one.
        Busy: active and previous are not those in `seen` any more, or the registry is busy.
    """
    with _writing(workspace) as database:
        now = standing(workspace, project)
        if now.active is None or not (now.previous or now.active.origin.imported):
            raise NotFound(
                f"There is no earlier model of '{project}' to go back to.",
                cause="nothing is deployed"
                if now.active is None
                else "only one model was ever active",
                next_step=NOTHING_DEPLOYED if now.active is None else "See 'forge-mcp models'.",
            )
        if seen is not None:
            _require_seen(workspace, project, seen, previous_too=True)
        if now.previous is not None:
            _switch(database, project, now.previous.id, "rollback", by or Actor(), reason)
        else:
            database.execute("DELETE FROM active WHERE project = ?", (project,))
            _note(database, project, "rollback", now.active.model, None, by or Actor(), reason)
    return standing(workspace, project)


# -- reading ---------------------------------------------------------------------------------------


def standing(workspace: Workspace, project: str) -> Standing:
    """What is active in a project, and what was before."""
    rows = {
        row["place"]: _deployment(row)
        for row in workspace.database.execute(
            "SELECT d.*, d.id = a.deployment AS place FROM active a "
            "JOIN deployments d ON d.id IN (a.deployment, a.previous) WHERE a.project = ?",
            (project,),
        )
    }
    return Standing(rows.get(1), rows.get(0))


def get_active_model(workspace: Workspace, project: str) -> Deployment:
    """The active deployment.

    Raises:
        NotFound: nothing is deployed.
    """
    active = standing(workspace, project).active
    if active is None:
        raise NotFound(
            f"No model of '{project}' is deployed.",
            cause="none was trained, or none has passed its gates",
            next_step=NOTHING_DEPLOYED,
        )
    return active


def find_deployment(workspace: Workspace, project: str, model: str) -> Deployment:
    """A deployment by its model's name or its id.

    Raises:
        NotFound: the project has none of that name.
    """
    known = deployments(workspace, project)
    for deployment in known:
        if model in (deployment.model, deployment.id):
            return deployment
    raise NotFound(
        f"No model '{model}' of '{project}' is deployed.",
        cause=f"deployed are: {', '.join(d.model for d in known) or 'none'}",
        next_step=f"Use one of them. {NOTHING_DEPLOYED}",
    )


def deployments(workspace: Workspace, project: str) -> list[Deployment]:
    """All deployments of a project, newest first."""
    rows = workspace.database.execute(
        "SELECT * FROM deployments WHERE project = ? ORDER BY sequence DESC", (project,)
    )
    return [_deployment(row) for row in rows]


def history(workspace: Workspace, project: str, limit: int | None = None) -> list[Activation]:
    """The changes of the active model, newest first; the newest `limit` where one is given.

    Models that were removed since are still named.
    """
    rows = workspace.database.execute(
        "SELECT * FROM history WHERE project = ? ORDER BY number DESC LIMIT ?",
        (project, -1 if limit is None else limit),
    )
    return [
        Activation(
            number=row["number"],
            action=row["action"],
            from_=row["from_model"],
            to=row["to_model"],
            reason=row["reason"],
            time=row["time"],
            by=_part(Actor, row),
        )
        for row in rows
    ]


# -- models that are being created in Ollama -------------------------------------------------------


def remember_half_made(workspace: Workspace, half_made: HalfMade) -> None:
    """Note that a model is about to be created, before it is: who dies on the way cannot tell.

    `register` and `set_active_model` forget it in the transaction that makes it a deployment.
    """
    with _writing(workspace) as database:
        database.execute(
            "INSERT INTO half_made (model, host, project) VALUES (?, ?, ?) "
            "ON CONFLICT (model, host) DO NOTHING",
            (half_made.model, half_made.host, half_made.project),
        )


def half_made(workspace: Workspace, project: str) -> list[HalfMade]:
    """The models of a project that were begun and never became a deployment."""
    rows = workspace.database.execute(
        "SELECT model, host, project FROM half_made WHERE project = ? ORDER BY model, host",
        (project,),
    )
    return [HalfMade(*row) for row in rows]


def forget_half_made(workspace: Workspace, half_made: HalfMade) -> None:
    """Note that nothing of that model is left."""
    with _writing(workspace) as database:
        database.execute(
            "DELETE FROM half_made WHERE model = ? AND host = ?", (half_made.model, half_made.host)
        )


# -- parts -----------------------------------------------------------------------------------------


def _switch(
    database: sqlite3.Connection,
    project: str,
    deployment: str,
    action: Action,
    by: Actor,
    reason: str,
) -> None:
    """The named one becomes active; where it already is, nothing changes."""
    before, after = (
        database.execute(
            "SELECT d.id, d.model FROM deployments d JOIN active a ON d.id = a.deployment "
            "WHERE a.project = ?",
            (project,),
        ).fetchone(),
        database.execute(
            "SELECT id, model FROM deployments WHERE id = ?", (deployment,)
        ).fetchone(),
    )
    if before is not None and before["id"] == deployment:
        return
    database.execute(
        "INSERT OR REPLACE INTO active VALUES (?, ?, ?)",
        (project, deployment, before and before["id"]),
    )
    _note(database, project, action, before and before["model"], after["model"], by, reason)


def _note(
    database: sqlite3.Connection,
    project: str,
    action: Action,
    before: str | None,
    after: str | None,
    by: Actor,
    reason: str,
) -> None:
    """One more entry of the history."""
    database.execute(
        "INSERT INTO history "
        "(project, action, from_model, to_model, reason, time, user, host, face, process) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (project, action, before, after, reason, _now(), by.user, by.host, by.face, by.process),
    )


def _require_seen(
    workspace: Workspace, project: str, seen: Standing, *, previous_too: bool
) -> None:
    """Raises:
    Busy: somebody else changed the active model since `seen` was read.
    """
    now = standing(workspace, project)
    same = _id(now.active) == _id(seen.active)
    if same and previous_too:
        same = _id(now.previous) == _id(seen.previous)
    if not same:
        latest = history(workspace, project, 1)
        who = f" by {latest[0].action} ({describe(latest[0].by)})" if latest else ""
        raise Busy(
            f"The active model of '{project}' was changed meanwhile.",
            cause=f"it is {now.active.model if now.active else 'none'} now{who}, it was "
            f"{seen.active.model if seen.active else 'none'}",
            next_step="Look at 'forge-mcp models', and decide again.",
        )


def require_active(workspace: Workspace, project: str, model: str) -> Standing:
    """What stands, where a given model is the active one.

    Raises:
        BadInput: another one is, or none.
    """
    now = standing(workspace, project)
    if now.active is None or model not in (now.active.model, now.active.id):
        raise BadInput(
            f"{model} is not the active model of '{project}'.",
            cause=f"active is {now.active.model if now.active else 'none'}",
            next_step="Nothing was changed. See 'forge-mcp models'.",
        )
    return now


def describe(by: Actor) -> str:
    """E.g. 'ann@studio, cli, process 4711'; 'unknown' where nothing is known."""
    place = "@".join(name for name in (by.user, by.host) if name)
    process = f"process {by.process}" if by.process else ""
    return ", ".join(part for part in (place, by.face, process) if part) or "unknown"


def _deployment(row: sqlite3.Row) -> Deployment:
    origin = _part(Origin, row)
    own = [one.name for one in fields(Deployment) if one.name not in ("origin", "by")]
    return Deployment(**{name: row[name] for name in own}, origin=origin, by=_part(Actor, row))


def _part(kind: type[Part], row: sqlite3.Row) -> Part:
    values = {one.name: row[one.name] for one in fields(kind)}
    if values.get("dirty") is not None:
        values["dirty"] = bool(values["dirty"])
    return kind(**values)


def _id(deployment: Deployment | None) -> str | None:
    return deployment.id if deployment else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _writing(workspace: Workspace) -> Iterator[sqlite3.Connection]:
    """One transaction; any exception takes everything in it back.

    Raises:
        Busy: another process is writing for too long.
        OutOfSpace: the disk is full; nothing was changed.
    """
    database = workspace.database
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        raise Busy(
            "The registry is being written by another process.",
            cause=str(error),
            next_step="Run it again in a moment.",
        ) from error
    try:
        yield database
        database.execute("COMMIT")
    except BaseException as error:
        with suppress(sqlite3.OperationalError):  # SQLite has done it itself where the disk is full
            database.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError) and (
            "full" in str(error) or is_full(workspace.home)
        ):
            raise from_os_error(
                OSError(errno.ENOSPC, str(error), str(workspace.home)), "write the registry"
            ) from error
        raise
