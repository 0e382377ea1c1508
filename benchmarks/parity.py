"""What the parity gate measures on faithful exports, and on exports with a fault.

    python benchmarks/parity.py RUN [RUN ...] [--positions 2048]

RUN are ids in FORGE_HOME. Every run is exported in every quantisation and held against itself on
its held-out rows: the gate's thresholds must leave room above what faithful files show. Then
faults that exporters are known for are planted into the merged model, and the same is measured:
the thresholds must catch them. Only what the logits show is printed here; tokens, templates and
ends of answers are compared exactly and need no threshold. Exit status 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.exporting.fuse import merge_adapters_to_base
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.parity import Parity, check_parity
from forge_mcp.exporting.quantize import QUANTIZATIONS
from forge_mcp.exporting.reference import HeldOut, Reference, measure_run
from forge_mcp.exporting.report import size
from forge_mcp.exporting.tensors import SafetensorsFolder, TensorToWrite, write_folder
from forge_mcp.judging.heldout import held_out, sample
from forge_mcp.machine import describe, mlx
from forge_mcp.serving.lineage import ancestor
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.settings import forge_home, load_settings
from forge_mcp.training.merging import MergedRun, open_merged
from forge_mcp.training.run import load_run
from forge_mcp.workspace import Workspace

Tensors = dict[str, NDArray[np.float32]]
Config = dict[str, Any]
Fault = Callable[[Tensors, Config, MergedRun], None]
CONTEXT, ROWS, SEED = 2048, 32, 17


# -- faults ----------------------------------------------------------------------------------------


def no_adapters(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """The base is exported instead of the run."""
    for name in tensors:
        tensors[name] = run.base_rows(name, 0, len(tensors[name]))


def doubled_adapters(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """The adapters' change is added twice (a wrong alpha)."""
    for name, merged in tensors.items():
        tensors[name] = 2 * merged - run.base_rows(name, 0, len(merged))


def halves_for_pairs(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """Queries are not brought into llama.cpp's order of rotation: undone before it is done."""
    heads = config["num_attention_heads"]
    for name, values in tensors.items():
        if name.endswith("q_proj.weight"):
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, -1)
            tensors[name] = pairs.swapaxes(1, 2).reshape(values.shape)


def other_rope_base(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """Rotary embedding with ten times the base."""
    rope = config.get("rope_parameters") or config
    rope["rope_theta"] = 10 * rope.get("rope_theta", 10000.0)


def lost_layer(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """One attention of the middle does nothing."""
    middle = config["num_hidden_layers"] // 2
    tensors[f"model.layers.{middle}.self_attn.o_proj.weight"][:] = 0


def shifted_vocabulary(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """Every token has its neighbour's embedding."""
    tensors["model.embed_tokens.weight"] = np.roll(tensors["model.embed_tokens.weight"], 1, 0)


def coarse_norm(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """The epsilon of the norms is a hundred times too large."""
    config["rms_norm_eps"] = 100 * config["rms_norm_eps"]


def quantised_twice(tensors: Tensors, config: Config, run: MergedRun) -> None:
    """Weights that went through 4 bits once more, in MLX's own format."""
    mx = mlx()
    for name, values in tensors.items():
        if name.endswith("_proj.weight"):
            packed = mx.quantize(mx.array(values), group_size=64, bits=4)
            tensors[name] = np.array(mx.dequantize(*packed, group_size=64, bits=4))


FAULTS: tuple[Fault, ...] = (
    no_adapters,
    doubled_adapters,
    halves_for_pairs,
    other_rope_base,
    lost_layer,
    shifted_vocabulary,
    coarse_norm,
    quantised_twice,
)


def plant(fault: Fault, fused: Path, target: Path, run: MergedRun) -> Path:
    """A copy of the merged folder with a fault."""
    shutil.copytree(fused, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    source = SafetensorsFolder(fused)
    tensors = {name: source.rows(name, 0, source.shape(name)[0]).copy() for name in source.names()}
    config = json.loads((fused / "config.json").read_text("utf-8"))
    fault(tensors, config, run)
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    write_folder(
        target,
        [
            TensorToWrite(name, values.shape, "F32", lambda values=values: iter([values]))  # type: ignore[misc]
            for name, values in tensors.items()
        ],
    )
    return target


# -- measuring -------------------------------------------------------------------------------------


def measure(reference: Reference, gguf: Path, quantization: str) -> Parity:
    """The gate's figures; no answers are asked for."""
    chat = LlamaCppChat(gguf, num_ctx=CONTEXT)
    try:
        return check_parity(
            reference,
            gguf,
            chat,
            load_settings().exporting,
            lambda places: [],
            quantization=quantization,
            context=CONTEXT,
        )
    finally:
        chat.close()


def line(what: str, parity: Parity, bytes: int) -> str:
    """A row of the table."""
    verdict = "passed" if parity.passed else "refused"
    return (
        f"{what:<30}{size(bytes):>10}{parity.argmax_agreement:>10.2%}{parity.mean_kl:>12.2g}"
        f"{parity.max_difference:>10.2g}  {verdict}"
    )


def examine(run_id: str, workspace: Workspace, positions: int) -> None:
    """Print everything about one run."""
    run = workspace.load(run_id, "run")
    cases = sample(held_out(ancestor(workspace, run, "dataset"), "test").open_book, ROWS, SEED)
    loaded = load_run(run)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        reference = measure_run(
            loaded.model,
            loaded.tokenizer,
            HeldOut("test", [case.row.messages for case in cases]),
            folder / "logits.f32",
            positions=positions,
            context=CONTEXT,
            comparable=lambda text: None,  # only logits are looked at here
            answer=lambda places: [],
        )
        merged = open_merged(run)
        fused = merge_adapters_to_base(merged, folder / "fused", "float32")
        print(f"\n{run_id}: {sum(row.last for row in reference.rows)} positions")
        print(f"{'':<30}{'size':>10}{'argmax':>10}{'mean KL':>12}{'max diff':>10}")
        for quantization in QUANTIZATIONS:
            gguf = convert_to_gguf(fused, folder / "m.gguf", quantization)
            parity = measure(reference, gguf, quantization)
            print(line(quantization, parity, gguf.stat().st_size), flush=True)
        for fault in FAULTS:
            wrong = plant(fault, fused, folder / "wrong", merged)
            for quantization in ("f16", "q4_k_m"):
                gguf = convert_to_gguf(wrong, folder / "m.gguf", quantization)
                parity = measure(reference, gguf, quantization)
                what = f"{fault.__name__}, {quantization}"
                print(line(what, parity, gguf.stat().st_size), flush=True)
            shutil.rmtree(wrong)


def main() -> int:
    """Every run that was named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--positions", type=int, default=2048)
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    workspace = Workspace(forge_home())
    for run_id in options.runs:
        examine(run_id, workspace, options.positions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
