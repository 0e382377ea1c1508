"""Writing a quantised GGUF: ours against llama.cpp's own `llama_model_quantize`.

    python benchmarks/quantize.py [--quick] [--peer PYTHON] [--memory]

A random Llama of about 150M parameters (float16, tied embeddings) is made in a temporary folder.
Ours reads its safetensors; llama.cpp's quantiser, the one in llama-cpp-python, reads the f16 GGUF
file of the same weights. Each run is a process of its own, with one thread and with one a core, in
turn, the better of two. Ours is timed from the first row that is read: tokens and keys, which
llama.cpp's quantiser copies, are read and written before it. A core's throughput is
parameters by CPU second, which a busy machine changes less than seconds. Then every tensor of the
two files is compared. The peer's interpreter is .venv-converter's (`make references` builds it);
without it only our figures are printed.

--memory: the peak resident memory of a conversion above what the process held before it, for a
model with an embedding of 128,000 x 2,048, against 1.5 times that tensor plus 500 MB.
--quick: a model of 20M parameters, one run each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from forge_mcp.machine import cores

ROOT = Path(__file__).parents[1]
QUANTIZATIONS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
FILE_TYPES = {"q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}  # llama_ftype of llama.h
MB = 1e6

# Resident bytes of this process: now, and its most since it began. (Linux: getrusage would count
# what the parent held when it forked.)
RESIDENT = """
def resident(key):
    import os, resource, sys
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines[key].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
PEER = f"""
import ctypes, json, sys, time
import llama_cpp
{RESIDENT}
source, target, file_type, threads = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = int(file_type), int(threads)
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, None)
before = resident("VmRSS")
started, cpu = time.perf_counter(), time.process_time()
status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
peak = resident("VmHWM")
assert status == 0, status
print(json.dumps({{"seconds": seconds, "cpu": cpu, "peak": peak - before}}))
"""
OURS = f"""
import json, sys, time
from pathlib import Path
{RESIDENT}
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.tensors import SafetensorsFolder
source, target, quantization, threads = sys.argv[1:]

class Weights:
    began = None
    def __init__(self, folder):
        self.folder = SafetensorsFolder(folder)
        self.names, self.shape = self.folder.names, self.folder.shape
    def rows(self, name, start, stop):
        if self.began is None:
            self.began = time.perf_counter(), time.process_time()
        return self.folder.rows(name, start, stop)

weights = Weights(Path(source))
before = resident("VmRSS")
convert_to_gguf(
    Path(source), Path(target), quantization, name="m", threads=int(threads), source=weights
)
seconds, cpu = time.perf_counter() - weights.began[0], time.process_time() - weights.began[1]
peak = resident("VmHWM")
print(json.dumps({{"seconds": seconds, "cpu": cpu, "peak": peak - before}}))
"""


def make_model(folder: Path, *, vocabulary: int, hidden: int, layers: int) -> int:
    """A random Llama in float16 with forge-nano's tokenizer; returns its parameters."""
    import shutil
    from importlib.resources import files

    from forge_mcp.exporting.tensors import TensorToWrite, row_chunks, write_folder

    folder.mkdir()
    nano = files("forge_mcp") / "assets" / "forge-nano"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (nano / name).is_file():
            shutil.copyfile(str(nano / name), folder / name)
    config = json.loads((nano / "config.json").read_text())
    heads = hidden // 64
    config |= {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 4,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden // 4, hidden),
            "self_attn.v_proj": (hidden // 4, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (4 * hidden, hidden),
            "mlp.up_proj": (4 * hidden, hidden),
            "mlp.down_proj": (hidden, 4 * hidden),
        }.items():
            shapes[f"{at}.{name}.weight"] = shape
    drawn = np.random.default_rng(1)

    def chunks(shape: tuple[int, ...]) -> Any:
        for start, stop in row_chunks(shape):
            yield drawn.standard_normal((stop - start, *shape[1:]), np.float32) * np.float32(0.02)

    tensors = [
        TensorToWrite(name, shape, "F16", lambda shape=shape: chunks(shape))  # type: ignore[misc]
        for name, shape in shapes.items()
    ]
    write_folder(folder, tensors)
    return sum(int(np.prod(shape)) for shape in shapes.values())


def run(arguments: list[str]) -> dict[str, float]:
    """Seconds and peak bytes that a process of its own reports in its last line."""
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def ours(source: Path, target: Path, quantization: str, threads: int) -> dict[str, float]:
    """One conversion of ours."""
    return run([sys.executable, "-c", OURS, str(source), str(target), quantization, str(threads)])


def theirs(
    peer: Path, source: Path, target: Path, quantization: str, threads: int
) -> dict[str, float]:
    """One run of llama.cpp's quantiser."""
    number = str(FILE_TYPES[quantization])
    return run([str(peer), "-c", PEER, str(source), str(target), number, str(threads)])


def differing(first: Path, second: Path) -> list[str]:
    """Names of tensors that are not the same bytes of the same type in both files."""
    import gguf

    one, other = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for path in (first, second)
    )
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one
        or name not in other
        or one[name].tensor_type != other[name].tensor_type
        or not np.array_equal(one[name].data, other[name].data)
    ]


def measure_speed(folder: Path, peer: Path, quick: bool) -> None:
    """The table of times."""
    size = (8000, 512, 4) if quick else (32000, 1024, 8)
    vocabulary, hidden, layers = size
    model = folder / "model"
    parameters = make_model(model, vocabulary=vocabulary, hidden=hidden, layers=layers)
    print(f"\n{parameters / 1e6:.0f}M parameters, {cores()} cores; better of {1 if quick else 2}")
    source = folder / "source.gguf"
    ours(model, source, "f16", 0)
    print(
        "| type | threads | ours s (CPU s) | llama.cpp s (CPU s) | ours M/CPU s | "
        "llama.cpp M/CPU s | ours / llama.cpp | ours peak MB | llama.cpp peak MB | "
        "tensors that differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for quantization in QUANTIZATIONS:
        for threads in sorted({1, cores()}):
            a, b = folder / "ours.gguf", folder / "theirs.gguf"
            mine, other = [], []
            for _ in range(1 if quick else 2):
                mine.append(ours(model, a, quantization, threads))
                if peer.exists():
                    other.append(theirs(peer, source, b, quantization, threads))
            first, rate = told(mine, parameters)
            row = [quantization, str(threads), first, "", f"{rate:.1f}", "", ""]
            row += [f"{max(one['peak'] for one in mine) / MB:.0f}", "", ""]
            if other:
                row[3], their_rate = told(other, parameters)
                row[5], row[6] = f"{their_rate:.1f}", f"{rate / their_rate:.2f}"
                row[8] = f"{max(one['peak'] for one in other) / MB:.0f}"
                row[9] = str(len(differing(a, b)))
            print("| " + " | ".join(row) + " |", flush=True)


def told(rows: list[dict[str, float]], parameters: int) -> tuple[str, float]:
    """Least seconds and CPU seconds, and millions of parameters by CPU second."""
    seconds, cpu = (min(row[key] for row in rows) for key in ("seconds", "cpu"))
    return f"{seconds:.2f} ({cpu:.2f})", parameters / 1e6 / cpu


def measure_memory(folder: Path) -> None:
    """The table of peaks."""
    model = folder / "large"
    vocabulary, hidden = 128_000, 2048
    make_model(model, vocabulary=vocabulary, hidden=hidden, layers=1)
    largest = vocabulary * hidden * 2
    allowed = 1.5 * largest + 500e6
    print(f"\nEmbedding of {vocabulary:,} x {hidden:,}: {largest / MB:.0f} MB in float16")
    print(f"| type | threads | peak MB above the start | allowed {allowed / MB:.0f} MB |")
    print("|---|---|---|---|")
    for quantization in ("f32", "q4_k_m"):
        for threads in (1, 16):
            found = ours(model, folder / "large.gguf", quantization, threads)
            told = "kept" if found["peak"] <= allowed else "exceeded"
            print(f"| {quantization} | {threads} | {found['peak'] / MB:.0f} | {told} |", flush=True)


def main() -> None:
    """Print the tables; figures are no failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", action="store_true", help="only the memory")
    parser.add_argument("--peer", type=Path, default=ROOT / ".venv-converter" / "bin" / "python")
    options = parser.parse_args()
    if not options.peer.exists():
        print(f"{options.peer} is not there: only our figures. 'make references' builds it.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.memory:
            measure_speed(folder, options.peer, options.quick)
        if options.memory or not options.quick:
            measure_memory(folder)


if __name__ == "__main__":
    main()
