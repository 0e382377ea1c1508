"""Where the modules and packages of a repository stand, by the rules of their languages."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping

PYTHON = (".py", ".pyi", ".pyw", ".ipynb")
SCRIPT_ENDINGS = (".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts")
SOURCE_ROOTS = frozenset({"", "src", "lib"})
# Folders below which a Java package begins.
JAVA_ROOTS = frozenset({"src", "main", "test", "tests", "source", "sources"})


class Modules:
    """The files of a repository as modules."""

    def __init__(self, languages: Mapping[str, str], go_modules: Mapping[str, str]) -> None:
        """What is known without reading a file.

        Args:
            languages: language of every mined file, by path.
            go_modules: module path that the go.mod of a folder states, by folder ('' the root).
        """
        self.languages = languages
        self._go_modules = go_modules
        self.packages: dict[str, list[str]] = defaultdict(list)
        self._python: dict[str, str | None] = {}
        for path, language in languages.items():
            if language in ("go", "java"):
                self.packages[package_of(path)].append(path)
            if path.endswith(PYTHON):
                self._add_python(path)

    def _add_python(self, path: str) -> None:
        """Dotted names under which a Python file can be imported from anywhere: from the
        repository's root, from a folder of sources, and from the one that holds its outermost
        package.
        """
        parts = path.rpartition(".")[0].split("/")
        depth = len(parts) - 1
        while depth and f"{'/'.join(parts[:depth])}/__init__.py" in self.languages:
            depth -= 1
        if parts[-1] == "__init__":
            parts.pop()
        names = {".".join(parts)}
        if depth < len(parts) - 1 or "/".join(parts[:depth]) in SOURCE_ROOTS:
            names.add(".".join(parts[depth:]))
        if path.endswith("/__init__.py"):
            names.add(".".join(parts[depth:]))
        for name in names - {""}:
            there = self._python.get(name, path)
            if (
                there is not None
                and there != path
                and there.rpartition(".")[0] == path.rpartition(".")[0]
            ):  # a stub beside its module
                self._python[name] = there if there.endswith(".py") else path
            else:
                self._python[name] = path if there == path else None

    def find(self, path: str, module: str) -> str | None:
        """The file that a module imported by another file is, or None."""
        if path.endswith(PYTHON):
            return self._find_python(path, module)
        if not module.startswith("."):
            return None
        joined = posixpath.normpath(posixpath.join(folder_of(path), module))
        base = "" if joined == "." else f"{joined}/"
        index = tuple(f"{base}index{ending}" for ending in SCRIPT_ENDINGS)
        if joined.startswith(".."):
            return None
        if module.endswith(("/", ".")):  # it names the folder
            return self._first(*index)
        stem = re.sub(r"\.[mc]?jsx?$", "", joined)  # TypeScript imports './x.js' and means x.ts
        return self._first(joined, *(stem + ending for ending in SCRIPT_ENDINGS), *index)

    def _find_python(self, path: str, module: str) -> str | None:
        dots = len(module) - len(module.lstrip("."))
        folder = folder_of(path)
        if not dots:
            if module in self._python:
                return self._python[module]
            if f"{folder}/__init__.py" in self.languages:
                return None
            # A script finds what stands beside it.
            return self._first(posixpath.join(folder, f"{module.replace('.', '/')}.py"))
        for _ in range(dots - 1):
            if not folder:
                return None
            folder = folder_of(folder)
        base = posixpath.join(folder, *filter(None, module[dots:].split(".")))
        if not base:
            return self._first("__init__.py")
        return self._first(f"{base}.py", f"{base}/__init__.py", f"{base}.pyi")

    def _first(self, *paths: str) -> str | None:
        return next((path for path in paths if path in self.languages), None)

    def go_package(self, package: str) -> str | None:
        """The folder of a Go package, by the go.mod above it."""
        for folder, module in self._go_modules.items():
            if package == module or package.startswith(f"{module}/"):
                inner = posixpath.join(folder, package[len(module) :].strip("/"))
                inner = inner.rstrip("/")
                return inner if inner in self.packages else None
        if self._go_modules or "/" not in package:
            return None
        # Without a go.mod the path's end must say it: 'github.com/me/x/util' means util/.
        fitting = [f for f in self.packages if f and package.endswith("/" + f)]
        return max(fitting, key=len, default=None)

    def java_package(self, package: str) -> str | None:
        """The key of a Java package that stands in the repository."""
        key = f"java:{package.replace('.', '/')}"
        return key if key in self.packages else None


def package_of(path: str) -> str:
    """The key of the Go or Java package that a file belongs to: Go's is its folder; Java's is
    told by the part below the folder of sources, since main and test folders share it.
    """
    folder = folder_of(path)
    if not path.endswith(".java"):
        return folder
    parts = folder.split("/")
    roots = [at for at, part in enumerate(parts) if part == "java"]
    roots = roots or [at for at, part in enumerate(parts) if part in JAVA_ROOTS]
    return f"java:{'/'.join(parts[roots[-1] + 1 :] if roots else parts)}"


def folder_of(path: str) -> str:
    """'a/b' of 'a/b/c.py', '' of 'c.py'."""
    return path.rpartition("/")[0]
