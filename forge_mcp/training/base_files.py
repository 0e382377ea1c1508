"""The files of a base: whether they are all there, whole, and ones that can be trained on.

Everything is told from names and headers, before gigabytes are read or an hour is trained.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from forge_mcp.errors import UnsupportedModel

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
LFS_POINTER = b"version https://git-lfs"
# `quant_method` of config.json that mlx-lm reads (mlx_lm/utils.py, load_model).
READABLE_QUANTISATION = (
    "awq",
    "bitnet",
    "compressed-tensors",
    "fp8",
    "gptq",
    "modelopt",
    "mxfp4",
    "mxfp8",
)
# What a folder without model*.safetensors may hold instead, and what to do about it.
OTHER_WEIGHTS = (
    (
        "adapter_model.*",
        "it holds an adapter, not a model",
        "Use the base that the adapter was trained on (base_model_name_or_path in "
        "adapter_config.json).",
    ),
    (
        "*.gguf",
        "it holds GGUF files, which are for llama.cpp and Ollama and cannot be trained",
        "Use the repository that the GGUF was made from: its weights are safetensors.",
    ),
    (
        "pytorch_model*.bin",
        "its weights are PyTorch pickles (.bin), which may run code when they are opened",
        "Use a revision or a copy of the model with safetensors, or convert it: load it in "
        "transformers and call save_pretrained.",
    ),
    (
        "*.safetensors",
        "its safetensors files are not named model*.safetensors",
        "Use a repository in Hugging Face format (model.safetensors, or its numbered parts).",
    ),
    (
        "*.pth",
        "its weights are in their maker's own format (.pth)",
        "Use the repository of this model in Hugging Face format (often named …-hf).",
    ),
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that mlx-lm reads, sorted."""
    return sorted(folder.glob("model*.safetensors"))


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor name to dtype, shape and data_offsets.

    The file begins with eight bytes of length (little-endian) and the header itself; offsets
    count from its end, and nothing follows the last tensor.

    Raises:
        UnsupportedModel: it is no such file, or shorter or longer than its header says.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if LFS_POINTER.startswith(start) and start:
                raise _damaged(
                    path,
                    "it is only the pointer of a file in Git LFS",
                    "Run 'git lfs pull' in the folder, or fetch the model with 'forge-mcp pull'.",
                )
            (length,) = struct.unpack("<Q", start)
            if length > min(size, LARGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [fields["data_offsets"][1] for fields in header.values()]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error), FETCH_AGAIN) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UnsupportedModel(
            f"{path} is {'truncated' if size < expected else 'damaged'}.",
            cause=f"its header speaks of {expected:,} bytes and it has {size:,}",
            next_step=FETCH_AGAIN,
        )
    return dict(header)


FETCH_AGAIN = "Fetch it again: 'forge-mcp pull' goes on where a download has stopped."


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The parsed config.json of base `name`.

    Raises:
        UnsupportedModel: it is no JSON object, or does not name the model's type.
    """
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is no JSON object")
    except ValueError as error:
        raise UnsupportedModel(
            f"The base model '{name}' has a damaged {CONFIG}.",
            cause=str(error),
            next_step=FETCH_AGAIN,
        ) from error
    if not config.get("model_type"):
        raise UnsupportedModel(
            f"The {CONFIG} of the base model '{name}' has no model_type.",
            cause="it says which architecture the weights belong to",
            next_step="Use a repository in Hugging Face format, e.g. the one of an instruction-"
            "tuned model; a params.json beside it is its maker's own format.",
        )
    return config


def check_files(folder: Path, name: str) -> None:
    """Check that a folder holds a whole base, called `name` in what is raised.

    Raises:
        UnsupportedModel: a file that is missing, truncated or of another kind; it is named.
    """
    weights = weight_files(folder)
    if not weights:
        for pattern, cause, next_step in OTHER_WEIGHTS:
            if found := sorted(folder.glob(pattern)):
                raise UnsupportedModel(
                    f"The base model '{name}' has no weights that can be trained.",
                    cause=f"{cause}: {found[0].name} in {folder}",
                    next_step=next_step,
                )
    missing = [CONFIG] if not (folder / CONFIG).is_file() else []
    if not weights:
        missing.append("model*.safetensors")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        missing.append(" or ".join(TOKENIZER_FILES))
    if missing:
        raise _incomplete(name, folder, missing)
    absent = [part for part in _parts(folder, name) if not (folder / part).is_file()]
    if absent:
        raise _incomplete(name, folder, absent)
    _check_quantisation(read_config(folder, name), name)
    for path in weights:
        safetensors_header(path)


def _parts(folder: Path, name: str) -> list[str]:
    """The files that the index of a model in several parts names."""
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedModel(
            f"The base model '{name}' has a damaged {INDEX}.",
            cause=f"{type(error).__name__}: {error}",
            next_step=FETCH_AGAIN,
        ) from error


def _check_quantisation(config: dict[str, Any], name: str) -> None:
    method = (config.get("quantization_config") or {}).get("quant_method")
    if "quantization" not in config and method and method not in READABLE_QUANTISATION:
        raise UnsupportedModel(
            f"The base model '{name}' is quantised in a way that MLX does not read.",
            cause=f"quant_method is {method!r}; MLX reads its own and "
            f"{', '.join(READABLE_QUANTISATION)}",
            next_step="Use the model it was made from, or its counterpart of mlx-community.",
        )


def _incomplete(name: str, folder: Path, missing: list[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"The base model '{name}' is not complete.",
        cause=f"missing in {folder}: {', '.join(missing)}",
        next_step="Give a folder in Hugging Face format with safetensors weights and a "
        "tokenizer; 'forge-mcp pull' fetches what is missing of one from the Hub.",
    )


def _damaged(path: Path, cause: str, next_step: str) -> UnsupportedModel:
    return UnsupportedModel(f"{path} is no safetensors file.", cause=cause, next_step=next_step)
