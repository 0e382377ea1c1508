"""What goes wrong with an Ollama server: each trouble is one error in words, and nothing is left.

The troubles are switched on in conformance_ollama.py; a real Ollama has no such switches, so with
OLLAMA_HOST set these tests are skipped.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
from conformance_ollama import VERSION, ConformanceOllama, Faults
from ollama_fixtures import NOBODY, TOKENIZER, needs_switches, with_template
from ollama_fixtures import host as host
from ollama_fixtures import name as name
from ollama_fixtures import nano as nano
from ollama_fixtures import ollama as ollama

from forge_mcp.errors import CorruptArtifact, ForgeError, OutOfSpace, Unavailable
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import ollama_process, ollama_upload
from forge_mcp.serving.chat import Deployed, Sampling, open_chat
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
from forge_mcp.serving.ollama_api import ConnectionBroken
from forge_mcp.settings import load_settings

pytestmark = [pytest.mark.integration, needs_switches]
QUESTION = [Message(role="user", content="def add(a, b):")]
GREEDY = Sampling(0.0, 1, 1.0, 16)


@pytest.fixture(autouse=True)
def healthy(ollama: ConformanceOllama) -> Iterator[None]:
    """No trouble lasts longer than its test."""
    yield
    ollama.faults, ollama.version, ollama.go_template = Faults(), VERSION, True


def create(ollama: ConformanceOllama, name: str, gguf: Path, **more: Any) -> list[str]:
    """Create a model; what was said."""
    said: list[str] = []
    parameters = {"temperature": 0.0, "num_ctx": 256, "stop": ["STOP"]}
    create_ollama_model(
        name, gguf, "You know demo.", parameters, host=ollama.host, progress=said.append, **more
    )
    return said


def paths(ollama: ConformanceOllama, method: str) -> list[str]:
    return [path for verb, path, _ in ollama.requests if verb == method]


# -- not there -------------------------------------------------------------------------------------


def everything(host: str, gguf: Path) -> list[Any]:
    chat = OllamaChat(host, "m", TOKENIZER, 256)
    return [
        lambda: require_ollama(host),
        lambda: list_ollama_models(host),
        lambda: create_ollama_model("m", gguf, "", {}, host=host),
        lambda: delete_ollama_model("m", host=host),
        lambda: query_model("m", "hi", host=host),
        lambda: unload_ollama_models(host),
        lambda: chat.chat(QUESTION, GREEDY),
    ]


@pytest.mark.parametrize("installed", [True, False])
def test_without_a_server_the_error_says_what_to_do(
    nano: Path, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "/usr/bin/ollama" if installed else None
    monkeypatch.setattr("shutil.which", lambda program: found)
    assert not check_ollama_status(NOBODY)
    expected = "does not answer" if installed else "not installed on this machine"
    for call in everything(NOBODY, nano):
        with pytest.raises(Unavailable, match=expected) as raised:
            call()
        assert ("ollama serve" if installed else "ollama.com/download") in raised.value.next_step


def test_a_port_that_never_accepts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.serving.ollama_api.CONNECT_SECONDS", 0.2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        place = listening.getsockname()
        waiting = []
        for _ in range(4):  # fill the queue of a program that does not accept
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(place)
        time.sleep(0.05)
        try:
            with pytest.raises(Unavailable, match=r"within 0\.2 seconds"):
                list_ollama_models(f"http://127.0.0.1:{place[1]}")
        finally:
            for one in waiting:
                one.close()


class Shouting(BaseHTTPRequestHandler):
    """200 and JSON, whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.says)  # type: ignore[attr-defined]

    do_HEAD = do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Quiet."""


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Quiet."""


@contextmanager
def another_program(handler: type, says: bytes = b"") -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        server.says = says  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Files, b""),
        (Shouting, b"<html>hello</html>"),
        (Shouting, b'{"version": "nightly"}'),
        (Shouting, b'{"error": "no"}'),
        (Shouting, b"[]"),
        (Shouting, b""),
        (Shouting, b"\xff\xfe"),
    ],
)
def test_another_program_at_that_port_is_not_ollama(handler: type, says: bytes, nano: Path) -> None:
    with another_program(handler, says) as host:
        assert not check_ollama_status(host)
        with pytest.raises(Unavailable, match="is not Ollama"):
            create_ollama_model("m", nano, "", {}, host=host)


def test_a_program_that_speaks_no_http_is_not_ollama() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def shout() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example.com ESMTP\r\n\r\n")
            connection.close()

        threading.Thread(target=shout, daemon=True).start()
        with pytest.raises(Unavailable, match="is not Ollama"):
            list_ollama_models(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_proxy_in_the_environment_is_not_used(
    ollama: ConformanceOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(proxy, NOBODY)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert check_ollama_status(ollama.host)
    assert check_ollama_status(ollama.host.removeprefix("http://"))
    assert check_ollama_status(ollama.host.replace("127.0.0.1", "0.0.0.0"))


# -- starting one ----------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program 'ollama' whose 'serve' is the server of the tests."""
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    script = Path(__file__).with_name("conformance_ollama.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    return program


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_server_is_started_where_the_user_allows_it(program: Path, tmp_path: Path) -> None:
    host = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match="does not answer"):
        require_ollama(host)
    said: list[str] = []
    settings = load_settings(None, {"serving": {"ollama_host": host, "start_ollama": True}}).serving
    deployed = Deployed("m", "ollama", tmp_path / "model.gguf", TOKENIZER)
    open_chat(deployed, settings, say=said.append).close()
    serving = [
        one
        for one in psutil.process_iter(["cmdline"])
        if "serve" in (one.info["cmdline"] or ()) and one.ppid() == os.getpid()
    ]
    try:
        log = tmp_path / "forge" / "logs" / "ollama.log"
        assert said == [f"Started 'ollama serve' at {host}; its log is {log}."]
        assert "Listening on" in log.read_text()
        require_ollama(host, start=True, say=said.append)  # it is there: nothing is started
        assert len(said) == 1 and len(serving) == 1
        assert os.getsid(serving[0].pid) != os.getsid(0)  # Ctrl-C here does not end it
    finally:
        for one in serving:
            one.send_signal(signal.SIGTERM)
            one.wait(5)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'Error: bind: address already in use'; exit 1", "ended by itself with exit code 1"),
        ("exit 0", "it wrote nothing"),
        ("exec sleep 60", "did not answer at .* within 0.5 seconds"),
    ],
)
def test_a_server_that_does_not_come_up_is_told(
    program: Path, script: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setattr(ollama_process.start_ollama, "__kwdefaults__", {"wait": 0.5})
    with pytest.raises(Unavailable, match=expected):
        require_ollama(f"http://127.0.0.1:{free_port()}", start=True)


def test_nothing_is_started_elsewhere_or_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forge_mcp.serving.ollama_api.CONNECT_SECONDS", 0.05)
    for address in ("http://192.0.2.1:11434", "https://127.0.0.1:9"):
        with pytest.raises(Unavailable, match="cannot be started there from here"):
            require_ollama(address, start=True)
    monkeypatch.setattr("shutil.which", lambda program: None)
    with pytest.raises(Unavailable, match="no program 'ollama' here to start"):
        require_ollama(NOBODY, start=True)


# -- uploading -------------------------------------------------------------------------------------


def test_nothing_is_sent_twice(ollama: ConformanceOllama, name: str, nano: Path) -> None:
    create(ollama, name, nano)
    ollama.requests.clear()
    create(ollama, name, nano)
    assert len(paths(ollama, "HEAD")) == 1
    assert not [path for path in paths(ollama, "POST") if "blobs" in path]


def test_an_upload_that_breaks_is_tried_once_more_and_told(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    ollama.faults.die_in_upload = 1
    ollama.requests.clear()
    said = create(ollama, name, nano)
    assert len([text for text in said if "tried once more from the start" in text]) == 1
    assert len([path for path in paths(ollama, "POST") if "blobs" in path]) == 2
    assert query_model(name, "hi", host=ollama.host)


def test_an_upload_that_breaks_twice_is_given_up(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    ollama.faults.die_in_upload = 2
    with pytest.raises(ConnectionBroken, match="could not take the model file"):
        create(ollama, name, nano)
    assert list(ollama.blobs.iterdir()) == [] and ollama.models == {}


@pytest.mark.parametrize("where", ["full_disk_in_upload", "full_disk_in_create"])
def test_a_full_disk_is_named(ollama: ConformanceOllama, name: str, nano: Path, where: str) -> None:
    setattr(ollama.faults, where, True)
    with pytest.raises(OutOfSpace, match="its disk is full") as raised:
        create(ollama, name, nano)
    assert "no space left on device" in raised.value.cause
    assert "OLLAMA_MODELS" in raised.value.next_step
    assert ollama.models == {}


def test_a_wrong_digest_is_found(ollama: ConformanceOllama, name: str, nano: Path) -> None:
    with pytest.raises(CorruptArtifact, match="is not what it was") as raised:
        create(ollama, name, nano, sha256="0" * 64)
    assert "digest mismatch" in raised.value.cause
    with pytest.raises(ForgeError, match="could not say which files it has"):
        create(ollama, name, nano, sha256="none")
    assert ollama.models == {}


def test_a_file_that_shrinks_while_it_is_sent_is_found(
    ollama: ConformanceOllama,
    name: str,
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ollama_upload, "CHUNK_BYTES", 1 << 16)
    path = tmp_path / "shrinking.gguf"
    path.write_bytes(nano.read_bytes() + b"padding")

    def shrink(doing: str, done: int, total: int) -> None:
        if doing == "uploading" and path.stat().st_size == total:
            os.truncate(path, total // 2)

    with pytest.raises(CorruptArtifact, match="became shorter"):
        create(ollama, name, path, on_bytes=shrink)
    assert ollama.models == {}


# -- creating --------------------------------------------------------------------------------------


def test_a_server_that_dies_while_creating_leaves_nothing(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    ollama.faults.die_in_create = 1
    with pytest.raises(ConnectionBroken, match=f"could not create {name}"):
        create(ollama, name, nano)
    assert ollama.models == {}
    create(ollama, name, nano)


def test_a_creation_that_is_refused_gives_ollamas_words(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    ollama.faults.refuse_create = "unsupported architecture"
    with pytest.raises(ForgeError, match="unsupported architecture"):
        create(ollama, name, nano)
    assert ollama.models == {}


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("system", "the system prompt is '' instead of 'You know demo.'"),
        ("parameters", "the parameter 'temperature' is None instead of 0.0"),
        ("parameters", "the parameter 'stop'"),
        ("architecture", "the architecture is 'unknown' instead of 'llama'"),
        ("success", "did not finish creating"),
    ],
)
def test_what_ollama_did_not_take_over_is_found_and_removed(
    ollama: ConformanceOllama, name: str, nano: Path, lost: str, named: str
) -> None:
    ollama.faults.loses = lost
    with pytest.raises(ForgeError, match=named):
        create(ollama, name, nano)
    assert ollama.models == {}


def test_a_model_that_was_there_before_is_not_removed(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    create(ollama, name, nano)
    ollama.faults.loses = "system"
    with pytest.raises(ForgeError, match="system prompt"):
        create(ollama, name, nano)
    assert list(ollama.models) == [f"{name}:latest"]


def test_a_server_without_the_files_own_template_is_found(
    ollama: ConformanceOllama, name: str, nano: Path, tmp_path: Path
) -> None:
    """A build from source does not say its version; an old one sends bare prompts."""
    unknown = with_template(lambda jinja: jinja + "{#" + "unlike ChatML " * 9 + "#}", tmp_path)
    ollama.version = "0.0.0"
    with pytest.raises(ForgeError, match="other prompts than it was trained on"):
        create(ollama, name, unknown)
    assert ollama.models == {}
    create(ollama, name, nano)  # ChatML, which it has a template for that writes the same


def test_a_template_that_cannot_be_compared_is_not_trusted(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    ollama.faults.hides_rendering = True
    with pytest.raises(ForgeError, match="other prompts than it was trained on"):
        create(ollama, name, nano)
    ollama.go_template = False  # the file's own is used: nothing needs to be compared
    create(ollama, name, nano)
    assert query_model(name, "hi", host=ollama.host)


# -- answering -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (Faults(die_in_answer=1), "broke off"),
        (Faults(cut_answer=True), "broke off its answer"),
        (Faults(error_in_answer="model runner has unexpectedly stopped"), "unexpectedly stopped"),
        (Faults(error_in_answer="write: no space left on device"), "disk is full"),
    ],
)
def test_an_answer_that_does_not_end_well_is_an_error(
    ollama: ConformanceOllama, name: str, nano: Path, trouble: Faults, expected: str
) -> None:
    create(ollama, name, nano)
    chat = OllamaChat(ollama.host, name, TOKENIZER, 256)
    for ask in (
        lambda: chat.chat(QUESTION, GREEDY),
        lambda: query_model(name, QUESTION[0].content, host=ollama.host),
    ):
        ollama.faults = replace(trouble)
        with pytest.raises(ForgeError, match=expected):
            ask()
        ollama.faults = Faults()
    assert chat.chat(QUESTION, GREEDY).text
    chat.close()


def test_a_server_that_is_too_slow_is_given_up(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    create(ollama, name, nano)
    ollama.faults.silent_seconds = 0.6
    chat = OllamaChat(ollama.host, name, TOKENIZER, 256, timeout=0.2)
    with pytest.raises(Unavailable, match=r"silent for 0\.2 seconds") as raised:
        chat.chat(QUESTION, GREEDY)
    assert "ollama_timeout" in raised.value.next_step
    chat.close()


def test_who_stops_listening_stops_the_answer(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    create(ollama, name, nano)
    chat = OllamaChat(ollama.host, name, TOKENIZER, 256)
    heard: list[str] = []

    def stop(text: str) -> None:
        heard.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.chat(QUESTION, GREEDY, on_text=stop)
    assert len(heard) == 1
    assert chat.chat(QUESTION, GREEDY).text
    chat.close()


def test_an_ollama_that_does_not_tell_its_prompt_has_it_counted_generously(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    create(ollama, name, nano)
    chat = OllamaChat(ollama.host, name, TOKENIZER, 256)
    exact = chat.count_tokens(QUESTION)
    ollama.faults.hides_rendering = True
    assert exact < chat.count_tokens(QUESTION) < exact + 40
    chat.close()


def test_the_request_says_that_nothing_may_be_cut(
    ollama: ConformanceOllama, name: str, nano: Path
) -> None:
    create(ollama, name, nano)
    chat = OllamaChat(ollama.host, name, TOKENIZER, 256)
    sampling = Sampling(0.2, 40, 0.9, 3, stop=("STOP",), repeat_penalty=1.1, seed=5, min_p=0.05)
    chat.chat(QUESTION, sampling)
    body = ollama.requests[-1][2]
    assert (body["truncate"], body["shift"], body["stream"]) == (False, False, True)
    assert body["options"] == {
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "seed": 5,
        "num_predict": 3,
        "num_ctx": 256,
        "stop": ["STOP"],
    }
    chat.close()
    query_model(name, "hi", 0.3, host=ollama.host)
    body = ollama.requests[-1][2]
    assert (body["truncate"], body["shift"], body["stream"]) == (False, False, True)
    assert body["options"] == {"temperature": 0.3}


def test_models_are_there_again_after_a_restart(name: str, nano: Path, tmp_path: Path) -> None:
    with ConformanceOllama(tmp_path) as server:
        create(server, name, nano)
        said = query_model(name, "hi", host=server.host)
    with ConformanceOllama(tmp_path) as server:
        assert query_model(name, "hi", host=server.host) == said
