"""A model file's way into Ollama: hashed once, asked for, and sent only where it is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from forge_mcp.errors import CorruptArtifact, ForgeError
from forge_mcp.serving.ollama_api import ConnectionBroken, OllamaApi

CHUNK_BYTES = 4 << 20
# Told what is done, with bytes done and bytes in all.
OnBytes = Callable[[str, int, int], None]
HASHING, UPLOADING = "hashing", "uploading"


def upload_blob(
    api: OllamaApi,
    path: Path,
    *,
    say: Callable[[str], None],
    on_bytes: OnBytes,
    sha256: str | None = None,
) -> str:
    """Have Ollama hold a file; returns its digest, "sha256:" and 64 hex digits.

    A connection that breaks is tried once more from the start (Ollama keeps no half files).

    Args:
        api: the server.
        path: the file.
        say: told what happens, in words.
        on_bytes: told how far hashing and uploading are.
        sha256: the file's hex digest where it is known already; Ollama checks it.

    Raises:
        CorruptArtifact: the file changed meanwhile, or `sha256` is not its digest.
        Unavailable, OutOfSpace, ForgeError: the server is gone, its disk is full, or it refused.
    """
    size = path.stat().st_size
    digest = f"sha256:{sha256 or _hash(path, size, on_bytes)}"
    if api.has_blob(digest):
        say("Ollama has the file already; it is not sent again.")
        return digest
    say(f"Uploading {size / 1e6:,.1f} MB to Ollama.")
    try:
        _send(api, digest, path, size, on_bytes)
    except ConnectionBroken as error:
        say(f"The upload broke off ({error.cause}); it is tried once more from the start.")
        _send(api, digest, path, size, on_bytes)
    return digest


def _send(api: OllamaApi, digest: str, path: Path, size: int, on_bytes: OnBytes) -> None:
    try:
        api.send_blob(digest, size, _chunks(path, size, on_bytes))
    except ForgeError as error:
        if "digest mismatch" in error.cause:
            raise CorruptArtifact(
                f"The model file {path.name} is not what it was.",
                cause=f"it changed while it was being sent: Ollama says {error.cause}",
                next_step="Export the run again, then deploy that.",
            ) from error
        raise


def _hash(path: Path, size: int, on_bytes: OnBytes) -> str:
    hashed = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
            done += len(chunk)
            on_bytes(HASHING, done, size)
    return hashed.hexdigest()


def _chunks(path: Path, size: int, on_bytes: OnBytes) -> Iterator[bytes]:
    """The first `size` bytes of the file.

    Raises:
        CorruptArtifact: there are fewer now.
    """
    done = 0
    with path.open("rb") as file:
        while done < size:
            chunk = file.read(min(CHUNK_BYTES, size - done))
            if not chunk:
                raise CorruptArtifact(
                    f"The model file {path.name} became shorter while it was being sent.",
                    cause=f"{done} of {size} bytes are left",
                    next_step="Export the run again, then deploy that.",
                )
            done += len(chunk)
            yield chunk
            on_bytes(UPLOADING, done, size)
