"""A model folder in Hugging Face format → one GGUF file that llama.cpp and Ollama load.

The writer streams: tensors are read, quantised (some at a time, on all cores) and written one
after another, so the memory needed is that of a few tensors. Names and keys follow llama.cpp's
converter; only llama's Q and K rows are reordered, because llama.cpp rotates neighbouring pairs
where Hugging Face rotates halves.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import NotFound, UnsupportedModel
from forge_mcp.exporting.quantize import (
    BASE_TYPES,
    FALLBACKS,
    FILE_TYPES,
    check_quantization,
    encode,
    encoded_bytes,
    tensor_type,
)
from forge_mcp.exporting.tokenizer import read_vocabulary
from forge_mcp.machine import cores, mlx
from forge_mcp.workspace import require_space

GGUF_VERSION = 2  # of this writer: part of what an export is made from
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

Progress = Callable[[int, int], None]


def convert_to_gguf(
    folder: Path,
    output_path: Path,
    quantization: str = "f16",
    *,
    name: str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write `output_path` from the model in `folder`.

    Args:
        folder: config.json, safetensors (float, not quantised), tokenizer.json.
        output_path: the file to make; it appears only when whole.
        quantization: f32, f16, q8_0, q6_k, q5_k_m or q4_k_m.
        name: of the model, as runtimes show it; the folder's where none is given.
        threads: that quantise at once; 0 for one a core.
        progress: called with (tensors written, tensors in all).

    Raises:
        BadInput, NotFound, UnsupportedModel: what is given cannot be converted, named.
        Unavailable: a K type without llama.cpp's library.
        OutOfSpace: the disk cannot hold the file.
    """
    import gguf

    check_quantization(quantization)
    config = _read_config(folder)
    architecture = ARCHITECTURES[config["model_type"]]
    vocabulary = read_vocabulary(folder, config["vocab_size"])
    tensors = _open_tensors(folder, config)
    layers = config["num_hidden_layers"]
    tied = "lm_head.weight" not in tensors
    names = _gguf_names(architecture, layers, tensors, folder)
    kinds = {
        name: tensor_type(names[name], tensor.shape, quantization, layers=layers, tied=tied)
        for name, tensor in tensors.items()
    }
    rope_factors = _rope_factors(config)
    needed = sum(encoded_bytes(tensors[name].shape, kind) for name, kind in kinds.items())
    require_space(output_path.parent, needed + 64 * 2**20, f"write {output_path.name}")
    if BASE_TYPES[quantization] in FALLBACKS:
        from forge_mcp.exporting.llamacpp import library

        library()  # refuse now, not in the middle of the file

    writer = gguf.GGUFWriter(None, architecture)
    writer.add_name(name or folder.name)
    _add_architecture(writer, gguf, config, folder)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[quantization]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, gguf, vocabulary)
    if rope_factors is not None:
        writer.add_tensor_info(
            "rope_freqs.weight", rope_factors.shape, rope_factors.dtype, rope_factors.nbytes
        )
    for key, kind in kinds.items():
        shape = tensors[key].shape
        size = encoded_bytes(shape, kind)
        if kind in ("F32", "F16"):
            dtype = np.dtype(np.float32 if kind == "F32" else np.float16)
            writer.add_tensor_info(names[key], shape, dtype, size)
        else:
            blocks = (*shape[:-1], size // int(np.prod(shape[:-1], dtype=np.int64)))
            writer.add_tensor_info(
                names[key],
                blocks,
                np.dtype(np.uint8),
                size,
                raw_dtype=gguf.GGMLQuantizationType[kind],
            )

    partial = output_path.with_name(output_path.name + ".partial")
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if rope_factors is not None:
            writer.write_tensor_data(rope_factors)
        encoded = _encoded(tensors, names, kinds, config, threads or cores())
        for done, values in enumerate(encoded, start=1):
            writer.write_tensor_data(values)
            if progress:
                progress(done, len(kinds))
        writer.close()
        partial.replace(output_path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return output_path


def _encoded(
    tensors: dict[str, Any],
    names: dict[str, str],
    kinds: dict[str, str],
    config: dict[str, Any],
    threads: int,
) -> Iterator[NDArray[Any]]:
    """The tensors' bytes in order; read here, quantised by `threads` that run ahead."""
    waiting: deque[Future[NDArray[Any]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for name in list(kinds):
                values = _permuted(name, _to_numpy(tensors.pop(name)), config)
                waiting.append(pool.submit(encode, names[name], values, kinds[name]))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# -- reading ---------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json, with everything refused that the file could not express."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotFound(
            f"{folder} is no model folder.",
            cause=str(error),
            next_step="Give a folder in Hugging Face format: config.json, tokenizer.json, "
            "*.safetensors.",
        ) from error
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise _refuse(folder, f"its architecture is '{kind}'")
    if "quantization" in config or "quantization_config" in config:
        raise _refuse(folder, "its weights are quantised; export the run that was made with it")
    windowed = config.get("use_sliding_window", kind == "mistral") and config.get("sliding_window")
    kinds_of_layers = set(config.get("layer_types") or ()) - {"full_attention"}
    if windowed or kinds_of_layers:
        raise _refuse(folder, "it attends in sliding windows")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refuse(folder, "it rotates only a part of each head")
    if config.get("hidden_act", "silu") != "silu":
        raise _refuse(folder, f"its activation is {config['hidden_act']}")
    if not config.get("max_position_embeddings"):
        raise _refuse(folder, "its config.json has no max_position_embeddings")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    if not config.get("head_dim"):
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    return config


def _open_tensors(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """All tensors by name, not yet read from the disk."""
    mx = mlx()
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(path))
    if not tensors:
        raise NotFound(
            f"{folder} has no weights.",
            cause="no model*.safetensors in it",
            next_step="Get the model's files again.",
        )
    tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
    if config.get("tie_word_embeddings", False):
        tensors.pop("lm_head.weight", None)
    elif "lm_head.weight" not in tensors:
        raise _refuse(folder, "it has no lm_head.weight and does not say that it is tied")
    return tensors


def _gguf_names(
    architecture: str, layers: int, tensors: dict[str, Any], folder: Path
) -> dict[str, str]:
    import gguf

    number = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    mapping = gguf.get_tensor_name_map(number, layers)
    names = {name: mapping.get_name(name, (".weight", ".bias")) for name in tensors}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise _refuse(folder, f"llama.cpp has no place for its tensor {unknown[0]}")
    return names


def _to_numpy(tensor: Any) -> NDArray[np.float32]:
    return np.array(tensor.astype(mlx().float32))


def _permuted(
    name: str, values: NDArray[np.float32], config: dict[str, Any]
) -> NDArray[np.float32]:
    """Rows of llama's Q and K: from halves to neighbouring pairs, head by head."""
    if ARCHITECTURES[config["model_type"]] != "llama":
        return values
    if ".q_proj." in name:
        heads = config["num_attention_heads"]
    elif ".k_proj." in name:
        heads = config["num_key_value_heads"]
    else:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, from where transformers 5 (rope_parameters) or 4 writes them."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    return rope


def _rope_factors(config: dict[str, Any]) -> NDArray[np.float32] | None:
    """Llama 3.1's frequency divisors, (head_dim / 2,), or None for other kinds.

    Formula: transformers' `_compute_llama3_parameters`: wavelengths shorter than
    original / high_freq_factor stay, longer than original / low_freq_factor are divided by
    `factor`, and between them the two are blended.
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    factor = rope["factor"]
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    original = rope.get("original_max_position_embeddings", 8192)
    half = np.arange(0, config["head_dim"], 2, dtype=np.float64) / config["head_dim"]
    wavelengths = 2 * math.pi * rope["rope_theta"] ** half
    blend = (original / wavelengths - low) / (high - low)
    divisors = np.where(
        wavelengths < original / high,
        1.0,
        np.where(wavelengths > original / low, factor, 1 / ((1 - blend) / factor + blend)),
    )
    return divisors.astype(np.float32)


# -- keys ------------------------------------------------------------------------------------------


def _add_architecture(writer: Any, gguf: Any, config: dict[str, Any], folder: Path) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    if ARCHITECTURES[config["model_type"]] == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "llama3":
        if ARCHITECTURES[config["model_type"]] != "llama":
            raise _refuse(folder, "rope type 'llama3' belongs to llama models only")
    elif rope["rope_type"] != "default":
        raise _refuse(folder, f"its rope type is '{rope['rope_type']}'")


def _add_vocabulary(writer: Any, gguf: Any, vocabulary: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([gguf.TokenType[kind.upper()] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    # A second and third end token have keys of their own; the parity gate refuses a file in which
    # any further one does not stop.
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token in zip(adders, vocabulary.end_ids, strict=False):
        add(token)
    for add, token in (
        (writer.add_bos_token_id, vocabulary.bos_id),
        (writer.add_pad_token_id, vocabulary.pad_id),
        (writer.add_unk_token_id, vocabulary.unk_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_chat_template(vocabulary.chat_template)


def _refuse(folder: Path, cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{folder.name} cannot be written as GGUF.",
        cause=cause,
        next_step="Choose a base of the Llama, Mistral (Tekken), Qwen2 or Qwen3 family.",
    )
