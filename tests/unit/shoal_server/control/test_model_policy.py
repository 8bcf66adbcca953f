"""What people ask of versions: the rule, the record, its file, and the calls of the Model service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from control_world import World, make_found, versions
from shoal_server.config import ModelPolicy
from shoal_server.control.model_calls import ModelCalls
from shoal_server.control.policy import (
    ModelRecord,
    RecordDamaged,
    RecordStore,
    RevisionMoved,
    record_loaded,
    record_unloaded,
    wanted_versions,
)
from shoal_server.control.rollout import Rollout
from shoal_server.control.versions import VersionKey
from shoal_server.errors import (
    InvalidRequest,
    LabelMoved,
    ModelNotFound,
    Precondition,
    VersionInUse,
    VersionLoading,
    VersionNotFound,
    VersionRejected,
    WrongModelKind,
)
from shoal_server.ipc.calls import (
    DeleteModelVersion,
    GetModel,
    ListModels,
    LoadModel,
    SetModelLabel,
    UnloadModel,
    WakeVersion,
)
from shoal_server.ipc.messages import VersionState


def test_record_survives_and_moves_by_revision(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "models")
    assert store.load_all() == {}
    first = store.change("m.v2", ModelRecord(), lambda r: record_unloaded(r, 3))
    assert (first.revision, first.unloaded) == (1, [3])
    assert store.change("m.v2", first, lambda r: r) is first
    with pytest.raises(RevisionMoved):
        store.change("m.v2", ModelRecord(), lambda r: record_unloaded(r, 4))
    assert RecordStore(tmp_path / "models").load_all() == {"m.v2": first}


def test_damaged_record_is_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(RecordDamaged, match=r"m\.json"):
        RecordStore(tmp_path).load_all()


def test_named_load_after_unloading_all_leaves_the_others_unloaded() -> None:
    unloaded = record_unloaded(ModelRecord(wanted=[1]), None)
    record = record_loaded(unloaded, 2, [1, 2, 3], named=True, pin=True)
    assert (record.unloaded_all, record.unloaded, record.wanted) == (False, [1, 3], [2])
    assert record_loaded(unloaded, 3, [1, 2, 3], named=False, pin=False).unloaded == []


def test_unloaded_newest_is_not_replaced_by_an_older_one() -> None:
    assert wanted_versions(ModelPolicy(), ModelRecord(unloaded=[3]), {1, 2, 3}, ()) == set()


class Desk:
    """Model calls over a world whose peers obey as soon as the loop turns."""

    def __init__(self, folder: Path, **world: object) -> None:
        self.world = World(**world)  # type: ignore[arg-type]
        self.records = RecordStore(folder)
        self.records.load_all()
        self.calls = ModelCalls(self)
        self._changed = asyncio.Event()

    @property
    def rollout(self) -> Rollout:
        return self.world.rollout

    def publish(self, *numbers: int, model: str = "m", kind: str = "classifier") -> None:
        self.world.publish(*(make_found(model, number, kind=kind) for number in numbers))
        self.world.settle()

    def apply(self) -> None:
        self.world.plan()
        asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self.world.settle()
        self._changed.set()
        self._changed = asyncio.Event()

    def change_record(self, model: str, change: Callable[[ModelRecord], ModelRecord]) -> None:
        self.rollout.record_changed(model, self.records.change(model, self.rollout.record_of(model), change))

    def state_changed(self) -> asyncio.Event:
        return self._changed

    async def scan(self) -> None:
        self.world.publish()

    async def delete_files(self, key: VersionKey) -> str:
        del self.world.found[key]
        self.rollout.deletion_ended(key, failed=False)
        self.apply()
        return ""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    made.publish(1, 2)
    return made


async def test_load_of_an_old_version_keeps_it_live_beside_the_newest(desk: Desk) -> None:
    status = await desk.calls.load(LoadModel(name="m", version=1))
    assert status.state is VersionState.LIVE
    assert desk.world.states() == {2: "live", 1: "live"}
    desk.publish(3)
    assert desk.world.states() == {3: "live", 2: "available", 1: "live"}


async def test_unload_lasts_until_load(desk: Desk) -> None:
    assert (await desk.calls.unload(UnloadModel(name="m", version=None))).versions == [2]
    desk.publish(3)
    assert set(desk.world.states().values()) == {"unloaded"}
    assert (await desk.calls.load(LoadModel(name="m", version=None))).version == 3
    assert desk.world.states() == {3: "live", 2: "available", 1: "available"}


async def test_load_of_a_refused_version_tries_again(desk: Desk) -> None:
    desk.world.bad[VersionKey("m", 3)] = "damaged"
    desk.publish(3)
    with pytest.raises(VersionRejected, match="damaged"):
        await desk.calls.load(LoadModel(name="m", version=3))
    desk.world.bad.clear()
    assert (await desk.calls.load(LoadModel(name="m", version=3))).state is VersionState.LIVE


async def test_loads_that_cannot_be(desk: Desk, tmp_path: Path) -> None:
    desk.publish(1, model="base", kind="base")
    with pytest.raises(WrongModelKind):
        await desk.calls.load(LoadModel(name="base", version=None))
    with pytest.raises(VersionNotFound, match="it has: 2, 1"):
        await desk.calls.load(LoadModel(name="m", version=9))
    with pytest.raises(ModelNotFound, match="there are: base, m"):
        await desk.calls.load(LoadModel(name="x", version=None))
    idle = Desk(tmp_path / "idle", num_engines=0)
    idle.publish(1)
    with pytest.raises(Precondition, match="no engine"):
        await idle.calls.load(LoadModel(name="m", version=1))


async def test_label_is_moved_only_once_its_version_is_live(desk: Desk) -> None:
    status = await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=1, expected_version=0))
    assert [(v.version, v.state.value, v.labels) for v in status.versions] == [(2, "live", []), (1, "live", ["stable"])]
    desk.world.bad[VersionKey("m", 3)] = "damaged"
    desk.publish(3)
    with pytest.raises(VersionRejected):
        await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=3, expected_version=None))
    assert desk.rollout.record_of("m").labels == {"stable": 1}


async def test_publishing_never_moves_a_label(desk: Desk) -> None:
    await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=2, expected_version=None))
    desk.publish(3)
    assert desk.rollout.record_of("m").labels == {"stable": 2}
    assert desk.world.states()[2] == "live"


async def test_label_compare_and_swap(desk: Desk) -> None:
    await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=2, expected_version=0))
    with pytest.raises(LabelMoved, match="at version 2; expected nowhere"):
        await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=1, expected_version=0))
    status = await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=None, expected_version=2))
    assert all(not version.labels for version in status.versions)


@pytest.mark.parametrize("label", ["", "Stable", "1st", "a" * 65, "a b"])
async def test_bad_labels(desk: Desk, label: str) -> None:
    with pytest.raises(InvalidRequest, match="label"):
        await desk.calls.set_label(SetModelLabel(name="m", label=label, version=1, expected_version=None))


async def test_label_on_an_unloaded_version_is_refused(desk: Desk) -> None:
    await desk.calls.unload(UnloadModel(name="m", version=1))
    with pytest.raises(Precondition, match="load it first"):
        await desk.calls.set_label(SetModelLabel(name="m", label="stable", version=1, expected_version=None))


async def test_deletion_spares_what_is_in_use(desk: Desk) -> None:
    with pytest.raises(VersionInUse, match="live"):
        await desk.calls.delete(DeleteModelVersion(name="m", version=2))
    desk.rollout.protect([VersionKey("m", 1)])
    with pytest.raises(VersionInUse, match="training job"):
        await desk.calls.delete(DeleteModelVersion(name="m", version=1))
    desk.rollout.protect([])
    await desk.calls.delete(DeleteModelVersion(name="m", version=1))
    with pytest.raises(VersionNotFound):
        await desk.calls.delete(DeleteModelVersion(name="m", version=1))
    assert [v.version for v in (await desk.calls.get(GetModel(name="m"))).versions] == [2]


async def test_models_are_listed_by_name_in_pages(desk: Desk) -> None:
    desk.world.publish(*versions(1, model="a"), *versions(1, model="z"))
    first = await desk.calls.list_models(ListModels(page_size=2, page_token=""))
    second = await desk.calls.list_models(ListModels(page_size=2, page_token=first.next_page_token))
    assert [model.name for model in [*first.models, *second.models]] == ["a", "m", "z"]
    assert second.next_page_token == ""
    with pytest.raises(InvalidRequest, match="page_token"):
        await desk.calls.list_models(ListModels(page_size=2, page_token="%%"))
    with pytest.raises(InvalidRequest, match="page_size"):
        await desk.calls.list_models(ListModels(page_size=1001, page_token=""))


@pytest.fixture
def full_desk(tmp_path: Path) -> Desk:
    """Models m and n, with room for one: n rests."""
    made = Desk(tmp_path, room=1, evict_idle=True)
    made.publish(1)
    made.publish(1, model="n")
    assert made.world.states("n") == {1: "idle"}
    return made


async def test_waking_loads_once_for_all_who_wait_and_tells_the_table_that_says_so(full_desk: Desk) -> None:
    call = WakeVersion(name="n", version=1)
    answers = await asyncio.gather(*(full_desk.calls.wake(call) for _ in range(3)))
    assert full_desk.world.states("n") == {1: "live"}
    assert full_desk.world.states("m") == {1: "idle"}
    assert {answer.revision for answer in answers} == {full_desk.rollout.table.revision}
    assert full_desk.rollout.entries[VersionKey("n", 1)].num_waiting == 0


async def test_waking_what_memory_is_too_short_for_says_when_to_come_back(full_desk: Desk) -> None:
    full_desk.world.room = 0
    with pytest.raises(VersionLoading, match="n@1 cannot be loaded now: does not fit") as caught:
        await full_desk.calls.wake(WakeVersion(name="n", version=1))
    assert caught.value.retry_after_s
    assert full_desk.world.states("n") == {1: "idle"}
    with pytest.raises(VersionLoading):
        await full_desk.calls.load(LoadModel(name="n", version=None))


async def test_waking_ends_when_the_version_is_refused_or_gone(full_desk: Desk) -> None:
    full_desk.world.bad[VersionKey("n", 1)] = "damaged"
    assert (await full_desk.calls.wake(WakeVersion(name="n", version=1))).revision
    assert full_desk.world.states("n") == {1: "rejected"}
    assert (await full_desk.calls.wake(WakeVersion(name="n", version=9))).revision


async def test_a_wake_that_is_cancelled_leaves_nobody_waiting(full_desk: Desk) -> None:
    full_desk.world.open = {VersionKey("m", 1)}
    waiting = asyncio.create_task(full_desk.calls.wake(WakeVersion(name="n", version=1)))
    await full_desk.state_changed().wait()
    assert full_desk.world.states("n") == {1: "loading"}
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    full_desk.apply()
    await full_desk.state_changed().wait()
    assert full_desk.world.states("n") == {1: "idle"}
    assert full_desk.world.states("m") == {1: "live"}


async def test_a_load_of_an_idle_model_and_a_label_on_one_make_it_live(full_desk: Desk) -> None:
    assert (await full_desk.calls.load(LoadModel(name="n", version=None))).state is VersionState.LIVE
    assert full_desk.world.states("m") == {1: "idle"}
    await full_desk.calls.set_label(SetModelLabel(name="m", label="stable", version=1, expected_version=None))
    assert full_desk.world.states("m") == {1: "live"}


async def test_an_idle_version_is_in_use_and_not_deleted(full_desk: Desk) -> None:
    with pytest.raises(VersionInUse, match="idle"):
        await full_desk.calls.delete(DeleteModelVersion(name="n", version=1))
