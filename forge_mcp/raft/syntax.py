"""Whether code is a definition without a syntax error. Nothing is ever run.

Python is compiled, so that what only the compiler refuses (`return` outside a function, `await` in
one that is not async) counts as well; other languages are parsed by their grammar inside what makes
a part of a file whole (a method in a class).
"""

from __future__ import annotations

import ast
import textwrap

from forge_mcp.raft.verify import TREES

# Around a definition of the languages of which verify_trees.py knows nothing.
_CLASS = "class X {{\n{}\n}}"
_WRAPPERS = {
    "rust": ("{}", "impl X {{\n{}\n}}", "trait X {{\n{}\n}}"),
    "cpp": ("{}", "class X {{\n{}\n}};"),
    "c": ("{}",),
    "bash": ("{}",),
    "ruby": ("{}",),
}


def parses(code: str, language: str, block_type: str) -> bool:
    """Whether code holds a function or method and has no syntax error.

    Args:
        code: a definition as it stands in its file, or less indented.
        language: of a block.
        block_type: "function" or "method".
    """
    if language == "python":
        return _compiles(code)
    if language in TREES:
        from forge_mcp.raft.verify_source import parses  # loads grammars

        return parses(code, language, block_type)
    return _tree_is_whole(code, language, block_type)


def _compiles(code: str) -> bool:
    try:
        tree = ast.parse(textwrap.dedent(code))
        compile(_closed(tree), "<code>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(tree))


def _closed(tree: ast.Module) -> ast.Module:
    """The tree of a nested function inside one that has the names it calls `nonlocal`."""
    names = {n for x in ast.walk(tree) if isinstance(x, ast.Nonlocal) for n in x.names}
    if not names:
        return tree
    around = ast.parse(f"def around({', '.join(sorted(names))}): pass")
    around.body[0].body = tree.body  # type: ignore[attr-defined]
    return around


def _tree_is_whole(code: str, language: str, block_type: str) -> bool:
    from forge_mcp.mining.languages import language as language_named  # loads grammars

    spoken = language_named(language)
    usual = (_CLASS,) if block_type == "method" else ("{}", _CLASS)
    for wrapper in _WRAPPERS.get(language, usual):
        before, after = wrapper.format("\0").split("\0")
        start = len(spoken.fragment_prefix + before.encode())
        text = spoken.fragment_prefix + (before + code + after).encode()
        try:
            root = spoken.parse(text).root_node
        except ValueError:  # Kotlin's grammar would never finish
            continue
        if root.has_error:
            continue
        stack = [root]
        while stack:
            node = stack.pop()
            opened = spoken.opens(node) if node.type in spoken.definitions else None
            if opened and opened.kind in ("function", "method") and node.start_byte >= start:
                return True
            stack += node.children
    return False
