"""Code of the repository, written again by a model from its header and documentation.

A question gives what `raft.code_tasks.stub` cuts out: what stands above a definition, its header
and its docstring. Without documents, and in the words that no training row has. What is written is
held against the repository's own code:

- **edit similarity** = 1 - Levenshtein distance / length of the longer, in characters. What the
  question gave is taken off both lengths: to repeat it is no achievement. Where the code begins as
  given, this is the similarity of the two rests.
- **embedding similarity**: cosine of an encoder's vectors of the two definitions.
- **compiles**: the definition has no syntax error (`raft.syntax`). What only repeats the given
  beginning is no definition. Nothing is ever run.
"""

from __future__ import annotations

import random
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from forge_mcp.judging.intervals import Floats, bootstrap, share
from forge_mcp.raft.code_tasks import asking, code_pair, indentation, stub
from forge_mcp.raft.phrases import CorpusNames
from forge_mcp.raft.syntax import parses
from forge_mcp.schemas.base import Metric
from forge_mcp.schemas.code_blocks import CodeBlock
from forge_mcp.schemas.prompt import ANSWER, render_messages
from forge_mcp.schemas.raft_examples import Message

# A fence, and what is in it up to the next one or to where the model was cut.
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """A definition that is to be written. `given`: how it begins; `reference`: all of it, not
    indented."""

    block: CodeBlock
    question: str
    messages: list[Message]
    given: str
    reference: str


@dataclass(frozen=True)
class Reconstruction:
    """What came of it, in the order of the tasks. `embedding` is None without an encoder."""

    edit: list[float]
    embedding: list[float] | None
    compiles: list[bool]
    codes: list[str]
    metrics: list[Metric]


def reconstruction_tasks(
    blocks: Sequence[CodeBlock],
    count: int,
    seed: int,
    system_prompt: str,
    max_chars: int,
    corpus: Sequence[CodeBlock] | None = None,
) -> list[Task]:
    """Up to `count` functions and methods that can be asked for.

    Documented ones come first; the rest are those whose header is all there is. Languages keep
    their shares.

    Args:
        blocks: to choose from, e.g. those that were trained on.
        count: of tasks.
        seed: of the choice.
        system_prompt: of the chats.
        max_chars: a definition is at most as long, so that an answer of limited length can hold it.
        corpus: all blocks of the repository, which decide what a question must say to name one;
            None = `blocks`.

    Returns:
        The tasks in the order of `blocks`.
    """
    names = CorpusNames(blocks if corpus is None else corpus)
    distinct = {block.content_hash: block for block in reversed(blocks)}
    found: dict[bool, list[tuple[int, Task]]] = {True: [], False: []}
    for place, block in enumerate(blocks):
        if distinct[block.content_hash] is not block:
            continue
        task = _task(block, names, seed, system_prompt)
        if task is not None and len(task.reference) <= max_chars:
            found[bool(block.docstring)].append((place, task))
    chosen = _stratified(found[True], count, seed)
    chosen += _stratified(found[False], count - len(chosen), seed)
    return [task for _, task in sorted(chosen, key=lambda one: one[0])]


def _task(block: CodeBlock, names: CorpusNames, seed: int, system_prompt: str) -> Task | None:
    """The task of a block; None where it makes no good one."""
    pair = code_pair(block, [], names, seed, documented=False)
    reference = _plain(indentation(block) + block.source_code)
    begun = stub(block, documented=False)
    whole = reference.startswith(_plain(begun))
    if pair is None or not whole or not parses(reference, block.language, block.block_type):
        return None
    question = asking(pair.fact, block, pair.named, -1, begun)
    messages = render_messages([], question, system_prompt=system_prompt)
    return Task(block, question, messages, _plain(begun), reference)


def _stratified(tasks: Sequence[tuple[int, Task]], count: int, seed: int) -> list[tuple[int, Task]]:
    """At most `count` tasks, in which languages keep their shares; a smaller choice is part of a
    larger one."""
    generator = random.Random(seed)  # noqa: S311 - a sample, no secret
    strata: dict[str, list[tuple[int, Task]]] = defaultdict(list)
    for one in tasks:
        strata[one[1].block.language].append(one)
    ranked = []
    for language in sorted(strata):
        members = strata[language]
        generator.shuffle(members)
        offset = generator.random()
        ranked += [((n + offset) / len(members), one) for n, one in enumerate(members)]
    ranked.sort(key=lambda rank: (rank[0], rank[1][0]))
    return [one for _, one in ranked[: max(count, 0)]]


# -- from an answer to code -------------------------------------------------------------------


def extract_code(text: str, task: Task) -> str:
    """The definition in what a model wrote, not indented.

    It stands behind `<ANSWER>:` where that is, in a fence or not; of several fences in the first
    that declares it, else in the first. A body alone gets the given beginning.

    Returns:
        The code; '' where there is none.
    """
    _, marker, answer = text.partition(ANSWER)
    answer = answer.removeprefix(" ") if marker else text
    fences = [str(code) for code in _FENCED.findall(answer)]
    written = [code for code in fences or [answer] if code.strip()]
    for code in written:
        begins = _declaration(code, task.block)
        if begins is not None:
            # Of prose with code in it, the code; a fence may hold imports or helpers as well.
            return _plain(code if fences else code[begins:])
    return _with_beginning(written[0], task) if written else ""


def _declaration(code: str, block: CodeBlock) -> int | None:
    """Where a block's definition begins in code, with its decorators; None where it does not."""
    if block.language == "python":
        found = re.search(
            rf"^(?:[ \t]*@[^\n]*\n)*[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(block.name)}\b",
            code,
            re.MULTILINE,
        )
        return found.start() if found else None
    if _squeezed(block.signature) in _squeezed(code):
        return 0
    # Another header than was given; ahead of the body, because within it the name is a call.
    ahead, brace, _ = code.partition("{")
    name = re.search(rf"(?<![\w$.:>]){re.escape(block.name)}(?![\w$])", ahead)
    return 0 if brace and name and not re.search(r"\breturn\b|=>", ahead) else None


def _squeezed(code: str) -> str:
    return "".join(code.split())


def _with_beginning(body: str, task: Task) -> str:
    """A body alone behind the beginning that was given, in the first way in which that parses."""
    written = task.reference[len(task.given) :].partition("\n")[2].lstrip("\n")
    margin = written[: len(written) - len(written.lstrip())] or "    "
    inner = textwrap.indent(_plain(body), margin)
    below = f"{task.given}\n{inner}"
    if task.block.language == "python":
        # The first line may have lost its margin, because the answer's marker stands before it.
        first, _, rest = body.lstrip().partition("\n")
        tries = [below, f"{task.given}\n{margin}{first}\n{textwrap.indent(_plain(rest), margin)}"]
    elif task.block.language == "ruby":
        tries = [f"{below}\nend", below]
    else:
        tries = [f"{task.given} {{\n{inner}\n}}", f"{task.given} {{\n{inner}", below]
        if task.given.endswith("=>") or body.lstrip().startswith(("{", "=")):
            tries = [f"{task.given} {body.strip()}", *tries]
    return next((code for code in tries if _parses(code, task)), tries[0])


def _parses(code: str, task: Task) -> bool:
    return parses(code, task.block.language, task.block.block_type)


def _plain(code: str) -> str:
    """Code that is not indented, without blank lines around it."""
    return textwrap.dedent(code.strip("\n").rstrip()).rstrip()


# -- how good that is -------------------------------------------------------------------------


def evaluate_reconstruction(
    tasks: Sequence[Task],
    texts: Sequence[str],
    embed: Callable[[Sequence[str]], Any] | None,
    seed: int,
) -> Reconstruction:
    """Hold what a model wrote against the repository's own code.

    Args:
        tasks: at least one.
        texts: the model's answer to each.
        embed: from n texts to vectors, a numpy array (n, d); None where there is no encoder.
        seed: of the bootstrap.

    Returns:
        Values by task, and the means edit_similarity, embedding_similarity (bootstrap intervals)
        and compiles (Wilson interval).

    Raises:
        ValueError: no tasks, or not a text for each.
    """
    if not tasks or len(tasks) != len(texts):
        raise ValueError(f"{len(texts)} texts for {len(tasks)} tasks")
    codes = [extract_code(text, task) for text, task in zip(texts, tasks, strict=True)]
    pairs = list(zip(codes, tasks, strict=True))
    edit = [edit_similarity(code, task) for code, task in pairs]
    compiles = [code != task.given and _parses(code, task) for code, task in pairs]
    embedding = None if embed is None else _cosines(pairs, embed)
    measured: list[Metric | None] = [
        _mean("edit_similarity", edit, seed),
        _mean("embedding_similarity", embedding, seed) if embedding is not None else None,
        share("compiles", sum(compiles), len(compiles)),
    ]
    metrics = [metric for metric in measured if metric is not None]
    return Reconstruction(edit, embedding, compiles, codes, metrics)


def edit_similarity(code: str, task: Task) -> float:
    """0 to 1: see the module's docstring."""
    longer = max(len(code), len(task.reference)) - len(task.given)
    return max(0.0, 1 - Levenshtein.distance(code, task.reference) / longer)


def _cosines(
    pairs: Sequence[tuple[str, Task]], embed: Callable[[Sequence[str]], Any]
) -> list[float]:
    """Cosines of what was written and of the references; 0 where nothing was written."""
    written = [number for number, (code, _) in enumerate(pairs) if code]
    found = [0.0] * len(pairs)
    if not written:
        return found
    texts = [pairs[n][0] for n in written] + [pairs[n][1].reference for n in written]
    vectors = np.asarray(embed(texts), dtype=np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    for place, number in enumerate(written):
        found[number] = float(vectors[place] @ vectors[place + len(written)])
    return found


def _mean(name: str, values: Sequence[float], seed: int) -> Metric:
    array: Floats = np.array(values, dtype=np.float64)
    return bootstrap(name, len(array), seed, lambda indices: array[indices].mean(axis=1))
