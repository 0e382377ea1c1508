"""What stands in a repository's files, read without forge_mcp: for tests/dataset_checker.py.

Python by `ast`, JavaScript and TypeScript by the TypeScript compiler (dataset_facts.js, in node),
Java and Go by the small tokenizer of dataset_tokens.py. All of them give the same `Definition`.

Lists that languages and tools draw differently have two bounds: `own` is what everybody would
name, `may` what may be named too (calls of a nested function, a re-raised variable).
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

PYTHON = (".py", ".pyi", ".pyw")
NODE = (".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx")
TOKENS = (".java", ".go")


@dataclass
class Bounds:
    """Texts that a complete list must have, and texts that it may have."""

    own: list[str] = field(default_factory=list)
    may: list[str] = field(default_factory=list)


@dataclass
class Definition:
    """A function, method, class or module of a file. Lines are 1-based and inclusive.

    Attributes:
        kind: function, class or module.
        header: text from the first modifier to the body.
        parameters: (name, annotation, default), empty where there is none.
        conditions: (exception, condition of the `if` whose body raises it).
        returns_when: (condition, value) of `if condition: return value`.
        calls: callee texts.
        call_texts: (callee text, whole call).
        constants: (name, value); one name may come several times.
        superclass: what it extends, as written.
    """

    kind: str
    name: str
    start: int
    end: int
    header: str = ""
    docstring: str = ""
    parameters: list[tuple[str, str, str]] = field(default_factory=list)
    result: str = ""
    decorators: list[str] = field(default_factory=list)
    raises: Bounds = field(default_factory=Bounds)
    conditions: list[tuple[str, str]] = field(default_factory=list)
    returns: Bounds = field(default_factory=Bounds)
    returns_when: list[tuple[str, str]] = field(default_factory=list)
    calls: Bounds = field(default_factory=Bounds)
    call_texts: list[tuple[str, str]] = field(default_factory=list)
    bases: Bounds = field(default_factory=Bounds)
    methods: Bounds = field(default_factory=Bounds)
    imports: Bounds = field(default_factory=Bounds)
    constants: list[tuple[str, str]] = field(default_factory=list)


def read_text(path: Path) -> str:
    """A file's text with "\\n" at the end of lines; not in UTF-8, it is read as Latin-1."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_files(
    root: Path, paths: Sequence[str], typescript: Path | None
) -> dict[str, list[Definition]]:
    """Definitions of files by path; a file that its reader cannot parse has none.

    Args:
        root: of the repository.
        paths: relative to it.
        typescript: folder of the npm package typescript; without it, files for node are left out.
    """
    from dataset_tokens import token_definitions

    found: dict[str, list[Definition]] = {}
    for path in paths:
        if path.endswith(PYTHON):
            found[path] = python_definitions(read_text(root / path))
        elif path.endswith(TOKENS):
            found[path] = token_definitions(read_text(root / path), path.endswith(".java"))
    scripts = [path for path in paths if path.endswith(NODE)]
    if typescript is not None and scripts:
        found.update(_node_definitions(root, scripts, typescript))
    return found


# -- Python --------------------------------------------------------------------------------------

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def python_definitions(text: str) -> list[Definition]:
    """Everything defined in a Python file, the module itself first; [] with a syntax error."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    found = [_module(tree, text)]
    for node in ast.walk(tree):
        if isinstance(node, Function):
            found.append(_function(node, text))
        elif isinstance(node, ast.ClassDef):
            found.append(_class(node, text))
    return found


@lru_cache(maxsize=4)
def _bytes(text: str) -> tuple[bytes, list[int]]:
    """The text in UTF-8, in which `ast` counts columns, and where each line begins."""
    data = text.encode()
    return data, [0, *(match.end() for match in re.finditer(b"\n", data))]


def _segment(node: ast.AST | None, text: str) -> str:
    """As ast.get_source_segment, which splits the whole file anew for every node."""
    if node is None:
        return ""
    data, starts = _bytes(text)
    place = cast("ast.expr", node)
    last = (place.end_lineno or place.lineno) - 1
    first = starts[place.lineno - 1] + place.col_offset
    return data[first : starts[last] + (place.end_col_offset or 0)].decode()


def _walk(nodes: Sequence[ast.AST], *, nested: bool) -> Iterator[ast.AST]:
    """Every node below, in order; without `nested`, not what functions inside define."""
    for node in nodes:
        yield node
        if nested or not isinstance(node, Scope):
            yield from _walk(list(ast.iter_child_nodes(node)), nested=nested)


@dataclass
class _Parts:
    """What a body raises, returns and calls."""

    raises: Bounds = field(default_factory=Bounds)
    returns: Bounds = field(default_factory=Bounds)
    calls: Bounds = field(default_factory=Bounds)


def _parts(nodes: Sequence[ast.AST], outside: Sequence[ast.AST], text: str) -> _Parts:
    found = _Parts()
    raised = {
        id(node.exc)
        for node in _walk([*nodes, *outside], nested=True)
        if isinstance(node, ast.Raise)
    }
    for nested, name in ((False, "own"), (True, "may")):
        for node in _walk([*nodes, *(outside if nested else ())], nested=nested):
            # To make an exception is a call, but one that belongs to what is raised.
            # `super()` makes no more than the object on which the other call is made.
            if isinstance(node, ast.Call):
                callee = _segment(node.func, text)
                if nested or (id(node) not in raised and callee != "super"):
                    getattr(found.calls, name).append(callee)
            elif isinstance(node, ast.Return) and node.value is not None:
                getattr(found.returns, name).append(_segment(node.value, text))
            elif isinstance(node, ast.Raise) and node.exc is not None:
                error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                text_of = _segment(error, text)
                plain = isinstance(error, ast.Name | ast.Attribute)
                is_class = plain and text_of.split(".")[-1][:1].isupper()
                if nested or is_class:
                    getattr(found.raises, name).append(text_of)
    return found


def _function(node: Function, text: str) -> Definition:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    rows: list[tuple[ast.arg, ast.expr | None]] = list(
        zip(positional, missing + list(arguments.defaults), strict=True)
    )
    rows += [(arguments.vararg, None)] if arguments.vararg else []
    rows += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    rows += [(arguments.kwarg, None)] if arguments.kwarg else []
    parts = _parts(node.body, [*node.decorator_list, arguments], text)
    conditions, returns_when = _guards(node.body, text)
    return Definition(
        kind="function",
        name=node.name,
        start=min([node.lineno, *(d.lineno for d in node.decorator_list)]),
        end=node.end_lineno or node.lineno,
        header=_header(node, text),
        docstring=ast.get_docstring(node) or "",
        parameters=[(a.arg, _segment(a.annotation, text), _segment(d, text)) for a, d in rows],
        result=_segment(node.returns, text),
        decorators=[_segment(d, text) for d in node.decorator_list],
        conditions=conditions,
        returns_when=returns_when,
        call_texts=_call_texts([node], text),
        raises=parts.raises,
        returns=parts.returns,
        calls=parts.calls,
    )


def _class(node: ast.ClassDef, text: str) -> Definition:
    parts = _parts(node.body, [*node.decorator_list, *node.bases, *node.keywords], text)
    bases = [_segment(base, text) for base in node.bases]
    own = [child.name for child in node.body if isinstance(child, Function)]
    below = [child.name for child in ast.walk(node) if isinstance(child, Function)]
    inside = [child for child in _walk(node.body, nested=False) if isinstance(child, ast.stmt)]
    return Definition(
        kind="class",
        name=node.name,
        start=min([node.lineno, *(d.lineno for d in node.decorator_list)]),
        end=node.end_lineno or node.lineno,
        header=_header(node, text),
        docstring=ast.get_docstring(node) or "",
        decorators=[_segment(d, text) for d in node.decorator_list],
        bases=Bounds(bases, bases + [_segment(keyword, text) for keyword in node.keywords]),
        methods=Bounds(own, below),
        call_texts=_call_texts([node], text),
        constants=_assigned(inside, text),
        raises=parts.raises,
        returns=parts.returns,
        calls=parts.calls,
    )


def _module(tree: ast.Module, text: str) -> Definition:
    own = [name for node in tree.body for name in _imported(node)]
    may = [name for node in ast.walk(tree) for name in _imported(node)]
    parts = _parts([n for n in tree.body if not isinstance(n, Scope)], [tree], text)
    return Definition(
        kind="module",
        name="",
        start=1,
        end=text.count("\n") + 1,
        docstring=ast.get_docstring(tree) or "",
        imports=Bounds(own, may),
        constants=_assigned(list(_walk(tree.body, nested=False)), text),
        call_texts=_call_texts([tree], text),
        raises=parts.raises,
        returns=parts.returns,
        calls=parts.calls,
    )


def _header(node: Function | ast.ClassDef, text: str) -> str:
    """From `def` or `class` to the colon that the body follows."""
    lines = text.split("\n")[node.lineno - 1 :]
    first = next(iter(node.body))
    column = len(lines[0]) - len(lines[0].lstrip())
    if first.lineno == node.lineno:
        head = lines[0].encode()[: first.col_offset].decode()
    else:
        head = "\n".join(lines[: first.lineno - node.lineno])
    head = re.sub(r"(?m)\s#.*$", "", head)
    return head[column:].rstrip().removesuffix(":")


def _guards(
    body: Sequence[ast.stmt], text: str
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Exceptions and values that stand directly in the body of an `if`."""
    conditions, values = [], []
    for node in _walk(body, nested=False):
        if not isinstance(node, ast.If):
            continue
        test = _segment(node.test, text)
        for child in node.body:
            if isinstance(child, ast.Raise) and child.exc is not None:
                raised = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
                conditions.append((_segment(raised, text), test))
            elif isinstance(child, ast.Return):
                values.append((test, _segment(child.value, text)))
    return conditions, values


def _call_texts(nodes: Sequence[ast.AST], text: str) -> list[tuple[str, str]]:
    calls = [node for node in _walk(nodes, nested=True) if isinstance(node, ast.Call)]
    return [(_segment(call.func, text), _segment(call, text)) for call in calls]


def _assigned(nodes: Sequence[ast.AST], text: str) -> list[tuple[str, str]]:
    found = []
    for node in nodes:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                found.append((target.id, _segment(node.value, text)))
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return ["." * node.level + (node.module or "")]
    return []


# -- JavaScript and TypeScript -------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("dataset_facts.js")


def _node_definitions(
    root: Path, paths: Sequence[str], typescript: Path
) -> dict[str, list[Definition]]:
    asked = json.dumps({"root": str(root), "paths": list(paths)})
    command = ["node", "--stack-size=4000", str(SCRIPT), str(typescript)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    found: dict[str, list[Definition]] = {}
    for line in done.stdout.splitlines():
        result = json.loads(line)
        found[result["path"]] = [_from_json(row) for row in result["definitions"]]
    return found


def _from_json(row: dict[str, object]) -> Definition:
    bounds = ("raises", "returns", "calls", "bases", "methods", "imports")
    pairs = ("parameters", "conditions", "returns_when", "call_texts", "constants")
    values: dict[str, object] = dict(row)
    for name in bounds:
        lists = row.get(name) or {"own": [], "may": []}
        assert isinstance(lists, dict)
        values[name] = Bounds(lists["own"], lists["may"])
    for name in pairs:
        rows = row.get(name) or []
        assert isinstance(rows, list)
        values[name] = [tuple(entry) for entry in rows]
    return Definition(**values)  # type: ignore[arg-type]
