"""The embedded runtime: llama.cpp's server inside this process, by xllamacpp.

It listens on a Unix socket in a folder of its own that only this user can enter, with a key that
is made anew each time: nothing on the network, and no port.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from forge_mcp.errors import BadInput, CorruptArtifact, ForgeError, NotFound, Unavailable
from forge_mcp.machine import cores
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import OnText, Reply, Sampling

QUIET = -1
SOCKET = "llama.sock"  # llama.cpp takes a host for a socket by this suffix


class LlamaCppChat:
    """A GGUF file, loaded and ready to chat. Calls from several threads wait for each other.

    Args:
        gguf: the file; its own chat template is used.
        num_ctx: tokens of prompt and answer together.
        threads: 0 for one a core.

    Raises:
        NotFound: the file is missing.
        CorruptArtifact: llama.cpp cannot load it.
        Unavailable: xllamacpp is not installed.
    """

    def __init__(self, gguf: Path, *, num_ctx: int, threads: int = 0) -> None:
        if not gguf.is_file():
            raise NotFound(
                f"The model file {gguf.name} is gone.",
                cause=f"{gguf} is missing",
                next_step="Export and deploy the run again.",
            )
        try:
            import xllamacpp
        except ImportError as error:
            raise Unavailable(
                "The embedded llama.cpp runtime is not installed.",
                cause=str(error),
                next_step="pip install 'xllamacpp>=2026.10,<2027', or deploy with --target ollama.",
            ) from error
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix="forge-"))
        self._key = secrets.token_urlsafe(32)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        parameters.n_ctx = num_ctx
        parameters.n_parallel = 1
        parameters.hostnames = [str(self._folder / SOCKET)]
        parameters.api_keys = [self._key]
        parameters.cors_origins = ""
        parameters.verbosity = QUIET
        parameters.ui = False
        parameters.endpoint_slots = False
        parameters.endpoint_metrics = True  # for the call below
        parameters.warmup = False
        parameters.fit_params = False
        parameters.cache_ram_mib = 0
        parameters.force_pure_content_parser = True
        parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        count = threads or cores()
        for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
            cpu.n_threads = count
            cpu.poll = 0  # sleep instead of spinning while there is nothing to do

        def start() -> Any:
            server = xllamacpp.Server(parameters)
            # Waits for the server's loop: a server that is closed before that has begun never ends.
            server.handle_metrics()
            return server

        try:
            # In a thread, which no Ctrl-C can interrupt between the two; leaving waits for it.
            with ThreadPoolExecutor(1) as thread:
                self._server: Any = thread.submit(start).result()
        except BaseException as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if not isinstance(error, RuntimeError | ValueError):
                raise
            raise CorruptArtifact(
                f"llama.cpp cannot load {gguf.name}.",
                cause=f"{gguf} is damaged, no GGUF file, or too large for the memory ({error})",
                next_step="Export the run again, or choose a smaller --quantization.",
            ) from error

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat.

        Raises:
            BadInput: the prompt is longer than the context.
            ForgeError: llama.cpp refused otherwise.
        """
        pieces: list[str] = []
        last: dict[str, Any] = {}
        finish: list[str] = []
        raised: list[BaseException] = []

        def take(chunk: dict[str, Any]) -> bool:
            """One piece; True stops the generation."""
            try:
                last.update(chunk)
                for choice in chunk.get("choices", ()):
                    if choice.get("finish_reason"):
                        finish.append(choice["finish_reason"])
                    text = choice.get("delta", {}).get("content")
                    if text:
                        pieces.append(text)
                        if on_text:
                            on_text(text)
            except BaseException as error:  # it would be lost in the C++ frames
                raised.append(error)
            return bool(raised)

        request = {
            "messages": [message.model_dump() for message in messages],
            "max_tokens": sampling.num_predict,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop),
            "seed": sampling.seed,
            "repeat_penalty": sampling.repeat_penalty,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with self._lock:
            try:
                answered = self._running().handle_chat_completions(request, take)
            except (RuntimeError, ValueError) as error:
                raise BadInput(
                    "llama.cpp refused the chat.", cause=str(error), next_step="Change the request."
                ) from error
        if raised:
            raise raised[0]
        last.update(answered or {})
        _check(last)
        usage = last.get("usage", {})
        return Reply(
            text="".join(pieces),
            stopped=finish[-1:] == ["stop"],
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
        )

    def answer(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        """The most likely answer, token by token."""
        return self.chat(messages, Sampling(0.0, 1, 1.0, max_tokens))

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the file's chat template writes it, up to the assistant's turn."""
        body = {"messages": [message.model_dump() for message in messages]}
        prompt: str = self._post("/apply-template", body)["prompt"]
        return prompt

    def tokenize(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised."""
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = self._post("/tokenize", body)["tokens"]
        return tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact: the chat is rendered and tokenised by the file itself."""
        return len(self.tokenize(self.render(messages)))

    def close(self) -> None:
        """Unload the model. May be called twice."""
        with self._lock:
            self._server = None  # its destructor stops the server and frees the weights
            shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> Any:
        if self._server is None:
            raise ForgeError("The model was unloaded.", next_step="Ask again.")
        return self._server

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._running()
            connection = _UnixConnection(self._folder / SOCKET)
            try:
                connection.request(
                    "POST", path, json.dumps(body), {"Authorization": f"Bearer {self._key}"}
                )
                loaded: dict[str, Any] = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise ForgeError(
                    "The embedded llama.cpp server does not answer.",
                    cause=f"{path}: {error}",
                    next_step="Run it again; if it fails again, run 'forge-mcp doctor'.",
                ) from error
            finally:
                connection.close()
        _check(loaded)
        return loaded


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        """Called by http.client before the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _check(answer: dict[str, Any]) -> None:
    """Raise what llama.cpp reports as an error, in words."""
    error = answer.get("error")
    if not error:
        return
    if error.get("type") == "exceed_context_size_error":
        raise BadInput(
            "The prompt is longer than the model's context.",
            cause=f"{error.get('n_prompt_tokens')} tokens, {error.get('n_ctx')} fit",
            next_step="Shorten the question, give fewer documents, or raise serving.num_ctx.",
        )
    raise ForgeError(
        "llama.cpp could not answer.",
        cause=str(error.get("message", error)),
        next_step="Change the request, or export the run again.",
    )
