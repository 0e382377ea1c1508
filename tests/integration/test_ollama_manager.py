"""Ollama through its own client, against a small FAKE of its server on loopback.

No real Ollama runs in these tests. The fake speaks the endpoints that are used, as Ollama's source
has them (routes.go, August 2026): blobs by digest, create as a stream of JSON lines that ends in
"success", tags, chat as a stream, delete; and it checks what it is sent.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from forge_mcp.errors import BadInput, ForgeError, NotFound, Unavailable
from forge_mcp.pipeline.deploy import DeployRequest, deploy
from forge_mcp.pipeline.models import (
    ActivateRequest,
    ModelsRequest,
    RollbackRequest,
    activate,
    models,
    rollback,
)
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.prompt import render_messages
from forge_mcp.schemas.raft_examples import ChatRow, Message
from forge_mcp.serving.chat import Sampling
from forge_mcp.serving.ollama import (
    OllamaChat,
    check_ollama_status,
    create_ollama_model,
    delete_ollama_model,
    list_ollama_models,
    query_model,
    require_ollama,
    unload_ollama_models,
)
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Artifact, Workspace, write_jsonl

pytestmark = pytest.mark.integration
SAMPLING = Sampling(0.2, 40, 0.9, 64, stop=("STOP",))


@dataclass
class FakeOllama:
    """What the fake server holds, and what it was asked. `answer` is what every model says."""

    answer: list[str] = field(default_factory=lambda: ["It ", "is ", "5."])
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    chats: list[dict[str, Any]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    create_error: str = ""
    break_off: bool = False
    host: str = ""


class Handler(BaseHTTPRequestHandler):
    fake: FakeOllama

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, *rows: Any) -> None:
        data = b"\n".join(json.dumps(row).encode() for row in rows)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/api/ps":
            return self.reply(200, {"models": [{"model": n, "name": n} for n in self.fake.loaded]})
        assert self.path == "/api/tags"
        names = [{"model": name, "name": name} for name in self.fake.models]
        return self.reply(200, {"models": names})

    def do_DELETE(self) -> None:
        name = self.tagged(json.loads(self.body())["model"])
        if self.fake.models.pop(name, None) is None:
            return self.reply(404, {"error": f"model '{name}' not found"})
        return self.reply(200)

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            digest, data = self.path.rpartition("/")[2], self.body()
            if digest != f"sha256:{hashlib.sha256(data).hexdigest()}":
                return self.reply(400, {"error": "digest does not match"})
            self.fake.blobs[digest] = data
            return self.reply(201)
        request = json.loads(self.body())
        if self.path == "/api/generate":
            assert request["keep_alive"] == 0 and not request["prompt"]
            self.fake.loaded.remove(request["model"])
            return self.reply(200, {"model": request["model"], "response": "", "done": True})
        return self.create(request) if self.path == "/api/create" else self.chat(request)

    def create(self, request: dict[str, Any]) -> None:
        assert set(request) <= {"model", "files", "system", "parameters", "stream"}, request
        if any(digest not in self.fake.blobs for digest in request["files"].values()):
            return self.reply(400, {"error": "blob not found"})
        if self.fake.create_error:
            return self.reply(200, {"status": "parsing GGUF"}, {"error": self.fake.create_error})
        self.fake.models[self.tagged(request["model"])] = request
        return self.reply(200, {"status": "parsing GGUF"}, {"status": "success"})

    def chat(self, request: dict[str, Any]) -> None:
        assert self.path == "/api/chat"
        if self.tagged(request["model"]) not in self.fake.models:
            return self.reply(404, {"error": f"model '{request['model']}' not found"})
        self.fake.chats.append(request)
        end = {
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": 7,
            "eval_count": len(self.fake.answer),
        }
        if not request.get("stream"):
            text = "".join(self.fake.answer)
            return self.reply(200, {"message": {"role": "assistant", "content": text}} | end)
        rows: list[dict[str, Any]] = [
            {"message": {"role": "assistant", "content": text}, "done": False}
            for text in self.fake.answer
        ]
        if not self.fake.break_off:
            rows.append({"message": {"role": "assistant", "content": ""}} | end)
        return self.reply(200, *rows)

    @staticmethod
    def tagged(name: str) -> str:
        return name if ":" in name else f"{name}:latest"


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    fake = FakeOllama()
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    fake.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """Stands for a model file: the fake reads no GGUF."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 400)
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def test_a_model_is_created_listed_asked_and_deleted(ollama: FakeOllama, gguf: Path) -> None:
    said: list[str] = []
    system = 'Say """hi""" and "bye"\n\N{PARTY POPPER}'
    create_ollama_model(
        "demo-1", gguf, system, {"temperature": 0.1}, host=ollama.host, progress=said.append
    )
    assert said == ["uploading", "parsing GGUF", "success"]
    made = ollama.models["demo-1:latest"]
    assert made["system"] == system
    assert made["parameters"] == {"temperature": 0.1}
    assert list(ollama.blobs.values()) == [gguf.read_bytes()]
    assert check_ollama_status(ollama.host)
    assert list_ollama_models(ollama.host) == ["demo-1:latest"]
    assert query_model("demo-1", "2 + 3?", 0.7, host=ollama.host) == "It is 5."
    assert ollama.chats[-1]["options"]["temperature"] == 0.7
    delete_ollama_model("demo-1", host=ollama.host)
    assert list_ollama_models(ollama.host) == []


def test_without_ollama_the_error_says_what_to_do(gguf: Path, tokenizer: Path) -> None:
    assert not check_ollama_status(NOBODY)
    chat = OllamaChat(NOBODY, "m", tokenizer, 512)
    for call in (
        lambda: require_ollama(NOBODY),
        lambda: list_ollama_models(NOBODY),
        lambda: create_ollama_model("m", gguf, "", {}, host=NOBODY),
        lambda: delete_ollama_model("m", host=NOBODY),
        lambda: query_model("m", "hi", host=NOBODY),
        lambda: chat.chat([Message(role="user", content="hi")], SAMPLING),
    ):
        with pytest.raises(Unavailable, match="does not answer") as raised:
            call()
        assert "ollama serve" in raised.value.next_step


def test_a_proxy_in_the_environment_is_not_used(
    ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert check_ollama_status(ollama.host)


def test_what_is_missing_is_named(ollama: FakeOllama, tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.gguf"):
        create_ollama_model("m", tmp_path / "gone.gguf", "", {}, host=ollama.host)
    with pytest.raises(NotFound, match="no model 'nobody'"):
        query_model("nobody", "hi", host=ollama.host)
    with pytest.raises(NotFound, match="no model 'nobody'"):
        delete_ollama_model("nobody", host=ollama.host)
    chat = OllamaChat(ollama.host, "nobody", tokenizer, 512)
    with pytest.raises(NotFound, match="no model 'nobody'"):
        chat.chat([Message(role="user", content="hi")], SAMPLING)


def test_a_creation_that_ollama_refuses_gives_its_words(ollama: FakeOllama, gguf: Path) -> None:
    ollama.create_error = "unsupported architecture"
    with pytest.raises(ForgeError, match="unsupported architecture"):
        create_ollama_model("m", gguf, "", {}, host=ollama.host)
    assert ollama.models == {}


def test_a_chat_streams_with_the_given_sampling(
    ollama: FakeOllama, gguf: Path, tokenizer: Path
) -> None:
    create_ollama_model("m", gguf, "", {}, host=ollama.host)
    chat = OllamaChat(ollama.host, "m", tokenizer, 512)
    pieces: list[str] = []
    reply = chat.chat([Message(role="user", content="2 + 3?")], SAMPLING, on_text=pieces.append)
    assert pieces == ollama.answer
    assert (reply.text, reply.stopped) == ("It is 5.", True)
    assert (reply.prompt_tokens, reply.completion_tokens) == (7, 3)
    assert ollama.chats[-1]["options"] == {
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.9,
        "num_predict": 64,
        "num_ctx": 512,
        "stop": ["STOP"],
    }
    with pytest.raises(BadInput, match="longer than the model's context"):
        chat.chat([Message(role="user", content="word " * 600)], SAMPLING)
    ollama.break_off = True
    with pytest.raises(ForgeError, match="broke off"):
        chat.chat([Message(role="user", content="hi")], SAMPLING)


# -- the skills ------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path, gguf: Path, tokenizer: Path) -> tuple[Workspace, Artifact]:
    """A dataset, run, passing report and export by hand; the fake reads none of them."""
    workspace = Workspace(tmp_path / "forge")

    def keep(kind: Any, files: dict[str, Any], parents: list[str], result: Any = None) -> Artifact:
        with workspace.stage(kind, "demo") as staged:
            for name, content in files.items():
                if isinstance(content, bytes):
                    (staged.path / name).write_bytes(content)
                else:
                    write_jsonl(staged.path / name, content)
            hashed = hashlib.sha256(f"{kind}{parents}".encode()).hexdigest()
            id = workspace.new_id(kind, "demo", hashed)
            return staged.commit(id=id, inputs_hash=hashed, parents=parents, result=result)

    row = ChatRow(messages=render_messages([], "What?", "<ANSWER>: 5", "You know demo."))
    dataset = keep("dataset", {f"{s}.jsonl": [row] for s in ("train", "valid", "test")}, [])
    run = keep("run", {}, [dataset.id])
    keep("report", {}, [run.id], {"passed": True})
    files = {"model.gguf": gguf.read_bytes(), "tokenizer.json": tokenizer.read_bytes()}
    return workspace, keep("export", files, [run.id])


def context_for(workspace: Workspace, host: str) -> SkillContext:
    settings = load_settings(None, {"serving": {"target": "ollama", "ollama_host": host}})
    return SkillContext(workspace, settings, "demo")


def test_deploy_creates_asks_and_switches(
    ollama: FakeOllama, exported: tuple[Workspace, Artifact]
) -> None:
    workspace, export = exported
    context = context_for(workspace, ollama.host)
    result = deploy(DeployRequest(run_or_export=export.id), context)
    assert (result.target, result.previous) == ("ollama", None)
    made = ollama.models[f"{result.model}:latest"]
    assert made["system"] == "You know demo."
    assert set(made["parameters"]) == {"temperature", "top_k", "top_p", "num_ctx", "num_predict"}
    assert len(ollama.chats) == 1
    assert models(ModelsRequest(), context).active == result.model
    assert deploy(DeployRequest(run_or_export=export.id), context).previous is None

    delete_ollama_model(result.model, host=ollama.host)
    with pytest.raises(NotFound, match="no longer in Ollama"):
        activate(ActivateRequest(model=result.model), context)


@pytest.mark.parametrize("trouble", ["create_error", "answer", "break_off"])
def test_a_failing_deployment_leaves_ollama_and_the_registry_as_they_were(
    ollama: FakeOllama, exported: tuple[Workspace, Artifact], trouble: str
) -> None:
    workspace, export = exported
    context = context_for(workspace, ollama.host)
    setattr(ollama, trouble, {"create_error": "no", "answer": [" "], "break_off": True}[trouble])
    with pytest.raises(ForgeError):
        deploy(DeployRequest(run_or_export=export.id), context)
    assert ollama.models == {}
    assert models(ModelsRequest(), context).models == []
    assert list(workspace.folder("deployment").iterdir()) == []


def test_without_ollama_nothing_is_deployed(exported: tuple[Workspace, Artifact]) -> None:
    workspace, export = exported
    context = context_for(workspace, NOBODY)
    with pytest.raises(Unavailable, match="does not answer"):
        deploy(DeployRequest(run_or_export=export.id), context)
    with pytest.raises(NotFound, match="earlier"):
        rollback(RollbackRequest(), context)


def test_loaded_models_give_their_memory_back(ollama: FakeOllama) -> None:
    ollama.loaded = ["a:latest", "b:7b"]
    assert unload_ollama_models(ollama.host) == ["a:latest", "b:7b"]
    assert ollama.loaded == [] and unload_ollama_models(ollama.host) == []
    assert unload_ollama_models("http://192.0.2.1:11434") == []  # another machine's memory
    with pytest.raises(Unavailable):
        unload_ollama_models("http://127.0.0.1:9")


@pytest.mark.parametrize("short", [True, False])
def test_a_training_makes_room_where_memory_is_short(
    ollama: FakeOllama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    from forge_mcp.pipeline import train as train_module
    from forge_mcp.training.bases import resolve_base

    ollama.loaded = ["big:70b"]
    base = resolve_base("forge-nano")
    how = load_settings().training
    free = base.training_bytes(how) - 1 if short else base.training_bytes(how)
    monkeypatch.setattr("forge_mcp.machine.available_bytes", lambda: free)
    said: list[str] = []
    context = SkillContext(
        workspace=Workspace(tmp_path),
        settings=load_settings(call={"serving": {"ollama_host": ollama.host}}),
        project="sample",
        sink=lambda event: said.append(event.payload["message"]),
    )
    train_module.make_room(base, how, context)
    assert ollama.loaded == ([] if short else ["big:70b"])
    assert len(said) == short and all("big:70b" in text for text in said)
