"""HTTP to an Ollama server: one request, one error in words.

Ollama's own Python client has no HEAD request for blobs, drops the system prompt from what `show`
answers, and cannot send `truncate` and `shift` with a chat; so the requests are made here. Their
fields are those of Ollama's api/types.go.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from forge_mcp.errors import BadInput, ForgeError, NotFound, OutOfSpace, Unavailable
from forge_mcp.settings import is_loopback

if TYPE_CHECKING:
    import httpx

DEFAULT_HOST = "http://127.0.0.1:11434"
CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 600.0  # between two parts of an answer
VERSION = re.compile(r"\d+\.\d+\.\d+")

_FULL_DISK = re.compile(
    "no space left on device|not enough space on the disk|disk quota exceeded|no space left", re.I
)
_PORTS = {"": "11434", "http": "80", "https": "443"}
_PLACE = re.compile(r"(\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.-]*))(:(?P<port>.*))?", re.S)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound


def ollama_address(host: str) -> str:
    """The URL of an Ollama server, by the rules of Ollama's OLLAMA_HOST (envconfig/config.go).

    No scheme is http; no port is 11434 without a scheme, 80 with http and 443 with https; no host
    is 127.0.0.1; an address that listens everywhere is asked on the loopback interface.

    Raises:
        BadInput: a scheme, host or port that is none (Ollama takes its usual port then).
    """
    text = host.strip().strip("\"'")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if separator and scheme not in ("http", "https"):
        raise _no_address(host, f"'{scheme}' is neither http nor https")
    place, slash, path = rest.partition("/")
    try:
        name, port = str(ipaddress.ip_address(re.sub(r"^\[(.*)\]$", r"\1", place))), ""
    except ValueError:
        found = _PLACE.fullmatch(place)
        if found is None:
            raise _no_address(host, f"'{place}' is no host with a port") from None
        name, port = found["bracketed"] or found["name"] or "", found["port"] or ""
    port = port or _PORTS[scheme]
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise _no_address(host, f"'{port}' is no port")
    name = _EVERYWHERE.get(name, name) or "127.0.0.1"
    shown = f"[{name}]" if ":" in name else name
    return f"{scheme or 'http'}://{shown}:{port}{slash}{path}".rstrip("/")


def _no_address(host: str, cause: str) -> BadInput:
    return BadInput(
        f"{host!r} is no address of an Ollama server.",
        cause=cause,
        next_step=f"Set serving.ollama_host, e.g. to {DEFAULT_HOST}.",
    )


class OllamaApi:
    """Requests to one server; a context manager that closes its connections.

    Args:
        host: as `ollama_address` understands it.
        timeout: seconds that the server may be silent in the middle of an answer.

    Raises:
        BadInput: `host` is no address.
    """

    def __init__(self, host: str = DEFAULT_HOST, timeout: float = SILENCE_SECONDS) -> None:
        import httpx

        self.address = ollama_address(host)
        self.timeout = timeout
        # trust_env off: a proxy named in the environment must not see what is meant for this host.
        try:
            self._http = httpx.Client(
                base_url=self.address,
                timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise _no_address(host, str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def version(self) -> str:
        """The server's version, e.g. '0.30.11'.

        Raises:
            Unavailable: nothing answers, or another program.
        """
        answer = self.request("GET", "/api/version", doing="say its version")
        version = answer.get("version")
        if not isinstance(version, str) or not VERSION.match(version):
            raise self._another_program(f"it says its version is {version!r}")
        return version

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        doing: str,
        model: str | None = None,
    ) -> dict[str, Any]:
        """One request and its answer, {} where it is empty.

        Args:
            method: GET, POST, DELETE.
            path: from /api on.
            body: JSON.
            doing: completes "Ollama could not …".
            model: which a 404 says is missing.

        Raises:
            Unavailable, NotFound, OutOfSpace, ForgeError: see `raise_error`.
        """
        with self._translated(doing):
            response = self._http.request(method, path, json=body)
        return self._checked(response, doing, model)

    def stream(
        self, path: str, body: Mapping[str, Any], *, doing: str, model: str | None = None
    ) -> Generator[dict[str, Any]]:
        """The parts of a streamed answer, as they come. Closing it ends the request.

        Raises:
            Unavailable, NotFound, OutOfSpace, ForgeError: also in the middle, where Ollama answers
                200 and then {"error": …}.
        """
        with (
            self._translated(doing),
            self._http.stream("POST", path, json={**body, "stream": True}) as response,
        ):
            if response.status_code >= 400:
                response.read()
                self._checked(response, doing, model)
            for line in response.iter_lines():
                if line:
                    part = self._decoded(line)
                    if "error" in part:
                        raise self._refused(500, str(part["error"]), doing, model)
                    yield part

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds a file already. `digest` is "sha256:" and 64 hex digits."""
        doing = "say which files it has"
        with self._translated(doing):
            response = self._http.head(f"/api/blobs/{digest}")
        if response.status_code == 404:
            return False
        self._checked(response, doing, None)
        return True

    def send_blob(self, digest: str, size: int, chunks: Iterable[bytes]) -> None:
        """Send a file of `size` bytes.

        Raises:
            ConnectionBroken: the connection broke before the server had it.
            Unavailable, OutOfSpace, ForgeError: as elsewhere.
        """
        import httpx

        doing = "take the model file"
        with self._translated(doing):
            try:
                response = self._http.post(
                    f"/api/blobs/{digest}",
                    content=iter(chunks),
                    headers={"Content-Length": str(size)},
                )
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                if isinstance(error, httpx.ConnectError):
                    raise
                raise self._broken(doing, error) from error
        self._checked(response, doing, None)

    def _checked(self, response: httpx.Response, doing: str, model: str | None) -> dict[str, Any]:
        if response.status_code < 400:
            return self._decoded(response.text) if response.content else {}
        try:
            words = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            if response.request.method == "HEAD" and not response.content:
                words = response.reason_phrase
            else:
                raise self._another_program(
                    f"it answers {response.status_code} without Ollama's words"
                ) from None
        raise self._refused(response.status_code, str(words), doing, model)

    def _decoded(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._another_program(f"it answers {text[:60]!r}")
        return value

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """What goes wrong below HTTP, in words."""
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise self._not_there(str(error) or "the connection was refused") from error
        except httpx.ConnectTimeout as error:
            raise self._not_there(
                f"no connection was accepted within {CONNECT_SECONDS:g} seconds"
            ) from error
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"Ollama at {self.address} is too slow to {doing}.",
                cause=f"it was silent for {self.timeout:g} seconds",
                next_step="See Ollama's log and the machine's memory; a larger "
                "serving.ollama_timeout waits longer.",
            ) from error
        except httpx.NetworkError as error:
            raise self._broken(doing, error) from error
        except httpx.RemoteProtocolError as error:
            if "disconnected" in str(error) or "closed connection" in str(error):
                raise self._broken(doing, error) from error
            raise self._another_program(str(error)) from error
        except UnicodeError as error:  # Python's look-up of a name that is none
            raise _no_address(self.address, str(error)) from error
        except httpx.DecodingError as error:
            raise self._another_program(str(error)) from error

    def _refused(self, status: int, words: str, doing: str, model: str | None) -> ForgeError:
        """An error that Ollama has put into words of its own."""
        if _FULL_DISK.search(words):
            return OutOfSpace(
                f"Ollama could not {doing}: its disk is full.",
                cause=words,
                next_step="Free some space where Ollama keeps its models (OLLAMA_MODELS, else "
                "~/.ollama/models; 'ollama rm' removes one), then run it again.",
            )
        if model is not None and status == 404:
            return NotFound(
                f"Ollama has no model '{model}'.",
                cause=words,
                next_step="Deploy the run again: forge-mcp deploy RUN --target ollama",
            )
        return ForgeError(
            f"Ollama could not {doing}.",
            cause=words,
            next_step="See Ollama's log; 'forge-mcp doctor' checks its version.",
        )

    def _broken(self, doing: str, error: Exception) -> ConnectionBroken:
        return ConnectionBroken(
            f"The connection to Ollama broke off; it could not {doing}.",
            cause=str(error) or type(error).__name__,
            next_step="Ollama may have ended: see its log, start it again ('ollama serve') and run "
            "this again.",
        )

    def _another_program(self, cause: str) -> Unavailable:
        return Unavailable(
            f"What answers at {self.address} is not Ollama.",
            cause=cause,
            next_step="Set serving.ollama_host to the address of Ollama (its own is "
            f"{DEFAULT_HOST}), or end the other program.",
        )

    def _not_there(self, cause: str) -> Unavailable:
        if is_loopback(self.address) and not is_ollama_installed():
            return Unavailable(
                "Ollama is not installed on this machine.",
                cause=f"nothing answers at {self.address} ({cause}), and there is no program "
                "'ollama' here",
                next_step="Install it from https://ollama.com/download, set serving.ollama_host "
                "if it runs elsewhere, or use --target llamacpp, which needs no server.",
            )
        return Unavailable(
            f"Ollama does not answer at {self.address}.",
            cause=cause,
            next_step="Start it with 'ollama serve' (serving.start_ollama does so by itself), set "
            "serving.ollama_host if it runs elsewhere, or use --target llamacpp, which needs no "
            "server.",
        )


class ConnectionBroken(Unavailable):
    """The server was there and went away in the middle."""


def is_ollama_installed() -> bool:
    """Whether the program 'ollama' can be run here."""
    return shutil.which("ollama") is not None
