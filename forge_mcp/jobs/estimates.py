"""How long stages took before: what a job's progress and its remaining time are reckoned from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forge_mcp.jobs.folder import jobs_root
from forge_mcp.schemas.jobs import JobSpec
from forge_mcp.workspace import hash_inputs

FILE = "durations.jsonl"
KEPT = 500  # rows; older ones are dropped when the file is twice as long
RECENT = 5  # runs that an estimate is the median of
# Shares of a line's time while nothing was measured here yet: of the project's own demo.
USUAL = {
    "extract": 0.02,
    "synthesize": 0.03,
    "validate": 0.02,
    "train": 0.68,
    "evaluate": 0.19,
    "export": 0.05,
    "deploy": 0.01,
}


class Durations:
    """Seconds that stages took in this workspace, most alike first."""

    def __init__(self, home: Path) -> None:
        self._path = jobs_root(home) / FILE

    def note(self, spec: JobSpec, stage: str, seconds: float) -> None:
        """Remember how long a stage took that was really computed."""
        row = {"stage": stage, **_likeness(spec), "seconds": round(seconds, 3)}
        rows = self._rows()
        if len(rows) >= 2 * KEPT:
            kept = "".join(json.dumps(row) + "\n" for row in rows[-KEPT:])
            self._path.write_text(kept, encoding="utf-8")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def expected(self, spec: JobSpec, stage: str) -> float | None:
        """Median of the last runs of this stage: with these settings, else of this project.

        Another project says nothing about how large this one is: then it is not known.
        """
        rows = [row for row in self._rows() if row.get("stage") == stage]
        like = _likeness(spec)
        for keys in (("project", "settings"), ("project",)):
            same = [row for row in rows if all(row.get(key) == like[key] for key in keys)]
            if same:
                return float(statistics.median(row["seconds"] for row in same[-RECENT:]))
        return None

    def _rows(self) -> list[dict[str, Any]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:  # cut by a crash
                continue
        return rows


def _likeness(spec: JobSpec) -> dict[str, Any]:
    """What runs have in common whose durations are comparable."""
    shaping = {key: spec.request.get(key) for key in ("base", "epochs", "max_steps", "rank")}
    return {
        "project": spec.project,
        "settings": hash_inputs({"settings": spec.settings, "request": shaping})[:12],
    }


class Estimate:
    """Progress and time left of one job, from the stages it has."""

    def __init__(self, durations: Durations, spec: JobSpec, stages: Sequence[str]) -> None:
        self._expected = {stage: durations.expected(spec, stage) for stage in stages}
        self._stages = list(stages)

    def progress(self, stage: str, share: float) -> float:
        """How far the job is, 0 to 1, when `share` of a stage is done."""
        weights = self._weights()
        before = self._stages.index(stage)
        done = sum(weights[:before]) + weights[before] * min(max(share, 0.0), 1.0)
        return min(done / sum(weights), 1.0)

    def left(self, stage: str, share: float, told: float | None) -> float | None:
        """Seconds left; None where some stage was never measured.

        Args:
            told: what the stage itself says of its remaining time, which counts for more.
        """
        after = [self._expected[name] for name in self._stages[self._stages.index(stage) + 1 :]]
        now = self._expected[stage]
        here = told if told is not None else None if now is None else now * (1 - min(share, 1.0))
        if here is None or None in after:
            return None
        return here + sum(seconds for seconds in after if seconds is not None)

    def _weights(self) -> list[float]:
        known = list(self._expected.values())
        if all(seconds is not None for seconds in known):
            return [max(seconds or 0.0, 0.01) for seconds in known]
        return [USUAL.get(stage, 1.0) for stage in self._stages]
