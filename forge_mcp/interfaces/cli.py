"""`forge-mcp`: the skills on the command line, and `serve` for agents.

    forge-mcp <skill> … [--json] [--project NAME] [--set SECTION.KEY=VALUE] [--detach]
    forge-mcp jobs list|show|wait|cancel|pause|resume|retry|logs|clean …

Progress goes to stderr; stdout carries the summary or, with --json, exactly one JSON object: the
result, or {"error": {code, message, cause, next_step}}. Exit codes: 0 done, 1 failed, 2 bad
input, 3 a gate said no, 130 cancelled. With --detach (skills that may take long) the result is the
job, and 0 says that it is queued; `jobs wait` ends with the exit code of the job.

Nothing heavy is imported before the signal handlers stand, so that Ctrl-C is answered in one line
from the first moment on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import argparse

    from forge_mcp.errors import ForgeError
    from forge_mcp.jobs.skills import JobResult
    from forge_mcp.pipeline.skill import Skill, SkillContext, SkillRequest, SkillResult

DONE, FAILED, REFUSED, CANCELLED = 0, 1, 3, 130
WAITING = "job_wait"  # the skill whose exit code is that of the job
EARLY = {
    "code": "cancelled",
    "message": "Cancelled before anything began.",
    "cause": "it was interrupted",
    "next_step": "Run it again when you like.",
}


class Stopped(KeyboardInterrupt):
    """Ctrl-C, under a name of its own.

    CPython remembers a plain KeyboardInterrupt that passes through `exec` of a string (importing a
    dataclass does that) and ends the process with the signal, although it was caught.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    cancel = threading.Event()
    with _signals(cancel):
        try:
            return _run(arguments, cancel)
        except KeyboardInterrupt:  # before the skill began
            if "--json" in arguments:
                print(json.dumps({"error": EARLY}), flush=True)
            _say("Cancelled.")
            return CANCELLED
        except BrokenPipeError:  # whoever read stdout (head, less) has left
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return FAILED


def _run(arguments: list[str], cancel: threading.Event) -> int:
    from forge_mcp.errors import BadInput, face_of
    from forge_mcp.interfaces.arguments import build_parser
    from forge_mcp.jobs.skills import skills
    from forge_mcp.pipeline.faults import in_words
    from forge_mcp.settings import forge_home

    try:
        parsed = build_parser(skills()).parse_args(arguments)
    except SystemExit as done:  # --help, --version: argparse has printed
        return int(done.code or 0)
    except Exception as fault:
        error = in_words(fault, "forge-mcp", forge_home())
        _show_error(error, sys.stdout if "--json" in arguments else None)
        return face_of(error).exit_code
    if parsed.command == "serve":
        if ignored := [name for name in vars(parsed) if name.startswith("before_")]:
            flags = ", ".join(f"--{name.removeprefix('before_')}" for name in ignored)
            wrong = BadInput(
                f"serve does not take {flags}.",
                next_step="Start it without; an agent names the project in each call.",
            )
            _show_error(wrong, sys.stdout if "--json" in arguments else None)
            return face_of(wrong).exit_code
        from forge_mcp.interfaces.mcp.server import serve_stdio

        return serve_stdio()
    if "skill" not in parsed:  # a group of commands alone
        parsed.group.print_help()
        return DONE
    with _own_stdout() as stdout:
        return _run_skill(parsed, stdout, cancel)


def _run_skill(parsed: argparse.Namespace, stdout: TextIO, cancel: threading.Event) -> int:
    from forge_mcp.errors import Cancelled, face_of
    from forge_mcp.interfaces.arguments import common_options, request_fields
    from forge_mcp.interfaces.summaries import summary
    from forge_mcp.interfaces.terminal import ProgressView
    from forge_mcp.jobs.skills import skills
    from forge_mcp.pipeline.context import make_request, open_context
    from forge_mcp.pipeline.faults import in_words
    from forge_mcp.settings import forge_home

    skill = skills()[parsed.skill]
    as_json = bool({"json", "before_json"} & vars(parsed).keys())
    view = ProgressView(sys.stderr, None if as_json else stdout)
    try:
        project, overrides = common_options(parsed)
        request = make_request(skill, request_fields(skill, parsed))
        request, context = open_context(
            skill,
            request,
            project=project,
            overrides=overrides,
            sink=view,
            cancel=cancel,
            face="cli",
        )
        result: SkillResult
        if "detach" in parsed:
            result = _detach(skill, request, context)
        else:
            result = skill.function(request, context)
    except (Exception, KeyboardInterrupt) as fault:
        view.close()
        error = in_words(fault, skill.name, forge_home())
        if skill.name == WAITING and isinstance(error, Cancelled):
            error = _stopped_waiting(parsed.job_id)
        _show_error(error, stdout if as_json else None)
        return face_of(error).exit_code
    view.close()
    if as_json:
        stdout.write(result.model_dump_json(by_alias=True) + "\n")
    else:
        stdout.write(summary(skill, result, view.streamed) + "\n")
    stdout.flush()
    return _verdict(skill, result)


def _detach(skill: Skill, request: SkillRequest, context: SkillContext) -> JobResult:
    from forge_mcp.jobs.queue import Jobs
    from forge_mcp.jobs.skills import JobResult

    with Jobs(context.workspace.home) as jobs:
        status = jobs.start(skill, request, context)
    return JobResult.model_validate(status.model_dump())


def _stopped_waiting(job_id: str) -> ForgeError:
    from forge_mcp.errors import Cancelled

    return Cancelled(
        "The waiting has ended; the job goes on.",
        cause="it was interrupted",
        next_step=f"'forge-mcp jobs wait {job_id}' follows it again, 'forge-mcp jobs cancel "
        f"{job_id}' stops it.",
    )


def _verdict(skill: Skill, result: SkillResult) -> int:
    """The exit code of a result: a gate that said no is 3, a doctor that found a fault 1.

    A job is shown whatever became of it; only who waited for it gets its outcome.
    """
    from forge_mcp.jobs.skills import JobResult
    from forge_mcp.pipeline.skill import is_refusal

    if isinstance(result, JobResult):
        return _outcome(result) if skill.name == WAITING else DONE
    if is_refusal(result):
        _say("A gate said no; what is deployed was not changed.")
        return REFUSED
    return FAILED if getattr(result, "ok", True) is False else DONE


def _outcome(job: JobResult) -> int:
    """The exit code of a job that was waited for; what is no success is also said on stderr."""
    from forge_mcp.errors import from_dict
    from forge_mcp.interfaces.terminal import describe_error

    if job.error is not None:
        _say(describe_error(from_dict(job.error.model_dump())))
    elif job.state == "refused":
        _say("A gate said no; what is deployed was not changed.")
    if job.state == "cancelled":
        _say(f"The job was cancelled. {job.next_step}")
    elif job.state == "paused":
        _say(f"The job is paused. {job.next_step}")
    elif not job.final:
        _say(f"The waiting has ended; the job is {job.state} and goes on.")
    codes = {"succeeded": DONE, "paused": DONE, "refused": REFUSED, "cancelled": CANCELLED}
    return codes.get(job.state, FAILED)


def _show_error(error: ForgeError, stdout: TextIO | None) -> None:
    if stdout is not None:
        stdout.write(json.dumps({"error": error.as_dict()}) + "\n")
    from forge_mcp.errors import Cancelled
    from forge_mcp.interfaces.terminal import describe_error

    if isinstance(error, Cancelled):
        _say(f"{error.message} {error.next_step}".strip())
    else:
        _say(describe_error(error))


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _signals(cancel: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM stop the work once, cleanly; further ones do not disturb the clean-up."""

    def stop(number: int, frame: FrameType | None) -> None:
        if not cancel.is_set():
            cancel.set()
            raise Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """The real stdout for us alone: what libraries print, in C or Python, goes to stderr."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    stdout = os.fdopen(private, "w", encoding="utf-8", errors="backslashreplace")
    try:
        yield stdout
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        # What C code printed may still lie in its buffer; it must not reach the real stdout.
        ctypes.CDLL(None).fflush(None)
        os.dup2(private, 1)
        with suppress(OSError):
            stdout.close()


if __name__ == "__main__":
    sys.exit(main())
