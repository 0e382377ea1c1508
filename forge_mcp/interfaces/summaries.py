"""What a person sees of a result: a short summary (stdout)."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from forge_mcp.errors import from_dict
from forge_mcp.interfaces.terminal import describe_error, describe_seconds
from forge_mcp.jobs.skills import JobCleanResult, JobListResult, JobLogsResult, JobResult
from forge_mcp.pipeline.skill import Skill, SkillResult
from forge_mcp.schemas.jobs import JobStatus

MARKS = {"ok": "ok", "warning": "WARN", "error": "FAIL"}


def summary(skill: Skill, result: SkillResult, streamed: str = "") -> str:
    """A result for a person. `streamed` is what was already shown of it."""
    if isinstance(result, JobResult):
        return describe_start(result) if skill.long else describe_job(result)
    if isinstance(result, JobListResult):
        return job_table(result.jobs)
    if isinstance(result, JobLogsResult):
        return "\n".join(result.lines)
    if isinstance(result, JobCleanResult):
        return "\n".join(result.forgotten) or "No job ended so long ago."
    fields = result.model_dump(mode="json", by_alias=True)
    if skill.name == "doctor":
        return _checks(fields)
    if skill.name == "query":
        return _answer(fields, streamed)
    if skill.name in ("models", "activate", "rollback"):
        return _models(fields)
    return "\n".join(_lines(fields, ""))


def describe_start(job: JobStatus) -> str:
    """A job that was just queued (or was there already): its id, and what to do with it."""
    return "\n".join(
        [
            f"{job.job_id} is {job.state}",
            f"  follow it   forge-mcp jobs wait {job.job_id}",
            f"  look at it  forge-mcp jobs show {job.job_id}",
            f"  stop it     forge-mcp jobs cancel {job.job_id}",
        ]
    )


def describe_job(job: JobStatus) -> str:
    """All that is known of a job."""
    fields = {
        "skill": job.skill,
        "project": job.project,
        "state": job.state,
        "stage": job.stage,
        "progress": _percent(job.progress),
        "left": _left(job),
        "message": job.message,
        "queued": _clock(job.created_at),
        "began": _clock(job.started_at),
        "dashboard": job.dashboard_url,
        "result": job.result,
    }
    lines = [job.job_id, *_lines(fields, "  ")]
    if job.error is not None:
        lines += textwrap.indent(
            describe_error(from_dict(job.error.model_dump())), "  "
        ).splitlines()
    return "\n".join([*lines, f"next: {job.next_step}"])


def job_table(jobs: Sequence[JobStatus]) -> str:
    """One line a job."""
    if not jobs:
        return "There are no such jobs."
    rows = [("JOB", "STATE", "STAGE", "DONE", "LEFT", "PROJECT")]
    rows += [
        (job.job_id, job.state, job.stage, _percent(job.progress), _left(job), job.project)
        for job in jobs
    ]
    return "\n".join(_table(rows))


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _left(job: JobStatus) -> str:
    return "" if job.eta_seconds is None else describe_seconds(job.eta_seconds)


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _lines(fields: Mapping[str, Any], indent: str) -> list[str]:
    shown = {name: value for name, value in fields.items() if value not in (None, "", [], {})}
    width = max((len(name) for name in shown), default=0)
    lines = []
    for name, value in shown.items():
        if isinstance(value, dict) and any(
            isinstance(v, dict | list | str) for v in value.values()
        ):
            lines.append(f"{indent}{name}")
            lines += _lines(value, indent + "  ")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            lines.append(f"{indent}{name}")
            lines += [f"{indent}  - {_value('', one)}" for one in value]
        else:
            lines.append(f"{indent}{name.ljust(width)}  {_value(name, value)}")
    return lines


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        pairs = ((key, inner) for key, inner in value.items() if inner not in (None, [], {}))
        return ", ".join(f"{key} {_value(key, inner)}" for key, inner in pairs)
    if isinstance(value, list):
        return ", ".join(_value("", one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and (name == "seconds" or name.endswith("_seconds")):
        return describe_seconds(value)
    if isinstance(value, int) and (name == "bytes" or name.endswith("_bytes")):
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _answer(fields: Mapping[str, Any], streamed: str) -> str:
    answer = str(fields.get("answer", ""))
    # The raw text was streamed; the answer is repeated where it is only a part of that text.
    lines = [] if streamed.strip() == answer.strip() else [answer]
    for one in fields.get("citations", ()):
        changed = "  (changed on the disk since)" if one.get("stale") else ""
        lines.append(f"  {one['path']}:{one['start_line']}-{one['end_line']}{changed}")
    if fields.get("grounding") == "invented":
        lines.append("  (none of its quotes stands in the code: do not trust it)")
    if fields.get("complete") is False:
        lines.append("  (the model did not come to a final answer: these are its words so far)")
    told = [
        f"{name.replace('_', ' ')}: {fields[name]}"
        for name in ("model", "unverified_quotes")
        if fields.get(name)
    ]
    lines.append(f"({', '.join([*told, describe_seconds(float(fields.get('seconds', 0)))])})")
    return ("\n\n" if streamed else "") + "\n".join(lines)


def _models(fields: Mapping[str, Any]) -> str:
    """What is active, a table of the models, and the last changes."""
    lines = [f"active    {fields['active'] or 'none'}", f"previous  {fields['previous'] or 'none'}"]
    rows = [("MODEL", "TARGET", "QUANT", "SIZE", "REVISION", "CREATED", "BY", "REPORT")]
    rows += [
        (
            ("* " if one["active"] else "  ") + one["model"],
            one["target"],
            one["quantization"] or "",
            f"{one['bytes'] / 1e6:.1f} MB" if one["bytes"] else "",
            (one["revision"] or "")[:10] + ("+" if (one["revision"] or "").endswith("+") else ""),
            one["created"][:16],
            one["by"].partition(",")[0],
            one["verdict"] or "",
        )
        for one in fields["models"]
    ]
    if fields["models"]:
        lines += ["", *_table(rows)]
    history = [("WHEN", "WHAT", "FROM", "TO", "BY", "WHY")]
    history += [
        (
            (one["time"] or "")[:16],
            one["action"],
            one["from_model"] or "none",
            one["to_model"] or "none",
            one["by"].partition(",")[0],
            one["reason"],
        )
        for one in fields["history"]
    ]
    if fields["history"]:
        lines += ["", *_table(history)]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _checks(fields: Mapping[str, Any]) -> str:
    checks = fields["checks"]
    width = max(len(check["name"]) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{MARKS[check['state']]:4}  {check['name'].ljust(width)}  {check['detail']}")
        if check["next_step"]:
            lines += textwrap.wrap(
                check["next_step"],
                width=100,
                initial_indent=" " * (width + 8),
                subsequent_indent=" " * (width + 8),
            )
    machine = ", ".join(f"{name} {value}" for name, value in fields["machine"].items())
    verdict = "Everything that is needed works." if fields["ok"] else "Something needs attention."
    return "\n".join([*lines, "", machine, verdict])
