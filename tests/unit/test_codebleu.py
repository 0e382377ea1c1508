"""CodeBLEU: equal to the `codebleu` package on its pairs, and what holds of any text."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_sitter import Node

from forge_mcp.errors import BadInput, Unavailable
from forge_mcp.judging.codebleu import (
    LANGUAGES,
    Counts,
    codebleu_of,
    compute_codebleu,
    count,
    source,
    total,
)
from forge_mcp.judging.codebleu.dataflow import edges_of, normalised
from forge_mcp.judging.codebleu.keywords import KEYWORDS
from forge_mcp.judging.codebleu.rules import RULES, Rules
from forge_mcp.judging.codebleu.source import parse, without_comments
from forge_mcp.judging.codebleu.syntax import DEEPEST_ERROR, sub_trees
from forge_mcp.judging.codebleu.walks import Edge

FIXTURES = Path(__file__).parents[1] / "fixtures"
OF_THE_PACKAGE = ("python", "javascript", "go", "java", "rust", "c", "cpp")
SCRIPTS = ("javascript", "typescript", "tsx")
TOLERANCE = 1e-9  # the package's numbers are kept to 11 decimals


class Pair(NamedTuple):
    """A pair and the package's numbers: codebleu, n-gram, weighted n-gram, syntax, data flow.

    `stable`: the package as it is gives them whatever the order of strings in its sets is.
    """

    language: str
    mutation: str
    reference: str
    has_flow: bool
    prediction: str
    scores: list[float]
    stable: bool


@cache
def reference_file() -> dict[str, Any]:
    text = gzip.decompress((FIXTURES / "references" / "codebleu.json.gz").read_bytes())
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def pairs(language: str) -> list[Pair]:
    loaded = reference_file()
    return [
        Pair(row[0], row[1], *loaded["references"][row[2]], *row[3:])
        for row in loaded["pairs"]
        if row[0] == language
    ]


@cache
def counts(language: str) -> list[Counts]:
    return [count(pair.prediction, pair.reference, language) for pair in pairs(language)]


def samples(language: str) -> list[str]:
    """Whole functions in a language."""
    if language == "typescript":
        text = (FIXTURES / "languages" / "shapes.ts").read_text(encoding="utf-8")
        return [text, *samples("javascript")]
    if language == "tsx":
        text = (FIXTURES / "languages" / "Badge.tsx").read_text(encoding="utf-8")
        return [text, *samples("javascript")]
    return [pair.reference for pair in pairs(language) if pair.prediction == pair.reference]


# --- equal to the codebleu package -------------------------------------------------------------


@pytest.mark.parametrize("language", OF_THE_PACKAGE)
def test_every_number_is_that_of_the_codebleu_package(language: str) -> None:
    """As it is on hundreds of pairs; on the others with sets in the order of the text."""
    assert sum(pair.stable for pair in pairs(language)) >= 200
    for pair, counted in zip(pairs(language), counts(language), strict=True):
        ours = total([counted])
        score, ngram, weighted, syntax, flow = pair.scores
        what = f"{language}, {pair.mutation}: {pair.prediction!r}"
        assert ours.ngram == pytest.approx(ngram, abs=TOLERANCE), what
        assert ours.weighted_ngram == pytest.approx(weighted, abs=TOLERANCE), what
        assert ours.syntax == pytest.approx(syntax, abs=TOLERANCE), what
        assert (ours.dataflow is not None) == pair.has_flow, what
        assert (ours.dataflow or 0) == pytest.approx(flow, abs=TOLERANCE), what
        if flow == 0:  # where the package adds the full weight of the data flow
            score -= 0.25
        if not pair.has_flow:
            score /= 0.75
        assert ours.score == pytest.approx(score, abs=TOLERANCE), what


@pytest.mark.parametrize("language", OF_THE_PACKAGE)
def test_a_whole_corpus_and_other_weights_are_as_in_the_package(language: str) -> None:
    """Counts are summed over the pairs before anything is divided."""
    found = total(counts(language), tuple(reference_file()["weights"]))
    values = [found.score, found.ngram, found.weighted_ngram, found.syntax, found.dataflow]
    assert values == pytest.approx(reference_file()["corpora"][language], abs=TOLERANCE)
    assert found.n == len(pairs(language))
    mean = sum(total([counted]).ngram for counted in counts(language)) / found.n
    assert mean != pytest.approx(found.ngram, abs=1e-3)


def test_the_public_functions_are_totals_of_counts() -> None:
    some, weights = pairs("go")[:20], (0.1, 0.2, 0.3, 0.4)
    predictions, references = [p.prediction for p in some], [p.reference for p in some]
    assert compute_codebleu(predictions, references, "go", weights) == total(
        counts("go")[:20], weights
    )
    for pair, counted in zip(some, counts("go"), strict=False):
        assert codebleu_of(pair.prediction, pair.reference, "go") == total([counted])


def test_the_reference_numbers_say_what_made_them() -> None:
    versions = reference_file()["versions"]
    assert versions["codebleu"] == "0.7.0"
    recorded = json.loads((FIXTURES / "references" / "versions.json").read_text())
    assert {name: recorded[name] for name in ("codebleu", "tree-sitter")} == {
        name: versions[name] for name in ("codebleu", "tree-sitter")
    }


@pytest.mark.parametrize("language", OF_THE_PACKAGE)
def test_keywords_are_those_of_the_package(language: str) -> None:
    words = " ".join(sorted(KEYWORDS[language]))
    digest = hashlib.sha256(words.encode()).hexdigest()
    assert digest == reference_file()["keywords"][language]


def test_the_numbers_do_not_depend_on_the_order_of_strings_in_sets() -> None:
    pair = next(pair for pair in pairs("java") if not pair.stable)
    code = (
        "import sys; from forge_mcp.judging.codebleu import codebleu_of;"
        "print(codebleu_of(*sys.argv[1:]).dataflow)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code, pair.prediction, pair.reference, "java"],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(2)
    }
    assert printed == {
        f"{codebleu_of(pair.prediction, pair.reference, 'java').dataflow}\n".encode()
    }


# --- what holds of any text --------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_code_is_wholly_like_itself(language: str) -> None:
    texts = samples(language)[:10]
    assert len(texts) >= 6
    for text in texts:
        found = codebleu_of(text, text, language)
        assert (found.ngram, found.syntax, found.score) == (1, 1, 1), text
        assert found.weighted_ngram == pytest.approx(1, abs=1e-12)
        assert found.dataflow in (1, None)
    assert compute_codebleu(texts, texts, language).dataflow == 1


PIECES = st.sampled_from(
    [
        *"()[]{}<>:;,.=+-*/#\"'`\\é変xyi1\n\t\f\0 ",
        *("==", "+=", "++", "=>", "->", "//", "/*", "*/", "\r\n", "\\\n", '"""', "'''", "f'"),
        *("if", "else", "elif", "for", "in", "range", "while", "do", "switch", "match", "case"),
        *("def", "fn", "func", "function", "lambda", "class", "template", "return", "async"),
        *("var", "let", "const", "int", "await"),
    ]
)
GARBAGE = st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=40).map(" ".join))
GLUED = st.lists(PIECES, max_size=40).map("".join)


@given(prediction=GARBAGE | GLUED, reference=GARBAGE | GLUED, language=st.sampled_from(LANGUAGES))
@settings(max_examples=400)
def test_any_text_has_a_score_from_0_to_1(prediction: str, reference: str, language: str) -> None:
    found = codebleu_of(prediction, reference, language)
    for value in (found.score, found.ngram, found.weighted_ngram, found.syntax):
        assert 0 <= value <= 1
    assert found.dataflow is None or 0 <= found.dataflow <= 1
    same = codebleu_of(prediction, prediction, language)
    assert same.syntax == 1
    assert same.dataflow in (1, None)


def test_text_that_is_no_unicode_has_a_score_too() -> None:
    assert codebleu_of("x = '\ud800'", "x = '\ud800'", "python").syntax == 1


LOCALS = {  # functions whose local variables are $a, $b and $c
    "python": "def f(p, q=2):\n    $a, $b = p, q\n    for $c in range(p):\n        $a += $b * $c\n"
    "    return $a",
    "javascript": "function f(p) { let $a = p, $b = $a; for (var $c = 0; $c < p; $c++) "
    "{ $a += $b * $c; } return $a; }",
    "typescript": "function f(p: number) { let $a: number = p, $b = $a; "
    "const g = ($c = $b) => $c + $a; return g($b); }",
    "tsx": "const F = (p: number) => { const $a = p, $b = $a + 1; let $c = $b; "
    "return <p>{$a + $b * $c}</p>; };",
    "go": "func f(p int) int { var $a int = p; var $b = $a; for $c := 0; $c < p; $c++ "
    "{ $a += $b * $c }; return $a }",
    "java": "int f(int p) { int $a = p, $b = $a; for (int $c = 0; $c < p; $c++) "
    "{ $a = $a + $b * $c; } return $a; }",
    "rust": "fn f($a: i32, $b: i32) -> i32 { 0 }\nlet mut $c = 1; $c = $a + $b; $c += $a;",
    "c": "int f(int p) { int $a, $b, $c; $a = p; $b = $a; for ($c = 0; $c < p; $c++) "
    "{ $a = $a + $b * $c; } return $a; }",
    "cpp": "int f(int p) { int $a, $b, $c; $a = p; $b = $a; while (p > $c) "
    "{ $a = $b * $c; } return $a; }",
}
NAMES = st.lists(
    st.from_regex(r"v_[a-z0-9]{1,6}", fullmatch=True), min_size=6, max_size=6, unique=True
)


@given(names=NAMES, language=st.sampled_from(LANGUAGES))
def test_new_names_of_local_variables_change_no_data_flow(names: list[str], language: str) -> None:
    one, other, swapped = (LOCALS[language] for _ in range(3))
    for place, variable in enumerate(("$a", "$b", "$c")):
        one = one.replace(variable, names[place])
        other = other.replace(variable, names[place + 3])
        swapped = swapped.replace(variable, names[2 - place])
    for prediction in (other, swapped):
        for pair in ((prediction, one), (one, prediction)):
            found = codebleu_of(*pair, language)
            assert found.dataflow == 1
            assert found.syntax == 1
            assert found.ngram < 1
    mixed = LOCALS[language].replace("$a", "v").replace("$b", "v").replace("$c", "v")
    assert codebleu_of(mixed, one, language).dataflow not in (1, None)


@pytest.mark.parametrize(
    ("language", "depth"), [*((language, 2_000) for language in LANGUAGES), ("c", 40_000)]
)
def test_what_nests_deep_has_a_score(language: str, depth: int) -> None:
    """The deepest ends the process where its S-expression is written."""
    deep = "(" * depth + "a" + ")" * depth
    assert codebleu_of(deep, deep, language).syntax == 1
    assert codebleu_of("(a)", deep, language).syntax < 0.01


@pytest.mark.parametrize(
    ("language", "loop"),
    [
        ("python", "for i{n} in x:"),
        ("python", "while x:"),
        ("java", "for (int i = 0; i < x; i++) {{"),
        ("java", "for (int i : x) {{"),
        ("javascript", "while (x) {{"),
        ("go", "for i := 0; i < x; i++ {{"),
        ("rust", "while x {{"),
        ("c", "while (x) {{"),
    ],
)
def test_nested_loops_take_no_exponential_time(language: str, loop: str) -> None:
    """2^40 walks would not end; of the same text, the package's answer would be the same."""
    lines = [" " * n + loop.format(n=n) for n in range(40)] + [" " * 40 + "x = x + y"]
    text = "\n".join(lines) + "\n}" * (0 if language == "python" else 40)
    assert codebleu_of(text, text, language).dataflow == 1


# --- words -------------------------------------------------------------------------------------


def test_words_by_hand() -> None:
    """Prediction of 4 words, reference of 5: all 4 words, 3 pairs, 2 triples, 1 quadruple match."""
    found = codebleu_of("return a + b", "return a + b ;", "c")
    assert found.ngram == pytest.approx(math.exp(1 - 5 / 4))
    # 'return' weighs 1, the four others 0.2 each; no penalty for brevity.
    recalls = (1.6 / 1.8, 3 / 4, 2 / 3, 1 / 2)
    assert found.weighted_ngram == pytest.approx(math.prod(recalls) ** 0.25)
    # No triple and no quadruple of the prediction in the reference: 0.1 is put for 0.
    found = codebleu_of("x y b a y x", "a b x y", "c")
    precisions = (4 / 6, 1 / 5, 0.1 / 4, 0.1 / 3)
    assert found.ngram == pytest.approx(math.prod(precisions) ** 0.25)


@pytest.mark.parametrize(
    ("language", "keyword", "other"),
    [
        ("python", "lambda", "var"),
        ("javascript", "var", "lambda"),
        ("typescript", "keyof", "lambda"),
        ("tsx", "readonly", "lambda"),
        ("go", "chan", "lambda"),
        ("java", "synchronized", "lambda"),
        ("rust", "trait", "lambda"),
        ("c", "typedef", "template"),
        ("cpp", "template", "lambda"),
    ],
)
def test_a_missing_keyword_weighs_more(language: str, keyword: str, other: str) -> None:
    reference = f"one two three {keyword} four five six {other} seven eight nine"
    without_keyword, without_other = (
        codebleu_of(reference.replace(word, "zero"), reference, language)
        for word in (keyword, other)
    )
    assert without_keyword.weighted_ngram < without_other.weighted_ngram
    assert without_keyword.ngram == without_other.ngram


def test_nothing_is_like_nothing_in_syntax_only() -> None:
    found = codebleu_of("", "", "python")
    assert (found.ngram, found.weighted_ngram, found.syntax, found.dataflow) == (0, 0, 1, None)
    assert found.score == pytest.approx(1 / 3)
    assert codebleu_of("", "def f(a):\n    return a", "python").score == 0


# --- syntax ------------------------------------------------------------------------------------


def nodes_with_children(node: Node, root: bool = True) -> list[Node]:
    below = [inner for child in node.children for inner in nodes_with_children(child, False)]
    return [*below, node] if node.children or root else below


@pytest.mark.parametrize("language", OF_THE_PACKAGE)
def test_sub_trees_are_equal_where_their_s_expressions_are(language: str) -> None:
    """tree-sitter's own writing is the oracle, on whole code and on broken code."""
    numbers: dict[Any, int] = {}
    by_text: dict[str, int] = {}
    by_number: dict[int, str] = {}
    broken = 0
    for pair in pairs(language)[::3]:
        tree, _ = parse(pair.prediction, language)
        broken += tree.root_node.has_error
        nodes = nodes_with_children(tree.root_node)
        found = sub_trees(tree, numbers)
        assert len(found) == len(nodes)
        for node, number in zip(nodes, found, strict=True):
            assert by_text.setdefault(str(node), number) == number
            assert by_number.setdefault(number, str(node)) == str(node)
    assert broken >= 10


def test_the_field_that_a_node_fills_makes_a_difference() -> None:
    before, after = "for (; a ;) ;", "for (; ; a) ;"
    assert codebleu_of(before, before, "c").syntax == 1
    assert codebleu_of(before, after, "c").syntax == pytest.approx(1 / 3)  # the empty statement


def test_a_deep_tree_with_errors_is_numbered_without_its_s_expression() -> None:
    text = "(" * (DEEPEST_ERROR + 50) + "a" + ")" * (DEEPEST_ERROR + 50) + " $ $ ;"
    tree, _ = parse(text, "javascript")
    assert tree.root_node.has_error
    numbers: dict[Any, int] = {}
    assert sub_trees(tree, numbers) == sub_trees(tree, numbers)
    assert {name for name, below in numbers if below} >= {"program", "parenthesized_expression"}


# --- data flow ---------------------------------------------------------------------------------


def flow(text: str, language: str) -> list[tuple[str, int, str, tuple[str, ...]]]:
    return [
        (edge.name, edge.at, edge.relation, edge.sources)
        for edge in edges_of(*parse(text, language), language)
    ]


def test_data_flow_by_hand() -> None:
    #        0 1 2   3 4 5 6 7
    assert flow("a = 1\nb = a + c", "python") == [
        ("a", 0, "computedFrom", ("1",)),
        ("1", 2, "comesFrom", ()),
        ("b", 3, "computedFrom", ("a", "c")),
        ("a", 5, "comesFrom", ("a",)),
        ("c", 7, "comesFrom", ()),
    ]


def test_after_a_branch_a_name_may_be_either() -> None:
    def origins(text: str) -> tuple[int, ...]:
        last: Edge = edges_of(*parse(text, "python"), "python")[-1]
        assert last.name == "a"
        return last.origins

    start, branch, use = "a = 1\n", "if b:\n  a = 2\n", "print(a)"
    assert origins(start + branch + use) == (0, 6)
    assert origins(start + branch + "else:\n  a = 3\n" + use) == (6, 11)
    assert origins(start + branch + "elif c:\n  a = 3\n" + use) == (0, 6, 12)


def test_a_loop_gives_to_its_next_round() -> None:
    edges = edges_of(*parse("a = 1\nwhile a:\n  b = a\n  a = b", "python"), "python")
    reads = [edge.origins for edge in edges if (edge.name, edge.relation) == ("a", "comesFrom")]
    assert reads == [(0, 9), (0, 9)]


def test_a_token_of_two_relations_has_the_later_one() -> None:
    """Tokens that are missing, in broken code, may share their place."""
    first, second = Edge("a", 1, "computedFrom", ("b",), (0,)), Edge("a", 1, "comesFrom", (), ())
    assert Edge.joined([first, second]) == Edge("a", 1, "comesFrom", ("b",), (0,))
    assert Edge.joined([second, first]) == Edge("a", 1, "computedFrom", ("b",), (0,))


def test_what_the_package_fails_at_has_no_data_flow() -> None:
    """Both sides of the assignment have three children, and those of a string are no tokens."""
    text = "def f(self, a):\n    self.name = 'x'\n    return a"
    assert flow(text, "python") == []
    assert flow(text.replace("'x'", "1"), "python") != []


@pytest.mark.parametrize(
    ("language", "text"),
    [("python", "for in x: pass"), ("java", "for (int : x) y;"), ("javascript", "+= 1;")],
)
def test_code_with_parts_missing_is_walked_or_has_no_data_flow(language: str, text: str) -> None:
    whole = f"{text}\na = b\nc = a" if language == "python" else text
    found = codebleu_of(whole, whole, language)
    assert found.dataflow in (1, None)


def test_a_node_without_a_field_that_the_walk_needs_has_no_data_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Today's grammars put a missing node in its place, so a rule of no grammar shows it."""
    assert flow("f(a); a", "c") != []
    monkeypatch.setitem(RULES, "c", Rules(assignments=frozenset({"call_expression"})))
    assert flow("f(a); a", "c") == []


@pytest.mark.parametrize("language", ["typescript", "tsx"])
def test_javascript_has_the_same_data_flow_in_typescripts_grammars(language: str) -> None:
    """But for the names of classes, which are types in TypeScript's grammars."""
    texts = [text for text in samples("javascript") if not text.startswith("class")]
    assert len(texts) >= 5
    for text in texts:
        script = normalised(edges_of(*parse(text, "javascript"), "javascript"))
        assert normalised(edges_of(*parse(text, language), language)) == script
        assert script


def test_a_default_value_of_typescript_is_where_a_parameter_comes_from() -> None:
    assert ("b", 5, "computedFrom", ("a",)) in flow("(a: T, b = a) => b", "typescript")
    assert ("b", 5, "computedFrom", ("a",)) not in flow("(a: T, b: a) => b", "typescript")


def test_characters_that_are_not_ascii_change_nothing() -> None:
    ascii_text = "def f(a):\n    b = 'e' + a; return b + a\n"
    other = "def f(a):\n    b = 'é変😀' + a; return b + a\n"
    assert flow(ascii_text.replace("'e'", "x"), "python") == flow(
        other.replace("'é変😀'", "x"), "python"
    )
    assert [edge[1:3] for edge in flow(ascii_text, "python")] == [
        edge[1:3] for edge in flow(other, "python")
    ]
    assert {"a", "b"} <= {edge[0] for edge in flow(other, "python")}


# --- comments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x = 1  # one\n\n# two\ny = 2", "x = 1  \ny = 2"),
        ("def f():\n  '''Doc.\n\n  more'''\n  return 'kept'", "def f():\n  return 'kept'"),
        ("def f():\n    r'doc'\n    x()\n    'a statement'", "def f():\n    x()"),
        ("def f():\n  x()\n\n  'after a blank'", "def f():\n  x()\n  'after a blank'"),
        ("f()\n# why\nif a:\n  b\n  # c\n  'd'", "f()\nif a:\n  b\n  'd'"),
        ("def f():\n    # why\n    'doc'\n    x()", "def f():\n    x()"),
        ("if a:\n  if b:\n    c\n  'after a block'", "if a:\n  if b:\n    c\n  'after a block'"),
        ("'module'\nx = ('a'\n'b')", "x = ('a'\n)"),
        ("def f():\n\tx = 1\n\ty = 2", "def f():\n\tx = 1\n y = 2"),
        ("def f():\n\f    x\t= 1", "def f():\n\f    x = 1"),
        ("if a:\n    b\n\f    c", "if a:\n    b\n     c"),
        ("x = 1 + \\\n    2", "x = 1 +    2"),
        ("\\\n\\\nx", "x"),
        ("x = '#' + \"#\"  # out", "x = '#' + \"#\"  "),
        ("x = 'it\\'s # in'  # out", "x = 'it\\'s # in'  "),
        ("x = 'two \\\nlines'  # out", "x = 'two \\\nlines'  "),
        ("x = '  # out", "x = '  "),
        ("x = ''  # out", "x = ''  "),
        ("f(  # open", "f(  # open"),
        ("x = 1)  # closed", "x = 1)  # closed"),
        ("'''open  # string", "'''open  # string"),
        ("if a:\n    b\n  c  # between", "if a:\n    b\n  c  # between"),
    ],
)
def test_comments_and_docstrings_of_python(text: str, kept: str) -> None:
    assert without_comments(text, "python") == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x = 1; // one\n\n/* two\nlines */ y", "x = 1;  \n  y"),
        ("x = '//' + \"/*\" + '\\'//'; /**/", "x = '//' + \"/*\" + '\\'//';  "),
        ("x = 1; /* open", "x = 1; /* open"),
        ("x = `http://a`; y", "x = `http: "),
    ],
)
def test_comments_of_other_languages(text: str, kept: str) -> None:
    assert without_comments(text, "javascript") == kept


# --- what differs from the package, notes and errors -------------------------------------------


def test_no_match_at_all_counts_as_0_and_the_note_says_so() -> None:
    found = codebleu_of("return b", "def f(a):\n    b = a\n    return b", "python")
    assert found.dataflow == 0
    parts = (found.ngram, found.weighted_ngram, found.syntax)
    assert found.score == pytest.approx(sum(parts) / 4)
    assert "counts as 0" in found.note


def test_without_data_flow_its_weight_is_spread_and_the_note_says_so() -> None:
    found = compute_codebleu(["f() ; g ( )"], ["f() ; g ( ) ;"], "c", (0.1, 0.2, 0.3, 0.4))
    assert found.dataflow is None
    parts = (found.ngram, found.weighted_ngram, found.syntax)
    expected = (parts[0] + 2 * parts[1] + 3 * parts[2]) / 6
    assert found.score == pytest.approx(expected)
    assert "spread over the other three" in found.note
    both = compute_codebleu(["f()", "a = b; a"], ["f()", "a = b; a"], "c")
    assert both.dataflow == 1
    assert "spread" not in both.note


def test_notes_say_what_is_particular_to_a_language() -> None:
    text = "let a = 1; a"
    assert "no TypeScript" in codebleu_of(text, text, "typescript").note
    assert codebleu_of(text, text, "javascript").note == ""
    assert "Rust" in codebleu_of(text, text, "rust").note
    assert "C++" in codebleu_of("a = b; a", "a = b; a", "cpp").note


def test_pairs_of_several_languages_have_one_total() -> None:
    counts = [count(text, text, name) for name in LANGUAGES for text in samples(name)[:2]]
    found = total(counts)
    assert found.n == 18
    assert found.score == pytest.approx(1)
    for sentence in ("no TypeScript", "Rust", "C++"):
        assert found.note.count(sentence) == 1


def test_what_cannot_be_computed_is_said() -> None:
    with pytest.raises(BadInput, match="1 predictions cannot be compared with 2"):
        compute_codebleu(["a"], ["a", "b"], "python")
    with pytest.raises(BadInput, match="no pairs"):
        compute_codebleu([], [], "python")
    with pytest.raises(BadInput, match="'cobol'"):
        codebleu_of("a", "a", "cobol")
    with pytest.raises(BadInput, match="all of its weight"):
        compute_codebleu(["f()"], ["f()"], "python", (0, 0, 0, 1))


@pytest.mark.parametrize(
    "weights",
    [(0.5, 0.5, 0.5, 0.5), (-0.5, 0.5, 0.5, 0.5), (math.nan, 0.5, 0.25, 0.25), (0.5, 0.25, 0.25)],
)
def test_impossible_weights_are_refused(weights: Any) -> None:
    with pytest.raises(BadInput, match="cannot be the weights"):
        compute_codebleu(["a"], ["a"], "python", weights)


def test_a_missing_grammar_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(source.GRAMMARS, "go", ("tree-sitter-gone", "language"))
    source._parser.cache_clear()
    with pytest.raises(Unavailable, match="grammar for go") as error:
        codebleu_of("a", "a", "go")
    assert "pip install -U tree-sitter-gone" in error.value.next_step
    source._parser.cache_clear()
