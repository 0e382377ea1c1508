"""llama.cpp's library through ctypes: what is checked before it is used, and what it answers."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_gguf import models, some_ids, write_folder

from forge_mcp.errors import BadInput, ForgeError, Unavailable, UnsupportedModel
from forge_mcp.exporting import llamacpp
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.llamacpp import GgufModel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("tiny") / "m", "qwen3")
    return convert_to_gguf(folder, folder / "m.gguf", "f32")


@pytest.fixture
def fresh() -> Iterator[None]:
    """The library is looked up anew, and so it is afterwards."""

    def clear() -> None:
        for found in (llamacpp._load, llamacpp.quantizer, llamacpp.library):
            found.cache_clear()

    clear()
    yield
    clear()


# -- looking it up ---------------------------------------------------------------------------------


def test_all_of_it_is_there() -> None:
    assert llamacpp.missing() is None


@pytest.mark.usefixtures("fresh")
def test_without_xllamacpp_nothing_can_be_used_and_why_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for get in (llamacpp.quantizer, llamacpp.library):
        with pytest.raises(Unavailable, match="xllamacpp is not installed") as caught:
            get()
        assert "bf16 and q8_0" in caught.value.next_step
    assert llamacpp.missing() == (
        "K types cannot be written and no file can be opened to check it "
        "(xllamacpp is not installed)"
    )


@pytest.mark.usefixtures("fresh")
def test_a_library_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.abi3.so").write_bytes(b"no library")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(Unavailable, match=r"xllamacpp\.abi3\.so"):
        llamacpp.library()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("symbol", sorted({**llamacpp.QUANTIZER, **llamacpp.MODELS}))
def test_every_symbol_that_is_missing_is_named_and_what_remains_works(
    monkeypatch: pytest.MonkeyPatch, symbol: str
) -> None:
    real = llamacpp._load()

    class Other:
        def __getattr__(self, name: str) -> Any:
            if name == symbol:
                raise AttributeError(name)
            return getattr(real, name)

    monkeypatch.setattr(llamacpp, "_load", Other)
    said = llamacpp.missing()
    assert said is not None and said.endswith(f"no symbol {symbol})")
    if symbol in llamacpp.QUANTIZER:
        assert said.startswith("K types cannot be written (")
        llamacpp.library()
    else:
        assert said.startswith("no file can be opened to check it (")
        llamacpp.quantizer()


def test_structures_of_another_layout_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = llamacpp.library()
    llamacpp.check_layout(loaded.llama_context_default_params())
    with pytest.raises(Unavailable, match="begins with"):
        llamacpp.check_layout(llamacpp._Parameters())
    with pytest.raises(Unavailable, match="llama_context_params holds"):
        llamacpp._make_exact(llamacpp._Parameters())
    # Where the first number is not the context, llama.cpp takes its own.
    monkeypatch.setattr(loaded, "llama_n_ctx", lambda context: 64)
    with pytest.raises(Unavailable, match="n_ctx was not taken"):
        GgufModel(tiny, context=256, threads=1)


# -- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"GGUF" + b"x" * 200, b"no model"])
def test_a_file_that_llama_cpp_does_not_load_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"cannot load m\.gguf") as caught:
        GgufModel(path, context=64)
    assert caught.value.cause


def test_a_file_without_its_end_is_named(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny.read_bytes()[:-5000])
    with pytest.raises(UnsupportedModel, match="corrupted or incomplete"):
        GgufModel(path, context=64)


def test_logits_of_the_last_tokens_are_those_of_all(tiny: Path) -> None:
    ids = some_ids(40)
    with GgufModel(tiny, context=64, threads=1, exact=True) as file:
        assert file.vocab_size == models.SHAPE["vocab_size"]
        every = file.logits(ids, 40)
        np.testing.assert_array_equal(file.logits(ids, 7), every[-7:])
        # Another text before leaves nothing behind.
        file.logits(some_ids(30, seed=5), 1)
        np.testing.assert_array_equal(file.logits(ids, 40), every)
        for last in (0, 41):
            with pytest.raises(BadInput, match=f"{last} of 40 tokens"):
                file.logits(ids, last)
        with pytest.raises(BadInput, match="context of 64"):
            file.logits(some_ids(65), 1)
    with GgufModel(tiny, context=64, threads=1) as file:
        rounded = file.logits(ids, 40)
    assert 0 < np.abs(rounded - every).max() < 0.05


def test_texts_longer_than_a_batch_are_computed(tiny: Path) -> None:
    ids = some_ids(1100)
    with GgufModel(tiny, context=1200, threads=2, exact=True) as file:
        long = file.logits(ids, 1100)
        assert long.shape == (1100, file.vocab_size)
        np.testing.assert_allclose(long[:40], file.logits(ids[:40], 40), atol=1e-4)


def test_tokens_ends_and_template(tiny: Path) -> None:
    with GgufModel(tiny, context=64, threads=1) as file:
        assert file.tokenize("<|im_end|>") == [2]
        assert file.tokenize("") == []
        assert len(file.tokenize("é" * 100)) == 200
        assert [file.ends(token) for token in (2, 50)] == [True, False]
        assert file.chat_template is not None and "im_start" in file.chat_template
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file._c, "llama_tokenize", lambda *arguments: -3)
            with pytest.raises(ForgeError, match="could not tokenise"):
                file.tokenize("a")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(file._c, "llama_decode", lambda *arguments: 1)
            with pytest.raises(ForgeError, match="could not compute"):
                file.logits([5, 6], 1)
        file.close()
        file.close()


def test_a_model_without_a_template_has_none(tmp_path: Path, tiny: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(tiny)
    path = tmp_path / "m.gguf"
    place = tiny.read_bytes().index(b"tokenizer.chat_template")
    data = bytearray(tiny.read_bytes())
    data[place : place + 9] = b"elsewhere"
    path.write_bytes(data)
    assert "tokenizer.chat_template" in reader.fields
    with GgufModel(path, context=64, threads=1) as file:
        assert file.chat_template is None


# -- adapters --------------------------------------------------------------------------------------


def write_adapter(path: Path, rank: int = 4, alpha: float = 8.0, columns: int = 64) -> Any:
    """A random LoRA of one matrix; returns what it adds to the matrix."""
    import gguf

    drawn = np.random.default_rng(7)
    a = drawn.normal(size=(rank, columns)).astype(np.float32) / 8
    b = drawn.normal(size=(96, rank)).astype(np.float32) / 8
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_tensor("blk.1.ffn_up.weight.lora_a", a)
    writer.add_tensor("blk.1.ffn_up.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return alpha / rank * b @ a


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_an_adapter_adds_its_product_to_the_weights(
    tmp_path: Path, tiny: Path, scale: float
) -> None:
    from forge_mcp.exporting.tensors import SafetensorsFolder

    added = write_adapter(tmp_path / "lora.gguf")
    ids = some_ids(40)
    source = SafetensorsFolder(tiny.parent)

    class Merged:
        names, shape = source.names, source.shape

        def rows(self, name: str, start: int, stop: int) -> Any:
            values = source.rows(name, start, stop)
            merged = name == "model.layers.1.mlp.up_proj.weight"
            return values + scale * added[start:stop] if merged else values

    whole = convert_to_gguf(tiny.parent, tmp_path / "m.gguf", "f32", source=Merged())
    with GgufModel(whole, context=64, threads=1, exact=True) as file:
        expected = file.logits(ids, 40)
    with GgufModel(tiny, context=64, threads=1, exact=True) as file:
        before = file.logits(ids, 40)
        assert file.with_adapter(tmp_path / "lora.gguf", scale) is file
        found = file.logits(ids, 40)
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(before - expected).max() > 0.01


def test_adapters_that_do_not_fit_are_named(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(tmp_path / "other.gguf", columns=32)
    with GgufModel(tiny, context=64, threads=1) as file:
        for name in ("other.gguf", "nothing.gguf"):
            with pytest.raises(UnsupportedModel, match=f"cannot load the adapter {name}") as caught:
                file.with_adapter(tmp_path / name)
            assert caught.value.cause
        missing: llamacpp.Signatures = {"llama_no_such_function": (ctypes.c_int32, [])}
        monkeypatch.setattr(llamacpp, "ADAPTERS", missing)
        with pytest.raises(Unavailable, match="llama_no_such_function"):
            file.with_adapter(tmp_path / "other.gguf")
