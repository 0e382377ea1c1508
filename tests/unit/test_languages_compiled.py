"""Rust, C, C++ and Swift: what is said of the samples, odd sources, and macros."""

from __future__ import annotations

import pytest
from language_samples import documented, flagged, named, parameters, read

from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import

# -- Rust ------------------------------------------------------------------------------------------


def test_rust_documentation() -> None:
    found = read("rust")
    assert documented("rust") == {
        "Parcel": "A parcel.\n\n```\nlet p = Parcel(1, 2);\n```",
        "Size": "Sizes that a parcel may have.",  # behind an attribute, before a plain comment
        "Stored": "What can be stored.",
        "Stored.key": "The key.",
        "Shelf": "A shelf.",
        "Shelf.put": "Puts a parcel on the shelf.\n\n The old one is returned.",
        "shelf": "Makes a shelf.",
        "send": "Sends a parcel.",
        "far": "Documented, and far above.",  # as the compiler sees it
    }
    assert found.docstring == "A shelf keeps parcels.\n\nIt never grows."
    mixed = named("rust", "/** One. */\n/// Two.\n#[a]\n/** Three. */\nfn f() {}\n")["f"]
    assert (mixed.described.docstring, mixed.start_row) == ("One.\nTwo.\nThree.", 0)
    header = "/** Copyright 2024 A. */\nfn f() {}\nconst A: u8 = 1; /// of f?\nfn g() {}\n"
    assert {d.described.docstring for d in read("rust", header).definitions} == {""}
    assert read("rust", "// plain\nfn f() {}\n").docstring == ""


def test_rust_functions() -> None:
    found = named("rust")
    put = found["Shelf.put"]
    assert parameters(put) == [
        ("key", "String", ""),
        ("(left, right)", "(u32, u32)", ""),
        ("parcel", "T", ""),
        ("grow", "F", ""),
    ]
    assert put.described.returns == "Result<Option<T>, fmt::Error>"
    assert put.described.decorators == ["inline", 'must_use = "the old parcel"']
    assert put.described.extra == {"is_async": True}
    assert put.described.signature.startswith("pub async unsafe fn put<K, F>(\n")
    assert put.branches == 9  # if, && and ||, three arms, while, for, the if of the closure
    tail = 'Ok(self.parcels.insert("k".to_string(), parcel))'
    assert list(put.returns) == [tail, "Err(fmt::Error)"]  # not those of the closure
    assert list(put.calls)[:4] == ["self.parcels.len", "Err", "key.push_str", "format!"]
    assert {"log::warn!", "measure", "sizes"} <= set(put.calls)
    assert not found["Shelf.todo"].returns and not found["Stored.boxed"].described.parameters
    assert found["Shelf.total"].is_trivial is False
    assert parameters(found["log_all"])[1] == ("...", "", "")
    assert found["Stored"].described.bases == ["fmt::Debug", "Send"]
    assert list(found["Stored"].methods) == ["key", "weight"]
    assert found["shelf"].described.signature == "macro_rules! shelf"
    assert found["Parcel"].described.signature == "pub struct Parcel(pub u32, u64)"
    assert found["Shelf.put"].parent_name == "Shelf"


def test_rust_private_and_test() -> None:
    private = {"Bits", "Parcels", "Shelf.put.helper", "Shelf.total", "Shelf.todo", "Stored.boxed"}
    private |= {"local", "depths.dig", "far", "tests.setup", "tests.puts_parcels", "alone"}
    assert flagged("rust", "is_private") == private  # not what a trait asks for
    assert flagged("rust", "is_test") == {"tests.setup", "tests.puts_parcels", "alone"}
    rust = language("rust")
    assert rust.is_test_file("src/tests.rs") and rust.is_test_file("benches/all.rs")
    assert not rust.is_test_file("src/contest.rs")


def test_rust_tests_by_configuration() -> None:
    source = (
        "#[cfg(test)]\n// for tests\n#[allow(a)]\nmod b { fn f() {} }\n#[a]\nmod c { fn f() {} }\n"
    )
    found = named("rust", source + "#[cfg(test)]\nfn g() {}\nfn declared();\n")
    assert {name: d.is_test for name, d in found.items()} == {"b.f": True, "c.f": False, "g": True}


def test_rust_imports_and_constants() -> None:
    found = read("rust")
    assert [name for statement in found.imports for name in statement.names] == [
        Import("collections", "std", "collections"),
        Import("HashMap", "std::collections", "HashMap"),
        Import("Slot", "std::collections::hash_map", "Entry"),
        Import("fmt", "std", "fmt"),
        Import("*", "crate::errors", "*"),
        Import("logging", "log", None),
        Import("*", "super", "*"),
    ]
    assert found.constants == [("LIMIT", "1 << 4"), ("GREETING", '"hello { } // no comment"')]
    odd = read("rust", "use a::T as _;\nuse b;\nuse {c::d, *};\nuse self::e::{self};\n").imports
    assert [name for statement in odd for name in statement.names] == [
        Import("b", "b", None),
        Import("d", "c", "d"),
        Import("*", "", "*"),
        Import("e", "self", "e"),
    ]


def test_rust_macros_around_items() -> None:
    kept = "lazy_static! { static ref A: u8 = 1; }\nempty! {}\nround!(fn f() {});\n"
    assert not read("rust", kept).definitions
    nested = "a! {\n  b! {\n    impl T { c! { fn f() {} } }\n  }\n}\r\nfn g() {}\n"
    assert [(d.qualified_name, d.start_row) for d in read("rust", nested).definitions] == [
        ("T.f", 2),
        ("g", 5),
    ]
    assert not read("rust", "fn f() {}\na! {\n  fn g( {}\n}\n").definitions[0].has_error


# -- C ---------------------------------------------------------------------------------------------


def test_c_documentation() -> None:
    found = read("c")
    assert documented("c") == {
        "MIN": "The smaller of two.",
        "ring": "A ring.\nIt holds bytes.",
        "place": "Where a ring stands.",
        "ring_write": "Writes bytes.\n\nReturns how many.",
        "ring_old": "old style",
    }
    assert found.docstring == "@file ring.c\nA ring buffer for bytes."
    assert read("c", "/* A. */\nint x;\n").docstring == read("c", "int x;\n").docstring == ""
    directive = "// clang-format off\nint f(void) { return 1; }\n"
    assert named("c", directive)["f"].start_row == 1


def test_c_functions() -> None:
    found = named("c")
    write = found["ring_write"]
    assert parameters(write) == [("ring", "struct ring *", ""), ("bytes", "const char *", "")]
    assert write.branches == 9  # if, || and &&, for, two cases, ?:, do, ||
    assert list(write.calls) == ["ring->put", "MIN"]
    assert list(write.returns) == ["-1", "(*ring->done)(ring), count"]
    cells = found["ring_cells"]
    assert parameters(cells) == [
        ("ring", "struct ring *", ""),
        ("rows", "int rows[2]", ""),
        ("each", "int (*each)(int)", ""),
        ("...", "", ""),
    ]
    assert cells.described.returns == "int *"
    assert found["ring_hash"].described.returns == "unsigned long"
    assert not found["ring_hash"].described.parameters
    assert found["ring_handler"].described.returns == "int"
    assert parameters(found["ring_handler"]) == [("index", "int", "")]
    assert parameters(found["ring_name"]) == [("int", "int", ""), ("char", "char", "")]
    assert found["ring_name"].described.returns == "const char *"
    assert found["ring_call"].described.returns == "int"
    assert found["RING_DEFINE"].described.returns == ""
    assert parameters(found["MIN"]) == [("a", "", ""), ("b", "", "")]
    assert parameters(found["TRACE"]) == [("...", "", "")]
    assert found["MIN"].described.signature.startswith("#define MIN(a, b)")
    assert not found["MIN"].is_trivial
    assert found["test_ring"].described.decorators == ["nodiscard"]


def test_c_private_and_test() -> None:
    assert flagged("c", "is_private") == {"ring_hash", "ring_handler", "ring_lock"}
    assert flagged("c", "is_test") == {"test_ring"}
    c = language("c")
    assert all(map(c.is_test_file, ("tests/a.c", "src/test_a.c", "a_test.c", "a-unittest.c")))
    assert not any(map(c.is_test_file, ("src/latest.c", "contest/a.c")))


def test_c_imports_and_constants() -> None:
    found = read("c")
    assert [name for statement in found.imports for name in statement.names] == [
        Import("*", "stdio.h", "*"),
        Import("*", "ring.h", "*"),
    ]
    assert found.constants == [("RING_SIZE", "64"), ("masks", "{ 1, 3 }")]
    source = 'extern "C" {\n#ifdef A\n#define B 1\n#endif\n}\nint x = 1;\nconst int y;\n'
    assert read("c", source).constants == [("B", "1")]
    assert not read("c", "#include NAME\n").imports[0].names


def test_c_odd_definitions() -> None:
    source = """
typedef struct node node;
typedef enum { A } *only_pointer;
struct { int x; } unnamed, *p;
static const struct named { int x; } table[] = { { 1 } };
int (broken { return 1; }
extern "C" int linked(void) { return 1; }
void (*signal(int))(int) { return 0; }
LIKE int x(void);
else if (a) { b(); }
int outer(void) {
    int inner(int a) { return a; }
    vmcase(OP_ADD) { inner(1); }
    return inner(2);
}
"""
    found = named("c", source)
    assert found["linked"].described.signature == 'extern "C" int linked(void)'
    assert found["only_pointer"].label == "enum"
    assert found["named"].described.signature == "struct named"
    assert {"node", "outer.inner", "signal"} <= set(found)
    assert not {"unnamed", "x", "vmcase", "outer.vmcase", "if", "else"} & set(found)


# -- macros of C and C++ ---------------------------------------------------------------------------

# A source that parses with its macros hidden, and the definitions in it.
MACROS = [
    ("c", "API const char *f(int a) {\n  return g(a);\n}\n", "f 1 3"),
    ("c", "sinline Type f(int a) { return a; }\n", "f 1 1"),
    ("c", "API lua_Function at(int a, lua_Function b) { return b; }\n", "at 1 1"),
    ("c", "static void printflike(1, 2)\nf(const char *x, ...)\n{\n}\n", "f 1 4"),
    ("c", "int f(void) {\n  each(a, b) {\n    g(a);\n  }\n  return 1;\n}\n", "f 1 6"),
    ("c", "int f(void) {\n  BEGIN_THREADS\n  g();\n  return cast(int *, 1);\n}\n", "f 1 5"),
    ("c", "int f(int a)\n{\n#ifdef A\n  if (a) {\n#else\n  if (!a) {\n#endif\n  }\n}\n", "f 1 9"),
    ("c", 'int a[] = {\n#include "list.h"\n};\nint f(void) { return 1; }\n', "f 4 4"),
    (
        "c",
        "#define A(x) \\\n  one(x); /* { */ \\\n  two(x)\nint f(void) {\n#if A\n  x\n#else\n  y\n"
        "#endif\n  ;\n#endif\n}\n",
        "A 1 3, f 4 12",
    ),
    ("c", "local int f OF((int a));\nint g(a) int a; { return a; }\n", "g 2 2"),
    ("c", "sapi lua_Function lua_at (int a, lua_Function b) { return b; }\n", "lua_at 1 1"),
    ("c", "int f(void) {\n  check(a, ->b);\n  return 1;\n}\n", "f 1 4"),
    ("c", "words only\n", ""),
    ("c", "EX FILE *f(int a);\nEX ALLOC(2) FILE *h(int a)\n{ return 1; }\n", "h 2 3"),
    ("c", "int f(void) {\n  begin(a)\n  x = 1;\n}\n", "f 1 4"),
    ("cpp", "void f() {\n  CHECK(a b, 2);\n  g();\n}\n", "f 1 4"),
    (
        "cpp",
        "enum class A :\n  TYPE\n{ X };\nint f(long long long b) EXCLUDES(mu_) {}\n",
        "A 1 3, f 4 4",
    ),
    ("cpp", "struct A {\n  inl A(int b) : a_(b) {}\n};\n", "A 1 3, A.A 2 2"),
    ("cpp", "void f(A a = {}) { g(); }\nint g(int* = 0) { return 1; }\n", "f 1 1, g 2 2"),
    ("cpp", "BEGIN_NAMESPACE\nMODULE_EXPORT\n\nenum class A : int { B };\n", "A 4 4"),
    ("cpp", "class API(1) A final : public B {\n  int f() { return 1; }\n};\n", "A 1 3, A.f 2 2"),
    ("cpp", "struct A {\n  INLINE A() noexcept : a_(1), b_{2} {}\n};\n", "A 1 3, A.A 2 2"),
    ("cpp", "struct A {\n  int f() const EXCLUDES(mu_) {\n  }\n};\n", "A 1 4, A.f 2 3"),
    (
        "cpp",
        "struct A {\nPRIVATE_UNLESS_TESTED:\n  std::string f() { return 1; }\n};\n",
        "A 1 4, A.f 3 3",
    ),
    ("cpp", "template <class T, ENABLE_IF(is<T>::value)>\nCONSTEXPR void f(T t) {}\n", "f 1 2"),
    ("cpp", "EXPORT std::string f(A a = {}) {\n  return b->operator[](1);\n}\n", "f 1 3"),
    ("cpp", "TEST(A, B) {\n  ASSERT_HEX(unsigned int, 1);\n  ASSERT_X(int, a)\n}\n", "A.B 1 4"),
    ("cpp", "void f() {\n  TRY\n  {\n    g();\n  }\n  CATCH (A& a)\n  {\n  }\n}\n", "f 1 9"),
]


@pytest.mark.parametrize(("name", "source", "expected"), MACROS)
def test_macros_do_not_hide_definitions(name: str, source: str, expected: str) -> None:
    found = read(name, source)
    assert not any(d.has_error or d.in_error for d in found.definitions)
    spans = [f"{d.qualified_name} {d.start_row + 1} {d.end_row + 1}" for d in found.definitions]
    assert ", ".join(spans) == expected


def test_parameters_are_named_behind_macros() -> None:
    source = """int f(OUT struct a *b, const B *c, int d UNUSED, in_ int e, int __attr f,
    char *g UNUSED, struct h *i __unused, const char *const IN j) { return 1; }"""
    found = [name for name, _, _ in parameters(named("c", source)["f"])]
    assert found == ["b", "c", "d", "e", "f", "g", "i", "j"]


@pytest.mark.parametrize("name", ["c", "cpp"])
def test_real_errors_stay(name: str) -> None:
    for body in ("return (1;", "int = 2 +;", "x = 1 y[;", "return a b;", "if (a b) { }", "x = 1"):
        found = read(name, f"int f(void) {{\n  {body}\n}}\n\nint g(void) {{ return 1; }}\n")
        assert found.has_error
        assert all(d.has_error or d.in_error for d in found.definitions if d.name == "f"), body
    assert named(name, "int f(int a b) { return 1; }\n")["f"].has_error


# -- C++ -------------------------------------------------------------------------------------------


def test_cpp_documentation() -> None:
    assert documented("cpp") == {
        "geometry.dense.Number": "Numbers.",
        "geometry.dense.Matrix": "A matrix.",
        "geometry.dense.Matrix.at": "The value at a place.",
        "Matrix.Matrix": "Out of line.",
    }


def test_cpp_definitions() -> None:
    found = named("cpp")
    matrix = found["geometry.dense.Matrix"]
    assert matrix.described.bases == ["Base<T>", "detail::Shape"]
    assert {"operator==", "operator bool", "~Matrix", "swap", "fill"} <= set(matrix.methods)
    at = found["geometry.dense.Matrix.at"]
    assert parameters(at) == [
        ("row", "const Row&", ""),
        ("place", "int (&place)[2]", ""),
        ("T*", "T*", "nullptr"),
        ("column", "int", "3"),
    ]
    assert at.described.returns == "double"
    assert at.described.decorators == ["nodiscard"]
    assert at.described.signature.startswith("virtual auto at(")
    fill = found["geometry.dense.Matrix.fill"]
    assert [tuple(p) for p in fill.described.parameters or []][1] == (
        "rest",
        "Args&&...",
        "",
        "var_positional",
    )
    constructor = found["Matrix.Matrix"]
    assert constructor.described.signature.endswith("Matrix<T, N>::Matrix(int rows)")
    assert (constructor.described.returns, constructor.parent_name) == ("", "Matrix")
    assert list(constructor.raises) == ["std::length_error", "dense::Error"]
    assert constructor.branches == 5  # if, and, for, two handlers
    assert list(constructor.calls) == ["std::length_error", "::print"]
    assert not constructor.returns  # that of the lambda is not its own
    assert found["geometry.dense.Matrix.operator bool"].described.returns == "bool"
    assert found["geometry.Matrix.operator int"].described.returns == "int"
    assert found["geometry.Matrix.front"].described.returns == "double&"
    assert "Cell" in found["geometry.Matrix.operator()"].calls
    assert parameters(found["twice"]) == [("x", "int", "")]
    assert found["Exported.Exported"].described.returns == ""
    assert found["Exported.name"].described.returns == "std::string"
    assert (
        found["geometry.dense.Number"].described.signature
        == "template <typename T>\nconcept Number"
    )


def test_cpp_private_and_test() -> None:
    private = {"geometry.dense.Matrix.forget", "geometry.dense.Matrix.shrink"}
    assert flagged("cpp", "is_private") == private | {"twice", "counted", "unseen"}
    assert flagged("cpp", "is_test") == {"MatrixTest.AddsRows", "multiplies"}
    assert not named("cpp")["MatrixTest.AddsRows"].described.parameters


def test_cpp_imports_and_constants() -> None:
    found = read("cpp")
    assert [name for statement in found.imports for name in statement.names] == [
        Import("*", "vector", "*"),
        Import("*", "matrix.hpp", "*"),
        Import("vector", "std", "vector"),
        Import("*", "geometry", "*"),
        Import("fs", "std::filesystem", None),
    ]
    assert found.constants == [("kRows", "4")]


def test_cpp_odd_definitions() -> None:
    source = """
template <> int f<int>(int a) { return a; }
struct X { explicit operator std::vector<T>*() const { return 1; } };
MAKE(made) { }
begin_namespace detail { }
auto f2 = [] { return 1; };
void g() { auto local = [] { return 1; }; h([] {}); vmcase(A) { } }
else if (a) { b(); }
namespace { class Hidden { public: void m() {} }; }
TEST() { }
static constexpr long long h() { return 1; }
int DWORD_FUNC(HANDLE) k();
namespace a { namespace b { int deep() { return 1; } } }
"""
    found = named("cpp", source)
    assert {"f", "X.operator std::vector<T>*", "MAKE", "f2", "g", "a.b.deep", "TEST"} <= set(found)
    assert found["Hidden"].is_private and found["Hidden.m"].is_private
    assert found["h"].described.returns == "long long"
    assert not {"local", "g.local", "g.vmcase", "if", "else", "detail"} & set(found)


# -- Swift -----------------------------------------------------------------------------------------


def test_swift_documentation() -> None:
    assert documented("swift") == {
        "Playing": "Something that plays.\n\n- Note: never two at a time.",
        "Playing.play": "Plays an item.",
        "Player": "Plays tracks.",
        "Player.volume": "The loudness.",
        "Player.init": "Makes a player.",
        "Player.play": "Plays an item.",
        "Player.PlayerError": "Errors.",
    }


def test_swift_definitions() -> None:
    found = named("swift")
    play = found["Player.play"]
    assert [tuple(p) for p in play.described.parameters or []] == [
        ("item", "T", "", "positional_only"),
        ("volume", "Double", "", "keyword_only"),
    ]
    assert play.described.returns == "Bool"
    assert play.described.decorators == ["discardableResult", "objc"]
    assert play.described.extra["is_async"]
    assert play.described.extra["return_expressions"] == [
        "#require(tracks.first) == item ? true : cache[1] ?? Box<Bool>(value: false).value"
    ]  # not those of the nested function and the closure
    assert play.described.signature.startswith("public func play(_ item: T")
    assert list(play.raises) == ["PlayerError", "Stopped"]
    assert play.branches == 11  # if, && and ||, for, while, two cases, repeat, catch, ?: and ??
    assert {"self.engine?.start", "#require", "Box", "PlayerError.tooLoud"} <= set(play.calls)
    second = found["Player.init"]
    assert parameters(second) == [
        ("source", "S", ""),
        ("label", "String", '"none"'),
        ("rest", "Int...", ""),
    ]
    assert second.described.signature.startswith("convenience init?<S>(")
    assert found["Player"].described.bases == ["NSObject", "Playing"]
    assert list(found["Player.count"].returns) == ["tracks.count"]
    assert found["Player.volume"].described.returns == "Double"
    assert list(found["Player.make"].returns) == ["Player(limit: 2)"]
    assert parameters(found["Player.compare"]) == [("left", "", ""), ("right", "", "")]
    assert found["Player.shuffle"].parent_name == "Player"
    assert parameters(found["apply"])[1] == ("values", "inout [Int]", "")
    assert not found["stringify"].returns
    assert list(found["Player.PlayerError"].methods) == ["text"]


def test_swift_private_and_test() -> None:
    assert flagged("swift", "is_private") == {"Player.stop", "Player.Stopped.hidden"}
    tests = {"PlayerTests", "PlayerTests.testPlays", "PlayerTests.helper", "playsAgain"}
    assert flagged("swift", "is_test") == tests
    swift = language("swift")
    assert swift.is_test_file("Tests/AppTests/A.swift") and swift.is_test_file("ASpec.swift")
    assert not swift.is_test_file("Sources/Contest.swift")


def test_swift_imports_and_constants() -> None:
    found = read("swift")
    assert [name for statement in found.imports for name in statement.names] == [
        Import("*", "Foundation", "*"),
        Import("Track", "Audio", "Track"),
    ]
    assert found.constants == [("queueLimit", "16"), ("secret", '"{"')]
    source = "let (a, b) = (1, 2)\nvar c = 3\nlet d: Int\nlet e = { 1 }\nlet f = 2\n"
    assert read("swift", source).constants == [("f", "2")]


def test_swift_odd_definitions() -> None:
    source = """
let double: (Int) -> Int = { $0 * 2 }
var state = { 1 }
func f() {
    let local = { 1 }
    var computed: Int { 1 }
}
func g() -> Int {
    // only a comment
}
func h() -> Int {
    if true { return 1 } else { return 2 }
}
var value: Int {
    get { 1 }
}
extension Array where Element == Int {
    var total: Int { 0 }
}
"""
    found = named("swift", source)
    assert set(found) == {"double", "f", "f.computed", "g", "h", "value", "Array.total"}
    assert found["Array.total"].kind == "method" and found["double"].kind == "function"
    assert found["h"].described.extra["return_expressions"] == ["1", "2"]
    assert not found["g"].returns and not found["h"].returns and not found["value"].returns
    assert not parameters(found["double"])
