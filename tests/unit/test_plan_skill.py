"""The skill `plan`: one step of a training, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_models import make_base, make_dataset

from forge_mcp.errors import BadInput, TrainingFailed
from forge_mcp.pipeline.plan import PlanResult, plan
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import TrainRequest
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.training import supervise
from forge_mcp.training.child import OUT_OF_MEMORY_ADVICE
from forge_mcp.workspace import Workspace

GIB = 2**30
SEEN = {
    "steps": 40,
    "tokens_per_second": 900.0,
    "estimated_seconds": 100.0,
    "memory_bytes": 16 * GIB,
}


@pytest.fixture
def context(tmp_path: Path) -> SkillContext:
    call = {"training": {"rank": 4, "lora_alpha": 8.0}}
    events: list[Event] = []
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"),
        settings=load_settings(call=call),
        project="demo",
        sink=events.append,
        stage="plan",
    )


@pytest.fixture
def request_(context: SkillContext, tmp_path: Path) -> TrainRequest:
    dataset = make_dataset(context.workspace, "demo")
    return TrainRequest(dataset=dataset.id, base=str(make_base(tmp_path / "base")))


def answer(monkeypatch: pytest.MonkeyPatch, **seen: Any) -> None:
    monkeypatch.setattr(supervise, "dry_run_in_child", lambda **_: SEEN | seen)


def test_a_step_is_made_and_nothing_is_kept(context: SkillContext, request_: TrainRequest) -> None:
    before = sorted(context.workspace.home.rglob("*"))
    told = plan(request_, context)
    assert told.fits
    assert told.steps == 3  # of 12 examples, 4 a step, once
    assert told.peak_memory_bytes is not None and told.peak_memory_bytes > 10_000_000
    assert told.peak_memory_bytes < told.memory_bytes
    assert told.seconds is not None and told.seconds > 0
    assert told.tokens_per_second is not None and told.tokens_per_second > 0
    assert len(told.advice) == 1
    locks = context.workspace.home / "locks"
    after = {path for path in context.workspace.home.rglob("*") if locks not in path.parents}
    assert after - {locks} == set(before)


@pytest.mark.parametrize(
    ("peak", "fits", "advice"), [(8.0, True, 1), (13.5, True, 5), (15.5, False, 5)]
)
def test_what_does_not_fit_or_hardly_is_told_with_advice(
    context: SkillContext,
    request_: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    peak: float,
    fits: bool,
    advice: int,
) -> None:
    answer(monkeypatch, peak_memory_bytes=int(peak * GIB))
    told = plan(request_, context)
    assert (told.fits, len(told.advice)) == (fits, advice)
    assert f"{peak:.1f} of 16.0 GiB" in told.advice[0]
    assert told.seconds is not None and told.seconds >= 100


def test_a_step_that_ran_out_of_memory_does_not_fit(
    context: SkillContext, request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise TrainingFailed(
            "The training process was killed (SIGKILL).", next_step=OUT_OF_MEMORY_ADVICE
        )

    monkeypatch.setattr(supervise, "dry_run_in_child", fail)
    told = plan(request_, context)
    assert told == PlanResult(
        fits=False,
        peak_memory_bytes=None,
        memory_bytes=told.memory_bytes,
        seconds=None,
        advice=told.advice,
        base="base",
    )
    assert "SIGKILL" in told.advice[0]
    assert any("gradient_checkpointing" in line for line in told.advice)


def test_other_faults_are_faults(
    context: SkillContext,
    request_: TrainRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(**_: Any) -> None:
        raise TrainingFailed("The loss is not a number.")

    monkeypatch.setattr(supervise, "dry_run_in_child", fail)
    with pytest.raises(TrainingFailed, match="not a number"):
        plan(request_, context)
    dataset = make_dataset(context.workspace, "demo", validated=None)
    with pytest.raises(BadInput, match="not been validated"):
        plan(TrainRequest(dataset=dataset.id, base=request_.base), context)
