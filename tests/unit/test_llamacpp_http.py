"""The wire to a llama.cpp server: streams that end, break off, or tell of an error."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from forge_mcp.errors import BadInput, ForgeError
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import Sampling
from forge_mcp.serving.llamacpp_http import (
    Connect,
    ServerGone,
    Streamed,
    chat_request,
    exchange,
    raise_error,
    stream,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNK = b'data: {"choices":[{"finish_reason":null,"delta":{"content":"hi"}}]}\n\n'


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], Connect]]:
    """A server that answers whatever it is asked with the same bytes, and hangs up."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        answers: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                with one:
                    one.recv(65536)
                    one.sendall(answers[-1])

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]

        def start(answer: bytes) -> Connect:
            answers.append(answer)
            return lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=5)

        yield start
        listening.shutdown(socket.SHUT_RDWR)


def chunks(connect: Connect) -> list[dict[str, Any]]:
    return list(stream(connect, "key", "/v1/chat/completions", {}))


def test_a_stream_to_its_end(answering: Callable[[bytes], Connect]) -> None:
    got = chunks(answering(OK + b": ping\n\n" + CHUNK + CHUNK + b"data: [DONE]\n\n"))
    assert [one["choices"][0]["delta"]["content"] for one in got] == ["hi", "hi"]


@pytest.mark.parametrize(
    "error",
    [
        b'error: {"message": "no room", "type": "server_error"}\n\n',
        b'data: {"error": {"message": "no room", "type": "server_error"}}\n\ndata: [DONE]\n\n',
    ],
)
def test_an_error_in_the_middle_of_a_stream(
    answering: Callable[[bytes], Connect], error: bytes
) -> None:
    streamed = Streamed(None)
    for chunk in chunks(answering(OK + CHUNK + error)):
        streamed.take(chunk)
    with pytest.raises(ForgeError, match="could not answer") as told:
        streamed.reply()
    assert told.value.cause == "no room"


def test_an_error_instead_of_a_stream(answering: Callable[[bytes], Connect]) -> None:
    body = b'{"error": {"message": "bad", "type": "invalid_request_error"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body)
    [answer] = chunks(answering(head + body))
    with pytest.raises(BadInput):
        raise_error(answer)


@pytest.mark.parametrize(
    ("answer", "begun"),
    [
        (OK, False),
        (OK + CHUNK, True),
        (OK + CHUNK + CHUNK[:-20], True),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nno!", False),
        (b"SSH-2.0-other\r\n", False),
        (b"", False),
    ],
)
def test_a_stream_that_breaks_off(
    answering: Callable[[bytes], Connect], answer: bytes, begun: bool
) -> None:
    with pytest.raises(ServerGone) as gone:
        chunks(answering(answer))
    assert gone.value.begun is begun


def test_an_answer_that_is_none(answering: Callable[[bytes], Connect]) -> None:
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", OK):
        with pytest.raises(ServerGone, match="/tokenize"):
            exchange(answering(answer), "key", "/tokenize", {})
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    with pytest.raises(ServerGone, match="refused"):
        exchange(lambda: http.client.HTTPConnection("127.0.0.1", port), "key", "/tokenize", {})


def test_a_request_says_everything() -> None:
    """llama.cpp has defaults of its own (a min_p of 0.05, for one): none of them counts."""
    sampling = Sampling(0.5, 7, 0.6, 9, ("x",), 1.25, 3, min_p=0.125, exact=True)
    request = chat_request([Message(role="user", content="hi")], sampling)
    assert request["messages"] == [{"role": "user", "content": "hi"}]
    assert {
        key: request[key]
        for key in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
    } == {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.6,
        "min_p": 0.125,
        "repeat_penalty": 1.25,
        "seed": 3,
        "stop": ["x"],
    }
    assert (request["max_tokens"], request["cache_prompt"]) == (9, False)
    assert chat_request([], Sampling(0.0, 1, 1.0, 1))["cache_prompt"]
