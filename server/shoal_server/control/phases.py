"""Moves versions from phase to phase as far as the facts allow; called only by `Rollout.plan`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shoal_server.control.actions import NoteFreed, NoteLive
from shoal_server.control.versions import Phase, VersionEntry, VersionKey

if TYPE_CHECKING:
    from shoal_server.control.rollout import Rollout


def advance(rollout: Rollout) -> bool:
    """Move every version one phase as far as facts allow; whether any moved."""
    moved = False
    required = {model: rollout.required(model) for model in rollout.models()}
    for key in sorted(rollout.entries):
        before = rollout.entries[key].phase
        _advance_one(rollout, key, required[key.model])
        if key not in rollout.entries or rollout.entries[key].phase is not before:
            moved = True
            required[key.model] = rollout.required(key.model)
    if not rollout.is_settled and rollout.is_scanned and not _pending(rollout, required):
        rollout.is_settled = moved = True
    return moved


def _advance_one(rollout: Rollout, key: VersionKey, required: set[int]) -> None:
    entry = rollout.entries[key]
    match entry.phase:
        case Phase.ABSENT if entry.found.manifest is None and not entry.gone:
            rollout.reject(key, entry.found.error)
        case Phase.ABSENT if key.version in required:
            entry.phase = Phase.LOADING
        case Phase.ABSENT if entry.gone:
            rollout.forget(key)
        case Phase.ABSENT if (entry.resting or entry.returning) and key.version not in rollout.wanted(key.model):
            entry.resting = entry.returning = False
            rollout.note(NoteFreed(key=key))
        case Phase.LOADING:
            _advance_loading(rollout, key, entry, required)
        case Phase.LIVE if _should_drain(rollout, key, entry, required):
            entry.phase, entry.drain_revision = Phase.DRAINING, 0
        case Phase.DRAINING if key.version in required and not entry.returning:
            entry.phase = Phase.LIVE
        case Phase.DRAINING if _is_drained(rollout, key, entry):
            entry.phase = Phase.UNLOADING
        case Phase.UNLOADING if not is_held(rollout, key):
            _free(rollout, key, entry)
        case Phase.REJECTED if entry.gone and not is_held(rollout, key):
            _free(rollout, key, entry)
        case _:
            pass


def _advance_loading(rollout: Rollout, key: VersionKey, entry: VersionEntry, required: set[int]) -> None:
    """A load that has begun ends even when a newer version appears, so that frequent ones starve nobody."""
    if key.version not in required and (not is_held(rollout, key) or _is_forced_out(rollout, key, entry)):
        entry.phase, entry.lacking_bytes, entry.short_order = Phase.UNLOADING, 0, 0
    elif rollout.is_loaded_everywhere(entry) and rollout.fronts and entry.prepared >= rollout.fronts.keys():
        entry.phase, entry.num_deaths = Phase.LIVE, 0
        entry.returning, entry.last_used_s = False, rollout.now_s
        entry.end_shortage()
        rollout.note(NoteLive(key=key))


def _should_drain(rollout: Rollout, key: VersionKey, entry: VersionEntry, required: set[int]) -> bool:
    """A live version not required stays while it is the newest live one and a required one is still to come."""
    if _is_forced_out(rollout, key, entry):
        return True
    if key.version in required:
        return False
    live = [e.found.key.version for e in rollout.entries_of(key.model) if e.phase is Phase.LIVE]
    coming = required - set(live)
    return key.version != max(live) or not coming


def _is_forced_out(rollout: Rollout, key: VersionKey, entry: VersionEntry) -> bool:
    return entry.gone or entry.resting or rollout.record_of(key.model).is_unloaded(key.version)


def _is_drained(rollout: Rollout, key: VersionKey, entry: VersionEntry) -> bool:
    if entry.drain_revision == 0:
        return False
    fronts = rollout.fronts.values()
    return all(f.applied_revision >= entry.drain_revision and key not in f.in_flight for f in fronts)


def is_held(rollout: Rollout, key: VersionKey) -> bool:
    """Whether an engine holds the version or is loading it."""
    return bool(rollout.entries[key].loads) or any(engine.loading == key for engine in rollout.engines.values())


def _pending(rollout: Rollout, required: Mapping[str, set[int]]) -> bool:
    keys = (VersionKey(model, version) for model, versions in required.items() for version in versions)
    return any(rollout.entries[key].phase is not Phase.LIVE for key in keys)


def _free(rollout: Rollout, key: VersionKey, entry: VersionEntry) -> None:
    rollout.note(NoteFreed(key=key, resting=entry.resting or entry.returning))
    entry.phase = Phase.ABSENT
    entry.asked.clear()
    entry.prepared.clear()
    entry.refused_by.clear()
    if entry.gone:
        rollout.forget(key)
