"""Tiny random models in Hugging Face format, the same on every machine; numpy only.

`gguf_conversion.py` gives them to llama.cpp's own converter, the tests give them to ours. The
values come from integer arithmetic, so that no version of a random generator can change them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 264,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# Rows of 256, which K types take as they are.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 3} | {
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
# Of a depth at which llama.cpp's quantiser takes some for 70B models.
_DEEP = {"hidden_size": 256, "num_hidden_layers": 80, "intermediate_size": 256, "head_dim": 4}
DEEP: dict[str, dict[str, Any]] = {
    "llama": _DEEP | {"num_key_value_heads": 2},
    "mistral": _DEEP | {"num_key_value_heads": 4},
    "ministral3": _DEEP,
    "qwen2": _DEEP | {"head_dim": None, "num_attention_heads": 64},
    "qwen3": _DEEP,
}
SILU, GELU = {"hidden_act": "silu"}, {"hidden_activation": "gelu_pytorch_tanh"}

# By its name: the class of transformers, and what config.json has beside SHAPE. `None` takes a key
# away.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"model_type": "llama", **SILU}),
    "llama-biases": (
        "LlamaForCausalLM",
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, **SILU}
        | {"head_dim": 32, "num_key_value_heads": 4},
    ),
    "llama3": ("LlamaForCausalLM", {"model_type": "llama", "rope_scaling": LLAMA3, **SILU}),
    "llama-linear": (
        "LlamaForCausalLM",
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        | {"tie_word_embeddings": True, **SILU},
    ),
    "mistral": ("MistralForCausalLM", {"model_type": "mistral", "sliding_window": None, **SILU}),
    "ministral3": (
        "Ministral3ForCausalLM",
        {
            "model_type": "ministral3",
            "rope_theta": None,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.5,
            },
            **SILU,
        },
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        {"model_type": "qwen2", "head_dim": None, "tie_word_embeddings": True, **SILU},
    ),
    "qwen3": ("Qwen3ForCausalLM", {"model_type": "qwen3", "head_dim": 32, **SILU}),
    "qwen3-yarn": (
        "Qwen3ForCausalLM",
        {"model_type": "qwen3", "rope_scaling": YARN, "tie_word_embeddings": True, **SILU},
    ),
    "gemma": (
        "GemmaForCausalLM",
        {"model_type": "gemma", "tie_word_embeddings": True, **GELU},
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "model_type": "gemma2",
            "tie_word_embeddings": True,
            "attn_logit_softcapping": 0.5,
            "final_logit_softcapping": 0.75,
            "query_pre_attn_scalar": 16,
            "sliding_window": 256,
            **GELU,
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
            "rope_theta": 100000.0,
            "rope_local_base_freq": 1000.0,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "sliding_window_pattern": 6,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            **GELU,
        },
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"model_type": "gemma3"},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        {
            "model_type": "phi3",
            "head_dim": None,
            "pad_token_id": 0,
            "sliding_window": 300,
            "original_max_position_embeddings": 128,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0 + number / 16 for number in range(8)],
                "long_factor": [1.0 + number / 4 for number in range(8)],
            },
            **SILU,
        },
    ),
    "phi4": (
        "Phi3ForCausalLM",
        {
            "model_type": "phi3",
            "head_dim": None,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 128,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 6,
                "long_factor": [1.0 + number / 4 for number in range(6)],
            },
            **SILU,
        },
    ),
    "phi3-plain": (
        "Phi3ForCausalLM",
        {"model_type": "phi3", "head_dim": None, "pad_token_id": 0, **SILU}
        | {"original_max_position_embeddings": 512, "rope_scaling": None},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {"model_type": "smollm3", "num_hidden_layers": 5, "pad_token_id": 0, "head_dim": None}
        | {"tie_word_embeddings": True, **SILU},
    ),
    "olmo2": ("Olmo2ForCausalLM", {"model_type": "olmo2", "head_dim": None, **SILU}),
    "granite": (
        "GraniteForCausalLM",
        {
            "model_type": "granite",
            "head_dim": None,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_multiplier": 0.125,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            **SILU,
        },
    ),
}


def make_config(kind: str, **changed: Any) -> dict[str, Any]:
    """config.json of a tiny model; `changed` are further keys, None takes one away."""
    architecture, own = CONFIGS[kind]
    if kind == "gemma3":
        text = make_config("gemma3_text", **changed)
        text.pop("architectures")
        return {
            "architectures": [architecture],
            "model_type": "gemma3",
            "text_config": text,
            "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
            "vocab_size": text["vocab_size"],
            "eos_token_id": 2,
        }
    merged = {"architectures": [architecture], **SHAPE, **own, **changed}
    return {key: value for key, value in merged.items() if value is not None}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a config asks for."""
    kind = config["model_type"]
    if kind == "gemma3":
        text = tensor_shapes(config["text_config"])
        return {f"language_model.{name}": shape for name, shape in text.items()} | {
            "vision_tower.vision_model.post_layernorm.weight": (32,),
            "multi_modal_projector.mm_soft_emb_norm.weight": (32,),
        }
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads
    sizes = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind in ("gemma2", "gemma3_text"):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if kind == "olmo2":
        norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        shapes |= {f"{layer}{norm}.weight": (hidden,) for norm in norms}
        shapes[f"{attention}o_proj.weight"] = (hidden, sizes["q"])
        shapes[f"{mlp}down_proj.weight"] = (hidden, inner)
        if kind == "phi3":
            shapes[f"{attention}qkv_proj.weight"] = (sum(sizes.values()), hidden)
            shapes[f"{mlp}gate_up_proj.weight"] = (2 * inner, hidden)
            continue
        shapes |= {f"{attention}{at}_proj.weight": (size, hidden) for at, size in sizes.items()}
        shapes |= {f"{mlp}{at}_proj.weight": (inner, hidden) for at in ("gate", "up")}
        if kind == "qwen2" or config.get("attention_bias"):
            shapes |= {f"{attention}{at}_proj.bias": (size,) for at, size in sizes.items()}
        if config.get("attention_bias"):
            shapes[f"{attention}o_proj.bias"] = (hidden,)
        if config.get("mlp_bias"):
            shapes |= {f"{mlp}{at}_proj.bias": (inner,) for at in ("gate", "up")}
            shapes[f"{mlp}down_proj.bias"] = (hidden,)
        if kind in ("qwen3", "gemma3_text"):
            shapes |= {f"{attention}{at}_norm.weight": (head,) for at in "qk"}
        if kind == "olmo2":
            shapes |= {f"{attention}{at}_norm.weight": (sizes[at],) for at in "qk"}
    return shapes


def values_of(name: str, shape: tuple[int, ...], gemma: bool) -> np.ndarray:
    """Values of a tensor in float32, each of which float16 and bfloat16 also hold exactly.

    Embedding and head lie evenly between about -3 and 3 over the square root of a row's length, the
    other weights within a third of it; norms are near 1. Gemma's norms are near 0, because they
    multiply by 1 + weight, and its embedding is smaller, so that its logits are: llama.cpp takes
    its GELU from a float16 table, whose error would count more than what is to be compared.
    """
    seed = sum(ord(letter) * (at + 1) for at, letter in enumerate(name)) % 65521
    count = int(np.prod(shape))
    steps = (np.arange(count, dtype=np.uint64) + np.uint64(seed * 7919)) * np.uint64(2654435761)
    steps ^= steps >> np.uint64(13)
    steps = (steps * np.uint64(2246822519)) >> np.uint64(11)
    numbers = (steps % np.uint64(255)).astype(np.float32) - 127  # eight bits: bfloat16 has them
    if len(shape) == 1:
        values = numbers / 1024
        if name.endswith("norm.weight") and not gemma:
            values = np.round(values * 64) / 64 + 1
    else:
        is_head = "embed" in name or "lm_head" in name
        spread = (0.4 if gemma else 3) if is_head else 1
        values = numbers * np.float32(2.0 ** -round(np.log2(127 * shape[1] ** 0.5 / spread)))
    return values.astype(np.float32).reshape(shape)


def write_model(
    folder: Path, kind: str, dtype: str = "F16", **changed: Any
) -> dict[str, tuple[int, ...]]:
    """Write config.json and model.safetensors (F32, F16 or BF16); returns names and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(kind, **changed)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs: list[bytes] = []
    offset = 0
    for name, shape in shapes.items():
        values = values_of(name, shape, gemma=kind.startswith("gemma"))
        if dtype == "BF16":
            data = (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
        else:
            data = values.astype("<f2" if dtype == "F16" else "<f4").tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        blobs.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(blobs)
    )
    return shapes
