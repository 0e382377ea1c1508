"""A file's bytes → its text, with the way back from the text to places in the file.

The encoding is, in this order: what a byte-order mark says (UTF-8, UTF-16, UTF-32), what a PEP 263
cookie says (Python), UTF-8, and cp1252 (all of Latin-1 that can be printed is in it) where no
control characters result. A notebook's text is its Python cells, one below the other.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
import warnings
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BYTE_ORDER_MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
BOM = codecs.BOM_UTF8
COOKIE = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
NO_CODE = re.compile(rb"[ \t\f]*(?:#.*)?$")
NEW_LINE = re.compile(rb"\r\n?|\n")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
HEAD_CHARACTERS = 2000

MINIFIED_CHARACTERS = 5000
MINIFIED_MEAN_LINE = 300
LONG_LINE = 1000
LONG_LINES_SHARE = 2 / 3


@dataclass(frozen=True)
class Text:
    """A file's text, the same in UTF-8, and how the file encodes it.

    `data[text.file_offset(a) : text.file_offset(b)].decode(text.encoding)` is what
    `text.utf8[a:b].decode()` is, for all a and b between two characters.

    Attributes:
        text: without a byte-order mark; line ends are those of the file.
        utf8: `text` in UTF-8.
        encoding: a codec of Python.
        offset: length of the byte-order mark in bytes.
        cells: of a notebook: (first line in `text` from 1, number of the cell in the notebook
            from 0) of every cell that is in `text`, in order. A notebook's `file_offset` refers
            to `utf8`, not to the file.
    """

    text: str
    utf8: bytes
    encoding: str = "utf-8"
    offset: int = 0
    cells: tuple[tuple[int, int], ...] = ()

    def file_offset(self, utf8_offset: int) -> int:
        """The byte offset in the file of an offset in `utf8` that is between two characters."""
        if self.encoding == "utf-8":
            return self.offset + utf8_offset
        utf8_starts, file_starts = self._line_starts
        line = bisect_right(utf8_starts, utf8_offset) - 1
        before = self.utf8[utf8_starts[line] : utf8_offset].decode("utf-8")
        return file_starts[line] + len(before.encode(self.encoding))

    @cached_property
    def _line_starts(self) -> tuple[list[int], list[int]]:
        """Offsets of every line in `utf8` and in the file."""
        utf8_starts, file_starts = [0], [self.offset]
        for line in self.text.split("\n"):
            line += "\n"
            utf8_starts.append(utf8_starts[-1] + len(line.encode("utf-8")))
            file_starts.append(file_starts[-1] + len(line.encode(self.encoding)))
        return utf8_starts, file_starts


def decode(data: bytes, language: str, path: str = "") -> Text | None:
    """A file's text, or None where no encoding makes printable text of it.

    Args:
        data: the whole file.
        language: 'python' has cookies that name the encoding.
        path: of the file; a notebook is known by its extension.
    """
    if is_notebook(path):
        return read_notebook(data)[0]
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode_marked(data, len(mark), encoding)
    declared = _declared_encoding(data) if language == "python" else None
    if declared is not None:
        try:
            text = data.decode(declared)
        except UnicodeError:  # a wrong cookie
            pass
        else:
            exact = _is_exact(text, data, declared)
            return Text(text, text.encode("utf-8"), declared) if exact else None
    try:
        return Text(data.decode("utf-8"), data)
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return None if UNPRINTABLE.search(text) else Text(text, text.encode("utf-8"), "cp1252")


def _decode_marked(data: bytes, mark: int, encoding: str) -> Text | None:
    try:
        text = data[mark:].decode(encoding)
    except UnicodeDecodeError:
        return None
    return Text(text, data[mark:] if encoding == "utf-8" else text.encode("utf-8"), encoding, mark)


def _declared_encoding(data: bytes) -> str | None:
    """The codec that a PEP 263 cookie in the first two lines names, if it is not UTF-8."""
    head = data[:HEAD_CHARACTERS]
    if b"coding" not in head:
        return None
    for line in NEW_LINE.split(head, maxsplit=2)[:2]:
        if match := COOKIE.match(line):
            try:
                name = codecs.lookup(match[1].decode("ascii")).name
                # In UTF-16 and its like there could be no such cookie.
                readable = match[0].decode("latin-1") in head.decode(name, "replace")
            except (LookupError, UnicodeError):  # no codec, or one that is not for text
                return None
            return name if readable and not name.startswith("utf-8") else None
        if not NO_CODE.match(line):
            break
    return None


def _is_exact(text: str, data: bytes, encoding: str) -> bool:
    """Whether the text gives the file's bytes again, one character after the other.

    Codecs that shift between character sets or join characters do not; there, no offset in the
    text could say where it is in the file.
    """
    try:
        lengths = {character: len(character.encode(encoding)) for character in set(text)}
        return sum(map(lengths.__getitem__, text)) == len(data) and text.encode(encoding) == data
    except UnicodeError:
        return False


# -- notebooks -------------------------------------------------------------------------------

PYTHON_CELL_MAGICS = frozenset(
    ("capture", "memit", "mprun", "prun", "python", "python3", "time", "timeit")
)
MAGIC_LINE = re.compile(r"[%!?]|[\w.*\[\]()'\"]+\?{1,2}[ \t]*$")
MAGIC_VALUE = re.compile(
    r"((?:[\w., \t\[\]*]|'[^']*'|\"[^\"]*\")*(?<![=!<>])=[ \t]*)([%!](?!=).*)$"
)
# What a bracket in a line's code is hidden by, or changes.
CODE_TOKENS = re.compile(
    r"#.*|(?P<triple>\"\"\"|''')|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|(?P<open>[(\[{])|(?P<close>[)\]}])"
)


def is_notebook(path: str) -> bool:
    """Whether a path is that of a Jupyter notebook."""
    return path.lower().endswith(".ipynb")


def read_notebook(data: bytes) -> tuple[Text | None, str]:
    """The Python cells of a notebook (nbformat 3 or 4), with blank lines between them.

    Lines that only IPython understands become comments, so that the rest can be parsed; a cell in
    another language (`%%bash`, `%%html`) is left out.

    Returns:
        The text, or None and why there is none: 'unreadable_notebook', or 'other_language' for a
        kernel that is not Python's.
    """
    try:
        document = json.loads(data)
        metadata = document.get("metadata", {})
        if "worksheets" in document:
            cells = [cell for sheet in document["worksheets"] for cell in sheet["cells"]]
        else:
            cells = document["cells"]
        sources = [
            (number, _joined(cell["source"] if "source" in cell else cell["input"]))
            for number, cell in enumerate(cells)
            if cell["cell_type"] == "code"
        ]
        spoken = _kernel_language(metadata, cells)
        for _, source in sources:
            source.encode("utf-8")  # JSON can hold halves of surrogate pairs
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, "unreadable_notebook"
    if not spoken.lower().startswith(("python", "ipython")):
        return None, "other_language"
    parts: list[str] = []
    starts: list[tuple[int, int]] = []
    line = 1
    for number, source in sources:
        python = plain_python(source).strip("\n")
        if not python.strip():
            continue
        starts.append((line, number))
        parts.append(python + "\n")
        line += python.count("\n") + 2
    text = "\n".join(parts)
    return Text(text, text.encode("utf-8"), cells=tuple(starts)), ""


def _joined(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _kernel_language(metadata: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """What the notebook says of its kernel; Python where it says nothing, as Jupyter does."""
    kernel = metadata.get("kernelspec", {})
    told = [
        metadata.get("language_info", {}).get("name"),
        kernel.get("language"),
        kernel.get("name"),
        *(cell.get("language") for cell in cells),  # nbformat 3
    ]
    return str(next((name for name in told if name), "python"))


def plain_python(cell: str) -> str:
    """A notebook's cell without what only IPython understands; the number of lines stays.

    `%x`, `!x`, `?x` and `x?` become comments of the same length, or `pass` with a comment where
    they are indented (they may be all that a block holds); `y = !x` becomes `y = None  # !x`. A
    cell whose `%%x` says that it is no Python becomes ''.
    """
    lines = cell.split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        name = lines[first][2:].split(maxsplit=1)[:1]
        if name and name[0] not in PYTHON_CELL_MAGICS:
            return ""
    elif _is_python(cell):
        return cell
    statements = _StatementStarts()
    goes_on = False  # a magic whose line ends in a backslash
    for number, line in enumerate(lines):
        body = line.lstrip(" \t")
        indent = line[: len(line) - len(body)]
        if goes_on:
            lines[number] = f"{indent}#{body[1:]}"
        elif not statements.begins:
            statements.read(line)
            continue
        elif MAGIC_LINE.match(body):
            lines[number] = f"{indent}pass  # {body}" if indent else f"#{body[1:]}"
        elif value := MAGIC_VALUE.match(body):
            lines[number] = f"{indent}{value[1]}None  # {value[2]}"
        else:
            statements.read(line)
            continue
        goes_on = body.rstrip().endswith("\\")
    return "\n".join(lines)


def _is_python(cell: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


class _StatementStarts:
    """Whether a statement can begin in the next line: no bracket and no string is open."""

    def __init__(self) -> None:
        self.begins = True
        self._depth = 0
        self._quote = ""

    def read(self, line: str) -> None:
        at = 0
        if self._quote:
            at = line.find(self._quote) + 3
            if at < 3:
                return
            self._quote = ""
        while match := CODE_TOKENS.search(line, at):
            at = match.end()
            if match[0].startswith("#"):
                line = line[: match.start()]
                break
            if match["triple"]:
                closing = line.find(match["triple"], at)
                if closing < 0:
                    self._quote, self.begins = match["triple"], False
                    return
                at = closing + 3
            self._depth = max(0, self._depth + bool(match["open"]) - bool(match["close"]))
        self.begins = not self._depth and not line.rstrip().endswith("\\")


# -- what is not mined -----------------------------------------------------------------------

# Comments, and strings that may hold the like of a comment. Strings end with their line unless
# their quotes are of those that may go on: `'` is an apostrophe or a lifetime too.
COMMENTS_AND_STRINGS = re.compile(
    r"(?P<comment>//[^\n]*|\#[^\n]*|/\*.*?(?:\*/|\Z)|<!--.*?(?:-->|\Z)"
    r"|(?:(?<=\n)|\A)[ \t]*--[^\n]*)"
    r"|(?P<triple>\"\"\".*?(?:\"\"\"|\Z)|\'\'\'.*?(?:\'\'\'|\Z))"
    r"|`[^`]*(?:`|\Z)|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'",
    re.DOTALL,
)
DECORATION = " \t\r*#/;!<>=-+|~(\"'"
FILE = (
    r"(?:file|code|class|module|source|script|document|program|header|migration|parser|lexer"
    r"|interface|stub)s?"
)
# How the first line of a comment may begin; further lines may be the middle of a sentence.
GENERATED_COMMENT = re.compile(r"(?:auto-?|automatically |machine[- ])generated\b", re.IGNORECASE)
GENERATED_LINE = re.compile(
    # How any line of a comment may begin.
    r"(?:(?i:warning|note|notice|attention|caution)\W+)?(?:"
    r"(?i:this is (?:an? )?(?:auto-?|automatically |machine[- ])generated)\b"
    r"|@generated\b|auto-?generated>"
    r"|(?:Auto|AUTO|Machine|MACHINE)(?i:matically)?[- ]?(?i:generated)\b"
    r"|(?:(?i:code|file|source) )?(?:Generated|GENERATED) (?i:by|from|with|using|code|file)\b"
    r"|(?:Code|File|Source|CODE|FILE|SOURCE)"
    r" (?i:(?:auto-?|automatically )?generated (?:by|from|with|using))\b"
    r")"
    # What says it anywhere in the line, unless it is quoted there.
    r"|(?i:(?:[^\"'`]|(?<=\w)')*?(?:"
    r"code generated .{0,100}do not (?:edit|modify)"
    r"|generated by the (?:protocol buffer|flatbuffers) compiler"
    rf"|(?<!in )\bth(?:is|ese) (?:(?!of\b)\w+[ -]){{0,3}}?{FILE} (?:"
    r"(?:is|was|are|were|has been|have been) (?:(?!not\b)\w+[ -]){0,2}?(?:@|auto-?)?generated"
    r"|(?:auto-?|automatically )generated)\b"
    r"|\bdo not (?:edit|modify) (?:(?:this|the) \w+ )?(?:directly|manually|by hand)"
    r"|made by gnu bison|scanner generated by flex|created by: (?:qt|the resource compiler)"
    r"))"
)


def text_skip_reason(data: bytes, decoded: Text | None, path: str = "") -> str:
    """Why a file's content is not mined, or ''.

    Args:
        data: the whole file.
        decoded: what `decode` made of it.
        path: as given to `decode`.
    """
    if is_notebook(path):
        return read_notebook(data)[1] if decoded is None else ""
    if b"\0" in data and (decoded is None or "\0" in decoded.text):
        return "binary"
    if decoded is None:
        return "undecodable"
    if is_minified(decoded.text):
        return "minified"
    return "generated" if is_generated(decoded.text) else ""


def is_minified(text: str) -> bool:
    """Whether lines are too long for source that people write: all of them, or a few of them
    that hold nearly everything (a bundle below the comment with its licence).
    """
    if len(text) <= MINIFIED_CHARACTERS:
        return False
    lines = text.splitlines()
    if len(text) / len(lines) > MINIFIED_MEAN_LINE:
        return True
    long = sum(len(line) for line in lines if len(line) > LONG_LINE)
    return long > LONG_LINES_SHARE * len(text)


def is_generated(text: str) -> bool:
    """Whether a comment in a file's head says that a program wrote it.

    The same words in a string, as in a program that writes such files, do not count.
    """
    head = text[:HEAD_CHARACTERS]
    small = head.lower()
    if not ("generated" in small or "do not " in small or "bison" in small or "created" in small):
        return False
    code, end, comment_end = False, 0, -1
    for match in COMMENTS_AND_STRINGS.finditer(head):
        between = head[end : match.start()]
        code = code or bool(between.strip("\ufeff \t\r\n\f"))
        end = match.end()
        docstring = match["triple"] and not code
        if not match["comment"] and not docstring:
            code = True
            continue
        lines = [line.lstrip(DECORATION) for line in match[0].splitlines()]
        goes_on = comment_end == match.start() - len(between) and between.count("\n") == 1
        comment_end = end
        if not goes_on and GENERATED_COMMENT.match(next(filter(None, lines), "")):
            return True
        if any(map(GENERATED_LINE.match, lines)):
            return True
    return False
