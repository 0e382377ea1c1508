"""A run's adapters in PEFT's format, for the untouched base.

LoRA, rsLoRA and DoRA are written as they are. PiSSA's adapters have replaced a part of the base's
weights, W = Q + s B0 A0 up to what quantising lost; what training changed is

    s B A - s B0 A0 = [s B, -s B0] [A; A0],

a plain LoRA of rank 2r with a scaling of 1 over W (PiSSA, arXiv 2404.02948v4, appendix on
converting PiSSA to LoRA). None of them holds the quantisation error of the run's frozen weights;
how much that is, is measured and said in the card.
"""

from __future__ import annotations

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import from_os_error
from forge_mcp.exporting.cards import AdapterError, base_names, peft_card
from forge_mcp.exporting.tensors import TensorToWrite, row_chunks, write_safetensors
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.workspace import Artifact

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # how PEFT's wrapper names what it wraps

Matrix = NDArray[np.float32]


class Lora(NamedTuple):
    """The change of a layer's weight: scaling * b @ a, with a (rank, in) and b (out, rank)."""

    a: Matrix
    b: Matrix
    scaling: float


def lora_over_base(run: MergedRun, name: str) -> Lora:
    """What training changed of the tensor `name`, as a LoRA over the base's own weight."""
    a, b, _ = run.factors(name)
    if run.method != "pissa":
        return Lora(a, b, run.scaling)
    a0, b0, _ = run.initial_factors(name)
    scaling = np.float32(run.scaling)
    return Lora(np.vstack([a, a0]), np.hstack([scaling * b, -scaling * b0]), 1.0)


def export_peft(source: Artifact | MergedRun, folder: Path) -> Path:
    """Write adapter_config.json, adapter_model.safetensors and README.md into `folder`.

    Args:
        source: a run.
        folder: made if need be.

    Returns:
        `folder`.

    Raises:
        CorruptArtifact, NotFound, BadInput: see `open_merged`.
        OutOfSpace: the disk cannot hold it.
    """
    run = source if isinstance(source, MergedRun) else open_merged(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / WEIGHTS, _tensors(run))
        config = json.dumps(_config(run), indent=2)
        (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
        card = peft_card(run, measure_error(run))
        (folder / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, "write the adapters for PEFT") from error
    return folder


def measure_error(run: MergedRun) -> AdapterError:
    """How far base + adapter is from the run's merged weights, read by rows.

    The relative Frobenius norm of the difference, layer by layer.
    """
    errors: dict[str, float] = {}
    for name in run.adapted():
        lora = lora_over_base(run, name)
        magnitude = run.factors(name).magnitude
        lost = whole = 0.0
        for start, stop in row_chunks(run.shape(name)):
            weight = run.base_rows(name, start, stop)
            weight += (np.float32(lora.scaling) * lora.b[start:stop]) @ lora.a
            if magnitude is not None:
                lengths = np.linalg.norm(weight, axis=1, keepdims=True)
                weight *= magnitude[start:stop, None] / np.maximum(lengths, np.float32(1e-12))
            merged = run.rows(name, start, stop)
            whole += float(np.square(merged, dtype=np.float64).sum())
            lost += float(np.square(weight - merged, dtype=np.float64).sum())
        errors[name] = math.sqrt(lost / whole) if whole else math.sqrt(lost)
    where = max(errors, key=errors.__getitem__)
    return AdapterError(sum(errors.values()) / len(errors), errors[where], where)


def _tensors(run: MergedRun) -> list[TensorToWrite]:
    """Under PEFT's names, each read when it is its turn."""
    tensors = []
    for name in run.adapted():
        path = PREFIX + run.module_path(name)
        rows, width = run.shape(name)
        rank = _rank(run, name)
        for key, shape, values in (
            ("lora_A.weight", (rank, width), _a),
            ("lora_B.weight", (rows, rank), _b),
        ):
            tensors.append(TensorToWrite(f"{path}.{key}", shape, "F32", partial(values, run, name)))
        if run.method == "dora":
            key, values = f"{path}.lora_magnitude_vector", partial(_magnitude, run, name)
            tensors.append(TensorToWrite(key, (rows,), "F32", values))
    return tensors


def _a(run: MergedRun, name: str) -> list[Matrix]:
    return [lora_over_base(run, name).a]


def _b(run: MergedRun, name: str) -> list[Matrix]:
    return [lora_over_base(run, name).b]


def _magnitude(run: MergedRun, name: str) -> list[Matrix]:
    magnitude = run.factors(name).magnitude
    return [] if magnitude is None else [magnitude]


def _config(run: MergedRun) -> dict[str, Any]:
    paths = {name: run.module_path(name) for name in run.adapted()}
    pissa, root = run.method == "pissa", run.method == "rslora"
    rank = 2 * run.rank if pissa else run.rank
    # A layer that is too small for the rank has a smaller one and the same scaling.
    smaller = {name: its for name in paths if (its := _rank(run, name)) != rank}
    ranks = {re.escape(paths[name]): its for name, its in smaller.items()}
    alphas = {
        path: float(its if pissa else run.scaling * (math.sqrt(its) if root else its))
        for path, its in ranks.items()
    }
    names = base_names(run)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": names.original or names.trained,
        "r": rank,
        "lora_alpha": rank if pissa else run.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": root,
        "use_dora": run.method == "dora",
        "target_modules": _target_modules(list(paths.values())),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _target_modules(paths: list[str]) -> list[str] | str:
    """Last parts of the paths; in a model that sees, an expression that leaves the seeing part
    out, whose layers have the same last parts."""
    last = sorted({path.rpartition(".")[-1] for path in paths})
    if "language_model" in paths[0]:
        return rf".*\.language_model\..*\.({'|'.join(last)})"
    return last


def _rank(run: MergedRun, name: str) -> int:
    """Of the LoRA over the base."""
    return (2 if run.method == "pissa" else 1) * run.rank_of(name)
