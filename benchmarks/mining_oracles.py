"""The miner's definitions against parsers that this project did not write.

    python benchmarks/mining_oracles.py [--language NAME] [--cache FOLDER] [--json FILE]

Packages with fixed versions are fetched with pip, npm and apt-get (Debian 12), mined, and read
again by each language's oracle: Python's `ast`, acorn, TypeScript's own parser, universal-ctags
and others. A definition is matched where the miner has a block of its name and its span. Files
that the miner leaves out on purpose (generated, minified, below `vendor`, …) and files that the
oracle cannot parse are counted apart.

Exit code 1 where a goal is missed or a comparison could not be run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from oracles.catalogue import TASKS, Task
from oracles.comparison import Comparison, Miss, Verdict, compare
from oracles.known_errors import without_known_errors
from oracles.packages import fetch

from forge_mcp.errors import ForgeError
from forge_mcp.mining.files import header_language, list_files
from forge_mcp.mining.languages import LANGUAGES
from forge_mcp.mining.miner import parse_repository
from forge_mcp.mining.text import decode, text_skip_reason
from forge_mcp.settings import Settings, load_settings

ON_PURPOSE = ("vendored", "too_large", "generated", "minified")
VERDICTS: tuple[Verdict, ...] = ("missing", "wrong span", "wrong docstring", "extra")


@dataclass
class Input:
    """One package as it was compared. `left_out` counts files by reason."""

    package: str
    files: int
    megabytes: float
    left_out: dict[str, int]
    unparsed: list[str]
    oracle_errors: int = 0


@dataclass
class Report:
    """One language's result."""

    language: str
    oracle: str
    goal: float
    inputs: list[Input] = field(default_factory=list)
    expected: int = 0
    endless: int = 0
    matched: int = 0
    misses: list[Miss] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Definitions that the miner has right, of those of the oracle."""
        return self.matched / self.expected if self.expected else 0.0

    @property
    def passed(self) -> bool:
        """Whether the goal is met."""
        return self.share >= self.goal

    def add(self, folder: str, comparison: Comparison) -> None:
        """Take in one package's comparison; `folder` is where its files lie in the cache."""
        self.expected += comparison.expected
        self.endless += comparison.endless
        self.matched += comparison.matched
        self.misses += [replace(miss, path=f"{folder}/{miss.path}") for miss in comparison.misses]


def read_sources(
    root: Path, task: Task, settings: Settings
) -> tuple[dict[str, bytes], Counter[str]]:
    """The files that the miner is to read, path → bytes.

    The second value counts the files of the task's languages that it leaves out on purpose.
    """
    project, limit = settings.project, settings.mining.max_file_bytes
    listing = list_files(root, project.include, project.exclude, limit)
    reasons = (*ON_PURPOSE, "excluded") if task.exclude else ON_PURPOSE
    left_out = Counter({reason: listing.skipped[reason] for reason in reasons})
    sources = {}
    for file in listing.files:
        data = (root / file.path).read_bytes()
        header = file.language == "c" and file.path.endswith(".h")
        language = header_language(data) if header else file.language
        if language not in task.languages:
            continue
        if reason := text_skip_reason(data, decode(data, language, file.path), file.path):
            left_out[reason] += 1
        else:
            sources[file.path] = data
    return sources, +left_out


def compare_folder(
    root: Path, task: Task, cache: Path, name: str = "", package: str = ""
) -> tuple[Comparison, Input]:
    """Mine a folder, read it with the oracle, and compare.

    Args:
        root: of the files.
        task: what is compared.
        cache: folder with the packages that were fetched, among them the oracle's parser.
        name: of the task; with `package` it finds the oracle's known errors.
        package: name of the package that `root` holds.

    Raises:
        Unavailable: the oracle, or a grammar, is not installed.
    """
    project = {"include": list(task.include), "exclude": list(task.exclude)}
    # One process: the figures are not about speed, and other measurements may be running.
    settings = load_settings(call={"project": project, "mining": {"workers": 1}})
    sources, left_out = read_sources(root, task, settings)
    found, unparsed = task.oracle(root, sources, cache)
    expected, errors = without_known_errors(found, sources, name, package)
    mined = parse_repository(root, settings)
    outside = set(unparsed)
    blocks = [
        block
        for block in [*mined.blocks, *mined.rejected]
        if block.language in task.languages and block.path not in outside
    ]
    size = sum(map(len, sources.values())) / 1e6
    comparison = compare(expected, blocks, sources, task.syntax)
    return comparison, Input(package, len(sources), size, dict(left_out), unparsed, errors)


def run(name: str, cache: Path) -> Report:
    """One language's whole comparison.

    Raises:
        Unavailable: a package cannot be fetched, or a tool is not installed.
    """
    task = TASKS[name]
    report = Report(name, task.oracle_name, task.goal)
    for package in task.packages:
        root = fetch(package, cache)
        comparison, read = compare_folder(root, task, cache, name, package.name)
        read.package = str(package)
        report.inputs.append(read)
        report.add(root.relative_to(cache).as_posix(), comparison)
    return report


def show(report: Report) -> None:
    """Print one language's table."""
    print(f"\n## {report.language} against {report.oracle}")
    for given in report.inputs:
        skipped = ", ".join(f"{count} {reason}" for reason, count in given.left_out.items())
        print(
            f"  {given.package}: {given.files} files, {given.megabytes:.1f} MB"
            + (f"; left out on purpose: {skipped}" if skipped else "")
            + (f"; not read by the oracle: {len(given.unparsed)}" if given.unparsed else "")
            + (f"; errors of the oracle: {given.oracle_errors}" if given.oracle_errors else "")
        )
    counts = Counter(miss.verdict for miss in report.misses)
    met = "met" if report.passed else "MISSED"
    print(
        f"  definitions {report.expected}, matched {report.matched} ({report.share:.3%}), "
        f"goal {report.goal:.2%} {met}"
    )
    if report.endless:
        print(f"  {report.endless} of them compared by name and first line only")
    print("  " + ", ".join(f"{verdict} {counts[verdict]}" for verdict in VERDICTS))
    groups: dict[tuple[Verdict, str], list[Miss]] = defaultdict(list)
    for miss in report.misses:
        groups[miss.verdict, miss.kind].append(miss)
    order = sorted(groups, key=lambda key: (VERDICTS.index(key[0]), -len(groups[key])))
    for verdict_kind in order:
        misses = groups[verdict_kind]
        first = misses[0]
        print(
            f"  {len(misses):>6} {verdict_kind[0]}, {verdict_kind[1]}: "
            f"{first.path}:{first.line} {first.name} {first.detail}".rstrip()
        )


def as_json(report: Report) -> dict[str, Any]:
    """A report as plain values, with every single difference."""
    return {**asdict(report), "share": report.share, "passed": report.passed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparisons that are asked for; 1 where a goal is missed or one could not be run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language", choices=TASKS, action="append", help="default: all")
    parser.add_argument("--cache", type=Path, help="folder of the packages that were fetched")
    parser.add_argument("--json", type=Path, help="also write every difference into this file")
    given = parser.parse_args(arguments)
    cache = given.cache or Path(tempfile.gettempdir()) / "forge-mining-oracles"
    reports, failed = [], False
    for name in given.language or TASKS:
        if missing := [part for part in TASKS[name].languages if part not in LANGUAGES]:
            print(f"\n## {name}: not mined ({', '.join(missing)})")
            continue
        try:
            reports.append(run(name, cache.resolve()))
        except ForgeError as error:
            print(f"\n## {name}\n{error}", file=sys.stderr)
            failed = True
            continue
        show(reports[-1])
    if given.json:
        given.json.write_text(json.dumps([as_json(report) for report in reports], indent=1) + "\n")
    return 1 if failed or not all(report.passed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
