"""The merged weights of a run, read and computed by rows.

A row of an adapted layer is W' = Q + s B A (with DoRA brought to the length its magnitude says),
where Q is the run's dequantised residual; every other tensor is the base's own, dequantised where
the base is quantised. Residual, adapters and base stay on the disk: a slice reads and computes only
its rows, so that what is exported may be larger than memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forge_mcp import machine
from forge_mcp.errors import CorruptArtifact
from forge_mcp.training.adapters import FACTORS, MAGNITUDE, PACKED_ARRAYS, SMALLEST_NORM
from forge_mcp.training.architectures import text_model
from forge_mcp.training.base_files import safetensors_header, weight_files
from forge_mcp.training.bases import LoadedBase
from forge_mcp.training.blockwise import BLOCK, Blocks, dequantise_blocks
from forge_mcp.training.compatibility import mlx_config
from forge_mcp.training.quantisation import WEIGHTS_AT_ONCE, Quantisation, Quantised
from forge_mcp.training.run import ADAPTERS, INITIAL, RESIDUAL, open_run
from forge_mcp.workspace import Artifact

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

Matrix = NDArray[np.float32]

# Of config.json: what no longer holds once the weights are merged floats, names code that does not
# come along, or tells where the base stood.
NOT_IN_MERGED = (
    "quantization",
    "quantization_config",
    "dtype",
    "torch_dtype",
    "auto_map",
    "_name_or_path",
)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TYPES = {  # of safetensors: NumPy's type of the bytes and MLX's of the numbers
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "U32": ("<u4", "uint32"),
    "U8": ("u1", "uint8"),
}


class Factors(NamedTuple):
    """a (rank, in), b (out, rank); magnitude (out,) with DoRA."""

    a: Matrix
    b: Matrix
    magnitude: Matrix | None


class _Adapted(NamedTuple):
    path: str  # of the layer in the run's files
    how: Quantisation  # of the residual
    width: int


class MergedRun:
    """The tensors of a run's merged model under their Hugging Face names: a source of rows.

    Made by `open_merged`. Several threads may read at once; where mlx-lm packs the base's weights
    anew (AWQ, GPTQ, FP8), only the thread that opened it can.

    Attributes:
        artifact: the run.
        base: what it was trained on; `base_path` is its folder.
        tokenizer: as the run was trained with it.
        config: config.json of the merged model, in the words of transformers and of mlx-lm. A model
            that sees is reduced to its text part, a model of its own.
        dtype: in which the base stores its floats: "float16", "bfloat16" or "float32".
        method: pissa, lora, rslora or dora.
        scaling, rank, alpha: of the adapters, as asked for; `factors` has the rank of a layer.
    """

    def __init__(self, artifact: Artifact, settings: Mapping[str, Any], loaded: LoadedBase) -> None:
        self.artifact = artifact
        self.base = loaded.base
        self.base_path: Path = loaded.path
        self.tokenizer: Any = loaded.tokenizer
        self.dtype = loaded.dtype
        self.method = str(settings["method"]).removeprefix("q")
        self.scaling = float(settings["scaling"])
        self.rank, self.alpha = int(settings["rank"]), float(settings["alpha"])
        self._adapters = _StoredArrays([artifact.file(ADAPTERS)])
        self._residual = _StoredArrays([artifact.file(RESIDUAL)])
        self._lock = Lock()  # MLX arrays are computed by one thread at a time
        self._prefix = _prefix(loaded.model)
        self._base = _BaseArrays(loaded)
        self._adapted = {
            self._name(f"{path}.weight"): _Adapted(
                path, Quantisation(**layer["quantisation"]), int(layer["shape"][1])
            )
            for path, layer in settings["layers"].items()
        }
        self._stored_as = {self._name(stored): stored for stored in self._base.shapes}
        self.config = _merged_config(loaded) | {"tie_word_embeddings": not self._has_head}

    def names(self) -> list[str]:
        """All tensors, in the model's order; a tied head is not repeated."""
        return list(self._stored_as)

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first."""
        return self._base.shapes[self._stored_as[name]]

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        """Rows start to stop of a merged tensor, float32.

        Raises:
            CorruptArtifact: a file became shorter since it was opened.
        """
        if name not in self._adapted:
            return self.base_rows(name, start, stop)
        path, how, width = self._adapted[name]
        a = self._adapters.read(f"{path}.{FACTORS[0]}")
        b = self._adapters.read(f"{path}.{FACTORS[1]}", start, stop)
        with self._lock:
            merged = _residual_rows(self._residual, path, how, width, start, stop)
        merged += (np.float32(self.scaling) * b) @ a
        if self._adapters.has(f"{path}.{MAGNITUDE}"):
            magnitude = self._adapters.read(f"{path}.{MAGNITUDE}", start, stop)
            lengths = np.linalg.norm(merged, axis=1)
            merged *= (magnitude / np.maximum(lengths, SMALLEST_NORM))[:, None]
        return merged

    def base_rows(self, name: str, start: int, stop: int) -> Matrix:
        """The same rows of the base before training, dequantised where it is quantised."""
        with self._lock:
            return self._base.rows(self._stored_as[name], start, stop)

    @property
    def base_is_quantised(self) -> bool:
        """Whether the base stores any of its weights quantised."""
        return self._base.is_quantised

    def adapted(self) -> list[str]:
        """The tensors that have adapters, in the model's order."""
        return [name for name in self.names() if name in self._adapted]

    def rank_of(self, name: str) -> int:
        """Of a tensor's adapters: less than `rank` where the tensor is smaller."""
        return self._adapters.shape(f"{self._adapted[name].path}.{FACTORS[0]}")[0]

    def factors(self, name: str) -> Factors:
        """The adapters of a tensor as they are after training."""
        return self._factors(self._adapters, name)

    def initial_factors(self, name: str) -> Factors:
        """The adapters of a tensor as training began with them.

        Raises:
            CorruptArtifact: the file of them is not what was written.
        """
        return self._factors(self._initial(), name)

    def module_path(self, name: str) -> str:
        """The layer of a tensor in the base that transformers loads: with a model that sees, the
        text part is one level down."""
        path = name.removesuffix(".weight")
        return path.replace("model.", "model.language_model.", 1) if self._prefix else path

    @property
    def _has_head(self) -> bool:
        return "lm_head.weight" in self._stored_as

    def _name(self, stored: str) -> str:
        return stored.removeprefix(self._prefix)

    def _factors(self, arrays: _StoredArrays, name: str) -> Factors:
        path = self._adapted[name].path
        a, b = (arrays.read(f"{path}.{key}") for key in FACTORS)
        key = f"{path}.{MAGNITUDE}"
        return Factors(a, b, arrays.read(key) if arrays.has(key) else None)

    def _initial(self) -> _StoredArrays:
        if not hasattr(self, "_first"):
            self.artifact.verify(INITIAL)
            self._first = _StoredArrays([self.artifact.file(INITIAL)])
        return self._first


def open_merged(artifact: Artifact) -> MergedRun:
    """The merged weights of a run. Its files and its base are compared with their checksums.

    Raises:
        CorruptArtifact: a file of the run, or its base, is not what it was.
        NotFound: the base is not on this machine any more.
        BadInput: the run was written by a version that kept its weights differently.
    """
    return MergedRun(artifact, *open_run(artifact))


def _prefix(model: Any) -> str:
    """What stands before the names of the text part, in mlx-lm and in Hugging Face's files."""
    return "" if text_model(model) is model else "language_model."


def _merged_config(loaded: LoadedBase) -> dict[str, Any]:
    config = loaded.base.config
    config = config | mlx_config(config)
    text = text_model(loaded.model)
    if text is not loaded.model:
        # The text part's own numbers, which the outer config may leave to a default.
        known = {key: value for key, value in asdict(text.args).items() if value is not None}
        ids = {key: config[key] for key in TOKEN_IDS if key in config}
        config = known | ids | config["text_config"]
        config |= {"model_type": text.model_type, "architectures": ["Gemma3ForCausalLM"]}
    return {key: value for key, value in config.items() if key not in NOT_IN_MERGED}


# -- what lies on the disk -------------------------------------------------------------------------


class _Place(NamedTuple):
    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int


class _StoredArrays:
    """Arrays of safetensors files, of which only the rows that are asked for are read."""

    def __init__(self, files: list[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for path in files:
            header = safetensors_header(path)
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
            for name, fields in header.items():
                offset = 8 + length + int(fields["data_offsets"][0])
                self._places[name] = _Place(path, fields["dtype"], tuple(fields["shape"]), offset)

    def has(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def holds(self, name: str, array: Any) -> bool:
        """Whether `array` may be what is stored under this name, read as it is."""
        place = self._places.get(name)
        return (
            place is not None
            and place.kind in TYPES
            and place.shape == tuple(array.shape)
            and getattr(mx, TYPES[place.kind][1]) == array.dtype
        )

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows start to stop (all by default); bfloat16 as its bits (uint16)."""
        place = self._places[name]
        rows, inner = place.shape[0], place.shape[1:]
        count = (rows if stop is None else min(stop, rows)) - start
        dtype = np.dtype(TYPES[place.kind][0])
        width = math.prod(inner)
        data = np.fromfile(
            place.file, dtype, count * width, offset=place.offset + start * width * dtype.itemsize
        )
        if data.size != count * width:
            raise CorruptArtifact(
                f"{place.file} is shorter than it was.",
                cause=f"it ends inside the tensor {name}",
                next_step="Restore the file, or fetch the base again, and run it once more.",
            )
        return data.reshape(count, *inner)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """The same as an MLX array of the stored type."""
        array = mx.array(self.read(name, start, stop))
        return array.view(mx.bfloat16) if self._places[name].kind == "BF16" else array


class _BaseArrays:
    """The tensors of a base under the names mlx-lm gives them, dequantised, by rows.

    mlx-lm says which tensors there are and how each is quantised; their values are read from the
    files. What it computes while loading (weights of AWQ, GPTQ or FP8, repacked) is taken from it
    instead, and stays in memory, as small as it packs it, once it was asked for.
    """

    def __init__(self, loaded: LoadedBase) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stored = _StoredArrays(weight_files(loaded.path))
        self._computed: dict[str, Any] = {}
        self._packed: dict[str, tuple[Quantisation, list[str]]] = {}
        config = loaded.base.config
        repacked = "quantization_config" in config and "quantization" not in config
        for path, module in loaded.model.named_modules():
            if module.children():  # no model of ours has tensors beside its layers
                continue
            arrays = {f"{path}.{key}": one for key, one in tree_flatten(module.parameters())}
            if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
                how = Quantisation(module.mode, module.bits, module.group_size)
                parts = [key for key in PACKED_ARRAYS if key in module]
                rows, words = module.weight.shape
                self._packed[f"{path}.weight"] = (how, parts)
                self.shapes[f"{path}.weight"] = (rows, words * 32 // module.bits)
                for part in parts:
                    self._place(f"{path}.{part}", arrays.pop(f"{path}.{part}"), repacked)
            for name, array in arrays.items():
                self.shapes[name] = tuple(array.shape)
                self._place(name, array)

    @property
    def is_quantised(self) -> bool:
        return bool(self._packed)

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        if name not in self._packed:
            return np.array(self._array(name, start, stop).astype(mx.float32))
        how, parts = self._packed[name]
        path = name.removesuffix("weight")
        arrays = {part: self._array(path + part, start, stop) for part in parts}
        # In the type of its scales, as mlx-lm dequantises: that is what the run was trained over.
        return _dequantised(how, arrays, self.shapes[name][1])

    def _place(self, name: str, array: Any, repacked: bool = False) -> None:
        if repacked or not self._stored.holds(name, array):
            self._computed[name] = array

    def _array(self, name: str, start: int, stop: int) -> Any:
        computed = self._computed.get(name)
        return self._stored.rows(name, start, stop) if computed is None else computed[start:stop]


def _residual_rows(
    arrays: _StoredArrays, path: str, how: Quantisation, width: int, start: int, stop: int
) -> Matrix:
    """Rows of a run's residual, float32."""
    names = [key for key in ("weight", "scales", "biases", "absmax") if arrays.has(f"{path}.{key}")]
    some = {name: arrays.rows(f"{path}.{name}", start, stop) for name in names}
    if arrays.has(f"{path}.global_scale"):
        some["global_scale"] = arrays.rows(f"{path}.global_scale")
    if how.double:
        some["absmax"] = _absmax_rows(arrays, path, some["absmax"], start)
        how = how._replace(double=False)
    rows = Quantised(how, (stop - start, width), some)
    merged = np.empty(rows.shape, np.float32)
    for here, block in rows.dequantised_rows():
        merged[here] = np.array(block)
    return merged


def _absmax_rows(arrays: _StoredArrays, path: str, codes: Any, start: int) -> Any:
    """NF4's absmax of some rows, float32, from its 8-bit codes (rows, groups of a row).

    Its blocks run across rows, so that the first and the last may be only partly among them.
    """
    first = start * codes.shape[1]
    lead = first % BLOCK
    blocks = slice(first // BLOCK, -(-(first + codes.size) // BLOCK))
    scales = arrays.rows(f"{path}.absmax_scales", blocks.start, blocks.stop)
    padded = mx.pad(codes.reshape(-1), (lead, 0))
    absmax = dequantise_blocks(Blocks(padded, scales), signed=True)[lead:]
    return absmax.reshape(codes.shape) + arrays.rows(f"{path}.absmax_mean")


def _dequantised(how: Quantisation, arrays: dict[str, Any], width: int) -> Matrix:
    """Weights of a base's layer, float32, a few rows at a time."""
    count = len(arrays["weight"])
    rows = np.empty((count, width), np.float32)
    step = max(WEIGHTS_AT_ONCE // width, 1)
    for first in range(0, count, step):
        some = {name: array[first : first + step] for name, array in arrays.items()}
        block = mx.dequantize(
            some["weight"],
            some["scales"],
            some.get("biases"),
            group_size=how.group_size,
            bits=how.bits,
            mode=how.type,
        )
        rows[first : first + step] = np.array(block.astype(mx.float32))
    return rows
