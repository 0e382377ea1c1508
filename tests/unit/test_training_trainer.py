"""The loop: resumed = uninterrupted, the best is kept, it stops when it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_models import chat_rows, make_base, settings

from forge_mcp import machine
from forge_mcp.errors import Cancelled, OutOfSpace, TrainingFailed, Unavailable
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.adapters import adapter_weights, attach_adapters, set_adapter_weights
from forge_mcp.training.bases import load_base
from forge_mcp.training.batching import Example, Row, tokenise
from forge_mcp.training.callbacks import Callback, read_metrics
from forge_mcp.training.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from forge_mcp.training.loss import evaluate
from forge_mcp.training.trainer import FineTuneTrainer, total_steps

mx = machine.mlx()


@pytest.fixture(autouse=True)
def quickly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a picture at every evaluation, but for the test that looks at it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("forge_mcp.training.callbacks.plot_losses", lambda rows, path: None)


@pytest.fixture
def drawn() -> None:
    """For a test that looks at the picture."""


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
    """Bit for bit: what each step gave, the adapters that were kept, all that was saved."""
    rows, again = (read_metrics(run / "metrics.jsonl") for run in (left, right))
    for key in ("step", "loss", "valid_loss", "valid_accuracy", "learning_rate", "grad_norm"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows], key
    same_arrays(adapter_weights(one.model), adapter_weights(other.model))
    paths = [latest_checkpoint(run) for run in (left, right)]
    first, second = (load_checkpoint(path) for path in paths if path is not None)
    assert first.progress == second.progress
    for key in ("adapters", "best", "optimizer"):
        same_arrays(getattr(first, key), getattr(second, key))


def same_arrays(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert mx.array_equal(array, right[name]), name


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


WAYS = {
    "accumulated, dropout": {"gradient_accumulation_steps": 2, "lora_dropout": 0.3},
    "checkpointed layers, dropout": {"gradient_checkpointing": True, "lora_dropout": 0.3},
    "8 bits, by epochs": {"optimizer": "adamw_8bit", "eval_strategy": "epoch", "rank": 64},
    "linear, no validation": {"schedule": "linear", "eval_strategy": "no", "weight_decay": 0.1},
    "dora, constant, dropout": {
        "init_method": "dora",
        "schedule": "constant",
        "lora_dropout": 0.2,
        "early_stopping_patience": 2,
        "eval_steps": 1,
        "learning_rate": 0.1,
    },
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_run_that_is_stopped_after_every_step_equals_an_uninterrupted_one(
    folder: Path, data: Any, tmp_path: Path, way: dict[str, Any]
) -> None:
    """At every step, those at the end of an epoch among them, and after the last one."""
    how = settings(**{"num_train_epochs": 2.0, "save_steps": 100, "learning_rate": 5e-3} | way)
    whole = trainer(folder, tmp_path / "whole", how)
    expected = whole.train(*data)
    cut = tmp_path / "cut"
    for step in range(1, expected.steps):
        with pytest.raises(Cancelled):
            trainer(folder, cut, how, stop_before(2)).train(*data, resume=True)
        assert latest_checkpoint(cut) == cut / f"checkpoints/step-{step}"
    last = trainer(folder, cut, how)
    result = last.train(*data, resume=True)
    assert_same(tmp_path / "whole", cut, whole, last)
    for key in ("steps", "best_step", "train_loss", "valid_loss", "stopped_early"):
        assert getattr(result, key) == getattr(expected, key), key
    # A run that was killed once it had made its last step has only its end left to do.
    again = trainer(folder, cut, how)
    assert again.train(*data, resume=True).train_loss == expected.train_loss
    assert_same(tmp_path / "whole", cut, whole, again)


def test_dropout_is_drawn_and_drawn_anew_in_every_step(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    """Or else the test above would compare nothing."""
    losses, states = [], set()
    for number, dropout in enumerate([0.0, 0.5]):
        how = settings(max_steps=2, save_steps=1, lora_dropout=dropout)
        trainer(folder, tmp_path / str(number), how).train(data[0], [])
        losses.append(read_metrics(tmp_path / str(number) / "metrics.jsonl")[1]["loss"])
    assert losses[0] != losses[1]
    for path in (tmp_path / "1/checkpoints").iterdir():
        states.add(tuple(load_checkpoint(path).progress.random_state))
    assert len(states) == 2


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

    def save(run: Path, checkpoint: Checkpoint, keep: int) -> Path:
        steps.append(checkpoint.progress.step)
        return save_checkpoint(run, checkpoint, keep)

    monkeypatch.setattr("forge_mcp.training.trainer.save_checkpoint", save)
    how = settings(num_train_epochs=2.0, save_steps=3)
    with pytest.raises(type(error) if error else Cancelled):
        trainer(folder, tmp_path, how, stop_before(stopped_before, error)).train(*data)
    assert steps == saved
    if saved:  # stopped again before its next step: there is nothing new to save
        with pytest.raises(Cancelled):
            trainer(folder, tmp_path, how, stop_before(1)).train(*data, resume=True)
        assert steps == saved


def test_a_checkpoint_of_another_run_is_refused(folder: Path, data: Any, tmp_path: Path) -> None:
    train, valid = data
    how = settings(max_steps=2, save_steps=1)
    trainer(folder, tmp_path, how).train(train, valid)
    for other, examples in (
        (settings(max_steps=3, save_steps=1), train),
        (how, train[::-1]),
    ):
        with pytest.raises(TrainingFailed, match="another run"):
            trainer(folder, tmp_path, other).train(examples, valid, resume=True)
    trainer(folder, tmp_path, how).train(train, valid, resume=True)


def test_a_run_that_begins_anew_does_not_keep_what_was_there(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    trainer(folder, tmp_path, settings(max_steps=4, save_steps=2)).train(*data)
    how = settings(max_steps=3, save_steps=1, keep_checkpoints=2)
    trainer(folder, tmp_path, how).train(*data)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step-2", "step-3"]


@pytest.mark.parametrize(("damaged", "goes_on"), [(1, "step-2"), (2, None)])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    folder: Path, data: Any, tmp_path: Path, damaged: int, goes_on: str | None
) -> None:
    how = settings(max_steps=4, save_steps=2, keep_checkpoints=2, learning_rate=5e-3)
    whole = trainer(folder, tmp_path / "whole", how)
    whole.train(*data)
    run = tmp_path / "cut"
    trainer(folder, run, how).train(*data)
    newest = sorted((run / "checkpoints").iterdir(), reverse=True)
    assert [path.name for path in newest] == ["step-4", "step-2"]
    for path in newest[:damaged]:
        target = path / "best.safetensors"
        target.write_bytes(target.read_bytes()[:-1] + b"?")
    said: list[tuple[str, str]] = []
    again = trainer(folder, run, how)
    again.emit = lambda kind, **more: (
        said.append((more["level"], more["message"])) if kind == "log" else None
    )
    again.train(*data, resume=True)
    told = [text for level, text in said if level == "warning"]
    assert "step-4 is damaged (best.safetensors is not what was written)" in told[0]
    if goes_on:
        assert f"the one before, {goes_on}, is used" in told[0]
        assert ("info", "Resumed after step 2.") in said
    else:
        assert "there is no other" in told[1]
        assert "training begins anew" in told[2]
        assert not [text for _, text in said if "Resumed" in text]
    assert_same(tmp_path / "whole", run, whole, again)


def test_training_learns_and_keeps_the_best_adapters(
    folder: Path, data: Any, tmp_path: Path, drawn: None
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


def test_by_epochs_or_not_at_all(folder: Path, data: Any, tmp_path: Path) -> None:
    def judged(**how: Any) -> list[int]:
        run = tmp_path / str(len(list(tmp_path.iterdir())))
        result = trainer(folder, run, settings(num_train_epochs=2.0, **how)).train(*data)
        rows = read_metrics(run / "metrics.jsonl")
        assert (result.valid_loss is None) == (how["eval_strategy"] == "no")
        assert result.best_step <= result.steps == 8
        return [row["step"] for row in rows if "valid_loss" in row]

    assert judged(eval_strategy="epoch") == [0, 4, 8]
    assert judged(eval_strategy="steps", eval_steps=3) == [0, 3, 6, 8]
    assert judged(eval_strategy="no") == []


def test_accumulated_rows_count_by_their_weights(folder: Path, data: Any, tmp_path: Path) -> None:
    """However a step's examples are spread over rows, loss and gradient are the same mean; which
    twice the weights do not change."""

    def weighed(factor: float) -> list[Example]:
        return [
            Example(one.tokens, one.start, [factor * (2 + at % 3)] * one.answer_tokens)
            for at, one in enumerate(data[0][:6])
        ]

    rows = []
    for number, (batch, accumulated, factor) in enumerate(
        [(6, 1, 0.25), (2, 3, 0.25), (1, 6, 0.25), (6, 1, 0.5)]
    ):
        how = settings(
            max_steps=1, batch_size=batch, gradient_accumulation_steps=accumulated, warmup_steps=0
        )
        trainer(folder, tmp_path / str(number), how).train(weighed(factor), [])
        rows.append(read_metrics(tmp_path / str(number) / "metrics.jsonl")[1])
    for row in rows[1:]:
        assert row["loss"] == pytest.approx(rows[0]["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=1e-5)


def test_gradient_checkpointing_changes_no_number(folder: Path, data: Any, tmp_path: Path) -> None:
    """Dropout included: it falls on the same numbers when a layer is computed again."""
    runs = []
    for number, checkpointing in enumerate([False, True]):
        how = settings(max_steps=4, lora_dropout=0.3, gradient_checkpointing=checkpointing)
        trainer(folder, tmp_path / str(number), how).train(*data)
        runs.append(read_metrics(tmp_path / str(number) / "metrics.jsonl"))
    for row, again in zip(*runs, strict=True):
        for key in ("loss", "grad_norm", "valid_loss"):
            assert again.get(key, 0.0) == pytest.approx(row.get(key, 0.0), rel=1e-5), key


def test_the_gradient_is_clipped_by_its_global_norm(
    folder: Path, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = settings(max_steps=1, max_grad_norm=1e-3)
    one = trainer(folder, tmp_path, how)
    given: list[Any] = []
    update = one.optimizer.update

    def note(model: Any, gradient: Any) -> None:
        given.append(gradient)
        update(model, gradient)

    monkeypatch.setattr(one.optimizer, "update", note)
    one.train(data[0], [])
    from mlx.utils import tree_flatten

    squares = sum((array * array).sum().item() for _, array in tree_flatten(given[0]))
    assert read_metrics(tmp_path / "metrics.jsonl")[1]["grad_norm"] > 0.01
    assert math.sqrt(squares) == pytest.approx(1e-3, rel=1e-3)


def test_adapters_that_are_no_numbers_end_the_run(folder: Path, data: Any, tmp_path: Path) -> None:
    """At step 2, the first one that sees them; the state before is named."""
    how = settings(max_steps=5, save_steps=1)
    one = trainer(folder, tmp_path, how)

    class Breaks(Callback):
        def on_step(self, row: Any) -> None:
            if row["step"] == 1:
                weights = adapter_weights(one.model)
                name = next(iter(weights))
                set_adapter_weights(one.model, {name: weights[name] * math.nan})

    one.watchers.append(Breaks())
    with pytest.raises(TrainingFailed, match="not a number after step 1") as caught:
        one.train(data[0], [])
    assert str(tmp_path / "checkpoints/step-1") in caught.value.cause
    assert "learning_rate" in caught.value.next_step


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_are_no_numbers_are_named(
    folder: Path, data: Any, tmp_path: Path, validated: bool
) -> None:
    one = trainer(folder, tmp_path, settings(max_steps=5))
    norm = one.model.model.norm
    norm.weight = norm.weight * math.nan
    with pytest.raises(TrainingFailed, match="weights are damaged") as caught:
        one.train(data[0], data[1] if validated else [])
    assert "model.norm.weight" in caught.value.cause
    assert not (tmp_path / "checkpoints").exists()


def test_a_base_that_computes_no_numbers_is_told(folder: Path, data: Any, tmp_path: Path) -> None:
    """Each of its weights is one, their product is not."""
    one = trainer(folder, tmp_path, settings(max_steps=5))
    for layer in one.model.model.layers:
        layer.input_layernorm.weight = layer.input_layernorm.weight * 1e38
        layer.post_attention_layernorm.weight = layer.post_attention_layernorm.weight * 1e38
    with pytest.raises(TrainingFailed, match="before anything was trained") as caught:
        one.train(*data)
    assert "Choose another base" in caught.value.next_step


def with_losses(one: FineTuneTrainer, losses: dict[int, float]) -> None:
    """As if the model had these losses at some steps."""
    gradient = one._gradient

    def told(batch: list[Example]) -> tuple[float, Any]:
        loss, found = gradient(batch)
        return losses.get(one.step + 1, loss), found

    one._gradient = told  # type: ignore[method-assign]


def test_divergence_is_stopped_and_what_is_left_is_from_before(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    how = settings(max_steps=40, num_train_epochs=30.0, save_steps=1, early_stopping_patience=0)
    one = trainer(folder, tmp_path, how)
    with_losses(one, dict.fromkeys(range(7, 40), 50.0))
    with pytest.raises(TrainingFailed, match="diverged at step 12") as caught:
        one.train(*data)
    assert str(tmp_path / "checkpoints/step-6") in caught.value.cause
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints/step-6"
    assert load_checkpoint(tmp_path / "checkpoints/step-6").progress.step == 6


def test_a_hard_batch_puts_a_checkpoint_off(folder: Path, data: Any, tmp_path: Path) -> None:
    how = settings(num_train_epochs=2.0, save_steps=3, keep_checkpoints=9)
    one = trainer(folder, tmp_path, how)
    with_losses(one, {3: 50.0, 8: 50.0})
    with pytest.raises(Cancelled):
        one.check = stop_before(4)
        one.train(*data)
    assert latest_checkpoint(tmp_path) is None, "nor is it saved when it is stopped"
    one.check = lambda: None
    one.train(*data)
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["step-4", "step-6", "step-8"], "the last one is saved in any case"


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    folder: Path, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = settings(num_train_epochs=2.0, save_steps=2, learning_rate=5e-3)
    whole = trainer(folder, tmp_path / "whole", how)
    whole.train(*data)
    save = mx.save_safetensors

    def full(path: str, arrays: Any) -> None:
        if "optimizer" in path and len(list((tmp_path / "cut/checkpoints").glob("step-*"))) == 2:
            monkeypatch.setattr("forge_mcp.training.checkpoints.is_full", lambda path: True)
            raise RuntimeError("[write] Unable to write 951519 bytes to file.")
        save(path, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(mx, "save_safetensors", full)
        with pytest.raises(OutOfSpace, match="checkpoint of step 6") as caught:
            trainer(folder, tmp_path / "cut", how).train(*data)
    assert "goes on from step-4" in caught.value.next_step
    left = sorted(path.name for path in (tmp_path / "cut/checkpoints").iterdir())
    assert left == ["step-2", "step-4"]
    again = trainer(folder, tmp_path / "cut", how)
    again.train(*data, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut", whole, again)


def test_before_memory_runs_out_the_state_is_saved(
    folder: Path, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = settings(num_train_epochs=2.0, save_steps=100, learning_rate=5e-3)
    whole = trainer(folder, tmp_path / "whole", how)
    whole.train(*data)
    one = trainer(folder, tmp_path / "cut", how)
    used = iter([0.1, 0.1, 0.1, 0.96])
    measure = one.memory.measure

    def measured() -> int:
        peak = measure()
        one.memory.used = int(next(used) * machine.training_memory_bytes())
        return peak

    monkeypatch.setattr(one.memory, "measure", measured)
    with pytest.raises(TrainingFailed, match="ended after step 3, before the machine") as caught:
        one.train(*data)
    assert "goes on from there" in caught.value.next_step
    assert latest_checkpoint(tmp_path / "cut") == tmp_path / "cut/checkpoints/step-3"
    again = trainer(folder, tmp_path / "cut", how)
    again.train(*data, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut", whole, again)


class Notes(Callback):
    """What it was told, and whether it fails at it."""

    def __init__(self, fails_at: str = "") -> None:
        self.said: list[str] = []
        self.fails_at = fails_at

    def _note(self, what: str) -> None:
        self.said.append(what)
        if what == self.fails_at:
            raise Unavailable(f"cannot {what}")

    def on_start(self, history: Any, total: int) -> None:
        self._note(f"start {len(history)} of {total}")

    def on_step(self, row: Any) -> None:
        self._note(f"step {row['step']}")

    def on_evaluation(self, row: Any) -> None:
        self._note(f"evaluation {row['step']}")

    def on_end(self) -> None:
        self._note("end")


def test_every_watcher_is_told_of_everything(folder: Path, data: Any, tmp_path: Path) -> None:
    def watched(notes: list[Notes], *, resume: bool, stop: int = 100) -> None:
        model = load_base(str(folder)).model
        how = settings(max_steps=3, eval_steps=2)
        attach_adapters(model, how, "float16")
        one = FineTuneTrainer(model, how, tmp_path, check=stop_before(stop), watchers=notes)
        one.train(*data, resume=resume)

    first = Notes()
    with pytest.raises(Cancelled):
        watched([first], resume=False, stop=2)
    assert first.said == ["start 0 of 3", "step 0", "evaluation 0", "step 1", "end"]
    second = Notes()
    watched([second], resume=True)
    assert second.said == [
        "start 2 of 3",
        *("step 2", "evaluation 2", "step 3", "evaluation 3", "end"),
    ]
    # One that cannot begin ends the training before its first step, and all are told of the end;
    # what fails while that is told hides nothing.
    third, fourth = Notes("end"), Notes("start 0 of 3")
    with pytest.raises(Unavailable, match="cannot start"):
        watched([third, fourth], resume=False)
    assert third.said == fourth.said == ["start 0 of 3", "end"]


def test_a_dry_run_leaves_no_trace(folder: Path, data: Any, tmp_path: Path) -> None:
    train, valid = data
    longest = max(range(len(train)), key=lambda at: len(train[at].tokens))
    how = settings(num_train_epochs=2.0, batch_size=2, lora_dropout=0.2, eval_steps=3)
    whole = trainer(folder, tmp_path / "whole", how)
    whole.train(train, valid)
    one = trainer(folder, tmp_path / "run", how)
    tried = one.dry_run(train, valid)
    assert not (tmp_path / "run").exists()
    assert tried.steps == 10
    assert tried.longest_row >= len(train[longest].tokens)
    assert tried.tokens >= tried.longest_row
    assert 0 < tried.peak_memory_bytes < tried.memory_bytes
    assert tried.tokens_per_second == pytest.approx(tried.tokens / tried.step_seconds)
    all_tokens = 2 * sum(len(example.tokens) for example in train)
    training = all_tokens / tried.tokens_per_second
    assert training < tried.estimated_seconds < 20 * training
    assert one.dry_run(train).estimated_seconds > 0
    one.train(train, valid)
    assert_same(tmp_path / "whole", tmp_path / "run", whole, one)


def test_total_steps() -> None:
    assert total_steps(10, settings(num_train_epochs=1.5, batch_size=4)) == 5
    assert total_steps(10, settings(num_train_epochs=1.5, batch_size=4, max_steps=2)) == 2
    assert total_steps(1, settings(num_train_epochs=0.1)) == 1
    assert (
        total_steps(10, settings(batch_size=2, gradient_accumulation_steps=2, num_train_epochs=2.0))
        == 6
    )


def test_a_short_run_has_a_short_warm_up_and_says_so(
    folder: Path, data: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    one = trainer(folder, tmp_path, settings(max_steps=3, warmup_steps=100))
    one.emit = lambda kind, **more: said.append(more.get("message", ""))
    one.train(data[0], [])
    assert "Warm-up is 1 steps: the run has only 3." in said
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "metrics.jsonl")[1:]]
    assert rates[0] == max(rates)
