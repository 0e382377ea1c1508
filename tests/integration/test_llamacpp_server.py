"""The embedded runtime as a server of its own process: real processes, real sockets, real kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

from forge_mcp.errors import BadInput, Cancelled, CorruptArtifact, ForgeError, NotFound, Unavailable
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import make_room
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import llamacpp_server
from forge_mcp.serving.chat import Deployed, Sampling, open_chat
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.serving.llamacpp_server import (
    ServerChat,
    ServerPlace,
    ServerRecord,
    dead_servers,
    open_server,
    running_servers,
    stop_server,
    stop_servers,
    sweep_servers,
)
from forge_mcp.settings import ServingSettings, load_settings
from forge_mcp.training.bases import resolve_base
from forge_mcp.workspace import Workspace

NANO = Path(str(files("forge_mcp").joinpath("assets/forge-nano")))
ASKED = [Message(role="user", content="What does `json.dumps` return?")]
SHORT, LONG = Sampling(0.0, 1, 1.0, 12), Sampling(0.0, 1, 1.0, 480)
# Words that nano goes on and on about.
ENDLESS = [Message(role="user", content="def f")]


def serving(**changed: object) -> ServingSettings:
    usual = {"num_ctx": 512, "threads": 1, "unload_after": 60.0}
    return load_settings(None, {"serving": usual | changed}).serving


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_to_gguf(NANO, tmp_path_factory.mktemp("nano") / "nano.gguf", "q8_0")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    found = Workspace(tmp_path / "forge")
    yield found
    stop_servers(found)


def deployed(gguf: Path, model: str = "demo-1", project: str = "demo") -> Deployed:
    return Deployed(model, "llamacpp", gguf, NANO / "tokenizer.json", project)


@pytest.fixture
def server(workspace: Workspace, nano: Path) -> ServerChat:
    return open_server(workspace, deployed(nano), serving())


def only(workspace: Workspace) -> ServerRecord:
    [record] = running_servers(workspace)
    return record


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gone(record: ServerRecord) -> bool:
    """Whether its process has ended (it may still wait to be reaped)."""
    try:
        return psutil.Process(record.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def request(
    record: ServerRecord, method: str, path: str, key: str | None, body: object = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=20)
    with contextlib.closing(connection):
        headers = {"Origin": "http://evil.example"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, json.dumps(body or {}), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


# -- the same model --------------------------------------------------------------------------------


def test_it_answers_as_the_model_in_this_process_does(server: ServerChat, nano: Path) -> None:
    here = LlamaCppChat(nano, num_ctx=512, threads=1)
    try:
        pieces: list[str] = []
        reply = server.chat(ASKED, SHORT, on_text=pieces.append)
        assert reply == here.chat(ASKED, SHORT)
        assert "".join(pieces) == reply.text
        assert len(pieces) > 5
        assert server.render(ASKED) == here.render(ASKED)
        assert server.tokenize("def f<|im_end|>") == here.tokenize("def f<|im_end|>")
        assert server.count_tokens(ASKED) == reply.prompt_tokens
        assert server.embed(["def f(): pass", "x"]) == here.embed(["def f(): pass", "x"])
        assert server.context == here.context == 512
        stopped = server.chat(ASKED, Sampling(0.0, 1, 1.0, 12, stop=(pieces[3],)))
        assert stopped.stopped
        assert stopped.text == reply.text.partition(pieces[3])[0]
    finally:
        here.close()


def test_its_refusals_are_in_words(server: ServerChat) -> None:
    with pytest.raises(BadInput, match="longer than the model's context"):
        server.chat([Message(role="user", content="word " * 900)], SHORT)
    with pytest.raises(BadInput, match="could not answer"):
        server.embed(["word " * 600])
    assert server.chat(ASKED, SHORT).text


def test_what_a_listener_raises_ends_the_generation(server: ServerChat) -> None:
    def leave(text: str) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        server.chat(ENDLESS, LONG, on_text=leave)

    def idle() -> bool:
        _, _, seen = request(server._record, "GET", "/metrics", server._record.key)
        return b"llamacpp:requests_processing 0" in seen

    wait_until(idle)
    assert server.chat(ASKED, SHORT).completion_tokens == 12


# -- one server for all ----------------------------------------------------------------------------


FACE = """
import sys
from pathlib import Path
from forge_mcp.serving.chat import Deployed, Sampling
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import make_room
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.llamacpp_server import open_server
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace
home, gguf = map(Path, sys.argv[1:3])
serving = load_settings(None, {"serving": {"num_ctx": 512, "threads": 1}}).serving
chat = open_server(Workspace(home), Deployed("demo-1", "llamacpp", gguf, gguf, "demo"), serving)
asked = [Message(role="user", content="What does `json.dumps` return?")]
print(chat._record.pid, chat.chat(asked, Sampling(0.0, 1, 1.0, 12)).text)
"""


def test_faces_that_start_at_once_get_one_server(workspace: Workspace, nano: Path) -> None:
    command = [sys.executable, "-c", FACE, str(workspace.home), str(nano)]
    faces = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {face.communicate(timeout=120)[0] for face in faces}
    assert [face.returncode for face in faces] == [0, 0, 0]
    assert len(told) == 1
    record = only(workspace)
    assert told.pop().startswith(f"{record.pid} ")
    assert not gone(record)  # it outlives the faces that started it
    assert os.getsid(record.pid) != os.getsid(0)
    chat = open_chat(deployed(nano), serving(), shared_in=workspace)
    assert isinstance(chat, ServerChat)
    assert chat._record.pid == record.pid
    chat.close()
    assert only(workspace).pid == record.pid


def test_other_settings_need_another_server(workspace: Workspace, nano: Path) -> None:
    small = open_server(workspace, deployed(nano), serving(num_ctx=256))
    large = open_server(workspace, deployed(nano), serving(num_ctx=512))
    again = open_server(workspace, deployed(nano), serving(num_ctx=256, temperature=1.0))
    assert small._record.pid == again._record.pid != large._record.pid
    assert (small.context, large.context) == (256, 512)


# -- who may ask -----------------------------------------------------------------------------------


def test_nobody_is_answered_without_the_key(server: ServerChat) -> None:
    record = server._record
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/completion"),
        ("POST", "/v1/embeddings"),
        ("POST", "/tokenize"),
        ("POST", "/apply-template"),
        ("GET", "/metrics"),
        ("GET", "/props"),
        ("GET", "/v1/models"),
    ]:
        for key in (None, "", "wrong", record.key[:-1]):
            status, headers, body = request(record, method, path, key)
            assert status == 401, path
            assert b"Invalid API Key" in body
            assert not headers.get("Access-Control-Allow-Origin")
    status, headers, body = request(record, "GET", "/health", None)
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    status, headers, body = request(record, "GET", "/v1/models", record.key)
    assert not headers.get("Access-Control-Allow-Origin")
    assert json.loads(body)["data"][0]["id"] == "demo-1"  # no path of this machine


def test_the_key_stands_where_only_this_user_can_read_it(
    server: ServerChat, workspace: Workspace
) -> None:
    record = server._record
    place = server._place
    assert place.record_file.stat().st_mode & 0o777 == 0o600
    assert place.record_file.parent.stat().st_mode & 0o077 == 0
    assert len(record.key) >= 40
    command = psutil.Process(record.pid).cmdline()
    assert record.key not in " ".join(command)
    assert record.key not in str(psutil.Process(record.pid).environ())
    stop_servers(workspace)
    again = open_server(workspace, deployed(Path(record.task.gguf)), serving())
    assert again._record.key != record.key


def test_it_listens_on_loopback_alone(server: ServerChat) -> None:
    port = server._record.port
    listening = psutil.Process(server._record.pid).net_connections(kind="inet")
    assert {one.laddr for one in listening if one.status == psutil.CONN_LISTEN} == {
        ("127.0.0.1", port)
    }
    others = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    } - {"127.0.0.1"}
    for address in others | ({"127.0.0.2"} if sys.platform == "linux" else set()):
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):
            pass


# -- death and life --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_server_that_died_is_started_again_once_and_that_is_said(
    workspace: Workspace, nano: Path, how: signal.Signals
) -> None:
    said: list[str] = []
    chat = open_server(workspace, deployed(nano), serving(), say=said.append)
    expected = chat.chat(ASKED, SHORT).text
    first = only(workspace)
    os.kill(first.pid, how)
    wait_until(lambda: dead_servers(workspace) == ["demo-1"])
    assert said == []
    assert chat.chat(ASKED, SHORT).text == expected
    assert only(workspace).pid != first.pid
    assert said == ["The server of demo-1 had died; it is started again."]
    assert chat.count_tokens(ASKED) > 0
    assert len(said) == 1


def test_a_death_in_the_middle_of_an_answer_is_told_and_the_next_question_answered(
    workspace: Workspace, nano: Path
) -> None:
    chat = open_server(workspace, deployed(nano), serving())

    def kill(text: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chat._record.pid, signal.SIGSEGV)

    with pytest.raises(ForgeError, match="in the middle of an answer") as told:
        chat.chat(ENDLESS, LONG, on_text=kill)
    assert "Segmentation fault" in told.value.cause
    assert chat.chat(ASKED, SHORT).text


def test_a_server_that_dies_again_and_again_is_given_up(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = open_server(workspace, deployed(nano), serving())
    ensure = chat._ensure

    def killed() -> ServerRecord:
        record = ensure()
        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: not chat._place.alive)
        return record

    monkeypatch.setattr(chat, "_ensure", killed)
    os.kill(chat._record.pid, signal.SIGKILL)
    wait_until(lambda: not chat._place.alive)
    with pytest.raises(ForgeError, match="in the middle of an answer"):
        chat.count_tokens(ASKED)


def test_a_server_that_hangs_is_ended_and_another_one_started(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_server, "HEALTH_SECONDS", 0.3)
    monkeypatch.setattr(llamacpp_server, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(llamacpp_server, "END_SECONDS", 0.1)
    said: list[str] = []
    open_server(workspace, deployed(nano), serving())
    hung = only(workspace)
    os.kill(hung.pid, signal.SIGSTOP)
    chat = open_server(workspace, deployed(nano), serving(), say=said.append)
    assert said == ["The server of demo-1 does not answer and is ended."]
    wait_until(lambda: gone(hung))
    assert chat.chat(ASKED, SHORT).text


def test_it_ends_when_nobody_asks_and_starts_again_in_silence(
    workspace: Workspace, nano: Path
) -> None:
    said: list[str] = []
    chat = open_server(workspace, deployed(nano), serving(unload_after=1.0), say=said.append)
    record = only(workspace)
    for _ in range(8):  # questions keep it
        chat.chat(ASKED, SHORT)
        time.sleep(0.2)
    assert only(workspace).pid == record.pid
    wait_until(lambda: gone(record))
    assert running_servers(workspace) == []
    assert dead_servers(workspace) == []
    assert not chat._place.record_file.exists()
    assert chat.chat(ASKED, SHORT).text
    assert said == []


def test_it_ends_when_its_file_is_replaced(workspace: Workspace, nano: Path) -> None:
    own = workspace.home.parent / "own.gguf"
    own.write_bytes(nano.read_bytes())
    open_server(workspace, deployed(own), serving())
    first = only(workspace)
    replaced = own.with_suffix(".new")
    replaced.write_bytes(nano.read_bytes())
    replaced.replace(own)
    os.utime(own, (1, 1))
    second = open_server(workspace, deployed(own), serving())
    assert second._record.pid != first.pid
    wait_until(lambda: gone(first))
    own.unlink()
    wait_until(lambda: gone(second._record))
    with pytest.raises(NotFound, match=r"own\.gguf"):
        open_server(workspace, deployed(own), serving())


def test_it_ends_when_its_workspace_is_gone(workspace: Workspace, server: ServerChat) -> None:
    record = server._record
    server._place.record_file.unlink()
    wait_until(lambda: gone(record))


def test_stopping_lets_the_answer_be_finished(workspace: Workspace, nano: Path) -> None:
    chat = open_server(workspace, deployed(nano), serving())
    begun = threading.Event()
    replies = []

    def ask() -> None:
        replies.append(chat.chat(ENDLESS, LONG, on_text=lambda text: begun.set()))

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(20)
    assert stop_server(workspace, "demo-1")
    thread.join()
    assert replies[0].completion_tokens > 1
    assert running_servers(workspace) == []
    assert not stop_server(workspace, "demo-1")


def test_servers_are_stopped_by_project_and_model(workspace: Workspace, nano: Path) -> None:
    for model, project in (("a-1", "a"), ("a-2", "a"), ("b-1", "b")):
        open_server(workspace, deployed(nano, model, project), serving())
    assert stop_servers(workspace, project="a", keep="a-2") == ["a-1"]
    assert stop_server(workspace, "none") is False
    assert sorted(one.task.model for one in running_servers(workspace)) == ["a-2", "b-1"]
    assert sorted(stop_servers(workspace)) == ["a-2", "b-1"]
    assert stop_servers(workspace) == []


def test_what_a_dead_server_left_is_swept_and_a_living_one_stays(
    workspace: Workspace, nano: Path
) -> None:
    open_server(workspace, deployed(nano, "one"), serving())
    open_server(workspace, deployed(nano, "two"), serving())
    one = next(record for record in running_servers(workspace) if record.task.model == "one")
    os.kill(one.pid, signal.SIGKILL)
    wait_until(lambda: dead_servers(workspace) == ["one"])
    assert sweep_servers(workspace) == ["one"]
    assert dead_servers(workspace) == []
    assert only(workspace).task.model == "two"
    left = {path.name for path in (workspace.home / "servers").iterdir()}
    assert {name.partition("-")[0] for name in left} == {"two"}


def test_others_make_room_where_memory_is_short(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_server(workspace, deployed(nano, "one"), serving())
    monkeypatch.setattr(llamacpp_server, "available_bytes", lambda: 1000)
    said: list[str] = []
    open_server(workspace, deployed(nano, "two"), serving(), say=said.append)
    assert said == ["The server of one was ended to make room for two."]
    assert only(workspace).task.model == "two"


@pytest.mark.parametrize("short", [False, True])
def test_a_training_that_needs_the_memory_ends_the_servers(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    open_server(workspace, deployed(nano, "one"), serving())
    base, how = resolve_base("forge-nano"), load_settings().training
    free = base.training_bytes(how) - short
    monkeypatch.setattr("forge_mcp.machine.available_bytes", lambda: free)
    off = load_settings(call={"jobs": {"unload_ollama": False}})
    said: list[str] = []
    context = SkillContext(
        workspace, off, "demo", sink=lambda event: said.append(event.payload["message"])
    )
    make_room(base, how, context)
    assert [one.task.model for one in running_servers(workspace)] == ([] if short else ["one"])
    assert said == ["To make room for the training, one was unloaded."] * short


# -- starts that fail ------------------------------------------------------------------------------


def test_what_its_process_cannot_load_is_told_here(workspace: Workspace, nano: Path) -> None:
    strange = workspace.home.parent / "strange.gguf"
    strange.write_bytes(nano.read_bytes().replace(b"llama", b"lhama"))
    with pytest.raises(CorruptArtifact, match=r"cannot load strange\.gguf"):
        open_server(workspace, deployed(strange), serving())
    assert running_servers(workspace) == []
    assert dead_servers(workspace) == []


def test_a_process_that_does_not_start_is_told_with_its_last_words(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Unavailable, match="could not start") as told:
        open_server(workspace, deployed(nano), serving())
    assert "exit code 3" in told.value.cause
    assert "no such thing" in told.value.cause
    python.unlink()
    with pytest.raises(ForgeError, match="start the server of demo-1"):
        open_server(workspace, deployed(nano), serving())


def test_one_that_takes_too_long_is_given_up(
    workspace: Workspace, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_server, "LOAD_SECONDS", 0.05)
    with pytest.raises(Unavailable, match="could not start") as told:
        open_server(workspace, deployed(nano), serving())
    assert "still not ready; it said: nothing" in told.value.cause


def test_a_second_process_for_one_lock_ends_at_once(workspace: Workspace, nano: Path) -> None:
    chat = open_server(workspace, deployed(nano), serving())
    second = subprocess.run(
        [sys.executable, "-m", "forge_mcp.serving.llamacpp_process", str(chat._place.lock)],
        input=chat._task.model_dump_json(),
        text=True,
        timeout=60,
    )
    assert second.returncode == 0
    assert only(workspace) == chat._record


def test_a_workspace_that_cannot_hold_its_record_is_told(nano: Path, tmp_path: Path) -> None:
    (tmp_path / "forge").write_text("a file")
    with pytest.raises(ForgeError, match="start the server of demo-1"):
        open_server(Workspace(tmp_path / "forge"), deployed(nano), serving())


def test_who_does_not_want_to_wait_leaves_nothing_behind(workspace: Workspace, nano: Path) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        open_server(workspace, deployed(nano), serving(), check=check)
    [place] = [ServerPlace(workspace.home, p.stem) for p in workspace.home.rglob("*.starting")]
    wait_until(lambda: not place.alive)
    assert open_server(workspace, deployed(nano), serving()).chat(ASKED, SHORT).text


def test_a_second_face_is_told_that_it_waits(workspace: Workspace, nano: Path) -> None:
    said: list[str] = []
    faces = [
        threading.Thread(
            target=open_server,
            args=(workspace, deployed(nano), serving()),
            kwargs={"say": said.append},
        )
        for _ in range(2)
    ]
    for face in faces:
        face.start()
    for face in faces:
        face.join()
    assert said == ["Another process is loading demo-1; waiting for it."]
    assert only(workspace)


def test_a_number_that_became_another_process_is_not_signalled(server: ServerChat) -> None:
    other = server._record.model_copy(update={"pid": os.getpid()})
    assert not llamacpp_server._kill(other, signal.SIGKILL)
    assert not llamacpp_server._kill(other.model_copy(update={"pid": 2**22 + 1}), signal.SIGKILL)
