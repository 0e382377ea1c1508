"""Types and bytes of quantised tensors = those of llama.cpp's own `llama_model_quantize`.

tests/fixtures/references/gguf_quantized.json.gz was written by
scripts/references/gguf_quantization.py from the same tiny models.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import REFERENCES, models, write_folder

from forge_mcp.errors import BadInput, Unavailable, UnsupportedModel
from forge_mcp.exporting import llamacpp, quantize
from forge_mcp.exporting.architectures import describe
from forge_mcp.exporting.gguf import _plan, convert_to_gguf
from forge_mcp.exporting.tensors import SafetensorsFolder

with gzip.open(REFERENCES / "gguf_quantized.json.gz") as file:
    REFERENCE: dict[str, Any] = json.load(file)
QUANTIZED = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
# Compilers for other machines may join multiplications and additions, which rounds otherwise.
SAME_MACHINE = platform.machine() == REFERENCE["machine"]


@pytest.mark.parametrize("kind", models.CONFIGS)
@pytest.mark.parametrize("size", ["narrow", "wide"])
def test_tensors_are_those_of_llama_cpps_quantiser(tmp_path: Path, kind: str, size: str) -> None:
    import gguf

    folder = write_folder(tmp_path / "m", kind, "F32", **(models.WIDE if size == "wide" else {}))
    for quantization in QUANTIZED:
        path = convert_to_gguf(folder, tmp_path / "m.gguf", quantization, threads=1)
        expected = REFERENCE[size][kind][quantization]
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        assert {name: [tensor.tensor_type.name] for name, tensor in found.items()} == {
            name: row[:1] for name, row in expected.items()
        }, quantization
        if SAME_MACHINE:
            digests = {
                name: hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]
                for name, tensor in found.items()
            }
            assert digests == {name: row[1] for name, row in expected.items()}, quantization


@pytest.mark.parametrize("kind", models.DEEP)
def test_types_in_deep_models_are_llama_cpps(kind: str) -> None:
    """Of 80 layers, so that the outer eighths count and some are taken for 70B models."""
    config = models.make_config(kind, **models.DEEP[kind])
    shapes: dict[str, tuple[int, ...]] = models.tensor_shapes(config)

    class Shapes:
        def names(self) -> list[str]:
            return list(shapes)

        def shape(self, name: str) -> tuple[int, ...]:
            return shapes[name]

        def rows(self, name: str, start: int, stop: int) -> Any:
            raise AssertionError("types are known from shapes")

    for quantization in QUANTIZED:
        planned = _plan(describe(config, "m"), Shapes(), quantization, "m")
        expected = REFERENCE["deep"][kind][quantization]
        assert {tensor.name: [tensor.kind] for tensor in planned} == expected
    of_values = {row[0] for name, row in expected.items() if "attn_v" in name}
    assert ("Q5_K" in of_values) == (kind in ("llama", "qwen2"))


def test_the_references_hold_every_type() -> None:
    """Or the comparison above could pass without having compared."""
    kinds = {
        row[0]
        for size in ("narrow", "wide")
        for cases in REFERENCE[size].values()
        for tensors in cases.values()
        for row in tensors.values()
    }
    assert kinds == {"F32", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q5_0", "Q5_1"}
    assert REFERENCE["narrow"].keys() == REFERENCE["wide"].keys() == models.CONFIGS.keys()


def kind_of(name: str, shape: tuple[int, ...], quantization: str) -> str:
    shapes = {name: shape, "output.weight": (8, 256)}
    return quantize.tensor_types(shapes, quantization, layers=16)[name]


def test_what_stays_float() -> None:
    for quantization in quantize.QUANTIZATIONS:
        assert kind_of("blk.5.attn_norm.weight", (256,), quantization) == "F32"
        assert kind_of("blk.5.attn_q_norm.weight", (8, 256), quantization) == "F32"
        assert kind_of("blk.5.attn_q.bias", (256,), quantization) == "F32"
        assert kind_of("blk.5.ffn_up.weight", (1, 256), quantization) == "F32"
        # llama.cpp gives up on such rows; its converter writes float16 too.
        if quantization not in quantize.FLOATS and quantization not in ("f32", "bf16"):
            assert kind_of("blk.5.ffn_up.weight", (8, 40), quantization) == "F16"
    assert kind_of("blk.5.ffn_up.weight", (8, 40), "f32") == "F32"
    assert kind_of("blk.5.ffn_up.weight", (8, 40), "bf16") == "BF16"


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1"])
def test_blocks_hold_the_values(kind: str) -> None:
    import gguf

    values = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
    encoded = quantize.encode("w", values, kind)
    assert encoded.nbytes == quantize.encoded_bytes(values.shape, kind)
    back = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind])
    assert np.abs(back - values).max() < {"Q8_0": 0.02, "Q6_K": 0.1, "Q5_K": 0.2}.get(kind, 0.3)


@given(
    rows=st.integers(1, 4),
    blocks=st.integers(1, 3),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_q8_0_without_the_library_is_the_same(
    rows: int, blocks: int, scale: float, seed: int
) -> None:
    drawn = np.random.default_rng(seed).normal(size=(rows, 32 * blocks)) * scale
    values = drawn.astype(np.float32)
    np.testing.assert_array_equal(
        quantize._encode_q8_0(values), quantize._encode_blocks("w", values, "Q8_0")
    )


def test_llama_cpp_itself_finds_a_scale_that_does_not_fit() -> None:
    with pytest.raises(UnsupportedModel, match="w cannot be written as Q5_0"):
        quantize.encode("w", np.full((1, 32), 2e6, np.float32), "Q5_0")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "Q5_0"])
@pytest.mark.parametrize("value", [8.4e6, 1e30])
def test_scales_that_do_not_fit_are_named(
    kind: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full((1, 256), value, np.float32)
    values[0, 0] = -value
    with pytest.raises(UnsupportedModel, match=f"w cannot be written as {kind}"):
        quantize.encode("w", values, kind)
    if kind == "Q8_0":
        monkeypatch.setattr(quantize, "_has_library", lambda: False)
        with pytest.raises(UnsupportedModel, match="w cannot be written as Q8_0"):
            quantize.encode("w", values, kind)


def test_a_library_that_writes_less_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    functions = SimpleNamespace(
        ggml_row_size=lambda kind, columns: 34, ggml_quantize_chunk=lambda *arguments: 33
    )
    monkeypatch.setattr(llamacpp, "quantizer", lambda: functions)
    with pytest.raises(AssertionError, match="33 bytes written, 34 expected"):
        quantize.encode("w", np.ones((1, 32), np.float32), "Q8_0")


def test_without_the_library_k_types_are_refused_and_the_others_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "m")
    with_library = convert_to_gguf(folder, tmp_path / "m.gguf", "q8_0").read_bytes()

    def missing() -> Any:
        raise llamacpp._unavailable("xllamacpp is not installed")

    monkeypatch.setattr(llamacpp, "quantizer", missing)
    monkeypatch.setattr(llamacpp, "library", missing)
    for quantization in ("q6_k", "q5_k_m", "q4_k_m"):
        with pytest.raises(Unavailable, match="not installed"):
            convert_to_gguf(folder, tmp_path / "k.gguf", quantization)
    assert list(tmp_path.glob("k.gguf*")) == []
    for quantization in ("f32", "f16", "bf16"):
        assert convert_to_gguf(folder, tmp_path / f"{quantization}.gguf", quantization).is_file()
    assert convert_to_gguf(folder, tmp_path / "m.gguf", "q8_0").read_bytes() == with_library


def test_an_unknown_quantisation_is_named() -> None:
    with pytest.raises(BadInput, match=r"'q2_k'"):
        quantize.check_quantization("q2_k")
    for quantization in quantize.QUANTIZATIONS:
        quantize.check_quantization(quantization)


def test_a_wide_model_has_no_values_of_its_own(tmp_path: Path) -> None:
    """The plan of a real folder is that of its shapes."""
    folder = write_folder(tmp_path / "m", "phi3", "F16", **models.WIDE)
    config = json.loads((folder / "config.json").read_text())
    planned = _plan(describe(config, "m"), SafetensorsFolder(folder), "q5_k_m", "m")
    kinds = {tensor.name: tensor.kind for tensor in planned}
    assert kinds["blk.2.attn_qkv.weight"] == "Q6_K"
    assert kinds["blk.0.attn_qkv.weight"] == "Q5_K"
    assert kinds["rope_factors_long.weight"] == "F32"
