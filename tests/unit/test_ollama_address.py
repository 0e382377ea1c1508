"""Where an Ollama is: addresses as its own OLLAMA_HOST has them, and parameters that it shows.

What Ollama's own code says of the addresses is in fixtures/references/ollama.json.gz.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.errors import BadInput, ForgeError
from forge_mcp.schemas.ollama import PARAMETERS, check_model_name, check_parameters
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.ollama_api import OllamaApi, ollama_address
from forge_mcp.serving.ollama_checks import read_parameters, render_chat, require_version

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"


def test_addresses_are_those_of_ollamas_own_client() -> None:
    """But for a port that is none: Ollama takes its default and warns, here it is refused."""
    with gzip.open(REFERENCES / "ollama.json.gz") as file:
        hosts: list[tuple[str, str]] = json.load(file)["hosts"]
    refused = 0
    for text, theirs in hosts:
        try:
            ours = ollama_address(text)
        except BadInput as error:
            assert "is no port" in error.cause
            assert re.search(r":(65536|70000|-1|abc)", text)
            refused += 1
            continue
        # Without a host Ollama's address is ":80", which is this machine.
        assert ours == re.sub(r"//:", "//127.0.0.1:", theirs).rstrip("/"), text
    assert 100 < refused < len(hosts) / 2


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_error_in_words(text: str) -> None:
    try:
        address = ollama_address(text)
    except BadInput as error:
        assert error.next_step
    else:
        assert address.startswith(("http://", "https://"))


@pytest.mark.parametrize(
    "host", ["ftp://localhost", "://x", "http://a:b:c", "[::1", "http://[::g]:1"]
)
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(ForgeError), OllamaApi(host) as api:
        api.version()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.lists(st.text(min_size=1, max_size=5), max_size=3)
            if kind is list
            else st.integers(-(2**40), 2**40)
            if kind is int
            else st.floats(-1e30, 1e30)
            for name, kind in PARAMETERS.items()
        },
    )
)
def test_parameters_that_ollama_shows_are_read_again(values: dict[str, Any]) -> None:
    checked = check_parameters(values)
    lines = [
        f"{name:<30} {json.dumps(value)}"
        for name, given_ in checked.items()
        for value in (given_ if isinstance(given_, list) else [given_])
    ]
    assert read_parameters("\n".join(lines)) == {k: v for k, v in checked.items() if v != []}


def test_parameters_in_gos_notation() -> None:
    shown = (
        'stop                           "<|im_end|>"\n'
        'stop                           "\\n\\a\\x00\\u2028\\U0001f389é\\"\\\\"\n'
        "temperature                    1e-05\n"
        "num_ctx                        131072\n"
        "num_predict                    -1\n"
        "use_mmap                       true"
    )
    assert read_parameters(shown) == {
        "stop": ["<|im_end|>", '\n\a\0\u2028\N{PARTY POPPER}é"\\'],
        "temperature": 1e-5,
        "num_ctx": 131072,
        "num_predict": -1,
        "use_mmap": True,
    }


@pytest.mark.parametrize("name", ["a", "_x", "a/b", "h.x:80/n/m:t", "A.b-c_d:7B", "x" * 80])
def test_names_that_ollama_allows(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("version", ["0.30.11", "0.30.11-rc0", "0.31.0", "1.0.0", "0.0.0"])
def test_versions_that_are_new_enough(version: str) -> None:
    require_version(version)


@pytest.mark.parametrize("version", ["0.30.10", "0.30.9", "0.29.99", "0.5.13-0-gabc", "0.0.1"])
def test_versions_that_are_too_old(version: str) -> None:
    with pytest.raises(ForgeError, match="too old"):
        require_version(version)


def test_a_template_is_rendered_as_transformers_does() -> None:
    """Blocks that stand alone leave no line, loop controls work, and a refusal is one."""
    template = (
        "{{ bos_token }}{% for m in messages %}\n"
        "  {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = [Message(role="system", content="s"), Message(role="user", content=" hi ")]
    assert render_chat(template, messages, "<s>", "</s>") == "<s>[user] hi</s>\n[assistant]"
    for refusing in ("{{ raise_exception('no') }}", "{% if", "{{ 1 + 'a' }}", "{{ messages.x.y }}"):
        assert render_chat(refusing, messages, "", "") is None
