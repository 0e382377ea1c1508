"""An Ollama server for tests: its API strictly kept, its answers real, its troubles on demand.

It follows Ollama's source of August 2026 (server/routes.go, server/create.go, server/model.go): the
statuses of a creation and their order, what `show`, `tags` and `ps` answer, blobs by digest,
`keep_alive`, how errors come before and in the middle of a stream. An uploaded GGUF is run by
llama.cpp, as Ollama does, so a wrong template is seen in what the model says. Like Ollama it takes
a template of its own where the one in the file resembles it (here it knows one: ChatML's).

Not like it: it validates a GGUF without rewriting it, and it knows the text endpoints only.

    python tests/integration/conformance_ollama.py serve    # what 'ollama serve' is for tests
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conformance_http import Handler
from conformance_rules import (
    FILE_TYPES,
    Gguf,
    Refusal,
    check_digest,
    full_name,
    read_gguf,
    short_name,
)

from forge_mcp.errors import BadInput
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import Sampling
from forge_mcp.serving.llamacpp import LlamaCppChat

VERSION = "0.32.15"
DEFAULTS: dict[str, Any] = {
    "num_predict": -1,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "repeat_penalty": 1.0,
    "seed": -1,
    "num_ctx": 4096,
    "stop": [],
}
# Of template/index.json: the Jinja template that is recognised, and the stop texts that come along.
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_GO = (
    "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
CHATML_STOPS = ["<|im_start|>", "<|im_end|>"]
BARE_GO = "{{ .Prompt }}"  # what Ollama falls back to where it does not use the file's
NEAR = 100  # characters to change


@dataclass
class Faults:
    """Troubles that can be switched on. Counts go down with each time that one happens."""

    die_in_upload: int = 0
    die_in_create: int = 0
    die_in_answer: int = 0
    cut_answer: bool = False
    full_disk_in_upload: bool = False
    full_disk_in_create: bool = False
    error_in_answer: str = ""
    refuse_create: str = ""
    silent_seconds: float = 0.0
    loses: str = ""  # "system", "parameters", "architecture" or "success": what a creation forgets
    hides_rendering: bool = False


@dataclass
class Model:
    """A manifest: what a creation made."""

    digest: str = ""
    system: str = ""
    go_template: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    modified: str = "2026-08-21T00:00:00Z"


class ConformanceOllama:
    """The server. A context manager; `host` is its address.

    Args:
        folder: where blobs and manifests are kept; what is in it already is there again.
        port: 0 for a free one.
        version: that it says it is. Before 0.30.0 it renders no template of a file.
        go_template: OLLAMA_GO_TEMPLATE; False uses the file's own template always.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, version: str = VERSION, go_template: bool = True
    ) -> None:
        self.folder = folder
        self.version = version
        self.go_template = go_template
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, Any]]] = []  # method, path, body
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self._manifests = folder / "manifests.json"
        self.models: dict[str, Model] = {}
        if self._manifests.exists():
            rows = json.loads(self._manifests.read_text())
            self.models = {name: Model(**row) for name, row in rows.items()}
        self.loaded: dict[str, tuple[str, datetime]] = {}  # short name: digest, until when
        self._runtime: tuple[tuple[str, int], LlamaCppChat] | None = None
        self._lock = threading.RLock()
        handler = type("Bound", (Handler,), {"ollama": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.host = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ConformanceOllama:
        threading.Thread(target=self.run, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.close()

    def run(self) -> None:
        """Serve until `__exit__`."""
        self._server.serve_forever(0.01)

    def keep(self) -> None:
        """Write the manifests down."""
        text = json.dumps({name: vars(model) for name, model in self.models.items()})
        self._manifests.write_text(text)

    def find(self, name: str, status: int = 404) -> tuple[str, Model]:
        """A model's name as it is kept, and the model. Case does not count."""
        full = full_name(name)
        if full is None:
            raise Refusal(400 if status == 404 else status, "invalid model name")
        for known, model in self.models.items():
            if known.casefold() == short_name(full).casefold():
                return known, model
        raise Refusal(status, f"model '{name}' not found")

    def gguf(self, model: Model) -> Gguf:
        return read_gguf(self.blobs / check_digest(model.digest))

    def unload(self, digest: str) -> None:
        """A file is no longer in memory. Really it stays until another one is asked for: the tests
        create the same model again and again."""
        with self._lock:
            self.loaded = {n: entry for n, entry in self.loaded.items() if entry[0] != digest}

    def close(self) -> None:
        """Free the model."""
        with self._lock:
            self.loaded.clear()
            if self._runtime is not None:
                self._runtime[1].close()
                self._runtime = None

    @contextmanager
    def running(self, name: str, model: Model, num_ctx: int) -> Iterator[LlamaCppChat]:
        """llama.cpp with the model's file; one at a time."""
        with self._lock:
            key = (model.digest, num_ctx)
            if self._runtime is not None and self._runtime[0] != key:
                self.close()
            if self._runtime is None:
                blob = self.blobs / check_digest(model.digest)
                self._runtime = (key, LlamaCppChat(blob, num_ctx=num_ctx, threads=1))
            self.loaded[name] = (model.digest, datetime.now(UTC) + timedelta(minutes=5))
            yield self._runtime[1]

    # -- creating ----------------------------------------------------------------------------------

    def create(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What POST /api/create streams."""
        full = full_name(request.get("model", ""))
        if full is None:
            raise Refusal(400, "invalid model name")
        files = request.get("files")
        if files is None:
            raise Refusal(400, "neither 'from' or 'files' was specified")
        if any(name.startswith("/") or ".." in name.split("/") for name in files):
            raise Refusal(400, "file path must be relative")
        if len(files) != 1:
            raise Refusal(400, "no files provided to convert")
        digest: str = next(iter(files.values()))
        blob = self.blobs / check_digest(digest)
        yield {"status": "parsing GGUF"}
        if not blob.exists():
            raise Refusal(500, f"open {blob}: no such file or directory")
        gguf = read_gguf(blob)
        if self.faults.refuse_create:
            raise Refusal(400, self.faults.refuse_create)
        size = blob.stat().st_size
        zeros = "0" * 19
        for completed in (size // 2, size):
            yield {
                "status": "validating GGUF model",
                "digest": zeros,
                "total": size,
                "completed": completed,
            }
        if self.faults.full_disk_in_create:
            raise Refusal(500, f"write {blob.parent}/COPY123: no space left on device")
        yield {"status": "verifying conversion"}
        model = Model(
            digest=digest,
            system=request.get("system", ""),
            go_template=request.get("template", ""),
            parameters=dict(request.get("parameters") or {}),
            details={
                "parent_model": "",
                "format": "gguf",
                "family": gguf.architecture,
                "families": [gguf.architecture],
                "parameter_size": f"{gguf.parameters / 1e6:.2f}M",
                "quantization_level": FILE_TYPES.get(
                    gguf.keys.get("general.file_type", -1), "unknown"
                ),
            },
            modified=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        )
        yield {"status": f"using existing layer {digest}"}
        if self._recognises(gguf.keys.get("tokenizer.chat_template", "")):
            model.go_template = CHATML_GO
            model.parameters.setdefault("stop", CHATML_STOPS)
            yield {"status": "using autodetected template chatml"}
        if self.faults.loses in ("system", "parameters"):
            setattr(model, self.faults.loses, type(getattr(model, self.faults.loses))())
        if self.faults.loses == "architecture":
            model.details["family"] = "unknown"
        for kept in (model.system, json.dumps(model.parameters)):
            if kept:
                layer = hashlib.sha256(kept.encode()).hexdigest()
                yield {"status": f"creating new layer sha256:{layer}"}
        yield {"status": "writing manifest"}
        if self.faults.loses == "success":
            return
        with suppress(Refusal):
            full = self.find(request["model"])[0]
        self.models[short_name(full)] = model
        self.keep()
        yield {"status": "success"}

    def _recognises(self, jinja: str) -> bool:
        """Whether a template of a file is taken for ChatML's, which knows no tools."""
        return "tools" not in jinja and bool(jinja) and _distance(jinja, CHATML) < NEAR

    # -- answering ---------------------------------------------------------------------------------

    def template(self, model: Model) -> str:
        """The template that is used: the file's own, or a Go template."""
        if tuple(int(part) for part in self.version.split(".")) < (0, 30, 0):
            return model.go_template or BARE_GO
        own = self.gguf(model).keys.get("tokenizer.chat_template", "")
        if model.go_template and (self.go_template or not own):
            return model.go_template
        return own or BARE_GO

    def render(self, runtime: LlamaCppChat, model: Model, messages: list[Message]) -> str:
        """The prompt of a chat."""
        template = self.template(model)
        if template == CHATML_GO:
            turns = (f"<|im_start|>{one.role}\n{one.content}<|im_end|>\n" for one in messages)
            return "".join(turns) + "<|im_start|>assistant\n"
        if template == BARE_GO:
            return "".join(one.content for one in messages if one.role == "user")
        return runtime.render(messages)

    def answer(
        self,
        name: str,
        model: Model,
        messages: list[Message],
        request: dict[str, Any],
        on_text: Callable[[str], None],
    ) -> dict[str, Any]:
        """Answer a chat; returns `done_reason`, counts and durations, or what is rendered."""
        started = time.perf_counter_ns()
        options = {**DEFAULTS, **model.parameters, **(request.get("options") or {})}
        if model.system and messages[0].role != "system":
            messages = [Message(role="system", content=model.system), *messages]
        with self.running(name, model, int(options["num_ctx"])) as runtime:
            loaded = time.perf_counter_ns()
            if request.get("truncate", True):
                messages = self._truncated(runtime, model, messages, int(options["num_ctx"]))
            prompt = self.render(runtime, model, messages)
            if request.get("_debug_render_only") and not self.faults.hides_rendering:
                return {"_debug_info": {"rendered_template": prompt}}
            tokens = int(options["num_predict"])
            sampling = Sampling(
                temperature=float(options["temperature"]),
                top_k=int(options["top_k"]),
                top_p=float(options["top_p"]),
                num_predict=tokens if tokens >= 0 else 10 * int(options["num_ctx"]),
                stop=tuple(options["stop"]),
                repeat_penalty=float(options["repeat_penalty"]),
                seed=int(options["seed"]) & 0xFFFFFFFF,
                min_p=float(options["min_p"]),
            )
            own = self.template(model) not in (CHATML_GO, BARE_GO)
            ask = _chat if own else _complete
            try:
                stopped, read, written = ask(runtime, messages, prompt, sampling, on_text)
            except BadInput as error:  # llama.cpp's words
                raise Refusal(400, error.cause) from None
        ended = time.perf_counter_ns()
        return {
            "done_reason": "stop" if stopped else "length",
            "total_duration": ended - started,
            "load_duration": loaded - started,
            "prompt_eval_count": read,
            "prompt_eval_duration": (ended - loaded) // 2,
            "eval_count": written,
            "eval_duration": (ended - loaded) // 2,
        }

    def _truncated(
        self, runtime: LlamaCppChat, model: Model, messages: list[Message], num_ctx: int
    ) -> list[Message]:
        """Without the oldest messages that do not fit; system prompts and the last one stay."""
        for first in range(len(messages)):
            kept = [m for m in messages[:first] if m.role == "system"] + messages[first:]
            fits = len(runtime.tokenize(self.render(runtime, model, kept))) <= num_ctx
            if fits or first == len(messages) - 1:
                return kept
        return messages


def _chat(
    runtime: LlamaCppChat,
    messages: list[Message],
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None],
) -> tuple[bool, int, int]:
    reply = runtime.chat(messages, sampling, on_text)
    return reply.stopped, reply.prompt_tokens, reply.completion_tokens


def _complete(
    runtime: LlamaCppChat,
    messages: list[Message],
    prompt: str,
    sampling: Sampling,
    on_text: Callable[[str], None],
) -> tuple[bool, int, int]:
    """A prompt that Ollama's own template has written."""
    answer = runtime.post(
        "/completion",
        {
            "prompt": prompt,
            "n_predict": sampling.num_predict,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
        },
    )
    if "content" not in answer:
        raise BadInput("refused", cause=str(answer))
    for piece in re.findall(r"\S+\s*|\s+", answer["content"]):
        on_text(piece)
    return answer["stop_type"] != "limit", answer["tokens_evaluated"], answer["tokens_predicted"]


def _distance(one: str, other: str) -> int:
    """Levenshtein's, at least; exact where it is below NEAR."""
    if abs(len(one) - len(other)) >= NEAR:
        return NEAR
    before = list(range(len(other) + 1))
    for row, char in enumerate(one, 1):
        now = [row]
        for column, against in enumerate(other, 1):
            change = before[column - 1] + (char != against)
            now.append(min(before[column] + 1, now[-1] + 1, change))
        before = now
    return before[-1]


def main() -> None:
    """'ollama serve': listens where OLLAMA_HOST says, keeps its files in OLLAMA_MODELS."""
    address = os.environ["OLLAMA_HOST"]
    folder = Path(os.environ["OLLAMA_MODELS"])
    print(f"Listening on {address}", file=sys.stderr, flush=True)
    ConformanceOllama(folder, port=int(address.rpartition(":")[2])).run()


if __name__ == "__main__":
    main()
