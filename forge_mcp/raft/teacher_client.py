"""Asking a teacher: what is kept of its answers, and what may go wrong.

Every usable answer is kept under the hash of its request, so a run that was stopped goes on where
it was, and the same request is never paid for twice.

Of what goes wrong, a request's own fault (a timeout, half an answer, no JSON) is an outcome of
that request alone, and `teacher.max_failures` of them in a row, or a fault that every request
would share (no such model, a refused key), is an error.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from forge_mcp.errors import ForgeError, InvalidSettings, NotFound, Unavailable
from forge_mcp.raft.teacher_address import Address
from forge_mcp.settings import TeacherSettings, is_loopback
from forge_mcp.workspace import hash_inputs, write_file

if TYPE_CHECKING:
    import httpx

PREFLIGHT_SECONDS = 10.0
TICK_SECONDS = 0.1  # how soon a cancel is noticed
FIRST_WAIT_SECONDS = 0.5  # before the first retry; doubled with each
MAX_ANSWER_BYTES = 2_000_000
CONTEXT_TOKENS = 8192  # asked of Ollama, whose own default would cut prompts in silence

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Ask:
    """One request: what is said, and the JSON schema that the answer must have."""

    system: str
    user: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Failed:
    """A request without a usable answer; `reason` is a word to count by."""

    reason: Literal["unreachable", "timeout", "server_error", "rate_limited", "rejected",
                    "cut_off", "garbage"]  # fmt: skip
    detail: str


class _Fault(Exception):
    """A request failed. `wait` seconds are asked for before the next; None = no retry helps."""

    def __init__(self, failed: Failed, wait: float | None) -> None:
        super().__init__(failed.detail)
        self.failed = failed
        self.wait = wait


class AnswerCache:
    """Usable answers, one file each, under the hash of their request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> str | None:
        """An answer, or None where there is none or its file is damaged."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            row = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            if row["key"] == key and isinstance(row["answer"], str):
                return str(row["answer"])
        return None

    def put(self, key: str, answer: str) -> None:
        """Keep an answer."""
        row = {"key": key, "answer": answer}
        write_file(self.folder / f"{key}.json", json.dumps(row, ensure_ascii=False) + "\n")


class TeacherClient(Generic[Parsed]):
    """Asks a teacher many things, a few at a time.

    Args:
        address: where it answers.
        settings: the teacher section.
        cache: folder of the answers that are kept.
        parse: what a usable answer to a request says; raises ValueError for any other.
        check: called often; what it raises (Cancelled) ends the asking at once.
    """

    def __init__(
        self,
        address: Address,
        settings: TeacherSettings,
        cache: Path,
        parse: Callable[[Ask, str], Parsed],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.address = address
        self.settings = settings
        self.cache = AnswerCache(cache)
        self.parse = parse
        self.check = check
        self._key = _key(settings.api_key_variable) if address.protocol == "openai" else ""
        self._in_a_row = 0
        self._resume_at = 0.0
        self._done = 0
        self._renamed: dict[str, str] = {}

    def preflight(self) -> None:
        """Make sure that somebody answers before any work is done.

        Raises:
            Unavailable: nobody does.
            NotFound: Ollama does not have the model.
            InvalidSettings: the key is refused.
        """
        from anyio.from_thread import start_blocking_portal

        with start_blocking_portal() as portal:
            portal.call(self._preflight)

    def ask_all(
        self, asks: Sequence[Ask], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Parsed | Failed]:
        """An answer or a failure for each request, in their order.

        Raises:
            ForgeError: the teacher failed in a way that every request shares, or too often in a
                row; what it has answered is kept.
        """
        from anyio.from_thread import start_blocking_portal

        # The caller's thread stays free to hear of a cancel and to tell how far the work is;
        # an exception here cancels what is under way.
        with start_blocking_portal() as portal:
            work = portal.start_task_soon(self._ask_all, asks)
            while not wait([work], TICK_SECONDS).done:
                self.check()
                progress(self._done, len(asks))
            answers = work.result()
            progress(len(asks), len(asks))
        return answers

    async def _ask_all(self, asks: Sequence[Ask]) -> list[Parsed | Failed]:
        import anyio

        results: list[Parsed | Failed | None] = [None] * len(asks)
        errors: list[Exception] = []
        waiting = iter(enumerate(asks))
        self._done = 0

        async def work(client: httpx.AsyncClient) -> None:
            for number, ask in waiting:
                try:
                    results[number] = await self._outcome(client, ask)
                except (ForgeError, OSError) as error:  # one error, not a group of them
                    errors.append(error)
                    group.cancel_scope.cancel()
                self._done += 1

        async with self._client() as client, anyio.create_task_group() as group:
            for _ in range(self.settings.concurrency):
                group.start_soon(work, client)
        if errors:
            raise errors[0]
        return [result for result in results if result is not None]

    async def _outcome(self, client: httpx.AsyncClient, ask: Ask) -> Parsed | Failed:
        """One request's answer or failure.

        Raises:
            ForgeError: there were too many failures in a row, or one that all would share.
        """
        body = self._body(ask)
        key = hash_inputs({"url": self.address.base_url, "body": body})
        kept = self.cache.get(key)
        if kept is not None:
            with suppress(ValueError):  # a damaged file, or the answer's form has changed since
                return self.parse(ask, kept)
        try:
            answer = await self._answer(client, body)
            parsed = self.parse(ask, answer)
        except _Fault as fault:
            return self._count(fault.failed)
        except ValueError as error:
            return self._count(Failed("garbage", str(error)))
        self.cache.put(key, answer)
        self._in_a_row = 0
        return parsed

    def _count(self, failed: Failed) -> Failed:
        self._in_a_row += 1
        if self._in_a_row >= self.settings.max_failures:
            raise Unavailable(
                f"The teacher {self.address.model} failed {self._in_a_row} times in a row.",
                cause=f"the last time: {failed.reason.replace('_', ' ')}, {failed.detail}",
                next_step="See to it (its address, its memory, another model), then run the same "
                "again: what it answered so far is kept and not asked again.",
            )
        return failed

    async def _answer(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> str:
        """What the model wrote, after as many tries as the settings allow."""
        import anyio

        attempt = 0
        while True:
            await anyio.sleep(max(0.0, self._resume_at - time.monotonic()))
            try:
                return await self._post(client, body)
            except _Fault as fault:
                if fault.wait is None or attempt >= self.settings.retries:
                    raise
                wait = max(fault.wait, FIRST_WAIT_SECONDS * 2**attempt)
                # Whoever asks next waits too: the server has said that it has enough.
                if fault.failed.reason == "rate_limited":
                    self._resume_at = max(self._resume_at, time.monotonic() + wait)
                else:
                    await anyio.sleep(wait)
            attempt += 1

    async def _post(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> str:
        """One try.

        Raises:
            _Fault: of this request.
            ForgeError: one that every request would share.
        """
        import anyio
        import httpx

        path = "/api/chat" if self.address.protocol == "ollama" else "/chat/completions"
        sent = {self._renamed.get(name, name): value for name, value in body.items()}
        try:
            with anyio.fail_after(self.settings.timeout_seconds):
                async with client.stream("POST", self.address.base_url + path, json=sent) as reply:
                    data = await _read(reply)
        except TimeoutError:
            seconds = f"{self.settings.timeout_seconds:g} s"
            raise _Fault(Failed("timeout", f"no answer within {seconds}"), 0.0) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _Fault(Failed("unreachable", _words(error)), 0.0) from None
        if reply.status_code != 200:
            raise self._refusal(reply, data, sent)
        return _content(self.address.protocol, data)

    def _refusal(self, reply: httpx.Response, data: bytes, sent: Mapping[str, Any]) -> Exception:
        """What a status other than 200 means: a fault of the request, or an error for all."""
        status = reply.status_code
        said = self._excerpt(data)
        if status in (401, 403):
            return self._refused_key(status)
        if status == 404 or 300 <= status < 400:
            return NotFound(
                f"The teacher {self.address.model} is not at {self.address.base_url}.",
                cause=f"HTTP {status}: {said}",
                next_step="Correct the address or the model's name (with Ollama: ollama pull "
                f"{self.address.model}).",
            )
        if status in (429, 503) and (asked := reply.headers.get("retry-after")):
            wait = _retry_after(asked)
            if wait > self.settings.max_wait_seconds:
                return Unavailable(
                    f"The teacher {self.address.model} asks to wait for {wait:.0f} s.",
                    cause=f"HTTP {status}: {said}",
                    next_step="Run the same again later, what it answered so far is kept; or "
                    "raise teacher.max_wait_seconds.",
                )
            return _Fault(Failed("rate_limited", f"HTTP {status}: {said}"), wait)
        if status == 429:
            return _Fault(Failed("rate_limited", f"HTTP 429: {said}"), 0.0)
        if status >= 500:
            return _Fault(Failed("server_error", f"HTTP {status}: {said}"), 0.0)
        if status == 400 and b"max_completion_tokens" in data and "max_tokens" in sent:
            # Newer models of the protocol's maker want this name, other servers only know the old.
            self._renamed = {"max_tokens": "max_completion_tokens"}
            return _Fault(Failed("rejected", f"HTTP {status}: {said}"), 0.0)
        return _Fault(Failed("rejected", f"HTTP {status}: {said}"), None)

    def _refused_key(self, status: int) -> InvalidSettings:
        variable = self.settings.api_key_variable
        return InvalidSettings(
            f"The teacher at {self.address.base_url} refuses the key.",
            cause=f"HTTP {status}; the environment variable {variable} is "
            f"{'set' if self._key else 'not set'}",
            next_step=f"Put a valid key into {variable}, where the command or the worker of jobs "
            "is started.",
        )

    async def _preflight(self) -> None:
        import anyio
        import httpx

        ollama = self.address.protocol == "ollama"
        url = self.address.base_url + ("/api/tags" if ollama else "/models")
        try:
            with anyio.fail_after(PREFLIGHT_SECONDS):
                async with self._client() as client, client.stream("GET", url) as reply:
                    data = await _read(reply)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unavailable(
                f"There is no teacher at {self.address.base_url}.",
                cause=_words(error),
                next_step="Start it, or correct teacher.address; nothing was made yet.",
            ) from None
        if reply.status_code in (401, 403):
            raise self._refused_key(reply.status_code)
        if ollama:
            self._require_model(data)

    def _require_model(self, data: bytes) -> None:
        try:
            names = [str(row["name"]) for row in json.loads(data)["models"]]
        except (ValueError, TypeError, KeyError):
            raise Unavailable(
                f"There is no teacher at {self.address.base_url}.",
                cause=f"what answers there is no Ollama: {self._excerpt(data)}",
                next_step="Correct serving.ollama_host; nothing was made yet.",
            ) from None
        wanted = self.address.model
        if wanted not in names and f"{wanted}:latest" not in names:
            raise NotFound(
                f"Ollama does not have the model '{wanted}'.",
                cause=f"it has {', '.join(sorted(names)[:10]) or 'none'}",
                next_step=f"Run 'ollama pull {wanted}', or name another one.",
            )

    def _client(self) -> httpx.AsyncClient:
        import httpx

        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=PREFLIGHT_SECONDS),
            trust_env=not is_loopback(self.address.base_url),  # a proxy is another machine
            follow_redirects=False,  # nor is the code sent where nobody named
        )

    def _body(self, ask: Ask) -> dict[str, Any]:
        settings = self.settings
        messages = [
            {"role": "system", "content": ask.system},
            {"role": "user", "content": ask.user},
        ]
        given = settings.temperature is not None
        sampling = {"temperature": settings.temperature} if given else {}
        body: dict[str, Any] = {"model": self.address.model, "messages": messages, "stream": False}
        if self.address.protocol == "ollama":
            body["options"] = sampling | {
                "seed": 0,
                "num_predict": settings.max_tokens,
                "num_ctx": CONTEXT_TOKENS,
            }
            if settings.json_schema:
                body["format"] = ask.schema
            return body
        body |= sampling | {"max_tokens": settings.max_tokens}
        if settings.json_schema:
            form = {"name": "answer", "strict": True, "schema": ask.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def _excerpt(self, data: bytes) -> str:
        """The beginning of what a server said, harmless and without the key."""
        text = data[:2000].decode("utf-8", "replace")
        text = text.replace(self._key, "…") if self._key else text
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def _key(variable: str) -> str:
    """The key from the environment; "" where the variable is not set.

    Raises:
        InvalidSettings: it cannot stand in a header; it is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidSettings(
            f"The environment variable {variable} holds no key.",
            cause="there are characters in it that no key has",
            next_step="Set it again, without line breaks.",
        )
    return key


async def _read(reply: httpx.Response) -> bytes:
    """The body, up to a bound.

    Raises:
        _Fault: it is larger.
    """
    parts, size = [], 0
    async for part in reply.aiter_bytes():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise _Fault(Failed("garbage", f"more than {MAX_ANSWER_BYTES} bytes"), None)
        parts.append(part)
    return b"".join(parts)


def _content(protocol: str, data: bytes) -> str:
    """What the model wrote, from the server's JSON.

    Raises:
        _Fault: it is of another form, or the model was cut off.
    """
    try:
        row = json.loads(data)
        if protocol == "ollama":
            text, why = row["message"]["content"], row.get("done_reason")
        else:
            choice = row["choices"][0]
            text, why = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        form = "the server's answer has not the protocol's form"
        raise _Fault(Failed("garbage", form), None) from None
    if why == "length":
        raise _Fault(Failed("cut_off", "the model came to no end: see teacher.max_tokens"), None)
    if not isinstance(text, str) or not text.strip():
        raise _Fault(Failed("garbage", "the model wrote nothing"), None)
    return text


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header, which holds seconds or a date; 0 for what is neither."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _words(error: BaseException) -> str:
    """An error of the connection in words; a TimeoutError of ours has none of its own."""
    return " ".join(str(error).split())[:200] or f"no answer in time ({type(error).__name__})"
