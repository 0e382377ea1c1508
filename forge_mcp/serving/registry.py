"""Which model a project uses: every deployment, the active one, and the one before it.

Rows of forge.db; each change is one transaction, so a deployment that fails half-way leaves the
active model as it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from forge_mcp.errors import Busy, NotFound
from forge_mcp.workspace import Workspace

NOTHING_DEPLOYED = (
    "Run 'forge-mcp retrain' in the repository, or 'forge-mcp deploy RUN' for a run that is there."
)


@dataclass(frozen=True)
class Deployment:
    """One deployed model. `id`, `run` and `export` are ids of artifacts."""

    id: str
    project: str
    model: str
    target: str
    run: str
    export: str
    created: str


@dataclass(frozen=True)
class Standing:
    """The active deployment of a project and the one that `rollback` returns to."""

    active: Deployment | None
    previous: Deployment | None


def register(
    workspace: Workspace,
    *,
    id: str,
    project: str,
    model: str,
    target: str,
    run: str,
    export: str,
) -> Standing:
    """Add a deployment (again, if need be) and make it the active one, in one transaction."""
    with _writing(workspace) as database:
        database.execute(
            "INSERT INTO deployments VALUES "
            "(?, (SELECT COALESCE(MAX(sequence), 0) + 1 FROM deployments), ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO NOTHING",
            (
                id,
                project,
                model,
                target,
                run,
                export,
                datetime.now(UTC).isoformat(timespec="seconds"),
            ),
        )
        _switch(database, project, id)
    return standing(workspace, project)


def set_active_model(workspace: Workspace, project: str, model: str) -> Standing:
    """Make a deployed model the active one; the one that was becomes the previous one.

    Raises:
        NotFound: the project has no deployment of that name.
    """
    deployment = find_deployment(workspace, project, model)
    with _writing(workspace) as database:
        _switch(database, project, deployment.id)
    return standing(workspace, project)


def rollback(workspace: Workspace, project: str) -> Standing:
    """Swap the active and the previous deployment; a second call undoes the first.

    Raises:
        NotFound: there is no previous one.
    """
    with _writing(workspace) as database:
        row = database.execute("SELECT * FROM active WHERE project = ?", (project,)).fetchone()
        if row is None or row["previous"] is None:
            raise NotFound(
                f"There is no earlier model of '{project}' to go back to.",
                cause="nothing is deployed" if row is None else "only one model was ever active",
                next_step=NOTHING_DEPLOYED if row is None else "See 'forge-mcp models'.",
            )
        database.execute(
            "UPDATE active SET deployment = ?, previous = ? WHERE project = ?",
            (row["previous"], row["deployment"], project),
        )
    return standing(workspace, project)


def standing(workspace: Workspace, project: str) -> Standing:
    """What is active in a project, and what was before."""
    row = workspace.database.execute(
        "SELECT * FROM active WHERE project = ?", (project,)
    ).fetchone()
    if row is None:
        return Standing(None, None)
    known = {deployment.id: deployment for deployment in deployments(workspace, project)}
    return Standing(known[row["deployment"]], known.get(row["previous"]))


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
    return [
        Deployment(**{name: row[name] for name in row.keys() if name != "sequence"})  # noqa: SIM118
        for row in rows
    ]


def _switch(database: sqlite3.Connection, project: str, deployment: str) -> None:
    """The named one becomes active; where it already is, nothing changes."""
    database.execute(
        "INSERT INTO active VALUES (?, ?, NULL) ON CONFLICT (project) DO UPDATE "
        "SET previous = deployment, deployment = excluded.deployment "
        "WHERE deployment <> excluded.deployment",
        (project, deployment),
    )


@contextmanager
def _writing(workspace: Workspace) -> Iterator[sqlite3.Connection]:
    """One transaction; any exception takes everything in it back.

    Raises:
        Busy: another process is writing for too long.
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
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
