"""Models in Ollama, through its own client.

A finished GGUF is uploaded as it is (Ollama's own quantisation knows fewer types and would change
what the parity gate has checked), with the system prompt and sampling as JSON, where any text is
possible, and without a template, so that Ollama uses the one inside the GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forge_mcp.errors import BadInput, ForgeError, NotFound, Unavailable
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import OnText, Reply, Sampling
from forge_mcp.settings import is_loopback

DEFAULT_HOST = "http://127.0.0.1:11434"
STATUS_SECONDS = 3.0
# Turn markers that a chat template writes around one message; no known one writes more tokens.
TOKENS_PER_MESSAGE = 16


def check_ollama_status(host: str = DEFAULT_HOST) -> bool:
    """Whether an Ollama server answers at `host`."""
    import httpx
    import ollama

    try:
        _client(host, timeout=STATUS_SECONDS).list()
    except (ConnectionError, httpx.HTTPError, ollama.ResponseError, ValueError):
        return False
    return True


def require_ollama(host: str = DEFAULT_HOST) -> None:
    """Raises:
    Unavailable: no Ollama server answers at `host`.
    """
    if not check_ollama_status(host):
        raise _not_there(host, "nothing answers there as Ollama does")


def list_ollama_models(host: str = DEFAULT_HOST) -> list[str]:
    """Names of the models that Ollama holds, with their tags.

    Raises:
        Unavailable: Ollama is not there.
    """
    with _translated(host, "list its models"):
        return [row.model for row in _client(host).list().models if row.model]


def unload_ollama_models(host: str = DEFAULT_HOST) -> list[str]:
    """Have Ollama give back the memory of the models that it has loaded; returns their names.

    They stay installed, and Ollama loads them again at the next question. An Ollama on another
    machine is left alone: its memory is not ours.

    Raises:
        Unavailable: Ollama is not there.
    """
    if not is_loopback(host):
        return []
    with _translated(host, "unload its models"):
        client = _client(host)
        loaded = [row.model for row in client.ps().models if row.model]
        for model in loaded:
            client.generate(model=model, prompt="", keep_alive=0)
        return loaded


def create_ollama_model(
    model_name: str,
    gguf_path: Path,
    system_prompt: str,
    parameters: Mapping[str, int | float],
    *,
    host: str = DEFAULT_HOST,
    progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Upload a GGUF and make a model of it; one of that name is replaced.

    Args:
        model_name: in Ollama.
        gguf_path: the finished file.
        system_prompt: any text.
        parameters: Ollama's, e.g. temperature, top_k, top_p, num_ctx, num_predict.
        host: of the Ollama server.
        progress: told each status that Ollama reports.

    Raises:
        NotFound: the file is missing.
        Unavailable: Ollama is not there.
        ForgeError: Ollama refused; its words are the cause.
    """
    if not gguf_path.is_file():
        raise NotFound(
            f"The model file {gguf_path.name} is gone.",
            cause=f"{gguf_path} is missing",
            next_step="Export the run again.",
        )
    client = _client(host)
    status = ""
    with _translated(host, f"create {model_name}"):
        progress("uploading")
        digest = client.create_blob(gguf_path)
        for part in client.create(
            model=model_name,
            files={gguf_path.name: digest},
            system=system_prompt,
            parameters=dict(parameters),
            stream=True,
        ):
            status = part.status or status
            progress(status)
    if status != "success":
        raise ForgeError(
            f"Ollama did not finish creating {model_name}.",
            cause=f"its last word was '{status}'",
            next_step="See Ollama's log, then deploy again; what was active stays active.",
        )


def delete_ollama_model(model_name: str, *, host: str = DEFAULT_HOST) -> None:
    """Remove a model from Ollama.

    Raises:
        NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
    """
    with _translated(host, f"delete {model_name}", model_name):
        _client(host).delete(model_name)


def query_model(
    model_name: str, prompt: str, temperature: float = 0.0, *, host: str = DEFAULT_HOST
) -> str:
    """One answer to one prompt, with the model's own system prompt and parameters.

    Raises:
        NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
    """
    with _translated(host, f"ask {model_name}", model_name):
        answer = _client(host).chat(
            model=model_name,
            messages=[{"role": "user", "content": prompt}],
            options={"temperature": temperature},
        )
    return answer.message.content or ""


class OllamaChat:
    """A deployed model in Ollama.

    Args:
        host: of the Ollama server.
        model: its name there.
        tokenizer: the tokenizer.json of the model, to count tokens here.
        num_ctx: tokens of prompt and answer together.
    """

    def __init__(self, host: str, model: str, tokenizer: Path, num_ctx: int) -> None:
        self._host = host
        self._model = model
        self._tokenizer = tokenizer
        self._num_ctx = num_ctx
        self._client = _client(host)

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat.

        Raises:
            BadInput: the prompt is longer than the context; Ollama would cut it without a word.
            NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
        """
        count = self.count_tokens(messages)
        if count >= self._num_ctx:
            raise BadInput(
                "The prompt is longer than the model's context.",
                cause=f"up to {count} tokens, {self._num_ctx} fit",
                next_step="Shorten the question, give fewer documents, or raise serving.num_ctx.",
            )
        options: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repeat_penalty,
            "seed": sampling.seed,
            "num_predict": sampling.num_predict,
            "num_ctx": self._num_ctx,
        }
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        pieces: list[str] = []
        last: Any = None
        with _translated(self._host, f"ask {self._model}", self._model):
            for part in self._client.chat(
                model=self._model,
                messages=[message.model_dump() for message in messages],
                options=options,
                stream=True,
            ):
                last = part
                if part.message.content:
                    pieces.append(part.message.content)
                    if on_text:
                        on_text(part.message.content)
        if last is None or not last.done:
            raise ForgeError(
                f"Ollama broke off its answer for {self._model}.",
                cause="the stream ended before its last part",
                next_step="Ask again; see Ollama's log if it happens again.",
            )
        return Reply(
            text="".join(pieces),
            stopped=last.done_reason == "stop",
            prompt_tokens=last.prompt_eval_count or 0,
            completion_tokens=last.eval_count or 0,
        )

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """An upper bound: Ollama has no way to ask, so the template is taken as 16 a message."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._tokenizer))
        texts = [message.content for message in messages]
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        return sum(len(one.ids) + TOKENS_PER_MESSAGE for one in encoded) + TOKENS_PER_MESSAGE

    def close(self) -> None:
        """Nothing is held here: Ollama unloads by itself."""


def _client(host: str, timeout: float | None = None) -> Any:
    import ollama

    # trust_env off: a proxy named in the environment must not see what is meant for this host.
    return ollama.Client(host=host, timeout=timeout, trust_env=False)


@contextmanager
def _translated(host: str, doing: str, model: str | None = None) -> Iterator[None]:
    """Errors of the client in words."""
    import httpx
    import ollama

    try:
        yield
    except ollama.ResponseError as error:
        if model is not None and error.status_code == 404:
            raise NotFound(
                f"Ollama has no model '{model}'.",
                cause=error.error,
                next_step="Deploy the run again: forge-mcp deploy RUN --target ollama",
            ) from error
        raise ForgeError(
            f"Ollama could not {doing}.",
            cause=error.error,
            next_step="See Ollama's log; 'forge-mcp doctor' checks its version.",
        ) from error
    except ConnectionError as error:
        raise _not_there(host, str(error).split(". ")[0]) from error
    except (httpx.HTTPError, ValueError) as error:
        raise _not_there(host, f"{type(error).__name__}: {error}") from error


def _not_there(host: str, cause: str) -> Unavailable:
    return Unavailable(
        f"Ollama does not answer at {host}.",
        cause=cause,
        next_step="Start it with 'ollama serve' (or install it from ollama.com), set "
        "serving.ollama_host if it runs elsewhere, or use --target llamacpp, which needs no "
        "server.",
    )
