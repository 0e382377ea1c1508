'''The Modelfile that goes with an exported GGUF, and its parser.

There is no TEMPLATE line on purpose: Ollama then uses the chat template inside the GGUF, which is
the one that the model was trained with. A value in triple quotes has no escape in Ollama's syntax
(parser/parser.go), so text with `"""` in it cannot be written here; `deploy` sends the system
prompt through Ollama's API instead, where any text is possible.
'''

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from forge_mcp.errors import BadInput

QUOTES = '"""'
PARAMETERS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "num_ctx": int,
    "num_predict": int,
}


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile of the template says."""

    gguf_path: str
    system_prompt: str
    parameters: dict[str, int | float] = field(default_factory=dict)


def create_ollama_modelfile(
    model_name: str, gguf_path: str, system_prompt: str, sampling: Mapping[str, int | float]
) -> str:
    """The text of a Modelfile (assets/modelfile_template, filled).

    Args:
        model_name: for the comment that says how to use it.
        gguf_path: as it shall stand after FROM, relative to the Modelfile or absolute.
        system_prompt: any text without three double quotes in a row or one at its end.
        sampling: a value for each of `PARAMETERS`.

    Raises:
        BadInput: a text that a Modelfile cannot hold.
    """
    check_system_prompt(system_prompt)
    for what, text in (("model name", model_name), ("path of the GGUF", gguf_path)):
        if not text.strip() or text != text.strip() or text.splitlines() != [text]:
            raise BadInput(
                f"The {what} cannot be written in a Modelfile.",
                cause=f"{text!r} is not one line of text",
                next_step="Choose a name of letters, digits and dashes.",
            )
    template = files("forge_mcp").joinpath("assets/modelfile_template").read_text("utf-8")
    values = {name: kind(sampling[name]) for name, kind in PARAMETERS.items()}
    fields = {
        "model_name": model_name,
        "gguf_path": gguf_path,
        "system_prompt": system_prompt,
        **values,
    }
    return re.sub(r"\{(\w+)\}", lambda match: str(fields[match.group(1)]), template)


def check_system_prompt(text: str) -> None:
    """Raises:
    BadInput: the text cannot stand in a Modelfile.
    """
    if QUOTES in text or text.endswith('"') or "\r" in text or "\0" in text:
        raise BadInput(
            "The system prompt cannot be written in a Modelfile.",
            cause='it holds """, ends in ", or holds a carriage return or NUL, and Ollama\'s '
            "Modelfile has no escape for them",
            next_step="Change project.system_prompt, or deploy to Ollama with 'forge-mcp deploy', "
            "which sends the text through Ollama's API.",
        )


def parse_modelfile(text: str) -> Modelfile:
    """Inverse of `create_ollama_modelfile`.

    Raises:
        BadInput: a line that the template does not have.
    """
    rest = text
    source: str | None = None
    system = ""
    parameters: dict[str, int | float] = {}
    while rest:
        line, _, after = rest.partition("\n")
        word, _, value = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            pass
        elif word == "FROM":
            source = value
        elif word == "SYSTEM" and value.startswith(QUOTES):
            body = rest[len("SYSTEM ") + len(QUOTES) :]
            system, closing, after = body.partition(QUOTES)
            if not closing:
                raise BadInput("The Modelfile's SYSTEM text is never closed.")
            after = after.removeprefix("\n")
        elif word == "PARAMETER" and value.partition(" ")[0] in PARAMETERS:
            name, _, number = value.partition(" ")
            try:
                parameters[name] = PARAMETERS[name](number)
            except ValueError as error:
                raise BadInput(f"The Modelfile's {name} is no number.", cause=str(error)) from error
        else:
            raise BadInput(
                "The Modelfile has a line that AI Forge does not write.",
                cause=repr(line[:100]),
                next_step="Export the run again.",
            )
        rest = after
    if source is None:
        raise BadInput("The Modelfile has no FROM line.", next_step="Export the run again.")
    return Modelfile(source, system, parameters)
