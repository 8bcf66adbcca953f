"""The calls that are open, and what is said of each until its last message. Knows neither queues nor models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal_server.engine.loader import is_out_of_memory
from shoal_server.engine.request import CallKey, ClassifyRequest, GenerateRequest, VersionKey
from shoal_server.engine.sampler import NotFiniteLogits
from shoal_server.errors import Exhausted, InternalFault, ServerError
from shoal_server.ipc.messages import CallFailed, Message
from shoal_server.log import Log

_log = Log(__name__)


class Answers:
    """Open calls by the peer that sent them."""

    def __init__(self, send: Callable[[int, Message], None]) -> None:
        """`send` takes a peer's id and a message."""
        self._send = send
        self._open: dict[int, dict[CallKey, VersionKey]] = {}

    @property
    def is_any_open(self) -> bool:
        """Whether any call is not answered."""
        return any(self._open.values())

    def begin(self, key: CallKey, version: VersionKey) -> None:
        """A call has been taken in."""
        self._open.setdefault(key.peer_id, {})[key] = version

    def forget(self, key: CallKey) -> VersionKey | None:
        """Nothing more is to be said of a call; returns the version it was for, None when it is not open."""
        return self._open.get(key.peer_id, {}).pop(key, None)

    def forget_peer(self, peer_id: int) -> dict[CallKey, VersionKey]:
        """Nobody listens any more; returns the calls that were open."""
        return self._open.pop(peer_id, {})

    def progress(self, key: CallKey, message: Message) -> None:
        """Send a message that others follow."""
        self._send(key.peer_id, message)

    def end(self, key: CallKey, message: Message) -> None:
        """Send the last message of a call."""
        del self._open[key.peer_id][key]
        self._send(key.peer_id, message)

    def refuse(self, key: CallKey, error: ServerError) -> None:
        """Answer a call that was not taken in."""
        self._send(key.peer_id, CallFailed(request_id=key.request_id, error=error.to_wire()))

    def fail(self, requests: Sequence[ClassifyRequest | GenerateRequest], error: Exception) -> None:
        """End the calls that a failed forward took with it; the engine goes on with the others."""
        _log.error("step.failed", exc_info=not isinstance(error, NotFiniteLogits), calls=len(requests), error=error)
        wire = _as_server_error(error).to_wire()
        for request in requests:
            self.end(request.key, CallFailed(request_id=request.key.request_id, error=wire))


def _as_server_error(error: Exception) -> ServerError:
    if isinstance(error, NotFiniteLogits):
        return InternalFault("the model computed numbers that are not finite")
    if is_out_of_memory(error):
        return Exhausted("the device ran out of memory in this step", retry_after_s=1.0)
    return InternalFault("the engine failed in this step; its log says why")
