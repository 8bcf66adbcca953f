"""A channel with what every call shares: metadata, deadlines, errors. Knows no service."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc

from shoal._methods import Method, RequestT, ResponseT
from shoal.channel import Endpoint
from shoal.errors import (
    CancelledRpcError,
    ConfigurationError,
    FieldViolation,
    InvalidRequestError,
    RpcError,
    UnavailableError,
    from_grpc,
)
from shoal.types import CallOptions

REQUEST_ID_KEY = "x-request-id"
MAX_REQUEST_ID_CHARACTERS = 64
_CAUSE_PREFIX = re.compile(r"^[A-Z_]+: +(?:ipv4|ipv6|unix):\S+: +")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What one call goes out with."""

    request_id: str
    timeout_s: float | None


class Connection:
    """One endpoint and the channel to it, opened by the first call. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint, timeout_s: float | None) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._closed = False

    def ticket(self, method: Method[Any, Any], options: CallOptions) -> Ticket:
        """Request id and deadline of a call: the call's own, else the client's, else the method's.

        Raises:
            InvalidRequestError: timeout or request id cannot be sent.
        """
        timeout_s = options.get("timeout", self._timeout_s if self._timeout_s is not None else method.timeout_s)
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequestError.of(
                [FieldViolation(field="timeout", description=f"is {timeout_s}; must be above 0")]
            )
        request_id = options.get("request_id") or uuid.uuid4().hex
        if len(request_id) > MAX_REQUEST_ID_CHARACTERS or not (request_id.isascii() and request_id.isprintable()):
            limit = f"must be 1 to {MAX_REQUEST_ID_CHARACTERS} printable ASCII characters"
            raise InvalidRequestError.of([FieldViolation(field="request_id", description=limit)])
        return Ticket(request_id=request_id, timeout_s=timeout_s)

    async def unary(self, method: Method[RequestT, ResponseT], request: RequestT, ticket: Ticket) -> ResponseT:
        """Call and wait for the one answer; cancelling the caller cancels the call.

        Raises:
            RpcError: the call failed.
        """
        try:
            call = self.stub(method, "unary_unary")(request, timeout=ticket.timeout_s, metadata=self.metadata(ticket))
            return cast("ResponseT", await call)
        except grpc.aio.AioRpcError as error:
            raise self.explain(error, ticket) from None
        except asyncio.CancelledError:
            raise_cancelled(ticket)

    async def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, ticket: Ticket
    ) -> AsyncGenerator[ResponseT, None]:
        """Call and yield the answers; closing the generator cancels the call.

        Raises:
            RpcError: the call failed.
        """
        call = self.stub(method, "unary_stream")(request, timeout=ticket.timeout_s, metadata=self.metadata(ticket))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self.explain(error, ticket) from None
        except asyncio.CancelledError:
            raise_cancelled(ticket)
        finally:
            call.cancel()

    def stub(self, method: Method[Any, Any], shape: str) -> Any:
        """The callable of a method; `shape` is that of the channel's factory, such as "unary_unary"."""
        found = self._stubs.get(method.path)
        if found is None:
            factory = getattr(self._open(), shape)
            found = self._stubs[method.path] = factory(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return found

    def metadata(self, ticket: Ticket) -> tuple[tuple[str, str], ...]:
        """What is sent beside the request."""
        source = self.endpoint.token_source
        if source is None:
            return ((REQUEST_ID_KEY, ticket.request_id),)
        return (REQUEST_ID_KEY, ticket.request_id), ("authorization", f"Bearer {source.current()}")

    def explain(self, error: grpc.aio.AioRpcError, ticket: Ticket) -> RpcError:
        """The error of the tree; a server that cannot be reached is named by its address."""
        found = from_grpc(error, ticket.request_id)
        if isinstance(found, UnavailableError) and "last error: " in found.message:
            message = f"no server can be reached at {self.endpoint.address}: {_last_cause(found.message)}"
            return UnavailableError(message, code=found.code, request_id=found.request_id)
        return found

    async def close(self) -> None:
        """End what is running and close the connections. May be called twice."""
        self._closed = True
        self._stubs.clear()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _open(self) -> grpc.aio.Channel:
        if self._closed:
            raise ConfigurationError("the client is closed")
        if self._channel is None:
            self._channel = self.endpoint.open_channel()
        return self._channel


def raise_cancelled(ticket: Ticket) -> NoReturn:
    """Inside `except CancelledError`: pass on a cancellation of the caller, else say that the client was closed.

    gRPC raises CancelledError in both cases, and in the second it must not look as if the caller's task were cancelled.
    """
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise
    raise CancelledRpcError(
        "the client was closed during the call", code=grpc.StatusCode.CANCELLED, request_id=ticket.request_id
    ) from None


def _last_cause(message: str) -> str:
    return _CAUSE_PREFIX.sub("", message.rpartition("last error: ")[2].strip())
