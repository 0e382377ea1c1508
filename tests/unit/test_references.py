"""Ours = the reference implementations' on the same input.

The outputs in fixtures/references were written by PEFT and transformers (`make references`);
versions.json says by which versions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forge_mcp import machine
from forge_mcp.judging.perplexity import compute_perplexity
from forge_mcp.training.batching import Example, Row
from forge_mcp.training.loss import row_loss
from forge_mcp.training.pissa import compute_pissa_init

REFERENCES = Path(__file__).parents[1] / "fixtures" / "references"


def test_pissa_factors_and_residual_are_pefts_up_to_sign() -> None:
    with np.load(REFERENCES / "pissa.npz") as peft:
        ours = compute_pissa_init(peft["weight"], rank=8, alpha=16.0)
        # A singular vector's sign is free: it flips a row of A and the same column of B.
        signs = np.sign(np.sum(ours.a * peft["a"], axis=1))
        np.testing.assert_allclose(ours.a * signs[:, None], peft["a"], atol=2e-5)
        np.testing.assert_allclose(ours.b * signs, peft["b"], atol=2e-5)
        np.testing.assert_allclose(ours.residual, peft["residual"], atol=2e-5)


@pytest.fixture(scope="module")
def llama() -> Any:
    """The reference model, loaded as every base is loaded."""
    machine.mlx()
    from mlx_lm.utils import load_model

    model, _ = load_model(REFERENCES / "llama")
    return model


def test_logits_are_those_of_transformers(llama: Any) -> None:
    mx = machine.mlx()
    with np.load(REFERENCES / "llama" / "reference.npz") as reference:
        ours = np.array(llama(mx.array(reference["ids"])[None])[0].astype(mx.float32))
        np.testing.assert_allclose(ours, reference["logits"], rtol=1e-4, atol=1e-4)
        assert (ours.argmax(-1) == reference["logits"].argmax(-1)).all()


def test_loss_and_perplexity_are_those_of_transformers(llama: Any) -> None:
    with np.load(REFERENCES / "llama" / "reference.npz") as reference:
        start = int((reference["labels"] == -100).sum())
        example = Example([int(token) for token in reference["ids"]], start)
        loss = float(reference["loss"])
    assert row_loss(llama, Row((example,))).item() / example.answer_tokens == pytest.approx(
        loss, rel=1e-5
    )
    perplexity = compute_perplexity(llama, [example], [100], window=128)
    assert perplexity.value == pytest.approx(math.exp(loss), rel=1e-4)
