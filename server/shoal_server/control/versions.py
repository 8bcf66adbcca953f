"""What the rooms of control know of a version: its name, what was found in the repository, how far it has come.

Holds data only; `rollout.py`, and `residency.py` on its behalf, are the writers of `VersionEntry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from shoal_models.manifest import Manifest

from shoal_server.ipc.messages import VersionLoaded


class VersionKey(NamedTuple):
    """A model's name and a version's number."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVersion:
    """A complete version as the watcher saw it."""

    key: VersionKey
    path: str
    mtime_ns: int  # of its manifest; a change makes a refused version worth another try
    manifest: Manifest | None  # None: the manifest cannot be used
    error: str = ""  # why not

    @property
    def kind(self) -> str:
        """One of classifier, generator and base; empty where the manifest cannot be used."""
        return self.manifest.kind if self.manifest else ""


class Phase(StrEnum):
    """Where rollout has a version; finer than the state that clients see."""

    ABSENT = "absent"  # no engine has anything of it
    LOADING = "loading"  # wanted; engines load it, then fronts prepare it
    LIVE = "live"
    DRAINING = "draining"  # routed as draining; fronts finish what they began
    UNLOADING = "unloading"  # nothing runs on it; engines free it
    REJECTED = "rejected"


@dataclass(slots=True, kw_only=True)
class VersionEntry:
    """One version of the repository and what engines and fronts have done with it."""

    found: FoundVersion
    phase: Phase = Phase.ABSENT
    reason: str = ""  # of a refusal
    gone: bool = False  # no longer in the repository
    deleting: bool = False  # its files are being removed
    undeletable: bool = False  # a removal failed; pruning leaves it alone from then on
    label_pending: bool = False  # a label waits for it to be live
    drain_revision: int = 0  # first routing table that showed it draining; 0: none yet
    num_deaths: int = 0  # engines that died while loading it, since it was last live
    loads: dict[int, VersionLoaded] = field(default_factory=dict)  # engines that hold it
    refused_by: set[int] = field(default_factory=set)  # engines that refused it while others serve it
    asked: set[int] = field(default_factory=set)  # fronts told to prepare it
    prepared: set[int] = field(default_factory=set)  # fronts that hold its tokenizer
    last_load: VersionLoaded | None = None  # for status, kept after unloading
    resting: bool = False  # wanted, but unloaded, or on its way there, until it is asked for
    returning: bool = False  # asked for after a rest, and not live yet
    num_waiting: int = 0  # calls that wait for it to be live
    last_used_s: float = 0.0  # when a request for it last ended, or it went live; monotonic
    lacking_bytes: int = 0  # memory that the last try to load it lacked; it is tried again when this is 0
    shortage: str = ""  # the engine's words for that; kept while it rests for it
    short_order: int = 0  # whose turn it is among those that lack memory; 0: it lacks none

    @property
    def memory_bytes(self) -> int:
        """What one engine gets back when it is unloaded."""
        return max((load.memory.total_bytes for load in self.loads.values()), default=0)

    def end_shortage(self) -> None:
        """It lacks memory no more, or is not to be loaded any more."""
        self.lacking_bytes, self.short_order, self.shortage = 0, 0, ""


@dataclass(slots=True, kw_only=True)
class EngineFacts:
    """One engine that is up."""

    incarnation: int
    address: str
    loading: VersionKey | None = None
    unloading: set[VersionKey] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class FrontFacts:
    """One front that is up."""

    sent_revision: int = 0
    applied_revision: int = 0
    in_flight: frozenset[VersionKey] = frozenset()  # draining versions with open requests
    use_revision: int = 0  # table under which the front last told what it uses; 0: it has told nothing
    open_versions: frozenset[VersionKey] = frozenset()  # versions that requests used or waited for then
