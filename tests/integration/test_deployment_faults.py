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
from conformance_ollama import ConformanceOllama

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
KILLS = 30
KILLED = Path(__file__).with_name("killed_deployment.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted") / "m", ANSWER)


@pytest.fixture
def house(tmp_path: Path, base: Path) -> House:
    """With two deployments, f16 and q8_0."""
    return house_in(tmp_path, base)


def house_in(folder: Path, base: Path, **serving: Any) -> House:
    settings = {"num_ctx": 512, "num_predict": 64, "threads": 1, **serving}
    made = make_house(folder / "forge", base, serving=settings)
    made.report(True, 1)
    for quantization in ("f16", "q8_0"):
        found = export(ExportRequest(run=made.run.id, quantization=quantization), made.context)
        deploy(DeployRequest(run_or_export=found.export_id), made.context)
    unload()
    return made


def under_fire(house: House, mode: str, count: int, *ollama: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(KILLED), str(house.workspace.home), "8", mode, str(count), *ollama],
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
    assert Counter(row["moment"] for row in killed) == dict.fromkeys(
        ("files", "statements", "time"), KILLS // 3
    )
    for row in [*rows, last]:
        assert_sound(row["left"])
    assert_only_grows([*rows, last])
    assert last["last"]["done"] == last["left"]["active"]


def test_what_a_kill_leaves_in_ollama_is_removed_by_the_next_deployment(
    tmp_path: Path, base: Path
) -> None:
    with ConformanceOllama(tmp_path / "ollama") as ollama:
        made = house_in(tmp_path, base, target="ollama", ollama_host=ollama.host)
        first, *rows, last = under_fire(made, "kill", 6, ollama.host)
        assert_sound(last["left"])
    assert all(isinstance(row["done"], str) for row in first["whole"].values())
    for row in rows:
        assert_sound(row["left"])
        left = row["left"]
        assert set(left["deployed"]) <= set(left["in_ollama"])
        assert set(left["in_ollama"]) <= {*left["deployed"], *left["half_made"]}
    assert rows[0]["found"] is None
    (begun,) = rows[0]["left"]["half_made"]
    assert begun in rows[0]["left"]["in_ollama"]
    assert last["left"]["half_made"] == []
    assert last["left"]["in_ollama"] == last["left"]["deployed"]
    assert_only_grows([*rows, last])


def test_a_full_disk_changes_nothing_and_is_said(house: House) -> None:
    _, *rows, last = under_fire(house, "full", 10)
    for row in [*rows, last]:
        assert_sound(row["left"])
    assert_only_grows([*rows, last])
    refused = [row for row in rows if not isinstance(row["found"]["done"], str)]
    assert {row["found"]["done"]["code"] for row in refused} == {"out_of_space"}
    assert all("space" in row["found"]["done"]["message"] for row in refused)
    assert len(refused) > 4
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
