"""The split of weights: against NumPy's SVD and PEFT, and with its residual quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from forge_mcp import machine
from forge_mcp.training.pissa import (
    add_product,
    compute_lora_init,
    compute_pissa_init,
    compute_qpissa_init,
    power_iterations,
    subtract,
)
from forge_mcp.training.quantisation import Quantisation, quantise

mx = machine.mlx()
REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"


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


@pytest.mark.parametrize("case", ["pissa_tall", "pissa_wide", "pissa_full"])
def test_factors_and_residual_are_pefts_up_to_sign(case: str) -> None:
    with np.load(REFERENCES / "adapters.npz") as peft:
        get = {key.partition(".")[2]: peft[key] for key in peft if key.startswith(case)}
    ours = compute_pissa_init(get["weight"], int(get["rank"]), float(get["alpha"]))
    assert ours.a.shape == get["a"].shape
    assert ours.b.shape == get["b"].shape
    signs = np.sign(np.sum(ours.a * get["a"], axis=1))
    np.testing.assert_allclose(ours.a * signs[:, None], get["a"], atol=2e-5)
    np.testing.assert_allclose(ours.b * signs, get["b"], atol=2e-5)
    np.testing.assert_allclose(ours.residual, get["residual"], atol=2e-5)


def test_the_weight_given_is_left_as_it_is() -> None:
    weight = random_matrix(12, 8)
    before = weight.copy()
    compute_pissa_init(weight, 2, 2.0)
    assert np.array_equal(weight, before)


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


def decaying(out: int, inner: int, seed: int = 5) -> Any:
    """A matrix whose singular values fall like 1 / n, as those of trained weights do."""
    rng = np.random.default_rng(seed)
    small = min(out, inner)
    left, right = (np.linalg.qr(rng.standard_normal((size, small)))[0] for size in (out, inner))
    return ((left / np.arange(1, small + 1)) @ right.T).astype(np.float32)


FORMATS = [
    Quantisation("affine", 4, 64),
    Quantisation("affine", 8, 32),
    Quantisation("mxfp4", 4, 32),
    Quantisation("nvfp4", 4, 16),
    Quantisation("nf4", 4, 64, double=True),
]


def dequantised(weight: Any, how: Quantisation) -> Any:
    return np.array(quantise(weight, how, "float16").dequantised())


@pytest.mark.parametrize("how", FORMATS, ids=lambda how: f"{how.type}{how.bits}")
def test_qpissa_is_the_papers_iteration(how: Quantisation) -> None:
    """In place as it is plainly: Q = quant(W - sBA), then A, B from the SVD of W - Q, T times."""
    weight, rank, scaling = decaying(96, 128), 8, 2.0
    rest, errors = weight.copy(), []
    for iterations in range(1, 5):
        u, s, vt = np.linalg.svd(rest, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        frozen = dequantised(weight - best, how)
        rest = weight - frozen
        expected = np.linalg.norm(weight - frozen - best)
        made = compute_qpissa_init(weight.copy(), rank, scaling, how, "float16", iterations)
        together = np.array(made.frozen.dequantised()) + scaling * (made.b @ made.a)
        assert np.linalg.norm(weight - together) == pytest.approx(expected, rel=2e-3)
        assert made.error == pytest.approx(np.linalg.norm(weight - together), rel=1e-3)
        errors.append(made.error)
    if how.bits == 4:  # of 8 bits so little is lost that there is nothing to find again
        assert errors[3] < 0.97 * errors[0]


def test_one_iteration_is_pissa_with_its_residual_quantised() -> None:
    weight, how = decaying(96, 64), FORMATS[0]
    made = compute_qpissa_init(weight.copy(), 8, 0.5, how, "float16", niter=4, seed=3)
    plain = compute_pissa_init(weight, 8, 4.0, niter=4, seed=3)
    assert np.array_equal(made.a, plain.a)
    assert np.array_equal(made.b, plain.b)
    expected = quantise(plain.residual, how, "float16").arrays
    assert all(mx.array_equal(made.frozen.arrays[name], expected[name]) for name in expected)


@pytest.mark.parametrize("how", FORMATS, ids=lambda how: f"{how.type}{how.bits}")
def test_qpissa_error_is_smaller_than_that_of_direct_quantisation(how: Quantisation) -> None:
    weight = decaying(128, 128)
    direct = np.linalg.norm(dequantised(weight, how) - weight, "nuc")
    made = compute_qpissa_init(weight.copy(), 16, 1.0, how, "float16", iterations=5)
    together = np.array(made.frozen.dequantised()) + made.b @ made.a
    assert np.linalg.norm(together - weight, "nuc") < 0.8 * direct


def test_a_product_is_added_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_mcp.training.pissa.BLOCK_ELEMENTS", 25)
    matrix, b, a = random_matrix(13, 10), random_matrix(13, 3, 1), random_matrix(3, 10, 2)
    expected = matrix - 0.5 * (b @ a)
    add_product(matrix, b, a, -0.5)
    assert np.allclose(matrix, expected, atol=1e-6)


@pytest.mark.parametrize("how", FORMATS, ids=lambda how: f"{how.type}{how.bits}")
def test_what_is_subtracted_is_the_dequantised_weight(
    how: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = decaying(70, 128)
    frozen = quantise(weight, how, "float16")
    expected = weight - np.array(frozen.dequantised())
    monkeypatch.setattr("forge_mcp.training.quantisation.WEIGHTS_AT_ONCE", 3 * 128)
    subtract(weight, frozen)
    assert np.array_equal(weight, expected)
