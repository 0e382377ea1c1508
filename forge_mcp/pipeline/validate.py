"""dataset ──validate──▶ the same dataset, scored and filtered, with a report (gate: quality)."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forge_mcp.errors import CorruptArtifact
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.metrics import DataQualityMetrics
from forge_mcp.schemas.prompt import DEFAULT_SYSTEM_PROMPT, PROMPT_VERSION
from forge_mcp.schemas.raft_examples import PreferencePair, RaftExample
from forge_mcp.settings import QualitySettings
from forge_mcp.workspace import Artifact, hash_inputs, write_file

if TYPE_CHECKING:
    from forge_mcp.quality import Validation
    from forge_mcp.quality.rows import Row, RowFault


class ValidateRequest(SkillRequest):
    """Which dataset, and thresholds that differ from the settings."""

    dataset: str = Field(description="Id of a dataset, as synthesize returned it.")
    min_quality_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Examples below it are dropped; the mean must reach it.",
    )
    min_oracle_relevance: float | None = Field(
        default=None, ge=0, le=1, description="How well retrieval must find an example's oracle."
    )
    max_distractor_relevance: float | None = Field(
        default=None, ge=0, le=1, description="How near a distractor may be to an oracle."
    )
    min_examples: int | None = Field(
        default=None, ge=1, description="Fewer examples after filtering are refused."
    )


class ValidateResult(SkillResult):
    """The gate's word, and what the dataset is like."""

    dataset_id: str = Field(description="The validated dataset; the one that was given if refused.")
    passed: bool
    quality_score: float = Field(description="Mean score of the examples that are kept, 0 to 1.")
    metrics: DataQualityMetrics
    dropped: dict[str, int] = Field(description="Examples that were dropped, by reason.")
    report: str = Field(description="Path of report.md; report.html with charts lies beside it.")
    report_id: str
    reasons: list[str] = Field(description="Why the gate refused; empty where it passed.")
    seconds: float


@skill(
    title="Validate training data",
    positional=("dataset",),
    long=True,
    aliases=("validate_data",),
    examples=(
        "forge-mcp validate ds-flask-81c0",
        "forge-mcp validate ds-flask-81c0 --min-quality-score 0.7 --json",
    ),
)
def validate(request: ValidateRequest, context: SkillContext) -> ValidateResult:
    """Score a dataset's examples, drop the bad ones, and decide whether it may be trained on.

    Use this after synthesize: train takes only a dataset that passed. Every quote, fact and name is
    verified against the code again; duplicates, leaks between splits, secrets and examples below
    the thresholds are dropped; a report with advice is written (Markdown, HTML with charts, JSON).
    Where it passes, dataset_id names the new, filtered dataset to train on. Where it does not,
    passed is false, reasons says why and nothing changes.
    """
    started = time.perf_counter()
    source = context.workspace.load(request.dataset, "dataset")
    settings = overlay(
        context.settings.quality, **request.model_dump(exclude={"dataset"}, exclude_none=True)
    )
    from forge_mcp.quality import VALIDATOR_VERSION
    from forge_mcp.raft import GENERATOR_VERSION

    made_from = {
        "dataset": source.manifest.inputs_hash,
        "quality": settings.model_dump(),
        "raft": source.manifest.settings.get("raft", context.settings.raft.model_dump()),
        "formats": source.manifest.settings.get("formats", ["messages"]),
        "system_prompt": _system_prompt(source),
        "prompt_version": PROMPT_VERSION,
        "generator_version": GENERATOR_VERSION,
        "validator_version": VALIDATOR_VERSION,
    }
    inputs_hash = hash_inputs(made_from)
    earlier = _earlier(context, inputs_hash)
    if earlier is not None:
        context.log(f"{source.id} was validated with the same settings before.")
        return earlier
    return _validate(source, settings, made_from, inputs_hash, context, started)


def _validate(
    source: Artifact,
    settings: QualitySettings,
    made_from: dict[str, Any],
    inputs_hash: str,
    context: SkillContext,
    started: float,
) -> ValidateResult:
    """The work itself; the report is written last, so that it names a dataset that is there."""
    from forge_mcp.quality import validate_dataset

    workspace, project = context.workspace, context.project
    blocks, broken = _read(source, "documents.jsonl", CodeBlock)
    examples, malformed = _read(source, "examples.jsonl", RaftExample)
    documents = {block.id: block for block in blocks}
    found = validate_dataset(
        examples,
        documents,
        settings,
        progress=lambda done, total: context.progress(done, total, "examples"),
        malformed=[*malformed, *broken],
    )
    pairs = _preferences(source, found, made_from["system_prompt"])
    report_id = workspace.new_id("report", project, inputs_hash)
    dataset_id = workspace.new_id("dataset", project, inputs_hash) if found.passed else source.id
    result = ValidateResult(
        dataset_id=dataset_id,
        passed=found.passed,
        quality_score=round(found.metrics.quality_score_mean, 4),
        metrics=found.metrics,
        dropped=found.dropped,
        report=str(workspace.folder("report") / report_id / "report.md"),
        report_id=report_id,
        reasons=found.reasons,
        seconds=round(time.perf_counter() - started, 3),
    )
    if found.passed:
        _write_dataset(source, found, pairs, result, made_from, inputs_hash, context)
    _write_report(source, found, settings, result, made_from, inputs_hash, context)
    return result


def _earlier(context: SkillContext, inputs_hash: str) -> ValidateResult | None:
    """The result of the same validation, if all that it wrote is still there."""
    report = context.workspace.find("report", context.project, inputs_hash)
    if report is None:
        return None
    result = ValidateResult.model_validate(report.manifest.result)
    dataset = context.workspace.find("dataset", context.project, inputs_hash)
    return result if dataset is not None or not result.passed else None


def _read(source: Artifact, name: str, kind: type[Row]) -> tuple[list[Row], list[RowFault]]:
    """The rows of a file, and those that are none of their kind.

    Raises:
        CorruptArtifact: the file is not what was written; where a line is broken, it is named.
    """
    from forge_mcp.quality.rows import read_rows

    try:
        source.verify(name)
    except CorruptArtifact:
        read_rows(source.file(name), kind)  # says more, where a line is cut
        raise
    return read_rows(source.file(name), kind)


def _preferences(source: Artifact, found: Validation, prompt: str) -> list[PreferencePair]:
    """The pairs that hold and whose example is kept; `found` is told their numbers."""
    from forge_mcp.quality.pairs import check_preferences
    from forge_mcp.raft import chat_row

    pairs, malformed = _read(source, "preferences.jsonl", PreferencePair)
    by_prompt = {
        chat_row(example, found.documents, prompt).messages[1].content: example
        for example in found.kept
        if example.split == "train"
    }
    kept, counts = check_preferences(pairs, by_prompt, found.documents)
    found.preferences.update(counts)
    if malformed:
        found.preferences["malformed"] = len(malformed)
    return kept


def _write_dataset(
    source: Artifact,
    found: Validation,
    pairs: list[PreferencePair],
    result: ValidateResult,
    made_from: dict[str, Any],
    inputs_hash: str,
    context: SkillContext,
) -> None:
    from forge_mcp.raft.files import write_dataset

    kept, repository = found.kept, source.manifest.repository
    used = {i for e in kept for i in (*e.oracle_ids, *e.distractor_ids, e.fact.block)}
    with context.workspace.stage("dataset", context.project) as staged:
        write_dataset(
            staged.path,
            result.dataset_id,
            kept,
            [block for block in found.documents.values() if block.id in used],
            pairs,
            project=context.project,
            made_from=made_from,
            revision=repository.revision if repository else None,
        )
        verdict = result.model_dump(mode="json", exclude={"seconds", "report"})
        write_file(staged.path / "validation.json", json.dumps(verdict, indent=2) + "\n")
        context.check()
        staged.commit(
            id=result.dataset_id,
            inputs_hash=inputs_hash,
            parents=[source.id],
            repository=repository,
            settings=made_from,
            result=result.model_dump(mode="json"),
        )


def _write_report(
    source: Artifact,
    found: Validation,
    settings: QualitySettings,
    result: ValidateResult,
    made_from: dict[str, Any],
    inputs_hash: str,
    context: SkillContext,
) -> None:
    from forge_mcp.quality import generate_quality_report, report_json
    from forge_mcp.quality.page import quality_page
    from forge_mcp.quality.plots import score_histogram
    from forge_mcp.quality.report import HISTOGRAM, PAGE

    thresholds = settings.model_dump()
    facts = report_json(found, dataset_id=source.id, thresholds=thresholds)
    with context.workspace.stage("report", context.project) as staged:
        write_file(staged.path / HISTOGRAM, score_histogram(found.judged))
        page = quality_page(found, title=source.id, thresholds=thresholds)
        write_file(staged.path / PAGE, page)
        text = generate_quality_report(found, title=source.id, thresholds=thresholds)
        write_file(staged.path / "report.md", text)
        write_file(staged.path / "report.json", json.dumps(facts, indent=2) + "\n")
        context.check()
        staged.commit(
            id=result.report_id,
            inputs_hash=inputs_hash,
            parents=[source.id] if not result.passed else [source.id, result.dataset_id],
            repository=source.manifest.repository,
            settings=made_from,
            result=result.model_dump(mode="json"),
        )


def _system_prompt(source: Artifact) -> str:
    """The prompt with which the dataset's rows were rendered; they are rendered with it again."""
    prompt = source.manifest.settings.get("system_prompt", DEFAULT_SYSTEM_PROMPT)
    if not isinstance(prompt, str):
        raise CorruptArtifact(
            f"{source.id} does not say its system prompt.",
            cause="its manifest was edited",
            next_step="Make the dataset again with synthesize.",
        )
    return prompt
