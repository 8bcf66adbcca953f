"""Every way a call can fail, as one tree.

`ShoalError` is the root; nothing else leaves the client on purpose. An `RpcError` carries the gRPC status (`code`) and
what the server attached to it: `reason`, `violations`, `retry_after_s`; and `request_id`, by which the server's log
knows the call.

    ShoalError
      ConfigurationError        address, TLS files or token are unusable; nothing was sent
      RpcError
        InvalidRequestError     INVALID_ARGUMENT, OUT_OF_RANGE: fields are wrong; `violations` names them. Also raised,
                                before anything is sent, for arguments that no server could take
        NotFoundError           NOT_FOUND: no such model, version, label, job or dataset
        PreconditionError       FAILED_PRECONDITION: the state of things forbids it
        AlreadyExistsError      ALREADY_EXISTS: the request id was used for something else
        ConflictError           ABORTED: somebody else was faster (a label moved)
        UnavailableError        UNAVAILABLE: not now; try again after `retry_after_s`
        ExhaustedError          RESOURCE_EXHAUSTED: a bound was reached; try again after `retry_after_s`
        DeadlineError           DEADLINE_EXCEEDED: `timeout` passed
        UnauthenticatedError    UNAUTHENTICATED: the token is missing or unknown
        ForbiddenError          PERMISSION_DENIED: the token does not allow it
        NotBuiltError           UNIMPLEMENTED: the server does not offer it
        CancelledRpcError       CANCELLED: ended by the other side or by closing the client
        ServerFaultError        INTERNAL, UNKNOWN, DATA_LOSS: a fault of the server
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """One field that is wrong."""

    field: str  # path as in the protocol, such as "inputs[3].text"
    description: str  # what, limit and value


class ShoalError(Exception):
    """Root of the tree."""


class ConfigurationError(ShoalError):
    """Address, TLS files or token are unusable; nothing was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """What a server attaches to a status."""

    reason: str = ""  # stable word, such as "MODEL_NOT_FOUND"; empty when the server sent none
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None  # unset: waiting may not help
    metadata: Mapping[str, str] = field(default_factory=dict)  # that of ErrorInfo


class RpcError(ShoalError):
    """The call failed; see the classes below for the codes."""

    def __init__(
        self, message: str, *, code: grpc.StatusCode, details: ErrorDetails | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message)
        details = details or ErrorDetails()
        self.message = message
        self.code = code
        self.reason = details.reason
        self.violations = details.violations
        self.retry_after_s = details.retry_after_s
        self.metadata = details.metadata
        self.request_id = request_id

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.code, self._details(), self.request_id)

    def _details(self) -> ErrorDetails:
        return ErrorDetails(
            reason=self.reason,
            violations=self.violations,
            retry_after_s=self.retry_after_s,
            metadata=dict(self.metadata),
        )


class InvalidRequestError(RpcError):
    """Fields of the request are wrong; `violations` names them."""

    @classmethod
    def of(cls, violations: Iterable[FieldViolation]) -> InvalidRequestError:
        """An error found by the client itself, before anything was sent."""
        found = tuple(violations)
        message = "; ".join(f"{violation.field}: {violation.description}" for violation in found)
        return cls(
            message,
            code=grpc.StatusCode.INVALID_ARGUMENT,
            details=ErrorDetails(reason="INVALID_REQUEST", violations=found),
        )


class NotFoundError(RpcError):
    """No such model, version, label, job or dataset; the message lists what there is."""


class PreconditionError(RpcError):
    """The state of things forbids it; the message says why."""


class AlreadyExistsError(RpcError):
    """The request id was used for something else."""


class ConflictError(RpcError):
    """Somebody else was faster, such as a label that moved."""


class UnavailableError(RpcError):
    """Not now; try again after `retry_after_s`."""


class ExhaustedError(RpcError):
    """A bound was reached; try again after `retry_after_s` where it is set."""


class DeadlineError(RpcError):
    """The timeout passed."""


class UnauthenticatedError(RpcError):
    """The token is missing or unknown."""


class ForbiddenError(RpcError):
    """The token does not allow it."""


class NotBuiltError(RpcError):
    """The server does not offer it."""


class CancelledRpcError(RpcError):
    """Ended by the other side or by closing the client."""


class ServerFaultError(RpcError):
    """A fault of the server."""


ERROR_BY_CODE: dict[grpc.StatusCode, type[RpcError]] = {
    grpc.StatusCode.CANCELLED: CancelledRpcError,
    grpc.StatusCode.UNKNOWN: ServerFaultError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: ForbiddenError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: NotBuiltError,
    grpc.StatusCode.INTERNAL: ServerFaultError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: ServerFaultError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}
_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def rpc_error(
    message: str, code: grpc.StatusCode, details: ErrorDetails | None = None, request_id: str = ""
) -> RpcError:
    """The error of the class that stands for `code`."""
    return ERROR_BY_CODE.get(code, ServerFaultError)(message, code=code, details=details, request_id=request_id)


def from_grpc(error: grpc.aio.AioRpcError, request_id: str) -> RpcError:
    """What a failed call becomes; details that cannot be read are left out, the status never is."""
    details = ErrorDetails()
    pushback_s: float | None = None
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            details = read_details(value)
        elif key == PUSHBACK_KEY and isinstance(value, str) and value.isdigit():
            pushback_s = int(value) / 1000
    if details.retry_after_s is None and pushback_s is not None:
        details = ErrorDetails(
            reason=details.reason, violations=details.violations, retry_after_s=pushback_s, metadata=details.metadata
        )
    return rpc_error(error.details() or error.code().name, error.code(), details, request_id)


def from_status(status: status_pb2.Status, request_id: str) -> RpcError:
    """What the status of one item of a stream becomes."""
    code = _CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    return rpc_error(status.message, code, _details_of(status), request_id)


def read_details(encoded: bytes) -> ErrorDetails:
    """The details in an encoded google.rpc.Status; empty when it is not one."""
    try:
        return _details_of(status_pb2.Status.FromString(encoded))
    except DecodeError:
        return ErrorDetails()


def _details_of(status: status_pb2.Status) -> ErrorDetails:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    has_retry = False
    for packed in status.details:
        if packed.Is(retry.DESCRIPTOR):
            has_retry = packed.Unpack(retry)
        elif not packed.Unpack(info):
            packed.Unpack(request)
    return ErrorDetails(
        reason=info.reason,
        violations=tuple(FieldViolation(field=v.field, description=v.description) for v in request.field_violations),
        retry_after_s=retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if has_retry else None,
        metadata=dict(info.metadata),
    )


def _rebuild(
    cls: type[RpcError], message: str, code: grpc.StatusCode, details: ErrorDetails, request_id: str
) -> RpcError:
    return cls(message, code=code, details=details, request_id=request_id)
