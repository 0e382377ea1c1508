"""What a block depends on: an id where the language says so, the plain name everywhere else.

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
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mining_helpers import mine, write

from forge_mcp.mining import repository

# Files, a block, and what it depends on.
Case = tuple[dict[str, str], str, list[str]]


def check(tmp_path: Path, case: Case) -> None:
    files, block, expected = case
    mined = mine(write(tmp_path, dict(files)))
    assert mined.every[block].dependencies == expected


DEF = "def g(): return 1\n"  # another file's function

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


# -- JavaScript and TypeScript -----------------------------------------------------------------

FUN = "export function g() { return 1 }\n"

SCRIPTS: dict[str, Case] = {
    "named": (
        {"a.ts": FUN, "b.ts": "import { g, h } from './a'\nfunction f() { g(); h() }\n"},
        "b.ts::f",
        ["a.ts::g", "h"],
    ),
    "alias": (
        {"a.ts": FUN, "b.ts": "import { g as k } from './a.js'\nfunction f() { k(); g() }\n"},
        "b.ts::f",
        ["a.ts::g", "g"],
    ),
    "namespace import": (
        {"a.ts": FUN, "b.ts": "import * as a from './a'\nfunction f() { a.g(); a.h(); g() }\n"},
        "b.ts::f",
        ["a.ts::g", "a.h", "g"],
    ),
    "default": (
        {
            "a.ts": "export default function g() { return 1 }\nexport function d() { return 2 }\n",
            "b.ts": "import d from './a'\nfunction f() { d() }\n",
        },
        "b.ts::f",
        ["a.ts::g"],
    ),
    "no default": (
        {"a.ts": FUN, "b.ts": "import g from './a'\nfunction f() { g() }\n"},
        "b.ts::f",
        ["g"],
    ),
    "a package is not a file": (
        {"a.ts": FUN, "b.ts": "import { g } from 'a'\nfunction f() { g() }\n"},
        "b.ts::f",
        ["g"],
    ),
    "re-export": (
        {"a.ts": FUN, "c.ts": "export { g as h } from './a'\n"}
        | {"b.ts": "import { h, g } from './c'\nfunction f() { h(); g() }\n"},
        "b.ts::f",
        ["a.ts::g", "g"],
    ),
    "export star": (
        {"a.ts": FUN, "c.ts": "export * from './a'\n"}
        | {
            "b.ts": "import { g } from './c'\nimport * as c from './c'\nfunction f() { g(); c.g() }\n"
        },
        "b.ts::f",
        ["a.ts::g"],
    ),
    "export star does not pass default on": (
        {"a.ts": "export default () => { return 1 }\n", "c.ts": "export * from './a'\n"}
        | {"b.ts": "import d from './c'\nfunction f() { d() }\n"},
        "b.ts::f",
        ["d"],
    ),
    "export star twice": (
        {"a.ts": FUN, "d.ts": FUN, "c.ts": "export * from './a'\nexport * from './d'\n"}
        | {"b.ts": "import { g } from './c'\nfunction f() { g() }\n"},
        "b.ts::f",
        ["g"],
    ),
    "export star as": (
        {"a.ts": FUN, "c.ts": "export * as n from './a'\n"}
        | {"b.ts": "import { n, g } from './c'\nfunction f() { n.g(); g() }\n"},
        "b.ts::f",
        ["a.ts::g", "g"],
    ),
    "what is passed on is not seen here": (
        {
            "a.ts": "export function fetch() { return 1 }\nexport function open() { return 2 }\n",
            "b.ts": "export { fetch } from './a'\nexport * from './a'\nfunction f() { fetch(); open() }\n",
        },
        "b.ts::f",
        ["fetch", "open"],
    ),
    "exported under another name": (
        {
            "a.ts": "function g() { return 1 }\nfunction h() { return 2 }\nexport { h as g }\n",
            "b.ts": "import { g } from './a'\nfunction f() { g() }\n",
        },
        "b.ts::f",
        ["a.ts::h"],
    ),
    "index": (
        {
            "lib.ts": FUN,
            "lib/index.ts": FUN,
            "lib/x/b.ts": "import { g } from '..'\nfunction f() { g() }\n",
        },
        "lib/x/b.ts::f",
        ["lib/index.ts::g"],
    ),
    "a file before a folder": (
        {
            "lib.ts": FUN,
            "lib/index.ts": FUN,
            "b.ts": "import { g } from './lib'\nfunction f() { g() }\n",
        },
        "b.ts::f",
        ["lib.ts::g"],
    ),
    "a folder before a file": (
        {
            "lib.ts": FUN,
            "lib/index.ts": FUN,
            "b.ts": "import { g } from './lib/'\nfunction f() { g() }\n",
        },
        "b.ts::f",
        ["lib/index.ts::g"],
    ),
    "index of the root": (
        {"index.ts": FUN, "b.ts": "import { g } from '.'\nfunction f() { g() }\n"},
        "b.ts::f",
        ["index.ts::g"],
    ),
    "beyond the root": (
        {"a.ts": FUN, "b.ts": "import { g } from '../a'\nfunction f() { g() }\n"},
        "b.ts::f",
        ["g"],
    ),
    "cycles of imports end": (
        {"a.ts": "export * from './b'\nexport { g } from './b'\n", "b.ts": "export * from './a'\n"}
        | {"c.ts": "import { g, h } from './a'\nfunction f() { g(); h() }\n"},
        "c.ts::f",
        ["g", "h"],
    ),
    "require": (
        {
            "a.js": "exports.g = () => { return 1 }\nmodule.exports.h = function () { return 2 }\n",
            "b.js": "const a = require('./a')\nconst { g: k, h } = require('./a')\n"
            "function f() { a.g(); k(); h(); a.z(); g() }\n",
        },
        "b.js::f",
        ["a.js::g", "a.js::h", "a.z", "g"],
    ),
    "exports are no names of the file": (
        {"b.js": "exports.fetch = () => { return 1 }\nexports.f = () => { fetch() }\n"},
        "b.js::f",
        ["fetch"],
    ),
    "namespace": (
        {
            "a.ts": "export namespace N {\n  export function g() { return h() }\n  function h() { return 1 }\n}\n"
            "function f() { N.g(); g() }\n"
        },
        "a.ts::f",
        ["a.ts::N.g", "g"],
    ),
    "inside a namespace": (
        {"a.ts": "namespace N {\n  export function f() { h() }\n  function h() { return 1 }\n}\n"},
        "a.ts::N.f",
        ["a.ts::N.h"],
    ),
    "namespace of another file": (
        {"a.ts": "export namespace N { export function g() { return 1 } }\n"}
        | {"b.ts": "import { N } from './a'\nfunction f() { N.g(); N.h() }\n"},
        "b.ts::f",
        ["a.ts::N.g", "N.h"],
    ),
    "an object is no scope": (
        {"a.js": "const api = { open() { return 1 }, f() { open() } }\n"},
        "a.js::api.f",
        ["open"],
    ),
    "a constructor is no scope": (
        {
            "a.js": "function A() {}\nA.g = function () { return 1 }\nA.prototype.f = function () { g() }\n"
        },
        "a.js::A.f",
        ["g"],
    ),
    "parameters": (
        {
            "a.ts": "function g() {}\nfunction h() {}\nfunction i() {}\nfunction j() {}\nfunction k() {}\n"
            "function f(g?: any, { h, x: [i] }: any, [j = 1]: any, ...k: any[]) { g(); h(); i(); j(); k(); x() }\n"
            "function x() {}\n"
        },
        "a.ts::f",
        ["g", "h", "i", "j", "k", "a.ts::x"],
    ),
    "parameter of a callback": (
        {"a.js": "function g() {}\nfunction f(x) { x.forEach(g => g()) }\n"},
        "a.js::f",
        ["x.forEach", "g"],
    ),
    "const": (
        {
            "a.js": "function g() {}\nfunction h() {}\nfunction f(x) { const g = x, { h } = x; g(); h() }\n"
        },
        "a.js::f",
        ["g", "h"],
    ),
    "a const of another function": (
        {"a.js": "function g() {}\nfunction h(x) { const g = x }\nfunction f() { g() }\n"},
        "a.js::f",
        ["a.js::g"],
    ),
    "this": (
        {
            "a.js": "class A {\n  m() { return 1 }\n  #p() { return 2 }\n  f() { this.m(); this.#p(); this.n(); m() }\n}\n"
        },
        "a.js::A.f",
        ["a.js::A.m", "a.js::A.#p", "this.n", "m"],
    ),
    "this in an arrow": (
        {"a.js": "class A {\n  m() { return 1 }\n  f() { const k = () => { this.m() } }\n}\n"},
        "a.js::A.f.k",
        ["a.js::A.m"],
    ),
    "this in a function": (
        {"a.js": "class A {\n  m() { return 1 }\n  f() { function k() { this.m() } }\n}\n"},
        "a.js::A.f.k",
        ["this.m"],
    ),
    "this in a function without a name": (
        {"a.js": "class A {\n  m() { return 1 }\n  f(x) { x(function () { this.m() }) }\n}\n"},
        "a.js::A.f",
        ["x", "this.m"],
    ),
    "self is another word": (
        {"a.js": "class A {\n  m() { return 1 }\n  f() { self.m() }\n}\n"},
        "a.js::A.f",
        ["self.m"],
    ),
    "this on top": (
        {"A.js": "this.m()\nclass A { m() { return 1 } }\n"},
        "A.js::<module>",
        ["this.m"],
    ),
    "inherited over files": (
        {
            "a.ts": "import { B } from './b'\nclass A extends B<string> { f() { this.m(); super.m(); this.n() } }\n",
            "b.ts": "import * as c from './c'\nexport class B<T> extends c.C {}\n",
            "c.ts": "export class C { m() { return 1 } }\n",
        },
        "a.ts::A.f",
        ["c.ts::C.m", "this.n"],
    ),
    "optional chain": (
        {"a.ts": "class A {\n  m() { return 1 }\n  f() { this?.m(); this.x?.m() }\n}\n"},
        "a.ts::A.f",
        ["a.ts::A.m", "this.x?.m"],
    ),
    "overloads": (
        {
            "a.ts": "export function g(x: number): void\nexport function g(x: string): void\n"
            "export function g(x: any) { return x }\nfunction f() { g(1) }\n"
        },
        "a.ts::f",
        ["a.ts::g#3"],
    ),
    "abstract": (
        {"a.ts": "abstract class A {\n  abstract m(): void\n  f() { this.m() }\n}\n"},
        "a.ts::A.f",
        ["a.ts::A.m"],
    ),
    "a type and a value": (
        {"a.ts": "type X = { a: 1 }\nconst X = () => { return 1 }\nfunction f() { X() }\n"},
        "a.ts::f",
        ["a.ts::X#2"],
    ),
    "a value and a type": (
        {"a.ts": "const X = () => { return 1 }\ntype X = { a: 1 }\nfunction f() { X() }\n"},
        "a.ts::f",
        ["a.ts::X"],
    ),
    "require of what is not said": (
        {
            "a.js": "exports.g = () => { return 1 }\n",
            "b.js": "const a = require(x)\nconst { g = 1, ...h } = require('./a')\n"
            "function f() { a.g(); h.g() }\n",
        },
        "b.js::f",
        ["a.g", "h.g"],
    ),
    "import = require": (
        {"a.ts": FUN, "b.ts": "import a = require('./a')\nfunction f() { a.g(); a.h() }\n"},
        "b.ts::f",
        ["a.ts::g", "a.h"],
    ),
    "an interface and a class": (
        {"a.ts": "interface X { a: 1 }\nclass X { m() { return 1 } }\nfunction f() { new X() }\n"},
        "a.ts::f",
        ["a.ts::X#2"],  # an interface has no value that could be meant
    ),
    "jsx and js": (
        {"a.jsx": FUN, "b.tsx": "import { g } from './a'\nfunction f() { return <p>{g()}</p> }\n"},
        "b.tsx::f",
        ["a.jsx::g"],
    ),
}


@pytest.mark.parametrize("case", SCRIPTS.values(), ids=SCRIPTS)
def test_scripts(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


# -- Go ----------------------------------------------------------------------------------------

MODULE = {"go.mod": "module example.com/mine\n\ngo 1.22\n"}
TEXT = "package text\n\nfunc Trim() {}\nfunc trim() {}\n"

GO: dict[str, Case] = {
    "own package": (
        {"p/a.go": "package p\nfunc F() { g(); h() }\n", "p/b.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["p/b.go::g", "h"],
    ),
    "another folder": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "q/b.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "defined twice": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "p/b.go": "package p\nfunc g() {}\n"}
        | {"p/c.go": "package p\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "tests outside of the package": (
        {"p/a.go": "package p\nfunc F() { g() }\n", "p/a_test.go": "package p_test\nfunc g() {}\n"},
        "p/a.go::F",
        ["g"],
    ),
    "tests of the package": (
        {"p/a.go": "package p\nfunc g() {}\n", "p/a_test.go": "package p\nfunc F() { g() }\n"},
        "p/a_test.go::F",
        ["p/a.go::g"],
    ),
    "import with the module's prefix": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {
            "p/a.go": 'package p\nimport "example.com/mine/util/text"\nfunc F() { text.Trim(); text.No() }\n'
        },
        "p/a.go::F",
        ["util/text/t.go::Trim", "text.No"],
    ),
    "unexported": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "example.com/mine/util/text"\nfunc F() { text.trim() }\n'},
        "p/a.go::F",
        ["text.trim"],
    ),
    "alias": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {
            "p/a.go": 'package p\nimport t "example.com/mine/util/text"\nfunc F() { t.Trim(); text.Trim() }\n'
        },
        "p/a.go::F",
        ["util/text/t.go::Trim", "text.Trim"],
    ),
    "another module": (
        MODULE
        | {"util/text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "github.com/other/util/text"\nfunc F() { text.Trim() }\n'},
        "p/a.go::F",
        ["text.Trim"],
    ),
    "the standard library": (
        MODULE
        | {"text/t.go": TEXT}
        | {"p/a.go": 'package p\nimport "text"\nfunc F() { text.Trim() }\n'},
        "p/a.go::F",
        ["text.Trim"],
    ),
    "a module below": (
        {
            "sub/go.mod": "module example.com/sub\n",
            "sub/text/t.go": TEXT,
            "text/t.go": TEXT,
            "sub/p/a.go": 'package p\nimport "example.com/sub/text"\nfunc F() { text.Trim() }\n',
        },
        "sub/p/a.go::F",
        ["sub/text/t.go::Trim"],
    ),
    "receiver": (
        {
            "p/a.go": "package p\nfunc (t *T) F() { t.g(); t.h(); u.g(); g() }\n",
            "p/b.go": "package p\ntype T struct{}\nfunc (x T) g() {}\n",
        },
        "p/a.go::T.F",
        ["p/b.go::T.g", "t.h", "u.g", "g"],
    ),
    "a type in another file is no scope": (
        {
            "p/a.go": "package p\nfunc (c *C) close() {}\nfunc (c *C) F() { close(c.ch) }\n",
            "p/b.go": "package p\ntype C struct{ ch chan int }\n",
        },
        "p/a.go::C.F",
        ["close"],
    ),
    "a type in the same file is no scope": (
        {
            "p/a.go": "package p\ntype C struct{}\nfunc (c *C) close() {}\nfunc (c *C) F() { close(c.ch) }\n"
        },
        "p/a.go::C.F",
        ["close"],
    ),
    "embedded": (
        MODULE
        | {
            "p/a.go": 'package p\nimport "example.com/mine/q"\ntype T struct{ *q.B }\n'
            "func (t T) F() { t.G(); t.N() }\n",
            "q/b.go": "package q\ntype B struct{ C }\n",
            "q/c.go": "package q\ntype C struct{}\nfunc (c C) G() {}\n",
        },
        "p/a.go::T.F",
        ["q/c.go::C.G", "t.N"],
    ),
    "a field is not embedded": (
        {
            "p/a.go": "package p\ntype B struct{}\nfunc (b B) g() {}\ntype T struct{ b B }\nfunc (t T) F() { t.g() }\n"
        },
        "p/a.go::T.F",
        ["t.g"],
    ),
    "two embedded types": (
        {
            "p/a.go": "package p\ntype C struct{}\nfunc (c C) g() {}\ntype A struct{ C }\n"
            "type B struct{}\nfunc (b B) g() {}\ntype T struct{ A; B }\nfunc (t T) F() { t.g() }\n"
        },
        "p/a.go::T.F",
        ["t.g"],  # two embedded types have it; that B is the shallower one is not looked at
    ),
    "cyclic embedding ends": (
        {
            "p/a.go": "package p\ntype A struct{ *B }\ntype B struct{ *A }\nfunc (a A) F() { a.g() }\n"
        },
        "p/a.go::A.F",
        ["a.g"],
    ),
    "parameters": (
        {"p/a.go": "package p\nfunc g() {}\nfunc F(g, h func()) { g(); h() }\nfunc h() {}\n"},
        "p/a.go::F",
        ["g", "h"],
    ),
    "results": (
        {"p/a.go": "package p\nfunc g() {}\nfunc F() (g func()) { g(); return }\n"},
        "p/a.go::F",
        ["g"],
    ),
    "locals": (
        MODULE
        | {"node/n.go": "package node\nfunc New() int { return 1 }\nfunc Run() {}\n"}
        | {
            "p/a.go": 'package p\nimport "example.com/mine/node"\n'
            "func F() {\n\tnode := node.New()\n\tnode.Run()\n}\n"
        },
        "p/a.go::F",
        ["node.New", "node.Run"],  # which of the two is the package is not known
    ),
    "a closure's parameter": (
        {
            "p/a.go": "package p\nfunc g() {}\nfunc F(x func(func(func()))) { x(func(g func()) { g() }) }\n"
        },
        "p/a.go::F",
        ["x", "g"],
    ),
}


@pytest.mark.parametrize("case", GO.values(), ids=GO)
def test_go(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


# -- Java --------------------------------------------------------------------------------------


def java(**files: str) -> dict[str, str]:
    """Files by their path with underscores for slashes; the package clause is put in front."""
    made = {}
    for name, source in files.items():
        folder, _, file = name.replace("_", "/").rpartition("/")
        made[f"{folder}/{file}.java"] = f"package {folder.replace('/', '.')};\n{source}\n"
    return made


B = "public class B { public static void g() {} public void m() {} }"

JAVA: dict[str, Case] = {
    "own class": (
        java(x_p_A="class A { void f() { g(); this.g(); h(); } void g() {} }"),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.g", "h"],
    ),
    "overloaded": (
        java(x_p_A="class A { void f() { g(1); } void g() { x = 1; } void g(int y) {} }"),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "overloaded without bodies": (
        java(
            x_p_A="abstract class A { abstract void g(); abstract void g(int y); void f() { g(1); } }"
        ),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "overloaded, one without a body": (
        java(
            x_p_A="abstract class A { abstract void g(); void g(int y) { x = y; } void f() { g(); } }"
        ),
        "x/p/A.java::A.f",
        ["g"],
    ),
    "own package": (
        java(x_p_A="class A { void f() { B.g(); new B(); B.h(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.g", "x/p/B.java::B", "B.h"],
    ),
    "another package": (
        java(x_p_A="class A { void f() { B.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "import": (
        java(x_p_A="import x.q.B; class A { void f() { B.g(); B.h(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "B.h"],
    ),
    "import before the own package": (
        java(x_p_A="import x.q.B; class A { void f() { B.g(); } }", x_q_B=B, x_p_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g"],
    ),
    "import of another's class": (
        java(x_p_A="import q.B; class A { void f() { B.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "source folders": (
        {f"src/main/java/{path}": text for path, text in java(x_q_B=B, x_p_A="class A {}").items()}
        | {
            f"src/test/java/{path}": text
            for path, text in java(x_q_T="import x.q.B; class T { void f() { B.g(); } }").items()
        },
        "src/test/java/x/q/T.java::T.f",
        ["src/main/java/x/q/B.java::B.g"],
    ),
    "star": (
        java(x_p_A="import x.q.*; class A { void f() { B.g(); C.g(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "C.g"],
    ),
    "the own package before a star": (
        java(x_p_A="import x.q.*; class A { void f() { B.g(); } }", x_q_B=B, x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.g"],
    ),
    "two stars": (
        java(x_p_A="import x.q.*; import x.r.*; class A { void f() { B.g(); } }", x_q_B=B, x_r_B=B),
        "x/p/A.java::A.f",
        ["B.g"],
    ),
    "packages of one word": (
        java(p_A="import q.*; class A { void f() { B.g(); } }", q_B=B),
        "p/A.java::A.f",
        ["q/B.java::B.g"],
    ),
    "static import": (
        java(x_p_A="import static x.q.B.g; class A { void f() { g(); m(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "m"],
    ),
    "static star": (
        java(x_p_A="import static x.q.B.*; class A { void f() { g(); h(); } }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.g", "h"],
    ),
    "own method before a static import": (
        java(x_p_A="import static x.q.B.g; class A { void f() { g(); } void g() {} }", x_q_B=B),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.g"],
    ),
    "inner class": (
        java(
            x_p_A="class A { void f() { I.h(); new I(); J.h(); } static class I { static void h() {} } }"
        ),
        "x/p/A.java::A.f",
        ["x/p/A.java::A.I.h", "x/p/A.java::A.I", "J.h"],
    ),
    "inner class of another": (
        java(
            x_p_A="import x.q.B.I; import x.q.B; class A { void f() { I.h(); B.I.h(); I.k(); } }",
            x_q_B="public class B { public static class I { public static void h() {} } }",
        ),
        "x/p/A.java::A.f",
        ["x/q/B.java::B.I.h", "I.k"],
    ),
    "from an inner class out": (
        java(x_p_A="class A { void g() {} class I { void f() { g(); } } }"),
        "x/p/A.java::A.I.f",
        ["x/p/A.java::A.g"],
    ),
    "from an inner class that inherits": (
        java(x_p_A="class A { void g() {} class I extends Unknown { void f() { g(); } } }"),
        "x/p/A.java::A.I.f",
        ["g"],
    ),
    "inherited": (
        java(
            x_p_A="import x.q.B; class A extends B { void f() { this.m(); super.m(); m(); this.n(); } }",
            x_q_B="public class B extends C<String> {}",
            x_q_C="class C<T> { void m() {} }",
        ),
        "x/p/A.java::A.f",
        ["x/q/C.java::C.m", "this.n"],
    ),
    "inherited before an interface that is not known": (
        java(x_p_A="class A extends B implements U { void f() { this.m(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["x/p/B.java::B.m"],
    ),
    "inherited from what is not known": (
        java(x_p_A="class A extends U implements B { void f() { this.m(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["this.m"],
    ),
    "cyclic bases end": (
        java(
            x_p_A="class A extends B { void f() { this.z(); super.z(); } }",
            x_p_B="class B extends A {}",
        ),
        "x/p/A.java::A.f",
        ["this.z", "super.z"],
    ),
    "a variable's method": (
        java(x_p_A="class A { void g() {} void f(B b) { b.m(); b.g(); } }", x_p_B=B),
        "x/p/A.java::A.f",
        ["b.m", "b.g"],
    ),
}


@pytest.mark.parametrize("case", JAVA.values(), ids=JAVA)
def test_java(tmp_path: Path, case: Case) -> None:
    check(tmp_path, case)


# -- all ---------------------------------------------------------------------------------------


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
