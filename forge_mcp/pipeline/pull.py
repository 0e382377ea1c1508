"""The skill `pull`: a base model comes from the Hugging Face Hub into the local cache."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from forge_mcp.errors import BadInput, NotFound
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill

if TYPE_CHECKING:
    from forge_mcp.training.bases import BaseEntry
    from forge_mcp.training.hub import Listing

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class PullRequest(SkillRequest):
    """Which base to fetch."""

    base: str = Field(description="A known name (qwen2.5-coder-0.5b, …) or a Hub id: owner/name.")
    original: bool = Field(
        default=False, description="The float weights, not the 4-bit counterpart."
    )
    dry_run: bool = Field(default=False, description="Only tell sizes, license and disk.")


class PullResult(SkillResult):
    """A base in the local cache."""

    base: str
    repo: str | None = Field(description="null for a base that ships with AI Forge.")
    path: str | None = Field(description="Its folder; null where files are missing (dry_run).")
    bytes: int = Field(description="Of all files that training needs.")
    downloaded_bytes: int = Field(description="That came over the network now.")
    missing_bytes: int
    free_bytes: int = Field(description="On the disk of the cache.")
    license: str | None
    gated: bool = Field(description="The Hub wants the license accepted first.")
    parameters: int | None
    seconds: float


@skill(
    title="Fetch a base model",
    positional=("base",),
    long=True,
    open_world=True,
    scope="anywhere",
    examples=(
        "forge-mcp pull qwen2.5-coder-0.5b --dry-run",
        "forge-mcp pull llama-3.2-3b --original",
    ),
)
def pull(request: PullRequest, context: SkillContext) -> PullResult:
    """Download a base model from the Hugging Face Hub; `train` then finds it offline.

    Use this before `train` with a base that is not on this machine. It tells size, license and
    free disk first, fetches only what training needs, compares every file with its checksum, and
    goes on where it was interrupted.
    """
    started = time.perf_counter()
    from forge_mcp.training import hub
    from forge_mcp.training.architectures import check_architecture
    from forge_mcp.training.bases import entry_of, resolve_base

    name, entry = entry_of(request.base) or (request.base, None)
    if entry is not None and entry.embedded:
        return _embedded(name, entry, request, started)
    listing = hub.list_repository(_repository(request, entry), context.check)
    if listing.architecture is not None:
        check_architecture(listing.architecture, listing.repo)
    missing = listing.bytes - listing.present
    context.log(_described(listing, entry))
    if listing.gated:
        context.log(
            f"{listing.repo} is gated: its files are given only to who has accepted the license "
            "on its page and is logged in ('hf auth login').",
            warning=True,
        )
    received, complete = 0, missing == 0 and (listing.snapshot / "config.json").exists()
    if not request.dry_run:
        listing.require_space()
        received = hub.download(listing, context.progress, context.check)
        complete, missing = True, 0
        resolve_base(listing.repo)  # what the Hub has may be whole and yet not be trainable
    if entry is not None and (advice := entry.advice(context.settings.training)):
        context.log(advice)
    return PullResult(
        base=name,
        repo=listing.repo,
        path=str(listing.snapshot) if complete else None,
        bytes=listing.bytes,
        downloaded_bytes=received,
        missing_bytes=missing,
        free_bytes=listing.free_bytes(),
        license=listing.license or (entry.license if entry else None),
        gated=listing.gated,
        parameters=entry.parameters if entry else listing.parameters,
        seconds=round(time.perf_counter() - started, 3),
    )


def _repository(request: PullRequest, entry: BaseEntry | None) -> str:
    """The repository that is meant.

    Raises:
        BadInput: `original` of a model that models.yaml does not know, or a folder.
        NotFound: neither a known name nor the id of a repository.
    """
    from forge_mcp.training.bases import known_bases

    if entry is not None:
        if request.original:
            return str(entry.original)
        return request.base if request.base == entry.original else str(entry.repo)
    if request.original:
        raise BadInput(
            f"It is not known which model '{request.base}' was made from.",
            cause="only the bases of assets/models.yaml have a known original",
            next_step="Give the id of the original itself, without --original.",
        )
    if Path(request.base).is_dir():
        raise BadInput(
            f"'{request.base}' is a folder on this machine.",
            cause="there is nothing to fetch",
            next_step=f"Train on it: forge-mcp train DATASET --base {request.base}",
        )
    if not REPOSITORY.fullmatch(request.base):
        raise NotFound(
            f"There is no base model '{request.base}'.",
            cause="it is neither a known name nor the id of a repository on the Hub (owner/name)",
            next_step=f"Give an id or one of: {', '.join(known_bases())}.",
        )
    return request.base


def _described(listing: Listing, entry: BaseEntry | None) -> str:
    here = f", of which {listing.present / 1e6:,.0f} MB are here" if listing.present else ""
    license = listing.license or (entry.license if entry else "not told")
    memory = f" Training it takes about {entry.memory:.1f} GiB at 4 bits." if entry else ""
    return (
        f"{listing.repo}: {listing.bytes / 1e6:,.0f} MB in {len(listing.files)} files{here}; "
        f"{listing.free_bytes() / 1e6:,.0f} MB are free in {listing.cache.parent}; license "
        f"{license}.{memory}"
    )


def _embedded(name: str, entry: BaseEntry, request: PullRequest, started: float) -> PullResult:
    """A base that ships in the package: there is nothing to fetch."""
    from forge_mcp.training.bases import resolve_base
    from forge_mcp.workspace import free_bytes

    if request.original:
        raise BadInput(
            f"{name} has no other original.",
            cause="it ships with AI Forge, with float weights",
            next_step=f"Use it as it is: forge-mcp train DATASET --base {name}",
        )
    path = resolve_base(name).path
    return PullResult(
        base=name,
        repo=None,
        path=str(path),
        bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        downloaded_bytes=0,
        missing_bytes=0,
        free_bytes=free_bytes(path),
        license=entry.license,
        gated=False,
        parameters=entry.parameters,
        seconds=round(time.perf_counter() - started, 3),
    )
