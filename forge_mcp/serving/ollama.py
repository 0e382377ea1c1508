"""Models in Ollama: is it there, what does it hold, create, ask, unload, delete.

A finished GGUF is uploaded as it is (Ollama's own quantisation knows fewer types and would change
what the parity gate has checked), with the system prompt and sampling as JSON, where any text is
possible, and without a template, so that Ollama uses the one inside the GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from forge_mcp.errors import BadInput, ForgeError, NotFound, Unavailable
from forge_mcp.schemas.ollama import check_model_name, check_parameters, with_tag
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.chat import OnText, Reply, Sampling
from forge_mcp.serving.ollama_api import DEFAULT_HOST, SILENCE_SECONDS, OllamaApi
from forge_mcp.serving.ollama_checks import (
    check_created,
    read_facts,
    render_in_ollama,
    require_version,
)
from forge_mcp.serving.ollama_process import start_ollama
from forge_mcp.serving.ollama_upload import OnBytes, upload_blob
from forge_mcp.settings import is_loopback

STATUS_SECONDS = 3.0
DONE = "success"
# Turn markers that a chat template writes around one message; no known one writes more tokens.
TOKENS_PER_MESSAGE = 16


# -- the server ------------------------------------------------------------------------------------


def check_ollama_status(host: str = DEFAULT_HOST) -> bool:
    """Whether an Ollama server answers at `host`, of whatever version.

    Raises:
        BadInput: `host` is no address.
    """
    with OllamaApi(host, STATUS_SECONDS) as api:
        try:
            api.version()
        except ForgeError:
            return False
    return True


def ollama_version(host: str = DEFAULT_HOST) -> str:
    """The server's version, e.g. '0.30.11'.

    Raises:
        Unavailable: nothing answers there, or another program.
    """
    with OllamaApi(host, STATUS_SECONDS) as api:
        return api.version()


def require_ollama(
    host: str = DEFAULT_HOST,
    *,
    start: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> None:
    """Have an Ollama at `host` that is new enough.

    Args:
        host: its address.
        start: start one where none answers and it is installed (serving.start_ollama).
        say: told when one is started.

    Raises:
        Unavailable: there is none (and it could not be started), another program is there, or it
            is too old.
    """
    with OllamaApi(host, STATUS_SECONDS) as api:
        if start and not check_ollama_status(host):
            log = start_ollama(api)
            say(f"Started 'ollama serve' at {api.address}; its log is {log}.")
        require_version(api.version())


def list_ollama_models(host: str = DEFAULT_HOST) -> list[str]:
    """Names of the models that Ollama holds, with their tags.

    Raises:
        Unavailable: Ollama is not there.
    """
    with OllamaApi(host) as api:
        return _names(api.request("GET", "/api/tags", doing="list its models"))


def loaded_ollama_models(host: str = DEFAULT_HOST) -> list[str]:
    """Names of the models that Ollama has in memory now, with their tags.

    Raises:
        Unavailable: Ollama is not there.
    """
    with OllamaApi(host) as api:
        return _names(api.request("GET", "/api/ps", doing="list what it has loaded"))


def _names(answer: Mapping[str, Any]) -> list[str]:
    return [str(row["name"]) for row in answer.get("models") or ()]


def unload_ollama_models(
    host: str = DEFAULT_HOST, models: Iterable[str] | None = None
) -> list[str]:
    """Have Ollama give back the memory of the models that it has loaded; returns their names.

    They stay installed, and Ollama loads them again at the next question. An Ollama on another
    machine is left alone: its memory is not ours.

    Args:
        host: of the Ollama server.
        models: only these; None for all.

    Raises:
        Unavailable: Ollama is not there.
    """
    chosen = None if models is None else {with_tag(model) for model in models}
    with OllamaApi(host) as api:
        if not is_loopback(api.address):
            return []
        loaded = _names(api.request("GET", "/api/ps", doing="list what it has loaded"))
        unloaded = [name for name in loaded if chosen is None or with_tag(name) in chosen]
        for name in unloaded:
            api.request(
                "POST",
                "/api/generate",
                {"model": name, "prompt": "", "keep_alive": 0, "stream": False},
                doing=f"unload {name}",
                model=name,
            )
    return unloaded


# -- models ----------------------------------------------------------------------------------------


def create_ollama_model(
    model_name: str,
    gguf_path: Path,
    system_prompt: str,
    parameters: Mapping[str, object],
    *,
    host: str = DEFAULT_HOST,
    timeout: float = SILENCE_SECONDS,
    progress: Callable[[str], None] = lambda message: None,
    on_bytes: OnBytes = lambda doing, done, total: None,
    sha256: str | None = None,
) -> None:
    """Upload a GGUF and make a model of it, and see that it became what was sent.

    One of that name is replaced. A new one that is not as it was sent is removed again.

    Args:
        model_name: in Ollama.
        gguf_path: the finished file.
        system_prompt: any text.
        parameters: Ollama's; see `schemas.ollama.PARAMETERS`.
        host: of the Ollama server.
        timeout: seconds that it may be silent.
        progress: told each status, Ollama's own among them.
        on_bytes: told how far hashing, uploading and Ollama's own reading of the file are.
        sha256: the file's hex digest where it is known already; Ollama checks it.

    Raises:
        NotFound: the file is missing.
        BadInput: a name, text or parameter that Ollama does not allow.
        CorruptArtifact: the file is damaged, has no chat template or no end-of-text token, or
            changed meanwhile.
        Unavailable: Ollama is not there, is too old, too slow, or went away.
        OutOfSpace: its disk is full.
        ForgeError: it refused, or made something else; its words are the cause.
    """
    check_model_name(model_name)
    _check_text(system_prompt, "The system prompt")
    values = check_parameters(parameters)
    if not gguf_path.is_file():
        raise NotFound(
            f"The model file {gguf_path.name} is gone.",
            cause=f"{gguf_path} is missing",
            next_step="Export the run again.",
        )
    facts = read_facts(gguf_path)
    with OllamaApi(host, timeout) as api:
        require_version(api.version())
        tags = _names(api.request("GET", "/api/tags", doing="list its models"))
        digest = upload_blob(api, gguf_path, say=progress, on_bytes=on_bytes, sha256=sha256)
        _create(
            api,
            {
                "model": model_name,
                "files": {"model.gguf": digest},
                "system": system_prompt,
                # An empty list too: it keeps Ollama from adding stop texts of its own.
                "parameters": {"stop": [], **values},
            },
            progress,
            on_bytes,
        )
        try:
            check_created(api, model_name, facts, system_prompt, values)
        except BaseException:
            if with_tag(model_name) not in tags:
                _delete(api, model_name)
            raise


def _create(
    api: OllamaApi,
    request: Mapping[str, Any],
    progress: Callable[[str], None],
    on_bytes: OnBytes,
) -> None:
    model, status = request["model"], ""
    with closing(api.stream("/api/create", request, doing=f"create {model}")) as parts:
        for part in parts:
            said = str(part.get("status", ""))
            if "total" in part:  # a bar, in many parts
                on_bytes(said, int(part.get("completed", 0)), int(part["total"]))
            else:
                progress(said)
            status = said
    if status != DONE:
        raise ForgeError(
            f"Ollama did not finish creating {model}.",
            cause=f"its last word was '{status}'",
            next_step="See Ollama's log, then deploy again; what was active stays active.",
        )


def show_ollama_model(model_name: str, *, host: str = DEFAULT_HOST) -> dict[str, Any]:
    """What Ollama knows of a model: template, system, parameters, details, model_info, …

    Raises:
        NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
    """
    with OllamaApi(host) as api:
        return api.request(
            "POST",
            "/api/show",
            {"model": model_name},
            doing=f"show {model_name}",
            model=model_name,
        )


def copy_ollama_model(source: str, target: str, *, host: str = DEFAULT_HOST) -> None:
    """Give a model a second name; nothing large is copied.

    Raises:
        BadInput: a name that Ollama does not allow.
        NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
    """
    check_model_name(target)
    with OllamaApi(host) as api:
        body = {"source": source, "destination": target}
        api.request("POST", "/api/copy", body, doing=f"copy {source}", model=source)


def delete_ollama_model(model_name: str, *, host: str = DEFAULT_HOST) -> None:
    """Remove a model from Ollama, and from its memory.

    Raises:
        NotFound, Unavailable, ForgeError: no such model, no Ollama, or it refused.
    """
    with OllamaApi(host) as api:
        _delete(api, model_name)


def _delete(api: OllamaApi, model: str) -> None:
    doing = f"delete {model}"
    api.request("DELETE", "/api/delete", {"model": model}, doing=doing, model=model)


# -- asking ----------------------------------------------------------------------------------------


def query_model(
    model_name: str,
    prompt: str,
    temperature: float = 0.0,
    *,
    host: str = DEFAULT_HOST,
    timeout: float = SILENCE_SECONDS,
    on_text: OnText | None = None,
) -> str:
    """One answer to one prompt, with the model's own system prompt and other parameters.

    Raises:
        NotFound, Unavailable, ForgeError: no such model, no Ollama, it refused (also a prompt that
            is too long), or broke off.
    """
    request = {
        "model": model_name,
        "prompt": _check_text(prompt, "The prompt"),
        "options": {"temperature": temperature},
        "truncate": False,
        "shift": False,
    }
    with OllamaApi(host, timeout) as api:
        text, _ = _answer(api, "/api/generate", request, on_text)
    return text


class OllamaChat:
    """A deployed model in Ollama.

    Ollama keeps what it knows of the last prompt and cannot be told not to, so `Sampling.exact`
    has no effect here.

    Args:
        host: of the Ollama server.
        model: its name there.
        tokenizer: the tokenizer.json of the model, to count tokens here.
        num_ctx: tokens of prompt and answer together.
        timeout: seconds that Ollama may be silent.
    """

    def __init__(
        self,
        host: str,
        model: str,
        tokenizer: Path,
        num_ctx: int,
        timeout: float = SILENCE_SECONDS,
    ) -> None:
        self._model = model
        self._tokenizer_path = tokenizer
        self._tokenizer: Any = None
        self._num_ctx = num_ctx
        self._api = OllamaApi(host, timeout)
        self._version = ""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self._num_ctx

    def chat(
        self, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
    ) -> Reply:
        """Answer a chat.

        Raises:
            BadInput: the prompt is longer than the context, or no valid text.
            NotFound, Unavailable, ForgeError: no such model, no Ollama or one that is too old, it
                refused, or broke off.
        """
        count = self.count_tokens(messages)
        if count >= self._num_ctx:
            raise BadInput(
                "The prompt is longer than the model's context.",
                cause=f"{count} tokens, {self._num_ctx} fit with the answer",
                next_step="Shorten the question, give fewer documents, or raise serving.num_ctx.",
            )
        request = {
            "model": self._model,
            "messages": [message.model_dump() for message in messages],
            "options": self._options(sampling),
            # Else Ollama leaves out or forgets the beginning of what does not fit, silently.
            "truncate": False,
            "shift": False,
        }
        text, last = _answer(self._api, "/api/chat", request, on_text)
        return Reply(
            text=text,
            stopped=last.get("done_reason") == "stop",
            prompt_tokens=int(last.get("prompt_eval_count", 0)),
            completion_tokens=int(last.get("eval_count", 0)),
        )

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "seed": sampling.seed,
            "num_predict": sampling.num_predict,
            "num_ctx": self._num_ctx,
            "stop": list(sampling.stop),
        }

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the chat as Ollama renders it, perhaps one more (BOS); the model is loaded.

        Where an Ollama does not tell how it renders a chat, an upper bound: a turn's markers are
        taken as 16 tokens.

        Raises:
            BadInput: no valid text.
            NotFound, Unavailable, ForgeError: no such model, no Ollama or one that is too old, or
                it refused.
        """
        from tokenizers import Tokenizer

        for message in messages:
            _check_text(message.content, "A message")
        if not self._version:
            self._version = self._api.version()
            require_version(self._version)
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(str(self._tokenizer_path))
        options = {"num_ctx": self._num_ctx, "num_predict": 1}
        rendered = render_in_ollama(self._api, self._model, messages, options)
        if rendered is not None:
            return len(self._tokenizer.encode(rendered).ids)
        texts = [message.content for message in messages]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return sum(len(one.ids) + TOKENS_PER_MESSAGE for one in encoded) + TOKENS_PER_MESSAGE

    def close(self) -> None:
        """Close the connections. Ollama unloads the model by itself."""
        self._api.close()


def _answer(
    api: OllamaApi, path: str, request: Mapping[str, Any], on_text: OnText | None
) -> tuple[str, dict[str, Any]]:
    """The whole text of a streamed answer, and its last part."""
    model = request["model"]
    pieces: list[str] = []
    last: dict[str, Any] = {}
    doing = f"answer with {model}"
    with closing(api.stream(path, request, doing=doing, model=model)) as parts:
        for last in parts:
            piece = last.get("response") or (last.get("message") or {}).get("content") or ""
            if piece:
                pieces.append(piece)
                if on_text:
                    on_text(piece)
    if not last.get("done"):
        raise Unavailable(
            f"Ollama broke off its answer for {model}.",
            cause="the stream ended before its last part",
            next_step="Ask again; see Ollama's log if it happens again.",
        )
    return "".join(pieces), last


def _check_text(text: str, what: str) -> str:
    """The text, where it can be sent.

    Raises:
        BadInput: it holds half of a surrogate pair, which is no character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what} is no valid Unicode text.",
            cause=f"{text[error.start]!r} at {error.start} is half of a pair",
            next_step="Take it out.",
        ) from error
    return text
