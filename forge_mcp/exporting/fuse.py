"""A run → a standalone model folder in Hugging Face format, without adapters or quantisation.

mlx-lm and transformers load it. Its weights are the merged ones of `MergedRun`, computed and
written by rows. float16 is what GGUF's own unquantised files hold, and half the disk; its rounding
(2^-11 relative) is far below that of any quantisation. A value that the type cannot hold is refused
rather than clipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from forge_mcp.errors import from_os_error
from forge_mcp.exporting.cards import fused_card
from forge_mcp.exporting.tensors import from_source, write_folder
from forge_mcp.training.merging import MergedRun

Dtype = Literal["float16", "bfloat16", "float32"]
STORED_AS = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
# What the base's folder has beside config, weights and tokenizer.json. A SentencePiece model is not
# in tokenizer.json with its scores.
BESIDE = ("generation_config.json", "tokenizer.model")

Progress = Callable[[int, int], None]


def merge_adapters_to_base(
    run: MergedRun,
    folder: Path,
    dtype: Dtype = "float16",
    progress: Progress | None = None,
) -> Path:
    """Write the merged model of a run into `folder` (made if need be), in shards of 2 GiB.

    Args:
        run: what `open_merged` gave.
        folder: gets config.json, model*.safetensors (with an index where there are several),
            tokenizer and chat template, what of BESIDE the base has, README.md.
        dtype: of all tensors in the files.
        progress: called with (tensors written, tensors in all).

    Returns:
        `folder`.

    Raises:
        UnsupportedModel: a merged value is no number or does not fit in `dtype`.
        OutOfSpace: the disk cannot hold the folder.
    """
    names = run.names()
    done = 0

    def written(_name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(names))

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "make the folder of the merged model") from error
    write_folder(
        folder, [from_source(run, name, STORED_AS[dtype]) for name in names], written=written
    )
    config = run.config | {"dtype": dtype}
    try:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        # What the tokenizer in memory writes is what the run was trained with.
        run.tokenizer.save_pretrained(str(folder))
        for name in BESIDE:
            if (run.base_path / name).is_file():
                shutil.copyfile(run.base_path / name, folder / name)
        (folder / "README.md").write_text(fused_card(run, dtype), encoding="utf-8")
    except OSError as error:
        raise from_os_error(error, "write the merged model") from error
    return folder
