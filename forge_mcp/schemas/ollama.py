"""What an exported file and a running Ollama have to agree on: version, parameters, names.

Read at Ollama's source of August 2026: api/types.go (Options), types/model/name.go, server/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from forge_mcp.errors import BadInput

# From 0.30.0 on a GGUF without a TEMPLATE is rendered by the Jinja template inside it; before, by a
# Go template that resembled it or by the bare prompt. 0.30.11 does so for `ollama run` too.
MINIMUM_VERSION = "0.30.11"

Parameter = int | float | list[str]
# Of Ollama's options those that AI Forge sets. A list becomes several PARAMETER lines.
PARAMETERS: dict[str, type[int] | type[float] | type[list[str]]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repeat_penalty": float,
    "num_ctx": int,
    "num_predict": int,
    "seed": int,
    "stop": list,
}

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"
_HOST = r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"
_NAME = re.compile(rf"(?:(?:{_HOST}/)?{_NAMESPACE}/)?{_PART}(?::{_PART})?")


def check_model_name(name: str) -> str:
    """The name, where Ollama takes it for a model: [[HOST/]NAMESPACE/]MODEL[:TAG].

    Raises:
        BadInput: it does not.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"Ollama does not allow the model name {name[:200]!r}.",
            cause="it consists of letters, digits, '-', '_' and '.', with a letter, a digit or "
            "'_' first, at most 80 of them, and perhaps ':TAG'",
            next_step="Choose another name.",
        )
    return name


def with_tag(name: str) -> str:
    """The name as Ollama lists it: the tag is 'latest' where none is named."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def check_parameters(values: Mapping[str, object]) -> dict[str, Parameter]:
    """The values in the types that Ollama wants, in the order of `PARAMETERS`.

    Raises:
        BadInput: a name that AI Forge does not set, or a value of another type.
    """
    unknown = [name for name in values if name not in PARAMETERS]
    if unknown:
        raise BadInput(
            f"AI Forge sets no parameter '{unknown[0]}' in Ollama.",
            cause=f"it sets {', '.join(PARAMETERS)}",
            next_step="Leave it out.",
        )
    return {
        name: _typed(name, values[name], kind)
        for name, kind in PARAMETERS.items()
        if name in values
    }


def _typed(name: str, value: object, kind: type) -> Parameter:
    if kind is list:
        if isinstance(value, Sequence) and not isinstance(value, str):
            texts = [text for text in value if isinstance(text, str) and text]
            if len(texts) == len(value):
                return texts
        wanted = "a list of texts that are not empty"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if kind is int and abs(value) < 2**63 and value == int(value):
            return int(value)
        if kind is float and abs(float(value)) <= 3e38:  # single precision in Ollama; NaN is not
            return float(value)
        wanted = "a whole number" if kind is int else "a finite number"
    else:
        wanted = "a number"
    raise BadInput(
        f"The parameter '{name}' cannot be {value!r}.",
        cause=f"Ollama wants {wanted}",
        next_step=f"Correct serving.{name}.",
    )
