"""A Hugging Face Hub on loopback: the endpoints that a download asks, and their faults.

    with HubServer({"org/name": folder}) as hub:
        hub.address          # for HF_ENDPOINT
        hub.served           # bytes of file contents sent, by file name
        hub.started          # where each answer began in its file, by file name

It answers as the Hub does: /api/models/ID with sizes and checksums, /ID/resolve/COMMIT/FILE with a
redirect to another path, X-Error-Code and X-Error-Message with what it refuses.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE_BYTES = 10_000  # from here on a file is in LFS and known by its SHA-256


@dataclass
class Faults:
    """What goes wrong. `cut`: file name → the connection ends after so many bytes of an answer."""

    gated: int = 0  # the status for files of a gated repository: 401 or 403
    status: int = 0  # for every request
    file_status: list[int] = field(default_factory=list)  # for the next requests of files
    headers: dict[str, str] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    ranges: bool = True
    seconds_per_chunk: float = 0.0


class HubServer:
    """Serves folders as repositories; `token`: files are given only to who brings it."""

    def __init__(self, repositories: dict[str, Path], **about: Any) -> None:
        self.repositories = repositories
        self.about = about
        self.faults = Faults()
        self.token: str | None = None
        self.served: Counter[str] = Counter()
        self.started: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.asked.append(urlsplit(self.path).path)
                _answer(hub, self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def info(self, repo: str) -> dict[str, Any]:
        """What /api/models/ID says."""
        siblings = []
        for path in sorted(self.repositories[repo].rglob("*")):
            if not path.is_file():
                continue
            name = str(path.relative_to(self.repositories[repo]))
            content = path.read_bytes()
            entry: dict[str, Any] = {
                "rfilename": name,
                "size": len(content),
                "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            }
            if len(content) >= LARGE_BYTES:
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        return {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "private": False,
            "gated": "manual" if self.faults.gated else False,
            "cardData": {"license": "apache-2.0"},
            "config": {"model_type": "llama"},
            "safetensors": {"parameters": {"F16": 1000}, "total": 1000},
            "siblings": siblings,
            "tags": [],
            "downloads": 0,
            **self.about,
        }


def _answer(hub: HubServer, request: Any) -> None:
    path = urlsplit(request.path).path
    if hub.faults.status:
        return _refuse(request, hub.faults.status, "", "fault", hub.faults.headers)
    if path.startswith("/api/models/"):
        repo = path.removeprefix("/api/models/")
        if repo not in hub.repositories:
            # The Hub does not tell who is not logged in whether a repository exists.
            return _refuse(request, 401, "RepoNotFound", "Invalid username or password.")
        return _send(request, 200, json.dumps(hub.info(repo)).encode())
    if "/resolve/" in path:
        repo, _, rest = path.strip("/").partition("/resolve/")
        commit, _, name = rest.partition("/")
        if hub.faults.gated and request.headers.get("Authorization") != f"Bearer {hub.token}":
            text = f"Access to model {repo} is restricted."
            return _refuse(request, hub.faults.gated, "GatedRepo", text)
        if commit != COMMIT or not (hub.repositories[repo] / name).is_file():
            return _refuse(request, 404, "EntryNotFound", "Entry not found")
        request.send_response(302)
        request.send_header("Location", f"/cdn/{repo}/{name}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return None
    if path.startswith("/cdn/"):
        owner, model, name = path.removeprefix("/cdn/").split("/", 2)
        return _file(hub, request, hub.repositories[f"{owner}/{model}"] / name, name)
    return _refuse(request, 404, "", "no such endpoint")


def _file(hub: HubServer, request: Any, path: Path, name: str) -> None:
    if hub.faults.file_status:
        _refuse(request, hub.faults.file_status.pop(0), "", "fault", hub.faults.headers)
        return
    content = path.read_bytes()
    if name in hub.faults.damaged:
        content = bytes([content[0] ^ 1]) + content[1:]
    whole, start = len(content), 0
    asked = request.headers.get("Range")
    if asked and hub.faults.ranges:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        content = content[start:]
    hub.started[name].append(start)
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    cuts = hub.faults.cut.get(name)
    end = min(cuts.pop(0), len(content)) if cuts else len(content)
    for at in range(0, end, 65536):
        chunk = content[at : min(at + 65536, end)]
        try:
            request.wfile.write(chunk)
        except OSError:  # the client was cancelled
            request.close_connection = True
            break
        hub.served[name] += len(chunk)
        time.sleep(hub.faults.seconds_per_chunk)
    if end < len(content):
        request.close_connection = True


def _refuse(
    request: Any, status: int, code: str, message: str, more: dict[str, str] | None = None
) -> None:
    headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
    _send(request, status, json.dumps({"error": message}).encode(), headers | (more or {}))


def _send(request: Any, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
