"""Shows a job's events on a terminal as they come: states, a progress bar, evaluations, warnings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

POLL_S = 0.2
_SHOWN_METRICS = ("accuracy", "f1_macro", "loss", "perplexity")


def follow(path: Path, begin: int, is_running: Callable[[], bool], console: Console) -> None:
    """Show the events of `path` from byte `begin` on, until the job no longer runs and its last event was shown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        screen = _Screen(bar)
        for event in _read_events(path, begin, is_running):
            screen.show(event)


def _read_events(path: Path, begin: int, is_running: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """Whole lines only: one that is still being written waits for its end."""
    at = begin
    while True:
        running = is_running()
        if path.exists():
            with path.open("rb") as file:
                file.seek(at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            at += len(whole)
            for line in whole.splitlines():
                yield json.loads(line)
        if not running:
            return
        time.sleep(POLL_S)


class _Screen:
    """One progress bar and the lines above it."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID = bar.add_task("starting", total=None, figures="")

    def show(self, event: dict[str, Any]) -> None:
        """Bring one event on the screen."""
        kind = event["kind"]
        if kind == "state" and event["state"] != "failed":
            self._bar.update(self._task, description=event["state"])
        elif kind == "progress":
            self._progress(event["progress"])
        elif kind == "evaluation":
            metrics = event["metrics"]
            figures = ", ".join(f"{name} {metrics[name]:.4f}" for name in _SHOWN_METRICS if name in metrics)
            self._say(f"{'published weights' if event['final'] else 'step ' + str(event['step'])}: {figures}")
        elif kind == "published":
            self._say(f"published {event['model']}@{event['version']}")
        elif kind == "warning":
            self._say(event["message"])

    def _progress(self, figures: dict[str, float]) -> None:
        told = f"loss {figures['loss']:.4f}" if "loss" in figures else ""
        told += f"  lr {figures['learning_rate']:.2e}  {figures['time_left_s']:.0f} s left"
        self._bar.update(self._task, completed=int(figures["step"]), total=int(figures["total_steps"]), figures=told)

    def _say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)
