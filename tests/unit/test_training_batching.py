"""Rows to tokens, their order, and the loss against one written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_models import chat_rows, make_base, settings, write_rows, write_tokenizer

from forge_mcp import machine
from forge_mcp.errors import BadInput, CorruptArtifact, UnsupportedModel
from forge_mcp.schemas.raft_examples import ChatRow, Message
from forge_mcp.training.batching import (
    Example,
    Row,
    batches,
    check_not_empty,
    read_rows,
    sample,
    steps_per_epoch,
    tokenise,
)
from forge_mcp.training.loss import evaluate, row_loss

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
