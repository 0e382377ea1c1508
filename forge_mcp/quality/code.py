"""Code inside answers: taken out of its fence, and parsed."""

from __future__ import annotations

import ast
import re
import warnings
from functools import lru_cache
from textwrap import dedent

_FENCED = re.compile(r"```([^\n`]*)\n(.*?)\n?```\s*", re.DOTALL)
# A method alone is no file of its language; it is parsed inside a class then.
_WRAPPERS = {
    "java": ("class Wrapper {{\n{code}\n}}", "interface Wrapper {{\n{code}\n}}"),
    "javascript": ("class Wrapper {{\n{code}\n}}", "({{\n{code}\n}})", "({code})"),
    "typescript": (
        "class Wrapper {{\n{code}\n}}",
        "abstract class Wrapper {{\n{code}\n}}",
        "interface Wrapper {{\n{code}\n}}",
        "({{\n{code}\n}})",
        "({code})",
    ),
    "tsx": ("class Wrapper {{\n{code}\n}}", "({{\n{code}\n}})", "({code})"),
    "csharp": ("class Wrapper {{\n{code}\n}}",),
    "php": ("<?php\n{code}", "<?php\nclass Wrapper {{\n{code}\n}}"),
    "kotlin": ("class Wrapper {{\n{code}\n}}",),
    "scala": ("class Wrapper {{\n{code}\n}}",),
    "swift": ("class Wrapper {{\n{code}\n}}", "protocol Wrapper {{\n{code}\n}}"),
    "cpp": ("class Wrapper {{\n{code}\n}};",),
    "go": ("package wrapper\n{code}", "package wrapper\ntype Wrapper {code}"),
    "rust": ("impl Wrapper {{\n{code}\n}}", "trait Wrapper {{\n{code}\n}}"),
}


def fenced(answer: str) -> tuple[str, str] | None:
    """Language tag and code of an answer that is one fenced block, or None where it is not."""
    found = _FENCED.fullmatch(answer.strip())
    return (found.group(1).strip(), found.group(2)) if found else None


@lru_cache(maxsize=16384)
def parses(code: str, language_name: str) -> bool:
    """Whether code can be parsed, alone or as a member of a class of its language.

    Raises:
        BadInput: the language is unknown.
    """
    if language_name == "python":
        return _parses_as_python(code)
    from forge_mcp.mining.languages import language

    grammar = language(language_name)
    tries = _WRAPPERS.get(language_name, ())
    if language_name != "php" or code.startswith("<?"):  # else PHP's grammar takes it for text
        tries = ("{code}", *tries)
    return any(
        not grammar.parse(wrapper.format(code=code).encode()).root_node.has_error
        for wrapper in tries
    )


def _parses_as_python(code: str) -> bool:
    """Whether `ast` reads a definition, however it was indented in its file.

    A method's code starts at its `def`, but its other lines keep the file's indentation: it is
    tried inside an `if` with every indentation that occurs.
    """
    code = dedent(code)
    widths = dict.fromkeys([" ", *re.findall(r"^([ \t]+)\S", code, re.MULTILINE)])
    for text in (code, *(f"if 1:\n{width}{code}" for width in widths)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in the code that is read
                ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return True
    return False
