"""Exports, deployments and rollbacks under fire: killed, without space, and several at once."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from forge_mcp.pipeline.deploy import DeployRequest, deploy
from forge_mcp.pipeline.export import ExportRequest, export
from forge_mcp.serving import registry
from forge_mcp.serving.chat import unload
from forge_mcp.workspace import Workspace

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from serving_house import (
    ANSWER,
    House,
    make_house,
    make_run,
    scripted_model,
)

pytestmark = pytest.mark.integration
KILLS = 36
KILLED = Path(__file__).with_name("killed_deployment.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


@pytest.fixture
def house(tmp_path: Path, base: Path) -> House:
    """With two deployments, f16 and q8_0."""
    made = make_house(tmp_path / "forge", base)
    made.report(True, 1)
    for quantization in ("f16", "q8_0"):
        found = export(ExportRequest(run=made.run.id, quantization=quantization), made.context)
        deploy(DeployRequest(run_or_export=found.export_id), made.context)
    unload()
    return made


def under_fire(house: House, mode: str, count: int, seed: int = 8) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(KILLED), str(house.workspace.home), str(seed), mode, str(count)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_sound(left: dict[str, Any]) -> None:
    """The active model answers, every artifact is whole, the history is a chain to the active."""
    assert "error" not in left, left["error"]
    assert left["answer"] == "`rows`"
    assert left["model"] == left["active"] is not None
    assert (left["damaged"], left["staging"]) == ([], [])
    assert left["history"][-1] == [left["previous"], left["active"]]
    before = None
    for start, end in left["history"]:
        assert start == before != end
        before = end


def assert_only_grows(rows: list[dict[str, Any]]) -> None:
    """One attempt changes the active model once, or not at all."""
    histories = [row["left"]["history"] for row in rows]
    for earlier, later in itertools.pairwise(histories):
        assert later[: len(earlier)] == earlier
        assert len(later) - len(earlier) in (0, 1)


def test_whatever_is_killed_the_active_model_answers(house: House) -> None:
    first, *rows, last = under_fire(house, "kill", KILLS)
    assert all(isinstance(row["done"], str) for row in first["whole"].values())
    killed = [row for row in rows if row["found"] is None]
    assert len(killed) == KILLS
    assert len({row["operation"] for row in killed}) == 4
    assert min(Counter(row["moment"] for row in killed).values()) >= KILLS // 4
    for row in [*rows, last]:
        assert_sound(row["left"])
    assert_only_grows([*rows, last])
    assert last["last"]["done"] == last["left"]["active"]


def test_a_full_disk_changes_nothing_and_is_said(house: House) -> None:
    _, *rows, last = under_fire(house, "full", 16)
    for row in [*rows, last]:
        assert_sound(row["left"])
    assert_only_grows([*rows, last])
    refused = [row for row in rows if not isinstance(row["found"]["done"], str)]
    assert {row["found"]["done"]["code"] for row in refused} == {"out_of_space"}
    assert all("space" in row["found"]["done"]["message"] for row in refused)
    assert len(refused) > 8
    for row, before in zip(rows[1:], rows, strict=False):
        if row in refused:
            assert row["left"]["history"] == before["left"]["history"]
    assert last["last"]["done"] == last["left"]["active"]


def test_several_at_once_and_somebody_asking_all_the_while(house: House, base: Path) -> None:
    """Two runs, each judged against the other: pairs of processes deploy the same one."""
    dataset = house.workspace.load(house.run.manifest.parents[0], "dataset")
    other = make_run(house.workspace, dataset, base, "pissa")
    for number, (run, against) in enumerate([(house.run, other), (other, house.run)], start=2):
        with house.workspace.stage("report", "demo") as staged:
            facts = {"deployed_model": against.id}
            (staged.path / "report.json").write_text(json.dumps(facts))
            staged.commit(
                id=f"report-demo-{number}",
                inputs_hash=f"{number:064}",
                parents=[run.id],
                result={"passed": True, "reasons": []},
            )
    (row,) = under_fire(house, "together", 4)
    assert_sound(row["left"])
    assert isinstance(row["asked"], int) and row["asked"] > 10, row["asked"]
    changes = [change for rows in row["changes"] for change in rows]
    done = [end for _, end in changes if isinstance(end, str)]
    told = {end["code"] for _, end in changes if not isinstance(end, str)}
    assert told <= {"busy"}, "what was refused was refused because somebody else was first"
    assert len(done) > 10
    assert set(done) <= {end for _, end in row["left"]["history"]}
    runs = {
        registry.find_deployment(Workspace(house.workspace.home), "demo", model).run
        for model in done
    }
    assert runs == {house.run.id, other.id}
