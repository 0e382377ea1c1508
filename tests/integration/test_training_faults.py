"""What can befall a training, each as a real process meets it, and how it ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from forge_mcp import machine
from forge_mcp.errors import (
    BadInput,
    Cancelled,
    ForgeError,
    NotFound,
    OutOfSpace,
    TrainingFailed,
    UnsupportedModel,
)
from forge_mcp.locks import FileLock
from forge_mcp.schemas.raft_examples import ChatRow
from forge_mcp.training.callbacks import read_metrics
from forge_mcp.training.checkpoints import latest_checkpoint, load_checkpoint
from forge_mcp.training.child import LOG, REQUEST, STOP, ChildRequest
from forge_mcp.training.supervise import dry_run_in_child, train_in_child

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from training_models import chat_rows, make_base, settings, write_rows

pytestmark = pytest.mark.integration
mx = machine.mlx()
KILLS = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def asked(folder: Path, base: Path | str, **changed: Any) -> dict[str, Any]:
    """What `train_in_child` is given."""
    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    return {
        "train": write_rows(folder / "train.jsonl", chat_rows(9)),
        "valid": write_rows(folder / "valid.jsonl", chat_rows(2)),
        "base": str(base),
        "settings": settings(**({"early_stopping_patience": 0} | changed)),
        "run": run,
    }


class Listener:
    """Takes events; acts once, when a step has been made."""

    def __init__(self, step: int | None = None, action: Any = None) -> None:
        self.logs: list[tuple[str, str]] = []
        self.steps: list[int] = []
        self._step, self._action = step, action

    def __call__(self, kind: str, **payload: Any) -> None:
        if kind == "log":
            self.logs.append((payload["level"], payload["message"]))
        if kind == "metric":
            self.steps.append(payload["step"])
            if self._step is not None and payload["step"] >= self._step:
                self._step = None
                self._action()

    @property
    def said(self) -> str:
        return "\n".join(message for _, message in self.logs)


def train(given: dict[str, Any], listener: Listener | None = None, **more: Any) -> dict[str, Any]:
    listener = listener or Listener()
    return train_in_child(**given, emit=listener, cancel=threading.Event(), **more)


def child() -> psutil.Process:
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "forge_mcp.training.child" in one.cmdline():
                return one
    raise AssertionError("there is no training child")


def assert_same(whole: Path, cut: Path) -> None:
    """Losses, adapters, and all of the last checkpoint, bit for bit."""
    rows, again = read_metrics(whole / "metrics.jsonl"), read_metrics(cut / "metrics.jsonl")
    for key in ("step", "loss", "valid_loss", "valid_accuracy", "grad_norm", "learning_rate"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows], key
    for name in ("adapters.safetensors", "initial_adapters.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    paths = [latest_checkpoint(run) for run in (whole, cut)]
    first, second = (load_checkpoint(path) for path in paths if path is not None)
    assert first.progress == second.progress
    for one, other in zip(first[1:4], second[1:4], strict=True):
        assert one.keys() == other.keys()
        assert all(mx.array_equal(one[name], other[name]) for name in one)


def test_killed_at_twenty_random_steps_it_ends_as_if_nothing_had_been(
    base: Path, tmp_path: Path
) -> None:
    """Dropout, accumulation and the 8-bit state included; the first kills come before the first
    checkpoint. Each attempt is a process, and SIGKILL what ends it."""
    how = {
        "num_train_epochs": 20.0,  # 60 steps
        "batch_size": 1,
        "gradient_accumulation_steps": 3,
        "optimizer": "adamw_8bit",
        "rank": 64,
        "lora_dropout": 0.1,
        "learning_rate": 2e-3,
        "save_steps": 2,
        "eval_steps": 7,
    }
    outcomes = {}
    steps = sorted(random.Random(20).sample(range(1, 59), KILLS))
    for name, kills in (("whole", []), ("cut", steps)):
        given = asked(tmp_path / name, base, **how)
        scratch = tmp_path / name / "scratch"
        scratch.mkdir()
        request = scratch / REQUEST
        control = scratch / STOP
        program = [sys.executable, str(Path(__file__).with_name("killed_training.py"))]
        process = subprocess.Popen(
            [*program, str(request), *map(str, kills)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **machine.CHILD_ENVIRONMENT, "OPENBLAS_NUM_THREADS": "1"},
        )
        made = ChildRequest(**given, control=control, parent=process.pid, resume=True)
        request.with_suffix(".new").write_text(made.model_dump_json())
        request.with_suffix(".new").rename(request)
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-2000:]
        outcomes[name] = json.loads(out)
        assert outcomes[name]["exit_code"] == 0, err[-2000:]
    reached = outcomes["cut"]["killed_after"]
    assert len(reached) == KILLS
    assert all(at >= step for at, step in zip(reached, steps, strict=True))
    events = [json.loads(line) for line in whole_lines(tmp_path / "cut/scratch/events.jsonl")]
    resumed = [
        event["payload"]["message"]
        for event in events
        if "Resumed after step" in event["payload"].get("message", "")
    ]
    assert len(resumed) >= KILLS - 2
    assert not [event for event in events if "damaged" in event["payload"].get("message", "")]
    assert_same(tmp_path / "whole/run", tmp_path / "cut/run")


def whole_lines(path: Path) -> list[str]:
    """Those that no kill has cut short."""
    found = []
    for line in path.read_text().splitlines():
        with suppress(ValueError):
            json.loads(line)
            found.append(line)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_child_that_is_told_to_end_saves_where_it_is(
    base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    how = {"max_steps": 12, "num_train_epochs": 99.0, "save_steps": 1000, "learning_rate": 5e-3}
    whole, cut = asked(tmp_path / "whole", base, **how), asked(tmp_path / "cut", base, **how)
    train(whole)
    with pytest.raises(Cancelled) as caught:
        train(cut, Listener(3, lambda: child().send_signal(number)))
    assert "signal" in caught.value.cause
    assert "goes on" in caught.value.next_step
    saved = latest_checkpoint(cut["run"])
    assert saved is not None
    step = load_checkpoint(saved).progress.step
    assert 3 <= step < 12
    assert read_metrics(cut["run"] / "metrics.jsonl")[-1]["step"] == step
    listener = Listener()
    train(cut, listener, resume=True)
    assert f"Resumed after step {step}." in listener.said
    assert_same(whole["run"], cut["run"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_the_disk_fills_up_while_a_checkpoint_is_saved(
    base: Path, tmp_path: Path, small_disk: Path
) -> None:
    how = {"max_steps": 12, "num_train_epochs": 99.0, "save_steps": 4, "learning_rate": 5e-3}
    whole = asked(tmp_path / "whole", base, **how)
    train(whole)
    cut = asked(small_disk, base, **how)
    ballast = small_disk / "somebody's film"

    def fill() -> None:
        """All but a few pages: the next steps' rows still fit, a checkpoint does not."""
        with ballast.open("wb") as file:
            file.truncate(0)
            while shutil.disk_usage(small_disk).free > 60_000:
                file.write(b"x" * 10_000)
                file.flush()

    with pytest.raises(OutOfSpace, match="no space left") as caught:
        train(cut, Listener(5, fill))
    assert "step 8" in caught.value.message
    assert str(small_disk) in caught.value.message
    assert "goes on from step-4" in caught.value.next_step
    assert latest_checkpoint(cut["run"]) == cut["run"] / "checkpoints/step-4"
    ballast.unlink()
    listener = Listener()
    train(cut, listener, resume=True)
    assert "Resumed after step 4." in listener.said
    assert_same(whole["run"], cut["run"])


def test_a_disk_that_is_full_from_the_beginning(base: Path, small_disk: Path) -> None:
    """MLX does not say why it cannot write the split weights."""
    given = asked(small_disk, base, max_steps=2)
    with (small_disk / "film").open("wb") as file:
        while shutil.disk_usage(small_disk).free > 90_000:
            file.write(b"x" * 10_000)
            file.flush()
    with pytest.raises(OutOfSpace, match="no space left"):
        train(given)


def test_a_base_that_vanishes_while_it_is_read(base: Path, tmp_path: Path) -> None:
    """It is loaded lazily: its files must last until the last layer was split."""
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    given = asked(tmp_path, mine, max_steps=2)

    def gone(kind: str, **payload: Any) -> None:
        if "loading" in payload.get("message", ""):
            weights = mine / "model.safetensors"
            os.truncate(weights, weights.stat().st_size // 2)

    with pytest.raises((NotFound, UnsupportedModel)) as caught:
        train_in_child(**given, emit=gone, cancel=threading.Event())
    assert str(mine) in f"{caught.value.message} {caught.value.cause} {caught.value.next_step}"


def test_a_base_that_is_gone_before_the_run_goes_on(base: Path, tmp_path: Path) -> None:
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    how = {"max_steps": 6, "num_train_epochs": 9.0, "save_steps": 2}
    given = asked(tmp_path, mine, **how)
    with pytest.raises(TrainingFailed, match="SIGKILL"):
        train(given, Listener(3, lambda: child().kill()))
    (mine / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(UnsupportedModel, match="not complete") as caught:
        train(given, resume=True)
    assert str(mine) in caught.value.cause
    assert latest_checkpoint(given["run"]) is not None, "nothing is lost"
    (tmp_path / "elsewhere").rename(mine / "model.safetensors")
    listener = Listener()
    train(given, listener, resume=True)
    assert "Resumed after step" in listener.said


def test_damaged_split_weights_are_made_anew(base: Path, tmp_path: Path) -> None:
    how = {"max_steps": 6, "num_train_epochs": 9.0, "save_steps": 2, "learning_rate": 5e-3}
    whole, cut = asked(tmp_path / "whole", base, **how), asked(tmp_path / "cut", base, **how)
    train(whole)
    with pytest.raises(TrainingFailed, match="SIGKILL"):
        train(cut, Listener(3, lambda: child().kill()))
    residual = cut["run"] / "residual/residual.safetensors"
    before = residual.read_bytes()
    residual.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    listener = Listener()
    train(cut, listener, resume=True)
    assert ("warning", "The split weights of this run are damaged or not its own: made anew.") in (
        listener.logs
    )
    assert residual.read_bytes() == before
    assert_same(whole["run"], cut["run"])


def test_a_row_of_a_hundred_thousand_tokens_is_told_and_left_out(
    base: Path, tmp_path: Path
) -> None:
    given = asked(tmp_path, base, max_steps=2)
    rows = chat_rows(9)
    long = rows[0].model_dump()
    long["messages"][1]["content"] = "x" * 100_000
    write_rows(given["train"], [*rows, ChatRow.model_validate(long)])
    write_rows(given["valid"], [*rows[:2], ChatRow.model_validate(long)])
    listener = Listener()
    result = train(given, listener)
    assert result["steps"] == 2
    for name in ("training", "validation"):
        assert (
            "warning",
            f"1 {name} examples are longer than 2048 tokens and are left out.",
        ) in listener.logs


def test_empty_splits(base: Path, tmp_path: Path) -> None:
    given = asked(tmp_path, base, max_steps=2)
    given["valid"].write_text("")
    listener = Listener()
    result = train(given, listener)
    assert "There is no validation example: the last adapters are kept." in listener.said
    assert result["valid_loss"] is None
    assert result["best_step"] == 2
    given["train"].write_text("")
    with pytest.raises(BadInput, match="nothing to train on") as caught:
        train(given)
    assert "train.jsonl is empty" in caught.value.cause


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_no_numbers_are_named(base: Path, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "base"
    shutil.copytree(base, mine)
    weights = mx.load(str(mine / "model.safetensors"))
    broken = np.array(weights[name])
    broken.flat[3] = np.nan
    weights[name] = mx.array(broken)
    mx.eval(weights)
    mx.save_safetensors(str(mine / "model.safetensors"), weights, metadata={"format": "pt"})
    listener = Listener()
    with pytest.raises(ForgeError) as caught:
        train(asked(tmp_path, mine, max_steps=2), listener)
    said = f"{caught.value.message} {caught.value.cause}"
    assert name.removesuffix(".weight") in said
    assert "numbers" in said
    assert listener.steps == [], "before the first step"


def test_a_learning_rate_of_ten_on_forge_nano(tmp_path: Path) -> None:
    given = asked(
        tmp_path,
        "forge-nano",
        rank=16,
        learning_rate=10.0,
        warmup_steps=10,
        max_steps=60,
        num_train_epochs=99.0,
        save_steps=1,
    )
    listener = Listener()
    with pytest.raises(TrainingFailed, match="diverged at step") as caught:
        train(given, listener)
    last = latest_checkpoint(given["run"])
    assert last is not None
    assert str(last) in caught.value.cause
    assert "learning_rate of a third" in caught.value.next_step
    rows = read_metrics(given["run"] / "metrics.jsonl")
    step = load_checkpoint(last).progress.step
    limit = 1.5 * max(rows[0]["valid_loss"], rows[1]["loss"])
    assert rows[step]["loss"] <= limit
    assert len(listener.steps) < 30


def test_a_second_trainer_on_the_same_run_waits_for_the_first(base: Path, tmp_path: Path) -> None:
    given = asked(tmp_path, base, max_steps=3)
    first = FileLock(given["run"] / LOG)
    assert first.acquire()
    listener = Listener()
    outcome: list[Any] = []
    second = threading.Thread(target=lambda: outcome.append(train(given, listener)))
    second.start()
    deadline = time.monotonic() + 60
    while "former training of this run" not in listener.said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (given["run"] / "metrics.jsonl").exists()
    first.release()
    second.join(60)
    assert outcome[0]["steps"] == 3


def test_a_dry_run_in_a_child_keeps_nothing(base: Path, tmp_path: Path) -> None:
    given = asked(tmp_path, base, num_train_epochs=2.0, gradient_accumulation_steps=2)
    del given["run"]
    listener = Listener()
    result = dry_run_in_child(**given, emit=listener, cancel=threading.Event())
    assert result["steps"] == 4
    assert result["tokens_per_second"] > 0
    assert result["estimated_seconds"] > 0
    assert 0 < result["peak_memory_bytes"] < result["memory_bytes"]
    assert listener.steps == []
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_missing_tracker_is_told_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    given = asked(tmp_path, base, max_steps=2, trackers=["tensorboard"])
    assert train(given)["steps"] == 2
    (events,) = (given["run"] / "tensorboard").iterdir()
    assert "tfevents" in events.name
    for name in ("wandb", "mlflow"):
        try:
            __import__(name)
        except ImportError:
            absent = asked(tmp_path / name, base, max_steps=2, trackers=[name])
            with pytest.raises(BadInput, match=name):
                train(absent)
            assert not (absent["run"] / "adapter_config.json").exists()
