"""The life of versions, without processes: every fact by hand, every order looked at."""

from __future__ import annotations

import pytest
from control_world import World, loaded, make_found, versions
from shoal_server.control.actions import DeleteFiles, NoteFreed, NoteRejected, SendLoad, SendPrepare, SendRouting
from shoal_server.control.rollout import MAX_DEATHS_NEW
from shoal_server.control.versions import Phase, VersionKey
from shoal_server.ipc.messages import VersionState


@pytest.fixture
def world() -> World:
    return World()


def key(version: int) -> VersionKey:
    return VersionKey("m", version)


def routed(world: World, version: int) -> VersionState:
    assert world.routing is not None
    return next(v.state for v in world.routing.models[0].versions if v.version == version)


def test_newest_version_is_loaded_prepared_then_routed(world: World) -> None:
    world.publish(*versions(1, 2))
    world.settle()
    assert world.states() == {2: "live", 1: "available"}
    kinds = [type(action) for action in world.log]
    assert kinds.index(SendLoad) < kinds.index(SendPrepare)
    assert world.routing is not None
    assert world.routing.models[0].default_version == 2
    assert world.routing.serving


def test_nothing_is_live_before_every_engine_and_front_has_it() -> None:
    world = World(num_engines=2, num_fronts=2)
    world.publish(*versions(1))
    world.rollout.version_loaded(loaded(0, key(1)))
    world.plan()
    assert not world.of_type(SendPrepare)
    world.rollout.version_loaded(loaded(1, key(1)))
    world.plan()
    assert world.states() == {1: "loading"}
    assert [action.front_id for action in world.of_type(SendPrepare)] == [0, 1]  # type: ignore[attr-defined]


def test_an_engine_loads_one_version_at_a_time(world: World) -> None:
    world.publish(make_found("a", 1), make_found("b", 1))
    assert len(world.of_type(SendLoad)) == 1
    world.step()
    world.settle()
    assert len(world.of_type(SendLoad)) == 2


def test_old_version_serves_until_new_one_is_live_and_is_freed_when_its_requests_have_ended(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.busy = {key(1)}
    world.publish(*versions(2))
    assert routed(world, 1) is VersionState.LIVE
    world.settle()
    assert world.states() == {2: "live", 1: "draining"}
    assert routed(world, 1) is VersionState.DRAINING
    assert not world.of_type(NoteFreed)
    world.finish_requests()
    world.settle()
    assert world.states() == {2: "live", 1: "available"}
    assert world.of_type(NoteFreed) == [NoteFreed(key=key(1))]


def test_refused_version_leaves_the_old_one_live_and_is_not_retried(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.bad[key(2)] = "golden outputs differ"
    world.publish(*versions(2))
    world.settle()
    world.publish()
    world.settle()
    assert world.states() == {2: "rejected", 1: "live"}
    assert world.rollout.entries[key(2)].reason == "golden outputs differ"
    assert world.of_type(NoteRejected) == [NoteRejected(key=key(2), reason="golden outputs differ")]


def test_refusal_by_one_engine_unloads_the_others() -> None:
    world = World(num_engines=2)
    world.publish(*versions(1))
    world.rollout.version_loaded(loaded(0, key(1)))
    world.todo = []
    world.bad[key(1)] = "no memory"
    world.carry_out(SendLoad(engine_id=1, key=key(1), path=""))
    world.plan()
    world.settle()
    assert world.states() == {1: "rejected"}
    assert not world.rollout.entries[key(1)].loads


def test_fallback_to_an_older_version_when_the_newest_is_refused_at_the_start(world: World) -> None:
    world.bad[key(3)] = "damaged"
    world.publish(*versions(1, 2, 3))
    world.settle()
    assert world.states() == {3: "rejected", 2: "live", 1: "available"}


def test_changed_manifest_makes_a_refused_version_worth_another_try(world: World) -> None:
    world.bad[key(1)] = "damaged"
    world.publish(*versions(1))
    world.settle()
    world.bad.clear()
    world.publish(make_found("m", 1, mtime_ns=2))
    world.settle()
    assert world.states() == {1: "live"}


def test_unreadable_manifest_is_refused_without_loading(world: World) -> None:
    world.publish(make_found("m", 1, error="manifest.json is malformed"))
    world.settle()
    assert world.states() == {1: "rejected"}
    assert not world.of_type(SendLoad)


def test_front_that_cannot_prepare_refuses_the_version(world: World) -> None:
    world.untokenizable.add(key(1))
    world.publish(*versions(1))
    world.settle()
    assert world.states() == {1: "rejected"}
    assert world.rollout.entries[key(1)].reason == "no tokenizer"


def test_bases_are_listed_and_never_loaded(world: World) -> None:
    world.publish(make_found("m", 1, kind="base"))
    world.settle()
    assert world.states() == {1: "available"}
    assert not world.of_type(SendLoad)
    assert world.routing is not None
    assert world.routing.serving


def test_labelled_version_stays_live_beside_the_newest(world: World) -> None:
    world.record(labels={"stable": 1})
    world.publish(*versions(1, 2, 3))
    world.settle()
    assert world.states() == {3: "live", 2: "available", 1: "live"}


@pytest.mark.parametrize(
    ("serve", "expected"),
    [("latest", {1, 3}), ("labelled", {1}), ([2], {1, 2})],
    ids=["latest", "labelled", "listed"],
)
def test_policy_chooses_what_serves(serve: object, expected: set[int]) -> None:
    world = World(serve=serve)
    world.record(labels={"stable": 1})
    world.publish(*versions(1, 2, 3))
    world.settle()
    assert {version for version, state in world.states().items() if state == "live"} == expected


def test_unload_drains_and_nothing_older_takes_its_place(world: World) -> None:
    world.publish(*versions(1, 2))
    world.settle()
    world.record(unloaded=[2])
    world.settle()
    assert world.states() == {2: "unloaded", 1: "available"}


def test_unloaded_model_ignores_new_versions(world: World) -> None:
    world.record(unloaded_all=True)
    world.publish(*versions(1))
    world.publish(*versions(2))
    world.settle()
    assert world.states() == {2: "unloaded", 1: "unloaded"}


def test_load_that_began_is_finished_although_a_newer_version_came(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.publish(*versions(2))
    world.publish(*versions(3))
    world.step()
    world.settle()
    live = [action.key.version for action in world.log if type(action).__name__ == "NoteLive"]  # type: ignore[union-attr]
    assert live == [1, 2, 3]
    assert world.states() == {3: "live", 2: "available", 1: "available"}


def test_dead_engine_leaves_the_table_at_once_and_reloads_when_back(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.engine_down(0)
    routing = world.of_type(SendRouting)[-1].routing  # type: ignore[attr-defined]
    assert routing.engines == []
    assert not routing.serving
    assert routing.models[0].versions[0].engine_ids == []
    world.engine_up(0)
    assert not world.of_type(SendRouting)[-1].routing.serving  # type: ignore[attr-defined]
    world.settle()
    assert world.routing is not None
    assert world.routing.serving
    assert world.states() == {1: "live"}


def test_one_dead_engine_of_two_keeps_serving() -> None:
    world = World(num_engines=2)
    world.publish(*versions(1))
    world.settle()
    world.engine_down(0)
    world.settle()
    assert world.routing is not None
    assert world.routing.serving
    assert world.routing.models[0].versions[0].engine_ids == [1]


def test_version_that_kills_engines_is_refused(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.publish(*versions(2))
    for _ in range(MAX_DEATHS_NEW):
        while world.rollout.engines[0].loading != key(2):
            world.step()
        world.engine_down(0)
        world.engine_up(0)
    world.settle()
    assert world.states() == {2: "rejected", 1: "live"}


def test_new_front_prepares_live_versions_before_it_gets_the_table(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    before = len(world.log)
    world.front_up(1)
    kinds = [type(action) for action in world.log[before:] if getattr(action, "front_id", 1) == 1]
    assert kinds == [SendPrepare, SendRouting]


def test_lost_front_does_not_keep_a_version_draining() -> None:
    world = World(num_fronts=2)
    world.publish(*versions(1))
    world.settle()
    world.busy = {key(1)}
    world.publish(*versions(2))
    world.settle()
    assert world.states()[1] == "draining"
    world.busy = set()
    world.apply_routing(0)
    world.front_down(1)
    world.settle()
    assert world.states()[1] == "available"


def test_version_removed_from_the_repository_drains_and_disappears(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.remove(key(1))
    world.settle()
    assert world.states() == {}


def test_label_waiting_for_a_version_makes_it_load(world: World) -> None:
    world.publish(*versions(1, 2))
    world.settle()
    world.rollout.entries[key(1)].label_pending = True
    world.plan()
    world.settle()
    assert world.states() == {2: "live", 1: "live"}


def test_pruning_spares_newest_labelled_protected_and_draining() -> None:
    world = World(keep_versions=2)
    world.record(labels={"stable": 1})
    world.rollout.protect([key(2)])
    world.publish(*versions(1, 2, 3, 4, 5))
    world.settle()
    assert world.of_type(DeleteFiles) == [DeleteFiles(key=key(3))]
    assert set(world.states()) == {1, 2, 4, 5}


def test_nothing_is_pruned_while_no_version_serves() -> None:
    """The newest two are damaged: version 1 is what the server falls back to, so it must still be there."""
    world = World(keep_versions=2)
    world.bad = {key(2): "damaged", key(3): "damaged"}
    world.publish(*versions(1, 2, 3))
    world.settle()
    assert world.states() == {3: "rejected", 2: "rejected", 1: "live"}


def test_failed_deletion_is_not_tried_again() -> None:
    world = World(keep_versions=1)
    world.publish(*versions(1, 2))
    while not world.of_type(DeleteFiles):
        world.step()
    world.todo = [action for action in world.todo if not isinstance(action, DeleteFiles)]
    world.rollout.deletion_ended(key(1), failed=True)
    world.settle()
    world.publish()
    world.settle()
    assert len(world.of_type(DeleteFiles)) == 1
    assert world.states() == {2: "live", 1: "available"}


def test_without_engines_nothing_loads_and_the_server_serves() -> None:
    world = World(num_engines=0)
    world.publish(*versions(1))
    world.settle()
    assert world.states() == {1: "available"}
    assert world.routing is not None
    assert world.routing.serving


def test_serving_only_after_what_was_there_at_the_start_is_live(world: World) -> None:
    world.publish(*versions(1))
    assert not world.of_type(SendRouting)[-1].routing.serving  # type: ignore[attr-defined]
    world.settle()
    assert world.routing is not None
    assert world.routing.serving


def test_revision_grows_only_when_the_table_differs(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    before = world.rollout.table.revision
    world.publish()
    world.settle()
    assert world.rollout.table.revision == before


def test_version_wanted_again_while_draining_is_live_at_once(world: World) -> None:
    world.publish(*versions(1))
    world.settle()
    world.busy = {key(1)}
    world.publish(*versions(2))
    world.settle()
    world.record(labels={"stable": 1})
    world.settle()
    assert world.rollout.entries[key(1)].phase is Phase.LIVE
    assert len([a for a in world.of_type(SendLoad) if a.key == key(1)]) == 1  # type: ignore[attr-defined]
