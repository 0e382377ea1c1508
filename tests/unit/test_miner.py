"""The miner against Python's own parser, exact fixtures in other languages, and odd files."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sysconfig
import textwrap
import threading
from pathlib import Path

import git
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_mcp.errors import BadInput, Cancelled, NotFound, Unavailable
from forge_mcp.mining import miner
from forge_mcp.mining.definitions import Definition, count_leaves, find_definitions
from forge_mcp.mining.files import decode, list_files, matches, repository_state
from forge_mcp.mining.languages import LANGUAGES, Language, language
from forge_mcp.mining.languages.base import DOTTED
from forge_mcp.mining.licenses import license_of_repository, license_of_text
from forge_mcp.mining.miner import (
    MinedRepository,
    extract_classes,
    extract_functions,
    extract_module_info,
    parse_repository,
)
from forge_mcp.mining.secrets import find_secrets, redact
from forge_mcp.pipeline.extract import ExtractRequest, ExtractResult, extract
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.events import Event
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace

FIXTURES = Path(__file__).parent.parent / "fixtures"
SAMPLE = FIXTURES / "sample_python_repo"
LANGUAGE_FILES = FIXTURES / "languages"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
# Large and small, old and new: what people write in Python.
STDLIB_FILES = sorted(
    path
    for pattern in (
        "a*.py",
        "d*.py",
        "t*.py",
        "json/*.py",
        "asyncio/*.py",
        "email/*.py",
        "[c-h]*.py",
        "xml/**/*.py",
    )
    for path in STDLIB.glob(pattern)
    if path.stat().st_size < 50_000
)[::2]


def definitions(source: str | bytes, name: str = "python") -> dict[str, Definition]:
    data = source.encode() if isinstance(source, str) else source
    spoken = language(name)
    found = find_definitions(spoken.parse(data), data, spoken).definitions
    return {definition.qualified_name: definition for definition in found}


def mine(root: Path, **mining: object) -> MinedRepository:
    loose = {"min_tokens": 0, "workers": 1} | mining
    return parse_repository(root, load_settings(None, {"mining": loose}))


def every(mined: MinedRepository) -> dict[str, CodeBlock]:
    return {block.id: block for block in [*mined.blocks, *mined.rejected]}


def reasons(mined: MinedRepository) -> dict[str, list[str]]:
    return {block.id: block.reasons for block in mined.rejected}


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


# -- Python's own parser as the oracle ---------------------------------------------------------


def expected_by_ast(source: bytes) -> list[tuple[int, int, str, str]]:
    """(first line with decorators, last line, name, docstring) of every definition."""
    nodes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return sorted(
        (
            min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]),
            node.end_lineno or 0,
            node.name,
            (ast.get_docstring(node) or "").encode("utf-8", "backslashreplace").decode(),
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, nodes)
    )


def found_by_miner(source: bytes) -> list[tuple[int, int, str, str]]:
    decoded = decode(source, "python")
    assert decoded is not None
    spoken = language("python")
    found = find_definitions(spoken.parse(decoded.utf8), decoded.utf8, spoken)
    return sorted(
        (d.start_row + 1, d.end_row + 1, d.name, d.described.docstring) for d in found.definitions
    )


def test_there_is_enough_of_the_standard_library() -> None:
    assert len(STDLIB_FILES) >= 50


@pytest.mark.parametrize("path", STDLIB_FILES, ids=lambda path: path.name)
def test_standard_library_agrees_with_ast(path: Path) -> None:
    source = path.read_bytes()
    assert found_by_miner(source) == expected_by_ast(source)
    info = extract_module_info(source)
    assert info["docstring"] == (ast.get_docstring(ast.parse(source)) or "")


NAMES = st.sampled_from(["alpha", "_beta", "Gamma", "delta2", "__init__", "été"])
BODIES = st.sampled_from(
    [
        "pass",
        '"""Doc."""',
        "r'raw \\d doc'\nreturn 1",
        "'a' 'b'",
        "('in', 'tuple')",
        "f'no doc'",
        "b'no doc'",
        "x = 1;",
        "x = '''\ndef not_a_function():\n    pass\n'''",
        "try:\n    raise E\nexcept* E:\n    pass",
        "# comment first\n'doc after comment'",
        "return 1\n    # comment behind",
    ]
)


@st.composite
def python_sources(draw: st.DrawFn, depth: int = 0) -> str:
    """Nested functions, classes and statements, with decorators and odd layout."""
    parts = []
    for _ in range(draw(st.integers(1, 3 if depth == 0 else 2))):
        body = draw(BODIES)
        if depth < 3 and draw(st.booleans()):
            body += "\n" + draw(python_sources(depth=depth + 1))
        indented = textwrap.indent(body, draw(st.sampled_from(["    ", "\t", " "])))
        name = draw(NAMES)
        head = draw(
            st.sampled_from(
                [
                    f"def {name}(a, *, b=(1, 2)):",
                    f"async def {name}(\n  a,  # one\n  /, b: int = 2,\n) -> None:",
                    f"class {name}:",
                    f"class {name}(Base, metaclass=Meta):  # comment",
                    f"@one\n@two(lambda x: x)\ndef {name}(*args, **kwargs):",
                    "if condition:",
                    "with a as b, c:",
                    "for x in y:",
                    "match value:\n  case 1:\n   pass\nwhile True:",
                ]
            )
        )
        parts.append(f"{head}\n{indented}")
    return draw(st.sampled_from(["\n", "\n\n", "\n# between\n"])).join(parts) + "\n"


@settings(max_examples=120, deadline=None)
@given(python_sources())
def test_generated_sources_agree_with_ast(source: str) -> None:
    try:
        expected = expected_by_ast(source.encode())
    except SyntaxError:  # mixed tabs and spaces, 'return' in a class, …
        return
    assert found_by_miner(source.encode()) == expected


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(LANGUAGES)))
def test_no_bytes_break_the_public_functions(data: bytes, name: str) -> None:
    for _, _, source in extract_functions(data, name, include_private=True):
        assert source
    extract_classes(data, name)
    extract_module_info(data, name)


# -- what a definition says --------------------------------------------------------------------


def test_python_metadata_is_verbatim() -> None:
    found = definitions(
        '''
class Store(Base[int], metaclass=Meta):
    @app.route("/x", methods=["GET"])
    async def get(self, a: int, /, b="x,y", *rest: str, c, d: dict = {}, **more) -> list[int]:
        """Get it.

            Indented.
        """
        def inner():
            raise InnerError
            return "inner"
        if a and b or c:
            raise KeyError(a) from None
        for x in [y for y in rest if y]:
            self.close(json.dumps(x), lambda: helper())
        raise errors.Gone
        raise exception
        return a, b

    @staticmethod
    def make(self): ...
'''
    )
    get = found["Store.get"]
    assert get.kind == "method"
    assert get.described.docstring == "Get it.\n\nIndented."
    assert get.described.decorators == ['app.route("/x", methods=["GET"])']
    assert get.described.signature == (
        'async def get(self, a: int, /, b="x,y", *rest: str, c, d: dict = {}, **more) -> list[int]'
    )
    assert [tuple(p) for p in get.described.parameters or []] == [
        ("a", "int", "", "positional_only"),
        ("b", "", '"x,y"', "positional_or_keyword"),
        ("rest", "str", "", "var_positional"),
        ("c", "", "", "keyword_only"),
        ("d", "dict", "{}", "keyword_only"),
        ("more", "", "", "var_keyword"),
    ]
    assert get.described.returns == "list[int]"
    assert list(get.raises) == ["KeyError", "errors.Gone"]
    assert list(get.returns) == ["a, b"]
    assert list(get.calls) == ["KeyError", "self.close", "json.dumps", "helper"]
    assert get.branches == 6  # if, and, or, for, comprehension, its if
    assert get.described.extra["is_async"]
    inner = found["Store.get.inner"]
    assert (inner.kind, inner.parent_name) == ("function", "Store.get")
    assert list(inner.returns) == ['"inner"']
    store = found["Store"]
    assert (store.described.bases, list(store.methods)) == (["Base[int]"], ["get", "make"])
    assert store.branches == 6
    assert [p.name for p in found["Store.make"].described.parameters or []] == ["self"]


def test_a_definition_is_found_in_every_statement() -> None:
    source = "if a:\n    def f1(): pass\nelse:\n    def f2(): pass\n"
    source += (
        "try:\n    def f3(): pass\nexcept* E:\n    def f4(): pass\nfinally:\n    def f5(): pass\n"
    )
    source += "match x:\n    case 1:\n        def f6(): pass\n"
    source += "while 1:\n    with a:\n        for b in c:\n            def f7(): pass\n"
    assert sorted(definitions(source)) == [f"f{n}" for n in range(1, 8)]


def test_tokens_are_the_leaves_of_the_block() -> None:
    source = b"@deco\ndef f(a):\n    return a + 1\n\nx = 1\n"
    spoken = language("python")
    tree = spoken.parse(source)
    found = find_definitions(tree, source, spoken)
    decorated = tree.root_node.children[0]
    assert found.definitions[0].tokens == count_leaves(decorated) == 12


@pytest.mark.parametrize("name", sorted(LANGUAGES))
def test_block_tokens_agree_with_a_recount(name: str) -> None:
    """A block alone, parsed again, has as many leaves (a method needs its class to parse)."""
    spoken = language(name)
    for path in sorted(LANGUAGE_FILES.iterdir()):
        if path.suffix not in spoken.extensions:
            continue
        source = path.read_bytes()
        for d in find_definitions(spoken.parse(source), source, spoken).definitions:
            alone = spoken.parse(source[d.start_byte : d.end_byte]).root_node
            if not alone.has_error:
                assert abs(count_leaves(alone) - d.tokens) <= 1, d.qualified_name


def test_javascript() -> None:
    source = (LANGUAGE_FILES / "queue.js").read_bytes()
    found = definitions(source, "javascript")
    assert {name: d.kind for name, d in found.items()} == {
        "Queue": "class",
        "Queue.empty": "method",
        "Queue.push": "method",
        "Queue.load": "method",
        "Queue.drain": "method",
        "parse": "function",
        "double": "function",
        "half": "function",
        "Queue.peek": "method",
        "helpers.later": "method",
        "helpers.nested.twice": "function",
        "View": "function",
        "jobs": "function",
    }
    push = found["Queue.push"]
    assert (push.start_row + 1, push.end_row + 1) == (21, 35)
    assert push.described.docstring == "Add a job.\n@param {object} job what to do"
    assert [tuple(p)[:3] for p in push.described.parameters or []] == [
        ("job", "", ""),
        ("{ first = false }", "", "{}"),
        ("rest", "", ""),
    ]
    assert list(push.raises) == ["RangeError"]
    assert list(push.returns) == ["this"]  # not those of the arrow function inside
    assert "this.emit" in push.calls
    assert found["Queue"].described.docstring == "Jobs wait here until somebody takes them."
    assert found["Queue"].described.bases == ["EventEmitter"]
    assert found["Queue.load"].described.extra["is_async"]
    assert found["parse"].described.docstring == ""  # a plain comment documents nothing
    assert list(found["double"].returns) == ["x * 2"]
    half = found["half"]
    assert source[half.start_byte : half.end_byte] == b"half = function (x) { return x / 2; }"
    jobs = found["jobs"]
    assert source[jobs.start_byte :].startswith(b"export default function* jobs(queue) {")
    info = extract_module_info(source, "javascript")
    assert info["docstring"] == "A queue with a limit.\n@module queue"
    assert info["dependencies"] == ["node:events", "fs"]
    assert info["constants"][0] == {"name": "LIMIT", "value": "16"}


def test_typescript() -> None:
    found = definitions((LANGUAGE_FILES / "shapes.ts").read_bytes(), "typescript")
    assert {name: (d.kind, d.label) for name, d in found.items()} == {
        "Shape": ("class", "interface"),
        "Pair": ("class", "type"),
        "Kind": ("class", "enum"),
        "Circle": ("class", ""),
        "Circle.constructor": ("method", ""),
        "Circle.area": ("method", ""),
        "Circle.scale": ("method", ""),
        "distance": ("function", ""),
        "midpoint": ("function", ""),
        "Units.toMetres": ("function", ""),
    }
    assert found["Shape"].described.bases == ["Named"]
    assert list(found["Shape"].methods) == ["area"]
    circle = found["Circle"]
    assert (circle.start_row + 1, circle.end_row + 1) == (19, 38)
    assert circle.described.bases == ["Base", "Shape", "Named"]
    assert circle.described.decorators == ['registered("circle")']
    assert circle.described.signature == (
        "export abstract class Circle<T> extends Base<T> implements Shape, Named"
    )
    assert set(circle.methods) == {"constructor", "area", "scale", "build"}
    scale = found["Circle.scale"]
    assert (scale.start_row + 1, scale.end_row + 1) == (31, 35)
    assert scale.described.docstring == "Scale by a factor."
    assert scale.described.decorators == ["logged()"]
    assert [tuple(p)[:2] for p in scale.described.parameters or []] == [
        ("factor", "number"),
        ("unit", "string"),
    ]
    assert (scale.described.returns, scale.is_private) == ("Circle<T>", True)
    assert found["Circle.constructor"].described.parameters == [
        ("radius", "number", "", "positional_only"),
        ("centre", "Point", "ORIGIN", "positional_only"),
    ]
    assert found["midpoint"].described.returns == "Promise<T>"
    assert found["Pair"].described.signature == "export type Pair = [Point, Point];"


def test_tsx() -> None:
    found = definitions((LANGUAGE_FILES / "Badge.tsx").read_bytes(), "tsx")
    assert list(found) == ["Props", "Badge", "Badge.toggle"]
    assert found["Badge"].described.docstring == "A number in a circle."
    assert list(found["Badge"].calls) == ["useState"]


def test_go() -> None:
    source = (LANGUAGE_FILES / "cache.go").read_bytes()
    found = definitions(source, "go")
    assert {name: (d.kind, d.parent_name, d.label) for name, d in found.items()} == {
        "Cache": ("class", None, "struct"),
        "Locker": ("class", None, "interface"),
        "Stats": ("class", None, "struct"),
        "Cache.Get": ("method", "Cache", ""),
        "Cache.expired": ("method", "Cache", ""),
        "Cache.miss": ("method", "Cache", ""),
        "New": ("function", None, ""),
        "Hash": ("function", None, ""),
    }
    cache = found["Cache"]
    assert cache.described.docstring == (
        "Cache maps keys to values.\n\nThe zero value is ready for use."
    )
    assert cache.described.bases == ["Locker", "Stats"]
    assert cache.described.signature == "type Cache[V any] struct"
    get = found["Cache.Get"]
    assert (get.start_row + 1, get.end_row + 1, get.branches) == (40, 51, 2)
    assert [tuple(p)[:2] for p in get.described.parameters or []] == [
        ("key", "string"),
        ("now", "clock.Time"),
    ]
    assert get.described.returns == "(value V, err error)"
    assert list(get.returns) == ["value, ErrGone", "value, nil"]
    assert found["Cache.expired"].is_private and not get.is_private
    assert list(found["Cache.miss"].returns) == []  # that of the closure is not its own
    assert extract_classes(source, "go")[0][2] == ["Get", "expired", "miss"]
    info = extract_module_info(source, "go")
    assert info["docstring"] == "Package cache keeps values for a while."
    assert info["dependencies"] == ["errors", "time"]
    assert {"name": "maxKeys", "value": "1 << 10"} in info["constants"]


def test_java() -> None:
    found = definitions((LANGUAGE_FILES / "Account.java").read_bytes(), "java")
    assert {name: d.kind for name, d in found.items()} == {
        "Account": "class",
        "Account.Account": "method",
        "Account.withdraw": "method",
        "Account.withdraw.compare": "method",
        "Account.note": "method",
        "Account.State": "class",
        "Account.State.OPEN.usable": "method",
        "Account.State.usable": "method",
        "Account.Entry": "class",
        "Account.Entry.Entry": "method",
        "Audited": "class",
        "Audited.entries": "method",
        "Audited.clean": "method",
    }
    account = found["Account"]
    assert (account.start_row + 1, account.end_row + 1) == (7, 58)
    assert account.described.docstring == "Money of one customer."
    assert account.described.decorators == ["Entity", 'Table(name = "accounts")']
    assert account.described.bases == ["Base", "Comparable<T>", "Audited"]
    assert list(account.methods) == ["Account", "withdraw", "note"]
    withdraw = found["Account.withdraw"]
    assert withdraw.described.signature == (
        "public List<String> withdraw(final long amount, String... notes) throws LimitException"
    )
    assert withdraw.described.extra["throws"] == ["LimitException"]
    assert list(withdraw.raises) == ["LimitException"]
    assert list(withdraw.returns) == ["amount == 0 ? List.of() : this.note(amount)"]
    assert "this.note" in withdraw.calls
    assert found["Account.note"].is_private
    assert found["Audited"].label == "interface"


def test_a_default_switch_branch_is_no_decision() -> None:
    source = "class A { int f(int x) { switch (x) { case 1: return 1; default: return 2; } } }"
    assert definitions(source, "java")["A.f"].branches == 1


def test_javascript_functions_are_found_wherever_they_get_a_name() -> None:
    source = """
import main, { one as uno, two } from "./lib.js";
import * as all from "pkg";
const { three, four: vier } = require("./more");
module.exports = function () { return 1 };
exports.helper = async () => { throw TypeError("x"); };
this.on = function on() { throw err; };
run(function named() { return 2 }, function () { return 3 });
const Kind = class Inner extends mixin(Base) { static #count() {} };
class Deco { @log() m() { switch (a) { case 1: return a ? 1 : 2; default: return; } } }
obj[key] = function () {};
export default class {}
"""
    found = definitions(source, "javascript")
    assert {name: d.kind for name, d in found.items()} == {
        "exports": "function",
        "helper": "function",
        "on": "function",
        "named": "function",
        "Kind": "class",
        "Kind.#count": "method",
        "Deco": "class",
        "Deco.m": "method",
        "default": "class",
    }
    assert list(found["helper"].raises) == ["TypeError"]
    assert list(found["on"].raises) == []  # a variable is no type
    assert found["Kind"].described.bases == ["mixin(Base)"]
    assert found["Kind.#count"].is_private
    assert found["Deco.m"].described.decorators == ["log()"]
    assert found["Deco.m"].described.signature == "m()"
    assert found["Deco.m"].branches == 2
    spoken = language("javascript")
    imported = find_definitions(spoken.parse(source.encode()), source.encode(), spoken).imported
    assert [tuple(name) for name in imported] == [
        ("main", "./lib.js", "default"),
        ("uno", "./lib.js", "one"),
        ("two", "./lib.js", "two"),
        ("all", "pkg", None),
        ("three", "./more", "three"),
        ("vier", "./more", "four"),
    ]


def test_imports_resolve_across_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "src/app/__init__.py": "",
            "src/app/core.py": "class Base:\n    def run(self): pass\ndef go(): pass\n",
            "src/app/sub/__init__.py": "from ..core import go\n",
            "src/app/sub/x.py": "import app.core\nimport app.core as c\nfrom app import core, sub\n"
            "from .. import core as up\n"
            "def a():\n    app.core.go(); c.go(); core.Base.run(); sub.go(); up.nothing()\n"
            "class D(core.Base):\n    def m(self): self.run(); super().run()\n"
            "    def run(self): super().run(); super().none()\n",
            "cmd/main.go": 'package main\nimport "example.com/x/util/text"\n'
            "func main() { text.Trim(); text.none() }\n",
            "util/text/t.go": "package text\n\n// Trim it.\nfunc Trim() {}\n",
            "j/a/A.java": "package j.a; import j.b.B; class A { void f() { B.g(); new B(); } }",
            "j/b/B.java": "package j.b; public class B { static void g() {} }",
            "web/index.js": "export function start() {}\n",
            "web/app/main.js": "import { start } from '..'; import d from 'react';\n"
            "function boot() { start(); d(); }\n",
        },
    )
    blocks = every(mine(tmp_path))
    core = "src/app/core.py::"
    assert blocks["src/app/sub/x.py::a"].dependencies == [
        f"{core}go",
        f"{core}Base.run",
        "up.nothing",
    ]
    assert blocks["src/app/sub/x.py::D.run"].dependencies == [
        f"{core}Base.run",
        "super().none",
    ]
    assert blocks["src/app/sub/x.py::D.m"].dependencies == [
        "src/app/sub/x.py::D.run",
        f"{core}Base.run",
    ]
    assert blocks["src/app/sub/x.py::D"].dependencies[0] == f"{core}Base"
    assert blocks["cmd/main.go::main"].dependencies == ["util/text/t.go::Trim", "text.none"]
    assert blocks["j/a/A.java::A.f"].dependencies == ["j/b/B.java::B.g", "j/b/B.java::B"]
    assert blocks["web/app/main.js::boot"].dependencies == ["web/index.js::start", "d"]


# -- the specification's functions -------------------------------------------------------------


def test_extract_functions_filters_private_and_test_functions() -> None:
    source = b"""
def shown(): "doc"
def _hidden(): return lambda: 1
class TestThing:
    def test_it(self): pass
    def helper(self): pass
def test_alone(): pass
async def later(): await x
"""
    assert [name for name, _, _ in extract_functions(source, "python")] == ["shown", "later"]
    assert extract_functions(source, "python")[0] == ("shown", "doc", 'def shown(): "doc"')
    names = [n for n, _, _ in extract_functions(source, "python", include_private=True)]
    assert names == ["shown", "_hidden", "later"]
    names = [n for n, _, _ in extract_functions(source, "python", include_tests=True)]
    assert names == ["shown", "test_it", "helper", "test_alone", "later"]


def test_extract_functions_never_returns_half_of_one() -> None:
    source = b"def whole(a):\n    return a\n\ndef broken(a:\n    return\n\n"
    source += b"class A:\n    def m(self): x\n"
    for name, _, text in extract_functions(source, "python"):
        assert name in ("whole", "m")
        ast.parse(text)


def test_unknown_language_is_named() -> None:
    with pytest.raises(BadInput, match="cobol"):
        extract_functions(b"", "cobol")


def test_a_missing_grammar_is_named_and_nothing_is_mined(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go = language("go")
    monkeypatch.setattr(type(go), "package", "tree-sitter-nowhere")
    go.__dict__.pop("grammar", None)
    write(tmp_path, {"a.py": "def f(): return g(1)\n", "b.go": "package b\n"})
    with pytest.raises(Unavailable, match="grammar for go") as caught:
        mine(tmp_path)
    assert "pip install" in caught.value.next_step
    go.__dict__.pop("grammar", None)


# -- a repository ------------------------------------------------------------------------------


def test_sample_repository() -> None:
    mined = mine(SAMPLE)
    assert mined.files == 7
    assert mined.skipped_files == {"other_language": 2, "syntax_error": 1}
    blocks = every(mined)
    total = blocks["stockroom/pricing.py::total"]
    assert total.license == "MIT"
    assert [p["kind"] for p in total.metadata["parameters"]] == [
        "positional_only",
        "positional_only",
        "var_positional",
        "keyword_only",
        "var_keyword",
    ]
    assert blocks["stockroom/models.py::Part.label"].model_dump()["reasons"] == ["trivial"]
    assert blocks["stockroom/legacy.py::old_number"].metadata["parameters"][1]["default"] == '"ZÜ"'
    assert "test" in reasons(mined)["tests/test_store.py::bolt"]
    module = blocks["stockroom/models.py::<module>"]
    assert (module.name, module.qualified_name) == ("models", "stockroom.models")
    assert module.docstring == "Parts and the shelves that they lie on."
    assert module.metadata["constants"][0] == {"name": "DEFAULT_SHELF_CAPACITY", "value": "120"}
    assert module.metadata["imports"][0] == "from __future__ import annotations"
    assert blocks["stockroom/__init__.py::<module>"].name == "stockroom"


def test_dependencies_of_the_sample_repository() -> None:
    blocks = every(mine(SAMPLE))
    put = blocks["stockroom/store.py::Store.put"].dependencies
    assert put[:2] == ["stockroom/store.py::audited", "shelf.fits"]
    assert "stockroom/errors.py::OutOfStock" in put
    take = blocks["stockroom/store.py::Store.take"].dependencies
    assert "stockroom/store.py::Store.count" in take
    value = blocks["stockroom/store.py::Store.value"].dependencies
    assert "stockroom/pricing.py::total" in value
    total = blocks["stockroom/pricing.py::total"].dependencies
    assert "stockroom/pricing.py::discount" in total
    test = blocks["tests/test_store.py::test_too_few_parts_are_an_error"].dependencies
    assert "stockroom/store.py::Store" in test  # through the package's re-export
    gone = blocks["stockroom/errors.py::OutOfStock"].dependencies
    assert gone[0] == "stockroom/errors.py::StockError"


def test_dependencies_stay_names_where_they_are_not_certain(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": "def twice(): pass\ndef twice(): pass\n"
            "def f(g):\n    twice(); g(); len(g); f(g)\n"
            "def g(): pass\n"
            "class A(B):\n    def m(self): self.n(); n()\n    def n(self): pass\n"
            "class C(A):\n    def k(self): self.n(); self.unknown(); other.n()\n",
            "go/x.go": "package x\nfunc A() { b(); c.D() }\nfunc (t *T) M() { t.n(); T{} }\n",
            "go/y.go": "package x\nfunc b() {}\ntype T struct{}\nfunc (t T) n() {}\n",
            "p/One.java": "package p; class One "
            "{ void f() { g(); new Two(); Two.h(); } void g(){} }",
            "p/Two.java": "package p; class Two { static void h(){} }",
        },
    )
    blocks = every(mine(tmp_path))
    assert blocks["a.py::twice#2"].name == "twice"
    assert blocks["a.py::f"].dependencies == ["twice", "g", "len"]
    assert blocks["a.py::A.m"].dependencies == ["a.py::A.n", "n"]
    assert blocks["a.py::C.k"].dependencies == ["a.py::A.n", "self.unknown", "other.n"]
    assert blocks["go/x.go::A"].dependencies == ["go/y.go::b", "c.D"]
    assert blocks["go/x.go::T.M"].dependencies == ["go/y.go::T.n"]
    assert blocks["p/One.java::One.f"].dependencies == [
        "p/One.java::One.g",
        "p/Two.java::Two",
        "p/Two.java::Two.h",
    ]


def test_typescript_imports_resolve() -> None:
    blocks = every(mine(LANGUAGE_FILES))
    assert blocks["shapes.ts::distance"].dependencies == ["geometry.ts::length"]
    assert blocks["queue.js::Queue.load"].dependencies[1:] == ["queue.js::parse", "queue.js::Queue"]


@pytest.mark.parametrize("root", [SAMPLE, LANGUAGE_FILES], ids=lambda path: path.name)
def test_spans_slice_the_file(root: Path) -> None:
    blocks = every(mine(root))
    assert len(blocks) > 30
    for block in blocks.values():
        data = (root / block.path).read_bytes()
        if block.path.endswith("legacy.py"):
            data = data.decode("latin-1").encode()
        assert data[block.start_byte : block.end_byte].decode() == block.source_code, block.id
        assert data[: block.start_byte].count(b"\n") + 1 == block.start_line
        assert data[: block.end_byte].count(b"\n") + 1 == block.end_line
        assert block.content_hash == hashlib.sha256(block.source_code.encode()).hexdigest()
        for text in quotable(block):
            assert text in block.source_code, (block.id, text)


def quotable(block: CodeBlock) -> list[str]:
    """Every text of a block's metadata that other rooms may quote."""
    metadata = block.metadata
    texts = [block.signature, metadata.get("returns", "")]
    for key in ("decorators", "raises", "return_expressions", "calls", "bases", "methods"):
        texts += metadata.get(key, [])
    texts += metadata.get("imports", [])
    for row in [*metadata.get("parameters", []), *metadata.get("constants", [])]:
        texts += [value for key, value in row.items() if key != "kind"]
    return texts


@pytest.mark.parametrize(
    ("data", "language_name", "lines"),
    [
        (b"def f(a):\r\n    '''Doc\r\n    more'''\r\n    return a\r\n", "python", (1, 4)),
        (b"\xef\xbb\xbf# c\ndef f(a):\n\treturn a\n", "python", (2, 3)),
        (b"\n\n\tfunction f(a) {\r\n\t\treturn a\r\n\t}\r\n", "javascript", (3, 5)),
        ("# -*- coding: cp1252 -*-\ndef f(a): return '€'\n".encode("cp1252"), "python", (2, 2)),
    ],
    ids=["crlf", "bom", "tabs", "cookie"],
)
def test_odd_bytes_keep_exact_spans(
    tmp_path: Path, data: bytes, language_name: str, lines: tuple[int, int]
) -> None:
    name = {"python": "f.py", "javascript": "f.js"}[language_name]
    write(tmp_path, {name: data})
    block = every(mine(tmp_path))[f"{name}::f"]
    assert (block.start_line, block.end_line) == lines
    if b"cp1252" not in data:
        assert data[block.start_byte : block.end_byte].decode() == block.source_code
    assert "\r" not in block.docstring
    assert block.source_code.endswith(("a", "}", "'€'"))


def test_files_that_are_not_mined_are_counted(tmp_path: Path) -> None:
    code = "def f(a):\n    return [a, a, a]\n"
    write(
        tmp_path / "repo",
        {
            "good.py": code,
            "empty.py": "",
            "broken.py": "def f(:\n",
            "binary.py": b"x = '\0'\n",
            "strange.py": b"x = '\x81\x9d\xff'\n",
            "big.py": "x = 1\n" * 200_000,
            "api_pb2.py": "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n" + code,
            "gen.go": "// Code generated by stringer; DO NOT EDIT.\npackage x\n",
            "lib.min.js": "var a=1",
            "wide.js": "var a=[" + "1," * 5000 + "1]",
            "node_modules/x/index.js": "var a = 1",
            "docs/conf.py": code,
            "README.md": "hello",
        },
    )
    outside = write(tmp_path, {"outside.py": code}) / "outside.py"
    (tmp_path / "repo/link.py").symlink_to(outside)
    (tmp_path / "repo/loop").symlink_to(tmp_path / "repo")
    (tmp_path / "repo/inside.py").symlink_to(tmp_path / "repo/good.py")
    chosen = load_settings(None, {"project": {"exclude": ["docs"]}, "mining": {"min_tokens": 0}})
    mined = parse_repository(tmp_path / "repo", chosen)
    assert mined.skipped_files == {
        "binary": 1,
        "excluded": 1,
        "generated": 2,
        "minified": 2,
        "other_language": 1,
        "outside": 1,
        "syntax_error": 1,
        "too_large": 1,
        "undecodable": 1,
    }
    assert {block.path for block in mined.blocks} == {"good.py", "inside.py"}
    assert mined.files == 3  # the empty one too


def test_an_unreadable_file_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.py": "def f(): return 1\n", "b.py": "x = 1\n"})
    real = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self.name == "b.py":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert mine(tmp_path).skipped_files == {"unreadable": 1}


def test_git_decides_what_is_listed(tmp_path: Path) -> None:
    repo = git.Repo.init(tmp_path)
    write(
        tmp_path,
        {
            ".gitignore": "ignored/\n",
            "tracked é.py": "x = 1\n",
            "untracked.py": "x = 1\n",
            "ignored/secret.py": "x = 1\n",
            "deleted.py": "x = 1\n",
        },
    )
    repo.index.add(["tracked é.py", ".gitignore", "deleted.py"])
    (tmp_path / "deleted.py").unlink()
    listing = list_files(tmp_path, [], [], 1000)
    assert [file.path for file in listing.files] == ["tracked é.py", "untracked.py"]
    # A folder that the repository ignores, asked for by name, is walked.
    assert [f.path for f in list_files(tmp_path / "ignored", [], [], 1000).files] == ["secret.py"]


def test_the_state_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "plain", {"a.py": "x = 1\n", ".git": "no repository"})
    assert repository_state(folder).revision is None
    assert [file.path for file in list_files(folder, [], [], 100).files] == ["a.py"]
    repo = git.Repo.init(tmp_path / "repo")
    write(tmp_path / "repo", {"a.py": "x = 1\n"})
    repo.index.add(["a.py"])
    author = git.Actor("A", "a@example.org")
    commit = repo.index.commit("first", author=author, committer=author)
    state = repository_state(tmp_path / "repo")
    assert (state.revision, state.dirty) == (commit.hexsha, False)
    write(tmp_path / "repo", {"b.py": "x = 1\n"})
    assert repository_state(tmp_path / "repo").dirty

    def refuse(root: Path, *arguments: str) -> str:
        raise git.GitCommandError("git", 128, "fatal: detected dubious ownership in repository")

    monkeypatch.setattr("forge_mcp.mining.files._git", refuse)
    with pytest.raises(BadInput, match="another user") as caught:
        list_files(tmp_path / "repo", [], [], 100)
    assert "safe.directory" in caught.value.next_step

    def missing(root: Path, *arguments: str) -> str:
        raise git.GitCommandNotFound("git", "not found")

    monkeypatch.setattr("forge_mcp.mining.files._git", missing)
    with pytest.raises(Unavailable, match="git is not installed"):
        list_files(tmp_path / "repo", [], [], 100)


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("docs/a.py", "docs", True),
        ("src/docs/a.py", "docs/", True),
        ("src/docs/a.py", "/docs", False),
        ("docs/a.py", "/docs", True),
        ("src/a/b/gen/x.py", "src/**/gen", True),
        ("src/gen/x.py", "src/**/gen", True),
        ("x.pb.go", "*.pb.go", True),
        ("a/x.pb.go", "*.pb.go", True),
        ("a/b.py", "a/*.py", True),
        ("a/c/b.py", "a/*.py", False),
        ("ab.py", "?.py", False),
    ],
)
def test_globs(path: str, glob: str, expected: bool) -> None:
    assert matches(path, glob) is expected


def test_filters_and_their_reasons(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": '''
def documented(a, b):
    """Add up."""
    return [a + b, a - b, a * b]

def bare(a, b):
    return [a + b, a - b, a * b]

def _private(a, b):
    """Add up."""
    return [a + b, a - b, a * b]

class Plain:
    """A thing with a value."""

    def get_value(self):
        return self._value

    def set_value(self, value):
        self._value = value

    def nothing(self):
        """Do nothing."""
        pass
''',
            "test_a.py": "def helper(a, b):\n    '''Help.'''\n    return [a + b, a - b, a * b]\n",
        },
    )
    found = reasons(mine(tmp_path, require_docstring=True, include_private=False))
    assert found == {
        "a.py::bare": ["no_docstring"],
        "a.py::_private": ["private"],
        "a.py::Plain.get_value": ["no_docstring", "trivial"],
        "a.py::Plain.set_value": ["no_docstring", "trivial"],
        "a.py::Plain.nothing": ["trivial"],
        "test_a.py::helper": ["test"],
    }
    assert "a.py::bare" not in reasons(mine(tmp_path))
    assert "test_a.py::helper" not in reasons(mine(tmp_path, include_tests=True))
    sized = reasons(mine(tmp_path, min_tokens=25, max_tokens=30))
    assert sized["a.py::Plain"] == ["too_long"]
    assert "too_short" in sized["a.py::Plain.nothing"]


def test_quality_score_prefers_documented_and_complex_code() -> None:
    blocks = every(mine(SAMPLE))
    good = blocks["stockroom/store.py::Store.take"].quality_score
    plain = blocks["stockroom/store.py::Store._compact"].quality_score
    trivial = blocks["stockroom/models.py::Part.label"].quality_score
    assert 1 >= good > plain > trivial >= 0


def test_licences(tmp_path: Path) -> None:
    assert license_of_repository(SAMPLE) == "MIT"
    assert license_of_repository(tmp_path) is None
    assert license_of_text("Apache License\n    Version 2.0, January 2004") == "Apache-2.0"
    gpl = "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n" + "x" * 600
    assert license_of_text(gpl + "GNU Affero General Public License version 3") == "GPL-3.0"
    assert license_of_text("All rights reserved.") is None
    code = "def f(a):\n    return [a, a]\n"
    write(tmp_path, {"a.py": "# SPDX-License-Identifier: MIT OR Apache-2.0\n" + code, "b.py": code})
    allowed = {"project": {"allow_licenses": ["MIT OR Apache-2.0"]}, "mining": {"min_tokens": 0}}
    mined = parse_repository(tmp_path, load_settings(None, allowed))
    assert [block.path for block in mined.blocks] == ["a.py"]
    assert reasons(mined) == {"b.py::f": ["license"]}


# -- secrets -----------------------------------------------------------------------------------

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"
FAKE_SECRETS = {  # put together here, so that no scanner takes this file for a leak
    "REDACTED_AWS_KEY": "AKIA" + "IOSFODNN7QWERTY2",
    "REDACTED_GITHUB_TOKEN": "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "REDACTED_GOOGLE_KEY": "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "REDACTED_OPENAI_KEY": "sk-" + "proj-A1b2C3d4E5f6G7h8I9j0K1l2",
    "REDACTED_ANTHROPIC_KEY": "sk-ant-" + "api03-A1b2C3d4E5f6G7h8I9j0",
    "REDACTED_HUGGINGFACE_TOKEN": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567",
    "REDACTED_SLACK_TOKEN": "xoxb-" + "123456789012-abcdefABCDEF",
    "REDACTED_STRIPE_KEY": "sk_" + "live_4eC39HqLyjWDarjtT1zdp7dc",
    "REDACTED_JWT": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVP",
}
PEM = (
    "-----BEGIN RSA PRIVATE "
    + "KEY-----\n"
    + "MIIEpAIBAAKCAQEA7bq8" * 4
    + "\n-----END RSA PRIVATE "
    "KEY-----"
)


@pytest.mark.parametrize(("placeholder", "secret"), FAKE_SECRETS.items(), ids=list(FAKE_SECRETS))
def test_tokens_are_redacted(placeholder: str, secret: str) -> None:
    assert redact(f'client = connect("{secret}")') == (f'client = connect("{placeholder}")', 1)


def test_fine_grained_tokens_keys_and_assignments() -> None:
    pat = "github_" + "pat_11ABCDEFG0abcdefghijkl_" + "A1b2" * 14
    assert redact(f"'{pat}'") == ("'REDACTED_GITHUB_TOKEN'", 1)
    assert redact(PEM) == ("REDACTED_PRIVATE_KEY", 1)
    assert redact(f'DB_PASSWORD = "{HEX}"') == ('DB_PASSWORD = "REDACTED_SECRET"', 1)
    assert redact(f"{{'api_key': '{HEX}'}}") == ("{'api_key': 'REDACTED_SECRET'}", 1)
    assert redact(f'token: str = "{HEX}"') == ('token: str = "REDACTED_SECRET"', 1)
    url = "postgres://app:" + "s3cr3tPa55@db/x"
    assert redact(url) == ("postgres://app:REDACTED_PASSWORD_IN_URL@db/x", 1)


@pytest.mark.parametrize(
    "text",
    [
        'password = "changeme-please"',
        'token = "keyword.operator.assignment"',
        'secret = os.environ["APP_SECRET_2"]',
        'API_KEY = "<your api key 123>"',
        'TOKEN_NAME = "symbol2label"',
        'password = f"{user}1234567890"',
        "{'author': 'J2ean-Luc9'}",
        "class: sk-fading-circle-of-something-long",
        "akia",
        "url = 'https://example.com:8080/a@b'",
        "hf_model_name_without_a_token",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == (text, 0)


@given(st.text(max_size=200), st.sampled_from(sorted(FAKE_SECRETS.values())))
def test_redaction_leaves_no_secret_and_is_stable(noise: str, secret: str) -> None:
    redacted, count = redact(f'{noise}\n"{secret}"\n{noise}')
    assert count >= 1
    assert secret not in redacted
    assert not [s for s in find_secrets(redacted) if s.text == secret]


def test_secrets_of_a_repository(tmp_path: Path) -> None:
    key = FAKE_SECRETS["REDACTED_AWS_KEY"]
    write(
        tmp_path,
        {
            "a.py": f'"""Uses {key}."""\n\nKEY = "{key}"\n\n\n'
            f'def connect(key="{key}"):\n    """Connect with {key}."""\n    return open(key)\n\n\n'
            f'def sign():\n    return load("""{PEM}""", 1)\n',
        },
    )
    mined = mine(tmp_path)
    blocks = every(mined)
    assert mined.secrets_redacted == 5
    connect = blocks["a.py::connect"]
    assert connect.docstring == "Connect with REDACTED_AWS_KEY."
    assert connect.metadata["parameters"][0]["default"] == '"REDACTED_AWS_KEY"'
    assert connect.metadata["secrets_redacted"] > 0
    expected = hashlib.sha256(connect.source_code.encode()).hexdigest()
    assert connect.content_hash == expected
    assert reasons(mined) == {"a.py::sign": ["secret"]}
    everything = json.dumps([block.model_dump() for block in blocks.values()])
    assert key not in everything
    assert "MIIEpAIBAAKCAQEA7bq8" not in everything


# -- the skill ---------------------------------------------------------------------------------


def context(tmp_path: Path, events: list[Event] | None = None, **call: object) -> SkillContext:
    return SkillContext(
        workspace=Workspace(tmp_path / "forge"),
        settings=load_settings(None, {"mining": {"workers": 1} | call}),
        project="stockroom",
        sink=(events if events is not None else []).append,
    )


def test_extract_makes_a_corpus_once(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(SAMPLE, repo)
    git.Repo.init(repo).index.add(["README.md"])
    events: list[Event] = []
    here = context(tmp_path, events)
    result = extract(ExtractRequest(repo=str(repo)), here)
    artifact = here.workspace.load(result.corpus_id, "corpus")
    artifact.verify()
    assert result.path == str(artifact.path)
    blocks = [CodeBlock.model_validate(row) for row in artifact.rows("blocks.jsonl")]
    rejected = [RejectedBlock.model_validate(row) for row in artifact.rows("rejected.jsonl")]
    assert result.blocks == len(blocks) == result.languages["python"]
    assert all(block.reasons for block in rejected)
    assert sum(result.rejected.values()) >= len(rejected)
    assert artifact.manifest.repository is not None
    assert artifact.manifest.repository.dirty
    assert artifact.manifest.repository.revision is None
    done = [event.payload["done"] for event in events if event.kind == "progress"]
    assert done == list(range(9))

    again = extract(ExtractRequest(repo=str(repo)), here)
    assert again == result
    assert len(here.workspace.artifacts("corpus")) == 1
    with_tests = extract(ExtractRequest(repo=str(repo), include_tests=True), here)
    assert with_tests.corpus_id != result.corpus_id
    assert with_tests.blocks > result.blocks
    (repo / "stockroom/pricing.py").write_text("def total(a, b):\n    return [a * b, a + b, a]\n")
    changed = extract(ExtractRequest(repo=str(repo)), here)
    assert changed.corpus_id not in (result.corpus_id, with_tests.corpus_id)


def test_extract_stands_in_the_repository_by_default(tmp_path: Path) -> None:
    here = context(tmp_path)
    here = SkillContext(here.workspace, here.settings, here.project, repository=SAMPLE)
    assert extract(ExtractRequest(), here).files == 7


def test_extract_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    here = context(tmp_path)
    with pytest.raises(NotFound, match="nowhere"):
        extract(ExtractRequest(repo=str(tmp_path / "nowhere")), here)
    file = write(tmp_path, {"file.py": "x = 1\n"}) / "file.py"
    with pytest.raises(BadInput, match="not a folder"):
        extract(ExtractRequest(repo=str(file)), here)
    empty = write(tmp_path / "empty", {"README.md": "hello", "a.py": "def ("}).resolve()
    with pytest.raises(BadInput, match="no code") as caught:
        extract(ExtractRequest(repo=str(empty)), here)
    assert ".go" in caught.value.cause
    assert "1 other_language, 1 syntax_error" in caught.value.cause
    short = write(tmp_path / "short", {"a.py": "def f(): pass\n"})
    with pytest.raises(BadInput, match="passes the filters") as caught:
        extract(ExtractRequest(repo=str(short)), here)
    assert "too_short" in caught.value.cause
    assert here.workspace.artifacts("corpus") == []


def test_extract_stops_when_it_is_cancelled(tmp_path: Path) -> None:
    cancel = threading.Event()
    here = context(tmp_path)

    def stop(event: Event) -> None:
        if event.payload.get("done") == 3:
            cancel.set()

    here = SkillContext(here.workspace, here.settings, "p", sink=stop, cancel=cancel)
    with pytest.raises(Cancelled):
        extract(ExtractRequest(repo=str(SAMPLE)), here)
    assert here.workspace.artifacts("corpus") == []


def test_mining_is_deterministic_and_parallel_mining_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = mine(LANGUAGE_FILES)
    monkeypatch.setattr(miner, "PARALLEL_FROM_FILES", 1)
    monkeypatch.setattr(miner, "CHUNK_FILES", 2)
    assert mine(LANGUAGE_FILES, workers=2) == alone
    result = ExtractResult.model_fields
    assert list(result) == [
        "corpus_id",
        "path",
        "files",
        "blocks",
        "rejected",
        "languages",
        "skipped_files",
        "secrets_redacted",
        "seconds",
    ]


def test_every_language_has_its_extensions_and_a_grammar() -> None:
    assert set(LANGUAGES) == {"python", "javascript", "typescript", "tsx", "go", "java"}
    for name in LANGUAGES:
        spoken: Language = language(name)
        assert spoken.parse(b"").root_node.child_count == 0
        kinds = {spoken.grammar.node_kind_for_id(n) for n in range(spoken.grammar.node_kind_count)}
        for role, types in spoken.roles.items():
            assert types <= kinds, (name, role, types - kinds)
    assert DOTTED.fullmatch("super().__init__")


def test_a_key_in_an_indented_docstring_is_replaced_everywhere(tmp_path: Path) -> None:
    lines = ["-----BEGIN RSA PRIVATE KEY-----", "MIIEpAIBAAKCAQEA7bq3Vx0ZkQd1f3b8c9a0s8d7f6g5"]
    lines += ["q2w3e4r5t6y7u8i9o0p1a2s3d4f5g6h7", "-----END RSA PRIVATE KEY-----"]
    text = "\n".join(f"    {line}" for line in ["Key:", *lines])
    (tmp_path / "a.py").write_text(f'def f(x):\n    """Sign.\n\n{text}\n    """\n    return x\n')
    found = parse_repository(tmp_path, load_settings())
    every = [*found.blocks, *found.rejected]
    assert every and not any("MIIE" in block.model_dump_json() for block in every)


def test_a_repository_runs_nothing_of_its_own(tmp_path: Path) -> None:
    root, trace = tmp_path / "repo", tmp_path / "trace"
    root.mkdir()
    (root / "a.py").write_text("def f():\n    return 1\n")
    (root / ".gitattributes").write_text("* filter=own\n")

    def run(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *words], cwd=root, check=True, capture_output=True)

    run("init")
    run("add", ".")
    run("commit", "-m", "x")
    run("config", "filter.own.clean", f"sh -c 'touch {trace}; cat'")
    run("config", "filter.own.required", "true")
    hook = root / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {trace}\n")
    hook.chmod(0o755)
    (root / "a.py").write_text("def f():\n    return 2\n")
    assert repository_state(root).dirty
    assert not trace.exists()
