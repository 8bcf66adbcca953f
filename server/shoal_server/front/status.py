"""The one table from errors to gRPC statuses, and the google.rpc details that go with them.

An error that is not in the table is our mistake and answers INTERNAL without its text.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from shoal_server import errors

DOMAIN: Final = "shoal"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
MAX_MESSAGE_BYTES: Final = 900  # statuses travel in headers, which peers bound to 8 KiB; the message goes twice
MAX_VIOLATION_BYTES: Final = 2000  # over all violations of one status; the first always goes

_Code = grpc.StatusCode
CODES: Final[dict[type[errors.ServerError], grpc.StatusCode]] = {
    errors.ServerError: _Code.INTERNAL,
    errors.InvalidRequest: _Code.INVALID_ARGUMENT,
    errors.NotFound: _Code.NOT_FOUND,
    errors.ModelNotFound: _Code.NOT_FOUND,
    errors.VersionNotFound: _Code.NOT_FOUND,
    errors.LabelNotFound: _Code.NOT_FOUND,
    errors.JobNotFound: _Code.NOT_FOUND,
    errors.DatasetNotFound: _Code.NOT_FOUND,
    errors.Precondition: _Code.FAILED_PRECONDITION,
    errors.WrongModelKind: _Code.FAILED_PRECONDITION,
    errors.VersionRejected: _Code.FAILED_PRECONDITION,
    errors.VersionInUse: _Code.FAILED_PRECONDITION,
    errors.JobNotCancellable: _Code.FAILED_PRECONDITION,
    errors.JobRunning: _Code.FAILED_PRECONDITION,
    errors.DatasetInUse: _Code.FAILED_PRECONDITION,
    errors.AlreadyExists: _Code.ALREADY_EXISTS,
    errors.LabelMoved: _Code.ABORTED,
    errors.Unavailable: _Code.UNAVAILABLE,
    errors.VersionLoading: _Code.UNAVAILABLE,
    errors.EngineLost: _Code.UNAVAILABLE,
    errors.Draining: _Code.UNAVAILABLE,
    errors.Exhausted: _Code.RESOURCE_EXHAUSTED,
    errors.QueueFull: _Code.RESOURCE_EXHAUSTED,
    errors.TooManyJobs: _Code.RESOURCE_EXHAUSTED,
    errors.StorageFull: _Code.RESOURCE_EXHAUSTED,
    errors.DeadlinePassed: _Code.DEADLINE_EXCEEDED,
    errors.Unauthenticated: _Code.UNAUTHENTICATED,
    errors.NotBuilt: _Code.UNIMPLEMENTED,
    errors.InternalFault: _Code.INTERNAL,
}


def as_server_error(error: Exception, request_id: str) -> errors.ServerError:
    """The error to tell the client: itself if it is of the tree, else one that says nothing of the inside."""
    if isinstance(error, errors.ServerError) and type(error) in CODES:
        return error
    return errors.InternalFault(f"internal error; the server's log has request {request_id}")


def to_status(error: errors.ServerError) -> status_pb2.Status:
    """The google.rpc.Status of an error, with all details that apply."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.violations:
        details.append(_bad_request(error.violations))
    if error.retry_after_s is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after_s)))
    status = status_pb2.Status(code=CODES[type(error)].value[0], message=_cut(error.message, MAX_MESSAGE_BYTES))
    for detail in details:
        packed = AnyProto()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def trailing_metadata(error: errors.ServerError, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """What goes into the trailers: the packed status and, wherever RetryInfo is sent, the pushback."""
    metadata: tuple[tuple[str, str | bytes], ...] = tuple(rpc_status.to_status(status).trailing_metadata)
    if error.retry_after_s is not None:
        metadata += ((PUSHBACK_KEY, str(max(1, round(error.retry_after_s * 1000)))),)
    return metadata


def _bad_request(violations: list[errors.Violation]) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    room = MAX_VIOLATION_BYTES
    for violation in violations:
        field, description = _cut(violation.field, 200), _cut(violation.description, 500)
        room -= len(field.encode()) + len(description.encode())
        if room < 0 and detail.field_violations:
            break
        detail.field_violations.add(field=field, description=description)
    return detail


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, round(seconds * 1e9)))
    return duration


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode(errors="replace")
    return text if len(data) <= max_bytes else data[: max_bytes - 3].decode(errors="ignore") + "…"
