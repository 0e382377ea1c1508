"""The training child: it tells, it stops, it dies in words, and it never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_models import chat_rows, make_base, settings, write_rows

from forge_mcp.errors import BadInput, Cancelled, CorruptArtifact, TrainingFailed
from forge_mcp.training import supervise
from forge_mcp.training.child import _in_words
from forge_mcp.training.supervise import train_in_child

LONG = {"epochs": 5000.0, "early_stopping_patience": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def request(tmp_path: Path, base: Path, **changed: Any) -> dict[str, Any]:
    run = tmp_path / "run"
    run.mkdir()
    return {
        "train": write_rows(tmp_path / "train.jsonl", chat_rows(9)),
        "valid": write_rows(tmp_path / "valid.jsonl", chat_rows(2)),
        "base": str(base),
        "settings": settings(**changed),
        "run": run,
    }


def children() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if "forge_mcp.training.child" in one.cmdline()
    ]


def test_a_killed_child_is_told_in_words(tmp_path: Path, base: Path) -> None:
    def kill(kind: str, **payload: Any) -> None:
        if kind == "metric":
            for child in children():
                child.send_signal(signal.SIGKILL)

    with pytest.raises(TrainingFailed, match="SIGKILL") as caught:
        train_in_child(**request(tmp_path, base, **LONG), emit=kill, cancel=threading.Event())
    assert "memory" in caught.value.cause
    assert "batch_size" in caught.value.next_step
    assert not children()


def test_a_cancelled_child_stops_after_its_step(tmp_path: Path, base: Path) -> None:
    cancel = threading.Event()

    def emit(kind: str, **payload: Any) -> None:
        if kind == "metric":
            cancel.set()

    with pytest.raises(Cancelled):
        train_in_child(**request(tmp_path, base, **LONG), emit=emit, cancel=cancel)
    assert not children()


def test_ctrl_c_and_a_stubborn_child(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that does not react at all (it is stopped) is killed."""
    monkeypatch.setattr(supervise, "CONTROL_SECONDS", 0.2)
    monkeypatch.setattr(supervise, "TERMINATE_SECONDS", 0.2)

    def emit(kind: str, **payload: Any) -> None:
        for child in children():
            child.suspend()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_child(**request(tmp_path, base, **LONG), emit=emit, cancel=threading.Event())
    assert not children()


def test_bad_data_and_too_long_examples_reach_the_caller(tmp_path: Path, base: Path) -> None:
    asked = request(tmp_path, base, max_seq_length=16)
    with pytest.raises(BadInput, match="nothing to train on"):
        train_in_child(**asked, emit=lambda kind, **more: None, cancel=threading.Event())
    asked["train"].write_text("{}\n")
    with pytest.raises(CorruptArtifact, match=r"train.jsonl, line 1"):
        train_in_child(**asked, emit=lambda kind, **more: None, cancel=threading.Event())


def test_no_orphan_trains_on(tmp_path: Path, base: Path) -> None:
    asked = request(tmp_path, base, **LONG)
    program = f"""
        import sys, threading
        from pathlib import Path
        from forge_mcp.settings import TrainingSettings
        from forge_mcp.training.supervise import train_in_child
        def emit(kind, **payload):
            if kind == "metric":
                print("training", flush=True)
        train_in_child(
            train=Path({str(asked["train"])!r}), valid=Path({str(asked["valid"])!r}),
            base={str(base)!r}, run=Path({str(asked["run"])!r}),
            settings=TrainingSettings.model_validate_json({asked["settings"].model_dump_json()!r}),
            emit=emit, cancel=threading.Event(),
        )
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "training\n"
    (child,) = children()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def test_running_out_of_memory_is_told_with_advice() -> None:
    error = _in_words(RuntimeError("[malloc] Unable to allocate 99 bytes."))
    assert "out of memory" in error.message
    assert "max_seq_length" in error.next_step
    other = _in_words(ValueError("shapes differ\nsecond line"))
    assert other.cause == "ValueError: shapes differ"
