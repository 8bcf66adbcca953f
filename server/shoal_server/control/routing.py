"""The routing table that fronts follow, and what clients are told of models: views of rollout's state, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shoal_server.control.residency import is_on_demand
from shoal_server.control.versions import Phase, VersionEntry
from shoal_server.ipc.calls import ModelStatus, VersionStatus
from shoal_server.ipc.messages import EngineEndpoint, ModelKind, RoutedModel, RoutedVersion, Routing, VersionState

if TYPE_CHECKING:
    from shoal_server.control.rollout import Rollout

_STATES = {
    Phase.LOADING: VersionState.LOADING,
    Phase.LIVE: VersionState.LIVE,
    Phase.DRAINING: VersionState.DRAINING,
    Phase.UNLOADING: VersionState.DRAINING,
    Phase.REJECTED: VersionState.REJECTED,
}


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table and its revision; two tables are equal when they say the same."""

    revision: int
    engines: list[EngineEndpoint]
    models: list[RoutedModel]
    serving: bool
    wants_room: bool

    def to_message(self) -> Routing:
        """What fronts are sent."""
        return Routing(
            revision=self.revision,
            engines=self.engines,
            models=self.models,
            serving=self.serving,
            wants_room=self.wants_room,
        )


def build_table(rollout: Rollout, *, serving: bool, wants_room: bool) -> RoutingTable:
    """The table of this moment: the last one itself when nothing differs, else one with the next revision."""
    last = rollout.table
    engines = [
        EngineEndpoint(engine_id=engine_id, address=facts.address, incarnation=facts.incarnation)
        for engine_id, facts in sorted(rollout.engines.items())
    ]
    models = [_route_model(rollout, name) for name in rollout.models()]
    same = RoutingTable(revision=last.revision, engines=engines, models=models, serving=serving, wants_room=wants_room)
    if same == last and last.revision > 0:
        return last
    return msgspec.structs.replace(same, revision=last.revision + 1)


def state_of(rollout: Rollout, entry: VersionEntry) -> VersionState:
    """The state that clients see."""
    key = entry.found.key
    if entry.phase is Phase.ABSENT:
        if entry.resting:
            return VersionState.IDLE
        is_unloaded = rollout.record_of(key.model).is_unloaded(key.version) and entry.found.kind != "base"
        return VersionState.UNLOADED if is_unloaded else VersionState.AVAILABLE
    return _STATES[entry.phase]


def default_version(rollout: Rollout, model: str) -> int:
    """The newest version that is live or comes on demand, 0 where none is."""
    answering = (e for e in rollout.entries_of(model) if e.phase is Phase.LIVE or is_on_demand(rollout, e))
    return next((entry.found.key.version for entry in answering), 0)


def model_status(rollout: Rollout, model: str) -> ModelStatus:
    """All about one model that has at least one version."""
    return ModelStatus(
        name=model,
        kind=_kind_of(rollout, model),
        versions=[version_status(rollout, entry) for entry in rollout.entries_of(model)],
        default_version=default_version(rollout, model),
    )


def version_status(rollout: Rollout, entry: VersionEntry) -> VersionStatus:
    """All about one version."""
    key = entry.found.key
    status = VersionStatus(
        version=key.version,
        state=state_of(rollout, entry),
        reason=entry.reason,
        labels=rollout.record_of(key.model).labels_of(key.version),
        memory_bytes=sum(load.memory.total_bytes for load in entry.loads.values()),
    )
    if manifest := entry.found.manifest:
        status = msgspec.structs.replace(
            status,
            publish_time_s=manifest.created_s,
            weight_bytes=manifest.weight_bytes,
            architecture=manifest.architecture,
            max_tokens=manifest.max_tokens,
            class_labels=list(manifest.labels),
            head=manifest.head,
            chat=manifest.chat,
            job_id=manifest.job_id,
            metrics=manifest.metrics,
        )
    if load := entry.last_load:
        status = msgspec.structs.replace(
            status, load_s=load.load_s, execution=load.execution, compute_dtype=load.compute_dtype
        )
    return status


def _route_model(rollout: Rollout, model: str) -> RoutedModel:
    return RoutedModel(
        name=model,
        kind=_kind_of(rollout, model),
        labels=dict(rollout.record_of(model).labels),
        default_version=default_version(rollout, model),
        versions=[_route_version(rollout, entry) for entry in rollout.entries_of(model)],
    )


def _route_version(rollout: Rollout, entry: VersionEntry) -> RoutedVersion:
    is_routed = entry.phase in (Phase.LIVE, Phase.DRAINING)
    return RoutedVersion(
        version=entry.found.key.version,
        state=state_of(rollout, entry),
        reason=entry.reason,
        path=entry.found.path,
        engine_ids=sorted(entry.loads) if is_routed else [],
        on_demand=is_on_demand(rollout, entry),
    )


def _kind_of(rollout: Rollout, model: str) -> ModelKind:
    """Kind of the default version, else of the newest readable one; a model without any counts as classifier."""
    entries = rollout.entries_of(model)
    ordered = [entry for entry in entries if entry.phase is Phase.LIVE] + entries
    return next((ModelKind(entry.found.kind) for entry in ordered if entry.found.kind), ModelKind.CLASSIFIER)
