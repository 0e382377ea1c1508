"""Rotary position embeddings of config.json in the words of GGUF.

config.json says them in two ways: `rope_theta` and `rope_scaling` beside each other, or, since
transformers 5, both together in `rope_parameters`, for Gemma 3 once for each kind of layer. What a
kind of scaling means is in transformers' modeling_rope_utils.py; what llama.cpp makes of the keys,
in its llama-context.cpp and the loaders of its models.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

YARN_BETAS = (32.0, 1.0)  # fast, slow: the defaults of both, and all that most of llama.cpp's read


def read_rope(config: dict[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """The rotary embedding of the layers with full attention, in transformers 5's words.

    Always there: rope_type ("default" where none is said; "longrope" also for its old name "su")
    and rope_theta. partial_rotary_factor and original_max_position_embeddings where they are said
    anywhere.
    """
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(said.get("full_attention") or {} if "full_attention" in said else said)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_type"] = "longrope" if kind == "su" else kind
    rope.setdefault("rope_theta", config.get("rope_theta") or default_theta)
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if rope.get(key) is None and config.get(key) is not None:
            rope[key] = config[key]
    return rope


def local_theta(config: dict[str, Any]) -> float:
    """Base of the angles in Gemma 3's layers that attend in windows."""
    said = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    return float(said.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)


def cannot_be_said(rope: dict[str, Any], known: frozenset[str], reads_yarn: bool) -> str | None:
    """Why llama.cpp would not rotate as the model does, or None.

    Args:
        rope: from `read_rope`.
        known: kinds that this architecture can express.
        reads_yarn: llama.cpp's code for it reads YaRN's betas and `mscale_all_dim`.
    """
    kind = rope["rope_type"]
    if kind not in known:
        return f"its rope type is '{kind}'"
    wanted = {
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings"),
        "llama3": ("factor",),
        "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
    }.get(kind, ())
    missing = [key for key in wanted if not rope.get(key)]
    if missing:
        return f"its rope type '{kind}' has no {missing[0]}"
    if kind != "yarn":
        return None
    betas = (rope.get("beta_fast") or YARN_BETAS[0], rope.get("beta_slow") or YARN_BETAS[1])
    if not reads_yarn and betas != YARN_BETAS:
        return f"its YaRN has the betas {betas[0]:g} and {betas[1]:g}"
    if rope.get("mscale", 1.0) != 1.0 or (not reads_yarn and rope.get("mscale_all_dim")):
        return "its YaRN scales attention with mscale"
    usual = 0.1 * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0
    if not math.isclose(rope.get("attention_factor") or usual, usual, rel_tol=1e-6):
        return f"its YaRN has an attention_factor of {rope['attention_factor']}"
    if rope.get("truncate") is False:
        return "its YaRN does not round its borders"
    return None


def llama3_factors(rope: dict[str, Any], head: int) -> NDArray[np.float32]:
    """Llama 3.1's divisors of the frequencies, (head / 2,).

    Formula: transformers' `_compute_llama3_parameters`: wavelengths shorter than
    original / high_freq_factor stay, longer than original / low_freq_factor are divided by
    `factor`, and between them the two are blended. In float32, as llama.cpp's converter does it.
    """
    factor = rope["factor"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    original = rope.get("original_max_position_embeddings", 8192)
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequencies = np.float32(1.0) / np.power(np.float32(rope["rope_theta"]), exponents)
    wavelengths = np.float32(2 * math.pi) / frequencies
    blend = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = 1 / ((1 - blend) / np.float32(factor) + blend)
    divisors = np.where(
        wavelengths < original / high,
        np.float32(1.0),
        np.where(wavelengths > original / low, np.float32(factor), between),
    )
    return divisors.astype(np.float32)


def long_rope_scale(longest: int, original: int) -> float:
    """LongRoPE's scale of queries and keys (arXiv 2402.13753, section 4)."""
    growth = longest / original
    return math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0
