"""The formats of frozen weights: against bitsandbytes, against their own steps, and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge_mcp import machine
from forge_mcp.errors import TrainingFailed, UnsupportedModel
from forge_mcp.training import nf4, quantisation
from forge_mcp.training.blockwise import dequantise_blocks, dynamic_map, quantise_blocks
from forge_mcp.training.quantisation import Quantisation, Quantised, quantise

mx = machine.mlx()

REFERENCE = Path(__file__).parents[1] / "fixtures" / "references" / "nf4.npz"
FORMATS = {
    "affine": Quantisation("affine", 4, 64),
    "affine 32": Quantisation("affine", 4, 32),
    "affine 128": Quantisation("affine", 4, 128),
    "affine 8": Quantisation("affine", 8, 64),
    "mxfp4": Quantisation("mxfp4", 4, 32),
    "nvfp4": Quantisation("nvfp4", 4, 16),
    "nf4": Quantisation("nf4", 4, 64),
    "nf4 double": Quantisation("nf4", 4, 64, double=True),
    "nf4 double 32": Quantisation("nf4", 4, 32, double=True),
    "nf4 double 128": Quantisation("nf4", 4, 128, double=True),
}
every_format = pytest.mark.parametrize("how", FORMATS.values(), ids=FORMATS)


@pytest.fixture(scope="module")
def bitsandbytes() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(REFERENCE) as file:
        return dict(file)


def random_weight(rows: int = 48, columns: int = 256, scale: float = 0.02) -> Any:
    values = np.random.default_rng(1).standard_normal((rows, columns)) * scale
    return values.astype(np.float32)


def relative_error(quantised: Quantised, weight: Any) -> float:
    return float(np.linalg.norm(quantised.dequantised() - weight) / np.linalg.norm(weight))


# -- bitsandbytes


@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize(("name", "group"), [("g32", 32), ("g64", 64), ("g128", 128)])
def test_nf4_is_that_of_bitsandbytes(
    bitsandbytes: dict[str, Any], name: str, group: int, double: bool
) -> None:
    expected = {
        key.removeprefix(f"{name}_"): array
        for key, array in bitsandbytes.items()
        if key.startswith(name)
    }
    kind = "double" if double else "plain"
    made = quantise(expected["weight"], Quantisation("nf4", 4, group, double), "float32")
    assert np.array_equal(made.arrays["weight"], expected["codes"])
    assert np.array_equal(made.arrays["absmax"], expected[f"{kind}_absmax"])
    if double:
        for key in ("absmax_scales", "absmax_mean"):
            np.testing.assert_allclose(made.arrays[key], expected[key], rtol=1e-6)
    largest = np.abs(expected["weight"]).max().astype(np.float32)
    np.testing.assert_allclose(
        np.array(made.dequantised())[:4] / largest,
        expected[f"{kind}_dequantised"] / largest,
        rtol=0,
        atol=1e-7 if double else 0,  # the mean of the absmax is summed in another order
    )


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_8_bit_blocks_are_those_of_bitsandbytes(bitsandbytes: dict[str, Any], signed: bool) -> None:
    kind = "signed" if signed else "unsigned"
    numbers = bitsandbytes["blocks_numbers"].astype(np.float32)
    blocks = quantise_blocks(mx.array(numbers if signed else np.abs(numbers)), signed=signed)
    assert np.array_equal(dynamic_map(signed), bitsandbytes[f"blocks_{kind}_map"])
    assert np.array_equal(blocks.codes, bitsandbytes[f"blocks_{kind}_codes"])
    assert np.array_equal(blocks.absmax, bitsandbytes[f"blocks_{kind}_absmax"])
    assert np.array_equal(
        dequantise_blocks(blocks, signed=signed), bitsandbytes[f"blocks_{kind}_dequantised"]
    )


def test_a_block_of_zeros_has_the_code_of_zero() -> None:
    for signed, code in ((True, 127), (False, 0)):
        blocks = quantise_blocks(mx.zeros((300,)), signed=signed)
        assert dynamic_map(signed)[code] == 0
        assert (np.array(blocks.codes) == code).all()
        assert not np.array(dequantise_blocks(blocks, signed=signed)).any()


@given(
    size=st.integers(1, 1100),
    exponent=st.integers(-30, 30),
    signed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_number_in_8_bits_is_the_nearest_of_the_map(
    size: int, exponent: int, signed: bool, seed: int
) -> None:
    numbers = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 2.0**exponent
    numbers = (numbers if signed else np.abs(numbers)).astype(np.float32)
    blocks = quantise_blocks(mx.array(numbers), signed=signed)
    given_back = np.array(dequantise_blocks(blocks, signed=signed))
    absmax = np.repeat(np.array(blocks.absmax), 256)[:size]
    values = np.array(dynamic_map(signed))
    nearest = np.abs(values[None] - (numbers / absmax)[:, None]).min(axis=1) * absmax
    np.testing.assert_allclose(np.abs(given_back - numbers), nearest, rtol=0, atol=1e-6 * absmax[0])
    assert np.array_equal(given_back[numbers == 0], numbers[numbers == 0])


def test_a_weight_halfway_between_two_codes_gets_the_lower_one() -> None:
    """As in bitsandbytes, whose random weights never show it (torch.bucketize of midpoints)."""
    halfway = np.ones((1, 64), dtype=np.float32)
    halfway[0, :15] = nf4.BOUNDS
    codes = np.array(quantise(halfway, FORMATS["nf4"], "float32").arrays["weight"])[0]
    assert [*codes >> 4][:8] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert [*codes & 15][:7] == [1, 3, 5, 7, 9, 11, 13]


# -- every format


def test_bits_per_weight() -> None:
    """Scales included; a large matrix, so that the numbers that a layer has once do not count."""
    weight = random_weight(512, 1024)
    bits = {name: quantise(weight, how, "float16").bits_per_weight for name, how in FORMATS.items()}
    assert bits == pytest.approx(
        {
            "affine": 4.5,
            "affine 32": 5.0,
            "affine 128": 4.25,
            "affine 8": 8.5,
            "mxfp4": 4.25,
            "nvfp4": 4.5,
            "nf4": 4.5,
            "nf4 double": 4.127,
            "nf4 double 32": 4.254,
            "nf4 double 128": 4.0635,
        },
        abs=5e-4,
    )


def test_nf4_takes_almost_three_quarters_less_than_float16() -> None:
    weight = random_weight(512, 1024)
    made = quantise(weight, FORMATS["nf4 double"], "float16")
    assert made.nbytes == sum(array.nbytes for array in made.arrays.values())
    assert 1 - made.nbytes / (2 * weight.size) > 0.74
    assert 1 - made.nbytes / (4 * weight.size) > 0.87


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_format
def test_matmul_multiplies_with_the_dequantised_weight(how: Quantisation, dtype: str) -> None:
    made = quantise(random_weight(), how, dtype)
    x = mx.random.normal((2, 3, 256), key=mx.random.key(0))
    dense = made.dequantised()
    assert dense.dtype == mx.float32
    assert dense.shape == made.shape
    np.testing.assert_allclose(made.matmul(x), x @ dense.T, atol=5e-6)
    gradient = mx.grad(lambda x: (made.matmul(x) ** 2).sum())(x)
    expected = mx.grad(lambda x: ((x @ dense.T) ** 2).sum())(x)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
@every_format
def test_matmul_keeps_16_bit_activations(how: Quantisation, kind: Any) -> None:
    made = quantise(random_weight(), how, str(kind).rsplit(".", 1)[-1])
    x = mx.random.normal((5, 256), key=mx.random.key(0)).astype(kind) * 100
    y, gradient = made.matmul(x), mx.grad(lambda x: made.matmul(x).sum())(x)
    expected = x.astype(mx.float32) @ made.dequantised().T
    assert y.dtype == gradient.dtype == kind
    # MLX's CPU kernels also sum in 16 bits
    allowed = float(mx.abs(expected).max()) * (2**-6 if kind == mx.float16 else 2**-4)
    np.testing.assert_allclose(y.astype(mx.float32), expected, rtol=0, atol=allowed)


@every_format
def test_saved_and_loaded_it_is_the_same(how: Quantisation, tmp_path: Path) -> None:
    made = quantise(random_weight(), how, "bfloat16")
    mx.save_safetensors(str(tmp_path / "layer.safetensors"), made.arrays)
    loaded = Quantised(how, made.shape, mx.load(str(tmp_path / "layer.safetensors")))
    assert np.array_equal(loaded.dequantised(), made.dequantised())
    assert (loaded.nbytes, loaded.bits_per_weight) == (made.nbytes, made.bits_per_weight)


@every_format
def test_a_weight_quantised_in_parts_is_the_same(
    how: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(50)
    whole = quantise(weight, how, "float32")
    monkeypatch.setattr(quantisation, "WEIGHTS_AT_ONCE", 7 * 256)
    parts = quantise(mx.array(weight), how, "float32")
    assert parts.arrays.keys() == whole.arrays.keys()
    assert all(np.array_equal(parts.arrays[name], whole.arrays[name]) for name in whole.arrays)


@every_format
def test_its_rows_a_few_at_a_time_are_the_same(
    how: Quantisation, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantise(random_weight(50), how, "bfloat16")
    monkeypatch.setattr(quantisation, "WEIGHTS_AT_ONCE", 7 * 256)
    parts = list(made.dequantised_rows())
    assert [rows.start for rows, _ in parts] == list(range(0, 50, 7))
    assert np.array_equal(mx.concatenate([part for _, part in parts]), made.dequantised())


def half_steps(weight: Any, how: Quantisation) -> Any:
    """How far each weight may move, by the definition of its format."""
    groups = weight.reshape(weight.shape[0], -1, how.group_size).astype(np.float64)
    absmax = np.abs(groups).max(axis=-1, keepdims=True)
    layer = absmax.max()
    if how.type == "affine":
        # MLX moves a group's range so that 0 is a code: up to a whole step; scales have 8 bits
        spread = groups.max(axis=-1, keepdims=True) - groups.min(axis=-1, keepdims=True)
        allowed = spread / (2**how.bits - 1) + 2.0**-8 * absmax
    elif how.type == "mxfp4":  # the largest may be clipped: scales are powers of two
        allowed = 0.3 * absmax
    elif how.type == "nvfp4":  # scales have four bits, and an end
        allowed = 0.19 * absmax + 1e-5 * layer
    else:  # half of the widest gap, -1 to -0.696
        allowed = 0.152 * absmax
        if how.double:
            allowed = allowed + 0.008 * np.abs(absmax - absmax.mean()).max() + 1e-6 * layer
    return np.broadcast_to(allowed, groups.shape).reshape(weight.shape) + 2.0**-119


@given(
    name=st.sampled_from(sorted(FORMATS)),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    exponent=st.integers(-100, 85),
    special=st.sampled_from(["none", "zeros", "constant", "outlier", "positive", "uneven rows"]),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    seed=st.integers(0, 99),
)
def test_no_weight_moves_further_than_its_format_says(
    name: str, rows: int, groups: int, exponent: int, special: str, dtype: str, seed: int
) -> None:
    how = FORMATS[name]
    columns = groups * max(how.group_size, 32)
    weight = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    if special == "zeros":
        weight[0] = 0
    elif special == "constant":
        weight[:] = 0.7
    elif special == "outlier":
        weight[0, 3] = 20
    elif special == "positive":
        weight = np.abs(weight) + 1
    elif special == "uneven rows":
        weight *= 10.0 ** -np.arange(rows)[:, None]
    weight = (weight * 2.0**exponent).astype(np.float32)
    made = quantise(weight, how, dtype)
    moved = np.abs(np.array(made.dequantised(), dtype=np.float64) - weight)
    assert (moved <= half_steps(weight, how)).all()


@every_format
@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-39], ids=["zero", "denormal", "negative"])
def test_groups_of_nothing_stay_nothing(how: Quantisation, value: float) -> None:
    weight = random_weight(4)
    weight[1:3] = value
    dense = np.array(quantise(weight, how, "float32").dequantised())
    absmax_error = 0.01 * np.abs(weight).max() if how.double else 1e-37
    assert np.abs(dense[1:3]).max() <= absmax_error
    if value == 0:
        assert not dense[1:3].any()


@every_format
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_are_not_finite_are_refused(how: Quantisation, value: float) -> None:
    weight = random_weight()
    weight[7, 9] = weight[8, 100] = value
    with pytest.raises(TrainingFailed) as caught:
        quantise(weight, how, "float32", "model.layers.0.mlp.up_proj")
    assert caught.value.message == "model.layers.0.mlp.up_proj cannot be quantised."
    assert caught.value.cause == "2 of its 12288 numbers are NaN, infinite or above 1e+27"
    assert caught.value.next_step


@pytest.mark.parametrize(("name", "width"), [("nf4", 96), ("nvfp4", 48), ("affine 128", 192)])
def test_a_width_that_the_format_cannot_take_is_refused(name: str, width: int) -> None:
    with pytest.raises(UnsupportedModel, match=r"^lm_head cannot be quantised") as caught:
        quantise(random_weight(4, width), FORMATS[name], "float32", "lm_head")
    assert f"its width {width} is no multiple of" in caught.value.cause


# -- what is particular to one


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 0.02, 1e5, 1e9])
def test_affine_scales_take_the_range_that_the_weights_need(scale: float) -> None:
    """float16 ends at 65,504 and has few digits below 6e-5."""
    weight = random_weight(scale=scale)
    made = quantise(weight, FORMATS["affine"], "float32")
    assert relative_error(made, weight) < 0.095
    fits = 1e-6 < scale < 1e5
    assert made.arrays["scales"].dtype == (mx.float16 if fits else mx.bfloat16)
    assert made.arrays["biases"].dtype == made.arrays["scales"].dtype


def test_affine_scales_of_a_bfloat16_base_are_bfloat16() -> None:
    made = quantise(random_weight(), FORMATS["affine"], "bfloat16")
    assert made.arrays["scales"].dtype == made.arrays["biases"].dtype == mx.bfloat16


@pytest.mark.parametrize("scale", [2e-4, 0.02, 5e4])
def test_nvfp4_has_a_scale_for_the_whole_layer(scale: float) -> None:
    """Alone, its E4M3 scales lie below their normal range for weights as small as a model's."""
    weight = random_weight(scale=scale)
    how = FORMATS["nvfp4"]
    made = quantise(weight, how, "float32")
    assert relative_error(made, weight) < 0.098
    power = float(np.log2(made.arrays["global_scale"].item()))
    assert power == int(power)
    packed, scales = mx.quantize(mx.array(weight), group_size=16, bits=4, mode="nvfp4")
    alone = Quantised(how, made.shape, {"weight": packed, "scales": scales})
    assert relative_error(alone, weight) > relative_error(made, weight)
    x = mx.ones((1, 256))
    np.testing.assert_allclose(alone.matmul(x), x @ alone.dequantised().T, rtol=1e-4, atol=1e-4)


def test_nvfp4_products_do_not_leave_float16() -> None:
    made = quantise(random_weight(scale=1e-4), FORMATS["nvfp4"], "float16")
    x = mx.full((1, 256), 100.0, dtype=mx.float16)
    y = np.array(made.matmul(x))
    assert np.isfinite(y).all()
    expected = np.array(x.astype(mx.float32) @ made.dequantised().T)
    np.testing.assert_allclose(y, expected, atol=2e-4)


def peak_of_a_stack(layers: list[Quantised]) -> int:
    """Bytes that a forward and backward pass through all layers take above what is there."""
    x = mx.random.normal((4, layers[0].shape[1]), key=mx.random.key(0))
    mx.eval(x)

    def loss(x: Any) -> Any:
        for layer in layers:
            x = mx.tanh(layer.matmul(x))
        return x.sum()

    before = mx.get_active_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(x))
    return int(mx.get_peak_memory() - before)


def test_nf4_layers_are_never_all_in_memory_as_floats() -> None:
    """The backward pass dequantises again; what a pass holds does not grow with the layers."""
    width, count = 512, 32
    weight = random_weight(width, width)
    layers = [quantise(weight, FORMATS["nf4 double"], "float32") for _ in range(count)]
    one_float = 4 * width * width
    few, many = peak_of_a_stack(layers[: count // 2]), peak_of_a_stack(layers)
    assert many < 0.35 * count * one_float
    assert many - few < 1.5 * one_float


def test_quantising_holds_few_rows_as_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight(1024, 1024)
    monkeypatch.setattr(quantisation, "WEIGHTS_AT_ONCE", 2**13)
    for how in FORMATS.values():
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        made = quantise(weight, how, "float32")
        assert mx.get_peak_memory() - before < 0.35 * weight.nbytes + 2 * made.nbytes
