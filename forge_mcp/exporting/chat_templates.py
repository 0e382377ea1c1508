"""The chat templates of a model, from every place where transformers keeps them.

The order is that of transformers' own loading (`PreTrainedTokenizerBase._from_pretrained`): files
of their own replace what tokenizer_config.json holds, and what only a processor would read comes
last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from forge_mcp.errors import UnsupportedModel

DEFAULT = "default"
TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"
SYSTEM = {"role": "system", "content": "You answer."}
EXCHANGE = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "Two?"},
]


def read_chat_templates(folder: Path) -> dict[str, str]:
    """All templates by name, the one called "default" first.

    Args:
        folder: a model folder in Hugging Face format.

    Raises:
        UnsupportedModel: no default template, one that is no text, or one that no file can hold
            because mlx-lm writes this model's chats by code.
    """
    config = read_object(folder / "tokenizer_config.json") or {}
    if config.get("chat_template_type"):
        raise _refuse(
            folder,
            f"mlx-lm writes its chats by code of its own ({config['chat_template_type']}), not by "
            "a template",
        )
    found = _own_files(folder)
    if not found:
        found = _listed(folder, config.get("chat_template"), "tokenizer_config.json")
    if not found:
        processor = read_object(folder / PROCESSOR_FILE) or {}
        found = _listed(folder, processor.get("chat_template"), PROCESSOR_FILE)
    if not found:
        raise _refuse(folder, "it has no chat template")
    if DEFAULT not in found:
        raise _refuse(folder, f"none of its chat templates ({', '.join(sorted(found))}) is default")
    return {DEFAULT: found.pop(DEFAULT)} | dict(sorted(found.items()))


def render_sample(folder: Path, template: str, special: dict[str, str]) -> str:
    """A short chat in a template's words, up to where the next answer begins.

    A template that allows no system message is given none.

    Args:
        folder: of the model, for the error.
        template: Jinja.
        special: what the template is told beside the messages ("bos_token" and so on).

    Raises:
        UnsupportedModel: the template is no Jinja, or cannot render such a chat.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    failed: Exception | None = None
    for chat in ([SYSTEM, *EXCHANGE], EXCHANGE):
        try:
            rendered = render_jinja_template(
                conversations=[chat],
                chat_template=template,
                add_generation_prompt=True,
                **special,
            )
        except TemplateSyntaxError as error:
            raise _refuse(
                folder, f"its chat template is no Jinja: line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # a template is a program and can raise anything
            failed = error
        else:
            text: str = rendered[0][0]
            return text
    raise _refuse(
        folder, f"its chat template fails on a chat: {type(failed).__name__}: {failed}"
    ) from failed


def _own_files(folder: Path) -> dict[str, str]:
    paths = {DEFAULT: folder / TEMPLATE_FILE} | {
        path.name.removesuffix(".jinja"): path
        for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))
    }
    found: dict[str, str] = {}
    for name, path in paths.items():
        try:
            found[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
    return found


def _listed(folder: Path, entry: Any, name: str) -> dict[str, str]:
    """A template as a JSON file holds it: a text, or a list or an object of named ones."""
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {DEFAULT: entry}
    try:
        if isinstance(entry, list):
            entry = {row["name"]: row["template"] for row in entry}
        texts = dict(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / name, "its chat_template has no known form") from error
    if not all(isinstance(part, str) for row in texts.items() for part in row):
        raise _damaged(folder / name, "its chat_template has no known form")
    return texts


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds one object, or None where there is no such file.

    Raises:
        UnsupportedModel: it cannot be read, or holds something else.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(loaded, dict):
        raise _damaged(path, f"it holds a {type(loaded).__name__}, no object")
    return loaded


def _damaged(path: Path, cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path.name} of {path.parent.name} cannot be read.",
        cause=cause,
        next_step="Get the model's files again.",
    )


def _refuse(folder: Path, cause: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"The chat template of {folder.name} cannot be written as GGUF.",
        cause=cause,
        next_step="Choose an instruct or chat variant with a template of its own "
        "(chat_template.jinja).",
    )
