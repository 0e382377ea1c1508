"""The optimisers: against bitsandbytes, against AdamW, in memory, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten
from training_models import settings

from forge_mcp import machine
from forge_mcp.training.optimisers import AdamW8bit, build_optimiser, learning_rate

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402
import mlx.optimizers as optim  # noqa: E402

REFERENCE = Path(__file__).parents[1] / "fixtures" / "references" / "nf4.npz"


@pytest.fixture(scope="module")
def bitsandbytes() -> dict[str, Any]:
    with np.load(REFERENCE) as file:
        arrays = dict(file)
    return {key.removeprefix("adam_"): array for key, array in arrays.items() if "adam_" in key}


def descend(optimiser: Any, reference: dict[str, Any], bowl: str, steps: int) -> Any:
    """The reference's problem: loss = sum(steepness * (weight - target)^2) / 2."""
    steepness, target, weight = (
        mx.array(reference[name]).astype(mx.float32)
        for name in (f"{bowl}_steepness", "target", "start")
    )
    parameters = {"weight": weight}
    for _ in range(steps):
        gradient = {"weight": steepness * (parameters["weight"] - target)}
        parameters = optimiser.apply_gradients(gradient, parameters)
        mx.eval(parameters, optimiser.state)
    return np.array(parameters["weight"])


def test_8_bit_adamw_is_that_of_bitsandbytes(bitsandbytes: dict[str, Any]) -> None:
    rate, decay, steps = bitsandbytes["settings"].tolist()
    optimiser = AdamW8bit(rate, decay)
    descend(optimiser, bitsandbytes, "even", 1)
    state = optimiser.state["weight"]
    for moment in ("m", "v"):
        assert np.array_equal(state[moment], bitsandbytes[moment])
        np.testing.assert_allclose(
            state[f"{moment}_absmax"], bitsandbytes[f"{moment}_absmax"], rtol=1e-6
        )
    weight = descend(AdamW8bit(rate, decay), bitsandbytes, "even", int(steps))
    np.testing.assert_allclose(weight, bitsandbytes["even_weight"], rtol=0, atol=1e-5)
    assert np.abs(weight - bitsandbytes["start"]).max() > 0.1


def test_small_gradients_among_large_ones_do_not_throw_weights_away(
    bitsandbytes: dict[str, Any],
) -> None:
    """A factor of 10,000 within each block: bitsandbytes rounds some v to 0, and divides by it."""
    rate, decay, steps = bitsandbytes["settings"].tolist()
    plain = optim.AdamW(rate, weight_decay=decay, bias_correction=True)
    expected = descend(plain, bitsandbytes, "uneven", int(steps))
    weight = descend(AdamW8bit(rate, decay), bitsandbytes, "uneven", int(steps))
    assert np.abs(weight - expected).max() < rate * steps
    assert np.abs(bitsandbytes["uneven_weight"] - expected).max() > 5 * rate * steps


@given(size=st.integers(4096, 5000), exponent=st.integers(-12, 3), seed=st.integers(0, 99))
def test_no_step_is_much_longer_than_the_learning_rate(size: int, exponent: int, seed: int) -> None:
    """Whatever the gradients: Adam's steps are about one learning rate, and so are these."""
    draw = np.random.default_rng(seed)
    optimiser = AdamW8bit(0.1, 0.0)
    parameters = {"a": mx.zeros((size,))}
    for _ in range(4):
        sizes = 10.0 ** draw.uniform(-6, 0, size) * 10.0**exponent
        gradient = (sizes * draw.choice([-1, 0, 1], size)).astype(np.float32)
        after = optimiser.apply_gradients({"a": mx.array(gradient)}, parameters)
        assert float(mx.abs(after["a"] - parameters["a"]).max()) < 0.4
        parameters = after


def test_small_parameters_keep_a_float32_state_and_step_as_adamw() -> None:
    small = {"a": mx.random.normal((63, 65), key=mx.random.key(0))}  # 4,095 numbers
    ours, plain = AdamW8bit(0.01, 0.1), optim.AdamW(0.01, weight_decay=0.1, bias_correction=True)
    one, other = small, small
    for seed in range(3):
        gradient = {"a": mx.random.normal((63, 65), key=mx.random.key(seed + 1))}
        one, other = ours.apply_gradients(gradient, one), plain.apply_gradients(gradient, other)
    assert np.array_equal(one["a"], other["a"])
    assert {key: array.dtype for key, array in ours.state["a"].items()} == {
        "m": mx.float32,
        "v": mx.float32,
    }


def test_the_state_is_about_a_quarter() -> None:
    parameters = {"lora_a": mx.zeros((16, 1024)), "lora_b": mx.zeros((1000, 16))}

    def state_bytes(optimiser: Any) -> int:
        optimiser.init(parameters)
        return sum(
            array.nbytes for name, array in tree_flatten(optimiser.state) if name.startswith("lora")
        )

    full = state_bytes(build_optimiser(settings(optimizer="adamw")))
    small = state_bytes(build_optimiser(settings(optimizer="adamw_8bit")))
    assert full == 2 * 4 * 32_384
    assert small == 2 * (32_384 + 4 * (64 + 63))


class Problem(nn.Module):  # type: ignore[misc]
    """A regression with a large parameter and a small one."""

    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(3)
        self.wide = nn.Linear(64, 96, bias=True)
        self.narrow = nn.Linear(96, 4, bias=False)

    def loss(self, x: Any, y: Any) -> Any:
        return ((self.narrow(mx.tanh(self.wide(x))) - y) ** 2).mean()


def fit(optimiser: Any, problem: Problem, steps: range) -> list[float]:
    """Losses of some steps of 120, each on data of its own; the rate falls linearly."""
    teacher = mx.random.normal((64, 4), key=mx.random.key(99)) / 8
    gradient_of = nn.value_and_grad(problem, problem.loss)
    losses = []
    for step in steps:
        x = mx.random.normal((64, 64), key=mx.random.key(step))
        loss, gradient = gradient_of(x, mx.sin(x @ teacher))
        optimiser.learning_rate = 0.01 * (1 - step / 120)
        optimiser.update(problem, gradient)
        mx.eval(problem.parameters(), optimiser.state)
        losses.append(loss.item())
    return losses


def test_8_bit_learns_as_fast() -> None:
    plain = fit(build_optimiser(settings(optimizer="adamw")), Problem(), range(120))
    small = fit(build_optimiser(settings(optimizer="adamw_8bit")), Problem(), range(120))
    assert plain[-1] < 0.3 * plain[0]
    assert small[:2] == pytest.approx(plain[:2], rel=1e-3)
    assert np.mean(small[-20:]) == pytest.approx(np.mean(plain[-20:]), rel=0.05)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_resumed_it_goes_on_bit_for_bit(kind: str, tmp_path: Path) -> None:
    changed = settings(optimizer=kind)
    problem, optimiser = Problem(), build_optimiser(changed)
    fit(optimiser, problem, range(5))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), dict(tree_flatten(optimiser.state)))
    problem.save_weights(str(tmp_path / "model.safetensors"))
    losses = fit(optimiser, problem, range(5, 12))

    resumed, again = Problem(), build_optimiser(changed)
    resumed.load_weights(str(tmp_path / "model.safetensors"))
    again.init(resumed.trainable_parameters())
    again.state = tree_unflatten(list(mx.load(str(tmp_path / "state.safetensors")).items()))
    assert fit(again, resumed, range(5, 12)) == losses
    for one, other in (
        (resumed.parameters(), problem.parameters()),
        (again.state, optimiser.state),
    ):
        expected = dict(tree_flatten(other))
        for name, array in tree_flatten(one):
            assert np.array_equal(array, expected.pop(name)), name
        assert not expected


def test_a_bfloat16_parameter_keeps_its_type_and_a_precise_state() -> None:
    for shape in ((8, 8), (64, 64)):
        parameters = {"a": mx.ones(shape, dtype=mx.bfloat16)}
        optimiser = AdamW8bit(0.01, 0.0)
        gradient = {"a": mx.ones(shape, dtype=mx.bfloat16)}
        updated = optimiser.apply_gradients(gradient, parameters)["a"]
        assert updated.dtype == mx.bfloat16
        np.testing.assert_allclose(updated.astype(mx.float32), 0.99, atol=4e-3)
        assert mx.bfloat16 not in {array.dtype for array in optimiser.state["a"].values()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "kind"), [("adamw", optim.AdamW), ("adamw_8bit", AdamW8bit)])
def test_the_optimiser_is_that_of_the_settings(name: str, kind: Any, decay: float) -> None:
    chosen = settings(optimizer=name, learning_rate=0.25, weight_decay=decay)
    optimiser = build_optimiser(chosen)
    assert type(optimiser) is kind
    parameters = {"a": mx.ones((64, 64))}
    # the first step of a bias-corrected Adam is one learning rate long, and decay comes on top
    after = optimiser.apply_gradients({"a": mx.ones((64, 64))}, parameters)
    np.testing.assert_allclose(after["a"], 0.75 - 0.25 * decay, atol=1e-5)


def test_learning_rate_rises_and_falls() -> None:
    chosen = settings(learning_rate=0.8, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(step, 12, 4, chosen) for step in range(1, 13)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[8] == pytest.approx(0.4)
    assert 0 < rates[-1] < 0.04
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_linear_and_constant_schedules() -> None:
    linear, constant = (
        [
            learning_rate(step, 10, 0, settings(learning_rate=1.0, schedule=name))
            for step in (1, 6, 10)
        ]
        for name in ("linear", "constant")
    )
    assert linear == pytest.approx([1.0, 0.5, 0.1])
    assert constant == [1.0, 1.0, 1.0]


def test_a_run_that_is_all_warm_up_has_a_rate() -> None:
    assert learning_rate(1, 1, 1, settings(learning_rate=0.5)) == 0.5
