"""Why a job ends without success: one tree of errors, and the way from any exception to reason and exit code.

    JobFailure                the job is over
      InvalidSpec  BadData  BaseMissing  TimeLimitPassed  Diverged  StorageFailed
    StopRequested             not a failure: SIGTERM came, go on later from a checkpoint

Messages are for people and never show a data row: the text of a foreign exception is not passed on.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_BAD_SPEC = 64
EXIT_BAD_DATA = 65
EXIT_STOPPED = 75

_STORAGE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
)
# What libraries that write files without Python's OSError say when a write fails.
_STORAGE_TEXT = re.compile(r"os error (28|30|122|13|5|27)\b|PytorchStreamWriter failed|inline_container|iostream error")
_MEMORY_TEXT = re.compile(
    r"out of memory|not enough memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)


class StopRequested(Exception):
    """The process was asked to stop; a checkpoint lets the job go on later."""


class JobFailure(Exception):
    """The job is over; the message may be shown to people."""

    reason: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = EXIT_FAILED


class InvalidSpec(JobFailure):
    """The spec cannot be carried out."""

    reason = "invalid_spec"
    exit_code = EXIT_BAD_SPEC


class BadData(JobFailure):
    """Rows are bad; the message names line numbers."""

    reason = "bad_data"
    exit_code = EXIT_BAD_DATA


class BaseMissing(JobFailure):
    """The base model is missing or refused."""

    reason = "base_missing"


class TimeLimitPassed(JobFailure):
    """The spec's time limit passed."""

    reason = "timeout"


class Diverged(JobFailure):
    """The loss or the weights are no longer finite numbers."""

    reason = "diverged"


class StorageFailed(JobFailure):
    """The disk is full or not writable."""

    reason = "storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a job failed, in the words of `FailureReason` in train.proto."""

    reason: str
    message: str
    exit_code: int


def explain(error: BaseException) -> Failure:
    """The failure behind an exception; causes are looked through for a full disk or exhausted memory."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, JobFailure):
            return Failure(reason=cause.reason, message=str(cause), exit_code=cause.exit_code)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _STORAGE_ERRNOS:
            return _storage(f"{cause.strerror}: {cause.filename or 'writing a file'}")
        if not isinstance(cause, OSError) and _STORAGE_TEXT.search(str(cause)):
            return _storage("a file could not be written: the disk is full or not writable")
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or _is_allocation(cause):
            message = "memory ran out; try a smaller batch_size or max_len, or method lora"
            return Failure(reason="out_of_memory", message=message, exit_code=EXIT_FAILED)
    message = f"{type(error).__name__} in {_place(error)}; the job's log.txt has the traceback"
    return Failure(reason="internal", message=message, exit_code=EXIT_FAILED)


def _storage(message: str) -> Failure:
    return Failure(reason=StorageFailed.reason, message=message, exit_code=EXIT_FAILED)


def _is_allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and _MEMORY_TEXT.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _place(error: BaseException) -> str:
    """Module and line where the exception arose."""
    trace = error.__traceback__
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
