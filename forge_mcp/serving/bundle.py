"""A bundle: one file that carries a deployed model to another machine.

A plain tar (so that any tar reads it) of a strict shape: `bundle.json` and its own checksum first,
then the files that it lists, sorted, each of the size and SHA-256 that stands there, and nothing
else. Members are regular files with fixed times and owners, so the same content gives the same
bytes. The checksums are against damage: whoever can write the file can write other ones.

It is read block by block, and whatever is not exactly as it would be written is refused before
anything of it is used: other members, links and devices, paths that lead out, sizes that differ
(a plain tar cannot be larger outside than inside), another checksum, a missing end.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from forge_mcp.errors import BadInput, Busy, CorruptArtifact, NotFound, from_os_error
from forge_mcp.locks import FileLock
from forge_mcp.schemas.base import Schema
from forge_mcp.workspace import PREFIXES, RESULT_PATHS, fsync_path, hash_file, require_space

FORMAT, VERSION = "forge-bundle", 1
MANIFEST = "bundle.json"
CHECKSUM = "bundle.json.sha256"  # as sha256sum writes and reads it
MANIFEST_BYTES = 8_000_000
CHUNK = 1 << 20
NAME = re.compile(r"(?:deployment|export|report|corpus)/[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
ID = r"[a-z]+(?:-[a-z0-9]+)+"
REQUIRED = (
    "deployment/deployment.json",
    "export/model.gguf",
    "export/parity.json",
    "export/tokenizer.json",
)
KINDS: tuple[Literal["corpus", "export", "report", "deployment"], ...] = (
    "corpus",
    "export",
    "report",
    "deployment",
)  # parents before what was made from them
WRONG_TYPES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, StringConstraints(pattern=f"^{ID}$", max_length=120)]
Progress = Callable[[int, int], None]


class BundledFile(Schema):
    """Size and SHA-256 (hex) of a member."""

    bytes: int = Field(ge=0)
    sha256: Digest


class MadeFrom(Schema):
    """What the deployment was made from; see `registry.Origin`."""

    corpus: Id | None
    dataset: Id | None
    report: Id | None
    revision: str | None
    dirty: bool | None
    sha256: Digest | None
    quantization: str | None
    bytes: int | None


class MadeBy(Schema):
    """Who deployed it; see `registry.Actor`."""

    user: str | None
    host: str | None
    face: str | None
    process: int | None


class BundledArtifact(Schema):
    """An artifact's manifest as it travels: no path of the machine that it was made on."""

    id: Id
    inputs_hash: Digest
    parents: list[str]
    repository: str | None
    revision: str | None
    dirty: bool
    settings: dict[str, Any]
    versions: dict[str, str]
    created: str
    result: dict[str, Any]

    @field_validator("result")
    @classmethod
    def _stays_inside(cls, result: dict[str, Any]) -> dict[str, Any]:
        for key in RESULT_PATHS:
            path = PurePosixPath(str(result.get(key) or ""))
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{path} leads out of the workspace")
        return result


class BundleManifest(Schema):
    """`bundle.json`."""

    format: Literal["forge-bundle"] = "forge-bundle"
    version: Literal[1] = 1
    project: str = Field(min_length=1, max_length=200)
    model: str
    target: Literal["llamacpp", "ollama"]
    run: Id
    system_prompt: str
    contains_code: bool = Field(description="Whether blocks, answers and reports came along.")
    made: MadeFrom
    by: MadeBy
    created: str
    artifacts: dict[Literal["corpus", "export", "report", "deployment"], BundledArtifact]
    files: dict[str, BundledFile]

    @field_validator("files")
    @classmethod
    def _known_places(cls, files: dict[str, BundledFile]) -> dict[str, BundledFile]:
        for name in files:
            if not NAME.fullmatch(name) or "manifest.json" in name:
                raise ValueError(f"{name!r} is no place for a file of a bundle")
        missing = [name for name in REQUIRED if name not in files]
        if missing:
            raise ValueError(f"it lists no {', '.join(missing)}")
        return files

    @model_validator(mode="after")
    def _fits_together(self) -> BundleManifest:
        if not {"export", "report", "deployment"} <= self.artifacts.keys():
            raise ValueError("it describes no export, report or deployment")
        for kind, artifact in self.artifacts.items():
            if not artifact.id.startswith(f"{PREFIXES[kind]}-"):
                raise ValueError(f"{artifact.id!r} is no id of a {kind}")
        for name in self.files:
            if name.partition("/")[0] not in self.artifacts:
                raise ValueError(f"{name!r} belongs to nothing that it describes")
        if self.artifacts["deployment"].id != f"deploy-{self.model}":
            raise ValueError(f"{self.model!r} is not the model of its deployment")
        return self

    def of(self, kind: str) -> dict[str, BundledFile]:
        """The files of one artifact, by their names in its folder."""
        return {
            name.partition("/")[2]: file
            for name, file in self.files.items()
            if name.startswith(f"{kind}/")
        }


@dataclass(frozen=True)
class Source:
    """Where a member's content comes from: a file with its known checksum, or text in memory."""

    path: Path | None = None
    sha256: str | None = None
    content: bytes = b""

    def described(self) -> BundledFile:
        """Size and checksum, without reading a file."""
        if self.path is None:
            return BundledFile(
                bytes=len(self.content), sha256=hashlib.sha256(self.content).hexdigest()
            )
        return BundledFile(bytes=self.path.stat().st_size, sha256=self.sha256 or "")


# -- writing ---------------------------------------------------------------------------------------


def write_bundle(
    path: Path,
    manifest: BundleManifest,
    sources: Mapping[str, Source],
    progress: Progress = lambda done, total: None,
) -> str:
    """Write a bundle; returns its SHA-256 (hex).

    It is written beside its name and renamed when whole. Where an equal one stands there already,
    that one stays.

    Args:
        path: the new file; its folder must exist.
        manifest: what it is; `files` describes `sources`.
        sources: the content of every file that the manifest lists.
        progress: bytes done and in all; may raise to stop.

    Raises:
        BadInput: something else stands under that name, or the folder is not there.
        Busy: another process is writing it.
        CorruptArtifact: a file is not what its checksum says.
        OutOfSpace, ForgeError: the disk said no; nothing is left.
    """
    if not path.parent.is_dir():
        raise NotFound(
            f"There is no folder {path.parent}.",
            cause=f"{path.name} shall be written into it",
            next_step="Make it, or give another --out.",
        )
    head = manifest.model_dump_json(indent=1).encode() + b"\n"
    total = sum(file.bytes for file in manifest.files.values())
    unfinished = path.with_name(f".{path.name}.partial")
    with FileLock(unfinished) as lock:
        if not lock.acquire():
            raise Busy(
                f"Another process is writing {path}.", next_step="Wait for it, and look again."
            )
        try:
            require_space(path.parent, total + len(head), f"write {path.name}")
            with unfinished.open("wb") as raw:
                file = _Hashing(raw)
                for name, content in ((MANIFEST, head), (CHECKSUM, _checksum(head))):
                    text = Source(content=content)
                    _add(file, name, text, text.described(), lambda size: None)
                done = 0
                for name in sorted(manifest.files):
                    listed = manifest.files[name]
                    told = partial(_tell, progress, done, total)
                    _add(file, name, sources[name], listed, told)
                    done += listed.bytes
                file.write(b"\0" * 2 * tarfile.BLOCKSIZE)
                raw.flush()
                os.fsync(raw.fileno())
            _give_name(unfinished, path, file.hexdigest())
        except BaseException as error:
            unfinished.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise from_os_error(error, f"write the bundle {path}") from error
            raise
    return file.hexdigest()


class _Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _checksum(head: bytes) -> bytes:
    return f"{hashlib.sha256(head).hexdigest()}  {MANIFEST}\n".encode()


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _add(
    file: _Hashing, name: str, source: Source, listed: BundledFile, told: Callable[[int], None]
) -> None:
    """Add a member; `told` hears the bytes of it that are done.

    Raises:
        CorruptArtifact: its content is not what is listed.
    """
    member = tarfile.TarInfo(name)
    member.size = listed.bytes
    file.write(member.tobuf(tarfile.GNU_FORMAT))  # sizes beyond 8 GB without further headers
    digest, done = hashlib.sha256(), 0
    with _opened(source) as content:
        while data := content.read(min(CHUNK, listed.bytes - done + 1)):
            done += len(data)
            digest.update(data)
            file.write(data)
            told(done)
    if done != listed.bytes or digest.hexdigest() != listed.sha256:
        raise CorruptArtifact(
            f"{name} is not what was written.",
            cause=f"the size or checksum of {source.path} differs from its manifest",
            next_step="Export and deploy the run again.",
        )
    file.write(b"\0" * (-listed.bytes % tarfile.BLOCKSIZE))


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    if source.path is None:
        yield io.BytesIO(source.content)
    else:
        with source.path.open("rb") as file:
            yield file


def _give_name(unfinished: Path, path: Path, sha256: str) -> None:
    if path.exists():
        if path.is_file() and hash_file(path) == sha256:
            unfinished.unlink()
            return
        raise BadInput(
            f"{path} is already there, and is something else.",
            cause="a bundle never replaces a file",
            next_step="Remove it, or give another --out.",
        )
    unfinished.replace(path)
    fsync_path(path.parent)


# -- reading ---------------------------------------------------------------------------------------


class Bundle:
    """An opened bundle whose manifest was read and is sound. Its files were not looked at yet."""

    def __init__(self, path: Path, file: BinaryIO, manifest: BundleManifest) -> None:
        self.path = path
        self.manifest = manifest
        self._file = file

    def extract(
        self, folders: Mapping[str, Path], progress: Progress = lambda done, total: None
    ) -> None:
        """Write every file into the folder of its kind, and compare it with its checksum.

        The caller keeps nothing of it unless this returns.

        Args:
            folders: an empty folder for each kind of artifact in the manifest.
            progress: bytes done and in all; may raise to stop.

        Raises:
            CorruptArtifact: anything is not exactly as the manifest says; it is named.
        """
        files = self.manifest.files
        total, done = sum(file.bytes for file in files.values()), 0
        for name in sorted(files):
            listed = files[name]
            size = self._header(name)
            if size != listed.bytes:
                raise self.damaged(f"{name} has {size} bytes, its manifest says {listed.bytes}")
            kind, _, plain = name.partition("/")
            digest = hashlib.sha256()
            with (folders[kind] / plain).open("xb") as target:
                for data in self._content(name, size):
                    digest.update(data)
                    target.write(data)
                    done += len(data)
                    progress(done, total)
            if digest.hexdigest() != listed.sha256:
                raise self.damaged(f"the checksum of {name} differs from its manifest")
        self._end()

    def damaged(self, cause: str) -> CorruptArtifact:
        """What to raise where the file is not as it was written."""
        return _damaged(self.path, cause)

    def _header(self, expected: str) -> int:
        """The size of the next member, which must be the expected one."""
        member = _read_header(self._file, self.path)
        if member is None:
            raise self.damaged(f"it ends before {expected}")
        if member.name != expected:
            raise self.damaged(_stranger(member.name, expected, self.manifest))
        return member.size

    def _content(self, name: str, size: int) -> Iterator[bytes]:
        left = size
        while left:
            data = self._file.read(min(CHUNK, left))
            if not data:
                raise self.damaged(f"it ends within {name}")
            left -= len(data)
            yield data
        padding = -size % tarfile.BLOCKSIZE
        if self._file.read(padding) != b"\0" * padding:
            raise self.damaged(f"what follows {name} is no padding")

    def _end(self) -> None:
        member = _read_header(self._file, self.path)
        if member is not None:
            raise self.damaged(_stranger(member.name, "", self.manifest))
        if self._file.read(tarfile.BLOCKSIZE) != b"\0" * tarfile.BLOCKSIZE or self._file.read(1):
            raise self.damaged("its end is missing, or something follows it")


@contextmanager
def opened_bundle(path: Path) -> Iterator[Bundle]:
    """Open a bundle and read its manifest.

    Raises:
        NotFound: there is no such file.
        BadInput: it is no bundle, or one of a version that is not known.
        CorruptArtifact: it is damaged or was cut off.
    """
    if not path.is_file():
        raise NotFound(
            f"There is no bundle {path}.",
            cause="it is a folder" if path.is_dir() else "nothing is there",
            next_step="Give the file that 'forge-mcp bundle' wrote.",
        )
    with path.open("rb") as file:
        try:
            yield Bundle(path, file, _read_manifest(path, file))
        except OSError as error:
            raise from_os_error(error, f"read the bundle {path}") from error


def _read_manifest(path: Path, file: BinaryIO) -> BundleManifest:
    try:
        member = _read_header(file, path)
    except CorruptArtifact as error:
        raise _no_bundle(path, error.cause) from error
    if member is None or member.name != MANIFEST:
        raise _no_bundle(path, f"it does not begin with {MANIFEST}")
    text = _read_text(file, path, member)
    member = _read_header(file, path)
    if member is None or member.name != CHECKSUM:
        raise _damaged(path, f"{CHECKSUM} is missing")
    if _read_text(file, path, member) != _checksum(text):
        raise _damaged(path, f"the checksum of {MANIFEST} differs from {CHECKSUM}")
    try:
        raw = json.loads(text)
        version = raw.get("version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > VERSION and raw.get("format") == FORMAT:
            raise BadInput(
                f"{path.name} was written by a newer AI Forge.",
                cause=f"its version is {version}, known is {VERSION}",
                next_step="Upgrade AI Forge: pip install -U forge-mcp",
            )
        manifest = BundleManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"its {MANIFEST}: {where}: {first['msg']}"[:300]) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its {MANIFEST} is no JSON: {error}"[:300]) from error
    needed = sum(file.bytes for file in manifest.files.values())
    if path.stat().st_size < needed:
        raise _damaged(
            path, f"{path.stat().st_size} bytes are there, its files have {needed}: it was cut off"
        )
    return manifest


def _read_text(file: BinaryIO, path: Path, member: tarfile.TarInfo) -> bytes:
    """The content of a small member."""
    if member.size > MANIFEST_BYTES:
        raise _damaged(path, f"{member.name} claims {member.size} bytes")
    text = file.read(member.size)
    padding = -member.size % tarfile.BLOCKSIZE
    if len(text) != member.size or file.read(padding) != b"\0" * padding:
        raise _damaged(path, f"it ends within {member.name}, or no padding follows")
    return text


def _read_header(file: BinaryIO, path: Path) -> tarfile.TarInfo | None:
    """The next member, which must be a regular file; None at the end mark."""
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _damaged(path, "it was cut off: its end mark is missing")
    if block == b"\0" * tarfile.BLOCKSIZE:
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged(path, f"a member's header cannot be read ({error})") from error
    if member.type != tarfile.REGTYPE:
        kind = WRONG_TYPES.get(member.type, "no plain file")
        raise _damaged(path, f"the member {member.name!r} is {kind}; only files are allowed")
    plain = tarfile.TarInfo(member.name)
    plain.size = member.size
    if member.size < 0 or plain.tobuf(tarfile.GNU_FORMAT) != block:
        raise _damaged(path, f"the header of {member.name!r} is not as it was written")
    return member


def _stranger(name: str, expected: str, manifest: BundleManifest) -> str:
    """Why a member that was not expected is refused."""
    if name.startswith("/") or ".." in name.split("/"):
        return f"the member {name!r} leads out of the bundle"
    if name in (MANIFEST, CHECKSUM) or (
        name in manifest.files and (not expected or name < expected)
    ):
        return f"the member {name!r} is there twice"
    if name in manifest.files:
        return f"{expected} is missing"
    return f"the member {name!r} does not stand in its manifest"


def _no_bundle(path: Path, cause: str) -> BadInput:
    return BadInput(
        f"{path.name} is no bundle of AI Forge.",
        cause=cause,
        next_step="Give the file that 'forge-mcp bundle' wrote, not unpacked or compressed.",
    )


def _damaged(path: Path, cause: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"The bundle {path.name} is damaged.",
        cause=cause,
        next_step="Nothing of it was kept. Copy it again, or make it anew: forge-mcp bundle MODEL",
    )
