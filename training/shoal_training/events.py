"""The job's history, as one JSON object a line in `events.jsonl`; only the trainer process appends to it.

Keys are those of `JobEvent` (without `sequence`, which is the line's number): kind is "state", "progress",
"evaluation", "checkpoint", "published" or "warning". No event ever shows a data row.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events; each is on its way to the disk when a method returns."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._drop_torn_line()

    def state(self, state: str) -> None:
        """The job entered a state."""
        self._append("state", state=state)

    def failed(self, reason: str, message: str) -> None:
        """The job is over."""
        self._append("state", state="failed", failure_reason=reason, failure_message=message)

    def progress(self, **figures: float) -> None:
        """Training went on: step, total_steps, epoch, loss, learning_rate, time_left_s."""
        self._append("progress", progress=figures)

    def evaluation(self, step: int, metrics: dict[str, float], *, final: bool) -> None:
        """Validation rows were evaluated; `final`: with the weights that are published."""
        self._append("evaluation", step=step, metrics=metrics, final=final)

    def checkpoint(self, step: int) -> None:
        """A checkpoint is complete."""
        self._append("checkpoint", step=step)

    def published(self, model: str, version: int) -> None:
        """The version is complete in the repository."""
        self._append("published", model=model, version=version)

    def warning(self, message: str) -> None:
        """Something a person should know."""
        self._append("warning", message=message)

    def close(self) -> None:
        """No more events."""
        os.close(self._descriptor)

    def _append(self, kind: str, **values: Any) -> None:
        line = json.dumps({"time_s": time.time(), "kind": kind, **_finite(values)}, ensure_ascii=False, allow_nan=False)
        data = f"{line}\n".encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _drop_torn_line(self) -> None:
        """Cut off what a killed process left of its last line: a reader takes whole lines only."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, 2**20, max(0, size - 2**20))
        if tail and not tail.endswith(b"\n"):
            os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)


def _finite(values: Any) -> Any:
    """The values without numbers that JSON has no word for."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items() if not _is_odd(value)}
    return values


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
