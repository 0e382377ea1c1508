"""A training that is stopped, however it is, goes on later and ends as if nothing had happened."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from driven_line import Line

from forge_mcp.locks import is_held
from forge_mcp.training.callbacks import Row, read_metrics
from forge_mcp.training.checkpoints import latest_checkpoint
from forge_mcp.training.supervise import SCRATCH

pytestmark = pytest.mark.integration
SECONDS = 180
STEPS = {
    "FORGE_TRAINING__MAX_STEPS": "14",
    "FORGE_TRAINING__SAVE_STEPS": "3",
    "FORGE_TRAINING__EVAL_STEPS": "7",
    "FORGE_TRAINING__BATCH_SIZE": "1",
    "FORGE_TRAINING__VALID_EXAMPLES": "2",
}
NEVER_SAVED = {"FORGE_TRAINING__SAVE_STEPS": "1000"}
WAITS = "Another process trains this very run; waiting for it.\n"
# What times and paths make differ between runs, or MLX writes in no certain order.
DIFFERING = {
    "metrics.jsonl",
    "history.jsonl",
    "checksums.json",
    "loss.png",
    "training.log",
    "optimizer.safetensors",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, str]:
    """A line up to its validated dataset."""
    line = Line(tmp_path_factory.mktemp("prepared"))
    made: dict[str, Any] = {"corpus_id": "."}
    for skill, key in (("extract", "corpus_id"), ("synthesize", "corpus_id"), ("validate", "")):
        code, made = line.run(skill, made[key or "dataset_id"])
        assert code == 0, made
    return line, made["dataset_id"]


class Training:
    """`forge-mcp train` in a workspace of its own, seen from outside."""

    def __init__(self, prepared: tuple[Line, str], home: Path) -> None:
        line, self.dataset = prepared
        if not home.exists():
            shutil.copytree(line.home, home)
        self.line = copy.copy(line)
        self.line.home = home
        self.line.environment = line.environment | STEPS | {"FORGE_HOME": str(home)}
        self.process: subprocess.Popen[str]
        self.said: list[str] = []
        self._out: list[str] = []
        self._readers: list[threading.Thread] = []

    def start(self, *arguments: str, **environment: str) -> Training:
        self.process = self.line.start("train", self.dataset, *arguments, **environment)
        pipes = ((self.process.stdout, self._out), (self.process.stderr, self.said))
        self._readers = [
            threading.Thread(target=lambda pipe=pipe, into=into: into.extend(pipe), daemon=True)
            for pipe, into in pipes
        ]
        for reader in self._readers:
            reader.start()
        return self

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and result; nothing of it is left running."""
        code = self.process.wait(SECONDS)
        for reader in self._readers:
            reader.join(SECONDS)
        return code, json.loads("".join(self._out) or "{}")

    @property
    def child(self) -> psutil.Process:
        found = psutil.Process(self.process.pid).children()
        (child,) = [one for one in found if "forge_mcp.training.child" in one.cmdline()]
        return child

    @property
    def unfinished(self) -> list[Path]:
        folder = self.line.home / "unfinished"
        return list(folder.iterdir()) if folder.exists() else []

    def rows(self) -> list[Row]:
        """Of the training that goes on just now; none between its first moments."""
        for folder in self.unfinished:
            with suppress(ValueError):  # a line that is just being written
                return read_metrics(folder / "metrics.jsonl")
        return []

    def until_step(self, step: int) -> psutil.Process:
        """Wait until it has made a step; its child."""
        self.until(lambda: bool(self.rows()) and self.rows()[-1]["step"] >= step)
        return self.child

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not reached():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def checkpoint(self) -> int:
        """The step of the newest checkpoint of the only unfinished run."""
        (run,) = self.unfinished
        found = latest_checkpoint(run)
        assert found is not None
        return int(found.name.removeprefix("step-"))


@pytest.fixture
def start(prepared: tuple[Line, str], tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Starts trainings in one workspace; whatever a test leaves running is ended."""
    started: list[Training] = []

    def start(*arguments: str, **environment: str) -> Training:
        training = Training(prepared, tmp_path / "forge").start(*arguments, **environment)
        started.append(training)
        return training

    yield start
    for training in started:
        if training.process.poll() is None:
            for child in psutil.Process(training.process.pid).children(recursive=True):
                child.kill()
            training.process.kill()
        training.end()


@pytest.fixture(scope="module")
def whole(
    prepared: tuple[Line, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The run that nobody disturbed, and its result."""
    home = tmp_path_factory.mktemp("whole") / "forge"
    code, result = Training(prepared, home).start().end()
    assert code == 0, result
    return Path(result["path"]), result


def assert_same(run: Path, result: dict[str, Any], whole: tuple[Path, dict[str, Any]]) -> None:
    """The same files, adapters and losses, bit for bit."""
    path, expected = whole
    for key in ("run_id", "steps", "best_step", "train_loss", "valid_loss", "initial_valid_loss"):
        assert result[key] == expected[key], key
    rows, again = read_metrics(path / "metrics.jsonl"), read_metrics(run / "metrics.jsonl")
    for key in ("step", "loss", "valid_loss", "valid_accuracy", "grad_norm", "learning_rate"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows], key
    left, right = (
        json.loads((one / "manifest.json").read_text())["checksums"] for one in (path, run)
    )
    assert left.keys() == right.keys()
    same = {name for name in left if Path(name).name not in DIFFERING}
    assert "adapters.safetensors" in same
    for name in same:
        assert (run / name).read_bytes() == (path / name).read_bytes(), name
    on_disk = {str(one.relative_to(run)) for one in run.rglob("*") if one.is_file()}
    assert on_disk == right.keys() | {"manifest.json"}
    assert not list(run.rglob(f"{SCRATCH}*")), "nor an empty folder"


def assert_same_adapters(
    run: Path, result: dict[str, Any], whole: tuple[Path, dict[str, Any]]
) -> None:
    """How often a run is saved decides its hash, and nothing of what is learnt."""
    for name in ("adapters.safetensors", "initial_adapters.safetensors"):
        assert (run / name).read_bytes() == (whole[0] / name).read_bytes()
    for key in ("best_step", "train_loss", "valid_loss"):
        assert result[key] == whole[1][key], key


@pytest.mark.parametrize("victim", [pytest.param("child", marks=pytest.mark.e2e), "command"])
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(
    start: Callable[..., Training], whole: tuple[Path, dict[str, Any]], victim: str
) -> None:
    first = start()
    child = first.until_step(4)
    (child if victim == "child" else first.process).kill()
    code, said = first.end()
    if victim == "child":
        assert code == 1
        assert said["error"]["code"] == "training_failed"
        assert "SIGKILL" in said["error"]["message"]
    else:
        assert (code, said) == (-signal.SIGKILL, {})
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running(), "no orphan trains on"
    step = first.checkpoint()
    before = first.rows()[: step + 1]
    assert 3 <= step < 14
    assert not is_held(first.unfinished[0])

    second = start()
    code, result = second.end()
    assert code == 0, result
    assert f"Resumed after step {step}.\n" in second.said
    run = Path(result["path"])
    assert read_metrics(run / "metrics.jsonl")[: step + 1] == before, "not computed again"
    assert_same(run, result, whole)
    assert second.unfinished == []


@pytest.mark.e2e
def test_a_training_that_is_killed_before_its_first_checkpoint_begins_anew(
    start: Callable[..., Training], whole: tuple[Path, dict[str, Any]]
) -> None:
    first = start(**NEVER_SAVED)
    first.until_step(1).kill()
    assert first.end()[0] == 1
    assert first.unfinished == [], "there is nothing to go on with"

    second = start(**NEVER_SAVED)
    second.until_step(1)
    second.process.kill()
    second.end()
    assert len(second.unfinished) == 1, "there was nobody left to remove it"

    third = start(**NEVER_SAVED)
    code, result = third.end()
    assert code == 0, result
    assert not [line for line in third.said if "Resumed" in line]
    assert_same_adapters(Path(result["path"]), result, whole)
    assert third.unfinished == []


def test_a_training_that_is_interrupted_has_saved_where_it_was(
    start: Callable[..., Training], whole: tuple[Path, dict[str, Any]]
) -> None:
    first = start(**NEVER_SAVED)
    child = first.until_step(2)
    first.process.send_signal(signal.SIGINT)
    code, said = first.end()
    assert code == 130
    assert said["error"]["code"] == "cancelled"
    assert not child.is_running()
    step = first.checkpoint()
    assert step == first.rows()[-1]["step"]
    assert 2 <= step < 14
    assert not list(first.unfinished[0].glob(f"{SCRATCH}*"))

    second = start(**NEVER_SAVED)
    code, result = second.end()
    assert code == 0, result
    assert f"Resumed after step {step}.\n" in second.said
    assert_same_adapters(Path(result["path"]), result, whole)
    assert second.unfinished == []


@pytest.mark.e2e
def test_two_trainings_take_turns(start: Callable[..., Training]) -> None:
    both = [start("--seed", str(seed), "--max-steps", "6") for seed in (1, 2)]
    runs = []
    for training in both:
        code, result = training.end()
        assert code == 0, result
        runs.append(Path(result["path"]))
    assert runs[0] != runs[1]
    waited = ["Another training is under way" in "".join(training.said) for training in both]
    assert sorted(waited) == [False, True]
    # When the model was loaded, and when the adapters were saved.
    files = ("adapter_config.json", "adapters.safetensors")
    spans = sorted([(run / name).stat().st_mtime for name in files] for run in runs)
    (_, end), (begin, _) = spans
    assert end < begin, "never two at a time"


def test_the_same_training_asked_for_twice_is_done_once(start: Callable[..., Training]) -> None:
    first = start()
    child = first.until_step(1)
    child.suspend()  # so that it is not done before the second one comes
    second = start()
    second.until(lambda: WAITS in second.said)
    child.resume()
    results = [training.end() for training in (first, second)]
    assert results[0] == results[1], "to the second that it took"
    assert results[0][0] == 0
    assert not [line for line in second.said if line.startswith("train ")], "it trained nothing"
    runs = list((first.line.home / "runs").iterdir())
    assert runs == [Path(results[0][1]["path"])]
    assert first.unfinished == []


@pytest.mark.e2e
def test_who_waits_for_a_training_that_dies_goes_on_with_it(
    start: Callable[..., Training], whole: tuple[Path, dict[str, Any]]
) -> None:
    first = start()
    child = first.until_step(4)
    child.suspend()
    second = start()
    second.until(lambda: WAITS in second.said)
    child.resume()
    first.process.kill()
    code, result = second.end()
    assert code == 0, result
    assert [line for line in second.said if line.startswith("Resumed after step")]
    assert_same(Path(result["path"]), result, whole)
