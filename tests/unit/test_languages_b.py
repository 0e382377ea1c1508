"""Ruby, C#, PHP, Kotlin and Bash: a sample of each to the line, and sources made at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_mcp.mining.definitions import Definition, FileDefinitions, find_definitions
from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import, Parameter

SAMPLES = Path(__file__).parent.parent / "fixtures" / "languages"
FILES = {
    "ruby": "inventory.rb",
    "csharp": "Ledger.cs",
    "php": "Router.php",
    "kotlin": "Session.kt",
    "bash": "deploy.sh",
}


def read(name: str, source: bytes | str | None = None) -> FileDefinitions:
    """The definitions of a source, or of a language's sample."""
    data = (SAMPLES / FILES[name]).read_bytes() if source is None else source
    data = data.encode() if isinstance(data, str) else data
    return find_definitions(language(name).parse(data), data, language(name))


def named(name: str, source: str | None = None) -> dict[str, Definition]:
    return {d.qualified_name: d for d in read(name, source).definitions}


# Every definition of the samples: qualified name (a leading dot: in the last one without), kind,
# label, first and last line.
OUTLINES = {
    "ruby": """
        Warehouse.Storage class module 11 109 | .FullError class - 16 17 | .Missing class - 18 18 |
        .Shelf class - 20 108 | .Shelf.initialize method - 23 31 | .Shelf.put method - 36 56 |
        .Shelf.build method singleton 60 60 | .Shelf.full? method - 62 64 |
        .Shelf.== method - 66 70 | .Shelf.[] method - 72 72 | .Shelf.name= method - 74 76 |
        .Shelf.SORT method - 78 78 | .Shelf.default method - 81 82 | .Shelf.store method - 87 89 |
        .Shelf.weight method - 91 93 | .Shelf.open_again method - 97 97 |
        .Shelf.hidden method - 99 101 | .Shelf.late method - 103 103 |
        .Shelf.secret method singleton 106 106 | Point class struct 111 120 |
        .norm method - 115 119 | dump function - 123 126 | test_dump function - 129 131""",
    "csharp": """
        Bank.Accounts.Ledger class - 9 86 | .Count method property 20 21 |
        .Total method property 23 27 | .this method indexer 29 29 | .Changed method event 31 31 |
        .Ledger method - 34 39 | .Ledger method - 41 41 | .~Ledger method - 43 43 |
        .operator_+ method operator 45 45 | .explicit_operator_int method operator 47 47 |
        .Sum method - 49 49 | .IDisposable.Dispose method - 51 51 | .Hidden method - 53 53 |
        .AddAsync method - 55 70 | .AddAsync.Twice function - 58 58 | .Dump method - 73 74 |
        .Row class struct 77 77 | .Row.Twice method - 77 77 | .Key class - 79 85 |
        .Key.Compare method - 84 84 | Bank.Accounts.IStore class interface 88 93 |
        .Save method - 91 91 | .Clear method - 92 92 | Bank.Accounts.Side class enum 95 96 |
        Bank.Accounts.Comparer class delegate 98 98 | Bank.Accounts.Entry class record 100 100 |
        Bank.Accounts.Pair class record 102 102 | Bank.Accounts.LedgerTests class - 104 108 |
        .Adds method - 106 107""",
    "php": """
        Handler class interface 21 24 | .handle method - 23 23 | Router class - 26 86 |
        .$name method property 39 42 | .__construct method - 44 57 | .handle method - 63 79 |
        .handle.$double function - 72 72 | .ab method - 81 81 | .instance method - 83 83 |
        .secret method - 85 85 | .secret.inner method - 85 85 | RouterTest class - 88 88 |
        .routes method - 88 88 | Logs class trait 90 90 | .write method - 90 90 |
        Method class enum 92 97 | .label method - 96 96 | greet function - 99 104 |
        .nested function - 102 102 | dump function - 107 108 | $increment function - 111 111 |
        row function - 114 114 | testRow function - 116 116""",
    "kotlin": """
        Ending class interface 15 16 | .end method - 16 16 | Session class - 18 64 |
        .constructor method constructor 29 29 | .age method property 34 35 |
        .label method property 36 37 | .end method - 40 56 | .end.local function - 52 52 |
        .end.twice function - 53 53 | .end.triple function - 54 54 |
        .Companion class companion_object 58 58 | .Factory class companion_object 59 59 |
        .Factory.create method - 59 59 | .Guard class - 60 60 | .refresh method - 61 61 |
        .plus method - 62 63 | State class enum 66 71 | .OPEN.next method - 67 67 |
        .next method - 70 70 | Registry class object 73 73 | .find method - 73 73 |
        Callback class typealias 74 74 | List.firstOr function - 76 78 | twice function - 79 79 |
        String.initial function property 80 80 | onEnd function - 81 81 |
        closer.close method - 82 82 | Audited class annotation 83 83 |
        Visitor class interface 84 84 | .visit method - 84 84 | ends_when_closed function - 87 88 |
        last function - 89 90""",
    "bash": """
        copy_files function - 14 34 | .inner function - 33 33 | restart function - 38 42 |
        rollback function - 47 49 | check function - 51 51 | log::info function - 53 53 |
        ci-report function - 55 55 | _private function - 57 61 | test_copy function - 63 63""",
}


@pytest.mark.parametrize("name", FILES)
def test_outline(name: str) -> None:
    found = read(name)
    outline = [
        f"{d.qualified_name.replace(' ', '_')} {d.kind} {d.label.replace(' ', '_') or '-'} "
        f"{d.start_row + 1} {d.end_row + 1}"
        for d in found.definitions
    ]
    expected, around = [], ""
    for entry in map(str.strip, OUTLINES[name].split("|")):
        around = around if entry.startswith(".") else entry.split()[0]
        expected.append(f"{around}{entry}" if entry.startswith(".") else entry)
    assert outline == expected
    assert not found.has_error
    assert not any(d.has_error or d.in_error for d in found.definitions)


@pytest.mark.parametrize("name", FILES)
def test_texts_are_verbatim(name: str) -> None:
    source = (SAMPLES / FILES[name]).read_bytes()
    for d in read(name).definitions:
        block, described = source[d.start_byte : d.end_byte].decode(), d.described
        quoted = [described.signature, described.returns, *described.decorators, *described.bases]
        quoted += [part for parameter in described.parameters or [] for part in parameter[:3]]
        quoted += [*d.calls, *d.raises, *d.returns, *d.methods, *described.docstring.split()]
        for quote in quoted:
            assert quote.strip(":") in block, (d.qualified_name, quote)
        assert block == block.strip()


def flagged(name: str, flag: str) -> set[str]:
    return {d.qualified_name for d in read(name).definitions if getattr(d, flag)}


MARKS = {
    "positional_only": "/ ",
    "keyword_only": "k ",
    "var_positional": "* ",
    "var_keyword": "** ",
}


def spelled(definition: Definition) -> str:
    """Parameters as `name: annotation = default`; the kind as a mark before it."""
    return "; ".join(
        MARKS.get(p.kind, "")
        + p.name
        + (f": {p.annotation}" if p.annotation else "")
        + (f" = {p.default}" if p.default else "")
        for p in definition.described.parameters or ()
    )


# -- Ruby ------------------------------------------------------------------------------------------


def test_ruby_documentation() -> None:
    found = named("ruby")
    docs = {n.rpartition(".")[2]: d.described.docstring for n, d in found.items()}
    assert docs["Storage"].startswith("Everything that lies on a shelf.\n\n  shelf = Warehouse::")
    assert docs["FullError"] == "Raised where nothing fits."
    assert docs["initialize"].startswith(
        "First member: the comment stands before the body.\n\n@param"
    )
    assert docs["=="] == "Compares by size."  # not the line for rubocop
    assert docs["default"] == "On the singleton."
    assert docs["Point"] == "A point on a plan."
    assert docs["dump"] == "Prints everything."
    undocumented = {"put", "build", "Shelf", "store", "hidden", "Missing"}
    assert not any(docs[name] for name in undocumented)
    assert read("ruby").docstring == ""


def test_ruby_describes() -> None:
    found = named("ruby")
    shelf = "Warehouse.Storage.Shelf."
    init = found[shelf + "initialize"]
    assert spelled(init) == (
        '/ size; / name = "a}"; * rest; k depth; k wide = false; ** options; / block'
    )
    assert list(init.raises) == ["ArgumentError", "Warehouse::Storage::FullError"]
    assert init.branches == 2
    put = found[shelf + "put"]
    assert spelled(put) == "/ item; / (row, column); * *"
    assert put.branches == 7  # if, &&, ||, when, when, rescue, ?:
    assert (
        " ".join(put.calls)
        == "full? item.small? @boxes.push store warn e.message Warehouse::Log.write"
    )
    assert list(put.returns) == ["false"]
    assert not put.raises
    assert list(found["Point.norm"].raises) == ["TypeError"]
    assert list(found[shelf + "build"].returns) == ["new(size, depth: 1)"]
    assert spelled(found[shelf + "SORT"]) == "/ a; / b = 1"
    assert spelled(found[shelf + "hidden"]) == "* ..."
    assert found[shelf + "build"].described.signature == "def self.build(size)"
    assert found[shelf + "weight"].described.signature == "memoize def weight"
    assert found[shelf + "SORT"].described.signature == "SORT = ->(a, b = 1)"
    assert found["Point"].described.signature == "Point = Struct.new(:x, :y)"
    assert found["Warehouse.Storage.Missing"].described.bases == ["FullError"]
    assert found["Warehouse.Storage.Shelf"].described.bases == ["Base::Rack"]
    assert found["Warehouse.Storage.Shelf"].described.signature == "class Shelf < Base::Rack"
    private = {"store", "weight", "hidden", "late", "secret"}
    assert flagged("ruby", "is_private") == {shelf + name for name in private}
    assert flagged("ruby", "is_test") == {"test_dump"}
    trivial = {"name=", "open_again", "late", "secret"}
    assert flagged("ruby", "is_trivial") == {shelf + n for n in trivial} | {"test_dump"}
    assert found["dump"].tokens == 17


def test_ruby_file_facts() -> None:
    found = read("ruby")
    assert found.imported == [
        Import("set", "set", None),
        Import("item", "./stock/item", None),
    ]
    assert found.constants == [("LIMIT", "12")]
    assert found.module is not None
    assert (found.module.start_row, found.module.end_row) == (5, 8)


def test_ruby_oddities() -> None:
    found = named(
        "ruby",
        "module A; end\n"
        "def obj.f(*, **, &) = 1\n"
        "B = other = lambda { |x| x }\n"
        "C::D = proc { |x, (y)| x }\n"
        "E = F.g\n"
        "G = Foo.new(1)\n"
        "H, I = 1, 2\n"
        "J = lambda(&block)\n"
        "K = Module.new { def m; end }\n"
        "register(def listed; end)\n"
        "obj.wrap def by_receiver; end\n"
        "foo[1].bar(2)\n"
        "def empty(x, **nil) = x\n"
        "L = lambda { 1; 2; 3; 4; 5 }\n"
        "M = lambda { }\n"
        "class N; private_constant :O, x; class O; end; private :p; private; protected; end\n"
        "autoload :Q, 'q'\nobj.require 'r'\nputs 'require'\n"
        "apart \\\n  def g; end\nclass R::; end\n",
    )
    assert [(n, d.kind, d.label) for n, d in found.items()] == [
        ("A", "class", "module"),
        ("obj.f", "method", "singleton"),
        ("C.D", "function", ""),
        ("K", "class", "module"),
        ("K.m", "method", ""),
        ("listed", "function", ""),
        ("by_receiver", "function", ""),
        ("empty", "function", ""),
        ("L", "function", ""),
        ("M", "function", ""),
        ("N", "class", ""),
        ("N.O", "class", ""),
        ("g", "function", ""),
    ]
    assert spelled(found["obj.f"]) == "* *; ** **; / &"
    assert found["listed"].described.signature == "def listed"
    assert found["by_receiver"].described.signature == "def by_receiver"
    assert found["N.O"].is_private
    assert found["K"].described.bases == []
    assert found["g"].described.signature == "def g"
    assert spelled(found["empty"]) == "/ x"
    assert found["M"].is_trivial
    assert found["empty"].is_trivial
    assert not found["L"].is_trivial
    assert read("ruby", "autoload :Q, 'q'\nx.require 'r'\nputs 'no'\n").imported == [
        Import("q", "q", None)
    ]
    assert "foo" not in read("ruby", "def f\n  foo[1].bar(2)\nend\n").definitions[0].calls
    assert named("ruby", "# = Title\n# x = 1\n# y = 2\ndef f; end\n")["f"].described.docstring


# -- C# --------------------------------------------------------------------------------------------


def test_csharp_describes() -> None:
    found = {n.removeprefix("Bank.Accounts."): d for n, d in named("csharp").items()}
    ledger = found["Ledger"]
    assert ledger.described.docstring == "A ledger of Entry rows."
    assert ledger.described.decorators == ["Serializable", 'Obsolete("use {Journal}")']
    assert ledger.described.bases == ["Book<T>", "IDisposable"]
    assert ledger.described.signature == (
        "public abstract partial class Ledger<T> : Book<T>, IDisposable where T : class, new()"
    )
    first = read("csharp").definitions[5]
    assert spelled(first) == "name: string; seed: ref int; size: int = 3; * rest: object[]"
    assert first.described.docstring == "param name: Its name."
    assert first.described.signature.endswith("params object[] rest) : base(name)")
    assert list(first.raises) == ["ArgumentNullException", "Bank.LedgerException"]
    assert first.branches == 4  # if, ||, &&, ??
    assert list(first.calls) == ["ArgumentNullException", "Bank.LedgerException"]
    assert spelled(found["Ledger.Sum"]) == "first: in Entry; rest: out int"
    assert found["Ledger.Sum"].described.returns == "Money"
    assert found["Ledger.Sum"].described.signature.endswith("out int rest)")
    add = found["Ledger.AddAsync"]
    assert add.described.docstring == "Adds up."
    assert add.described.returns == "Task<int>"
    assert add.described.extra == {"is_async": True}
    assert "is_async" not in found["Ledger.Hidden"].described.extra
    assert add.branches == 8  # if in the lambda, 2 cases, 2 arms, foreach, catch, ?:
    assert not add.raises  # what a lambda throws belongs to nobody
    assert list(add.returns) == ["limit > 3 ? new Money(1).Value : this.Sum<int>(key)"]
    assert [c for c in add.calls if "." in c] == ["_rows.Where", "row.Save", "this.Sum"]
    assert "nameof" not in first.calls
    assert list(found["Ledger.Count"].returns) == ["_rows.Count"]
    assert found["Ledger.Count"].is_trivial
    assert found["Ledger.Count"].described.signature == "public int Count"
    assert found["Ledger.Count"].described.returns == "int"
    assert found["Ledger.this"].described.signature == "public Entry this[int index]"
    assert found["Ledger.operator +"].described.returns == "Ledger<T>"
    assert found["Entry"].described.bases == ["Row"]
    assert found["Side"].described.bases == ["byte"]
    assert found["LedgerTests.Adds"].described.decorators == ["Theory", "InlineData(1)"]
    assert found["Ledger.IDisposable.Dispose"].parent_name == "Bank.Accounts.Ledger"
    private = {"Ledger.Hidden", "Ledger.Row", "Ledger.Row.Twice", "Pair"}
    assert flagged("csharp", "is_private") == {f"Bank.Accounts.{name}" for name in private}
    assert flagged("csharp", "is_test") == {
        "Bank.Accounts.LedgerTests",
        "Bank.Accounts.LedgerTests.Adds",
    }


def test_csharp_file_facts() -> None:
    found = read("csharp")
    assert found.imported == [
        Import("System", "System", None),
        Import("System.Linq", "System.Linq", None),
        Import("Money", "Bank.Core", "Amount"),
    ]
    assert (found.constants, found.docstring) == ([], "")
    assert read("csharp", "using S = Shelf;").imported == [Import("S", "Shelf", None)]


def test_csharp_directives_amid_code_are_no_errors() -> None:
    source = (
        "class A\n#if X\n : B\n#else\n : C\n#endif\n{\n"
        "    int F(bool a)\n    {\n#if X\n        if (a) { return 1; }\n        else\n#endif\n"
        "        { return 2; }\n    }\r\n}\n"
        "#endif\n"
    )
    assert language("csharp").parser.parse(source.encode()).root_node.has_error
    found = read("csharp", source)
    assert not found.has_error
    outline = [(d.qualified_name, d.start_row + 1, d.end_row + 1) for d in found.definitions]
    assert outline == [("A", 1, 16), ("A.F", 8, 15)]
    assert found.definitions[0].described.bases == ["B", "C"]
    assert "#if X" in found.definitions[0].described.signature  # texts are the source's
    both = "int[] x = {\n#if X\n 1,\n#else\n 2,\n#endif\n};\nvoid f() { g(); }\n"
    assert [d.name for d in read("csharp", both).definitions] == ["f"]


def test_csharp_scripts() -> None:
    found = named(
        "csharp",
        "namespace A.B;\n/// Doc.\nint F(int x) => x;\n[Test] class T { int P { get; } }\n"
        "class C(int x) : D(x), IE { static C() { } int Q => 1; }\n",
    )
    assert list(found) == ["F", "T", "C", "C.C", "C.Q"]
    assert found["F"].described.docstring == "Doc."
    assert (found["F"].start_row, found["F"].is_private) == (1, False)
    assert found["T"].is_test
    assert found["C"].described.bases == ["D", "IE"]
    assert (found["C.C"].is_private, found["C.Q"].is_private) == (False, True)


# -- PHP -------------------------------------------------------------------------------------------


def test_php_describes() -> None:
    found = named("php")
    router = found["Router"]
    assert router.described.docstring == "Finds the handler of a path.\n\n@see Handler"
    assert router.described.decorators == ["Route('/x')", "Final", "Tag([1])"]
    assert router.described.bases == ["Base", "Handler", "\\JsonSerializable"]
    assert router.described.signature == (
        "abstract class Router extends Base implements Handler, \\JsonSerializable"
    )
    init = found["Router.__construct"]
    assert init.described.docstring == "Makes one."
    assert spelled(init) == (
        '$depth: int; $prefix: ?string = "a{"; $parent: self|null = null; * $rest: int'
    )
    assert list(init.raises) == ["InvalidArgumentException", "Error\\NotFound"]
    assert init.branches == 5  # if, &&, ||, and, elseif
    assert (
        " ".join(init.calls)
        == "parent::__construct \\InvalidArgumentException Error\\NotFound::forPath"
    )
    handle = found["Router.handle"]
    assert handle.described.docstring == ""
    assert handle.described.returns == "Response"
    assert handle.branches == 7  # ??, match, 2 cases, foreach, catch, ?:
    assert list(handle.raises) == ["RouteError"]
    assert list(handle.returns) == [
        "new Response($name)",
        "$name ?: $request?->answer(fn ($x) => $x + 1)",
    ]
    assert (
        " ".join(handle.calls)
        == "$request->path RouteError Response $this->log $double Response::make $request?->answer"
    )
    assert list(found["Router.handle.$double"].returns) == ["$x * 2"]
    assert list(found["$increment"].returns) == ["$x + 1"]
    assert found["$increment"].described.signature == "$increment = fn (int $x): int"
    assert found["$increment"].described.returns == "int"
    assert found["Router.$name"].described.signature == "public string $name"
    assert found["Router.instance"].described.returns == "static"
    assert not found["Router.instance"].calls
    assert found["Method"].described.bases == ["HasLabel"]
    assert found["dump"].described.docstring == "Prints."
    assert [d for d in found.values() if d.is_private] == [found["Router.secret"]]
    assert flagged("php", "is_test") == {"RouterTest", "RouterTest.routes", "testRow"}


def test_php_file_facts() -> None:
    found = read("php")
    assert found.docstring == "Routes of the site."
    assert found.imported == [
        Import("Request", "Site\\Core", "Request"),
        Import("Response", "Site\\Core", "Response"),
        Import("Biscuit", "Site\\Core", "Cookie"),
        Import("render", "Site\\Core", "render"),
        Import("VERSION", "Site\\Core", "VERSION"),
        Import("Countable", "\\", "Countable"),
        Import("helpers", "./helpers.php", None),
    ]
    assert found.constants == [("LIMIT", "12"), ("ROOT", "'/srv'")]


def test_php_oddities() -> None:
    found = read(
        "php",
        "<?php\nnamespace A\\B { function f() {} }\nnamespace { $this->x = function () {};\n"
        "while ($g = fn () => 1) { include $path; require 'a/b.php'; } }\n"
        "define('ONE'); foo(1); new Foo; new (f()); class P { public $q; }\n",
    )
    assert [d.qualified_name for d in found.definitions] == ["A.B.f", "$g", "P"]
    assert found.imported == [Import("b", "a/b.php", None)]
    assert [s.text for s in found.imports] == ["include $path;", "require 'a/b.php';"]
    assert found.constants == []
    made = named("php", "<?php function f() { new Foo; new (g()); return new class {}; }")["f"]
    assert list(made.calls) == ["Foo", "g"]


@pytest.mark.parametrize(
    ("source", "docstring"),
    [
        ("<?php\n/** Of the file. */\n\nuse A;", "Of the file."),
        ("<?php\n// note\n/** Of the class. */\nclass A {}", ""),
        ("<?php\n/** This file is part of X. */\nuse A;", ""),
        ("<?php\n/** Copyright 2020 X. */\nuse A;", ""),
        ("<?php\nuse A;\n/** Late. */\nuse B;", ""),
        ("<?php\n// nothing", ""),
    ],
)
def test_php_file_docstring(source: str, docstring: str) -> None:
    assert read("php", source).docstring == docstring


# -- Kotlin ----------------------------------------------------------------------------------------


def test_kotlin_describes() -> None:
    found = named("kotlin")
    session = found["Session"]
    assert session.described.docstring == "One visit."
    assert session.described.decorators == ["Serializable", 'Table(\n    name = "sessions"\n)']
    assert session.described.bases == ["Base", "Ending<T>", "Closeable"]
    assert session.described.signature.startswith("internal data class Session<T : Any>(\n")
    assert session.described.signature.endswith("where T : Comparable<T>")
    end = found["Session.end"]
    assert end.described.docstring == "Ends it."
    assert end.described.decorators == ["Throws(IOException::class)"]
    assert spelled(end) == (
        "reason: T; force: Boolean = !name.isEmpty(); * rest: Int; then: (Int) -> Unit"
    )
    assert end.described.returns == "Int"
    assert end.described.extra == {"is_async": True}
    assert end.branches == 10  # if, &&, ||, if, 3 entries of when, for, ?:, catch
    assert list(end.raises) == ["IllegalStateException", "com.server.SessionError"]
    assert list(end.returns) == ["1", "2", "twice(local(3))"]
    assert (
        " ".join(end.calls)
        == "then this.name?.trim listOf IllegalStateException com.server.SessionError twice local"
    )
    assert spelled(found["Session.end.twice"]) == "/ n: Int"
    assert found["Session.end.triple"].described.returns == "Int"
    assert found["Session.constructor"].described.returns == ""
    assert spelled(found["Session.constructor"]) == "text: String; * parts: Int"
    assert found["Session.age"].described.docstring == ""
    assert found["Session.age"].described.returns == "Int"
    assert list(found["Session.plus"].returns) == ["merge(other)"]
    assert found["Session.plus"].described.signature.endswith("plus(other: Session<T>): Session<T>")
    first = found["List.firstOr"]
    assert first.described.docstring == "First of a list."
    assert first.described.decorators == ['JvmName("first")']
    assert first.described.signature == "private fun <T> List<T>.firstOr(other: T): T"
    assert first.parent_name == "List"
    assert found["String.initial"].described.returns == "Char"
    assert found["Registry.find"].described.decorators == ["JvmStatic"]
    assert found["Registry"].described.bases == ["Map<String, Int>"]
    assert found["ends when closed"].described.decorators == ["Test"]
    assert found["ends when closed"].described.docstring == ""
    assert found["last"].described.decorators == ['Suppress("unused")']
    assert flagged("kotlin", "is_private") == {"Session.Guard", "List.firstOr"}
    assert flagged("kotlin", "is_test") == {"ends when closed"}
    trivial = {"Session.end.local", "State.next", "Session.refresh", "Visitor.visit"}
    assert trivial <= flagged("kotlin", "is_trivial")
    assert found["ends when closed"].tokens == 12


def test_kotlin_file_facts() -> None:
    found = read("kotlin")
    assert found.imported == [
        Import("Clock", "com.server.core", "Clock"),
        Import("SessionId", "com.server.core", "Id"),
    ]
    assert found.constants == [("LIMIT", "12"), ("UNITS", 'listOf("s", "m")')]
    assert read("kotlin", "import main as start\n").imported == [Import("start", "main", None)]


@pytest.mark.parametrize(
    "annotations",
    [
        "@Preview(showBackground = true)\n@Composable\nprivate fun {} {{\n}}\n",
        "@RunWith(Runner::class)\n@Module\n// note\n@In(One::class)\nobject {} {{\n}}\n",
        '@Get("/*")\n@Get("*/")\n@Get("a/")\nfun {}() {{\n}}\n',
        "@A\nfun {}() {{\n}}\n",
        "@Param.Values(\n    Param(1),\n    Param((2))\n)\nabstract class {}\n",
        "@Odd({{\n}})\nfun {}() {{\n}}\n",
        "@Odd({{\n}}\n)\nfun {}() {{\n}}\n",
        '@Name("y") fun {}() {{\n}}\n',
    ],
)
def test_kotlin_annotations_at_the_top_of_a_file(annotations: str) -> None:
    declared = annotations.format("x()" if "fun {} " in annotations else "x")
    source = f"/** Doc. */\n{declared}\nfun next() {{ }}\n"
    found = read("kotlin", source).definitions
    assert [d.name for d in found] == ["x", "next"]
    block = source[found[0].start_byte : found[0].end_byte]
    assert block == f"/** Doc. */\n{declared.strip()}"
    assert found[0].described.docstring == "Doc."
    assert found[0].described.decorators
    assert found[0].described.signature.startswith(("fun", "private", "object", "abstract"))


def test_kotlin_repairs() -> None:
    source = (
        "class A { fun f() { } }\n"
        'object B { const val TAG = "}" }\n'
        "fun g(suspend: Boolean) { val block = suspend { 42 }; data.h(final = 1) }\n"
        "class C\ninternal actual constructor(x: Int) {\n    fun i(a: () -> Int = { 1 }) { } }\n"
    )
    assert language("kotlin").parser.parse(source.encode()).root_node.has_error
    found = read("kotlin", source)
    assert not found.has_error
    outline = [(d.qualified_name, d.start_row + 1, d.end_row + 1) for d in found.definitions]
    assert outline == [
        ("A", 1, 1),
        ("A.f", 1, 1),
        ("B", 2, 2),
        ("g", 3, 3),
        ("C", 4, 6),
        ("C.i", 6, 6),
    ]
    by_name = {d.name: d for d in found.definitions}
    assert spelled(by_name["g"]) == "suspend: Boolean"
    assert list(by_name["g"].calls) == ["suspend", "data.h"]
    assert spelled(by_name["i"]) == "a: () -> Int = { 1 }"


def test_kotlin_oddities() -> None:
    found = named(
        "kotlin",
        "fun (Int).f() = listOf(1).map {\n    it\n}\nval x = y.z { 1 }\nval List<Int>.p get() = 1\n"
        "val (a, b) = { 1 } to 2\nval (c, d) get() = 2\nclass Q : R(), S\n"
        "val A_B = 1\nval c = fun() { }\n"
        "val d = { x, (y, z) -> x }\nfun big() { a(); b(); c(); d(); e() }\n",
    )
    assert list(found) == ["f", "List.p", "Q", "c", "d", "big"]
    assert not found["f"].returns
    assert found["Q"].described.bases == ["R", "S"]
    assert spelled(found["d"]) == "/ x; / (y, z)"
    assert not found["big"].is_trivial


# The scanner of tree-sitter-kotlin 1.1.0 repeats an empty token for ever behind this.
ENDLESS = """t{=)n 2
e
 $  abstract fun refresh()
    operator fun plus(other: Session<T>): Session<T> =
        merge(other)
}

enum class State(val code: Int) : Coded {
    OPEN(1) { override fun next() = CLOSED },
    CLOSED(2);

    fun next(): State = OPEN
}

object Registry : Map<String, Int>() { @JvmStatic fun find(key: String) = get(key) }
typealias Callback = (S ession<*>) -> Unit

/** First of a list. */
@JvmN """


def test_kotlin_parses_always_end() -> None:
    with pytest.raises(ValueError, match="cannot parse"):
        language("kotlin").parse(ENDLESS.encode())
    assert [d.name for d in read("kotlin", "fun f() { }\n").definitions] == ["f"]
    for end in ("@", "@A", '@A("x', "@A(x) "):  # behind a comment the scanner looks for white space
        assert read("kotlin", f"var g = 1/**/\n{end}").definitions == []


# -- Bash ------------------------------------------------------------------------------------------


def test_bash_describes() -> None:
    found = named("bash")
    copy = found["copy_files"]
    assert copy.described.docstring == "Copies the files."
    assert copy.described.parameters == []
    assert copy.branches == 8  # if, &&, ||, elif, 2 patterns, for, while
    assert (
        " ".join(copy.calls)
        == "rsync test cp log::info cat render_header echo sort read list_files"
    )
    assert found["restart"].described.docstring == ""
    assert found["rollback"].described.docstring == ""  # what stands above it is code
    assert found["restart"].described.signature == "function restart"
    assert found["rollback"].described.signature == "function rollback()"
    assert found["_private"].branches == 3  # ?:, until, for
    source = (SAMPLES / FILES["bash"]).read_bytes()
    assert source[: found["log::info"].end_byte].endswith(b">&2 2>/dev/null")
    assert flagged("bash", "is_private") == {"_private"}
    assert flagged("bash", "is_test") == {"test_copy"}


def test_bash_file_facts() -> None:
    found = read("bash")
    assert found.docstring == "Deploys the site.\nUsage: deploy.sh HOST"
    assert found.imported == [
        Import("common", "./lib/common.sh", None),
        Import("colours", "$ROOT/colours.sh", None),
    ]
    assert found.constants == [("LIMIT", "12"), ("RETRIES", "3"), ("TARGET", '"/srv/site"')]
    assert found.module is not None
    assert (found.module.start_row, found.module.end_row) == (1, 11)


@pytest.mark.parametrize(
    ("source", "docstring"),
    [
        ("#!/bin/sh\n# Of the file.\nset -e\n", "Of the file."),
        ("# Of the file.\n# More.\n\n# Of f.\nf() { x; }\n", "Of the file.\nMore."),
        ("#!/bin/sh\n# Of f.\nf() { x; }\n", ""),
        ("#!/bin/sh\n# Copyright 2020 X\n\nf() { x; }\n", ""),
        ("#!/bin/sh\n# x=1\n\nf() { x; }\n", ""),
        ("set -e\n# Late.\n\n", ""),
        ("# vim: set ts=4\n", ""),
        ("# Nothing else.\n", "Nothing else."),
        ("", ""),
    ],
)
def test_bash_file_docstring(source: str, docstring: str) -> None:
    assert read("bash", source).docstring == docstring


def test_bash_sources_nothing() -> None:
    assert read("bash", "source\n. \n").imported == []


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tests", "others"),
    [
        ("ruby", ["test/a.rb", "spec/x/a_spec.rb", "lib/test_a.rb"], ["lib/latest.rb", "lib/a.rb"]),
        ("csharp", ["src/Foo.Tests/A.cs", "tests/A.cs", "src/ATests.cs"], ["src/Test.Core/A.cs"]),
        ("php", ["Tests/A.php", "src/ATest.php"], ["src/Testing/A.php"]),
        ("kotlin", ["src/commonTest/A.kt", "src/test/A.kt", "ATest.kt"], ["src/main/Latest.kt"]),
        ("bash", ["tests/a.sh", "test-a.sh", "x/a_test.sh"], ["bin/latest.sh", "contest/a.sh"]),
    ],
)
def test_paths_of_tests(name: str, tests: list[str], others: list[str]) -> None:
    assert all(map(language(name).is_test_file, tests))
    assert not any(map(language(name).is_test_file, others))


@dataclass(frozen=True)
class Syntax:
    """How a language writes a documented class and a documented function."""

    comment: str
    plain: str
    function: tuple[str, str, str]
    container: tuple[str, str] | None
    nests: bool = True  # classes may stand in classes
    top: str = ""


SYNTAX = {
    "ruby": Syntax("# {}", "# {}", ("def {}(a)", "puts a", "end"), ("class {}", "end")),
    "csharp": Syntax(
        "/// {}", "// {}", ("int {}(int a) {{", "return a;", "}}"), ("class {} {{", "}}")
    ),
    "php": Syntax(
        "/** {} */",
        "// {}",
        ("function {}($a) {{", "return $a;", "}}"),
        ("class {} {{", "}}"),
        nests=False,
        top="<?php\n",
    ),
    "kotlin": Syntax(
        "/** {} */", "// {}", ("fun {}(a: Int) {{", "g(a)", "}}"), ("class {} {{", "}}")
    ),
    "bash": Syntax("# {}", "# {}", ("{}() {{", "echo a", "}}"), None),
}


@st.composite
def sources(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, str, int, int, str]]]:
    """A language, a source, and what stands in it: name, kind, first and last line, docstring."""
    name = draw(st.sampled_from(sorted(SYNTAX)))
    syntax = SYNTAX[name]
    lines = syntax.top.splitlines()
    expected: list[tuple[str, str, int, int, str]] = []

    def define(scope: str, depth: int, in_class: bool, may_be_class: bool) -> None:
        indent = "  " * depth
        lines.extend([""] * draw(st.integers(0, 2)))
        if draw(st.booleans()):
            lines.extend([indent + syntax.plain.format("Some words apart."), ""])
        is_class = syntax.container is not None and may_be_class and draw(st.booleans())
        own = f"{'C' if is_class else 'f'}{len(expected)}"
        documented = draw(st.booleans())
        first = len(lines) + 1
        if documented:
            lines.append(indent + syntax.comment.format(f"Says what {own} does."))
        at = len(expected)
        expected.append(("", "", 0, 0, ""))
        if is_class and syntax.container is not None:
            opening, closing = syntax.container
            lines.append(indent + opening.format(own))
        else:
            opening, statement, closing = syntax.function
            lines.extend([indent + opening.format(own), f"{indent}  {statement}"])
        for _ in range(draw(st.integers(0, 2)) if depth < 3 else 0):
            define(f"{scope}{own}.", depth + 1, is_class, is_class and syntax.nests)
        lines.append(indent + closing.format())
        kind = "class" if is_class else "method" if in_class else "function"
        doc = f"Says what {own} does." if documented else ""
        expected[at] = (scope + own, kind, first, len(lines), doc)

    for _ in range(draw(st.integers(1, 3))):
        define("", 0, False, True)
    return name, draw(st.sampled_from(["\n", "\r\n"])).join(lines), expected


@settings(max_examples=150, deadline=None)
@given(sources())
def test_made_sources_are_found_to_the_line(
    made: tuple[str, str, list[tuple[str, str, int, int, str]]],
) -> None:
    name, source, expected = made
    found = [
        (d.qualified_name, d.kind, d.start_row + 1, d.end_row + 1, d.described.docstring)
        for d in read(name, source).definitions
    ]
    assert found == expected, source


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_cut_and_noisy_sources_never_fail(name: str, data: st.DataObject) -> None:
    source = bytearray((SAMPLES / FILES[name]).read_bytes())
    start = data.draw(st.integers(0, len(source) // 2))
    end = data.draw(st.integers(start, len(source)))
    source = source[start:end]
    noise = st.tuples(
        st.integers(0, max(len(source) - 1, 0)), st.sampled_from(b"{}()<>\"'#@\n;=$\\ \0")
    )
    for at, byte in data.draw(st.lists(noise, max_size=6)):
        source[at : at + 1] = bytes([byte])
    cut = bytes(source)
    try:
        tree = language(name).parse(cut)
    except ValueError:
        assert name == "kotlin"  # its grammar does not come to an end in everything
        return
    found = find_definitions(tree, cut, language(name)).definitions
    open_spans: list[Definition] = []
    for d in found:  # in source order, outer before inner
        assert 0 <= d.start_byte < d.end_byte <= len(cut)
        assert (d.start_row, d.end_row) == (
            cut.count(b"\n", 0, d.start_byte),
            cut.count(b"\n", 0, d.end_byte),
        )
        while open_spans and open_spans[-1].end_byte <= d.start_byte:
            open_spans.pop()
        assert not open_spans or d.end_byte <= open_spans[-1].end_byte
        open_spans.append(d)
        assert Parameter("") not in (d.described.parameters or [])
