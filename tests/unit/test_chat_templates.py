"""Chat templates are found where transformers finds them, in its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CHATML, GEMMA, LLAMA2, LLAMA3, PHI3, write_tokenizer

from forge_mcp.errors import UnsupportedModel
from forge_mcp.exporting.chat_templates import read_chat_templates, render_sample

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
NAMES = st.sampled_from(["default", "tool_use", "rag"])


def place(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def configure(folder: Path, name: str = "tokenizer_config.json", **values: Any) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer without a template."""
    written = write_tokenizer(tmp_path / "base")
    (written / "chat_template.jinja").unlink()
    return written


@settings(max_examples=40, suppress_health_check=[*HealthCheck])
@given(
    own=st.none() | st.just("own"),
    more=st.sets(NAMES),
    config=st.none() | st.just("configured") | st.sets(NAMES, min_size=1),
    as_object=st.booleans(),
)
def test_the_places_and_their_order_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    own: str | None,
    more: set[str],
    config: str | set[str] | None,
    as_object: bool,
) -> None:
    from transformers import AutoTokenizer

    folder = write_tokenizer(tmp_path_factory.mktemp("t") / "base")
    (folder / "chat_template.jinja").unlink()
    if own:
        place(folder, "chat_template.jinja", own)
    for name in more:
        place(folder, f"additional_chat_templates/{name}.jinja", f"file {name}")
    if isinstance(config, set):
        named = {name: f"listed {name}" for name in config}
        rows = [{"name": name, "template": text} for name, text in named.items()]
        configure(folder, chat_template=named if as_object else rows)
    elif config:
        configure(folder, chat_template=config)
    theirs = AutoTokenizer.from_pretrained(str(folder)).chat_template
    expected = {"default": theirs} if isinstance(theirs, str) else theirs or {}
    if "default" in expected:
        found = read_chat_templates(folder)
        assert found == expected
        assert next(iter(found)) == "default"
    else:
        with pytest.raises(UnsupportedModel, match="default" if expected else "no chat template"):
            read_chat_templates(folder)


def test_what_only_a_processor_reads_comes_last(folder: Path) -> None:
    configure(folder, "chat_template.json", chat_template="processor")
    assert read_chat_templates(folder) == {"default": "processor"}
    configure(folder, chat_template="tokenizer")
    assert read_chat_templates(folder) == {"default": "tokenizer"}


def test_a_base_without_a_template_is_told_where_to_go(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no chat template") as refused:
        read_chat_templates(folder)
    assert "instruct or chat variant" in refused.value.next_step


def test_chats_that_mlx_lm_writes_by_code_are_refused(folder: Path) -> None:
    place(folder, "chat_template.jinja", CHATML)
    configure(folder, chat_template_type="deepseek_v32")
    with pytest.raises(UnsupportedModel, match="by code of its own \\(deepseek_v32\\)"):
        read_chat_templates(folder)


@pytest.mark.parametrize("value", [7, [7], [{"name": "x"}], {"default": 7}, [["a", "b"]]])
def test_templates_of_no_known_form(folder: Path, value: Any) -> None:
    configure(folder, chat_template=value)
    with pytest.raises(UnsupportedModel, match="no known form"):
        read_chat_templates(folder)


def test_a_template_that_is_no_text(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UnsupportedModel, match=r"chat_template\.jinja of base cannot be read"):
        read_chat_templates(folder)


@pytest.mark.parametrize("template", [CHATML, GEMMA, LLAMA2, LLAMA3, PHI3])
def test_a_sample_is_rendered_as_transformers_renders_it(folder: Path, template: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), bos_token="<s>", eos_token="</s>")
    chat = [
        {"role": "system", "content": "You answer."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?"},
    ]
    assert render_sample(folder, template, SPECIAL) == tokenizer.apply_chat_template(
        chat, chat_template=template, tokenize=False, add_generation_prompt=True
    )


def test_a_template_that_allows_no_system_message(folder: Path) -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}{{ message.content }}|{% endfor %}"
    )
    assert render_sample(folder, strict, {}) == "One?|1.|Two?|"


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{% if x %}", "no Jinja: line 1"),
        ("a\n{{ messages | nonsense }}", "no Jinja: line 2"),
        ("{{ raise_exception('never') }}", "fails on a chat: TemplateError: never"),
        ("{{ messages[9].content }}", "fails on a chat: UndefinedError"),
        ("{{ 1 / 0 }}", "fails on a chat: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "fails on a chat: SecurityError"),
    ],
)
def test_templates_that_do_not_work_are_named(folder: Path, template: str, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        render_sample(folder, template, {})
