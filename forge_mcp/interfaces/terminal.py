"""What a person sees while a skill runs: progress, and errors (stderr)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from forge_mcp.errors import Cancelled, ForgeError
from forge_mcp.schemas.events import Event

LINE_SECONDS = 10.0  # between progress lines where stderr is no terminal


class ProgressView:
    """Shows a skill's events: bars on a terminal, a line now and then elsewhere.

    Streamed text (of `query`) goes to `text`, where one is given.
    """

    def __init__(self, stream: TextIO, text: TextIO | None) -> None:
        self.stream = stream
        self.text = text
        self.streamed = ""
        self._bars = stream.isatty()
        self._bar: Any = None
        self._stage = ""
        self._metrics = ""
        self._last_line = 0.0

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.kind == "progress" and "text" in event.payload:
            self._show_text(str(event.payload["text"]))
        elif event.kind == "progress":
            self._show_progress(event)
        elif event.kind == "metric":
            self._metrics = describe_metrics(event.payload)
            if self._bar is not None:
                self._bar.set_postfix_str(self._metrics, refresh=False)
        elif event.kind == "log":
            warning = event.payload.get("level") == "warning"
            self._line(f"{'warning: ' * warning}{event.payload.get('message', '')}")
        elif "number" in event.payload:
            self.close()
            payload = event.payload
            self._line(f"[{payload['number']}/{payload['of']}] {payload['stage']}")

    def close(self) -> None:
        """End the current bar and the streamed text."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._metrics = ""

    def _show_text(self, chunk: str) -> None:
        self.streamed += chunk
        if self.text is not None:
            try:
                self.text.write(chunk)
                self.text.flush()
            except BrokenPipeError as left:
                raise Cancelled(
                    "Cancelled: whoever read the answer has left.", cause="stdout was closed"
                ) from left

    def _show_progress(self, event: Event) -> None:
        done, total = event.payload["done"], event.payload.get("total")
        message = event.payload.get("message") or ""
        if self._bars:
            self._move_bar(event.stage, done, total, message)
            return
        now = time.monotonic()
        if event.stage != self._stage or now - self._last_line >= LINE_SECONDS or done == total:
            self._stage, self._last_line = event.stage, now
            figures = self._metrics or describe_metrics(event.payload)
            self._line(describe_progress(event.stage, done, total, message, figures))

    def _move_bar(self, stage: str, done: int, total: int | None, message: str) -> None:
        from tqdm import tqdm

        bar = self._bar
        if bar is None or self._stage != stage or bar.total != total or done < bar.n:
            self.close()
            bar = self._bar = tqdm(
                total=total, file=self.stream, leave=False, dynamic_ncols=True, mininterval=0.2
            )
            self._stage = stage
        words = told_once(message, self._metrics)
        bar.set_description_str(f"{stage}: {words}" if words else stage, refresh=False)
        bar.update(done - bar.n)

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self.stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()


def describe_progress(
    stage: str, done: int, total: int | None, message: str = "", metrics: str = ""
) -> str:
    """E.g. 'train 40/600 (loss 1.230, 310 tokens/s, 2 min 10 s left)'."""
    count = f"{done}/{total}" if total is not None else str(done)
    words = told_once(message, metrics)
    text = f"{stage} {count}" + (f": {words}" if words else "")
    return f"{text} ({metrics})" if metrics else text


def told_once(message: str, metrics: str) -> str:
    """The message, unless it tells the losses that the metrics of the same step tell too."""
    return "" if "loss" in message and "loss" in metrics else message


def describe_metrics(payload: Mapping[str, Any]) -> str:
    """The figures of a metric event that a person watches."""
    parts = []
    for name, label in (("loss", "loss"), ("valid_loss", "valid loss")):
        if isinstance(payload.get(name), int | float):
            parts.append(f"{label} {payload[name]:.3f}")
    if isinstance(payload.get("tokens_per_second"), int | float):
        parts.append(f"{payload['tokens_per_second']:.0f} tokens/s")
    if isinstance(payload.get("eta_seconds"), int | float):
        parts.append(f"{describe_seconds(payload['eta_seconds'])} left")
    return ", ".join(parts)


def describe_seconds(seconds: float) -> str:
    """E.g. '0.4 s', '12 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def describe_error(error: ForgeError) -> str:
    """An error for a terminal: what, why, what next."""
    lines = [f"error: {error.message}"]
    if error.cause:
        lines.append(f"  cause: {error.cause}")
    if error.next_step:
        lines.append(f"  next:  {error.next_step}")
    return "\n".join(lines)
