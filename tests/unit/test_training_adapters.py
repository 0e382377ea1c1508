"""Adapters in a model: against PEFT, at step 0, over every format, saved and opened again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_models import make_base, settings

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, UnsupportedModel
from forge_mcp.training import adapters as adapters_module
from forge_mcp.training.adapters import (
    AdapterLinear,
    adapter_layers,
    adapter_weights,
    attach_adapters,
    decoder_linears,
    select_targets,
    set_adapter_weights,
)
from forge_mcp.training.bases import load_base
from forge_mcp.training.batching import Example, Row
from forge_mcp.training.loss import row_loss
from forge_mcp.training.pissa import compute_qpissa_init
from forge_mcp.training.quantisation import Quantisation, quantise
from forge_mcp.training.run import ADAPTERS, attach_saved, describe_run, save_frozen

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"
TOKENS = [[3, 50, 9, 120, 7]]
METHODS = ["pissa", "lora", "rslora", "dora"]
FORMATS: dict[str, dict[str, Any]] = {
    "affine4": {"quantization_type": "affine"},
    "affine8": {"quantization_type": "affine", "quantization_bits": 8},
    "mxfp4": {"quantization_type": "mxfp4"},
    "nvfp4": {"quantization_type": "nvfp4"},
    "nf4": {"quantization_type": "nf4"},
    "nf4 single": {"quantization_type": "nf4", "double_quantization": False},
}


class PlainWeight:
    """A frozen weight that is not quantised, for comparison with PEFT to the last digits."""

    def __init__(self, weight: Any) -> None:
        self.weight = mx.array(weight)

    def dequantised(self) -> Any:
        return self.weight

    def dequantised_rows(self) -> Any:
        yield slice(None), self.weight

    def matmul(self, x: Any) -> Any:
        return x @ self.weight.T


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("case", ["lora", "rslora", "dora"])
def test_output_and_gradients_are_pefts(case: str, dense: bool) -> None:
    with np.load(REFERENCES / "adapters.npz") as peft:
        get = {key.partition(".")[2]: mx.array(peft[key]) for key in peft if key.startswith(case)}
    layer = AdapterLinear(
        PlainWeight(get["weight"]),  # type: ignore[arg-type]
        get["a"],
        get["b"],
        settings(init_method=case, rank=4, lora_alpha=8.0).scaling,
        get["bias"],
        magnitude=get.get("magnitude"),
        dense=dense,
    )

    def summed(trained: dict[str, Any], x: Any) -> Any:
        layer.update(trained)
        return (layer(x) * get["cotangent"]).sum()

    keys = {"lora_a": "a", "lora_b": "b"} | ({"lora_m": "magnitude"} if case == "dora" else {})
    trained = {key: layer[key] for key in keys}
    _, (gradients, of_x) = mx.value_and_grad(summed, argnums=(0, 1))(trained, get["x"])
    layer.update(trained)
    assert mx.allclose(layer(get["x"]), get["y"], rtol=1e-5, atol=1e-5)
    for key, name in keys.items():
        assert mx.allclose(gradients[key], get[f"{name}_gradient"], rtol=1e-4, atol=1e-4), key
    assert mx.allclose(of_x, get["x_gradient"], rtol=1e-4, atol=1e-5)
    assert mx.allclose(get["x"] @ layer.merged().T + get["bias"], get["y"], rtol=1e-5, atol=1e-5)
    if case == "dora":
        norms = mx.linalg.norm(get["weight"], axis=1)
        assert mx.allclose(norms, get["initial_magnitude"], rtol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_at_step_zero_the_model_is_its_quantised_base(
    tmp_path: Path, method: str, form: str
) -> None:
    """Q, or with PiSSA Q + sBA, in place of every weight of the decoder; biases as they were."""
    base = make_base(tmp_path / "base", "qwen2")
    plain = load_base(str(base)).model
    tuned = load_base(str(base), lazy=True).model
    how = settings(init_method=method, lora_alpha=8.0, **FORMATS[form])
    made = attach_adapters(tuned, how, "float16")
    assert set(made.frozen) == {path for path, _ in decoder_linears(plain)}
    assert len(made.frozen) == 14
    lost, whole, weights = 0.0, 0.0, dict(tree_flatten(plain.parameters()))
    for path, frozen in made.frozen.items():
        weight, start = weights[f"{path}.weight"], frozen.dequantised()
        if method == "pissa":
            a, b = (made.initial[f"{path}.{name}"] for name in ("lora_a", "lora_b"))
            start = start + how.scaling * (b @ a)
        lost += mx.square(weight - start).sum().item()
        whole += mx.square(weight).sum().item()
        weights[f"{path}.weight"] = start
    assert made.quantisation_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    before = plain(mx.array(TOKENS))
    plain.load_weights(list(weights.items()))
    expected = plain(mx.array(TOKENS))
    assert mx.abs(tuned(mx.array(TOKENS)) - expected).max().item() < 1e-4
    assert mx.abs(before - expected).max().item() > 1e-4  # so that the check above sees something


@pytest.mark.parametrize("kind", ["llama", "phi3", "gemma3"])
def test_without_quantisation_the_model_is_its_base(tmp_path: Path, kind: str) -> None:
    """PiSSA's residual, before it is quantised, and its factors are the weight."""
    base = make_base(tmp_path / "base", kind)
    plain = load_base(str(base)).model
    tuned = load_base(str(base), lazy=True).model
    attach_adapters(tuned, settings(lora_alpha=31.0), "float16")
    weights = dict(tree_flatten(plain.parameters()))
    for path, layer in adapter_layers(tuned):
        layer.weight = weights[f"{path}.weight"] - layer.scaling * (layer.lora_b @ layer.lora_a)
    difference = mx.abs(tuned(mx.array(TOKENS)) - plain(mx.array(TOKENS)))
    assert difference.max().item() < 1e-4


@pytest.mark.parametrize(
    ("kind", "names", "prefix"),
    [
        (
            "llama",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            "",
        ),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, ""),
        (
            "gemma3",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
            "language_model.",
        ),
    ],
)
def test_all_linear_is_every_layer_of_the_decoder(
    tmp_path: Path, kind: str, names: set[str], prefix: str
) -> None:
    model = load_base(str(make_base(tmp_path / "base", kind)), lazy=True).model
    targets = select_targets(model, "all-linear")
    assert next(path for path, _ in targets).startswith(f"{prefix}model.layers.0.")
    assert {path.rpartition(".")[-1] for path, _ in targets} == names
    assert len(targets) == len(names) * len(model.layers)
    order = [int(path.removeprefix(prefix).split(".")[2]) for path, _ in targets]
    assert order == sorted(order)


def test_targets_are_checked(tmp_path: Path) -> None:
    model = load_base(str(make_base(tmp_path / "base"))).model
    assert len(select_targets(model, ["q_proj", "v_proj"])) == 4
    with pytest.raises(InvalidSettings) as caught:
        select_targets(model, ["q_proj", "query"])
    assert "query" in caught.value.cause
    assert "gate_proj" in caught.value.next_step
    with pytest.raises(InvalidSettings, match="is empty"):
        select_targets(model, [])
    with pytest.raises(InvalidSettings) as caught:
        select_targets(model, ["q_proj", "lm_head"])
    assert "embeddings" in caught.value.cause


def test_a_head_of_its_own_can_be_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", tied=False)
    model = load_base(str(base)).model
    assert "lm_head" not in {path for path, _ in select_targets(model, "all-linear")}
    expected = model(mx.array(TOKENS))
    how = settings(target_modules=["lm_head", "o_proj"], **FORMATS["affine8"])
    made = attach_adapters(model, how, "float16")
    assert list(made.frozen) == [
        "lm_head",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
    ]
    assert isinstance(model.lm_head, AdapterLinear)
    assert mx.abs(model(mx.array(TOKENS)) - expected).max().item() < 0.05


def test_widths_and_ranks_that_do_not_fit_are_told(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    model = load_base(str(base)).model
    how = settings(target_modules=["q_proj"], quantization_group_size=128, rank=100)
    made = attach_adapters(model, how, "float16")
    assert {one.how.group_size for one in made.frozen.values()} == {64}
    assert made.notices == [
        "model.layers.0.self_attn.q_proj and 1 more layer: group size 128 does not divide 64; 64 "
        "is used.",
        "model.layers.0.self_attn.q_proj and 1 more layer: rank 100 is more than the layer has: "
        "64 is used.",
    ]
    layer = model.layers[0].self_attn.q_proj
    assert layer.lora_a.shape == (64, 64)
    assert layer.scaling == how.scaling == 0.04
    whole = load_base(str(base)).model.layers[0].self_attn.q_proj.weight
    assert mx.allclose(layer.merged(), whole, atol=1e-5)  # full rank: nothing is left to quantise

    model = load_base(str(base)).model
    model.layers[0].mlp.up_proj = nn.Linear(33, 128, bias=False)
    with pytest.raises(UnsupportedModel, match="up_proj") as caught:
        attach_adapters(model, settings(target_modules=["gate_proj", "up_proj"]), "float16")
    assert "33" in caught.value.cause
    assert isinstance(model.layers[0].mlp.gate_proj, nn.Linear)  # told before anything is changed


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, method: str) -> None:
    model = load_base(str(make_base(tmp_path / "base"))).model
    up = model.layers[1].mlp.up_proj
    up.weight = mx.where(mx.arange(64) == 5, float("nan"), up.weight)
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.up_proj"):
        attach_adapters(model, settings(init_method=method), "float16")


@pytest.mark.parametrize("method", ["pissa", "lora", "dora"])
@pytest.mark.parametrize(("mode", "bits", "size"), [("affine", 4, 32), ("nvfp4", 4, 16)])
def test_a_quantised_base_in_the_same_format(
    tmp_path: Path, method: str, mode: str, bits: int, size: int
) -> None:
    """LoRA keeps the base's own weights; PiSSA splits what they stand for."""
    model = load_base(str(make_base(tmp_path / "base", "qwen2"))).model
    nn.quantize(model, group_size=size, bits=bits, mode=mode)
    expected = model(mx.array(TOKENS))
    own = {path: dict(layer) for path, layer in decoder_linears(model)}
    how = settings(
        init_method=method,
        quantization_type=mode,
        quantization_bits=bits,
        quantization_group_size=size,
    )
    made = attach_adapters(model, how, "float32")
    assert not made.notices
    kept = [
        mx.array_equal(frozen.arrays[name], own[path][name])
        for path, frozen in made.frozen.items()
        for name in ("weight", "scales")
    ]
    if method == "pissa":
        assert not all(kept)
        assert 0 < made.quantisation_error < 0.2
    else:
        assert all(kept)
        assert made.quantisation_error == 0
        assert "the base's own quantisation" in made.summary()
        assert mx.abs(model(mx.array(TOKENS)) - expected).max().item() < 1e-4
    assert not isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)  # as the CPU wants it


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"quantization_type": "nf4"}, "4-bit nf4 (groups of 64)"),
        ({"quantization_bits": 4, "quantization_group_size": 32}, "4-bit affine (groups of 32)"),
        ({"quantization_bits": 8, "quantization_group_size": 64}, "8-bit affine (groups of 64)"),
    ],
)
@pytest.mark.parametrize("method", ["pissa", "lora"])
def test_a_quantised_base_in_another_format(
    tmp_path: Path, method: str, form: dict[str, Any], named: str
) -> None:
    model = load_base(str(make_base(tmp_path / "base"))).model
    nn.quantize(model, group_size=32, bits=8)
    expected = model(mx.array(TOKENS))
    how = settings(init_method=method, target_modules=["up_proj"], **form)
    made = attach_adapters(model, how, "float16")
    formats = {(one.how.type, one.how.bits, one.how.group_size) for one in made.frozen.values()}
    assert formats == {(how.quantization_type, how.quantization_bits, how.group_size)}
    assert 0 < made.quantisation_error < 0.2
    assert mx.abs(model(mx.array(TOKENS)) - expected).max().item() < 0.5
    if method == "lora":
        (notice,) = made.notices
        assert "and 1 more layer: the base's 8-bit affine weights (groups of 32)" in notice
        assert f"quantised again to {named}" in notice
    else:
        assert not made.notices


def test_the_settings_reach_the_decomposition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls = make_base(tmp_path / "base"), []
    whole = compute_qpissa_init

    def recorded(*arguments: Any) -> Any:
        calls.append(arguments[5:])
        return whole(*arguments)

    monkeypatch.setattr(adapters_module, "compute_qpissa_init", recorded)
    wanted: list[tuple[dict[str, Any], int | None]] = [
        ({"svd_niter": "exact"}, None),
        ({"svd_niter": 2, "qpissa_iterations": 3}, 2),
        ({"svd_niter": 0}, 0),
        ({"svd_niter": "auto"}, None),  # small against the rank
    ]
    for changed, niter in wanted:
        model = load_base(str(base)).model
        attach_adapters(model, settings(target_modules=["q_proj"], **changed), "float16")
        assert calls[-2:] == [
            (changed.get("qpissa_iterations", 1), niter, 17),
            (changed.get("qpissa_iterations", 1), niter, 18),
        ]


def test_a_lazily_loaded_base_is_split_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No layer is read before its turn, and none stays in memory in float."""
    model = load_base(str(make_base(tmp_path / "base")), lazy=True).model
    before, seen = mx.get_active_memory(), []
    whole = compute_qpissa_init

    def recorded(*arguments: Any) -> Any:
        seen.append(mx.get_active_memory() - before)
        return whole(*arguments)

    monkeypatch.setattr(adapters_module, "compute_qpissa_init", recorded)
    made = attach_adapters(model, settings(rank=1), "float16", dense=False)
    packed = sum(one.nbytes for one in made.frozen.values())
    adapters = sum(array.nbytes for array in made.initial.values())
    assert len(seen) == 14
    assert seen[0] == 0  # the first weight has been read and is not MLX's any more
    assert seen == sorted(seen)
    assert seen[-1] <= 1.02 * (packed + adapters)
    assert all("weight" not in layer for _, layer in adapter_layers(model))


@pytest.mark.parametrize("form", ["affine4", "nf4", "nvfp4"])
@pytest.mark.parametrize("method", ["pissa", "dora"])
def test_keeping_the_weights_packed_gives_the_same_losses_and_gradients(
    tmp_path: Path, method: str, form: str
) -> None:
    """As on Metal and CUDA: multiplied packed, against weights dequantised once."""
    base = make_base(tmp_path / "base", "qwen2")
    example = Example([3, 50, 9, 120, 7, 2], 3)
    results = []
    for dense in (True, False):
        model = load_base(str(base), lazy=True).model
        how = settings(init_method=method, **FORMATS[form])
        attach_adapters(model, how, "float16", dense=dense)
        layers = [layer for _, layer in adapter_layers(model)]
        for layer in layers:  # away from step 0, where half of the gradients are 0
            layer.lora_b = layer.lora_b + 0.01
        loss, gradient = nn.value_and_grad(model, row_loss)(model, Row((example,)))
        merged = [layer.merged() for layer in layers]
        results.append((loss.item(), dict(tree_flatten(gradient)), merged))
    (loss, gradient, merged), (loss_packed, gradient_packed, merged_packed) = results
    assert loss_packed == pytest.approx(loss, rel=1e-4)
    assert set(gradient) == set(gradient_packed)
    assert len(gradient) == (42 if method == "dora" else 28)
    for name, value in gradient.items():
        scale = mx.abs(value).max().item() + 1e-6
        assert mx.abs(value - gradient_packed[name]).max().item() < 1e-2 * scale, name
    assert all(mx.allclose(a, b, atol=1e-6) for a, b in zip(merged, merged_packed, strict=True))


def test_dropout_counts_only_while_training(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    plain = load_base(str(base)).model
    attach_adapters(plain, settings(), "float16")
    model = load_base(str(base)).model
    attach_adapters(model, settings(lora_dropout=0.5), "float16")
    tokens = mx.array(TOKENS)
    expected = plain(tokens)
    assert mx.array_equal(model(tokens), expected)  # it was in eval mode, and still is
    model.train()
    first, second = model(tokens), model(tokens)
    assert mx.abs(first - second).max().item() > 1e-3
    mx.random.seed(5)
    third = model(tokens)
    mx.random.seed(5)
    assert mx.array_equal(model(tokens), third)
    model.eval()
    assert mx.array_equal(model(tokens), expected)


def test_dropout_leaves_the_frozen_weight_alone_and_keeps_the_mean() -> None:
    weight = mx.random.normal((8, 64))
    frozen = quantise(weight, Quantisation("affine", 8, 64), "float32")
    a, b = mx.ones((1, 64)), mx.ones((8, 1))
    x = mx.ones((4000, 64))
    layer = AdapterLinear(frozen, a, b, 1.0, dropout=0.25)
    delta = layer(x) - x @ frozen.dequantised().T
    assert delta.std().item() > 1
    assert delta.mean().item() == pytest.approx(64, rel=0.02)


@pytest.mark.parametrize("dense", [True, False])
def test_doras_norm_follows_the_adapter_until_it_is_settled(dense: bool) -> None:
    weight = mx.random.normal((8, 64))
    frozen = quantise(weight, Quantisation("affine", 8, 64), "float32")
    layer = AdapterLinear(
        frozen,
        mx.random.normal((2, 64)),
        mx.random.normal((8, 2)),
        0.5,
        magnitude=mx.ones(8),
        dense=dense,
    )
    x = mx.random.normal((3, 64))
    for changed in ("lora_a", "lora_b", "lora_m"):
        layer[changed] = layer[changed] * 1.5
        direct = frozen.dequantised() + 0.5 * layer.lora_b @ layer.lora_a
        direct = direct * (layer.lora_m / mx.linalg.norm(direct, axis=1))[:, None]
        assert mx.allclose(layer.merged(), direct, atol=1e-5)
        assert mx.allclose(layer(x), x @ direct.T, atol=1e-4)
    before, names = layer(x), {name for name, _ in tree_flatten(layer.parameters())}
    layer.settle()
    assert mx.array_equal(layer(x), before)
    assert layer._stretch() is layer._stretch()
    assert {name for name, _ in tree_flatten(layer.parameters())} == names
    assert names == {"lora_a", "lora_b", "lora_m"} | ({"weight"} if dense else set())


def test_a_row_of_zeros_divides_nothing_by_zero() -> None:
    frozen = quantise(mx.zeros((4, 64)), Quantisation("affine", 4, 64), "float32")
    layer = AdapterLinear(
        frozen, mx.ones((1, 64)), mx.zeros((4, 1)), 1.0, magnitude=mx.zeros(4), dense=True
    )
    assert mx.array_equal(layer(mx.ones((1, 64))), mx.zeros((1, 4)))


class Twice(nn.Module):  # type: ignore[misc]
    """A decoder one of whose projections is reached by two paths."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Module(), nn.Module()
        first.proj = second.proj = nn.Linear(64, 64)
        second.own = nn.Linear(64, 64)
        self.layers = [first, second]

    def __call__(self, x: Any) -> Any:
        first, second = self.layers
        return second.own(mx.tanh(second.proj(mx.tanh(first.proj(x)))))


def test_a_tied_projection_is_adapted_once(tmp_path: Path) -> None:
    import mlx.optimizers as optim

    mx.random.seed(3)
    model, x = Twice(), mx.random.normal((5, 64))
    whole = dict(tree_flatten(model.parameters()))
    made = attach_adapters(model, settings(**FORMATS["affine8"]), "float32")
    assert list(made.frozen) == ["layers.0.proj", "layers.1.own"]
    assert model.layers[0].proj is model.layers[1].proj
    assert set(made.initial) == {
        f"{path}.{name}" for path in made.frozen for name in ("lora_a", "lora_b")
    }

    def loss(model: Any, x: Any) -> Any:
        return mx.square(model(x)).sum()

    _, gradients = nn.value_and_grad(model, loss)(model, x)
    before = {name: mx.array(value) for name, value in adapter_weights(model).items()}
    optim.SGD(0.01).update(model, gradients)
    moved = (before["layers.0.proj.lora_b"] - adapter_weights(model)["layers.0.proj.lora_b"]) / 0.01

    def of_b(b: Any) -> Any:  # both uses at once, by hand
        weight = made.frozen["layers.0.proj"].dequantised()
        weight = weight + model.layers[0].proj.scaling * b @ before["layers.0.proj.lora_a"]
        y = x
        for _ in range(2):
            y = mx.tanh(y @ weight.T + whole["layers.0.proj.bias"])
        set_adapter_weights(model, before)
        return mx.square(model.layers[1].own(y)).sum()

    expected = mx.grad(of_b)(before["layers.0.proj.lora_b"])
    assert mx.allclose(moved, expected, rtol=1e-3, atol=1e-3 * mx.abs(expected).max().item())

    set_adapter_weights(model, {name: 1.01 * value for name, value in before.items()})
    again = Twice()
    again.load_weights(list(whole.items()))
    again.layers[1].proj = again.layers[0].proj
    save_frozen(tmp_path, made.frozen, made.initial)
    mx.save_safetensors(str(tmp_path / ADAPTERS), adapter_weights(model))
    config = {
        "scaling": settings().scaling,
        "layers": {
            path: {"quantisation": one.how._asdict(), "shape": list(one.shape)}
            for path, one in made.frozen.items()
        },
    }
    attach_saved(again, tmp_path, config, ADAPTERS)
    assert again.layers[0].proj is again.layers[1].proj
    assert mx.array_equal(again(x), model(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_saved_and_opened_again_it_is_the_same_bit_for_bit(
    tmp_path: Path, method: str, form: str, dtype: str
) -> None:
    base = make_base(tmp_path / "base", "qwen2")
    how = settings(
        init_method=method, rank=2, target_modules=["q_proj", "up_proj"], **FORMATS[form]
    )
    loaded = load_base(str(base), lazy=True)
    made = attach_adapters(loaded.model, how, dtype)
    config = json.loads(json.dumps(describe_run(loaded, how, made.frozen, "Answer.")))
    assert config["method"] == f"q{method}"
    assert (config["rank"], config["alpha"], config["scaling"]) == (2, 4.0, how.scaling)
    save_frozen(tmp_path, made.frozen, made.initial)
    mx.random.seed(7)
    trained = {
        name: value * (1 + 0.1 * mx.random.normal(value.shape)) + 0.01
        for name, value in adapter_weights(loaded.model).items()
    }
    assert ("model.layers.0.mlp.up_proj.lora_m" in trained) is (method == "dora")
    set_adapter_weights(loaded.model, trained)
    mx.save_safetensors(str(tmp_path / ADAPTERS), adapter_weights(loaded.model))
    again = load_base(str(base), lazy=True).model
    attach_saved(again, tmp_path, config, ADAPTERS)
    logits = loaded.model(mx.array(TOKENS))
    assert mx.array_equal(again(mx.array(TOKENS)), logits)
    assert {name for name, _ in tree_flatten(again.trainable_parameters())} == set(trained)


def test_the_summary_says_size_and_error(tmp_path: Path) -> None:
    model = load_base(str(make_base(tmp_path / "base"))).model
    made = attach_adapters(model, settings(init_method="lora", **FORMATS["nf4"]), "float16")
    bits = 8 * sum(one.nbytes for one in made.frozen.values()) / 73728
    assert made.bits_per_weight == bits
    assert 4.125 < bits < 4.3  # small layers: double quantisation's own numbers weigh something
    assert made.summary() == (
        f"14 layers with 0.1M frozen weights in {bits:.2f} bits a weight, {1 - bits / 16:.0%} "
        f"smaller than 16-bit floats; quantisation error {made.quantisation_error:.1%}; "
        "0.01M trainable"
    )
    assert 0.05 < made.quantisation_error < 0.15


def test_only_the_adapters_are_trainable(tmp_path: Path) -> None:
    model = load_base(str(make_base(tmp_path / "base", "qwen2"))).model
    attach_adapters(model, settings(init_method="dora"), "float16")
    names = {name.rpartition(".")[-1] for name, _ in tree_flatten(model.trainable_parameters())}
    assert names == {"lora_a", "lora_b", "lora_m"}
    assert set(adapter_weights(model)) == {
        name for name, _ in tree_flatten(model.trainable_parameters())
    }
