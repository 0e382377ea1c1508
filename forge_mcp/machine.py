"""What differs between machines: the BLAS under MLX, the device, memory. Nothing else may ask.

On Linux the MLX wheel for CPUs links the reference BLAS. An OpenBLAS that is loaded first, with
its symbols global, wins over it: matrix products become 10 to 40 times faster. On a Mac there is
nothing to do (Accelerate and Metal).
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from functools import cache
from typing import Any

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
    """Physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
