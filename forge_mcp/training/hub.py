"""Fetch a base from the Hugging Face Hub into the local cache, in a process of its own.

    listing = list_repository("mlx-community/Qwen3-0.6B-4bit", check)
    download(listing, progress, check)

Everything else in AI Forge runs with HF_HUB_OFFLINE=1. This child process alone is online, for as
long as it lives (hub_child.py); killing it ends the download.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from forge_mcp import machine
from forge_mcp.errors import (
    ForgeError,
    OutOfSpace,
    from_dict,
)
from forge_mcp.workspace import free_bytes

PROGRESS_SECONDS = 0.25
SPARE_BYTES = 50_000_000  # that a download leaves free on the disk


class RemoteFile(BaseModel):
    """A file of a repository. etag: its checksum, SHA-256 of large files and Git's of others."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[^/]+$")
    bytes: int = Field(ge=0)
    etag: str = Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$")
    sha256: str | None


class Listing(BaseModel):
    """What a repository holds that training needs, at the commit its main branch stood at.

    cache: folder of this repository in the local cache. present: bytes that are already there,
    of files that were interrupted too. architecture: its model_type, where the Hub tells it.
    """

    model_config = ConfigDict(extra="forbid")

    repo: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    files: list[RemoteFile]
    license: str | None
    gated: bool
    parameters: int | None
    architecture: str | None
    cache: Path
    present: int

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def snapshot(self) -> Path:
        """The folder in which the files are found afterwards."""
        return self.cache / "snapshots" / self.commit

    def free_bytes(self) -> int:
        """Free space on the disk of the cache."""
        folder = self.cache
        while not folder.is_dir():
            folder = folder.parent
        return free_bytes(folder)

    def require_space(self) -> None:
        """Raises:
        OutOfSpace: what is missing does not fit on the disk of the cache.
        """
        free, needed = self.free_bytes(), self.bytes - self.present + SPARE_BYTES
        if free < needed:
            raise OutOfSpace(
                f"{self.repo} does not fit on the disk.",
                cause=f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free on "
                f"the disk of {self.cache.parent}",
                next_step="Free some space, or point HF_HOME at a folder on a larger disk.",
            )


class HubRequest(BaseModel):
    """What the child is asked: to list a repository, or to fetch what was listed."""

    model_config = ConfigDict(extra="forbid")

    repo: str
    cache: Path
    parent: int
    listing: Listing | None = None
    pause_seconds: float = 1.0


def list_repository(repo: str, check: Callable[[], None]) -> Listing:
    """Ask the Hub what a repository holds. Nothing is fetched or written.

    Args:
        repo: "owner/name".
        check: called again and again; raises to stop.

    Raises:
        NotFound: there is no such repository, or it is private.
        UnsupportedModel: it holds no weights that can be trained.
        Unavailable: the Hub cannot be reached, limits requests, or has a fault.
    """
    request = HubRequest(repo=repo, cache=_cache_folder(repo), parent=os.getpid())
    (result,) = [payload for kind, payload in _run(request, check) if kind == "result"]
    return Listing.model_validate(result)


def download(
    listing: Listing,
    progress: Callable[[int, int, str], None],
    check: Callable[[], None],
    *,
    pause_seconds: float = 1.0,
) -> int:
    """Fetch what is missing of a listing and compare every file with the Hub's checksum.

    Args:
        listing: of `list_repository`.
        progress: called with bytes that are there, bytes in all, and what is being done.
        check: called again and again; raises to stop, and the child is gone then.
        pause_seconds: the first pause after a failed attempt; the next ones are longer.

    Returns:
        Bytes that came over the network.

    Raises:
        NotFound: the repository is gated and this user has not accepted its license, or a file
            of it has gone.
        CorruptArtifact: a file is not what the Hub says it is; it was removed.
        OutOfSpace, Unavailable, ForgeError: the disk, or the Hub, said no.
    """
    request = HubRequest(
        repo=listing.repo,
        cache=listing.cache,
        parent=os.getpid(),
        listing=listing,
        pause_seconds=pause_seconds,
    )
    received = 0
    with contextlib.closing(_run(request, check)) as events:
        for kind, payload in events:
            if kind == "progress":
                progress(payload["done"], listing.bytes, payload["message"])
            elif kind == "result":
                received = payload["received"]
    return received


def _cache_folder(repo: str) -> Path:
    machine.keep_hub_offline()  # this process
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _run(
    request: HubRequest, check: Callable[[], None]
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """The child's events (kind, payload), the last of them its result.

    Raises:
        ForgeError: what the child reported, or that it died.
    """
    online = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    child = subprocess.Popen(
        [sys.executable, "-m", "forge_mcp.training.hub_child", request.model_dump_json()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches it only through this process
        env={**online, "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    lines: queue.Queue[str | None] = queue.Queue()
    said: list[str] = []
    threads = [
        threading.Thread(target=_pass_on, args=(child.stdout, lines), daemon=True),
        threading.Thread(target=said.extend, args=(child.stderr,), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        ended = False
        while True:
            check()
            try:
                line = lines.get(timeout=PROGRESS_SECONDS)
            except queue.Empty:
                continue
            if line is None:
                break
            event = json.loads(line)
            if event["kind"] == "error":
                raise from_dict(event["payload"])
            ended = ended or event["kind"] == "result"
            yield event["kind"], event["payload"]
        if not ended:
            child.wait()
            threads[1].join()
            raise ForgeError(
                "The download process ended unexpectedly.",
                cause=f"exit code {child.returncode}; {(said or ['it said nothing'])[-1].strip()}",
                next_step="Run it again: it goes on where it has stopped.",
            )
    finally:
        child.kill()
        child.wait()
        for thread in threads:
            thread.join()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def _pass_on(lines: Any, into: queue.Queue[str | None]) -> None:
    for line in lines:
        into.put(line)
    into.put(None)
