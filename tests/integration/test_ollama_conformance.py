"""The Ollama server of the tests is strict: it refuses what Ollama refuses, and what it ignores."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conformance_ollama import ConformanceOllama
from conformance_rules import Refusal, full_name, read_gguf, seconds_of, short_name
from ollama_fixtures import nano as nano

from forge_mcp.errors import ForgeError
from forge_mcp.serving.gguf_file import check_gguf

pytestmark = pytest.mark.integration
CHAT = [{"role": "user", "content": "def add(a, b):"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Iterator[ConformanceOllama]:
    """With forge-nano as the model 'nano'."""
    with ConformanceOllama(tmp_path_factory.mktemp("ollama")) as server:
        data = nano.read_bytes()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        client = httpx.Client(base_url=server.host, trust_env=False)
        assert client.head(f"/api/blobs/{digest}").status_code == 404
        assert client.post(f"/api/blobs/{digest}", content=data).status_code == 201
        assert client.post(f"/api/blobs/{digest}", content=b"").status_code == 200
        assert client.head(f"/api/blobs/{digest}").status_code == 200
        body = {"model": "nano", "files": {"model.gguf": digest}, "parameters": {"num_ctx": 256}}
        assert client.post("/api/create", json=body).status_code == 200
        yield server


def post(server: ConformanceOllama, path: str, body: Any) -> tuple[int, list[dict[str, Any]]]:
    answer = httpx.post(f"{server.host}{path}", json=body, trust_env=False, timeout=60)
    return answer.status_code, [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "nano", "messages": CHAT, "trunkate": True}, 400, "'trunkate'"),
        ("/api/chat", {"model": "nano", "messages": [{"role": "bot"}]}, 400, "invalid role"),
        ("/api/chat", {"model": "nano", "messages": "hi"}, 400, "'messages' must be a list"),
        ("/api/chat", {"model": "nano", "options": {"num_ctx": "2"}}, 400, '"num_ctx"'),
        ("/api/chat", {"model": "nano", "options": {"top_k": 1.5}}, 400, '"top_k"'),
        ("/api/chat", {"model": "nano", "options": {"ctx": 2}}, 400, "unknown parameter 'ctx'"),
        ("/api/chat", {"model": "nano", "options": {"stop": [1]}}, 400, "array of strings"),
        ("/api/chat", {"model": "nano", "keep_alive": "soon"}, 400, "invalid duration"),
        ("/api/chat", {"model": "nobody", "messages": CHAT}, 404, "not found"),
        ("/api/chat", {"model": "-", "messages": CHAT}, 400, "invalid model name"),
        ("/api/create", {"model": "a b", "files": {}}, 400, "invalid model name"),
        ("/api/create", {"model": "a"}, 400, "neither 'from' or 'files'"),
        ("/api/create", {"model": "a", "files": {}}, 400, "no files"),
        ("/api/create", {"model": "a", "files": {"/m": "sha256:0"}}, 400, "must be relative"),
        ("/api/create", {"model": "a", "files": {"m": "sha256:0"}}, 400, "invalid digest"),
        ("/api/create", {"model": "a", "modelfile": "FROM x"}, 400, "no field 'modelfile'"),
        ("/api/show", {"model": "nobody"}, 404, "not found"),
        ("/api/copy", {"source": "nano", "destination": "a b"}, 400, "is invalid"),
        ("/api/copy", {"source": "nobody", "destination": "a"}, 404, "not found"),
        ("/api/show", [], 400, "cannot unmarshal"),
        ("/api/pull", {"model": "x"}, 404, "page not found"),
        ("/api/tags", {}, 405, "not allowed"),
    ],
)
def test_what_is_wrong_is_refused(
    server: ConformanceOllama, path: str, body: Any, status: int, words: str
) -> None:
    found, rows = post(server, path, body)
    assert found == status
    assert words in rows[-1]["error"]


def test_a_missing_body_no_json_and_a_key_twice_are_refused(server: ConformanceOllama) -> None:
    for content, words in (
        (b"", "missing"),
        (b"{", "no JSON"),
        (b'{"model":1,"model":2}', "twice"),
    ):
        answer = httpx.post(f"{server.host}/api/show", content=content, trust_env=False)
        assert answer.status_code == 400 and words in answer.json()["error"]


def test_a_file_that_was_not_sent_and_a_wrong_digest_are_refused(
    server: ConformanceOllama,
) -> None:
    digest = f"sha256:{'0' * 64}"
    status, rows = post(server, "/api/create", {"model": "a", "files": {"m": digest}})
    assert status == 200 and "no such file" in rows[-1]["error"]  # after "parsing GGUF"
    answer = httpx.post(f"{server.host}/api/blobs/{digest}", content=b"x", trust_env=False)
    assert answer.status_code == 400 and "digest mismatch" in answer.json()["error"]


def test_creating_streams_its_statuses_in_ollamas_order(server: ConformanceOllama) -> None:
    digest = server.models["nano:latest"].digest
    body = {"model": "b", "files": {"model.gguf": digest}, "system": "s", "stream": True}
    _, rows = post(server, "/api/create", body)
    said = [row["status"].split(" sha256")[0] for row in rows]
    assert said == [
        "parsing GGUF",
        "validating GGUF model",
        "validating GGUF model",
        "verifying conversion",
        "using existing layer",
        "using autodetected template chatml",
        "creating new layer",
        "creating new layer",
        "writing manifest",
        "success",
    ]
    assert server.models["b:latest"].parameters["stop"] == ["<|im_start|>", "<|im_end|>"]
    assert post(server, "/api/create", body | {"stream": False}) == (200, [{"status": "success"}])


def test_answers_have_the_fields_of_the_api(server: ConformanceOllama) -> None:
    options = {"num_predict": 4, "temperature": 0}
    body = {"model": "nano", "messages": CHAT, "options": options}
    _, rows = post(server, "/api/chat", body)
    assert all(row["done"] is False and row["message"]["content"] for row in rows[:-1])
    last = rows[-1]
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "length", "")
    assert last["eval_count"] == 4 and last["prompt_eval_count"] > 4
    assert min(last[f"{name}_duration"] for name in ("total", "eval", "prompt_eval")) > 0
    text = "".join(row["message"]["content"] for row in rows)
    _, [whole] = post(server, "/api/chat", body | {"stream": False})
    assert (whole["message"]["content"], whole["done"]) == (text, True)
    _, rows = post(
        server, "/api/generate", {"model": "nano", "prompt": CHAT[0]["content"], "options": options}
    )
    assert "".join(row["response"] for row in rows) == text


def test_a_model_is_loaded_by_an_empty_question_and_unloaded_by_keep_alive(
    server: ConformanceOllama,
) -> None:
    body = {"model": "nano", "messages": CHAT, "options": {"num_predict": 1}}
    post(server, "/api/chat", body)
    ps = httpx.get(f"{server.host}/api/ps", trust_env=False).json()
    assert [row["name"] for row in ps["models"]] == ["nano:latest"]
    _, [row] = post(server, "/api/generate", {"model": "nano", "prompt": "", "keep_alive": 0})
    assert (row["done"], row["done_reason"], row["response"]) == (True, "unload", "")
    assert httpx.get(f"{server.host}/api/ps", trust_env=False).json() == {"models": []}
    post(server, "/api/chat", body | {"keep_alive": "0s"})
    assert server.loaded == {}
    _, [row] = post(server, "/api/chat", {"model": "nano"})
    assert row["done_reason"] == "load"


def test_what_does_not_fit_is_cut_unless_that_is_forbidden(server: ConformanceOllama) -> None:
    """Ollama's default, which OllamaChat must never leave in place."""
    chat = [{"role": "user", "content": "word " * 200}, *CHAT]
    body = {"model": "nano", "messages": chat, "options": {"num_predict": 1}}
    _, rows = post(server, "/api/chat", body)
    assert rows[-1]["prompt_eval_count"] < 50  # the first message was left out
    status, [row] = post(server, "/api/chat", body | {"truncate": False})
    assert status == 400 and "error" in row


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("a", "registry.ollama.ai/library/a:latest"),
        ("me/a:7b", "registry.ollama.ai/me/a:7b"),
        ("h:80/me/a", "h:80/me/a:latest"),
    ],
)
def test_names(text: str, full: str) -> None:
    assert full_name(text) == full
    assert short_name(full) == (text if ":" in text[2:] else f"{text}:latest")


@pytest.mark.parametrize("text", ["", "-a", "a b", "a/b/c/d", "a:", ":a", "/a", "a.b/c", "x" * 81])
def test_names_that_are_none(text: str) -> None:
    assert full_name(text) is None


def test_keep_alive() -> None:
    assert [seconds_of(one) for one in (0, 1.5, -1, "5m", "1h30m", "-1s", "250ms")] == [
        0,
        1.5,
        -1,
        300,
        5400,
        -1,
        0.25,
    ]
    for wrong in (True, "", "5", None):
        with pytest.raises(Refusal):
            seconds_of(wrong)


def test_gguf_files_are_read_as_the_product_reads_them(nano: Path, tmp_path: Path) -> None:
    """Two parsers that were written apart: the same keys and tensors, the same files refused."""
    theirs, ours = read_gguf(nano), check_gguf(nano)
    scalars = {key: value for key, value in theirs.keys.items() if not isinstance(value, list)}
    assert scalars == {key: ours.keys[key] for key in scalars}
    assert [(name, kind, shape[::-1]) for name, kind, shape in theirs.tensors] == [
        (tensor.name, tensor.kind, tensor.shape) for tensor in ours.tensors
    ]
    data = nano.read_bytes()
    for change in (
        b"",
        b"GGML" + data[4:],
        data[:4] + struct.pack("<I", 9) + data[8:],
        data[:8] + struct.pack("<Q", 2**60) + data[16:],
        data[:8] + struct.pack("<Q", 0) + data[16:],
        data[: len(data) // 2],
        data[:2000],
    ):
        path = tmp_path / "changed.gguf"
        path.write_bytes(change)
        with pytest.raises(Refusal):
            read_gguf(path)
        with pytest.raises(ForgeError):
            check_gguf(path)
