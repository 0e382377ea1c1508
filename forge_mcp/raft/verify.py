"""Deriving a fact a second time, from the code itself, before it may be taught.

Python blocks are parsed with the standard library's `ast`, which shares no code with the
tree-sitter mining that stated the fact; where the two disagree the fact is not used. In other
languages the value must stand in the source, in the form that its kind prescribes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from forge_mcp.raft.facts import (
    derive_kind,
    exception_name,
    first_sentence,
    location,
    value_items,
)
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.raft_examples import Fact

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_UNORDERED = frozenset({"raises", "calls", "methods", "imports", "returns"})


def check(fact: Fact, oracles: Sequence[CodeBlock]) -> bool:
    """Whether `fact` follows from the source of `oracles` (the leading block, then its callee)."""
    if not oracles or fact.block != oracles[0].id:
        return False
    if fact.kind in ("callee_location", "callee_signature", "callee_raises", "base_location"):
        return len(oracles) == 2 and _check_related(fact, oracles[0], oracles[1])
    if fact.kind == "location":
        return _check_location(fact, oracles[0])
    return _CHECK.get(oracles[0].language, _check_text)(fact, oracles[0])


def _check_location(fact: Fact, block: CodeBlock) -> bool:
    lines = block.source_code.rstrip("\n").count("\n") + 1
    return fact.value == f"`{location(block)}`" and block.end_line - block.start_line + 1 == lines


def _check_related(fact: Fact, block: CodeBlock, other: CodeBlock) -> bool:
    if fact.subject != other.name or not linked(block, other, fact.kind.partition("_")[0]):
        return False
    kind = fact.kind.partition("_")[2]
    return check(Fact(kind=kind, block=other.id, value=fact.value), [other])


def linked(block: CodeBlock, other: CodeBlock, how: str) -> bool:
    """Whether `block` calls (`how` = "callee") or inherits from ("base") `other` by its name.

    A bare name must not be a parameter or a local name of `block`, and `self.name` must be of
    the same class; that the name means `other` was mining's resolution.
    """
    if block.language != "python" or block.id == other.id:
        return False
    node = definition(block)
    if node is None:
        return False
    if how == "base":
        bases = node.bases if isinstance(node, ast.ClassDef) else []
        return len(bases) == 1 and ast.unparse(bases[0]) == other.name and other.parent is None
    if not isinstance(node, Function):
        return False
    called = {ast.unparse(c.func) for c in ast.walk(node) if isinstance(c, ast.Call)}
    if other.parent is None:
        return other.name in called and other.name not in _local_names(node)
    same_class = other.parent == block.parent and other.path == block.path
    return same_class and bool({f"self.{other.name}", f"cls.{other.name}"} & called)


def _local_names(node: Function) -> set[str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = {a.arg for a in [*every, arguments.vararg, arguments.kwarg] if a is not None}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del):
            names.add(inner.id)
        elif isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(inner.name) if inner is not node else None
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in inner.names}
    return names


# -- Python -----------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
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
    tree = parse_block(block.source_code)
    if tree is None or not tree.body:
        return None
    node: ast.AST = tree.body[0]
    if isinstance(node, ast.If) and not isinstance(node, Definition) and node.body:
        node = node.body[0]
    if isinstance(node, Definition) and node.name == block.name:
        return node
    return None


def _check_python(fact: Fact, block: CodeBlock) -> bool:
    if block.block_type == "module":
        tree = parse_block(block.source_code)
        found = _module_values(fact, tree) if tree is not None else None
    else:
        node = definition(block)
        found = _definition_values(fact, node, block.block_type) if node is not None else None
    if found is None:
        return False
    if fact.kind == "signature":
        return _signature_key(value_items(fact)[0]) == found[0]
    stated = [_normalise(fact.kind, item) for item in value_items(fact)]
    if fact.kind in _UNORDERED:
        return sorted(stated) == sorted(set(found))
    return stated == found


def _normalise(kind: str, item: str) -> str:
    """An item in the form in which `ast.unparse` writes it."""
    if kind in ("purpose", "methods", "imports", "parameters"):
        return item
    try:
        return ast.unparse(ast.parse(item.removeprefix("@"), mode="eval"))
    except (SyntaxError, ValueError, RecursionError):
        return item


def _definition_values(fact: Fact, node: Definition, block_type: str) -> list[str] | None:
    """The value of `fact` as the tree has it, or None where the tree has no such thing."""
    if fact.kind == "decorators":
        return [ast.unparse(d) for d in node.decorator_list]
    if fact.kind == "purpose":
        return [first_sentence(ast.get_docstring(node) or "")]
    if isinstance(node, ast.ClassDef):
        if fact.kind == "bases":
            return [ast.unparse(base) for base in node.bases]
        if fact.kind == "methods":
            return [inner.name for inner in node.body if isinstance(inner, Function)]
        if fact.kind == "constant":
            return _assigned(node.body, fact.subject)
        return None
    return _function_values(fact, node, block_type)


def _function_values(fact: Fact, node: Function, block_type: str) -> list[str] | None:
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
        receiver = block_type == "method" and positional and not static
        return [a.arg for a, _ in pairs[1 if receiver else 0 :]]
    if fact.kind == "annotation" and fact.subject == "return":
        return [ast.unparse(node.returns)] if node.returns else None
    if fact.kind in ("annotation", "default"):
        part = by_name.get(fact.subject, (None, None))[fact.kind == "default"]
        return [ast.unparse(part)] if part is not None else None
    inner, nested = list(_own(node)), list(ast.walk(node))[1:]
    if fact.kind == "guard":
        return _guard(node, fact.subject)
    gather = {"raises": _raised, "returns": _returned, "calls": _called}.get(fact.kind)
    if gather is None:
        return None
    own = gather(inner)
    # What a nested function does is neither clearly done by this one nor clearly not.
    return own if own == gather(nested) else None


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body in no nested function or class, decorators excluded."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield from _own(child)


def _raised(nodes: Sequence[ast.AST]) -> list[str]:
    """Names of raised types. "?" stands for a raise of something else than a caught exception."""
    caught = {n.name for n in nodes if isinstance(n, ast.ExceptHandler) and n.name}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            text = ast.unparse(raised)
            if text not in caught:
                found.add(text if exception_name(text) == text else "?")
    return sorted(found)


def _returned(nodes: Sequence[ast.AST]) -> list[str]:
    return sorted({ast.unparse(n.value) for n in nodes if isinstance(n, ast.Return) and n.value})


def _called(nodes: Sequence[ast.AST]) -> list[str]:
    raised = {id(n.exc) for n in nodes if isinstance(n, ast.Raise)}
    calls = [n for n in nodes if isinstance(n, ast.Call) and id(n) not in raised]
    return sorted({ast.unparse(n.func) for n in calls})


def _guard(node: Function, raised: str) -> list[str] | None:
    raises = [n for n in ast.walk(node) if isinstance(n, ast.Raise) and _raised([n]) == [raised]]
    for statement in node.body:
        if isinstance(statement, ast.If) and [statement.body[0]] == raises:
            return [ast.unparse(statement.test)]
    return None


def _signature_key(signature: str) -> str:
    try:
        node = ast.parse(f"{signature}: pass").body[0]
    except (SyntaxError, ValueError):
        return "no signature"
    return _signature_key_of(node) if isinstance(node, Function) else "no signature"


def _signature_key_of(node: Function) -> str:
    returns = ast.dump(node.returns) if node.returns else ""
    return f"{type(node).__name__} {node.name} {ast.dump(node.args)} {returns}"


def _module_values(fact: Fact, tree: ast.Module) -> list[str] | None:
    if fact.kind == "purpose":
        return [first_sentence(ast.get_docstring(tree) or "")]
    if fact.kind == "constant":
        return _assigned(tree.body, fact.subject)
    if fact.kind == "imports":
        found = []
        for node in tree.body:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found.append("." * node.level + (node.module or ""))
        return found
    return None


def _assigned(body: Sequence[ast.stmt], name: str) -> list[str] | None:
    values: list[str] = []
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            values.append(ast.unparse(value) if value is not None else "")
    return values if len(values) == 1 else None


# -- other languages --------------------------------------------------------------------------


def _check_text(fact: Fact, block: CodeBlock) -> bool:
    """The fact must be mining's own, and every item must stand in the source in its kind's form."""
    if fact not in derive_kind(block, fact.kind):
        return False
    source = _squeeze(block.source_code)
    if fact.kind == "purpose":
        words = re.sub(r"^\s*(?://+|\*+|/\*+)", " ", block.source_code, flags=re.MULTILINE)
        return " ".join(fact.value.split()) in " ".join(words.split())
    subject = re.escape(_squeeze(fact.subject))
    forms = {
        "signature": "{item}",
        "parameters": "{item}",
        "default": rf"{subject}[^,]*?={{item}}",
        "annotation": "{item}",
        "decorators": "{item}",
        "raises": r"(?:throw(?:new)?|throws|panic\()\W*{item}",
        "returns": "return[(]?{item}",
        "calls": r"{item}(?:<[^()]*>)?\(",
        "bases": "{item}",
        "methods": r"{item}(?:<[^()]*>)?[=:(]",
        "imports": "{item}",
        "constant": rf"{subject}[^=]*=\W*{{item}}",
    }
    form = forms.get(fact.kind)
    items = [_squeeze(item) for item in value_items(fact)]
    if form is None or not all(
        re.search(form.replace("{item}", re.escape(item)), source) for item in items
    ):
        return False
    return fact.kind not in _COMPLETE or _COMPLETE[fact.kind](items, block)


def _all_throws(items: Sequence[str], block: CodeBlock) -> bool:
    thrown = re.findall(r"\b(?:throw\s+(?:new\s+)?|panic\s*\()\s*([\w.$]*)", _code(block))
    return bool(thrown) and set(thrown) == set(items)


def _all_returns(items: Sequence[str], block: CodeBlock) -> bool:
    returned = re.findall(r"\breturn\b[ \t]*([^;\n}]+)", _code(block))
    return all(any(item.startswith(_squeeze(text)) for item in items) for text in returned)


def _all_calls(items: Sequence[str], block: CodeBlock) -> bool:
    code = _code(block)
    words = set(re.findall(r"([\w$]+(?:\s*\.\s*[\w$]+)*)\s*\(", code))
    thrown = re.findall(r"\bthrow\s+new\s+([\w.$]+)", code)
    called = {_squeeze(word.removeprefix("new ")) for word in words} - _NOT_CALLS
    called -= {block.name, *thrown}
    chained = re.search(r"[)\]]\s*(?:\.\s*[\w$]+\s*)*\(", code.split("{", 1)[-1])
    return not chained and called == set(items)


_NOT_CALLS = frozenset(
    ("if", "for", "while", "switch", "catch", "return", "function", "func", "typeof", "await")
) | {"new", "super", "synchronized"}
# Lists must also be complete: nothing of the kind may stand in the source and not in the answer.
_COMPLETE = {"raises": _all_throws, "returns": _all_returns, "calls": _all_calls}


def _code(block: CodeBlock) -> str:
    """Source without comments; a `//` inside a string ends it early, which only loses a fact."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", block.source_code, flags=re.DOTALL)


def _squeeze(code: str) -> str:
    """Code without white space, so that line breaks and spacing do not matter."""
    return re.sub(r"\s+", "", code)


_CHECK = {"python": _check_python}
