"""From what a model wrote to the code that is run after a problem's prompt.

Three forms are understood: the body alone (a completion), the whole function, and either of them
in a Markdown code block with words around. As other evaluators do (openai/human-eval's stop
sequences, arXiv 2107.03374 section 2; EvalPlus, arXiv 2305.01210), what follows the function, its
tests and calls above all, is left away.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

from forge_mcp.judging.humaneval_problems import Problem

# Where a completion ends: at the next thing that stands at the left margin.
STOP_SEQUENCES = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
# Where generating may stop: these come only after the function, in every form of answer.
GENERATION_STOPS = ("\nif __name__", "\nprint(", "\nassert ")

_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_BEGINS = re.compile(
    r"^(?:from +[\w.]+ +import\b|import +\w|(?:async +)?def +\w|class +\w|@\w)", re.MULTILINE
)
_DECLARATIONS = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)


def extract_completion(text: str, problem: Problem) -> str:
    """The code that goes behind `problem.prompt`.

    Of a whole function, its imports and its helpers the declarations are kept; it then stands a
    second time behind the prompt's header, and counts. A body's first line gets back the
    indentation that chat models drop.
    """
    blocks = _BLOCK.findall(text)
    header = re.compile(rf"^(?:async +)?def +{re.escape(problem.entry_point)} *\(", re.MULTILINE)
    whole = (block for block in map(textwrap.dedent, blocks) if header.search(block))
    code = next(whole, blocks[0] if blocks else text)
    if header.search(code):
        return _after_header(problem.prompt) + _function(code, header)
    return _body(code, problem.prompt)


def _function(code: str, header: re.Pattern[str]) -> str:
    """The declarations in the longest run of lines, from the first one of code, that is Python."""
    begin = _CODE_BEGINS.search(code)
    lines = code[begin.start() if begin else 0 :].split("\n")
    for count in range(len(lines), 0, -1):
        source = "\n".join(lines[:count])
        if not header.search(source):
            break
        tree = _parse(source)
        if tree is not None:
            kept = {number for node in tree.body for number in _lines_of(node)}
            return "\n".join(lines[number - 1] for number in sorted(kept))
    return code


def _lines_of(node: ast.stmt) -> range:
    """The numbers of a declaration's lines; none for another statement."""
    if not isinstance(node, _DECLARATIONS):
        return range(0)
    decorators = [one.lineno for one in getattr(node, "decorator_list", [])]
    return range(min([node.lineno, *decorators]), (node.end_lineno or node.lineno) + 1)


def _body(code: str, prompt: str) -> str:
    """A body, cut at the first stop sequence, indented so that it is one if it can be."""
    code = code.lstrip("\n")
    cut = code[: min((at for at in map(code.find, STOP_SEQUENCES) if at >= 0), default=len(code))]
    if code[:1].isspace():
        return cut
    # The whole text first: "if" at the left margin is part of a body that has no indentation.
    for indented in (_indent(code), "    " + cut, _indent(cut)):
        if _parse(prompt + indented) is not None:
            return indented
    return cut


def _indent(code: str) -> str:
    return textwrap.indent(code, "    ")


def _after_header(prompt: str) -> str:
    """What ends the prompt's own function, so that another one can follow."""
    return "\n\n" if _parse(prompt) is not None else "\n    pass\n\n\n"


def _parse(source: str) -> ast.Module | None:
    """The tree of a source, or None where it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes in strings that are none
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
