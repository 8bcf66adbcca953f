"""What reaches the compute loop from other threads of the engine; grouped by who sends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from shoal_server.engine.model_runner import ReadyVersion
from shoal_server.engine.request import VersionKey
from shoal_server.ipc.messages import Abort, ClassifyCall, GenerateCall, LoadVersion, UnloadVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsReceived:
    """A front sent calls. From the endpoint."""

    peer_id: int
    messages: Sequence[ClassifyCall | GenerateCall | Abort]
    received_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontLost:
    """A front is gone with all its calls. From the endpoint."""

    peer_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersReceived:
    """Control wants versions loaded or freed. From the endpoint."""

    messages: Sequence[LoadVersion | UnloadVersion]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReady:
    """A version passed every check. From the loader."""

    ready: ReadyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    """A version was refused and holds no memory. From the loader."""

    key: VersionKey
    reason: str
    lacking_bytes: int  # memory that would have made it fit; 0: memory was not the reason


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFreed:
    """A version's memory is back. From the loader."""

    key: VersionKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEnded:
    """A forward is done, and its lane is free. From the lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the process. From the endpoint when control is gone, and from the signal handler."""

    reason: str


Event = CallsReceived | FrontLost | OrdersReceived | VersionReady | LoadFailed | VersionFreed | LaneEnded | Stop
Inbox = SimpleQueue[Event]
