"""Vectors from Ollama, through its own client, against a small server that plays it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from forge_mcp.errors import ForgeError, InvalidSettings, NotFound, Unavailable
from forge_mcp.retrieval import ollama
from forge_mcp.retrieval.encoder import load_encoder

Answer = Callable[[list[str]], tuple[int, bytes]]


def vectors(texts: list[str]) -> tuple[int, bytes]:
    rows = [[float(len(text)), 3.0, 4.0] for text in texts]
    return 200, json.dumps({"model": "embed", "embeddings": rows}).encode()


class FakeOllama:
    """The two requests that the encoder makes; `answer` is how vectors are made."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = [{"model": "embed:latest", "digest": "abc"}]
        self.answer: Answer = vectors
        self.asked: list[dict[str, Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, json.dumps({"models": fake.models}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append(body)
                self.reply(*fake.answer(body["input"]))

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def fake() -> Iterator[FakeOllama]:
    made = FakeOllama()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_texts_are_sent_in_batches_and_scaled(
    fake: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ollama, "TEXTS_AT_ONCE", 2)
    encoder = load_encoder("ollama:embed", ollama_host=fake.host)
    told: list[tuple[int, int]] = []
    texts = ["", "a", "bb"]
    found = encoder.encode(texts, "document", lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[0], [0, 0.6, 0.8], atol=1e-6)
    assert found.dtype == np.float32
    assert [body["input"] for body in fake.asked] == [["", "a"], ["bb"]]
    assert {body["model"] for body in fake.asked} == {"embed"}
    assert told == [(2, 3), (3, 3)]
    assert encoder.encode([]).shape[0] == 0


def test_the_fingerprint_is_of_the_models_content(fake: FakeOllama) -> None:
    first = load_encoder("ollama:embed", ollama_host=fake.host)
    assert first.name == "ollama:embed"
    fake.models[0]["digest"] = "def"
    assert load_encoder("ollama:embed", ollama_host=fake.host).fingerprint != first.fingerprint


def test_a_model_that_is_not_there(fake: FakeOllama) -> None:
    with pytest.raises(NotFound, match="ollama pull other") as told:
        load_encoder("ollama:other", ollama_host=fake.host)
    assert "embed:latest" in told.value.cause
    encoder = load_encoder("ollama:embed", ollama_host=fake.host)
    fake.answer = lambda texts: (404, b'{"error": "model not found"}')
    with pytest.raises(NotFound, match="model not found"):
        encoder.encode(["a"])


@pytest.mark.parametrize("model", ["", "big:cloud", "big:70b-cloud"])
def test_code_is_not_sent_elsewhere(model: str) -> None:
    with pytest.raises(InvalidSettings, match="cannot be the encoder"):
        load_encoder(f"ollama:{model}", ollama_host="http://127.0.0.1:1")


def test_no_ollama() -> None:
    with pytest.raises(Unavailable, match="ollama serve"):
        load_encoder("ollama:embed", ollama_host="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ({"embeddings": []}, "0 vectors for 2 texts"),
        ({"embeddings": [[1.0], []]}, "empty ones"),
        ({"embeddings": [[1.0], [1.0, 2.0]]}, "different lengths"),
        ({"embeddings": [[1.0, 2.0], [1e400, 2.0]]}, "not finite"),
    ],
)
def test_answers_that_are_no_vectors(fake: FakeOllama, body: dict[str, Any], cause: str) -> None:
    encoder = load_encoder("ollama:embed", ollama_host=fake.host)
    fake.answer = lambda texts: (200, json.dumps(body).encode())
    with pytest.raises(ForgeError, match="no usable vectors") as told:
        encoder.encode(["a", "b"])
    assert cause in told.value.cause


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((500, b'{"error": "this model does not support embeddings"}'), ForgeError),
        ((200, b"<html>"), Unavailable),
        ((200, b'{"embeddings": "none"}'), Unavailable),
    ],
)
def test_refusals_and_garbage(
    fake: FakeOllama, answer: tuple[int, bytes], kind: type[ForgeError]
) -> None:
    encoder = load_encoder("ollama:embed", ollama_host=fake.host)
    fake.answer = lambda texts: answer
    with pytest.raises(kind) as told:
        encoder.encode(["a"])
    assert type(told.value) is kind
    assert told.value.cause
