"""The structural check of GGUF files: what is damaged is found, whatever the bytes."""

from __future__ import annotations

import os
import struct
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.errors import CorruptArtifact, ForgeError, NotFound
from forge_mcp.serving import gguf_file
from forge_mcp.serving.gguf_file import TYPES, Array, check_gguf, read_gguf_header


@cache
def whole() -> bytes:
    """A small file by the gguf package, with every kind of value."""
    import tempfile

    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("tiny – naïve")
        writer.add_uint8("a.u8", 200)
        writer.add_int8("a.i8", -3)
        writer.add_uint16("a.u16", 60000)
        writer.add_int16("a.i16", -300)
        writer.add_int32("a.i32", -70000)
        writer.add_uint64("a.u64", 2**40)
        writer.add_int64("a.i64", -(2**40))
        writer.add_float32("a.f32", 0.5)
        writer.add_float64("a.f64", 0.25)
        writer.add_bool("a.bool", True)
        writer.add_array("a.strings", ["x", "yy", "", "zzz"])
        writer.add_array("a.numbers", [1, 2, 3])
        writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
        quantized = np.ones((2, 34), np.uint8)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor("blk.0.ffn_up.weight", quantized, raw_dtype=kind)
        writer.add_tensor("output_norm.weight", np.ones(5, np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return path


def test_what_the_gguf_package_writes_is_read(tmp_path: Path) -> None:
    import gguf

    path = write(tmp_path, whole())
    header = check_gguf(path)
    reader = gguf.GGUFReader(path)
    assert header.version == 3
    assert header.architecture == "llama"
    expected = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    lists = {"a.strings": Array(8, 4), "a.numbers": Array(5, 3)}
    assert header.keys == expected | lists
    assert [
        (tensor.name, tensor.shape, tensor.kind, tensor.start, tensor.nbytes)
        for tensor in header.tensors
    ] == [
        (
            tensor.name,
            tuple(int(size) for size in tensor.shape[::-1]),
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in reader.tensors
    ]


def test_types_have_the_sizes_of_the_gguf_package() -> None:
    import gguf

    known = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for number, row in TYPES.items():
        assert known.get(number, row) == row
    assert known.keys() - TYPES.keys() <= {9}  # Q8_1 is never stored


def test_every_truncation_is_found(tmp_path: Path) -> None:
    data = whole()
    path = write(tmp_path, data)
    last = read_gguf_header(path).tensors[-1]
    for length in reversed(range(last.start + last.nbytes)):
        os.truncate(path, length)
        with pytest.raises(CorruptArtifact) as caught:
            check_gguf(path)
        assert "m.gguf is no whole GGUF file" in caught.value.message
        assert "cut short" in caught.value.cause or length < 4 or "would" in caught.value.cause
    check_gguf(write(tmp_path, data[: last.start + last.nbytes]))


@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_changed_bytes_give_a_header_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(whole())
    for at, value in changes:
        data[at % len(data)] = value
    path = write(tmp_path_factory.getbasetemp(), bytes(data))
    try:
        header = read_gguf_header(path)
    except ForgeError as error:
        assert isinstance(error, CorruptArtifact)
        assert error.cause
    else:
        assert all(tensor.start + tensor.nbytes <= len(data) for tensor in header.tensors)


@given(data=st.binary(max_size=200))
def test_any_bytes_behind_the_magic_are_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), b"GGUF\3\0\0\0" + data)
    try:
        check_gguf(path)
    except CorruptArtifact as error:
        assert error.cause


# -- by hand ---------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


ARCHITECTURE = key("general.architecture", 8, text("llama"))


def tensor(name: str = "w", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def build(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 64,
    alignment: int = 32,
) -> bytes:
    keys = [ARCHITECTURE] if keys is None else keys
    tensors = [tensor()] if tensors is None else tensors
    counts = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<I2Q", version, *counts) + b"".join(keys + tensors)
    return head + bytes(-len(head) % alignment + data)


TWICE = [tensor(offset=0), tensor(offset=32)]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"PK\3\4" + bytes(60), "begins with"),
        (build(version=1), "version is 1"),
        (build(version=3 << 24), "big-endian"),
        (build(counts=(2**60, 1)), "would hold"),
        (build(counts=(1, 2**63)), "would hold"),
        (build(keys=[ARCHITECTURE, ARCHITECTURE]), "general.architecture stands in it twice"),
        (build(keys=[key("x", 77, b"")]), "x has a value of the unknown type 77"),
        (build(keys=[key("x", 9, struct.pack("<IQ", 9, 1))]), "list x has entries of"),
        (build(keys=[key("x", 9, struct.pack("<IQ", 8, 2**50))]), "would have"),
        (build(keys=[key("x", 9, struct.pack("<IQ", 4, 2**61))]), "ends inside the list x"),
        (build(keys=[key("x", 8, struct.pack("<Q", 2**40))]), "x would have"),
        (build(keys=[key(b"\xff", 4, bytes(4))]), "no UTF-8"),
        (build(keys=[key("general.alignment", 4, struct.pack("<I", 24))]), "power of two"),
        (build(keys=[key("general.alignment", 4, bytes(4))]), "power of two"),
        (build(keys=[key("general.alignment", 8, text("32"))]), "power of two"),
        (build(tensors=[tensor("n" * 64)]), "would have 64 bytes"),
        (build(tensors=[tensor(shape=())]), "0 dimensions"),
        (build(tensors=[tensor(shape=(1,) * 5)]), "5 dimensions"),
        (build(tensors=[tensor(shape=(4, 0))]), "shape"),
        (build(tensors=[tensor(kind=12, shape=(128,))]), "Q4_K cannot have"),
        (build(tensors=[tensor(kind=4)]), "unknown type 4"),
        (build(tensors=[tensor(offset=8)]), "begins at 8"),
        (build(tensors=TWICE), "w stands in it twice"),
        (build(tensors=[tensor(shape=(2**40, 2**40))]), "cut short"),
        (build(tensors=[tensor(shape=(17,))]), "ends at byte"),
        (build(keys=[]), "no architecture"),
        (build(keys=[key("general.architecture", 4, bytes(4))]), "no architecture"),
        (build(tensors=[]), "no tensors"),
    ],
)
def test_each_damage_is_named(tmp_path: Path, data: bytes, named: str) -> None:
    # The tensor of 17 floats needs 68 bytes, four more than there are.
    with pytest.raises(CorruptArtifact) as caught:
        check_gguf(write(tmp_path, data))
    assert named in caught.value.cause
    assert caught.value.next_step


def test_another_alignment_is_kept(tmp_path: Path) -> None:
    aligned = key("general.alignment", 4, struct.pack("<I", 64))
    tensors = [tensor("a", (5,)), tensor("b", (5,), offset=64)]
    data = build([ARCHITECTURE, aligned], tensors, data=84, alignment=64)
    header = check_gguf(write(tmp_path, data))
    assert [row.start % 64 for row in header.tensors] == [0, 0]
    with pytest.raises(CorruptArtifact, match="no whole GGUF"):
        check_gguf(write(tmp_path, data[:-1]))


def test_a_huge_file_with_absurd_counts_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    strings = key("tokens", 9, struct.pack("<IQ", 8, 2**40))
    path.write_bytes(build(keys=[strings]))
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse
    started = time.perf_counter()
    with pytest.raises(CorruptArtifact) as caught:
        read_gguf_header(path)
    assert "would have" in caught.value.cause
    assert time.perf_counter() - started < 1
    monkeypatch.setattr(gguf_file, "MAX_HEADER", 100)
    path.write_bytes(build(keys=[key("x", 8, text("y" * 200))]))
    with pytest.raises(CorruptArtifact) as caught:
        read_gguf_header(path)
    assert "longer than 100 bytes" in caught.value.cause


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match=r"no\.gguf"):
        check_gguf(tmp_path / "no.gguf")
    with pytest.raises(ForgeError, match=tmp_path.name):
        check_gguf(tmp_path)

    path = write(tmp_path, whole())

    class Shrunk:
        """The file is cut between the look at its size and the reading."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def fileno(self) -> int:
            return int(self.file.fileno())

        def read(self, count: int) -> bytes:
            return bytes(self.file.read(count))[:-1]

    with path.open("rb") as file, pytest.raises(CorruptArtifact) as caught:
        gguf_file._Reader(path, Shrunk(file)).header()  # type: ignore[arg-type]
    assert "ends inside its header" in caught.value.cause
