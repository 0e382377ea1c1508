"""The skill `extract`: a repository becomes a corpus of code blocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.settings import Settings
from forge_mcp.workspace import hash_inputs

if TYPE_CHECKING:
    from forge_mcp.mining.repository import Counts, Mining


class ExtractRequest(SkillRequest):
    """Which repository, and what to leave out of training for this call."""

    repo: str = Field(default=".", description="Folder of the repository.")
    include_private: bool | None = Field(
        default=None, description="Train on private definitions too (setting of the project)."
    )
    include_tests: bool | None = Field(
        default=None, description="Train on test code too (setting of the project)."
    )
    require_docstring: bool | None = Field(
        default=None, description="Train only on documented definitions (setting of the project)."
    )
    since: str | None = Field(
        default=None,
        description="A git revision: only definitions of files that have changed since.",
    )


class ExtractResult(SkillResult):
    """What was mined. Rejected blocks stay in the corpus, but are not trained on."""

    corpus_id: str = Field(description="Id of the corpus, for synthesize and query.")
    path: str = Field(description="Folder of the corpus.")
    files: int = Field(description="Files that were mined.")
    blocks: int = Field(description="Blocks that will be trained on.")
    rejected: dict[str, int] = Field(description="Blocks that will not, by reason.")
    languages: dict[str, int] = Field(description="Blocks that will be trained on, by language.")
    skipped_files: dict[str, int] = Field(description="Files that were not mined, by reason.")
    secrets_redacted: int = Field(description="Credentials that were replaced by placeholders.")
    broken_files: int = Field(
        default=0, description="Files with a syntax error; what is whole in them was mined."
    )
    advice: list[str] = Field(
        default_factory=list, description="Which option would train on more, and on how much."
    )
    seconds: float = Field(description="Time that the mining took.")


@skill(
    title="Extract code",
    positional=("repo",),
    long=True,
    aliases=("extract_data",),
    examples=("forge-mcp extract .", "forge-mcp extract ~/src/flask --include-tests --json"),
)
def extract(request: ExtractRequest, context: SkillContext) -> ExtractResult:
    """Mine a repository into a corpus of whole code definitions.

    Use this when a repository shall be learned from, searched, or when its code has changed: it is
    the first step, before synthesize. Every function, method, class and module header becomes
    one block with its signature, docstring, calls and exact lines. Credentials are replaced by
    placeholders; generated and vendored files are skipped and counted. Python, JavaScript,
    TypeScript, Go and Java are understood best; Rust, C, C++, Ruby, C#, PHP, Kotlin, Scala, Swift
    and Bash as well. Only files that have changed are read again, and the same files give the
    same corpus.
    """
    from forge_mcp.mining.files import resolve_root
    from forge_mcp.mining.git import repository_state
    from forge_mcp.mining.repository import mine_repository

    started = time.monotonic()
    here = context.repository if request.repo == "." and context.repository else request.repo
    root = resolve_root(Path(here))
    settings = context.settings.model_copy(
        update={
            "mining": overlay(
                context.settings.mining,
                include_private=request.include_private,
                include_tests=request.include_tests,
                require_docstring=request.require_docstring,
            )
        }
    )
    workspace, project = context.workspace, context.project
    context.progress(0, None, f"listing the files of {root.name}")
    state = repository_state(root)
    with mine_repository(
        root,
        settings,
        context.progress,
        cache=workspace.home / "cache" / "mining",
        since=request.since,
    ) as mining:
        if mining.cache is None:
            context.log(f"Another process is mining {root}: its cache is done without.")
        inputs_hash = _inputs_hash(mining, settings)
        known = workspace.find("corpus", project, inputs_hash)
        if known is not None:
            context.log(f"Nothing has changed since {known.id} was made.")
            return ExtractResult.model_validate(known.manifest.result)
        corpus_id = workspace.new_id("corpus", project, inputs_hash)
        with workspace.stage("corpus", project) as staged:
            with (
                (staged.path / "blocks.jsonl").open("wb") as blocks,
                (staged.path / "rejected.jsonl").open("wb") as rejected,
            ):
                for trained, others in mining.lines():
                    blocks.write(trained)
                    rejected.write(others)
            counts = mining.counts
            if not counts.blocks:
                raise _nothing_found(root, counts, request.since)
            result = ExtractResult(
                corpus_id=corpus_id,
                path=str(workspace.folder("corpus") / corpus_id),
                files=counts.files,
                blocks=counts.blocks,
                rejected=dict(sorted(counts.reasons.items())),
                languages=dict(sorted(counts.languages.items())),
                skipped_files=dict(sorted(counts.skipped.items())),
                secrets_redacted=counts.secrets,
                broken_files=counts.broken_files,
                advice=_advice(counts),
                seconds=round(time.monotonic() - started, 3),
            )
            staged.commit(
                id=corpus_id,
                inputs_hash=inputs_hash,
                repository=state,
                settings=_deciding(settings),
                result=result.model_dump(mode="json"),
            )
    context.log(f"{corpus_id}: {result.blocks} blocks from {result.files} files.")
    for line in result.advice:
        context.log(line)
    return result


def _advice(counts: Counts) -> list[str]:
    """Where much falls for one reason alone, the option that keeps it."""
    if counts.undocumented <= counts.blocks // 4:
        return []
    return [
        f"{counts.undocumented} blocks fall only for want of a docstring; "
        "--no-require-docstring trains on them too."
    ]


def _deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide what a corpus holds."""
    return {
        "mining": settings.mining.model_dump(exclude={"workers"}),
        "project": settings.project.model_dump(include={"include", "exclude", "allow_licenses"}),
    }


def _inputs_hash(mining: Mining, settings: Settings) -> str:
    from forge_mcp.mining.repository import MINING_VERSION

    return hash_inputs(
        {
            "version": MINING_VERSION,
            "files": mining.hashes,
            "only": sorted(mining.only) if mining.only is not None else None,
            "licenses": mining.licenses,
            "settings": _deciding(settings),
        }
    )


def _nothing_found(root: Path, found: Counts, since: str | None) -> BadInput:
    from forge_mcp.mining.languages import EXTENSIONS, LANGUAGES

    files = found.files
    counts = [f"{number} {reason}" for reason, number in (found.skipped + found.reasons).items()]
    if since is not None and not files:
        return BadInput(
            f"No file with code has changed in {root} since {since}.",
            cause="git lists none that can be mined",
            next_step="Give an older revision, or leave --since out.",
        )
    if files:
        return BadInput(
            f"No definition in {root} passes the filters.",
            cause=f"{files} files were mined; left out: {', '.join(counts) or 'nothing'}",
            next_step="Loosen [mining] in forge.toml, e.g. min_tokens or include_tests.",
        )
    return BadInput(
        f"There is no code in {root} that can be mined.",
        cause=f"looked for {', '.join(sorted(EXTENSIONS))}; skipped files: "
        f"{', '.join(counts) or 'none'}",
        next_step=f"Give the folder of a repository in one of {', '.join(LANGUAGES)}, or change "
        "include and exclude in its forge.toml.",
    )
