"""Ruby, PHP, Bash and C#: what is said of the samples, and odd sources."""

from __future__ import annotations

import pytest
from language_samples import flagged, named, read, sample, spelled

from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import

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
    source = sample("bash")
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
