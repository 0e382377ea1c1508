"""A run on the disk: how the child writes it, and `load_run`, the one way to open it.

    adapters.safetensors           the best adapters, float32: <layer>.lora_a (rank, in),
                                   <layer>.lora_b (out, rank), as PEFT lays them out, and with
                                   DoRA <layer>.lora_m (out,)
    initial_adapters.safetensors   the same as training began with them
    residual/residual.safetensors  the frozen quantised weights under the adapters
    adapter_config.json            method, rank, scaling, base and its checksum, prompt version
    metrics.jsonl, loss.png, checkpoints/, training.log

With the untouched tensors of the base (embeddings, norms, biases, head) the run is exact: the
same numbers in every process.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.errors import BadInput, CorruptArtifact, NotFound, UnsupportedModel
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.bases import Base, LoadedBase, load_base, materialise, resolve_base
from forge_mcp.workspace import Artifact

CONFIG = "adapter_config.json"
ADAPTERS = "adapters.safetensors"
INITIAL = "initial_adapters.safetensors"
RESIDUAL = "residual/residual.safetensors"


@dataclass(frozen=True)
class LoadedRun:
    """A tuned model in eval mode.

    `model` works wherever mlx-lm takes a model (generate, caches); `config` is adapter_config.json.
    """

    model: Any
    tokenizer: Any
    base_path: Path
    config: dict[str, Any]


def read_config(artifact: Artifact) -> dict[str, Any]:
    """A run's adapter_config.json.

    Raises:
        CorruptArtifact: it is not what was written.
    """
    artifact.verify(CONFIG)
    config: dict[str, Any] = json.loads(artifact.file(CONFIG).read_text("utf-8"))
    return config


def open_run(artifact: Artifact) -> tuple[dict[str, Any], LoadedBase]:
    """A run's adapter_config.json and its base, whose weights stay on the disk.

    Every file that is read now or later is compared with its checksum first.

    Raises:
        CorruptArtifact: a file of the run, or its base, is not what it was.
        NotFound: the base is not on this machine any more.
        BadInput: the run was written by a version that kept its weights differently.
    """
    config = read_config(artifact)
    artifact.verify(ADAPTERS, RESIDUAL)
    _require_known_layers(artifact.id, config)
    return config, load_base(_base_of(artifact.id, config), lazy=True)


def load_run(artifact: Artifact) -> LoadedRun:
    """Open a run as a model in memory.

    Raises:
        CorruptArtifact, NotFound, BadInput: see `open_run`.
    """
    from forge_mcp.training.adapters import adapter_layers

    config, loaded = open_run(artifact)
    attach_saved(loaded.model, artifact.path, config, ADAPTERS)
    for _, layer in adapter_layers(loaded.model):
        layer.settle()
    loaded.model.eval()
    return LoadedRun(loaded.model, loaded.tokenizer, loaded.path, config)


def attach_saved(
    model: Any, run: Path, config: dict[str, Any], adapters: str, *, dropout: float = 0.0
) -> None:
    """Put a saved residual and saved adapters into a base model that was loaded lazily, in place.

    What lies under the residual is never read. `dropout`: of the adapters, where they are trained
    on.
    """
    from forge_mcp.training.adapters import FACTORS, MAGNITUDE, freeze_base, replace_linear
    from forge_mcp.training.quantisation import Quantisation, Quantised

    mx = machine.mlx()
    residual = mx.load(str(run / RESIDUAL))
    factors = mx.load(str(run / adapters))
    arrays: dict[str, dict[str, Any]] = {}
    for name, array in residual.items():
        path, _, kind = name.rpartition(".")
        arrays.setdefault(path, {})[kind] = array
    for path, layer in config["layers"].items():
        how = Quantisation(**layer["quantisation"])
        mx.eval(arrays[path])
        frozen = Quantised(how, tuple(layer["shape"]), arrays[path])
        a, b = (factors[f"{path}.{key}"] for key in FACTORS)
        magnitude = factors.get(f"{path}.{MAGNITUDE}")
        scaling = config["scaling"]
        replace_linear(model, path, frozen, a, b, scaling, magnitude=magnitude, dropout=dropout)
    materialise(model)
    freeze_base(model)


def describe_run(
    loaded: LoadedBase, settings: TrainingSettings, frozen: dict[str, Any], system_prompt: str
) -> dict[str, Any]:
    """The contents of adapter_config.json. `frozen`: Quantised by layer path."""
    from forge_mcp.schemas.prompt import PROMPT_VERSION

    base = loaded.base
    return {
        "method": f"q{settings.init_method}",
        "rank": settings.rank,
        "alpha": settings.lora_alpha,
        "scaling": settings.scaling,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in frozen}),
        "layers": {
            path: {"quantisation": one.how._asdict(), "shape": list(one.shape)}
            for path, one in frozen.items()
        },
        "base": {
            "name": base.name,
            "path": str(base.path),
            "dtype": loaded.dtype,
            "weights_sha256": base.weights_sha256,
            "tokenizer_sha256": base.tokenizer_sha256,
        },
        "prompt_version": PROMPT_VERSION,
        "system_prompt": system_prompt,
    }


def save_frozen(run: Path, frozen: dict[str, Any], initial: dict[str, Any]) -> None:
    """Write the residual and the adapters as training begins with them."""
    mx = machine.mlx()
    tensors = {
        f"{path}.{name}": array
        for path, one in frozen.items()
        for name, array in one.arrays.items()
    }
    (run / RESIDUAL).parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(run / RESIDUAL), tensors)
    mx.save_safetensors(str(run / INITIAL), initial)


def _require_known_layers(run_id: str, config: dict[str, Any]) -> None:
    layers = config.get("layers") or {"": {}}
    if not all("quantisation" in layer and "shape" in layer for layer in layers.values()):
        raise BadInput(
            f"The run {run_id} cannot be opened.",
            cause=f"its {CONFIG} does not say how each layer is quantised: an older version of AI "
            "Forge wrote it",
            next_step="Train it again with this version.",
        )


def _base_of(run_id: str, config: dict[str, Any]) -> Base:
    """The base of a run, by its name or its folder, if it is still the same."""
    wanted = config["base"]
    try:
        base = resolve_base(wanted["name"])
        if base.weights_sha256 != wanted["weights_sha256"]:
            base = resolve_base(wanted["path"])
    except (NotFound, UnsupportedModel):  # or a folder here that happens to have this name
        try:
            base = resolve_base(wanted["path"])
        except NotFound as error:
            raise NotFound(
                f"The base model of {run_id} is gone: '{wanted['name']}'.",
                cause=f"it stood in {wanted['path']}",
                next_step="Put it back there, or train again on another base.",
            ) from error
    for what, now in (
        ("weights", base.weights_sha256),
        ("tokenizer", base.tokenizer_sha256),
    ):
        if now != wanted[f"{what}_sha256"]:
            raise CorruptArtifact(
                f"The base model of {run_id} has changed: '{wanted['name']}'.",
                cause=f"the {what} in {base.path} are not those it was trained on",
                next_step="Put the old files back, or train again.",
            )
    return base
