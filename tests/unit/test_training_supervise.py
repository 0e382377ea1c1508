"""The training child: it tells, it stops, it dies in words, and it never outlives its parent."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_models import chat_rows, make_base, settings, write_rows

from forge_mcp.errors import (
    BadInput,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    NotFound,
    OutOfSpace,
    TrainingFailed,
)
from forge_mcp.locks import FileLock, is_held
from forge_mcp.training import supervise
from forge_mcp.training.bases import resolve_base
from forge_mcp.training.callbacks import read_metrics
from forge_mcp.training.checkpoints import latest_checkpoint
from forge_mcp.training.child import (
    LOG,
    OUT_OF_MEMORY_ADVICE,
    _clean,
    _in_words,
    _saved_start,
    _vanishing,
)
from forge_mcp.training.supervise import (
    SCRATCH,
    SILENT_SECONDS,
    STALLED_SECONDS,
    STEPS_OF_STALL,
    Pace,
    train_in_child,
)

LONG = {"num_train_epochs": 5000.0, "early_stopping_patience": 0}
# Only Linux tells a process that hangs of its parent's death; see machine.die_with_parent.
HUNG = [False, True] if sys.platform == "linux" else [False]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


def request(tmp_path: Path, base: Path, **changed: Any) -> dict[str, Any]:
    run = tmp_path / "run"
    run.mkdir(parents=True)
    return {
        "train": write_rows(tmp_path / "train.jsonl", chat_rows(9)),
        "valid": write_rows(tmp_path / "valid.jsonl", chat_rows(2)),
        "base": str(base),
        "settings": settings(**changed),
        "run": run,
    }


def children() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile, or is a zombie
            if "forge_mcp.training.child" in one.cmdline():
                found.append(one)
    return found


def silent(kind: str, **payload: Any) -> None:
    """An `emit` that does not listen."""


def scratch(run: Path) -> list[Path]:
    return list(run.glob(f"{SCRATCH}*"))


class Background(threading.Thread):
    """A training in a thread: what it said, and how it ended."""

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__()
        self.asked = asked
        self.cancel = threading.Event()
        self.waits = threading.Event()
        self.said: list[str] = []
        self.outcome: dict[str, Any] | Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = train_in_child(**self.asked, emit=self._emit, cancel=self.cancel)
        except Exception as error:
            self.outcome = error

    def _emit(self, kind: str, **payload: Any) -> None:
        self.said.append(payload.get("message", ""))
        if "wait" in self.said[-1]:
            self.waits.set()


def test_a_killed_child_is_told_in_words(tmp_path: Path, base: Path) -> None:
    def kill(kind: str, **payload: Any) -> None:
        if kind == "metric":
            for child in children():
                child.send_signal(signal.SIGKILL)

    asked = request(tmp_path, base, **LONG)
    (asked["run"] / LOG).write_text("ValueError: of an earlier attempt\n")
    with pytest.raises(TrainingFailed, match="SIGKILL") as caught:
        train_in_child(**asked, emit=kill, cancel=threading.Event())
    assert "memory" in caught.value.cause
    assert "earlier" not in caught.value.cause
    assert "batch_size" in caught.value.next_step
    assert not children()


@pytest.mark.parametrize("said", ['{"kind": "pro', ""])
def test_last_words_that_are_cut_short(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    program = f"import os; os.write(1, {said.encode()!r}); os.write(2, b'oh'); os.kill(0, 9)"

    def dying(request: Path, log: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    monkeypatch.setattr(supervise, "_start", dying)
    with pytest.raises(TrainingFailed, match="SIGKILL") as caught:
        train_in_child(**request(tmp_path, base), emit=silent, cancel=threading.Event())
    assert caught.value.cause.endswith("it said: oh")


def test_a_killed_training_goes_on_from_its_checkpoint(tmp_path: Path, base: Path) -> None:
    """And ends as one that nobody killed, whatever the killed one left lying about."""
    how = {"max_steps": 60, "save_steps": 10, "eval_steps": 20, "learning_rate": 5e-3} | LONG
    whole = request(tmp_path / "whole", base, **how)
    expected = train_in_child(**whole, emit=silent, cancel=threading.Event())
    cut = request(tmp_path / "cut", base, **how)
    said: list[str] = []

    def kill(kind: str, **payload: Any) -> None:
        if kind == "metric" and payload["step"] == 15:
            for child in children():
                child.kill()

    def note(kind: str, **payload: Any) -> None:
        said.append(payload.get("message", ""))

    with pytest.raises(TrainingFailed):
        train_in_child(**cut, emit=kill, cancel=threading.Event())
    before = read_metrics(cut["run"] / "metrics.jsonl")
    saved = latest_checkpoint(cut["run"])
    assert saved is not None
    step = int(saved.name.removeprefix("step-"))
    assert 10 <= step < 60
    left = cut["run"] / f"{SCRATCH}of-a-killed-parent"
    left.mkdir()
    (left / "stop").touch()
    (cut["run"] / "checkpoints" / ".staged").mkdir(exist_ok=True)

    result = train_in_child(**cut, emit=note, cancel=threading.Event(), resume=True)
    assert f"Resumed after step {step}." in said
    assert [result[key] for key in ("steps", "best_step", "train_loss", "valid_loss")] == [
        expected[key] for key in ("steps", "best_step", "train_loss", "valid_loss")
    ]
    rows, again = (read_metrics(asked["run"] / "metrics.jsonl") for asked in (whole, cut))
    assert again[: step + 1] == before[: step + 1], "not computed again: times and all"
    assert [row.get("loss") for row in again] == [row.get("loss") for row in rows]
    files = [
        {path.relative_to(asked["run"]): path for path in asked["run"].rglob("*")}
        for asked in (whole, cut)
    ]
    assert files[0].keys() == files[1].keys(), "nothing lies about"
    for name, path in files[0].items():
        # MLX writes the optimiser's arrays in no certain order.
        if name.suffix == ".safetensors" and name.name != "optimizer.safetensors":
            assert path.read_bytes() == files[1][name].read_bytes(), name


def test_a_cancelled_child_saves_where_it_is_and_stops(tmp_path: Path, base: Path) -> None:
    cancel = threading.Event()

    def emit(kind: str, **payload: Any) -> None:
        if kind == "metric" and payload["step"] == 3:
            cancel.set()

    asked = request(tmp_path, base, save_steps=10**6, **LONG)
    with pytest.raises(Cancelled):
        train_in_child(**asked, emit=emit, cancel=cancel)
    assert not children()
    last = read_metrics(asked["run"] / "metrics.jsonl")[-1]["step"]
    assert last >= 3
    assert latest_checkpoint(asked["run"]) == asked["run"] / f"checkpoints/step-{last}"
    assert not scratch(asked["run"])


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

    asked = request(tmp_path, base, **LONG)
    with pytest.raises(KeyboardInterrupt):
        train_in_child(**asked, emit=emit, cancel=threading.Event())
    assert not children()
    assert not scratch(asked["run"])


def test_on_a_full_disk_a_child_is_stopped_all_the_same(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def emit(kind: str, **payload: Any) -> None:
        monkeypatch.setattr(Path, "touch", full)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_child(**request(tmp_path, base, **LONG), emit=emit, cancel=threading.Event())
    assert not children()


def test_a_child_is_given_the_time_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    assert pace.patience == supervise.CONTROL_SECONDS, "nothing is known yet"
    for now, patience in [
        (1000.0, supervise.CONTROL_SECONDS),  # the first one: it included the loading
        (1001.0, supervise.CONTROL_SECONDS),
        (1011.0, 10.0 * supervise.STEPS_OF_PATIENCE),
        (1012.0, 10.0 * supervise.STEPS_OF_PATIENCE),  # the longest counts
        (9999.0, supervise.LONGEST_CONTROL_SECONDS),
    ]:
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        pace.step()
        assert pace.patience == patience


def test_a_child_that_needs_long_to_stop_is_given_it(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps tell how long that may be; so its checkpoint is not lost."""
    monkeypatch.setattr(supervise, "CONTROL_SECONDS", 0.0)
    monkeypatch.setattr(supervise, "TERMINATE_SECONDS", 0.0)
    monkeypatch.setattr(Pace, "patience", 60.0)
    cancel = threading.Event()

    def emit(kind: str, **payload: Any) -> None:
        if kind == "metric":
            cancel.set()

    asked = request(tmp_path, base, save_steps=10**6, **LONG)
    with pytest.raises(Cancelled):
        train_in_child(**asked, emit=emit, cancel=cancel)
    assert latest_checkpoint(asked["run"]) is not None


def test_who_finds_no_free_slot_waits_and_loads_nothing(tmp_path: Path, base: Path) -> None:
    slot = FileLock(tmp_path / "locks" / "training-0")
    assert slot.acquire()
    asked = request(tmp_path, base, max_steps=2) | {"slots": [slot.path]}
    training = Background(asked)
    assert training.waits.wait(60)
    assert training.said == ["Another training is under way; this one waits for it."]
    assert not (asked["run"] / "adapter_config.json").exists()
    slot.release()
    training.join(60)
    assert isinstance(training.outcome, dict), training.outcome
    assert training.outcome["steps"] == 2
    assert not is_held(slot.path), "it went with the child"


def test_a_run_is_never_written_by_two_children(tmp_path: Path, base: Path) -> None:
    """One that hangs in native code may outlive its killed parent where no kernel ends it."""
    asked = request(tmp_path, base, max_steps=2)
    orphan = FileLock(asked["run"] / LOG)
    assert orphan.acquire()
    training = Background(asked)
    assert training.waits.wait(60)
    assert len(training.said) == 1
    assert "former training of this run" in training.said[0]
    orphan.release()
    training.join(60)
    assert isinstance(training.outcome, dict), training.outcome
    assert not is_held(orphan.path)


def test_waiting_for_a_slot_can_be_cancelled(tmp_path: Path, base: Path) -> None:
    slot = FileLock(tmp_path / "training-0")
    assert slot.acquire()
    training = Background(request(tmp_path, base) | {"slots": [slot.path]})
    assert training.waits.wait(60)
    training.cancel.set()
    training.join(60)
    assert isinstance(training.outcome, Cancelled)
    assert not children()


def test_a_second_slot_lets_a_second_training_run(tmp_path: Path, base: Path) -> None:
    slots = [tmp_path / f"training-{number}" for number in range(2)]
    held: list[bool] = []

    def emit(kind: str, **payload: Any) -> None:
        assert "Another training" not in payload.get("message", "")
        if kind == "metric":
            held.append(is_held(slots[1]))
            raise KeyboardInterrupt

    asked = request(tmp_path, base, **LONG) | {"slots": slots}
    with FileLock(slots[0]) as first, pytest.raises(KeyboardInterrupt):
        assert first.acquire()
        train_in_child(**asked, emit=emit, cancel=threading.Event())
    assert held == [True]
    assert not is_held(slots[1]), "it went with the child"


def test_bad_data_and_too_long_examples_reach_the_caller(tmp_path: Path, base: Path) -> None:
    asked = request(tmp_path, base, max_seq_length=16)
    with pytest.raises(BadInput, match="nothing to train on"):
        train_in_child(**asked, emit=silent, cancel=threading.Event())
    asked["train"].write_text("{}\n")
    with pytest.raises(CorruptArtifact, match=r"train.jsonl, line 1"):
        train_in_child(**asked, emit=silent, cancel=threading.Event())


@pytest.mark.parametrize("hung", HUNG)
def test_no_orphan_trains_on(tmp_path: Path, base: Path, hung: bool) -> None:
    asked = request(tmp_path, base, **LONG)
    slot = tmp_path / "training-0"
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
            emit=emit, cancel=threading.Event(), slots=[Path({str(slot)!r})],
        )
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "training\n"
    (child,) = children()
    assert is_held(slot)
    try:
        if hung:
            child.suspend()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + 60
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the child outlived its parent"
            time.sleep(0.05)
        while is_held(slot):  # until the last of its threads is gone
            assert time.monotonic() < deadline, "its slot stayed taken"
            time.sleep(0.05)
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_running_out_of_memory_is_told_with_advice() -> None:
    error = _in_words(RuntimeError("[malloc] Unable to allocate 99 bytes."))
    assert "out of memory" in error.message
    assert "max_seq_length" in error.next_step
    other = _in_words(ValueError("shapes differ\nsecond line"))
    assert other.cause == "ValueError: shapes differ"


def test_what_mlx_cannot_write_on_a_full_disk_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[write] Unable to write 951519 bytes to file.")
    assert isinstance(_in_words(error, tmp_path), TrainingFailed)
    monkeypatch.setattr("forge_mcp.training.child.is_full", lambda path: True)
    told = _in_words(error, tmp_path)
    assert isinstance(told, OutOfSpace)
    assert str(tmp_path) in told.message
    assert isinstance(_in_words(ValueError("a defect"), tmp_path), TrainingFailed)


def test_an_error_is_told_though_the_log_cannot_be_written(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: /dev/full takes nothing."""
    start = supervise._start

    def started(request: Path, log: Any) -> subprocess.Popen[str]:
        with Path("/dev/full").open("wb") as full:
            return start(request, full)

    monkeypatch.setattr(supervise, "_start", started)
    asked = request(tmp_path, base)
    asked["valid"].unlink()
    with pytest.raises(ForgeError, match=r"valid\.jsonl"):
        train_in_child(**asked, emit=silent, cancel=threading.Event())


def test_a_base_that_changes_while_it_is_read_is_told(base: Path, tmp_path: Path) -> None:
    found = resolve_base(str(base))
    with pytest.raises(RuntimeError, match="of another kind"), _vanishing(found):
        raise RuntimeError("of another kind")
    mine = tmp_path / "mine"
    shutil.copytree(base, mine)
    found = resolve_base(str(mine))
    with pytest.raises(NotFound, match="changed or deleted") as caught, _vanishing(found):
        (mine / "model.safetensors").unlink()
        (mine / "notes.txt").write_text("somebody else's")
        raise FileNotFoundError
    assert caught.value.cause == f"in {mine}: model.safetensors"


def test_a_run_whose_description_is_torn_has_no_saved_start(tmp_path: Path, base: Path) -> None:
    found = resolve_base(str(base))
    assert _saved_start(tmp_path, found) is None
    for text in ("", "[]", "{}", '{"checksums": {}}'):
        (tmp_path / "adapter_config.json").write_text(text)
        assert _saved_start(tmp_path, found) is None


def test_the_folder_of_a_killed_parent_is_removed(tmp_path: Path) -> None:
    for names in (("request.json",), ("request.json", "stop"), ()):
        folder = tmp_path / "scratch"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        _clean(folder)
        assert not folder.exists()
    folder.mkdir()
    (folder / "somebody's").touch()
    _clean(folder)
    assert folder.exists()


def test_answers_of_which_nothing_counts(tmp_path: Path, base: Path) -> None:
    """The rows here have no reasoning and no quotes."""
    weights = {"answer_weight": 0.0, "quote_weight": 2.0, "max_steps": 1}
    asked = request(tmp_path, base, reasoning_weight=0.0, rank=100, **weights)
    with pytest.raises(BadInput, match="nothing to learn") as caught:
        train_in_child(**asked, emit=silent, cancel=threading.Event())
    assert "answer_weight" in caught.value.next_step
    quoting = chat_rows(1)[0]
    quoting.messages[-1].content = "##begin_quote##f1##end_quote## <ANSWER>: f1"
    write_rows(asked["train"], [*chat_rows(8), quoting])
    said: list[str] = []
    train_in_child(
        **asked,
        emit=lambda kind, **payload: said.append(payload.get("message", "")),
        cancel=threading.Event(),
    )
    assert [text for text in said if text.startswith("8 training examples are left out")]
    assert [text for text in said if "rank 100 is more than" in text]
    assert [text for text in said if "bits a weight" in text]


class Hands:
    """The clock by which a training's pace is judged, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("forge_mcp.training.supervise.time.monotonic", lambda: self.now)

    def pass_by(self, seconds: float, pace: Pace, *, alive: bool) -> None:
        """So much time, in which the parent looks every second."""
        for _ in range(round(seconds)):
            self.now += 1.0
            if alive:
                pace.sign()
            pace.check()


def test_a_child_without_a_sign_of_life_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands(monkeypatch)
    pace = Pace()
    hands.pass_by(SILENT_SECONDS, pace, alive=False)
    with pytest.raises(TrainingFailed, match="gave no sign of life"):
        hands.pass_by(2, pace, alive=False)


def test_a_child_that_makes_no_step_any_more_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands(monkeypatch)
    pace = Pace()
    hands.pass_by(3 * STALLED_SECONDS, pace, alive=True)  # loading takes what it takes
    for _ in range(3):
        pace.step()
        hands.pass_by(5, pace, alive=True)
    hands.pass_by(STALLED_SECONDS - 5, pace, alive=True)
    with pytest.raises(TrainingFailed, match="has made no step for 15 min"):
        hands.pass_by(2, pace, alive=True)


def test_slow_steps_are_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands(monkeypatch)
    pace = Pace()
    for _ in range(3):
        pace.step()
        hands.pass_by(STALLED_SECONDS / 2, pace, alive=True)
    hands.pass_by(STEPS_OF_STALL / 3 * STALLED_SECONDS / 2, pace, alive=True)


def test_a_parent_that_did_not_run_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands(monkeypatch)
    pace = Pace()
    pace.step()
    hands.now += 10 * STALLED_SECONDS  # stopped, or the machine slept
    pace.check()


def test_a_child_tells_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    from forge_mcp.training import child as child_module

    monkeypatch.setattr(child_module, "HEARTBEAT_SECONDS", 0.01)
    told: list[str] = []

    def emit(kind: str, **payload: Any) -> None:
        told.append(kind)
        if len(told) == 2:
            raise BrokenPipeError

    child_module._beat(emit)
    assert told == ["heartbeat", "heartbeat"]


@pytest.mark.parametrize(
    ("number", "memory"), [(signal.SIGKILL, True), (signal.SIGABRT, True), (signal.SIGSEGV, False)]
)
def test_a_crash_is_not_called_a_lack_of_memory(
    tmp_path: Path, number: signal.Signals, memory: bool
) -> None:
    (tmp_path / LOG).write_text("last words\n")
    told = supervise.describe_death("training process", -number, tmp_path / LOG)
    assert number.name in told.message
    assert "last words" in told.cause
    assert ("memory" in told.cause) is memory
    assert (told.next_step == OUT_OF_MEMORY_ADVICE) is memory
