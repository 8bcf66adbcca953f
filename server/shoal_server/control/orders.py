"""What engines, fronts and disk are to be told now, given how far every version has come.

Called only by `Rollout.plan`; marks what it orders, so that nothing is ordered twice.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from shoal_server.control.actions import Action, DeleteFiles, SendLoad, SendPrepare, SendRouting, SendUnload
from shoal_server.control.residency import wants_room
from shoal_server.control.routing import build_table
from shoal_server.control.versions import Phase, VersionKey

if TYPE_CHECKING:
    from shoal_server.control.rollout import Rollout


def give_loads(rollout: Rollout) -> list[Action]:
    """One version at a time on each engine.

    First those that served before, then those that lacked memory in their order, then labelled ones, then newest first.
    """
    actions: list[Action] = []
    order = sorted(
        (k for k, e in rollout.entries.items() if e.phase in (Phase.LIVE, Phase.LOADING)),
        key=partial(_urgency, rollout),
    )
    for engine_id, engine in sorted(rollout.engines.items()):
        if engine.loading is not None:
            continue
        for key in order:
            entry = rollout.entries[key]
            if not entry.lacking_bytes and engine_id not in entry.loads and engine_id not in entry.refused_by:
                engine.loading = key
                actions.append(SendLoad(engine_id=engine_id, key=key, path=entry.found.path))
                break
    return actions


def _urgency(rollout: Rollout, key: VersionKey) -> tuple[bool, float, bool, str, int]:
    entry = rollout.entries[key]
    is_labelled = bool(rollout.record_of(key.model).labels_of(key.version))
    return (entry.phase is not Phase.LIVE, entry.short_order or math.inf, not is_labelled, key.model, -key.version)


def give_unloads(rollout: Rollout) -> list[Action]:
    """Free what nothing runs on any more, and refused versions wherever they were loaded."""
    actions: list[Action] = []
    for key, entry in sorted(rollout.entries.items()):
        if entry.phase not in (Phase.UNLOADING, Phase.REJECTED):
            continue
        for engine_id in sorted(entry.loads):
            if key not in rollout.engines[engine_id].unloading:
                rollout.engines[engine_id].unloading.add(key)
                actions.append(SendUnload(engine_id=engine_id, key=key))
    return actions


def give_prepares(rollout: Rollout) -> list[Action]:
    """Every front gets the tokenizers of live versions, and of those that every engine has loaded."""
    actions: list[Action] = []
    for key, entry in sorted(rollout.entries.items()):
        if entry.phase is Phase.LIVE or (entry.phase is Phase.LOADING and rollout.is_loaded_everywhere(entry)):
            for front_id in sorted(rollout.fronts.keys() - entry.asked):
                entry.asked.add(front_id)
                actions.append(SendPrepare(front_id=front_id, key=key, path=entry.found.path))
    return actions


def give_routing(rollout: Rollout) -> list[Action]:
    """Give the table to every front that lacks it, under a new revision when it differs from the last."""
    table = build_table(rollout, serving=_is_serving(rollout), wants_room=wants_room(rollout))
    if table != rollout.table:
        rollout.table = table
        for entry in rollout.entries.values():
            if entry.phase is Phase.DRAINING and entry.drain_revision == 0:
                entry.drain_revision = table.revision
    actions: list[Action] = []
    for front_id, front in sorted(rollout.fronts.items()):
        if front.sent_revision != rollout.table.revision:
            front.sent_revision = rollout.table.revision
            actions.append(SendRouting(front_id=front_id, routing=rollout.table.to_message()))
    return actions


def give_deletions(rollout: Rollout) -> list[Action]:
    """Delete what lies beyond `keep_versions`, except what serves, is labelled or asked for, or trains a job."""
    actions: list[Action] = []
    for model in rollout.models() if rollout.is_settled and rollout.settings.num_engines else ():
        if not _may_prune(rollout, model):
            continue
        wanted, policy = rollout.wanted(model), rollout.policy_of(model)
        listed = policy.serve if isinstance(policy.serve, list) else []
        complete = [entry for entry in rollout.entries_of(model) if not entry.gone]
        for entry in complete[rollout.settings.repository.keep_versions :]:
            key = entry.found.key
            kept = key.version in wanted or key.version in listed or rollout.is_in_use(key)
            if not (kept or entry.deleting or entry.undeletable):
                entry.deleting = True
                actions.append(DeleteFiles(key=key))
    return actions


def _may_prune(rollout: Rollout, model: str) -> bool:
    """Only while something newer serves: an old version is what a server falls back to when new ones are refused."""
    entries = rollout.entries_of(model)
    return any(entry.phase is Phase.LIVE or entry.found.kind == "base" for entry in entries)


def _is_serving(rollout: Rollout) -> bool:
    """Whether every live version can run; true from the start where nothing is to be loaded by design."""
    if rollout.settings.num_engines == 0:
        return True
    live = [entry for entry in rollout.entries.values() if entry.phase is Phase.LIVE]
    return bool(rollout.engines) and rollout.is_settled and all(entry.loads for entry in live)
