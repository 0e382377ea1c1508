r"""How byte-level tokenizers cut text, and llama.cpp's names for it (`tokenizer.ggml.pre`).

A tokenizer.json says how text is cut before BPE by a list of steps; llama.cpp has a compiled
function a family and takes its name from the file. Each entry of `PRE_TOKENIZERS` is a list of
steps as they stand in the tokenizer.json of published models, with the name under which llama.cpp
does the same (llama-vocab.cpp, `llama_vocab::impl::load`). That it is the same is held by property
tests against llama.cpp itself. A list that is not here is refused: a wrong name would give a model
that reads other tokens than it was trained on.

`cuts_alike` says where llama.cpp's function is known to differ from the expression.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from dataclasses import dataclass
from typing import Any

Step = tuple[str, str | bool]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LOWER_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"

GPT2: Step = ("bytes", True)  # ByteLevel with its own expression
BYTES: Step = ("bytes", False)


def _split(expression: str) -> Step:
    return ("split", expression)


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp calls a list of steps.

    `ignore_merges`: a piece that is a token by itself is taken whole, whatever the merges say.
    """

    name: str
    steps: tuple[Step, ...]
    ignore_merges: bool = False


PRE_TOKENIZERS = (
    # GPT-2, forge-nano, OLMo, MPT, Phi-2
    PreTokenizer("gpt-2", (GPT2,)),
    # SmolLM, StarCoder 2, Granite, Command R, Refact: one regex in llama.cpp
    PreTokenizer("smollm", (("digits", True), GPT2)),
    # Qwen 2, 2.5 and 3, StableLM 2
    PreTokenizer(
        "qwen2",
        (_split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SYMBOLS}|{_BLANKS}"), BYTES),
    ),
    # Qwen 3.5
    PreTokenizer(
        "qwen35",
        (
            _split(
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
            ),
            BYTES,
        ),
    ),
    # Llama 3, SmolLM 3
    PreTokenizer(
        "llama-bpe",
        (_split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BLANKS}"), BYTES),
        ignore_merges=True,
    ),
    # the same cuts, but merges count: DBRX, OLMo 2
    PreTokenizer(
        "dbrx",
        (_split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BLANKS}"), BYTES),
    ),
    # Mistral Nemo and later, Ministral
    PreTokenizer(
        "tekken",
        (
            _split(
                rf"{_LOWER_WORD}|{_UPPER_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
            ),
            BYTES,
        ),
        ignore_merges=True,
    ),
    # Phi-4-mini, Llama 4
    PreTokenizer(
        "gpt-4o",
        (
            _split(
                rf"{_LOWER_WORD}{_CONTRACTIONS}?|{_UPPER_WORD}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
                rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
            ),
            BYTES,
        ),
    ),
    # DeepSeek V3, Hunyuan
    PreTokenizer(
        "deepseek-v3",
        (
            _split(r"\p{N}{1,3}"),
            _split("[一-龥぀-ゟ゠-ヿ]+"),
            _split(
                rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
                rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
            ),
            BYTES,
        ),
    ),
    # Seed-Coder
    PreTokenizer(
        "seed-coder",
        (
            _split(
                rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}"
            ),
            BYTES,
        ),
    ),
    # MiniCPM 5
    PreTokenizer(
        "minicpm5",
        (
            _split(r"\p{N}{1,3}"),
            _split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}+|{_SYMBOLS}|{_BLANKS}"),
            BYTES,
        ),
        ignore_merges=True,
    ),
)

# llama.cpp writes the cases of letters in these two as a-z and A-Z.
_CASED = {"tekken", "gpt-4o"}


class UnknownPreTokenizer(ValueError):
    """A list of steps that llama.cpp has no name for; says which."""


def find_pre_tokenizer(described: dict[str, Any] | None) -> list[PreTokenizer]:
    """The names that a tokenizer.json's "pre_tokenizer" can have in llama.cpp.

    Those that are found cut text in the same way and differ in `ignore_merges`.

    Raises:
        UnknownPreTokenizer: none is known.
    """
    steps = _steps(described)
    found = [entry for entry in PRE_TOKENIZERS if entry.steps == steps]
    if not found:
        raise UnknownPreTokenizer(json.dumps(described, ensure_ascii=False)[:300])
    return found


def _steps(described: dict[str, Any] | None) -> tuple[Step, ...] | None:
    """The steps in the words of this table; None where one has no word."""
    if described is None:
        return ()
    if described["type"] == "Sequence":
        made = [_steps(part) for part in described["pretokenizers"]]
        return None if None in made else tuple(step for part in made if part for step in part)
    match described:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(expression)}:
            return (("bytes", expression),)
        case {"type": "Digits", "individual_digits": bool(single)}:
            return (("digits", single),)
        case {"type": "Split", "pattern": {"Regex": str(text)}, "behavior": "Isolated"} if (
            not described["invert"]
        ):
            return (("split", text),)
        # Keeping only what matches is the same where every character is matched by some branch.
        case {"type": "Split", "pattern": {"Regex": str(text)}, "behavior": "Removed"} if described[
            "invert"
        ] and text.endswith(_BLANKS):
            return (("split", text),)
    return None


def cuts_alike(name: str, text: str) -> bool:
    """Whether llama.cpp is known to cut a text as the tokenizer with this name does.

    In "tekken" and "gpt-4o", the case of letters decides where words end. llama.cpp sees it for
    ASCII only, and takes marks that combine with a letter for no part of a word. So it cuts
    "élanVital", "ÉCOLE" and decomposed accents otherwise; a text with a mark, or with a word of
    more than ASCII that has a capital inside, is not known to be cut alike.
    """
    if name not in _CASED:
        return True
    kinds = [(unicodedata.category(letter), letter.isascii()) for letter in text]
    if any(kind.startswith("M") for kind, _ in kinds):
        return False
    for letters, group in itertools.groupby(kinds, lambda one: one[0].startswith("L")):
        word = list(group)
        if (
            letters
            and any(kind in ("Lu", "Lt") for kind, _ in word[1:])
            and any(kind in ("Lu", "Lt", "Ll") and not ascii for kind, ascii in word)
        ):
            return False
    return True
