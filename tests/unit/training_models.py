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


def make_base(
    folder: Path, architecture: str = "llama", *, tied: bool = True, seed: int = 1
) -> Path:
    """Write a tiny base: llama, qwen2 (with biases) or qwen3; float16 weights."""
    mx = machine.mlx()
    from mlx.utils import tree_flatten
    from mlx_lm.utils import _get_classes

    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        **SHAPE,
        "model_type": architecture,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    model_class, args_class = _get_classes(config)
    mx.random.seed(seed)
    model = model_class(args_class.from_dict(config))
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        if name.endswith("bias"):
            value = 0.1 * mx.random.normal(value.shape)
        weights[name] = value.astype(mx.float16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    write_tokenizer(folder)
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
