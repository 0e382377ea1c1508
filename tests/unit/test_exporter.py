"""Tiny random models with a real tokenizer, for the tests of serving."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tiny_tokenizers

from forge_mcp import workspace
from forge_mcp.machine import mlx

END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


# -- tiny models -----------------------------------------------------------------------------------


def write_tokenizer(folder: Path, name: str = "qwen2") -> Any:
    """A tokenizer of tiny_tokenizers, and that in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(tiny_tokenizers.write_tokenizer(folder, name)))


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


# -- fuse ------------------------------------------------------------------------------------------


class PlainRun:
    """A run without adapters: its fused weights are the model's own."""

    def __init__(self, folder: Path) -> None:
        self.base_path = folder
        self.model, self.tokenizer = load(folder)

    def fused_weights(self) -> Iterator[tuple[str, Any]]:
        from mlx.utils import tree_flatten

        yield from tree_flatten(self.model.parameters())
