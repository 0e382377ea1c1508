'''The Modelfile that goes with an exported GGUF, and its parser.

There is no TEMPLATE line on purpose: Ollama then uses the chat template inside the GGUF, which is
the one that the model was trained with. REQUIRES names the first version that does. Its effect is
small (Ollama records and shows it; versions before 0.14.0 do not know the word and refuse the
file), so `deploy` asks the server for its version.

The syntax is that of Ollama's parser/parser.go (`ParseFile`, `unquote`), August 2026. What it reads
as the value of an instruction:

- Characters that Go does not print (`strconv.IsPrint`: all but letters, marks, numbers,
  punctuation, symbols and the space) are dropped, except tabs, and line ends inside quotes.
- A value ends at the first line end at which it is whole, after white space at both ends was
  taken off. It is whole where it does not begin with a quote, or begins and ends with the same
  kind: `"""` (then of 6 characters or more) or `"` (then of 2). Nothing can be escaped.

So a text with a line end in it needs quotes, and is cut wherever one of its lines, with the white
space after it taken off, ends in the closing quotes. `"` closes at least where `"""` does: what
`"""` cannot hold, nothing can.
'''

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from forge_mcp.errors import BadInput
from forge_mcp.schemas.ollama import (
    MINIMUM_VERSION,
    PARAMETERS,
    Parameter,
    check_parameters,
)

QUOTES = '"""'
SPACES = " \t"
LINE_ENDS = "\r\n"
INSTRUCTIONS = (
    *("from", "license", "template", "system", "adapter", "draft", "renderer", "parser"),
    *("parameter", "message", "requires"),
)
ROLES = ("system", "user", "assistant")
_LINE_END = re.compile(r"[\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# Ollama is built with Go 1.26, which knows Unicode 15.0, whatever this Python knows: 3.11 does not
# know the characters yet that came with 15.0, and later ones already know what came up to 17.0 (in
# these ranges, gaps that hold no printable character of 15.0 are bridged).
_NEW_IN_UNICODE_15 = re.compile(
    "["
    "\u0cf3\u0ece\U00010efd-\U00010eff\U0001123f-\U00011241\U00011b00-\U00011b09"
    "\U00011f00-\U00011f10\U00011f12-\U00011f3a\U00011f3e-\U00011f59\U0001342f"
    "\U00013440-\U00013455\U0001b132\U0001b155\U0001d2c0-\U0001d2d3\U0001df25-\U0001df2a"
    "\U0001e030-\U0001e06d\U0001e08f\U0001e4d0-\U0001e4f9\U0001f6dc\U0001f774-\U0001f776"
    "\U0001f77b-\U0001f7d9\U0001fa75-\U0001fa77\U0001fa87-\U0001fa88\U0001faad-\U0001fabd"
    "\U0001fabf\U0001face-\U0001fadb\U0001fae8\U0001faf7-\U0001faf8\U0002b739"
    "\U00031350-\U000323af"
    "]"
)
_AFTER_UNICODE_15 = re.compile(
    "["
    "\u088f-\u0897\u0c5c\u0cdc\u1acf-\u1aeb\u1b4e-\u1b4f\u1b7f\u1c89-\u1c8a\u20c1"
    "\u2427-\u2429\u2b96\u2ffc-\u2fff\u31e4-\u31ef\ua7cb-\ua7cf\ua7d2\ua7d4\ua7da-\ua7f1"
    "\ufbc3-\ufbd2\ufd90-\ufd91\ufdc8-\ufdce\U000105c0-\U000105f3\U00010940-\U00010959"
    "\U00010d40-\U00010d8f\U00010ec2-\U00010efc\U00011380-\U000113e2\U000116d0-\U000116e3"
    "\U00011b60-\U00011bf9\U00011db0-\U00011de9\U00011f5a\U00013460-\U000143fa"
    "\U00016100-\U00016139\U00016d40-\U00016d79\U00016ea0-\U00016ed3\U00016ff2-\U00016ff6"
    "\U000187f8-\U000187ff\U00018cff\U00018d09-\U00018df2\U0001cc00-\U0001cef0"
    "\U0001e5d0-\U0001e6ff\U0001f6d8\U0001f777-\U0001f77a\U0001f8b2-\U0001f8d8"
    "\U0001fa54-\U0001fa57\U0001fa89-\U0001fa8f\U0001fabe\U0001fac6-\U0001facd"
    "\U0001fadc-\U0001fadf\U0001fae9-\U0001faef\U0001fbcb-\U0001fbef\U0001fbfa"
    "\U0002b73a-\U0002b73f\U0002cea2-\U0002cead\U0002ebf0-\U0002ee5d\U000323b0-\U00033479"
    "]"
)


@dataclass(frozen=True)
class Command:
    """One instruction as Ollama reads it: FROM is called 'model', PARAMETER by its own name."""

    name: str
    value: str


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile of the template says."""

    gguf_path: str
    system_prompt: str
    parameters: dict[str, Parameter] = field(default_factory=dict)
    requires: str | None = None


def create_ollama_modelfile(
    model_name: str, gguf_path: str, system_prompt: str, sampling: Mapping[str, object]
) -> str:
    """The text of a Modelfile (assets/modelfile_template, filled).

    Args:
        model_name: for the comment that says how to use it; one line.
        gguf_path: as it shall stand after FROM, relative to the Modelfile or absolute.
        system_prompt: any text that the syntax can express; see `expressible`.
        sampling: values of `PARAMETERS`, `stop` a list of texts. The line of one that is not
            given is left out.

    Raises:
        BadInput: a text that a Modelfile cannot hold, or a parameter that is unknown or of the
            wrong type.
    """
    if any(char in model_name for char in LINE_ENDS) or not model_name.strip():
        raise BadInput(
            "The model name cannot be written in a Modelfile.",
            cause=f"{model_name[:200]!r} is not one line of text",
            next_step="Choose a name of letters, digits and dashes.",
        )
    values: dict[str, list[str]] = {
        "model_name": [model_name],
        "requires": [MINIMUM_VERSION],
        "gguf_path": [_value(gguf_path, "path of the GGUF")],
        "system_prompt": [_value(system_prompt, "system prompt", quoted=True)],
    }
    for name, value in check_parameters(sampling).items():
        if isinstance(value, list):
            values[name] = [_value(text, f"{name} text", quoted=True) for text in value]
        else:
            values[name] = [repr(value)]
    template = files("forge_mcp").joinpath("assets/modelfile_template").read_text("utf-8")
    return "".join(_filled(line, values) for line in template.splitlines(keepends=True))


def _filled(line: str, values: Mapping[str, list[str]]) -> str:
    """A line of the template, once for each value of its last field; '' where that has none."""
    count = len(values.get(re.findall(r"\{(\w+)\}", line)[-1], ()))
    return "".join(
        re.sub(r"\{(\w+)\}", lambda match, at=at: values[match[1]][at], line)  # type: ignore[misc]
        for at in range(count)
    )


def expressible(text: str) -> bool:
    """Whether a Modelfile can hold a text as a value, exactly."""
    return _read_value(f"{QUOTES}{text}{QUOTES}\n", 0) == (text, len(text) + 2 * len(QUOTES))


def _value(text: str, what: str, *, quoted: bool = False) -> str:
    """A text as it stands after its instruction, bare where that reads the same and is wished.

    Raises:
        BadInput: there is no way to write it.
    """
    if not quoted and text and _read_value(f"{text}\n", 0) == (text, len(text)):
        return text
    if expressible(text):
        return f"{QUOTES}{text}{QUOTES}"
    dropped = next((char for char in text if not _is_kept(char)), None)
    raise BadInput(
        f"The {what} cannot be written in a Modelfile.",
        cause='one of its lines ends in """, which closes the value, and nothing can be escaped'
        if dropped is None
        else f"Ollama drops the character U+{ord(dropped):04X} from a Modelfile",
        next_step="Change the text, or deploy with 'forge-mcp deploy --target ollama', which sends "
        "it through Ollama's API, where any text is possible.",
    )


def parse_modelfile(text: str) -> Modelfile:
    """Inverse of `create_ollama_modelfile`, by Ollama's own rules of syntax.

    Raises:
        BadInput: no valid Modelfile, or one with instructions that AI Forge does not write.
    """
    source = ""
    requires: str | None = None
    system = ""
    given: dict[str, Any] = {}
    for command in parse_commands(text):
        kind = PARAMETERS.get(command.name)
        if command.name == "model":
            source = command.value
        elif command.name == "system":
            system = command.value
        elif command.name == "requires":
            requires = command.value
        elif kind is list:
            given.setdefault(command.name, []).append(command.value)
        elif kind is None:
            raise BadInput(
                f"The Modelfile has a '{command.name}', which AI Forge does not write.",
                cause=repr(command.value[:100]),
                next_step="Export the run again.",
            )
        elif not _NUMBER.fullmatch(command.value):
            raise BadInput(
                f"The Modelfile's {command.name} is no number.", cause=repr(command.value[:100])
            )
        else:
            given[command.name] = float(command.value)
    return Modelfile(source, system, check_parameters(given), requires)


def parse_commands(text: str) -> list[Command]:
    """All instructions of a Modelfile as Ollama reads them, in their order.

    Raises:
        BadInput: Ollama would refuse the file; the line is named.
    """
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    commands: list[Command] = []
    place = 0
    while place < len(text):
        char = text[place]
        if char == "#":
            place = _line_end(text, place)
        elif char in SPACES or char in LINE_ENDS:
            place += 1
        else:
            command, place = _read_command(text, place)
            commands.append(command)
    if not any(command.name == "model" for command in commands):
        raise BadInput("The Modelfile has no FROM line.", next_step="Export the run again.")
    return commands


def _read_command(text: str, start: int) -> tuple[Command, int]:
    """The instruction that begins at `start`, and the place where its value ends."""
    end = start + 1  # whatever the first character is, Ollama takes it for part of the name
    while end < len(text) and _is_letter(text[end]):
        end += 1
    word = text[start:end]
    name = (word if _is_kept(word[0]) else word[1:]).lower()
    known = "model" if name == "from" else name
    if end == len(text) or text[end] not in SPACES or name not in INSTRUCTIONS:
        raise _syntax_error(text, end, f"{text[start : end + 1][:40]!r} is no instruction")
    place = end + 1
    role = ""
    if name in ("parameter", "message"):
        end = place
        while end < len(text) and (
            _is_letter(text[end]) or (name == "parameter" and (text[end] in "0123456789_"))
        ):
            end += 1
        word = text[place:end]
        if end == len(text) or text[end] not in SPACES:
            raise _syntax_error(text, end, f"after {name.upper()} {word[:40]} a value is missing")
        if name == "parameter":
            known = word
        elif word not in ROLES:
            raise _syntax_error(text, end, f"'{word[:40]}' is none of the roles {', '.join(ROLES)}")
        else:
            role = f"{word}: "
        place = end + 1
    read = _read_value(text, place)
    if read is None:
        raise _syntax_error(text, place, "the text in quotes is never closed")
    value, place = read
    return Command(known, role + value), place


def _read_value(text: str, start: int) -> tuple[str, int] | None:
    """The value that begins at `start` and where it ends; None where its quotes never close."""
    held = ""
    place = start
    while True:
        end = _line_end(text, place)
        held += "".join(filter(_is_kept, text[place:end]))
        value = _unquoted(held.strip(SPACES + LINE_ENDS))
        if value is not None:
            return value, end
        if end == len(text):
            return None
        held += text[end]
        place = end + 1


def _unquoted(text: str) -> str | None:
    """The text without its quotes; None where they are not closed (yet)."""
    for mark in (QUOTES, '"'):
        if text.startswith(mark):
            whole = len(text) >= 2 * len(mark) and text.endswith(mark)
            return text[len(mark) : -len(mark)] if whole else None
    return text


def _line_end(text: str, place: int) -> int:
    """The place of the next line end at or after `place`, or the text's length."""
    found = _LINE_END.search(text, place)
    return found.start() if found else len(text)


def _is_kept(char: str) -> bool:
    """Whether Ollama keeps a character of a value: it is printed, or white space of a line."""
    if char in " \t\r\n" or "!" <= char <= "~":
        return True
    if _NEW_IN_UNICODE_15.match(char):
        return True
    return unicodedata.category(char)[0] in "LMNPS" and not _AFTER_UNICODE_15.match(char)


def _is_letter(char: str) -> bool:
    return char.isascii() and char.isalpha()


def _syntax_error(text: str, place: int, cause: str) -> BadInput:
    line = sum(text.count(mark, 0, place) for mark in LINE_ENDS) + 1
    return BadInput(
        f"Line {line} of the Modelfile is not valid.", cause=cause, next_step="Export it again."
    )
