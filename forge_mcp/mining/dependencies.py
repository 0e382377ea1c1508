"""What a block uses: ids of blocks of the same repository where that is certain, else names.

A name is resolved as its language looks it up: own class behind self or this (and its bases),
enclosing scopes, imports (through re-exports), and the package in Go and Java. Where two
definitions answer (overloads, a name defined twice), or a parameter hides the name, the plain
name stays: a wrong edge would become a wrong fact.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from forge_mcp.mining.languages.base import Import
from forge_mcp.schemas.code_blocks import CodeBlock

SELF = frozenset({"self", "cls", "this"})
MAX_HOPS = 5
SCRIPT_ENDINGS = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts")
GO_RECEIVER = re.compile(r"func\s*\(\s*(\w+)\s")


class Resolver:
    """All names of a repository."""

    def __init__(
        self, blocks: Iterable[CodeBlock], imports: Mapping[str, Sequence[Import]]
    ) -> None:
        """`imports`: for every file, the names that its imports bring in."""
        self.imports = {
            path: {imported.local: imported for imported in names}
            for path, names in imports.items()
        }
        self.names: dict[str, dict[str, CodeBlock | None]] = {path: {} for path in imports}
        self.packages: dict[str, dict[str, CodeBlock | None]] = defaultdict(dict)
        for block in blocks:
            if block.block_type == "module":
                continue
            _add(self.names.setdefault(block.path, {}), block.qualified_name, block)
            if block.language in ("go", "java"):
                folder = posixpath.dirname(block.path)
                _add(self.packages[folder], block.qualified_name, block)
        self.modules: dict[str, str | None] = {}
        for path in self.names:
            for name in _module_names(path, self.names):
                self.modules[name] = None if name in self.modules else path

    def dependencies(self, block: CodeBlock) -> list[str]:
        """Ids or plain names of what a block calls, inherits from and is decorated by."""
        metadata = block.metadata
        used = [
            *(text.split("(")[0] for text in metadata.get("decorators", ())),
            *map(_base_name, metadata.get("bases", ())),
            *metadata["calls"],
        ]
        found: dict[str, None] = {}
        for name in used:
            target = self.resolve(name, block)
            if target is None:
                found.setdefault(name)
            elif target.id != block.id:
                found.setdefault(target.id)
        return [name for name in found if name]

    def resolve(self, name: str, block: CodeBlock) -> CodeBlock | None:
        """The block that a dotted name means inside a block, or None where that is not certain."""
        parts = name.replace("?.", ".").split(".")
        inherited = parts[0] in ("super()", "super")
        owner = self._receiver_class("self" if inherited else parts[0], block)
        if owner is not None:
            find = self._inherited if inherited else self._member
            return find(owner, parts[1], MAX_HOPS) if len(parts) == 2 else None
        if any(p["name"] == parts[0] for p in block.metadata.get("parameters", ())):
            return None
        for scope in _scopes(block):
            if scope and not self._is_visible(scope, block):
                continue
            names = self.names[block.path]
            if f"{scope}{parts[0]}" in names:  # the innermost scope that knows the name decides
                return names.get(f"{scope}{'.'.join(parts)}")
        imported = self._imported(block.path, parts, MAX_HOPS)
        if imported is not None or block.language not in ("go", "java"):
            return imported
        return self.packages[posixpath.dirname(block.path)].get(".".join(parts))

    def _is_visible(self, scope: str, block: CodeBlock) -> bool:
        """Names of a class body are seen in the class itself, and in Java in its methods."""
        around = self.names[block.path].get(scope.rstrip("."))
        return (
            around is None
            or around.block_type != "class"
            or around.id == block.id
            or block.language == "java"
        )

    def _receiver_class(self, name: str, block: CodeBlock) -> CodeBlock | None:
        """The class that `self`, `this` or a Go receiver is an instance of."""
        if block.language == "go":
            receiver = GO_RECEIVER.match(block.signature)
            if receiver is None or receiver[1] != name or block.parent is None:
                return None
            return self.packages[posixpath.dirname(block.path)].get(block.parent)
        if name not in SELF:
            return None
        scope = block.qualified_name
        while scope:
            around = self.names[block.path].get(scope)
            if around is not None and around.block_type == "class":
                return around
            scope = scope.rpartition(".")[0]
        return None

    def _member(self, owner: CodeBlock, name: str, hops: int) -> CodeBlock | None:
        """A method of a class, or of the bases that stand in the repository."""
        qualified = f"{owner.qualified_name}.{name}"
        scope = self.names[owner.path]
        if owner.language == "go":
            scope = self.packages[posixpath.dirname(owner.path)]
        if qualified in scope:
            return scope[qualified]
        return self._inherited(owner, name, hops)

    def _inherited(self, owner: CodeBlock, name: str, hops: int) -> CodeBlock | None:
        """A method of the bases of a class."""
        for text in owner.metadata.get("bases", ()) if hops else ():
            base = _base_name(text)
            if base.split(".")[0] in SELF:  # an attribute of an object: no name of a class
                continue
            parent = self.resolve(base, owner)
            if parent is not None and parent.id != owner.id:
                member = self._member(parent, name, hops - 1)
                if member is not None:
                    return member
        return None

    def _imported(self, path: str, parts: list[str], hops: int) -> CodeBlock | None:
        """What a dotted name means through the imports of a file."""
        known = self.imports.get(path, {})
        for length in range(len(parts), 0, -1):  # 'import a.b' makes 'a.b' the local name
            imported = known.get(".".join(parts[:length]))
            if imported is not None and hops:
                return self._follow(path, imported, parts[length:], hops)
        return None

    def _follow(self, path: str, imported: Import, rest: list[str], hops: int) -> CodeBlock | None:
        if path.endswith(".go"):
            return self._in_go_package(imported.module, rest)
        if imported.name is None:
            target = self._module(path, imported.module)
            return self._exported(target, rest, hops) if target and rest else None
        inner = self._module(path, _join(imported.module, imported.name))
        if inner is not None and path.endswith((".py", ".pyi")):  # 'from package import module'
            return self._exported(inner, rest, hops) if rest else None
        if path.endswith(".java"):
            return self._in_java(imported, rest)
        target = self._module(path, imported.module)
        return self._exported(target, [imported.name, *rest], hops) if target else None

    def _exported(self, path: str, parts: list[str], hops: int) -> CodeBlock | None:
        """A name of another file: defined there, or imported there and passed on."""
        names = self.names.get(path, {})
        if parts[0] in names:
            return names.get(".".join(parts))
        return self._imported(path, parts, hops - 1)

    def _in_go_package(self, module: str, rest: list[str]) -> CodeBlock | None:
        folders = [f for f in self.packages if f and (module == f or module.endswith("/" + f))]
        if len(rest) != 1 or not folders:
            return None
        return self.packages[max(folders, key=len)].get(rest[0])

    def _in_java(self, imported: Import, rest: list[str]) -> CodeBlock | None:
        folder = imported.module.replace(".", "/")
        folders = [f for f in self.packages if f == folder or f.endswith("/" + folder)]
        if len(folders) != 1:
            return None
        return self.packages[folders[0]].get(".".join([imported.name or "", *rest]))

    def _module(self, path: str, module: str) -> str | None:
        """The file that an imported module is, or None."""
        if path.endswith((".py", ".pyi", ".pyw")):
            dots = len(module) - len(module.lstrip("."))
            if not dots:
                return self.modules.get(module)
            folder = posixpath.dirname(path)
            for _ in range(dots - 1):
                folder = posixpath.dirname(folder)
            base = posixpath.join(folder, *filter(None, module[dots:].split(".")))
            return self._first(f"{base}.py", f"{base}/__init__.py")
        if not module.startswith("."):
            return None
        base = posixpath.normpath(posixpath.join(posixpath.dirname(path), module))
        stem = re.sub(r"\.[mc]?jsx?$", "", base)  # TypeScript imports './x.js' and means x.ts
        candidates = [base, *(stem + ending for ending in SCRIPT_ENDINGS)]
        return self._first(*candidates, *(f"{base}/index{ending}" for ending in SCRIPT_ENDINGS))

    def _first(self, *paths: str) -> str | None:
        return next((path for path in paths if path in self.names), None)


def _base_name(text: str) -> str:
    """`Base` of `Base[T]`, `Base<T>` or `*Base`."""
    return re.split(r"[\[(<]", text)[0].lstrip("*").strip()


def _add(names: dict[str, CodeBlock | None], name: str, block: CodeBlock) -> None:
    names[name] = None if name in names else block


def _scopes(block: CodeBlock) -> list[str]:
    """Prefixes of names that may be meant inside a block, the innermost first: 'A.f.', 'A.', ''."""
    parts = block.qualified_name.split(".") if block.block_type != "module" else []
    return ["".join(f"{part}." for part in parts[:n]) for n in range(len(parts), -1, -1)]


def _join(module: str, name: str) -> str:
    return f"{module}{name}" if module.endswith(".") else f"{module}.{name}"


def _module_names(path: str, known: Mapping[str, object]) -> set[str]:
    """Dotted names under which a Python file can be imported: from the repository's root, and
    from the folder that holds its outermost package.
    """
    if not path.endswith((".py", ".pyi", ".pyw")):
        return set()
    parts = path.rpartition(".")[0].split("/")
    if parts[-1] == "__init__":
        parts.pop()
    if not parts:
        return set()
    outermost = posixpath.dirname(path)
    depth = len([part for part in outermost.split("/") if part])
    while depth and f"{'/'.join(path.split('/')[:depth])}/__init__.py" in known:
        depth -= 1
    return {".".join(parts), ".".join(parts[depth:])} - {""}
