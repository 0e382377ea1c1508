"""A run's adapters as a GGUF adapter, for the GGUF of the untouched base.

llama.cpp computes W x + alpha / rank * B A x with tensors called as the base's, and .lora_a
(rank, in) and .lora_b (out, rank) behind. Keys, names and the order of llama's Q and K rows are
those of llama.cpp's convert_lora_to_gguf; alpha is scaling * rank, so that rsLoRA is right too.
PiSSA becomes a plain LoRA of twice the rank, as in peft.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from forge_mcp.errors import UnsupportedModel, from_os_error
from forge_mcp.exporting.architectures import Description, describe
from forge_mcp.exporting.cards import base_names
from forge_mcp.exporting.peft import Matrix, lora_over_base
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.workspace import Artifact, fsync_path, require_space

HEADER_BYTES = 2**20  # of the file before its tensors, at most about


class _Layer(NamedTuple):
    name: str  # in the run
    written: str  # in the file
    rank: int
    shape: tuple[int, ...]


def export_gguf_lora(source: Artifact | MergedRun, path: Path) -> Path:
    """Write the adapters of a run as one GGUF file of float32 tensors.

    Args:
        source: a run.
        path: the file to make; it appears only when whole.

    Returns:
        `path`.

    Raises:
        UnsupportedModel: the run is a DoRA, or of an architecture that the GGUF writer does not
            know.
        CorruptArtifact, NotFound, BadInput: see `open_merged`.
        OutOfSpace: the disk cannot hold the file.
    """
    run = source if isinstance(source, MergedRun) else open_merged(source)
    if run.method == "dora":
        raise UnsupportedModel(
            f"The adapters of {run.artifact.id} cannot be written as GGUF.",
            cause="they are DoRA's, whose magnitudes llama.cpp's adapters do not have",
            next_step=f"Export the merged model: forge-mcp export {run.artifact.id}.",
        )
    model = describe(run.config, run.artifact.id)
    layers = _layers(run, model)
    rank = max(layer.rank for layer in layers)
    scaling = 1.0 if run.method == "pissa" else run.scaling
    needed = 4 * sum(layer.rank * sum(layer.shape) for layer in layers)
    require_space(path.parent, needed + HEADER_BYTES, f"write {path.name}")
    writer = _writer(run, model, layers, alpha=scaling * rank)
    partial = path.with_name(path.name + ".partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for layer in layers:
            for values in _factors(run, model, layer, rank):
                writer.write_tensor_data(values)
        writer.close()
        fsync_path(partial)
        partial.replace(path)
    except OSError as error:
        raise from_os_error(error, f"write {path.name}") from error
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return path


def _layers(run: MergedRun, model: Description) -> list[_Layer]:
    import gguf

    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[model.architecture.name]
    names = gguf.get_tensor_name_map(number, model.layers)
    layers = []
    for name in run.adapted():
        written = names.get_name(name, (".weight",))
        if written is None:
            raise UnsupportedModel(
                f"The adapters of {run.artifact.id} cannot be written as GGUF.",
                cause=f"llama.cpp has no place for {name}",
                next_step=f"Export the merged model: forge-mcp export {run.artifact.id}.",
            )
        rank = run.rank_of(name) * (2 if run.method == "pissa" else 1)
        layers.append(_Layer(name, written, rank, run.shape(name)))
    return layers


def _writer(run: MergedRun, model: Description, layers: list[_Layer], *, alpha: float) -> Any:
    """With everything but the tensors' values."""
    import gguf

    writer = gguf.GGUFWriter(None, model.architecture.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_name(run.artifact.id)
    names = base_names(run)
    if names.license:
        writer.add_license(names.license)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, names.original or names.trained)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for layer in layers:
        rows, width = layer.shape
        for key, shape in (("lora_a", (layer.rank, width)), ("lora_b", (rows, layer.rank))):
            name = f"{layer.written}.{key}"
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * math.prod(shape))
    return writer


def _factors(run: MergedRun, model: Description, layer: _Layer, rank: int) -> Iterator[Matrix]:
    """A and B as they stand in the file.

    One alpha is for all layers, over each one's own rank: a smaller rank is made up for in B.
    """
    a, b, _ = lora_over_base(run, layer.name)
    b = b * np.float32(layer.rank / rank)
    heads = model.paired_heads(layer.name)
    if heads is not None:
        halves = b.reshape(heads, 2, -1, layer.rank)
        b = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(b.shape)
    yield a
    yield b
