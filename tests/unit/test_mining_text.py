"""Decoding, generated and minified text, notebooks: against Python's codecs and parser."""

from __future__ import annotations

import ast
import codecs
import encodings.aliases
import itertools
import json
import sysconfig
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forge_mcp.mining.text import Text, decode, plain_python, text_skip_reason

CODE = "def f(a):\n    return [a, a, a]\n"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
COOKIE = "# -*- coding: {} -*-\n"
MARKED = {  # encoding: byte-order mark
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
MARKS = tuple(MARKED.values())
DECLARED = ["iso8859-1", "iso8859-15", "koi8-r", "shift_jis", "euc_kr", "big5", "gb18030", "cp1251"]


def check_offsets(data: bytes, decoded: Text) -> None:
    """Every slice between two characters is found again in the file."""
    text = decoded.text
    assert decoded.utf8.decode() == text
    ends = itertools.accumulate((len(character.encode()) for character in text), initial=0)
    places = [decoded.file_offset(end) for end in ends]
    for index, character in enumerate(text):
        assert data[places[index] : places[index + 1]].decode(decoded.encoding) == character
    for index in range(0, len(places), 3):
        assert data[places[index] :].decode(decoded.encoding) == text[index:]


@given(st.text(max_size=60), st.sampled_from([None, *MARKED]), st.sampled_from(["python", "go"]))
@example("", "utf-16-le", "go")
@example("a\r\nb\u2028é\n", "utf-16-be", "go")
def test_offsets_of_unicode(text: str, encoding: str | None, language: str) -> None:
    data = MARKED[encoding] + text.encode(encoding) if encoding else text.encode()
    if encoding is None and data.startswith((*MARKS, b"#")):
        return
    decoded = decode(data, language)
    assert decoded is not None
    if encoding == "utf-16-le" and text.startswith("\0"):  # these are the marks of UTF-32
        return
    assert (decoded.text, decoded.encoding) == (text, encoding or "utf-8")
    check_offsets(data, decoded)


@given(st.data(), st.sampled_from(DECLARED), st.booleans())
def test_offsets_of_declared_encodings(draws: st.DataObject, encoding: str, second: bool) -> None:
    # Those left out have the bytes of other characters.
    characters = st.characters(codec=encoding, exclude_characters="¥‾ㅤ")
    drawn = draws.draw(st.text(characters | st.sampled_from("aé\nЖ日本가中"), max_size=40))
    text = "#!/usr/bin/python\n" * second + COOKIE.format(encoding) + drawn
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        return
    decoded = decode(data, "python")
    assert decoded is not None
    assert (decoded.text, decoded.encoding) == (text, codecs.lookup(encoding).name)
    check_offsets(data, decoded)


WESTERN = st.characters(codec="cp1252", exclude_categories=["Cc"]) | st.sampled_from("\n\t")


@given(st.text(WESTERN))
@example("Grüße, 5 €\r\n„Zitat“")
def test_offsets_of_what_nothing_declares(text: str) -> None:
    data = text.encode("cp1252")
    decoded = decode(data, "java")
    try:
        data.decode()
    except UnicodeDecodeError:
        if data.startswith(MARKS):
            return
        assert decoded is not None
        assert (decoded.text, decoded.encoding) == (text, "cp1252")
    if decoded is not None:
        check_offsets(data, decoded)


CODECS = sorted({*encodings.aliases.aliases, *DECLARED, "undefined", "idna", "punycode"})


@given(
    st.sampled_from([b"", *MARKS]) | st.sampled_from([COOKIE.format(c).encode() for c in CODECS]),
    st.binary(max_size=100),
    st.sampled_from(["python", "javascript"]),
    st.sampled_from(["", "a.py", "a.ipynb"]),
)
def test_no_bytes_break_decoding(start: bytes, rest: bytes, language: str, path: str) -> None:
    data = start + rest
    decoded = decode(data, language, path)
    reason = text_skip_reason(data, decoded, path)
    if decoded is None:
        assert reason
    elif not path.endswith(".ipynb"):
        check_offsets(data, decoded)


@pytest.mark.parametrize(
    ("data", "language", "encoding"),
    [
        (b"x = 1\n", "python", "utf-8"),
        (b"# coding: latin-1\nx = '\xe9'\n", "python", "iso8859-1"),
        (b"# coding: latin-1\nx = '\xe9'\n", "ruby", "cp1252"),
        (b"#!/bin/x\r# vim: set fileencoding=koi8-r :\rx = '\xc1'\r", "python", "koi8-r"),
        (b"\xef\xbb\xbf# coding: koi8-r\nx = 1\n", "python", "utf-8"),
        (b"x = 1\n# coding: koi8-r\n\xc3\xa9", "python", "utf-8"),
        (b"\n\n# coding: koi8-r\n\xc3\xa9", "python", "utf-8"),
        (b"# coding: ascii\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: klingon\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: rot13\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: utf-8-sig\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: utf-16\nx = 12\n", "python", "utf-8"),
        (b"# coding: cp500\nx = 1\n", "python", "utf-8"),
        (b"x = '\x80'", "python", "cp1252"),
        (b"x = '\x81\x9d\xff'\n", "python", None),
        (b"x = '\xff\x01'\n", "python", None),
        (b"# coding: iso2022_jp\nx = '\x1b$B8@8l\x1b(B'\n", "python", None),
        (b"# coding: utf-7\nx = 'a +AGEAYg- b'\n", "python", None),
        (b"# coding: unicode_escape\nx = 1\n", "python", None),
        (b"# coding: shift_jisx0213\nx = '\x82\xf5'\n", "python", None),
        (b"# coding: cp932\nx = '\x87\x90'\n", "python", None),
        (b"# coding: idna\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"# coding: undefined\nx = '\xc3\xa9'\n", "python", "utf-8"),
        (b"\xef\xbb\xbf\xff", "python", None),
        (b"\xff\xfe1\xd8", "go", None),
    ],
)
def test_encodings(data: bytes, language: str, encoding: str | None) -> None:
    decoded = decode(data, language)
    assert (decoded and decoded.encoding) == encoding
    assert text_skip_reason(data, decoded) == ("" if encoding else "undecodable")
    if decoded is not None:
        check_offsets(data, decoded)


def test_nul_bytes_are_binary_but_for_utf_16() -> None:
    for data in (b"x = '\0'\n", b"\xff\0\x01", "\ufeffa\0b".encode("utf-16-le")):
        assert text_skip_reason(data, decode(data, "python")) == "binary"
    data = "\ufeffclass A {}\n".encode("utf-16-le")
    assert text_skip_reason(data, decode(data, "java")) == ""


def test_plain_files_are_not_copied() -> None:
    data = CODE.encode() * 1000
    decoded = decode(data, "go")
    assert decoded is not None
    assert decoded.utf8 is data


PARAGRAPH = " * Permission is hereby granted, free of charge, to any one\n" * 30
LICENCE_COMMENT = f"/*!\n{PARAGRAPH} */\n"


@pytest.mark.parametrize(
    ("text", "minified"),
    [
        ("var a=[" + "1," * 5000 + "1]", True),
        ("var a=1;" * 500, False),  # short enough to be read
        (LICENCE_COMMENT + "var a=1;" * 2000, True),
        (LICENCE_COMMENT + "var a=1;" * 750, True),
        (LICENCE_COMMENT * 20 + "var a=1;" * 2000, False),
        ("x = 1\n" * 5000, False),
        ("x = 1\r" * 5000, False),
        ("", False),
    ],
)
def test_minified_text(text: str, minified: bool) -> None:
    data = text.encode()
    assert text_skip_reason(data, decode(data, "go")) == "minified" * minified


@pytest.mark.parametrize(
    "head",
    [
        "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n",
        "# -*- coding: utf-8 -*-\n# Generated by the protocol buffer compiler.  DO NOT EDIT!\n",
        "// Code generated by stringer; DO NOT EDIT.\npackage x\n",
        "// Copyright\n\n// Code generated by sqlc. DO NOT EDIT.\n// versions:\npackage x\n",
        "// Code generated by MockGen. DO NOT EDIT.\n// Source: a.go\n",
        "package x\n\n// Code generated by hand; DO NOT EDIT.\n",
        "/**\n * @generated SignedSource<<abc>>\n */\n",
        "/* eslint-disable */\n// @generated\n",
        "# THIS FILE IS GENERATED FROM SETUP.PY\n",
        "# Generated by Django 4.2 on 2024-01-01 10:00\n\nfrom django.db import migrations\n",
        "#\n# Autogenerated by Thrift Compiler (0.9.3)\n#\n# DO NOT EDIT\n",
        '"""\n    Pets\n\n    NOTE: This class is auto generated by OpenAPI Generator\n"""\n',
        "/**\n * NOTE: This class is auto generated by the swagger code generator program.\n */\n",
        "// This file was automatically generated and should not be edited.\n",
        "// This file was generated by the swagger tool.\n",
        "/* AUTO-GENERATED FILE.  DO NOT MODIFY. */\n",
        "/* automatically generated by rust-bindgen 0.59.1 */\n",
        "//----\n// <auto-generated>\n//     This code was generated by a tool.\n",
        "# Don't worry: this file is autogenerated\n",
        "<!-- Code generated by x. DO NOT EDIT. -->\n",
        "-- Code generated by sqlc. DO NOT EDIT.\n",
        "\ufeff'''Automatically generated by ply'''\n",
        "/* A Bison parser, made by GNU Bison 3.0.4.  */\n",
        "# Please do not edit this file directly.\n",
        "# Copyright\n\n# auto-generated by a script\n",
    ],
)
def test_generated_heads(head: str) -> None:
    data = (head + "x = 1\n").encode()
    assert text_skip_reason(data, decode(data, "javascript")) == "generated"


@pytest.mark.parametrize(
    "head",
    [
        'HEADER = "# Code generated by x. DO NOT EDIT."\n',
        'import os\n\nHEADER = """\n# Code generated by x. DO NOT EDIT.\n"""\n',
        "import os\n\nHEADER = '''\n# Code generated by x. DO NOT EDIT.\n'''\n",
        "package x\n\nconst header = `\n// Code generated by x. DO NOT EDIT.\n`\n",
        "const header = '// Code generated by x. DO NOT EDIT.'\n",
        '// Writes files that begin with "Code generated by x. DO NOT EDIT."\n',
        "# Ids of rows are\n# automatically generated by the database.\n",
        "# This section is generated by a tool.\n",
        "# This file is not generated.\n",
        "# How this code is made: generated by hand.\n",
        "generated = True  # by the caller\n",
        "do not edit this file directly\n",
        "# The files that are auto-generated from protobuf are left out.\n",
        "x = 1\n" * 500 + "# Code generated by x. DO NOT EDIT.\n",
    ],
)
def test_heads_of_files_that_people_write(head: str) -> None:
    data = (head + "x = 1\n").encode()
    assert text_skip_reason(data, decode(data, "javascript")) == ""


# -- notebooks ---------------------------------------------------------------------------------


def notebook(*cells: str | list[str], **metadata: object) -> bytes:
    rows: list[dict[str, object]] = [{"cell_type": "markdown", "source": "# Title"}]
    rows += [{"cell_type": "code", "source": cell, "outputs": []} for cell in cells]
    return json.dumps({"cells": rows, "metadata": metadata, "nbformat": 4}).encode()


def python_of(data: bytes) -> Text:
    decoded = decode(data, "python", "a/study.IPYNB")
    assert decoded is not None
    assert text_skip_reason(data, decoded, "a/study.IPYNB") == ""
    return decoded


def test_the_cells_of_a_notebook() -> None:
    decoded = python_of(
        notebook(
            ["import os\n", "x = 'é'\n"],
            "%%bash\nls | wc",
            "%matplotlib inline\n\ndef f():\n    return 1",
            "",
            "\n\n!ls\ny = 2\n\n",
            kernelspec={"name": "python3", "language": "python"},
        )
    )
    cells = [
        "import os\nx = 'é'\n",
        "#matplotlib inline\n\ndef f():\n    return 1\n",
        "#ls\ny = 2\n",
    ]
    assert decoded.text == "\n".join(cells)
    assert decoded.cells == ((1, 1), (4, 3), (9, 5))
    lines = decoded.text.split("\n")
    assert [lines[line - 1] for line, _ in decoded.cells] == [c.split("\n")[0] for c in cells]
    assert (decoded.file_offset(17), decoded.offset, decoded.encoding) == (17, 0, "utf-8")


def test_an_old_notebook() -> None:
    cells = [
        {"cell_type": "heading", "source": "Title"},
        {"cell_type": "code", "input": ["x = 1\n", "y = 2"], "language": "python"},
    ]
    second = [{"cell_type": "code", "input": "z = 3", "language": "python"}]
    sheets = {"metadata": {}, "nbformat": 3, "worksheets": [{"cells": cells}, {"cells": second}]}
    decoded = python_of(json.dumps(sheets).encode())
    assert (decoded.text, decoded.cells) == ("x = 1\ny = 2\n\nz = 3\n", ((1, 1), (4, 2)))


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        {"language_info": {"name": "python"}},
        {"kernelspec": {"name": "conda-env", "language": "python"}},
        {"language_info": {"name": "ipython"}},
    ],
)
def test_kernels_of_python(metadata: dict[str, object]) -> None:
    assert python_of(notebook("x = 1", **metadata)).text == "x = 1\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (notebook("x <- 1", kernelspec={"name": "ir", "language": "R"}), "other_language"),
        (notebook("x", language_info={"name": "julia"}), "other_language"),
        (
            b'{"worksheets": [{"cells": [{"cell_type": "code", "input": "", "language": "R"}]}]}',
            "other_language",
        ),
        (b"no JSON", "unreadable_notebook"),
        (b"", "unreadable_notebook"),
        (b"\xff\xfe\x00", "unreadable_notebook"),
        (b"[]", "unreadable_notebook"),
        (b"{}", "unreadable_notebook"),
        (b'{"cells": 3}', "unreadable_notebook"),
        (b'{"cells": [3]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code"}]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code", "source": [3]}]}', "unreadable_notebook"),
        (b'{"cells": [], "metadata": []}', "unreadable_notebook"),
        (b'{"worksheets": [{}]}', "unreadable_notebook"),
        (b'{"cells": [{"cell_type": "code", "source": "\\ud800"}]}', "unreadable_notebook"),
        (b"[" * 100_000, "unreadable_notebook"),
    ],
    ids=range(16),
)
def test_notebooks_that_are_not_mined(data: bytes, reason: str) -> None:
    decoded = decode(data, "python", "a.ipynb")
    assert decoded is None
    assert text_skip_reason(data, decoded, "a.ipynb") == reason


VALUES = {"files = !ls *.py": "files = None", "a, b[0] = %timeit -o f()": "a, b[0] = None"}
MAGICS = [
    "%matplotlib inline",
    "%timeit -n 3 f(x)",
    "!pip install a \\\n    'b>=2' \\\n    c",
    "!ls {folder}",
    "?str.join",
    "str.join?",
    "str.join??  ",
    "f(1)?",
    "%cd ..",
]
STATEMENTS = [
    "x = (1\n  % 2)",
    "text = '''\n%not magic\n!no\nwhat?\n'''",
    "y = 5 \\\n  % 3",
    "z = [  # a bracket )\n  '(', \"'\",\n]",
    "if x:\n    y = '?'\nelse:\n    z = 'a\\'b'",
    "# what?  \\",
    "w = {'a': (1, [2])}; v = 'x' != 'y'",
    'def f():\n    r"""Doc.\n\n    %%no \\\n    """\n    return """a""" + "b"',
]


@given(st.lists(st.sampled_from([*STATEMENTS, *MAGICS, *VALUES]), max_size=8))
def test_magics_become_comments_and_nothing_else_changes(parts: list[str]) -> None:
    cell = "\n".join(parts)
    plain = plain_python(cell)
    assert plain.count("\n") == cell.count("\n")
    kept = [VALUES.get(part, part) for part in parts if part not in MAGICS]
    assert ast.dump(ast.parse(plain)) == ast.dump(ast.parse("\n".join(kept)))
    if not set(VALUES) & set(parts):
        assert len(plain) == len(cell)


@pytest.mark.parametrize("path", sorted(STDLIB.glob("[a-d]*.py")), ids=lambda path: path.name)
def test_python_without_magics_is_left_alone(path: Path) -> None:
    source = path.read_text()
    assert plain_python(source) == source
    # The same where a magic below makes it no Python.
    assert plain_python(source + "\n%time") == source + "\n#time"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("%%time\nx = 1", "#%time\nx = 1"),
        ("\n%%capture out\nx = 1\n!ls", "\n#%capture out\nx = 1\n#ls"),
        ("%%html\n<b>", ""),
        ("%%\nx = 1", "#%\nx = 1"),
        ("if x:\n    %time f()\n    !ls", "if x:\n    pass  # %time f()\n    pass  # !ls"),
        ("for f in x:\n    y = !ls\n", "for f in x:\n    y = None  # !ls\n"),
        ("if x:\n  !a \\\n  b\n  y = 1", "if x:\n  pass  # !a \\\n  #\n  y = 1"),
        ("def f(:\n", "def f(:\n"),
        ("x = ('a \\\n)'\n % 3)", "x = ('a \\\n)'\n % 3)"),
        ("x = ')'\n)\n%time", "x = ')'\n)\n#time"),
        ("x\0\n%time", "x\0\n#time"),
    ],
)
def test_magics_of_cells_and_in_blocks(cell: str, expected: str) -> None:
    assert plain_python(cell) == expected
