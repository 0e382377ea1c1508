"""The loop: resumed = uninterrupted, the best is kept, it stops when it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_models import chat_rows, make_base, settings

from forge_mcp import machine
from forge_mcp.errors import Cancelled, CorruptArtifact, TrainingFailed
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.adapters import adapter_weights, attach_adapters, set_adapter_weights
from forge_mcp.training.bases import load_base
from forge_mcp.training.batching import Row, tokenise
from forge_mcp.training.callbacks import EarlyStopping, MemoryMonitor, read_metrics
from forge_mcp.training.checkpoints import Progress, latest_checkpoint, save_checkpoint
from forge_mcp.training.loss import evaluate
from forge_mcp.training.trainer import FineTuneTrainer, learning_rate, total_steps

mx = machine.mlx()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def data(folder: Path) -> tuple[Any, Any]:
    tokenizer = load_base(str(folder)).tokenizer
    examples = tokenise(chat_rows(14), tokenizer, 2048).examples
    return examples[:10], examples[10:]


def trainer(
    folder: Path, run: Path, how: TrainingSettings, check: Callable[[], None] = lambda: None
) -> FineTuneTrainer:
    model = load_base(str(folder)).model
    attach_adapters(model, how, "float16")
    return FineTuneTrainer(model, how, run, check=check)


def stop_before(step: int, error: Exception | None = None) -> Callable[[], None]:
    """`step`: counted from 1, in this process."""
    calls = iter(range(1, 1000))

    def check() -> None:
        if next(calls) == step:
            raise error or Cancelled("stop")

    return check


def assert_same(left: Path, right: Path, one: FineTuneTrainer, other: FineTuneTrainer) -> None:
    """Bit for bit: what each step gave, and the adapters that were kept."""
    rows, again = (read_metrics(run / "metrics.jsonl") for run in (left, right))
    for key in ("step", "loss", "valid_loss", "learning_rate", "grad_norm"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows], key
    first, second = adapter_weights(one.model), adapter_weights(other.model)
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, data: Any, tmp_path: Path) -> None:
    how = settings(num_train_epochs=2.0, save_steps=3, learning_rate=5e-3)
    whole = trainer(folder, tmp_path / "whole", how)
    expected = whole.train(*data)
    with pytest.raises(Cancelled):
        trainer(folder, tmp_path / "cut", how, stop_before(6)).train(*data)
    assert latest_checkpoint(tmp_path / "cut") == tmp_path / "cut/checkpoints/step-5"
    second = trainer(folder, tmp_path / "cut", how)
    result = second.train(*data, resume=True)

    assert expected.steps == 8
    assert_same(tmp_path / "whole", tmp_path / "cut", whole, second)
    assert (result.best_step, result.valid_loss, result.train_loss) == (
        expected.best_step,
        expected.valid_loss,
        expected.train_loss,
    )


def test_a_run_that_is_stopped_after_every_step_equals_an_uninterrupted_one(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    how = settings(num_train_epochs=2.0, save_steps=100, learning_rate=5e-3)
    whole = trainer(folder, tmp_path / "whole", how)
    expected = whole.train(*data)
    cut = tmp_path / "cut"
    for step in range(1, expected.steps):
        with pytest.raises(Cancelled):
            trainer(folder, cut, how, stop_before(2)).train(*data, resume=True)
        assert [path.name for path in (cut / "checkpoints").iterdir()] == [f"step-{step}"]
    last = trainer(folder, cut, how)
    result = last.train(*data, resume=True)
    assert_same(tmp_path / "whole", cut, whole, last)
    assert (result.steps, result.train_loss) == (expected.steps, expected.train_loss)
    # A run that was killed once it had made its last step has only its end left to do.
    again = trainer(folder, cut, how)
    assert again.train(*data, resume=True).train_loss == expected.train_loss
    assert_same(tmp_path / "whole", cut, whole, again)


@pytest.mark.parametrize(
    ("stopped_before", "error", "saved"),
    [
        (1, None, []),  # nothing was done yet
        (3, None, [2]),
        (4, None, [3]),  # just saved: not again
        (6, None, [3, 5]),
        (6, OSError("a defect"), [3]),  # what it leaves is not trusted
    ],
)
def test_who_is_stopped_saves_where_it_is(
    folder: Path,
    data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_before: int,
    error: Exception | None,
    saved: list[int],
) -> None:
    steps: list[int] = []

    def save(run: Path, progress: Progress, *arrays: Any) -> Path:
        steps.append(progress.step)
        return save_checkpoint(run, progress, *arrays)

    monkeypatch.setattr("forge_mcp.training.trainer.save_checkpoint", save)
    how = settings(num_train_epochs=2.0, save_steps=3)
    with pytest.raises(type(error) if error else Cancelled):
        trainer(folder, tmp_path, how, stop_before(stopped_before, error)).train(*data)
    assert steps == saved
    if saved:  # stopped again before its next step: there is nothing new to save
        with pytest.raises(Cancelled):
            trainer(folder, tmp_path, how, stop_before(1)).train(*data, resume=True)
        assert steps == saved


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    how = settings(max_steps=2, save_steps=1)
    trainer(folder, tmp_path, how).train(*data)
    with pytest.raises(TrainingFailed, match="another run"):
        trainer(folder, tmp_path, settings(max_steps=3)).train(*data, resume=True)
    (tmp_path / "checkpoints/step-2/optimizer.safetensors").write_bytes(b"broken")
    with pytest.raises(CorruptArtifact, match="step-2"):
        trainer(folder, tmp_path, how).train(*data, resume=True)


def test_training_learns_and_keeps_the_best_adapters(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    how = settings(num_train_epochs=5.0, learning_rate=5e-3, early_stopping_patience=0)
    model = load_base(str(folder)).model
    attach_adapters(model, how, "float16")
    one = FineTuneTrainer(model, how, tmp_path, lambda kind, **more: events.append((kind, more)))
    result = one.train(*data)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    judged = {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    assert result.steps == 20
    assert result.valid_loss == min(judged.values()) == judged[result.best_step]
    assert result.initial_valid_loss is not None
    assert result.valid_loss < 0.8 * result.initial_valid_loss
    assert evaluate(model, [Row(tuple(data[1]))]).loss == pytest.approx(result.valid_loss, rel=1e-6)
    assert rows[0]["step"] == 0
    assert [row["step"] for row in rows] == list(range(21))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    metrics = [payload for kind, payload in events if kind == "metric"]
    assert len(metrics) == 20
    assert metrics[-1]["eta_seconds"] == 0
    assert {"loss", "valid_loss", "tokens_per_second", "learning_rate"} <= set(metrics[-1])
    assert [payload["done"] for kind, payload in events if kind == "progress"][-1] == 20


def test_it_stops_early_and_goes_back_to_step_zero(folder: Path, data: Any, tmp_path: Path) -> None:
    """Validation rows that training can only make worse."""
    train = data[0]
    valid = [type(e)(e.tokens[: e.start] + [250] * 20 + [2], e.start) for e in data[1]]
    how = settings(
        num_train_epochs=50.0, learning_rate=5e-3, eval_steps=1, early_stopping_patience=2
    )
    one = trainer(folder, tmp_path, how)
    start = adapter_weights(one.model)
    result = one.train(train, valid)
    assert result.stopped_early
    assert result.steps == result.best_step + 2
    assert result.steps < 100
    if result.best_step == 0:
        kept = adapter_weights(one.model)
        assert all(mx.array_equal(start[name], kept[name]) for name in start)


def test_without_validation_rows_the_last_adapters_are_kept(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    result = trainer(folder, tmp_path, settings(max_steps=2)).train(data[0], [])
    assert result.valid_loss is None
    assert result.best_step == result.steps == 2


def test_a_loss_that_is_no_number_ends_the_run(folder: Path, data: Any, tmp_path: Path) -> None:
    one = trainer(folder, tmp_path, settings(max_steps=5))
    weights = adapter_weights(one.model)
    name = next(iter(weights))
    set_adapter_weights(one.model, {name: weights[name] * math.nan})
    with pytest.raises(TrainingFailed, match="not a number at step 1") as caught:
        one.train(data[0], [])
    assert "learning_rate" in caught.value.next_step
    with pytest.raises(TrainingFailed, match="validation loss is not a number"):
        one.train(*data)


def test_divergence_ends_the_run(folder: Path, tmp_path: Path) -> None:
    """Ten steps in a row far above guessing (ln 259 = 5.6), however training began."""
    one = trainer(folder, tmp_path, settings())
    one._refuse_divergence(11, 9.0, 1.0, first=2.0, recent=[9.0] * 9 + [8.0])
    one._refuse_divergence(10, 9.0, 1.0, first=2.0, recent=[9.0] * 9)
    with pytest.raises(TrainingFailed, match="diverged at step 11") as caught:
        one._refuse_divergence(11, 9.0, 1.0, first=2.0, recent=[9.0] * 10)
    assert "learning_rate" in caught.value.next_step
    one._refuse_divergence(11, 9.0, 1.0, first=8.0, recent=[9.0] * 10)


def test_learning_rate_schedules() -> None:
    how = settings(learning_rate=1.0)
    rates = [learning_rate(step, 10, 2, how) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.1
    linear = settings(learning_rate=1.0, schedule="linear")
    assert learning_rate(7, 10, 2, linear) == pytest.approx(0.5)
    constant = settings(learning_rate=1.0, schedule="constant")
    assert learning_rate(10, 10, 2, constant) == 1.0


def test_total_steps() -> None:
    assert total_steps(10, settings(num_train_epochs=1.5, batch_size=4)) == 5
    assert total_steps(10, settings(num_train_epochs=1.5, batch_size=4, max_steps=2)) == 2
    assert total_steps(1, settings(num_train_epochs=0.1)) == 1


def test_early_stopping_counts() -> None:
    one = EarlyStopping(2)
    assert [one.improved(loss) for loss in (3.0, 2.0, 2.0)] == [True, True, False]
    assert not one.stop
    assert not one.improved(2.5)
    assert one.stop
    never = EarlyStopping(0, best=1.0, waited=50)
    assert not never.stop


def test_memory_monitor_warns_once() -> None:
    said: list[str] = []
    monitor = MemoryMonitor(said.append, share=0.0)
    assert monitor.check() > 0
    monitor.check()
    assert len(said) == 1
    quiet = MemoryMonitor(said.append, share=1e3)
    quiet.check()
    assert len(said) == 1
