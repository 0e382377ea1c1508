"""The workspace: one folder of immutable artifacts and one small database.

    FORGE_HOME/
        forge.db                 projects and deployments (SQLite, numbered migrations)
        corpora/ datasets/ runs/ reports/ exports/ deployments/
        staging/                 what is being written
        unfinished/              runs that were stopped and can go on from their checkpoint

A folder appears under its id only when whole: it is written under staging/, its files are hashed
and fsynced, `manifest.json` is written last, and one rename gives it its name. An artifact whose
inputs (by hash) were seen before is found again instead of being made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forge_mcp.errors import Busy, CorruptArtifact, NotFound, from_os_error
from forge_mcp.locks import FileLock, is_held
from forge_mcp.schemas.manifests import SCHEMA_VERSION, ArtifactKind, Manifest, RepositoryState
from forge_mcp.settings import forge_home

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"
FOLDERS: dict[ArtifactKind, str] = {
    "corpus": "corpora",
    "dataset": "datasets",
    "run": "runs",
    "report": "reports",
    "export": "exports",
    "deployment": "deployments",
}
PREFIXES: dict[ArtifactKind, str] = {
    "corpus": "corpus",
    "dataset": "ds",
    "run": "run",
    "report": "report",
    "export": "export",
    "deployment": "deploy",
}
RESULT_PATHS = ("path", "gguf", "modelfile", "report")  # keys of results that hold paths of ours
VERSIONED_PACKAGES = ("forge-mcp", "mlx", "mlx-lm", "tree-sitter", "gguf", "xllamacpp")
FULL_BYTES = 100_000
STALE_STAGING_SECONDS = 60  # an unlocked folder this old has lost its writer

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE projects (
        name TEXT PRIMARY KEY,
        root TEXT NOT NULL
    );
    CREATE TABLE deployments (
        id TEXT PRIMARY KEY,
        sequence INTEGER NOT NULL UNIQUE,
        project TEXT NOT NULL,
        model TEXT NOT NULL UNIQUE,
        target TEXT NOT NULL,
        run TEXT NOT NULL,
        export TEXT NOT NULL,
        created TEXT NOT NULL
    );
    CREATE TABLE active (
        project TEXT PRIMARY KEY,
        deployment TEXT NOT NULL REFERENCES deployments (id),
        previous TEXT REFERENCES deployments (id)
    );
    """,
    # Where a deployment comes from, the history of what was active (models are named, not
    # referenced: gc removes deployments), and models that are being created in Ollama.
    """
    ALTER TABLE deployments ADD COLUMN tried TEXT;
    ALTER TABLE deployments ADD COLUMN corpus TEXT;
    ALTER TABLE deployments ADD COLUMN dataset TEXT;
    ALTER TABLE deployments ADD COLUMN report TEXT;
    ALTER TABLE deployments ADD COLUMN revision TEXT;
    ALTER TABLE deployments ADD COLUMN dirty INTEGER;
    ALTER TABLE deployments ADD COLUMN sha256 TEXT;
    ALTER TABLE deployments ADD COLUMN quantization TEXT;
    ALTER TABLE deployments ADD COLUMN bytes INTEGER;
    ALTER TABLE deployments ADD COLUMN imported TEXT;
    ALTER TABLE deployments ADD COLUMN user TEXT;
    ALTER TABLE deployments ADD COLUMN host TEXT;
    ALTER TABLE deployments ADD COLUMN face TEXT;
    ALTER TABLE deployments ADD COLUMN process INTEGER;
    UPDATE deployments SET tried = created;
    CREATE TABLE history (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        project TEXT NOT NULL,
        action TEXT NOT NULL,
        from_model TEXT,
        to_model TEXT,
        reason TEXT NOT NULL,
        time TEXT,
        user TEXT,
        host TEXT,
        face TEXT,
        process INTEGER
    );
    CREATE INDEX history_by_project ON history (project, number);
    INSERT INTO history (project, action, to_model, reason)
        SELECT a.project, 'activate', d.model, 'active before a history was kept'
        FROM active a JOIN deployments d ON d.id = a.previous;
    INSERT INTO history (project, action, from_model, to_model, reason)
        SELECT a.project, 'activate', p.model, d.model, 'active when the history began'
        FROM active a JOIN deployments d ON d.id = a.deployment
        LEFT JOIN deployments p ON p.id = a.previous;
    CREATE TABLE half_made (
        model TEXT NOT NULL,
        host TEXT NOT NULL,
        project TEXT NOT NULL,
        PRIMARY KEY (model, host)
    );
    """,
)


def slug(text: str) -> str:
    """A name as it stands in ids: lower case, words joined by dashes, at most 32 characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32].strip("-") or "project"


def hash_inputs(inputs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what an artifact is made from; equal inputs give an equal hash."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a single file so that it is either the old one or the new one, never half of one.

    `mode`: who may read and write it, at no moment more.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_jsonl(path: Path, rows: Iterator[Any] | Sequence[Any]) -> int:
    """Write pydantic models or plain values, one a line; returns the number of rows.

    For files inside a staged folder, which is renamed as a whole.
    """
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            value = row.model_dump(mode="json") if hasattr(row, "model_dump") else row
            file.write(json.dumps(value, ensure_ascii=False))
            file.write("\n")
            count += 1
    return count


def relocated(result: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """A result whose paths lie in this home, wherever the home was when they were written."""
    moved = dict(result)
    for key in RESULT_PATHS:
        parts = Path(str(moved.get(key) or "")).parts
        starts = [at for at, part in enumerate(parts) if part in FOLDERS.values()]
        if starts:
            moved[key] = str(home.joinpath(*parts[starts[-1] :]))
    return moved


def package_versions() -> dict[str, str]:
    """Versions of what decides an artifact's content, for its manifest."""
    versions = {}
    for name in VERSIONED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """E.g. 'corpus-flask-3f9a'."""
        return self.manifest.id

    def file(self, name: str) -> Path:
        """A file of the artifact.

        Raises:
            CorruptArtifact: it is not there.
        """
        path = self.path / name
        if not path.is_file():
            raise CorruptArtifact(
                f"{self.id} has no file {name}.",
                cause=f"{path} is missing",
                next_step=f"Delete {self.path} and run the step that made it again.",
            )
        return path

    def verify(self, *names: str) -> None:
        """Compare files (all by default) with the checksums of the manifest.

        Raises:
            CorruptArtifact: a file is missing or differs; it is named.
        """
        for name in names or self.manifest.checksums:
            if hash_file(self.file(name)) != self.manifest.checksums.get(name):
                raise CorruptArtifact(
                    f"{self.id}: the file {name} is not what was written.",
                    cause=f"the checksum of {self.path / name} differs from its manifest",
                    next_step=f"Delete {self.path} and run the step that made it again.",
                )

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of a JSONL file, after its checksum was compared.

        Raises:
            CorruptArtifact: the file is missing, differs, or is no JSONL.
        """
        self.verify(name)
        with self.file(name).open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


class Staged:
    """A folder that is being written. Nobody sees it until `commit`."""

    def __init__(self, workspace: Workspace, path: Path, kind: ArtifactKind, project: str) -> None:
        self.workspace = workspace
        self.path = path
        self.kind = kind
        self.project = project
        self.committed: Artifact | None = None

    def commit(
        self,
        *,
        id: str,
        inputs_hash: str,
        parents: Sequence[str] = (),
        repository: RepositoryState | None = None,
        settings: Mapping[str, Any] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Hash, fsync and rename the folder to its id; the manifest is written last.

        Where another process has finished the same artifact meanwhile, that one is returned.
        """
        for left in self.path.glob(f"*{MANIFEST}*"):  # of a writer that was killed while at it
            left.unlink()
        files = sorted(path for path in self.path.rglob("*") if path.is_file())
        manifest = Manifest(
            kind=self.kind,
            id=id,
            project=self.project,
            parents=list(parents),
            inputs_hash=inputs_hash,
            repository=repository,
            settings=dict(settings or {}),
            versions=package_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            checksums={path.relative_to(self.path).as_posix(): hash_file(path) for path in files},
            result=dict(result or {}),
        )
        for path in files:
            fsync_path(path)
        write_file(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        target = self.workspace.folder(self.kind) / id
        try:
            self.path.rename(target)
        except OSError:
            if not (target / MANIFEST).is_file():
                raise
            shutil.rmtree(self.path)
        fsync_path(target.parent)
        self.committed = self.workspace.load(id)
        return self.committed


class Workspace:
    """One FORGE_HOME. Cheap to make: folders and database appear when first needed."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or forge_home()).resolve()

    # -- artifacts ---------------------------------------------------------------------------

    def folder(self, kind: ArtifactKind) -> Path:
        """Where artifacts of this kind stand; made if need be."""
        return self._made(self.home / FOLDERS[kind])

    def new_id(self, kind: ArtifactKind, project: str, inputs_hash: str) -> str:
        """A short id that no artifact of other inputs or another project has.

        E.g. 'corpus-flask-3f9a'. "My App" and "my-app" have one slug, so the manifest decides.
        """
        for digits in range(4, len(inputs_hash) + 1):
            candidate = f"{PREFIXES[kind]}-{slug(project)}-{inputs_hash[:digits]}"
            if not (self.folder(kind) / candidate).exists():
                return candidate
            there = self.load(candidate).manifest
            if (there.project, there.inputs_hash) == (project, inputs_hash):
                return candidate
        raise AssertionError("two artifacts with one hash")

    def find(self, kind: ArtifactKind, project: str, inputs_hash: str) -> Artifact | None:
        """The whole artifact that was made from these inputs, or None."""
        stem = f"{PREFIXES[kind]}-{slug(project)}-{inputs_hash[:4]}"
        for path in sorted(self.folder(kind).glob(f"{stem}*")):
            artifact = self._read(path)
            manifest = artifact.manifest
            if (manifest.project, manifest.inputs_hash) == (project, inputs_hash):
                return artifact
        return None

    def artifacts(self, kind: ArtifactKind, project: str | None = None) -> list[Artifact]:
        """All whole artifacts of a kind (of a project), newest first.

        One whose manifest is damaged is left out (`damaged` lists them): the others stay usable.
        """
        kept = []
        for path in self.folder(kind).iterdir():
            with suppress(CorruptArtifact):
                artifact = self._read(path)
                if project is None or artifact.manifest.project == project:
                    kept.append(artifact)
        return sorted(kept, key=lambda a: (a.manifest.created, a.id), reverse=True)

    def damaged(self, kind: ArtifactKind) -> dict[str, CorruptArtifact]:
        """The artifacts of a kind that cannot be read, by id, with what `load` says of them."""
        errors = {}
        for path in sorted(self.folder(kind).glob(f"{PREFIXES[kind]}-*")):
            try:
                self._read(path)
            except CorruptArtifact as error:
                errors[path.name] = error
        return errors

    def load(self, artifact_id: str, *kinds: ArtifactKind) -> Artifact:
        """An artifact by its id, or by the path of its folder.

        Args:
            artifact_id: e.g. 'corpus-flask-3f9a'.
            kinds: what it may be; anything by default.

        Raises:
            NotFound: no such artifact, or one of another kind.
            CorruptArtifact: its manifest cannot be read.
        """
        name = artifact_id
        if os.sep in artifact_id:
            given = Path(artifact_id).expanduser().resolve()
            ours = given.parent in (self.home / folder for folder in FOLDERS.values())
            name = given.name if ours else artifact_id
        wanted = " or ".join(kinds) or "artifact"
        for kind, prefix in PREFIXES.items():
            path = self.folder(kind) / name
            if name.startswith(f"{prefix}-") and path.is_dir():
                if kinds and kind not in kinds:
                    raise NotFound(
                        f"{name} is no {wanted}.",
                        cause=f"it is a {kind}",
                        next_step=f"Give the id of a {wanted}{self._known(kinds)}.",
                    )
                return self._read(path)
        raise NotFound(
            f"There is no {wanted} '{artifact_id}'.",
            cause=f"nothing of that name in {self.home}",
            next_step=f"Give the id of a {wanted}{self._known(kinds)}.",
        )

    @contextmanager
    def stage(self, kind: ArtifactKind, project: str) -> Iterator[Staged]:
        """A folder to write an artifact into; removed unless `Staged.commit` is called.

        Raises:
            OutOfSpace, BadInput, ForgeError: the disk said no; nothing is left behind.
        """
        root = self._made(self.home / "staging")
        self._sweep(root)
        path = Path(tempfile.mkdtemp(prefix=f"{PREFIXES[kind]}-", dir=root))
        with FileLock(path) as lock:
            lock.acquire()
            try:
                yield Staged(self, path, kind, project)
            except OSError as error:
                raise from_os_error(error, f"write the {kind}") from error
            finally:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def unfinished(
        self,
        kind: ArtifactKind,
        project: str,
        inputs_hash: str,
        *,
        worth_keeping: Callable[[Path], bool],
        check: Callable[[], None],
        waiting: Callable[[], None],
    ) -> Iterator[Staged]:
        """A staged folder that outlives its writer, so that the same work can go on later.

        Its name comes from the inputs, and one process at a time has it: a second one waits and
        should look for the finished artifact first. Without `Staged.commit` it is removed, unless
        the work was stopped (by an error, a signal, a crash) and left something worth keeping.

        Args:
            worth_keeping: asked of the folder when the work was stopped.
            check: called while waiting; raises to give up.
            waiting: called once, where another process has the folder.

        Raises:
            OutOfSpace, BadInput, ForgeError: the disk said no.
        """
        name = f"{PREFIXES[kind]}-{slug(project)}-{inputs_hash[:16]}"
        path = self._made(self.home / UNFINISHED) / name
        with FileLock(path, folder=True) as lock:
            lock.wait(check, waiting)
            staged = Staged(self, path, kind, project)
            try:
                yield staged
            except BaseException as error:
                # Once a commit has renamed it, the name may be the next writer's folder.
                if lock.in_place and not worth_keeping(path):
                    shutil.rmtree(path, ignore_errors=True)
                if isinstance(error, OSError):
                    raise from_os_error(error, f"write the {kind}") from error
                raise
            else:
                if staged.committed is None:
                    shutil.rmtree(path, ignore_errors=True)

    def _known(self, kinds: Sequence[ArtifactKind]) -> str:
        ids = [artifact.id for kind in kinds for artifact in self.artifacts(kind)[:3]]
        return f", e.g. {', '.join(ids)}" if ids else ""

    def _read(self, path: Path) -> Artifact:
        try:
            raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if raw.get("schema_version", 0) > SCHEMA_VERSION:
                raise CorruptArtifact(
                    f"{path.name} was written by a newer AI Forge.",
                    cause=f"its schema_version is {raw['schema_version']}, known is "
                    f"{SCHEMA_VERSION}",
                    next_step="Upgrade AI Forge: pip install -U forge-mcp",
                )
            manifest = Manifest.model_validate(raw)
            manifest.result = relocated(manifest.result, self.home)
            return Artifact(path, manifest)
        except (OSError, ValueError, ValidationError, AttributeError) as error:
            raise CorruptArtifact(
                f"{path.name} cannot be used: its {MANIFEST} is missing or damaged.",
                cause=str(error).splitlines()[0],
                next_step=f"Delete {path} and run the step that made it again.",
            ) from error

    def _made(self, path: Path) -> Path:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"create the workspace folder {path}") from error
        return path

    def _sweep(self, root: Path) -> None:
        """Remove staging folders whose writer was killed: its lock on them is gone."""
        for path in root.iterdir():
            try:
                # A folder that was only just made may not be locked yet.
                if time.time() - path.stat().st_mtime < STALE_STAGING_SECONDS or is_held(path):
                    continue
            except FileNotFoundError:
                continue
            shutil.rmtree(path, ignore_errors=True)

    # -- database ----------------------------------------------------------------------------

    @cached_property
    def database(self) -> sqlite3.Connection:
        """forge.db, migrated. Use `with workspace.database:` around writes.

        Raises:
            CorruptArtifact: it is no database, or a newer AI Forge made it.
            Busy: another process holds it for too long.
        """
        path = self._made(self.home) / "forge.db"
        try:
            connection = sqlite3.connect(
                path, timeout=10, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
        except sqlite3.OperationalError as error:
            if is_full(self.home):
                raise from_os_error(
                    OSError(28, str(error), str(path)), "open the registry"
                ) from error
            raise Busy(
                f"The registry {path} cannot be opened.",
                cause=str(error),
                next_step="Close other AI Forge processes, check the folder's permissions, and "
                "run it again.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptArtifact(
                f"The registry {path} is damaged.",
                cause=str(error),
                next_step=f"Move {path} away: artifacts stay, but models must be deployed again.",
            ) from error
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise CorruptArtifact(
                    "The registry was written by a newer AI Forge.",
                    cause=f"its version is {version}, known is {len(MIGRATIONS)}",
                    next_step="Upgrade AI Forge: pip install -U forge-mcp",
                )
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                for statement in filter(str.strip, script.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def remember_project(self, name: str, root: Path) -> None:
        """Note where a project stands, so that `--project NAME` works from anywhere."""
        self.database.execute(
            "INSERT INTO projects VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET root = ?",
            (name, str(root), str(root)),
        )

    def project_root(self, name: str) -> Path:
        """The repository of a project that was used before.

        Raises:
            NotFound: no such project, or its folder is gone.
        """
        row = self.database.execute("SELECT root FROM projects WHERE name = ?", (name,)).fetchone()
        if row is None:
            names = [r["name"] for r in self.database.execute("SELECT name FROM projects")]
            raise NotFound(
                f"There is no project '{name}'.",
                cause=f"known projects: {', '.join(sorted(names)) or 'none'}",
                next_step="Run 'forge-mcp init' in its repository.",
            )
        root = Path(row["root"])
        if not root.is_dir():
            raise NotFound(
                f"The repository of project '{name}' is gone.",
                cause=f"{root} is no folder",
                next_step="Run 'forge-mcp init' where the repository stands now.",
            )
        return root


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path`, in bytes."""
    return shutil.disk_usage(path).free


def is_full(path: Path) -> bool:
    """Whether the disk that holds `path` has no room left for a database's next page.

    SQLite calls that a "disk I/O error" where it keeps its index of the log in a mapped file.
    """
    return free_bytes(path) < FULL_BYTES


def require_space(path: Path, needed: int, doing: str) -> None:
    """Refuse early, before an hour of work, what the disk cannot hold.

    Raises:
        OutOfSpace: fewer than `needed` bytes are free.
    """
    free = free_bytes(path)
    if free < needed:
        raise from_os_error(
            OSError(28, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free", str(path)), doing
        )


__all__ = [
    "Artifact",
    "Staged",
    "Workspace",
    "free_bytes",
    "fsync_path",
    "hash_file",
    "hash_inputs",
    "is_full",
    "package_versions",
    "require_space",
    "slug",
    "write_file",
    "write_jsonl",
]
