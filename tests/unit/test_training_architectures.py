"""A tiny model of every architecture in models.yaml: it trains, checkpoints and resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_models import CONFIGS, chat_rows, make_base, make_config, settings

from forge_mcp import machine
from forge_mcp.errors import Cancelled
from forge_mcp.settings import TrainingSettings
from forge_mcp.training.adapters import adapter_weights, attach_adapters
from forge_mcp.training.architectures import ARCHITECTURES, text_model
from forge_mcp.training.bases import LoadedBase, known_bases, load_base
from forge_mcp.training.batching import Row, tokenise
from forge_mcp.training.callbacks import read_metrics
from forge_mcp.training.checkpoints import latest_checkpoint
from forge_mcp.training.loss import row_loss
from forge_mcp.training.trainer import FineTuneTrainer

mx = machine.mlx()

KINDS = list(CONFIGS)
SHARP = {"quantization_bits": 8, "quantization_group_size": 32}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LoadedBase]:
    """A fresh copy of the tiny model of a kind."""
    folder = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> LoadedBase:
        if not (folder / kind).is_dir():
            make_base(folder / kind, kind)
        return load_base(str(folder / kind))

    return base


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these trainings, and have tests of their own."""
    monkeypatch.setattr("forge_mcp.training.callbacks.plot_losses", lambda *_: None)


def examples(base: LoadedBase, count: int = 9) -> list[Any]:
    return tokenise(chat_rows(count), base.tokenizer, 512).examples


def test_every_architecture_is_tried() -> None:
    tried = {make_config(kind)["model_type"] for kind in KINDS}
    assert {entry.architecture for entry in known_bases().values()} <= tried
    assert tried <= set(ARCHITECTURES)


def trainer(
    base: LoadedBase, how: TrainingSettings, run: Path, check: Callable[[], None] = lambda: None
) -> FineTuneTrainer:
    mx.random.seed(how.seed)
    attach_adapters(base.model, how, base.dtype)
    return FineTuneTrainer(base.model, how, run, check=check)


def stop_before(step: int) -> Callable[[], None]:
    calls = iter(range(1, 1000))

    def check() -> None:
        if next(calls) == step:
            raise Cancelled("stop")

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, bases: Callable[[str], LoadedBase], tmp_path: Path
) -> None:
    how = settings(
        learning_rate=1e-2, max_steps=6, num_train_epochs=9.0, save_steps=4, eval_steps=3
    )
    train, valid = examples(bases(kind))[:6], examples(bases(kind))[6:]
    whole = trainer(bases(kind), how, tmp_path / "whole")
    expected = whole.train(train, valid)
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole/metrics.jsonl")[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert expected.valid_loss is not None and expected.initial_valid_loss is not None
    assert expected.valid_loss < 0.9 * expected.initial_valid_loss

    with pytest.raises(Cancelled):
        trainer(bases(kind), how, tmp_path / "cut", stop_before(6)).train(train, valid)
    assert latest_checkpoint(tmp_path / "cut") is not None
    cut = trainer(bases(kind), how, tmp_path / "cut")
    resumed = cut.train(train, valid, resume=True)
    rows, again = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "cut"))
    for key in ("step", "loss", "valid_loss", "grad_norm", "learning_rate"):
        assert [row.get(key) for row in again] == [row.get(key) for row in rows], key
    assert (resumed.best_step, resumed.valid_loss) == (expected.best_step, expected.valid_loss)
    first, second = adapter_weights(whole.model), adapter_weights(cut.model)
    assert first.keys() == second.keys()
    assert all(mx.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_step_zero_equals_the_base(kind: str, bases: Callable[[str], LoadedBase]) -> None:
    """With 8 bits the residual's error is small; without the principal part it is not."""
    tokens = mx.array(examples(bases(kind))[0].tokens)[None]
    expected = bases(kind).model(tokens)
    model = bases(kind).model
    attach_adapters(model, settings(init_method="pissa", rank=8, lora_alpha=16.0, **SHARP), "")
    adapted = dict(adapter_weights(model))
    assert adapted

    def error() -> float:
        return float((mx.abs(model(tokens) - expected).max() / mx.abs(expected).max()).item())

    with_adapters = error()
    assert with_adapters < 0.03
    model.load_weights(
        [(name, value * 0) for name, value in adapted.items() if name.endswith("lora_b")],
        strict=False,
    )
    assert error() > 5 * with_adapters


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_is_adapted(kind: str, bases: Callable[[str], LoadedBase]) -> None:
    """By default all of attention and MLP; fused ones as they are."""
    model = bases(kind).model
    attach_adapters(model, settings(init_method="lora"), "")
    fused = make_config(kind)["model_type"] == "phi3"
    wanted = (
        {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
        if fused
        else {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    )
    paths = [name.rsplit(".", 1)[0] for name in adapter_weights(model) if name.endswith("lora_a")]
    assert len(paths) == len(wanted) * len(text_model(model).layers)
    assert {path.rsplit(".", 1)[-1] for path in paths} == wanted


def plain_loss(model: Any, example: Any) -> Any:
    """Cross-entropy of the answer from the model's own logits of one example alone."""
    tokens = mx.array(example.tokens)
    logits = model(tokens[None, :-1])[0, example.start - 1 :].astype(mx.float32)
    targets = tokens[example.start :]
    return (mx.logsumexp(logits, axis=-1) - logits[mx.arange(len(targets)), targets]).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_unpacked(kind: str, bases: Callable[[str], LoadedBase]) -> None:
    """Loss and gradients of one row of four examples, and of each alone in mlx-lm's model."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten, tree_map

    base = bases(kind)
    attach_adapters(base.model, settings(init_method="pissa"), base.dtype)
    several = examples(base)[2:6]
    assert len({len(one.tokens) for one in several}) > 1
    expected, gradient = mx.array(0.0), None
    alone = nn.value_and_grad(base.model, plain_loss)
    for one in several:
        value, part = alone(base.model, one)
        expected = expected + value
        gradient = part if gradient is None else tree_map(mx.add, gradient, part)
    value, packed = nn.value_and_grad(base.model, row_loss)(base.model, Row(tuple(several)))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    together = dict(tree_flatten(packed))
    largest = max(mx.abs(part).max().item() for part in together.values())
    assert largest > 0
    for name, part in tree_flatten(gradient):
        assert mx.abs(together[name] - part).max().item() < 2e-5 * largest, name
