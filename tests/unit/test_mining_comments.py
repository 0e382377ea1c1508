"""Which comment documents a definition, and what is left of it without its marks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forge_mcp.mining.comments import (
    clean_block_comment,
    clean_comments,
    is_license_header,
    looks_like_code,
)
from forge_mcp.mining.definitions import find_definitions
from forge_mcp.mining.languages import language

ENDINGS = st.sampled_from(["\n", "\r\n"])
INDENTS = st.sampled_from(["", "  ", "\t", "        "])
WORD = st.text(st.sampled_from("abcXYZ019éß.,:()'\"`@{}[]=+!?"), min_size=1, max_size=8)
LINE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)
# Lines of a comment; an empty one separates paragraphs.
LINES = st.lists(st.one_of(LINE, st.just("")), min_size=1, max_size=6).map(
    lambda lines: "\n".join(lines).strip("\n").split("\n")
)


def first(source: str, name: str) -> tuple[str, str]:
    """The source and the docstring of a file's first definition."""
    data = source.encode()
    spoken = language(name)
    definition = find_definitions(spoken.parse(data), data, spoken).definitions[0]
    text = data[definition.start_byte : definition.end_byte].decode()
    return text, definition.described.docstring


# -- cleaning ----------------------------------------------------------------------------------


@given(
    lines=LINES, indent=INDENTS, ending=ENDINGS, head=st.sampled_from(["/**", "/*", "/*!", "/***"])
)
def test_a_framed_comment_is_its_lines(
    lines: list[str], indent: str, ending: str, head: str
) -> None:
    framed = [head, *(f"{indent} * {line}".rstrip() for line in lines), f"{indent} */"]
    comment = ending.join(framed)
    assert clean_block_comment(comment) == "\n".join(lines).strip()
    assert clean_comments(f"{indent}{comment}{ending}") == "\n".join(lines).strip()


@given(lines=LINES, indent=INDENTS, ending=ENDINGS)
def test_what_stands_beside_the_first_mark_belongs_to_it(
    lines: list[str], indent: str, ending: str
) -> None:
    framed = [f"/** {lines[0]}", *(f"{indent} * {line}" for line in lines[1:])]
    assert clean_comments(ending.join(framed) + " */") == "\n".join(lines).strip()


@given(lines=LINES, indent=st.sampled_from(["  ", "\t", "        "]), ending=ENDINGS)
def test_a_comment_without_a_frame_loses_the_indentation_of_all_lines(
    lines: list[str], indent: str, ending: str
) -> None:
    inside = [f"{indent}{line}" for line in lines] + [f"{indent}  deeper"]
    comment = ending.join(["/*", *inside, "*/"])
    assert clean_comments(comment) == "\n".join([*lines, "  deeper"]).strip()


@given(
    lines=LINES, mark=st.sampled_from(["//", "///", "//!", "#", "##", "--", ";;"]), ending=ENDINGS
)
def test_line_comments_are_their_lines(lines: list[str], mark: str, ending: str) -> None:
    comment = ending.join(f"{mark} {line}".rstrip() for line in lines)
    assert clean_comments(comment) == "\n".join(lines).strip()


@given(comment=st.text(st.sampled_from("/*#-;! \t\n\r<>abc{}=;()'\"é"), max_size=60))
@example("/*")
@example("/*/")
@example("/**/")
@example("*/")
@example("")
def test_nothing_is_too_odd_to_be_cleaned(comment: str) -> None:
    for clean in (clean_comments, clean_block_comment):
        cleaned = clean(comment)
        assert cleaned == cleaned.strip()
        assert "\r\n" not in cleaned
        words = re.findall(r"[abcé]+", comment)
        assert re.findall(r"[abcé]+", cleaned) == words
    assert looks_like_code(comment) in (True, False)
    assert is_license_header(comment) in (True, False)


@given(comment=st.lists(LINE, min_size=2, max_size=6), bullets=st.booleans())
def test_bullets_stay_where_the_frame_goes(comment: list[str], bullets: bool) -> None:
    mark = "* " if bullets else ""
    framed = ["/**", *(f" * {mark}{line}" for line in comment), " */"]
    cleaned = clean_comments("\n".join(framed)).split("\n")
    assert all(line.startswith("* ") for line in cleaned) == bullets
    assert [line.removeprefix("* ").strip() for line in cleaned] == [
        line.strip() for line in comment
    ]


@pytest.mark.parametrize(
    ("comment", "cleaned"),
    [
        ("/** see **this** */", "see **this**"),
        ("/***/", ""),
        ("/**/", ""),
        ("//", ""),
        ("///\n/// a\n///", "a"),
        ("//a", "a"),
        ("//\ta", "a"),
        ("// a\n//\n// b", "a\n\nb"),
        ("// https://a.b//c", "https://a.b//c"),
        ("/** a\n * b\n\n * c */", "a\nb\n\nc"),
        ("/**\n *   code\n * text\n */", "code\ntext"),
        ("/**\n * text\n *   code\n */", "text\n  code"),
    ],
)
def test_cleaned_comments(comment: str, cleaned: str) -> None:
    assert clean_comments(comment) == cleaned


@pytest.mark.parametrize(
    ("markup", "cleaned"),
    [
        ("/// <summary>Say it.</summary>", "Say it."),
        ("/// <summary>\n/// Say it.\n/// </summary>", "Say it."),
        (
            '/// <summary>Say.</summary>\n/// <param name="x">What.</param>',
            "Say.\nparam x: What.",
        ),
        (
            '/// <summary>See <see cref="A.B"/> and <paramref name="x" />.</summary>',
            "See A.B and x.",
        ),
        (
            '/// <summary>A</summary>\n/// <exception cref="E">Bad.</exception>',
            "A\nexception E: Bad.",
        ),
        ("/// <summary>A\n/// <para>B</para>\n/// <c>C</c></summary>", "A\nB\nC"),
        ("/** <inheritdoc/> */", ""),
        ("/// Sorts a List<c> by <b>it</b>.", "Sorts a List<c> by <b>it</b>."),
        ("// if a <c and d> e", "if a <c and d> e"),
    ],
)
def test_xml_markup(markup: str, cleaned: str) -> None:
    assert clean_comments(markup) == cleaned


@pytest.mark.parametrize(
    ("read", "comment"),
    [
        (looks_like_code, "// if =" + " " * 20_000 + "!"),
        (looks_like_code, "// a" + "()" * 20_000 + "!"),
        (is_license_header, "copyright " * 20_000),
        (is_license_header, "(c)" + " " * 20_000),
        (clean_comments, "/* <summary>" + "<c " * 20_000 + "*/"),
        (clean_comments, "/* <summary>" + '<param name="' * 20_000 + "*/"),
        (clean_comments, "/* a\n" + "  b\n" * 20_000 + "*/"),
        (clean_comments, "/*" + "\n *" * 20_000 + "*/"),
    ],
    ids=lambda value: value[:14] if isinstance(value, str) else value.__name__,
)
def test_a_long_comment_is_read_in_linear_time(read: Callable[[str], object], comment: str) -> None:
    started = time.process_time()
    read(comment)
    assert time.process_time() - started < 0.8  # seconds; quadratic ones took 1.3 to 13


# -- licences and code -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("// SPDX-License-Identifier: MIT", True),
        ("/* Copyright (c) 2024 The Authors. */", True),
        ("# Copyright 1999-2004, somebody", True),
        ("// (C) 2011 somebody", True),
        ("/*\n * Licensed under the Apache License\n */", True),
        ("// ALL RIGHTS RESERVED", True),
        ("/* Permission is hereby granted, free of charge */", True),
        ("// Redistribution and use in source and binary forms", True),
        ("// Reads the copyright of a file.", False),
        ("// Year 2024 begins here.", False),
        ("// Checks a driver's license.", False),
        ("// a) b) c) 2024", False),
    ],
)
def test_licence_headers(comment: str, expected: bool) -> None:
    assert is_license_header(comment) == expected


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("// x = f(1);", True),
        ("// return x;\n// }", True),
        ("// if (a) {\n//   b();\n// }", True),
        ("# def f(x):\n#     return g(x)", True),
        ("// foo.bar()", True),
        ("// count += 1", True),
        ("// Adds one to the counter.", False),
        ("// Returns what was found.", False),
        ("// A note on this:\n// it is slow.\n// x = 1;", False),
        ("// Use it when there is time.", False),
        ("// Use it so:\n// x = 1;", False),
        ("//", False),
        ("", False),
    ],
)
def test_code_that_was_switched_off(comment: str, expected: bool) -> None:
    assert looks_like_code(comment) == expected


# -- which comment documents what --------------------------------------------------------------

CODE = {
    "javascript": "function f(x) {\n  return [x]\n}",
    "typescript": "export function f(x: number): number[] {\n  return [x]\n}",
    "java": "class F {\n  int x = 1;\n}",
    "go": "func F(x int) int {\n\treturn x + x\n}",
}
BEFORE = {"javascript": "g()\n", "typescript": "g()\n", "java": "package p;\n", "go": "package p\n"}
FRAMED = "/**\n * Say it.\n * @param x what\n */\n"


@pytest.mark.parametrize("name", CODE)
def test_a_doc_comment_belongs_to_what_follows(name: str) -> None:
    text, docstring = first(BEFORE[name] + "\n" + FRAMED + CODE[name] + "\n", name)
    assert text == FRAMED + CODE[name]
    assert docstring == "Say it.\n@param x what"


@pytest.mark.parametrize("name", CODE)
def test_crlf_changes_nothing(name: str) -> None:
    source = (BEFORE[name] + "\n" + FRAMED + CODE[name] + "\n").replace("\n", "\r\n")
    text, docstring = first(source, name)
    assert text == (FRAMED + CODE[name]).replace("\n", "\r\n")
    assert docstring == "Say it.\n@param x what"


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize(
    "comment",
    [
        f"{FRAMED}\n",
        "/** Copyright (c) 2024 The Authors. All rights reserved. */\n",
    ],
    ids=["a blank line between", "licence"],
)
def test_a_comment_that_documents_nothing(name: str, comment: str) -> None:
    text, docstring = first(comment + CODE[name] + "\n", name)
    assert (text, docstring) == (CODE[name], "")


@pytest.mark.parametrize("name", ["javascript", "typescript", "java"])
@pytest.mark.parametrize("comment", ["// Say it.\n", "/* Say it. */\n"], ids=["line", "block"])
def test_a_plain_comment_documents_nothing_in_languages_with_marks(name: str, comment: str) -> None:
    text, docstring = first(BEFORE[name] + comment + CODE[name] + "\n", name)
    assert (text, docstring) == (CODE[name], "")


@pytest.mark.parametrize(
    ("comment", "docstring"),
    [
        ("// F adds.\n", "F adds."),
        ("// F adds.\n//\n// Twice.\n", "F adds.\n\nTwice."),
        ("/* F adds. */\n", "F adds."),
        ("// Not this.\n\n// F adds.\n", "F adds."),
        ("//go:noinline\n// F adds.\n", "F adds."),
        ("//nolint:all\n", ""),
        ("//go:build linux\n", ""),
        ("// +build linux\n", ""),
        ("// y := g(x)\n// return h(y)\n", ""),
        ("//\tx := g(1)\n//\tg(x)\n", ""),
        ("var a = 1 // a is one\n", ""),
        ("var a = 1 // a is one\n// F adds.\n", "F adds."),
    ],
)
def test_go_comments(comment: str, docstring: str) -> None:
    text, found = first(f"package p\n\n{comment}{CODE['go']}\n", "go")
    assert found == docstring
    assert text.endswith(CODE["go"])
    assert (text != CODE["go"]) == bool(docstring)
    assert "a is one" not in text


def test_a_go_comment_of_both_kinds_is_not_garbled() -> None:
    for comment in ("/* Block. */\n// F adds.\n", "// F adds.\n/* Block. */\n"):
        _, found = first(f"package p\n\n{comment}{CODE['go']}\n", "go")
        assert "*/" not in found
        assert "/" not in found
        assert found


def test_a_go_licence_above_the_package() -> None:
    source = "// Copyright 2024 The Authors. All rights reserved.\n// Licensed under BSD.\n\n"
    spoken = language("go")
    for above, docstring in ((source, ""), (source + "// Package p adds.\n", "Package p adds.")):
        data = f"{above}package p\n\n{CODE['go']}\n".encode()
        found = find_definitions(spoken.parse(data), data, spoken)
        assert found.docstring == docstring
        assert found.module is not None
        start = found.module.start_byte
        assert data[start:].startswith(b"// Package p" if docstring else b"package p")


@pytest.mark.parametrize(
    ("source", "docstring", "beginning"),
    [
        ("/** Other. */\nlet a = 1\nfunction f() { g() }\n", "", "function"),
        ("let a = 1 /** of a */\nfunction f() { g() }\n", "", "function"),
        ("/** One. */\n/** Two. */\nfunction f() { g() }\n", "Two.", "/** Two"),
        ("/** Doc. */\n// note\nfunction f() { g() }\n", "", "function"),
        ("/** Doc. */\nexport default function f() { g() }\n", "Doc.", "/** Doc"),
        ("/** Doc. */\nconst f = () => { g() }\n", "Doc.", "/** Doc"),
        ("/** Doc. */\nexports.f = function () { g() }\n", "Doc.", "/** Doc"),
        ("const o = {\n  /** Doc. */\n  f() { g() },\n}\n", "Doc.", "/** Doc"),
        ("class A {\n  /** Doc. */\n  f() { g() }\n}\n", "Doc.", "/** Doc"),
    ],
)
def test_jsdoc(source: str, docstring: str, beginning: str) -> None:
    data = source.encode()
    spoken = language("javascript")
    found = find_definitions(spoken.parse(data), data, spoken).definitions
    (definition,) = [d for d in found if d.name == "f"]
    assert definition.described.docstring == docstring
    assert data[definition.start_byte :].startswith(beginning.encode())


@pytest.mark.parametrize(
    ("source", "name", "docstring"),
    [
        ("/** Doc. */\n@Override\nclass A { }", "A", "Doc."),
        ("@Override\n/** Doc. */\nclass A { }", "A", ""),
        ("class A {\n  /** Doc. */\n  @Test\n  public void f() { g(); }\n}", "A.f", "Doc."),
        ("class A {\n  int x; /** of x */\n  void f() { g(); }\n}", "A.f", ""),
        ("enum E {\n  /** One. */ ONE { void f() { g(); } }\n}", "E.ONE.f", ""),
        ("class A {\n  /** Make. */\n  A() { g(); }\n}", "A.A", "Make."),
        ("/* (c) 2024 me */\n/** Doc. */\nclass A { }", "A", "Doc."),
    ],
)
def test_javadoc(source: str, name: str, docstring: str) -> None:
    data = source.encode()
    spoken = language("java")
    found = find_definitions(spoken.parse(data), data, spoken).definitions
    (definition,) = [d for d in found if d.qualified_name == name]
    assert definition.described.docstring == docstring


def test_a_decorator_between_comment_and_class() -> None:
    source = "/** Doc. */\n@deco({ a: 1 })\nexport class A { m() { g() } }\n"
    text, docstring = first(source, "typescript")
    assert docstring == "Doc."
    assert text == source.rstrip()


def test_a_comment_between_decorator_and_method() -> None:
    source = "class A {\n  @deco\n  /** Doc. */\n  m() { g() }\n}\n"
    data, spoken = source.encode(), language("typescript")
    found = find_definitions(spoken.parse(data), data, spoken).definitions
    (method,) = [d for d in found if d.name == "m"]
    assert method.described.docstring == "Doc."


def test_python_comments_are_no_docstrings() -> None:
    text, docstring = first("# Say it.\ndef f(x):\n    # not this\n    return [x]\n", "python")
    assert docstring == ""
    assert text.startswith("def f")
