"""Trackers: the rows of metrics.jsonl elsewhere, nothing off the machine unless somebody said so.

TensorBoard's files are written by tensorboardX and read here by a reader of our own, from the
format's description (TFRecord framing with CRC-32C, event.proto, summary.proto). wandb and mlflow
are not installed for the tests: modules of the same interface stand in for them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from training_models import settings

from forge_mcp.errors import InvalidSettings, Unavailable
from forge_mcp.training import trackers
from forge_mcp.training.callbacks import Row
from forge_mcp.training.trackers import make_trackers, require_packages, values


def rows(count: int, begin: int = 0) -> list[Row]:
    made = [
        Row(step=0, peak_memory_bytes=5, seconds=0.0, valid_loss=3.0, valid_accuracy=0.125),
        *(
            Row(step=step, loss=3.0 - step / 8, learning_rate=1e-3, seconds=2.0 * step)
            for step in range(1, count)
        ),
    ]
    return made[begin:]


class Told(list[tuple[str, str]]):
    def __call__(self, message: str, level: str = "info") -> None:
        self.append((level, message))


def tracker(run: Path, name: str, told: Told | None = None) -> Any:
    how = settings(trackers=[name], rank=4)
    run.mkdir(exist_ok=True)
    (one,) = make_trackers(how, run, "forge-nano", told if told is not None else Told())
    return one


def follow(one: Any, history: list[Row], more: list[Row]) -> None:
    one.on_start(history, 10)
    for row in more:
        one.on_step(row)
    one.on_end()


@pytest.fixture(autouse=True)
def nobody_has_set_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in (
        "WANDB_ERROR_REPORTING",
        "MLFLOW_DISABLE_TELEMETRY",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
        "MLFLOW_HTTP_REQUEST_TIMEOUT",
    ):
        monkeypatch.setenv(name, "x")  # so that what is set meanwhile goes afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_missing_package_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked: None if asked == package else find(asked)
    )
    with pytest.raises(InvalidSettings, match=name) as caught:
        require_packages([name])
    assert f"'forge-mcp[{name}]'" in caught.value.next_step
    with pytest.raises(InvalidSettings):
        make_trackers(settings(trackers=[name]), tmp_path, "base", Told())
    require_packages([])


def test_each_is_made_once(tmp_path: Path) -> None:
    how = settings(trackers=["tensorboard", "tensorboard"])
    assert len(make_trackers(how, tmp_path, "base", Told())) == 1


def test_numbers_are_grouped() -> None:
    row = Row(step=3, loss=1.5, tokens=7, valid_loss=2.0)
    assert values(row) == {"train/loss": 1.5, "train/tokens": 7, "valid/loss": 2.0}


# -- TensorBoard


def crc32c(data: bytes) -> int:
    """RFC 3720, section B.4: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    while data:
        length, check = struct.unpack("<QI", data[:12])
        assert check == masked(data[:8])
        record = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length]) == (masked(record),)
        yield record
        data = data[16 + length :]


def fields(message: bytes) -> dict[int, list[Any]]:
    """Protocol buffers' wire format: numbers, and lengths with their bytes."""

    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    found: dict[int, list[Any]] = {}
    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            value: Any = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value, at = message[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} of the only event file."""
    (path,) = folder.iterdir()
    found: dict[str, list[tuple[int, float]]] = {}
    for record in records(path):
        event = fields(record)  # 1 wall_time, 2 step, 5 summary
        for summary in event.get(5, []):
            for value in fields(summary)[1]:
                parts = fields(value)  # 1 tag, 2 simple_value
                (number,) = struct.unpack("<f", parts[2][0])
                step = event.get(2, [0])[0]
                found.setdefault(parts[1][0].decode(), []).append((step, number))
    return found


def test_crc32c_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_tensorboard_has_every_row_once_after_an_interruption(tmp_path: Path) -> None:
    follow(tracker(tmp_path, "tensorboard"), [], rows(4))
    # It was killed after step 3; its last checkpoint was of step 1.
    (tmp_path / "tensorboard/events.out.tfevents.1.earlier").write_bytes(b"")
    follow(tracker(tmp_path, "tensorboard"), rows(2), rows(5, begin=2))
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == [(step, 3.0 - step / 8) for step in range(1, 5)]
    assert found["valid/loss"] == [(0, 3.0)]
    assert found["valid/accuracy"] == [(0, 0.125)]
    assert set(found) == {name for row in rows(5) for name in values(row)}
    (path,) = (tmp_path / "tensorboard").iterdir()
    times = [
        struct.unpack("<d", fields(record)[1][0])[0]
        for record in records(path)
        if 5 in fields(record)
    ]
    assert max(times) - min(times) == pytest.approx(8.0, abs=1e-3), "the training's own clock"


# -- Weights & Biases


class FakeWandb(ModuleType):
    """wandb.init, Run.log and Run.finish."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.given: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.environment: dict[str, str] = {}
        self.Settings = lambda **given: given
        self.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)

    def init(self, **given: Any) -> Any:
        self.given.append(given)
        Path(given["dir"], "wandb").mkdir(exist_ok=True)
        return SimpleNamespace(
            log=lambda numbers, step: self.logged.append((step, numbers)),
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "online"),
        ({"WANDB_BASE_URL": "https://wandb.example.org", "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_wandb_is_offline_unless_the_user_has_said_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb: FakeWandb,
    environment: dict[str, str],
    mode: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    one = tracker(tmp_path / "run-x", "wandb")
    assert one.local == (mode != "online")
    follow(one, [], rows(3))
    (given,) = wandb.given
    assert given["settings"]["mode"] == mode
    assert given["dir"] == str(tmp_path / "run-x")
    assert given["name"] == "run-x"
    assert given["config"]["rank"] == 4
    assert given["config"]["base"] == "forge-nano"
    settings_given = given["settings"]
    assert settings_given["disable_git"]
    assert settings_given["disable_code"]
    assert settings_given["x_disable_stats"]
    assert wandb.logged == [(row["step"], values(row)) for row in rows(3)]
    assert wandb.finished == 1
    assert os.environ["WANDB_ERROR_REPORTING"] == "false", "its makers are told nothing either"


def test_wandb_offline_is_written_anew_and_online_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb
) -> None:
    follow(tracker(tmp_path, "wandb"), [], rows(4))
    (tmp_path / "wandb/offline-run").mkdir()
    wandb.logged.clear()
    follow(tracker(tmp_path, "wandb"), rows(2), rows(5, begin=2))
    assert [step for step, _ in wandb.logged] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "wandb/offline-run").exists()
    first, second = wandb.given
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    wandb.logged.clear()
    follow(tracker(tmp_path, "wandb"), rows(2), rows(5, begin=2))
    assert [step for step, _ in wandb.logged] == [2, 3, 4]
    assert wandb.given[2]["id"] == first["id"]
    assert wandb.given[2]["project"] == "mine"


# -- MLflow


class Store:
    """What an MLflow server keeps, and its client's interface."""

    def __init__(self) -> None:
        self.address = ""
        self.experiments: dict[str, Any] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def client(self, tracking_uri: str, registry_uri: str) -> Store:
        assert tracking_uri == registry_uri
        self.address = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return self.experiments.get(name)

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        made = SimpleNamespace(experiment_id=f"e{len(self.experiments)}", place=artifact_location)
        self.experiments[name] = made
        return str(made.experiment_id)

    def create_run(self, experiment: str, run_name: str) -> Any:
        run_id = f"r{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment,
            "name": run_name,
            "status": "RUNNING",
            "metrics": [],
        }
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id]["status"] = status

    def delete_run(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "deleted"

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "FINISHED"

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id].setdefault("params", {}).update({one.key: one.value for one in params})


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.__spec__ = importlib.util.spec_from_loader("mlflow", loader=None)
    package.MlflowClient = made.client  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    entities.Metric = lambda *given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return made


def logged(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(step, value) for key, value, _, step in store.runs[run_id]["metrics"] if key == name]


def test_mlflow_is_a_database_in_the_run_unless_the_user_has_said_otherwise(
    tmp_path: Path, store: Store
) -> None:
    run = tmp_path / "run-x"
    follow(tracker(run, "mlflow"), [], rows(4))
    assert store.address == f"sqlite:///{run}/mlflow/mlflow.db"
    assert store.experiments["ai-forge"].place == (run / "mlflow/artifacts").as_uri()
    assert store.runs["r0"]["name"] == "run-x"
    assert store.runs["r0"]["status"] == "FINISHED"
    assert store.runs["r0"]["params"]["rank"] == "4"
    assert store.runs["r0"]["params"]["trackers"] == "['mlflow']"
    assert logged(store, "r0", "valid/loss") == [(0, 3.0)]
    stamps = [stamp for _, _, stamp, _ in store.runs["r0"]["metrics"]]
    assert max(stamps) - min(stamps) == pytest.approx(6000, abs=2), "milliseconds"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"

    follow(tracker(run, "mlflow"), rows(2), rows(5, begin=2))
    assert store.runs["r0"]["status"] == "deleted"
    assert logged(store, "r1", "train/loss") == [(step, 3.0 - step / 8) for step in range(1, 5)]


def test_a_run_on_an_mlflow_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    follow(tracker(tmp_path, "mlflow"), [], rows(3))
    follow(tracker(tmp_path, "mlflow"), rows(2), rows(5, begin=2))
    assert store.address == "http://localhost:5000"
    assert list(store.experiments) == ["mine"]
    assert store.experiments["mine"].place is None
    assert list(store.runs) == ["r0"]
    assert [step for step, _ in logged(store, "r0", "train/loss")] == [1, 2, 2, 3, 4]


# -- when they fail


def test_one_that_cannot_be_opened_ends_the_training_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb
) -> None:
    def refused(**given: Any) -> Any:
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(Unavailable, match="tracker wandb cannot be used") as caught:
        tracker(tmp_path, "wandb").on_start([], 10)
    assert caught.value.cause == "RuntimeError: api_key not configured (no-tty)"


def test_one_that_fails_later_is_told_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    told = Told()
    one = tracker(tmp_path, "mlflow", told)
    one.on_start([], 10)

    def gone(*given: Any, **named: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(store, "log_batch", gone)
    for row in rows(3):
        one.on_step(row)
    one.on_end()
    ((level, message),) = told
    assert level == "warning"
    assert "mlflow has failed" in message
    assert "ConnectionError: it said nothing" in message
    assert store.runs["r0"]["status"] == "RUNNING", "it is not asked again"


def test_the_extras_are_declared() -> None:
    import tomllib

    project = Path(trackers.__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    for name, package in trackers.PACKAGES.items():
        assert any(one.startswith(package) for one in extras[name]), json.dumps(extras[name])
