"""What works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field

from forge_mcp import machine
from forge_mcp.errors import ForgeError, from_os_error
from forge_mcp.pipeline.skill import SkillContext, SkillRequest, SkillResult, skill
from forge_mcp.schemas.base import Schema
from forge_mcp.settings import load_settings
from forge_mcp.workspace import free_bytes

LOW_DISK_BYTES, NO_DISK_BYTES = 5_000_000_000, 500_000_000
EMBEDDED_BASE = "forge-nano"
REINSTALL = "Install AI Forge again: pip install --force-reinstall forge-mcp"


class Check(Schema):
    """One thing that was tried."""

    name: str
    state: Literal["ok", "warning", "error"] = Field(
        description="warning: it works without, with the drawback that the detail tells."
    )
    detail: str
    next_step: str = ""


class DoctorRequest(SkillRequest):
    """Nothing to ask."""


class DoctorResult(SkillResult):
    """Every check, and whether all that is needed works."""

    ok: bool = Field(description="No check is in state error.")
    checks: list[Check]
    machine: dict[str, str]
    seconds: float


class Finding(NamedTuple):
    """What a check found out."""

    state: Literal["ok", "warning", "error"]
    detail: str
    next_step: str = ""


@skill(
    title="Check this machine",
    scope="anywhere",
    read_only=True,
    examples=("forge-mcp doctor", "forge-mcp doctor --json"),
)
def doctor(request: DoctorRequest, context: SkillContext) -> DoctorResult:
    """Check the installation, the machine and the settings, and say how to repair what is broken.

    Use this first when another tool fails for a reason that is not its input. Every check is
    really carried out: grammars parse, MLX multiplies, the embedded base model is loaded and run,
    the workspace is written to and its registry opened.
    """
    started = time.monotonic()
    checks = []
    for number, (name, check) in enumerate(CHECKS.items()):
        context.progress(number, len(CHECKS), name)
        checks.append(_carry_out(name, check, context))
    context.progress(len(CHECKS), len(CHECKS))
    return DoctorResult(
        ok=all(check.state != "error" for check in checks),
        checks=checks,
        machine=machine.describe(),
        seconds=time.monotonic() - started,
    )


def _carry_out(name: str, check: Callable[[SkillContext], Finding], context: SkillContext) -> Check:
    """A check's finding; whatever it raises is a finding too."""
    try:
        finding = check(context)
    except ForgeError as error:
        finding = Finding("error", _told(error), error.next_step)
    except ImportError as error:
        finding = Finding("error", f"cannot be imported: {error}", REINSTALL)
    except OSError as error:
        fault = from_os_error(error, f"check {name}")
        finding = Finding("error", _told(fault), fault.next_step)
    except Exception as error:  # a check that breaks is what doctor is asked for
        finding = Finding("error", f"{type(error).__name__}: {error}", REINSTALL)
    return Check(name=name, **finding._asdict())


def _told(error: ForgeError) -> str:
    return f"{error.message} {error.cause}".strip()


def check_python(context: SkillContext) -> Finding:
    """The interpreter and the system."""
    if sys.platform not in ("darwin", "linux"):
        return Finding("error", f"{sys.platform} is not supported", "Use macOS or Linux.")
    return Finding("ok", machine.describe()["python"])


def check_settings(context: SkillContext) -> Finding:
    """forge.toml and the environment; `load_settings` says what is wrong."""
    load_settings(context.repository)
    where = f"of {context.repository}" if context.repository else "without a repository"
    return Finding("ok", f"valid, {where}")


def check_workspace(context: SkillContext) -> Finding:
    """FORGE_HOME can be written to."""
    home = context.workspace.home
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-") as probe:
        probe.write(b"forge")
        probe.flush()
    return Finding("ok", str(home))


def check_disk(context: SkillContext) -> Finding:
    """Free space where the workspace stands."""
    home = context.workspace.home
    home.mkdir(parents=True, exist_ok=True)
    free = free_bytes(home)
    detail = f"{free / 1e9:.1f} GB free at {home}"
    advice = "Free some space, or point FORGE_HOME at a larger disk."
    if free < NO_DISK_BYTES:
        return Finding("error", detail, advice)
    if free < LOW_DISK_BYTES:
        return Finding("warning", f"{detail}; a base of 3 billion weights needs more", advice)
    return Finding("ok", detail)


def check_registry(context: SkillContext) -> Finding:
    """forge.db opens and is whole."""
    database = context.workspace.database
    verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    if verdict != "ok":
        return Finding(
            "error",
            f"forge.db is damaged: {verdict}",
            f"Move {context.workspace.home / 'forge.db'} away: artifacts stay, but models must be "
            "deployed again.",
        )
    projects = database.execute("SELECT count(*) FROM projects").fetchone()[0]
    return Finding("ok", f"{projects} project(s)")


def check_mlx(context: SkillContext) -> Finding:
    """MLX computes, and on which device."""
    mx = machine.mlx()
    product = (mx.ones((8, 8)) @ mx.ones((8, 8))).sum().item()
    if product != 512.0:
        return Finding("error", f"8x8 ones squared sum to {product}, not 512", REINSTALL)
    return Finding("ok", f"{mx.__version__} on {mx.default_device()}")


def check_blas(context: SkillContext) -> Finding:
    """The matrix library that MLX uses on a CPU."""
    if sys.platform == "darwin":
        return Finding("ok", "Accelerate")
    name = machine.load_openblas()
    if name is not None:
        return Finding("ok", name)
    if not machine.on_cpu():
        return Finding("ok", "not needed: MLX computes on a GPU")
    return Finding(
        "warning",
        "OpenBLAS is not loaded: training is 10 to 40 times slower without",
        machine.OPENBLAS_ADVICE,
    )


def check_grammars(context: SkillContext) -> Finding:
    """Every language's grammar loads."""
    from forge_mcp.mining.languages import LANGUAGES, language

    for name in LANGUAGES:
        language(name).parse(b"")
    return Finding("ok", ", ".join(LANGUAGES))


def check_git(context: SkillContext) -> Finding:
    """Git is there: ignored files and revisions come from it."""
    if shutil.which("git") is None:
        return Finding("error", "git is not on the PATH", "Install git.")
    run = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10)
    state: Literal["ok", "error"] = "ok" if run.returncode == 0 else "error"
    return Finding(state, (run.stdout or run.stderr).strip())


def check_base(context: SkillContext) -> Finding:
    """The embedded base model is whole: it is loaded and run."""
    from forge_mcp.training.bases import load_base

    loaded = load_base(EMBEDDED_BASE)
    mx = machine.mlx()
    tokens = loaded.tokenizer.encode("def add(a, b):\n    return a + b\n")
    logits = loaded.model(mx.array([tokens]))
    if not mx.isfinite(logits).all().item():
        return Finding("error", "its output is not finite: the weights are damaged", REINSTALL)
    return Finding("ok", f"{EMBEDDED_BASE}, {len(tokens)} tokens read")


def check_project_base(context: SkillContext) -> Finding:
    """The base that this project names is on this machine."""
    from forge_mcp.training.bases import resolve_base

    name = context.settings.project.base
    try:
        return Finding("ok", f"{name} at {resolve_base(name, context.repository).path}")
    except ForgeError as error:
        return Finding("warning", _told(error), error.next_step)


def check_llamacpp(context: SkillContext) -> Finding:
    """The functions of llama.cpp that check and quantise an export."""
    from forge_mcp.exporting.llamacpp import library, quantizer

    try:
        quantizer()
        library()
    except ForgeError as error:
        return Finding("warning", _told(error), error.next_step)
    return Finding("ok", "its functions for checks and K-quants are there")


def check_runtime(context: SkillContext) -> Finding:
    """The embedded runtime has all that is used of it."""
    from forge_mcp.serving.llamacpp_runtime import runtime

    try:
        return Finding("ok", f"xllamacpp {runtime().__version__}")
    except ForgeError as error:
        return Finding("warning", _told(error), error.next_step)


def check_servers(context: SkillContext) -> Finding:
    """Which models are loaded in servers of their own, and what dead ones have left."""
    from forge_mcp.serving.llamacpp_server import dead_servers, running_servers

    running = [
        f"{one.task.model} (process {one.pid})" for one in running_servers(context.workspace)
    ]
    detail = f"running: {', '.join(running) or 'none'}"
    if dead := dead_servers(context.workspace):
        return Finding(
            "warning",
            f"{detail}; died: {', '.join(dead)}",
            "The next question starts it again; 'forge-mcp gc --apply' removes what it left. See "
            f"{context.workspace.home / 'logs'} for why it died.",
        )
    return Finding("ok", detail)


def check_ollama(context: SkillContext) -> Finding:
    """Ollama answers and is new enough. Only a deployment to it needs that."""
    from forge_mcp.serving.ollama import ollama_version, require_ollama

    serving = context.settings.serving
    try:
        require_ollama(serving.ollama_host)
    except ForgeError as error:
        if serving.target == "ollama":
            return Finding("warning", f"{error.message} {error.cause}", error.next_step)
        return Finding("ok", f"{error.message} Only a deployment to Ollama needs it.")
    version = ollama_version(serving.ollama_host)
    return Finding("ok", f"{version} answers at {serving.ollama_host}")


CHECKS: dict[str, Callable[[SkillContext], Finding]] = {
    "python": check_python,
    "settings": check_settings,
    "workspace": check_workspace,
    "disk": check_disk,
    "registry": check_registry,
    "mlx": check_mlx,
    "blas": check_blas,
    "grammars": check_grammars,
    "git": check_git,
    "embedded base": check_base,
    "project base": check_project_base,
    "llama.cpp": check_llamacpp,
    "embedded runtime": check_runtime,
    "model servers": check_servers,
    "ollama": check_ollama,
}
