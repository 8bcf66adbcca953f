"""What the end of a trainer's process means for its job. Pure: facts in, verdict out."""

from __future__ import annotations

import signal
from dataclasses import dataclass

import msgspec

EXIT_BAD_SPEC = 64
EXIT_BAD_DATA = 65
EXIT_STOPPED = 75  # with a valid checkpoint


class TrainerResult(msgspec.Struct, frozen=True, kw_only=True):
    """`result.json`, the last thing a trainer writes."""

    state: str
    failure_reason: str = ""
    failure_message: str = ""
    metrics: dict[str, float] = {}
    published_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """All that is known when a trainer's process is gone."""

    exit_code: int | None  # None: it was not our child, nobody knows
    result: TrainerResult | None
    cancel_requested: bool
    timed_out: bool
    disk_full: bool
    num_attempts: int
    max_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The job's next state: final, or "interrupted" to be queued again."""

    state: str
    failure_reason: str = ""
    failure_message: str = ""


def judge(ending: Ending) -> Verdict:
    """What becomes of the job.

    What was published stays published, even when a cancellation came meanwhile.
    """
    result = ending.result
    if result is not None and result.state == "succeeded":
        return Verdict(state="succeeded")
    if ending.cancel_requested:
        return Verdict(state="cancelled")
    if ending.timed_out:
        return _failed("timeout", "the time limit passed")
    if result is not None and result.state == "failed":
        return _failed(result.failure_reason or "internal", result.failure_message)
    if ending.exit_code == EXIT_BAD_DATA:
        return _failed("bad_data", "the trainer refused the data; its log says more")
    if ending.exit_code == EXIT_BAD_SPEC:
        return _failed("invalid_spec", "the trainer refused the spec; its log says more")
    if ending.disk_full:
        return _failed("storage", "the disk is full")
    if ending.exit_code is None or ending.exit_code < 0 or ending.exit_code == EXIT_STOPPED:
        return _lost(ending)
    return _failed("internal", f"the trainer ended with code {ending.exit_code} and no result; its log says more")


def _lost(ending: Ending) -> Verdict:
    if ending.num_attempts < ending.max_attempts:
        return Verdict(state="interrupted")
    how = "unknown" if ending.exit_code is None else _describe(ending.exit_code)
    return _failed("worker_lost", f"the trainer was lost {ending.num_attempts} times, last with {how}")


def _describe(code: int) -> str:
    if code >= 0:
        return f"code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, as when memory runs out" if -code == signal.SIGKILL else name


def _failed(reason: str, message: str) -> Verdict:
    return Verdict(state="failed", failure_reason=reason, failure_message=message)
