"""The examiner on real repositories: what in their datasets is false, leaked or miscounted.

    python benchmarks/data_checker.py [--repository NAME] [--cache FOLDER] [--faults] [--json FILE]

Packages with fixed versions are fetched with pip, npm and apt-get (Debian 12). Each goes through
`forge-mcp extract` and `synthesize` in a FORGE_HOME of its own, twice; then
tests/dataset_checker.py looks for every quote, derives every fact again from the files, and looks
for leaks. With --faults, every fault of tests/unit/planted_faults.py is planted on good examples,
and the validator judges.

Exit code 1 where anything is found, two builds differ, or more than 1% of the facts could not be
decided; with --faults also where broken examples are not told from good ones (AUC below 0.95), or
a good one is dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oracles.packages import Package, fetch

from forge_mcp.errors import ForgeError

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

if TYPE_CHECKING:
    from dataset_checker import Findings
    from fault_trials import Trial

TYPESCRIPT = Package("npm", "typescript", "5.9.3", "package")
REPOSITORIES = {
    "python": Package("pip", "django", "5.2.19", "django-*/django/core"),
    "javascript": Package("npm", "express", "5.3.0", "package"),
    "typescript": Package("npm", "rxjs", "7.8.2", "package"),
    "go": Package("deb", "golang-github-gin-gonic-gin-dev", "1.8.1-1"),
    "java": Package("deb-src", "libcommons-lang3-java", "3.12.0-2+deb12u1"),
}
USUAL = ("python", "typescript", "go")
UNDECIDED = 0.01
LEAST_AUC = 0.95
GOOD = 500
CASES = 8
FILES = ("documents", "examples", "preferences", "train", "valid", "test")


@dataclass
class Report:
    """What was found in one repository's dataset."""

    name: str
    package: str
    seconds: float
    examples: int
    differing: list[str]
    findings: Findings
    trial: Trial | None = None
    failures: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Collect what makes the run fail."""
        if self.findings.problems:
            self.failures.append(f"{len(self.findings.problems)} problems")
        if self.findings.undecided_share > UNDECIDED:
            self.failures.append(f"{self.findings.undecided_share:.1%} of the facts are undecided")
        if self.differing:
            self.failures.append(f"two builds differ in {', '.join(self.differing)}")
        if self.trial is not None:
            if self.trial.auc() < LEAST_AUC:
                self.failures.append(f"AUC {self.trial.auc():.3f}")
            if self.trial.good_dropped:
                self.failures.append(f"{len(self.trial.good_dropped)} good examples are dropped")
            if unseen := self.trial.unseen():
                self.failures.append(f"faults that are not told: {', '.join(unseen)}")


def forge(home: Path, *arguments: str) -> dict[str, Any]:
    """The result of a skill, run as a user runs it.

    Raises:
        ForgeError: it failed; its own words are the cause.
    """
    command = [sys.executable, "-m", "forge_mcp.interfaces.cli", *arguments, "--json"]
    environment = os.environ | {"FORGE_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ForgeError(
            f"forge-mcp {arguments[0]} failed.",
            cause=done.stderr.strip()[-600:],
            next_step="Run it alone with the same repository.",
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def build(root: Path, home: Path) -> tuple[Path, Path]:
    """Folders of a corpus and of a dataset that were made of a repository."""
    corpus = forge(home, "extract", str(root))
    dataset = forge(home, "synthesize", corpus["corpus_id"])
    return Path(corpus["path"]), Path(dataset["path"])


def run(name: str, cache: Path, *, faults: bool) -> Report:
    """Build a repository's dataset twice and look into it."""
    from dataset_checker import check_dataset, same_bytes

    package = REPOSITORIES[name]
    root, typescript = fetch(package, cache), fetch(TYPESCRIPT, cache)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        corpus, dataset = build(root, Path(temporary) / "one")
        _, again = build(root, Path(temporary) / "two")
        findings = check_dataset(dataset, corpus, root, typescript=typescript)
        report = Report(
            name=name,
            package=str(package),
            seconds=round(time.monotonic() - started, 1),
            examples=findings.checked["ids"],
            differing=same_bytes(dataset, again, [f"{file}.jsonl" for file in FILES]),
            findings=findings,
            trial=plant(dataset, Path(temporary)) if faults else None,
        )
    report.judge()
    return report


def plant(dataset: Path, work: Path) -> Trial:
    """Every fault on the first good examples of a dataset."""
    from dataset_checker import read_dataset
    from fault_trials import run_trial
    from planted_faults import BENCHMARK_PROBLEM

    from forge_mcp.settings import load_settings

    problems = work / "HumanEval.jsonl"
    problems.write_text(json.dumps(BENCHMARK_PROBLEM) + "\n")
    quality = load_settings(None).quality.model_copy(update={"humaneval_path": str(problems)})
    rows = read_dataset(dataset)
    return run_trial(rows.examples[:GOOD], rows.documents, quality, CASES)


def show(report: Report) -> None:
    """Print one repository's tables."""
    print(f"\n## {report.name}: {report.package}, {report.examples} examples, {report.seconds} s\n")
    print(report.findings.table())
    if report.trial is not None:
        good = report.trial.good
        usual = sum(0.7 <= score <= 0.9 for score in good) / len(good)
        print(f"\nAUC {report.trial.auc():.3f}; {len(good)} good examples, mean score ", end="")
        print(f"{sum(good) / len(good):.3f}, {usual:.1%} within 0.7-0.9; ", end="")
        print(f"{len(report.trial.good_dropped)} dropped\n")
        print(report.trial.table())
        print(f"\nnot planted: {', '.join(report.trial.not_planted) or 'none'}")
    print("\n" + ("; ".join(report.failures) or "nothing wrong"))


def as_json(report: Report) -> dict[str, Any]:
    """One repository's result, for programs."""
    result: dict[str, Any] = {
        "name": report.name,
        "package": report.package,
        "seconds": report.seconds,
        "examples": report.examples,
        "checked": dict(report.findings.checked),
        "problems": [vars(problem) for problem in report.findings.problems],
        "undecided": [vars(problem) for problem in report.findings.undecided],
        "failures": report.failures,
    }
    if report.trial is not None:
        result["auc"] = report.trial.auc()
        result["not_told"] = [
            {
                "fault": outcome.case.fault.name,
                "score": outcome.score,
                "example": outcome.case.broken.example.model_dump(),
                "documents": sorted(outcome.case.broken.documents),
            }
            for outcome in report.trial.outcomes
            if not outcome.told
        ]
        result["told"] = {
            name: sum(outcome.told for outcome in outcomes) / len(outcomes)
            for name, outcomes in report.trial.by_kind().items()
        }
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Look into every repository that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repository",
        choices=REPOSITORIES,
        action="append",
        help=f"default: {', '.join(USUAL)}",
    )
    parser.add_argument("--cache", type=Path, help="folder of the packages that were fetched")
    parser.add_argument("--faults", action="store_true", help="also plant faults")
    parser.add_argument("--json", type=Path, help="also write every problem into this file")
    given = parser.parse_args(arguments)
    cache = (given.cache or Path(tempfile.gettempdir()) / "forge-mining-oracles").resolve()
    reports, failed = [], False
    for name in given.repository or USUAL:
        try:
            reports.append(run(name, cache, faults=given.faults))
        except ForgeError as error:
            print(f"\n## {name}\n{error}", file=sys.stderr)
            failed = True
            continue
        show(reports[-1])
    if given.json:
        given.json.write_text(json.dumps([as_json(report) for report in reports], indent=1) + "\n")
    return 1 if failed or any(report.failures for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
