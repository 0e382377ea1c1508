"""The tiny models of scripts/references/gguf_models.py with a tokenizer; their logits in MLX."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training_models import write_tokenizer

from forge_mcp.machine import mlx

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"
_SCRIPT = Path(__file__).parents[2] / "scripts" / "references" / "gguf_models.py"


def _load_script() -> Any:
    spec = importlib.util.spec_from_file_location("gguf_models", _SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gguf_models"] = module
    spec.loader.exec_module(module)
    return module


models = _load_script()
MERGES = [("Ġ", "t"), ("i", "n"), ("e", "r"), ("Ġ", "a"), ("o", "n")]


def write_folder(folder: Path, kind: str = "llama", dtype: str = "F16", **changed: Any) -> Path:
    """A model folder: weights, config.json, and a byte-level tokenizer of as many tokens."""
    models.write_model(folder, kind, dtype, **changed)
    write_tokenizer(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for first, second in MERGES:
        vocabulary[first + second] = len(vocabulary)
    tokenizer["model"]["merges"] = MERGES
    path.write_text(json.dumps(tokenizer))
    assert len(vocabulary) == models.SHAPE["vocab_size"]
    return folder


def some_ids(count: int, seed: int = 0) -> list[int]:
    """Random tokens."""
    drawn = np.random.default_rng(seed).integers(3, models.SHAPE["vocab_size"], count)
    return [int(token) for token in drawn]


def mlx_logits(folder: Path, ids: list[int]) -> NDArray[np.float32]:
    """(tokens, vocabulary) of the folder's model in float32, as a run would load it."""
    mx = mlx()
    from mlx_lm.utils import load_model

    from forge_mcp.training.compatibility import mlx_config, use_long_rope

    config = json.loads((folder / "config.json").read_text())
    model, _ = load_model(folder, model_config=mlx_config(config))
    use_long_rope(model)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))
