"""Ollama, managed: create, verify, ask, stream, copy, unload, delete. And the skills on top.

Runs against conformance_ollama.py, where forge-nano answers by llama.cpp, or unchanged against a
real server: OLLAMA_HOST=http://127.0.0.1:11434 pytest tests/integration/test_ollama_manager.py
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from conformance_ollama import VERSION, ConformanceOllama
from ollama_fixtures import NOBODY, PREFIX, TOKENIZER, needs_switches, with_template, without_key
from ollama_fixtures import host as host
from ollama_fixtures import name as name
from ollama_fixtures import nano as nano
from ollama_fixtures import ollama as ollama

from forge_mcp.errors import BadInput, CorruptArtifact, ForgeError, NotFound
from forge_mcp.pipeline.deploy import DeployRequest, deploy
from forge_mcp.pipeline.models import ActivateRequest, activate
from forge_mcp.pipeline.query import QueryRequest, query
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.pipeline.train import make_room
from forge_mcp.schemas.ollama import MINIMUM_VERSION, with_tag
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import registry
from forge_mcp.serving.chat import Sampling
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.serving.ollama import (
    OllamaChat,
    check_ollama_status,
    copy_ollama_model,
    create_ollama_model,
    delete_ollama_model,
    list_ollama_models,
    loaded_ollama_models,
    ollama_version,
    query_model,
    require_ollama,
    show_ollama_model,
    unload_ollama_models,
)
from forge_mcp.settings import load_settings
from forge_mcp.training.bases import resolve_base
from forge_mcp.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from serving_house import ANSWER, House, make_house, scripted_model

pytestmark = pytest.mark.integration

CONTEXT = 256
GREEDY = Sampling(0.0, 1, 1.0, 24)
PARAMETERS = {
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 0.9,
    "repeat_penalty": 1.0,
    "num_ctx": CONTEXT,
    "num_predict": 24,
    "seed": 17,
    "stop": ["STOP", '"\n\N{PARTY POPPER}'],
}
SYSTEM = 'Say """hi""" and "bye"\nends in """\n\N{PARTY POPPER}\t<|im_end|>\\n'
QUESTION = [Message(role="user", content="def add(a, b):")]


def ask(host: str, model: str, messages: list[Message], sampling: Sampling = GREEDY) -> str:
    return OllamaChat(host, model, TOKENIZER, CONTEXT).chat(messages, sampling).text


# -- a model's life --------------------------------------------------------------------------------


def test_the_server_is_there_and_new_enough(host: str) -> None:
    assert check_ollama_status(host)
    assert ollama_version(host)[0].isdigit()
    require_ollama(host)
    assert not check_ollama_status(NOBODY)


def test_a_model_is_created_shown_copied_and_deleted(host: str, name: str, nano: Path) -> None:
    said: list[str] = []
    bars: list[tuple[str, int, int]] = []
    create_ollama_model(
        name,
        nano,
        SYSTEM,
        PARAMETERS,
        host=host,
        progress=said.append,
        on_bytes=lambda *bar: bars.append(bar),
    )
    assert said[-1] == "success" and "parsing GGUF" in said and "writing manifest" in said
    size = nano.stat().st_size
    assert ("hashing", size, size) in bars
    shown = show_ollama_model(name, host=host)
    assert shown["system"] == SYSTEM
    assert shown["details"]["family"] == "llama"
    assert with_tag(name) in list_ollama_models(host)

    copy_ollama_model(name, f"{name}:copy", host=host)
    delete_ollama_model(name, host=host)
    assert with_tag(name) not in list_ollama_models(host)
    assert show_ollama_model(f"{name}:copy", host=host)["system"] == SYSTEM
    delete_ollama_model(f"{name}:copy", host=host)
    assert not [one for one in list_ollama_models(host) if one.startswith(name)]


def test_it_answers_what_the_file_answers(host: str, name: str, nano: Path) -> None:
    create_ollama_model(name, nano, "", PARAMETERS, host=host)
    chat = OllamaChat(host, name, TOKENIZER, CONTEXT)
    own = LlamaCppChat(nano, num_ctx=CONTEXT, threads=1)
    try:
        for messages in (
            QUESTION,
            [Message(role="system", content="You know demo."), *QUESTION],
            [*QUESTION, Message(role="assistant", content=" return "), *QUESTION],
        ):
            expected = own.chat(messages, GREEDY)
            pieces: list[str] = []
            reply = chat.chat(messages, GREEDY, on_text=pieces.append)
            assert reply.text == expected.text == "".join(pieces)
            assert reply.stopped == expected.stopped
            assert reply.prompt_tokens == expected.prompt_tokens == chat.count_tokens(messages)
            assert reply.completion_tokens == expected.completion_tokens
    finally:
        own.close()
        chat.close()
    assert len(pieces) > 1 or len(reply.text) < 8


def test_the_models_own_prompt_and_parameters_count(host: str, name: str, nano: Path) -> None:
    parameters = {key: value for key, value in PARAMETERS.items() if key != "stop"}
    create_ollama_model(name, nano, "You know demo.", parameters, host=host)
    chatted = ask(host, name, [Message(role="system", content="You know demo."), *QUESTION])
    pieces: list[str] = []
    assert query_model(name, QUESTION[0].content, host=host, on_text=pieces.append) == chatted
    assert "".join(pieces) == chatted != ask(host, name, [Message(role="system", content="x")])
    shown = show_ollama_model(name, host=host)
    assert "stop " not in shown["parameters"]  # none that Ollama adds by itself


def test_an_answer_ends_at_a_stop_text_and_at_num_predict(host: str, name: str, nano: Path) -> None:
    create_ollama_model(name, nano, "", PARAMETERS, host=host)
    chat = OllamaChat(host, name, TOKENIZER, CONTEXT)
    whole = chat.chat(QUESTION, GREEDY).text
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    stopped = chat.chat(QUESTION, Sampling(0.0, 1, 1.0, 24, stop=(middle,)))
    assert stopped.text == whole[: whole.index(middle)] and stopped.stopped
    cut = chat.chat(QUESTION, Sampling(0.0, 1, 1.0, 3))
    assert (cut.stopped, cut.completion_tokens) == (False, 3)
    assert whole.startswith(cut.text)
    chat.close()


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(
    host: str, name: str, nano: Path
) -> None:
    create_ollama_model(name, nano, "", PARAMETERS, host=host)
    chat = OllamaChat(host, name, TOKENIZER, CONTEXT)
    assert chat.context == CONTEXT
    long = [*QUESTION, Message(role="user", content="word " * CONTEXT)]
    with pytest.raises(BadInput, match="longer than the model's context"):
        chat.chat(long, GREEDY)
    with pytest.raises(ForgeError):  # in Ollama's own words
        query_model(name, "word " * CONTEXT, host=host)
    assert chat.chat(QUESTION, GREEDY).text
    chat.close()


def test_a_file_is_sent_once(host: str, name: str, nano: Path) -> None:
    create_ollama_model(name, nano, "one", PARAMETERS, host=host)
    said: list[str] = []
    sha256 = hashlib.sha256(nano.read_bytes()).hexdigest()
    create_ollama_model(
        name, nano, "two", PARAMETERS, host=host, progress=said.append, sha256=sha256
    )
    assert show_ollama_model(name, host=host)["system"] == "two"  # the first was replaced
    assert any("Ollama has the file already" in text for text in said)


def test_memory_is_given_back(host: str, name: str, nano: Path) -> None:
    create_ollama_model(name, nano, "", PARAMETERS, host=host)
    ask(host, name, QUESTION)
    assert with_tag(name) in loaded_ollama_models(host)
    assert unload_ollama_models(host, [f"{PREFIX}-other"]) == []
    assert unload_ollama_models(host, [name]) == [with_tag(name)]
    assert with_tag(name) not in loaded_ollama_models(host)
    for elsewhere in ("http://192.0.2.1:11434", "192.0.2.1"):  # another machine's memory
        assert unload_ollama_models(elsewhere) == []


# -- what is wrong is found before a model can be used ---------------------------------------------


def test_what_is_missing_is_named(host: str, tmp_path: Path) -> None:
    nobody = f"{PREFIX}-nobody"
    with pytest.raises(NotFound, match=r"gone\.gguf"):
        create_ollama_model(nobody, tmp_path / "gone.gguf", "", {}, host=host)
    chat = OllamaChat(host, nobody, TOKENIZER, CONTEXT)
    for call in (
        lambda: query_model(nobody, "hi", host=host),
        lambda: delete_ollama_model(nobody, host=host),
        lambda: show_ollama_model(nobody, host=host),
        lambda: copy_ollama_model(nobody, f"{nobody}:b", host=host),
        lambda: chat.chat(QUESTION, GREEDY),
    ):
        with pytest.raises(NotFound, match=f"no model '{nobody}'"):
            call()
    chat.close()


def test_what_cannot_be_sent_is_refused(host: str, name: str, nano: Path) -> None:
    with pytest.raises(BadInput, match="does not allow the model name"):
        create_ollama_model("a b", nano, "", {}, host=host)
    with pytest.raises(BadInput, match="does not allow the model name"):
        copy_ollama_model(name, "-x", host=host)
    with pytest.raises(BadInput, match="sets no parameter 'mirostat'"):
        create_ollama_model(name, nano, "", {"mirostat": 1}, host=host)
    with pytest.raises(BadInput, match="no valid Unicode"):
        create_ollama_model(name, nano, "half \ud800", {}, host=host)
    with pytest.raises(BadInput, match="no valid Unicode"):
        query_model(name, "half \ud800", host=host)
    with pytest.raises(BadInput, match="no valid Unicode"):
        ask(host, name, [Message.model_construct(role="user", content="\ud800")])
    assert with_tag(name) not in list_ollama_models(host)


@pytest.mark.parametrize(
    ("key", "lack"),
    [
        ("tokenizer.chat_template", "no chat template"),
        ("tokenizer.ggml.eos_token_id", "never stop"),
    ],
)
def test_a_file_without_template_or_end_is_refused(
    host: str, name: str, nano: Path, tmp_path: Path, key: str, lack: str
) -> None:
    with pytest.raises(CorruptArtifact, match=lack):
        create_ollama_model(name, without_key(nano, key, tmp_path), "", {}, host=host)
    assert with_tag(name) not in list_ollama_models(host)


def test_a_file_that_is_cut_off_is_refused(
    host: str, name: str, nano: Path, tmp_path: Path
) -> None:
    data = nano.read_bytes()
    for size in (0, 3, 100, 50_000, len(data) - 1000):
        path = tmp_path / "cut.gguf"
        path.write_bytes(data[:size])
        with pytest.raises(ForgeError):
            create_ollama_model(name, path, "", {}, host=host)
        assert with_tag(name) not in list_ollama_models(host)


def test_a_template_of_ollamas_own_that_writes_other_prompts_is_found(
    host: str, name: str, tmp_path: Path
) -> None:
    """The file's template resembles ChatML, which Ollama has its own template for."""
    changed = with_template(
        lambda jinja: jinja.replace("'\\n' + message", "': ' + message"), tmp_path
    )
    with pytest.raises(ForgeError, match="other prompts than it was trained on") as raised:
        create_ollama_model(name, changed, "You know demo.", PARAMETERS, host=host)
    assert "OLLAMA_GO_TEMPLATE=0" in raised.value.next_step
    assert with_tag(name) not in list_ollama_models(host)


def test_a_template_that_ollama_does_not_know_is_the_one_that_is_used(
    host: str, name: str, tmp_path: Path
) -> None:
    def change(jinja: str) -> str:
        return jinja.replace("message['role']", "'[' + message['role'] | upper + ']'") + (
            "{#" + " It differs from ChatML in more than a hundred places." * 3 + "#}"
        )

    changed = with_template(change, tmp_path)
    create_ollama_model(name, changed, "You know demo.", PARAMETERS, host=host)
    shown = show_ollama_model(name, host=host)
    assert "| upper" in shown["template"]
    own = LlamaCppChat(changed, num_ctx=CONTEXT, threads=1)
    chat = OllamaChat(host, name, TOKENIZER, CONTEXT)
    try:
        system = [Message(role="system", content="You know demo."), *QUESTION]
        expected = own.chat(system, GREEDY)
        for messages in (system, QUESTION):  # the model has its own system prompt
            reply = chat.chat(messages, GREEDY)
            assert (reply.text, reply.prompt_tokens) == (expected.text, expected.prompt_tokens)
    finally:
        own.close()
        chat.close()


@needs_switches
def test_an_ollama_that_is_too_old_is_refused_before_anything_is_sent(
    ollama: ConformanceOllama, nano: Path
) -> None:
    for version, works in (
        ("0.24.0", False),
        ("0.30.10", False),
        (f"{MINIMUM_VERSION}-rc1", True),
        ("1.0.0", True),
    ):
        ollama.version, before = version, len(ollama.requests)
        try:
            if works:
                require_ollama(ollama.host)
                continue
            chat = OllamaChat(ollama.host, "m", TOKENIZER, CONTEXT)
            for call in (
                lambda: require_ollama(ollama.host),
                lambda: create_ollama_model("m", nano, "", {}, host=ollama.host),
                lambda chat=chat: chat.chat(QUESTION, GREEDY),
            ):
                with pytest.raises(ForgeError, match=f"{version} is too old: {MINIMUM_VERSION}"):
                    call()
            chat.close()
            assert {path for _, path, _ in ollama.requests[before:]} == {"/api/version"}
        finally:
            ollama.version = VERSION


# -- the skills ------------------------------------------------------------------------------------


def house_with(host: str, folder: Path) -> House:
    """A workspace with a run of the scripted model that passed its evaluation."""
    serving = {"ollama_host": host, "num_ctx": 512, "num_predict": 64, "threads": 1}
    base = scripted_model(folder / "base", ANSWER)
    house = make_house(folder / "forge", base, serving=serving)
    house.report(True, 1)
    return house


def test_a_deployed_model_answers_through_ollama(host: str, tmp_path: Path) -> None:
    """The whole way: adapters, GGUF, upload, Ollama's prompt, its answer, and back again."""
    house = house_with(host, tmp_path)
    request = DeployRequest(run_or_export=house.run.id, target="ollama")
    made = deploy(request, house.context)
    try:
        assert show_ollama_model(made.model, host=host)["system"] == "You know demo."
        answered = query(QueryRequest(text="Which parameters does `zip_all` take?"), house.context)
        assert (answered.answer, answered.model) == ("`rows`", made.model)
        assert deploy(request, house.context).model == made.model
    finally:
        delete_ollama_model(made.model, host=host)
    with pytest.raises(NotFound, match="no longer in Ollama"):
        activate(ActivateRequest(model=made.model), house.context)


@needs_switches
@pytest.mark.parametrize("trouble", ["refuse_create", "error_in_answer"])
def test_a_deployment_that_fails_leaves_nothing_in_ollama(
    ollama: ConformanceOllama, tmp_path: Path, trouble: str
) -> None:
    house = house_with(ollama.host, tmp_path)
    setattr(ollama.faults, trouble, "model runner has unexpectedly stopped")
    try:
        with pytest.raises(ForgeError, match="unexpectedly stopped"):
            deploy(DeployRequest(run_or_export=house.run.id, target="ollama"), house.context)
    finally:
        setattr(ollama.faults, trouble, "")
    assert ollama.models == {}
    assert registry.standing(house.workspace, "demo").active is None


@needs_switches
@pytest.mark.parametrize("short", [True, False])
def test_a_training_makes_room_where_memory_is_short(
    ollama: ConformanceOllama,
    name: str,
    nano: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    short: bool,
) -> None:
    create_ollama_model(name, nano, "", PARAMETERS, host=ollama.host)
    ask(ollama.host, name, QUESTION)
    base = resolve_base("forge-nano")
    how = load_settings().training
    free = base.training_bytes(how) - 1 if short else base.training_bytes(how)
    monkeypatch.setattr("forge_mcp.machine.available_bytes", lambda: free)
    said: list[str] = []
    context = SkillContext(
        workspace=Workspace(tmp_path),
        settings=load_settings(call={"serving": {"ollama_host": ollama.host}}),
        project="sample",
        sink=lambda event: said.append(event.payload["message"]),
    )
    make_room(base, how, context)
    assert loaded_ollama_models(ollama.host) == ([] if short else [with_tag(name)])
    assert len(said) == short and all(name in text for text in said)
