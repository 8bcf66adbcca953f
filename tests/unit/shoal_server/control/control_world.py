"""A world for rollout: engines and fronts that do what they are told, without processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoal_models.manifest import Manifest
from shoal_server.config import ModelPolicy, RepositoryConfig
from shoal_server.control.actions import (
    Action,
    DeleteFiles,
    NoteFreed,
    NoteLive,
    NoteRejected,
    SendLoad,
    SendPrepare,
    SendRouting,
    SendUnload,
)
from shoal_server.control.policy import ModelRecord
from shoal_server.control.residency import note_use
from shoal_server.control.rollout import Rollout, RolloutSettings
from shoal_server.control.routing import state_of
from shoal_server.control.versions import FoundVersion, VersionKey
from shoal_server.ipc.messages import (
    Routing,
    RoutingApplied,
    VersionLoaded,
    VersionMemory,
    VersionPrepared,
    VersionRefused,
    VersionsInUse,
    VersionState,
    VersionUnloaded,
    VersionUse,
)

LOADED_BYTES = 15  # what every version of this world holds


def make_found(
    model: str, version: int, *, kind: str = "classifier", mtime_ns: int = 1, error: str = ""
) -> FoundVersion:
    manifest = Manifest(
        model=model,
        version=version,
        kind=kind,
        family="encoder",
        architecture="BertForSequenceClassification",
        max_tokens=128,
        vocabulary_size=100,
        weight_dtype="float32",
    )
    return FoundVersion(
        key=VersionKey(model, version),
        path=f"/models/{model}/{version}",
        mtime_ns=mtime_ns,
        manifest=None if error else manifest,
        error=error,
    )


class World:
    """Rollout with obedient peers. Orders lie in `loads` until `settle`, or a test, carries them out."""

    def __init__(
        self,
        *,
        num_engines: int = 1,
        num_fronts: int = 1,
        keep_versions: int = 5,
        serve: object = "latest",
        pinned: Iterable[str] = (),
        room: int | None = None,
        **repository: Any,
    ) -> None:
        """`room` is the number of versions that fit into an engine, None: any; `repository` is more of its config."""
        self.rollout = Rollout(
            RolloutSettings(
                num_engines=num_engines,
                kinds=frozenset({"classifier", "generator"}),
                repository=RepositoryConfig(
                    keep_versions=keep_versions,
                    models={"m": ModelPolicy(serve=serve)}  # type: ignore[arg-type]
                    | {model: ModelPolicy(pinned=True) for model in pinned},
                    **repository,
                ),
            )
        )
        self.found: dict[VersionKey, FoundVersion] = {}
        self.bad: dict[VersionKey, str] = {}  # versions that engines refuse
        self.untokenizable: set[VersionKey] = set()  # versions that fronts cannot prepare
        self.busy: set[VersionKey] = set()  # versions with requests in flight on every front
        self.open: set[VersionKey] = set()  # live versions with requests in flight, or waiting, on every front
        self.used_s: dict[VersionKey, float] = {}  # when they were last used
        self.room = room
        self.log: list[Action] = []
        self.todo: list[Action] = []
        self.routing: Routing | None = None  # the table that a front was given last
        self.routings: dict[int, Routing] = {}  # by front
        for engine_id in range(num_engines):
            self.engine_up(engine_id)
        for front_id in range(num_fronts):
            self.front_up(front_id)

    def publish(self, *versions: FoundVersion) -> None:
        self.found.update({version.key: version for version in versions})
        self.rollout.repository_scanned(self.found)
        self.plan()

    def remove(self, key: VersionKey) -> None:
        del self.found[key]
        self.rollout.repository_scanned(self.found)
        self.plan()

    def record(self, **changes: object) -> None:
        self.rollout.record_changed("m", ModelRecord(**changes))  # type: ignore[arg-type]
        self.plan()

    def engine_up(self, engine_id: int) -> None:
        self.rollout.engine_up(engine_id, 1, f"/engine-{engine_id}")
        self.plan()

    def engine_down(self, engine_id: int) -> None:
        self.rollout.engine_down(engine_id)
        self.todo = [a for a in self.todo if getattr(a, "engine_id", None) != engine_id]
        self.plan()

    def front_up(self, front_id: int) -> None:
        self.rollout.front_up(front_id)
        self.plan()

    def front_down(self, front_id: int) -> None:
        self.rollout.front_down(front_id)
        self.routings.pop(front_id, None)
        self.todo = [a for a in self.todo if getattr(a, "front_id", None) != front_id]
        self.plan()

    def plan(self) -> None:
        actions = self.rollout.plan()
        self.log += actions
        self.todo += actions

    def step(self) -> bool:
        """Carry out the oldest order; False when none is left."""
        while self.todo:
            action = self.todo.pop(0)
            if self.carry_out(action):
                self.plan()
                return True
        return False

    def settle(self) -> None:
        for _ in range(10_000):
            if not self.step():
                return
        raise AssertionError("the rollout never comes to rest")

    def carry_out(self, action: Action) -> bool:
        match action:
            case SendLoad(engine_id=engine_id, key=key) if key in self.bad:
                self.rollout.version_refused(
                    VersionRefused(engine_id=engine_id, model=key.model, version=key.version, reason=self.bad[key])
                )
            case SendLoad(engine_id=engine_id, key=key) if lacking_bytes := self.lacking_bytes(engine_id):
                self.rollout.version_refused(
                    VersionRefused(
                        engine_id=engine_id,
                        model=key.model,
                        version=key.version,
                        reason="does not fit",
                        lacking_bytes=lacking_bytes,
                    )
                )
            case SendLoad(engine_id=engine_id, key=key):
                self.rollout.version_loaded(loaded(engine_id, key))
            case SendUnload(engine_id=engine_id, key=key):
                self.rollout.version_unloaded(
                    VersionUnloaded(engine_id=engine_id, model=key.model, version=key.version)
                )
            case SendPrepare(front_id=front_id, key=key):
                error = "no tokenizer" if key in self.untokenizable else ""
                self.rollout.version_prepared(
                    VersionPrepared(front_id=front_id, model=key.model, version=key.version, error=error)
                )
            case SendRouting(front_id=front_id, routing=routing):
                self.routing = self.routings[front_id] = routing
                self.apply_routing(front_id)
            case DeleteFiles(key=key):
                self.found.pop(key, None)
                self.rollout.deletion_ended(key, failed=False)
            case NoteLive() | NoteRejected() | NoteFreed():
                return False
        return True

    def lacking_bytes(self, engine_id: int) -> int:
        """What one more version would lack on an engine."""
        held = sum(engine_id in entry.loads for entry in self.rollout.entries.values())
        return 0 if self.room is None else max(0, (held + 1 - self.room) * LOADED_BYTES)

    def report_use(self, *front_ids: int) -> None:
        """Fronts, by default all, tell which versions they use."""
        for front_id in front_ids or sorted(self.routings):
            keys = self.open | self.used_s.keys()
            uses = [
                VersionUse(
                    model=key.model,
                    version=key.version,
                    num_open=int(key in self.open),
                    last_used_s=self.used_s.get(key, 0.0),
                )
                for key in sorted(keys)
            ]
            revision = self.routings[front_id].revision
            note_use(self.rollout, VersionsInUse(front_id=front_id, revision=revision, uses=uses))
        self.plan()

    def pass_time(self, now_s: float) -> None:
        self.rollout.time_is(now_s)
        self.plan()

    def apply_routing(self, front_id: int) -> None:
        """The front reports what it has in flight on draining versions."""
        routing = self.routings[front_id]
        draining = {
            f"{model.name}@{version.version}": 1
            for model in routing.models
            for version in model.versions
            if version.state is VersionState.DRAINING and VersionKey(model.name, version.version) in self.busy
        }
        self.rollout.routing_applied(RoutingApplied(front_id=front_id, revision=routing.revision, in_flight=draining))
        if routing.wants_room:
            self.report_use(front_id)

    def finish_requests(self) -> None:
        self.busy.clear()
        for front_id in self.rollout.fronts.keys() & self.routings.keys():
            self.apply_routing(front_id)
        self.plan()

    def states(self, model: str = "m") -> dict[int, str]:
        return {
            entry.found.key.version: state_of(self.rollout, entry).value for entry in self.rollout.entries_of(model)
        }

    def state(self, model: str) -> str:
        """Of the newest version."""
        return next(iter(self.states(model).values()))

    def of_type(self, kind: type) -> list[Action]:
        return [action for action in self.log if isinstance(action, kind)]


def loaded(engine_id: int, key: VersionKey) -> VersionLoaded:
    return VersionLoaded(
        engine_id=engine_id,
        model=key.model,
        version=key.version,
        execution="packed",
        compute_dtype="float32",
        load_s=1.0,
        memory=VersionMemory(weight_bytes=10, cache_bytes=5, reckoned_bytes=16),
        kv_cache_tokens=0,
    )


def versions(*numbers: int, model: str = "m") -> Iterable[FoundVersion]:
    return [make_found(model, number) for number in numbers]
