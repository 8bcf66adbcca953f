"""Every way a request can fail, as one tree.

`ServerError` is the root; nothing else leaves a handler on purpose. `front/status.py` holds the one table from these
classes to gRPC statuses. An error crosses a process as `WireError` and comes back as the class it was. Messages say
what, limit and value, and never show a prompt or a data row.

    ServerError
      InvalidRequest            a field is wrong; carries violations
      NotFound
        ModelNotFound  VersionNotFound  LabelNotFound  JobNotFound  DatasetNotFound
      Precondition
        WrongModelKind  VersionRejected  VersionInUse  JobNotCancellable  JobRunning  DatasetInUse
      AlreadyExists             another spec under the same request id
      LabelMoved                compare-and-swap lost
      Unavailable               try again after `retry_after_s`
        VersionLoading  EngineLost  Draining
      Exhausted                 try again after `retry_after_s`
        QueueFull  TooManyJobs  StorageFull
      DeadlinePassed
      Unauthenticated
      NotBuilt                  typed room whose feature is not built
      InternalFault             our own mistake
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One field that is wrong."""

    field: str  # path as in the proto, such as "inputs[3].text"
    description: str  # what, limit and value


class WireError(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way between processes."""

    kind: str  # class name in this module
    message: str
    violations: list[Violation] = []
    retry_after_s: float | None = None


class ServerError(Exception):
    """Root of the tree. `reason` is the stable word clients see in ErrorInfo."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, violations: list[Violation] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = violations or []
        self.retry_after_s = retry_after_s

    def to_wire(self) -> WireError:
        """What to send to another process."""
        return WireError(
            kind=type(self).__name__,
            message=self.message,
            violations=self.violations,
            retry_after_s=self.retry_after_s,
        )


class InvalidRequest(ServerError):
    """A field of the request is wrong."""

    reason = "INVALID_REQUEST"

    @classmethod
    def of(cls, field: str, description: str) -> InvalidRequest:
        """An error about one field."""
        return cls(f"{field}: {description}", violations=[Violation(field=field, description=description)])


class NotFound(ServerError):
    """What was named is not there."""

    reason = "NOT_FOUND"


class ModelNotFound(NotFound):
    """No such model; the message lists what is served."""

    reason = "MODEL_NOT_FOUND"


class VersionNotFound(NotFound):
    """The model has no such version; the message lists those it has."""

    reason = "VERSION_NOT_FOUND"


class LabelNotFound(NotFound):
    """The model has no such label; the message lists those it has."""

    reason = "LABEL_NOT_FOUND"


class JobNotFound(NotFound):
    """No such training job."""

    reason = "JOB_NOT_FOUND"


class DatasetNotFound(NotFound):
    """No such dataset."""

    reason = "DATASET_NOT_FOUND"


class Precondition(ServerError):
    """The state of things forbids it."""

    reason = "PRECONDITION_FAILED"


class WrongModelKind(Precondition):
    """A generator was asked to classify, or the like."""

    reason = "WRONG_MODEL_KIND"


class VersionRejected(Precondition):
    """The version was refused at load; the message says why."""

    reason = "VERSION_REJECTED"


class VersionInUse(Precondition):
    """The version is live, loading, draining or labelled."""

    reason = "VERSION_IN_USE"


class JobNotCancellable(Precondition):
    """The job has ended otherwise."""

    reason = "JOB_NOT_CANCELLABLE"


class JobRunning(Precondition):
    """The job has not ended."""

    reason = "JOB_RUNNING"


class DatasetInUse(Precondition):
    """A job that has not ended names the dataset."""

    reason = "DATASET_IN_USE"


class AlreadyExists(ServerError):
    """The request id was used for something else."""

    reason = "ALREADY_EXISTS"


class LabelMoved(ServerError):
    """The label does not point where the caller expected."""

    reason = "LABEL_MOVED"


class Unavailable(ServerError):
    """Not now; carries `retry_after_s`."""

    reason = "UNAVAILABLE"


class VersionLoading(Unavailable):
    """The version is being loaded."""

    reason = "VERSION_LOADING"


class EngineLost(Unavailable):
    """The engine died with the request, or none is up yet."""

    reason = "ENGINE_LOST"


class Draining(Unavailable):
    """This server is shutting down."""

    reason = "DRAINING"


class Exhausted(ServerError):
    """A bound was reached; carries `retry_after_s` where waiting helps."""

    reason = "RESOURCE_EXHAUSTED"


class QueueFull(Exhausted):
    """Too much waits already."""

    reason = "QUEUE_FULL"


class TooManyJobs(Exhausted):
    """Too many jobs wait already."""

    reason = "TOO_MANY_JOBS"


class StorageFull(Exhausted):
    """The disk is full or not writable."""

    reason = "STORAGE_FULL"


class DeadlinePassed(ServerError):
    """The client's deadline passed; what has expired is never run."""

    reason = "DEADLINE_PASSED"


class Unauthenticated(ServerError):
    """The bearer token is missing or unknown."""

    reason = "UNAUTHENTICATED"


class NotBuilt(ServerError):
    """The protocol has room for it, the server has not."""

    reason = "NOT_BUILT"


class InternalFault(ServerError):
    """A mistake of ours."""

    reason = "INTERNAL"


def error_classes() -> dict[str, type[ServerError]]:
    """Every class of the tree by name, root included."""
    found: dict[str, type[ServerError]] = {}
    pending: list[type[ServerError]] = [ServerError]
    while pending:
        cls = pending.pop()
        found[cls.__name__] = cls
        pending.extend(cls.__subclasses__())
    return found


def from_wire(wire: WireError) -> ServerError:
    """The error that another process sent; an unknown kind becomes `InternalFault`."""
    cls = error_classes().get(wire.kind, InternalFault)
    return cls(wire.message, violations=wire.violations, retry_after_s=wire.retry_after_s)
