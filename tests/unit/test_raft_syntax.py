"""Whether code is a definition without a syntax error, in every language that is mined."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_languages_jvm import ENDLESS

from forge_mcp.mining.miner import parse_repository
from forge_mcp.raft.code_tasks import indentation
from forge_mcp.raft.syntax import parses
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.settings import load_settings

LANGUAGES = Path(__file__).parents[1] / "fixtures" / "languages"


@cache
def functions() -> list[CodeBlock]:
    """Functions and methods of the fixtures, as mining writes them."""
    loaded = load_settings()
    one = loaded.mining.model_copy(update={"workers": 1, "require_docstring": False})
    blocks = parse_repository(LANGUAGES, loaded.model_copy(update={"mining": one})).blocks
    return [block for block in blocks if block.block_type in ("function", "method")]


def test_what_is_mined_parses_by_itself() -> None:
    assert len({block.language for block in functions()}) == 15
    for block in functions():
        code = indentation(block) + block.source_code
        assert parses(code, block.language, block.block_type), code


def test_what_is_broken_does_not() -> None:
    for block in functions():
        for broken in (f"{block.source_code} ))]", f"(({block.source_code}", ""):
            assert not parses(broken, block.language, block.block_type), broken


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("go", "x := 1"),
        ("java", "int x = 1;"),
        ("rust", "let x = 1;"),
        ("rust", "struct X;"),
        ("cpp", "int x = 1;"),
        ("ruby", "x = 1"),
        ("php", "$x = 1;"),
        ("swift", "struct X {}"),
        ("python", "x = 1"),
        ("python", "class A: pass"),
    ],
)
def test_what_is_no_function_is_none(language: str, code: str) -> None:
    assert not parses(code, language, "function")


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    return 1",
        "    def f(self):\n        return 1",
        "    @property\n    async def f(self):\n        await g()",
        "import os\n\ndef f():\n    return os",
        "def f(x):\n    nonlocal a, b\n    a = b",
        "def f():\n    yield from g()",
        "def f():\n    return super().f()",
    ],
)
def test_python_that_compiles(code: str) -> None:
    assert parses(code, "python", "function")


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    return 1\nreturn 2",
        "def f():\n    await g()",
        "def f():\n    break",
        "def f(x, x):\n    pass",
        "def f(x):\n    global x",
        "def f(x):\n    nonlocal a\n    a = 1\nreturn 2 +",
        "def f(self):\n    x = 1\n  return x",
        "def f():\n\treturn '\0'",
        "def f():\n    return " + "(" * 500 + ")" * 500,
    ],
)
def test_python_that_does_not(code: str) -> None:
    assert not parses(code, "python", "function")


def test_code_that_a_grammar_would_never_finish_does_not_parse() -> None:
    assert not parses(ENDLESS, "kotlin", "function")


def test_nothing_is_run(tmp_path: Path) -> None:
    written = tmp_path / "written"
    code = f"open({str(written)!r}, 'w').close()\ndef f(x=open({str(written)!r}, 'w')):\n    pass"
    assert parses(code, "python", "function")
    assert not written.exists()


@given(st.text(max_size=60), st.sampled_from(["python", "rust", "java", "cpp", "go", "ruby"]))
def test_whatever_is_written_is_judged(code: str, language: str) -> None:
    assert parses(code, language, "function") in (True, False)
