"""HumanEval's problems: from a file, an address, or our own small suite; and a sample of them.

The form is openai/human-eval's (arXiv 2107.03374): JSON lines, perhaps gzipped, with task_id,
prompt (imports, helpers, and a function's header with its docstring), entry_point (its name),
canonical_solution (its body) and test (a function `check(candidate)`). The official problems are
not part of this project.
"""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from pydantic import ConfigDict, ValidationError, model_validator

from forge_mcp.errors import BadInput, Unavailable, from_os_error
from forge_mcp.schemas.base import Schema
from forge_mcp.settings import is_loopback
from forge_mcp.workspace import write_file

if TYPE_CHECKING:
    import httpx

OWN_SUITE = "small"
MOST_BYTES = 64 << 20  # of a file of problems, packed or not; the official one has 0.2 MB
TIMEOUT_SECONDS = 30.0
REDIRECTS = 5
GZIP = b"\x1f\x8b"
NEXT_STEP = (
    "Set judging.humaneval to HumanEval.jsonl.gz as openai/human-eval has it, to its https "
    f"address, or to '{OWN_SUITE}' for the problems that come with AI Forge."
)


class Problem(Schema):
    """A function to be written, and the test that it has to pass."""

    model_config = ConfigDict(extra="ignore")  # other suites in this form add keys

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    @model_validator(mode="after")
    def _check(self) -> Problem:
        if not self.entry_point.isidentifier():
            raise ValueError(f"entry_point {self.entry_point!r} is no name")
        if f"def {self.entry_point}(" not in self.prompt:
            raise ValueError(f"the prompt has no function {self.entry_point}")
        if "def check(" not in self.test:
            raise ValueError("the test has no function check")
        return self

    @property
    def digest(self) -> str:
        """What an outcome depends on: a problem that was corrected is another one."""
        parts = [self.prompt, self.entry_point, self.test]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def program(self, completion: str) -> str:
        """What is run: the prompt, what was written after it, and the test."""
        return f"{self.prompt}{completion}\n\n{self.test}\n\ncheck({self.entry_point})\n"


def load_problems(source: str, cache: Path | None = None) -> list[Problem]:
    """The problems of a source.

    Args:
        source: a file (.jsonl, .jsonl.gz), an https address (http on this machine), or "small".
        cache: a folder that keeps what was downloaded; None downloads each time.

    Raises:
        BadInput: it is not there, too large, or no file of problems; the line is named.
        Unavailable: the address does not answer.
        OutOfSpace, ForgeError: the cache cannot be written.
    """
    if source == OWN_SUITE:
        own = files("forge_mcp").joinpath("assets/code_problems.jsonl")
        return parse_problems(own.read_bytes(), source)
    if "://" not in source:
        return parse_problems(_read(Path(source).expanduser()), source)
    _check_address(source, source)
    if cache is None:
        return parse_problems(_download(source), source)
    kept = cache / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.jsonl"
    if kept.exists():
        return parse_problems(_read(kept), source)
    data = _download(source)
    problems = parse_problems(data, source)  # only problems get into the cache
    try:
        write_file(kept, data)
    except OSError as error:
        raise from_os_error(error, "keep the downloaded problems") from error
    return problems


def draw(problems: Sequence[Problem], count: int, seed: int) -> list[Problem]:
    """At most `count` problems in an order of the seed: the first ones of it are a sample, too."""
    order = list(problems)
    random.Random(seed).shuffle(order)  # noqa: S311 - a sample, no secret
    return order[:count]


def parse_problems(data: bytes, source: str) -> list[Problem]:
    """The problems of a file's bytes, gzipped or not.

    Raises:
        BadInput: a line that is no problem, the same task twice, or nothing at all.
    """
    found: list[Problem] = []
    seen: set[str] = set()
    where = ""
    try:
        for number, line in enumerate(_unpacked(data).decode("utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            where = f"line {number}: "
            problem = Problem.model_validate(json.loads(line))
            if problem.task_id in seen:
                raise ValueError(f"{problem.task_id} is there twice")
            seen.add(problem.task_id)
            found.append(problem)
        if not found:
            raise ValueError("it is empty")
    except (ValueError, RecursionError, zlib.error) as error:
        raise BadInput(
            f"{source} is no file of HumanEval problems.",
            cause=where + _words(error),
            next_step=NEXT_STEP,
        ) from error
    return found


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error) or type(error).__name__


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(GZIP):
        return data
    unpacker = zlib.decompressobj(wbits=31)
    text = unpacker.decompress(data, MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
    if not unpacker.eof:
        raise ValueError("its end is missing")
    return text


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadInput(
                f"{path} is no file of HumanEval problems.",
                cause=f"it has more than {MOST_BYTES >> 20} MiB",
                next_step=NEXT_STEP,
            )
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"The HumanEval problems {path} cannot be read.",
            cause=str(error),
            next_step=NEXT_STEP,
        ) from error


def _check_address(address: str, source: str) -> None:
    """Only https, or http to this machine: what comes is code that will be run."""
    scheme = urlsplit(address).scheme
    if scheme != "https" and not (scheme == "http" and is_loopback(address)):
        raise BadInput(
            f"The HumanEval problems {source} are not fetched.",
            cause=f"{address} is not an https address",
            next_step=NEXT_STEP,
        )


def _download(source: str) -> bytes:
    """What an address holds, redirects followed as far as they stay on https."""
    import httpx

    try:
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            address = source
            for _ in range(REDIRECTS + 1):
                _check_address(address, source)
                with client.stream("GET", address) as reply:
                    if not reply.is_redirect:
                        return _body(reply, source)
                    address = urljoin(address, reply.headers["location"])
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise Unavailable(
            f"The HumanEval problems {source} cannot be fetched.",
            cause=str(error) or type(error).__name__,
            next_step="Check the address and the network, or fetch the file yourself and set "
            "judging.humaneval to its path.",
        ) from error
    raise BadInput(
        f"The HumanEval problems {source} cannot be fetched.",
        cause=f"more than {REDIRECTS} redirects",
        next_step=NEXT_STEP,
    )


def _body(reply: httpx.Response, source: str) -> bytes:
    if reply.status_code != 200:
        raise BadInput(
            f"The HumanEval problems {source} cannot be fetched.",
            cause=f"the server answered {reply.status_code}",
            next_step=NEXT_STEP,
        )
    data = bytearray()
    for part in reply.iter_bytes():
        data += part
        if len(data) > MOST_BYTES:
            raise BadInput(
                f"{source} is no file of HumanEval problems.",
                cause=f"it has more than {MOST_BYTES >> 20} MiB",
                next_step=NEXT_STEP,
            )
    return bytes(data)
