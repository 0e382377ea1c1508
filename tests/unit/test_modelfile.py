"""Modelfiles: whatever the syntax can express survives, and Ollama reads it as we do.

What Ollama's own code says of thousands of inputs is in fixtures/references/ollama.json.gz
(scripts/references/ollama_rules.py).
"""

from __future__ import annotations

import gzip
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forge_mcp.errors import BadInput
from forge_mcp.exporting.modelfile import (
    Command,
    _is_kept,
    create_ollama_modelfile,
    expressible,
    parse_commands,
    parse_modelfile,
)
from forge_mcp.schemas.ollama import MINIMUM_VERSION, check_model_name, with_tag

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"
SAMPLING: dict[str, Any] = {
    "temperature": 0.2,
    "top_k": 40,
    "top_p": 0.9,
    "repeat_penalty": 1.0,
    "num_ctx": 2048,
    "num_predict": 512,
    "seed": 17,
    "stop": ["<|im_end|>", "\n\n"],
}
# Texts around the corners of the syntax.
TRICKY = st.lists(
    st.one_of(
        st.sampled_from(['"', '""', '"""', "\n", "\r", " ", "\t", "#", "a", "FROM x", "{top_k}"]),
        st.characters(categories=["L", "M", "N", "P", "S"], max_codepoint=0x2FFF),
        st.characters(),
    ),
    max_size=12,
).map("".join)


@cache
def ollamas_own() -> dict[str, Any]:
    with gzip.open(REFERENCES / "ollama.json.gz") as file:
        facts: dict[str, Any] = json.load(file)
    return facts


# -- Ollama's own code -----------------------------------------------------------------------------


def test_the_parser_reads_what_ollamas_own_reads() -> None:
    valid = 0
    for text, theirs in ollamas_own()["modelfiles"]:
        if isinstance(theirs, str):
            with pytest.raises(BadInput) as raised:
                parse_commands(text)
            if theirs.startswith("(line"):
                # Ollama names the line after it where a line end is what is wrong.
                line = int(theirs[6 : theirs.index(")")])
                assert raised.value.message.split()[1] in (str(line), str(line - 1)), text
        else:
            assert parse_commands(text) == [Command(*command) for command in theirs], text
            valid += 1
    assert valid > 500


def test_the_characters_that_are_kept_are_those_of_go() -> None:
    printed = {char for first, last in ollamas_own()["printed"] for char in range(first, last + 1)}
    ours = {char for char in range(0x110000) if _is_kept(chr(char))}
    assert ours == printed | {ord(char) for char in "\t\r\n"}


def test_model_names_are_valid_where_ollama_says_so() -> None:
    valid = 0
    for text, shown in ollamas_own()["names"]:
        if shown is None:
            with pytest.raises(BadInput, match="does not allow the model name"):
                check_model_name(text)
        else:
            assert check_model_name(text) == text
            local = text.removeprefix("registry.ollama.ai/").removeprefix("library/")
            assert with_tag(local) == shown or "registry.ollama.ai" in shown.lower()
            valid += 1
    assert valid > 50


# -- writing and reading again ---------------------------------------------------------------------


@given(TRICKY, TRICKY, TRICKY)
@settings(max_examples=300)
@example("m", 'say """hi""" and "bye"', '"')
@example("m", '"', "")
@example("m", 'ends in """', '""')
@example("m", "\N{PARTY POPPER} {system_prompt}\r\n# no comment", "#")
def test_whatever_can_be_expressed_survives_and_the_rest_is_refused(
    path: str, system: str, stop: str
) -> None:
    sampling = SAMPLING | {"stop": [stop or "x", "<|im_end|>"]}
    if not (expressible(path) and expressible(system) and expressible(stop)):
        with pytest.raises(BadInput, match="cannot be written in a Modelfile"):
            create_ollama_modelfile("demo-1", path, system, sampling)
        return
    written = create_ollama_modelfile("demo-1", path, system, sampling)
    read = parse_modelfile(written)
    assert (read.gguf_path, read.system_prompt) == (path, system)
    assert read.parameters == sampling
    assert read.requires == MINIMUM_VERSION


@given(st.text(st.characters(categories=["L", "N", "P", "S"], max_codepoint=0x2FFF)))
def test_one_line_of_printed_text_can_always_be_expressed(text: str) -> None:
    assert expressible(text)


def test_no_way_of_writing_is_missed() -> None:
    """All that can be written after SYSTEM in 10 of these characters: what is called inexpressible
    is never among what is read (a text of 4 has room for three quotes on both sides), and what is
    called expressible always is."""
    reached = set()
    for length in range(11):
        first = '"' if length > 4 else '"\na'  # what is longer and begins without quotes reads long
        for raw in itertools.product(*(first, *['"\na'] * 9)[:length]):
            try:
                commands = parse_commands(f"FROM m\nSYSTEM {''.join(raw)}\n")
            except BadInput:
                continue
            reached.add(commands[1].value)
    short = {"".join(text) for size in range(5) for text in itertools.product('"\na', repeat=size)}
    assert short - reached == {text for text in short if not expressible(text)} == {'"""\n'}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('a line that ends in """\nand another', 'ends in """'),
        ('"""  \r', 'ends in """'),
        ("a\0b", r"U\+0000"),
        ("a\N{NO-BREAK SPACE}b", r"U\+00A0"),
        ("\N{ZERO WIDTH JOINER}", r"U\+200D"),
        ("half \ud800", r"U\+D800"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_the_way_out(text: str, why: str) -> None:
    assert not expressible(text)
    for system, stop in ((text, "x"), ("x", text)):
        with pytest.raises(BadInput, match=why) as raised:
            create_ollama_modelfile("m", "./model.gguf", system, SAMPLING | {"stop": [stop]})
        assert "deploy" in raised.value.next_step


def test_the_text_is_the_one_of_the_specification() -> None:
    written = create_ollama_modelfile("flask-3f9a", "./model.gguf", 'You know "flask".', SAMPLING)
    lines = written.splitlines()
    assert lines[0].endswith("ollama create flask-3f9a -f Modelfile")
    assert lines[2:] == [
        "FROM ./model.gguf",
        f"REQUIRES {MINIMUM_VERSION}",
        'SYSTEM """You know "flask"."""',
        "PARAMETER temperature 0.2",
        "PARAMETER top_k 40",
        "PARAMETER top_p 0.9",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 2048",
        "PARAMETER num_predict 512",
        "PARAMETER seed 17",
        'PARAMETER stop """<|im_end|>"""',
        'PARAMETER stop """',
        "",
        '"""',
    ]


def test_parameters_that_are_not_given_have_no_line() -> None:
    written = create_ollama_modelfile("m", "a b.gguf", "", {"temperature": 0, "stop": []})
    assert [line for line in written.splitlines() if "PARAMETER" in line] == [
        "PARAMETER temperature 0.0"
    ]
    read = parse_modelfile(written)
    assert (read.gguf_path, read.system_prompt) == ("a b.gguf", "")
    assert read.parameters == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"temprature": 1}, "'temprature'"),
        ({"top_k": 1.5}, "whole number"),
        ({"top_k": True}, "a number"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": float("inf")}, "finite"),
        ({"num_ctx": "many"}, "a number"),
        ({"stop": "one"}, "list of texts"),
        ({"stop": [""]}, "list of texts"),
        ({"stop": [1]}, "list of texts"),
    ],
)
def test_a_wrong_parameter_is_named(sampling: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        create_ollama_modelfile("m", "./model.gguf", "hi", sampling)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\rFROM evil"])
def test_a_name_that_is_not_one_line_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="not one line"):
        create_ollama_modelfile(name, "./model.gguf", "hi", SAMPLING)


@given(TRICKY)
@example("FROM m\nPARAMETER temperature x")
@example("FROM m\nPARAMETER top_k 1e999")
def test_any_text_is_a_modelfile_or_an_error_in_words(text: str) -> None:
    for whole in (text, f"FROM m\n{text}"):
        try:
            parse_modelfile(whole)
        except BadInput as error:
            assert error.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no FROM"),
        ("SYSTEM hi", "no FROM"),
        ("FROM", "Line 1 "),
        ("FROM m\n\nNONSENSE x", "Line 3 "),
        ('FROM m\nSYSTEM """never closed', "never closed"),
        ("FROM m\nMESSAGE bob hi", "'bob' is none of the roles"),
        ("FROM m\nPARAMETER", "Line 2 "),
        ("FROM m\nPARAMETER stop", "a value is missing"),
        ("FROM m\nTEMPLATE {{ .Prompt }}", "a 'template', which AI Forge does not write"),
        ("FROM m\nPARAMETER mirostat 1", "a 'mirostat', which"),
        ("FROM m\nPARAMETER top_k many", "top_k is no number"),
        ("FROM m\nPARAMETER top_k 1_0", "top_k is no number"),
        ("FROM m\nPARAMETER top_k 1.5", "whole number"),
    ],
)
def test_broken_modelfiles_are_named(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        parse_modelfile(text)
