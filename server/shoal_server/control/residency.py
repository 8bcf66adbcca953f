"""Which versions rest, and when they come back: for being idle, or to make room for one that is asked for.

A version that rests is wanted and not loaded; the next request for it wakes it. Where a load lacks memory, idle
versions rest, the least recently used first, then the load is tried again. Loads that lack memory are served in the
order in which they began to, and what was loaded for requests that waited stays until those have ended: so versions
that fit only in turn all get their turn. What has requests in flight, is pinned, or must not rest is never touched.

`decide` reads rollout's state, `apply` changes it; `Rollout.plan` calls both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal_server.control.versions import Phase, VersionEntry, VersionKey
from shoal_server.ipc.messages import VersionsInUse

if TYPE_CHECKING:
    from shoal_server.control.rollout import Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """The version shall not be loaded until it is asked for."""

    key: VersionKey
    shortage: str = ""  # why it could not be loaded although it was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The version does not fit, whatever else would be unloaded."""

    key: VersionKey
    reason: str


def decide(rollout: Rollout) -> list[Rest | Refuse]:
    """What shall rest or be refused now."""
    return _unused(rollout) or _settle_short(rollout) or _make_room(rollout)


def apply(rollout: Rollout, decisions: list[Rest | Refuse]) -> None:
    """Carry out what was decided."""
    for decision in decisions:
        if isinstance(decision, Refuse):
            rollout.reject(decision.key, decision.reason)
        else:
            entry = rollout.entries[decision.key]
            entry.end_shortage()
            entry.resting, entry.returning, entry.shortage = True, False, decision.shortage


@contextmanager
def waiting_for(rollout: Rollout, key: VersionKey) -> Iterator[None]:
    """Wake a version; as long as the caller stays inside, it is made room for and does not rest."""
    entry = rollout.entries[key]
    entry.num_waiting += 1
    if entry.resting:
        entry.resting, entry.shortage = False, ""
        # What makes room for another goes all the same, and comes back after it: else the other might wait for ever.
        entry.returning = entry.phase is not Phase.DRAINING or bool(_short(rollout))
    try:
        yield
    finally:
        entry.num_waiting -= 1


def note_use(rollout: Rollout, message: VersionsInUse) -> None:
    """A front tells which versions its requests use."""
    front = rollout.fronts.get(message.front_id)
    if front is None:
        return
    front.use_revision = message.revision
    front.open_versions = frozenset(VersionKey(use.model, use.version) for use in message.uses if use.num_open)
    for use in message.uses:
        if entry := rollout.entries.get(VersionKey(use.model, use.version)):
            entry.last_used_s = max(entry.last_used_s, use.last_used_s)


def note_shortage(rollout: Rollout, entry: VersionEntry, reason: str, lacking_bytes: int) -> None:
    """An engine lacks memory to load the version, which is to be live."""
    if entry.phase is Phase.LIVE:  # the engine restarted, and has less than before
        if may_rest(rollout, entry.found.key.model):
            apply(rollout, [Rest(key=entry.found.key, shortage=reason)])
        else:
            rollout.reject(entry.found.key, reason)
        return
    entry.lacking_bytes, entry.shortage = max(entry.lacking_bytes, lacking_bytes), reason
    if not entry.short_order:
        entry.short_order = 1 + max(other.short_order for other in rollout.entries.values())


def room_freed(rollout: Rollout) -> None:
    """No engine holds a version any more: those that lack memory try again, in their order."""
    for entry in _short(rollout):
        entry.lacking_bytes = 0


def may_rest(rollout: Rollout, model: str) -> bool:
    """Whether versions of the model may rest at all."""
    repository = rollout.settings.repository
    return repository.is_evictable(model) or repository.idle_unload_s_of(model) is not None


def is_on_demand(rollout: Rollout, entry: VersionEntry) -> bool:
    """Whether requests for the version wait until it is live: it rests, comes back, or is the first of its model."""
    key = entry.found.key
    if entry.resting or entry.returning:
        return key.version in rollout.wanted(key.model)
    if entry.phase is not Phase.LOADING or not may_rest(rollout, key.model):
        return False
    has_live = any(other.phase is Phase.LIVE for other in rollout.entries_of(key.model))
    return not has_live and key.version in rollout.wanted(key.model)


def wants_room(rollout: Rollout) -> bool:
    """Whether a version waits for others to fall idle."""
    leaving_bytes = _leaving_bytes(rollout)
    return any(e.lacking_bytes > leaving_bytes and _is_claimed(rollout, e) for e in _short(rollout))


def _unused(rollout: Rollout) -> list[Rest | Refuse]:
    """Live versions that nobody has asked for in their time."""
    rests: list[Rest | Refuse] = []
    for key, entry in rollout.entries.items():
        limit_s = rollout.settings.repository.idle_unload_s_of(key.model)
        if limit_s is None or entry.phase is not Phase.LIVE or rollout.now_s - entry.last_used_s < limit_s:
            continue
        if _is_idle(rollout, entry) and key.version in rollout.wanted(key.model):
            rests.append(Rest(key=key))
    return rests


def _settle_short(rollout: Rollout) -> list[Rest | Refuse]:
    """Versions that lack memory and for which no room is to be made: too large, or not asked for."""
    decisions: list[Rest | Refuse] = []
    for entry in _short(rollout):
        key = entry.found.key
        if entry.lacking_bytes > _leaving_bytes(rollout) + _evictable_bytes(rollout, entry):
            hopeless = Refuse(key=key, reason=entry.shortage)
            decisions.append(Rest(key=key, shortage=entry.shortage) if entry.returning else hopeless)
        elif not _is_claimed(rollout, entry):
            decisions.append(Rest(key=key))
    return decisions


def _make_room(rollout: Rollout) -> list[Rest | Refuse]:
    """Enough idle versions for the first that lacks memory, then for the next, until they are not enough for one."""
    spare_bytes = _leaving_bytes(rollout)
    rests: list[Rest | Refuse] = []
    for entry in _short(rollout):
        free = [other for other in _candidates(rollout, entry) if Rest(key=other.found.key) not in rests]
        chosen: list[VersionEntry] = []
        while free and spare_bytes < entry.lacking_bytes:
            chosen.append(free.pop(0))
            spare_bytes += chosen[-1].memory_bytes
        if spare_bytes < entry.lacking_bytes:
            break
        spare_bytes -= entry.lacking_bytes
        rests += [Rest(key=other.found.key) for other in chosen]
    return rests


def _short(rollout: Rollout) -> list[VersionEntry]:
    """Versions that lack memory to be loaded, the longest waiting first."""
    found = [e for e in rollout.entries.values() if e.lacking_bytes and e.phase is Phase.LOADING and not e.resting]
    return sorted(found, key=lambda entry: entry.short_order)


def _is_claimed(rollout: Rollout, entry: VersionEntry) -> bool:
    """Whether others shall make room: someone waits for it, it takes over from an older one, or it must not rest."""
    key = entry.found.key
    if entry.num_waiting or entry.label_pending or not may_rest(rollout, key.model):
        return True
    return any(older.loads and older.found.key < key for older in rollout.entries_of(key.model))


def _candidates(rollout: Rollout, entry: VersionEntry) -> list[VersionEntry]:
    """Idle versions that may make room for `entry`, the first to go first: its own predecessor at last.

    None before every front has told of its use since the table said that room is wanted.
    """
    table = rollout.table
    if not table.wants_room or any(front.use_revision != table.revision for front in rollout.fronts.values()):
        return []
    idle = [e for e in _evictable(rollout, entry) if e.phase is Phase.LIVE and _is_idle(rollout, e)]
    model = entry.found.key.model
    return sorted(idle, key=lambda e: (e.found.key.model == model, e.last_used_s, e.found.key))


def _evictable(rollout: Rollout, entry: VersionEntry) -> list[VersionEntry]:
    repository = rollout.settings.repository
    return [
        other
        for key, other in rollout.entries.items()
        if other is not entry and other.loads and not other.resting and repository.is_evictable(key.model)
    ]


def _evictable_bytes(rollout: Rollout, entry: VersionEntry) -> int:
    """What could be had for `entry` once everything that may rest is idle."""
    staying = (Phase.LIVE, Phase.LOADING)
    return sum(other.memory_bytes for other in _evictable(rollout, entry) if other.phase in staying)


def _leaving_bytes(rollout: Rollout) -> int:
    """What versions hold that are on their way out."""
    leaving = (Phase.DRAINING, Phase.UNLOADING, Phase.REJECTED)
    return sum(e.memory_bytes for e in rollout.entries.values() if e.phase in leaving or (e.resting and e.loads))


def _is_idle(rollout: Rollout, entry: VersionEntry) -> bool:
    """No request is in flight or waits, as far as fronts have told; one that has told nothing may have some."""
    if entry.num_waiting or entry.label_pending:
        return False
    return all(f.use_revision and entry.found.key not in f.open_versions for f in rollout.fronts.values())
