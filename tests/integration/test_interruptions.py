"""Ctrl-C at every stage of the line: one clear error, exit code 130, the workspace as it was."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from driven_line import Line

pytestmark = pytest.mark.integration
STAGES = ("extract", "synthesize", "validate", "train", "evaluate", "export", "deploy")


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    yield Line(tmp_path_factory.mktemp("interrupted"))


# In the order of the line: a stage that was finished before the interruption is found again, so
# each test only computes what the one before was kept from.
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c(line: Line, stage: str) -> None:
    before = line.files() if line.home.exists() else {}
    process = line.start("retrain", ".")
    assert process.stderr is not None
    children: list[psutil.Process] = []
    for text in process.stderr:
        if text.rstrip().endswith(f"/7] {stage}"):
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=180)

    assert process.returncode == 130, err
    assert '"code": "cancelled"' in out or '"code":"cancelled"' in out
    assert "Traceback" not in err
    after = line.files()
    assert {name: after.get(name) for name in before} == before, "what was finished is untouched"
    assert not [name for name in after if name.startswith("staging/")]
    assert not [child for child in children if child.is_running()]
    # What is new is whole: a finished stage's artifact with its manifest.
    new = {name.split("/")[1] for name in after.keys() - before.keys()}
    for artifact in new:
        assert any(name.split("/")[1:] == [artifact, "manifest.json"] for name in after)


def test_after_all_that_the_line_ends_well(line: Line) -> None:
    code, result = line.run("retrain", ".")
    assert code == 0
    assert result["state"] == "succeeded"
    assert all(result[stage] for stage in STAGES)


def test_a_second_run_computes_nothing_again(line: Line) -> None:
    before = line.files()
    code, result = line.run("retrain", ".")
    assert code == 0
    assert result["deployed"]
    new = {name.split("/")[0] for name in line.files().keys() - before.keys()}
    # Only the evaluation sees something new: there is a deployed model to compare with.
    assert new <= {"reports", "deployments"}


def test_killing_the_command_kills_the_training(tmp_path: Path) -> None:
    line = Line(tmp_path)
    process = line.start(
        "retrain", ".", FORGE_TRAINING__MAX_STEPS="0", FORGE_TRAINING__NUM_TRAIN_EPOCHS="900"
    )
    command = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    while process.poll() is None and not children:
        time.sleep(0.2)
        found = command.children(recursive=True)
        children = [c for c in found if "forge_mcp.training.child" in c.cmdline()]
    assert children, "training runs in a child process"
    time.sleep(3)  # into the training
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    process.communicate()
    assert not alive
