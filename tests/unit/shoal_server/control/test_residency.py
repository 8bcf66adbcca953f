"""Versions that rest and come back: what goes to make room, what never does, and that everybody gets a turn."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from control_world import LOADED_BYTES, World, make_found
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shoal_server.config import ModelPolicy
from shoal_server.control.actions import NoteFreed, SendLoad
from shoal_server.control.residency import waiting_for
from shoal_server.control.versions import Phase, VersionKey


def key(model: str, version: int = 1) -> VersionKey:
    return VersionKey(model, version)


def world_of(*models: str, room: int | None = 2, evict_idle: bool = True, **options: object) -> World:
    world = World(room=room, evict_idle=evict_idle, **options)  # type: ignore[arg-type]
    world.publish(*(make_found(model, 1) for model in models))
    world.settle()
    return world


def live(world: World) -> set[str]:
    return {key.model for key, entry in world.rollout.entries.items() if entry.phase is Phase.LIVE}


def ask(world: World, model: str, stack: ExitStack | None = None) -> None:
    """A request comes for a model, and leaves again unless `stack` keeps it."""
    with ExitStack() as own:
        (stack or own).enter_context(waiting_for(world.rollout, key(model)))
        world.plan()
        world.settle()


def test_what_does_not_fit_at_the_start_rests_and_nothing_is_unloaded_for_it() -> None:
    world = world_of("a", "b", "c")
    assert [world.state(model) for model in "abc"] == ["live", "live", "idle"]
    assert world.routing is not None
    assert world.routing.serving
    routed = {model.name: model for model in world.routing.models}
    assert routed["c"].default_version == 1
    assert routed["c"].versions[0].on_demand
    assert not routed["a"].versions[0].on_demand


def test_the_least_recently_used_makes_room_for_one_that_is_asked_for() -> None:
    world = world_of("a", "b", "c")
    world.used_s = {key("a"): 20.0, key("b"): 10.0}
    ask(world, "c")
    assert [world.state(model) for model in "abc"] == ["live", "idle", "live"]
    world.used_s = {key("a"): 20.0, key("c"): 30.0}
    ask(world, "b")
    assert [world.state(model) for model in "abc"] == ["idle", "live", "live"]


def test_pinned_models_and_those_in_use_are_not_touched_until_their_requests_have_ended() -> None:
    world = world_of("a", "b", "c", pinned="a")
    world.open = {key("b")}
    with ExitStack() as waiting:
        ask(world, "c", waiting)
        assert [world.state(model) for model in "abc"] == ["live", "live", "loading"]
        assert world.routing is not None
        assert world.routing.wants_room
        world.open.clear()
        world.report_use()
        world.settle()
    assert [world.state(model) for model in "abc"] == ["live", "idle", "live"]


def test_nothing_is_chosen_before_every_front_has_told_of_its_use() -> None:
    world = world_of("a", "b", "c", num_fronts=2)
    with waiting_for(world.rollout, key("c")):
        world.plan()
        while world.rollout.entries[key("c")].lacking_bytes == 0:
            world.step()
        world.todo = []
        world.routings = {front_id: world.rollout.table.to_message() for front_id in (0, 1)}
        world.report_use(0)
        assert live(world) == {"a", "b"}
        world.report_use(1)
        assert live(world) == {"b"}


def test_where_models_may_not_be_evicted_one_that_does_not_fit_is_refused() -> None:
    world = world_of("a", "b", "c", evict_idle=False)
    assert world.state("c") == "rejected"
    assert world.rollout.entries[key("c")].reason == "does not fit"


def test_what_is_too_large_for_all_the_room_is_refused_whatever_else_would_go() -> None:
    world = world_of("a", room=0)
    assert world.state("a") == "rejected"


def test_one_that_came_back_to_too_little_memory_rests_again_and_says_why() -> None:
    world = world_of("a", "b", "c")
    world.room = 0
    ask(world, "c")
    assert world.state("c") == "idle"
    assert world.rollout.entries[key("c")].shortage == "does not fit"
    assert live(world) == {"a", "b"}


def wait(world: World, model: str) -> ExitStack:
    """Someone begins to wait for a model, until the result is closed."""
    stack = ExitStack()
    stack.enter_context(waiting_for(world.rollout, key(model)))
    world.plan()
    return stack


def test_models_that_fit_only_in_turn_all_get_their_turn_and_keep_it_until_their_requests_end() -> None:
    world = world_of("a", "b", "c", room=1)
    world.open = {key(model) for model in "abc"}  # they wait, and are in flight as soon as it is live
    waits = {model: wait(world, model) for model in "abc"}
    served: list[str] = []
    while waits:
        world.settle()
        (model,) = live(world)
        waits.pop(model).close()
        world.report_use()
        world.settle()
        assert live(world) == {model}, "its requests have not ended"
        served.append(model)
        world.open.remove(key(model))
        world.report_use()
    assert sorted(served) == ["a", "b", "c"]


def test_one_asked_for_while_it_makes_room_goes_and_comes_back_after_the_other() -> None:
    world = world_of("a", "b", room=1)
    world.busy = {key("a")}  # something began just before it was told to go
    first = wait(world, "b")
    world.settle()
    assert world.state("a") == "draining"
    second = wait(world, "a")
    world.settle()
    assert world.state("a") == "draining"
    world.finish_requests()
    world.settle()
    assert live(world) == {"b"}
    first.close()
    world.plan()
    world.settle()
    assert live(world) == {"a"}
    second.close()


def test_a_version_nobody_asked_for_in_its_time_rests_and_the_next_request_brings_it_back() -> None:
    world = world_of("a", "b", room=None, evict_idle=False, idle_unload_s=60.0)
    world.used_s = {key("b"): 50.0}
    world.report_use()
    world.pass_time(59.0)
    world.settle()
    assert live(world) == {"a", "b"}
    world.pass_time(60.0)
    world.settle()
    assert [world.state(model) for model in "ab"] == ["idle", "live"]
    assert world.of_type(NoteFreed) == [NoteFreed(key=key("a"), resting=True)]
    world.pass_time(100.0)
    ask(world, "a")
    assert live(world) == {"a", "b"}
    world.pass_time(110.0)
    world.settle()
    assert live(world) == {"a"}, "its time began anew when it came back"


def test_a_version_in_use_or_waited_for_does_not_rest_however_late_it_is() -> None:
    world = world_of("a", "b", "c", room=None, evict_idle=False, idle_unload_s=60.0)
    world.open = {key("a")}
    world.report_use()
    with waiting_for(world.rollout, key("b")):
        world.pass_time(1000.0)
        world.settle()
        assert live(world) == {"a", "b"}


def test_a_front_that_has_told_nothing_may_have_requests() -> None:
    world = world_of("a", room=None, evict_idle=False, idle_unload_s=60.0)
    world.pass_time(1000.0)
    assert live(world) == {"a"}
    world.report_use()
    assert live(world) == set()


def test_the_time_of_a_model_wins_over_that_of_the_repository_and_pinned_ones_have_none() -> None:
    models = {"a": ModelPolicy(idle_unload_s=10.0), "b": ModelPolicy(pinned=True, idle_unload_s=10.0)}
    world = World(idle_unload_s=60.0)
    repository = world.rollout.settings.repository
    settings = type(repository)(idle_unload_s=60.0, models=models)
    assert [settings.idle_unload_s_of(model) for model in "abc"] == [10.0, None, 60.0]
    assert settings.lets_rest
    assert not type(repository)().lets_rest


def test_a_resting_version_stays_at_rest_when_its_engine_dies_and_comes_back() -> None:
    world = world_of("a", "b", "c")
    before = len(world.of_type(SendLoad))
    world.engine_down(0)
    world.engine_up(0)
    world.settle()
    assert [world.state(model) for model in "abc"] == ["live", "live", "idle"]
    loaded = [action.key.model for action in world.of_type(SendLoad)[before:]]  # type: ignore[attr-defined]
    assert sorted(loaded) == ["a", "b"]


def test_a_version_that_was_on_its_way_to_rest_is_live_at_once_when_nobody_needs_its_room() -> None:
    world = world_of("a", room=None, evict_idle=False, idle_unload_s=60.0)
    world.report_use()
    world.busy = {key("a")}
    world.pass_time(60.0)
    world.settle()
    assert world.state("a") == "draining"
    num_loads = len(world.of_type(SendLoad))
    ask(world, "a")
    assert world.state("a") == "live"
    assert len(world.of_type(SendLoad)) == num_loads


def test_an_explicit_unload_of_a_resting_version_holds_and_a_load_makes_it_live() -> None:
    world = World(room=1, evict_idle=True)
    world.publish(make_found("a", 1), make_found("m", 1))
    world.settle()
    assert world.state("m") == "idle"
    world.record(unloaded_all=True)
    world.settle()
    assert world.state("m") == "unloaded"
    assert world.of_type(NoteFreed)[-1] == NoteFreed(key=key("m"))
    world.record()
    ask(world, "m")
    assert [world.state(model) for model in "am"] == ["idle", "live"]


def test_a_new_version_takes_over_although_room_has_to_be_made_for_it() -> None:
    world = world_of("a", "b")
    world.publish(make_found("a", 2))
    world.settle()
    assert world.states("a") == {2: "live", 1: "available"}
    assert world.state("b") == "idle"


def test_with_room_for_one_the_old_version_makes_room_for_the_new_one_once_it_is_idle() -> None:
    world = world_of("a", room=1)
    world.open = {key("a", 1)}
    world.publish(make_found("a", 2))
    world.settle()
    assert world.states("a") == {2: "loading", 1: "live"}
    world.open.clear()
    world.report_use()
    world.settle()
    assert world.states("a") == {2: "live", 1: "available"}


def test_with_room_for_one_a_refused_new_version_brings_the_old_one_back() -> None:
    world = world_of("a", room=1)
    world.bad[key("a", 2)] = "damaged"
    world.publish(make_found("a", 2))
    world.settle()
    assert world.states("a") == {2: "rejected", 1: "live"}


def test_the_newest_version_answers_by_name_also_while_it_rests_beside_a_labelled_one() -> None:
    world = World(idle_unload_s=60.0)
    world.record(labels={"stable": 1})
    world.publish(make_found("m", 1), make_found("m", 2))
    world.settle()
    world.used_s = {key("m", 1): 50.0}
    world.report_use()
    world.pass_time(60.0)
    world.settle()
    assert world.states() == {2: "idle", 1: "live"}
    assert world.routing is not None
    assert world.routing.models[0].default_version == 2


def test_a_resting_version_is_in_use_and_not_deleted() -> None:
    world = world_of("a", "b", "c")
    assert world.rollout.is_in_use(key("c"))


def test_a_version_removed_while_it_rests_disappears_with_its_series() -> None:
    world = world_of("a", "b", "c")
    world.remove(key("c"))
    world.settle()
    assert world.states("c") == {}
    assert NoteFreed(key=key("c")) in world.log


@pytest.mark.parametrize("num_engines", [1, 2])
def test_room_is_made_on_every_engine(num_engines: int) -> None:
    world = world_of("a", "b", "c", num_engines=num_engines)
    ask(world, "c")
    assert world.state("c") == "live"
    for engine_id in range(num_engines):
        assert world.lacking_bytes(engine_id) == LOADED_BYTES, "full, and not over-full"


MODELS = "abcd"
EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from(MODELS)),
    st.tuples(st.just("leave"), st.sampled_from(MODELS)),
    st.tuples(st.just("begin"), st.sampled_from(MODELS)),
    st.tuples(st.just("end"), st.sampled_from(MODELS)),
    st.tuples(st.just("publish"), st.sampled_from(MODELS)),
    st.tuples(st.just("engine"), st.just("")),
    st.tuples(st.just("front"), st.just("")),
    st.tuples(st.just("time"), st.just("")),
    st.tuples(st.just("report"), st.just("")),
    st.tuples(st.just("step"), st.just("")),
)


class Crowd:
    """Requests that come to four models with room for two, one of them pinned."""

    def __init__(self) -> None:
        self.world = world_of(*MODELS, room=2, pinned="a", num_fronts=2, idle_unload_s=5.0)
        self.waits: dict[str, ExitStack] = {}
        self.now_s = 0.0
        self.newest = dict.fromkeys(MODELS, 1)

    def happen(self, kind: str, model: str) -> None:
        world, newest = self.world, VersionKey(model, self.newest.get(model, 0))
        match kind:
            case "wait" if model not in self.waits and newest in world.rollout.entries:
                self.waits[model] = ExitStack()
                self.waits[model].enter_context(waiting_for(world.rollout, newest))
            case "leave" if model in self.waits:
                self.waits.pop(model).close()
            case "begin" if world.rollout.entries[newest].phase is Phase.LIVE:
                world.open.add(newest)
            case "end":
                world.open -= {k for k in world.open if k.model == model}
                world.used_s[newest] = self.now_s
            case "publish":
                self.newest[model] += 1
                world.publish(make_found(model, self.newest[model]))
            case "engine":
                world.engine_down(0) if world.rollout.engines else world.engine_up(0)
            case "front":
                world.front_down(1) if 1 in world.rollout.fronts else world.front_up(1)
            case "time":
                self.now_s += 3.0
                world.pass_time(self.now_s)
            case "report":
                world.report_use()
            case "step":
                world.step()
        world.plan()

    def end_all(self) -> None:
        """Nobody waits, nothing is in flight, every process is up."""
        for model in list(self.waits):
            self.happen("leave", model)
        self.world.open.clear()
        if not self.world.rollout.engines:
            self.world.engine_up(0)
        if 1 not in self.world.rollout.fronts:
            self.world.front_up(1)
        self.world.settle()
        self.world.report_use()
        self.world.settle()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=40))
def test_after_any_history_whatever_is_asked_for_becomes_live_and_pinned_ones_never_rest(
    events: list[tuple[str, str]],
) -> None:
    crowd = Crowd()
    world = crowd.world
    for kind, model in events:
        crowd.happen(kind, model)
        assert not any(entry.resting for key, entry in world.rollout.entries.items() if key.model == "a")
        assert world.rollout.plan() == []
    crowd.end_all()
    for model in MODELS:
        crowd.happen("wait", model)
        world.settle()
        assert world.state(model) == "live", world.states(model)
        crowd.happen("leave", model)
    assert world.routing is not None
    assert world.routing.serving
    assert not world.routing.wants_room
