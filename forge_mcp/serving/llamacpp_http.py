"""llama.cpp's server spoken to over HTTP: what a request holds, what comes back, errors in words.

The wire is llama.cpp's own (OpenAI's chat completions and a few endpoints beside them), so every
answer here is as llama.cpp computed it.
"""

from __future__ import annotations

import http.client
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from forge_mcp.errors import BadInput, ForgeError
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import OnText, Reply, Sampling

# A prompt may be read, or another chat answered, for as long before the first byte comes. A server
# that dies is noticed at once: the system closes its connections.
SILENT_SECONDS = 600.0
_DATA = b"data: "

Connect = Callable[[], http.client.HTTPConnection]


class ServerGone(Exception):
    """Nothing answers, or it stopped in the middle. `begun`: some of the answer had come."""

    def __init__(self, cause: str, *, begun: bool = False) -> None:
        super().__init__(cause)
        self.begun = begun


def chat_request(messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """The body of a streamed chat completion; nothing is left to llama.cpp's own defaults."""
    return {
        "messages": [message.model_dump() for message in messages],
        "max_tokens": sampling.num_predict,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
        "repeat_penalty": sampling.repeat_penalty,
        "cache_prompt": not sampling.exact,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class Streamed:
    """A chat completion as its chunks come in; `on_text` is given each piece of text."""

    def __init__(self, on_text: OnText | None) -> None:
        self._on_text = on_text
        self._pieces: list[str] = []
        self._finish = ""
        self._last: dict[str, Any] = {}

    def take(self, chunk: Mapping[str, Any]) -> None:
        """One chunk."""
        self._last.update(chunk)
        for choice in chunk.get("choices", ()):
            self._finish = choice.get("finish_reason") or self._finish
            text = choice.get("delta", {}).get("content")
            if text:
                self._pieces.append(text)
                if self._on_text:
                    self._on_text(text)

    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            BadInput, ForgeError: a chunk told of an error.
        """
        raise_error(self._last)
        usage = self._last.get("usage", {})
        prompt = int(usage.get("prompt_tokens", 0))
        cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        return Reply(
            text="".join(self._pieces),
            stopped=self._finish == "stop",
            prompt_tokens=prompt,
            completion_tokens=int(usage.get("completion_tokens", 0)),
            prompt_tokens_read=prompt - int(cached),
        )


class Endpoints(ABC):
    """What is asked of a llama.cpp server beside chats; see `LlamaCppChat` and `ServerChat`."""

    @abstractmethod
    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request and its answer.

        Raises:
            BadInput, ForgeError: llama.cpp refused, or does not answer.
        """

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the file's chat template writes it, up to the assistant's turn."""
        body = {"messages": [message.model_dump() for message in messages]}
        prompt: str = self.post("/apply-template", body)["prompt"]
        return prompt

    def tokenize(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised."""
        body = {"content": text, "add_special": True, "parse_special": True}
        tokens: list[int] = self.post("/tokenize", body)["tokens"]
        return tokens

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Exact: the chat is rendered and tokenised by the file itself."""
        return len(self.tokenize(self.render(messages)))

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector of length 1 for each text: the mean of its tokens' last hidden states.

        These are states of a model that was made to write, not to compare texts: a sentence encoder
        (retrieval.encoder) finds better.

        Raises:
            BadInput: a text is empty, or longer than llama.cpp reads at once (512 tokens).
        """
        if not texts:
            return []
        rows = self.post("/v1/embeddings", {"input": list(texts)})["data"]
        return [row["embedding"] for row in sorted(rows, key=lambda row: int(row["index"]))]


def exchange(connect: Connect, key: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One request and its answer, which may be an error of llama.cpp's (see `raise_error`).

    Raises:
        ServerGone: nothing answers, or not in JSON.
    """
    with closing(connect()) as connection:
        try:
            _send(connection, key, path, body)
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerGone(f"{path}: {error or type(error).__name__}") from error
    return answer


def stream(
    connect: Connect, key: str, path: str, body: Mapping[str, Any]
) -> Generator[dict[str, Any], None, None]:
    """The chunks of a streamed answer. Closing the generator ends the generation.

    Raises:
        ServerGone: nothing answers, or the stream broke off.
    """
    with closing(connect()) as connection:
        begun = False
        try:
            _send(connection, key, path, body)
            response = connection.getresponse()
            if response.status != 200:
                yield json.loads(response.read())
                return
            for line in response:
                if line.startswith(_DATA):
                    data = line.removeprefix(_DATA).strip()
                    if data == b"[DONE]":
                        return
                    begun = True
                    yield json.loads(data)
                elif line.startswith(b"error: "):
                    yield {"error": json.loads(line.removeprefix(b"error: "))}
                    return
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = f"{path}: {error or type(error).__name__}"
            raise ServerGone(cause, begun=begun) from error
        raise ServerGone(f"{path}: the answer broke off", begun=begun)


def _send(
    connection: http.client.HTTPConnection, key: str, path: str, body: Mapping[str, Any]
) -> None:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raise what llama.cpp reports as an error, in words.

    Raises:
        BadInput: the prompt, or a text to embed, is too long, or the request is not valid.
        ForgeError: any other.
    """
    error = answer.get("error")
    if not error:
        return
    kind, text = error.get("type"), str(error.get("message", error))
    if kind == "exceed_context_size_error":
        raise BadInput(
            "The prompt is longer than the model's context.",
            cause=f"{error.get('n_prompt_tokens')} tokens, {error.get('n_ctx')} fit",
            next_step="Shorten the question, give fewer documents, or raise serving.num_ctx.",
        )
    fault = BadInput if kind == "invalid_request_error" or "too large to process" in text else None
    raise (fault or ForgeError)(
        "llama.cpp could not answer.",
        cause=text,
        next_step="Change the request, or export the run again.",
    )
