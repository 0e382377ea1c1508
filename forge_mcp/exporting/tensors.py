"""Tensors that are larger than memory should hold: read and written by slices of their rows.

`TensorSource` is what the GGUF writer and the fused folder read from: a Hugging Face folder
(`SafetensorsFolder`) or a run whose merged rows are computed when asked for. `write_folder` is the
way back. The format is that of the safetensors documentation: eight bytes of length, a JSON header
of names, types, shapes and offsets, and the data. It is read by offsets rather than mapped, so
that memory holds only the rows that were asked for and a file that ends early is an error in
words.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import CorruptArtifact, NotFound, UnsupportedModel, from_os_error
from forge_mcp.workspace import fsync_path, require_space

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Sizes of every type that a header may name, so that files that also hold others can be checked.
_SIZES = ITEM_BYTES | {
    "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
SHARD_BYTES = 2 * 2**30
CHUNK_VALUES = 4 * 2**20  # of a tensor, that are in memory at once
# What JSON of another shape than expected raises when it is taken apart.
_UNREADABLE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
INDEX = "model.safetensors.index.json"


class TensorSource(Protocol):
    """Named float tensors that are read by rows (slices of the first axis)."""

    def names(self) -> list[str]:
        """All names, in a fixed order."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first."""
        ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start to stop (exclusive), C-contiguous; reads or computes no others."""
        ...


def row_chunks(
    shape: tuple[int, ...], multiple: int = 1, values: int = CHUNK_VALUES
) -> Iterator[tuple[int, int]]:
    """(start, stop) over the rows of a tensor, about `values` numbers at a time.

    Args:
        shape: of the tensor, rows first; a scalar counts as one row.
        multiple: every start is one of it (e.g. the rows of a head).
        values: numbers at most, but at least `multiple` rows.
    """
    rows = shape[0] if shape else 1
    width = max(1, math.prod(shape[1:]))
    step = max(1, values // width // multiple) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


# -- number formats --------------------------------------------------------------------------------


def widened(data: bytes | memoryview, kind: str) -> NDArray[np.float32]:
    """Little-endian F32, F16 or BF16 values as float32."""
    if kind == "F32":
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
    if kind == "F16":
        return _widened_halves(data)
    halves = np.frombuffer(data, "<u2")
    # bfloat16 is the upper half of a float32.
    wide: NDArray[np.float32] = np.left_shift(halves, 16, dtype=np.uint32).view(np.float32)
    return wide


def _widened_halves(data: bytes | memoryview) -> NDArray[np.float32]:
    """float16 as float32, several times as fast as numpy's own conversion.

    Shifted into the places of float32's exponent and fraction, the bits stand for the number
    divided by 2^(127 - 15), subnormal ones too. Infinities and NaN come out as 65536 and more,
    which no other does, and where this process takes subnormal numbers for zero those are lost:
    then numpy converts.
    """
    halves = np.frombuffer(data, "<i2")
    bits = halves.astype(np.int32)  # the sign fills the upper half
    bits <<= 13
    bits &= np.int32(~0x70001FFF)
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    keeps_subnormals = bool(np.float32(2.0**-140) * np.float32(2.0**112))
    if keeps_subnormals and (not wide.size or max(wide.max(), -wide.min()) < 65536):
        return wide
    return halves.view("<f2").astype(np.float32)


def largest_of(name: str, values: NDArray[np.float32]) -> float:
    """The largest absolute value; 0 where there are none.

    Raises:
        UnsupportedModel: a value is not finite; `name` is named.
    """
    if values.size == 0:
        return 0.0
    largest = max(float(values.max()), -float(values.min()))  # NaN comes through the first
    if not math.isfinite(largest):
        raise UnsupportedModel(
            f"The tensor {name} holds values that are no numbers.",
            cause="NaN or infinity in the weights: the training diverged",
            next_step="Train again with a lower learning rate.",
        )
    return largest


def narrowed(name: str, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """float32 values as F32, F16 or BF16 (uint16), rounded to the nearest, ties to even.

    Raises:
        UnsupportedModel: a value is not finite, or too large for the type; `name` is named.
    """
    largest = largest_of(name, values)
    if kind == "F32":
        return values
    if kind == "F16":
        with np.errstate(over="ignore"):
            narrow: NDArray[Any] = values.astype(np.float16)
        fits = largest < 65520  # half way past the largest
    else:
        bits = values.view(np.uint32)
        rounded = np.right_shift(bits, 16)
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        narrow = rounded.astype(np.uint16)
        fits = largest < 3.3961775e38
    if not fits:
        raise UnsupportedModel(
            f"The tensor {name} does not fit in {'float16' if kind == 'F16' else 'bfloat16'}.",
            cause=f"its largest value is {largest:.3g}",
            next_step="Export it with --quantization f32 or q8_0.",
        )
    return narrow


# -- reading ---------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    offset: int  # in the file
    size: int


class SafetensorsFile:
    """One .safetensors file: a `TensorSource`.

    Raises:
        NotFound: there is no such file.
        CorruptArtifact: it is cut short, or its header is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._entries, self.metadata = _read_header(path, file)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise NotFound(
                    f"{path} does not exist.",
                    cause="a file with weights is missing",
                    next_step="Get the model's files again.",
                ) from error
            raise from_os_error(error, f"read {path.name}") from error

    def names(self) -> list[str]:
        """All names, as their data lie in the file."""
        return list(self._entries)

    def dtype(self, name: str) -> str:
        """As the header says it, e.g. "BF16"."""
        return self._entries[name].kind

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first.

        Raises:
            UnsupportedModel: the tensor is not F32, F16 or BF16; it is named.
        """
        entry = self._entries[name]
        if entry.kind not in ITEM_BYTES:
            raise UnsupportedModel(
                f"The tensor {name} of {self.path.name} cannot be read as weights.",
                cause=f"its type is {entry.kind}; known are {', '.join(ITEM_BYTES)}",
                next_step="Give a model whose weights are not quantised.",
            )
        return entry.shape

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start to stop as float32; only they are read.

        Raises:
            CorruptArtifact: the file ends before them.
        """
        shape = self.shape(name)
        entry = self._entries[name]
        wanted = (stop - start, *shape[1:]) if shape else ()
        stride = math.prod(shape[1:]) * ITEM_BYTES[entry.kind]
        length = math.prod(wanted) * ITEM_BYTES[entry.kind]
        try:
            with self.path.open("rb", buffering=0) as file:
                data = _read_at(file.fileno(), entry.offset + start * stride, length)
        except OSError as error:
            raise from_os_error(error, f"read {self.path.name}") from error
        if len(data) != length:
            raise _damaged(self.path, f"it ends inside the tensor {name}")
        return widened(data, entry.kind).reshape(wanted)


def _read_at(file: int, offset: int, length: int) -> bytes | memoryview:
    """One call of the system reads 2 GiB at most."""
    data = os.pread(file, length, offset)
    if len(data) == length or not data:
        return data
    whole = bytearray(data)
    while len(whole) < length and data:
        data = os.pread(file, length - len(whole), offset + len(whole))
        whole += data
    return memoryview(whole)


def _read_header(path: Path, file: Any) -> tuple[dict[str, _Entry], dict[str, str]]:
    total = os.fstat(file.fileno()).st_size
    first = file.read(8)
    if len(first) < 8:
        raise _damaged(path, "it is shorter than its header")
    (length,) = struct.unpack("<Q", first)
    if length > MAX_HEADER or 8 + length > total:
        raise _damaged(path, f"its header would be {length} bytes of {total}")
    try:
        header = json.loads(file.read(length))
        metadata = dict(header.pop("__metadata__", None) or {})
        entries = {
            name: _Entry(
                str(row["dtype"]),
                tuple(int(size) for size in row["shape"]),
                8 + length + int(row["data_offsets"][0]),
                int(row["data_offsets"][1]) - int(row["data_offsets"][0]),
            )
            for name, row in header.items()
        }
    except _UNREADABLE as error:
        raise _damaged(path, f"its header cannot be read: {error!r:.200}") from error
    for name, entry in entries.items():
        size = _SIZES.get(entry.kind)
        if size is not None and (
            min(entry.shape, default=0) < 0 or entry.size != math.prod(entry.shape) * size
        ):
            raise _damaged(path, f"the size of its tensor {name} is not that of its shape")
        if entry.offset < 8 + length or entry.size < 0 or entry.offset + entry.size > total:
            raise _damaged(path, f"its tensor {name} lies outside the file of {total} bytes")
    return dict(sorted(entries.items(), key=lambda item: item[1].offset)), metadata


class SafetensorsFolder:
    """The weights of a folder in Hugging Face format: a `TensorSource`.

    Reads the shards that model.safetensors.index.json names, else every model*.safetensors.

    Raises:
        NotFound: there are none, or a shard is missing.
        CorruptArtifact: a file or the index is damaged, or two files hold one tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, SafetensorsFile] = {}
        for path in _shards(folder):
            file = SafetensorsFile(path)
            for name in file.names():
                if name in self._files:
                    raise _damaged(path, f"{self._files[name].path.name} also has {name}")
                self._files[name] = file

    def names(self) -> list[str]:
        """All names, file by file."""
        return list(self._files)

    def dtype(self, name: str) -> str:
        """See `SafetensorsFile.dtype`."""
        return self._files[name].dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `SafetensorsFile.shape`."""
        return self._files[name].shape(name)

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """See `SafetensorsFile.rows`."""
        return self._files[name].rows(name, start, stop)


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = {str(name) for name in weight_map.values()}
        except _UNREADABLE as error:
            raise _damaged(index, f"it cannot be read: {error!r:.200}") from error
        strange = [name for name in names if Path(name).name != name]
        if strange or not names:
            raise _damaged(index, f"it names {strange[0] if strange else 'no file'}")
        return [folder / name for name in sorted(names)]
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise NotFound(
            f"{folder} has no weights.",
            cause="no model*.safetensors in it",
            next_step="Get the model's files again.",
        )
    return found


def _damaged(path: Path, cause: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is damaged.", cause=cause, next_step="Get the model's files again."
    )


# -- writing ---------------------------------------------------------------------------------------


class TensorToWrite(NamedTuple):
    """A tensor whose values come later, by rows.

    Attributes:
        dtype: "F32", "F16" or "BF16"; the values are rounded to it.
        chunks: called once when it is the tensor's turn; gives float32 arrays that together hold
            its values in row order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterable[NDArray[np.float32]]]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def from_source(source: TensorSource, name: str, dtype: str) -> TensorToWrite:
    """A tensor of a source as one to write."""
    shape = source.shape(name)

    def chunks() -> Iterator[NDArray[np.float32]]:
        for start, stop in row_chunks(shape):
            yield source.rows(name, start, stop)

    return TensorToWrite(name, shape, dtype, chunks)


Written = Callable[[str], None]


def write_safetensors(
    path: Path, tensors: Sequence[TensorToWrite], *, written: Written = lambda name: None
) -> Path:
    """Write one file; it appears under its name only when whole.

    Args:
        path: the file to make.
        tensors: in the order of the file.
        written: called with the name of each tensor that was written.

    Raises:
        UnsupportedModel: a value is not finite or does not fit; the tensor is named.
        OutOfSpace: the disk cannot hold the file.
    """
    # Wider types first, so that every tensor lies at a multiple of its type's size.
    ordered = sorted(tensors, key=lambda tensor: -ITEM_BYTES[tensor.dtype])
    require_space(path.parent, sum(tensor.nbytes for tensor in ordered), f"write {path.name}")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in ordered:
                begin = file.tell()
                for values in tensor.chunks():
                    file.write(_little_endian(narrowed(tensor.name, values, tensor.dtype)).data)
                if file.tell() - begin != tensor.nbytes:
                    raise AssertionError(f"{tensor.name}: its chunks are not its shape")
                written(tensor.name)
        fsync_path(partial)
        partial.replace(path)
    except OSError as error:
        raise from_os_error(error, f"write {path.name}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _little_endian(values: NDArray[Any]) -> NDArray[np.uint8]:
    ordered = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8)


def write_folder(
    folder: Path,
    tensors: Sequence[TensorToWrite],
    *,
    shard_bytes: int = SHARD_BYTES,
    written: Written = lambda name: None,
) -> list[Path]:
    """Write tensors as model.safetensors, or as shards and their index where they are larger.

    Args:
        folder: it is there already.
        tensors: in order; a shard holds as many as fit in `shard_bytes`, and at least one.
        shard_bytes: about the largest size of a file.
        written: called with the name of each tensor that was written.

    Raises:
        UnsupportedModel, OutOfSpace: see `write_safetensors`.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    require_space(folder, total, "write the model's weights")
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return [write_safetensors(folder / "model.safetensors", shards[0], written=written)]
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        paths.append(write_safetensors(path, shard, written=written))
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), path.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    try:
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, f"write {INDEX}") from error
    return paths
