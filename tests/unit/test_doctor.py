"""The skill `doctor`: every check finds the fault it is there for, and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forge_mcp import machine
from forge_mcp.errors import Unavailable
from forge_mcp.interfaces.cli import main
from forge_mcp.pipeline import doctor as doctor_module
from forge_mcp.pipeline.doctor import DoctorRequest, doctor
from forge_mcp.pipeline.skill import SkillContext
from forge_mcp.settings import load_settings
from forge_mcp.workspace import Workspace


@pytest.fixture
def context(tmp_path: Path) -> SkillContext:
    workspace = Workspace(tmp_path / "forge")
    return SkillContext(workspace=workspace, settings=load_settings(None), project="")


def finding(name: str, context: SkillContext) -> tuple[str, str, str]:
    """State, detail and next step of one check."""
    check = doctor_module._carry_out(name, doctor_module.CHECKS[name], context)
    return check.state, check.detail, check.next_step


def test_this_machine_is_healthy(context: SkillContext) -> None:
    result = doctor(DoctorRequest(), context)
    assert [check.name for check in result.checks] == list(doctor_module.CHECKS)
    assert result.ok, [check for check in result.checks if check.state == "error"]
    assert result.machine["python"] and result.seconds > 0


def test_a_command_with_a_fault_fails_and_draws_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Only the cheap checks, so that this test is about the command.
    cheap = {name: doctor_module.CHECKS[name] for name in ("python", "settings", "registry")}
    monkeypatch.setattr(doctor_module, "CHECKS", cheap)
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "forge"))
    monkeypatch.chdir("/")
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["ok"] is True
    monkeypatch.setenv("FORGE_TRAINING__RANK", "-3")
    assert main(["doctor", "--json"]) == 1
    checks = {one["name"]: one for one in json.loads(capfd.readouterr().out)["checks"]}
    assert checks["settings"]["state"] == "error"
    assert "training.rank" in checks["settings"]["detail"]
    assert main(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "FAIL  settings" in out and "ok    python" in out and "needs attention" in out
    assert main(["doctor", "--set", "nonsense.key=1"]) == 2


def test_a_damaged_registry(context: SkillContext) -> None:
    context.workspace.home.mkdir(parents=True)
    (context.workspace.home / "forge.db").write_bytes(b"no database" * 500)
    state, detail, next_step = finding("registry", context)
    assert state == "error" and "forge.db is damaged" in detail and "Move" in next_step


def test_a_workspace_that_is_no_folder(context: SkillContext) -> None:
    context.workspace.home.write_text("a file")
    assert finding("workspace", context)[0] == "error"
    assert finding("registry", context)[0] == "error"


@pytest.mark.parametrize(
    ("free", "state"), [(10_000_000_000, "ok"), (2_000_000_000, "warning"), (1_000, "error")]
)
def test_disk(
    context: SkillContext, monkeypatch: pytest.MonkeyPatch, free: int, state: str
) -> None:
    monkeypatch.setattr(doctor_module, "free_bytes", lambda path: free)
    found = finding("disk", context)
    assert found[0] == state and bool(found[2]) == (state != "ok")


def test_openblas_missing_on_linux(context: SkillContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(machine, "load_openblas", lambda: None)
    monkeypatch.setattr(machine, "on_cpu", lambda: True)
    state, detail, next_step = finding("blas", context)
    assert (state, next_step) == ("warning", machine.OPENBLAS_ADVICE) and "slower" in detail


def test_git_missing(context: SkillContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert finding("git", context) == ("error", "git is not on the PATH", "Install git.")


def test_embedded_base_missing_or_damaged(
    context: SkillContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "base"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    monkeypatch.setattr(doctor_module, "EMBEDDED_BASE", str(broken))
    state, detail, next_step = finding("embedded base", context)
    assert state == "error" and "safetensors" in detail and next_step


def test_a_base_that_is_not_here_is_a_warning(context: SkillContext) -> None:
    context.settings.project.base = "no-such-base"
    state, detail, next_step = finding("project base", context)
    assert state == "warning" and "no-such-base" in detail and "forge-nano" in next_step


def test_without_llamacpp(context: SkillContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise Unavailable("llama.cpp's library is not there.", next_step="Use f16 or q8_0.")

    monkeypatch.setattr("forge_mcp.exporting.llamacpp.library", missing)
    found = finding("llama.cpp", context)
    assert found == ("warning", "llama.cpp's library is not there.", "Use f16 or q8_0.")


def test_without_the_embedded_runtime(
    context: SkillContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finding("embedded runtime", context)[0] == "ok"

    def missing() -> None:
        raise Unavailable("It cannot be used.", cause="no Server", next_step="pip install it.")

    monkeypatch.setattr("forge_mcp.serving.llamacpp_runtime.runtime", missing)
    found = finding("embedded runtime", context)
    assert found == ("warning", "It cannot be used. no Server", "pip install it.")


def test_model_servers_that_live_and_that_died(context: SkillContext) -> None:
    from forge_mcp.locks import FileLock
    from forge_mcp.pipeline.gc import GcRequest, gc
    from forge_mcp.serving.llamacpp_server import ServerPlace, ServerRecord, ServerTask

    assert finding("model servers", context) == ("ok", "running: none", "")
    task = ServerTask(
        model="demo-1", project="demo", gguf="/none", size=1, changed=1, num_ctx=1, threads=1,
        unload_after=1.0,
    )  # fmt: skip
    place = ServerPlace(context.workspace.home, task.name)
    place.record = ServerRecord(task=task, pid=7, started=1.0, state="ready")
    with FileLock(place.lock) as lock:
        assert lock.acquire()
        assert finding("model servers", context)[:2] == ("ok", "running: demo-1 (process 7)")
    state, detail, next_step = finding("model servers", context)
    assert (state, detail) == ("warning", "running: none; died: demo-1")
    assert "gc --apply" in next_step
    gc(GcRequest(apply=True), context)
    assert finding("model servers", context) == ("ok", "running: none", "")


def test_ollama_counts_only_where_it_is_the_target(context: SkillContext) -> None:
    context.settings.serving.ollama_host = "http://127.0.0.1:9"  # nothing listens there
    assert finding("ollama", context)[0] == "ok"
    context.settings.serving.target = "ollama"
    state, _, next_step = finding("ollama", context)
    assert state == "warning" and "--target llamacpp" in next_step


def test_a_missing_package_is_told(context: SkillContext) -> None:
    def broken(context: SkillContext) -> Any:
        raise ImportError("No module named 'tree_sitter_go'")

    check = doctor_module._carry_out("grammars", broken, context)
    assert check.state == "error" and "tree_sitter_go" in check.detail and check.next_step
