"""What differs between machines: the BLAS under MLX, the device, memory. Nothing else may ask.

On Linux the MLX wheel for CPUs links the reference BLAS. An OpenBLAS that is loaded first, with
its symbols global, wins over it: matrix products become 10 to 40 times faster. On a Mac there is
nothing to do (Accelerate and Metal).
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

OPENBLAS_NAMES = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")
OPENBLAS_ADVICE = (
    "Install OpenBLAS: 'sudo apt-get install libopenblas0-pthread' (Debian, Ubuntu) or "
    "'sudo dnf install openblas-threads' (Fedora)."
)

# Larger arenas keep glibc from giving every freed array back to the kernel and faulting it in
# again. They count only for processes that start with them, so children are started with them.
CHILD_ENVIRONMENT = (
    {
        "MALLOC_MMAP_THRESHOLD_": "8589934592",
        "MALLOC_TRIM_THRESHOLD_": "17179869184",
        "MALLOC_TOP_PAD_": "268435456",
    }
    if sys.platform == "linux"
    else {}
)


@cache
def load_openblas() -> str | None:
    """Load OpenBLAS before MLX is imported. Returns its name, or None where none was loaded.

    FORGE_BLAS=reference leaves the wheel's own BLAS in place, to measure without.
    """
    if sys.platform != "linux" or os.environ.get("FORGE_BLAS") == "reference":
        return None
    for name in OPENBLAS_NAMES:
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return name
    return None


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """OpenBLAS computes a matrix product with `count` threads meanwhile; other BLAS stay as they
    are. For work that is already spread over the cores."""
    name = load_openblas()
    if name is None:
        yield
        return
    library = ctypes.CDLL(name)
    before = library.openblas_get_num_threads()
    library.openblas_set_num_threads(count)
    try:
        yield
    finally:
        library.openblas_set_num_threads(before)


@cache
def mlx() -> Any:
    """`mlx.core`, imported the right way for this machine. Import MLX through this first.

    On a CPU `mx.compile` would call a C++ compiler at run time, which a user's machine need not
    have, and measures no faster: it is switched off there.
    """
    load_openblas()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    keep_hub_offline()
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.cpu:
        mx.disable_compile()
    return mx


def keep_hub_offline() -> None:
    """Nothing may leave the machine, and transformers asks the hub about a model's files.

    Call it before huggingface_hub is imported, which reads this once.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it is gone (Linux).

    Elsewhere nothing happens: the caller also watches its parent itself, which does the same a
    moment later unless native code holds the interpreter.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def sandboxes() -> tuple[str, ...]:
    """The ways in which this system can run a program that nobody trusts, the best one first.

    Whether they work here is another question: see judging/sandbox.py.
    """
    if sys.platform == "darwin":
        return ("seatbelt",)
    if sys.platform == "linux":
        root = os.geteuid() == 0
        return ("namespaces" if root else "user_namespaces", "landlock")
    return ()


class Battery(NamedTuple):
    """How a laptop is powered."""

    percent: float
    plugged: bool


def battery() -> Battery | None:
    """The battery's state; None where there is none, or the system does not tell."""
    import psutil

    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if found is None:
        return None
    return Battery(percent=float(found.percent), plugged=found.power_plugged is not False)


@contextmanager
def keep_awake(pid: int, say: Callable[[str], None]) -> Iterator[None]:
    """The machine does not fall asleep by itself while process `pid` lives.

    Uses `caffeinate` (macOS) or `systemd-inhibit` (Linux); both end with that process, so nothing
    is left behind even after a kill. Where neither works, `say` is told and nothing else happens.
    """
    if sys.platform == "darwin":
        command = ["caffeinate", "-i", "-w", str(pid)]
    else:
        command = [
            "systemd-inhibit",
            "--what=idle:sleep",
            "--who=AI Forge",
            "--why=a model is being trained",
            "tail",
            f"--pid={pid}",
            "-f",
            "/dev/null",
        ]
    holder: subprocess.Popen[bytes] | None = None
    quiet = subprocess.DEVNULL
    try:
        with suppress(FileNotFoundError):
            holder = subprocess.Popen(
                command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
            )
            with suppress(subprocess.TimeoutExpired):
                holder.wait(0.2)
        if holder is None or holder.poll() is not None:
            say(f"The machine may fall asleep meanwhile: {command[0]} is not usable here.")
        yield
    finally:
        if holder is not None:
            with suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGTERM)
            holder.wait()


def on_cpu() -> bool:
    """Whether MLX computes on the CPU here (no Metal, no CUDA)."""
    mx = mlx()
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def cores() -> int:
    """CPU cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that processes may fill: the machine's, or less where a container has a limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_control_group_limits()])


def _control_group_limits(
    own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """The memory limits of this process' control groups and of those they lie in (Linux).

    Past the lowest of them the kernel kills, however much memory the machine has.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number == "0":  # version 2: one tree
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / name.strip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):  # the root has none; "max" is no limit
                limits.append(int((folder / file).read_text()))
            if folder == top:
                break
    return limits


def training_memory_bytes() -> int:
    """Memory that a training may fill: that of the device MLX computes on."""
    if on_cpu():
        return memory_bytes()
    device = mlx().device_info()
    return int(device["memory_size"] if "memory_size" in device else device["total_memory"])


def available_bytes() -> int:
    """Memory that processes can take now without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


def requirement(package: str) -> str:
    """The versions of a package that AI Forge is made for, e.g. 'numpy>=2.0', as pip reads it.

    They stand in pyproject.toml alone, and reach this process with the installation.
    """
    from packaging.requirements import Requirement

    for text in metadata.requires("forge-mcp") or ():
        named = Requirement(text)
        if named.name == package and (named.marker is None or named.marker.evaluate({"extra": ""})):
            return f"{named.name}{named.specifier}"
    raise LookupError(f"{package} is no requirement of forge-mcp")


@contextmanager
def without_collection() -> Iterator[None]:
    """For work that makes many objects and no cycles: looking for garbage only costs time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()  # or else enabling it looks at all that was made meanwhile
            gc.enable()
            gc.unfreeze()


def describe() -> dict[str, str]:
    """The machine in words, for reports and `doctor`."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": str(cores()),
        "memory": f"{memory_bytes() / 2**30:.1f} GiB",
        "blas": load_openblas() or ("Accelerate" if sys.platform == "darwin" else "reference"),
        "c++ compiler": shutil.which("c++") or "none",
    }
