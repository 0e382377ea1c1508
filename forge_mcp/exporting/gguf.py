"""A model folder in Hugging Face format → one GGUF file that llama.cpp and Ollama load.

The writer streams: a tensor is read, converted, quantised and written by slices of its rows, some
of them at a time on all cores, so that memory holds a few slices whatever the model's size. Names
and keys are those of llama.cpp's converter (`architectures`), tokens and chat template come from
`tokenizer`, types and bytes from `quantize`.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import NotFound, from_os_error
from forge_mcp.exporting.architectures import ARCHITECTURES, Description, describe, refuse
from forge_mcp.exporting.quantize import (
    FILE_TYPES,
    check_quantization,
    encode,
    encoded_bytes,
    needs_library,
    tensor_types,
)
from forge_mcp.exporting.tensors import SafetensorsFolder, TensorSource, row_chunks
from forge_mcp.exporting.tokenizer import add_vocabulary, general_name, read_vocabulary
from forge_mcp.machine import cores
from forge_mcp.workspace import fsync_path, require_space

GGUF_VERSION = 3  # of this writer: part of what an export is made from
ALIGNMENT = 32  # bytes; of the data of every tensor
CHUNK_VALUES = 2**19
WAITING_BYTES = 128 * 2**20  # of slices that are read and not yet written, as float32

Progress = Callable[[int, int], None]


def convert_to_gguf(
    folder: Path,
    output_path: Path,
    quantization: str = "f16",
    *,
    name: str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    source: TensorSource | None = None,
    log: Callable[[str], None] = lambda message: None,
) -> Path:
    """Write `output_path` from the model in `folder`.

    Memory stays below the size of the largest tensor plus 500 MB; of the weights it holds about
    `WAITING_BYTES`.

    Args:
        folder: config.json, tokenizer.json and what belongs to it, *.safetensors (float, not
            quantised).
        output_path: the file to make; it appears only when whole.
        quantization: f32, f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m.
        name: of the model, as runtimes show it; the folder's where none is given.
        threads: that convert at once; 0 for one a core.
        progress: called with (tensors written, tensors in all).
        source: where the weights are, if not in `folder`; its `rows` is called from several
            threads at once.
        log: told what a user should know, in sentences.

    Raises:
        BadInput, NotFound, UnsupportedModel: what is given cannot be converted, named.
        CorruptArtifact: a file with weights is damaged.
        Unavailable: a K type without llama.cpp's library.
        OutOfSpace: the disk cannot hold the file.
    """
    import gguf

    check_quantization(quantization)
    if needs_library(quantization):
        from forge_mcp.exporting.llamacpp import quantizer

        quantizer()  # refuse now, not in the middle of the file
    model = describe(_read_config(folder), folder.name)
    source = source or SafetensorsFolder(folder)
    tensors = _plan(model, source, quantization, folder.name)
    vocabulary = read_vocabulary(folder, _embedding_rows(tensors, model, folder.name))
    needed = sum(tensor.nbytes for tensor in tensors)
    require_space(output_path.parent, needed + 64 * 2**20, f"write {output_path.name}")
    for note in model.notes:
        log(note)

    writer = gguf.GGUFWriter(None, model.architecture.name)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(general_name(name or folder.name, vocabulary))
    values = sum(math.prod(tensor.shape) for tensor in tensors)
    writer.add_size_label(gguf.size_label(values, 0, 0, 0))
    for key, value in model.keys:
        getattr(writer, f"add_{key}")(value)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[quantization]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, vocabulary)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind
        )

    partial = output_path.with_name(output_path.name + ".partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with partial.open("ab") as file:
            _write_data(file, tensors, threads or cores(), progress)
        fsync_path(partial)
        partial.replace(output_path)
    except OSError as error:
        raise from_os_error(error, f"write {output_path.name}") from error
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return output_path


# -- what is written -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        kind: GGML type.
        multiple: its slices begin at multiples of so many rows.
        read: (start, stop) → the values of those rows.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    multiple: int
    read: Callable[[int, int], NDArray[np.float32]]

    @property
    def nbytes(self) -> int:
        return encoded_bytes(self.shape, self.kind)


def _plan(
    model: Description, source: TensorSource, quantization: str, folder: str
) -> list[_Tensor]:
    """All tensors of the file in their order, with their types."""
    import gguf

    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[model.architecture.name]
    mapping = gguf.get_tensor_name_map(number, model.layers)
    found: dict[str, str] = {}  # name in the file → name in the source
    for name in source.names():
        text_name = model.text_name(name)
        if text_name is None:
            continue
        place = mapping.get_name(text_name, (".weight", ".bias"))
        if place is None:
            raise refuse(folder, f"llama.cpp has no place for its tensor {name}")
        if place in found:
            raise refuse(folder, f"its tensors {found[place]} and {name} are one in llama.cpp")
        found[place] = name
    if not model.tied and "output.weight" not in found:
        raise refuse(folder, "it has no lm_head.weight and does not say that it is tied")
    for layer in range(model.layers):
        if not any(place.startswith(f"blk.{layer}.") for place in found):
            raise refuse(folder, f"it has no weights of layer {layer}", "Get its files again.")

    shapes = {name: tuple(values.shape) for name, values in model.rope_tensors.items()}
    shapes |= {place: source.shape(name) for place, name in found.items()}
    kinds = tensor_types(shapes, quantization, layers=model.layers, is_70b=model.is_70b)
    tensors = []
    for place, shape in shapes.items():
        if place in model.rope_tensors:
            factors = model.rope_tensors[place]
            tensors.append(_Tensor(place, shape, kinds[place], 1, _slicer(factors)))
            continue
        name = found[place]
        heads = model.paired_heads(name)
        if heads and shape[0] % (2 * heads):
            raise refuse(folder, f"its tensor {name} has {shape[0]} rows for {heads} heads")
        rows_of_head = shape[0] // heads if heads else 1
        read = _reader(source, name, rows_of_head, model.offset(name))
        tensors.append(_Tensor(place, shape, kinds[place], rows_of_head, read))
    return tensors


def _slicer(values: NDArray[np.float32]) -> Callable[[int, int], NDArray[np.float32]]:
    return lambda start, stop: values[start:stop]


def _reader(
    source: TensorSource, name: str, rows_of_head: int, offset: float
) -> Callable[[int, int], NDArray[np.float32]]:
    """Rows of a tensor as the file has them."""

    def read(start: int, stop: int) -> NDArray[np.float32]:
        values = source.rows(name, start, stop)
        if rows_of_head > 1:
            values = paired(values, rows_of_head)
        return values + np.float32(offset) if offset else values

    return read


def paired(values: NDArray[np.float32], rows_of_head: int) -> NDArray[np.float32]:
    """Rows of Q or K from halves to neighbouring pairs, head by head.

    Hugging Face's models rotate row i of a head against row i + half, llama.cpp's llama rotates
    rows 2i and 2i + 1.
    """
    halves = values.reshape(-1, 2, rows_of_head // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _embedding_rows(tensors: list[_Tensor], model: Description, folder: str) -> int:
    rows = next((row.shape[0] for row in tensors if row.name == "token_embd.weight"), None)
    if rows is None:
        raise refuse(folder, "it has no embedding", "Get its files again.")
    said = model.config["vocab_size"]
    if said != rows:
        raise refuse(folder, f"its embedding has {rows} rows, its config.json says {said}")
    return rows


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotFound(
            f"{folder} is no model folder.",
            cause=str(error),
            next_step="Give a folder in Hugging Face format: config.json, tokenizer.json, "
            "*.safetensors.",
        ) from error
    if not isinstance(config, dict):
        raise refuse(folder.name, "its config.json holds no object", "Get its files again.")
    return config


# -- writing ---------------------------------------------------------------------------------------


def _write_data(file: Any, tensors: list[_Tensor], threads: int, progress: Progress | None) -> None:
    """The data of all tensors, each at a multiple of `ALIGNMENT` (as their offsets say)."""
    _pad(file)
    done = 0
    for last, values in _encoded(tensors, threads):
        file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        if last:
            _pad(file)
            done += 1
            if progress:
                progress(done, len(tensors))


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _encoded(tensors: list[_Tensor], threads: int) -> Iterator[tuple[bool, NDArray[Any]]]:
    """(whether it is the tensor's last, bytes) of all slices in order; `threads` run ahead."""
    waiting: deque[tuple[bool, int, Future[NDArray[Any]]]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="gguf") as pool:
        try:
            for tensor in tensors:
                for start, stop in row_chunks(tensor.shape, tensor.multiple, CHUNK_VALUES):
                    size = 4 * (stop - start) * math.prod(tensor.shape[1:])
                    while waiting and (len(waiting) > 2 * threads or held + size > WAITING_BYTES):
                        last, freed, future = waiting.popleft()
                        yield last, future.result()
                        held -= freed
                    future = pool.submit(_encode_slice, tensor, start, stop)
                    waiting.append((stop == tensor.shape[0], size, future))
                    held += size
            while waiting:
                last, _, future = waiting.popleft()
                yield last, future.result()
        finally:
            for _, _, future in waiting:
                future.cancel()


def _encode_slice(tensor: _Tensor, start: int, stop: int) -> NDArray[Any]:
    return encode(tensor.name, tensor.read(start, stop), tensor.kind)


__all__ = ["ARCHITECTURES", "GGUF_VERSION", "convert_to_gguf", "paired"]
