"""Where DBOS keeps the queue, how values are written there, and what its errors mean in words.

SQLite in FORGE_HOME/jobs.db by default; FORGE_DATABASE_URL=postgresql://… puts the same tables
into PostgreSQL, for several machines that share FORGE_HOME.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forge_mcp.errors import (
    BadInput,
    Busy,
    CorruptArtifact,
    ForgeError,
    InvalidSettings,
    OutOfSpace,
    Unavailable,
)
from forge_mcp.workspace import is_full

URL_VARIABLE = "FORGE_DATABASE_URL"
APPLICATION = "forge"
# DBOS hands a workflow only to workers of its own application version. Ours never changes, so that
# an upgrade strands nothing: what a version must understand of an older one is JobSpec.
APPLICATION_VERSION = "1"
WORKFLOW = "forge_job"
TURNS_QUEUE = "forge-models"  # jobs that load a model, one at a time by default
OTHERS_QUEUE = "forge-others"
POLLING_SECONDS = 0.25
BUSY_SECONDS = 10.0  # that a face waits for a locked database


def database_path(home: Path) -> Path:
    """Of the SQLite file."""
    return home / "jobs.db"


def on_postgres() -> bool:
    """Whether the queue is in PostgreSQL."""
    return bool(os.environ.get(URL_VARIABLE))


def database_url(home: Path) -> str:
    """The address that DBOS is given.

    Raises:
        InvalidSettings: FORGE_DATABASE_URL is no PostgreSQL address.
    """
    given = os.environ.get(URL_VARIABLE)
    if not given:
        return f"sqlite:///{database_path(home)}"
    if not given.startswith(("postgresql://", "postgres://")):
        raise InvalidSettings(
            f"{URL_VARIABLE} is no address of a PostgreSQL database.",
            cause=f"it begins with '{given.split(':', 1)[0]}:'",
            next_step="Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or unset it to keep "
            "the queue in SQLite.",
        )
    return given


def engine(home: Path) -> Any:
    """The connection of a face: on SQLite one that gives up sooner than a worker's."""
    import sqlalchemy

    if on_postgres():
        return None
    made = sqlalchemy.create_engine(database_url(home))

    def connected(connection: Any, record: object) -> None:
        # As DBOS sets up its own: writers take turns from the start of a transaction.
        connection.isolation_level = "IMMEDIATE"
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA foreign_keys=ON")

    def failed(context: Any) -> None:
        # DBOS retries for ever what says "database is locked"; whoever asked shall be told.
        error = context.original_exception
        if "locked" in str(error) or "busy" in str(error):
            raise explain(error, home)

    sqlalchemy.event.listen(made, "connect", connected)
    sqlalchemy.event.listen(made, "handle_error", failed)
    return made


def described(home: Path) -> str:
    """The database in words, without a password."""
    if not on_postgres():
        return str(database_path(home))
    return os.environ[URL_VARIABLE].rsplit("@", 1)[-1]


def serializer() -> Any:
    """JSON for all that DBOS stores, and no way for it to unpickle what somebody put there.

    DBOS picks the decoder by a column of the row, so a row that says "pickle" would run code of
    whoever can write the database; its default serializer is made to refuse.
    """
    import dbos
    from dbos import _serialization

    def refuse(cls: Any, serialized_data: str) -> Any:
        raise CorruptArtifact(
            "The jobs' database holds a pickled value.",
            cause="AI Forge writes only JSON; somebody else has written there",
            next_step="Find out who; delete the row, or move the database away.",
        )

    _serialization.DefaultSerializer.deserialize = refuse  # type: ignore
    return dbos.DBOSPortableJSONSerializer()


@contextmanager
def in_words(home: Path) -> Iterator[None]:
    """Errors of the database as errors that a face can show.

    Raises:
        Busy: it is locked.
        CorruptArtifact: it is damaged.
        OutOfSpace: its disk is full.
        Unavailable: PostgreSQL is not there or refuses.
    """
    import sqlalchemy.exc
    from dbos import error as dbos_error

    try:
        yield
    except ForgeError:
        raise
    except (sqlalchemy.exc.DBAPIError, sqlite3.Error, dbos_error.DBOSException) as error:
        raise explain(error, home) from error


def explain(error: BaseException, home: Path) -> ForgeError:
    """What an error of the database means."""
    cause = str(getattr(error, "orig", None) or error).strip().splitlines() or ["no message"]
    first, where = cause[0][:300], described(home)
    if on_postgres():
        return Unavailable(
            f"The jobs' database at {where} cannot be used.",
            cause=first,
            next_step=f"Start PostgreSQL and check {URL_VARIABLE}; unset it to keep the queue in "
            "SQLite.",
        )
    if "locked" in first or "busy" in first:
        return Busy(
            f"The jobs' database {where} is locked.",
            cause="another program holds it, e.g. a database browser or a backup",
            next_step="Close that program and run it again.",
        )
    if "full" in first or is_full(home):
        return OutOfSpace(
            f"The jobs' database {where} cannot be written: the disk is full.",
            cause=first,
            next_step="Free some space and run it again; nothing was changed.",
        )
    if "readonly" in first or "unable to open" in first:
        return BadInput(
            f"The jobs' database {where} cannot be written.",
            cause=first,
            next_step="Give this user access to that file and its folder.",
        )
    return CorruptArtifact(
        f"The jobs' database {where} is damaged.",
        cause=first,
        next_step=f"Move {where} away: queued jobs are lost, artifacts and models stay; finished "
        "stages are found again when a job is started anew.",
    )
