"""PiSSA: adapters that start as the principal part of the weights (arXiv 2404.02948v4, section 3).

A weight W (out, in) is split by its singular value decomposition, W = U S Vt, into

    W = W_res + s * B @ A,    A = sqrt(S_r / s) Vt_r,    B = U_r sqrt(S_r / s),

where r is the rank and s = alpha / r the adapter's scaling, so the model's output is unchanged at
step 0 for any alpha. W_res is frozen and (QPiSSA) quantised: without its largest singular values it
spans a smaller range, so its quantisation error is smaller than that of W. A and B train in float.
Compare LoRA (arXiv 2106.09685), which starts with B = 0 and leaves W as it is.

QPiSSA can go on: A and B from the decomposition of W - Q(W_res), which also holds what quantising
has lost, then a new residual, T times in all. One weight is worked on in one buffer, a block at a
time, so that but for the exact SVD no second float copy of it exists.

NumPy and LAPACK, but for the quantisation itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forge_mcp.training.quantisation import Quantisation, Quantised, quantise

Matrix = NDArray[np.float32]

# The exact SVD of a large model takes minutes to hours; the randomised one, with this many power
# iterations, leaves a residual within 0.2% of the optimum in a fraction of it. It saves nothing
# where the rank is a large part of the matrix.
POWER_ITERATIONS = 4
EXACT_SHARE = 4
OVERSAMPLING = 16
BLOCK_ELEMENTS = 2**20  # of a matrix that are computed with at a time where it is changed in place


class PissaInit(NamedTuple):
    """a (rank, in), b (out, rank), residual (out, in): weight = residual + scale * b @ a."""

    a: Matrix
    b: Matrix
    residual: Matrix


class QpissaInit(NamedTuple):
    """a (rank, in), b (out, rank), frozen (out, in): weight ~ frozen + scale * b @ a.

    error: Frobenius norm of what quantising has lost, weight - frozen - scale * b @ a.
    """

    a: Matrix
    b: Matrix
    frozen: Quantised
    error: float


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
    residual = np.array(weight, dtype=np.float32, order="C")
    scale = alpha / rank
    a, b = principal_factors(residual, rank, scale, niter, seed)
    add_product(residual, b, a, -scale)
    return PissaInit(a, b, residual)


def compute_qpissa_init(
    weight: Matrix,
    rank: int,
    scaling: float,
    how: Quantisation,
    dtype: str,
    iterations: int = 1,
    niter: int | None = None,
    seed: int = 0,
) -> QpissaInit:
    """Split a weight so that its residual is quantised (arXiv 2404.02948v4, section 4).

    Args:
        weight: (out, in), contiguous; overwritten.
        rank: of the adapter; capped at min(out, in).
        scaling: what the adapter's output is multiplied by.
        how, dtype: as `quantise` takes them.
        iterations: the paper's T, at least 1. With 1 the factors are those of PiSSA.
        niter, seed: as in `compute_pissa_init`.
    """
    rest = weight  # all in one buffer: W, then W - sBA, then what quantising that has lost
    a, b = principal_factors(rest, rank, scaling, niter, seed)
    for iteration in range(1, iterations + 1):
        add_product(rest, b, a, -scaling)
        frozen = quantise(rest, how, dtype)
        subtract(rest, frozen)
        if iteration < iterations:
            add_product(rest, b, a, scaling)  # W - Q
            a, b = principal_factors(rest, rank, scaling, niter, seed)
            subtract(rest, frozen, times=-1)
    return QpissaInit(a, b, frozen, float(np.linalg.norm(rest)))


def compute_lora_init(shape: tuple[int, int], rank: int, seed: int) -> tuple[Matrix, Matrix]:
    """LoRA's start: a (rank, in) uniform in ±1/sqrt(in), b (out, rank) zero."""
    out_features, in_features = shape
    bound = in_features**-0.5
    a = np.random.default_rng(seed).uniform(-bound, bound, (min(rank, *shape), in_features))
    return a.astype(np.float32), np.zeros((out_features, min(rank, *shape)), dtype=np.float32)


def principal_factors(
    matrix: Matrix, rank: int, scale: float, niter: int | None, seed: int
) -> tuple[Matrix, Matrix]:
    """a (rank, in) and b (out, rank), so that scale * b @ a is the best approximation of its rank.

    Args:
        matrix: (out, in).
        rank: capped at min(out, in).
        niter: None for the exact decomposition, else the power iterations of the randomised one.
    """
    kept = min(rank, *matrix.shape)
    if niter is None:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        u, s, vt = u[:, :kept], s[:kept], vt[:kept]
    else:
        u, s, vt = randomised_svd(matrix, kept, niter, seed)
    root = np.sqrt(s / scale)
    a = np.ascontiguousarray(root[:, None] * vt, dtype=np.float32)
    b = np.ascontiguousarray(u * root, dtype=np.float32)
    return a, b


def randomised_svd(
    weight: Matrix, rank: int, niter: int, seed: int
) -> tuple[Matrix, Matrix, Matrix]:
    """Truncated SVD by random projection (Halko, Martinsson, Tropp, arXiv 0909.4061, alg. 4.4).

    Returns:
        u (out, rank), s (rank,), vt (rank, in); singular values in falling order.
    """
    width = min(rank + OVERSAMPLING, *weight.shape)
    noise = np.random.default_rng(seed).standard_normal((weight.shape[1], width), np.float32)
    basis, _ = np.linalg.qr(weight @ noise)
    for _ in range(niter):
        basis, _ = np.linalg.qr(weight.T @ basis)
        basis, _ = np.linalg.qr(weight @ basis)
    u, s, vt = np.linalg.svd(basis.T @ weight, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vt[:rank]


def power_iterations(shape: tuple[int, int], rank: int) -> int | None:
    """How to decompose a weight: None for exactly, else the randomised SVD's power iterations."""
    small = min(shape) <= EXACT_SHARE * (rank + OVERSAMPLING)
    return None if small else POWER_ITERATIONS


def add_product(matrix: Matrix, b: Matrix, a: Matrix, scale: float) -> None:
    """matrix (out, in) += scale * b (out, rank) @ a (rank, in), in place, a block at a time."""
    rows = max(1, BLOCK_ELEMENTS // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        matrix[start : start + rows] += (np.float32(scale) * b[start : start + rows]) @ a


def subtract(matrix: Matrix, frozen: Quantised, times: int = 1) -> None:
    """matrix (out, in) -= times * the dequantised weight, in place, a block at a time."""
    for rows, block in frozen.dequantised_rows():
        matrix[rows] -= times * np.asarray(block)
