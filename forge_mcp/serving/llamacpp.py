"""The embedded runtime: llama.cpp's server inside this process, by xllamacpp.

It listens on a Unix socket in a folder of its own that only this user can enter, with a key that
is made anew each time: nothing on the network, and no port. A face that lives long asks a server in
a process of its own instead (`llamacpp_server`).
"""

from __future__ import annotations

import http.client
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forge_mcp.errors import BadInput, ForgeError
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import OnText, Reply, Sampling
from forge_mcp.serving.llamacpp_http import (
    Endpoints,
    ServerGone,
    Streamed,
    chat_request,
    exchange,
    raise_error,
)
from forge_mcp.serving.llamacpp_runtime import Load, size_of, start_server

SOCKET = "llama.sock"  # llama.cpp takes a host for a socket by this suffix
SOCKET_SECONDS = 60.0


class LlamaCppChat(Endpoints):
    """A GGUF file, loaded and ready to chat. Calls from several threads wait for each other.

    Args:
        gguf: the file; its own chat template is used.
        num_ctx: tokens of prompt and answer together; no more than the model was trained for
            (`context` says how many there are).
        threads: 0 for one a core.

    Raises:
        NotFound: the file is missing.
        CorruptArtifact: it is damaged, or llama.cpp cannot load it.
        Unavailable: xllamacpp is not installed, or of a version that differs.
        ForgeError: it does not fit into memory.
    """

    def __init__(self, gguf: Path, *, num_ctx: int, threads: int = 0) -> None:
        self._lock = threading.Lock()
        self._key = secrets.token_urlsafe(32)
        self.context = size_of(gguf, num_ctx).num_ctx
        self._folder = Path(tempfile.mkdtemp(prefix="forge-"))
        try:
            self._server: Any = start_server(
                Load(gguf, num_ctx, threads, host=str(self._folder / SOCKET), key=self._key)
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat. What `on_text` raises ends the answer and is raised here.

        Raises:
            BadInput: the prompt is longer than the context.
            ForgeError: llama.cpp refused otherwise.
        """
        streamed = Streamed(on_text)
        raised: list[BaseException] = []

        def take(chunk: dict[str, Any]) -> bool:
            """One piece; True stops the generation."""
            try:
                streamed.take(chunk)
            except BaseException as error:  # it would be lost in the C++ frames
                raised.append(error)
            return bool(raised)

        with self._lock:
            try:
                request = chat_request(messages, sampling)
                answered = self._running().handle_chat_completions(request, take)
            except (RuntimeError, ValueError) as error:
                raise BadInput(
                    "llama.cpp refused the chat.", cause=str(error), next_step="Change the request."
                ) from error
        if raised:
            raise raised[0]
        streamed.take(answered or {})
        return streamed.reply()

    def answer(self, messages: Sequence[Message], max_tokens: int) -> Reply:
        """The most likely answer, token by token, whatever was asked before."""
        return self.chat(messages, Sampling(0.0, 1, 1.0, max_tokens, exact=True))

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request to the server's other endpoints, and its answer.

        Raises:
            BadInput, ForgeError: llama.cpp refused, or does not answer.
        """
        with self._lock:
            self._running()
            try:
                answer = exchange(self._connect, self._key, path, body)
            except ServerGone as error:
                raise ForgeError(
                    "The embedded llama.cpp server does not answer.",
                    cause=str(error),
                    next_step="Run it again; if it fails again, run 'forge-mcp doctor'.",
                ) from error
        raise_error(answer)
        return answer

    def close(self) -> None:
        """Unload the model. May be called twice."""
        with self._lock:
            self._server = None  # its destructor stops the server and frees the weights
            shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> Any:
        if self._server is None:
            raise ForgeError("The model was unloaded.", next_step="Ask again.")
        return self._server

    def _connect(self) -> http.client.HTTPConnection:
        return _UnixConnection(self._folder / SOCKET)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=SOCKET_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Called by http.client before the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
