"""Which type each tensor of a GGUF file gets, and its bytes.

Types follow `llama_tensor_get_type` of llama.cpp (src/llama-quant.cpp) without an importance
matrix, and the K types, and where the library is there also Q8_0, come from llama.cpp's own
`ggml_quantize_chunk`: the tensors are those that `llama_model_quantize` makes of the f32 file of
the same model (of its f16 file too, where the weights were float16 to begin with). One thing
differs: rows that are no multiple of 32 become F16 where llama.cpp gives up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import BadInput, Unavailable, UnsupportedModel
from forge_mcp.exporting.tensors import largest_of, narrowed

QUANTIZATIONS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
BASE_TYPES = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
}
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}
FLOATS = ("F32", "F16", "BF16")
# K types work on blocks of 256; a row that is no multiple gets the type that llama.cpp gives it.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
K_BLOCK, BLOCK = 256, 32
LARGEST_HALF = 65504.0  # of float16, in which blocks keep their scale


def check_quantization(quantization: str) -> None:
    """Raises:
    BadInput: not one of `QUANTIZATIONS`.
    """
    if quantization not in QUANTIZATIONS:
        raise BadInput(
            f"There is no quantisation '{quantization}'.",
            cause=f"known: {', '.join(QUANTIZATIONS)}",
            next_step="Use q4_k_m (small, recommended), q5_k_m, q6_k, q8_0 or f16 (largest).",
        )


def needs_library(quantization: str) -> bool:
    """Whether only llama.cpp's library can write it."""
    return BASE_TYPES[quantization] in FALLBACKS


def uses_more_bits(layer: int, layers: int) -> bool:
    """Layers whose `attn_v` and `ffn_down` are Q6_K in an M mix: the outer eighths, each third."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_types(
    shapes: Mapping[str, tuple[int, ...]], quantization: str, *, layers: int, is_70b: bool = False
) -> dict[str, str]:
    """The GGML type of every tensor of a file, e.g. "Q4_K".

    Args:
        shapes: by GGUF name, e.g. "blk.0.attn_v.weight"; rows first, as numpy has it.
        quantization: one of `QUANTIZATIONS`.
        layers: number of blocks.
        is_70b: llama.cpp takes the model for one of the 70B models, whose few `attn_v` get more
            bits.
    """
    tied = "output.weight" not in shapes
    # llama.cpp counts these two kinds in the order of the layers, the first up to their number,
    # the second up to the number of layers.
    values = [name for name in shapes if re.search(r"attn_(v|qkv)\.weight$", name)]
    downs = [name for name in shapes if name.endswith(".ffn_down.weight")]
    more = {
        name
        for names, of in ((values, len(values)), (downs, layers))
        for at, name in enumerate(sorted(names, key=_layer))
        if uses_more_bits(at, of)
    }
    return {
        name: _tensor_type(
            name,
            shape,
            quantization,
            is_output=name == "output.weight" or (tied and name == "token_embd.weight"),
            more_bits=name in more,
            few_values=is_70b and name in values,
        )
        for name, shape in shapes.items()
    }


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found.group(1)) if found else -1


def _tensor_type(
    name: str,
    shape: tuple[int, ...],
    quantization: str,
    *,
    is_output: bool,
    more_bits: bool,
    few_values: bool,
) -> str:
    # One row counts as a vector.
    if math.prod(shape[:-1]) == 1 or not name.endswith("weight") or "_norm.weight" in name:
        return "F32"
    chosen = BASE_TYPES[quantization]
    if chosen in FLOATS:
        return chosen
    if chosen in FALLBACKS:
        if is_output:
            chosen = "Q6_K"
        elif quantization in ("q4_k_m", "q5_k_m"):
            if more_bits:
                chosen = "Q6_K"
            elif few_values and chosen == "Q4_K":
                chosen = "Q5_K"
        if shape[-1] % K_BLOCK:
            chosen = FALLBACKS[chosen]
    return chosen if shape[-1] % BLOCK == 0 else "F16"


def encoded_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Size of a tensor of this shape and type in the file."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return math.prod(shape) // int(block) * int(size)


def encode(name: str, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """The bytes of rows of a tensor: float32 or float16 values, bfloat16 as uint16, or blocks as
    uint8 (rows, bytes).

    Calls from several threads run at once (the C function releases the interpreter's lock).

    Raises:
        UnsupportedModel: a value is not finite, or too large for the type.
        Unavailable: a K type, and llama.cpp's library is not there.
    """
    if kind in FLOATS:
        return narrowed(name, values, kind)
    # Far larger ones overflow inside llama.cpp's search for scales, and blocks become zeros.
    if largest_of(name, values) > 127 * LARGEST_HALF:
        raise _too_large(name, kind)
    if kind == "Q8_0" and not _has_library():
        return _encode_q8_0(values)
    return _encode_blocks(name, values, kind)


def _has_library() -> bool:
    from forge_mcp.exporting.llamacpp import quantizer

    try:
        quantizer()
    except Unavailable:
        return False
    return True


def _encode_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    import gguf

    quantized: NDArray[np.uint8] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    return quantized


def _encode_blocks(name: str, values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Through llama.cpp's own `ggml_quantize_chunk`, so the bytes are llama.cpp's."""
    import gguf

    from forge_mcp.exporting.llamacpp import quantizer

    functions = quantizer()
    number = int(gguf.GGMLQuantizationType[kind])
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    row_bytes = functions.ggml_row_size(number, rows.shape[1])
    out = np.empty((rows.shape[0], row_bytes), np.uint8)
    written = functions.ggml_quantize_chunk(
        number, rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], None
    )
    if written != out.nbytes:
        raise AssertionError(f"{kind}: {written} bytes written, {out.nbytes} expected")
    if not functions.ggml_validate_row_data(number, out.ctypes.data, out.nbytes):
        raise _too_large(name, kind)
    return out.reshape(*values.shape[:-1], row_bytes)


def _too_large(name: str, kind: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The tensor {name} cannot be written as {kind}.",
        cause="it holds values so large that the scale of a block does not fit in float16",
        next_step="Export it with --quantization f32 or bf16.",
    )
