"""Python: an id where the language says so, the plain name everywhere else.

Every rule stands with a case in which it must not apply: a wrong edge becomes a wrong fact.
"""

from __future__ import annotations

import importlib
import inspect
import symtable
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from dependency_cases import DEF, Case, check
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mining_helpers import mine, write

from forge_mcp.mining import repository

PYTHON_MODULES: dict[str, Case] = {
    "from": ({"a.py": DEF, "b.py": "from a import g\ndef f(): g()\n"}, "b.py::f", ["a.py::g"]),
    "from: another name": (
        {"a.py": DEF, "b.py": "from a import h\ndef f(): g(); h()\n"},
        "b.py::f",
        ["g", "h"],
    ),
    "alias": (
        {"a.py": DEF, "b.py": "from a import g as h\ndef f(): h(); g()\n"},
        "b.py::f",
        ["a.py::g", "g"],
    ),
    "import": (
        {"a.py": DEF, "b.py": "import a\ndef f(): a.g(); a.h(); g()\n"},
        "b.py::f",
        ["a.py::g", "a.h", "g"],
    ),
    "import as": (
        {"p/__init__.py": "", "p/a.py": DEF, "b.py": "import p.a as q\ndef f(): q.g(); p.a.g()\n"},
        "b.py::f",
        ["p/a.py::g", "p.a.g"],
    ),
    "import of a package binds its first name": (
        {
            "p/__init__.py": "def h(): return 1\n",
            "p/a.py": DEF,
            "b.py": "import p.a\ndef f(): p.a.g(); p.h(); p.g()\n",
        },
        "b.py::f",
        ["p/a.py::g", "p/__init__.py::h", "p.g"],
    ),
    "relative": (
        {
            "p/__init__.py": "",
            "p/a.py": DEF,
            "p/q/__init__.py": "",
            "p/q/b.py": "from ..a import g\nfrom .a import g as h\ndef f(): g(); h()\n",
        },
        "p/q/b.py::f",
        ["p/a.py::g", "h"],
    ),
    "from . import module": (
        {
            "p/__init__.py": "",
            "p/a.py": DEF,
            "p/b.py": "from . import a, c\ndef f(): a.g(); c.g()\n",
        },
        "p/b.py::f",
        ["p/a.py::g", "c.g"],
    ),
    "re-export": (
        {"p/__init__.py": "from .a import g as h\n", "p/a.py": DEF}
        | {"b.py": "import p\nfrom p import h, g\ndef f(): h(); p.h(); g(); p.g()\n"},
        "b.py::f",
        ["p/a.py::g", "g", "p.g"],
    ),
    "a package's name before its module": (
        {
            "p/__init__.py": "from .t import t\n",
            "p/t.py": "class t:\n    def run(): return 1\ndef run(): return 2\n",
            "b.py": "from p import t\ndef f(): t.run()\n",
        },
        "b.py::f",
        ["p/t.py::t.run"],
    ),
    "star": (
        {
            "a.py": DEF + "def _h(): return 1\n",
            "b.py": "from a import *\ndef f(): g(); _h(); k()\n",
        },
        "b.py::f",
        ["a.py::g", "_h", "k"],
    ),
    "star: only what __all__ names": (
        {
            "a.py": "__all__ = ['g']\n" + DEF + "def open(): return 1\n",
            "b.py": "from a import *\ndef f(): g(); open()\n",
        },
        "b.py::f",
        ["a.py::g", "open"],
    ),
    "star over a file": (
        {"a.py": DEF, "c.py": "from a import *\n", "b.py": "from c import g\ndef f(): g()\n"},
        "b.py::f",
        ["a.py::g"],
    ),
    "two stars with the same name": (
        {"a.py": DEF, "c.py": DEF, "b.py": "from a import *\nfrom c import *\ndef f(): g()\n"},
        "b.py::f",
        ["g"],
    ),
    "star behind an import": (
        {"a.py": DEF, "c.py": DEF, "b.py": "from a import g\nfrom c import *\ndef f(): g()\n"},
        "b.py::f",
        ["g"],
    ),
    "star behind an import of the same": (
        {"a.py": DEF, "c.py": "from a import g\n"}
        | {"b.py": "from a import g\nfrom c import *\ndef f(): g()\n"},
        "b.py::f",
        ["a.py::g"],
    ),
    "star before an import": (
        {"a.py": DEF, "c.py": DEF, "b.py": "from c import *\nfrom a import g\ndef f(): g()\n"},
        "b.py::f",
        ["a.py::g"],
    ),
    "cycles of imports end": (
        {"a.py": "from b import *\nfrom b import g\n", "b.py": "from a import *\nfrom a import g\n"}
        | {"c.py": "from a import *\nimport a\ndef f(): g(); h(); a.g()\n"},
        "c.py::f",
        ["g", "h", "a.g"],
    ),
    "two origins": (
        {"a.py": DEF, "c.py": DEF}
        | {"b.py": "try:\n    from a import g\nexcept E:\n    from c import g\ndef f(): g()\n"},
        "b.py::f",
        ["g"],
    ),
    "an import or a definition": (
        {"a.py": DEF}
        | {"b.py": "try:\n    from a import g\nexcept E:\n    def g(): return 2\ndef f(): g()\n"},
        "b.py::f",
        ["g"],
    ),
    "an import within a function": (
        {"a.py": DEF, "b.py": "def f():\n    from a import g\n    g()\n"},
        "b.py::f",
        ["a.py::g"],
    ),
    "an import within another function": (
        {
            "a.py": "def open(): return 1\n",
            "b.py": "def h():\n    from a import open\ndef f(): open()\n",
        },
        "b.py::f",
        ["open"],
    ),
    "a name that two functions import": (
        {"a.py": DEF, "c.py": "def g(): return 2\n"}
        | {
            "b.py": "def f():\n    from a import g\n    g()\ndef h():\n    from c import g\n    g()\n"
        },
        "b.py::h",
        ["c.py::g"],
    ),
    "from src": (
        {
            "src/p/__init__.py": "",
            "src/p/a.py": DEF,
            "tests/b.py": "from p.a import g\ndef f(): g()\n",
        },
        "tests/b.py::f",
        ["src/p/a.py::g"],
    ),
    "a script does not stand for the standard library": (
        {
            "tools/json.py": "def dumps(): return 1\n",
            "p/__init__.py": "",
            "p/b.py": "import json\ndef f(): json.dumps()\n",
        },
        "p/b.py::f",
        ["json.dumps"],
    ),
    "two modules of one name": (
        {"x/a.py": DEF, "y/a.py": DEF, "z/b.py": "from a import g\ndef f(): g()\n"},
        "z/b.py::f",
        ["g"],
    ),
    "beyond the root": (
        {"a.py": DEF, "b.py": "from ..a import g\ndef f(): g()\n"},
        "b.py::f",
        ["g"],
    ),
    "the package of the root": (
        {"__init__.py": DEF, "b.py": "from . import g, h\ndef f(): g(); h()\n"},
        "b.py::f",
        ["__init__.py::g", "h"],
    ),
    "a stub beside its module": (
        {"a.py": DEF, "a.pyi": "def g() -> int: ...\n", "b.py": "from a import g\ndef f(): g()\n"},
        "b.py::f",
        ["a.py::g"],
    ),
}


@pytest.mark.parametrize("case", PYTHON_MODULES.values(), ids=PYTHON_MODULES)
def test_python_modules(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


PYTHON_SCOPES: dict[str, str] = {
    # a function f of the file a.py; the comment behind `#=` is what it depends on
    "own file": "def f(): g(); h()  #= a.py::g h",
    "recursion": "def f(): f()  #=",
    "defined twice": "def h(): return 1\ndef h(): return 2\ndef f(): h()  #= h",
    "defined in both branches": "if x:\n    def h(): pass\nelse:\n    def h(): pass\ndef f(): h()  #= h",
    "parameter": "def f(g): g()  #= g",
    "parameters of all kinds": "def f(a, /, g=1, *h, k, **m): g(); h(); k(); m()  #= g h k m",
    "nested function": "def f():\n    def g(): return 2\n    g()  #= a.py::f.g",
    "parameter of the function around": "def o(g):\n    def f(): g()  #= g",
    "parameter of a lambda": "def f(x): x(lambda g: g())  #= x g",
    "assigned name": "def f(x):\n    g = x\n    g()  #= g",
    "for": "def f(x):\n    for g in x: g()  #= g",
    "with": "def f(x):\n    with x as g: g()  #= g",
    "comprehension": "def f(x): return [g() for g in x]  #= g",
    "walrus": "def f(x):\n    if (g := x): g()  #= g",
    "except": "def f(x):\n    try: x()\n    except E as g: g()  #= x g",
    "a local of another function": "def o(x):\n    g = x\ndef f(): g()  #= a.py::g",
    "assigned again on top": "g = wrap(g)\ndef f(): g()  #= g",
    "attribute of what is no class": "def f(): g.h()  #= g.h",
    "class": "class K:\n    def m(self): return 1\ndef f(): K(); K.m(); K.n()  #= a.py::K a.py::K.m K.n",
    "class body is no scope of methods": "class K:\n    def h(self): pass\n    def f(self): h()  #= h",
    "builtin": "def f(): len(g())  #= len a.py::g",
}


@pytest.mark.parametrize("source", PYTHON_SCOPES.values(), ids=PYTHON_SCOPES)
def test_python_scopes(tmp_path: Path, source: str) -> None:
    source, _, expected = source.partition("  #=")
    mined = mine(write(tmp_path, {"a.py": DEF + source + "\n"}))
    (block,) = [block for block in mined.every.values() if block.name == "f"]
    assert block.dependencies == expected.split()


PYTHON_CLASSES: dict[str, Case] = {
    "self": (
        {"a.py": "class A:\n    def m(self): return 1\n    def k(self): self.m(); self.n(); m()\n"},
        "a.py::A.k",
        ["a.py::A.m", "self.n", "m"],
    ),
    "cls": (
        {
            "a.py": "class A:\n    def m(self): return 1\n    @classmethod\n    def k(cls): cls.m()\n"
        },
        "a.py::A.k",
        ["classmethod", "a.py::A.m"],
    ),
    "self of an attribute": (
        {"a.py": "class A:\n    def m(self): return 1\n    def k(self): self.x.m()\n"},
        "a.py::A.k",
        ["self.x.m"],
    ),
    "self without a class": (
        {"a.py": "def m(): return 1\ndef k(self): self.m()\n"},
        "a.py::k",
        ["self.m"],
    ),
    "self of a static method is a parameter": (
        {
            "a.py": "class A:\n    def m(self): return 1\n    @staticmethod\n    def k(self): self.m()\n"
        },
        "a.py::A.k",
        ["staticmethod", "self.m"],
    ),
    "self in a closure": (
        {
            "a.py": "class A:\n    def m(self): return 1\n    def k(self):\n        def f(): self.m()\n"
        },
        "a.py::A.k.f",
        ["a.py::A.m"],
    ),
    "self that is another's": (
        {
            "a.py": "class A:\n    def m(self): return 1\n    def k(self):\n        def f(self): self.m()\n"
        },
        "a.py::A.k.f",
        ["self.m"],
    ),
    "this is no word of Python": (
        {"a.py": "import this\nclass A:\n    def m(self): return 1\n    def k(self): this.m()\n"},
        "a.py::A.k",
        ["this.m"],
    ),
    "defined twice": (
        {
            "a.py": "class A:\n    def m(self): pass\n    def m(self): pass\n    def k(self): self.m()\n"
        },
        "a.py::A.k",
        ["self.m"],
    ),
    "inherited over files": (
        {
            "p/__init__.py": "",
            "p/a.py": "from .b import B\nclass A(B):\n    def k(self): self.m(); super().m(); self.n()\n",
            "p/b.py": "from p import c\nclass B(c.C[int]): pass\n",
            "p/c.py": "class C:\n    def m(self): return 1\ndef n(): return 1\n",
        },
        "p/a.py::A.k",
        ["p/c.py::C.m", "self.n"],
    ),
    "super is not the own method": (
        {
            "a.py": "class A:\n    def m(self): super().m()\nclass B(A):\n    def m(self): super().m()\n"
        },
        "a.py::B.m",
        ["a.py::A.m"],
    ),
    "super without a base": (
        {"a.py": "class A:\n    def m(self): return 1\n    def k(self): super().m()\n"},
        "a.py::A.k",
        ["super().m"],
    ),
    "diamond": (
        {
            "a.py": "class A:\n    def m(self): return 1\nclass B(A): pass\nclass C(A):\n"
            "    def m(self): return 2\nclass D(B, C):\n    def k(self): self.m()\n"
        },
        "a.py::D.k",
        ["self.m"],  # two bases differ: certain only in the order of the MRO, which is not computed
    ),
    "what an unknown base has before": (
        {
            "a.py": "from elsewhere import U\nclass A:\n    def m(self): return 1\n"
            "class D(U, A):\n    def k(self): self.m()\n"
        },
        "a.py::D.k",
        ["self.m"],
    ),
    "own method before an unknown base": (
        {"a.py": "class D(Unknown):\n    def m(self): return 1\n    def k(self): self.m()\n"},
        "a.py::D.k",
        ["a.py::D.m"],
    ),
    "a function is no base": (
        {
            "a.py": "def make():\n    def m(): return 1\nclass A(make()):\n    def k(self): self.m()\n"
        },
        "a.py::A.k",
        ["self.m"],
    ),
    "an attribute of self is no base": (
        {
            "a.py": "class A:\n    class B:\n        def m(self): return 1\n    def k(self):\n"
            "        class C(self.B):\n            def f(self): self.m()\n"
        },
        "a.py::A.k.C.f",
        ["self.m"],
    ),
    "cyclic bases end": (
        {"a.py": "class A(B):\n    def k(self): self.m()\nclass B(A): pass\nclass C(C): pass\n"},
        "a.py::A.k",
        ["self.m"],
    ),
    "a base is looked up outside of the class": (
        {"a.py": "class Meta: pass\nclass A(Meta):\n    class Meta: pass\n"},
        "a.py::A",
        ["a.py::Meta"],
    ),
    "a decorator that a parameter hides": (
        {"a.py": "def d(x): return x\n@d\ndef f(d): return d(1)\n"},
        "a.py::f",
        ["d"],  # one of the two is not the other
    ),
    "class in a class": (
        {"a.py": "class A:\n    class B: pass\n    def k(self): A.B(); self.B(); B()\n"},
        "a.py::A.k",
        ["a.py::A.B", "B"],
    ),
    "overload": (
        {
            "a.py": "@overload\ndef g(x: int): ...\n@overload\ndef g(x: str): ...\ndef g(x): return x\n"
            "def f(): g(1)\n"
        },
        "a.py::f",
        ["a.py::g#3"],
    ),
    "typing.overload": (
        {
            "a.py": "import typing as t\n@t.overload\ndef g(x: int): ...\n@t.overload\n"
            "def g(x: str): ...\ndef g(x): return x\ndef f(): g(1)\n"
        },
        "a.py::f",
        ["a.py::g#3"],
    ),
    "overload that is called": (
        {"a.py": "def g(x): return overload(x)\ndef g(x): return x\ndef f(): g(1)\n"},
        "a.py::f",
        ["g"],
    ),
    "a base that is bound anew behind the class": (
        {
            "a.py": "class R:\n    def go(self): return 1\n",
            "b.py": "from a import *\nclass B(R):\n    def f(self): return self.go()\n"
            "class R:\n    def go(self): return 2\n",
        },
        "b.py::B.f",
        ["self.go"],
    ),
}


@pytest.mark.parametrize("case", PYTHON_CLASSES.values(), ids=PYTHON_CLASSES)
def test_python_classes(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


def test_other_languages_keep_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, {"a.py": DEF + "def f(): return g(g)\n"})
    assert mine(root).every["a.py::f"].dependencies == ["a.py::g"]
    monkeypatch.setattr(repository, "FIRST_TIER", frozenset())
    assert mine(root).every["a.py::f"].dependencies == ["g"]


# -- Python itself as the oracle ---------------------------------------------------------------

STDLIB = Path(sysconfig.get_paths()["stdlib"])


@contextmanager
def imported(root: Path) -> Iterator[dict[str, ModuleType]]:
    """The modules of a repository that Python can import, by path."""
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    found = {}
    try:
        for file in sorted(root.rglob("*.py")):
            path = file.relative_to(root).as_posix()
            name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            try:
                found[path] = importlib.import_module(name)
            except Exception:  # what cannot be imported says nothing
                continue
        yield found
    finally:
        sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            del sys.modules[name]


def meant(name: str, function: FunctionType, holder: type | None) -> object:
    """What a name means in a function of a class or a module; None where it means nothing."""
    head, _, rest = name.partition(".")
    try:
        if head == "self" and holder is not None:
            return inspect.getattr_static(holder, rest)
        if head == "super()" and holder is not None:
            return getattr(super(holder, holder), rest)
        found: object = function.__globals__[head]
        for part in rest.split(".") if rest else ():
            found = getattr(found, part)
    except (AttributeError, KeyError):
        return None
    return found


def functions(module: ModuleType) -> Iterator[tuple[FunctionType, type | None]]:
    """Functions of a module and of its classes that are defined there."""
    for value in vars(module).values():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            yield value, None
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for method in vars(value).values():
                if isinstance(method, FunctionType):
                    yield method, value


def compare(root: Path) -> tuple[list[str], int]:
    """The edges that Python itself does not see, and the number of those that it sees too."""
    blocks = {(block.path, block.start_line): block for block in mine(root).every.values()}
    wrong, right = [], 0
    with imported(root) as modules:
        for path, module in modules.items():
            for function, holder in functions(module):
                block = blocks[path, function.__code__.co_firstlineno]
                targets = {name: meant(name, function, holder) for name in block.metadata["calls"]}
                real = {id_of(target, root) for target in targets.values()}
                nothing = {name.rpartition(".")[2] for name, is_ in targets.items() if is_ is None}
                for dependency in block.dependencies:
                    right += dependency in real
                    if dependency in targets or dependency in real:
                        continue
                    if dependency.rpartition("::")[2].rpartition(".")[2] not in nothing:
                        wrong.append(f"{block.id} -> {dependency}, but Python sees {sorted(real)}")
    return wrong, right


def id_of(target: object, root: Path) -> str:
    """The id of a function or class that is defined once in its file, or ''."""
    if not isinstance(target, FunctionType | type) or target.__module__ == "builtins":
        return ""
    file = Path(inspect.getfile(target)).relative_to(root).as_posix()
    return f"{file}::{target.__qualname__}"


NAMES = ["alpha", "beta", "go", "Root", "Base"]
FUNCTIONS, CLASSES = NAMES[:3], NAMES[3:]


@st.composite
def python_repositories(draw: st.DrawFn) -> dict[str, str]:
    """Modules that import from those before them, mostly what is there."""
    files: dict[str, str] = {}
    exported: dict[str, list[str]] = {}  # names of a module that may be there, by module
    for path in ["pkg/deep.py", "pkg/core.py", "pkg/__init__.py", "a.py", "m.py"]:
        lines: list[str] = []
        names: list[str] = []
        for module in draw(st.lists(st.sampled_from(sorted(exported) or ["os"]), max_size=3)):
            wanted = draw(st.sampled_from(exported.get(module, []) or ["nothing"]))
            alias = draw(st.sampled_from(NAMES))
            way = draw(st.integers(0, 4))
            if way == 0:
                lines.append(f"from {module} import *")
                names += exported.get(module, [])
            elif way == 1:
                lines.append(f"import {module}")
                names += [f"{module}.{name}" for name in exported.get(module, [])]
            elif way == 2:
                lines.append(f"import {module} as module")
                names += [f"module.{name}" for name in exported.get(module, [])]
            elif wanted.isidentifier() and wanted != "nothing":
                lines.append(f"from {module} import {wanted}" + f" as {alias}" * (way == 3))
                names.append(alias if way == 3 else wanted)
        callable_here = st.sampled_from(names * 3 + NAMES)
        for name in draw(st.lists(st.sampled_from(FUNCTIONS), max_size=3)):
            lines += [f"def {name}(x):", f"    return {draw(callable_here)}(x)"]
            names.append(name)
        for name in draw(st.lists(st.sampled_from(CLASSES), max_size=2)):
            known = [base for base in names if base.rpartition(".")[2] in CLASSES]
            bases = draw(st.lists(st.sampled_from(known or ["object"]), max_size=2, unique=True))
            lines.append(f"class {name}({', '.join(bases)}):")
            for method in draw(st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=2)):
                called = draw(st.sampled_from(["self.go", "super().go", "self.beta", "alpha"]))
                lines += [f"    def {method}(self):", f"        return {called}({name})"]
            names.append(name)
        files[path] = "\n".join(lines) + "\n"
        exported[path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = names
    return files


def test_python_sees_every_edge_of_random_repositories() -> None:
    agreed = 0

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(files=python_repositories())
    def check_one(files: dict[str, str]) -> None:
        nonlocal agreed
        with tempfile.TemporaryDirectory() as root:
            wrong, right = compare(write(Path(root).resolve(), dict(files)))
            assert wrong == []
            agreed += right

    check_one()
    assert agreed > 80


def tables(table: symtable.SymbolTable) -> Iterator[symtable.Function]:
    """Every function's table of names."""
    for inner in table.get_children():
        if isinstance(inner, symtable.Function):
            yield inner
        yield from tables(inner)


def test_no_edge_of_the_standard_library_goes_to_a_name_that_is_hidden(tmp_path: Path) -> None:
    """Python's own tables say which names of a function are its locals or those around it."""
    sources = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(STDLIB.glob("*.py"))[::3]
        if path.stat().st_size < 60_000
    }
    blocks = mine(write(tmp_path, dict(sources))).every.values()
    scopes = {
        (file, table.get_lineno(), table.get_name()): table
        for file, source in sources.items()
        for table in tables(symtable.symtable(source, file, "exec"))
    }
    seen = 0
    for block in blocks:
        scope = scopes.get((block.path, block.start_line, block.name))
        if scope is None:  # a class, or a function with decorators, which stand in another scope
            continue
        for dependency in block.dependencies:
            path, _, qualified = dependency.partition("::")
            if (
                path == block.path
                and qualified.isidentifier()
                and qualified in block.metadata["calls"]
            ):
                seen += 1
                if qualified in scope.get_identifiers():  # else it stands in a comprehension
                    assert scope.lookup(qualified).is_global(), (block.id, dependency)
    assert seen > 300
