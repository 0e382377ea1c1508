"""Base models: from a name to a checked folder, and from the folder to a model in memory.

    resolve_base("forge-nano")            the embedded base
    resolve_base("qwen2.5-coder-0.5b")    a name of assets/models.yaml, in the local cache
    resolve_base("./my-model")            a folder in Hugging Face format

Nothing is ever downloaded here.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from forge_mcp import machine
from forge_mcp.errors import NotFound, UnsupportedModel
from forge_mcp.settings import TrainingSettings
from forge_mcp.workspace import hash_file

# Families whose parameters bear the same names in mlx-lm and in Hugging Face files, so that a
# tuned model can be written back; mlx-lm itself loads many more.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
RUN_OVERHEAD_BYTES = 10_000_000  # logs, metrics, plot
TRAINING_OVERHEAD_BYTES = 500_000_000  # interpreter, libraries, the batch
PACKED_BITS = 4  # of weights that are stored quantised
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
BESIDE_TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


class BaseEntry(BaseModel):
    """One base of assets/models.yaml."""

    model_config = ConfigDict(extra="forbid")

    embedded: str | None = None
    repo: str | None = None
    original: str | None = None
    aliases: list[str] = Field(default_factory=list)
    architecture: str
    parameters: int
    license: str


@cache
def known_bases() -> dict[str, BaseEntry]:
    """The bases of assets/models.yaml by name."""
    text = files("forge_mcp").joinpath("assets/models.yaml").read_text(encoding="utf-8")
    return {name: BaseEntry.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


@dataclass(frozen=True)
class Base:
    """A base whose folder is there and complete."""

    name: str
    path: Path
    entry: BaseEntry | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its parsed config.json."""
        parsed: dict[str, Any] = json.loads((self.path / "config.json").read_text("utf-8"))
        return parsed

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 (hex) over config.json and every weight file: what makes this base this base."""
        names = ["config.json", *(path.name for path in weight_files(self.path))]
        return _digest(self.path, names)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 (hex) over the files that decide how text becomes tokens and what ends it."""
        names = [*TOKENIZER_FILES, *BESIDE_TOKENIZER]
        return _digest(self.path, [name for name in names if (self.path / name).is_file()])

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of every stored tensor, read from the files' headers only."""
        for path in weight_files(self.path):
            header = _safetensors_header(path)
            for name, fields in header.items():
                if name != "__metadata__":
                    yield name, fields["dtype"], tuple(fields["shape"])

    def run_bytes(self, settings: TrainingSettings) -> int:
        """Disk space that a run on this base needs at most, in bytes.

        The quantised residual of every matrix, and float32 adapters seven times: first, best, and
        a checkpoint's four, with one more while it is replaced.
        """
        residual, adapters = 0, 0
        for name, dtype, shape in self.tensors():
            if len(shape) != 2 or not name.endswith(".weight"):
                continue
            rows, columns = shape
            if dtype == "U32":  # packed: 32 bits hold several weights
                columns *= 32 // settings.quantization_bits
            bits = settings.quantization_bits + 32 / settings.group_size
            residual += int(rows * columns * bits / 8)
            adapters += 4 * settings.rank * (rows + columns)
        return residual + 7 * adapters + RUN_OVERHEAD_BYTES

    def training_bytes(self) -> int:
        """Memory that training on this base may need, in bytes: a rough upper bound.

        The weights in float32 twice, for the model and for gradients and activations.
        """
        weights = 0
        for _, dtype, shape in self.tensors():
            weights += math.prod(shape) * (32 // PACKED_BITS if dtype == "U32" else 1)
        return 2 * 4 * weights + TRAINING_OVERHEAD_BYTES


@dataclass(frozen=True)
class LoadedBase:
    """An untouched base in memory.

    `model` is an mlx-lm model in eval mode; where MLX computes on the CPU, all its weights are
    float32 (a quantised base is dequantised: the same numbers, far faster there). `dtype` is the
    type in which the floats are stored on disk: "float16", "bfloat16" or "float32".
    """

    model: Any
    tokenizer: Any
    path: Path
    entry: BaseEntry | None
    base: Base
    dtype: str


def resolve_base(name_or_path: str, relative_to: Path | None = None) -> Base:
    """Find a base and check that its files are all there.

    Args:
        name_or_path: a name or alias of assets/models.yaml, a Hugging Face id that is in the
            local cache, or a folder in Hugging Face format.
        relative_to: where a relative path starts; the current folder by default.

    Raises:
        NotFound: nothing of that name on this machine.
        UnsupportedModel: a file is missing, or its architecture is not one we can write back.
    """
    for name, entry in known_bases().items():
        if name_or_path == name or name_or_path in entry.aliases:
            if entry.embedded:
                return _checked(Base(name, _embedded(entry.embedded), entry))
            return _checked(Base(name, _cached(str(entry.repo), name_or_path), entry))
        if name_or_path in (entry.repo, entry.original):
            return _checked(Base(name_or_path, _cached(name_or_path, name_or_path), entry))
    folder = (relative_to or Path()) / Path(name_or_path).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
        return _checked(Base(folder.name, folder, None))
    if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "~", "/")):
        return _checked(Base(name_or_path, _cached(name_or_path, name_or_path), None))
    raise NotFound(
        f"There is no base model '{name_or_path}'.",
        cause="it is neither a folder nor a known name",
        next_step=f"Give a folder in Hugging Face format or one of: {', '.join(known_bases())}.",
    )


def load_base(name_or_path: str | Base, *, lazy: bool = False) -> LoadedBase:
    """Load a base with mlx-lm's own code.

    Args:
        name_or_path: as `resolve_base` takes it, or what it returned.
        lazy: leave the weights on the disk until they are used.

    Raises:
        NotFound, UnsupportedModel: see `resolve_base`; also files that cannot be loaded.
    """
    base = name_or_path if isinstance(name_or_path, Base) else resolve_base(name_or_path)
    mx = machine.mlx()
    from mlx.utils import tree_map
    from mlx_lm.tokenizer_utils import load as load_tokenizer
    from mlx_lm.utils import dequantize_model, load_model

    try:
        model, config = load_model(base.path, lazy=True)
        tokenizer = load_tokenizer(
            base.path,
            {"trust_remote_code": False},  # never asks, never runs code of the folder
            eos_token_ids=_eos_token_ids(config),
        )
    except Exception as error:  # safetensors, JSON, shape and tokenizer errors have no common type
        raise UnsupportedModel(
            f"The base model '{base.name}' cannot be loaded.",
            cause=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            next_step=f"Check the files in {base.path}, or fetch the model again.",
        ) from error
    dtype = str(model.model.norm.weight.dtype).removeprefix("mlx.core.")
    if machine.on_cpu():
        if "quantization" in config:
            model = dequantize_model(model)
        model.update(
            tree_map(
                lambda leaf: (
                    leaf.astype(mx.float32) if mx.issubdtype(leaf.dtype, mx.floating) else leaf
                ),
                model.parameters(),
            )
        )
    model.eval()
    if not lazy:
        mx.eval(model.parameters())
    return LoadedBase(model, tokenizer, base.path, base.entry, base, dtype)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that mlx-lm reads, sorted."""
    return sorted(folder.glob("model*.safetensors"))


def _eos_token_ids(config: dict[str, Any]) -> list[int] | None:
    ids = config.get("eos_token_id")
    return [ids] if isinstance(ids, int) else ids


def _digest(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {hash_file(folder / name)}\n".encode())
    return digest.hexdigest()


def _safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: eight bytes of length, then the text."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
    except (struct.error, ValueError) as error:
        raise UnsupportedModel(
            f"{path} is no safetensors file.",
            cause=str(error),
            next_step="Fetch the model again: the file is damaged or was not fully downloaded.",
        ) from error
    return header


def _embedded(folder: str) -> Path:
    return Path(str(files("forge_mcp").joinpath("assets", folder)))


def _cached(repo: str, asked: str) -> Path:
    """The snapshot of a Hugging Face repository in the local cache."""
    machine.keep_hub_offline()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=["*.json"]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"The base model '{asked}' is not on this machine.",
            cause=f"{repo} is not in the local Hugging Face cache, and nothing is downloaded here",
            next_step=f"Fetch it once with 'hf download {repo}', or give a folder, or use one of: "
            f"{', '.join(known_bases())}.",
        ) from error


def _checked(base: Base) -> Base:
    """The same base, if its folder holds all that training needs."""
    missing = [name for name in ("config.json",) if not (base.path / name).is_file()]
    if not weight_files(base.path):
        missing.append("model*.safetensors")
    if not any((base.path / name).is_file() for name in TOKENIZER_FILES):
        missing.append(" or ".join(TOKENIZER_FILES))
    if missing:
        raise UnsupportedModel(
            f"The base model '{base.name}' is not complete.",
            cause=f"missing in {base.path}: {', '.join(missing)}",
            next_step="Give a folder in Hugging Face format with safetensors weights and a "
            "tokenizer.",
        )
    index = base.path / "model.safetensors.index.json"
    try:
        architecture = base.config.get("model_type")
        parts = (
            set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            if (index.is_file())
            else set()
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise UnsupportedModel(
            f"The base model '{base.name}' has a damaged config.json or index.",
            cause=str(error),
            next_step=f"Fetch the model again into {base.path}.",
        ) from error
    absent = sorted(part for part in parts if not (base.path / part).is_file())
    if absent:
        raise UnsupportedModel(
            f"The base model '{base.name}' is not complete.",
            cause=f"missing in {base.path}: {', '.join(absent)}",
            next_step="Fetch the model again.",
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"The base model '{base.name}' has an architecture that AI Forge cannot tune.",
            cause=f"its model_type is {architecture!r}; known are {', '.join(ARCHITECTURES)}",
            next_step=f"Choose another base, e.g. one of: {', '.join(known_bases())}.",
        )
    return base
