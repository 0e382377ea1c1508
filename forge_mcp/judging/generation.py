"""What a model writes to many prompts: in batches, each shared beginning computed once.

Prompts are put in an order in which those with a common beginning follow each other, the longest
first. Each is read by itself, without padding, from where it leaves the one before; then it joins
a batch that writes a token for each of its rows at a time. Rows that have ended make room for the
next prompts; rows of about one length stand together (cohorts.py). On the CPU, where MLX computes
all but matrix products on one core, each core has a batch of its own, in a thread and on a stream
of its own; all take from the same list of prompts.

Where a model's rotation depends on how long the whole text is (LongRoPE, dynamic NTK), texts that
may become longer than where that begins are written one by one, and share nothing.
"""

from __future__ import annotations

import copy
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forge_mcp import machine
from forge_mcp.errors import BadInput
from forge_mcp.judging.cohorts import cohort_attention, cohorts_of, form, limit

ROWS = 32  # of a batch at most; more gain little (measured on the CPU: 8% from 16 to 32)
ENDED_SHARE = 1 / 4  # of a batch's rows that have ended before they are taken out: that copies
MEMORY_SHARE = 1 / 4  # of what is free, for the caches of all batches
PREFILL_STEP, PREFILL_STEP_CPU = 2048, 128  # tokens of a prompt that are computed together
MIN_SHARED = 32  # tokens that prompts must have in common to be computed once
SHARED_STEP = 16  # beginnings are kept at multiples of it, so that a text is cut into few pieces
FRACTION_BITS = 23  # of a uniform random number, so that none is rounded to 1 in float32
THREAD = "forge-generate"
BYTES_PER_CHARACTER = 4  # in UTF-8 at most: a token may be a single byte


@dataclass(frozen=True)
class Generated:
    """What a model wrote.

    text: up to the first stop sequence, as the tokenizer decodes it (mlx-lm's streaming drops
    blanks at the beginning). tokens: all, without the one that ends the turn; with those of the
    stop sequence. stopped: the model ended its turn or a stop sequence came; False = cut at
    `max_tokens` or at the end of the context.
    """

    text: str
    tokens: list[int]
    stopped: bool


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 = always the likeliest. top_p: choose among the
    likeliest tokens whose probabilities reach this sum (arXiv 1904.09751, section 3.1)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


GREEDY = Sampling()


@dataclass
class Throughput:
    """What generating took, added up over calls.

    prompt_tokens: of all prompts. computed_tokens: of those, really computed; the rest was shared.
    generated_tokens: without those that end a turn.
    """

    seconds: float = 0.0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over all the time, reading the prompts included; 0 before any."""
        return self.generated_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Latency:
    """One sequence by itself. milliseconds_per_token: median over the tokens after the first.
    prompt_milliseconds: until the first token. tokens: so many were written."""

    milliseconds_per_token: float
    prompt_milliseconds: float
    tokens: int


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_tokens: int | Sequence[int],
    *,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    on_done: Callable[[int, int], None] | None = None,
    context: int | None = None,
    throughput: Throughput | None = None,
) -> list[Generated]:
    """Let a model continue every prompt.

    Greedy texts are those of `mlx_lm.generate`, up to ties in floating-point numbers. Sampled ones
    depend on the seed and a prompt's place in `prompts`, not on what is computed together.

    Args:
        model: an mlx-lm model in eval mode, called as model(tokens (rows, T), cache=…).
        tokenizer: its mlx-lm TokenizerWrapper.
        prompts: token ids, each at least one.
        max_tokens: a text is cut after so many; one number, or one for each prompt.
        stop: a text ends before the first of these that appears.
        on_done: called in this thread with (texts done, texts in all) after each; what it raises
            ends the work.
        context: tokens that prompt and text may have together; None = no limit.
        throughput: where what was done is added up.

    Returns:
        In the order of `prompts`. A prompt that leaves no room in the context gets an empty text.

    Raises:
        BadInput: a prompt without tokens.
    """
    started = time.perf_counter()
    limits = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else list(max_tokens)
    tasks, found = [], dict[int, Generated]()
    for index, (prompt, most) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise BadInput(
                "A model cannot continue an empty prompt.",
                cause=f"prompt {index} has no tokens",
                next_step="Leave it out, or begin it with the token that begins a text.",
            )
        room = most if context is None else min(most, context - len(prompt))
        if room > 0:
            tasks.append(_Task(index, tuple(prompt), room))
        else:
            found[index] = Generated("", [], stopped=False)
    if throughput is not None:
        throughput.prompt_tokens += sum(map(len, prompts))
    if tasks:
        job = _Job(model, tokenizer, tasks, sampling, tuple(stop))
        with closing(_run(job)) as texts:
            for task, one in texts:
                found[task.index] = one
                if on_done:
                    on_done(len(found), len(prompts))
        if throughput is not None:
            throughput.computed_tokens += job.computed
            throughput.generated_tokens += sum(len(one.tokens) for one in found.values())
    if throughput is not None:
        throughput.seconds += time.perf_counter() - started
    return [found[index] for index in range(len(prompts))]


def latency(model: Any, tokenizer: Any, prompt: Sequence[int], tokens: int = 32) -> Latency:
    """How long one sequence takes as an interactive user sees it: mlx-lm's own loop, nothing shared
    or batched. Ends early where the model ends its turn.

    Raises:
        BadInput: a prompt without tokens, or fewer than two tokens asked for.
    """
    mx = machine.mlx()
    from mlx_lm.generate import generate_step

    if not prompt or tokens < 2:
        raise BadInput(
            "A latency cannot be measured.",
            cause=f"{len(prompt)} tokens of a prompt and {tokens} to write were given",
            next_step="Give a prompt, and two tokens to write at least.",
        )
    times = [time.perf_counter()]
    for token, _ in generate_step(mx.array(list(prompt)), model, max_tokens=tokens):
        times.append(time.perf_counter())
        if token in tokenizer.eos_token_ids and len(times) > 2:
            break
    steps = np.diff(times) * 1e3
    return Latency(float(np.median(steps[1:])), float(steps[0]), len(steps))


@dataclass(frozen=True)
class _Task:
    """A prompt (its place among all), and how many tokens may follow it."""

    index: int
    prompt: tuple[int, ...]
    limit: int

    @property
    def longest(self) -> int:
        """Tokens at most."""
        return len(self.prompt) + self.limit


class _Job:
    """What the workers share: the model, and the prompts that are not taken yet."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        tasks: list[_Task],
        sampling: Sampling,
        stop: tuple[str, ...],
    ) -> None:
        self.model, self.tokenizer, self.sampling, self.stop = model, tokenizer, sampling, stop
        self.ends = frozenset(tokenizer.eos_token_ids)
        self.border = _length_border(model)
        self.cohorts = cohorts_of(model)
        self.waiting = _in_order([task for task in tasks if not self.alone(task)])
        self.apart = [task for task in tasks if self.alone(task)]
        self.workers = min(machine.cores() if machine.on_cpu() else 1, len(tasks))
        longest = max(task.longest for task in tasks)
        self.rows = min(ROWS, _rows_in_memory(model, longest) // self.workers or 1)
        self.computed = 0
        self.lock = threading.Lock()
        self.done: queue.SimpleQueue[tuple[_Task, Generated] | BaseException | None] = (
            queue.SimpleQueue()
        )
        self.cancelled = threading.Event()

    def take(self, rows: Sequence[_Row]) -> list[_Task]:
        """The next tasks for a batch with these rows, not more than a fair share."""
        with self.lock:
            if not self.waiting and self.apart and not rows:
                return [self.apart.pop()]
            count = min(self.rows - len(rows), math.ceil(len(self.waiting) / self.workers))
            taken = self.waiting[:count]
            del self.waiting[:count]
            return taken

    def alone(self, task: _Task) -> bool:
        """Whether a text cannot be written together with others."""
        return task.longest > self.border

    def add_computed(self, tokens: int) -> None:
        """Count tokens of prompts that were computed."""
        with self.lock:
            self.computed += tokens


def _run(job: _Job) -> Generator[tuple[_Task, Generated], None, None]:
    """Every task with its text, as they end. No thread is left when this is closed."""
    mx = machine.mlx()
    from mlx.utils import tree_flatten

    with _merged(job.model), cohort_attention(job.model):
        if job.workers == 1:
            yield from _texts(job)
            return
        # What the graphs of two threads share must not be computed by both.
        mx.eval([leaf for _, leaf in tree_flatten(job.model) if isinstance(leaf, mx.array)])
        streams = [mx.new_thread_unsafe_stream(mx.default_device()) for _ in range(job.workers)]
        threads = [
            threading.Thread(target=_work, args=(job, stream), name=THREAD, daemon=True)
            for stream in streams
        ]
        with machine.blas_threads(1):
            for thread in threads:
                thread.start()
            try:
                running = len(threads)
                while running:
                    one = job.done.get()
                    if one is None:
                        running -= 1
                    elif isinstance(one, BaseException):
                        raise one
                    else:
                        yield one
            finally:
                job.cancelled.set()
                for thread in threads:
                    thread.join()


def _work(job: _Job, stream: Any) -> None:
    """A core's thread."""
    mx = machine.mlx()
    try:
        with mx.stream(stream):
            for done in _texts(job):
                job.done.put(done)
            mx.synchronize(stream)
        job.done.put(None)
    except BaseException as error:  # it is raised again where the texts are waited for
        job.done.put(error)


def _texts(job: _Job) -> Iterator[tuple[_Task, Generated]]:
    """Batches until no prompt is left."""
    reader, batch = _Reader(job), _Batch(job)
    while not job.cancelled.is_set():
        new = job.take(batch.rows)
        later = [*new, *job.waiting]
        batch.join(
            [
                (task, reader.read(task, later[at:]))
                for at, task in enumerate(new, 1)
                if not job.cancelled.is_set()
            ]
        )
        if not batch.rows:
            break
        yield from batch.write()


@dataclass
class _Row:
    """A text that is being written. ended: it takes no more tokens. random: gives its numbers."""

    task: _Task
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    started: bool = False
    ended: bool = False


class _Batch:
    """Rows that are written together, a token each at a time, and their caches."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.rows: list[_Row] = []
        self.caches: list[Any] = []  # a layer each, holding all rows
        self.inputs: Any = None  # (rows,) the tokens that the caches do not hold yet
        stops = [len(text) * BYTES_PER_CHARACTER for text in job.stop]
        self.tail = max(stops, default=0) + BYTES_PER_CHARACTER

    def join(self, new: Sequence[tuple[_Task, list[Any]]]) -> None:
        """Add prompts, each with caches that hold all of it but the last token."""
        if not new:
            return
        mx = machine.mlx()
        tasks, read = zip(*new, strict=True)
        inputs = mx.array([task.prompt[-1] for task in tasks])
        if self.job.alone(tasks[0]):
            self.caches, self.inputs = read[0], inputs
        else:
            found = form(self.job.model, [(len(t.prompt), c) for t, c in new], self.job.cohorts)
            if self.rows:
                for layer, more in zip(self.caches, found, strict=True):
                    layer.parts += more.parts
                limit(self.caches, self.job.cohorts)
                self.inputs = mx.concatenate([self.inputs, inputs])
            else:
                self.caches, self.inputs = found, inputs
        seed = self.job.sampling.seed
        self.rows += [_Row(task, np.random.default_rng([seed, task.index])) for task in tasks]
        mx.eval(self.inputs, [layer.state for layer in self.caches])
        mx.clear_cache()

    def write(self) -> Iterator[tuple[_Task, Generated]]:
        """Write until enough rows have ended to be worth taking out; gives each as it ends."""
        mx = machine.mlx()
        while not self.job.cancelled.is_set():
            # The next tokens are computed while the ones before are looked at.
            chosen = self._step() if any(map(self._wants, self.rows)) else self.inputs
            mx.async_eval(chosen)
            for row, token in zip(self.rows, self.inputs.tolist(), strict=True):
                if not row.started:
                    row.started = True  # that was the prompt's last token
                elif not row.ended and (one := self._accept(row, token)):
                    yield row.task, one
            self.inputs = chosen
            kept = [number for number, row in enumerate(self.rows) if not row.ended]
            if len(self.rows) - len(kept) >= max(1, ENDED_SHARE * len(self.rows)):
                self._keep(kept)
                return

    def _wants(self, row: _Row) -> bool:
        """Whether a row takes a token after the one in `inputs`."""
        return not row.ended and len(row.tokens) + row.started < row.task.limit

    def _step(self) -> Any:
        """The tokens after `inputs`, not computed yet."""
        logits = self.job.model(self.inputs[:, None], cache=self.caches)[:, -1]
        sampling = self.job.sampling
        if sampling.temperature == 0:
            return machine.mlx().argmax(logits, axis=-1)
        numbers = [row.random.integers(1 << FRACTION_BITS) for row in self.rows]
        return choose(logits, [int(one) / (1 << FRACTION_BITS) for one in numbers], sampling)

    def _accept(self, row: _Row, token: int) -> Generated | None:
        """Give a row its next token; what it has written, where that ends it."""
        job = self.job
        if token in job.ends:
            row.ended = True
            return Generated(job.tokenizer.decode(row.tokens), row.tokens, stopped=True)
        row.tokens.append(token)
        if job.stop:
            tail = job.tokenizer.decode(row.tokens[-self.tail :])
            if any(text in tail for text in job.stop):
                text = job.tokenizer.decode(row.tokens)
                row.ended = True
                first = min(at for at in map(text.find, job.stop) if at >= 0)
                return Generated(text[:first], row.tokens, stopped=True)
        if len(row.tokens) == row.task.limit:
            row.ended = True
            return Generated(job.tokenizer.decode(row.tokens), row.tokens, stopped=False)
        return None

    def _keep(self, kept: list[int]) -> None:
        """Leave only these rows."""
        self.rows = [self.rows[number] for number in kept]
        if kept:
            self.inputs = self.inputs[machine.mlx().array(kept)]
            for layer in self.caches:
                layer.filter(kept)
        else:
            self.caches, self.inputs = [], None


def choose(logits: Any, numbers: Sequence[float], sampling: Sampling) -> Any:
    """Tokens (rows,) drawn by the inverse of the distribution function.

    The tokens stand in the vocabulary's order, so that rounding moves only numbers at a border.

    Args:
        logits: (rows, vocabulary).
        numbers: one a row, in [0, 1): the token is the first whose sum of probabilities exceeds it.
    """
    mx = machine.mlx()
    p = mx.softmax(logits.astype(mx.float32) / sampling.temperature, axis=-1)
    if sampling.top_p < 1:
        ordered = -mx.sort(-p, axis=-1)
        before = mx.cumsum(ordered, axis=-1) - ordered
        least = mx.where(before < sampling.top_p, ordered, 1.0).min(axis=-1, keepdims=True)
        p = mx.where(p >= least, p, 0.0)
    sums = mx.cumsum(p, axis=-1)
    drawn = mx.array(list(numbers))[:, None] * sums[:, -1:]
    return mx.argmax(sums > drawn, axis=-1)


class _Reader:
    """Computes prompts one after the other and keeps what later ones begin with."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.kept: list[tuple[tuple[int, ...], list[Any]]] = []  # (beginning, caches), ever longer
        self.step = PREFILL_STEP_CPU if machine.on_cpu() else PREFILL_STEP

    def read(self, task: _Task, later: Sequence[_Task] = ()) -> list[Any]:
        """Caches that hold a prompt but its last token; `later`: the prompts that come next."""
        mx = machine.mlx()
        from mlx_lm.models.cache import make_prompt_cache

        tokens = task.prompt[:-1]
        alone = self.job.alone(task)
        if alone:
            self.kept.clear()
        while self.kept and tokens[: len(self.kept[-1][0])] != self.kept[-1][0]:
            self.kept.pop()
        at, caches = 0, list[Any](make_prompt_cache(self.job.model))
        if self.kept:
            at, caches = len(self.kept[-1][0]), copy.deepcopy(self.kept[-1][1])
        self.job.add_computed(len(task.prompt) - at)
        borders = _borders(tokens, at, later)
        for border in [*borders, len(tokens)]:
            step = PREFILL_STEP if alone else self.step
            for begin in range(at, border, step):
                part = mx.array(tokens[begin : min(begin + step, border)])
                self.job.model(part[None], cache=caches)
                mx.eval([layer.state for layer in caches])
            at = border
            if border in borders:
                self.kept.append((tokens[:border], copy.deepcopy(caches)))
        return caches


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(differ[0]) if len(differ) else length


def _in_order(tasks: list[_Task]) -> list[_Task]:
    """Prompts that have half of themselves in common stand together; the longest first."""
    groups: list[list[_Task]] = []
    for task in sorted(tasks, key=lambda one: (one.prompt, one.index)):
        before = groups[-1][-1].prompt if groups else ()
        length = min(len(before), len(task.prompt))
        if 2 * _common(before, task.prompt) > max(length, MIN_SHARED):
            groups[-1].append(task)
        else:
            groups.append([task])
    groups.sort(key=lambda group: -max(len(task.prompt) for task in group))
    return [task for group in groups for task in group]


def _borders(tokens: Sequence[int], at: int, later: Sequence[_Task]) -> list[int]:
    """Where, after `at`, later prompts leave this one: at multiples of SHARED_STEP, or its end."""
    shared, found = len(tokens), set()
    for task in later:
        shared = _common(tokens[:shared], task.prompt[:-1])
        if shared < len(tokens):
            shared -= shared % SHARED_STEP
        if shared < max(MIN_SHARED, at + 1):
            break
        found.add(shared)
    return sorted(found)


def _length_border(model: Any) -> float:
    """The longest text whose rotation is the same whatever its length is."""
    from mlx_lm.models.rope_utils import DynamicNTKScalingRoPE

    from forge_mcp.training.compatibility import LongRope

    borders = [math.inf]
    for module in model.modules():
        if isinstance(module, LongRope):
            borders.append(module.original)
        elif isinstance(module, DynamicNTKScalingRoPE):
            borders.append(0)  # its own code takes no batch
    return min(borders)


def _rows_in_memory(model: Any, longest: int) -> int:
    """How many texts of a length may have caches at once."""
    mx = machine.mlx()
    from mlx_lm.models.cache import make_prompt_cache

    caches = make_prompt_cache(model)
    model(mx.array([[0]]), cache=caches)
    per_token = sum(
        array.nbytes // array.shape[2] for layer in caches for array in (layer.keys, layer.values)
    )
    room = machine.available_bytes() if machine.on_cpu() else machine.training_memory_bytes()
    return int(MEMORY_SHARE * room / (per_token * longest))


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """Meanwhile the weights under adapters are merged with them: the same numbers up to rounding,
    in a third of the operations. On the CPU only, where they are floats, and where they fit."""
    mx = machine.mlx()
    import mlx.nn as nn
    from mlx.utils import tree_unflatten

    from forge_mcp.training.adapters import AdapterLinear

    layers = [item for item in model.named_modules() if isinstance(item[1], AdapterLinear)]
    weights = sum(layer.weight.nbytes for _, layer in layers if layer.dense)
    if weights == 0 or weights > MEMORY_SHARE * machine.available_bytes():
        yield
        return
    plain = []
    for path, layer in layers:
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = layer.merged()
        if "bias" in layer:
            linear.bias = layer.bias
        mx.eval(linear.parameters())
        plain.append((path, linear))
    model.update_modules(tree_unflatten(plain))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(layers))
