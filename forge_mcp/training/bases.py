"""Base models: from a name to a checked folder, and from the folder to a model in memory.

    resolve_base("forge-nano")            the embedded base
    resolve_base("qwen2.5-coder-0.5b")    a name of assets/models.yaml, in the local cache
    resolve_base("./my-model")            a folder in Hugging Face format

Nothing is ever downloaded here: that is hub.py's.
"""

from __future__ import annotations

import hashlib
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
from forge_mcp.training.base_files import (
    CONFIG,
    TOKENIZER_FILES,
    check_files,
    read_config,
    safetensors_header,
    weight_files,
)
from forge_mcp.training.memory import Shape, training_bytes
from forge_mcp.workspace import hash_file

RUN_OVERHEAD_BYTES = 10_000_000  # logs, metrics, plot
PACKED_BITS = 4  # of weights that are stored quantised, where config.json does not say
BESIDE_TOKENIZER = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


class BaseEntry(BaseModel):
    """One base of assets/models.yaml, where the fields are explained."""

    model_config = ConfigDict(extra="forbid")

    embedded: str | None = None
    repo: str | None = None
    original: str | None = None
    gated: bool = False
    aliases: list[str] = Field(default_factory=list)
    architecture: str
    parameters: int
    license: str
    context: int
    memory: float
    rank: int
    learning_rate: float
    shape: Shape

    def advice(self, settings: TrainingSettings) -> str | None:
        """Where settings are far from where one begins with this base, in a sentence; else None.

        A rate counts as far from a factor of two, a rank from a factor of four.
        """
        apart = []
        if not 1 / 2 < settings.learning_rate / self.learning_rate < 2:
            apart.append(f"a learning rate of {self.learning_rate:g} ({settings.learning_rate:g})")
        if not 1 / 4 < settings.rank / self.rank < 4:
            apart.append(f"rank {self.rank} ({settings.rank})")
        if settings.max_seq_length > self.context:
            apart.append(f"at most {self.context:,} tokens ({settings.max_seq_length:,})")
        if not apart:
            return None
        return (
            f"One usually begins with {' and '.join(apart)} on this base; in brackets what is set."
        )


FOLDED = "This base's chat template has no system message: ours stands at the head of the question."


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
        return read_config(self.path, self.name)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 (hex) over config.json and every weight file: what makes this base this base."""
        names = [CONFIG, *(path.name for path in weight_files(self.path))]
        return _digest(self.path, names)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 (hex) over the files that decide how text becomes tokens and what ends it."""
        names = [*TOKENIZER_FILES, *BESIDE_TOKENIZER]
        return _digest(self.path, [name for name in names if (self.path / name).is_file()])

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(name, dtype, shape) of every stored tensor, read from the files' headers only."""
        for path in weight_files(self.path):
            for name, fields in safetensors_header(path).items():
                yield name, fields["dtype"], tuple(fields["shape"])

    @property
    def packed_bits(self) -> int:
        """Bits of a weight where they are stored quantised."""
        quantised = self.config.get("quantization") or {}
        return int(quantised.get("bits", PACKED_BITS))

    def run_bytes(self, settings: TrainingSettings) -> int:
        """Disk space that a run on this base needs at most, in bytes.

        The quantised residual of every matrix, and the adapters in float32: the first, the best,
        and in each checkpoint four times (adapters, best, two moments), with one checkpoint more
        while the oldest is replaced.
        """
        residual, adapters = 0, 0
        for name, dtype, shape in self.tensors():
            if len(shape) != 2 or not name.endswith(".weight"):
                continue
            rows, columns = shape
            if dtype == "U32":  # packed: 32 bits hold several weights
                columns = columns * 32 // self.packed_bits
            bits = settings.quantization_bits + 32 / settings.group_size
            residual += int(rows * columns * bits / 8)
            adapters += 4 * settings.rank * (rows + columns)
        copies = 2 + 4 * (settings.keep_checkpoints + 1)
        return residual + copies * adapters + RUN_OVERHEAD_BYTES

    def training_bytes(self, settings: TrainingSettings) -> int:
        """Memory that training on this base may need, in bytes: an estimate (memory.py)."""
        architecture = str(self.config["model_type"])
        shape = Shape.of(self.config)
        return training_bytes(shape, architecture, settings, on_cpu=machine.on_cpu())


@dataclass(frozen=True)
class LoadedBase:
    """An untouched base in memory.

    `model` is an mlx-lm model in eval mode; where MLX computes on the CPU, all its weights are
    float32 (a quantised base is dequantised: the same numbers, far faster there). `dtype` is the
    type in which the floats are stored on disk: "float16", "bfloat16" or "float32". `notices` are
    sentences for the user about what was done to make it fit.
    """

    model: Any
    tokenizer: Any
    path: Path
    entry: BaseEntry | None
    base: Base
    dtype: str
    notices: tuple[str, ...] = ()


def entry_of(name: str) -> tuple[str, BaseEntry] | None:
    """The base of assets/models.yaml that a name, an alias or a repository stands for."""
    for known, entry in known_bases().items():
        if name in (known, *entry.aliases, entry.repo, entry.original):
            return known, entry
    return None


def resolve_base(name_or_path: str, relative_to: Path | None = None) -> Base:
    """Find a base and check that its files are all there.

    Args:
        name_or_path: a name or alias of assets/models.yaml, a Hugging Face id that is in the
            local cache, or a folder in Hugging Face format.
        relative_to: where a relative path starts; the current folder by default.

    Raises:
        NotFound: nothing of that name on this machine.
        UnsupportedModel: a file is missing, truncated or of another kind, or its architecture is
            not one that can be trained.
    """
    if found := entry_of(name_or_path):
        name, entry = found
        if entry.embedded:
            return _checked(Base(name, _embedded(entry.embedded), entry))
        if name_or_path in (entry.repo, entry.original):
            return _checked(Base(name_or_path, _cached(name_or_path, name_or_path), entry))
        return _checked(Base(name, _cached(str(entry.repo), name_or_path), entry))
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
        lazy: leave the weights on the disk, stored as they are, until they are used; whoever asks
            for it calls `materialise` in the end.

    Raises:
        NotFound, UnsupportedModel: see `resolve_base`; also files that cannot be loaded.
    """
    base = name_or_path if isinstance(name_or_path, Base) else resolve_base(name_or_path)
    machine.mlx()
    from mlx_lm.tokenizer_utils import load as load_tokenizer
    from mlx_lm.utils import load_model

    from forge_mcp.training.architectures import text_model
    from forge_mcp.training.compatibility import fold_system_prompt, mlx_config, use_long_rope

    try:
        model, config = load_model(base.path, lazy=True, model_config=mlx_config(base.config))
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
    use_long_rope(model)
    notices = (FOLDED,) if fold_system_prompt(tokenizer) else ()
    dtype = str(text_model(model).model.norm.weight.dtype).removeprefix("mlx.core.")
    model.eval()
    if not lazy:
        materialise(model)
    return LoadedBase(model, tokenizer, base.path, base.entry, base, dtype, notices)


def materialise(model: Any) -> None:
    """Read what is still on the disk of a model that was loaded lazily, in place.

    On a CPU all weights become float32, dequantised where they are quantised, because anything
    else computes slowly there; elsewhere they stay as they are stored.
    """
    mx = machine.mlx()
    from mlx.utils import tree_map
    from mlx_lm.utils import dequantize_model

    if machine.on_cpu():
        dequantize_model(model)
        model.update(
            tree_map(
                lambda leaf: (
                    leaf.astype(mx.float32) if mx.issubdtype(leaf.dtype, mx.floating) else leaf
                ),
                model.parameters(),
            )
        )
    mx.eval(model.parameters())


def _eos_token_ids(config: dict[str, Any]) -> list[int] | None:
    ids = config.get("eos_token_id")
    return [ids] if isinstance(ids, int) else ids


def _digest(folder: Path, names: list[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {hash_file(folder / name)}\n".encode())
    return digest.hexdigest()


def _embedded(folder: str) -> Path:
    return Path(str(files("forge_mcp").joinpath("assets", folder)))


def _cached(repo: str, asked: str) -> Path:
    """The snapshot of a Hugging Face repository in the local cache."""
    machine.keep_hub_offline()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=[CONFIG]))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise NotFound(
            f"The base model '{asked}' is not on this machine.",
            cause=f"{repo} is not in the local Hugging Face cache, and nothing is downloaded here",
            next_step=f"Fetch it once with 'forge-mcp pull {asked}', or give a folder, or use one "
            f"of: {', '.join(known_bases())}.",
        ) from error


def _checked(base: Base) -> Base:
    """The same base, if its folder holds all that training needs."""
    from forge_mcp.training.architectures import check_architecture

    check_files(base.path, base.name)
    check_architecture(base.config["model_type"], base.name)
    return base
