"""What surrounds every RPC: authentication, request id, parsing, errors to statuses, one log line and the metrics.

Handlers are wrapped once, when they are registered, which costs a call nothing where gRPC's own interceptors would
cost it several coroutines. They get and give protobuf messages; here bytes become messages, so that malformed bytes
are a client's error like any other. A handler that streams writes through `Outgoing`: cancellation then always
reaches it as CancelledError.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from shoal_server.errors import InternalFault, InvalidRequest, ServerError
from shoal_server.front.credentials import TokenBook
from shoal_server.front.metrics import FrontMetrics
from shoal_server.front.rpc import Rpc, choose_request_id
from shoal_server.front.status import CODES, as_server_error, to_status, trailing_metadata
from shoal_server.log import Log

REQUEST_ID_KEY: Final = "x-request-id"
MAX_DISCARDED_BYTES: Final = 64 * 2**20
MAX_DISCARD_S: Final = 2.0
DISCARD_IDLE_S: Final = 0.2
_log = Log(__name__)

Request = TypeVar("Request", bound=Message)
Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[bytes, bytes]


class Incoming(Generic[Request]):
    """The messages of a client's stream.

    On leaving it before its end, what is on its way is read and thrown away for a moment: a Python client whose write
    fails because the answer was early reports that failure, and not the answer.
    """

    def __init__(self, context: Context, request: type[Request]) -> None:
        self._context = context
        self._request = request
        self._can_read = True  # not at the end, and no read is pending that was given up

    async def __aenter__(self) -> Incoming[Request]:
        """Nothing happens yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Throw away what is on its way, unless the client is gone."""
        if self._can_read and (error is None or isinstance(error, ServerError)):
            await self._discard()

    async def read(self) -> Request | None:
        """The next message; None once the client has said everything.

        Raises:
            InvalidRequest: the bytes are no such message.
        """
        raw = await self._read()
        return None if raw is None else _parse(self._request, raw)

    async def _read(self) -> bytes | None:
        self._can_read = False
        raw = await self._context.read()
        if not isinstance(raw, bytes):
            return None  # EOF
        self._can_read = True
        return raw

    async def _discard(self) -> None:
        num_bytes, until_s = 0, time.monotonic() + MAX_DISCARD_S
        while num_bytes < MAX_DISCARDED_BYTES and time.monotonic() < until_s:
            try:
                async with asyncio.timeout(DISCARD_IDLE_S):
                    raw = await self._read()
            except TimeoutError:
                return
            if raw is None:
                return
            num_bytes += len(raw)


class Outgoing:
    """The messages of the server's stream."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: Message) -> None:
        """Send a message; returns when the transport has room, and not before the client reads."""
        await self._context.write(message.SerializeToString())


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method of a service.

    The handler's arguments after the `Rpc` depend on which sides stream. Neither: (request) -> response. The server:
    (request, Outgoing). The client: (Incoming) -> response. Both: (Incoming, Outgoing).
    """

    name: str
    request: type[Message]
    handler: Callable[..., Awaitable[Any]]
    client_streams: bool = False
    server_streams: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service by its full name, and who may call it."""

    name: str
    methods: tuple[Method, ...]
    open_to_all: bool = False  # health is, since probes carry no token
    quiet: bool = False  # no INFO line: probes and the like


class Interceptors:
    """Wraps handlers with everything that is the same for all of them."""

    def __init__(self, metrics: FrontMetrics, tokens: TokenBook) -> None:
        self._metrics = metrics
        self._tokens = tokens

    def wrap(self, service: Service) -> grpc.GenericRpcHandler:
        """The handler to register for a service."""
        handlers = {method.name: self._handler(service, method) for method in service.methods}
        return grpc.method_handlers_generic_handler(service.name, handlers)

    def _handler(self, service: Service, method: Method) -> Any:
        if method.client_streams and method.server_streams:
            return grpc.stream_stream_rpc_method_handler(self._stream_stream(service, method))
        if method.client_streams:
            return grpc.stream_unary_rpc_method_handler(self._stream_unary(service, method))
        if method.server_streams:
            return grpc.unary_stream_rpc_method_handler(self._unary_stream(service, method))
        return grpc.unary_unary_rpc_method_handler(self._unary_unary(service, method))

    def _unary_unary(self, service: Service, method: Method) -> Any:
        async def handle(raw: bytes, context: Context) -> bytes:
            async def answer(rpc: Rpc) -> bytes:
                response: Message = await method.handler(rpc, _parse(method.request, raw))
                return response.SerializeToString()

            return await self._run(service, method, context, answer)

        return handle

    def _unary_stream(self, service: Service, method: Method) -> Any:
        async def handle(raw: bytes, context: Context) -> None:
            async def answer(rpc: Rpc) -> None:
                await method.handler(rpc, _parse(method.request, raw), Outgoing(context))

            await self._run(service, method, context, answer)

        return handle

    def _stream_unary(self, service: Service, method: Method) -> Any:
        async def handle(_: Any, context: Context) -> bytes:
            async def answer(rpc: Rpc) -> bytes:
                async with Incoming(context, method.request) as incoming:
                    response: Message = await method.handler(rpc, incoming)
                return response.SerializeToString()

            return await self._run(service, method, context, answer)

        return handle

    def _stream_stream(self, service: Service, method: Method) -> Any:
        async def handle(_: Any, context: Context) -> None:
            async def answer(rpc: Rpc) -> None:
                async with Incoming(context, method.request) as incoming:
                    await method.handler(rpc, incoming, Outgoing(context))

            await self._run(service, method, context, answer)

        return handle

    async def _run(
        self, service: Service, method: Method, context: Context, answer: Callable[[Rpc], Awaitable[Answer]]
    ) -> Answer:
        """Run one RPC to its one end, and tell log and metrics of it."""
        metadata = _text_metadata(context)
        rpc = Rpc(
            method=method.name,
            request_id=choose_request_id(metadata.get(REQUEST_ID_KEY)),
            remaining_s=context.time_remaining(),
        )
        code = grpc.StatusCode.OK
        error: ServerError | None = None
        try:
            await _tell_request_id(method, rpc, context)
            if not service.open_to_all:
                self._tokens.check(metadata.get("authorization"))
            return await answer(rpc)
        except asyncio.CancelledError:
            if _is_cancelled():  # by gRPC: the client left, or its deadline passed
                code = grpc.StatusCode.DEADLINE_EXCEEDED if rpc.expired() else grpc.StatusCode.CANCELLED
                raise
            error = InternalFault("internal error: an awaited step was cancelled")  # unanswered, the client would hang
        except grpc.aio.BaseError:  # a batch failed: the client is gone
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as caught:
            error = self._to_tell(rpc, caught)
        finally:
            self._ended(service, rpc, CODES[type(error)] if error is not None else code)
        assert error is not None, "everything else has returned or raised"
        return await _abort(method, rpc, context, error)

    def _to_tell(self, rpc: Rpc, caught: Exception) -> ServerError:
        error = as_server_error(caught, rpc.request_id)
        if error is not caught:  # the exception's own text may quote a request, so only its place is logged
            place = " < ".join(
                f"{f.name} {f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(caught.__traceback__))
            )
            _log.error("rpc_fault", method=rpc.method, request_id=rpc.request_id, error=type(caught).__name__, at=place)
        self._metrics.count_rejected(error.reason, rpc.version)
        return error

    def _ended(self, service: Service, rpc: Rpc, code: grpc.StatusCode) -> None:
        duration_s = time.monotonic() - rpc.started_s
        self._metrics.count_rpc(rpc.method, code.name, rpc.version, duration_s)
        (_log.debug if service.quiet else _log.info)(
            "rpc",
            method=rpc.method,
            code=code.name,
            request_id=rpc.request_id,
            model=rpc.version[0],
            version=rpc.version[1],
            total_ms=round(duration_s * 1e3, 2),
            tokenize_ms=round(rpc.tokenize_s * 1e3, 2),
            queue_ms=round(rpc.queue_s * 1e3, 2),
            run_ms=round(rpc.run_s * 1e3, 2),
        )


async def _tell_request_id(method: Method, rpc: Rpc, context: Context) -> None:
    """At once where answers stream; else with the answer, since metadata before it would cost a write of its own."""
    metadata = ((REQUEST_ID_KEY, rpc.request_id),)
    if method.server_streams:
        await context.send_initial_metadata(metadata)
    else:
        context.set_trailing_metadata(metadata)


async def _abort(method: Method, rpc: Rpc, context: Context, error: ServerError) -> NoReturn:
    status = to_status(error)
    metadata = trailing_metadata(error, status)
    if not method.server_streams:
        metadata += ((REQUEST_ID_KEY, rpc.request_id),)
    await context.abort(CODES[type(error)], status.message, metadata)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _text_metadata(context: Context) -> dict[str, str]:
    """The client's metadata without its binary entries; of keys sent twice the last."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _parse(request: type[Request], raw: bytes) -> Request:
    try:
        return request.FromString(raw)
    except DecodeError:
        name = request.DESCRIPTOR.full_name
        raise InvalidRequest(f"the bytes are no {name}") from None
