"""Ollama's rules as a strict server of tests holds them: requests, names, options, GGUF files.

Facts of Ollama's source of August 2026 (api/types.go, types/model/name.go, fs/ggml/gguf.go,
manifest/paths.go). Stricter than Ollama where that finds mistakes: Ollama ignores fields and
options that it does not know (it warns of options in its log), takes duplicate JSON keys, and reads
no further into a GGUF than its tensor table.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO


class Refusal(Exception):
    """An error as Ollama answers it: an HTTP status and {"error": words}."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


# -- requests --------------------------------------------------------------------------------------

TEXT, FLAG, WHOLE, NUMBER, MAP, LIST, ANY = "text", "flag", "whole", "number", "map", "list", "any"
_OF_ANSWERS = {
    "model": TEXT,
    "stream": FLAG,
    "format": ANY,
    "keep_alive": ANY,
    "options": MAP,
    "think": ANY,
    "truncate": FLAG,
    "shift": FLAG,
    "_debug_render_only": FLAG,
    "logprobs": FLAG,
    "top_logprobs": WHOLE,
}
REQUESTS: dict[str, dict[str, str]] = {
    "/api/generate": _OF_ANSWERS
    | {
        "prompt": TEXT,
        "suffix": TEXT,
        "system": TEXT,
        "template": TEXT,
        "context": LIST,
        "raw": FLAG,
        "images": LIST,
    },
    "/api/chat": _OF_ANSWERS | {"messages": LIST, "tools": LIST},
    "/api/create": {
        "model": TEXT,
        "stream": FLAG,
        "quantize": TEXT,
        "from": TEXT,
        "files": MAP,
        "adapters": MAP,
        "template": TEXT,
        "license": ANY,
        "system": TEXT,
        "parameters": MAP,
        "messages": LIST,
        "renderer": TEXT,
        "parser": TEXT,
        "requires": TEXT,
        "info": MAP,
    },
    "/api/show": {"model": TEXT, "system": TEXT, "verbose": FLAG, "options": MAP},
    "/api/copy": {"source": TEXT, "destination": TEXT},
    "/api/delete": {"model": TEXT},
}
MESSAGE = {
    "role": TEXT,
    "content": TEXT,
    "thinking": TEXT,
    "images": LIST,
    "tool_calls": LIST,
    "tool_name": TEXT,
    "tool_call_id": TEXT,
}
OPTIONS = {
    "num_keep": WHOLE,
    "seed": WHOLE,
    "num_predict": WHOLE,
    "top_k": WHOLE,
    "top_p": NUMBER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "repeat_last_n": WHOLE,
    "temperature": NUMBER,
    "repeat_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "stop": LIST,
    "num_ctx": WHOLE,
    "num_batch": WHOLE,
    "num_gpu": WHOLE,
    "main_gpu": WHOLE,
    "use_mmap": FLAG,
    "num_thread": WHOLE,
    "draft_num_predict": WHOLE,
}


def read_request(path: str, data: bytes) -> dict[str, Any]:
    """The fields of a request's body; unknown ones and wrong types are refused."""
    if not data:
        raise Refusal(400, "missing request body")
    try:
        body = json.loads(data, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise Refusal(400, f"no JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "json: cannot unmarshal into Go value of a struct")
    _check_fields(body, REQUESTS[path], path)
    for message in body.get("messages") or ():
        _check_fields(message, MESSAGE, "message")
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            raise Refusal(400, f"invalid role: {message.get('role')!r}")
    check_options(body.get("options") or {})
    check_options(body.get("parameters") or {})
    return body


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)


def _check_fields(body: Any, allowed: Mapping[str, str], where: str) -> None:
    if not isinstance(body, dict):
        raise Refusal(400, f"{where} is no object")
    for name, value in body.items():
        if name not in allowed:
            raise Refusal(400, f"{where} has no field '{name}'")
        if not _fits(value, allowed[name]):
            raise Refusal(400, f"{where}: the field '{name}' must be a {allowed[name]}")


def _fits(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        TEXT: isinstance(value, str),
        FLAG: isinstance(value, bool),
        WHOLE: number and value == int(value),
        NUMBER: number,
        MAP: isinstance(value, dict),
        LIST: isinstance(value, list),
        ANY: True,
    }[kind]


def check_options(options: Mapping[str, Any]) -> None:
    """Names and types of api.Options."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise Refusal(400, f"unknown parameter '{name}'")
        if not _fits(value, OPTIONS[name]):
            raise Refusal(400, f'option "{name}" must be of type {OPTIONS[name]}')
    if not all(isinstance(text, str) for text in options.get("stop", ())):
        raise Refusal(400, 'option "stop" must be of an array of strings')


def seconds_of(keep_alive: Any) -> float:
    """api.Duration: a number of seconds or a Go duration; negative is for ever."""
    if isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool):
        return float(keep_alive)
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
    if isinstance(keep_alive, str) and re.fullmatch(r"-?(\d+(\.\d+)?(h|ms|m|s))+", keep_alive):
        total = sum(
            float(number) * units[unit]
            for number, _, unit in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", keep_alive)
        )
        return -total if keep_alive.startswith("-") else total
    raise Refusal(400, f"time: invalid duration {keep_alive!r}")


# -- names -----------------------------------------------------------------------------------------

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def full_name(name: str) -> str | None:
    """HOST/NAMESPACE/MODEL:TAG of a model's name; None where it is not valid."""
    rest, tag = name, "latest"
    if name.rfind(":") > name.rfind("/"):
        rest, _, tag = name.rpartition(":")
    parts = rest.split("/", 2) if rest.count("/") < 3 else []
    if not parts:
        return None
    host, namespace, model = ["registry.ollama.ai", "library"][: 3 - len(parts)] + parts
    allowed = ((host, "-.:", 350), (namespace, "-", 80), (model, "-.", 80), (tag, "-.", 80))
    for part, others, longest in allowed:
        if not 1 <= len(part) <= longest or part[0] not in _LETTERS:
            return None
        if not set(part) <= _LETTERS | set(others):
            return None
    return f"{host}/{namespace}/{model}:{tag}"


def short_name(full: str) -> str:
    """As Ollama shows it: without the usual host and namespace, always with the tag."""
    return full.removeprefix("registry.ollama.ai/").removeprefix("library/")


def check_digest(digest: str) -> str:
    """The file's name of a blob's digest."""
    if not re.fullmatch(r"sha256[:-][0-9a-fA-F]{64}", digest):
        raise Refusal(400, "invalid digest format")
    return digest.replace(":", "-")


# -- GGUF ------------------------------------------------------------------------------------------

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# ggml's types: weights in a block, bytes of it, name.
TENSOR_TYPES = {
    0: (1, 4, "F32"),
    1: (1, 2, "F16"),
    2: (32, 18, "Q4_0"),
    8: (32, 34, "Q8_0"),
    12: (256, 144, "Q4_K"),
    13: (256, 176, "Q5_K"),
    14: (256, 210, "Q6_K"),
    30: (1, 2, "BF16"),
}
FILE_TYPES = {0: "F32", 1: "F16", 7: "Q8_0", 15: "Q4_K_M", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16"}
_MOST = 10_000_000


@dataclass(frozen=True)
class Gguf:
    """A file's metadata and its tensors: (name, type, shape)."""

    keys: dict[str, Any]
    tensors: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)

    @property
    def architecture(self) -> str:
        return str(self.keys["general.architecture"])

    @property
    def parameters(self) -> int:
        return sum(_count(shape) for _, _, shape in self.tensors)


def read_gguf(path: Path) -> Gguf:
    """Parse a GGUF file's header strictly: every tensor must lie inside the file.

    Raises:
        Refusal: it is no GGUF file, or no whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Refusal(400, "supplied file was not in GGUF format")
        try:
            return _parsed(file, size)
        except (struct.error, UnicodeDecodeError, KeyError, EOFError, ValueError) as error:
            raise Refusal(500, f"unexpected EOF ({type(error).__name__}: {error})") from None


def _parsed(file: BinaryIO, size: int) -> Gguf:
    (version,) = _read(file, "I")
    if version not in (2, 3):
        raise Refusal(500, f"unsupported GGUF version {version}")
    tensor_count, key_count = _read(file, "QQ")
    if max(tensor_count, key_count) > _MOST:
        raise EOFError("more entries than any file has")
    keys: dict[str, Any] = {}
    for _ in range(key_count):
        name = _string(file)
        keys[name] = _value(file, _read(file, "I")[0])
    tensors, ends = [], []
    for _ in range(tensor_count):
        name = _string(file)
        (rank,) = _read(file, "I")
        if not 1 <= rank <= 4:
            raise ValueError(f"{name} has {rank} dimensions")
        shape = _read(file, "Q" * rank)
        kind, offset = _read(file, "IQ")
        block, width, label = TENSOR_TYPES[kind]
        tensors.append((name, label, shape))
        ends.append(offset + _count(shape) // block * width)
    alignment = keys.get("general.alignment", 32)
    start = -(-file.tell() // alignment) * alignment
    if not tensors or start + max(ends) > size:
        raise EOFError(f"the tensors end at {start + max(ends, default=0)}, the file at {size}")
    if not isinstance(keys.get("general.architecture"), str):
        raise KeyError("general.architecture")
    return Gguf(keys, tensors)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _string(file: BinaryIO) -> str:
    (length,) = _read(file, "Q")
    data = file.read(length) if length < _MOST else b""
    if len(data) != length:
        raise EOFError("inside a text")
    return data.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, count = _read(file, "IQ")
        if count > _MOST:
            raise EOFError("a list longer than any file has")
        return [_value(file, of) for _ in range(count)]
    return _read(file, _SCALARS[kind])[0]
