"""The skill `train`: a validated dataset becomes a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from forge_mcp.errors import BadInput, GateRefused, UnsupportedModel
from forge_mcp.pipeline.export import require_exportable
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, overlay, skill
from forge_mcp.schemas.prompt import PROMPT_VERSION
from forge_mcp.settings import TrainingSettings
from forge_mcp.workspace import Artifact, Workspace, hash_inputs, require_space

if TYPE_CHECKING:
    from forge_mcp.training.bases import Base

VERSION = 2  # of the training engine: change it when equal inputs would give another run


class TrainRequest(SkillRequest):
    """What to train on, and how; what is not given comes from the settings."""

    dataset: str = Field(description="Id of a validated dataset, e.g. 'ds-flask-3f9a'.")
    base: str | None = Field(
        default=None,
        description="Base model: a known name (forge-nano, qwen2.5-coder-0.5b, …) or a folder in "
        "Hugging Face format. Default: the project's.",
    )
    init_method: Literal["pissa", "lora", "rslora", "dora"] | None = Field(
        default=None,
        description="How adapters start: pissa (principal components), lora, rslora, dora.",
    )
    rank: int | None = Field(default=None, ge=1, description="Rank of the adapters.")
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Peak learning rate of AdamW."
    )
    epochs: float | None = Field(default=None, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None, ge=0, description="At most this many optimiser steps; 0 = as epochs say."
    )
    batch_size: int | None = Field(default=None, ge=1, description="Examples an optimiser step.")
    seed: int | None = Field(default=None, description="Decides the order of the examples.")


class TrainResult(SkillResult):
    """A finished run. Losses are means over answer tokens, in nats.

    `peak_memory_bytes` is that of the training process: its largest resident set where MLX
    computes on the CPU, what MLX held at most on the device on Metal and CUDA.
    """

    run_id: str
    path: str
    base: str
    steps: int = Field(description="Optimiser steps that were made.")
    best_step: int = Field(description="Step whose adapters were kept; 0 = none was better.")
    train_loss: float = Field(description="Mean of the last ten steps.")
    valid_loss: float | None = Field(description="Of the kept adapters; null without valid rows.")
    initial_valid_loss: float | None = Field(description="Before the first step.")
    tokens_per_second: float = Field(description="Tokens of whole examples, none of them padding.")
    peak_memory_bytes: int
    stopped_early: bool
    seconds: float


@skill(
    title="Train a model",
    positional=("dataset",),
    long=True,
    loads_model=True,
    aliases=("train_model",),
    examples=(
        "forge-mcp train ds-flask-3f9a",
        "forge-mcp train ds-flask-3f9a --base qwen2.5-coder-0.5b --rank 32 --epochs 2",
    ),
)
def train(request: TrainRequest, context: SkillContext) -> TrainResult:
    """Fine-tune a base model on a validated dataset: PiSSA adapters over a 4-bit residual.

    Use this when a dataset has passed `validate` and a model shall learn the repository. It runs
    in a process of its own, keeps the adapters with the lowest validation loss, and stops early
    when that no longer falls. Minutes on forge-nano, longer on larger bases. Asked again with the
    same dataset, base and settings, it returns the finished run, or goes on with one that was
    stopped. Next: `evaluate RUN`.
    """
    started = time.perf_counter()
    workspace = context.workspace
    dataset = workspace.load(request.dataset, "dataset")
    require_validated(dataset)
    settings = asked_settings(request, context)
    base = chosen_base(request.base, context)
    inputs_hash = run_inputs_hash(dataset, base.weights_sha256, base.tokenizer_sha256, settings)
    found = workspace.find("run", context.project, inputs_hash)
    if found is not None:
        context.log(f"{found.id} was already trained from the same dataset, base and settings.")
        return TrainResult.model_validate(found.manifest.result)

    from forge_mcp.training.supervise import train_in_child
    from forge_mcp.training.trackers import require_packages

    require_packages(settings.trackers)
    tell_about(base, settings, context)
    dataset.verify("train.jsonl", "valid.jsonl")
    with workspace.unfinished(
        "run",
        context.project,
        inputs_hash,
        worth_keeping=has_checkpoint,
        check=context.check,
        waiting=lambda: context.log("Another process trains this very run; waiting for it."),
    ) as staged:
        found = workspace.find("run", context.project, inputs_hash)
        if found is not None:
            return TrainResult.model_validate(found.manifest.result)
        run_id = workspace.new_id("run", context.project, inputs_hash)
        require_space(staged.path, base.run_bytes(settings), "train")
        make_room(base, settings, context)
        trained = train_in_child(
            train=dataset.file("train.jsonl"),
            valid=dataset.file("valid.jsonl"),
            base=str(base.path),
            base_name=base.name,
            settings=settings,
            run=staged.path,
            emit=context.emit,
            cancel=context.cancel,
            resume=True,
            slots=training_slots(workspace, context.settings.jobs.concurrent_trainings),
        )
        trained["seconds"] = round(time.perf_counter() - started, 3)
        result = TrainResult(
            run_id=run_id,
            path=str(workspace.folder("run") / run_id),
            base=base.name,
            **trained,
        )
        artifact = staged.commit(
            id=run_id,
            inputs_hash=inputs_hash,
            parents=[dataset.id],
            repository=dataset.manifest.repository,
            settings=settings.model_dump(),
            result=result.model_dump(),
        )
    return TrainResult.model_validate(artifact.manifest.result)


def has_checkpoint(run: Path) -> bool:
    """Whether a run that was stopped can go on."""
    from forge_mcp.training.checkpoints import latest_checkpoint

    return latest_checkpoint(run) is not None


def training_slots(workspace: Workspace, count: int) -> list[Path]:
    """The locks that bound how many trainings there are at once, whoever started them."""
    return [workspace.home / "locks" / f"training-{number}" for number in range(count)]


def asked_settings(request: TrainRequest, context: SkillContext) -> TrainingSettings:
    """The project's training settings with what the request gives over them."""
    settings: TrainingSettings = overlay(
        context.settings.training,
        num_train_epochs=request.epochs,
        **request.model_dump(exclude={"dataset", "base", "epochs"}),
    )
    return settings


def chosen_base(asked: str | None, context: SkillContext) -> Base:
    """The base that the request names, else the project's: its path starts in the repository.

    Raises:
        NotFound, UnsupportedModel: see `bases.resolve_base`.
    """
    from forge_mcp.training.bases import resolve_base

    if asked is not None:
        return resolve_base(asked)
    return resolve_base(context.settings.project.base, context.repository)


def make_room(base: Base, settings: TrainingSettings, context: SkillContext) -> None:
    """Where memory is short, end the servers of deployed models, and have Ollama unload its models.

    Both are loaded again when they are asked.
    """
    from forge_mcp import machine
    from forge_mcp.serving.llamacpp_server import stop_servers

    needed = base.training_bytes(settings)
    if machine.available_bytes() >= needed:
        return
    if ended := stop_servers(context.workspace):
        context.log(f"To make room for the training, {', '.join(ended)} was unloaded.")
    if not context.settings.jobs.unload_ollama or machine.available_bytes() >= needed:
        return
    from forge_mcp.serving.ollama import check_ollama_status, unload_ollama_models

    host = context.settings.serving.ollama_host
    if not check_ollama_status(host):
        return
    before = machine.available_bytes()
    if unloaded := unload_ollama_models(host):
        context.log(
            f"Training may need {needed / 1e9:.1f} GB and {before / 1e9:.1f} GB are free: Ollama "
            f"has unloaded {', '.join(unloaded)} (it loads them again when asked)."
        )


def tell_about(base: Base, settings: TrainingSettings, context: SkillContext) -> None:
    """What a user should know of a base before the training."""
    if base.entry is not None:
        context.log(
            f"{base.name}: {base.entry.parameters / 1e6:,.0f} million parameters, "
            f"license {base.entry.license}."
        )
        if advice := base.entry.advice(settings):
            context.log(advice)
    try:
        require_exportable(base)
    except UnsupportedModel as error:
        context.log(f"This base can be trained but not exported yet: {error.cause}.", warning=True)


def run_inputs_hash(
    dataset: Artifact, weights: str, tokenizer: str, settings: TrainingSettings
) -> str:
    """Hash of all that decides a run."""
    return hash_inputs(
        {
            "dataset": dataset.manifest.inputs_hash,
            "base": weights,
            "tokenizer": tokenizer,
            "settings": settings.model_dump(),
            "prompt": PROMPT_VERSION,
            "version": VERSION,
        }
    )


def require_validated(dataset: Artifact) -> None:
    """Raises:
    BadInput: the dataset was never validated.
    GateRefused: it was, and did not pass.
    """
    if not (dataset.path / "validation.json").is_file():
        raise BadInput(
            f"{dataset.id} has not been validated.",
            cause="only a dataset that has passed the quality gate is trained on",
            next_step=f"Run 'forge-mcp validate {dataset.id}' and train on the dataset it makes.",
        )
    dataset.verify("validation.json")
    report = json.loads(dataset.file("validation.json").read_text("utf-8"))
    if not report.get("passed"):
        raise GateRefused(
            f"{dataset.id} did not pass validation.",
            cause="; ".join(report.get("reasons", [])) or "its quality report says so",
            next_step="Improve the data (see its quality report), synthesise and validate again.",
        )
