"""What a skill tells of its work while it runs; the same events feed every face."""

from __future__ import annotations

from typing import Any, Literal

from forge_mcp.schemas.base import Schema

EventKind = Literal["progress", "metric", "log", "state"]


class Event(Schema):
    """One row of `events.jsonl`.

    Payloads by kind:
        progress  {"done": int, "total": int | None, "message": str} or {"text": str} (streamed)
        metric    {name: number, …}
        log       {"level": "info" | "warning", "message": str}
        state     {"stage": str, "number": int, "of": int}: a stage of the line begins
    """

    time: float
    stage: str
    kind: EventKind
    payload: dict[str, Any]
