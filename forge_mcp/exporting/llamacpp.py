"""llama.cpp's C functions, through the shared library inside xllamacpp.

They are no public interface of that package, so every symbol that is used is looked up first and
the defaults of the one structure that is written to are compared with what its layout should
give; anything else is `Unavailable`, never a guess. The library serves three ends, and each works
without the others: `ggml_quantize_chunk` for K-quants (`quantizer`), raw logits and tokens for the
parity gate (`library`, `GgufModel`), and LoRA adapters on such a model.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp.errors import BadInput, ForgeError, Unavailable, UnsupportedModel
from forge_mcp.machine import cores, requirement

LOG_LEVEL_ERROR = 4
# (n_ctx, n_batch, n_ubatch) of llama_context_default_params: the first fields of the structure.
CONTEXT_DEFAULTS = (512, 2048, 512)
# Further fields of it, as 32-bit numbers: flash_attn_type, type_k, type_v; their defaults
# (automatic and twice float16), and what computes in float32 (disabled and twice float32).
PRECISION_FIELDS = (13, 26, 27)
PRECISION_DEFAULTS = (2**32 - 1, 1, 1)
PRECISION_EXACT = (0, 0, 0)


class _Parameters(ctypes.Structure):
    """A parameter structure whose fields are not named here.

    Larger than any version's: both System V (copied on the stack) and AAPCS64 (passed by
    reference) let the callee read the part that it knows.
    """

    _fields_ = (("bytes", ctypes.c_uint8 * 1024),)


class _Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_pointer, _int, _size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
_floats = ctypes.POINTER(ctypes.c_float)

Signatures = dict[str, tuple[Any, list[Any]]]

QUANTIZER: Signatures = {
    "ggml_quantize_chunk": (
        _size,
        [_int, _pointer, _pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _floats],
    ),
    "ggml_row_size": (_size, [_int, ctypes.c_int64]),
    "ggml_validate_row_data": (ctypes.c_bool, [_int, _pointer, _size]),
}
MODELS: Signatures = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_pointer, _pointer]),
    "llama_time_us": (ctypes.c_int64, []),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (_pointer, [ctypes.c_char_p, _Parameters]),
    "llama_model_free": (None, [_pointer]),
    "llama_model_get_vocab": (_pointer, [_pointer]),
    "llama_model_chat_template": (ctypes.c_char_p, [_pointer, ctypes.c_char_p]),
    "llama_init_from_model": (_pointer, [_pointer, _Parameters]),
    "llama_free": (None, [_pointer]),
    "llama_n_ctx": (ctypes.c_uint32, [_pointer]),
    "llama_n_batch": (ctypes.c_uint32, [_pointer]),
    "llama_set_n_threads": (None, [_pointer, _int, _int]),
    "llama_get_memory": (_pointer, [_pointer]),
    "llama_memory_clear": (None, [_pointer, ctypes.c_bool]),
    "llama_batch_init": (_Batch, [_int, _int, _int]),
    "llama_batch_free": (None, [_Batch]),
    "llama_decode": (_int, [_pointer, _Batch]),
    "llama_get_logits_ith": (_floats, [_pointer, _int]),
    "llama_vocab_n_tokens": (_int, [_pointer]),
    "llama_vocab_is_eog": (ctypes.c_bool, [_pointer, _int]),
    "llama_tokenize": (
        _int,
        [_pointer, ctypes.c_char_p, _int, ctypes.POINTER(_int), _int, ctypes.c_bool, ctypes.c_bool],
    ),
}
ADAPTERS: Signatures = {
    "llama_adapter_lora_init": (_pointer, [_pointer, ctypes.c_char_p]),
    "llama_set_adapters_lora": (_int, [_pointer, ctypes.POINTER(_pointer), _size, _floats]),
}


@cache
def _load() -> ctypes.CDLL:
    spec = importlib.util.find_spec("xllamacpp")
    found = sorted(
        path
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for path in Path(folder).glob("xllamacpp*.so")
    )
    if not found:
        raise _unavailable("xllamacpp is not installed")
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise _unavailable(str(error)) from error


def declare(loaded: ctypes.CDLL, signatures: Signatures) -> ctypes.CDLL:
    """Check and declare functions on a loaded library.

    Raises:
        Unavailable: one is not there; it is named.
    """
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(loaded, name)
        except AttributeError as error:
            raise _unavailable(f"the installed xllamacpp has no symbol {name}") from error
        function.restype = result
        function.argtypes = arguments
    return loaded


@cache
def quantizer() -> ctypes.CDLL:
    """The shared library with the functions of `QUANTIZER` declared.

    Raises:
        Unavailable: xllamacpp is missing, or this version lacks one of them.
    """
    return declare(_load(), QUANTIZER)


@cache
def library() -> ctypes.CDLL:
    """The shared library with the functions of `MODELS` declared, its logs silenced.

    Raises:
        Unavailable: xllamacpp is missing, or this version lacks a symbol or has another layout.
    """
    loaded = declare(_load(), MODELS)
    loaded.llama_backend_init()
    _silence(loaded)
    check_layout(loaded.llama_context_default_params())
    return loaded


def missing() -> str | None:
    """What cannot be done with llama.cpp here, and why, in a clause; None: everything can."""
    lost, causes = [], []
    for get, what in (
        (quantizer, "K types cannot be written"),
        (library, "no file can be opened to check it"),
    ):
        try:
            get()
        except Unavailable as error:
            lost.append(what)
            causes.append(error.cause)
    return f"{' and '.join(lost)} ({causes[0]})" if lost else None


def check_layout(defaults: _Parameters) -> None:
    """Compare llama_context_default_params() with what its layout should give.

    Raises:
        Unavailable: it begins with other numbers.
    """
    first = tuple(_head(defaults)[0:3])
    if first != CONTEXT_DEFAULTS:
        raise _unavailable(f"llama_context_params begins with {first}, not {CONTEXT_DEFAULTS}")


def _head(parameters: _Parameters) -> Any:
    """The first fields of a parameter structure as unsigned 32-bit numbers, writable."""
    return ctypes.cast(ctypes.pointer(parameters), ctypes.POINTER(ctypes.c_uint32))


def _make_exact(parameters: _Parameters) -> None:
    head = _head(parameters)
    found = tuple(head[place] for place in PRECISION_FIELDS)
    if found != PRECISION_DEFAULTS:
        raise _unavailable(f"llama_context_params holds {found}, not {PRECISION_DEFAULTS}")
    for place, value in zip(PRECISION_FIELDS, PRECISION_EXACT, strict=True):
        head[place] = value


def _silence(loaded: ctypes.CDLL) -> None:
    """Send llama.cpp's logs nowhere.

    The callback must be a C function (a Python one could wait for the interpreter's lock from
    another thread for ever); `llama_time_us` ignores its arguments and changes nothing.
    """
    loaded.llama_log_set(ctypes.cast(loaded.llama_time_us, ctypes.c_void_p), None)


@contextmanager
def _collected_errors(loaded: ctypes.CDLL) -> Iterator[list[str]]:
    """What llama.cpp logs as errors meanwhile."""
    errors: list[str] = []

    def collect(level: int, text: bytes, _: object) -> None:
        if level == LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip())

    callback = _LogCallback(collect)  # a name, so that it outlives the calls below
    loaded.llama_log_set(ctypes.cast(callback, ctypes.c_void_p), None)
    try:
        yield errors
    finally:
        _silence(loaded)


class GgufModel:
    """A GGUF file opened in llama.cpp. A context manager; use it from one thread.

    Args:
        path: the GGUF file.
        context: tokens that a sequence may have.
        threads: 0 for one a core.
        exact: keys, values and attention in float32, to tell what comes from the file alone; by
            default they are float16, as when the file serves.

    Raises:
        UnsupportedModel: llama.cpp does not load the file; its own words are the cause.
        Unavailable: see `library`.
    """

    def __init__(self, path: Path, *, context: int, threads: int = 0, exact: bool = False) -> None:
        self._c = library()
        self._model: int | None = None
        self._context: int | None = None
        with _collected_errors(self._c) as errors:
            self._model = self._c.llama_model_load_from_file(
                str(path).encode(), self._c.llama_model_default_params()
            )
            if self._model:
                parameters = self._c.llama_context_default_params()
                head = _head(parameters)
                head[0] = context
                head[1] = head[2] = min(context, CONTEXT_DEFAULTS[2])
                if exact:
                    _make_exact(parameters)
                self._context = self._c.llama_init_from_model(self._model, parameters)
        if not self._model or not self._context:
            self.close()
            raise UnsupportedModel(
                f"llama.cpp cannot load {path.name}.",
                cause="; ".join(errors[-3:]) or f"{path} is missing or no GGUF file",
                next_step="Export the run again; if it fails again, run 'forge-mcp doctor'.",
            )
        if self._c.llama_n_ctx(self._context) < context:
            self.close()
            raise _unavailable("llama_context_params has another layout (n_ctx was not taken)")
        count = threads or cores()
        self._c.llama_set_n_threads(self._context, count, count)
        self.context = context
        self._batch_size = int(self._c.llama_n_batch(self._context))
        self._vocab = self._c.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._vocab))

    def with_adapter(self, path: Path, scale: float = 1.0) -> GgufModel:
        """Add a LoRA adapter in GGUF to what is computed from now on; returns this model.

        Raises:
            UnsupportedModel: llama.cpp does not load it, or it belongs to another model.
            Unavailable: the installed xllamacpp lacks the functions.
        """
        declare(self._c, ADAPTERS)
        with _collected_errors(self._c) as errors:
            adapter = self._c.llama_adapter_lora_init(self._model, str(path).encode())
            failed = not adapter or self._c.llama_set_adapters_lora(
                self._context, (_pointer * 1)(adapter), 1, (ctypes.c_float * 1)(scale)
            )
        if failed:
            raise UnsupportedModel(
                f"llama.cpp cannot load the adapter {path.name}.",
                cause="; ".join(errors[-3:]) or f"{path} is missing or no GGUF file",
                next_step="Export the adapter again, for the base that this file was made of.",
            )
        return self

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, as in a rendered chat."""
        data = text.encode()
        room = len(data) + 8
        buffer = (_int * room)()
        count = self._c.llama_tokenize(
            self._vocab, data, len(data), buffer, room, add_special, True
        )
        if count < 0:
            raise ForgeError("llama.cpp could not tokenise a text.", cause=f"it needs {-count}")
        return list(buffer[:count])

    def ends(self, token: int) -> bool:
        """Whether generation stops at this token."""
        return bool(self._c.llama_vocab_is_eog(self._vocab, token))

    @property
    def chat_template(self) -> str | None:
        """The template that stands in the file."""
        template = self._c.llama_model_chat_template(self._model, None)
        return template.decode() if template else None

    def logits(self, ids: Sequence[int], last: int) -> NDArray[np.float32]:
        """Next-token logits after each of the `last` last tokens: (last, vocab_size).

        Raises:
            BadInput: more tokens than the context.
        """
        if not 0 < last <= len(ids) <= self.context:
            raise BadInput(f"{last} of {len(ids)} tokens asked of a context of {self.context}.")
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        first_wanted = len(ids) - last
        rows: list[NDArray[np.float32]] = []
        batch = self._c.llama_batch_init(self._batch_size, 0, 1)
        try:
            for start in range(0, len(ids), self._batch_size):
                chunk = ids[start : start + self._batch_size]
                batch.n_tokens = len(chunk)
                for index, token in enumerate(chunk):
                    batch.token[index] = token
                    batch.pos[index] = start + index
                    batch.n_seq_id[index] = 1
                    batch.seq_id[index][0] = 0
                    batch.logits[index] = start + index >= first_wanted
                if self._c.llama_decode(self._context, batch) != 0:
                    raise ForgeError("llama.cpp could not compute a batch of tokens.")
                for index in range(max(0, first_wanted - start), len(chunk)):
                    row = self._c.llama_get_logits_ith(self._context, index)
                    rows.append(np.ctypeslib.as_array(row, (self.vocab_size,)).copy())
        finally:
            self._c.llama_batch_free(batch)
        return np.stack(rows)

    def close(self) -> None:
        """Free model and context. May be called twice."""
        if self._context:
            self._c.llama_free(self._context)
        if self._model:
            self._c.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> GgufModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _unavailable(cause: str) -> Unavailable:
    return Unavailable(
        "llama.cpp's library cannot be used.",
        cause=cause,
        next_step=f"Install what AI Forge names (pip install '{requirement('xllamacpp')}'); "
        "without it only f32, f16, bf16 and q8_0 can be written, and none can be checked.",
    )
