"""Tiny random base models in Hugging Face format, and chat rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forge_mcp import machine
from forge_mcp.schemas.prompt import render_answer
from forge_mcp.schemas.raft_examples import ChatRow, Message
from forge_mcp.settings import TrainingSettings, defaults
from forge_mcp.workspace import Artifact, Workspace

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Gemma 2's refuses what it does not know.
WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + TEMPLATE
)
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 259,
    "max_position_embeddings": 512,
}


# Every architecture of assets/models.yaml, and what is peculiar to each: a config by its name. The
# name is the model_type but for "llama3" (Llama with its scaled rotary embedding) and "phi4"
# (tied, and only a part of each head is rotated).
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {
        "tie_word_embeddings": False,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 16,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 1000.0,
        "query_pre_attn_scalar": 16,
    },
    "gemma3": {},  # the model above inside a model that can see; see make_base
    "phi3": {
        "tie_word_embeddings": False,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0 + number / 4 for number in range(8)],
        },
    },
    "phi4": {
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 6,
            "long_factor": [1.0 + number / 4 for number in range(6)],
        },
    },
}


def make_config(kind: str, *, tied: bool = True) -> dict[str, Any]:
    """config.json of a tiny model of a kind; `tied` counts where the kind leaves it open."""
    config = {
        "model_type": kind,
        **SHAPE,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        **CONFIGS[kind],
    }
    if kind != "gemma3":
        return config
    return {
        "model_type": "gemma3",
        "text_config": make_config("gemma3_text"),
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
        "vocab_size": SHAPE["vocab_size"],
        "eos_token_id": 2,
    }


def make_base(folder: Path, kind: str = "llama", *, tied: bool = True, seed: int = 1) -> Path:
    """Write a tiny random base of one of CONFIGS: float16 weights under Hugging Face's names.

    gemma3's also hold what its seeing part would; mlx-lm leaves that out.
    """
    mx = machine.mlx()
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    folder.mkdir(parents=True)
    config = make_config(kind, tied=tied)
    (folder / "config.json").write_text(json.dumps(config))
    model_class, args_class = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config))
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if name.endswith("bias"):
            value = 0.1 * mx.random.normal(value.shape)
        elif kind.startswith("gemma") and value.ndim == 1:
            value = 0.1 * mx.random.normal(value.shape)  # Gemma's norms multiply by 1 + weight
        if kind.startswith("gemma") and "lm_head" in name:
            continue  # Gemma's head is its embedding
        weights[name] = value.astype(mx.float16)
    if kind == "gemma3":
        weights["vision_tower.vision_model.post_layernorm.weight"] = mx.ones((32,), mx.float16)
        weights["multi_modal_projector.mm_soft_emb_norm.weight"] = mx.ones((32,), mx.float16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    write_tokenizer(folder, WITHOUT_SYSTEM if kind == "gemma2" else TEMPLATE)
    return folder


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """One token a byte, and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def chat_rows(count: int) -> list[ChatRow]:
    """Questions with one pattern, so that a few steps lower the loss."""
    return [
        ChatRow(
            messages=[
                Message(role="system", content="Answer."),
                Message(role="user", content=f"f{number}?" + "x" * (number % 7)),
                Message(role="assistant", content=render_answer("", f"f{number} gives {number}.")),
            ]
        )
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[ChatRow]) -> Path:
    """A train/valid/test.jsonl."""
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def make_dataset(
    workspace: Workspace, project: str, *, validated: bool | None = True, train: int = 12
) -> Artifact:
    """A dataset artifact; `validated` None leaves validation.json out."""
    with workspace.stage("dataset", project) as staged:
        rows = chat_rows(train + 8)
        write_rows(staged.path / "train.jsonl", rows[8:])
        write_rows(staged.path / "valid.jsonl", rows[:4])
        write_rows(staged.path / "test.jsonl", rows[4:8])
        if validated is not None:
            (staged.path / "validation.json").write_text(json.dumps({"passed": validated}))
        digest = f"{train:02x}{str(validated)[0].lower().replace('t', 'a').replace('n', 'b')}" * 22
        return staged.commit(
            id=workspace.new_id("dataset", project, digest[:64]), inputs_hash=digest[:64]
        )


def settings(**changed: Any) -> TrainingSettings:
    """The defaults, made small."""
    small = {"rank": 4, "lora_alpha": 4.0, "batch_size": 3, "eval_steps": 2, "warmup_steps": 1}
    return TrainingSettings.model_validate(defaults()["training"] | small | changed)
