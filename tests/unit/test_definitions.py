"""Definitions against Python's own parser, and exact fixtures of the first-tier languages."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_mcp.errors import BadInput
from forge_mcp.mining.definitions import Definition, count_leaves, find_definitions
from forge_mcp.mining.languages import LANGUAGES, language
from forge_mcp.mining.miner import extract_classes, extract_functions, extract_module_info
from forge_mcp.mining.text import decode

FIXTURES = Path(__file__).parent.parent / "fixtures"
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


# The others mend what their grammars cannot read, or end a block before a comment: by what
# stands around a definition, which a block alone does not show.
PLAIN = [name for name in sorted(LANGUAGES) if name not in ("c", "cpp", "kotlin", "rust", "scala")]


@pytest.mark.parametrize("name", PLAIN)
def test_block_tokens_agree_with_a_recount(name: str) -> None:
    """A block alone, parsed again, has as many leaves (a method needs its class to parse)."""
    before = b"<?php " if name == "php" else b""
    spoken = language(name)
    for path in sorted(LANGUAGE_FILES.iterdir()):
        if path.suffix not in spoken.extensions:
            continue
        source = path.read_bytes()
        for d in find_definitions(spoken.parse(source), source, spoken).definitions:
            alone = spoken.parse(before + source[d.start_byte : d.end_byte]).root_node
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
        "Circle.build": ("method", ""),
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
    assert found["Pair"].described.signature == "export type Pair = [Point, Point]"


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
    assert [tuple(name[:3]) for name in imported if not name.passed_on] == [
        ("main", "./lib.js", "default"),
        ("uno", "./lib.js", "one"),
        ("two", "./lib.js", "two"),
        ("all", "pkg", None),
        ("three", "./more", "three"),
        ("vier", "./more", "four"),
    ]


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


def test_every_table_names_node_types_of_its_grammar() -> None:
    tables = ("definitions", "containers", "anonymous", "calls", "raises", "returns", "branches")
    for name in LANGUAGES:
        spoken = language(name)
        grammar = spoken.grammar
        kinds = {grammar.node_kind_for_id(n) for n in range(grammar.node_kind_count)}
        for table in (*tables, "logical", "imports_at", "decorators", "comments", "base_nodes"):
            types = set(getattr(spoken, table))
            assert types <= kinds, (name, table, types - kinds)
