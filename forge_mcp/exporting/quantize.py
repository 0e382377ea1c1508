"""Which type each tensor of a GGUF file gets, and its bytes.

The K types are mixed as llama.cpp's `llama_tensor_get_type` (llama-quant.cpp) does for the "M"
files: the output matrix (the embedding where it is tied) is Q6_K, and so are `attn_v` and
`ffn_down` in the layers that `uses_more_bits` names; norms and biases stay float32. One rule is
left out: Q5_K instead of Q4_K for `attn_v` in models of 80 layers.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import BadInput, UnsupportedModel

QUANTIZATIONS = ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
BASE_TYPES = {
    "f32": "F32",
    "f16": "F16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
}
FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}
# K types work on blocks of 256; a row that is no multiple gets the type that llama.cpp gives it.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
K_BLOCK, BLOCK = 256, 32


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


def uses_more_bits(layer: int, layers: int) -> bool:
    """Layers whose `attn_v` and `ffn_down` are Q6_K in an M mix: the outer eighths, each third."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def tensor_type(
    name: str, shape: tuple[int, ...], quantization: str, *, layers: int, tied: bool
) -> str:
    """The GGML type of a tensor, e.g. "Q4_K".

    Args:
        name: GGUF name, e.g. "blk.0.attn_v.weight".
        shape: rows first, as numpy has it.
        quantization: one of `QUANTIZATIONS`.
        layers: number of blocks.
        tied: the embedding is also the output matrix.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return "F32"
    chosen = BASE_TYPES[quantization]
    if chosen in ("F32", "F16"):
        return chosen
    if chosen in FALLBACKS:
        is_output = name == "output.weight" or (tied and name == "token_embd.weight")
        layer = re.fullmatch(r"blk\.(\d+)\.(?:attn_v|ffn_down)\.weight", name)
        if is_output or (
            quantization in ("q4_k_m", "q5_k_m")
            and layer
            and uses_more_bits(int(layer.group(1)), layers)
        ):
            chosen = "Q6_K"
        if shape[-1] % K_BLOCK:
            chosen = FALLBACKS[chosen]
    return chosen if shape[-1] % BLOCK == 0 else "F16"


def encoded_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Size of a tensor of this shape and type in the file."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(np.prod(shape, dtype=np.int64)) // int(block) * int(size)


def encode(name: str, values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """The bytes of a tensor: float32 or float16 values, or blocks as uint8 (rows, bytes).

    Calls from several threads run at once (the C function releases the interpreter's lock).

    Raises:
        UnsupportedModel: a value is not finite, or too large for float16.
        Unavailable: a K type, and llama.cpp's library is not there.
    """
    if not np.isfinite(values).all():
        raise UnsupportedModel(
            f"The tensor {name} holds values that are no numbers.",
            cause="NaN or infinity in the weights: the training diverged",
            next_step="Train again with a lower learning rate.",
        )
    if kind == "F32":
        return values
    if kind == "F16":
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise UnsupportedModel(
                f"The tensor {name} does not fit in float16.",
                cause=f"its largest value is {np.abs(values).max():.3g}",
                next_step="Export it with --quantization f32 or q8_0.",
            )
        return halves
    if kind == "Q8_0":
        import gguf

        quantized: NDArray[np.uint8] = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        return quantized
    return _encode_blocks(values, kind)


def _encode_blocks(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Through llama.cpp's own `ggml_quantize_chunk`, so the bytes are llama.cpp's."""
    import gguf

    from forge_mcp.exporting.llamacpp import library

    functions = library()
    number = int(gguf.GGMLQuantizationType[kind])
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    row_bytes = functions.ggml_row_size(number, rows.shape[1])
    out = np.empty((rows.shape[0], row_bytes), np.uint8)
    written = functions.ggml_quantize_chunk(
        number,
        rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        out.ctypes.data,
        0,
        rows.shape[0],
        rows.shape[1],
        None,
    )
    if written != out.nbytes:
        raise AssertionError(f"{kind}: {written} bytes written, {out.nbytes} expected")
    return out.reshape(*values.shape[:-1], row_bytes)
