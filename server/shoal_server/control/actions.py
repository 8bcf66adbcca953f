"""What rollout decides; `conductor.py` carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_server.control.versions import VersionKey
from shoal_server.ipc.messages import Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLoad:
    """Tell an engine to load a version."""

    engine_id: int
    key: VersionKey
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendUnload:
    """Tell an engine to free a version."""

    engine_id: int
    key: VersionKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SendPrepare:
    """Tell a front to load a version's tokenizer."""

    front_id: int
    key: VersionKey
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRouting:
    """Give a front the routing table."""

    front_id: int
    routing: Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFiles:
    """Remove an old version from the repository."""

    key: VersionKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLive:
    """A version went live."""

    key: VersionKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRejected:
    """A version was refused."""

    key: VersionKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteFreed:
    """No engine holds the version any more."""

    key: VersionKey
    resting: bool = False  # it comes back when it is asked for


Action = SendLoad | SendUnload | SendPrepare | SendRouting | DeleteFiles | NoteLive | NoteRejected | NoteFreed
