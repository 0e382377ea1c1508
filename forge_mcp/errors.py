"""Every error that AI Forge raises on purpose, and how each face shows it.

    ForgeError                 something failed that is nobody's input
    ├── BadInput               what the caller gave is wrong
    │   ├── NotFound           a path, artifact, project or model that is not there
    │   ├── InvalidSettings    a settings file, variable or option that says nothing valid
    │   └── UnsupportedModel   a base whose architecture, tokenizer or files cannot be used
    ├── GateRefused            a gate (quality, not worse, parity) said no; nothing was deployed
    ├── Cancelled              the user, a client or a signal stopped the work
    ├── CorruptArtifact        a file in the workspace is not what its manifest says
    ├── OutOfSpace             the disk (or a quota) is full
    ├── Busy                   somebody else holds what is needed
    ├── TrainingFailed         the training child died, diverged, or ran out of memory
    └── Unavailable            a runtime that is needed (Ollama, llama.cpp) is not there

`FACES` is the one table that maps them to an exit code, an HTTP status and what an MCP client sees.
"""

from __future__ import annotations

import errno
from typing import ClassVar, NamedTuple


class ForgeError(Exception):
    """An error in words: what is wrong, why, and what to do next.

    `message` names the thing, `cause` says why, `next_step` is one sentence a person or an agent
    can act on.
    """

    code: ClassVar[str] = "failed"

    def __init__(self, message: str, *, cause: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [self.message]
        if self.cause:
            parts.append(f"Cause: {self.cause}")
        if self.next_step:
            parts.append(f"Next: {self.next_step}")
        return "\n".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The four fields of the contract, for JSON output and for crossing a process border."""
        return {
            "code": self.code,
            "message": self.message,
            "cause": self.cause,
            "next_step": self.next_step,
        }


class BadInput(ForgeError):
    """What the caller gave is wrong."""

    code = "bad_input"


class NotFound(BadInput):
    """A path, artifact, project or model that is not there."""

    code = "not_found"


class InvalidSettings(BadInput):
    """A settings file, variable or option that says nothing valid."""

    code = "invalid_settings"


class UnsupportedModel(BadInput):
    """A base whose architecture, tokenizer or files cannot be used."""

    code = "unsupported_model"


class GateRefused(ForgeError):
    """A gate said no; nothing that is deployed was changed."""

    code = "refused"


class Cancelled(ForgeError):
    """The user, a client or a signal stopped the work."""

    code = "cancelled"


class CorruptArtifact(ForgeError):
    """A file in the workspace is not what its manifest says."""

    code = "corrupt_artifact"


class OutOfSpace(ForgeError):
    """The disk (or a quota) is full."""

    code = "out_of_space"


class Busy(ForgeError):
    """Somebody else holds what is needed."""

    code = "busy"


class TrainingFailed(ForgeError):
    """The training child died, diverged, or ran out of memory."""

    code = "training_failed"


class Unavailable(ForgeError):
    """A runtime that is needed is not there."""

    code = "unavailable"


class Face(NamedTuple):
    """How one kind of error appears outside: process exit code, HTTP status, MCP treatment.

    `mcp` is "tool_error" for text that the model should read and act on, "cancelled" where the
    protocol has its own way to say it.
    """

    exit_code: int
    http_status: int
    mcp: str


FACES: dict[type[ForgeError], Face] = {
    ForgeError: Face(1, 500, "tool_error"),
    BadInput: Face(2, 422, "tool_error"),
    NotFound: Face(2, 404, "tool_error"),
    InvalidSettings: Face(2, 422, "tool_error"),
    UnsupportedModel: Face(2, 422, "tool_error"),
    GateRefused: Face(3, 409, "tool_error"),
    Cancelled: Face(130, 499, "cancelled"),
    CorruptArtifact: Face(1, 500, "tool_error"),
    OutOfSpace: Face(1, 507, "tool_error"),
    Busy: Face(1, 423, "tool_error"),
    TrainingFailed: Face(1, 500, "tool_error"),
    Unavailable: Face(1, 503, "tool_error"),
}

BY_CODE: dict[str, type[ForgeError]] = {kind.code: kind for kind in FACES}


def face_of(error: ForgeError) -> Face:
    """The row of `FACES` for this error, or for its nearest ancestor that has one."""
    for kind in type(error).__mro__:
        if kind in FACES:
            return FACES[kind]
    raise AssertionError(f"{type(error).__name__} does not derive from ForgeError")


def from_dict(fields: dict[str, str]) -> ForgeError:
    """The error that `ForgeError.as_dict` described, e.g. one that a child process wrote down."""
    kind = BY_CODE.get(fields.get("code", ""), ForgeError)
    return kind(
        fields.get("message", "unknown error"),
        cause=fields.get("cause", ""),
        next_step=fields.get("next_step", ""),
    )


def from_os_error(error: OSError, doing: str) -> ForgeError:
    """An operating-system error in words; `doing` completes "Could not …"."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfSpace(
            f"Could not {doing}: no space left on the disk{where}.",
            cause=str(error),
            next_step="Free some space, or point FORGE_HOME at a larger disk, and run it again; "
            "nothing was changed.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BadInput(
            f"Could not {doing}: permission denied{where}.",
            cause=str(error),
            next_step="Give this user access to that path, or choose another one.",
        )
    return ForgeError(
        f"Could not {doing}{where}.",
        cause=str(error),
        next_step="Run it again; if it fails again, run 'forge-mcp doctor'.",
    )
