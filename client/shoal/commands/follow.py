"""Following a training job: a progress bar for people, plain lines for a log, JSON lines for programs."""

from __future__ import annotations

import re
import sys
import time
from typing import Protocol

from rich.progress import BarColumn, Progress, TextColumn

from shoal import types
from shoal.commands.output import ExitCode, console, duration, figures, print_json, print_pairs, printable
from shoal.sync import Client

LOG_INTERVAL_S = 5.0  # between two progress lines where there is no terminal
_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


class View(Protocol):
    """Shows events of a job."""

    def __enter__(self) -> View: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, event: types.TrainingEvent) -> None:
        """Show one event."""


def follow(client: Client, job_id: str, *, as_json: bool) -> int:
    """Show a job's events until it ends, then its outcome; the exit code tells it too. Ctrl-C only detaches."""
    view = JsonView() if as_json else BarView() if sys.stdout.isatty() else LogView()
    try:
        with view, client.watch_training_job(job_id) as events:
            for event in events:
                view.show(event)
    except KeyboardInterrupt:
        print(
            f"\nDetached; the job goes on. Follow it: shoal jobs watch {job_id}   Stop it: shoal jobs cancel {job_id}",
            file=sys.stderr,
        )
        return ExitCode.INTERRUPTED
    return _conclude(client.get_training_job(job_id), as_json=as_json)


def event_as_json(event: types.TrainingEvent) -> dict[str, object]:
    """An event with its kind as a word, such as "state_changed"."""
    kind = "unknown" if event.event is None else _WORD_START.sub("_", type(event.event).__name__).lower()
    return {"sequence": event.sequence, "time": event.time, "kind": kind, "event": event.event}


def describe(event: types.JobEvent | None) -> str:
    """An event as a line for people."""
    match event:
        case types.StateChanged(state=state, failure=failure):
            return state if failure is None else f"{state}: {failure.reason}: {failure.message}"
        case types.JobProgress():
            return _describe_progress(event)
        case types.Evaluation(metrics=metrics, final=final):
            return f"{'final evaluation' if final else 'evaluation'}  {figures(metrics)}"
        case types.CheckpointSaved(step=step):
            return f"checkpoint at step {step:,}"
        case types.VersionPublished(model=model, version=version):
            return f"published {model}@{version}"
        case types.JobWarning(message=message):
            return f"warning: {message}"
        case None:
            return "something this client is too old to know"


def _describe_progress(progress: types.JobProgress) -> str:
    left = "" if progress.time_left_s is None else f"  {duration(progress.time_left_s)} left"
    return (
        f"step {progress.step:,}/{progress.total_steps:,}  epoch {progress.epoch:.2f}  loss {progress.loss:.4f}"
        f"  lr {progress.learning_rate:.2e}{left}"
    )


class JsonView:
    """A line of JSON for each event."""

    def __enter__(self) -> JsonView:
        return self

    def __exit__(self, *exception: object) -> None:
        sys.stdout.flush()

    def show(self, event: types.TrainingEvent) -> None:
        """Print it, at once."""
        print_json(event_as_json(event))
        sys.stdout.flush()


class LogView:
    """A line of text for each event; progress now and then."""

    def __init__(self) -> None:
        self._next_progress_s = 0.0

    def __enter__(self) -> LogView:
        return self

    def __exit__(self, *exception: object) -> None:
        sys.stdout.flush()

    def show(self, event: types.TrainingEvent) -> None:
        """Print it, unless it is progress soon after progress."""
        if isinstance(event.event, types.JobProgress):
            now_s = time.monotonic()
            if now_s < self._next_progress_s:
                return
            self._next_progress_s = now_s + LOG_INTERVAL_S
        print(printable(describe(event.event)), flush=True)


class BarView:
    """A progress bar, with what matters printed above it."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
        )
        self._progress = Progress(*columns, console=console(), transient=True)
        self._task = self._progress.add_task("waiting", total=None, note="")

    def __enter__(self) -> BarView:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def show(self, event: types.TrainingEvent) -> None:
        """Move the bar, or print above it."""
        match event.event:
            case types.StateChanged(state=state):
                self._progress.update(self._task, description=state)
            case types.JobProgress() as at:
                self._progress.update(
                    self._task, completed=at.step, total=at.total_steps or None, note=_describe_progress(at)
                )
            case types.CheckpointSaved():
                return
            case other:
                self._progress.console.print(printable(describe(other)), markup=False)


def _conclude(job: types.TrainingJob, *, as_json: bool) -> int:
    if as_json:
        print_json({"kind": "job", "job": job})
    elif job.state == "succeeded":
        took = duration((job.end_time - job.start_time).total_seconds()) if job.end_time and job.start_time else ""
        published = f"{job.spec.name}@{job.published_version}"
        print_pairs({"published": published, "evaluation": figures(job.metrics), "took": took})
    if job.state == "succeeded":
        return ExitCode.OK
    if job.state == "cancelled":
        print(f"shoal: job {job.id} was cancelled", file=sys.stderr)
        return ExitCode.CANCELLED
    why = f": {job.failure.reason}: {printable(job.failure.message)}" if job.failure else ""
    print(f"shoal: job {job.id} is {job.state}{why}", file=sys.stderr)
    return ExitCode.FAILED
