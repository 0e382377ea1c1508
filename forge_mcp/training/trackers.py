"""The metrics of a run for TensorBoard, Weights & Biases and MLflow, each an extra to install.

All of them write below the run's folder, and nothing leaves the machine, unless the user has said
where to: WANDB_MODE or WANDB_BASE_URL, MLFLOW_TRACKING_URI. Their own telemetry is switched off.

What is local holds the same rows as metrics.jsonl: where a run goes on after an interruption, it is
written anew from the checkpoint's history. A server's run is gone on with; the steps since the
checkpoint, which are made again, are sent again.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from forge_mcp.errors import InvalidSettings, Unavailable
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.callbacks import Callback, Row

PROJECT = "ai-forge"
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
RUN_ID = "run-id"  # file in a tracker's folder: what its server calls this run

Tell = Callable[..., None]


def require_packages(trackers: Sequence[str]) -> None:
    """Raises:
    InvalidSettings: a tracker's package is not installed; the extra is named.
    """
    for name in trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise InvalidSettings(
                f"training.trackers names {name}, which cannot be used here.",
                cause=f"the package {PACKAGES[name]} is not installed",
                next_step=f"Install it with pip install 'forge-mcp[{name}]', or take {name} out of "
                "training.trackers.",
            )


def make_trackers(
    settings: TrainingSettings, run: Path, base: str, tell: Tell
) -> list[TrackerCallback]:
    """A callback for each of `settings.trackers`.

    Args:
        run: the run's folder; each tracker has one of its own in it.
        base: name of the base model, for the run's description.
        tell: takes (message, level); told when a tracker fails while training.

    Raises:
        InvalidSettings: see `require_packages`.
    """
    require_packages(settings.trackers)
    described = {**settings.model_dump(mode="json"), "base": base}
    makers: dict[str, Callable[[Path, dict[str, Any], Tell], TrackerCallback]] = {
        "tensorboard": TensorBoard,
        "wandb": WeightsAndBiases,
        "mlflow": Mlflow,
    }
    return [makers[name](run, described, tell) for name in dict.fromkeys(settings.trackers)]


def values(row: Row) -> dict[str, float]:
    """A row's numbers under the names that trackers group by: train/loss, valid/loss, …"""
    return {
        f"valid/{key.removeprefix('valid_')}" if key.startswith("valid_") else f"train/{key}": value
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float)
    }


class TrackerCallback(Callback, ABC):
    """Opens a tracker's run, gives it every row, closes it.

    One that cannot be opened ends the training before its first step; one that fails later is
    told of once and left out from then on.
    """

    name: str

    def __init__(self, run: Path, described: dict[str, Any], tell: Tell) -> None:
        self.run = run
        self.folder = run / self.name
        self.described = described
        self._tell = tell
        self._works = True

    @property
    @abstractmethod
    def local(self) -> bool:
        """Whether all of it stays below the run's folder."""

    @abstractmethod
    def open(self, run_id: str) -> str:
        """Begin, and return the run's id.

        Args:
            run_id: what it was called before an interruption, else empty. What is local is begun
                anew; a server's run is gone on with.
        """

    @abstractmethod
    def write(self, step: int, moment: float, numbers: dict[str, float]) -> None:
        """One row; `moment` in seconds since 1970."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held, and end."""

    def on_start(self, history: Sequence[Row], total: int) -> None:
        """Open it.

        Raises:
            Unavailable: it cannot be opened.
        """
        known = self.folder / RUN_ID
        try:
            before = known.read_text("utf-8") if known.is_file() else ""
            run_id = self.open(before)
            self.folder.mkdir(parents=True, exist_ok=True)
            if run_id:
                known.write_text(run_id, "utf-8")
            # Its clock is that of the training, without interruptions.
            self._began = time.time() - (history[-1]["seconds"] if history else 0.0)
            if self.local:
                for row in history:
                    self._write(row)
        except Exception as error:  # each of them has its own errors
            raise Unavailable(
                f"The tracker {self.name} cannot be used.",
                cause=f"{type(error).__name__}: {_first_line(error)}",
                next_step="Correct its settings (environment variables), or take it out of "
                "training.trackers.",
            ) from error

    def on_step(self, row: Row) -> None:
        """Give it a row."""
        self._attempt(lambda: self._write(row))

    def on_end(self) -> None:
        """Close it."""
        self._attempt(self.close)

    def _write(self, row: Row) -> None:
        self.write(row["step"], self._began + row["seconds"], values(row))

    def _attempt(self, action: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            action()
        except Exception as error:  # training is worth more than its picture
            self._works = False
            self._tell(
                f"The tracker {self.name} has failed and gets no more metrics "
                f"({type(error).__name__}: {_first_line(error)}); metrics.jsonl has them all.",
                "warning",
            )


class TensorBoard(TrackerCallback):
    """Event files in <run>/tensorboard: `tensorboard --logdir`."""

    name = "tensorboard"
    local = True

    def open(self, run_id: str) -> str:
        """A new event file."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(self.folder, ignore_errors=True)
        self._writer = SummaryWriter(str(self.folder))
        return run_id

    def write(self, step: int, moment: float, numbers: dict[str, float]) -> None:
        """One scalar for each number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step, walltime=moment)

    def close(self) -> None:
        """Wait until all is in the file."""
        self._writer.close()


class WeightsAndBiases(TrackerCallback):
    """An offline run in <run>/wandb (`wandb sync` sends it), or a server's.

    It is online where WANDB_MODE says so, or WANDB_BASE_URL names a server. WANDB_PROJECT counts.
    """

    name = "wandb"

    @property
    def mode(self) -> str:
        """As the user has set it, else offline."""
        given = os.environ.get("WANDB_MODE")
        return given or ("online" if os.environ.get("WANDB_BASE_URL") else "offline")

    @property
    def local(self) -> bool:
        """Whether it is not online."""
        return self.mode in ("offline", "dryrun", "disabled")

    def open(self, run_id: str) -> str:
        """wandb.init; without metrics of the machine, git or the code."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when it is imported
        import wandb

        if self.local:
            shutil.rmtree(self.folder, ignore_errors=True)
        run_id = run_id or uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=self.run.name,
            id=run_id,
            resume="allow",
            dir=str(self.run),  # it makes the folder wandb itself
            config=self.described,
            settings=wandb.Settings(
                mode=self.mode,
                silent=True,
                console="off",
                symlink=False,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        return run_id

    def write(self, step: int, moment: float, numbers: dict[str, float]) -> None:
        """One step's numbers; it notes the time itself."""
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Mlflow(TrackerCallback):
    """A database in <run>/mlflow (`mlflow ui --backend-store-uri sqlite:///…/mlflow.db`), or what
    MLFLOW_TRACKING_URI names. MLFLOW_EXPERIMENT_NAME counts."""

    name = "mlflow"

    @property
    def local(self) -> bool:
        """Whether the user has named no other place."""
        return not os.environ.get("MLFLOW_TRACKING_URI")

    def open(self, run_id: str) -> str:
        """An experiment with a run in it, or the run again."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # So that a server which has gone holds training up for seconds, not for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.folder.mkdir(parents=True, exist_ok=True)
        database = f"sqlite:///{self.folder / 'mlflow.db'}"
        address = os.environ.get("MLFLOW_TRACKING_URI") or database
        self._client = MlflowClient(tracking_uri=address, registry_uri=address)
        if run_id and self.local:
            self._client.delete_run(run_id)
            run_id = ""
        if run_id:
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self._client.get_experiment_by_name(name)
            place = (self.folder / "artifacts").as_uri() if self.local else None
            experiment = (
                found.experiment_id
                if found
                else self._client.create_experiment(name, artifact_location=place)
            )
            run_id = self._client.create_run(experiment, run_name=self.run.name).info.run_id
            described = [Param(key, str(value)) for key, value in self.described.items()]
            self._client.log_batch(run_id, params=described)
        self._id = run_id
        return run_id

    def write(self, step: int, moment: float, numbers: dict[str, float]) -> None:
        """One step's numbers."""
        from mlflow.entities import Metric

        stamp = int(moment * 1000)
        metrics = [Metric(name, value, stamp, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["it said nothing"])[0]
