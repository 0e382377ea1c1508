"""What serving costs beside bare llama.cpp, and what retrieval adds to a question.

    python benchmarks/serving.py [--turns N] [--threads N] [--parameters MILLIONS] [--json FILE]

**Tokens a second** on two GGUF files (q8_0): forge-nano, so small that everything around a token
shows, and random weights of a larger one (150 million parameters by default; real ones are larger
still, and what stands around a token costs the same there). Bare llama.cpp is `llama_decode` in a
loop with the largest logit as the next token, called as a C function: no sampling, no text, no
stream. Beside it the same prompt through LlamaCppChat (in this process) and ServerChat (the
server's process, over HTTP), both streaming. In turns, in one run, with the same threads (one by
default); the prompt is read anew each time.

Seconds are CPU seconds of the process that computes, which other work on the machine disturbs
little, and the best of the turns counts, which it disturbs least; wall-clock figures stand beside
them. The prompt's end with the first token or text, those of what is generated begin there.

**Retrieval** over 10,000 blocks (this package's own, repeated under other names): what `query` does
before it asks the model, cold (the corpus is read and indexed) and warm.

The exit status is 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.exporting.llamacpp import GgufModel
from forge_mcp.pipeline.retrieving import forget, retrieve
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import Deployed, Sampling
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.serving.llamacpp_server import open_server, running_servers, stop_servers
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace, write_jsonl

NANO = Path(str(files("forge_mcp").joinpath("assets/forge-nano")))
SOURCES = Path(__file__).parents[1] / "forge_mcp"
CONTEXT, PROMPT_WORDS, NEW_TOKENS = 1024, 120, 160
BLOCKS, QUESTIONS = 10_000, 200


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one way, by CPU and by wall clock: the best of the turns."""

    way: str
    prompt: float
    generated: float
    prompt_wall: float
    generated_wall: float


Run = Callable[[Callable[[], None]], int]  # calls it at the first text; the prompt's tokens


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parameters", type=int, default=150, help="millions, of the larger file")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine.describe(), "threads": given.threads}
    with tempfile.TemporaryDirectory(prefix="forge-serving-") as name:
        home = Path(name)
        for label, folder in (
            ("forge-nano", NANO),
            (f"{given.parameters}M random", random_model(home / "random", given.parameters)),
        ):
            gguf = convert_to_gguf(folder, home / f"{label.split()[0]}.gguf", "q8_0")
            speeds = serving_speeds(gguf, home / "forge", given.turns, given.threads)
            found[label] = [asdict(speed) for speed in speeds]
            print_speeds(label, gguf, speeds)
        found["retrieval"] = retrieval_times(home / "forge")
        print_retrieval(found["retrieval"])
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def random_model(folder: Path, millions: int) -> Path:
    """A llama with random weights and forge-nano's tokenizer, in Hugging Face format."""
    mx = machine.mlx()
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    shutil.copytree(NANO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    hidden = 1024
    layer = 4 * hidden**2 + 3 * hidden * 2816
    config |= {
        "hidden_size": hidden,
        "intermediate_size": 2816,
        "num_hidden_layers": max(1, round(millions * 1e6 / layer)),
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(5)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    weights = {
        key: (mx.random.normal(array.shape) * 0.02 if array.ndim > 1 else array).astype(mx.float16)
        for key, array in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


# -- tokens a second -------------------------------------------------------------------------------


def serving_speeds(gguf: Path, home: Path, turns: int, threads: int) -> list[Speed]:
    """Of bare llama.cpp, of this process, and of the server's process."""
    import psutil

    question = " ".join(f"word{n % 97}" for n in range(PROMPT_WORDS))
    messages = [Message(role="user", content=question)]
    serving = load_settings(
        None, {"serving": {"num_ctx": CONTEXT, "threads": threads, "unload_after": 600}}
    ).serving
    workspace = Workspace(home)
    here = LlamaCppChat(gguf, num_ctx=CONTEXT, threads=threads)
    there = open_server(workspace, Deployed("bench", "llamacpp", gguf, gguf), serving)
    bare = Bare(gguf, here.tokenize(here.render(messages)), threads)
    own = psutil.Process()
    ways: dict[str, tuple[Run, psutil.Process]] = {
        "bare llama.cpp": (bare.run, own),
        "LlamaCppChat": (lambda first: ask(here, messages, first), own),
        "ServerChat": (
            lambda first: ask(there, messages, first),
            psutil.Process(running_servers(workspace)[0].pid),
        ),
    }
    measured: dict[str, list[Speed]] = {way: [] for way in ways}
    try:
        for turn in range(turns + 1):
            for way, (run, process) in ways.items():
                speed = one_turn(way, run, process)
                if turn:  # the first one warms caches up
                    measured[way].append(speed)
    finally:
        bare.close()
        here.close()
        stop_servers(workspace)
    return [
        Speed(
            way,
            *(max(astuple(row)[column] for row in rows) for column in range(1, 5)),
        )
        for way, rows in measured.items()
    ]


def one_turn(way: str, run: Run, process: Any) -> Speed:
    """One answer; what comes before its first text is the prompt's."""
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        marks.append((sum(process.cpu_times()[:2]), time.perf_counter()))

    mark()
    tokens = run(lambda: mark() if len(marks) == 1 else None)
    mark()
    (cpu, wall), (cpu_first, wall_first), (cpu_end, wall_end) = marks
    more = NEW_TOKENS - 1
    return Speed(
        way,
        tokens / (cpu_first - cpu),
        more / (cpu_end - cpu_first),
        tokens / (wall_first - wall),
        more / (wall_end - wall_first),
    )


def ask(chat: Any, messages: Sequence[Message], first: Callable[[], None]) -> int:
    """Stream an answer; `first` is called with each text. Returns the tokens of the prompt."""
    sampling = Sampling(0.0, 1, 1.0, NEW_TOKENS, exact=True)
    reply = chat.chat(messages, sampling, on_text=lambda text: first())
    if reply.completion_tokens != NEW_TOKENS:
        raise SystemExit(f"the model ended after {reply.completion_tokens} tokens: no measure")
    return int(reply.prompt_tokens)


class Bare:
    """llama.cpp's own functions in a loop."""

    def __init__(self, gguf: Path, ids: Sequence[int], threads: int) -> None:
        self._ids = ids
        self._model = GgufModel(gguf, context=CONTEXT, threads=threads)
        self._c = self._model._c
        self._batch = self._c.llama_batch_init(512, 0, 1)

    def run(self, first: Callable[[], None]) -> int:
        """Generate; `first` is called with the first token. Returns the tokens of the prompt."""
        c, ids = self._c, self._ids
        c.llama_memory_clear(c.llama_get_memory(self._model._context), True)
        for start in range(0, len(ids), 512):
            token = self._decode(ids[start : start + 512], start)
        first()
        for place in range(len(ids), len(ids) + NEW_TOKENS - 1):
            token = self._decode([token], place)
        return len(ids)

    def _decode(self, ids: Sequence[int], start: int) -> int:
        batch = self._batch
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = start + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(ids) - 1
        if self._c.llama_decode(self._model._context, batch) != 0:
            raise SystemExit("llama_decode failed")
        row = self._c.llama_get_logits_ith(self._model._context, len(ids) - 1)
        return int(np.ctypeslib.as_array(row, (self._model.vocab_size,)).argmax())

    def close(self) -> None:
        """Free it."""
        self._c.llama_batch_free(self._batch)
        self._model.close()


def print_speeds(label: str, gguf: Path, speeds: Sequence[Speed]) -> None:
    """A table; shares are of the first row."""
    print(f"\n{label}, {gguf.stat().st_size / 1e6:.0f} MB: tokens per CPU second (share of bare)")
    bare = speeds[0]
    for one in speeds:
        print(
            f"  {one.way:16} prompt {one.prompt:8.0f} ({one.prompt / bare.prompt:6.1%})"
            f"   generated {one.generated:7.1f} ({one.generated / bare.generated:6.1%})"
            f"   by the clock {one.prompt_wall:8.0f} and {one.generated_wall:7.1f}"
        )


# -- retrieval -------------------------------------------------------------------------------------


def retrieval_times(home: Path) -> dict[str, float]:
    """Milliseconds that `query` spends before it asks the model."""
    from forge_mcp.mining.miner import parse_repository

    settings = load_settings(None, {"mining": {"workers": 1}})
    mined = parse_repository(SOURCES, settings)
    own = [*mined.blocks, *(CodeBlock(**b.model_dump(exclude={"reasons"})) for b in mined.rejected)]
    blocks = [
        block.model_copy(
            update={"id": f"{number // len(own)}/{block.id}", "path": f"{number}/{block.path}"}
        )
        for number in range(BLOCKS)
        for block in [own[number % len(own)]]
    ]
    workspace = Workspace(home)
    with workspace.stage("corpus", "bench") as staged:
        write_jsonl(staged.path / "blocks.jsonl", blocks)
        write_jsonl(staged.path / "rejected.jsonl", [])
        corpus = staged.commit(id="corpus-bench-0000", inputs_hash="0" * 64, parents=[])
    context = SkillContext(workspace, settings, "bench")
    questions = [
        f"What does `{own[(n * 37) % len(own)].name}` do when the {word} is missing?"
        for n in range(QUESTIONS)
        for word in [("file", "key", "block", "name")[n % 4]]
    ]

    def spend(question: str) -> float:
        started = time.perf_counter()
        retrieve(question, 3 * settings.retrieval.documents, corpus, context)
        return (time.perf_counter() - started) * 1000

    cold = [spend(questions[0])]
    forget()
    cold.append(spend(questions[0]))
    warm = sorted(spend(question) for question in questions)
    return {
        "blocks": len(blocks),
        "cold_ms": min(cold),
        "warm_median_ms": statistics.median(warm),
        "warm_99_percent_ms": warm[int(len(warm) * 0.99)],
    }


def print_retrieval(times: dict[str, float]) -> None:
    """One line; the bound is 50 ms."""
    print(
        f"\nretrieval over {times['blocks']:,} blocks: warm {times['warm_median_ms']:.1f} ms "
        f"(99% within {times['warm_99_percent_ms']:.1f} ms), cold {times['cold_ms']:.0f} ms"
    )


if __name__ == "__main__":
    raise SystemExit(main())
