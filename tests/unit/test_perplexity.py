"""Perplexity against its definition, against transformers', and for every architecture."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, VOCABULARY, make_example, make_model
from training_models import make_base

from forge_mcp import machine
from forge_mcp.judging import likelihood
from forge_mcp.judging.perplexity import (
    Perplexity,
    compute_perplexity,
    text_bytes,
    text_examples,
    token_nll,
    windows,
)
from forge_mcp.training import architectures, loss
from forge_mcp.training.batching import Example
from forge_mcp.training.loss import on_cores

mx = machine.mlx()

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"
TRANSFORMERS = json.loads((REFERENCES / "perplexity.json").read_text("utf-8"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that a few tokens are several pieces, chunks, branches and shares, on two cores."""
    for name, value in (("MIN_SHARED", 3), ("PIECE", 7), ("SHARE_TOKENS", 40)):
        monkeypatch.setattr(likelihood, name, value)
    monkeypatch.setattr(loss, "MIN_CHUNK", 2)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 4 * VOCABULARY)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    loss._workers.cache_clear()
    yield
    loss._workers.cache_clear()


def plain_nll(model: Any, example: Example) -> Any:
    """The definition: all logits of the whole text at once, in float64."""
    logits = np.array(model(mx.array([example.tokens]))[0].astype(mx.float32), dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.array(
        [-logp[at - 1, example.tokens[at]] for at in range(example.start, len(example.tokens))]
    )


def family() -> list[Example]:
    """Texts that begin alike: prompts, parts of answers, one that continues another, twins."""
    system = make_example(9, 1, seed=1).tokens
    document = [*system, *make_example(14, 1, seed=2).tokens]
    other = [*system, *make_example(5, 1, seed=3).tokens]
    reasons = [*document, *make_example(11, 1, seed=4).tokens]
    start = len(document)
    return [
        Example([*reasons, 7, 8, 9, 2], start),
        make_example(30, 12, seed=8),
        Example([*reasons, 7, 5, 2], start),
        Example([*reasons, 11, 2], start),
        Example([*reasons, 11, 2], start),
        Example([*reasons, 11, 2, 4, 4, 4, 4, 4, 4, 4, 2], start),
        Example([*reasons, 12, 2], start + 4),
        Example([*other, 6, 6, 2], len(other)),
        Example([3, 2], 1),
        Example(make_example(41, 1, seed=9).tokens, 1),
    ]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_scores_as_it_would_text_by_text(kind: str) -> None:
    model, examples = make_model(kind), family()
    found = token_nll(model, examples, window=64)
    for value, example in zip(found, examples, strict=True):
        assert value.shape == (example.answer_tokens,) and value.dtype == np.float64
        np.testing.assert_allclose(value, plain_nll(model, example), rtol=1e-4, atol=2e-5)


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model()


texts = st.builds(
    lambda tokens, start: Example(tokens, min(start, len(tokens) - 1)),
    st.lists(st.integers(1, 2), min_size=2, max_size=24),
    st.integers(1, 12),
)


@pytest.mark.usefixtures("small")
@settings(max_examples=30)
@given(examples=st.lists(texts, min_size=1, max_size=9))
def test_whatever_texts_have_in_common_their_values_are_their_own(
    llama: Any, examples: list[Example]
) -> None:
    done: list[tuple[int, int]] = []
    found = token_nll(llama, examples, window=24, on_example=lambda now, of: done.append((now, of)))
    for value, example in zip(found, examples, strict=True):
        np.testing.assert_allclose(value, plain_nll(llama, example), rtol=1e-4, atol=2e-5)
    assert done == [(now, len(examples)) for now in range(1, len(examples) + 1)]


class Counted:
    """A decoder that counts the tokens that it reads, and how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        self.logits: list[int] = []
        decoder, head = architectures.decoder, architectures.logits_of

        def counting(model: Any) -> Any:
            part = decoder(model)

            class Decoder:
                layers = part.layers

                def __call__(_, inputs: Any, cache: Any) -> Any:
                    self.tokens += inputs.size
                    return part(inputs, cache)

            return Decoder()

        def head_of(model: Any, hidden: Any) -> Any:
            self.logits.append(hidden.shape[0])
            return head(model, hidden)

        monkeypatch.setattr(likelihood, "decoder", counting)
        monkeypatch.setattr(likelihood, "logits_of", head_of)


def test_four_answers_to_a_question_cost_hardly_more_than_one(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = make_example(200, 1, seed=1).tokens
    reasons = make_example(60, 1, seed=2).tokens
    answers = [[5, 6, 2], [9, 2], [5, 7, 8, 2], [200, 2]]
    examples = [Example([*prompt, *reasons, *answer], 200) for answer in answers]
    counted = Counted(monkeypatch)
    token_nll(llama, examples, window=512)
    assert counted.tokens < 260 + 4 * 5
    assert sum(counted.logits) < 60 + 4 * 5  # what they share is scored once as well
    other = make_example(300, 40, seed=3)
    counted.tokens = 0
    token_nll(llama, [examples[0], other, *examples[1:]], window=512)
    assert counted.tokens < 260 + 4 * 5 + 300


@pytest.mark.usefixtures("small")
def test_logits_exist_only_at_scored_positions_and_a_few_at_a_time(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    token_nll(llama, [make_example(60, 11)], window=64)
    assert counted.logits == [4, 4, 3]


def test_models_whose_keys_depend_on_the_length_read_every_text_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = Counted(monkeypatch)
    token_nll(make_model("dynamic"), [make_example(50, 3)] * 2, window=64)
    assert counted.tokens == 2 * 50


@pytest.mark.usefixtures("small")
def test_the_same_values_on_one_core_and_on_a_gpu(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = token_nll(llama, family(), window=64)
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    alone = token_nll(llama, family(), window=64)
    for one, other in zip(shared, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


# -- windows ----------------------------------------------------------------------------------


@given(
    length=st.integers(2, 300),
    start=st.integers(1, 299),
    window=st.integers(2, 80),
    stride=st.integers(1, 79),
)
def test_windows_score_every_token_once_with_as_much_before_it_as_there_is(
    length: int, start: int, window: int, stride: int
) -> None:
    start, stride = min(start, length - 1), min(stride, window - 1)
    found = windows(Example([0] * length, start), window, stride)
    scored = [at for one in found for at in range(one.scored, one.end)]
    assert scored == list(range(start, length))
    for begin, first, end in found:
        assert begin % stride == 0 and begin < first < end <= begin + window
        # A window that begins earlier does not reach its first token.
        assert begin == 0 or first == start or begin - stride + window <= first


def test_long_texts_are_scored_as_their_windows_are(llama: Any) -> None:
    example = make_example(100, 90)
    (found,) = token_nll(llama, [example], window=40, stride=15)
    expected = np.concatenate(
        [
            plain_nll(llama, Example(example.tokens[begin:end], first - begin))
            for begin, first, end in windows(example, 40, 15)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    (usual,) = token_nll(llama, [example], window=40)
    (half,) = token_nll(llama, [example], window=40, stride=20)
    assert np.array_equal(usual, half) and not np.array_equal(usual, found)


@pytest.mark.parametrize("stride", [0, -1, 40, 41])
def test_a_stride_that_would_leave_tokens_out_is_refused(llama: Any, stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride of {stride} does not go with windows of 40"):
        token_nll(llama, [make_example(9, 2)], window=40, stride=stride)


@pytest.mark.parametrize("examples", [[], [Example([1, 2], 0)], [Example([1, 2], 2)]])
def test_nothing_to_score_is_refused(llama: Any, examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="prompt and an answer"):
        compute_perplexity(llama, examples, [1] * len(examples), window=16)


# -- transformers -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> Any:
    from forge_mcp.training.bases import load_base

    return load_base("forge-nano")


def test_references_are_of_these_weights() -> None:
    from forge_mcp.training.bases import resolve_base

    weights = resolve_base("forge-nano").path / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found == TRANSFORMERS["weights"], "forge-nano has changed: make references"


@pytest.mark.parametrize("case", TRANSFORMERS["cases"])
def test_perplexity_is_that_of_transformers(nano: Any, case: dict[str, Any]) -> None:
    tokens = nano.tokenizer.encode(TRANSFORMERS["texts"][case["text"]])
    assert len(tokens) == case["tokens"]
    example = Example(tokens, case["start"])
    window, stride = case["max_length"], case["stride"]
    (values,) = token_nll(nano.model, [example], window=window, stride=stride)
    ends = np.cumsum([one.end - one.scored for one in windows(example, window, stride)])
    means = [part.mean() for part in np.split(values, ends[:-1])]
    np.testing.assert_allclose(means, case["losses"], rtol=1e-5)
    found = compute_perplexity(nano.model, [example], [1], window=window, stride=stride)
    assert found.value == pytest.approx(case["perplexity"], rel=1e-5)


def test_one_scored_token_has_a_perplexity(llama: Any) -> None:
    example = make_example(30, 1)
    found = compute_perplexity(llama, [example], [1], window=16)
    assert found.value == pytest.approx(
        math.exp(plain_nll(llama, Example(example.tokens[16:], 13))[0]), rel=1e-4
    )


# -- perplexity -------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_definition(llama: Any) -> None:
    examples = family()
    sizes = [10 + at for at in range(len(examples))]
    found = compute_perplexity(llama, examples, sizes, window=64)
    expected = [plain_nll(llama, example).sum() for example in examples]
    tokens = sum(example.answer_tokens for example in examples)
    np.testing.assert_allclose(found.nll, expected, rtol=1e-5)
    assert found.value == pytest.approx(math.exp(sum(expected) / tokens), rel=1e-5)
    perplexity, bits = found.metrics(seed=1)
    assert (perplexity.name, perplexity.value, bits.name) == (
        "perplexity", found.value, "bits_per_byte",
    )  # fmt: skip
    assert bits.value == pytest.approx(sum(expected) / math.log(2) / sum(sizes), rel=1e-5)
    assert perplexity.low < perplexity.value < perplexity.high
    assert bits.low < bits.value < bits.high


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    model = make_model()
    model.model.norm.weight = mx.zeros_like(model.model.norm.weight)
    examples = [Example([5, 6, 7, 8, 2], 2), Example([9, 2], 1)]
    found = compute_perplexity(model, examples, [6, 1], window=16, name="fact_perplexity")
    assert found.value == pytest.approx(VOCABULARY, rel=1e-5)
    first, second = found.metrics(0)
    assert first.name == "fact_perplexity"
    assert second.value == pytest.approx(4 / 7 * math.log2(VOCABULARY), rel=1e-5)
    np.testing.assert_allclose(found.per_example, [VOCABULARY] * 2, rtol=1e-5)


def values(nll: Sequence[float], tokens: Sequence[float], name: str = "perplexity") -> Perplexity:
    return Perplexity(np.array(nll), np.array(tokens), np.array(tokens) * 2, name)


def test_the_ratio_is_the_quotient_where_tokens_are_the_same() -> None:
    one, other = values([3.0, 9.0], [4.0, 5.0]), values([6.0, 8.0], [4.0, 5.0])
    ratio = one.ratio_to(other, 1)
    assert (ratio.name, ratio.n) == ("perplexity_ratio", 2)
    assert ratio.value == pytest.approx(one.value / other.value)
    assert one.ratio_to(one, 1).high == 1 == one.ratio_to(one, 1).low
    assert one.ratio_to(other, 1, name="fact_ratio").name == "fact_ratio"


def test_some_of_the_examples() -> None:
    some = values([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], "fact_perplexity").select([2, 0])
    assert some.name == "fact_perplexity"
    assert [list(some.nll), list(some.tokens), list(some.answer_bytes)] == [[4, 1], [3, 1], [6, 2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_diverged_has_no_figure(bad: float) -> None:
    found = values([1.0, bad], [1.0, 1.0])
    assert found.metrics(1) == []
    assert not math.isfinite(found.value) and math.isfinite(found.per_example[0])


def test_weights_that_are_not_finite_show() -> None:
    model = make_model()
    model.model.norm.weight = model.model.norm.weight * math.nan
    (value,) = token_nll(model, [make_example(9, 3)], window=16)
    assert np.isnan(value).all()


# -- plain texts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token a byte."""
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(make_base(tmp_path_factory.mktemp("base") / "tiny"))


def test_texts_are_scored_from_their_second_token_on_up_to_a_budget(tokenizer: Any) -> None:
    found = text_examples(tokenizer, ["abcdef", "", "x", "ghi", "jklm", "n"], 11)
    assert [tokenizer.decode(example.tokens) for example in found] == ["abcdef", "ghi", "jk"]
    assert {example.start for example in found} == {1}
    assert text_bytes(tokenizer, found) == [5, 2, 1]
    assert text_examples(tokenizer, ["abc"], 1) == text_examples(tokenizer, ["abc"], 0) == []


def test_bytes_are_those_of_the_text(tokenizer: Any) -> None:
    (found,) = text_examples(tokenizer, ["ä = '€'"], 99)
    # The first token is half of the "ä"; without it a mark of three bytes would stand there.
    assert len(found.tokens) == len("ä = '€'".encode())
    assert text_bytes(tokenizer, [found]) == [len("ä = '€'".encode()) - 3]


def test_where_a_tokenizer_marks_the_beginning_all_of_a_text_is_scored(tokenizer: Any) -> None:
    class Marking:
        def encode(self, text: str) -> list[int]:
            return [1, *tokenizer.encode(text)]

        def decode(self, tokens: Sequence[int], **named: Any) -> str:
            return str(tokenizer.decode(tokens, **named))

    (found,) = text_examples(Marking(), ["def f(): pass"], 99)
    assert found.start == 1 and found.tokens[0] == 1
    assert text_bytes(Marking(), [found]) == [len("def f(): pass")]


# -- on all cores -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_work_is_done_on_every_core_and_comes_back_with_its_number(llama: Any, count: int) -> None:
    works = [mx.array([float(number)]) for number in range(count)]
    found = dict(on_cores(llama, works, lambda work: (work * 2, work.sum())))
    assert {number: one[0].item() for number, one in found.items()} == {
        number: 2.0 * number for number in range(count)
    }
    assert list(on_cores(llama, [], lambda work: work)) == []


@pytest.mark.usefixtures("small")
def test_no_core_goes_on_after_an_error(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = machine.blas_threads

    def watched(count: int) -> Any:
        threads.append(count)
        return original(count)

    monkeypatch.setattr(machine, "blas_threads", watched)

    def build(work: int) -> Any:
        if work == 3:
            raise RuntimeError("no memory")
        return mx.array(work)

    with pytest.raises(RuntimeError, match="no memory"):
        list(on_cores(llama, [1, 2, 3, 4], build))
    assert threads == [1]


@pytest.mark.usefixtures("small")
def test_an_error_while_computing_is_raised(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = mx.eval

    def computing(*made: Any) -> None:
        if made == ("too much",):
            raise RuntimeError("no memory")
        original(*made)

    monkeypatch.setattr(mx, "eval", computing)
    with pytest.raises(RuntimeError, match="no memory"):
        list(on_cores(llama, [1, 2], lambda work: "too much"))
