"""Rows of a corpus: their text, skeletons of long classes, reasons, scores, and broken files."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import sysconfig
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mining_helpers import LOOSE, mine, settings, write

from forge_mcp.mining.blocks import MinedBlock, base_name, make_blocks, quality_score
from forge_mcp.mining.definitions import count_leaves, find_definitions
from forge_mcp.mining.languages import language, language_of
from forge_mcp.mining.secrets import find_secrets
from forge_mcp.mining.text import decode
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import load_settings

FIXTURES = Path(__file__).parent.parent / "fixtures" / "languages"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
LANGUAGE_FILES = {
    path: path.read_bytes() for path in sorted(FIXTURES.iterdir()) if language_of(path.name)
}
PYTHON_FILES = {
    path: path.read_bytes()
    for path in sorted(STDLIB.glob("[a-m]*.py"))
    if 500 < path.stat().st_size < 20_000 and path.read_bytes().isascii()
}


def blocks_of(data: str | bytes, name: str = "python", **mining: object) -> list[MinedBlock]:
    """The blocks of one file."""
    decoded = decode(data if isinstance(data, bytes) else data.encode(), name)
    assert decoded is not None
    spoken = language(name)
    found = find_definitions(spoken.parse(decoded.utf8), decoded.utf8, spoken)
    chosen = settings(**mining).mining
    return make_blocks("f", spoken, decoded, found, find_secrets(decoded.text), None, chosen, [])


def rows_of(data: str | bytes, name: str = "python", **mining: object) -> dict[str, dict[str, Any]]:
    return {block.row["qualified_name"]: block.row for block in blocks_of(data, name, **mining)}


# -- skeletons ---------------------------------------------------------------------------------

DOCSTRINGS = [
    "",
    '"""Say it."""',
    "'''Say it\n\n    over lines.\n    '''",
    'r"raw \\d"',
    "# first a comment\n'Say it.'",
    "('in parentheses')",
    "'in ' 'pieces'",
]


@st.composite
def python_classes(draw: st.DrawFn, depth: int = 0) -> str:
    """A class whose methods hold markers, BODY and a number, which no skeleton may hold."""
    lines = [f"class C{depth}(Base, metaclass=M):"]
    body = [draw(st.sampled_from(DOCSTRINGS)), "value = KEPT_1"]
    for number in range(draw(st.integers(1, 4))):
        decorator = draw(st.sampled_from(["", "@KEPT_2\n", "@KEPT_3(lambda: KEPT_4)\n"]))
        parameters = draw(st.sampled_from(["self", "self, a=KEPT_5()", "self,\n    *b: KEPT_6"]))
        head = f"{draw(st.sampled_from(['def', 'async def']))} m{number}({parameters})"
        head += draw(st.sampled_from([":", " -> int:"]))
        if draw(st.booleans()):
            body.append(
                f"{decorator}{head} {draw(st.sampled_from(['', '1; ']))}return BODY_{number}"
            )
            continue
        docstring = draw(st.sampled_from(DOCSTRINGS))
        inner = draw(
            st.sampled_from(
                [
                    f"return BODY_{number}",
                    f"def inner():\n    'BODY'\n    return BODY_{number}\nreturn inner",
                    f"class Inner:\n    def n(self): return BODY_{number}\nreturn Inner",
                    f"if BODY_{number}:\n    return 1",
                ]
            )
        )
        block = "\n".join(filter(None, [docstring, inner]))
        body.append(f"{decorator}{head}\n{textwrap.indent(block, '    ')}")
    if depth < 2 and draw(st.booleans()):
        body.insert(draw(st.integers(1, len(body))), draw(python_classes(depth=depth + 1)))
    lines += [textwrap.indent(part, "    ") for part in body if part]
    return "\n".join(lines)


def signatures(tree: ast.AST) -> list[tuple[str, str, str | None, list[str]]]:
    """Name, parameters, docstring and decorators of every method, also of inner classes."""
    found: list[tuple[str, str, str | None, list[str]]] = []
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            parameters = f"{ast.unparse(node.args)} {node.returns and ast.unparse(node.returns)}"
            found.append((node.name, parameters, ast.get_docstring(node), decorators))
        elif isinstance(node, ast.ClassDef):
            found += [(node.name, "", ast.get_docstring(node), []), *signatures(node)]
    return found


def check_lines(skeleton: dict[str, Any], data: str) -> None:
    """That `file_line` finds the lines of a skeleton in its file."""
    block = CodeBlock.model_construct(**skeleton)
    in_file = data.split("\n")
    for number, line in enumerate(skeleton["source_code"].split("\n")):
        kept = line.partition("...")[0].rstrip("{; \r")
        assert in_file[block.file_line(number) - 1].startswith(kept)


@hypothesis_settings(max_examples=80, deadline=None)
@given(source=python_classes(), ending=st.sampled_from(["\n", "\r\n"]))
def test_a_python_skeleton_keeps_signatures_and_docstrings_and_no_body(
    source: str, ending: str
) -> None:
    whole = ast.parse(source)
    data = source.replace("\n", ending) + ending
    blocks = {block.row["qualified_name"]: block for block in blocks_of(data, max_tokens=1)}
    skeleton = blocks["C0"].row
    check_lines(skeleton, data)
    assert "BODY" not in skeleton["source_code"]
    for number in range(1, 7):
        assert skeleton["source_code"].count(f"KEPT_{number}") == source.count(f"KEPT_{number}")
    assert signatures(ast.parse(skeleton["source_code"])) == signatures(whole)
    parsed = language("python").parse(skeleton["source_code"].encode())
    assert not parsed.root_node.has_error
    assert skeleton["tokens"] == count_leaves(parsed.root_node)
    code = skeleton["source_code"].encode()
    assert skeleton["content_hash"] == hashlib.sha256(code).hexdigest()
    for block in blocks.values():
        row = block.row
        if row["block_type"] in ("method", "function"):  # beside it, and whole
            assert data.encode()[row["start_byte"] : row["end_byte"]].decode() == row["source_code"]
            assert "skeleton" not in row["metadata"]
            assert "BODY" in row["source_code"]


@hypothesis_settings(max_examples=40, deadline=None)
@given(source=python_classes(), limit=st.integers(1, 200))
def test_only_classes_over_the_limit_become_skeletons(source: str, limit: int) -> None:
    for block, limited in zip(blocks_of(source), blocks_of(source, max_tokens=limit), strict=True):
        over = block.row["tokens"] > limit
        shortened = over and block.row["block_type"] == "class"
        assert ("skeleton" in limited.row["metadata"]) == shortened
        if not shortened:
            assert limited.row["source_code"] == block.row["source_code"]
            assert limited.row["tokens"] == block.row["tokens"]
        else:
            assert limited.row["tokens"] <= block.row["tokens"]
        assert ("too_long" in limited.reasons) == (limited.row["tokens"] > limit)
        assert (limited.row["start_byte"], limited.row["end_byte"]) == (
            block.row["start_byte"],
            block.row["end_byte"],
        )


TYPESCRIPT = """export abstract class A<T> extends B<T> {
  count = 1
  /** Say m. */
  @deco() m(a: number, f = () => 5): void { return a }
  readonly arrow = (x: T) => { return x }
  short = (x: T) => x + 1
  get p() { return 2 }
  abstract q(): void
  static { this.count = 3 }
  over(a: string): void
  over(a: any) { class I { t() { return 8 } } }
}
"""
TYPESCRIPT_SKELETON = """export abstract class A<T> extends B<T> {
  count = 1
  /** Say m. */
  @deco() m(a: number, f = () => 5): void { ... }
  readonly arrow = (x: T) => { ... }
  short = (x: T) => ...
  get p() { ... }
  abstract q(): void
  static { this.count = 3 }
  over(a: string): void
  over(a: any) { ... }
}"""
JAVA = """class A {
    int k = 3;

    /** Say m. */
    @Override
    public <T> int m(T x) throws E {
        return k;
    }

    A() { k = 4; }
    static { k = 5; }
    abstract void n();

    static class I {
        void q() { k = 6; }

        class J { int r() { return 7; } }
    }

    enum E { X { void s() { k = 8; } }; void t() { k = 9; } }
}
"""
JAVA_SKELETON = """class A {
    int k = 3;

    /** Say m. */
    @Override
    public <T> int m(T x) throws E { ... }

    A() { ... }
    static { k = 5; }
    abstract void n();

    static class I {
        void q() { ... }

        class J { int r() { ... } }
    }

    enum E { X { void s() { ... } }; void t() { ... } }
}"""


@pytest.mark.parametrize(
    ("name", "source", "skeleton"),
    [("typescript", TYPESCRIPT, TYPESCRIPT_SKELETON), ("java", JAVA, JAVA_SKELETON)],
)
def test_skeletons_of_other_languages(name: str, source: str, skeleton: str) -> None:
    rows = rows_of(source, name, max_tokens=1)
    assert rows["A"]["source_code"] == skeleton
    check_lines(rows["A"], source)
    assert rows["A.m"]["source_code"] in source
    assert "{ ... }" not in rows["A.m"]["source_code"]
    assert "skeleton" not in rows_of(source, name)["A"]["metadata"]


def test_a_class_without_bodies_is_no_skeleton() -> None:
    for name, source in {
        "python": "class A:\n    x = 1\n    y = 2\n",
        "go": "package p\n\ntype T struct {\n\ta, b int\n}\n",
        "typescript": "interface I { a: number; m(): void }\n",
    }.items():
        row = next(
            r
            for r in rows_of(source, name, max_tokens=1).values()
            if r["metadata"].get("bases") is not None
        )
        assert row["source_code"] in source
        assert "skeleton" not in row["metadata"]


def test_a_function_is_never_cut() -> None:
    body = "\n".join(f"    x = g(x, {number})" for number in range(400))
    source = f"def f(x):\n    def inner(y):\n        return [y, y]\n{body}\n    return x\n"
    found = {block.row["name"]: block for block in blocks_of(source, max_tokens=100)}
    assert found["f"].reasons == ["too_long"]
    assert found["f"].row["source_code"] == source.rstrip()
    assert found["inner"].reasons == []


# -- reasons -----------------------------------------------------------------------------------

CODE = "    return [x, x + 1, x + 2]\n"
KEY = "-----BEGIN RSA PRIVATE " + "KEY-----\\n{}\\n-----END RSA PRIVATE " + "KEY-----"
BODY = "".join(random.Random(3).choices("ABCDEFGHIJKLMabcdefghijklm0123456789", k=300))


@pytest.mark.parametrize(
    ("source", "chosen", "reasons"),
    [
        (f"def f(x):\n{CODE}", {}, []),
        (f"def f(x):\n{CODE}", {"min_tokens": 100}, ["too_short"]),
        (f"def f(x):\n{CODE}", {"max_tokens": 10}, ["too_long"]),
        (f"def f(x):\n{CODE}", {"require_docstring": True}, ["no_docstring"]),
        (f"def f(x):\n    'Do.'\n{CODE}", {"require_docstring": True}, []),
        ("def f(x):\n    return x\n", {}, ["trivial"]),
        ("def f(x):\n    'Do nothing.'\n    pass\n", {}, ["trivial"]),
        (f"def _f(x):\n{CODE}", {"include_private": False}, ["private"]),
        (f"def __f__(x):\n{CODE}", {"include_private": False}, []),
        (f"def _f(x):\n{CODE}", {}, []),
        (f"def test_f(x):\n{CODE}", {"include_tests": False}, ["test"]),
        (f"def test_f(x):\n{CODE}", {}, []),
        (f"def f(x):\n    y = = x\n{CODE}", {}, ["syntax_error"]),
        (f"def f(x):\n    key = '{KEY.format(BODY)}'\n{CODE}", {}, ["secret"]),
        ("def f(x):\n    return x\n", {"min_tokens": 99, "require_docstring": True}, ["too_short", "no_docstring", "trivial"]),
    ],
    ids=str,
)  # fmt: skip
def test_reasons(source: str, chosen: dict[str, object], reasons: list[str]) -> None:
    (block,) = blocks_of(source, "python", **chosen)
    assert block.reasons == reasons


def test_licence_and_test_file_hold_for_every_block(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "LICENSE": "SPDX-License-Identifier: GPL-3.0-only\n",
            "a.py": f"import os\n\n\ndef f(x):\n{CODE}",
            "b.py": f"# SPDX-License-Identifier: MIT\ndef g(x):\n{CODE}",
            "tests/helper.py": f"# SPDX-License-Identifier: MIT\ndef h(x):\n{CODE}",
        },
    )
    chosen = load_settings(
        None,
        {"mining": LOOSE | {"include_tests": False}, "project": {"allow_licenses": ["MIT"]}},
    )
    mined = mine(root, chosen)
    assert mined.reasons == {
        "a.py::<module>": ["license"],
        "a.py::f": ["license"],
        "tests/helper.py::h": ["test"],
    }
    assert mined.every["a.py::f"].license == "GPL-3.0-only"
    assert mined.every["b.py::g"].license == "MIT"


def test_a_credential_in_a_skeletons_body_is_no_concern_of_the_skeleton() -> None:
    token = "gh" + "p_" + "1a2B3c4D5e6F7g8H9i0J1k2L3m4N5o6P7q8R"
    source = f"class A:\n    def m(self):\n        return call('{token}', 1)\n"
    rows = rows_of(source, max_tokens=1)
    assert "secrets_redacted" not in rows["A"]["metadata"]
    assert rows["A.m"]["metadata"]["secrets_redacted"] == 1
    assert token not in json.dumps(rows)
    assert rows_of(source)["A"]["metadata"]["secrets_redacted"] == 1


def test_ids_are_unique_and_in_order() -> None:
    source = "".join(
        f"def f(x):\n    return [{n}]\n\n\nclass A:\n    def m(self): g({n})\n" for n in range(3)
    )
    found = [block.row["id"] for block in blocks_of(source)]
    for name in ("f::f", "f::A", "f::A.m"):
        assert [i for i in found if i.split("#")[0] == name] == [name, f"{name}#2", f"{name}#3"]
    assert len(set(found)) == len(found) == 9


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("python", "class F:\n    def m(self): g(1)\n"),
        ("go", "package p\ntype F struct{}\nfunc (f F) m() { g(1) }\n"),
        ("java", "class F { void m() { g(1); } }"),
        ("javascript", "function F() { g() }\nF.prototype.m = function () { g(1) }\n"),
        ("typescript", "namespace N {\n  class F { m() { g(1) } }\n}\n"),
        ("typescript", "namespace N { function F() {}\nF.prototype.m = function () { g(1) } }\n"),
        ("cpp", "namespace n { class F { void m(); };\nvoid F::m() { g(1); } }\n"),
        ("rust", "mod t { struct F { a: i32 }\nimpl F { fn m(&self) { g(1) } } }\n"),
    ],
)
def test_the_parent_is_the_name_of_a_block(name: str, source: str) -> None:
    blocks = [block.row for block in blocks_of(source, name)]
    (method,) = [row for row in blocks if row["name"] == "m" and "g(1)" in row["source_code"]]
    (holder,) = [row for row in blocks if row["name"] == "F"]
    assert method["parent"] == holder["qualified_name"]
    assert method["qualified_name"] == f"{holder['qualified_name']}.m"
    assert holder["parent"] is None


@pytest.mark.parametrize(
    ("path", "name", "qualified"),
    [
        ("core.py", "core", "core"),
        ("src/app/core.py", "core", "app.core"),
        ("lib/core.py", "core", "core"),
        ("src.py", "src", "src"),
        ("app/__init__.py", "app", "app"),
        ("__init__.py", "__init__", "__init__"),
        ("web/src/index.ts", "src", "web.src"),
        ("index.js", "index", "index"),
        ("a.test.ts", "a", "a"),
    ],
)
def test_names_of_modules(tmp_path: Path, path: str, name: str, qualified: str) -> None:
    text = "import os\nX = 1\n" if path.endswith("py") else "import 'os'\nconst X = 1\n"
    (block,) = mine(write(tmp_path, {path: text})).every.values()
    assert (block.id, block.block_type) == (f"{path}::<module>", "module")
    assert (block.name, block.qualified_name) == (name, qualified)


def test_a_cell_of_a_notebook_is_named(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": "# Title"},
        {"cell_type": "code", "source": f"import os\n\n\ndef f(x):\n{CODE}"},
        {"cell_type": "code", "source": "x = f(1)"},
        {"cell_type": "code", "source": f"def g(x):\n{CODE}"},
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    found = mine(write(tmp_path, {"n.ipynb": json.dumps(notebook)})).every
    assert {block.name: block.metadata["cell"] for block in found.values()} == {
        "n": 1,
        "f": 1,
        "g": 3,
    }


def test_base_names() -> None:
    for text in ("Base", "Base[T]", "Base<T>", "*Base", "Base(1)", " Base [T]", "*Base[T, K]"):
        assert base_name(text) == "Base"


# -- quality score -----------------------------------------------------------------------------


def score(words: int, complexity: int, tokens: int, **mining: object) -> float:
    row = {"docstring": "word " * words, "metadata": {"complexity": complexity}, "tokens": tokens}
    return quality_score(row, settings(**mining).mining)


SMALL = st.integers(0, 60)
LIMITS = st.fixed_dictionaries(
    {"min_tokens": st.integers(0, 50), "max_tokens": st.integers(1, 3000)}
)


@given(words=SMALL, complexity=st.integers(1, 30), tokens=st.integers(0, 5000), limits=LIMITS)
@example(words=0, complexity=1, tokens=90, limits={"min_tokens": 23, "max_tokens": 180})
def test_quality_score_rises_with_documentation_and_complexity(
    words: int, complexity: int, tokens: int, limits: dict[str, int]
) -> None:
    found = score(words, complexity, tokens, **limits)
    assert 0 <= found <= 1
    assert score(words + 1, complexity, tokens, **limits) >= found
    assert score(words, complexity + 1, tokens, **limits) >= found
    half = limits["max_tokens"] / 2
    longer = score(words, complexity, tokens + 1, **limits)
    assert longer >= found if tokens + 1 <= half else longer <= found or tokens < half


def test_quality_score_at_its_ends() -> None:
    usual = {"min_tokens": 20, "max_tokens": 2000}
    assert score(20, 5, 500, **usual) == 1.0
    assert score(0, 1, 0, **usual) == 0.0
    assert score(0, 1, 2000, **usual) == 0.0
    assert score(10, 3, 40, **usual) == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)


# -- text, spans and encodings -----------------------------------------------------------------

WORDS = st.text(st.sampled_from("aé€ßZñ ö"), min_size=1, max_size=8)
SOURCES = {
    "a.py": "import os\n\n\nclass A:\n    '''{0}'''\n    def m(self, x='{1}'):\n        return [x, '{0}']\n",
    "a.ts": "import x from 'x'\n\n/** {0} */\nexport class A {{\n  m(x = '{1}') {{ return [x, '{0}'] }}\n}}\n",
    "a.js": "// {0}\nfunction m(x) {{ return ['{1}', x] }}\n",
    "a.go": 'package a\n\n// M is {0}\nfunc M() string {{ return "{1}" + "{0}" }}\n',
    "a.java": 'package a;\n\n/** {0} */\nclass A {{ String m() {{ return "{1}" + "{0}"; }} }}\n',
}
ENCODINGS = ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-32", "cookie"]


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_is_the_files_bytes_at_its_span(data: st.DataObject) -> None:
    files = {}
    for path, source in SOURCES.items():
        text = source.format(data.draw(WORDS), data.draw(WORDS))
        text = text.replace("\n", data.draw(st.sampled_from(["\n", "\r\n"])))
        encoding = data.draw(st.sampled_from(ENCODINGS))
        if encoding == "cookie":
            encoding = "cp1252"
            text = f"# coding: cp1252\n{text}" if path.endswith("py") else text
        files[path] = text.encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        limit = data.draw(st.sampled_from([1, 1000]))
        mined = mine(write(Path(folder), dict(files)), settings(max_tokens=limit))
    assert mined.counts.files == len(files)
    assert len(mined.every) >= 2 * len(files) - 1
    for block in mined.every.values():
        content = files[block.path]
        encoding = block.metadata.get("encoding", "utf-8")
        span = content[block.start_byte : block.end_byte].decode(encoding)
        if "skeleton" not in block.metadata:
            assert span == block.source_code
        else:
            assert limit == 1
            assert block.block_type == "class"
            assert span != block.source_code
        before = content[: block.start_byte].decode(encoding)
        assert before.count("\n") + 1 == block.start_line
        assert block.start_line + span.count("\n") == block.end_line
        assert "\r" not in block.docstring


# -- broken files ------------------------------------------------------------------------------


@st.composite
def torn(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """Pieces of files, one behind the other."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        whole = draw(st.sampled_from(files))
        start, end = draw(st.floats(0, 1)), draw(st.floats(0, 1))
        if draw(st.booleans()):
            start, end = 0, max(start, end)
        parts.append(whole[int(len(whole) * min(start, end)) : int(len(whole) * max(start, end))])
    return draw(st.sampled_from([b"\n", b"", b" ", b"\x0c", b"\r\n"])).join(parts)


def check_spans(data: bytes, name: str) -> None:
    blocks = blocks_of(data, name)
    whole = [block.row for block in blocks if "syntax_error" not in block.reasons]
    places = [(row["start_byte"], -row["end_byte"]) for row in whole]
    assert places == sorted(places), "source order"
    around: list[int] = []  # ends of the blocks around the present one
    for row in sorted(
        (block.row for block in blocks), key=lambda row: (row["start_byte"], -row["end_byte"])
    ):
        start, end = row["start_byte"], row["end_byte"]
        assert data[start:end].decode() == row["source_code"]
        assert start < end
        while around and around[-1] <= start:
            around.pop()
        assert not around or end <= around[-1], "one overlaps another"
        around.append(end)
        assert data[:start].count(b"\n") + 1 == row["start_line"]
        assert data[:end].count(b"\n") + 1 == row["end_line"]
        assert row["tokens"] > 0
        assert 0 <= row["quality_score"] <= 1
        assert row["qualified_name"].startswith(f"{row['parent'] or ''}.".lstrip("."))
    assert len({block.row["id"] for block in blocks}) == len(blocks)


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=torn(list(PYTHON_FILES.values())))
def test_torn_python_files(data: bytes) -> None:
    check_spans(data, "python")


@pytest.mark.parametrize("path", LANGUAGE_FILES, ids=lambda path: path.name)
def test_torn_files_of_other_languages(path: Path) -> None:
    name = language_of(path.name) or ""

    @hypothesis_settings(max_examples=25, deadline=None)
    @given(data=torn([LANGUAGE_FILES[path]]))
    def check_one(data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            assume(False)
        check_spans(data, name)

    check_one()


JUNK = [b"(", b"\n    )\n", b"def f(:\n", b"class :\n", b"\n=\n", b"\n  ]]\n", b'"""\n']


def test_what_a_syntax_error_leaves_whole_is_kept() -> None:
    """Against the blocks of the same file without the error, and against Python's own parser."""
    draw = random.Random(11)
    whole = kept = parsed = unparsed = 0
    for data in PYTHON_FILES.values():
        cut = draw.randrange(len(data) // 2, len(data))
        broken = draw.choice([data[:cut], data[:cut] + draw.choice(JUNK) + data[cut:]])
        sound = {
            row["source_code"]
            for row in (block.row for block in blocks_of(data))
            if row["end_byte"] < cut and row["block_type"] != "module"
        }
        blocks = [block for block in blocks_of(broken) if block.row["block_type"] != "module"]
        found = {
            block.row["source_code"] for block in blocks if "syntax_error" not in block.reasons
        }
        whole += len(sound)
        kept += len(sound & found)
        for block in blocks:
            if "syntax_error" not in block.reasons:
                readable = parses(broken, block.row["start_byte"], block.row["end_byte"])
                parsed += readable
                unparsed += not readable
    assert whole > 200
    assert kept > 0.9 * whole
    assert unparsed < 0.02 * parsed  # the grammar takes an empty suite for a whole one


def parses(data: bytes, start: int, end: int) -> bool:
    """Whether Python can read a definition, at the indentation at which it stands."""
    line = data.rfind(b"\n", 0, start) + 1
    indent = b"" if data[line:start].strip() else data[line:start]
    try:
        ast.parse(textwrap.dedent((indent + data[start:end]).decode().expandtabs()))
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "source", "reasons"),
    [
        (
            "python",
            "def a(x):\n    return [x, 1]\n\n\ndef b(x):\n    y = = x\n    return [y, y]\n\n\ndef c(x):\n    return [x, 2]\n",
            {"a": [], "b": ["syntax_error"], "c": []},
        ),
        (
            "javascript",
            "function a(x) { return [x] }\nfunction b(x) { return x + ; }\nfunction c(x) { return [x] }\n",
            {"a": [], "b": ["syntax_error"], "c": []},
        ),
        (
            "typescript",
            "class A {\n  a(x) { return [x] }\n  b(x) { return x + ; }\n  c(x) { return [x] }\n}\n",
            {"A": ["syntax_error"], "A.a": [], "A.b": ["syntax_error"], "A.c": []},
        ),
        (
            "go",
            "package p\nfunc A(x int) int { return x + x }\nfunc B( { return }\nfunc C(x int) int { return x + x }\n",
            {"A": [], "C": []},
        ),
        (
            "java",
            "class A {\n  int a(int x) { return x + x; }\n  int b(int x) { return x + ; }\n  int c(int x) { return x + x; }\n}\n",
            {"A": ["syntax_error"], "A.a": [], "A.b": ["syntax_error"], "A.c": []},
        ),
    ],
)  # fmt: skip
def test_definitions_beside_an_error_are_kept(
    name: str, source: str, reasons: dict[str, list[str]]
) -> None:
    found = {block.row["qualified_name"]: block.reasons for block in blocks_of(source, name)}
    for qualified, expected in reasons.items():
        assert found[qualified] == expected
    for block in blocks_of(source, name):
        if block.row["name"] in ("b", "B"):
            assert "syntax_error" in block.reasons


# -- odd places --------------------------------------------------------------------------------

ODD: dict[str, tuple[str, str, dict[str, str]]] = {
    # language, source, and the text with which each block but the module's begins
    "go: no names": (
        "go",
        "package p\nfunc (x T) () { g() }\nfunc () f() { g() }\n",
        {"f": "func () f()"},
    ),
    "go: several variables": (
        "go",
        "package p\nvar h, i = func() { g() }, func() { g() }\nvar (\n\tk = func() { g() }\n)\n",
        {"k": "k = func()"},
    ),
    "go: a list that is broken off": (
        "go",
        "package p\ntype (\n\tL interface {\n\t\tLock  main\n\nfunc main() { g() }\n",
        {"L": "L interface"},
    ),
    "java: imports that are none": (
        "java",
        "import ;\nclass A { void f(){} }",
        {"A": "c", "A.f": "v"},
    ),
    "javascript: an object that no name holds": (
        "javascript",
        "g({ m() { h() } })\n",
        {"m": "m()"},
    ),
    "javascript: in parentheses": (
        "javascript",
        "const f = (function () { g() })\nfor (const h = () => { g() };;) {}\n",
        {"f": "const f", "h": "const h"},
    ),
    "javascript: not a declaration": (
        "javascript",
        "using u = () => { g() }\nconst a = () => { g() }, b = () => { g() }\n",
        {"u": "u = ()", "a": "a = ()", "b": "b = ()"},
    ),
    "typescript: modules": (
        "typescript",
        "declare module 'm' { export function f(): void }\ndeclare module {}\n"
        "module N { export function g() { h() } }\n",
        {"m.f": "export function f()", "N.g": "export function g()"},
    ),
}


@pytest.mark.parametrize(("name", "source", "beginnings"), ODD.values(), ids=ODD)
def test_definitions_in_odd_places(name: str, source: str, beginnings: dict[str, str]) -> None:
    rows = [block.row for block in blocks_of(source, name) if block.row["block_type"] != "module"]
    assert [row["qualified_name"] for row in rows] == list(beginnings)
    for row in rows:
        assert row["source_code"].startswith(beginnings[row["qualified_name"]])


@pytest.mark.parametrize(
    ("name", "source", "parameters"),
    [
        ("java", "class A { void f(A this, int x, String... y) { g(); } }", ["x", "y"]),
        ("javascript", "const f = x => g(x)\n", ["x"]),
        ("typescript", "function f(this: A, x?: B, ...y: C[]) { g() }\n", ["x", "y"]),
        ("go", "package p\nfunc f(a, b int, c ...string) { g() }\n", ["a", "b", "c"]),
        ("python", "class A:\n    def f(self, a, /, *b, c=1, **d): g()\n", ["a", "b", "c", "d"]),
    ],
)
def test_names_of_parameters(name: str, source: str, parameters: list[str]) -> None:
    rows = [block.row for block in blocks_of(source, name) if block.row["block_type"] != "module"]
    (row,) = [row for row in rows if row["name"] == "f"]
    assert [parameter["name"] for parameter in row["metadata"]["parameters"]] == parameters


@pytest.mark.parametrize(
    ("name", "source", "bases"),
    [
        ("python", "class A(B, c.D[int], metaclass=M): x = 1\n", ["B", "c.D[int]"]),
        ("javascript", "class A extends b.C { m() {} }\n", ["b.C"]),
        (
            "typescript",
            "class A<T> extends B<T> implements C, D<T> { m() {} }\n",
            ["B", "C", "D<T>"],
        ),
        ("typescript", "interface A extends B, C<T> { m(): void }\n", ["B", "C<T>"]),
        ("go", "package p\ntype A struct {\n\tB\n\t*c.D\n\te F\n}\n", ["B", "c.D"]),
        ("go", "package p\ntype A interface {\n\tB\n\tm()\n\tc.D\n}\n", ["B", "c.D"]),
        ("java", "class A<T> extends B<T> implements C, D {}", ["B<T>", "C", "D"]),
        ("java", "interface A extends B, C {}", ["B", "C"]),
    ],
)
def test_bases_are_verbatim(name: str, source: str, bases: list[str]) -> None:
    (row,) = [block.row for block in blocks_of(source, name) if block.row["name"] == "A"]
    assert row["metadata"]["bases"] == bases


def test_constants_and_imports_of_modules() -> None:
    (module,) = [
        block.row for block in blocks_of("package p\n\nconst a, b = 1, 2\nconst c = 3\n", "go")
    ]
    assert module["metadata"]["constants"] == [{"name": "c", "value": "3"}]
    source = (
        "import x = require('./x')\nimport type { T as U } from './t'\nimport './effect'\n"
        "export const A = 1\nexport let b = 2\nexport { b as c }\nexport default 5\n"
    )
    (module,) = [block.row for block in blocks_of(source, "typescript")]
    assert module["metadata"]["imports"] == [
        "import x = require('./x')",
        "import type { T as U } from './t'",
        "import './effect'",
    ]
    assert module["metadata"]["constants"] == [{"name": "A", "value": "1"}]


@pytest.mark.parametrize(
    "literal",
    [
        "'doc', ",
        "('a', 'b')",
        "'bad \\N{no such}'",
        "('one'  # note\n     'two')",
        "((  'deep'))",
        "b'bytes'",
        "'a'; g(2)",
        "'a' + 'x'",
        "'a' 'x',",
        "f'{g}'",
        "'lone \\ud800'",
        "u'text'",
        "# note\n    'a'",
        "(\n# note\n'a')",
        "()",
        "1, 2",
        "'a', g(2)",
    ],
)
def test_docstrings_are_those_of_python(literal: str) -> None:
    source = f"def f():\n    {literal}\n    return g(1)\n"
    (row,) = [block.row for block in blocks_of(source)]
    try:
        (node,) = ast.parse(source).body
    except SyntaxError:  # Python reads no such escape: its text stays
        assert row["docstring"] == literal
        return
    assert isinstance(node, ast.FunctionDef)
    expected = ast.get_docstring(node) or ""
    assert row["docstring"] == expected.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(
    "source",
    [
        "def a(x):\n    try:\n        g(x)\n",
        "def a(x):\n",
        "def a(x):\n    while x:\n",
        "def a(x):\n    if x:\n        g(x)\n    else:\n",
    ],
)
def test_a_python_file_that_was_cut_has_no_whole_definition_at_its_end(source: str) -> None:
    before = "def whole(x):\n    return [x, x]\n\n\n"
    whole, cut = blocks_of(before + source)
    assert whole.reasons == []
    assert "syntax_error" in cut.reasons
