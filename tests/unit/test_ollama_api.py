"""How Ollama is asked: addresses as its own OLLAMA_HOST has them, answers of every kind, and what
is read in them. What Ollama's own code says of addresses is in fixtures/references/ollama.json.gz.

Against a server that answers like Ollama: tests/integration/test_ollama_manager.py.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp.errors import BadInput, ForgeError, NotFound, OutOfSpace, Unavailable
from forge_mcp.schemas.ollama import PARAMETERS, check_model_name, check_parameters
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving.ollama_api import OllamaApi, ollama_address
from forge_mcp.serving.ollama_checks import (
    FileFacts,
    check_created,
    read_parameters,
    render_chat,
    require_version,
)

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
        with suppress(BadInput), OllamaApi(text) as api:
            assert api.address == address


@pytest.mark.parametrize(
    "host",
    ["ftp://localhost", "://x", "a b", "http://a:b:c", "[::1", "http://[::g]:1", "http://xn--\xdf"],
)
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(BadInput, match="is no address of an Ollama server"):
        OllamaApi(host)


def test_a_name_that_cannot_be_looked_up_is_no_address() -> None:
    with (
        OllamaApi("http://" + "a" * 70 + "..") as api,
        pytest.raises(BadInput, match="is no address of an Ollama server"),
    ):
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
        f"{name:<30} {json.dumps(value, ensure_ascii=False)}"
        for name, given_ in checked.items()
        for value in (given_ if isinstance(given_, list) else [given_])
    ]
    assert read_parameters("\n".join(lines)) == {k: v for k, v in checked.items() if v != []}


def test_parameters_are_read_as_go_writes_them() -> None:
    with gzip.open(REFERENCES / "ollama.json.gz") as file:
        shown: list[tuple[Any, str]] = json.load(file)["shown"]
    for value, line in shown:
        read = read_parameters(f'other 1\n{line}\nanother "x"')["name"]
        assert read == ([value] if isinstance(value, str) else value), line
    together = "\n".join(line for value, line in shown if isinstance(value, str))
    assert read_parameters(together) == {"name": [v for v, _ in shown if isinstance(v, str)]}


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


# -- answers ---------------------------------------------------------------------------------------

Answer = Callable[[httpx.Request], httpx.Response]


def api_that_gets(answer: Answer) -> OllamaApi:
    """Requests that reach no network."""
    api = OllamaApi()
    api._http = httpx.Client(base_url=api.address, transport=httpx.MockTransport(answer))
    return api


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("refused"), "does not answer|not installed"),
        (httpx.ConnectTimeout("slow"), "does not answer|not installed"),
        (httpx.ReadTimeout("slow"), "too slow to"),
        (httpx.WriteTimeout("slow"), "too slow to"),
        (httpx.ReadError("reset"), "broke off"),
        (httpx.WriteError("broken pipe"), "broke off"),
        (httpx.RemoteProtocolError("Server disconnected without sending"), "broke off"),
        (httpx.RemoteProtocolError("peer closed connection without"), "broke off"),
        (httpx.DecodingError("bad gzip"), "is not Ollama"),
    ],
)
def test_what_goes_wrong_below_http_is_one_error_in_words(error: Exception, expected: str) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    api = api_that_gets(fail)
    for call in (
        api.version,
        lambda: api.request("GET", "/api/tags", doing="x"),
        lambda: list(api.stream("/api/chat", {}, doing="x")),
        lambda: api.has_blob("sha256:0"),
        lambda: api.send_blob("sha256:0", 1, [b"x"]),
    ):
        with pytest.raises(Unavailable, match=expected) as raised:
            call()
        assert raised.value.cause and raised.value.next_step


def test_an_ill_formed_answer_of_the_network_is_another_program() -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.RemoteProtocolError("illegal status line")

    with pytest.raises(Unavailable, match="is not Ollama"):
        api_that_gets(fail).version()


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_a_refusal_has_ollamas_words(status: int) -> None:
    api = api_that_gets(lambda request: httpx.Response(status, json={"error": "its words"}))
    with pytest.raises(ForgeError) as raised:
        api.request("POST", "/api/show", {}, doing="show m", model="m")
    assert raised.value.cause == "its words"
    assert isinstance(raised.value, NotFound) == (status == 404)
    with pytest.raises(ForgeError) as raised:
        list(api.stream("/api/create", {}, doing="create m"))
    assert (raised.value.message, raised.value.cause) == ("Ollama could not create m.", "its words")
    full = api_that_gets(
        lambda _: httpx.Response(status, json={"error": "No space left on device"})
    )
    with pytest.raises(OutOfSpace):
        full.request("POST", "/api/create", {}, doing="create m", model="m")


def test_a_stream_has_a_part_a_line_and_may_hold_empty_ones() -> None:
    content = b'{"status": "a"}\n\n{"status": "b"}\n'
    api = api_that_gets(lambda request: httpx.Response(200, content=content))
    assert list(api.stream("/api/create", {}, doing="x")) == [{"status": "a"}, {"status": "b"}]
    broken = api_that_gets(lambda request: httpx.Response(200, content=content + b"{"))
    parts = broken.stream("/api/create", {}, doing="x")
    assert [next(parts), next(parts)] == [{"status": "a"}, {"status": "b"}]
    with pytest.raises(Unavailable, match="is not Ollama"):
        next(parts)


def test_a_template_that_refuses_every_chat_proves_nothing() -> None:
    shown: dict[str, Any] = {
        "template": "one of Ollama's own",
        "system": "",
        "model_info": {"general.architecture": "llama", "tokenizer.ggml.eos_token_id": 2},
    }
    api = api_that_gets(lambda request: httpx.Response(200, json=shown))
    facts = FileFacts("llama", "{{ raise_exception('no') }}", None, 2)
    with pytest.raises(ForgeError, match="cannot be found out"):
        check_created(api, "m", facts, "", {})
    check_created(api, "m", replace(facts, chat_template=shown["template"]), "", {})
    for other in (replace(facts, eos=3), replace(facts, bos=1), replace(facts, architecture="x")):
        with pytest.raises(ForgeError, match="did not take m as it was sent"):
            check_created(api, "m", other, "", {})
