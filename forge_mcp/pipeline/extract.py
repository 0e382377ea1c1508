"""The skill `extract`: a repository becomes a corpus of code blocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.settings import Settings
from forge_mcp.workspace import hash_inputs, write_jsonl


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
    placeholders; generated, vendored and broken files are skipped and counted. Python, JavaScript,
    TypeScript, TSX, Go and Java are understood. The same files give the same corpus: asked twice,
    it answers at once.
    """
    from forge_mcp.mining.files import repository_state, resolve_root
    from forge_mcp.mining.miner import parse_repository, scan_repository

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
    inputs_hash = _inputs_hash(scan_repository(root, settings), root, settings)
    known = workspace.find("corpus", project, inputs_hash)
    if known is not None:
        context.log(f"Nothing has changed since {known.id} was made.")
        return ExtractResult.model_validate(known.manifest.result)

    state = repository_state(root)
    mined = parse_repository(root, settings, progress=context.progress)
    if not mined.blocks:
        raise _nothing_found(root, mined.files, mined.skipped_files, mined.rejected_reasons)
    inputs_hash = _inputs_hash(mined.hashes, root, settings)  # of what was read in the end
    corpus_id = workspace.new_id("corpus", project, inputs_hash)
    with workspace.stage("corpus", project) as staged:
        write_jsonl(staged.path / "blocks.jsonl", mined.blocks)
        write_jsonl(staged.path / "rejected.jsonl", mined.rejected)
        result = ExtractResult(
            corpus_id=corpus_id,
            path=str(workspace.folder("corpus") / corpus_id),
            files=mined.files,
            blocks=len(mined.blocks),
            rejected=mined.rejected_reasons,
            languages=mined.languages,
            skipped_files=mined.skipped_files,
            secrets_redacted=mined.secrets_redacted,
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
    return result


def _deciding(settings: Settings) -> dict[str, Any]:
    """The settings that decide what a corpus holds."""
    return {
        "mining": settings.mining.model_dump(exclude={"workers"}),
        "project": settings.project.model_dump(include={"include", "exclude", "allow_licenses"}),
    }


def _inputs_hash(hashes: dict[str, str], root: Path, settings: Settings) -> str:
    from forge_mcp.mining.licenses import license_of_repository
    from forge_mcp.mining.miner import MINING_VERSION

    return hash_inputs(
        {
            "version": MINING_VERSION,
            "files": hashes,
            "license": license_of_repository(root),
            "settings": _deciding(settings),
        }
    )


def _nothing_found(
    root: Path, files: int, skipped: dict[str, int], rejected: dict[str, int]
) -> BadInput:
    from forge_mcp.mining.languages import EXTENSIONS

    counts = [f"{number} {reason}" for reason, number in {**skipped, **rejected}.items()]
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
        next_step="Give the folder of a repository in Python, JavaScript, TypeScript, Go or Java, "
        "or change include and exclude in its forge.toml.",
    )
