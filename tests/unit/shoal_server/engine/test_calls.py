"""The calls of an engine on a fake device and a clock that jumps: overlap, even shares of time, failures."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from shoal_models.manifest import Manifest
from shoal_server.config import ServerConfig
from shoal_server.engine.calls import Calls
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.model_runner import ReadyClassifier, ReadyGenerator
from shoal_server.engine.request import VersionKey
from shoal_server.engine.sampler import Choices
from shoal_server.engine.scheduler import StepPlan
from shoal_server.ipc.messages import Abort, CallFailed, ClassifyCall, ClassifyDone, GenerateCall, Message, Sampling

NEWS, MOOD, STORY = VersionKey("news", 1), VersionKey("mood", 1), VersionKey("story", 1)
FIXED_S = 0.010
PREPARE_S = 0.001
PEER = 1


@dataclass
class FakeDevice:
    """A runner and its device: computes one forward after the other, on its own time or on the caller's."""

    queues_forwards: bool
    num_lanes: int = 1
    classify_token_budget: int = 64
    commits_lazily: bool = False
    computes_aside: bool = False  # lanes on which time passes without the caller
    now_s: float = 0.0
    free_s: float = 0.0  # when it has done all that was launched
    fixed_s: dict[VersionKey, float] = field(default_factory=dict)
    fails_in: str = ""  # the next time only
    broken: VersionKey | None = None
    log: list[str] = field(default_factory=list)
    launched_alone: list[bool] = field(default_factory=list)
    launched_short: list[bool] = field(default_factory=list)
    launched_s: list[float] = field(default_factory=list)
    spent_s: dict[VersionKey, float] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def prepare(self, plan: ClassifyPlan) -> ClassifyPlan:
        self.now_s += PREPARE_S
        return plan

    def launch(self, plan: ClassifyPlan, *, is_alone: bool, is_short: bool) -> FakeLaunched:
        self.launched_alone.append(is_alone)
        self.launched_short.append(is_short)
        name = f"{next(self._numbers)}:{plan.num_sequences}"
        self.log.append(f"launch {name}")
        self.fail_in("launch")
        self.launched_s.append(self.now_s)
        seconds = self.seconds(plan.version)
        self.free_s = max(self.now_s, self.free_s) + seconds
        if not self.queues_forwards and not self.computes_aside:
            self.now_s = self.free_s
        return FakeLaunched(device=self, plan=plan, name=name, took_s=seconds, done_s=self.free_s)

    def generate(self, plan: StepPlan) -> Choices:
        self.now_s = max(self.now_s, self.free_s) + self.seconds(plan.version)
        self.free_s = self.now_s
        return Choices(token_ids=[7 for piece in plan.pieces if piece.wants_token], logprobs={})

    def seconds(self, version: VersionKey) -> float:
        seconds = self.fixed_s.get(version, FIXED_S)
        self.spent_s[version] = self.spent_s.get(version, 0.0) + seconds
        return seconds

    def fail_in(self, place: str) -> None:
        if self.fails_in == place:
            self.fails_in = ""
            raise RuntimeError("the device stumbled")

    def is_lost(self, error: BaseException) -> bool:
        del error
        return False


@dataclass(kw_only=True)
class FakeLaunched:
    device: FakeDevice
    plan: ClassifyPlan
    name: str
    took_s: float
    done_s: float

    def is_done(self) -> bool:
        return self.device.now_s >= self.done_s

    def seconds(self) -> float:
        return self.took_s

    def collect(self) -> np.ndarray:
        self.device.log.append(f"collect {self.name}")
        self.device.now_s = max(self.device.now_s, self.done_s)
        self.device.fail_in("collect")
        if self.plan.version == self.device.broken:
            raise RuntimeError("the model is broken")
        return np.zeros((self.plan.num_rows, 2), dtype=np.float32)


class World:
    """Calls, and what they answered."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.answers: dict[int, Message] = {}
        self._ids = itertools.count()
        self.calls = Calls(
            ServerConfig(),
            runner=cast("Any", device),
            versions=cast("Any", SimpleNamespace(manifest=manifest)),
            device=cast("Any", device),
            reply=self._reply,
            clock=lambda: device.now_s,
        )
        model = cast("Any", None)
        for key in (NEWS, MOOD):
            self.calls.add_version(
                ReadyClassifier(key=key, manifest=manifest(key), model=model, load_s=0.0, memory=cast("Any", None))
            )
        cache = cast("Any", SimpleNamespace(num_blocks=100, block_tokens=16, num_bytes=100))
        self.calls.add_version(
            ReadyGenerator(
                key=STORY, manifest=manifest(STORY), model=model, cache=cache, load_s=0.0, memory=cast("Any", None)
            )
        )

    def _reply(self, peer_id: int, message: Any) -> None:
        assert peer_id == PEER
        self.answers[message.request_id] = message

    def classify(self, version: VersionKey = NEWS, *, num_tokens: int = 4) -> int:
        request_id = next(self._ids)
        call = ClassifyCall(
            request_id=request_id,
            model=version.model,
            version=version.version,
            sequences=[b"\1\0\0\0" * num_tokens],
            type_starts=[-1],
        )
        self.calls.receive([call], PEER, self.device.now_s)
        return request_id

    def generate(self, num_tokens: int) -> int:
        request_id = next(self._ids)
        call = GenerateCall(
            request_id=request_id,
            model=STORY.model,
            version=STORY.version,
            prompt=b"\1\0\0\0",
            sampling=Sampling(temperature=0.0),
            stop_token_ids=[],
            max_new_tokens=num_tokens,
        )
        self.calls.receive([call], PEER, self.device.now_s)
        return request_id

    def abort(self, request_id: int) -> None:
        self.calls.receive([Abort(request_id=request_id)], PEER, self.device.now_s)

    def teach(self) -> None:
        """Let two forwards of different sizes run, so that the cost of one is known."""
        for num_tokens in (4, 40):
            self.classify(num_tokens=num_tokens)
            self.finish()
        self.device.log.clear()
        self.device._numbers = itertools.count(1)

    def finish(self) -> None:
        """Step until nothing is open."""
        while self.calls.is_any_open:
            if not self.calls.step():
                self.device.now_s = max(self.device.now_s, self.calls.next_event_s())


def manifest(key: VersionKey) -> Manifest:
    return Manifest(
        model=key.model,
        version=key.version,
        kind="generator" if key == STORY else "classifier",
        family="",
        architecture="",
        max_tokens=1024,
        vocabulary_size=100,
        weight_dtype="float32",
    )


def test_on_a_processor_each_forward_is_collected_before_the_next_is_planned():
    world = World(FakeDevice(queues_forwards=False))
    for _ in range(20):
        world.classify(num_tokens=30)
    world.finish()
    assert world.device.log[:4] == ["launch 1:2", "collect 1:2", "launch 2:2", "collect 2:2"]
    assert len(world.answers) == 20


def test_free_lanes_share_what_waits_and_a_lane_that_ends_takes_what_has_come():
    """600 tokens over two lanes: 300 each; what comes while both run waits for the first of them."""
    device = FakeDevice(queues_forwards=False, num_lanes=2, classify_token_budget=1024, computes_aside=True)
    world = World(device)
    for _ in range(6):
        world.classify(num_tokens=100)
    assert [world.calls.step(), world.calls.step()] == [True, True]
    assert device.log == ["launch 1:3", "launch 2:3"]
    world.classify(num_tokens=5)
    assert not world.calls.step(), "no lane is free"
    assert world.calls.next_event_s() == float("inf"), "the lane that ends wakes the loop"
    device.now_s = device.free_s
    while len(world.answers) < 6:
        assert world.calls.step()
    assert world.calls.step()
    assert device.log[2:] == ["collect 1:3", "collect 2:3", "launch 3:1"]
    assert device.launched_alone == [False, False, False]


@pytest.mark.parametrize(("fixed_s", "is_short"), [(0.0005, True), (0.004, False)])
def test_forwards_known_to_end_within_a_millisecond_stay_on_the_loop(fixed_s, is_short):
    """How long the first takes is not known."""
    device = FakeDevice(queues_forwards=False, num_lanes=2, fixed_s={NEWS: fixed_s})
    world = World(device)
    for _ in range(2):
        world.classify()
        world.finish()
    assert device.launched_short == [False, is_short]


def test_after_two_lone_forwards_were_held_up_lone_ones_keep_to_one_lane_for_a_while():
    device = FakeDevice(queues_forwards=False, num_lanes=2, fixed_s={NEWS: 0.004})
    world = World(device)
    for seconds in (0.004, 0.100, 1.000, 0.004):
        device.fixed_s[NEWS] = seconds
        world.classify()
        world.finish()
    device.now_s += 0.6
    world.classify()
    world.finish()
    assert device.launched_alone == [True, True, True, False, True]


def test_after_a_call_came_beside_another_lone_ones_keep_to_one_lane_for_a_while():
    device = FakeDevice(queues_forwards=False, num_lanes=2, computes_aside=True, fixed_s={NEWS: 0.004})
    world = World(device)
    world.classify()
    world.calls.step()
    world.classify()
    for pause_s in (0.1, 0.1, 1.0):
        while world.calls.is_any_open:
            world.calls.step()
            device.now_s = max(device.now_s, device.free_s)
        device.now_s += pause_s
        world.classify()
    world.calls.step()
    assert device.launched_alone == [True, False, False, False, True]


def test_a_generate_step_waits_for_the_lanes():
    device = FakeDevice(queues_forwards=False, num_lanes=2, computes_aside=True)
    world = World(device)
    world.classify()
    assert world.calls.step()
    world.generate(3)
    while world.calls.step():
        pass
    assert len(world.answers) == 2
    assert device.log == ["launch 1:1", "collect 1:1"]


def test_the_next_forward_is_launched_while_one_runs_with_all_that_has_come_until_shortly_before_its_end():
    """Forwards take 10 ms, 1 ms goes into preparing one. At 3 ms and 6 ms calls come, none of them is launched then."""
    world = World(FakeDevice(queues_forwards=True))
    world.teach()
    began_s = world.device.now_s
    world.classify()
    assert world.calls.step()
    for later_s in (0.003, 0.006):
        world.device.now_s = began_s + later_s
        world.classify()
        assert not world.calls.step(), "it rests"
    assert world.device.log == ["launch 1:1"]
    while not world.calls.step():
        world.device.now_s = world.calls.next_event_s()
    assert began_s + 0.006 < world.device.launched_s[-1] <= began_s + PREPARE_S + FIXED_S
    assert world.device.log == ["launch 1:1", "launch 2:2", "collect 1:1"]
    assert list(world.answers)[2:] == [2]
    world.finish()
    assert world.device.log[3:] == ["collect 2:2"]


def test_a_forward_that_ends_sooner_than_expected_is_answered_at_once():
    """10 ms are expected, 2 are needed; the loop looks every 0.2 ms."""
    world = World(FakeDevice(queues_forwards=True))
    world.teach()
    world.device.fixed_s[NEWS] = 0.002
    began_s = world.device.now_s
    world.classify()
    world.finish()
    assert world.device.now_s - began_s <= PREPARE_S + 0.002 + 0.0002


def test_a_device_that_computes_by_itself_has_no_pause_between_full_forwards():
    world = World(FakeDevice(queues_forwards=True))
    world.teach()
    began_s = world.device.now_s
    for _ in range(20):
        world.classify(num_tokens=30)
    world.finish()
    assert world.device.now_s - began_s == pytest.approx(PREPARE_S + 10 * FIXED_S)
    depths = list(itertools.accumulate(1 if "launch" in entry else -1 for entry in world.device.log))
    assert max(depths) == 2, "one under way and one behind it"


@pytest.mark.parametrize("queues_forwards", [False, True])
@pytest.mark.parametrize("place", ["launch", "collect"])
def test_a_forward_that_fails_takes_its_own_calls_only(queues_forwards, place):
    world = World(FakeDevice(queues_forwards=queues_forwards, fails_in=place))
    for _ in range(6):
        world.classify(num_tokens=30)
    world.finish()
    kinds = [type(world.answers[request_id]) for request_id in range(6)]
    assert kinds == [CallFailed, CallFailed, ClassifyDone, ClassifyDone, ClassifyDone, ClassifyDone]


def test_a_model_whose_forwards_fail_is_charged_for_their_time():
    """Two models with forwards of 10 ms, one of which always fails: in 200 ms each gets half."""
    world = World(FakeDevice(queues_forwards=False, broken=NEWS))
    for _ in range(50):
        world.classify(NEWS, num_tokens=64)
        world.classify(MOOD, num_tokens=64)
    while world.device.now_s < 0.2:
        world.calls.step()
    assert world.device.spent_s[NEWS] == pytest.approx(world.device.spent_s[MOOD], abs=FIXED_S)


def test_a_version_whose_calls_are_all_aborted_stays_until_its_forward_has_ended():
    world = World(FakeDevice(queues_forwards=True))
    request_id = world.classify()
    world.calls.step()
    world.abort(request_id)
    assert world.calls.num_open(NEWS) == 1
    world.device.now_s += 1.0
    while world.calls.step():
        pass
    assert world.calls.num_open(NEWS) == 0
    world.calls.remove_version(NEWS)
    assert world.answers == {}


@pytest.mark.parametrize("queues_forwards", [False, True])
def test_classifiers_and_generators_get_even_parts_of_the_device(queues_forwards):
    """Forwards of 20 and 5 ms beside decode steps of 2 ms, all with work all the time: a third of the time each."""
    costs_s = {NEWS: 0.020, MOOD: 0.005, STORY: 0.002}
    device = FakeDevice(queues_forwards=queues_forwards, fixed_s=costs_s)
    world = World(device)
    for _ in range(2000):
        world.classify(NEWS, num_tokens=64)
        world.classify(MOOD, num_tokens=64)
    world.generate(1000)
    while sum(device.spent_s.values()) < 1.2:
        if not world.calls.step():
            device.now_s = world.calls.next_event_s()
    # Preparing counts too where the device waits for it: 1 of 21 and 1 of 6 ms.
    assert all(device.spent_s[version] == pytest.approx(0.4, rel=0.15) for version in costs_s)
