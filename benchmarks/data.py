"""Speed and memory of making and validating training data, beside what each is held to.

    python benchmarks/data.py [--quick] [--cache FOLDER] [--json FILE]

1  Synthesis: the examples of a repository of 9,000 definitions (Django), and of the same with one
   and two changed copies of every file, against reading the same corpus and parsing its code with
   `ast`. CPU and wall time, resident memory.
2  Validation of 1,000, 5,000, 10,000 and 100,000 of those examples, against reading the same files
   and parsing their JSON; and that the time of an example does not grow with their number.

Every copy differs from the original in every definition, so that nothing repeats. Each measurement
runs in a process of its own; imports are not in it. `--quick`: a tenth of the files, and up to
5,000 examples. The exit status is 0 whatever the figures are, and 1 where something cannot be
measured.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mining_peers.processes import watched
from mining_peers.usage import Usage, spent
from oracles.packages import Package, fetch

from forge_mcp.errors import ForgeError
from forge_mcp.machine import cores, describe
from forge_mcp.schemas.code_blocks import CodeBlock, RejectedBlock
from forge_mcp.schemas.raft_examples import RaftExample
from forge_mcp.settings import load_settings
from forge_mcp.workspace import write_jsonl

REPOSITORY = Package("pip", "django", "5.2.19", "django-*")
COPIES = 3  # the original is the first
TENTH = 10
NUMBERS = (1_000, 5_000, 10_000, 100_000)
QUICK = 2  # of these numbers are measured with --quick

MAX_SYNTHESIS_SECONDS, MAX_SYNTHESIS_MEGABYTES = 60.0, 1_500.0  # of one repository
MAX_SECONDS = {5_000: 5.0, 100_000: 120.0}
MAX_GROWTH = 1.5  # time of an example among the most, against that among the fewest


@dataclass(frozen=True)
class Row:
    """One line of the table. `target` is the most that `value` may be; None: no target is set."""

    part: int
    subject: str
    measured: str
    value: float
    unit: str
    target: float | None = None
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """'met', 'missed', or '' without a target."""
        if self.target is None:
            return ""
        return "met" if self.value <= self.target else "missed"


# -- the corpus --------------------------------------------------------------------------------


def mine(root: Path, corpus: Path, step: int) -> int:
    """Write the corpus of a repository and of its changed copies; of its files every `step`-th.

    Returns:
        Definitions of the repository itself that are trained on.
    """
    from forge_mcp.mining.miner import parse_repository

    found = parse_repository(root, load_settings())
    paths = sorted({block.path for block in found.blocks})[::step]
    kept = set(paths)
    blocks = [block for block in found.blocks if block.path in kept]
    rejected = [block for block in found.rejected if block.path in kept]
    for number in range(COPIES):
        folder = corpus / str(number)
        folder.mkdir(parents=True)
        write_jsonl(folder / "blocks.jsonl", [changed(block, number) for block in blocks])
        write_jsonl(folder / "rejected.jsonl", [changed(block, number) for block in rejected])
    return len(blocks)


def changed(block: CodeBlock, number: int) -> CodeBlock:
    """A block of the `number`-th copy: at a path of its own, with a comment at its end."""
    if not number:
        return block
    prefix, comment = f"copy{number}/", f"  # {number}"
    source = block.source_code + comment
    return block.model_copy(
        update={
            "id": prefix + block.id,
            "path": prefix + block.path,
            "source_code": source,
            "content_hash": hashlib.sha256(source.encode()).hexdigest(),
            "dependencies": [prefix + d if "::" in d else d for d in block.dependencies],
        }
    )


def read_corpus(corpus: Path, copies: int) -> tuple[list[CodeBlock], list[RejectedBlock]]:
    """The blocks of the first copies, and those that are not trained on."""
    blocks: list[CodeBlock] = []
    others: list[RejectedBlock] = []
    for number in range(copies):
        folder = corpus / str(number)
        for line in (folder / "blocks.jsonl").open(encoding="utf-8"):
            blocks.append(CodeBlock.model_validate_json(line))
        for line in (folder / "rejected.jsonl").open(encoding="utf-8"):
            others.append(RejectedBlock.model_validate_json(line))
    return blocks, others


# -- 1: synthesis ------------------------------------------------------------------------------


def synthesize(corpus: Path, copies: int, target: Path) -> tuple[Usage, Usage, int, int]:
    """Make a dataset and write it down.

    Returns:
        What synthesis costs, what reading and parsing the same costs, definitions, examples.
    """
    from forge_mcp.raft import build_dataset

    settings = load_settings().raft
    blocks, others = read_corpus(corpus, copies)
    made: list[Any] = []
    cost = spent(lambda: made.append(build_dataset(blocks, settings, others=others)))
    dataset = made[0]
    target.mkdir(parents=True)
    write_jsonl(target / "documents.jsonl", dataset.documents)
    write_jsonl(target / "examples.jsonl", dataset.examples)
    floor = spent(lambda: parse_all(corpus, copies))
    return cost, floor, len(blocks), len(dataset.examples)


def parse_all(corpus: Path, copies: int) -> None:
    """Read a corpus and parse every definition of it once."""
    blocks, _ = read_corpus(corpus, copies)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the code that is read
        for block in blocks:
            with suppress(SyntaxError):  # a method whose lines keep its file's indentation
                ast.parse(block.source_code)


def synthesis(corpus: Path, copies: int, target: Path) -> Iterator[Row]:
    """The rows of one corpus."""
    (cost, floor, blocks, examples), peak = watched(synthesize, corpus, copies, target)
    first = copies == 1
    what = f"{blocks} definitions, {examples} examples"
    yield Row(
        1,
        f"synthesis of {blocks} definitions",
        f"{what}: CPU {cost.cpu:.1f} s, {1000 * cost.cpu / blocks:.2f} ms a definition; reading "
        f"and parsing once {floor.cpu:.1f} s (1/{cost.cpu / floor.cpu:.0f})",
        cost.wall,
        "s",
        MAX_SYNTHESIS_SECONDS if first else None,
        {"cost": cost._asdict(), "floor": floor._asdict(), "examples": examples},
    )
    yield Row(
        1,
        f"synthesis of {blocks} definitions, memory",
        f"{what}: with the corpus and the dataset in memory",
        peak.both / 1e6,
        "MB",
        MAX_SYNTHESIS_MEGABYTES if first else None,
        peak._asdict(),
    )


# -- 2: validation -----------------------------------------------------------------------------


def excerpt(source: Path, number: int, target: Path) -> int:
    """Write down so many examples of a dataset, file by file, and the documents they use.

    Returns:
        How many there were.
    """
    lines = (source / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    examples.sort(key=lambda e: hashlib.sha256(e["fact"]["block"].split("::")[0].encode()).digest())
    kept = examples[:number]
    used = {i for e in kept for i in (e["fact"]["block"], *e["oracle_ids"], *e["distractor_ids"])}
    target.mkdir(parents=True)
    write_jsonl(target / "examples.jsonl", kept)
    with (
        (source / "documents.jsonl").open(encoding="utf-8") as documents,
        (target / "documents.jsonl").open("w", encoding="utf-8") as file,
    ):
        file.writelines(line for line in documents if json.loads(line)["id"] in used)
    return len(kept)


def validate(folder: Path) -> tuple[Usage, Usage, int]:
    """What reading and validating a dataset costs, what reading it as JSON costs, rows kept."""
    from forge_mcp.quality import validate_dataset
    from forge_mcp.quality.rows import read_rows

    kept: list[int] = []

    def work() -> None:
        blocks, _ = read_rows(folder / "documents.jsonl", CodeBlock)
        examples, _ = read_rows(folder / "examples.jsonl", RaftExample)
        documents = {block.id: block for block in blocks}
        found = validate_dataset(examples, documents, load_settings().quality)
        kept.append(found.metrics.valid_examples)

    def read() -> None:
        for name in ("documents.jsonl", "examples.jsonl"):
            for line in (folder / name).open(encoding="utf-8"):
                json.loads(line)

    return spent(work), spent(read), kept[0]


def validation(source: Path, number: int, folder: Path) -> Row:
    """The row of so many examples."""
    there = excerpt(source, number, folder)
    if there < number:
        raise ForgeError(
            f"There are {there} examples, {number} are to be validated.",
            cause="the repository gives fewer examples than it did",
            next_step="Raise COPIES in benchmarks/data.py.",
        )
    (cost, floor, kept), peak = watched(validate, folder)
    return Row(
        2,
        f"validation of {number} examples",
        f"{kept} kept, {peak.both / 1e6:.0f} MB: CPU {cost.cpu:.1f} s, "
        f"{1000 * cost.cpu / number:.2f} ms an example; reading the JSON {floor.cpu:.2f} s "
        f"(1/{cost.cpu / floor.cpu:.0f})",
        cost.wall,
        "s",
        MAX_SECONDS.get(number),
        {"cost": cost._asdict(), "floor": floor._asdict(), "kept": kept, "peak": peak._asdict()},
    )


def growth(rows: Sequence[tuple[int, Row]]) -> Row:
    """How the CPU time of one example grows from the fewest examples to the most."""
    each = [row.raw["cost"]["cpu"] / number for number, row in rows]
    first, last = rows[0][0], rows[-1][0]
    return Row(
        2,
        f"an example among {last} against one among {first}",
        ", ".join(
            f"{number}: {1000 * cost:.2f} ms" for (number, _), cost in zip(rows, each, strict=True)
        ),
        each[-1] / each[0],
        "x",
        MAX_GROWTH,
    )


# -- the whole ---------------------------------------------------------------------------------


def measure(cache: Path, quick: bool) -> Iterator[Row]:
    """All rows, each as soon as it is known.

    Raises:
        ForgeError: something cannot be fetched or measured.
    """
    root = fetch(REPOSITORY, cache)
    with tempfile.TemporaryDirectory() as folder:
        corpus, datasets = Path(folder) / "corpus", Path(folder) / "datasets"
        mine(root, corpus, TENTH if quick else 1)
        for copies in range(1, COPIES + 1):
            yield from synthesis(corpus, copies, datasets / str(copies))
        largest = datasets / str(COPIES)
        rows = []
        for number in NUMBERS[: QUICK if quick else None]:
            row = validation(largest, number, datasets / f"of-{number}")
            rows.append((number, row))
            yield row
        yield growth(rows)


def show(row: Row) -> None:
    """Print one line of the table."""
    target = f"at most {row.target:g}" if row.target is not None else ""
    value = f"{row.value:.2f}" if row.value < 100 else f"{row.value:.0f}"
    print(
        f"{row.part}  {row.subject:<46} {value:>7} {row.unit:<3} {target:<13} {row.verdict:<7}"
        f" {row.measured}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where something could not be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the files")
    parser.add_argument("--cache", type=Path, help="folder of the packages that were fetched")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    given = parser.parse_args(arguments)
    cache = given.cache or Path(tempfile.gettempdir()) / "forge-mining-oracles"
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    machine = {**describe(), "cores": cores(), "load": load}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    rows = []
    try:
        for row in measure(cache.resolve(), given.quick):
            show(row)
            rows.append({**asdict(row), "verdict": row.verdict})
    except ForgeError as error:
        print(error, file=sys.stderr)
        return 1
    if given.json:
        report = {"machine": machine, "quick": given.quick, "rows": rows}
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
