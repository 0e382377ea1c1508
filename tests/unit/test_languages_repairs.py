"""What a grammar does not know, files that are broken, and a language of tables alone."""

from __future__ import annotations

from typing import ClassVar

import pytest
from language_samples import named, outline, read

from forge_mcp.mining.definitions import find_definitions
from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Import, Language
from forge_mcp.schemas.code_blocks import BlockType

# What TypeScript has and its grammar does not: annotations of variance, `export type *`, arguments
# of an imported type, escapes in the type of a template, and call signatures without semicolons.
MODERN = """\
export interface Store<in out K, out V = never> {
  get(key: K): V
}
export type Read<
  // what is read
  out A
> = () => A
class Box<const in T extends string> {
  open(): T { return this.value }
}
export type * from './types'
function load(): import("./deep").Nested<A, B> { return nested() }
type Message = `No \\`Self\\` in ${string}`
export const of: {
  <A>(value: A): Box<A>
  /**
   * With another, as in `src/*`.
   */
  <A extends Map<string, Array<Box<(a: A) => B>>>>(value: A): Box<A>

  <A = string>(): A // the last
} = internal.of
export function after(): number { return 1 }
"""


@pytest.mark.parametrize("name", ["typescript", "tsx"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_typescript_that_its_grammar_does_not_know(name: str, line_break: str) -> None:
    source = MODERN.replace("\n", line_break)
    assert language(name).parser.parse(source.encode()).root_node.has_error
    found = read(name, source)
    assert not found.has_error
    assert not any(d.has_error or d.in_error for d in found.definitions)
    assert outline(found) == [
        ("Store", 1, 3),
        ("Read", 4, 7),
        ("Box", 8, 10),
        ("Box.open", 9, 9),
        ("load", 12, 12),
        ("Message", 13, 13),
        ("after", 23, 23),
    ]
    by_name = {d.name: d.described for d in found.definitions}
    assert by_name["Store"].signature == "export interface Store<in out K, out V = never>"
    assert by_name["Box"].signature == "class Box<const in T extends string>"
    assert "// what is read" in by_name["Read"].signature  # texts are the source's
    assert by_name["load"].returns == 'import("./deep").Nested<A, B>'
    assert by_name["Message"].signature == "type Message = `No \\`Self\\` in ${string}`"
    assert found.imported == [Import("*", "./types", "*", passed_on=True)]
    assert [statement.text for statement in found.imports] == ["export type * from './types'"]
    assert [name for name, _ in found.constants] == ["of"]
    assert found.constants[0][1] == "internal.of"


def test_typescript_names_stay_names_where_a_file_is_repaired() -> None:
    source = """export type * from 'a'
export function f<out extends string>(a: out, out: string) {
  return g(a, out as string, out satisfies B, a < out && h)
}
const x = y
  <A>z
export default
  <A>(a: A) => a
"""
    found = read("typescript", source)
    assert not found.has_error
    assert [d.qualified_name for d in found.definitions] == ["f", "default"]
    assert found.definitions[0].returns == {
        "g(a, out as string, out satisfies B, a < out && h)": None
    }


def test_typescript_errors_stay() -> None:
    source = "class A<in T> {\n  f( {\n}\nexport function g<out U>(u: U) { return u }\n"
    found = read("typescript", source)
    assert found.has_error
    assert any(d.has_error or d.in_error for d in found.definitions)
    assert "in T" in source[: found.definitions[0].end_byte]


def test_an_import_of_nothing_brings_in_nothing() -> None:
    found = read("java", "import static;\nclass A { int f() { return 1; } }\n")
    assert found.imported == []
    assert [d.qualified_name for d in found.definitions] == ["A", "A.f"]


def test_a_broken_string_documents_nothing() -> None:
    broken = named("python", "def f():\n    ('Doc.' 1)\n    return 1\n")["f"]
    assert (broken.described.docstring, broken.has_error) == ("", True)
    assert named("python", "def f():\n    ('Doc.'), 1\n")["f"].described.docstring == ""  # a tuple
    assert named("python", "def f():\n    ('Doc.')\n")["f"].described.docstring == "Doc."


def test_kotlin_comments_far_above_document_nothing() -> None:
    found = named("kotlin", "/** Far. */\n\n\nfun f() { g() }\n")["f"]
    assert (found.start_row, found.described.docstring) == (3, "")


def test_a_computed_name_is_none() -> None:
    source = "const { a } = function () {}\nconst b = { [key]: () => 1, c: () => 2 }\n"
    assert [d.qualified_name for d in read("javascript", source).definitions] == ["b.c"]


class Tables(Language):
    """A language that overrides nothing."""

    name = "tables"
    package = "tree-sitter-java"
    definitions: ClassVar[dict[str, tuple[BlockType, str]]] = {
        "class_declaration": ("class", ""),
        "method_declaration": ("method", ""),
    }
    comments: ClassVar[frozenset[str]] = frozenset({"line_comment"})
    plain_comments_document: ClassVar[bool] = True
    imports_at: ClassVar[frozenset[str]] = frozenset({"import_declaration"})


def test_tables_alone_make_a_language() -> None:
    source = b"""import a.B;

// Counts.
class A extends B {
  // Adds one.
  int f(int x) { return x + 1; }
}
"""
    spoken = Tables()
    found = find_definitions(spoken.parse(source), source, spoken)
    assert outline(found) == [("A", 3, 7), ("A.f", 5, 6)]
    first, method = (d.described for d in found.definitions)
    assert (first.signature, first.docstring, first.bases) == ("class A extends B", "Counts.", [])
    assert (method.signature, method.docstring) == ("int f(int x)", "Adds one.")
    assert [(p.name, p.annotation) for p in method.parameters or []] == [("x", "int")]
    assert found.module is not None
    assert (found.module.imports, found.imported) == (["import a.B;"], [])
