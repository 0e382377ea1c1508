"""xllamacpp: whether the installed one can be used, and a llama.cpp server made by it.

Everything of xllamacpp that AI Forge touches for serving is named in `NEEDED` and looked up before
the first use; a version that lacks some of it is refused by name instead of failing half-way.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from forge_mcp.errors import CorruptArtifact, ForgeError, NotFound, Unavailable
from forge_mcp.machine import available_bytes, cores, requirement
from forge_mcp.serving.gguf_file import check_gguf

QUIET, ERRORS = -1, 1  # llama.cpp's verbosity
KEPT_PROMPTS_MIB = 256  # conversations that are set aside for another one, at most
SPARE_BYTES = 64_000_000  # for the buffers of a computation
KV_BYTES = 2  # of one number in the cache of keys and values: f16, llama.cpp's default

NEEDED: dict[str, tuple[str, ...]] = {
    "Server": (
        "handle_chat_completions",
        "handle_metrics",
        "listening_address",
    ),
    "CommonParams": (
        "api_keys",
        "cache_ram_mib",
        "cors_origins",
        "cpuparams",
        "cpuparams_batch",
        "ctx_shift",
        "embedding",
        "endpoint_metrics",
        "endpoint_slots",
        "fit_params",
        "force_pure_content_parser",
        "hostnames",
        "model",
        "model_alias",
        "n_ctx",
        "n_parallel",
        "pooling_type",
        "port",
        "reasoning_format",
        "ui",
        "verbosity",
        "warmup",
    ),
    "CommonParamsModel": ("path",),
    "CpuParams": ("n_threads", "poll"),
    "common_reasoning_format": ("COMMON_REASONING_FORMAT_NONE",),
    "llama_pooling_type": ("LLAMA_POOLING_TYPE_MEAN",),
}


@dataclass(frozen=True)
class Load:
    """What to load, and where it listens.

    `host` is a loopback address, or the path of a Unix socket that ends in .sock; with port 0 the
    system chooses one. `threads` 0 means one a core.
    """

    gguf: Path
    num_ctx: int
    threads: int
    host: str
    key: str
    name: str = "model"
    verbosity: int = QUIET


@cache
def runtime() -> ModuleType:
    """The module xllamacpp, with everything in `NEEDED`.

    Raises:
        Unavailable: it is missing, or of a version that lacks something; what, is named.
    """
    try:
        import xllamacpp
    except ImportError as error:
        raise _unavailable("The embedded llama.cpp runtime is not installed.", str(error)) from None
    check_runtime(xllamacpp)
    return xllamacpp  # type: ignore[no-any-return]


def check_runtime(module: Any) -> None:
    """Look up everything that is used of xllamacpp.

    Raises:
        Unavailable: something is missing; it is named.
    """
    missing = [
        f"{kind}.{name}"
        for kind, names in NEEDED.items()
        for name in names
        if not hasattr(getattr(module, kind, None), name)
    ]
    if missing:
        version = getattr(module, "__version__", "of an unknown version")
        raise _unavailable(
            "The installed llama.cpp runtime cannot be used.",
            f"xllamacpp {version} has no {', '.join(missing)}",
        )


def _unavailable(message: str, cause: str) -> Unavailable:
    return Unavailable(
        message,
        cause=cause,
        next_step=f"pip install '{requirement('xllamacpp')}', or deploy with --target ollama.",
    )


@dataclass(frozen=True)
class Size:
    """What a loaded file takes. `num_ctx` is what was asked for, or what the model was made for."""

    num_ctx: int
    weights_bytes: int
    context_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.context_bytes + SPARE_BYTES


def size_of(gguf: Path, num_ctx: int) -> Size:
    """What a GGUF file and a context take in memory.

    The cache of keys and values holds, for each token and layer, a key and a value for each of the
    key-value heads: bytes = num_ctx x layers x heads x (key + value length) x 2.

    Args:
        gguf: the file.
        num_ctx: tokens asked for; cut at what the model was trained for.

    Raises:
        NotFound: the file is missing.
        CorruptArtifact: it is no whole GGUF file.
    """
    try:
        file = gguf.stat()
    except OSError as error:
        raise NotFound(
            f"The model file {gguf.name} is gone.",
            cause=f"{gguf}: {error.strerror}",
            next_step="Export and deploy the run again.",
        ) from error
    trained, token_bytes = _context(gguf, file.st_size, file.st_mtime_ns)
    fitting = min(num_ctx, trained or num_ctx)
    return Size(fitting, file.st_size, fitting * token_bytes)


@lru_cache(maxsize=16)
def _context(gguf: Path, size: int, changed: int) -> tuple[int, int]:
    """The context that a file was trained for (0: not said), and bytes of a token there.

    `size` and `changed` only tell one state of the file from another: its header is read once.
    """
    header = check_gguf(gguf)

    def number(name: str, otherwise: int) -> int:
        value = header.keys.get(f"{header.architecture}.{name}")
        return value if isinstance(value, int) else otherwise

    heads = number("attention.head_count", 1)
    head_length = number("embedding_length", 0) // max(heads, 1)
    # Where layers differ (a list), as many as there are heads: more than it takes, never less.
    kv_heads = number("attention.head_count_kv", heads)
    lengths = number("attention.key_length", head_length) + number(
        "attention.value_length", head_length
    )
    return number("context_length", 0), number("block_count", 0) * kv_heads * lengths * KV_BYTES


def require_memory(gguf: Path, size: Size) -> None:
    """Refuse what would not fit: llama.cpp would be killed while it loads.

    Raises:
        ForgeError: fewer bytes are free than it takes.
    """
    free = available_bytes()
    if size.total_bytes > free:
        raise ForgeError(
            f"{gguf.name} does not fit into the memory that is free.",
            cause=f"weights {size.weights_bytes / 1e9:.1f} GB, a context of {size.num_ctx} tokens "
            f"{size.context_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free",
            next_step="Lower serving.num_ctx, choose a smaller --quantization, or close other "
            "programs.",
        )


def start_server(load: Load) -> Any:
    """A running llama.cpp server (xllamacpp.Server) that has loaded a file.

    Its destructor stops it and frees the weights.

    Raises:
        NotFound: the file is missing.
        CorruptArtifact: it is damaged, or llama.cpp cannot load it.
        Unavailable: xllamacpp cannot be used.
        ForgeError: it does not fit into memory.
    """
    xllamacpp = runtime()
    size = size_of(load.gguf, load.num_ctx)
    require_memory(load.gguf, size)
    parameters = _parameters(xllamacpp, load, size.num_ctx)

    def start() -> Any:
        server = xllamacpp.Server(parameters)
        # Waits for the server's loop: a server that is closed before that has begun never ends.
        server.handle_metrics()
        return server

    try:
        # In a thread, which no Ctrl-C can interrupt between the two; leaving waits for it.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(start).result()
    except (RuntimeError, ValueError) as error:
        raise CorruptArtifact(
            f"llama.cpp cannot load {load.gguf.name}.",
            cause=f"{load.gguf} is damaged or of a kind that llama.cpp does not know ({error})",
            next_step="Export the run again; if it fails again, run 'forge-mcp doctor'.",
        ) from error


def _parameters(xllamacpp: Any, load: Load, num_ctx: int) -> Any:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(load.gguf)
    parameters.model_alias = {load.name}
    parameters.n_ctx = num_ctx
    parameters.n_parallel = 1
    parameters.ctx_shift = False  # a full context ends the answer; nothing is forgotten silently
    parameters.hostnames = [load.host]
    parameters.port = 0
    parameters.api_keys = [load.key]
    parameters.cors_origins = ""
    parameters.verbosity = load.verbosity
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.endpoint_metrics = True  # `start_server` and the idle clock of a server ask for them
    parameters.warmup = False
    parameters.fit_params = False
    parameters.cache_ram_mib = KEPT_PROMPTS_MIB
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.force_pure_content_parser = True
    parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    count = load.threads or cores()
    for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
        cpu.n_threads = count
        cpu.poll = 0  # sleep instead of spinning while there is nothing to do
    return parameters
