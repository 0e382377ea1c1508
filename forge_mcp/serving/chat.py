"""What every runtime of a deployed model can do, and one call that opens the right one."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forge_mcp.schemas.raft_examples import Message
from forge_mcp.settings import ServingSettings
from forge_mcp.workspace import Workspace

OnText = Callable[[str], None]
Say = Callable[[str], None]  # one sentence for the user
Check = Callable[[], None]  # raises Cancelled where the work shall stop


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one.

    `exact`: read the whole prompt anew. Without it a runtime may keep what it knows of an earlier
    prompt with the same beginning, which is much faster, but reads in other portions: numbers can
    differ in the last bits, and with them (rarely) the most likely token.
    """

    temperature: float
    top_k: int
    top_p: float
    num_predict: int
    stop: tuple[str, ...] = ()
    repeat_penalty: float = 1.0
    seed: int = 17
    min_p: float = 0.0
    exact: bool = False

    @classmethod
    def of(cls, settings: ServingSettings) -> Sampling:
        """The project's."""
        return cls(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            num_predict=settings.num_predict,
            stop=tuple(settings.stop),
            repeat_penalty=settings.repeat_penalty,
            seed=settings.seed,
        )


@dataclass(frozen=True)
class Reply:
    """A finished answer. `stopped` is False where it was cut at num_predict or the context.

    `prompt_tokens_read`: those of the prompt that were not known from an earlier one; None where
    the runtime does not tell.
    """

    text: str
    stopped: bool
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_read: int | None = None


class Chat(Protocol):
    """A model that can be talked to. `context`: tokens of prompt and answer together."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat; `on_text` is given each piece of text as it comes."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered chat (an upper bound where the runtime does not tell)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@dataclass(frozen=True)
class Deployed:
    """Where a deployed model is to be found.

    `tokenizer` is the tokenizer.json beside the GGUF; `project` is whose model it is.
    """

    model: str
    target: str
    gguf: Path
    tokenizer: Path
    project: str = ""


_open: dict[tuple[str, str, float, int, int], Chat] = {}
_lock = threading.Lock()


def open_chat(
    deployed: Deployed,
    settings: ServingSettings,
    *,
    shared_in: Workspace | None = None,
    say: Say = lambda message: None,
    check: Check = lambda: None,
) -> Chat:
    """The runtime of a deployed model.

    A face that ends with its answer (the command line) loads the model itself; the last one stays
    loaded for the next question. A face that lives long gives `shared_in`, and asks the server in a
    process of its own that all faces of that workspace share. Ollama is a server by itself.

    Args:
        deployed: what to open.
        settings: context, threads, Ollama's address.
        shared_in: the workspace whose model servers are used.
        say: is told what a user should know, e.g. that a server died.
        check: called while waiting; raises to give up.

    Raises:
        Unavailable: the runtime is not there.
        CorruptArtifact, ForgeError: the model cannot be loaded.
    """
    if deployed.target == "ollama":
        from forge_mcp.serving.ollama import OllamaChat, require_ollama

        if settings.start_ollama:
            require_ollama(settings.ollama_host, start=True, say=say)
        return OllamaChat(
            settings.ollama_host,
            deployed.model,
            deployed.tokenizer,
            settings.num_ctx,
            settings.ollama_timeout,
        )
    if shared_in is not None:
        from forge_mcp.serving.llamacpp_server import open_server

        return open_server(shared_in, deployed, settings, say=say, check=check)
    from forge_mcp.serving.llamacpp import LlamaCppChat

    key = (
        deployed.model,
        str(deployed.gguf),
        deployed.gguf.stat().st_mtime if deployed.gguf.exists() else 0.0,
        settings.num_ctx,
        settings.threads,
    )
    with _lock:
        if key not in _open:
            _close_all()
            _open[key] = LlamaCppChat(
                deployed.gguf, num_ctx=settings.num_ctx, threads=settings.threads
            )
        return _open[key]


@atexit.register
def unload() -> None:
    """Free the model that `open_chat` keeps in this process; also called when it ends."""
    with _lock:
        _close_all()


def _close_all() -> None:
    while _open:
        _open.popitem()[1].close()
