"""Attention within segments against mlx's own with a mask that is written out."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import KINDS, close, make_example, make_model

from forge_mcp import machine
from forge_mcp.training import attention
from forge_mcp.training.architectures import decoder, hidden_states, positions_are_relative
from forge_mcp.training.attention import (
    SegmentCache,
    Segments,
    block_mask,
    install,
    segment_attention,
)

mx = machine.mlx()


def written_out(segments: Segments) -> Any:
    """Who sees whom, one pair after the other."""
    size = sum(segments.lengths)
    mask = np.zeros((size, size), dtype=bool)
    begin = 0
    for length in segments.lengths:
        for query in range(begin, begin + length):
            for key in range(begin, query + 1):
                mask[query, key] = segments.window is None or query - key < segments.window
        begin += length
    return mx.array(mask)


shapes = st.builds(
    Segments,
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple),
    window=st.none() | st.integers(1, 25),
)


@given(segments=shapes, heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]), cpu=st.booleans())
@settings(max_examples=60)
def test_it_equals_masked_attention(segments: Segments, heads: tuple[int, int], cpu: bool) -> None:
    size = sum(segments.lengths)
    mx.random.seed(size)
    queries = mx.random.normal((1, heads[0], size, 8))
    keys, values = (mx.random.normal((1, heads[1], size, 8)) for _ in range(2))
    factor = mx.random.normal(queries.shape)

    def ours(arrays: Any) -> Any:
        queries, keys, values = arrays
        return (segment_attention(queries, keys, values, 0.4, segments) * factor).sum()

    def masked(arrays: Any) -> Any:
        mask = written_out(segments)
        out = mx.fast.scaled_dot_product_attention(*arrays, scale=0.4, mask=mask)
        return (out * factor).sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "on_cpu", lambda: cpu)
        patch.setattr(attention, "QUERY_BLOCK", 5)
        value, gradient = mx.value_and_grad(ours)([queries, keys, values])
    expected, expected_gradient = mx.value_and_grad(masked)([queries, keys, values])
    assert value.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    assert close(gradient, expected_gradient, 1e-5)


@given(segments=shapes)
def test_the_block_mask_is_the_written_out_one(segments: Segments) -> None:
    assert mx.array_equal(block_mask(segments), written_out(segments))


def test_half_precision_is_summed_in_float32() -> None:
    mx.random.seed(1)
    q, k, v = (mx.random.normal((1, 2, 40, 8)).astype(mx.bfloat16) for _ in range(3))
    found = segment_attention(q, k, v, 0.4, Segments((40,)))
    q, k, v = (array.astype(mx.float32) for array in (q, k, v))
    exact = segment_attention(q, k, v, 0.4, Segments((40,)))
    assert found.dtype == mx.bfloat16
    assert mx.abs(found.astype(mx.float32) - exact).max().item() < 0.03


LENGTHS = (30, 1, 61)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_equals_its_examples_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, grouped heads, caps and every kind of rotary scaling; and where positions are not
    only relative the check is real: there the states differ."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    model = make_model(kind)
    tokens = [make_example(length, 0).tokens for length in LENGTHS]
    alone = mx.concatenate([hidden_states(model, mx.array(one)[None]) for one in tokens], axis=1)
    install(model)
    row = mx.array([token for one in tokens for token in one])[None]
    packed = hidden_states(model, row, SegmentCache(LENGTHS))
    assert close([packed], [alone], 1e-5) == positions_are_relative(model)
    assert positions_are_relative(model) == (kind not in ("dynamic", "ministral3"))
    first = hidden_states(model, mx.array(tokens[0])[None], SegmentCache(LENGTHS[:1]))
    assert close([first], [alone[:, : LENGTHS[0]]], 1e-5)


def test_ministral_without_its_scale_can_be_packed() -> None:
    parameters = {
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.0,
    }
    assert positions_are_relative(make_model("ministral3", rope_parameters=parameters))


def test_install_changes_nothing_else_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import base
    from mlx_lm.models.cache import make_prompt_cache

    model = make_model("qwen3")
    module: Any = sys.modules[type(decoder(model)).__module__]
    monkeypatch.setattr(module, attention.ATTENTION, base.scaled_dot_product_attention)
    tokens = mx.array(make_example(20, 0).tokens)[None]

    def outputs() -> list[Any]:
        cache = make_prompt_cache(model)
        first = model(tokens[:, :15], cache)
        return [model(tokens), first, model(tokens[:, 15:], cache)]

    before = outputs()
    assert install(model)
    installed = module.scaled_dot_product_attention
    assert installed is not base.scaled_dot_product_attention
    assert install(model)
    assert module.scaled_dot_product_attention is installed
    assert all(mx.array_equal(*pair) for pair in zip(before, outputs(), strict=True))


def test_a_module_with_attention_of_its_own_is_left_alone() -> None:
    assert not install(make_model("gemma2"))
