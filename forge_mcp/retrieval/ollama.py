"""Vectors from a model in Ollama, through its own client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from forge_mcp.errors import ForgeError, InvalidSettings, NotFound, Unavailable
from forge_mcp.settings import is_cloud_model

if TYPE_CHECKING:
    from forge_mcp.retrieval.encoder import Kind, Progress, Vectors

TEXTS_AT_ONCE = 64  # in one request
TIMEOUT_SECONDS = 300.0  # for one request, the loading of the model included


class OllamaEncoder:
    """An embedding model in Ollama, which cuts texts off at the model's context.

    Args:
        model: its name there.
        host: of the Ollama server.

    Raises:
        InvalidSettings: no model is named, or one that Ollama runs on its maker's servers.
        NotFound: Ollama has no such model.
        Unavailable: Ollama is not there.
    """

    def __init__(self, model: str, host: str) -> None:
        import ollama

        if not model or is_cloud_model(model):
            raise InvalidSettings(
                f"'ollama:{model}' cannot be the encoder.",
                cause="Ollama runs it elsewhere: the repository's code would leave this machine"
                if model
                else "it names no model",
                next_step="Set retrieval.encoder to an embedding model that runs here, e.g. "
                "ollama:nomic-embed-text.",
            )
        self.name = f"ollama:{model}"
        self._model = model
        self._host = host
        # trust_env off: a proxy named in the environment must not see what is meant for this host.
        self._client = ollama.Client(host=host, timeout=TIMEOUT_SECONDS, trust_env=False)
        self.fingerprint = hashlib.sha256(f"ollama {self._digest()}".encode()).hexdigest()

    def encode(
        self, texts: Sequence[str], kind: Kind = "document", progress: Progress | None = None
    ) -> Vectors:
        """The vectors of some texts: float32 of shape (texts, dimensions), each of length 1.

        Raises:
            NotFound, Unavailable, ForgeError: no such model, no Ollama, it refused, or what it
                answered are no vectors.
        """
        import numpy as np

        from forge_mcp.retrieval.encoder import normalised

        rows: list[Sequence[float]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = list(texts[start : start + TEXTS_AT_ONCE])
            with self._translated():
                answer = self._client.embed(model=self._model, input=part, truncate=True)
            rows += self._checked(answer.embeddings, len(part))
            if progress is not None:
                progress(len(rows), len(texts))
        if len({len(row) for row in rows}) > 1:
            raise self._nonsense("vectors of different lengths")
        vectors = np.array(rows, np.float32).reshape(len(rows), len(rows[0]) if rows else 0)
        if not np.isfinite(vectors).all():
            raise self._nonsense("numbers that are not finite")
        found: Vectors = normalised(vectors)
        return found

    def _digest(self) -> str:
        """What Ollama calls the content of the model."""
        with self._translated():
            models = self._client.list().models
        wanted = {self._model, f"{self._model}:latest"}
        for row in models:
            if row.model in wanted and row.digest:
                return row.digest
        raise self._no_model(f"it has: {', '.join(str(row.model) for row in models) or 'none'}")

    def _checked(self, rows: Sequence[Sequence[float]], count: int) -> Sequence[Sequence[float]]:
        if len(rows) != count or not all(rows):
            raise self._nonsense(f"{len(rows)} vectors for {count} texts, or empty ones")
        return rows

    def _nonsense(self, what: str) -> ForgeError:
        return ForgeError(
            f"Ollama's model '{self._model}' gave no usable vectors.",
            cause=f"Ollama at {self._host} answered with {what}",
            next_step="Choose an embedding model, e.g. ollama:nomic-embed-text.",
        )

    def _no_model(self, cause: str) -> NotFound:
        return NotFound(
            f"Ollama has no model '{self._model}'.",
            cause=cause,
            next_step=f"Fetch it with 'ollama pull {self._model}', or set retrieval.encoder to "
            "another one.",
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of the client in words."""
        import httpx
        import ollama

        try:
            yield
        except ollama.ResponseError as error:
            if error.status_code == 404:
                raise self._no_model(error.error) from error
            raise ForgeError(
                f"Ollama could not encode with {self._model}.",
                cause=error.error,
                next_step="See Ollama's log; not every model can make vectors.",
            ) from error
        except (ConnectionError, httpx.HTTPError, ValueError) as error:
            raise Unavailable(
                f"Ollama does not answer at {self._host}.",
                cause=str(error).split(". ")[0] or type(error).__name__,
                next_step="Start it with 'ollama serve', set serving.ollama_host if it runs "
                "elsewhere, or set retrieval.encoder to a folder.",
            ) from error
