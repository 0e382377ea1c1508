"""Fuse, GGUF, quantisation, tokens, Modelfile and the parity gate, on tiny random models."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_mcp import workspace
from forge_mcp.errors import (
    BadInput,
    ForgeError,
    NotFound,
    OutOfSpace,
    Unavailable,
    UnsupportedModel,
)
from forge_mcp.exporting import llamacpp, quantize
from forge_mcp.exporting.fuse import merge_adapters_to_base
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.modelfile import create_ollama_modelfile, parse_modelfile
from forge_mcp.exporting.parity import TEXTS, HeldOut, Parity, check_parity
from forge_mcp.exporting.tokenizer import SPLITS, read_vocabulary
from forge_mcp.machine import mlx
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.settings import ExportingSettings, load_settings

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
QWEN2 = next(split for split, name in SPLITS.items() if name == "qwen2")
SAMPLING = {"temperature": 0.1, "top_k": 40, "top_p": 0.9, "num_ctx": 2048, "num_predict": 512}


# -- tiny models -----------------------------------------------------------------------------------


def pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel
    if name == "gpt-2":
        return byte_level(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False, use_regex=True)])
    split = next(split for split, known in SPLITS.items() if known == name)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            byte_level(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def trained(name: str) -> str:
    """A small byte-level BPE, as JSON, trained on this repository's sources."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    special = [AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)]
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [path.read_text() for path in sorted(Path(workspace.__file__).parent.glob("*.py"))]
    tokenizer.train_from_iterator([*texts, *TEXTS], trainer)
    tokenizer.add_tokens([AddedToken("##begin_quote##", special=False, normalized=False)])
    return str(tokenizer.to_str())


def write_tokenizer(folder: Path, name: str = "qwen2") -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained(name)),
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def write_model(
    folder: Path,
    kind: str = "llama",
    *,
    tied: bool = True,
    hidden: int = 64,
    change: Callable[[dict[str, Any]], None] = lambda weights: None,
    **config: Any,
) -> Path:
    """A random model of two layers in Hugging Face format."""
    mx = mlx()
    from mlx.utils import tree_flatten

    tokenizer = write_tokenizer(folder)
    base = {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(tokenizer) + 3,  # padded, as many are
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "rope_theta": 10000.0,
        "eos_token_id": tokenizer.eos_token_id,
    } | config
    if kind != "qwen2":
        base.setdefault("head_dim", 32)
    module = importlib.import_module(f"mlx_lm.models.{'llama' if kind == 'mistral' else kind}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(base))
    weights = {
        name: mx.random.normal(array.shape) * (0.2 if array.ndim > 1 else 0.1)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, array in tree_flatten(model.parameters())
    }
    change(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(base))
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    mlx()
    from mlx_lm.utils import load as load_folder

    model, tokenizer = load_folder(str(folder))[:2]
    return model, tokenizer


def mlx_logits(folder: Path, ids: list[int]) -> Any:
    mx = mlx()
    model, _ = load(folder)
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


def some_ids(folder: Path, count: int = 160) -> list[int]:
    from tokenizers import Tokenizer

    text = Path(workspace.__file__).read_text()
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids[:count]
    return ids


# -- weights ---------------------------------------------------------------------------------------

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"tied": False, "attention_bias": True}),
        ("llama", {"rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("mistral", {"tied": False, "sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"tied": False}),
    ],
)
def test_the_file_gives_the_logits_of_mlx(
    tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = write_model(tmp_path / "m", kind, **options)
    ids = some_ids(folder)
    truth = mlx_logits(folder, ids)
    second, first = np.sort(truth, axis=-1)[:, -2:].T
    # A random model has near ties; rounding to float16 may decide those either way.
    clear = first - second > 0.05
    assert clear.mean() > 0.7
    for quantization, error in (("f32", 0.005), ("f16", 0.01)):
        path = convert_to_gguf(folder, tmp_path / "m.gguf", quantization)
        with GgufModel(path, context=256, threads=1) as file:
            assert file.vocab_size == truth.shape[1]
            found = file.logits(ids, len(ids))
            tail = file.logits(ids, 7)
        agree = found.argmax(-1) == truth.argmax(-1)
        assert agree[clear].all()
        assert agree.mean() >= 0.95  # 80 positions: one near tie is more than one percent
        assert np.abs(found - truth).max() < error * np.abs(truth).max()
        np.testing.assert_allclose(tail, found[-7:], atol=0.05)


def test_the_rope_factors_matter(tmp_path: Path) -> None:
    """Without them the same weights give other tokens, so the test above can fail."""
    folder = write_model(tmp_path / "m", rope_scaling=LLAMA3)
    ids = some_ids(folder)
    truth = mlx_logits(folder, ids)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": None}))
    with GgufModel(
        convert_to_gguf(folder, tmp_path / "m.gguf", "f16"), context=256, threads=1
    ) as file:
        found = file.logits(ids, len(ids))
    assert (found.argmax(-1) == truth.argmax(-1)).mean() < 0.99


@pytest.mark.parametrize("quantization", quantize.QUANTIZATIONS)
def test_every_quantisation_loads_and_stays_near(tmp_path: Path, quantization: str) -> None:
    folder = write_model(tmp_path / "m", hidden=256, tied=False)
    ids = some_ids(folder, 64)
    truth = mlx_logits(folder, ids)
    done: list[tuple[int, int]] = []
    path = convert_to_gguf(
        folder,
        tmp_path / "m.gguf",
        quantization,
        threads=2,
        progress=lambda *counts: done.append(counts),
    )
    assert done[-1][0] == done[-1][1] == len(done)
    with GgufModel(path, context=128, threads=1) as file:
        found = file.logits(ids, len(ids))
    # Relative error of the logits; those of an unrelated model would give about 1.4.
    bound = {"f32": 0.01, "f16": 0.02, "q8_0": 0.1, "q6_k": 0.3, "q5_k_m": 0.5, "q4_k_m": 0.75}
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert error < bound[quantization]


def test_the_m_mix_and_its_fallbacks() -> None:
    def kind(name: str, columns: int, quantization: str, tied: bool = False) -> str:
        return quantize.tensor_type(name, (8, columns), quantization, layers=16, tied=tied)

    assert kind("blk.5.attn_q.weight", 256, "q4_k_m") == "Q4_K"
    assert (
        [i for i in range(16) if kind(f"blk.{i}.attn_v.weight", 256, "q4_k_m") == "Q6_K"]
        == [i for i in range(16) if kind(f"blk.{i}.ffn_down.weight", 256, "q5_k_m") == "Q6_K"]
        == [0, 1, 4, 7, 10, 13, 14, 15]
    )
    assert kind("output.weight", 256, "q4_k_m") == "Q6_K"
    assert kind("token_embd.weight", 256, "q4_k_m") == "Q4_K"
    assert kind("token_embd.weight", 256, "q4_k_m", tied=True) == "Q6_K"
    assert kind("blk.5.attn_q.weight", 64, "q4_k_m") == "Q5_0"
    assert kind("blk.5.attn_q.weight", 64, "q5_k_m") == "Q5_1"
    assert kind("output.weight", 64, "q4_k_m") == "Q8_0"
    assert kind("blk.5.attn_q.weight", 40, "q8_0") == "F16"
    assert kind("blk.5.attn_norm.weight", 256, "q4_k_m") == "F32"
    assert quantize.tensor_type("blk.0.attn_q.bias", (8,), "f16", layers=2, tied=True) == "F32"


def test_q8_0_is_what_llama_cpp_itself_writes() -> None:
    values = np.random.default_rng(1).normal(size=(5, 96)).astype(np.float32)
    ours = quantize.encode("w", values, "Q8_0")
    assert np.array_equal(ours, quantize._encode_blocks(values, "Q8_0"))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1"])
def test_blocks_hold_the_values(kind: str) -> None:
    import gguf

    values = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
    encoded = quantize.encode("w", values, kind)
    assert encoded.nbytes == quantize.encoded_bytes(values.shape, kind)
    back = gguf.quants.dequantize(encoded, gguf.GGMLQuantizationType[kind])
    assert np.abs(back - values).max() < {"Q6_K": 0.1, "Q5_K": 0.2}.get(kind, 0.3)


def test_without_the_library_k_types_are_refused_and_q8_0_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m")

    def missing() -> Any:
        return llamacpp.declare(SimpleNamespace())  # type: ignore[arg-type]

    monkeypatch.setattr(llamacpp, "library", missing)
    with pytest.raises(Unavailable, match="ggml_quantize_chunk"):
        convert_to_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    assert list(tmp_path.glob("m.gguf*")) == []
    assert convert_to_gguf(folder, tmp_path / "m.gguf", "q8_0").is_file()


def test_a_context_structure_of_another_layout_is_refused() -> None:
    llamacpp.check_layout(llamacpp.library().llama_context_default_params())
    with pytest.raises(Unavailable, match="begins with"):
        llamacpp.check_layout(llamacpp._Parameters())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"quantization": {"bits": 4}}, "quantised"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"sliding_window": 128, "use_sliding_window": True}, "sliding"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"vocab_size": 10}, "embedding rows"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"eos_token_id": 10**6}, "eos_token_id"),
    ],
)
def test_models_that_gguf_cannot_hold_are_named(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    folder = write_model(tmp_path / "m")
    before = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(before | config))
    with pytest.raises(UnsupportedModel, match=named):
        convert_to_gguf(folder, tmp_path / "m.gguf")
    assert list(tmp_path.glob("m.gguf*")) == []


def test_a_wrong_quantisation_folder_or_tensor_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with pytest.raises(BadInput, match="q3_k"):
        convert_to_gguf(folder, tmp_path / "m.gguf", "q3_k")
    with pytest.raises(NotFound, match="no model folder"):
        convert_to_gguf(tmp_path, tmp_path / "m.gguf")
    extra = write_model(
        tmp_path / "extra", change=lambda w: w.update({"model.vision.weight": mlx().zeros((2, 2))})
    )
    with pytest.raises(UnsupportedModel, match=r"model\.vision"):
        convert_to_gguf(extra, tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "quantization", "named"),
    [(float("nan"), "q4_k_m", "no numbers"), (1e6, "f16", "float16")],
)
def test_weights_that_cannot_be_written_leave_no_file(
    tmp_path: Path, value: float, quantization: str, named: str
) -> None:
    def spoil(weights: dict[str, Any]) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        weights[name] = mlx().full(weights[name].shape, value)

    folder = write_model(tmp_path / "m", change=spoil)
    with pytest.raises(UnsupportedModel, match=named):
        convert_to_gguf(folder, tmp_path / "m.gguf", quantization)
    assert list(tmp_path.glob("m.gguf*")) == []


def test_no_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "m")
    monkeypatch.setattr(workspace, "free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpace, match=r"m\.gguf"):
        convert_to_gguf(folder, tmp_path / "m.gguf")
    assert list(tmp_path.glob("m.gguf*")) == []


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"x" * 200, b"no model"])
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"bad\.gguf"):
        GgufModel(tmp_path / "bad.gguf", context=64)


def test_more_tokens_than_the_context_are_refused(tmp_path: Path) -> None:
    path = convert_to_gguf(write_model(tmp_path / "m"), tmp_path / "m.gguf", "f16")
    with GgufModel(path, context=256, threads=1) as file, pytest.raises(BadInput, match="context"):
        file.logits([5] * 300, 10)


# -- tokens ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2", "llama-bpe", "tekken", "gpt-2", "smollm"])
def both_tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[GgufModel, Any]]:
    """One tokenizer in llama.cpp and in transformers."""
    folder = write_model(tmp_path_factory.mktemp(request.param) / "m")
    tokenizer = write_tokenizer(folder, request.param)
    assert read_vocabulary(folder, 700).pre == request.param
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer) + 3}))
    path = convert_to_gguf(folder, folder / "m.gguf", "f16")
    with GgufModel(path, context=64, threads=1) as file:
        yield file, tokenizer


WRITTEN = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r'\"#_.,(){}0123456789²½aZéßſÅǅʰक中🎉\u0301\u200d\u00a0\u3000"),
        st.characters(min_codepoint=1, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"]),
    ),
    max_size=40,
)


@given(text=st.lists(st.one_of(WRITTEN, st.sampled_from([END, START, "##begin_quote##"]))))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_llama_cpp_reads_the_tokens_of_the_training(
    both_tokenizers: tuple[GgufModel, Any], text: list[str]
) -> None:
    file, tokenizer = both_tokenizers
    joined = "".join(text)
    assert file.tokenize(joined) == tokenizer.encode(joined, add_special_tokens=False)
    assert file.tokenize(joined, add_special=True) == tokenizer.encode(joined)


def test_the_fixed_texts_are_equal_too(both_tokenizers: tuple[GgufModel, Any]) -> None:
    file, tokenizer = both_tokenizers
    for text in TEXTS:
        assert file.tokenize(text) == tokenizer.encode(text, add_special_tokens=False), text


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "tokenizer.json"
    loaded = json.loads(path.read_text())
    change(loaded)
    path.write_text(json.dumps(loaded))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+|\s+"),
            "unknown",
        ),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "ByteL"),
        (lambda t: t.update(pre_tokenizer=None), "pre-tokenizer"),
        (lambda t: t["model"].update(byte_fallback=True), "SentencePiece"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "Lowercase"),
    ],
)
def test_unknown_tokenizers_are_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    write_tokenizer(tmp_path)
    change_tokenizer(tmp_path, change)
    with pytest.raises(UnsupportedModel, match=named):
        read_vocabulary(tmp_path, 700)


def test_a_tokenizer_without_json_template_or_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        read_vocabulary(tmp_path, 700)
    write_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedModel, match="chat template"):
        read_vocabulary(tmp_path, 700)
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHAT}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert read_vocabulary(tmp_path, 700).chat_template == CHAT
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(UnsupportedModel, match="end-of-text"):
        read_vocabulary(tmp_path, 700)


def test_a_list_of_end_tokens_and_a_bos_reach_llama_cpp(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", eos_token_id=[2, 40, 50])
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": START}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    pieces = [
        {"SpecialToken": {"id": START, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    change_tokenizer(
        folder,
        lambda t: t.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": pieces,
                "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {START: {"id": START, "ids": [1], "tokens": [START]}},
            }
        ),
    )
    path = convert_to_gguf(folder, tmp_path / "m.gguf", "f16")
    with GgufModel(path, context=64, threads=1) as file:
        assert [file.ends(token) for token in (2, 40, 50, 60)] == [True, True, True, False]
        assert file.tokenize("def", add_special=True) == [1, *file.tokenize("def")]
        assert file.chat_template == CHAT


# -- fuse ------------------------------------------------------------------------------------------


class PlainRun:
    """A run without adapters: its fused weights are the model's own."""

    def __init__(self, folder: Path) -> None:
        self.base_path = folder
        self.model, self.tokenizer = load(folder)

    def fused_weights(self) -> Iterator[tuple[str, Any]]:
        from mlx.utils import tree_flatten

        yield from tree_flatten(self.model.parameters())


@pytest.mark.parametrize("tied", [True, False])
def test_the_fused_folder_is_the_run(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forge_mcp.exporting.fuse.SHARD_BYTES", 100_000)
    run = PlainRun(write_model(tmp_path / "m", tied=tied))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    quantized = config | {"quantization": {"bits": 4, "group_size": 64}}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(quantized))
    run.base_path = tmp_path / "base"
    fused = merge_adapters_to_base(run, tmp_path / "fused", "float32")
    config = json.loads((fused / "config.json").read_text())
    assert config["tie_word_embeddings"] is tied
    assert "quantization" not in config
    assert len(list(fused.glob("model-*.safetensors"))) > 1
    ids = some_ids(fused)
    np.testing.assert_array_equal(mlx_logits(fused, ids), mlx_logits(tmp_path / "m", ids))
    assert load(fused)[1].chat_template == CHAT


def test_a_full_disk_is_told_before_and_while_fusing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    monkeypatch.setattr("forge_mcp.workspace.free_bytes", lambda path: 1000)
    with pytest.raises(OutOfSpace, match="merged model"):
        merge_adapters_to_base(run, tmp_path / "before")
    assert list((tmp_path / "before").iterdir()) == []

    def full(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("[write] Unable to write to file")

    monkeypatch.setattr("forge_mcp.workspace.free_bytes", lambda path: 10**12)
    monkeypatch.setattr(mlx(), "save_safetensors", full)
    with pytest.raises(ForgeError, match="merged model") as caught:
        merge_adapters_to_base(run, tmp_path / "while")
    assert not isinstance(caught.value, OutOfSpace)
    monkeypatch.setattr("forge_mcp.exporting.fuse.free_bytes", lambda path: 0)
    with pytest.raises(OutOfSpace, match="merged model"):
        merge_adapters_to_base(run, tmp_path / "while")


def test_a_diverged_run_is_not_fused(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    run.model.model.norm.weight = run.model.model.norm.weight * float("inf")
    with pytest.raises(UnsupportedModel, match=r"model\.norm"):
        merge_adapters_to_base(run, tmp_path / "fused")


# -- parity ----------------------------------------------------------------------------------------


class PlainRuntime:
    """Renders as the tokenizer does; every answer is `text`."""

    def __init__(self, tokenizer: Any, text: str = "<ANSWER>: 1", suffix: str = "") -> None:
        self.tokenizer, self.text, self.suffix = tokenizer, text, suffix

    def render(self, messages: Any) -> str:
        rows = [message.model_dump() for message in messages]
        text: str = self.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=True
        )
        return text + self.suffix


def chats(count: int = 3) -> list[list[Message]]:
    return [
        [
            Message(role="system", content="Answer."),
            Message(role="user", content=f"def f_{index}(x): return x + {index}\n" * 6),
            Message(role="assistant", content=f"<ANSWER>: {index}"),
        ]
        for index in range(count)
    ]


def gate(run: PlainRun, gguf: Path, runtime: Any = None, **options: Any) -> Parity:
    exporting = options.pop("settings", load_settings().exporting)
    runtime = runtime or PlainRuntime(run.tokenizer)

    def score(places: Sequence[int]) -> list[Any]:
        return [
            SimpleNamespace(right=chats()[at][-1].content == runtime.text, stopped=True)
            for at in places
        ]

    return check_parity(
        run.model,
        run.tokenizer,
        gguf,
        runtime,
        HeldOut("test", chats()),
        exporting,
        score,
        quantization=options.pop("quantization", "f16"),
        context=options.pop("context", 512),
        threads=1,
    )


def test_a_faithful_file_passes_and_is_scored(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32")
    parity = gate(run, gguf, quantization="f32")
    assert parity.passed, parity.reasons
    assert parity.mean_kl < 1e-3
    assert parity.rows == 3
    assert parity.tokens_compared > 300
    assert parity.texts_tokenized == parity.texts_tokenized_equal == 3 + len(TEXTS)
    assert parity.answers == pytest.approx(1 / 3)
    assert json.loads(json.dumps(parity.as_dict()))["answers_stopped"] == 3


def test_other_weights_are_refused(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    other = write_model(tmp_path / "o", change=lambda w: w.update({k: -v for k, v in w.items()}))
    parity = gate(run, convert_to_gguf(other, tmp_path / "o.gguf", "f16"))
    assert not parity.passed
    assert any("most likely token" in reason for reason in parity.reasons)
    assert any("KL" in reason for reason in parity.reasons)


def test_another_template_other_tokens_and_a_lost_end_are_refused(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    other = write_model(tmp_path / "o")
    write_tokenizer(other, "gpt-2")
    gguf = convert_to_gguf(other, tmp_path / "o.gguf", "f16")
    run.tokenizer._eos_token_ids = {2, 77}
    parity = gate(run, gguf, PlainRuntime(run.tokenizer, suffix=" "))
    assert any("tokenises" in reason for reason in parity.reasons)
    assert any("3 of 3 chats" in reason for reason in parity.reasons)
    assert any("would not stop" in reason for reason in parity.reasons)


def test_rows_that_do_not_fit_are_no_comparison(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    with pytest.raises(BadInput, match="no held-out example fits"):
        gate(run, gguf, context=16)


def test_without_answers_none_is_claimed(tmp_path: Path) -> None:
    run = PlainRun(write_model(tmp_path / "m"))
    gguf = convert_to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    fields = load_settings().exporting.model_dump() | {"parity_answers": 0, "parity_tokens": 40}
    parity = gate(run, gguf, settings=ExportingSettings.model_validate(fields))
    assert parity.answers is None
    assert parity.tokens_compared == 40


# -- Modelfile -------------------------------------------------------------------------------------

SAYABLE = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=200
).filter(lambda text: '"""' not in text and not text.endswith('"'))


@given(text=SAYABLE, temperature=st.floats(0, 2), top_k=st.integers(1, 10**6))
def test_any_system_prompt_survives_the_modelfile(
    text: str, temperature: float, top_k: int
) -> None:
    sampling = SAMPLING | {"temperature": temperature, "top_k": top_k}
    written = create_ollama_modelfile("flask-3f9a", "./model.gguf", text, sampling)
    parsed = parse_modelfile(written)
    assert (parsed.gguf_path, parsed.system_prompt) == ("./model.gguf", text)
    assert parsed.parameters == sampling
    assert "\nTEMPLATE" not in written.replace(text, "")


@pytest.mark.parametrize("text", ['say """ twice', 'ends in "', "a\rb", "nul\0"])
def test_text_that_a_modelfile_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="system prompt") as raised:
        create_ollama_modelfile("m", "./model.gguf", text, SAMPLING)
    assert "API" in raised.value.next_step


@pytest.mark.parametrize("name", ["", "two\nlines", " padded "])
def test_a_model_name_is_one_line(name: str) -> None:
    with pytest.raises(BadInput, match="model name"):
        create_ollama_modelfile(name, "./model.gguf", "hi", SAMPLING)


@given(text=st.text(max_size=100))
def test_parsing_any_text_gives_a_modelfile_or_an_error_in_words(text: str) -> None:
    try:
        parse_modelfile(text)
    except BadInput as error:
        assert error.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SYSTEM hi", "line"),
        ('FROM a\nSYSTEM """x', "never closed"),
        ("# nothing", "FROM"),
        ("PARAMETER top_k x", "top_k"),
    ],
)
def test_broken_modelfiles_are_named(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        parse_modelfile(text)


# -- the embedded base -----------------------------------------------------------------------------


def test_forge_nano_exported_is_forge_nano(tmp_path: Path) -> None:
    folder = Path(workspace.__file__).parent / "assets" / "forge-nano"
    text = Path(workspace.__file__).read_text()
    _, tokenizer = load(folder)
    ids = tokenizer.encode(text)[:256]
    truth = mlx_logits(folder, ids)
    path = convert_to_gguf(folder, tmp_path / "nano.gguf", "f16")
    with GgufModel(path, context=256, threads=1) as file:
        found = file.logits(ids, len(ids))
        assert file.tokenize(text) == tokenizer.encode(text)
        assert file.ends(tokenizer.eos_token_id)
    assert (found.argmax(-1) == truth.argmax(-1)).mean() >= 0.99
