"""Kotlin and Scala: what is said of the samples, and odd sources."""

from __future__ import annotations

import pytest
from language_samples import (
    documented,
    flagged,
    named,
    read,
    spelled,
)

from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import

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


# -- Scala -----------------------------------------------------------------------------------------


def test_scala_documentation() -> None:
    assert documented("scala") == {
        "Plan": "A plan.\n\nIt never changes.",
        "Plan.next": "The next task.",
        "List.second": "The second item.",
        "given_Ordering_Plan.compare": "By name.",
        "Runner.run": "Runs.",
        "Runner.again": "After a method without braces.",
        "top": "Documented\n twice.",
    }


def test_scala_definitions() -> None:
    found = named("scala")
    found["Plan"] = read("scala").definitions[0]  # an object of the same name follows
    following = found["Plan.next"]
    assert [tuple(p) for p in following.described.parameters or []] == [
        ("index", "Int", "", "positional_or_keyword"),
        ("other", "=> A", "", "positional_or_keyword"),
        ("more", "T*", "", "var_positional"),
        ("ctx", "Context", "", "positional_or_keyword"),
    ]
    assert following.described.returns == "Option[T]"
    assert following.described.decorators == ["tailrec"]
    assert list(following.raises) == ["IllegalArgumentException", "planner.errors.Missing"]
    assert list(following.returns) == ["tasks.headOption"]
    assert following.branches == 9  # two ifs, four cases and a guard, for, while
    assert {"step", "log.warn", "Some"} <= set(following.calls)
    assert found["Plan"].described.bases == ["Base[T]", "Named"]
    assert found["Plan"].described.decorators == ['deprecated("use Plan3", "2")']
    assert found["Plan"].described.signature.endswith("extends Base[T](name)\n    with Named")
    assert list(found["Plan.next.twice"].returns) == ["2 * x"]
    assert not found["Plan.run"].returns and not found["Runner.stop"].returns
    assert not found["Plan.render"].returns
    assert found["Priority"].described.bases == ["Eq"]
    assert found["given_Ordering_Plan"].described.bases == ["Ordering[Plan]"]
    assert found["given_Ordering_Plan"].described.signature == "given Ordering[Plan] with"
    assert found["List.second"].parent_name == "List"
    assert list(found["Runner.run"].returns) == ["steps + 1"]
    assert found["Plan.size"].described.signature == "def size: Int"


def test_scala_private_and_test() -> None:
    assert flagged("scala", "is_private") == {"Plan.hidden", "Runner.stop"}
    assert flagged("scala", "is_test") == {"RunnerSuite", "RunnerSuite.alone"}
    scala = language("scala")
    assert scala.is_test_file("core/src/test/scala/A.scala") and scala.is_test_file("ASpec.scala")
    assert not scala.is_test_file("core/src/main/scala/Latest.scala")


def test_scala_imports_and_constants() -> None:
    found = read("scala")
    assert [name for statement in found.imports for name in statement.names] == [
        Import("Instant", "java.time", "Instant"),
        Import("Span", "java.time", "Duration"),
        Import("*", "java.time", "*"),
        Import("Try", "scala.util", "Try"),
        Import("*", "scala.concurrent", "*"),
        Import("*", "planner.model", "*"),
        Import("Job", "planner.model", "Task"),
        Import("now", "clock", "now"),
    ]
    assert found.constants == [("Limit", "16")]
    odd = read("scala", "import a\nimport b.{c => _, d}\nval (x, y) = z\nval f = (a: Int) => a\n")
    assert [name for statement in odd.imports for name in statement.names] == [
        Import("a", "a", None),
        Import("d", "b", "d"),
    ]
    assert odd.constants == []


def test_scala_odd_definitions() -> None:
    source = """
extension (pair: (Int, Int)) def sum = 1
extension [A] def none = 1
def f = if a then 1 else 2
def g = {
  // nothing
}
def h: Unit = k()
def `two words` = 1
class A:
  def a =
    1 // behind code
  def b = 2 /** of b */
  def c =
    3
    /** Not above d: a line lies between. */

  def d = 4
  val e = 5
"""
    found = named("scala", source)
    assert {"sum", "none", "f", "g", "h", "`two words`", "A.a", "A.d"} <= set(found)
    assert not any(found[n].returns for n in ("f", "g", "h")) and "A.e" not in found
    assert not any(d.described.docstring for d in found.values())
    assert found["A.c"].end_row == found["A.c"].start_row + 1
    assert found["g"].is_trivial
