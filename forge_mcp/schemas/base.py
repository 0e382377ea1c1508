"""What all schemas share."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A value that crosses a border: unknown keys are refused, so a typo is never lost silently."""

    model_config = ConfigDict(extra="forbid")


class Metric(Schema):
    """One measured figure of a report with its uncertainty.

    `low` and `high` bound a 95% interval and `n` is the number of observations; where a figure
    has no sampling error (e.g. a count), `low` = `high` = `value`.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
