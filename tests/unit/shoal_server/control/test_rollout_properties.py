"""Whatever happens in whatever order, the rollout comes to rest and keeps its promises."""

from __future__ import annotations

from control_world import World, make_found
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shoal_server.control.actions import DeleteFiles, SendLoad
from shoal_server.control.versions import Phase, VersionKey

MODELS = ("m", "n")
EVENTS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(MODELS), st.integers(1, 6)),
    st.tuples(st.just("break"), st.sampled_from(MODELS), st.integers(1, 6)),
    st.tuples(st.just("remove"), st.sampled_from(MODELS), st.integers(1, 6)),
    st.tuples(st.just("label"), st.just("m"), st.integers(1, 6)),
    st.tuples(st.just("unload"), st.just("m"), st.integers(1, 6)),
    st.tuples(st.just("load"), st.just("m"), st.integers(1, 6)),
    st.tuples(st.just("busy"), st.sampled_from(MODELS), st.integers(1, 6)),
    st.tuples(st.just("engine"), st.just(""), st.integers(0, 1)),
    st.tuples(st.just("front"), st.just(""), st.integers(0, 1)),
    st.tuples(st.just("step"), st.just(""), st.integers(1, 4)),
    st.tuples(st.just("finish"), st.just(""), st.just(0)),
)


def happen(world: World, event: tuple[str, str, int]) -> None:
    kind, model, number = event
    key = VersionKey(model, number)
    record = world.rollout.record_of("m")
    match kind:
        case "publish":
            world.publish(make_found(model, number))
        case "break":
            world.bad[key] = "damaged"
        case "remove" if key in world.found:
            world.remove(key)
        case "label":
            world.record(labels={"stable": number}, unloaded=record.unloaded)
        case "unload":
            world.record(labels=record.labels, unloaded=[number])
        case "load":
            world.record(labels=record.labels)
        case "busy":
            world.busy.add(key)
        case "engine":
            world.engine_down(number) if number in world.rollout.engines else world.engine_up(number)
        case "front":
            world.front_down(number) if number in world.rollout.fronts else world.front_up(number)
        case "step":
            for _ in range(number):
                world.step()
        case "finish":
            world.finish_requests()


def check_always(world: World) -> None:
    for engine_id, engine in world.rollout.engines.items():
        if engine.loading is not None:
            assert engine_id not in world.rollout.entries[engine.loading].loads
    for key, entry in world.rollout.entries.items():
        assert entry.loads.keys() <= world.rollout.engines.keys(), key
        assert not (entry.phase is Phase.REJECTED and not entry.reason)
    assert world.rollout.plan() == []  # a plan leaves nothing for the next


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40))
def test_any_history_comes_to_rest_with_what_is_wanted_live(events: list[tuple[str, str, int]]) -> None:
    world = World(num_engines=2, num_fronts=2, keep_versions=3)
    for event in events:
        happen(world, event)
        check_always(world)
    for engine_id in {0, 1} - world.rollout.engines.keys():
        world.engine_up(engine_id)
    for front_id in {0, 1} - world.rollout.fronts.keys():
        world.front_up(front_id)
    world.publish()
    world.settle()
    world.finish_requests()
    world.settle()
    check_always(world)
    assert world.routing is not None
    assert world.routing.serving
    for model in world.rollout.models():
        wanted = world.rollout.wanted(model)
        live = {e.found.key.version for e in world.rollout.entries_of(model) if e.phase is Phase.LIVE}
        assert live == wanted
        assert all(e.phase in (Phase.LIVE, Phase.ABSENT, Phase.REJECTED) for e in world.rollout.entries_of(model))
        for entry in (world.rollout.entries[VersionKey(model, version)] for version in live):
            assert entry.loads
            assert entry.loads.keys() | entry.refused_by == {0, 1}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40))
def test_no_model_that_served_is_left_without_a_live_version(events: list[tuple[str, str, int]]) -> None:
    """With good versions and nobody unloading or removing, a model keeps a live version through every step."""
    world = World(num_engines=1, num_fronts=1, keep_versions=3)
    has_served: set[str] = set()
    for event in events:
        if event[0] in ("publish", "label", "busy", "step", "finish"):
            happen(world, event)
            live = {key.model for key, entry in world.rollout.entries.items() if entry.phase is Phase.LIVE}
            assert has_served <= live
            has_served |= live


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40))
def test_deleted_versions_were_neither_loaded_nor_labelled(events: list[tuple[str, str, int]]) -> None:
    world = World(num_engines=1, num_fronts=1, keep_versions=1)
    for event in events:
        before = len(world.log)
        happen(world, event)
        for action in world.log[before:]:
            if isinstance(action, DeleteFiles):
                assert not world.rollout.record_of(action.key.model).labels_of(action.key.version)
                assert not any(isinstance(a, SendLoad) and a.key == action.key for a in world.todo)
