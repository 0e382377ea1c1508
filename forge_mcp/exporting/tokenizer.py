"""A Hugging Face tokenizer in the words of GGUF.

Only byte-level BPE is read: it is what Llama 3, Qwen, Mistral (Tekken), SmolLM and forge-nano
use. llama.cpp knows its ways of cutting text by name (`tokenizer.ggml.pre`), so the expression in
tokenizer.json decides the name; an unknown one is refused, because a wrong one would give a model
that reads other tokens than it was trained on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.errors import UnsupportedModel

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN_LETTERS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)

# Split expression of tokenizer.json → llama.cpp's name (llama-vocab.cpp, llama_vocab_pre_type).
SPLITS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}": "qwen2",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}": "llama-bpe",
    rf"{_TEKKEN_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
ADVICE = "Choose a base with a Llama 3, Qwen2/Qwen3, Tekken, GPT-2 or SmolLM tokenizer."


@dataclass(frozen=True)
class Vocabulary:
    """All that GGUF's tokenizer keys need.

    `tokens` and `kinds` have one entry per row of the embedding; `kinds` holds "normal",
    "control", "user_defined" or "unused" (rows that no token uses). `end_ids` are all ids that
    end a turn, the tokenizer's own EOS first.
    """

    tokens: list[str]
    kinds: list[str]
    merges: list[str]
    pre: str
    bos_id: int | None
    end_ids: list[int]
    pad_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read tokenizer.json and the files beside it.

    Args:
        folder: a model folder in Hugging Face format.
        vocab_size: rows of the embedding, at least as many as the tokenizer has entries.

    Raises:
        UnsupportedModel: something that GGUF or llama.cpp would read otherwise; it is named.
    """
    tokenizer = _read(folder / "tokenizer.json")
    if tokenizer is None:
        raise _refuse(folder, "it has no tokenizer.json (a SentencePiece model alone is not read)")
    config = _read(folder / "tokenizer_config.json") or {}
    model = tokenizer["model"]
    ids: dict[str, int] = dict(model["vocab"]) if isinstance(model.get("vocab"), dict) else {}
    pre = pre_tokenizer(tokenizer, folder)

    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    kinds = ["unused"] * vocab_size
    added = tokenizer.get("added_tokens") or []
    highest = max([*ids.values(), *(token["id"] for token in added)], default=-1)
    if highest >= vocab_size:
        raise _refuse(folder, f"token id {highest} lies beyond its {vocab_size} embedding rows")
    for token, index in ids.items():
        tokens[index], kinds[index] = token, "normal"
    for token in added:
        ids[token["content"]] = token["id"]
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = "control" if token["special"] else "user_defined"

    named = {name: _special(config, f"{name}_token", ids) for name in ("bos", "eos", "pad", "unk")}
    ends = _end_ids(folder, named["eos"], vocab_size)
    if not ends:
        raise _refuse(folder, "it names no end-of-text token, so no answer would ever stop")
    add_bos, add_eos = _added_around(folder, named["bos"], ends[0])
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=[m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []],
        pre=pre,
        bos_id=named["bos"],
        end_ids=ends,
        pad_id=named["pad"],
        unk_id=named["unk"],
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(folder, config),
    )


def pre_tokenizer(tokenizer: dict[str, Any], folder: Path) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before BPE.

    Raises:
        UnsupportedModel: no byte-level BPE, or an expression that is not known here.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = "SentencePiece-style BPE" if model.get("byte_fallback") else model.get("type")
        raise _refuse(folder, f"its tokenizer is {kind}, no byte-level BPE")
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise _refuse(folder, f"its tokenizer normalises text ({normalizer.get('type')})")
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _refuse(folder, f"its pre-tokenizer is {_describe(steps)}")
    *before, byte_level = steps
    if byte_level.get("use_regex", True):
        if not before:
            return "gpt-2"
        if len(before) == 1 and before[0] == {"type": "Digits", "individual_digits": True}:
            return "smollm"
    elif len(before) == 1 and before[0].get("type") == "Split":
        split = before[0]
        name = SPLITS.get(split.get("pattern", {}).get("Regex", ""))
        if name and split.get("behavior") == "Isolated" and not split.get("invert"):
            return name
    raise _refuse(folder, f"its pre-tokenizer is unknown: {_describe(steps)}")


def _added_around(folder: Path, bos: int | None, eos: int) -> tuple[bool, bool]:
    """Whether encoding adds BOS in front and EOS behind, by encoding something."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for add_bos in (False, True):
        for add_eos in (False, True):
            around = [bos] * add_bos + bare + [eos] * add_eos
            if full == around:
                return add_bos, add_eos
    raise _refuse(folder, f"its tokenizer adds other tokens than BOS and EOS: {full} for {bare}")


def _special(config: dict[str, Any], key: str, ids: dict[str, int]) -> int | None:
    token = config.get(key)
    text = token.get("content") if isinstance(token, dict) else token
    return ids.get(text) if isinstance(text, str) else None


def _end_ids(folder: Path, eos: int | None, vocab_size: int) -> list[int]:
    """EOS ids of the tokenizer, config.json and generation_config.json, without repeats."""
    found: list[int] = [] if eos is None else [eos]
    for name in ("config.json", "generation_config.json"):
        value = (_read(folder / name) or {}).get("eos_token_id")
        found += value if isinstance(value, list) else [] if value is None else [value]
    wrong = [index for index in found if not 0 <= index < vocab_size]
    if wrong:
        raise _refuse(folder, f"its eos_token_id {wrong[0]} is no token")
    return list(dict.fromkeys(found))


def _chat_template(folder: Path, config: dict[str, Any]) -> str:
    """The default template, from where transformers 5 or 4 writes it."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {row["name"]: row["template"] for row in template}.get("default")
    if not isinstance(template, str):
        raise _refuse(folder, "it has no chat template", "Choose an instruct or chat variant.")
    return template


def _describe(steps: list[dict[str, Any]]) -> str:
    return json.dumps(steps, ensure_ascii=False)[:300]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UnsupportedModel(
            f"{path} is no JSON.", cause=str(error), next_step="Get the model's files again."
        ) from error
    return loaded


def _refuse(folder: Path, cause: str, next_step: str = ADVICE) -> UnsupportedModel:
    return UnsupportedModel(
        f"The tokenizer of {folder.name} cannot be written as GGUF.",
        cause=cause,
        next_step=next_step,
    )
