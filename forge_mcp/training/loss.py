"""The loss on answers: cross-entropy at their tokens alone, never with a whole row of logits.

The prompt is only read, so no logits are computed for it. For the answers' positions logits are
made in chunks, and each chunk is turned into its loss and its gradient with respect to the hidden
states at once, in the forward pass: no logits wait for the backward pass.

On the CPU MLX computes everything but matrix products on one core. There the examples of a row are
shared out among the cores, each share on a stream and in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, NamedTuple, TypeVar

from forge_mcp import machine
from forge_mcp.training.architectures import (
    head_parameters,
    hidden_states,
    logits_of,
    positions_are_relative,
    text_model,
)
from forge_mcp.training.attention import SegmentCache, install
from forge_mcp.training.batching import Row

mx = machine.mlx()
import mlx.nn as nn  # noqa: E402
from mlx.utils import tree_flatten, tree_map, tree_unflatten  # noqa: E402

# Logits that are made at a time. On the CPU any size is as fast (measured, 32 to 512 positions); a
# GPU reads the whole head for each chunk, so it gets larger ones: 128 MiB in float32.
CHUNK_LOGITS = 1 << 22
CHUNK_LOGITS_GPU = 1 << 25
MIN_CHUNK, MAX_CHUNK = 16, 512  # positions
# Each share has one core for all it does. With fewer shares than a quarter of the cores BLAS alone
# makes better use of them (estimated from the part that matrix products have on one core, a half).
SHARED = 4
Work = TypeVar("Work")


def row_loss(model: Any, row: Row) -> Any:
    """Weighted sum (scalar, float32) of the cross-entropy in nats over the row's answer tokens.

    To be differentiated with `nn.value_and_grad`, or by `loss_and_gradient`, which is faster on
    the CPU. A row of several examples gives what its examples give by themselves, up to rounding.
    """
    return sum(_summed_loss(model, part) for part in _sequences(model, row))


def loss_and_gradient(model: Any, row: Row) -> tuple[float, Any]:
    """`row_loss` and its gradient by the model's trainable parameters, both computed."""
    parts = _together(model, row, lambda part: nn.value_and_grad(model, row_loss)(model, part))
    loss, gradient = parts[0]
    for more, another in parts[1:]:
        loss, gradient = loss + more, tree_map(mx.add, gradient, another)
    mx.eval(loss, gradient)
    return loss.item(), gradient


class Evaluation(NamedTuple):
    """Over all answer tokens: mean loss in nats, share predicted rightly, number of tokens.

    Every token counts 1 here, whatever its weight in training: losses of runs with other weights
    can be compared.
    """

    loss: float
    accuracy: float
    tokens: int


def evaluate(model: Any, rows: Sequence[Row]) -> Evaluation:
    """Loss and accuracy on rows of examples, by tokens."""
    loss, right, tokens = 0.0, 0, 0
    for row in rows:
        for summed, hits in _together(model, row, lambda part: _measured(model, part)):
            loss += summed.item()
            right += hits.item()
        tokens += sum(example.answer_tokens for example in row.examples)
    return Evaluation(loss / max(tokens, 1), right / max(tokens, 1), tokens)


def cross_entropy(logits: Any, targets: Any, weights: Any = None) -> Any:
    """Weighted sum (scalar, float32) of the cross-entropy in nats.

    One softmax serves both the loss and its gradient p - onehot(target): where exponentials are
    slow, that halves the work. log sum exp x is read off the largest probability, max x - log max
    p, which cannot underflow: it is at least 1 / vocabulary.

    Args:
        logits: (positions, vocabulary). targets: (positions,) ids. weights: (positions,) or None.
    """
    stream = mx.default_stream(mx.default_device())

    @mx.custom_function  # type: ignore[untyped-decorator]
    def summed(logits: Any) -> Any:
        logits = logits.astype(mx.float32)
        p = mx.softmax(logits, axis=-1)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        losses = logits.max(axis=-1) - mx.log(p.max(axis=-1)) - picked
        return (losses if weights is None else losses * weights).sum(), p

    @summed.vjp  # type: ignore[untyped-decorator]
    def gradient(logits: Any, cotangents: Any, results: Any) -> Any:
        with mx.stream(stream):
            at, p = targets[:, None], results[1]
            p = mx.put_along_axis(p, at, mx.take_along_axis(p, at, axis=-1) - 1, axis=-1)
            factor = cotangents[0] if weights is None else cotangents[0] * weights[:, None]
            return (p * factor).astype(logits.dtype)

    return summed(logits)[0]


class _Answers(NamedTuple):
    """Hidden states (positions, width) that predict answer tokens, those, and their weights."""

    hidden: Any
    targets: Any
    weights: Any


def _answers(model: Any, row: Row) -> _Answers:
    """The row computed as one sequence, and the positions before each answer token."""
    tokens: list[int] = []
    borders: list[int] = []
    for example in row.examples:
        borders += [len(tokens) + example.start - 1, len(tokens) + len(example.tokens) - 1]
        tokens += example.tokens[:-1]
    cache = SegmentCache([len(example.tokens) - 1 for example in row.examples])
    hidden = hidden_states(model, mx.array(tokens)[None], cache)[0]
    # Cutting at once and joining: the gradient of many slices would be as many padded arrays.
    parts = mx.split(hidden, borders[:-1], axis=0)[1::2]
    weights = None
    if any(example.weights is not None for example in row.examples):
        weights = mx.array(
            [
                weight
                for example in row.examples
                for weight in example.weights or [1.0] * example.answer_tokens
            ]
        )
    targets = mx.array([t for example in row.examples for t in example.tokens[example.start :]])
    return _Answers(mx.concatenate(parts, axis=0), targets, weights)


def _summed_loss(model: Any, row: Row) -> Any:
    """`row_loss` of a row that is one sequence."""
    answers = _answers(model, row)
    text, stream = text_model(model), mx.default_stream(mx.default_device())
    head = tree_flatten(head_parameters(model))  # mostly none: heads are rarely trained
    names, values = [name for name, _ in head], [value for _, value in head]

    @mx.custom_function  # type: ignore[untyped-decorator]
    def summed(hidden: Any, *parameters: Any) -> Any:
        total, by_head = mx.array(0.0), [mx.zeros_like(one) for one in parameters]
        by_hidden: list[Any] = []
        for part in chunks(model, hidden.shape[0]):
            targets, weights = _of(answers, part)

            def loss(inputs: Any, to: Any = targets, by: Any = weights) -> Any:
                states, *values = inputs
                text.update(tree_unflatten(list(zip(names, values, strict=True))))
                return cross_entropy(logits_of(model, states), to, by)

            # Only when the chunk before is done, or the logits of several stand in memory.
            states = mx.depends(hidden[part], [total, *by_hidden[-1:], *by_head])
            one, (gradient, *more) = mx.value_and_grad(loss)([states, *parameters])
            total = total + one
            by_hidden.append(gradient)
            by_head = [before + new for before, new in zip(by_head, more, strict=True)]
        return total, mx.concatenate(by_hidden, axis=0), *by_head

    @summed.vjp  # type: ignore[untyped-decorator]
    def gradients(primals: Any, cotangents: Any, results: Any) -> Any:
        with mx.stream(stream):
            return tuple((cotangents[0] * one).astype(one.dtype) for one in results[1:])

    total = summed(answers.hidden, *values)[0]
    text.update(tree_unflatten(head))
    return total


def _measured(model: Any, row: Row) -> tuple[Any, Any]:
    """(sum of losses, tokens predicted rightly) of a row, in chunks, without gradients."""
    summed, hits = mx.array(0.0), mx.array(0)
    for one in _sequences(model, row):
        answers = _answers(model, one)
        for part in chunks(model, answers.hidden.shape[0]):
            states, targets = answers.hidden[part], answers.targets[part]
            states = mx.depends(states, [summed, hits])
            logits = logits_of(model, states).astype(mx.float32)
            picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            summed = summed + (mx.logsumexp(logits, axis=-1) - picked).sum()
            hits = hits + (logits.argmax(axis=-1) == targets).sum()
    return summed, hits


def _of(answers: _Answers, part: slice) -> tuple[Any, Any]:
    return answers.targets[part], None if answers.weights is None else answers.weights[part]


def chunks(model: Any, positions: int) -> list[slice]:
    """Stretches of positions whose logits are made together."""
    logits = CHUNK_LOGITS if machine.on_cpu() else CHUNK_LOGITS_GPU
    size = min(max(logits // _vocabulary(model), MIN_CHUNK), MAX_CHUNK)
    return [slice(at, min(at + size, positions)) for at in range(0, positions, size)]


def _vocabulary(model: Any) -> int:
    size: int = text_model(model).args.vocab_size
    return size


def _sequences(model: Any, row: Row) -> list[Row]:
    """The row itself; or rows of one example, where several in a sequence would not give the same
    or would cost more than they save (attention that cannot leave out what lies between them)."""
    if install(model) and positions_are_relative(model):
        return [row]
    return [Row((example,)) for example in row.examples]


def on_cores(
    model: Any, works: Sequence[Work], build: Callable[[Work], Any]
) -> Iterator[tuple[int, Any]]:
    """`build` called for each piece of work, and what it made computed; one on each core at a time.

    On a GPU, and where there is less to do than makes up for it, one after the other.

    Yields:
        (number of the piece, what was made), as they get ready.
    """
    cores = machine.cores() if machine.on_cpu() else 1
    if min(len(works), cores) == 1 or SHARED * len(works) < cores:
        for number, work in enumerate(works):
            made = build(work)
            mx.eval(made)
            yield number, made
        return
    _compute_shared(model)
    streams, threads = _workers()
    free = list(streams)
    running: dict[Future[None], tuple[int, Any, Any]] = {}

    def ready() -> Iterator[tuple[int, Any]]:
        for task in wait(running, return_when=FIRST_COMPLETED).done:
            number, made, stream = running.pop(task)
            task.result()
            free.append(stream)
            yield number, made

    # A thread of its own for each piece: cores that BLAS took as well would only wait.
    with machine.blas_threads(1):
        try:
            for number, work in enumerate(works):
                if not free:
                    yield from ready()
                with mx.stream(free[0]):
                    made = build(work)
                    _compute_shared(model)  # building may have made more of it
                running[threads.submit(mx.eval, made)] = number, made, free.pop(0)
            while running:
                yield from ready()
        finally:
            wait(running)


def _together(model: Any, row: Row, build: Callable[[Row], Any]) -> list[Any]:
    """`build` called for each core's share of the row, and all that it made computed."""
    cores = machine.cores() if machine.on_cpu() else 1
    shares = _shares(row, cores)
    if SHARED * len(shares) < cores:
        shares = [row]
    made = dict(on_cores(model, shares, build))
    return [made[number] for number in range(len(shares))]


def _shares(row: Row, cores: int) -> list[Row]:
    """The row's examples in `cores` rows at most, about equally long."""
    shares: list[list[int]] = [[] for _ in range(min(cores, len(row.examples)))]
    lengths = [len(example.tokens) for example in row.examples]
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        min(shares, key=lambda share: sum(lengths[n] for n in share)).append(number)
    return [Row(tuple(row.examples[n] for n in sorted(share))) for share in shares]


def _compute_shared(model: Any) -> None:
    """Compute what two shares' graphs may have in common, or two threads would at once: the random
    state, and what layers keep beside their parameters (rotary frequencies, DoRA's norms)."""
    kept = [leaf for _, leaf in tree_flatten(model) if isinstance(leaf, mx.array)]
    mx.eval(mx.random.state, kept)


@cache
def _workers() -> tuple[list[Any], ThreadPoolExecutor]:
    """A stream for each core, and the threads that compute on them."""
    count = machine.cores()
    streams = [mx.new_thread_unsafe_stream(mx.default_device()) for _ in range(count)]
    return streams, ThreadPoolExecutor(count, thread_name_prefix="forge-loss")
