"""A run → a standalone model folder in Hugging Face format, without adapters or quantisation.

The weights are the residual (dequantised) plus s·B·A, as `LoadedRun.fused_weights` yields them,
written as float16, or as float32 where a float32 file is wanted. float16 is what GGUF's own
unquantised files hold, and half the disk; its rounding (2^-11 relative) is far below that of any
quantisation. A value that float16 cannot hold is refused rather than clipped.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from forge_mcp.errors import UnsupportedModel, from_os_error
from forge_mcp.machine import mlx
from forge_mcp.workspace import free_bytes, require_space

SHARD_BYTES = 2 * 2**30
NOT_IN_FUSED = ("quantization", "quantization_config", "dtype", "torch_dtype")
Dtype = Literal["float16", "float32"]


class FusedRun(Protocol):
    """What is needed of `forge_mcp.training.run.LoadedRun`."""

    @property
    def tokenizer(self) -> Any: ...  # noqa: D102
    @property
    def base_path(self) -> Path: ...  # noqa: D102
    def fused_weights(self) -> Iterator[tuple[str, Any]]: ...  # noqa: D102


def merge_adapters_to_base(run: FusedRun, folder: Path, dtype: Dtype = "float16") -> Path:
    """Write the merged model of a run into `folder` (made if need be), in shards of 2 GiB.

    Returns:
        `folder`: config.json, model-*.safetensors with an index, tokenizer and chat template.

    Raises:
        UnsupportedModel: a merged value is no number or does not fit in float16.
        OutOfSpace: the disk cannot hold the folder.
    """
    mx = mlx()
    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(mx, dtype)
    # Shapes only: nothing is computed before a tensor's values are asked for.
    needed = sum(tensor.size for _, tensor in run.fused_weights()) * kind.size
    require_space(folder, needed, "write the merged model")
    index: dict[str, str] = {}
    shard: dict[str, Any] = {}
    shard_bytes = total_bytes = shards = 0

    def flush() -> None:
        nonlocal shard, shard_bytes, shards
        shards += 1
        name = f"model-{shards:05d}.safetensors"
        try:
            mx.save_safetensors(str(folder / name), shard, metadata={"format": "pt"})
        except RuntimeError as error:  # MLX does not say which error of the system it was
            number = errno.ENOSPC if free_bytes(folder) < shard_bytes else errno.EIO
            failed = OSError(number, str(error), str(folder / name))
            raise from_os_error(failed, "write the merged model") from error
        index.update(dict.fromkeys(shard, name))
        shard, shard_bytes = {}, 0

    for name, tensor in run.fused_weights():
        cast = tensor.astype(kind)
        if not mx.isfinite(cast).all().item():
            raise UnsupportedModel(
                f"The merged tensor {name} cannot be written as {dtype}.",
                cause="it holds values that are no numbers or too large",
                next_step="Train again with a lower learning rate, or export with "
                "--quantization f32.",
            )
        shard[name] = cast
        shard_bytes += cast.nbytes
        total_bytes += cast.nbytes
        if shard_bytes >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": index}, indent=2)
    )
    _write_config(run.base_path, folder, dtype, tied="lm_head.weight" not in index)
    # What the tokenizer in memory writes is what the run was trained with.
    run.tokenizer.save_pretrained(str(folder))
    return folder


def _write_config(base: Path, folder: Path, dtype: Dtype, tied: bool) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for key in NOT_IN_FUSED:
        config.pop(key, None)
    # mlx-lm and transformers disagree on the default, so it is always said.
    config |= {"dtype": dtype, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
