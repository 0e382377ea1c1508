"""A tokenizer in transformers beside its vocabulary in llama.cpp, and edits of its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_tokenizers import vocabulary_size, write_gguf

from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.exporting.tokenizer import Vocabulary, read_vocabulary

PADDING = 3  # rows of the embedding that no token uses


class Pair:
    """A tokenizer in transformers, and its vocabulary in llama.cpp."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.theirs = AutoTokenizer.from_pretrained(str(folder))
        self.vocabulary = read(folder)
        self.added = tuple(token.content for token in self.theirs.added_tokens_decoder.values())
        self.file = GgufModel(write_gguf(folder / "v.gguf", self.vocabulary), context=32, threads=1)

    def check(self, text: str) -> bool:
        """Equal ids, with and without what encoding adds; False where they need not be equal."""
        given = self.vocabulary.comparable(text)
        if given is None:
            return False
        text = given
        bare = self.theirs.encode(text, add_special_tokens=False)
        assert self.file.tokenize(text) == bare
        assert self.file.tokenize(text, add_special=True) == self.theirs.encode(text)
        return True


def read(folder: Path, padding: int = PADDING) -> Vocabulary:
    return read_vocabulary(folder, vocabulary_size(folder) + padding)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    described = json.loads(path.read_text(encoding="utf-8"))
    change(described)
    path.write_text(json.dumps(described), encoding="utf-8")


def add_token(folder: Path, content: str, **flags: bool) -> None:
    """One more added token, with the next id."""
    defaults = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    token = {"id": vocabulary_size(folder), "content": content, "special": False}

    def change(described: dict[str, Any]) -> None:
        described["added_tokens"].append(token | defaults | flags)

    edit(folder / "tokenizer.json", change)
