"""The embedded runtime inside this process: LlamaCppChat, and what it asks of xllamacpp.

Two models: one whose answer is scripted in its weights, and forge-nano, whose hidden states MLX
computes independently.
"""

from __future__ import annotations

import gc
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving_house import ANSWER, scripted_model

from forge_mcp import machine
from forge_mcp.errors import (
    BadInput,
    Cancelled,
    CorruptArtifact,
    ForgeError,
    NotFound,
    Unavailable,
)
from forge_mcp.exporting.gguf import convert_to_gguf
from forge_mcp.machine import requirement
from forge_mcp.schemas.raft_examples import Message
from forge_mcp.serving import llamacpp_runtime
from forge_mcp.serving.chat import Deployed, Sampling, open_chat, unload
from forge_mcp.serving.llamacpp import LlamaCppChat
from forge_mcp.serving.llamacpp_runtime import NEEDED, check_runtime, size_of
from forge_mcp.settings import load_settings

GREEDY = Sampling(0.0, 1, 1.0, 64)
ASKED = [Message(role="system", content="Answer."), Message(role="user", content="What?")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


@pytest.fixture(scope="module")
def gguf(base: Path) -> Path:
    return convert_to_gguf(base, base / "m.gguf", "f16")


@pytest.fixture(scope="module")
def chat(gguf: Path) -> Iterator[LlamaCppChat]:
    runtime = LlamaCppChat(gguf, num_ctx=512, threads=1)
    yield runtime
    runtime.close()


NANO = Path(str(files("forge_mcp").joinpath("assets/forge-nano")))


@pytest.fixture(scope="module")
def nano_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_to_gguf(NANO, tmp_path_factory.mktemp("nano") / "nano.gguf", "q8_0")


@pytest.fixture(scope="module")
def nano(nano_gguf: Path) -> Iterator[LlamaCppChat]:
    runtime = LlamaCppChat(nano_gguf, num_ctx=512, threads=1)
    yield runtime
    runtime.close()


def asked(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


# -- chats -----------------------------------------------------------------------------------------


def test_a_chat_streams_and_stops_at_the_end_of_the_turn(chat: LlamaCppChat) -> None:
    pieces: list[str] = []
    reply = chat.chat(ASKED, GREEDY, on_text=pieces.append)
    assert reply.text == ANSWER
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 2
    assert reply.stopped
    assert reply.prompt_tokens == chat.count_tokens(ASKED) > 10
    again = chat.answer(ASKED, 64)
    assert (again.text, again.prompt_tokens_read) == (ANSWER, reply.prompt_tokens)


def test_a_stop_text_ends_the_answer_and_is_not_in_it(chat: LlamaCppChat) -> None:
    for stop, text in (
        (("<ANSWER>:",), ANSWER.partition("<ANSWER>:")[0]),
        (("none such", "zip_all(r"), ANSWER.partition("zip_all(r")[0]),
        (("none such",), ANSWER),
    ):
        reply = chat.chat(ASKED, Sampling(0.0, 1, 1.0, 64, stop=stop))
        assert (reply.text, reply.stopped) == (text, True)


def test_an_answer_is_cut_at_its_length_and_at_the_context(nano: LlamaCppChat) -> None:
    reply = nano.chat(asked("def f"), Sampling(0.0, 1, 1.0, 7))
    assert (reply.stopped, reply.completion_tokens) == (False, 7)
    long = asked("def f " * 240)
    room = 512 - nano.count_tokens(long)
    assert 0 < room < 40
    full = nano.chat(long, Sampling(0.0, 1, 1.0, 400, stop=()))
    assert not full.stopped
    assert room - 2 <= full.completion_tokens <= room
    assert nano.chat(asked("def f"), Sampling(0.0, 1, 1.0, 7)).text == reply.text


def test_a_prompt_beyond_the_context_is_refused_in_words(chat: LlamaCppChat) -> None:
    with pytest.raises(BadInput, match="longer than the model's context") as refused:
        chat.chat(asked("word " * 2000), GREEDY)
    assert "512 fit" in refused.value.cause
    assert chat.chat(ASKED, GREEDY).text == ANSWER


def test_a_chat_that_the_template_refuses_is_told(tmp_path: Path, base: Path) -> None:
    picky = tmp_path / "picky"
    shutil.copytree(base, picky)
    template = picky / "chat_template.jinja"
    refuse = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not so') }}{% endif %}"
    template.write_text(refuse + template.read_text())
    runtime = LlamaCppChat(convert_to_gguf(picky, picky / "m.gguf", "f16"), num_ctx=128, threads=1)
    try:
        assert runtime.chat(asked("yes"), GREEDY).text == ANSWER
        for ask in (
            lambda: runtime.chat(asked("no"), GREEDY),
            lambda: runtime.count_tokens(asked("no")),
        ):
            with pytest.raises(ForgeError) as refused:
                ask()
            assert "not so" in refused.value.cause
    finally:
        runtime.close()


def test_the_chat_is_rendered_by_the_template_in_the_file(chat: LlamaCppChat, base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    rows = [message.model_dump() for message in ASKED]
    assert chat.render(ASKED) == tokenizer.apply_chat_template(
        rows, tokenize=False, add_generation_prompt=True
    )
    text = "naïve <|im_end|>\n  x"
    assert chat.tokenize(text) == tokenizer.encode(text)


def test_what_a_listener_raises_stops_the_answer_and_reaches_the_caller(
    nano: LlamaCppChat,
) -> None:
    seen: list[str] = []

    def stop(text: str) -> None:
        seen.append(text)
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        nano.chat(asked("def f"), Sampling(0.0, 1, 1.0, 400), on_text=stop)
    assert len(seen) == 1
    for _ in range(100):  # it is told to stop, and stops after its token
        seen = nano._running().handle_metrics()
        if "llamacpp:requests_processing 0" in seen:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the answer goes on")
    assert nano.chat(asked("def f"), Sampling(0.0, 1, 1.0, 5)).completion_tokens == 5


def test_two_threads_wait_for_each_other(nano: LlamaCppChat) -> None:
    texts: dict[int, str] = {}
    questions = [asked(f"Where is f{n}?") for n in range(4)]
    alone = [nano.answer(question, 12).text for question in questions]

    def ask(number: int) -> None:
        texts[number] = nano.answer(questions[number], 12).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[n] for n in range(4)] == alone


# -- sampling and determinism ----------------------------------------------------------------------


def test_sampling_follows_what_is_asked(nano: LlamaCppChat) -> None:
    question = asked("What does `open` do?")

    def text(**changed: Any) -> str:
        usual: dict[str, Any] = {
            "temperature": 1.5,
            "top_k": 40,
            "top_p": 1.0,
            "num_predict": 24,
            "exact": True,
        }
        return nano.chat(question, Sampling(**usual | changed)).text

    greedy = text(temperature=0.0)
    assert text() == text()
    assert len({text(seed=seed) for seed in range(4)}) > 1
    # Each of these leaves the most likely token alone to be chosen.
    assert text(top_k=1) == text(top_p=0.0001) == text(min_p=1.0) == greedy
    # nano repeats itself; a heavy penalty makes it say something else.
    assert text(temperature=0.0, repeat_penalty=5.0) != greedy


def probabilities(runtime: LlamaCppChat, prompt: str, cache: bool) -> list[tuple[int, float]]:
    """The five most likely tokens with their log-probabilities at each of eight steps."""
    body = {
        "prompt": prompt,
        "n_predict": 8,
        "temperature": 0.0,
        "n_probs": 5,
        "cache_prompt": cache,
    }
    answer = runtime.post("/completion", body)
    return [
        (one["id"], one["logprob"])
        for step in answer["completion_probabilities"]
        for one in step["top_logprobs"]
    ]


def test_the_same_question_gives_the_same_logits_bit_by_bit(
    nano: LlamaCppChat, nano_gguf: Path
) -> None:
    prompt = nano.render(asked("What does `json.dumps` return? " + "It writes. " * 20))
    first = probabilities(nano, prompt, cache=False)
    assert len(first) == 40
    probabilities(nano, nano.render(asked("Another question")), cache=True)
    assert probabilities(nano, prompt, cache=False) == first
    fresh = LlamaCppChat(nano_gguf, num_ctx=512, threads=1)
    try:
        assert probabilities(fresh, prompt, cache=False) == first
        shared = probabilities(fresh, prompt, cache=True)
        assert [token for token, _ in shared[::5]] == [token for token, _ in first[::5]]
    finally:
        fresh.close()


def test_a_later_turn_reads_only_what_is_new_also_between_two_chats(nano: LlamaCppChat) -> None:
    def turn(messages: list[Message]) -> tuple[list[Message], int, int]:
        reply = nano.chat(messages, Sampling(0.0, 1, 1.0, 8))
        assert reply.prompt_tokens_read is not None
        grown = [*messages, Message(role="assistant", content=reply.text)]
        return [*grown, *asked("And then?")], reply.prompt_tokens, reply.prompt_tokens_read

    one, total, read = turn(asked("First chat. " + "alpha " * 60))
    assert read > total - 8  # nothing of it was known, but perhaps the template's first tokens
    other, total, read = turn(asked("Second chat. " + "beta " * 60))
    assert read > total - 8
    for _ in range(2):  # in turn: neither chat throws the other one out
        one, total, read = turn(one)
        assert read < 24 < total
        other, total, read = turn(other)
        assert read < 24 < total


# -- embeddings ------------------------------------------------------------------------------------


def test_embeddings_are_the_mean_of_the_last_hidden_states(nano: LlamaCppChat) -> None:
    """Against the same model in mlx-lm; q8_0 costs a little of the cosine."""
    mx = machine.mlx()
    from mlx_lm.utils import load

    loaded = load(str(NANO))
    model, tokenizer = loaded[0], loaded[1]
    texts = ["def add(a, b):\n    return a + b", "class Pool:", "x"]
    vectors = nano.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        ids = nano.tokenize(text)
        assert ids == tokenizer.encode(text)
        states = model.model(mx.array([ids]))[0].astype(mx.float32).mean(axis=0)
        expected = (states / mx.linalg.norm(states)).tolist()
        assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-5)
        assert sum(a * b for a, b in zip(vector, expected, strict=True)) > 0.999
    assert nano.embed([]) == []
    assert nano.chat(asked("def f"), Sampling(0.0, 1, 1.0, 4)).completion_tokens == 4
    with pytest.raises(BadInput, match="could not answer"):
        nano.embed(["word " * 600])


# -- loading ---------------------------------------------------------------------------------------


def test_missing_and_damaged_files_are_named(tmp_path: Path, gguf: Path) -> None:
    with pytest.raises(NotFound, match=r"gone\.gguf"):
        LlamaCppChat(tmp_path / "gone.gguf", num_ctx=64)
    bad = tmp_path / "bad.gguf"
    whole = gguf.read_bytes()
    for content in (b"GGUF" + b"x" * 100, b"", whole[: len(whole) // 2], whole[:-64]):
        bad.write_bytes(content)
        with pytest.raises(CorruptArtifact, match=r"bad\.gguf"):
            LlamaCppChat(bad, num_ctx=64, threads=1)


def test_what_llama_cpp_does_not_know_is_refused_in_words(tmp_path: Path, gguf: Path) -> None:
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(gguf.read_bytes().replace(b"llama", b"lhama"))
    with pytest.raises(CorruptArtifact, match=r"cannot load strange\.gguf"):
        LlamaCppChat(strange, num_ctx=64, threads=1)


def test_a_context_beyond_the_memory_is_refused_before_it_kills_anybody(
    nano_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = size_of(nano_gguf, 512)
    # 6 layers, 4 heads of 64, keys and values, two bytes each.
    assert small.context_bytes == 512 * 6 * 4 * (64 + 64) * 2
    assert small.weights_bytes == nano_gguf.stat().st_size
    assert size_of(nano_gguf, 10**9).num_ctx == 2048  # what it was trained for
    monkeypatch.setattr(llamacpp_runtime, "available_bytes", lambda: small.total_bytes - 1)
    with pytest.raises(ForgeError, match="does not fit into the memory") as refused:
        LlamaCppChat(nano_gguf, num_ctx=512, threads=1)
    assert "num_ctx" in refused.value.next_step
    monkeypatch.setattr(llamacpp_runtime, "available_bytes", lambda: small.total_bytes)
    LlamaCppChat(nano_gguf, num_ctx=512, threads=1).close()


def test_the_context_is_no_larger_than_the_model_was_made_for(nano_gguf: Path) -> None:
    runtime = LlamaCppChat(nano_gguf, num_ctx=100_000, threads=1)
    try:
        assert runtime.context == 2048
        with pytest.raises(BadInput, match="longer than the model's context") as refused:
            runtime.chat(asked("word " * 3000), GREEDY)
        assert "2048 fit" in refused.value.cause
    finally:
        runtime.close()


def test_ctrl_c_while_a_model_is_loaded_ends_it(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is let go before its loop has begun would never end."""
    import xllamacpp

    make, ended = xllamacpp.Server, []

    class Interrupted:
        def __init__(self, parameters: object) -> None:
            self.began = False
            self.server = make(parameters)
            signal.raise_signal(signal.SIGINT)

        def handle_metrics(self) -> object:
            self.began = True
            return self.server.handle_metrics()

        def __del__(self) -> None:
            ended.append(self.began)
            self.server.handle_metrics()

    monkeypatch.setattr(xllamacpp, "Server", Interrupted)
    # Tests that were started in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            LlamaCppChat(gguf, num_ctx=64, threads=1)
    finally:
        signal.signal(signal.SIGINT, before)
    gc.collect()
    assert ended == [True]


def test_an_unloaded_model_says_so(gguf: Path) -> None:
    runtime = LlamaCppChat(gguf, num_ctx=128, threads=1)
    folder = runtime._folder
    assert folder.stat().st_mode & 0o077 == 0
    runtime.close()
    runtime.close()
    assert not folder.exists()
    with pytest.raises(ForgeError, match="unloaded"):
        runtime.chat(ASKED, GREEDY)
    with pytest.raises(ForgeError, match="unloaded"):
        runtime.count_tokens(ASKED)


def test_a_socket_that_does_not_answer_is_told(gguf: Path) -> None:
    runtime = LlamaCppChat(gguf, num_ctx=128, threads=1)
    try:
        (runtime._folder / "llama.sock").unlink()
        with pytest.raises(ForgeError, match="does not answer"):
            runtime.tokenize("x")
    finally:
        runtime.close()


def test_the_key_is_needed(chat: LlamaCppChat) -> None:
    chat._key, key = "another", chat._key
    try:
        with pytest.raises(ForgeError, match="could not answer") as refused:
            chat.tokenize("x")
        assert "Invalid API Key" in refused.value.cause
    finally:
        chat._key = key


def test_the_last_model_stays_loaded_until_another_one_is_asked(
    gguf: Path, nano_gguf: Path
) -> None:
    serving = load_settings(None, {"serving": {"num_ctx": 128, "threads": 1}}).serving
    one = Deployed("one", "llamacpp", gguf, gguf.parent / "tokenizer.json")
    other = Deployed("other", "llamacpp", nano_gguf, NANO / "tokenizer.json")
    first = open_chat(one, serving)
    assert open_chat(one, serving) is first
    second = open_chat(other, serving)
    with pytest.raises(ForgeError, match="unloaded"):
        first.count_tokens(ASKED)
    unload()
    with pytest.raises(ForgeError, match="unloaded"):
        second.count_tokens(ASKED)


# -- xllamacpp -------------------------------------------------------------------------------------


def installed(without: str = "") -> SimpleNamespace:
    """A module like xllamacpp that lacks one thing."""
    module = SimpleNamespace(__version__="2031.1")
    for kind, names in NEEDED.items():
        held = {name: None for name in names if f"{kind}.{name}" != without}
        if without != kind:
            setattr(module, kind, type(kind, (), held))
    return module


def test_a_runtime_that_lacks_something_is_named_with_the_versions_that_work() -> None:
    check_runtime(installed())
    for without in ("Server.handle_metrics", "CommonParams.fit_params", "CpuParams.poll"):
        with pytest.raises(Unavailable, match="cannot be used") as refused:
            check_runtime(installed(without))
        assert refused.value.cause == f"xllamacpp 2031.1 has no {without}"
        assert requirement("xllamacpp") in refused.value.next_step
    with pytest.raises(Unavailable) as refused:
        check_runtime(installed("CpuParams"))
    assert "CpuParams.n_threads, CpuParams.poll" in refused.value.cause


def test_without_xllamacpp_only_this_runtime_is_missing(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llamacpp_runtime.runtime.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    try:
        with pytest.raises(Unavailable, match="not installed") as refused:
            LlamaCppChat(gguf, num_ctx=64, threads=1)
        assert "--target ollama" in refused.value.next_step
        serving = load_settings(None).serving
        elsewhere = Deployed("m", "ollama", gguf, gguf.parent / "tokenizer.json")
        assert open_chat(elsewhere, serving).context == serving.num_ctx
    finally:
        llamacpp_runtime.runtime.cache_clear()


def test_the_versions_stand_in_pyproject_alone() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    name, least, most = ("xllamacpp", ">=2026.10", "<2027")
    assert f'"{name}{least},{most}"' in project
    assert set(requirement(name).removeprefix(name).split(",")) == {least, most}
    with pytest.raises(LookupError):
        requirement("none-such")
