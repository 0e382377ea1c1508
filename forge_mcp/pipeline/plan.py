"""The skill `plan`: whether a training fits this machine, and how long it would take."""

from __future__ import annotations

import time

from pydantic import Field

from forge_mcp.errors import TrainingFailed
from forge_mcp.pipeline.skill import SkillContext, SkillResult, skill
from forge_mcp.pipeline.train import (
    TrainRequest,
    asked_settings,
    chosen_base,
    make_room,
    require_validated,
    tell_about,
    training_slots,
)
from forge_mcp.settings import TrainingSettings


class PlanResult(SkillResult):
    """What one step of the training has shown."""

    fits: bool = Field(description="Whether it stays below training.memory_stop_share.")
    peak_memory_bytes: int | None = Field(description="Of the step; null where it did not end.")
    memory_bytes: int = Field(description="What the machine, or its GPU, has.")
    seconds: float | None = Field(description="Estimate for the whole training, at that pace.")
    advice: list[str]
    base: str
    steps: int | None = None
    tokens_per_second: float | None = None


@skill(
    title="Plan a training",
    positional=("dataset",),
    long=True,
    loads_model=True,
    examples=("forge-mcp plan ds-flask-3f9a --base qwen2.5-coder-0.5b",),
)
def plan(request: TrainRequest, context: SkillContext) -> PlanResult:
    """Try one step of a training with its longest examples: does it fit, how long will it take?

    Use this before `train` on a base that is new to this machine. Takes what `train` takes and
    keeps nothing.
    """
    from forge_mcp import machine
    from forge_mcp.training.child import OUT_OF_MEMORY_ADVICE
    from forge_mcp.training.supervise import dry_run_in_child

    dataset = context.workspace.load(request.dataset, "dataset")
    require_validated(dataset)
    settings = asked_settings(request, context)
    base = chosen_base(request.base, context)
    tell_about(base, settings, context)
    dataset.verify("train.jsonl", "valid.jsonl")
    make_room(base, settings, context)
    begun = time.monotonic()
    try:
        seen = dry_run_in_child(
            train=dataset.file("train.jsonl"),
            valid=dataset.file("valid.jsonl"),
            base=str(base.path),
            base_name=base.name,
            settings=settings,
            emit=context.emit,
            cancel=context.cancel,
            slots=training_slots(context.workspace, context.settings.jobs.concurrent_trainings),
        )
    except TrainingFailed as failure:
        if failure.next_step != OUT_OF_MEMORY_ADVICE:
            raise
        return PlanResult(
            fits=False,
            peak_memory_bytes=None,
            memory_bytes=machine.training_memory_bytes(),
            seconds=None,
            advice=[f"{failure.message} {failure.cause}", *_smaller(settings)],
            base=base.name,
        )
    allowed = settings.memory_stop_share * seen["memory_bytes"]
    fits = seen["peak_memory_bytes"] <= allowed
    setting_up = time.monotonic() - begun
    return PlanResult(
        fits=fits,
        peak_memory_bytes=seen["peak_memory_bytes"],
        memory_bytes=seen["memory_bytes"],
        seconds=round(setting_up + seen["estimated_seconds"], 1),
        advice=_advice(settings, seen["peak_memory_bytes"], seen["memory_bytes"], fits),
        base=base.name,
        steps=seen["steps"],
        tokens_per_second=seen["tokens_per_second"],
    )


def _advice(settings: TrainingSettings, peak: int, memory: int, fits: bool) -> list[str]:
    used = f"The longest step took {peak / 2**30:.1f} of {memory / 2**30:.1f} GiB."
    if not fits:
        return [used, *_smaller(settings)]
    if peak > settings.memory_warning_share * memory:
        return [f"{used} Close other programs before you train.", *_smaller(settings)]
    return [used]


def _smaller(settings: TrainingSettings) -> list[str]:
    """What would need less memory, the most harmless first."""
    return [
        text
        for text, applies in (
            ("Set training.gradient_checkpointing.", not settings.gradient_checkpointing),
            (
                "Lower training.batch_size and raise training.gradient_accumulation_steps.",
                settings.batch_size > 1,
            ),
            ("Lower training.max_seq_length: longer examples are left out.", True),
            ("Take a smaller base.", True),
        )
        if applies
    ]
