"""Which version is loading, live, draining or refused: facts go in, actions come out.

The only writer of version states, with `phases.py` and `residency.py`, which it calls. Every event method records a
fact; `plan` then moves versions as far as the facts allow and returns what must be told to engines, fronts and disk.
Knows no sockets, no files and no clock.

    found -> LOADING (every engine loads, then every front prepares) -> LIVE -> DRAINING -> UNLOADING -> ABSENT
                     any refusal -> REJECTED
    lack of memory, or no use, where it may rest -> IDLE until it is asked for (`residency.py`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal_server.config import ModelPolicy, RepositoryConfig
from shoal_server.control import phases, residency
from shoal_server.control.actions import (
    Action,
    NoteFreed,
    NoteLive,
    NoteRejected,
)
from shoal_server.control.orders import give_deletions, give_loads, give_prepares, give_routing, give_unloads
from shoal_server.control.policy import ModelRecord, wanted_versions
from shoal_server.control.routing import RoutingTable
from shoal_server.control.versions import EngineFacts, FoundVersion, FrontFacts, Phase, VersionEntry, VersionKey
from shoal_server.ipc.messages import RoutingApplied, VersionLoaded, VersionPrepared, VersionRefused, VersionUnloaded

MAX_DEATHS_NEW = 2  # engines lost while loading a version that was not live: then it is refused
MAX_DEATHS_LIVE = 5  # the same for a version that has served; it had worked, so it is given more tries


_GIVE = (give_prepares, give_unloads, give_loads, give_routing, give_deletions)  # in this order


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """What rollout needs of the configuration."""

    num_engines: int  # 0: nothing is ever loaded
    kinds: frozenset[str]  # kinds of model that this server answers for
    repository: RepositoryConfig


class Rollout:
    """The state machine of all versions."""

    def __init__(self, settings: RolloutSettings) -> None:
        self.settings = settings
        self.entries: dict[VersionKey, VersionEntry] = {}
        self._numbers: dict[str, set[int]] = {}  # versions in `entries`, by model
        self.records: dict[str, ModelRecord] = {}
        self.engines: dict[int, EngineFacts] = {}
        self.fronts: dict[int, FrontFacts] = {}
        self.table = RoutingTable(revision=0, engines=[], models=[], serving=False, wants_room=False)
        self._protected: frozenset[VersionKey] = frozenset()
        self.now_s = 0.0  # monotonic
        self.is_scanned = False
        self.is_settled = False  # every version wanted at the start has become live or refused
        self._notes: list[Action] = []

    # --- facts: repository and people -------------------------------------------------------------------------------

    def repository_scanned(self, found: Mapping[VersionKey, FoundVersion]) -> None:
        """The complete versions of the repository, all of them."""
        self.is_scanned = True
        for key, version in found.items():
            entry = self.entries.get(key)
            if entry is None:
                self.entries[key] = VersionEntry(found=version)
                self._numbers.setdefault(key.model, set()).add(key.version)
            else:
                changed = entry.found.mtime_ns != version.mtime_ns
                entry.found, entry.gone = version, False
                if changed and entry.phase is Phase.REJECTED:
                    self.retry(key)
        for key, entry in self.entries.items():
            entry.gone = key not in found

    def record_changed(self, model: str, record: ModelRecord) -> None:
        """Labels, loads or unloads of a model are now these."""
        self.records[model] = record

    def record_of(self, model: str) -> ModelRecord:
        """What people have asked for; the empty record where nobody has."""
        return self.records.get(model, ModelRecord())

    def policy_of(self, model: str) -> ModelPolicy:
        """What the configuration says of the model."""
        return self.settings.repository.models.get(model, ModelPolicy())

    def retry(self, key: VersionKey) -> None:
        """Forget that a version was refused."""
        entry = self.entries[key]
        entry.refused_by.clear()
        entry.num_deaths = 0
        if entry.phase is Phase.REJECTED:
            entry.phase, entry.reason = (Phase.UNLOADING if phases.is_held(self, key) else Phase.ABSENT), ""
            entry.asked.clear()
            entry.prepared.clear()

    def protect(self, keys: Iterable[VersionKey]) -> None:
        """Versions that running jobs began from: never deleted."""
        self._protected = frozenset(keys)

    def deletion_ended(self, key: VersionKey, *, failed: bool) -> None:
        """Removing the files of a version succeeded or failed."""
        if entry := self.entries.get(key):
            entry.deleting = False
            entry.undeletable = failed
            entry.gone = entry.gone or not failed

    # --- facts: processes -------------------------------------------------------------------------------------------

    def engine_up(self, engine_id: int, incarnation: int, address: str) -> None:
        """An engine said hello; it holds nothing."""
        self.engine_down(engine_id)
        self.engines[engine_id] = EngineFacts(incarnation=incarnation, address=address)

    def engine_down(self, engine_id: int) -> None:
        """An engine is gone, with all that it held."""
        facts = self.engines.pop(engine_id, None)
        if facts is None:
            return
        for entry in self.entries.values():
            entry.loads.pop(engine_id, None)
            entry.refused_by.discard(engine_id)
            entry.lacking_bytes = 0
        if facts.loading is not None:
            self._count_death(facts.loading)

    def front_up(self, front_id: int) -> None:
        """A front said hello; it holds nothing."""
        self.front_down(front_id)
        self.fronts[front_id] = FrontFacts()

    def front_down(self, front_id: int) -> None:
        """A front is gone, with all that it had in flight."""
        self.fronts.pop(front_id, None)
        for entry in self.entries.values():
            entry.asked.discard(front_id)
            entry.prepared.discard(front_id)

    def version_loaded(self, message: VersionLoaded) -> None:
        """An engine holds a version."""
        key = VersionKey(message.model, message.version)
        if self._load_ended(message.engine_id, key):
            entry = self.entries[key]
            entry.loads[message.engine_id] = entry.last_load = message
            entry.num_deaths = 0

    def version_refused(self, message: VersionRefused) -> None:
        """An engine refused a version. One that others serve stays; any other is refused as a whole."""
        key = VersionKey(message.model, message.version)
        if not self._load_ended(message.engine_id, key):
            return
        entry = self.entries[key]
        if entry.phase is Phase.LIVE and entry.loads:
            entry.refused_by.add(message.engine_id)
        elif entry.phase not in (Phase.LOADING, Phase.LIVE):
            return
        elif message.lacking_bytes:
            residency.note_shortage(self, entry, message.reason, message.lacking_bytes)
        else:
            self.reject(key, message.reason)

    def version_unloaded(self, message: VersionUnloaded) -> None:
        """An engine has freed a version."""
        key = VersionKey(message.model, message.version)
        if facts := self.engines.get(message.engine_id):
            facts.unloading.discard(key)
        if entry := self.entries.get(key):
            entry.loads.pop(message.engine_id, None)
            if not entry.loads:
                residency.room_freed(self)

    def version_prepared(self, message: VersionPrepared) -> None:
        """A front holds a version's tokenizer, or cannot."""
        entry = self.entries.get(VersionKey(message.model, message.version))
        if entry is None or message.front_id not in entry.asked:
            return
        if not message.error:
            entry.prepared.add(message.front_id)
        elif entry.phase is Phase.LOADING:
            self.reject(entry.found.key, message.error)

    def routing_applied(self, message: RoutingApplied) -> None:
        """A front uses a table; what it still has in flight on draining versions."""
        if facts := self.fronts.get(message.front_id):
            facts.applied_revision = message.revision
            facts.in_flight = frozenset(_key_of(name) for name, count in message.in_flight.items() if count > 0)

    def time_is(self, now_s: float) -> None:
        """Monotonic seconds."""
        self.now_s = now_s

    # --- decisions --------------------------------------------------------------------------------------------------

    def plan(self) -> list[Action]:
        """Everything that is to be done now. Called again with no new fact it returns nothing."""
        actions: list[Action] = []
        while True:
            decisions = residency.decide(self)
            residency.apply(self, decisions)
            moved = phases.advance(self) or bool(decisions)
            step = [
                *give_prepares(self),
                *give_unloads(self),
                *give_loads(self),
                *give_routing(self),
                *give_deletions(self),
            ]
            actions += self._notes + step
            self._notes = []
            if not moved and not step:
                return actions

    def wanted(self, model: str) -> set[int]:
        """Versions of the model that shall be live."""
        mine = self.entries_of(model)
        candidates = [e.found.key.version for e in mine if self._is_loadable(e) and e.phase is not Phase.REJECTED]
        pending = [e.found.key.version for e in mine if e.label_pending]
        return wanted_versions(self.policy_of(model), self.record_of(model), candidates, pending)

    def required(self, model: str) -> set[int]:
        """Versions of the model that shall be live and do not rest."""
        return {number for number in self.wanted(model) if not self.entries[VersionKey(model, number)].resting}

    def models(self) -> list[str]:
        """Models that have at least one version, sorted."""
        return sorted(self._numbers)

    def entries_of(self, model: str) -> list[VersionEntry]:
        """Versions of one model, newest first; empty for an unknown one."""
        return [self.entries[VersionKey(model, n)] for n in sorted(self._numbers.get(model, ()), reverse=True)]

    def is_in_use(self, key: VersionKey) -> str:
        """Why the version must not be deleted; empty when it may."""
        entry = self.entries[key]
        if entry.phase in (Phase.LOADING, Phase.LIVE, Phase.DRAINING, Phase.UNLOADING):
            return str(entry.phase.value)
        if entry.resting or entry.returning:
            return "idle until it is asked for"
        if labels := self.record_of(key.model).labels_of(key.version):
            return f"labelled {', '.join(labels)}"
        if entry.label_pending:
            return "about to be labelled"
        return "the base of a training job" if key in self._protected else ""

    def _is_loadable(self, entry: VersionEntry) -> bool:
        if self.settings.num_engines == 0 or entry.gone or entry.deleting:
            return False
        return entry.found.manifest is None or entry.found.kind in self.settings.kinds

    def is_loaded_everywhere(self, entry: VersionEntry) -> bool:
        """Whether every engine that is up holds the version, and at least one does."""
        return bool(self.engines) and entry.loads.keys() >= self.engines.keys()

    def note(self, action: NoteLive | NoteFreed) -> None:
        """Tell with the next actions what became of a version."""
        self._notes.append(action)

    def reject(self, key: VersionKey, reason: str) -> None:
        """Refuse a version, as a whole and for good, unless someone asks for another try."""
        entry = self.entries[key]
        entry.end_shortage()
        entry.resting = entry.returning = False
        entry.phase, entry.reason, entry.label_pending = Phase.REJECTED, reason, False
        self._notes.append(NoteRejected(key=key, reason=reason))

    def forget(self, key: VersionKey) -> None:
        """A version is gone from the repository, and nothing of it is loaded."""
        if self.entries[key].resting:
            self._notes.append(NoteFreed(key=key))
        del self.entries[key]
        self._numbers[key.model].discard(key.version)
        if not self._numbers[key.model]:
            del self._numbers[key.model]

    def _count_death(self, key: VersionKey) -> None:
        """An engine died while loading the version: it may be what kills engines, unless others run it well."""
        entry = self.entries[key]
        if entry.loads or entry.phase not in (Phase.LOADING, Phase.LIVE):
            return
        entry.num_deaths += 1
        if entry.num_deaths >= (MAX_DEATHS_LIVE if entry.phase is Phase.LIVE else MAX_DEATHS_NEW):
            self.reject(key, f"the engine died {entry.num_deaths} times while loading it")

    def _load_ended(self, engine_id: int, key: VersionKey) -> bool:
        facts = self.engines.get(engine_id)
        if facts is None or facts.loading != key:
            return False
        facts.loading = None
        return True


def _key_of(name: str) -> VersionKey:
    model, _, version = name.rpartition("@")
    return VersionKey(model, int(version))
