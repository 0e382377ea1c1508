"""Whatever went wrong, as a `ForgeError`: what a face shows is always in words."""

from __future__ import annotations

import sqlite3
import time
import traceback
from pathlib import Path

from pydantic import ValidationError

from forge_mcp.errors import (
    Busy,
    Cancelled,
    ForgeError,
    InvalidSettings,
    OutOfSpace,
    from_os_error,
)

# MLX raises plain RuntimeErrors; these fragments of its messages mean that memory ran out.
OUT_OF_MEMORY = ("malloc", "allocate", "out of memory", "insufficient memory")


def in_words(error: BaseException, skill: str, home: Path) -> ForgeError:
    """The error to show for any exception that left a skill.

    What nobody foresaw is a bug: its traceback goes to FORGE_HOME/logs and the error says where.
    """
    if isinstance(error, ForgeError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Cancelled(
            f"{skill} was cancelled.",
            cause="it was interrupted",
            next_step="Nothing was changed; run it again when you like.",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return from_os_error(error, f"finish {skill}")
    if isinstance(error, sqlite3.OperationalError):
        full = "full" in str(error)
        return (OutOfSpace if full else Busy)(
            f"{skill} could not write the registry in {home}.",
            cause=_first_line(error),
            next_step="Free some space and run it again."
            if full
            else "Close other AI Forge processes and run it again.",
        )
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(sign in str(error).lower() for sign in OUT_OF_MEMORY)
    ):
        return ForgeError(
            f"{skill} ran out of memory.",
            cause=_first_line(error),
            next_step="Close other programs, choose a smaller base, or lower training.batch_size "
            "and training.max_seq_length.",
        )
    if isinstance(error, ValidationError) and error.title.endswith("Settings"):
        first = error.errors()[0]
        return InvalidSettings(
            f"The value given for '{'.'.join(str(part) for part in first['loc'])}' is not valid.",
            cause=f"{first['msg']} (given: {first.get('input')!r})"[:300],
            next_step=f"See 'forge-mcp {skill} --help' and docs/configuration.md.",
        )
    return _bug(error, skill, home)


def _bug(error: BaseException, skill: str, home: Path) -> ForgeError:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = home / "logs" / f"{stamp}-{skill}.log"
    text = "".join(traceback.format_exception(error))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        where = f"Report it with the traceback in {path}."
    except OSError as unwritable:
        where = f"Report it; the traceback could not be saved ({unwritable}):\n{text}"
    return ForgeError(
        f"{skill} stopped on a bug in AI Forge.",
        cause=f"{type(error).__name__}: {_first_line(error)}",
        next_step=where,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0][:300]
