"""A small real HTTP server that plays a teacher: good, slow, broken, greedy, as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends: a status, a body (cut after `cut` bytes), headers, after a while."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None


Script = Callable[[str, dict[str, Any]], Reply | str]


def said(text: str | None, *, ollama: bool = False, why: str = "stop") -> Reply:
    """A whole answer of the model, in the protocol's form."""
    message = {"role": "assistant", "content": text}
    row: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": why}]}
    if ollama:
        row = {"message": message, "done": True, "done_reason": why}
    return Reply(json.dumps(row).encode())


@dataclass
class TeacherServer:
    """The server's address, and every request that came: (path, headers, body)."""

    url: str
    requests: list[tuple[str, dict[str, str], dict[str, Any]]]

    def asked(self) -> list[str]:
        """The users' turns of all questions, in the order in which they came."""
        return [
            body["messages"][-1]["content"] for path, _, body in self.requests if "messages" in body
        ]


@contextmanager
def teacher_server(script: Script, listing: Reply | None = None) -> Iterator[TeacherServer]:
    """A teacher on this machine. `script` gets the user's turn and the request's body, and gives
    the model's text or a whole reply; `listing` answers GET."""
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
    models = Reply(json.dumps({"data": [], "models": [{"name": "tutor:latest"}]}).encode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, dict(self.headers), {}))
            self.send(listing or models)

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = json.loads(self.rfile.read(length))
            requests.append((self.path, dict(self.headers), body))
            reply = script(body["messages"][-1]["content"], body)
            ollama = self.path == "/api/chat"
            self.send(said(reply, ollama=ollama) if isinstance(reply, str) else reply)

        def send(self, reply: Reply) -> None:
            time.sleep(reply.delay)
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: reply.cut])
            except OSError:
                return  # the client has hung up, as it should after a timeout
            self.close_connection = reply.cut is not None

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield TeacherServer(f"http://127.0.0.1:{server.server_address[1]}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
