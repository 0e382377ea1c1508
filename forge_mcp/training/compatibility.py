"""Where mlx-lm reads a model otherwise than the library it was trained in, and how that is mended.

`mlx_config`            what transformers 5 writes under other keys into config.json
`use_long_rope`         Phi's rotary embedding: short factors while the text is short
`fold_system_prompt`    chat templates that refuse a system message (Gemma 2)
"""

from __future__ import annotations

import math
from typing import Any

from forge_mcp import machine

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402

FOLD = (
    "{%- if messages and messages[0]['role'] == 'system' and messages | length > 1 -%}"
    "{%- set messages = [{'role': messages[1]['role'], 'content': messages[0]['content'] + "
    "'\\n\\n' + messages[1]['content']}] + messages[2:] -%}{%- endif -%}"
)


def mlx_config(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of config.json that mlx-lm has to be told in its own words; {} where there are none.

    Since version 5 transformers keeps the rotary embedding's numbers in `rope_parameters`, for
    Gemma 3 once for each kind of layer. Most of mlx-lm's models overlook it and would compute with
    their own default instead.
    """
    changed: dict[str, Any] = {}
    if isinstance(config.get("text_config"), dict):
        text = mlx_config(config["text_config"])
        if text:
            changed["text_config"] = config["text_config"] | text
    if "_sliding_window_pattern" in config and "sliding_window_pattern" not in config:
        changed["sliding_window_pattern"] = config["_sliding_window_pattern"]
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return changed
    if "full_attention" in rope:
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            changed["rope_local_base_freq"] = local["rope_theta"]
        rope = rope["full_attention"]
    told = {key: rope[key] for key in ROPE_KEYS if key in rope} | changed
    if rope.get("rope_type", "default") != "default":
        told["rope_scaling"] = rope | {"type": rope["rope_type"]}
    return {key: value for key, value in told.items() if config.get(key) != value}


ROPE_KEYS = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


class LongRope(nn.Module):  # type: ignore[misc]
    """LongRoPE (arXiv 2402.13753, as in Phi-3's own code): other factors for long texts.

    The rotation of pair i at position p has the angle p / (factor_i * theta^(2i / dims)), and
    queries and keys are scaled by sqrt(1 + ln(longest / original) / ln(original)). The factors are
    the short ones for texts of up to `original` tokens and the long ones beyond; mlx-lm always
    takes the long ones.

    Args:
        dims: of a head that are rotated.
        theta: base of the angles.
        original: tokens of the context that the model was first trained with.
        longest: tokens of the context that it was extended to.
        short, long: dims / 2 factors each.
    """

    def __init__(
        self,
        dims: int,
        theta: float,
        original: int,
        longest: int,
        short: list[float],
        long: list[float],
    ) -> None:
        super().__init__()
        self.dims = dims
        self.original = original
        plain = theta ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
        self._short = mx.array(short, dtype=mx.float32) * plain
        self._long = mx.array(long, dtype=mx.float32) * plain
        growth = longest / original
        self.scale = math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0

    def __call__(self, x: Any, offset: Any = 0) -> Any:
        """Rotate (…, tokens, head size), whose first token stands at `offset` (number or array)."""
        first = offset.max().item() if isinstance(offset, mx.array) else offset
        return mx.fast.rope(
            x.at[..., : self.dims].multiply(self.scale),
            self.dims,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self._long if first + x.shape[-2] > self.original else self._short,
        )


def use_long_rope(model: Any) -> None:
    """Give a phi3 model with LongRoPE both sets of factors, in place; others stay as they are."""
    args = model.args
    scaling = getattr(args, "rope_scaling", None) or {}
    if model.model_type != "phi3" or scaling.get("type") not in ("longrope", "su"):
        return
    size = args.hidden_size // args.num_attention_heads
    for layer in model.model.layers:
        layer.self_attn.rope = LongRope(
            int(size * args.partial_rotary_factor),
            args.rope_theta,
            args.original_max_position_embeddings,
            args.max_position_embeddings,
            scaling["short_factor"],
            scaling["long_factor"],
        )


def fold_system_prompt(tokenizer: Any) -> bool:
    """Where the chat template refuses a system message, put it in front of the first question.

    That is what Gemma 3's template does by itself and Gemma 2's does not. The template of this
    tokenizer is changed in memory, not the one on the disk.

    Returns:
        Whether it was necessary.
    """
    from jinja2 import TemplateError

    if not tokenizer.has_chat_template:
        return False
    question = [{"role": "user", "content": "b"}]
    system = [{"role": "system", "content": "a"}]
    try:
        tokenizer.apply_chat_template(system + question, tokenize=False)
    except TemplateError:
        tokenizer.chat_template = FOLD + tokenizer.chat_template
        return True
    return False
