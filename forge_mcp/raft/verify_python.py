"""Facts of Python, derived from the standard library's `ast`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from forge_mcp.raft.kinds import value_items
from forge_mcp.raft.verify_text import opening_sentence
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_UNORDERED = frozenset({"raises", "calls", "methods", "imports", "returns"})


@lru_cache(maxsize=4096)
def parse_block(source: str) -> ast.Module | None:
    """The tree of a definition's source, however it was indented in its file; None = no Python.

    A method's source starts at its `def` but its other lines keep the file's indentation, so a
    few indentations of the first line are tried inside an `if`.
    """
    tries = [source]
    for width in dict.fromkeys(
        [" ", *re.findall(r"^([ \t]+)(?:async |def |class |@)", source, re.M)]
    ):
        tries.append(f"if 1:\n{width}{source}")
    for text in tries:
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


def definition(block: CodeBlock) -> Definition | None:
    """The block's own definition in its tree, or None (a module, or no Python)."""
    node = _first(block.source_code)
    return node if node is not None and node.name == block.name else None


def _first(source: str) -> Definition | None:
    tree = parse_block(source)
    if tree is None or not tree.body:
        return None
    node: ast.AST = tree.body[0]
    if isinstance(node, ast.If) and node.body:
        node = node.body[0]
    return node if isinstance(node, Definition) else None


def parses(source: str, language: str, block_type: str) -> bool:
    """Whether a source is one whole definition."""
    tree = parse_block(source)
    return tree is not None and len(tree.body) == 1 and _first(source) is not None


def mentions(source: str, language: str, name: str) -> bool:
    """Whether a definition calls something of a name."""
    return any(text.rpartition(".")[2] == name for text in _callees(source))


def states(fact: Fact, block: CodeBlock) -> bool:
    """Whether a fact of one document follows from the block's source."""
    if block.block_type == "module":
        tree = parse_block(block.source_code)
        found = _module_values(fact, tree) if tree is not None else None
    else:
        node = definition(block)
        found = _definition_values(fact, node, block) if node is not None else None
    if found is None:
        return False
    items = value_items(fact)
    if fact.kind == "signature":
        return _signature_key(items[0]) == found[0]
    stated = [_normalise(fact.kind, item) for item in items]
    if fact.kind in _UNORDERED:
        return sorted(stated) == sorted(set(found))
    return stated == found


def calls(block: CodeBlock, other: CodeBlock) -> bool:
    """Whether `block` calls `other` by its name, and nothing else of that name.

    A bare name must not be a parameter or a local name of `block`; `self.name` must be of the same
    class; a qualified one must name the class or the module of `other`. That the name means
    `other` was mining's resolution.
    """
    called = {t for t in _callees(block.source_code) if t.rpartition(".")[2] == other.name}
    if len(called) != 1 or block.id == other.id or block.block_type == "class":
        return False
    qualifier = called.pop().rpartition(".")[0]
    if not qualifier:
        top = other.parent is None or f"{block.qualified_name}.".startswith(f"{other.parent}.")
        return top and other.name not in _local_names(block.source_code)
    if qualifier in ("self", "cls", "super()"):
        return other.parent is not None and block.parent is not None
    if other.parent is not None and qualifier.rpartition(".")[2] == other.parent.rpartition(".")[2]:
        return True
    return other.parent is None and qualifier.partition(".")[0] not in _arguments(block.source_code)


def bases(block: CodeBlock) -> list[str]:
    """What a class derives from, as it is written."""
    node = definition(block)
    return [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []


def overrides(block: CodeBlock) -> bool:
    """Whether a method calls the method of its own name on `super()`."""
    node = definition(block)
    for call in ast.walk(node) if node is not None else ():
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            owner = call.func.value
            named = call.func.attr == block.name and isinstance(owner, ast.Call)
            if named and isinstance(owner, ast.Call) and ast.unparse(owner.func) == "super":
                return True
    return False


@lru_cache(maxsize=32768)
def _callees(source: str) -> frozenset[str]:
    """Everything that a definition calls, what is nested in it included."""
    node = _first(source)
    nodes = ast.walk(node) if node is not None else ()
    return frozenset(_callee(call) for call in nodes if isinstance(call, ast.Call))


def _callee(call: ast.Call) -> str:
    """What is called, as it is written; 'super()' stands for any call of super."""
    parts: list[str] = []
    node = call.func
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
        parts.append("super()")
    else:
        parts.append(node.id if isinstance(node, ast.Name) else ast.unparse(node))
    return ".".join(reversed(parts))


def _parameters(node: Function) -> list[ast.arg]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [a for a in [*every, arguments.vararg, arguments.kwarg] if a is not None]


@lru_cache(maxsize=32768)
def _arguments(source: str) -> frozenset[str]:
    node = _first(source)
    return (
        frozenset(a.arg for a in _parameters(node)) if isinstance(node, Function) else frozenset()
    )


@lru_cache(maxsize=32768)
def _local_names(source: str) -> frozenset[str]:
    """Names that a function gives another meaning; what it imports keeps the one it has."""
    node = _first(source)
    names = set(_arguments(source))
    for inner in ast.walk(node) if node is not None else ():
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
            names.add(inner.id)
        elif isinstance(inner, Definition) and inner is not node:
            names.add(inner.name)
    return frozenset(names)


# -- values -----------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def _normalise(kind: str, item: str) -> str:
    """An item in the form in which `ast.unparse` writes it."""
    if kind in ("purpose", "methods", "imports", "parameters"):
        return item
    if re.fullmatch(r"@?[A-Za-z_][\w.]*", item) and item.isascii():  # nothing to rewrite
        return item.removeprefix("@")
    try:
        return ast.unparse(ast.parse(f"({item.removeprefix('@')})", mode="eval"))
    except (SyntaxError, ValueError, RecursionError):
        return item


def _definition_values(fact: Fact, node: Definition, block: CodeBlock) -> list[str] | None:
    """The value of `fact` as the tree has it, or None where the tree has no such thing."""
    if fact.kind == "decorators":
        return [ast.unparse(d) for d in node.decorator_list]
    if fact.kind == "purpose":
        return [opening_sentence(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        if fact.kind == "bases":
            return [ast.unparse(base) for base in node.bases]
        if fact.kind == "methods":
            return [inner.name for inner in _members(node.body) if isinstance(inner, Function)]
        if fact.kind == "constant":
            return _assigned(node.body, fact.subject)
        return None
    return _function_values(fact, node, block)


def _members(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a class body, those within `if`, `try` and `with` too."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _members(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from _members(handler.body)


def _function_values(fact: Fact, node: Function, block: CodeBlock) -> list[str] | None:
    if fact.kind in ("signature", "parameters", "annotation", "default"):
        return _declared(fact, node, block)
    if fact.kind == "guard":
        return _guard(node, fact.subject)
    reading = _read(block.source_code)
    if fact.kind == "usage":
        return _usage(reading, fact.subject)
    if fact.kind in ("returns", "returns_when") and _yields(reading.own):
        return None
    if fact.kind == "returns":
        return _returned(reading.own)
    if fact.kind == "returns_when":
        return _returned_when(node, fact.subject)
    if fact.kind == "raises":
        hidden = _arguments(block.source_code)
        raised = _raised(reading.own, hidden)
        same = raised == _raised(reading.every, hidden)
        return raised if same and "?" not in raised and not _caught_here(node) else None
    if fact.kind == "calls":
        # What a nested function calls is neither clearly called by this one nor clearly not.
        outside = [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]
        if any(isinstance(n, ast.Call) for d in outside for n in ast.walk(d)):
            return None
        called = _called(reading.own)
        return called if called == _called(reading.every) else None
    return None


@dataclass(frozen=True, eq=False)
class _Reading:
    """The nodes of a function's body: those in no nested definition, and all."""

    own: list[ast.AST]
    every: list[ast.AST]


@lru_cache(maxsize=16)
def _read(source: str) -> _Reading:
    """One walk for all facts of a block; they are checked one after the other."""
    node = _first(source)
    body: list[ast.stmt] = node.body if node is not None else []
    return _Reading(list(_own(body)), [inner for top in body for inner in ast.walk(top)])


def _declared(fact: Fact, node: Function, block: CodeBlock) -> list[str] | None:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)]
    if arguments.vararg:
        pairs.append((arguments.vararg, None))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    if arguments.kwarg:
        pairs.append((arguments.kwarg, None))
    by_name = {a.arg: (a.annotation, default) for a, default in pairs}
    if fact.kind == "signature":
        return [_signature_key_of(node)]
    if fact.kind == "parameters":
        static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
        receiver = block.block_type == "method" and positional and not static
        return [a.arg for a, _ in pairs[1 if receiver else 0 :]]
    if fact.kind == "annotation" and fact.subject == "return":
        return [ast.unparse(node.returns)] if node.returns else None
    part = by_name.get(fact.subject, (None, None))[fact.kind == "default"]
    return [ast.unparse(part)] if part is not None else None


def _own(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a function's body that stand in no nested function or class."""
    for node in body:
        yield node
        if isinstance(node, ast.Lambda) or not isinstance(node, _NESTED):
            yield from _own(list(ast.iter_child_nodes(node)))


def _yields(nodes: Sequence[ast.AST]) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes)


def _raised_name(node: ast.Raise) -> str:
    raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return ast.unparse(raised) if raised is not None else ""


def _raised(nodes: Sequence[ast.AST], hidden: frozenset[str]) -> list[str]:
    """Names of raised types; "?" for all else: a bare `raise`, what was caught, a variable."""
    bound = {n.name for n in nodes if isinstance(n, ast.ExceptHandler)}
    bound |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= hidden
    names = {_raised_name(n) for n in nodes if isinstance(n, ast.Raise)}
    return sorted({n if _is_exception(n) and n not in bound else "?" for n in names})


def _is_exception(text: str) -> bool:
    """Whether an expression reads as a type; in lower case only `socket.error` and its like."""
    owner, _, last = text.rpartition(".")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", text):
        return False
    old = owner and owner not in ("self", "cls")
    return last.lstrip("_")[:1].isupper() or bool(
        old and re.fullmatch(r"(?:gai|h)?error|timeout", last)
    )


def _caught_here(node: Function) -> bool:
    """Whether a raise stands in the body of a `try` that has handlers: it may not get out."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Try | ast.TryStar) and inner.handlers:
            held = [n for statement in inner.body for n in ast.walk(statement)]
            if any(isinstance(n, ast.Raise) for n in held):
                return True
    return False


def _returned(nodes: Sequence[ast.AST]) -> list[str]:
    return sorted({ast.unparse(n.value) for n in nodes if isinstance(n, ast.Return) and n.value})


def _called(nodes: Sequence[ast.AST]) -> list[str]:
    raised = _raised_calls(nodes)
    found = [n for n in nodes if isinstance(n, ast.Call) and id(n) not in raised]
    return sorted({ast.unparse(n.func) for n in found} - {"super"})


def _raised_calls(nodes: Iterable[ast.AST]) -> set[int]:
    """Ids of the calls that make the exceptions that are raised."""
    raises = [n for n in nodes if isinstance(n, ast.Raise)]
    return {id(n.exc) for n in raises if _is_exception(_raised_name(n))}


def _plain_branches(body: Sequence[ast.stmt]) -> Iterator[ast.If]:
    """Every `if` in a body that no other branch surrounds; loops and `with` may."""
    for node in body:
        if isinstance(node, ast.If):
            yield node
        elif isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith):
            yield from _plain_branches(node.body)


def _guard(node: Function, raised: str) -> list[str] | None:
    """The condition of the one `if` whose body ends in the one raise of an exception."""
    raises = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and _raised_name(n) == raised]
    for branch in _plain_branches(node.body):
        *before, last = branch.body
        if [last] == raises and all(isinstance(s, _SIMPLE) for s in before):
            return [ast.unparse(branch.test)]
    return None


_SIMPLE = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Expr,
    ast.Import,
    ast.ImportFrom,
    ast.Delete,
)


def _returned_when(node: Function, condition: str) -> list[str] | None:
    """What the one `if` of a condition returns, when it holds nothing else."""
    asked = _normalise("returns_when", condition)
    found = [b for b in _plain_branches(node.body) if ast.unparse(b.test) == asked]
    if len(found) != 1 or len(found[0].body) != 1:
        return None
    only = found[0].body[0]
    return [ast.unparse(only.value)] if isinstance(only, ast.Return) and only.value else None


def _usage(reading: _Reading, callee: str) -> list[str] | None:
    """The only call of a callee, which is not raised."""
    last = callee.rpartition(".")[2]
    calls = [n for n in reading.every if isinstance(n, ast.Call)]
    found = [n for n in calls if _callee(n).rpartition(".")[2] == last]
    raised = {id(n.exc) for n in reading.every if isinstance(n, ast.Raise)}
    if len(found) != 1 or id(found[0]) in raised or ast.unparse(found[0].func) != callee:
        return None
    return [ast.unparse(found[0])]


def _signature_key(signature: str) -> str:
    try:
        node = ast.parse(f"{signature}: pass").body[0]
    except (SyntaxError, ValueError):
        return "no signature"
    return _signature_key_of(node) if isinstance(node, Function) else "no signature"


def _signature_key_of(node: Function) -> str:
    returns = ast.dump(node.returns) if node.returns else ""
    return f"{type(node).__name__} {node.name} {ast.dump(node.args)} {returns}"


# -- modules ----------------------------------------------------------------------------------


def _module_values(fact: Fact, tree: ast.Module) -> list[str] | None:
    if fact.kind == "purpose":
        return [opening_sentence(ast.get_docstring(tree) or "")]
    if fact.kind == "constant":
        return _assigned(tree.body, fact.subject)
    if fact.kind == "imports":
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append("." * node.level + (node.module or ""))
        return found
    return None


def _assigned(body: Sequence[ast.stmt], name: str) -> list[str] | None:
    """The value of a name that a body assigns exactly once, on its own level."""
    values: list[str] = []
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
                values.append("")
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            values[-1] = ast.unparse(value) if value is not None else ""
    return values if len(values) == 1 and values[0] else None
