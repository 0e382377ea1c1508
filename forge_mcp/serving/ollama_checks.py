"""Whether Ollama is new enough, and whether what it made of a file is what was sent.

Ollama rewrites an uploaded GGUF while it validates it, so its digest says nothing afterwards; and
where the chat template inside the file resembles one of its own, it renders chats by its own
(server/model.go, `detectChatTemplate`: fewer than 100 characters to change). What `show` answers is
compared with the file, and a template of its own must prove itself on chats.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge_mcp.errors import CorruptArtifact, ForgeError, Unavailable
from forge_mcp.schemas.ollama import MINIMUM_VERSION, Parameter
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.gguf_file import check_gguf
from forge_mcp.serving.ollama_api import VERSION, OllamaApi

UNVERSIONED = "0.0.0"  # what a build from source says
SHOWN_CHARS = 300

# Chats in which templates differ, if they do: with and without a system prompt, a second turn,
# white space at the ends, and text that looks like markup.
CHATS: tuple[tuple[Message, ...], ...] = (
    (Message(role="user", content="2 + 3?"),),
    (
        Message(role="system", content="You know this repository."),
        Message(role="user", content="What does `zip_all` do?\n"),
    ),
    (
        Message(role="system", content="You know this repository."),
        Message(role="user", content="\n  What does <b>it</b> do?  \n"),
        Message(role="assistant", content="It zips. "),
        Message(role="user", content="And where is it called?"),
    ),
)


def require_version(version: str) -> None:
    """Refuse an Ollama that would answer by another chat template than the file's.

    A build from source does not say which version it is; `check_created` finds its faults.

    Raises:
        Unavailable: it is too old.
    """
    if version != UNVERSIONED and _parts(version) < _parts(MINIMUM_VERSION):
        raise Unavailable(
            f"Ollama {version} is too old: {MINIMUM_VERSION} is the first that can be used.",
            cause="before, it does not render chats by the template inside a GGUF file, but by one "
            "of its own, so that the model sees other prompts than it was trained on",
            next_step="Update Ollama (https://ollama.com/download), or use --target llamacpp.",
        )


def _parts(version: str) -> tuple[int, ...]:
    found = VERSION.match(version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


@dataclass(frozen=True)
class FileFacts:
    """What of a GGUF file must be the same in Ollama. Token ids are None where it names none."""

    architecture: str
    chat_template: str
    bos: int | None
    eos: int | None


def read_facts(gguf: Path) -> FileFacts:
    """Read a GGUF file's metadata.

    Raises:
        NotFound: it is missing.
        CorruptArtifact: it is no whole GGUF file, has no chat template, or names no token that
            ends an answer.
    """
    header = check_gguf(gguf)
    template = header.keys.get("tokenizer.chat_template")
    bos, eos = (header.keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    for found, lack in (
        (template, "no chat template: Ollama would send bare prompts"),
        (eos, "no end-of-text token: the model would never stop"),
    ):
        if found in (None, ""):
            raise CorruptArtifact(
                f"The model file {gguf.name} cannot be deployed.",
                cause=f"it has {lack}",
                next_step="Export the run again; take a base with a chat template.",
            )
    return FileFacts(
        architecture=header.architecture,
        chat_template=str(template),
        bos=bos if isinstance(bos, int) else None,
        eos=eos if isinstance(eos, int) else None,
    )


def check_created(
    api: OllamaApi,
    model: str,
    facts: FileFacts,
    system: str,
    parameters: Mapping[str, Parameter],
) -> None:
    """Compare what Ollama made with what was sent.

    Args:
        api: the server.
        model: its name there.
        facts: of the file.
        system: the system prompt that was sent.
        parameters: that were sent.

    Raises:
        ForgeError: they differ; every difference is named.
    """
    shown = api.request("POST", "/api/show", {"model": model}, doing=f"show {model}", model=model)
    info = shown.get("model_info") or {}
    differences = []

    def compare(what: str, sent: object, found: object) -> None:
        if found != sent:
            differences.append(f"{what} is {_short(found)} instead of {_short(sent)}")

    compare("the architecture", facts.architecture, info.get("general.architecture"))
    for name, sent in (("bos", facts.bos), ("eos", facts.eos)):
        compare(f"the {name.upper()} token", sent, info.get(f"tokenizer.ggml.{name}_token_id"))
    compare("the system prompt", system, shown.get("system") or "")
    found = read_parameters(shown.get("parameters") or "")
    wanted = {name: value for name, value in parameters.items() if value != []}
    for name in sorted(wanted.keys() | found.keys()):
        compare(f"the parameter '{name}'", wanted.get(name), found.get(name))
    if differences:
        raise ForgeError(
            f"Ollama did not take {model} as it was sent.",
            cause="; ".join(differences),
            next_step="What was active stays active. Update Ollama and deploy again, or use "
            "--target llamacpp.",
        )
    if shown.get("template") != facts.chat_template:
        _check_rendering(api, model, facts, system, parameters)


def _check_rendering(
    api: OllamaApi,
    model: str,
    facts: FileFacts,
    system: str,
    parameters: Mapping[str, Parameter],
) -> None:
    """Ollama took a template of its own: it must write the same prompts.

    Raises:
        ForgeError: it does not, or nothing could be compared.
    """
    bos, eos = _special_texts(api, model, facts)
    compared = 0
    for chat in CHATS:
        full = chat
        if system and chat[0].role != "system":
            full = (Message(role="system", content=system), *chat)
        expected = render_chat(facts.chat_template, full, bos, eos)
        if expected is None:
            continue
        compared += 1
        found = render_in_ollama(api, model, chat, {**parameters, "num_predict": 1})
        if found is None or found.removeprefix(bos) != expected.removeprefix(bos):
            raise ForgeError(
                f"Ollama would give {model} other prompts than it was trained on.",
                cause="it does not use the chat template inside the file, but one of its own: "
                f"{_short(found)} instead of {_short(expected)}",
                next_step="Start Ollama with OLLAMA_GO_TEMPLATE=0 in its environment, which makes "
                "it use the template inside the file, and deploy again; or use --target llamacpp.",
            )
    if not compared:
        raise ForgeError(
            f"Whether Ollama gives {model} the prompts it was trained on cannot be found out.",
            cause="it uses a chat template of its own, and the file's refuses simple chats",
            next_step="Start Ollama with OLLAMA_GO_TEMPLATE=0 in its environment and deploy again, "
            "or use --target llamacpp.",
        )


def _special_texts(api: OllamaApi, model: str, facts: FileFacts) -> tuple[str, str]:
    """The texts of the BOS and EOS tokens, '' for one that the file does not name."""
    shown = api.request(
        "POST",
        "/api/show",
        {"model": model, "verbose": True},
        doing=f"show {model}",
        model=model,
    )
    tokens = (shown.get("model_info") or {}).get("tokenizer.ggml.tokens") or []
    bos, eos = (
        str(tokens[at]) if at is not None and at < len(tokens) else ""
        for at in (facts.bos, facts.eos)
    )
    return bos, eos


def render_chat(template: str, messages: Sequence[Message], bos: str, eos: str) -> str | None:
    """A chat as a Jinja template writes it, up to the answer; None where it refuses the chat.

    The environment is the one that transformers renders chat templates in.

    Args:
        template: Jinja.
        messages: the chat.
        bos: text of the token that begins a text.
        eos: of the one that ends it.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(
            messages=[message.model_dump() for message in messages],
            add_generation_prompt=True,
            bos_token=bos,
            eos_token=eos,
        )
    except (jinja2.TemplateError, TypeError):
        return None


def render_in_ollama(
    api: OllamaApi, model: str, messages: Sequence[Message], options: Mapping[str, object]
) -> str | None:
    """A chat as Ollama writes it for the model; None where this Ollama does not tell.

    `_debug_render_only` stands in api/types.go, but not in Ollama's documentation. The model is
    loaded for it. A server that does not know it answers the chat: give it a small num_predict.
    """
    answer = api.request(
        "POST",
        "/api/chat",
        {
            "model": model,
            "messages": [message.model_dump() for message in messages],
            "options": dict(options),
            "stream": False,
            "truncate": False,
            "shift": False,
            "_debug_render_only": True,
        },
        doing=f"render a chat for {model}",
        model=model,
    )
    rendered = (answer.get("_debug_info") or {}).get("rendered_template")
    return rendered if isinstance(rendered, str) else None


def read_parameters(text: str) -> dict[str, Any]:
    """The parameters in `show`'s text: a name and a value in Go's notation on each line.

    A text in quotes stands for one of a list.
    """
    found: dict[str, Any] = {}
    for name, value in re.findall(r"^(\S+)\s+(.*)$", text, re.MULTILINE):
        if value.startswith('"'):
            found.setdefault(name, []).append(ast.literal_eval(value))
        else:
            found[name] = json.loads(value)
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
