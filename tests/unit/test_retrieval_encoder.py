"""Sentence encoders: equal to transformers', used as sentence-transformers would, clear errors."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_encoders import REFERENCES, read, tokenizer, write, write_encoder, write_modules

from forge_mcp.errors import ForgeError, InvalidSettings, NotFound, UnsupportedModel
from forge_mcp.machine import mlx
from forge_mcp.retrieval import encoder as encoders
from forge_mcp.retrieval.bert import _ACTIVATIONS, Bert, BertConfig
from forge_mcp.retrieval.encoder import FolderEncoder, load_encoder

MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "tiny")


def load(folder: Path) -> FolderEncoder:
    loaded = load_encoder(str(folder), ollama_host="")
    assert isinstance(loaded, FolderEncoder)
    return loaded


# -- the forward pass ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_hidden_states_are_those_of_transformers(family: str) -> None:
    mx = mlx()
    given = np.load(REFERENCES / family / "reference.npz")
    config = BertConfig.model_validate(read(REFERENCES / family, "config.json"))
    model = Bert(config, REFERENCES / family / "model.safetensors")
    hidden = np.asarray(model.hidden_states(mx.array(given["ids"]), mx.array(given["mask"])))
    mask = given["mask"]
    assert mask.sum() < mask.size  # there is padding
    np.testing.assert_allclose(hidden[mask], given["hidden"][mask], atol=2e-5)
    assert np.abs(hidden[mask]).mean() > 0.1


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_text_has_its_vector_whatever_stands_beside_it(tmp_path: Path, family: str) -> None:
    encoder = load(write_encoder(tmp_path / family, family))
    texts = ["a", "read all carts from the file", "x" * 200, "", "the first line"]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.shape == (5, 32)
    assert together.dtype == np.float32


def test_the_vector_is_the_mean_of_the_hidden_states(folder: Path) -> None:
    mx = mlx()
    model = Bert(
        BertConfig.model_validate(read(folder, "config.json")), folder / "model.safetensors"
    )
    ids = mx.array([tokenizer().encode("cart").ids])
    hidden = np.asarray(model.hidden_states(ids, mx.ones(ids.shape, mx.bool_)))[0]
    wanted = hidden.mean(axis=0)
    found = load(folder).encode(["cart"])[0]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("gelu_new", lambda x: x / (1 + math.exp(-1.5957691216 * (x + 0.044715 * x**3)))),
        ("gelu_pytorch_tanh", lambda x: x / (1 + math.exp(-1.5957691216 * (x + 0.044715 * x**3)))),
        ("relu", lambda x: max(x, 0)),
    ],
)
def test_activations(tmp_path: Path, name: str, wanted: Callable[[float], float]) -> None:
    mx = mlx()
    points = [-4.0, -1.0, -0.3, 0.0, 0.2, 1.0, 3.0]
    found = np.asarray(_ACTIVATIONS[name](mx, mx.array(points)))
    np.testing.assert_allclose(found, [wanted(x) for x in points], atol=1e-6)
    usual = load(write_encoder(tmp_path / "usual")).encode(["cart"])
    changed = load(write_encoder(tmp_path / "changed", hidden_act=name)).encode(["cart"])
    assert (usual == changed).all() == (name == "gelu")


def test_weights_with_a_head_and_old_names_are_read(tmp_path: Path, folder: Path) -> None:
    mx = mlx()
    weights = mx.load(str(folder / "model.safetensors"))
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in weights.items()
    }
    old["cls.predictions.bias"] = mx.zeros(96)
    other = write_encoder(tmp_path / "old")
    mx.save_safetensors(str(other / "model.safetensors"), old)
    assert (load(other).encode(["cart"]) == load(folder).encode(["cart"])).all()


# -- as sentence-transformers would ----------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len"])
def test_pooling_is_what_modules_json_says(folder: Path, pooling: str) -> None:
    mx = mlx()
    model = Bert(
        BertConfig.model_validate(read(folder, "config.json")), folder / "model.safetensors"
    )
    flags = {
        f"pooling_mode_{name}": name.startswith(pooling)
        for name in ("cls_token", "max_tokens", "mean_tokens")
    }
    flags["pooling_mode_mean_sqrt_len_tokens"] = False
    if pooling == "mean_sqrt_len":  # newer files name it
        flags = {"pooling_mode": "mean_sqrt_len"}  # type: ignore[dict-item]
    write_modules(folder, flags, "Normalize")
    ids = mx.array([tokenizer().encode("cart").ids])
    hidden = np.asarray(model.hidden_states(ids, mx.ones(ids.shape, mx.bool_)))[0]
    wanted = {"cls": hidden[0], "max": hidden.max(axis=0)}.get(pooling, hidden.mean(axis=0))
    # The second text pads the first.
    found = load(folder).encode(["cart", "carts and more"])[0]
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_prompts_and_the_longest_input_count(folder: Path) -> None:
    plain = load(folder)
    write_modules(folder, MEAN)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 5})
    write(
        folder,
        "config_sentence_transformers.json",
        {"prompts": {"query": "ask ", "passage": "tell "}},
    )
    prompted = load(folder)
    assert prompted.fingerprint != plain.fingerprint
    # Two special tokens and the first three of "ask x", "tell x".
    assert (prompted.encode(["x"], "query") == plain.encode(["ask"])).all()
    assert (prompted.encode(["x"], "document") == plain.encode(["tel"])).all()
    write(
        folder,
        "config_sentence_transformers.json",
        {"prompts": {"code": "see "}, "default_prompt_name": "code"},
    )
    usual = load(folder)
    for kind in ("query", "document"):
        assert (usual.encode(["x"], kind) == plain.encode(["see"])).all()


def test_an_encoder_without_fast_tokenizer_gets_one(folder: Path) -> None:
    wanted = load(folder).encode(["cart 1"])
    vocabulary = sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    np.testing.assert_allclose(load(folder).encode(["cart 1"]), wanted, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5000), max_size=60))
def test_batches_hold_every_row_once_within_their_bound(lengths: list[int]) -> None:
    batches = encoders._batches(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[row] for row in batch)
        assert len(batch) == 1 or padded <= encoders.TOKENS_PER_BATCH


def test_progress_is_told_and_nothing_is_nothing(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    encoder = load(folder)
    encoder.encode(["a"] * 3000, "document", lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (3000, 3000)
    assert len(told) > 1
    assert encoder.encode([]).shape == (0, 32)


# -- finding one -----------------------------------------------------------------------------------


def test_a_relative_folder_and_a_name_of_the_cache(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_encoder("tiny", ollama_host="", relative_to=tmp_path).name == "tiny"
    snapshot = tmp_path / "hub" / "models--acme--tiny" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub" / "models--acme--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--acme--tiny" / "refs" / "main").write_text("abc")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = load_encoder("acme/tiny", ollama_host="")
    assert cached.fingerprint == load(folder).fingerprint
    with pytest.raises(NotFound, match="hf download acme/other"):
        load_encoder("acme/other", ollama_host="")
    with pytest.raises(NotFound, match="acme/ti ny"):
        load_encoder("acme/ti ny", ollama_host="")


def test_no_encoder_and_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"retrieval\.encoder is empty"):
        load_encoder("", ollama_host="")
    for name in ("minilm", "./minilm", str(tmp_path / "a" / "b")):
        with pytest.raises(NotFound, match="neither a folder nor a name"):
            load_encoder(name, ollama_host="")


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ({"model_type": "t5"}, "model_type is 't5'"),
        ({"position_embedding_type": "relative_key"}, "positions are 'relative_key'"),
        ({"hidden_act": "swish"}, "activation is 'swish'"),
        ({"num_attention_heads": 5}, "do not divide by 5"),
        ({"vocab_size": 50}, "shape"),
        ({"num_hidden_layers": 3}, "encoder.layer.2"),
        ({"hidden_size": "many"}, "hidden_size"),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    tmp_path: Path, config: dict[str, Any], cause: str
) -> None:
    folder = write_encoder(tmp_path / "tiny", **config)
    with pytest.raises(UnsupportedModel) as refused:
        load(folder)
    assert cause in refused.value.cause
    assert str(folder) in str(refused.value)
    assert refused.value.next_step


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    other = tokenizer()
    other.add_tokens([f"more{n}" for n in range(60)])
    other.save(str(folder / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="tokens, its model 96"):
        load(folder)


@pytest.mark.parametrize(
    ("modules", "cause"),
    [
        (({"pooling_mode_lasttoken": True},), "its pooling is"),
        (({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},), "its pooling is"),
        ((MEAN, "Dense"), "names Dense"),
    ],
)
def test_modules_that_are_not_known_are_refused(
    folder: Path, modules: tuple[Any, ...], cause: str
) -> None:
    write_modules(folder, *modules)
    with pytest.raises(UnsupportedModel, match=cause):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "1_Pooling/config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    write_modules(folder, MEAN)
    (folder / name).unlink()
    with pytest.raises(UnsupportedModel, match=f"{name} is missing"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "modules.json"]
)
@pytest.mark.parametrize("keep", [0, 20])
def test_a_damaged_file_is_one_error(folder: Path, name: str, keep: int) -> None:
    write_modules(folder, MEAN)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:keep])
    with pytest.raises(UnsupportedModel, match="cannot be loaded") as refused:
        load(folder)
    assert refused.value.cause
    assert "\n" not in refused.value.cause


def test_the_fingerprint_is_of_all_that_decides(folder: Path) -> None:
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    (folder / "README.md").write_text("words")
    assert load(folder).fingerprint == first
    write_modules(folder, MEAN)
    second = load(folder).fingerprint
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    assert len({first, second, load(folder).fingerprint}) == 3


def test_errors_are_of_the_tree(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(ForgeError):
        load(folder)
    write(folder, "config.json", json.loads("[]"))
    with pytest.raises(UnsupportedModel, match=r"config\.json: it"):
        load(folder)
