"""The split of weights: against NumPy's SVD, at step 0, and after quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_models import make_base, settings

from forge_mcp import machine
from forge_mcp.errors import InvalidSettings, UnsupportedModel
from forge_mcp.training.pissa import compute_lora_init, compute_pissa_init, power_iterations

mx = machine.mlx()


def random_matrix(out: int, inner: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((out, inner)).astype(np.float32)


@pytest.mark.parametrize("alpha", [8.0, 4.0, 31.0])
def test_factors_are_those_of_the_svd_up_to_sign(alpha: float) -> None:
    weight, rank = random_matrix(24, 40), 8
    made = compute_pissa_init(weight, rank, alpha)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(s[:rank] * rank / alpha)
    assert np.allclose(np.abs(made.a), np.abs(root[:, None] * vt[:rank]), atol=1e-4)
    assert np.allclose(np.abs(made.b), np.abs(u[:, :rank] * root), atol=1e-4)
    best = (u[:, rank:] * s[rank:]) @ vt[rank:]
    assert np.allclose(made.residual, best, atol=1e-4)


@given(
    out=st.integers(1, 20),
    inner=st.integers(1, 20),
    rank=st.integers(1, 30),
    alpha=st.floats(0.5, 64),
    niter=st.sampled_from([None, 0, 3]),
)
@hypothesis_settings(max_examples=50)
def test_the_parts_add_up_and_the_rank_is_capped(
    out: int, inner: int, rank: int, alpha: float, niter: int | None
) -> None:
    weight = random_matrix(out, inner, seed=out * 31 + inner)
    made = compute_pissa_init(weight, rank, alpha, niter)
    assert made.a.shape == (min(rank, out, inner), inner)
    assert made.b.shape == (out, min(rank, out, inner))
    again = made.residual + alpha / rank * (made.b @ made.a)
    assert np.allclose(again, weight, atol=1e-4)


def test_randomised_is_close_to_the_optimum_and_deterministic() -> None:
    weight, rank = random_matrix(300, 200), 16
    exact = compute_pissa_init(weight, rank, 16.0)
    fast = compute_pissa_init(weight, rank, 16.0, niter=4, seed=3)
    assert np.linalg.norm(fast.residual) < 1.005 * np.linalg.norm(exact.residual)
    again = compute_pissa_init(weight, rank, 16.0, niter=4, seed=3)
    assert np.array_equal(fast.a, again.a)


def test_large_weights_are_split_by_the_randomised_svd() -> None:
    assert power_iterations((4096, 4096), 64) is not None
    assert power_iterations((64, 128), 16) is None


def test_lora_starts_with_no_change() -> None:
    a, b = compute_lora_init((32, 64), 4, seed=1)
    assert a.shape == (4, 64)
    assert np.abs(a).max() <= 64**-0.5
    assert a.std() > 0
    assert not b.any()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_step_zero_output_is_the_bases(tmp_path: Path, architecture: str) -> None:
    """With an unquantised residual PiSSA changes nothing; with a quantised one, as defined."""
    from mlx.utils import tree_flatten

    from forge_mcp.training.adapters import AdapterLinear, attach_adapters, decoder_linears
    from forge_mcp.training.bases import load_base

    base = make_base(tmp_path / "base", architecture)
    tokens = mx.array([[3, 50, 9, 120, 7]])
    plain = load_base(str(base)).model
    expected = plain(tokens)
    tuned = load_base(str(base)).model
    made = attach_adapters(tuned, settings(), "float16")
    assert set(made.frozen) == {path for path, _ in decoder_linears(plain)}
    assert len(made.frozen) == 14

    weights = dict(tree_flatten(plain.parameters()))
    for path, layer in tuned.named_modules():
        if isinstance(layer, AdapterLinear):
            frozen = made.frozen[path].dequantised().astype(mx.float32)
            delta = layer.scaling * (layer.lora_b @ layer.lora_a)
            assert mx.allclose(layer.merged(), frozen + delta, atol=1e-6)
            layer.weight = weights[f"{path}.weight"] - delta  # the residual before quantisation
    assert mx.abs(tuned(tokens) - expected).max().item() < 1e-4


def test_qpissa_error_is_smaller_than_that_of_direct_quantisation(tmp_path: Path) -> None:
    from forge_mcp.training.quantisation import Quantisation, quantise

    rng = np.random.default_rng(5)
    left, right = (
        np.linalg.qr(rng.standard_normal((128, 128)))[0],
        np.linalg.qr(rng.standard_normal((128, 128)))[0],
    )
    weight = ((left * (1.0 / np.arange(1, 129))) @ right).astype(np.float32)
    made = compute_pissa_init(weight, 16, 16.0)
    direct = np.array(
        quantise(weight, Quantisation("affine", 4, 64), "float16").dequantised().astype(mx.float32)
    )
    residual = np.array(
        quantise(made.residual, Quantisation("affine", 4, 64), "float16")
        .dequantised()
        .astype(mx.float32)
    )
    error = np.linalg.norm(residual + made.b @ made.a - weight, "nuc")
    assert error < 0.8 * np.linalg.norm(direct - weight, "nuc")


def test_targets_and_widths_are_checked(tmp_path: Path) -> None:
    import mlx.nn as nn

    from forge_mcp.training.adapters import attach_adapters, select_targets
    from forge_mcp.training.bases import load_base

    model = load_base(str(make_base(tmp_path / "base"))).model
    assert len(select_targets(model, ["q_proj", "v_proj"])) == 4
    with pytest.raises(InvalidSettings) as caught:
        select_targets(model, ["q_proj", "query"])
    assert "query" in caught.value.cause
    assert "gate_proj" in caught.value.next_step
    with pytest.raises(InvalidSettings):
        select_targets(model, [])

    made = attach_adapters(
        model, settings(target_modules=["q_proj"], quantization_group_size=128, rank=100), "float16"
    )
    assert {one.how.group_size for one in made.frozen.values()} == {64}
    assert sum("group size" in notice for notice in made.notices) == 2
    assert sum("capped at 64" in notice for notice in made.notices) == 2

    model.layers[0].mlp.up_proj = nn.Linear(33, 128, bias=False)
    with pytest.raises(UnsupportedModel, match="up_proj"):
        attach_adapters(model, settings(target_modules=["up_proj"]), "float16")


def test_a_quantised_base_is_split_from_its_dequantised_weights(tmp_path: Path) -> None:
    import mlx.nn as nn

    from forge_mcp.training.adapters import attach_adapters
    from forge_mcp.training.bases import load_base

    model = load_base(str(make_base(tmp_path / "base"))).model
    nn.quantize(model, group_size=64, bits=4)
    tokens = mx.array([[3, 50, 9]])
    expected = model(tokens)
    own = model.layers[0].mlp.up_proj.weight
    made = attach_adapters(model, settings(init_method="lora"), "float32")
    assert mx.array_equal(made.frozen["model.layers.0.mlp.up_proj"].arrays["weight"], own)
    assert mx.abs(model(tokens) - expected).max().item() < 1e-4


def test_keeping_the_weights_packed_gives_the_same_losses_and_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Metal and CUDA: `quantized_matmul` against weights dequantised once."""
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    from forge_mcp.training.adapters import AdapterLinear, attach_adapters
    from forge_mcp.training.bases import load_base
    from forge_mcp.training.batching import Example, Row
    from forge_mcp.training.loss import row_loss

    base = make_base(tmp_path / "base", "qwen2")
    example = Example([3, 50, 9, 120, 7, 2], 3)
    results = []
    for cpu in (True, False):
        model = load_base(str(base)).model  # float32 both times
        monkeypatch.setattr(machine, "on_cpu", lambda cpu=cpu: cpu)
        attach_adapters(model, settings(), "float16")
        monkeypatch.undo()
        layers = [one for _, one in model.named_modules() if isinstance(one, AdapterLinear)]
        assert all(("weight" in layer) is cpu for layer in layers)
        loss, gradient = nn.value_and_grad(model, row_loss)(model, Row((example,)))
        merged = [layer.merged() for layer in layers]
        results.append((loss.item(), dict(tree_flatten(gradient)), merged))
    (loss, gradient, merged), (loss_packed, gradient_packed, merged_packed) = results
    assert loss_packed == pytest.approx(loss, rel=1e-4)
    assert set(gradient) == set(gradient_packed)
    assert len(gradient) == 28
    for name, value in gradient.items():
        scale = mx.abs(value).max().item() + 1e-6
        assert mx.abs(value - gradient_packed[name]).max().item() < 1e-2 * scale, name
    assert all(mx.allclose(a, b, atol=1e-6) for a, b in zip(merged, merged_packed, strict=True))
