"""What llama.cpp's own `llama_model_quantize` makes of f32 files of every architecture.

    .venv-converter/bin/python scripts/references/gguf_quantization.py TARGET

The files are those that llama.cpp's converter writes (`gguf_conversion.py`); the quantiser is that
of llama-cpp-python, built from its sources. Writes TARGET/gguf_quantized.json.gz: by size, kind and
quantisation, the type of every tensor and the first 16 digits of the SHA-256 of its bytes. Of a
model of 80 layers, which llama.cpp takes for one of the 70B models, only the types.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import logging
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
from gguf_conversion import bypass_deepseek, convert
from gguf_models import CONFIGS, DEEP, WIDE, write_model

FILE_TYPES = {
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}


def quantize(path: Path, target: Path, file_type: str) -> None:
    """Run llama.cpp's quantiser."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(gguf.LlamaFileType[file_type])
    parameters.nthread = 2
    status = llama_cpp.llama_model_quantize(
        str(path).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status} for {path}")


def quantized(kind: str, digests: bool, **changed: Any) -> dict[str, dict[str, list[str]]]:
    """By quantisation and tensor, its type and the beginning of its digest."""
    found: dict[str, dict[str, list[str]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, kind, "F32", **changed)
        convert(folder, kind, "ALL_F32")
        for quantization, file_type in FILE_TYPES.items():
            target = folder / f"{quantization}.gguf"
            quantize(folder / "model.gguf", target, file_type)
            found[quantization] = {
                tensor.name: [tensor.tensor_type.name]
                + [hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16]] * digests
                for tensor in gguf.GGUFReader(target).tensors
            }
    return found


def main(target: str) -> None:
    """Write gguf_quantized.json.gz into `target`."""
    logging.disable(logging.WARNING)
    bypass_deepseek()
    written = {
        "versions": {"llama-cpp-python": version("llama-cpp-python")},
        "machine": platform.machine(),
        "narrow": {kind: quantized(kind, digests=True) for kind in CONFIGS},
        "wide": {kind: quantized(kind, digests=True, **WIDE) for kind in CONFIGS},
        "deep": {kind: quantized(kind, digests=False, **changed) for kind, changed in DEEP.items()},
    }
    text = json.dumps(written, separators=(",", ":"), sort_keys=True)
    path = Path(target) / "gguf_quantized.json.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main(sys.argv[1])
