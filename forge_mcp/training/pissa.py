"""PiSSA: adapters that start as the principal part of the weights (arXiv 2404.02948v4, section 3).

A weight W (out, in) is split by its singular value decomposition, W = U S Vt, into

    W = W_res + s * B @ A,    A = sqrt(S_r / s) Vt_r,    B = U_r sqrt(S_r / s),

where r is the rank and s = alpha / r the adapter's scaling, so the model's output is unchanged at
step 0 for any alpha. W_res is frozen and (QPiSSA) quantised: without its largest singular values it
spans a smaller range, so its quantisation error is smaller than that of W. A and B train in float.
Compare LoRA (arXiv 2106.09685), which starts with B = 0 and leaves W as it is.

Pure NumPy: LAPACK's SVD, no device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

# The exact SVD of a large model takes minutes to hours; the randomised one, with this many power
# iterations, leaves a residual within 0.2% of the optimum in a fraction of it. It saves nothing
# where the rank is a large part of the matrix.
POWER_ITERATIONS = 4
EXACT_SHARE = 4
OVERSAMPLING = 16


class PissaInit(NamedTuple):
    """a (rank, in), b (out, rank), residual (out, in): weight = residual + scale * b @ a."""

    a: Matrix
    b: Matrix
    residual: Matrix


def compute_pissa_init(
    weight: Matrix, rank: int, alpha: float, niter: int | None = None, seed: int = 0
) -> PissaInit:
    """Split a weight into its principal low-rank part and the residual.

    Args:
        weight: (out, in), any float type.
        rank: of the adapter; capped at min(out, in). The scaling stays alpha / rank as asked for.
        alpha: the adapter's output is scaled by alpha / rank.
        niter: None for the exact decomposition, else the power iterations of the randomised one.
        seed: of the randomised decomposition.
    """
    weight = np.asarray(weight, dtype=np.float32)
    kept = min(rank, *weight.shape)
    scale = alpha / rank
    if niter is None:
        u, s, vt = np.linalg.svd(weight, full_matrices=False)
        u, s, vt = u[:, :kept], s[:kept], vt[:kept]
    else:
        u, s, vt = randomised_svd(weight, kept, niter, seed)
    root = np.sqrt(s / scale)
    a = np.ascontiguousarray(root[:, None] * vt, dtype=np.float32)
    b = np.ascontiguousarray(u * root, dtype=np.float32)
    return PissaInit(a, b, (weight - scale * (b @ a)).astype(np.float32))


def compute_lora_init(shape: tuple[int, int], rank: int, seed: int) -> tuple[Matrix, Matrix]:
    """LoRA's start: a (rank, in) uniform in ±1/sqrt(in), b (out, rank) zero."""
    out_features, in_features = shape
    bound = in_features**-0.5
    a = np.random.default_rng(seed).uniform(-bound, bound, (min(rank, *shape), in_features))
    return a.astype(np.float32), np.zeros((out_features, min(rank, *shape)), dtype=np.float32)


def randomised_svd(
    weight: Matrix, rank: int, niter: int, seed: int
) -> tuple[Matrix, Matrix, Matrix]:
    """Truncated SVD by random projection (Halko, Martinsson, Tropp, arXiv 0909.4061, alg. 4.4).

    Returns:
        u (out, rank), s (rank,), vt (rank, in); singular values in falling order.
    """
    width = min(rank + OVERSAMPLING, *weight.shape)
    noise = np.random.default_rng(seed).standard_normal((weight.shape[1], width))
    basis, _ = np.linalg.qr(weight @ noise.astype(np.float32))
    for _ in range(niter):
        basis, _ = np.linalg.qr(weight.T @ basis)
        basis, _ = np.linalg.qr(weight @ basis)
    u, s, vt = np.linalg.svd(basis.T @ weight, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vt[:rank]


def power_iterations(shape: tuple[int, int], rank: int) -> int | None:
    """How to decompose a weight: None for exactly, else the randomised SVD's power iterations."""
    small = min(shape) <= EXACT_SHARE * (rank + OVERSAMPLING)
    return None if small else POWER_ITERATIONS
