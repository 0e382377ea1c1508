"""Kill -9 at random moments over whole lines: what becomes of the jobs, and what is left behind.

    python benchmarks/job_faults.py [--kills 100] [--jobs 6] [--seed 17] [--json]

Several jobs retrain small repositories in one workspace. While they run, a victim is chosen at
random again and again (a client that waits, a starter, the worker, the process of a stage, the
training child) and killed -9. A job that failed because its own process was killed is retried, as
its user would. Afterwards, and all the time meanwhile, it is checked that

- every job ends, and a failed one says that its process was killed;
- a stage whose artifact was finished is never computed again;
- no artifact is half written, and nothing is left in staging;
- two jobs never train at once;
- no process outlives the one that started it by more than a heartbeat;
- the adapters are byte for byte those of runs that nobody disturbed.

Exit code 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from forge_mcp.jobs.stage import HEARTBEAT_SECONDS
from forge_mcp.machine import describe
from forge_mcp.workspace import FOLDERS, Workspace, hash_file

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "fixtures" / "sample_python_repo"
FORGE = [sys.executable, "-m", "forge_mcp.interfaces.cli"]
VICTIMS = ("client", "starter", "worker", "stage", "training")
FINAL = ("succeeded", "refused", "failed", "cancelled")
# What a skill says when it has found what it was asked for.
FOUND = ("Nothing has changed since", "with the same settings", "from the same")
PRODUCTS = {
    "extract": "corpus_id",
    "synthesize": "dataset_id",
    "validate": "report_id",
    "train": "run_id",
    "evaluate": "report_id",
    "export": "export_id",
}
SETTINGS = {
    "FORGE_TRAINING__MAX_STEPS": "24",
    "FORGE_TRAINING__EVAL_STEPS": "12",
    "FORGE_TRAINING__SAVE_STEPS": "4",
    "FORGE_TRAINING__VALID_EXAMPLES": "2",
    "FORGE_TRAINING__RANK": "4",
    "FORGE_TRAINING__BATCH_SIZE": "1",
    "FORGE_RAFT__EXAMPLES_PER_BLOCK": "2",
    "FORGE_RAFT__DISTRACTORS": "1",
    "FORGE_RAFT__MAX_DOCUMENT_CHARS": "600",
    "FORGE_QUALITY__MIN_EXAMPLES": "5",
    "FORGE_JUDGING__MAX_EXAMPLES": "2",
    "FORGE_JUDGING__PERPLEXITY_EXAMPLES": "4",
    "FORGE_JUDGING__MAX_TOKENS": "8",
    "FORGE_JUDGING__MAX_PERPLEXITY_RATIO": "1000",
    "FORGE_EXPORTING__PARITY_TOKENS": "128",
    "FORGE_EXPORTING__PARITY_ANSWERS": "0",
    "FORGE_JOBS__IDLE_SECONDS": "5",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass
class Seen:
    """What was observed meanwhile."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    made: dict[str, float] = field(default_factory=dict)
    retries: int = 0
    longest_orphan: float = 0.0


class Field:
    """One workspace, its repositories, and the commands that work on it."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.folder = folder
        self.home = folder / "forge"
        self.environment = os.environ | SETTINGS | {"FORGE_HOME": str(self.home)}
        self.repositories = []
        for number in range(jobs):
            repository = folder / f"sample{number}"
            shutil.copytree(SAMPLE, repository)
            self.repositories.append(repository)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A forge-mcp command; its standard output can be read."""
        return subprocess.Popen(
            [*FORGE, *arguments, "--json"],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run a command to its end; its JSON, or {} where it was killed."""
        out, _ = self.start(*arguments).communicate(timeout=300)
        with suppress(ValueError):
            fields: dict[str, Any] = json.loads(out)
            return fields
        return {}

    def processes(self, module: str) -> list[psutil.Process]:
        """The living processes of this workspace that run a module of ours."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error):
                mine = process.environ().get("FORGE_HOME") == str(self.home)
                if mine and module in (process.info["cmdline"] or ()):
                    found.append(process)
        return found


class Watcher(threading.Thread):
    """Looks all the time at what must never be: orphans, and artifacts that are not whole."""

    def __init__(self, field: Field, seen: Seen) -> None:
        super().__init__(daemon=True)
        self.field = field
        self.seen = seen
        self.stop = threading.Event()
        self._orphans: dict[int, float] = {}

    def run(self) -> None:
        """Until `stop` is set."""
        while not self.stop.wait(0.05):
            now = time.time()
            for kind, name in FOLDERS.items():
                for path in (self.field.home / name).glob("*-*"):
                    if path.name in self.seen.made:
                        continue
                    self.seen.made[path.name] = now
                    if not (path / "manifest.json").is_file():
                        self.seen.wrong.append(f"{kind} {path.name} appeared without manifest")
            self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        for module in ("forge_mcp.jobs.stage", "forge_mcp.training.child"):
            for process in self.field.processes(module):
                with suppress(psutil.Error):
                    parent = process.parent()
                    gone = parent is None or "forge_mcp" not in " ".join(parent.cmdline())
                    if not gone or process.status() == psutil.STATUS_ZOMBIE:
                        self._orphans.pop(process.pid, None)
                        continue
                    first = self._orphans.setdefault(process.pid, time.monotonic())
                    lasted = time.monotonic() - first
                    self.seen.longest_orphan = max(self.seen.longest_orphan, lasted)


def kill_one(field: Field, clients: list[subprocess.Popen[str]], draw: random.Random) -> str | None:
    """Kill -9 a victim that lives; returns what it was."""
    living: dict[str, list[int]] = {
        "client": [client.pid for client in clients if client.poll() is None],
        "worker": [process.pid for process in field.processes("forge_mcp.jobs.worker")],
        "stage": [process.pid for process in field.processes("forge_mcp.jobs.stage")],
        "training": [process.pid for process in field.processes("forge_mcp.training.child")],
    }
    chosen = [name for name in living if living[name]]
    if not chosen:
        return None
    name = draw.choice(chosen)
    with suppress(ProcessLookupError):
        os.kill(draw.choice(living[name]), signal.SIGKILL)
        return name
    return None


def start_job(field: Field, repository: Path, number: int, seen: Seen, draw: random.Random) -> str:
    """Queue a job; now and then its starter is killed while it does so, and another one starts."""
    arguments = ("retrain", str(repository), "--detach", "--set", f"training.seed={number}")
    if draw.random() < 0.5:
        victim = field.start(*arguments)
        time.sleep(draw.uniform(0.0, 2.5))
        if victim.poll() is None:
            victim.kill()
            seen.kills["starter"] += 1
        victim.communicate()
    # Asked again it is the same job where the first starter came far enough to queue it.
    job_id: str = field.ask(*arguments)["job_id"]
    return job_id


def reference(field: Field, jobs: int) -> dict[str, str]:
    """SHA-256 of every job's adapters when nobody disturbs it, by project."""
    hashes = {}
    for number, repository in enumerate(field.repositories[:jobs]):
        done = field.ask("retrain", str(repository), "--set", f"training.seed={number}")
        hashes[repository.name] = hash_file(Path(done["train"]["path"]) / "adapters.safetensors")
    return hashes


def disturb(field: Field, kills: int, seed: int, seen: Seen) -> dict[str, dict[str, Any]]:
    """Run the jobs, kill as often as asked while they run; returns every job's last status."""
    draw = random.Random(seed)
    watcher = Watcher(field, seen)
    watcher.start()
    ids = [start_job(field, path, n, seen, draw) for n, path in enumerate(field.repositories)]
    statuses: dict[str, dict[str, Any]] = {}
    clients: list[subprocess.Popen[str]] = []
    round_number = 0
    while True:
        clients = [client for client in clients if client.poll() is None]
        waiting = [i for i in ids if statuses.get(i, {}).get("state") not in ("succeeded",)]
        if waiting and len(clients) < 2:
            clients.append(field.start("jobs", "wait", draw.choice(waiting)))
        if sum(seen.kills.values()) < kills:
            time.sleep(draw.uniform(0.2, 2.0))
            if (name := kill_one(field, clients, draw)) is not None:
                seen.kills[name] += 1
        else:
            time.sleep(0.5)
        round_number += 1
        if round_number % 4:
            continue
        for job_id in waiting:
            statuses[job_id] = status = field.ask("jobs", "show", job_id)
            if status.get("state") == "failed":
                check_reason(status, seen)
                statuses[job_id] = field.ask("jobs", "retry", job_id)
                seen.retries += 1
        if all(statuses.get(i, {}).get("state") in FINAL for i in ids):
            if sum(seen.kills.values()) >= kills:
                break
            if all(statuses[i]["state"] == "succeeded" for i in ids):  # more to disturb
                number = len(ids)
                repository = field.repositories[number % len(field.repositories)]
                ids.append(start_job(field, repository, number, seen, draw))
    for client in clients:
        client.kill()
        client.communicate()
    watcher.stop.set()
    watcher.join()
    return statuses


def check_reason(status: dict[str, Any], seen: Seen) -> None:
    """A job may only fail because one of its processes was killed, and must say so."""
    error = status.get("error") or {}
    if "SIGKILL" not in error.get("message", ""):
        seen.wrong.append(f"{status['job_id']} failed for another reason: {error}")


def check_left(field: Field, statuses: dict[str, dict[str, Any]], seen: Seen) -> None:
    """Artifacts whole, nothing computed twice, one training at a time, no process left."""
    workspace = Workspace(field.home)
    for kind in FOLDERS:
        seen.wrong += [f"damaged: {name}" for name in workspace.damaged(kind)]
        for artifact in workspace.artifacts(kind):
            artifact.verify()
    left = [path.name for path in (field.home / "unfinished").glob("*")]
    if left:
        seen.wrong.append(f"left in unfinished/: {left}")
    trained: list[tuple[float, str, bool]] = []
    for job_id, status in statuses.items():
        rows = read_events(field.home / "jobs" / job_id / "events.jsonl")
        check_computed_once(job_id, status.get("result") or {}, rows, seen)
        begins = True
        for row in rows:
            if row["kind"] == "metric" and row["stage"] == "train":
                trained.append((row["time"], job_id, begins))
                begins = False
            elif row["kind"] == "state" and row["payload"].get("stage") == "train":
                begins = True
    trained.sort()
    for (_, before, _), (at, now, begins) in itertools.pairwise(trained):
        if now != before and not begins:
            seen.wrong.append(f"{now} trained while {before} did (at {at:.1f})")
    deadline = time.monotonic() + 30
    modules = ("forge_mcp.jobs.worker", "forge_mcp.jobs.stage", "forge_mcp.training.child")
    while any(field.processes(module) for module in modules):
        if time.monotonic() > deadline:
            seen.wrong.append("processes are left 30 s after the last job")
            break
        time.sleep(0.5)


def check_computed_once(
    job_id: str, result: dict[str, Any], rows: list[dict[str, Any]], seen: Seen
) -> None:
    """A stage that begins after its artifact was there must say that it found it."""
    begun: dict[str, float] = {}
    for position, row in enumerate(rows):
        if row["kind"] != "state" or "number" not in row["payload"]:
            continue
        stage = row["payload"]["stage"]
        artifact = (result.get(stage) or {}).get(PRODUCTS.get(stage, ""))
        began = begun.get(stage)
        begun[stage] = row["time"]
        if began is None or artifact is None or seen.made.get(artifact, 1e12) > row["time"] - 0.5:
            continue
        said = []
        for later in rows[position + 1 :]:
            if later["kind"] == "state":
                break
            said.append(later)
        worked = [one for one in said if one["kind"] in ("progress", "metric")]
        found = any(text in str(one["payload"].get("message")) for one in said for text in FOUND)
        if worked and not found:
            seen.wrong.append(f"{job_id}: {stage} was computed again although {artifact} was there")


def read_events(path: Path) -> list[dict[str, Any]]:
    """The rows of an events.jsonl that are whole."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def main() -> int:
    """Run it; returns 1 where something must not be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = Seen()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as calm, tempfile.TemporaryDirectory() as rough:
        expected = reference(Field(Path(calm), options.jobs), options.jobs)
        field = Field(Path(rough), options.jobs)
        statuses = disturb(field, options.kills, options.seed, seen)
        check_left(field, statuses, seen)
        same = 0
        for job_id, status in statuses.items():
            project = status.get("project", "")
            trained = ((status.get("result") or {}).get("train") or {}).get("path")
            if trained is None:
                seen.wrong.append(f"{job_id} did not come to a run: {status.get('state')}")
            elif list(statuses).index(job_id) < options.jobs:
                file = Path(trained) / "adapters.safetensors"
                same += hash_file(file) == expected[project]
    if same != options.jobs:
        seen.wrong.append(f"adapters of {options.jobs - same} jobs differ from undisturbed ones")
    if seen.longest_orphan > HEARTBEAT_SECONDS:
        seen.wrong.append(f"a process outlived its parent by {seen.longest_orphan:.1f} s")
    report = {
        "kills": dict(seen.kills),
        "jobs": len(statuses),
        "states": dict(Counter(str(status.get("state")) for status in statuses.values())),
        "retries": seen.retries,
        "artifacts": len(seen.made),
        "same_adapters": f"{same} of {options.jobs}",
        "longest_orphan_seconds": round(seen.longest_orphan, 2),
        "seconds": round(time.monotonic() - started),
        "wrong": seen.wrong,
    }
    if options.json:
        print(json.dumps(report))
    else:
        print(", ".join(f"{name} {value}" for name, value in describe().items()))
        for name, value in report.items():
            print(f"{name:<24}{value}")
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
