"""corpus ──synthesize─▶ dataset: questions, documents, cited reasoning, answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forge_mcp.errors import BadInput
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.pipeline.teaching import open_teacher
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.prompt import DEFAULT_SYSTEM_PROMPT, PROMPT_VERSION
from forge_mcp.settings import RaftSettings
from forge_mcp.workspace import Artifact, hash_inputs

if TYPE_CHECKING:
    from forge_mcp.raft import Dataset


class SynthesizeRequest(SkillRequest):
    """Which corpus, and how many questions of which kind."""

    corpus: str = Field(description="Id of a corpus, as extract returned it.")
    seed: int | None = Field(
        default=None, description="Seed of every draw; the same seed gives the same dataset."
    )
    examples_per_block: int | None = Field(
        default=None, ge=1, description="At most this many questions on one definition."
    )
    distractors: int | None = Field(
        default=None, ge=0, le=8, description="Distractors of a medium example; hard ones have 3+."
    )
    oracle_absent_share: float | None = Field(
        default=None, ge=0, le=1, description="Share of rows without the document that answers."
    )
    teacher: str | None = Field(
        default=None,
        description="A language model that writes further questions: ollama:MODEL or "
        "http(s)://HOST/v1#MODEL. Code is sent to that address: only one that the user gave.",
    )
    formats: str = Field(
        default="messages",
        description="Comma-separated: messages (always), raft, completion, parquet.",
    )


class SynthesizeResult(SkillResult):
    """The dataset that was made, and what was left out."""

    dataset_id: str
    path: str
    examples: int
    preferences: int
    difficulty: dict[str, int] = Field(description="Examples by difficulty: easy, medium, hard.")
    splits: dict[str, int] = Field(description="Examples by split: train, valid, test.")
    skipped: dict[str, int] = Field(description="What was not used, by reason.")
    seconds: float


@skill(
    title="Synthesize training data",
    positional=("corpus",),
    long=True,
    open_world=True,  # where a teacher is named
    aliases=("generate_data",),
    examples=(
        "forge-mcp synthesize corpus-flask-3f9a",
        "forge-mcp synthesize corpus-flask-3f9a --examples-per-block 4 --json",
        "forge-mcp synthesize corpus-flask-3f9a --formats raft,completion,parquet",
        "forge-mcp synthesize corpus-flask-3f9a --teacher ollama:qwen2.5-coder",
    ),
)
def synthesize(request: SynthesizeRequest, context: SkillContext) -> SynthesizeResult:
    """Write RAFT training data from a corpus: questions, documents, cited reasoning, answers.

    Use this when extract has made a corpus and a dataset is wanted from it. Every answer is a
    fact that was derived from the code twice; every quote stands in its document. Files are split
    into train, valid and test first. The same corpus and settings give the same dataset. No
    language model is asked and nothing is sent anywhere, unless the user names a teacher, which
    then writes further questions that pass the same checks. A dataset card and, on request, the
    RAFT paper's fields, prompt and completion, and Parquet are written too. Run validate on the
    result before train.
    """
    started = time.perf_counter()
    corpus = context.workspace.load(request.corpus, "corpus")
    aside = {"corpus", "formats", "teacher"}
    settings = overlay(
        context.settings.raft, **request.model_dump(exclude=aside, exclude_none=True)
    )
    system_prompt = context.settings.project.system_prompt or DEFAULT_SYSTEM_PROMPT
    from forge_mcp.raft import GENERATOR_VERSION
    from forge_mcp.raft.files import write_dataset
    from forge_mcp.raft.formats import parse_formats

    formats = parse_formats(request.formats)
    teacher = open_teacher(request.teacher, context)
    made_from: dict[str, Any] = {
        "corpus": corpus.manifest.inputs_hash,
        "raft": settings.model_dump(),
        "system_prompt": system_prompt,
        "prompt_version": PROMPT_VERSION,
        "generator_version": GENERATOR_VERSION,
        "formats": list(formats),
    }
    dataset = None
    if teacher is not None:  # what it writes decides which dataset this is
        dataset = _build(corpus, settings, system_prompt, context)
        made_from["teacher"] = teacher.teach(dataset, settings)
    inputs_hash = hash_inputs(made_from)
    found = context.workspace.find("dataset", context.project, inputs_hash)
    if found is not None:
        context.log(f"{found.id} was made from the same corpus and settings before.")
        return SynthesizeResult.model_validate(found.manifest.result)
    if dataset is None:
        dataset = _build(corpus, settings, system_prompt, context)
    difficulty, splits = dataset.counts()
    with context.workspace.stage("dataset", context.project) as staged:
        dataset_id = context.workspace.new_id("dataset", context.project, inputs_hash)
        write_dataset(
            staged.path,
            dataset_id,
            dataset.examples,
            dataset.documents,
            dataset.preferences,
            project=context.project,
            made_from=made_from,
            revision=corpus.manifest.repository.revision if corpus.manifest.repository else None,
        )
        context.check()
        result = SynthesizeResult(
            dataset_id=dataset_id,
            path=str(context.workspace.folder("dataset") / dataset_id),
            examples=len(dataset.examples),
            preferences=len(dataset.preferences),
            difficulty=difficulty,
            splits=splits,
            skipped=dataset.skipped,
            seconds=round(time.perf_counter() - started, 3),
        )
        staged.commit(
            id=dataset_id,
            inputs_hash=inputs_hash,
            parents=[corpus.id],
            repository=corpus.manifest.repository,
            settings=made_from,
            result=result.model_dump(),
        )
    return result


def _build(
    corpus: Artifact, settings: RaftSettings, system_prompt: str, context: SkillContext
) -> Dataset:
    """Forge's own rows.

    Raises:
        BadInput: the corpus holds nothing to make them from.
    """
    from forge_mcp.raft import build_dataset

    blocks = [CodeBlock.model_validate(row) for row in corpus.rows("blocks.jsonl")]
    if not blocks:
        raise BadInput(
            f"The corpus {corpus.id} holds no block to learn from.",
            cause="every definition of the repository was rejected, or there is none",
            next_step="See rejected.jsonl in the corpus for the reasons, relax [mining] and "
            "run extract again.",
        )
    return build_dataset(
        blocks,
        settings,
        others=[RejectedBlock.model_validate(row) for row in corpus.rows("rejected.jsonl")],
        system_prompt=system_prompt,
        progress=lambda done, total: context.progress(done, total, "questions"),
    )
