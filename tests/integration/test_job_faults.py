"""Kill -9 at random over whole lines: a sample of benchmarks/job_faults.py, and that it can see."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.integration
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "job_faults.py"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("job_faults", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["job_faults"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.e2e
def test_nothing_is_lost_when_processes_are_killed() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--kills", "5", "--jobs", "2", "--seed", "3", "--json"],
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert report["wrong"] == [] and done.returncode == 0
    assert sum(report["kills"].values()) >= 5
    assert set(report["states"]) == {"succeeded"} and report["same_adapters"] == "2 of 2"


def rows(*stages: tuple[str, float, str]) -> list[dict[str, Any]]:
    """Events of stages: (name, time at which it began, what it said)."""
    made: list[dict[str, Any]] = []
    for name, time, said in stages:
        begins = {"stage": name, "number": 1, "of": 7}
        made.append({"kind": "state", "stage": name, "time": time, "payload": begins})
        for kind, payload in (("progress", {"done": 1}), ("log", {"message": said})):
            made.append({"kind": kind, "stage": name, "time": time, "payload": payload})
    return made


@pytest.mark.parametrize(
    ("second", "said", "wrong"),
    [
        (100.0, "corpus-a: 3 blocks from 1 files.", True),  # computed again
        (100.0, "Nothing has changed since corpus-a was made.", False),
        (11.0, "corpus-a: 3 blocks from 1 files.", False),  # it was not there yet
    ],
)
def test_the_benchmark_sees_what_is_computed_twice(
    faults: ModuleType, second: float, said: str, wrong: bool
) -> None:
    seen = faults.Seen(made={"corpus-a": 20.0})
    events = rows(("extract", 10.0, "corpus-a: 3 blocks"), ("extract", second, said))
    faults.check_computed_once("job-a", {"extract": {"corpus_id": "corpus-a"}}, events, seen)
    assert bool(seen.wrong) is wrong


def test_the_benchmark_sees_a_failure_for_another_reason(faults: ModuleType) -> None:
    seen = faults.Seen()
    faults.check_reason({"job_id": "j", "error": {"message": "killed (SIGKILL)"}}, seen)
    assert seen.wrong == []
    faults.check_reason({"job_id": "j", "error": {"message": "stopped on a bug"}}, seen)
    assert len(seen.wrong) == 1
