"""Encoders for the tests: tiny real ones in folders, and one that only counts."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Kind, Progress, Vectors

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"
SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
}


def write_encoder(folder: Path, family: str = "bert", **config: Any) -> Path:
    """The encoder of the references with a tokenizer of letters; `config` changes config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCES / family / name, folder / name)
    if config:
        write(folder, "config.json", read(folder, "config.json") | config)
    tokenizer(family).save(str(folder / "tokenizer.json"))
    return folder


def tokenizer(family: str = "bert") -> Tokenizer:
    special = SPECIAL[family]
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = {token: n for n, token in enumerate([*special, *letters])}
    vocabulary |= {f"##{one}": len(vocabulary) + n for n, one in enumerate(letters)}
    unknown, first, last = (
        (special[1], special[2], special[3])
        if family == "bert"
        else (special[3], special[0], special[2])
    )
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )
    return made


def read(folder: Path, name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((folder / name).read_text())
    return parsed


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def write_modules(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    """modules.json as sentence-transformers writes it, with modules of further kinds."""
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", "1_Pooling", *(f"{2 + n}_{kind}" for n, kind in enumerate(more))]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder, "modules.json", modules)
    write(folder, "1_Pooling/config.json", pooling)


class CountingEncoder:
    """Vectors from the hashes of texts; remembers what it was asked, and can fail at a text."""

    def __init__(self, name: str = "counting", fail_at: int | None = None) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.texts: list[str] = []
        self.fail_at = fail_at

    def encode(
        self, texts: Sequence[str], kind: Kind = "document", progress: Progress | None = None
    ) -> Vectors:
        rows = []
        for text in texts:
            if self.fail_at is not None and len(self.texts) == self.fail_at:
                raise KeyboardInterrupt
            self.texts.append(text)
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
            row = np.random.default_rng(seed).normal(size=8)
            rows.append(row / np.linalg.norm(row))
            if progress is not None:
                progress(len(rows), len(texts))
        return np.array(rows, np.float32)
