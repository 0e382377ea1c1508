"""Is this a whole GGUF file? Read from its header alone, before anything is deployed.

The format is that of ggml's docs/gguf.md: magic, version, the counts of tensors and keys, the keys,
name, shape, type and offset of every tensor, and behind an aligned place their data. What llama.cpp
would refuse or read beyond its end is found here in milliseconds and named; whether the numbers
are the right ones is what checksums and the parity gate are for. Counts and lengths are held
against the file before they are believed, so that a damaged one costs neither memory nor time.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from forge_mcp.errors import CorruptArtifact, NotFound, from_os_error

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_HEADER = 256 * 2**20  # bytes; those of the largest vocabularies are below 20 MB
MAX_STRING = 16 * 2**20  # of a value that is kept
MAX_NAME, MAX_KEY = 63, 65535  # bytes: of a tensor (ggml), of a key (the specification)
MAX_DIMENSIONS = 4
MAX_STRINGS = 8_000_000  # in an array

# By their number: name, values in a block, bytes of a block (ggml.c, type_traits).
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
# Of a key's value, by their number: how struct reads them.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes


class Array(NamedTuple):
    """A value that is a list: what of, and how long. Its entries are not kept."""

    kind: int
    length: int


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
        shape: rows first, as numpy has it.
        kind: e.g. "Q4_K".
        start: its first byte in the file.
        nbytes: of its data.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        keys: e.g. "general.architecture", with the values of scalars and strings.
        tensors: in the order of the file.
    """

    version: int
    keys: dict[str, int | float | bool | str | Array]
    tensors: list[Tensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name for it; empty where it is not said."""
        found = self.keys.get("general.architecture")
        return found if isinstance(found, str) else ""


def read_gguf_header(path: Path) -> Header:
    """Read and check the header.

    Raises:
        NotFound: there is no such file.
        CorruptArtifact: it is no GGUF file, it is cut short, or its header says impossible things.
    """
    try:
        with path.open("rb") as file:
            return _Reader(path, file).header()
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} does not exist.",
            cause="there is no such file",
            next_step="Export the run again: forge-mcp export RUN.",
        ) from error
    except OSError as error:
        raise from_os_error(error, f"read {path.name}") from error


def check_gguf(path: Path) -> Header:
    """What is read before a model is deployed: a header that is right, and a model behind it.

    Raises:
        NotFound, CorruptArtifact: see `read_gguf_header`; also a file without architecture or
            tensors.
    """
    header = read_gguf_header(path)
    if not header.architecture:
        raise _damaged(path, "it names no architecture")
    if not header.tensors:
        raise _damaged(path, "it holds no tensors")
    return header


class _Reader:
    """Takes the header apart from the front; nothing is believed to be there before it is."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._limit = min(self._size, MAX_HEADER)
        self._at = 0

    def header(self) -> Header:
        magic = self._take(4)
        if magic != MAGIC:
            self._fail(f"it begins with {magic!r}, not {MAGIC!r}")
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            said = "it is big-endian" if swapped in VERSIONS else f"its version is {version}"
            self._fail(f"{said}; known are versions 2 and 3, little-endian")
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        left = self._limit - self._at
        if tensor_count * _SMALLEST_TENSOR + key_count * _SMALLEST_KEY > left:
            self._fail(f"it would hold {tensor_count} tensors and {key_count} keys")
        keys: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._text(MAX_KEY, "a key")
            if key in keys:
                self._fail(f"the key {key} stands in it twice")
            keys[key] = self._value(key)
        alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self._fail(f"its alignment is {alignment!r}, no power of two")
        infos = [self._tensor_info() for _ in range(tensor_count)]
        return Header(version, keys, self._placed(infos, alignment))

    # -- keys --

    def _value(self, key: str) -> int | float | bool | str | Array:
        kind = self._number("<I")
        if kind == _STRING:
            return self._text(MAX_STRING, key)
        if kind == _ARRAY:
            return self._skip_array(key)
        if kind not in _SCALARS:
            self._fail(f"the key {key} has a value of the unknown type {kind}")
        value: int | float | bool = self._number(_SCALARS[kind])
        return value

    def _skip_array(self, key: str) -> Array:
        kind, length = self._number("<I"), self._number("<Q")
        if kind in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[kind]), f"the list {key}")
        elif kind == _STRING:
            if length > min(MAX_STRINGS, (self._limit - self._at) // 8):
                self._fail(f"the list {key} would have {length} entries")
            for _ in range(length):
                self._skip(self._number("<Q"), f"the list {key}")
        else:  # the specification allows lists of lists, llama.cpp none
            self._fail(f"the list {key} has entries of the unknown type {kind}")
        return Array(kind, length)

    # -- tensors --

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(MAX_NAME, "the name of a tensor")
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._fail(f"its tensor {name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _placed(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> list[Tensor]:
        start = self._at + -self._at % alignment
        expected = 0
        names: set[str] = set()
        tensors: list[Tensor] = []
        for name, shape, number, offset in infos:
            if name in names:
                self._fail(f"the tensor {name} stands in it twice")
            names.add(name)
            if number not in TYPES:
                self._fail(f"its tensor {name} has the unknown type {number}")
            kind, block, size = TYPES[number]
            if 0 in shape or shape[-1] % block:
                self._fail(f"its tensor {name} has the shape {shape}, which {kind} cannot have")
            nbytes = math.prod(shape) // block * size
            if offset != expected:
                self._fail(f"its tensor {name} begins at {offset}, not at {expected}")
            if start + offset + nbytes > self._size:
                self._fail(
                    f"its tensor {name} ends at byte {start + offset + nbytes}, the file at "
                    f"{self._size}: it was cut short"
                )
            expected = offset + nbytes + -nbytes % alignment
            tensors.append(Tensor(name, shape, kind, start + offset, nbytes))
        return tensors

    # -- bytes --

    def _take(self, count: int) -> bytes:
        if count > self._limit - self._at:
            self._ended("its header")
        data = self._file.read(count)
        if len(data) != count:
            self._ended("its header")
        self._at += count
        return data

    def _skip(self, count: int, what: str) -> None:
        if count > self._limit - self._at:
            self._ended(what)
        self._file.seek(count, os.SEEK_CUR)
        self._at += count

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, longest: int, what: str) -> str:
        length = self._number("<Q")
        if length > longest:
            self._fail(f"{what} would have {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is no UTF-8 text")

    def _ended(self, what: str) -> NoReturn:
        if self._limit < self._size:
            self._fail(f"{what} would be longer than {MAX_HEADER} bytes")
        self._fail(f"it ends inside {what}, after {self._size} bytes: it was cut short")

    def _fail(self, cause: str) -> NoReturn:
        raise _damaged(self._path, cause)


def _damaged(path: Path, cause: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is no whole GGUF file.",
        cause=cause,
        next_step="Export the run again, or copy the file again from where it is whole.",
    )
