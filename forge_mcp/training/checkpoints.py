"""One folder that holds all a run needs to go on: staged, fsynced, renamed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import CorruptArtifact
from forge_mcp.workspace import fsync_path

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Progress:
    """Where a run stands. `step` is also the sampler's cursor: see batching.batches."""

    step: int
    best_loss: float | None
    best_step: int
    waited: int
    recent_losses: list[float]
    first_loss: float
    tokens: int
    seconds: float
    settings_hash: str


def save_checkpoint(
    run: Path,
    progress: Progress,
    adapters: dict[str, Any],
    best: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> Path:
    """Write checkpoints/step-N; older ones are removed once it is whole."""
    mx = machine.mlx()
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / ".staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    mx.save_safetensors(str(staged / "adapters.safetensors"), adapters)
    mx.save_safetensors(str(staged / "best.safetensors"), best)
    mx.save_safetensors(str(staged / "optimizer.safetensors"), optimizer_state)
    (staged / "progress.json").write_text(json.dumps(asdict(progress), indent=2) + "\n", "utf-8")
    for path in (*staged.iterdir(), staged):
        fsync_path(path)
    target = folder / f"step-{progress.step}"
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    fsync_path(folder)
    for path in folder.glob("step-*"):
        if path != target:
            shutil.rmtree(path, ignore_errors=True)
    return target


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder, or None."""
    found = (run / FOLDER).glob("step-*")
    return max(found, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def load_checkpoint(
    path: Path,
) -> tuple[Progress, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(progress, adapters, best adapters, optimiser state), as `save_checkpoint` took them.

    Raises:
        CorruptArtifact: a file is missing or damaged.
    """
    mx = machine.mlx()
    try:
        progress = Progress(**json.loads((path / "progress.json").read_text("utf-8")))
        names = ("adapters", "best", "optimizer")
        arrays = [mx.load(str(path / f"{name}.safetensors")) for name in names]
        mx.eval(arrays)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise CorruptArtifact(
            f"The checkpoint {path.name} cannot be read.",
            cause=str(error).splitlines()[0],
            next_step=f"Delete {path} and train again.",
        ) from error
    return progress, arrays[0], arrays[1], arrays[2]
