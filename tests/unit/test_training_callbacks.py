"""What watches a run: each callback alone, told what the trainer would tell it."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_models import settings

from forge_mcp import machine
from forge_mcp.training import callbacks, health
from forge_mcp.training.callbacks import (
    Announcer,
    Callback,
    EarlyStopping,
    LossPlotter,
    MemoryMonitor,
    MetricsLogger,
    Row,
    plot_losses,
    read_metrics,
)
from forge_mcp.training.health import DivergenceGuard


def trained(step: int, loss: float = 2.0, valid_loss: float | None = None) -> Row:
    row = Row(
        step=step,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens=100,
        tokens_per_second=50.0,
        peak_memory_bytes=1,
        seconds=2.0 * step,
    )
    if valid_loss is not None:
        row["valid_loss"] = valid_loss
    return row


def judged(step: int, loss: float) -> Row:
    return Row(
        step=step,
        seconds=2.0 * step,
        valid_loss=loss,
        valid_accuracy=0.5,
        valid_perplexity=math.exp(loss),
    )


def test_metrics_are_written_row_by_row_and_begin_with_the_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 99}\n{"of a killed wri')
    assert read_metrics(path) == [{"step": 99}]
    one = MetricsLogger(path)
    one.on_start([judged(0, 3.0), trained(1)], 5)
    assert read_metrics(path) == [judged(0, 3.0), trained(1)]
    one.on_step(trained(2, valid_loss=1.0))
    assert json.loads(path.read_text().splitlines()[-1])["valid_loss"] == 1.0, "at once"
    one.on_end()
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]


def test_steps_are_announced_with_the_time_they_will_take() -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    one = Announcer(lambda kind, **payload: said.append((kind, payload)))
    one.on_start([judged(0, 3.0), trained(1), trained(2)], 10)
    one.on_step(judged(0, 3.0))
    assert said == [], "step 0 is no step"
    one.on_step(trained(3, loss=1.25))
    one.on_step(trained(4, loss=1.0, valid_loss=1.5))
    assert said == [
        (
            "metric",
            {
                "step": 3,
                "loss": 1.25,
                "tokens_per_second": 50.0,
                "eta_seconds": 14.0,
                "learning_rate": 1e-3,
            },
        ),
        ("progress", {"done": 3, "total": 10, "message": "loss 1.250"}),
        (
            "metric",
            {
                "step": 4,
                "loss": 1.0,
                "valid_loss": 1.5,
                "tokens_per_second": 50.0,
                "eta_seconds": 12.0,
                "learning_rate": 1e-3,
            },
        ),
        ("progress", {"done": 4, "total": 10, "message": "loss 1.000, valid 1.500"}),
    ]


def test_early_stopping_counts_evaluations_without_improvement() -> None:
    one = EarlyStopping(2)
    one.on_start([], 100)
    for loss in (3.0, 2.0, 2.0):
        one.on_evaluation(judged(1, loss))
    assert (one.best, one.waited, one.stop) == (2.0, 1, None)
    one.on_evaluation(judged(1, 2.5))
    assert one.stop is not None
    assert one.stop.error is None
    assert one.stop.save


def test_early_stopping_knows_the_evaluations_of_before() -> None:
    history = [judged(0, 3.0), trained(1), trained(2, valid_loss=2.0), trained(3, valid_loss=2.1)]
    one = EarlyStopping(2)
    one.on_start(history, 100)
    assert (one.best, one.waited, one.stop) == (2.0, 1, None)
    one.on_start([*history, judged(4, 2.0)], 100)
    assert one.stop is not None, "it had already stopped"


def test_without_patience_nothing_stops() -> None:
    one = EarlyStopping(0)
    one.on_start([judged(0, 1.0)] * 50, 100)
    assert one.waited == 49
    assert one.stop is None


def losses(one: Any, values: list[float]) -> int | None:
    """The step at which it stops."""
    for step, loss in enumerate(values, start=1):
        one.on_step(trained(step, loss=loss))
        if one.stop:
            return step
    return None


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([2.0] * 30, None),
        ([2.0, *[2.9] * 30], None),  # high, but not 1.5 times
        ([2.0, 3.1, 3.1, 3.1], None),  # too few to tell
        ([2.0, 3.1, 3.1, 3.1, 1.9], 5),
        ([2.0, 1.0, 1.0, *[9.0] * 2, *[1.0] * 4, *[9.0] * 3, *[1.0] * 9], None),  # hard batches
        ([2.0, *[1.0] * 12, *[5.0] * 10], 19),  # six of the last ten
    ],
)
def test_divergence_is_a_matter_of_many_losses(values: list[float], stops: int | None) -> None:
    one = DivergenceGuard()
    one.on_start([], 100)
    assert losses(one, values) == stops
    if stops:
        assert one.stop is not None
        assert not one.stop.save
        error = one.stop.error
        assert error is not None
        assert f"diverged at step {stops}" in error.message
        assert "began with 2.0" in error.message
        assert "learning_rate of a third" in error.next_step


def test_divergence_is_judged_against_the_validation_loss_too() -> None:
    """The first batch may be an easy one."""
    one = DivergenceGuard()
    one.on_start([], 100)
    one.on_step(judged(0, 4.0))
    assert losses(one, [1.0, *[5.0] * 20]) is None
    assert losses(one, [1.0, *[6.1] * 20]) is not None


def test_divergence_is_the_same_after_an_interruption() -> None:
    values = [2.0, *[1.0] * 12, *[5.0] * 10]
    rows = [trained(step, loss=loss) for step, loss in enumerate(values, start=1)]
    for cut in range(18):
        one = DivergenceGuard()
        one.on_start(rows[:cut], 100)
        for row in rows[cut:19]:
            assert one.stop is None, row["step"]
            one.on_step(row)
        assert one.stop is not None
        assert one.suspicious


def test_a_state_is_suspicious_while_its_loss_is_high() -> None:
    one = DivergenceGuard()
    one.on_start([], 100)
    assert not one.suspicious
    said = []
    for step, loss in enumerate([2.0, 3.1, 1.0], start=1):
        one.on_step(trained(step, loss=loss))
        said.append(one.suspicious)
    assert said == [False, True, False]


def used(monkeypatch: pytest.MonkeyPatch, monitor: MemoryMonitor, share: float) -> None:
    monkeypatch.setattr(callbacks, "resident_bytes", lambda: int(share * 1000))
    monitor.measure()
    monitor.on_step(trained(7))


def test_memory_is_warned_of_once_and_ends_the_run_before_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "training_memory_bytes", lambda: 1000)
    said: list[str] = []
    how = settings(memory_warning_share=0.6, memory_stop_share=0.9)
    one = MemoryMonitor(how, said.append)
    used(monkeypatch, one, 0.59)
    assert said == []
    used(monkeypatch, one, 0.6)
    used(monkeypatch, one, 0.89)
    assert len(said) == 1
    assert "60%" in said[0]
    assert "gradient_checkpointing" in said[0]
    assert one.stop is None
    used(monkeypatch, one, 0.9)
    assert one.stop is not None
    assert one.stop.save
    assert one.stop.error is not None
    assert "after step 7" in one.stop.error.message
    assert "90%" in one.stop.error.message
    assert "goes on from there" in one.stop.error.next_step
    assert "max_seq_length" in one.stop.error.next_step


def test_memory_of_this_process_is_measured() -> None:
    one = MemoryMonitor(settings(), print)
    before = one.measure()
    assert 0 < one.used <= before * 1.01
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    after = one.measure()
    assert after >= before
    assert one.used > 190_000_000
    held = one.used
    del block
    one.measure()
    assert one.used < held - 150_000_000, "what is held now"
    assert one.peak >= held > one.used, "and what was held at most"


def test_on_a_gpu_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's own peak: between steps hardly anything is held."""
    peaks = iter([700, 300])
    resets: list[int] = []
    device = SimpleNamespace(
        get_peak_memory=lambda: next(peaks), reset_peak_memory=lambda: resets.append(1)
    )
    monkeypatch.setattr(machine, "training_memory_bytes", lambda: 1000)
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    monkeypatch.setattr(machine, "mlx", lambda: device)
    one = MemoryMonitor(settings(), print)
    assert one.measure() == 700
    assert (one.measure(), one.used) == (700, 300)
    assert len(resets) == 2


@pytest.mark.parametrize(
    ("info", "expected"),
    [({"memory_size": 5, "max_buffer_length": 9}, 5), ({"total_memory": 7}, 7)],
)
def test_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, info: dict[str, int], expected: int
) -> None:
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    monkeypatch.setattr(machine, "mlx", lambda: SimpleNamespace(device_info=lambda: info))
    assert machine.training_memory_bytes() == expected


def test_memory_of_a_container(tmp_path: Path) -> None:
    """The lowest limit of the groups above it counts, whichever version they are."""
    own = tmp_path / "own"
    own.write_text("4:cpu,cpuacct:/a\n2:memory:/job/x\n0::/slice/job\n")
    for name, text in (
        ("root/slice/job/memory.max", "max\n"),
        ("root/slice/memory.max", "3000\n"),
        ("root/memory/job/x/memory.limit_in_bytes", "9223372036854771712\n"),
        ("root/memory/job/memory.limit_in_bytes", "2000\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    limits = machine._control_group_limits(own, tmp_path / "root")
    assert sorted(limits) == [2000, 3000, 9223372036854771712]
    assert machine._control_group_limits(tmp_path / "none", tmp_path / "root") == []


def test_the_machine_has_no_more_memory_than_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_control_group_limits", lambda: [12345, 2**63])
    assert machine.memory_bytes() == 12345
    monkeypatch.setattr(machine, "_control_group_limits", lambda: [2**63])
    assert 2**28 < machine.memory_bytes() < 2**50


def test_the_curve_is_drawn_at_every_evaluation_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    monkeypatch.setattr(
        callbacks, "plot_losses", lambda rows, path: drawn.append([row["step"] for row in rows])
    )
    one = LossPlotter(tmp_path / "loss.png")
    one.on_start([], 9)
    one.on_step(judged(0, 3.0))
    one.on_evaluation(judged(0, 3.0))
    assert drawn == [], "there is no line yet"
    one.on_step(trained(1))
    one.on_step(trained(2, valid_loss=2.0))
    one.on_evaluation(trained(2, valid_loss=2.0))
    one.on_step(trained(3))
    one.on_end()
    one.on_end()
    assert drawn == [[0, 1, 2], [0, 1, 2, 3]]
    one.on_start([judged(0, 3.0), trained(1)], 9)
    one.on_step(trained(2))
    one.on_end()
    assert drawn[-1] == [0, 1, 2]


def test_a_curve_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at it while it is drawn anew sees the old one."""
    path = tmp_path / "loss.png"
    plot_losses([trained(1), trained(2)], path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    assert before.endswith(b"IEND\xaeB`\x82")
    replace = Path.replace
    seen: list[bytes] = []

    def watched(self: Path, target: Path) -> Path:
        seen.append(path.read_bytes())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    plot_losses([judged(0, 3.0), trained(1), trained(2, valid_loss=2.0)], path)
    assert seen == [before]
    assert path.read_bytes() != before
    assert [one.name for one in tmp_path.iterdir()] == ["loss.png"]


def test_a_callback_may_leave_everything_out() -> None:
    one = Callback()
    one.on_start([], 3)
    one.on_step(trained(1))
    one.on_evaluation(trained(1, valid_loss=1.0))
    one.on_end()
    assert one.stop is None


def test_peak_memory_has_the_unit_of_each_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1024))
    monkeypatch.setattr(sys, "platform", "linux")
    assert callbacks.peak_resident_bytes() == 1024 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert callbacks.peak_resident_bytes() == 1024


def test_what_is_left_is_said(tmp_path: Path) -> None:
    error = health.with_last_good(health.diverged("It has diverged."), tmp_path)
    assert error.cause.endswith("no checkpoint had been saved before")
    (tmp_path / "checkpoints/step-20").mkdir(parents=True)
    error = health.with_last_good(health.diverged("It has diverged."), tmp_path)
    assert error.cause.endswith(f"the last good state is {tmp_path}/checkpoints/step-20")
    assert error.message == "It has diverged."
