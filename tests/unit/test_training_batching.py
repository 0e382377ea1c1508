"""Rows to tokens, their order, and the loss against one written down by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from tiny_models import close, make_example, make_model, trainable
from training_models import chat_rows, make_base, settings, write_rows, write_tokenizer

from forge_mcp import machine
from forge_mcp.errors import BadInput, CorruptArtifact, UnsupportedModel
from forge_mcp.schemas.prompt import quote, render_answer
from forge_mcp.schemas.raft_examples import ChatRow, Message
from forge_mcp.training.batching import (
    Example,
    PartWeights,
    Row,
    batches,
    check_not_empty,
    encode_row,
    pack,
    read_rows,
    sample,
    steps_per_epoch,
    tokenise,
)
from forge_mcp.training.loss import evaluate, loss_and_gradient, row_loss

mx = machine.mlx()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    from forge_mcp.training.bases import load_base

    return load_base(str(folder))


def test_only_the_answer_and_its_end_token_are_learnt(loaded: Any) -> None:
    row = chat_rows(1)[0]
    (example,) = tokenise([row], loaded.tokenizer, 2048).examples
    decode = loaded.tokenizer.decode
    assert decode(example.tokens[example.start :]) == row.messages[-1].content + "<|im_end|>"
    assert decode(example.tokens[: example.start]).endswith("<|im_start|>assistant\n")
    assert example.tokens[-1] in loaded.tokenizer.eos_token_ids


def test_long_examples_are_counted_and_left_out(loaded: Any) -> None:
    rows = chat_rows(3)
    rows[1].messages[1].content = "long " * 40
    whole = tokenise(rows, loaded.tokenizer, 2048)
    limit = max(len(whole.examples[0].tokens), len(whole.examples[2].tokens))
    short = tokenise(rows, loaded.tokenizer, limit)
    assert short.too_long == 1
    assert short.examples == [whole.examples[0], whole.examples[2]]
    nothing = tokenise(rows, loaded.tokenizer, 16)
    with pytest.raises(BadInput, match="nothing to train on"):
        check_not_empty(nothing, 16)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "end token"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "prompt"),
    ],
)
def test_templates_that_cannot_be_trained_are_refused(
    tmp_path: Path, folder: Path, template: str | None, words: str
) -> None:
    from mlx_lm.tokenizer_utils import load

    write_tokenizer(tmp_path, template)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=words):
        tokenise(chat_rows(1), load(tmp_path), 2048)


@pytest.mark.parametrize(
    "line",
    ["{", '{"messages": []}', '{"messages": [{"role": "user", "content": "x"}]}', '["a"]'],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", chat_rows(2))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(CorruptArtifact, match=r"train.jsonl, line 3"):
        list(read_rows(path))


@given(
    count=st.integers(1, 30),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
    skip=st.integers(0, 20),
)
def test_order_covers_every_epoch_and_can_be_entered_anywhere(
    count: int, size: int, seed: int, skip: int
) -> None:
    steps = steps_per_epoch(count, size)
    source = batches(count, size, seed)
    all_of_them = [next(source) for _ in range(2 * steps + skip)]
    for epoch in (0, 1):
        seen = [i for batch in all_of_them[epoch * steps : (epoch + 1) * steps] for i in batch]
        assert sorted(seen) == list(range(count))
    later = batches(count, size, seed, first_step=skip)
    assert [next(later) for _ in range(2 * steps)] == all_of_them[skip:]


def test_epochs_are_shuffled_anew() -> None:
    source = batches(20, 20, seed=1)
    assert next(source) != next(source)


def test_sample_keeps_the_order() -> None:
    rows = chat_rows(10)
    some = sample(rows, 4, seed=3)
    assert [rows.index(row) for row in some] == sorted(rows.index(row) for row in some)
    assert len(some) == 4
    assert sample(rows, 99, seed=3) == rows


def answered(reasoning: str, final: str) -> ChatRow:
    return ChatRow(
        messages=[
            Message(role="user", content="?"),
            Message(role="assistant", content=render_answer(reasoning, final)),
        ]
    )


def parts(row: ChatRow, tokenizer: Any) -> dict[float, str]:
    """The answer's text by the weight of its tokens."""
    example = encode_row(row, tokenizer, PartWeights(reasoning=0.5, quote=3.0, answer=2.0))
    assert example.weights is not None
    assert len(example.weights) == example.answer_tokens
    texts = dict.fromkeys((0.5, 3.0, 2.0), "")
    for token, weight in zip(example.tokens[example.start :], example.weights, strict=True):
        texts[weight] += tokenizer.decode([token])
    assert example.weight == pytest.approx(sum(example.weights))
    plain = encode_row(row, tokenizer)
    assert (example.tokens, example.start) == (plain.tokens, plain.start)
    return texts


def test_parts_of_an_answer_have_their_weights(loaded: Any) -> None:
    cited = quote("return 1\n  # <ANSWER>: no")
    row = answered(f"It says {cited}, and then {quote('x')}.", "1 and ##begin_quote##")
    assert parts(row, loaded.tokenizer) == {
        0.5: "It says , and then .\n",
        3.0: cited + quote("x"),
        2.0: "<ANSWER>: 1 and ##begin_quote##<|im_end|>",
    }
    bare = answered("", "yes")
    assert parts(bare, loaded.tokenizer) == {0.5: "", 3.0: "", 2.0: "<ANSWER>: yes<|im_end|>"}
    bare.messages[-1].content = "yes"
    assert parts(bare, loaded.tokenizer)[2.0] == "yes<|im_end|>"


def test_equal_weights_are_the_plain_loss(loaded: Any) -> None:
    row = answered("So.", "1")
    for weights in (None, PartWeights(), PartWeights(1, 1, 1)):
        assert encode_row(row, loaded.tokenizer, weights).weights is None
    (example,) = tokenise([row], loaded.tokenizer, 2048, PartWeights(1.0, 1.0, 2.0)).examples
    assert example.weights is not None and set(example.weights) == {1.0, 2.0}


def test_a_token_belongs_to_the_part_of_its_first_character() -> None:
    """Tokens of several characters, with the shipped tokenizer."""
    from forge_mcp.training.bases import load_base

    tokenizer = load_base("forge-nano").tokenizer
    row = answered(f"The default: {quote('timeout=None')} here.", "None")
    texts = parts(row, tokenizer)
    assert "".join(texts.values()).count("timeout") == 1
    assert "timeout" in texts[3.0] and "default" in texts[0.5]
    assert texts[2.0].startswith("<") and "None" in texts[2.0]


class OtherTokenizer:
    """One that tells no positions, or reads differently when it is asked for them."""

    def __init__(self, tokenizer: Any, *, fast: bool) -> None:
        self.tokenizer = tokenizer
        self.is_fast = fast
        self.backend_tokenizer = SimpleNamespace(
            encode=lambda text, **_: SimpleNamespace(ids=[1], offsets=[(0, len(text))])
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize(("fast", "cause"), [(False, "which characters"), (True, "differently")])
def test_weights_are_never_guessed(loaded: Any, fast: bool, cause: str) -> None:
    tokenizer = OtherTokenizer(loaded.tokenizer, fast=fast)
    assert encode_row(answered("So.", "1"), tokenizer).weights is None
    with pytest.raises(UnsupportedModel, match="cannot be used with this base") as caught:
        encode_row(answered("So.", "1"), tokenizer, PartWeights(answer=2.0))
    assert cause in str(caught.value.cause)


def test_a_row_of_a_hundred_thousand_tokens_is_told_and_left_out(loaded: Any) -> None:
    rows = chat_rows(2)
    rows[0].messages[1].content = "x" * 100_000
    assert tokenise(rows, loaded.tokenizer, 2048).too_long == 1


lengths = st.lists(st.integers(2, 60), max_size=25)


@given(lengths=lengths, tokens=st.integers(16, 90), count=st.integers(1, 5))
def test_packing_keeps_every_example_and_its_bounds(
    lengths: list[int], tokens: int, count: int
) -> None:
    examples = [Example([number] * length, 1) for number, length in enumerate(lengths)]
    rows = pack(examples, tokens, count)
    assert rows == pack(examples, tokens, count)
    packed = [example for row in rows for example in row.examples]
    assert sorted(packed, key=lambda one: one.tokens[0]) == examples
    for row in rows:
        assert 1 <= len(row.examples) <= count
        assert row.length <= tokens or len(row.examples) == 1
    opened, used, held = 0, tokens, count  # as many rows as one after the other would fill
    for length in sorted(lengths, reverse=True):
        if held == count or used + length > tokens:
            opened, used, held = opened + 1, 0, 0
        used, held = used + length, held + 1
    assert len(rows) == opened


def test_rows_are_even() -> None:
    def lengths(*wanted: int, tokens: int, count: int) -> list[list[int]]:
        rows = pack([Example([1] * length, 1) for length in wanted], tokens, count)
        return [[len(example.tokens) for example in row.examples] for row in rows]

    assert lengths(50, 70, 60, 65, tokens=200, count=4) == [[70, 65], [60, 50]]
    assert lengths(9, 9, 9, 9, 9, tokens=99, count=4) == [[9, 9, 9], [9, 9]]
    assert lengths(60, 30, 30, 30, 30, tokens=120, count=9) == [[60, 30], [30, 30, 30]]
    assert lengths(50, 300, 40, tokens=100, count=4) == [[300], [50, 40]]
    assert lengths(tokens=100, count=4) == []


@given(order=st.permutations(range(5)), count=st.integers(1, 5))
@settings_of_hypothesis(max_examples=10)
def test_the_order_within_a_step_does_not_count(small: Any, order: list[int], count: int) -> None:
    examples = [make_example(length, 4, seed=length) for length in (9, 14, 14, 21, 30)]
    wanted = summed_gradient(small, pack(examples, 60, 5))
    found = summed_gradient(small, pack([examples[at] for at in order], 60, count))
    assert close(found, wanted, 1e-5)


@pytest.fixture(scope="module")
def small() -> Any:
    return trainable(make_model())


def summed_gradient(model: Any, rows: list[Row]) -> Any:
    """Of a step: what the trainer adds up."""
    from mlx.utils import tree_map

    gradients = [loss_and_gradient(model, row)[1] for row in rows]
    return tree_map(lambda *leaves: sum(leaves), gradients[0], *gradients[1:])


def hand_loss(model: Any, example: Example) -> float:
    """Cross-entropy over whole logits, one token after the other, in NumPy."""
    import numpy as np

    logits = np.array(model(mx.array(example.tokens)[None])[0].astype(mx.float32), dtype=np.float64)
    loss = 0.0
    for at in range(example.start, len(example.tokens)):
        row = logits[at - 1]
        loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[example.tokens[at]]
    return loss


@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)]
)
def test_loss_is_the_hand_computed_one(tmp_path: Path, architecture: str, tied: bool) -> None:
    from forge_mcp.training.bases import load_base

    loaded = load_base(str(make_base(tmp_path / "base", architecture, tied=tied)))
    examples = tokenise(chat_rows(3), loaded.tokenizer, 2048).examples
    for example in examples:
        expected = hand_loss(loaded.model, example)
        assert row_loss(loaded.model, Row((example,))).item() == pytest.approx(expected, rel=1e-5)
    result = evaluate(loaded.model, [Row(tuple(examples))])
    tokens = sum(example.answer_tokens for example in examples)
    total = sum(hand_loss(loaded.model, example) for example in examples)
    assert result.tokens == tokens
    assert result.loss == pytest.approx(total / tokens, rel=1e-5)


def test_sequences_apart_equal_a_padded_batch(loaded: Any, folder: Path) -> None:
    """Losses and gradients are those of one padded batch with a masked loss."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_map

    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.bases import load_base

    model = load_base(str(folder)).model
    attach_adapters(model, settings(), "float16")
    rows = [
        *chat_rows(7)[4:],
        ChatRow(
            messages=[Message(role="user", content="?"), Message(role="assistant", content="yes")]
        ),
    ]
    examples = tokenise(rows, loaded.tokenizer, 2048).examples
    width = max(len(example.tokens) for example in examples)
    assert len({len(example.tokens) for example in examples}) == 4
    padded = mx.array([e.tokens + [0] * (width - len(e.tokens)) for e in examples])
    mask = mx.array(
        [[float(e.start <= at < len(e.tokens)) for at in range(1, width)] for e in examples]
    )

    def batch_loss(model: Any) -> Any:
        losses = nn.losses.cross_entropy(model(padded[:, :-1]), padded[:, 1:])
        return (losses * mask).sum()

    whole, whole_gradient = nn.value_and_grad(model, batch_loss)(model)
    one = nn.value_and_grad(model, lambda m, e: row_loss(m, Row((e,))))
    parts = [one(model, example) for example in examples]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    gradient = parts[0][1]
    for _, more in parts[1:]:
        gradient = tree_map(mx.add, gradient, more)
    expected = dict(tree_flatten(whole_gradient))
    found = dict(tree_flatten(gradient))
    assert set(found) == set(expected)
    assert all(name.endswith(("lora_a", "lora_b")) for name in found)
    for name, value in found.items():
        scale = mx.abs(expected[name]).max().item() + 1e-6
        assert mx.abs(value - expected[name]).max().item() < 1e-4 * scale, name
