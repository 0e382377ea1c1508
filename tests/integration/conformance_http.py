"""How the Ollama server of tests answers over HTTP: routes, streams, and connections that break."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from conformance_rules import Refusal, check_digest, full_name, read_request, seconds_of, short_name

from forge_mcp.schemas.raft_examples import Message

if TYPE_CHECKING:
    from conformance_ollama import ConformanceOllama


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    ollama: ConformanceOllama
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def handle_one(self) -> None:
        """Any request. As Ollama's router: an unknown path is 404, a wrong method 405."""
        path = self.path
        route = "/api/blobs" if path.startswith("/api/blobs/") else path
        allowed = {
            "/": ("GET", "HEAD"),
            "/api/version": ("GET", "HEAD"),
            "/api/tags": ("GET", "HEAD"),
            "/api/ps": ("GET",),
            "/api/blobs": ("HEAD", "POST"),
            "/api/delete": ("DELETE",),
            **dict.fromkeys(
                ("/api/generate", "/api/chat", "/api/create", "/api/show", "/api/copy"), ("POST",)
            ),
        }
        self.streaming = False
        time.sleep(self.ollama.faults.silent_seconds)
        try:
            if route not in allowed:
                raise Refusal(404, "404 page not found")
            if self.command not in allowed[route]:
                raise Refusal(405, "405 method not allowed")
            if route == "/api/blobs":
                self.blob(path.rpartition("/")[2])
                return
            body = {} if self.command in ("GET", "HEAD") else read_request(route, self.body())
            self.ollama.requests.append((self.command, path, body))
            name = route.rpartition("/")[2] or "root"
            getattr(self, f"on_{name}")(body)
        except Refusal as refusal:
            if self.streaming:
                self.part({"error": refusal.words})
                self.end()
            else:
                self.reply(refusal.status, {"error": refusal.words})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = handle_one

    # -- sending -----------------------------------------------------------------------------------

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, status: int, value: Any = None) -> None:
        data = b"" if value is None or self.command == "HEAD" else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if status >= 400:  # what is left of a request's body is not read
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def part(self, value: Any) -> None:
        """One JSON line of a stream."""
        if not self.streaming:
            self.streaming = True
            self.send_response(200)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def die(self) -> None:
        """Break the connection off, as a server that is killed does."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError

    # -- endpoints ---------------------------------------------------------------------------------

    def on_root(self, body: dict[str, Any]) -> None:
        self.reply(200, "Ollama is running")

    def on_version(self, body: dict[str, Any]) -> None:
        self.reply(200, {"version": self.ollama.version})

    def blob(self, digest: str) -> None:
        faults = self.ollama.faults
        self.ollama.requests.append((self.command, self.path, {}))
        target = self.ollama.blobs / check_digest(digest)
        if self.command == "HEAD":
            if not target.exists():
                raise Refusal(404, f'blob "{digest}" not found')
            self.reply(200)
            return
        if target.exists():
            self.reply(200)
            return
        hashed, left = hashlib.sha256(), int(self.headers["Content-Length"])
        data = bytearray()
        while left:
            chunk = self.rfile.read(min(left, 1 << 16))
            if not chunk:
                raise Refusal(500, "unexpected EOF")
            if faults.die_in_upload:
                faults.die_in_upload -= 1
                self.die()
            if faults.full_disk_in_upload:
                raise Refusal(500, f"write {target.parent}/sha256-12: no space left on device")
            left -= len(chunk)
            data += chunk
            hashed.update(chunk)
        if f"sha256:{hashed.hexdigest()}" != digest.replace("-", ":").lower():
            got = f"sha256:{hashed.hexdigest()}"
            raise Refusal(400, f'digest mismatch, expected "{digest}", got "{got}"')
        target.write_bytes(data)
        self.reply(201)

    def on_create(self, body: dict[str, Any]) -> None:
        if body.get("stream") is False:
            self.reply(200, list(self.ollama.create(body))[-1])
            return
        for row in self.ollama.create(body):
            if row.get("status") == "verifying conversion" and self.ollama.faults.die_in_create:
                self.ollama.faults.die_in_create -= 1
                self.die()
            self.part(row)
        self.end()

    def on_tags(self, body: dict[str, Any]) -> None:
        rows = [
            {
                "name": name,
                "model": name,
                "modified_at": model.modified,
                "size": 0,
                "digest": hashlib.sha256(repr(model).encode()).hexdigest(),
                "details": model.details,
            }
            for name, model in self.ollama.models.items()
        ]
        self.reply(200, {"models": rows})

    def on_ps(self, body: dict[str, Any]) -> None:
        rows = [
            {
                "name": name,
                "model": name,
                "size": 0,
                "digest": digest,
                "details": {},
                "expires_at": until.isoformat(),
                "size_vram": 0,
                "context_length": 0,
            }
            for name, (digest, until) in self.ollama.loaded.items()
        ]
        self.reply(200, {"models": rows})

    def on_show(self, body: dict[str, Any]) -> None:
        _, model = self.ollama.find(body.get("model", ""))
        keys = self.ollama.gguf(model).keys
        info = {
            key: None if isinstance(value, list) and not body.get("verbose") else value
            for key, value in keys.items()
            if key not in ("general.name", "tokenizer.chat_template")
        }
        info["general.architecture"] = model.details["family"]
        lines = [
            f"{name:<30} {_go(value)}"
            for name, values in model.parameters.items()
            for value in (values if isinstance(values, list) else [values])
        ]
        answer = {
            "modelfile": '# Modelfile generated by "ollama show"\n',
            "parameters": "\n".join(lines),
            "template": self.ollama.template(model),
            "system": model.system,
            "details": model.details,
            "model_info": info,
            "capabilities": ["completion"],
            "modified_at": model.modified,
        }
        self.reply(200, {key: value for key, value in answer.items() if value != ""})

    def on_copy(self, body: dict[str, Any]) -> None:
        target = full_name(body.get("destination", ""))
        if target is None:
            raise Refusal(400, f'destination "{body.get("destination")}" is invalid')
        _, model = self.ollama.find(body.get("source", ""))
        self.ollama.models[short_name(target)] = model
        self.ollama.keep()
        self.reply(200)

    def on_delete(self, body: dict[str, Any]) -> None:
        name, model = self.ollama.find(body.get("model", ""))
        del self.ollama.models[name]
        self.ollama.keep()
        kept = {one.digest for one in self.ollama.models.values()}
        if model.digest and model.digest not in kept:
            self.ollama.unload(model.digest)
            (self.ollama.blobs / check_digest(model.digest)).unlink(missing_ok=True)
        self.reply(200)

    def on_generate(self, body: dict[str, Any]) -> None:
        messages = []
        if body.get("system"):
            messages.append(Message(role="system", content=body["system"]))
        if body.get("prompt"):
            messages.append(Message(role="user", content=body["prompt"]))
        self.converse(body, messages, lambda text: {"response": text})

    def on_chat(self, body: dict[str, Any]) -> None:
        messages = [Message.model_validate(message) for message in body.get("messages") or ()]
        self.converse(
            body, messages, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    def converse(
        self,
        body: dict[str, Any],
        messages: list[Message],
        said: Callable[[str], dict[str, Any]],
    ) -> None:
        ollama, faults = self.ollama, self.ollama.faults
        name, model = ollama.find(body.get("model", ""))
        keep_alive = seconds_of(body.get("keep_alive", "5m"))
        stamp = {"model": body["model"], "created_at": datetime.now(UTC).isoformat()}
        if not messages:
            if keep_alive == 0:
                ollama.unload(model.digest)
            reason = "unload" if keep_alive == 0 else "load"
            self.reply(200, stamp | said("") | {"done": True, "done_reason": reason})
            return
        streamed = body.get("stream", True)
        pieces: list[str] = []

        def on_text(text: str) -> None:
            pieces.append(text)
            if streamed:
                self.part(stamp | said(text) | {"done": False})
                if faults.die_in_answer:
                    faults.die_in_answer -= 1
                    self.die()
                if faults.error_in_answer:
                    raise Refusal(500, faults.error_in_answer)

        last = ollama.answer(name, model, messages, body, on_text)
        if keep_alive == 0:
            ollama.unload(model.digest)
        if "_debug_info" in last:
            self.reply(200, stamp | said("") | {"done": False} | last)
            return
        if not streamed:
            self.reply(200, stamp | said("".join(pieces)) | {"done": True} | last)
            return
        if not faults.cut_answer:
            self.part(stamp | said("") | {"done": True} | last)
        self.end()


def _go(value: Any) -> str:
    """Go's %#v of a parameter's value after a way through JSON."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
