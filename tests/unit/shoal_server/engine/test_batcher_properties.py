"""The batcher against a plain reference, over thousands of random schedules.

Calls with any priority, deadline and lengths come to versions of two models, expire, are aborted; forwards are planned
whenever an engine might, up to three at a time, and end in any order, run or failed. Nothing may be lost, doubled, run
after its deadline, or reordered against priority and deadline; a forward holds one version and keeps its token budget;
every counter is right, and every call gets its own rows of logits in its own order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.request import CallKey, ClassifyRequest, RequestState, VersionKey, order_of
from shoal_server.ipc.messages import Priority

VERSIONS = (VersionKey("news", 1), VersionKey("news", 2), VersionKey("mood", 1))
TOKEN_HEADS = {VersionKey("mood", 1)}
BUDGET = 50
MOST_RUNNING = 3
FIXED_S, TOKEN_S = 0.5, 0.02

ADD = st.tuples(
    st.just("add"),
    st.sampled_from(VERSIONS),
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.sampled_from(list(Priority)),
    st.one_of(st.none(), st.integers(-1, 12)),
)
PLAN = st.tuples(st.just("plan"), st.sampled_from(VERSIONS), st.booleans())
OTHERS = st.one_of(
    st.tuples(st.just("finish"), st.integers(0, 2), st.booleans()),  # which; True: it fails
    st.tuples(st.just("abort"), st.integers(0, 15)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 1.0, 5.0])),
)


@dataclass
class Call:
    """What must be true of one call."""

    request: ClassifyRequest
    waiting: list[int]  # sequences that were not given to a forward, in order
    ran: list[int] = field(default_factory=list)
    end: str = ""


class World:
    """A batcher, and beside it what must be true of it."""

    def __init__(self) -> None:
        self.batcher = Batcher(token_budget=BUDGET, max_waiting_tokens=10**6)
        for version in VERSIONS:
            self.batcher.add_version(version)
        self.calls: list[Call] = []
        self.running: list[tuple[ClassifyPlan, float]] = []  # with when they began, the oldest first
        self.now_s = 0.0

    def open_calls(self, version: VersionKey) -> list[Call]:
        return [call for call in self.calls if call.request.version == version and not call.end]

    def in_line(self, version: VersionKey) -> list[tuple[Call, int]]:
        """The sequences of a version that wait, in the order in which they must run."""
        calls = sorted(self.open_calls(version), key=lambda call: call.request.order)
        return [(call, index) for call in calls for index in call.waiting]

    def add(self, version: VersionKey, lengths: list[int], priority: Priority, deadline: int | None) -> None:
        number = len(self.calls)
        deadline_s = None if deadline is None else self.now_s + deadline
        request = ClassifyRequest(
            key=CallKey(1, number),
            version=version,
            sequences=[b"\0" * 4 * length for length in lengths],
            lengths=lengths,
            type_starts=[-1] * len(lengths),
            order=order_of(priority, deadline_s, number),
            received_s=self.now_s,
            is_per_token=version in TOKEN_HEADS,
        )
        self.calls.append(Call(request, waiting=list(range(len(lengths)))))
        self.batcher.add(request, self.now_s)

    def end(self, requests: list[ClassifyRequest], how: str) -> None:
        for request in requests:
            call = self.calls[request.key.request_id]
            assert call.request is request
            assert not call.end, "a call ends once"
            assert request.state is RequestState.ENDED
            call.end = how

    def expire(self) -> None:
        due = [c for v in VERSIONS for c in self.open_calls(v) if c.waiting and self.is_late(c)]
        expired = self.batcher.expire(self.now_s)
        assert {id(request) for request in expired} == {id(call.request) for call in due}
        self.end(expired, "expired")

    def is_late(self, call: Call) -> bool:
        return call.request.order.deadline_s <= self.now_s

    def plan(self, version: VersionKey, *, may_wait: bool) -> None:
        if len(self.running) == MOST_RUNNING:
            return
        self.expire()
        line = self.in_line(version)
        plan = self.batcher.plan(version, self.now_s, may_wait=may_wait)
        if plan is None:
            assert not line or may_wait, "what waits runs, unless it may wait"
            if line:
                self.check_wait(version, line)
            return
        self.check_plan(plan, version, line)
        self.running.append((plan, self.now_s))

    def check_wait(self, version: VersionKey, line: list[tuple[Call, int]]) -> None:
        """No longer than the fixed part, and not so long that the forward would end after a deadline."""
        queue = self.batcher.queue(version)
        assert self.now_s < queue.ready_s <= self.now_s + queue.cost.fixed_s
        deadline_s = min(call.request.order.deadline_s for call, _ in line)
        assert queue.ready_s + queue.cost.seconds(queue.num_tokens) <= deadline_s
        assert self.batcher.next_event_s() <= queue.ready_s

    def check_plan(self, plan: ClassifyPlan, version: VersionKey, line: list[tuple[Call, int]]) -> None:
        """A plan is the beginning of the line, as long as the budget allows, or a deadline in it."""
        planned = [(p.request, index) for p in plan.pieces for index in range(p.first, p.end)]
        assert planned, "an empty forward"
        assert plan.version == version
        assert [(call.request, index) for call, index in line[: len(planned)]] == planned
        assert not any(self.is_late(call) for call, _ in line[: len(planned)])
        lengths = [request.lengths[index] for request, index in planned]
        assert (plan.num_tokens, plan.num_sequences) == (sum(lengths), len(lengths))
        assert plan.num_rows == (plan.num_tokens if version in TOKEN_HEADS else plan.num_sequences)
        assert plan.num_tokens <= BUDGET or plan.num_sequences == 1
        if len(line) > len(planned):
            call, index = line[len(planned)]
            has_deadline = any(request.order.deadline_s < float("inf") for request, _ in planned)
            assert plan.num_tokens + call.request.lengths[index] > BUDGET or has_deadline
        for call, _ in line[: len(planned)]:
            call.waiting.pop(0)

    def finish(self, at: int = 0, *, fails: bool = False) -> None:
        """A forward ends. Each row of logits tells whose it is: call, sequence and token."""
        if not self.running:
            return
        plan, began_s = self.running.pop(at % len(self.running))
        self.now_s = max(self.now_s, began_s + FIXED_S + TOKEN_S * plan.num_tokens)
        pieces = [self.calls[piece.request.key.request_id] for piece in plan.pieces]
        if fails:
            failed = [call.request for call in pieces if not call.end]
            ended = self.batcher.fail(plan, self.now_s)
            assert ended == failed
            self.end(ended, "failed")
            return
        rows = [row for p in plan.pieces for index in range(p.first, p.end) for row in rows_of(p.request, index)]
        for call, piece in zip(pieces, plan.pieces, strict=True):
            call.ran += range(piece.first, piece.end)
        done = [call.request for call in pieces if not call.end and len(call.ran) == len(call.request.lengths)]
        answered = self.batcher.commit(
            plan, np.array(rows, dtype=np.float32), seconds=self.now_s - began_s, ended_s=self.now_s
        )
        assert answered == done
        for request in answered:
            wanted = [row for index in range(len(request.lengths)) for row in rows_of(request, index)]
            assert request.logits_in_order() == np.array(wanted, dtype=np.float32).tobytes()
        self.end(answered, "done")

    def abort(self, number: int) -> None:
        is_open = number < len(self.calls) and not self.calls[number].end
        assert self.batcher.abort(CallKey(1, number)) == is_open
        if is_open:
            self.calls[number].end = "aborted"

    def check_counters(self) -> None:
        for version in VERSIONS:
            queue, line, calls = self.batcher.queue(version), self.in_line(version), self.open_calls(version)
            assert queue.num_open == len(calls)
            assert queue.num_calls == sum(bool(call.waiting) for call in calls)
            assert queue.num_sequences == len(line)
            assert queue.num_tokens == sum(call.request.lengths[index] for call, index in line)
            assert (version in self.batcher.waiting()) == bool(line)

    def drain(self) -> None:
        """Run everything to its end."""
        while self.running or self.batcher.waiting():
            for version in VERSIONS:
                self.plan(version, may_wait=False)
            self.finish()
            self.check_counters()


def rows_of(request: ClassifyRequest, index: int) -> list[list[int]]:
    num_rows = request.lengths[index] if request.is_per_token else 1
    return [[request.key.request_id, index, token] for token in range(num_rows)]


def run(world: World, steps: list[tuple]) -> None:
    for name, *arguments in steps:
        if name == "add":
            world.add(*arguments)
        elif name == "plan":
            world.plan(arguments[0], may_wait=arguments[1])
        elif name == "finish":
            world.finish(arguments[0], fails=arguments[1])
        elif name == "abort":
            world.abort(*arguments)
        else:
            world.now_s += arguments[0]
        world.check_counters()
    world.drain()
    for call in world.calls:
        assert call.end, "every call ends"
        assert len(call.ran) == len(set(call.ran)), "no sequence runs twice"
        assert call.end != "done" or len(call.ran) == len(call.request.lengths)
    for version in VERSIONS:
        world.batcher.remove_version(version)


STEPS = st.lists(st.one_of(ADD, PLAN, OTHERS), max_size=40)


@settings(max_examples=2500, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_every_sequence_runs_once_in_order_or_its_call_ends_otherwise(steps):
    run(World(), steps)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS)
def test_the_same_where_company_is_expected_so_that_an_idle_engine_waits(steps):
    """Five times three calls have come soon after a first one, to an engine whose forwards cost half a second."""
    world = World()
    for _ in range(5):
        world.now_s += 10.0
        for length in (4, 5, 6, 7):
            world.add(VERSIONS[0], [length], Priority.NORMAL, None)
            if length == 4:
                world.plan(VERSIONS[0], may_wait=True)
            world.now_s += 0.005
        world.drain()
    world.now_s += 10.0
    world.add(VERSIONS[0], [4], Priority.NORMAL, None)
    world.plan(VERSIONS[0], may_wait=True)
    assert not world.running, "it waits"
    run(world, steps)
