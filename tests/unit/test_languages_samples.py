"""Every language: a sample to the line, sources made at random, and files cut and changed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_samples import FILES, read, sample

from forge_mcp.mining.definitions import Definition, find_definitions
from forge_mcp.mining.languages import language
from forge_mcp.mining.languages.base import Parameter

# Every definition of the samples: qualified name (a leading dot: in the last one without), kind,
# label, first and last line.
OUTLINES = {
    "rust": """
        Parcel class struct 19 25
        Size class enum 27 34
        Bits class union 36 38
        Parcels class type 40 40
        Stored class trait 42 53
        Stored.key method - 47 48
        Stored.weight method - 50 52
        Shelf class struct 55 62
        Shelf.new method - 67 69
        Shelf.put method - 71 108
        Shelf.put.helper function - 102 104
        Shelf.total method - 110 110
        Shelf.todo method - 112 114
        Wrapper.Unit class type 118 118
        Wrapper.fmt method - 120 122
        [u8].Key class type 126 126
        [u8].key method - 128 128
        Stored.boxed method - 132 132
        shelf function macro 135 139
        local function macro 141 141
        log_all function - 147 147
        send function - 150 151
        wire.Frame class struct 155 155
        depths.dig function - 165 165
        far function - 168 170
        tests.setup function - 176 178
        tests.puts_parcels function - 180 183
        alone function - 186 187""",
    "c": """
        MIN function macro 19 22
        TRACE function macro 24 24
        ring class struct 28 34
        ring.cell class struct 31 31
        place class struct 38 41
        color class enum 43 43
        handler class typedef 45 45
        state class enum 47 47
        word class union 49 49
        ring_write function - 55 77
        ring_cells function - 81 85
        ring_cells.walk class struct 83 83
        ring_hash function - 89 89
        ring_handler function - 91 91
        ring_old function - 93 99
        ring_name function - 101 101
        ring_call function - 103 103
        RING_DEFINE function - 105 107
        ring_lock function - 110 117
        test_ring function - 119 119""",
    "cpp": """
        geometry.dense.Number class concept 15 17
        geometry.dense.Row class type 19 19
        geometry.dense.Matrix class - 21 58
        geometry.dense.Matrix.forget method - 27 27
        geometry.dense.Matrix.Matrix method - 30 30
        geometry.dense.Matrix.~Matrix method - 33 33
        geometry.dense.Matrix.at method - 35 39
        geometry.dense.Matrix.operator== method - 41 41
        geometry.dense.Matrix.operator_bool method - 42 42
        geometry.dense.Matrix.make method - 43 43
        geometry.dense.Matrix.swap method - 44 44
        geometry.dense.Matrix.fill method - 45 45
        geometry.dense.Matrix.Cell class struct 47 49
        geometry.dense.Matrix.Order class enum 50 50
        geometry.dense.Matrix.shrink method - 56 56
        Matrix.Matrix method - 62 74
        geometry.Matrix.operator() method - 76 76
        geometry.Matrix.operator_int method - 78 78
        geometry.Matrix.front method - 80 80
        geometry.Outer.Inner class struct 82 84
        hash class struct 86 89
        hash.operator() method - 88 88
        twice function - 91 91
        counted function - 93 93
        unseen function - 96 96
        Exported class - 99 106
        Exported.name method - 102 102
        Exported.Exported method - 103 103
        Exported.~Exported method - 104 104
        matrix_free function - 109 109
        apply function - 112 118
        guarded function - 120 122
        MatrixTest.AddsRows function - 124 124
        multiplies function - 126 126""",
    "swift": """
        Playing class protocol 11 23
        Playing.play method - 19 20
        Playing.init method - 21 21
        Playing.subscript method - 22 22
        Player class - 25 129
        Player.count method property 34 34
        Player.volume method property 36 42
        Player.init method - 52 55
        Player.init method - 57 62
        Player.deinit method - 64 66
        Player.subscript method - 68 70
        Player.play method - 72 102
        Player.play.nested function - 95 97
        Player.make method - 104 104
        Player.== method - 106 108
        Player.stop method - 110 110
        Player.dump method - 113 113
        Player.PlayerError class enum 116 122
        Player.PlayerError.text method property 121 121
        Player.Stopped class struct 124 124
        Player.Queue class type 125 125
        Player.compare method property 126 128
        Player.description method property 133 133
        Player.shuffle method - 135 135
        Player.Position class struct 137 137
        Player.Stopped.hidden method - 141 141
        Mixer class actor 144 146
        Mixer.mix method - 145 145
        apply function - 150 150
        √ function - 152 152
        stringify function macro 154 155
        PlayerTests class - 157 160
        PlayerTests.testPlays method - 158 158
        PlayerTests.helper method - 159 159
        playsAgain function - 162 162""",
    "scala": """
        Plan class - 12 58
        Plan.next method - 24 41
        Plan.next.twice function - 38 38
        Plan.this method - 43 43
        Plan.hidden method - 48 48
        Plan.internal method - 49 49
        Plan.size method - 50 50
        Plan.Id class type 51 51
        Plan.+ method - 53 53
        Plan.run method - 54 54
        Plan.render method - 55 55
        Plan.start method - 57 57
        Plan class object 60 64
        Plan.count method - 62 62
        Plan.Ops class - 63 63
        Plan.Ops.plans method - 63 63
        Named class trait 66 68
        Named.label method - 67 67
        defaults class object 70 70
        defaults.empty method - 70 70
        Priority class enum 72 77
        Priority.isHigh method - 76 76
        List.second method - 80 81
        List.third method - 83 83
        given_Ordering_Plan class given 85 87
        given_Ordering_Plan.compare method - 86 87
        clock function given 89 89
        Runner class - 92 104
        Runner.run method - 93 96
        Runner.stop method - 100 101
        Runner.again method - 103 104
        top function - 106 108
        Token class type 110 110
        RunnerSuite class - 112 115
        RunnerSuite.alone method - 114 114""",
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


@pytest.mark.parametrize("name", OUTLINES)
def test_every_definition_is_found_to_the_line(name: str) -> None:
    found = read(name)
    outline = [
        f"{d.qualified_name.replace(' ', '_')} {d.kind} {d.label.replace(' ', '_') or '-'}"
        f" {d.start_row + 1} {d.end_row + 1}"
        for d in found.definitions
    ]
    expected, around = [], ""
    for entry in filter(None, map(str.strip, re.split(r"[|\n]", OUTLINES[name]))):
        around = around if entry.startswith(".") else entry.split()[0]
        expected.append(f"{around}{entry}" if entry.startswith(".") else entry)
    assert outline == expected
    assert not found.has_error
    assert not any(d.has_error or d.in_error for d in found.definitions)


@pytest.mark.parametrize("name", OUTLINES)
def test_what_is_said_of_a_definition_stands_in_it(name: str) -> None:
    source = sample(name)
    for d in read(name).definitions:
        block, described = source[d.start_byte : d.end_byte].decode(), d.described
        assert block == block.strip()
        quotes = [described.signature, described.returns, *described.decorators, *described.bases]
        quotes += [part for parameter in described.parameters or [] for part in parameter[:3]]
        quotes += [*d.calls, *d.raises, *d.returns, *d.methods]
        quotes += [word.strip(":") for word in described.docstring.split()]
        for quote in quotes:
            assert quote in block, (d.qualified_name, quote)


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


# -- sources made at random ------------------------------------------------------------------------


WORDS = st.from_regex(r"[a-z][a-z0-9]{2,8}_[a-z]", fullmatch=True)
# What a body may hold that looks like something else.
STRINGS = ["{", "}", "// no", "/* no */", "fn f() {", "# no", "'"]
# Per language: a line of documentation, the head of a function, a statement, what stands around.
SHAPES = {
    "rust": ("/// {}", "fn {}(a: u8) -> u8 {{", 'call("{}");', ("mod outer {", "outer.")),
    "c": ("// {}", "int {}(int a) {{", 'call("{}");', ("struct s;", "")),
    "cpp": ("/// {}", "auto {}(int a) -> int {{", 'call("{}");', ("namespace outer {", "outer.")),
    "swift": ("/// {}", "func {}(_ a: Int) -> Int {{", 'call("{}")', ("struct Outer {", "Outer.")),
    "scala": ("/** {} */", "def {}(a: Int): Int = {{", 'call("{}")', ("object Outer {", "Outer.")),
}


@st.composite
def flat_sources(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, int, int, str]]]:
    """A language, a source, and what is in it: name, first and last line, documentation."""
    name = draw(st.sampled_from(sorted(SHAPES)))
    documentation, head, statement, (around, prefix) = SHAPES[name]
    lines = [around]
    expected: list[tuple[str, int, int, str]] = []
    if around.endswith("{") and not around.startswith(("mod", "namespace")):
        expected.append((prefix[:-1], 1, 0, ""))
    for function in draw(st.lists(WORDS, min_size=1, max_size=5, unique=True)):
        lines += [""] * draw(st.integers(0, 2))
        if draw(st.booleans()):  # separated by a blank line, or not documentation at all
            lines += ["", documentation.format("far above")] if name not in ("rust",) else [""]
            lines += [""]
        first, doc = len(lines) + 1, ""
        if draw(st.booleans()):
            doc = draw(WORDS)
            lines.append(documentation.format(doc))
        lines.append(head.format(function))
        lines += [
            "  " + statement.format(text)
            for text in draw(st.lists(st.sampled_from(STRINGS), max_size=4))
        ]
        lines.append("}")
        expected.append((prefix + function, first, len(lines), doc))
    if around.endswith("{"):
        lines.append("}")
        if expected[0][2] == 0:
            expected[0] = (expected[0][0], 1, len(lines), "")
    return name, "\n".join(lines) + "\n", expected


@settings(max_examples=200, deadline=None)
@given(flat_sources())
def test_flat_sources_are_found_to_the_line(
    made: tuple[str, str, list[tuple[str, int, int, str]]],
) -> None:
    name, source, expected = made
    found = [
        (d.qualified_name, d.start_row + 1, d.end_row + 1, d.described.docstring)
        for d in read(name, source).definitions
    ]
    assert found == expected, source


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
def nested_sources(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, str, int, int, str]]]:
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
@given(nested_sources())
def test_nested_sources_are_found_to_the_line(
    made: tuple[str, str, list[tuple[str, str, int, int, str]]],
) -> None:
    name, source, expected = made
    found = [
        (d.qualified_name, d.kind, d.start_row + 1, d.end_row + 1, d.described.docstring)
        for d in read(name, source).definitions
    ]
    assert found == expected, source


@settings(max_examples=450, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_cut_and_noisy_sources_never_fail(name: str, data: st.DataObject) -> None:
    source = bytearray(sample(name))
    start = data.draw(st.integers(0, len(source) // 2))
    end = data.draw(st.integers(start, len(source)))
    source = source[start:end]
    noise = st.tuples(
        st.integers(0, max(len(source) - 1, 0)), st.sampled_from(b"{}()<>\"'#@/*\n:;=!$\\ \0")
    )
    for at, byte in data.draw(st.lists(noise, max_size=6)):
        source[at : at + 1] = bytes([byte])
    cut = bytes(source).decode(errors="replace").encode()  # what is mined is always UTF-8
    try:
        tree = language(name).parse(cut)
    except ValueError:
        assert name == "kotlin"  # its grammar does not come to an end in everything
        return
    open_spans: list[Definition] = []
    for d in find_definitions(tree, cut, language(name)).definitions:  # outer before inner
        assert 0 <= d.start_byte < d.end_byte <= len(cut)
        assert (d.start_row, d.end_row) == (
            cut.count(b"\n", 0, d.start_byte),
            cut.count(b"\n", 0, d.end_byte),
        )
        while open_spans and open_spans[-1].end_byte <= d.start_byte:
            open_spans.pop()
        assert not open_spans or d.end_byte <= open_spans[-1].end_byte
        open_spans.append(d)
        assert d.name and Parameter("") not in (d.described.parameters or [])
