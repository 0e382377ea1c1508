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

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one."""

    temperature: float
    top_k: int
    top_p: float
    num_predict: int
    stop: tuple[str, ...] = ()
    repeat_penalty: float = 1.0
    seed: int = 17

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
    """A finished answer. `stopped` is False where it was cut at num_predict or the context."""

    text: str
    stopped: bool
    prompt_tokens: int
    completion_tokens: int


class Chat(Protocol):
    """A model that can be talked to."""

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

    `tokenizer` is the tokenizer.json beside the GGUF.
    """

    model: str
    target: str
    gguf: Path
    tokenizer: Path


_open: dict[tuple[str, str, float, int, int], Chat] = {}
_lock = threading.Lock()


def open_chat(deployed: Deployed, settings: ServingSettings) -> Chat:
    """The runtime of a deployed model. The last one stays loaded for the next question.

    Raises:
        Unavailable: the runtime is not there.
        CorruptArtifact, ForgeError: the model cannot be loaded.
    """
    if deployed.target == "ollama":
        from forge_mcp.serving.ollama import OllamaChat

        return OllamaChat(
            settings.ollama_host, deployed.model, deployed.tokenizer, settings.num_ctx
        )
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
    """Free the model that `open_chat` keeps; also called when the process ends."""
    with _lock:
        _close_all()


def _close_all() -> None:
    while _open:
        _open.popitem()[1].close()
