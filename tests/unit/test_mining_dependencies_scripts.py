"""JavaScript and TypeScript: an id where the language says so, else the plain name.

Every rule stands with a case in which it must not apply: a wrong edge becomes a wrong fact.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from dependency_cases import Case, check

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
