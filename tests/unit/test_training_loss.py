"""The chunked loss against plain cross-entropy, and against mlx-lm's own trainer."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    KINDS,
    VOCABULARY,
    close,
    make_example,
    make_model,
    make_row,
    plain_loss,
    trainable,
)

from forge_mcp import machine
from forge_mcp.errors import UnsupportedModel
from forge_mcp.training import loss
from forge_mcp.training.architectures import (
    check_architecture,
    checkpoint_layers,
    decoder,
    hidden_states,
    logits_of,
)
from forge_mcp.training.batching import Example, Row
from forge_mcp.training.loss import cross_entropy, evaluate, loss_and_gradient, row_loss

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten, tree_map  # noqa: E402

SHAPES = ((40, 12), (23, 22), (57, 3))


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the few tokens here are several chunks, and the last of them is smaller."""
    monkeypatch.setattr(loss, "MIN_CHUNK", 5)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", 7 * VOCABULARY)


def value_and_gradient(model: Any, row: Row, function: Any = row_loss) -> tuple[Any, Any]:
    return nn.value_and_grad(model, function)(model, row)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "tied"), [*((kind, True) for kind in KINDS), ("llama", False)])
def test_hidden_states_and_logits_make_the_model(kind: str, tied: bool) -> None:
    model = make_model(kind, tied=tied)
    tokens = mx.array(make_example(30, 0).tokens)[None]
    assert mx.array_equal(logits_of(model, hidden_states(model, tokens)), model(tokens))
    nn.quantize(model, group_size=32, bits=4)
    assert mx.array_equal(logits_of(model, hidden_states(model, tokens)), model(tokens))


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="some-base") as caught:
        check_architecture("mamba", "some-base")
    assert "'mamba'" in str(caught.value.cause)
    model = make_model()
    model.model_type = "rwkv7"
    with pytest.raises(UnsupportedModel):
        hidden_states(model, mx.array([[1]]))


@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_equals_the_plain_one(scale: float, weighted: bool) -> None:
    mx.random.seed(2)
    logits = scale * mx.random.normal((9, 300))
    targets = mx.random.randint(0, 300, (9,))
    weights = mx.random.uniform(shape=(9,)) if weighted else None

    def plain(logits: Any) -> Any:
        return nn.losses.cross_entropy(logits, targets, weights=weights).sum()

    found, gradient = mx.value_and_grad(lambda x: cross_entropy(x, targets, weights))(logits)
    expected, wanted = mx.value_and_grad(plain)(logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert mx.abs(gradient - wanted).max().item() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_equal_the_plain_ones(kind: str) -> None:
    """Of a packed row in chunks, against each example alone with all of its logits."""
    model = trainable(make_model(kind, tied=kind not in ("mistral", "phi3")))
    row = make_row(*SHAPES)
    value, gradient = value_and_gradient(model, row)
    expected, wanted = value_and_gradient(model, row, plain_loss)
    assert value.dtype == mx.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradient, wanted, 1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_bfloat16_models_lose_no_more_than_their_rounding(kind: str) -> None:
    model = trainable(make_model(kind))
    row = make_row(*SHAPES)
    exact, wanted = value_and_gradient(model, row, plain_loss)
    model.set_dtype(mx.bfloat16)
    value, gradient = value_and_gradient(model, row)
    plain, rounded = value_and_gradient(model, row, plain_loss)
    assert value.dtype == mx.float32
    assert value.item() == pytest.approx(exact.item(), rel=5e-3)
    assert value.item() == pytest.approx(plain.item(), rel=5e-3)
    assert close(gradient, rounded, 0.03)
    assert close(gradient, wanted, 0.05)


@pytest.mark.parametrize("kind", ["llama", "dynamic"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_trained_gets_its_gradient(kind: str, tied: bool) -> None:
    """With a tied one that is the sum of what it does as embedding and as head; over rows of one
    sequence and of several."""
    model = trainable(make_model(kind, tied=tied))
    (decoder(model).embed_tokens if tied else model.lm_head).unfreeze()
    row = make_row(*SHAPES)
    before = dict(tree_flatten(model.parameters()))
    row_loss(model, row)
    assert all(before[name] is one for name, one in tree_flatten(model.parameters()))
    value, gradient = value_and_gradient(model, row)
    expected, wanted = value_and_gradient(model, row, plain_loss)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradient, wanted, 1e-5)
    name = "embed_tokens" if tied else "lm_head"
    assert name in str(gradient["model"] if tied else gradient)


def test_weights_count_by_token() -> None:
    model = trainable(make_model())
    example = make_example(30, 9)
    weights = [0.0, 0.5, 2.0] * 3
    weighted = Row((Example(example.tokens, example.start, weights), make_example(12, 4)))
    value, gradient = value_and_gradient(model, weighted)
    expected, wanted = value_and_gradient(model, weighted, plain_loss)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradient, wanted, 1e-5)
    ones = Row((Example(example.tokens, example.start, [1.0] * 9),))
    assert row_loss(model, ones).item() == row_loss(model, Row((example,))).item()
    changed = list(example.tokens)
    changed[-9] = (changed[-9] + 1) % VOCABULARY  # weighs nothing as a target, but is read
    last = [0.0] * 8 + [1.0]
    one, other = (
        Row((Example(tokens, example.start, last),)) for tokens in (example.tokens, changed)
    )
    assert row_loss(model, one).item() != row_loss(model, other).item()


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 40])
def test_shared_out_among_cores_it_is_the_same(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    loss._workers.cache_clear()
    model = trainable(make_model("llama3"))
    row = make_row(*SHAPES, (9, 2))
    value, gradient = loss_and_gradient(model, row)
    again, same = loss_and_gradient(model, row)
    assert value == again
    assert close(same, gradient, 0.0)
    expected, wanted = value_and_gradient(model, row)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradient, wanted, 1e-5)
    measured = evaluate(model, [row])
    tokens = sum(example.answer_tokens for example in row.examples)
    assert measured.tokens == tokens
    assert measured.loss == pytest.approx(expected.item() / tokens, rel=1e-5)
    loss._workers.cache_clear()


@given(lengths=st.lists(st.integers(2, 50), min_size=1, max_size=12), cores=st.integers(1, 6))
def test_shares_hold_every_example_once_and_are_alike(lengths: list[int], cores: int) -> None:
    row = Row(tuple(Example([at] * length, 1) for at, length in enumerate(lengths)))
    shares = loss._shares(row, cores)
    assert len(shares) == min(cores, len(lengths))
    owners = sorted(example.tokens[0] for share in shares for example in share.examples)
    assert owners == list(range(len(lengths)))
    assert max(share.length for share in shares) - min(share.length for share in shares) <= max(
        lengths
    )


def test_an_error_in_a_share_is_raised_and_blas_gets_its_threads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    counts: list[int] = []
    original = machine.blas_threads

    def watched(count: int) -> Any:
        counts.append(count)
        return original(count)

    monkeypatch.setattr(machine, "blas_threads", watched)
    built: list[Row] = []

    def build(row: Row) -> Any:
        built.append(row)
        if len(built) == 2:
            raise RuntimeError("no memory")
        return mx.array(1.0)

    with pytest.raises(RuntimeError, match="no memory"):
        loss._together(make_model(), make_row(*SHAPES), build)
    assert counts == [1]
    assert loss._together(make_model(), make_row((9, 2)), lambda row: mx.array(2.0))


def test_blas_computes_with_so_many_threads_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    name = machine.load_openblas()
    if name is not None:
        library = ctypes.CDLL(name)
        before = library.openblas_get_num_threads()
        with pytest.raises(ZeroDivisionError), machine.blas_threads(before + 1):
            assert library.openblas_get_num_threads() == before + 1
            raise ZeroDivisionError
        assert library.openblas_get_num_threads() == before
    monkeypatch.setattr(machine, "load_openblas", lambda: None)
    with machine.blas_threads(3):
        assert (mx.ones((2, 2)) @ mx.ones((2, 2))).sum().item() == 8


def test_accuracy_counts_the_likeliest_token() -> None:
    model = make_model()
    row = make_row(*SHAPES)
    right = 0
    for example in row.examples:
        logits = np.array(model(mx.array(example.tokens)[None])[0])
        for at in range(example.start, len(example.tokens)):
            right += int(logits[at - 1].argmax()) == example.tokens[at]
        example.tokens[-1] = int(logits[-2].argmax())  # one that is right
        right += 1
    assert evaluate(model, [row]).accuracy == right / sum(answer for _, answer in SHAPES)
    assert evaluate(model, []) == (0.0, 0.0, 0)


def peak(function: Any) -> int:
    """Bytes that computing takes above what is there."""
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(function())
    return int(mx.get_peak_memory() - before)


def test_the_logits_of_a_row_are_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MIN_CHUNK", 2)
    vocabulary, answer = 50_000, 200
    model = trainable(make_model(vocab_size=vocabulary))
    row = make_row((220, answer))
    whole = 4 * vocabulary * answer
    assert peak(lambda: value_and_gradient(model, row, plain_loss)) > 2 * whole
    assert peak(lambda: value_and_gradient(model, row)) < 0.25 * whole
    assert peak(lambda: loss._measured(model, row)) < 0.25 * whole


def test_nor_are_those_of_a_head_with_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.tuner.lora import LoRALinear

    monkeypatch.setattr(loss, "MIN_CHUNK", 10)
    vocabulary, answer = 50_000, 200
    model = make_model(vocab_size=vocabulary, tied=False)
    model.lm_head = LoRALinear.from_base(model.lm_head, r=2)
    row = make_row((220, answer))
    expected, wanted = value_and_gradient(model, row, plain_loss)
    value, gradient = value_and_gradient(model, row)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert close(gradient, wanted, 1e-5)
    whole = 4 * vocabulary * answer
    assert peak(lambda: value_and_gradient(model, row)) < 0.8 * whole


class WithDropout(nn.Module):  # type: ignore[misc]
    """A linear layer behind dropout."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = linear
        self.dropout = nn.Dropout(0.3)

    def __call__(self, x: Any) -> Any:
        """(…, in) to (…, out)."""
        return self.linear(self.dropout(x))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3", "ministral3"])
def test_checkpointed_layers_give_the_same_gradient(kind: str) -> None:
    """Dropout included, and the random numbers drawn after it."""
    model = trainable(make_model(kind))
    for layer in model.layers:
        layer.mlp.down_proj = WithDropout(layer.mlp.down_proj)
    row = make_row(*SHAPES)
    names = [name for name, _ in tree_flatten(model.trainable_parameters())]
    kinds = [type(layer) for layer in model.layers]

    def results() -> tuple[Any, Any, Any]:
        mx.random.seed(4)
        value, gradient = value_and_gradient(model, row)
        mx.eval(value, gradient)
        return value, gradient, mx.random.uniform()

    value, gradient, drawn = results()
    with checkpoint_layers(model):
        assert [name for name, _ in tree_flatten(model.trainable_parameters())] == names
        assert all(type(layer) is not kind for layer, kind in zip(model.layers, kinds, strict=True))
        again, same, next_drawn = results()
    assert [type(layer) for layer in model.layers] == kinds
    assert again.item() == value.item()
    assert next_drawn.item() == drawn.item()
    assert close(same, gradient, 1e-6)
    mx.random.seed(5)
    assert value_and_gradient(model, row)[0].item() != value.item()


def test_checkpointed_layers_need_less_memory_and_leave_other_models_alone() -> None:
    model, other = (trainable(make_model(num_hidden_layers=6)) for _ in range(2))
    row = make_row((400, 5))
    plain = peak(lambda: value_and_gradient(model, row))
    with pytest.raises(ZeroDivisionError), checkpoint_layers(model):
        assert type(other.layers[0]) is not type(model.layers[0])
        assert peak(lambda: value_and_gradient(model, row)) < 0.5 * plain
        raise ZeroDivisionError
    assert type(other.layers[0]) is type(model.layers[0])


def theirs(model: Any, examples: list[Example], width: int) -> tuple[float, int]:
    """(sum of losses, tokens counted) by mlx-lm's loss on a batch padded to `width`."""
    from mlx_lm.tuner.trainer import default_loss

    batch = mx.array([one.tokens + [0] * (width - len(one.tokens)) for one in examples])
    lengths = mx.array([[one.start, len(one.tokens)] for one in examples])
    mean, count = default_loss(model, batch, lengths)
    return mean.item() * count.item(), count.item()


def test_ours_is_theirs_without_padding_and_theirs_learns_a_pad_token_with_it() -> None:
    model = make_model()
    row = make_row((40, 12), (40, 30))
    examples = list(row.examples)
    summed, count = theirs(model, examples, 40)
    assert count == 42
    assert row_loss(model, row).item() == pytest.approx(summed, rel=1e-5)

    summed, count = theirs(model, examples, 65)  # as its batches are: padded to 1 + 32 n
    assert count == 42 + 2
    padded = [Example([*one.tokens, 0], len(one.tokens)) for one in examples]
    pads = row_loss(model, Row(tuple(padded))).item()
    assert pads > 1
    assert row_loss(model, row).item() + pads == pytest.approx(summed, rel=1e-5)


def test_the_loss_curve_is_that_of_mlx_lm(tmp_path: Path) -> None:
    """The same base, start values, AdamW and batches; theirs by its own `train`."""
    import mlx.optimizers as optim
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from training_models import settings

    from forge_mcp.training.adapters import AdapterLinear, attach_adapters

    steps, length = 10, 33
    examples = [make_example(length, answer, seed=answer) for answer in (8, 20, 5, 13)]
    adam = {"learning_rate": 1e-2, "weight_decay": 0.01, "bias_correction": True}
    ours = make_model()
    how = settings(init_method="lora", rank=4, lora_alpha=8.0, quantization_group_size=32)
    attach_adapters(ours, how, "float32")
    reference = make_model()
    keys = [
        path for path, module in ours.layers[0].named_modules() if isinstance(module, AdapterLinear)
    ]
    linear_to_lora_layers(
        reference, len(reference.layers), {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": keys}
    )
    mine = dict(ours.named_modules())
    for path, module in reference.named_modules():
        if "lora_a" in module:
            module.linear.weight = mine[path].weight  # the dequantised one: the same base
            module.lora_a, module.lora_b = mine[path].lora_a.T, mine[path].lora_b.T

    reported: list[float] = []

    class Listener(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            reported.append(info["train_loss"])

    train(
        reference,
        optim.AdamW(**adam),
        [(example.tokens, example.start) for example in examples],
        args=TrainingArgs(
            batch_size=4,
            iters=steps,
            steps_per_report=1,
            max_seq_length=length,
            adapter_file=str(tmp_path / "adapters.safetensors"),
        ),
        training_callback=Listener(),
    )
    optimiser = optim.AdamW(**adam)
    losses = []
    for _ in range(steps):
        summed, gradient = loss_and_gradient(ours, Row(tuple(examples)))
        tokens = sum(example.answer_tokens for example in examples)
        optimiser.update(ours, tree_map(lambda leaf, n=tokens: leaf / n, gradient))
        mx.eval(ours.trainable_parameters(), optimiser.state)
        losses.append(summed / tokens)
    assert losses[-1] < 0.9 * losses[0]
    assert losses == pytest.approx(reported, rel=1e-4)
