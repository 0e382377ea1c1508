"""Speed and memory of the miner, each figure beside what it is held to, measured in the same run.

    python benchmarks/mining.py [--quick] [--cache FOLDER] [--json FILE]

1  Repositories of several languages → lines of a corpus in a file, with and without the search for
   secrets, against only reading and parsing the same files with the same grammars.
2  The chunkers of chonkie and llama-index on the same files at 1,500 characters: CPU time a
   megabyte, and the functions that are whole in no chunk. What is a function is told by parsers
   that are neither ours nor theirs; blocks that are not trained on count as ours.
3  A repository of 10,000 files, mined again after 20 of them have changed, and after none has.
4  Resident memory while those 10,000 files are mined with the default number of processes.

Packages are fetched with pip, npm and apt-get in fixed versions, the chunkers into an environment
of their own. CPU time is user and system time with that of child processes; starting Python and
importing is not in it. Times are the best of three, memory is the highest of three. --quick: parts
1 and 3, a tenth of the files. The exit status is 0 whatever the figures are, and 1 where something
cannot be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mining_peers.chunk import PEERS
from mining_peers.chunkers import chunking_request, peers_python, run_peer
from mining_peers.miner import (
    corpus_costs,
    excerpt,
    is_utf8,
    mine_with_cache,
    one_process,
    our_blocks,
    parsed_files,
)
from mining_peers.processes import Memory, alone, run, watched
from mining_peers.usage import ROUNDS, Usage, best
from oracles.catalogue import TASKS
from oracles.packages import Package, fetch, standard_library

from forge_mcp.errors import ForgeError
from forge_mcp.machine import cores, describe
from forge_mcp.mining.definitions import find_definitions
from forge_mcp.mining.files import list_files
from forge_mcp.mining.languages import Language, language

TENTH = 10
FILES, CHANGED_FILES = 10_000, 20
SEED = 17

MAX_PARSE_RATIO, MAX_PARSE_RATIO_SECRETS = 2.0, 3.0
MAX_AGAIN_RATIO = 1 / 20
MAX_MEGABYTES = 600.0


@dataclass(frozen=True)
class Input:
    """A package that is mined; `task` of oracles.catalogue says what its functions are."""

    name: str
    package: Package
    task: str


INPUTS = (
    Input("Django (Python)", Package("pip", "django", "5.2.19", "django-*"), "python"),
    Input(
        "MapLibre (TypeScript)",
        Package("npm", "maplibre-gl", "6.17.0", "package/src"),
        "typescript",
    ),
    Input(
        "guava (Java)",
        Package("deb-src", "guava-libraries", "31.1-1", "guava-31.1/guava"),
        "java-spans",
    ),
    Input("CPython's standard library", standard_library(), "python"),
)


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


# -- 1: against parsing ------------------------------------------------------------------------


def against_parsing(given: Input, root: Path, step: int) -> Iterator[Row]:
    """The rows of one repository; of its files every `step`-th."""
    with tempfile.TemporaryDirectory() as folder:
        if step > 1:
            excerpt(root, parsed_files(root, one_process())[::step], Path(folder))
            root = Path(folder)
        files, size, costs = alone(corpus_costs, root)
    parse = costs["parse"]
    for name, target in (
        ("mine without secrets", MAX_PARSE_RATIO),
        ("mine", MAX_PARSE_RATIO_SECRETS),
    ):
        cost = costs[name]
        yield Row(
            1,
            f"{given.name}: {name}",
            f"{files} files, {size:.1f} MB: {cost.cpu:.2f} s, parsing {parse.cpu:.2f} s "
            f"(wall {cost.wall:.2f} and {parse.wall:.2f})",
            cost.cpu / parse.cpu,
            "x parsing",
            target,
            {"files": files, "megabytes": size, "costs": _as_dicts(costs)},
        )


# -- 2: against chunkers -----------------------------------------------------------------------


def against_chunkers(given: Input, root: Path, cache: Path) -> Iterator[Row]:
    """The rows of one repository: the miner's and every peer's."""
    python = peers_python(cache)
    with tempfile.TemporaryDirectory() as folder:
        request, size, functions = chunking_request(TASKS[given.task], root, cache, Path(folder))
        answers = {"forge_mcp": alone(our_blocks, request)}
        for peer in PEERS:
            answers[peer] = run_peer(python, peer, request)
    own = answers["forge_mcp"]["cpu"] / size
    for name, answer in answers.items():
        a_megabyte = answer["cpu"] / size
        yield Row(
            2,
            f"{given.name}: {name}, CPU time",
            f"{size:.1f} MB, {answer['chunks']} chunks, {answer['files_without']} files "
            f"without any; the miner takes {own / a_megabyte:.2f} times this",
            a_megabyte,
            "s a MB",
            raw=answer,
        )
        yield Row(
            2,
            f"{given.name}: {name}, functions in no chunk",
            f"{answer['lost']} of {functions}",
            answer["lost"] / functions,
            "of all",
            0.0 if name == "forge_mcp" else None,
        )


# -- 3 and 4: many files -----------------------------------------------------------------------


def many_files(roots: dict[str, Path], count: int, changes: int) -> Iterator[Row]:
    """The rows of parts 3 and 4.

    Args:
        roots: name → folder of the packages whose files are copied.
        count: files of the repository.
        changes: files that are changed before it is mined again.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, caches = Path(folder) / "repository", Path(folder) / "caches"
        size = make_repository(root, roots, count)
        usages: dict[str, list[Usage]] = defaultdict(list)

        def again(name: str) -> str:
            usage, lines = alone(mine_with_cache, root, caches / "1")
            usages[name].append(usage)
            return lines

        (usage, lines), first = watched(mine_with_cache, root, caches / "1")
        usages["cold"].append(usage)
        peaks = [first]
        for _ in range(ROUNDS):
            require_same(again("unchanged"), lines, "an unchanged repository")
        for number in range(ROUNDS):
            change_files(root, changes, number)
            lines = again("changed")
        for number in range(2, ROUNDS + 1):
            (usage, cold), peak = watched(mine_with_cache, root, caches / str(number))
            require_same(lines, cold, f"{changes} changed files")
            usages["cold"].append(usage)
            peaks.append(peak)
    costs = {name: best(seen) for name, seen in usages.items()}
    yield from _again_rows(costs, f"{count} files, {size:.0f} MB", changes)
    if count == FILES:
        yield _memory_row(Memory(*map(max, *peaks)), f"{count} files, {size:.0f} MB")


def _again_rows(costs: dict[str, Usage], what: str, changes: int) -> Iterator[Row]:
    cold = costs["cold"]
    for name, subject, target in (
        ("changed", f"{changes} files changed", MAX_AGAIN_RATIO),
        ("unchanged", "nothing changed", None),
    ):
        warm = costs[name]
        for unit, mine_again, mine_all in (
            ("wall", warm.wall, cold.wall),
            ("CPU", warm.cpu, cold.cpu),
        ):
            yield Row(
                3,
                f"{subject}, {unit} time",
                f"{what}: {mine_again:.2f} s, all anew {mine_all:.2f} s "
                f"(1/{mine_all / mine_again:.0f})",
                mine_again / mine_all,
                "of all anew",
                target,
                _as_dicts(costs),
            )


def _memory_row(peak: Memory, what: str) -> Row:
    parent, children, both = (size / 1e6 for size in peak)
    return Row(
        4,
        f"peak memory, {cores()} worker processes",
        f"{what}: parent {parent:.0f} MB, its children together {children:.0f} MB",
        both,
        "MB",
        MAX_MEGABYTES,
        peak._asdict(),
    )


def make_repository(root: Path, roots: dict[str, Path], count: int) -> float:
    """Copies of the packages' files in a git repository, each at a path of its own.

    Returns:
        Their megabytes.
    """
    settings = one_process()
    files = [(name, file) for name in roots for file in parsed_files(roots[name], settings)]
    random.Random(SEED).shuffle(files)  # a part of them is of every package
    size = 0
    for number in range(count):
        name, file = files[number % len(files)]
        target = root / f"copy{number // len(files)}" / name / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(roots[name] / file.path, target)
        size += target.stat().st_size
    identity = ["-c", "user.name=benchmark", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    run(["git", "init", "--quiet"], root)
    run(["git", "add", "--force", "."], root)
    run(["git", *identity, "commit", "--quiet", "--no-verify", "--message=all"], root)
    listed = len(parsed_files(root, settings))
    if listed != count:
        raise ForgeError(
            f"Of {count} copied files {listed} are mined.",
            cause="a folder's name, or a .gitattributes, keeps others out",
            next_step="Look at what list_files skips, and leave out such files.",
        )
    return size / 1e6


def require_same(lines: str, expected: str, of: str) -> None:
    """Raises ForgeError where mining again did not give the lines of mining all anew."""
    if lines != expected:
        raise ForgeError(
            f"Mined again with a cache, {of} gave other lines than mined anew.",
            cause="the cache kept something that had changed",
            next_step="Compare both with forge_mcp.mining.repository.mine_repository.",
        )


# -- changes to files --------------------------------------------------------------------------

STATEMENTS = {
    "python": "benchmark_body = {}",
    "javascript": "const benchmarkBody{} = 1;",
    "typescript": "const benchmarkBody{} = 1;",
    "java": "int benchmarkBody{} = 1;",
}
ADDED = {
    "python": "\n\ndef benchmark_added_{}(value):\n    return value\n",
    "javascript": "\nfunction benchmarkAdded{}(value) {{\n  return value;\n}}\n",
    "typescript": "\nfunction benchmarkAdded{}(value: number) {{\n  return value;\n}}\n",
    "java": "\n    static int benchmarkAdded{}(int value) {{\n        return value;\n    }}\n",
}


def change_files(root: Path, count: int, number: int) -> None:
    """Add a function to each of some files and a statement to one that is there.

    The same files each time; `number` makes what is added differ.
    """
    files = list_files(root, [], [], sys.maxsize).files
    random.Random(SEED).shuffle(files)
    changed = 0
    for file in files:
        data = (root / file.path).read_bytes()
        edited = edit(data, language(file.language), number)
        if edited is not None:
            (root / file.path).write_bytes(edited)
            changed += 1
            if changed == count:
                return
    raise ForgeError(
        f"Only {changed} files could be changed.",
        cause="the others hold no function with a body of its own lines",
        next_step="Copy other packages.",
    )


def edit(data: bytes, spoken: Language, number: int) -> bytes | None:
    """A file with one function more and one body changed; None where that would break it."""
    if spoken.name not in ADDED or not is_utf8(data):
        return None
    before = find_definitions(spoken.parse(data), data, spoken).definitions
    statement = STATEMENTS[spoken.name].format(number).encode()
    added = ADDED[spoken.name].format(number).encode()
    for definition in before:
        at = definition.body_byte
        indent = data[data.rfind(b"\n", 0, at) + 1 : at] if at >= 0 else b""
        if definition.kind == "class" or at < 0:
            continue
        if data[at : at + 1] == b"{":
            edited = data[: at + 1] + b" " + statement + data[at + 1 :]
        elif spoken.name == "python" and not indent.strip():
            edited = data[:at] + statement + b"\n" + indent + data[at:]
        else:
            continue
        end = edited.rfind(b"}") if spoken.name == "java" else len(edited)
        edited = edited[:end] + added + edited[end:]
        after = find_definitions(spoken.parse(edited), edited, spoken)
        whole = not after.has_error and len(after.definitions) == len(before) + 1
        return edited if whole else None
    return None


# -- the whole ---------------------------------------------------------------------------------


def _as_dicts(costs: dict[str, Usage]) -> dict[str, dict[str, float]]:
    return {name: usage._asdict() for name, usage in costs.items()}


def measure(cache: Path, quick: bool) -> Iterator[Row]:
    """All rows, each as soon as it is known.

    Raises:
        ForgeError: something cannot be fetched, installed or measured.
    """
    roots = {given.name: fetch(given.package, cache) for given in INPUTS}
    step = TENTH if quick else 1
    for given in INPUTS:
        yield from against_parsing(given, roots[given.name], step)
    if not quick:
        for given in INPUTS:
            yield from against_chunkers(given, roots[given.name], cache)
    packages = {given.package.name: roots[given.name] for given in INPUTS}
    yield from many_files(packages, FILES // step, CHANGED_FILES // step)


def show(row: Row) -> None:
    """Print one line of the table."""
    target = f"at most {row.target:g}" if row.target is not None else ""
    value = f"{row.value:.3f}" if row.value < 100 else f"{row.value:.0f}"
    print(
        f"{row.part}  {row.subject:<62} {value:>7} {row.unit:<11} {target:<13} {row.verdict:<7}"
        f" {row.measured}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where something could not be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="parts 1 and 3, a tenth of the files")
    parser.add_argument("--cache", type=Path, help="folder of the packages that were fetched")
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    given = parser.parse_args(arguments)
    cache = given.cache or Path(tempfile.gettempdir()) / "forge-mining-oracles"
    machine = {**describe(), "load": " ".join(f"{load:.1f}" for load in os.getloadavg())}
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
