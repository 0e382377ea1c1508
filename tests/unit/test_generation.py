"""Generation in batches: the same texts as one by one, whatever is computed together."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import KINDS, VOCABULARY, make_model
from training_models import settings

from forge_mcp import machine
from forge_mcp.errors import BadInput, Cancelled
from forge_mcp.judging import cohorts, generation
from forge_mcp.judging.generation import (
    Generated,
    Sampling,
    Throughput,
    choose,
    generate,
    latency,
)
from forge_mcp.training.adapters import AdapterLinear, adapter_layers, attach_adapters
from forge_mcp.training.compatibility import use_long_rope

mx = machine.mlx()


class Letters:
    """A tokenizer of one character a token."""

    def __init__(self, *ends: int) -> None:
        self.eos_token_ids = set(ends)

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token + 256) for token in tokens)


def tokens(length: int, seed: int = 0) -> list[int]:
    drawn = np.random.default_rng([seed, length]).integers(0, VOCABULARY, length)
    return [int(token) for token in drawn]


SHARED = tokens(70, seed=9)
PROMPTS = [
    tokens(40),
    SHARED + tokens(5),
    [7],
    SHARED + tokens(30),
    tokens(90),
    SHARED + tokens(5),  # the same again
    SHARED[:50] + tokens(20),
    tokens(3),
]
LIMITS = [12, 30, 9, 1, 17, 30, 12, 25]


def model_of(kind: str) -> Any:
    """A tiny model whose next token depends on all before it: as they are initialised, most of
    these repeat the last token whatever their attention does."""
    from mlx.utils import tree_map_with_path

    def value(path: str, array: Any) -> Any:
        if "proj" in path and path.endswith("weight"):
            return 4 * array
        if kind.startswith(("gemma2", "gemma3")) and "post_" in path:
            return array + 12  # Gemma's norms multiply by 1 + weight
        return array

    model = make_model(kind).eval()
    model.update(tree_map_with_path(value, model.parameters()))
    use_long_rope(model)
    mx.eval(model.parameters())
    return model


def one_by_one(model: Any, prompt: list[int], limit: int, ends: set[int]) -> list[int]:
    """What mlx-lm's own loop writes."""
    from mlx_lm.generate import generate_step

    written: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=limit):
        if token in ends:
            break
        written.append(int(token))
    return written


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, short steps and two cores, so that small prompts meet every turn."""
    monkeypatch.setattr(generation, "ROWS", 3)
    monkeypatch.setattr(generation, "PREFILL_STEP_CPU", 16)
    monkeypatch.setattr(machine, "cores", lambda: 2)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_mlx_lm_one_by_one(kind: str) -> None:
    model = model_of(kind)
    first = one_by_one(model, PROMPTS[1], 30, set())
    assert len(set(first)) > 10
    tokenizer = Letters(first[12])  # so that some end by themselves
    expected = [
        one_by_one(model, prompt, limit, tokenizer.eos_token_ids)
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]
    found = generate(model, tokenizer, PROMPTS, LIMITS)
    assert [one.tokens for one in found] == expected
    assert [one.text for one in found] == [tokenizer.decode(one.tokens) for one in found]
    stopped = [len(one) < limit for one, limit in zip(expected, LIMITS, strict=True)]
    assert [one.stopped for one in found] == stopped
    assert any(stopped) and not all(stopped)


def test_forge_nano_writes_what_it_writes_one_by_one() -> None:
    """The texts of `mlx_lm.generate`, whose detokeniser drops blanks at the beginning."""
    import mlx_lm

    from forge_mcp.training.bases import load_base

    base = load_base("forge-nano")
    texts = ["def add(a, b):", "import os\n\n\ndef ", "class Stack:\n    def push", "x = [1, 2"]
    prompts = [base.tokenizer.encode(text) for text in texts]
    expected = [
        mlx_lm.generate(base.model, base.tokenizer, prompt, max_tokens=16) for prompt in prompts
    ]
    found = generate(base.model, base.tokenizer, prompts, 16)
    assert [one.text.lstrip() for one in found] == [text.lstrip() for text in expected]
    assert all(expected) and len(set(expected)) == len(expected)


@pytest.mark.parametrize("kind", ["phi3", "phi4", "dynamic"])
def test_texts_beyond_the_border_of_the_rotation_are_written_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the whole text's length decides: nothing shared, mlx-lm's own steps."""
    monkeypatch.setattr(machine, "cores", lambda: 1)
    model = model_of(kind)
    begin = tokens(250)
    shorter = [begin[:200] + tokens(4), begin[:200] + tokens(5)]
    prompts = [begin, begin + tokens(10), begin + tokens(10), *shorter]
    expected = [one_by_one(model, prompt, 12, set()) for prompt in prompts]
    found = generate(model, Letters(), prompts, 12)
    assert [one.tokens for one in found] == expected


def read(model: Any, lengths: list[int]) -> list[tuple[int, list[Any]]]:
    """Caches that hold prompts of these lengths."""
    from mlx_lm.models.cache import make_prompt_cache

    found = []
    for length in lengths:
        caches = make_prompt_cache(model)
        model(mx.array([tokens(length)]), cache=caches)
        found.append((length, caches))
    return found


def test_rows_of_about_one_length_share_a_cohort() -> None:
    model = model_of("llama")
    prompts = read(model, [40, 32, 20, 39, 19])
    layers = cohorts.form(model, prompts, most=9)
    assert [len(layer.parts) for layer in layers] == [4, 4]
    assert [part.size() for part in layers[0].parts] == [40, 20, 39, 19]
    assert layers[0].offset.tolist() == [40, 32, 20, 39, 19]
    # The nearest neighbours in length are united first: 20 and 39, then that with 40.
    layers = cohorts.form(model, prompts, most=2)
    assert [part.size() for part in layers[1].parts] == [40, 19]
    assert layers[1].offset.tolist() == [40, 32, 20, 39, 19]
    layers = cohorts.form(model, read(model, [40, 20, 19, 18, 60]), most=9)
    for layer in layers:
        layer.filter([0, 2, 3])
    assert [part.offset.tolist() for part in layers[0].parts] == [[40], [19, 18]]


def test_the_attention_of_the_module_is_as_it_was_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlx_lm.models import llama

    model = model_of("llama")
    before = llama.scaled_dot_product_attention
    with pytest.raises(Cancelled), cohorts.cohort_attention(model):
        assert llama.scaled_dot_product_attention is not before
        raise Cancelled("stop")
    assert llama.scaled_dot_product_attention is before
    assert cohorts.cohorts_of(model) == cohorts.COHORTS
    assert cohorts.cohorts_of(model_of("gemma2")) == 1
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    assert cohorts.cohorts_of(model) == 1


def test_one_core_and_one_row_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    expected = generate(model, Letters(), PROMPTS, LIMITS)
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(generation, "ROWS", 1)
    assert generate(model, Letters(), PROMPTS, LIMITS) == expected


def test_little_memory_means_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model keeps 2 layers x 2 (keys, values) x 2 heads x 16 floats a token: 512 bytes."""
    model = model_of("llama")
    monkeypatch.setattr(machine, "available_bytes", lambda: 512 * 100 * 4 * 7)
    assert generation._rows_in_memory(model, 100) == 7
    expected = generate(model, Letters(), PROMPTS, LIMITS)
    monkeypatch.setattr(machine, "available_bytes", lambda: 1)
    job = generation._Job(model, Letters(), [generation._Task(0, (1, 2), 3)], Sampling(), ())
    assert job.rows == 1
    assert generate(model, Letters(), PROMPTS, LIMITS) == expected


def test_a_gpu_has_one_worker_and_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    expected = generate(model, Letters(), PROMPTS, LIMITS)
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    monkeypatch.setattr(machine, "training_memory_bytes", lambda: 512 * 100 * 4 * 5)
    assert generation._rows_in_memory(model, 100) == 5
    assert generate(model, Letters(), PROMPTS, LIMITS) == expected


SAMPLING = Sampling(temperature=0.9, top_p=0.8, seed=3)


def test_sampled_texts_do_not_depend_on_what_is_computed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    together = generate(model, Letters(), PROMPTS, LIMITS, sampling=SAMPLING)
    monkeypatch.setattr(generation, "ROWS", 1)
    assert generate(model, Letters(), PROMPTS, LIMITS, sampling=SAMPLING) == together
    assert together != generate(model, Letters(), PROMPTS, LIMITS)
    other = Sampling(temperature=0.9, top_p=0.8, seed=4)
    assert together != generate(model, Letters(), PROMPTS, LIMITS, sampling=other)
    # Two samples of one prompt differ, because they have places of their own.
    assert together[1].tokens != together[5].tokens


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=9, unique=True),
    st.floats(0.3, 2.0),
    st.floats(0.05, 1.0),
    st.floats(0, 1, exclude_max=True),
)
def test_choose_inverts_the_distribution(
    logits: list[float], temperature: float, top_p: float, number: float
) -> None:
    """Against NumPy in double precision; numbers near a border may fall to either side."""
    scaled = np.array(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    if np.min(np.abs(before - top_p)) < 1e-5 or np.min(np.diff(np.sort(p))) < 1e-6:
        return  # whether a token is among the likeliest is a matter of rounding
    nucleus = np.zeros_like(p)
    kept = order[before < top_p]
    nucleus[kept] = p[kept]
    sums = np.cumsum(nucleus) / nucleus.sum()
    sampling = Sampling(temperature, top_p)
    token = choose(mx.array([logits]), [number], sampling).item()
    allowed = {
        int(np.argmax(sums > number + shift)) for shift in (-1e-5, 0, 1e-5) if number < 0.9999
    }
    assert token in kept
    assert not allowed or token in allowed


def test_the_largest_random_number_still_draws_a_token() -> None:
    logits = mx.array([[0.3, 1.7, -1e9], [5.0, 5.0, -1e9]])
    largest = 1 - 2.0**-generation.FRACTION_BITS
    assert choose(logits, [largest] * 2, Sampling(1.0)).tolist() == [1, 1]
    assert choose(logits, [0.0] * 2, Sampling(1.0)).tolist() == [0, 0]


def test_stop_sequences_end_a_text_before_them() -> None:
    model = model_of("llama")
    whole = generate(model, Letters(), PROMPTS, 30)
    mark = whole[1].text[4:7]
    found = generate(model, Letters(), PROMPTS, 30, stop=["never", mark])
    cut = [(one.text.find(mark), one) for one in whole]
    assert any(at < 0 for at, _ in cut) and cut[1][0] >= 0
    for (at, before), now in zip(cut, found, strict=True):
        expected = before if at < 0 else Generated(before.text[:at], before.tokens[: at + 3], True)
        assert now == expected


def test_the_earliest_of_two_stop_sequences_counts() -> None:
    model = model_of("llama")
    text = generate(model, Letters(), PROMPTS[:1], 12)[0].text
    found = generate(model, Letters(), PROMPTS[:1], 12, stop=[text[5], text[4:6]])
    assert found[0].text == text[: min(text.find(text[5]), text.find(text[4:6]))]


def test_the_context_cuts_and_a_full_one_gives_nothing() -> None:
    model = model_of("llama")
    prompts = [tokens(10), tokens(20), tokens(21)]
    found = generate(model, Letters(), prompts, 8, context=20)
    assert [len(one.tokens) for one in found] == [8, 0, 0]
    assert found[1:] == [Generated("", [], stopped=False)] * 2
    found = generate(model, Letters(), prompts, 8, context=24)
    assert [len(one.tokens) for one in found] == [8, 4, 3]


def test_shared_beginnings_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(machine, "cores", lambda: 1)
    done = Throughput()
    prompt = tokens(80)
    generate(model, Letters(), [prompt] * 4, 2, throughput=done)
    # The last token of each is the input of its first step.
    assert (done.prompt_tokens, done.computed_tokens, done.generated_tokens) == (320, 83, 8)
    assert done.seconds > 0 and done.tokens_per_second == pytest.approx(8 / done.seconds)
    assert Throughput().tokens_per_second == 0
    before = done.computed_tokens
    # 70 tokens in common: kept at 64, the next multiple of 16.
    prompts = [SHARED + tokens(20, seed) for seed in range(4)]
    found = generate(model, Letters(), prompts, 6, throughput=done)
    assert done.computed_tokens - before == 90 + 3 * (90 - 64)
    # None of them has changed what the others begin with.
    assert [one.tokens for one in found] == [one_by_one(model, one, 6, set()) for one in prompts]


def test_progress_is_told_in_this_thread() -> None:
    told: list[tuple[int, int]] = []

    def on_done(done: int, of: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append((done, of))

    generate(model_of("llama"), Letters(), PROMPTS, LIMITS, on_done=on_done)
    assert told == [(number, 8) for number in range(1, 9)]


def test_what_the_progress_raises_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = generation._Batch._step

    def counted(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(batch)

    def on_done(done: int, of: int) -> None:
        raise Cancelled("stop")

    monkeypatch.setattr(generation._Batch, "_step", counted)
    limits = [400 if len(prompt) < 80 else 2 for prompt in PROMPTS]
    with pytest.raises(Cancelled):
        generate(model_of("llama"), Letters(), PROMPTS, limits, on_done=on_done)
    assert 2 <= steps < 300
    assert not [one for one in threading.enumerate() if one.name == generation.THREAD]


def test_what_a_worker_raises_is_raised_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("too much")

    monkeypatch.setattr(generation._Batch, "_step", fail)
    with pytest.raises(MemoryError, match="too much"):
        generate(model_of("llama"), Letters(), PROMPTS, 4)
    assert not [one for one in threading.enumerate() if one.name == generation.THREAD]


def test_no_prompts_and_empty_prompts() -> None:
    model = model_of("llama")
    assert generate(model, Letters(), [], 4) == []
    with pytest.raises(BadInput, match="empty prompt"):
        generate(model, Letters(), [[1], []], 4)


@pytest.mark.parametrize("method", ["pissa", "dora"])
def test_adapters_are_merged_meanwhile_and_stand_again_afterwards(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("qwen2")
    attach_adapters(model, settings(init_method=method), "float32")
    model.eval()
    before = adapter_layers(model)
    for _, layer in before:
        layer.lora_b = layer.lora_b + 0.05 * mx.random.normal(layer.lora_b.shape)
        layer.settle()
    expected = [
        one_by_one(model, prompt, limit, set())
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]
    seen: list[bool] = []
    step = generation._Batch._step

    def watched(batch: Any) -> Any:
        seen.append(bool(adapter_layers(model)))
        return step(batch)

    monkeypatch.setattr(generation._Batch, "_step", watched)
    assert [one.tokens for one in generate(model, Letters(), PROMPTS, LIMITS)] == expected
    assert seen and not any(seen)
    assert [id(layer) for _, layer in adapter_layers(model)] == [id(layer) for _, layer in before]
    assert all(isinstance(layer, AdapterLinear) for _, layer in adapter_layers(model))
    # Where there is no room for a second copy they stay.
    seen.clear()
    monkeypatch.setattr(machine, "available_bytes", lambda: 1)
    assert [one.tokens for one in generate(model, Letters(), PROMPTS, LIMITS)] == expected
    assert all(seen)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=120), max_size=8))
def test_every_prompt_is_in_the_order_once(prompts: list[list[int]]) -> None:
    tasks = [generation._Task(at, tuple(prompt), 1) for at, prompt in enumerate(prompts)]
    ordered = generation._in_order(tasks)
    assert sorted(task.index for task in ordered) == list(range(len(prompts)))


def test_the_longest_come_first_and_what_shares_a_beginning_stays_together() -> None:
    begin = tokens(60)
    prompts = [tokens(50), begin + [1] * 40, tokens(80), [*begin, 2], begin + [1] * 30]
    tasks = [generation._Task(at, tuple(prompt), 1) for at, prompt in enumerate(prompts)]
    assert [task.index for task in generation._in_order(tasks)] == [4, 1, 3, 2, 0]


def test_borders_are_where_later_prompts_leave() -> None:
    def tasks(*prompts: list[int]) -> list[Any]:
        return [generation._Task(at, tuple(prompt), 1) for at, prompt in enumerate(prompts)]

    prompt = tokens(100)
    same, near = [*prompt, 1], prompt[:85] + [1] * 9 + [2]
    far = prompt[:40] + [1] * 9 + [2]
    assert generation._borders(prompt, 0, tasks(same, near, far, near)) == [32, 80, 100]
    assert generation._borders(prompt, 32, tasks(near, far)) == [80]
    assert generation._borders(prompt, 0, tasks([*prompt[:31], 1, 1, 1], same)) == []
    assert generation._borders(prompt, 0, []) == []


def test_the_latency_of_one_sequence() -> None:
    model = model_of("llama")
    found = latency(model, Letters(), tokens(40), tokens=6)
    assert found.tokens == 6
    assert found.milliseconds_per_token > 0 and found.prompt_milliseconds > 0
    third = one_by_one(model, tokens(40), 6, set())[2]
    assert latency(model, Letters(third), tokens(40), tokens=6).tokens <= 3
    for prompt, count in (([], 6), ([1], 1)):
        with pytest.raises(BadInput, match="latency"):
            latency(model, Letters(), prompt, count)
