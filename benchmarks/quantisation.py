"""What each 4-bit format costs and loses, and how much of the loss QPiSSA takes back.

    python benchmarks/quantisation.py [--quick] [--only formats|qpissa|optimiser]

formats    Bits a weight, size against float16, relative error (Frobenius) of the weights of
           forge-nano and of one synthetic matrix; seconds to quantise a million weights; time of a
           product (256 rows of float32) against one with the float weight, best of seven.
qpissa     The paper's measure (arXiv 2404.02948v4, section 4): nuclear norm of W - (Q(W_res) + sBA)
           against QLoRA's W - Q(W), as a reduction in %, at ranks 8, 32 and 64, with one iteration
           and with five. forge-nano: norms summed over every linear layer of its decoder. Rank 64
           is a quarter of its width: do not extrapolate from it; the synthetic matrix is wider.
optimiser  Bytes of the state and milliseconds of a step of AdamW and of the 8-bit one, for a
           million numbers.

The synthetic matrix is 2,048 x 2,048: Gaussian noise of 0.02, and on top of it singular values of
noise's largest times 4 i^-0.7, in random directions. So it has a bulk and a slowly falling head, as
the layers of trained models do; it is no such layer. --quick: 512 wide, and the first and last
block of forge-nano. The exit status is 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forge_mcp import machine
from forge_mcp.training.quantisation import Quantisation, quantise

Matrix = NDArray[np.float32]

FORMATS = {
    "nf4, double": Quantisation("nf4", 4, 64, double=True),
    "nf4": Quantisation("nf4", 4, 64),
    "affine 64": Quantisation("affine", 4, 64),
    "affine 32": Quantisation("affine", 4, 32),
    "mxfp4": Quantisation("mxfp4", 4, 32),
    "nvfp4": Quantisation("nvfp4", 4, 16),
    "affine 64, 8 bits": Quantisation("affine", 8, 64),
}
SPLIT = ("nf4, double", "affine 64", "mxfp4", "nvfp4", "affine 64, 8 bits")
RANKS = (8, 32, 64)
ITERATIONS = (1, 5)
ROUNDS = 7
PRODUCT_ROWS = 256


def nano_weights(quick: bool) -> list[Any]:
    """The linear layers of forge-nano's decoder."""
    mx = machine.mlx()
    path = files("forge_mcp") / "assets" / "forge-nano" / "model.safetensors"
    tensors = mx.load(str(path))
    names = [name for name in tensors if "_proj" in name]
    if quick:
        names = [name for name in names if ".layers.0." in name or ".layers.5." in name]
    return [np.asarray(tensors[name].astype(mx.float32)) for name in names]


def synthetic_weight(width: int) -> Matrix:
    """See the module's docstring."""
    draw = np.random.default_rng(7)
    noise = 0.02 * draw.standard_normal((width, width), np.float32)
    rank = width // 4
    left, right = (np.linalg.qr(draw.standard_normal((width, rank), np.float32))[0] for _ in "12")
    largest_of_noise = 2 * 0.02 * width**0.5
    head = 4 * largest_of_noise * np.arange(1, rank + 1, dtype=np.float32) ** -0.7
    weight: Matrix = (noise + (left * head) @ right.T).astype(np.float32)
    return weight


def nuclear_norm(matrix: Matrix) -> float:
    """The sum of the singular values: the roots of the eigenvalues of the smaller Gram matrix."""
    wide = matrix.astype(np.float64)
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0)).sum())


def best_seconds(run: Callable[[], Any]) -> float:
    """Of one call, after one to warm up: the rest is what else the machine does."""
    mx = machine.mlx()
    mx.eval(run())
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        mx.eval(run())
        times.append(time.perf_counter() - started)
    return min(times)


def relative_error(weights: list[Matrix], how: Quantisation) -> tuple[float, float]:
    """(error, bits a weight) over all of them together."""
    lost = whole = bits = 0.0
    for weight in weights:
        made = quantise(weight, how, "float16")
        lost += float(np.square(np.asarray(made.dequantised()) - weight).sum())
        whole += float(np.square(weight).sum())
        bits += 8 * made.nbytes
    return (lost / whole) ** 0.5, bits / sum(weight.size for weight in weights)


def measure_formats(nano: list[Matrix], wide: Matrix) -> None:
    """Size, error and speed of each."""
    mx = machine.mlx()
    x = mx.random.normal((PRODUCT_ROWS, wide.shape[1]), key=mx.random.key(0))
    dense = mx.array(wide)
    plain = best_seconds(lambda: x @ dense.T)
    print(f"\nFormats (device: {mx.default_device()})")
    print(
        "| format | bits a weight | less than float16 | error, nano | error, synthetic "
        "| quantise, s per M | product against float |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, how in FORMATS.items():
        error, _ = relative_error(nano, how)
        wide_error, bits = relative_error([wide], how)
        started = time.perf_counter()
        made = quantise(wide, how, "float16")
        seconds = (time.perf_counter() - started) / wide.size * 1e6
        product = best_seconds(lambda made=made: made.matmul(x))  # type: ignore[misc]
        print(
            f"| {name} | {bits:.3f} | {1 - bits / 16:.1%} | {error:.2%} | {wide_error:.2%} "
            f"| {seconds:.3f} | {product / plain:.1f}x |",
            flush=True,
        )


def lost_norms(weights: list[Matrix], how: Quantisation) -> Iterator[tuple[int, int, float]]:
    """(rank, iterations, summed nuclear norm of what is lost); rank 0 is QLoRA."""
    from forge_mcp.training.pissa import compute_qpissa_init, power_iterations

    yield (
        0,
        0,
        sum(
            nuclear_norm(weight - np.asarray(quantise(weight, how, "float16").dequantised()))
            for weight in weights
        ),
    )
    for rank in RANKS:
        for iterations in ITERATIONS:
            total = 0.0
            for weight in weights:
                niter = power_iterations((weight.shape[0], weight.shape[1]), rank)
                made = compute_qpissa_init(
                    weight.copy(), rank, 1.0, how, "float16", iterations, niter
                )
                kept = np.asarray(made.frozen.dequantised()) + made.b @ made.a
                total += nuclear_norm(weight - kept)
            yield rank, iterations, total


def measure_qpissa(name: str, weights: list[Matrix]) -> None:
    """The reduction at each rank and number of iterations."""
    cases = [(rank, iterations) for rank in RANKS for iterations in ITERATIONS]
    print(f"\nQPiSSA against QLoRA, less of the nuclear norm of what is lost: {name}")
    print("| format | " + " | ".join(f"r{rank}, T={count}" for rank, count in cases) + " |")
    print("|---" * (len(cases) + 1) + "|")
    for label in SPLIT:
        how = FORMATS[label]
        norms = {(rank, count): norm for rank, count, norm in lost_norms(weights, how)}
        cells = (f"{1 - norms[case] / norms[0, 0]:.1%}" for case in cases)
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)


def measure_optimisers() -> None:
    """AdamW's state in float32 and in 8 bits."""
    mx = machine.mlx()
    import mlx.optimizers as optim
    from mlx.utils import tree_flatten

    from forge_mcp.training.optimisers import AdamW8bit

    parameters = {"a": mx.random.normal((1024, 1024), key=mx.random.key(0))}
    gradient = {"a": mx.random.normal((1024, 1024), key=mx.random.key(1))}
    print("\n| optimiser | state, bytes a number | ms a step, 1M numbers |")
    print("|---|---|---|")
    for name, optimiser in (
        ("AdamW", optim.AdamW(1e-4, bias_correction=True)),
        ("AdamW, 8 bits", AdamW8bit(1e-4, 0.0)),
    ):
        optimiser.init(parameters)
        state = sum(array.nbytes for _, array in tree_flatten(optimiser.state))

        def step(optimiser: Any = optimiser) -> Any:
            return [optimiser.apply_gradients(gradient, parameters), optimiser.state]

        seconds = best_seconds(step)
        print(f"| {name} | {state / 2**20:.2f} | {1000 * seconds:.1f} |", flush=True)


def main() -> None:
    """Everything, or the part asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["formats", "qpissa", "optimiser"])
    options = parser.parse_args()
    print(", ".join(f"{name}: {value}" for name, value in machine.describe().items()))
    nano = nano_weights(options.quick)
    wide = synthetic_weight(512 if options.quick else 2048)
    if options.only in (None, "formats"):
        measure_formats(nano, wide)
    if options.only in (None, "qpissa"):
        measure_qpissa("forge-nano", nano)
        measure_qpissa(f"synthetic, {wide.shape[0]} x {wide.shape[1]}", [wide])
    if options.only in (None, "optimiser"):
        measure_optimisers()


if __name__ == "__main__":
    main()
