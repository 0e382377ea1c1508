"""Our GGUF files = those of llama.cpp's own converter, key by key and byte by byte.

tests/fixtures/references/gguf.json.gz was written by scripts/references/gguf_conversion.py, which
made the same tiny models (scripts/references/gguf_models.py).
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tiny_gguf import REFERENCES, models, write_folder

from forge_mcp import workspace
from forge_mcp.errors import (
    BadInput,
    CorruptArtifact,
    ForgeError,
    NotFound,
    OutOfSpace,
    UnsupportedModel,
)
from forge_mcp.exporting import gguf as gguf_writer
from forge_mcp.exporting import tensors
from forge_mcp.exporting.gguf import convert_to_gguf, paired
from forge_mcp.exporting.tensors import (
    SafetensorsFile,
    SafetensorsFolder,
    TensorToWrite,
    from_source,
    narrowed,
    row_chunks,
    widened,
)
from forge_mcp.exporting.tensors import (
    write_folder as write_tensors,
)

with gzip.open(REFERENCES / "gguf.json.gz") as file:
    CONVERTED: dict[str, dict[str, Any]] = json.load(file)["kinds"]
CASES = [(kind, quantization) for kind, cases in CONVERTED.items() for quantization in cases]
# A name is the caller's; tokenizers have tests of their own.
OTHERWISE = ("general.name", "GGUF.", "tokenizer.")


def read(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Metadata and tensors of a file as the reference scripts record them."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(OTHERWISE)
    }
    found = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            tensor.data.tolist()
            if tensor.name == "rope_freqs.weight"
            else hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    return metadata, found


# -- the whole file --------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "quantization"), CASES)
def test_keys_and_tensors_are_those_of_llama_cpps_converter(
    tmp_path: Path, kind: str, quantization: str
) -> None:
    dtype = {"f32": "F32", "bf16": "BF16"}.get(quantization, "F16")
    folder = write_folder(tmp_path / "m", kind, dtype)
    path = convert_to_gguf(folder, tmp_path / "m.gguf", quantization, threads=2)
    metadata, found = read(path)
    expected = CONVERTED[kind][quantization]
    assert metadata == expected["metadata"]
    if kind == "llama3":  # powers, which are not rounded alike on all machines
        ours, theirs = (rows["rope_freqs.weight"] for rows in (found, expected["tensors"]))
        ours[2] = pytest.approx(ours[2], rel=1e-6)
        assert len(set(theirs[2])) > 3
    assert found == expected["tensors"]


def test_slices_of_any_size_give_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m")
    whole = convert_to_gguf(folder, tmp_path / "whole.gguf", "q8_0", name="m", threads=1)
    monkeypatch.setattr(gguf_writer, "CHUNK_VALUES", 100)  # a row or two; heads are not torn
    monkeypatch.setattr(gguf_writer, "WAITING_BYTES", 1)
    done: list[tuple[int, int]] = []
    sliced = convert_to_gguf(
        folder,
        tmp_path / "sliced.gguf",
        "q8_0",
        name="m",
        threads=3,
        progress=lambda *counts: done.append(counts),
    )
    assert sliced.read_bytes() == whole.read_bytes()
    assert done == [(at, 21) for at in range(1, 22)]


def test_any_source_of_tensors_will_do(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    expected = convert_to_gguf(folder, tmp_path / "a.gguf", "f16", name="m").read_bytes()
    source = SafetensorsFolder(folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")

    class Elsewhere:
        names, shape = source.names, source.shape

        def rows(self, name: str, start: int, stop: int) -> Any:
            return SafetensorsFile(tmp_path / "model.safetensors").rows(name, start, stop)

    path = convert_to_gguf(folder, tmp_path / "b.gguf", "f16", name="m", source=Elsewhere())
    assert path.read_bytes() == expected


def test_what_a_user_should_know_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    folder = write_folder(tmp_path / "m", "gemma3")
    convert_to_gguf(folder, tmp_path / "m.gguf", log=said.append)
    assert said == ["Only the part that reads and writes text is written; images are not seen."]


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_paired_rows_are_neighbours(heads: int, half: int, columns: int) -> None:
    values = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    found = paired(values, 2 * half)
    for head in range(heads):
        for at in range(half):
            first = head * 2 * half
            np.testing.assert_array_equal(found[first + 2 * at], values[first + at])
            np.testing.assert_array_equal(found[first + 2 * at + 1], values[first + half + at])


# -- what is refused -------------------------------------------------------------------------------


def change_weights(folder: Path, **changed: np.ndarray | None) -> Path:
    """Write the folder's weights anew, with some replaced, added or taken away (None)."""
    source = SafetensorsFolder(folder)
    arrays: dict[str, Any] = {
        name: source.rows(name, 0, source.shape(name)[0]) for name in source.names()
    } | {name.replace("__", "."): value for name, value in changed.items()}
    kept = {name: value for name, value in arrays.items() if value is not None}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lm_head__weight": None}, "no lm_head"),
        ({"model__embed_tokens__weight": None}, "no embedding"),
        ({"model__vision__weight": np.zeros((2, 2), np.float32)}, r"place for its tensor model\.v"),
        ({"model__layers__0__self_attn__q_proj__weight": np.zeros((60, 64), np.float32)}, "heads"),
        ({"model__layers__9__mlp__up_proj__weight": np.zeros((2, 64), np.float32)}, "layers.9"),
        ({"transformer__wte__weight": np.zeros((264, 64), np.float32)}, "are one in"),
    ],
)
def test_tensors_without_a_place_are_named(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    folder = change_weights(write_folder(tmp_path / "m"), **changed)
    with pytest.raises(UnsupportedModel, match=named) as caught:
        convert_to_gguf(folder, tmp_path / "m.gguf")
    assert caught.value.next_step
    assert list(tmp_path.glob("m.gguf*")) == []


def test_a_lost_layer_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UnsupportedModel, match="weights of layer 2"):
        convert_to_gguf(folder, tmp_path / "m.gguf")


def test_another_size_of_the_vocabulary_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(UnsupportedModel, match="has 264 rows"):
        convert_to_gguf(folder, tmp_path / "m.gguf")


def test_a_wrong_quantisation_or_folder_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    with pytest.raises(BadInput, match="q3_k"):
        convert_to_gguf(folder, tmp_path / "m.gguf", "q3_k")
    with pytest.raises(NotFound, match="no model folder"):
        convert_to_gguf(tmp_path, tmp_path / "m.gguf")
    (folder / "config.json").write_text("[]")
    with pytest.raises(UnsupportedModel, match="holds no object"):
        convert_to_gguf(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "quantization", "named"),
    [
        (float("nan"), "q4_k_m", "no numbers"),
        (float("inf"), "f32", "no numbers"),
        (1e6, "f16", "float16"),
        (1e30, "q8_0", "Q8_0"),
        (1e30, "q4_k_m", "Q5_0"),
        (3.4e38, "bf16", "bfloat16"),
    ],
)
def test_weights_that_cannot_be_written_leave_no_file(
    tmp_path: Path, value: float, quantization: str, named: str
) -> None:
    name = "model__layers__1__mlp__up_proj__weight"
    folder = change_weights(
        write_folder(tmp_path / "m"), **{name: np.full((96, 64), value, np.float32)}
    )
    with pytest.raises(UnsupportedModel, match=named) as caught:
        convert_to_gguf(folder, tmp_path / "m.gguf", quantization)
    assert "blk.1.ffn_up.weight" in caught.value.message
    assert list(tmp_path.glob("m.gguf*")) == []


def test_a_full_disk_is_said_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m")
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "free_bytes", lambda path: 1000)
        with pytest.raises(OutOfSpace, match=r"m\.gguf"):
            convert_to_gguf(folder, tmp_path / "m.gguf")

    def full(file: Any, *others: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gguf_writer, "_write_data", full)
    with pytest.raises(OutOfSpace, match=r"m\.gguf"):
        convert_to_gguf(folder, tmp_path / "m.gguf")
    assert list(tmp_path.glob("m.gguf*")) == []


# -- slices of safetensors -------------------------------------------------------------------------


def some_tensors(dtype: str = "F32") -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(3)
    shapes = {"a": (7, 5), "b": (4,), "c": (2, 3, 4), "scalar": (), "empty": (0, 3)}
    return {name: drawn.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_written(values: dict[str, np.ndarray], dtype: str) -> list[TensorToWrite]:
    def chunks(array: np.ndarray) -> Any:
        starts = range(0, len(array), 2) if array.ndim else ()
        return lambda: [array[start : start + 2] for start in starts] if array.ndim else [array]

    return [
        TensorToWrite(name, array.shape, dtype, chunks(array)) for name, array in values.items()
    ]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shard_bytes", [2**20, 40])
def test_what_is_written_is_read_by_rows_and_by_the_safetensors_package(
    tmp_path: Path, dtype: str, shard_bytes: int
) -> None:
    from safetensors import safe_open

    values = some_tensors()
    seen: list[str] = []
    paths = write_tensors(
        tmp_path, as_written(values, dtype), shard_bytes=shard_bytes, written=seen.append
    )
    assert sorted(seen) == sorted(values)
    assert (len(paths) == 1) == (shard_bytes == 2**20)
    assert (tmp_path / tensors.INDEX).exists() == (len(paths) > 1)
    assert not list(tmp_path.glob("*.partial"))
    source = SafetensorsFolder(tmp_path)
    assert sorted(source.names()) == sorted(values)
    tolerance = {"F32": 0, "F16": 2**-11, "BF16": 2**-8}[dtype]
    for name, array in values.items():
        assert source.shape(name) == array.shape
        assert source.dtype(name) == dtype
        found = source.rows(name, 0, len(array) if array.ndim else 1)
        np.testing.assert_allclose(found, array, rtol=tolerance)
        if array.ndim and len(array) > 3:
            np.testing.assert_array_equal(source.rows(name, 1, 3), found[1:3])
    for path in paths:
        with safe_open(path, "np") as opened:  # numpy has no bfloat16: names and shapes only
            for name in opened.keys():  # noqa: SIM118
                assert tuple(opened.get_slice(name).get_shape()) == values[name].shape
                if dtype != "BF16":
                    first = narrowed(name, values[name], dtype)
                    np.testing.assert_array_equal(opened.get_tensor(name), first)


def test_a_tensor_can_be_copied_in_another_type(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    source = SafetensorsFolder(folder)
    copied = [from_source(source, name, "BF16") for name in source.names()]
    (tmp_path / "copy").mkdir()
    write_tensors(tmp_path / "copy", copied)
    again = SafetensorsFolder(tmp_path / "copy")
    for name in source.names():  # the values of the tiny models fit in bfloat16
        rows = source.shape(name)[0]
        np.testing.assert_array_equal(again.rows(name, 0, rows), source.rows(name, 0, rows))


@given(
    shape=st.lists(st.integers(0, 40), max_size=3).map(tuple),
    multiple=st.integers(1, 9),
    values=st.integers(1, 200),
)
def test_slices_cover_all_rows_once(shape: tuple[int, ...], multiple: int, values: int) -> None:
    slices = list(row_chunks(shape, multiple, values))
    rows = shape[0] if shape else 1
    assert [row for start, stop in slices for row in range(start, stop)] == list(range(rows))
    assert all(start % multiple == 0 for start, _ in slices)
    width = max(1, math.prod(shape[1:]))
    assert all((stop - start) * width <= max(values, multiple * width) for start, stop in slices)


# Halves of a float32: any upper one, and lower ones at and beside the middle.
HALVES = st.tuples(
    st.integers(0, 0xFFFF), st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
).filter(lambda halves: halves[0] & 0x7F80 != 0x7F80)


@given(st.lists(HALVES, min_size=1))
def test_bfloat16_rounds_as_ggml_does(halves: list[tuple[int, int]]) -> None:
    import gguf

    bits = np.array([upper << 16 | lower for upper, lower in halves], np.uint32)
    array = bits.view(np.float32)
    expected = gguf.quants.quantize(array, gguf.GGMLQuantizationType.BF16).view(np.uint16)
    try:
        found = narrowed("w", array, "BF16")
    except UnsupportedModel:
        assert not np.isfinite(widened(expected.tobytes(), "BF16")).all()
        return
    # gguf flushes subnormal numbers to zero, ggml and we keep them.
    normal = (np.abs(array) >= np.finfo(np.float32).tiny) | (array == 0)
    np.testing.assert_array_equal(found[normal], expected[normal])
    assert np.isfinite(widened(found.tobytes(), "BF16")).all()


def test_every_float16_is_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    for part in (every, every[np.isfinite(every.view(np.float16))]):
        expected = part.view(np.float16).astype(np.float32)
        found = widened(part.astype("<u2").tobytes(), "F16")
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_other_types_are_named_when_they_are_wanted(tmp_path: Path) -> None:
    header = {"ids": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    source = SafetensorsFolder(tmp_path)
    assert source.names() == ["ids"]
    with pytest.raises(UnsupportedModel, match=r"ids.*I64|I64"):
        source.shape("ids")


def test_missing_and_doubled_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no weights"):
        SafetensorsFolder(tmp_path)
    write_tensors(tmp_path, as_written(some_tensors(), "F32"), shard_bytes=40)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    (tmp_path / tensors.INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(CorruptArtifact, match=r"index\.json"):
        SafetensorsFolder(tmp_path)
    for text in ("{", "[1]", '{"weight_map": {}}', '{"weight_map": 3}'):
        (tmp_path / tensors.INDEX).write_text(text)
        with pytest.raises(CorruptArtifact, match=r"index\.json"):
            SafetensorsFolder(tmp_path)
    (tmp_path / tensors.INDEX).write_text('{"weight_map": {"a": "model-9.safetensors"}}')
    with pytest.raises(NotFound, match=r"model-9"):
        SafetensorsFolder(tmp_path)
    (tmp_path / tensors.INDEX).unlink()
    (tmp_path / "model-copy.safetensors").write_bytes(shards[0].read_bytes())
    with pytest.raises(CorruptArtifact, match="also has"):
        SafetensorsFolder(tmp_path)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(tmp_path, as_written({"a": some_tensors()["a"]}, "F32"))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptArtifact, match=r"model\.safetensors is damaged"):
            SafetensorsFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_found(tmp_path: Path) -> None:
    write_tensors(tmp_path, as_written({"a": some_tensors()["a"]}, "F32"))
    path = tmp_path / "model.safetensors"
    source = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-4])
    source.rows("a", 0, 6)
    with pytest.raises(CorruptArtifact, match="inside the tensor a"):
        source.rows("a", 6, 7)


@given(data=st.data())
def test_any_header_gives_tensors_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "X", 3, None]),
            "shape": st.one_of(st.lists(st.integers(-2, 4), max_size=3), st.just("x")),
            "data_offsets": st.one_of(
                st.lists(st.integers(-3, 40), max_size=3), st.just([0, 1e400]), st.none()
            ),
        }
    )
    header = data.draw(
        st.one_of(
            st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), entry),
            st.just([1]),
            st.just("x"),
        )
    )
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    try:
        source = SafetensorsFile(path)
        for name in source.names():
            shape = source.shape(name)
            assert source.rows(name, 0, shape[0] if shape else 1).shape == shape
    except ForgeError as error:
        assert error.message and error.cause


def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ForgeError, match=r"read model\.safetensors"):
        SafetensorsFolder(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    write_tensors(tmp_path, as_written(some_tensors(), "F32"))
    source = SafetensorsFolder(tmp_path)

    def broken(file: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(ForgeError, match=r"read model\.safetensors"):
        source.rows("a", 0, 1)


def test_reading_goes_on_where_the_system_gives_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for more than 2 GiB at a time."""
    values = some_tensors()
    write_tensors(tmp_path, as_written(values, "F32"))
    whole = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, length, offset: whole(file, min(length, 10), offset)
    )
    found = SafetensorsFolder(tmp_path).rows("a", 1, 6)
    np.testing.assert_array_equal(found, values["a"][1:6])


def test_a_source_that_does_not_keep_its_word_is_no_file(tmp_path: Path) -> None:
    short = TensorToWrite("a", (4, 2), "F32", lambda: [np.zeros((3, 2), np.float32)])
    with pytest.raises(AssertionError, match="a: its chunks"):
        write_tensors(tmp_path, [short])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_for_safetensors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = as_written(some_tensors(), "F32")
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "free_bytes", lambda path: 10)
        with pytest.raises(OutOfSpace, match="write"):
            write_tensors(tmp_path, written)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "fsync_path", full)
        with pytest.raises(OutOfSpace, match=r"model\.safetensors"):
            write_tensors(tmp_path, written)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Path, "write_text", lambda path, *others, **named: full(path))
    with pytest.raises(OutOfSpace, match=r"index\.json"):
        write_tensors(tmp_path, written, shard_bytes=40)


def test_the_tiny_models_are_the_same_everywhere() -> None:
    """The digests in the fixtures are of these very values."""
    values = models.values_of("model.layers.0.mlp.up_proj.weight", (96, 64), gemma=False)
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == "4d0a25feb8f129d1"
