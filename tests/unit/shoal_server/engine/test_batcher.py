"""The batcher: order, budget, waiting for company, and that nothing is lost, doubled or run after its deadline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_server.config import ClassifyConfig
from shoal_server.engine.batcher import Batcher, ClassifyPlan
from shoal_server.engine.request import CallKey, ClassifyRequest, VersionKey, order_of
from shoal_server.errors import InternalFault, QueueFull
from shoal_server.ipc.messages import Priority

A, B = VersionKey("news", 1), VersionKey("news", 2)


def batcher(**changes: float) -> Batcher:
    return Batcher(ClassifyConfig(**{"token_budget": 100, "max_wait_ms": 2.0, "max_waiting_tokens": 1000, **changes}))


def ids_of(plan: ClassifyPlan | None) -> list[tuple[int, int, int]]:
    assert plan is not None
    return [(piece.request.key.request_id, piece.first, piece.end) for piece in plan.pieces]


def logits_of(plan: ClassifyPlan) -> np.ndarray:
    """Two outputs for each sequence that tell which it is: request id and index."""
    rows = [(p.request.key.request_id, i) for p in plan.pieces for i in range(p.first, p.end)]
    return np.array(rows, dtype=np.float32)


def test_one_forward_takes_sequences_of_several_calls_up_to_the_budget(make_classify):
    """40 + 50 fit into 100; 20 more do not, and the order is kept: the 5 behind them wait too."""
    queue = batcher()
    for lengths in ([40, 50], [20], [5]):
        queue.add(make_classify(lengths), 0.0)
    plan = queue.plan(0.0, may_wait=False)
    assert ids_of(plan) == [(0, 0, 2)]
    assert (plan.num_sequences, plan.num_tokens) == (2, 90)
    assert ids_of(queue.plan(0.0, may_wait=False)) == [(1, 0, 1), (2, 0, 1)]
    assert queue.plan(0.0, may_wait=False) is None


def test_a_call_spread_over_forwards_is_answered_once_when_all_have_run(make_classify):
    queue = batcher()
    queue.add(make_classify([60, 60, 60]), 0.0)
    answers = []
    for _ in range(3):
        plan = queue.plan(0.0, may_wait=False)
        answers.append(queue.commit(plan, logits_of(plan)))
    assert answers[:2] == [[], []]
    logits = np.frombuffer(b"".join(answers[2][0].logits), dtype=np.float32).reshape(3, 2)
    assert logits.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert queue.num_open(A) == 0


def test_a_token_head_gives_every_call_the_rows_of_its_own_tokens(make_classify):
    """Calls of 3, 2, and 4 + 9 tokens: of the first nine rows 0-2 are the first's, 5-8 the third's, abort or not."""
    queue = batcher(token_budget=16)
    first, second, third = (make_classify(lengths, is_per_token=True) for lengths in ([3], [2], [4, 9]))
    for call in (first, second, third):
        queue.add(call, 0.0)
    plan = queue.plan(0.0, may_wait=False)
    assert (plan.num_sequences, plan.num_tokens, plan.num_rows) == (3, 9, 9)
    queue.abort(second.key)
    assert queue.commit(plan, np.arange(9, dtype=np.float32)[:, None]) == [first]
    plan = queue.plan(0.0, may_wait=False)
    assert plan.num_rows == 9
    assert queue.commit(plan, np.arange(10, 19, dtype=np.float32)[:, None]) == [third]
    assert np.frombuffer(b"".join(first.logits), dtype=np.float32).tolist() == [0, 1, 2]
    assert np.frombuffer(b"".join(third.logits), dtype=np.float32).tolist() == [5, 6, 7, 8, *range(10, 19)]


def test_a_sequence_longer_than_the_budget_goes_alone(make_classify):
    queue = batcher()
    queue.add(make_classify([150]), 0.0)
    queue.add(make_classify([10]), 0.0)
    assert ids_of(queue.plan(0.0, may_wait=False)) == [(0, 0, 1)]
    assert ids_of(queue.plan(0.0, may_wait=False)) == [(1, 0, 1)]


def test_priority_then_deadline_then_arrival_decides(make_classify):
    queue = batcher(token_budget=16)
    queue.add(make_classify([16]), 0.0)
    queue.add(make_classify([16], priority=Priority.LOW, deadline_s=1.0), 0.0)
    queue.add(make_classify([16], deadline_s=9.0), 0.0)
    queue.add(make_classify([16], deadline_s=5.0), 0.0)
    queue.add(make_classify([16], priority=Priority.HIGH), 0.0)
    order = [ids_of(queue.plan(0.0, may_wait=False))[0][0] for _ in range(5)]
    assert order == [4, 3, 2, 0, 1]


def test_versions_take_turns_and_never_share_a_forward(make_classify):
    queue = batcher(token_budget=16)
    for _ in range(3):
        queue.add(make_classify([16], version=A), 0.0)
    queue.add(make_classify([16], version=B), 0.0)
    versions = [queue.plan(0.0, may_wait=False).version for _ in range(4)]
    assert versions == [A, B, A, A]


def test_an_expired_call_is_never_run(make_classify):
    queue = batcher()
    late, fine = make_classify([10], deadline_s=1.0), make_classify([10], deadline_s=2.0)
    queue.add(late, 0.0)
    queue.add(fine, 0.0)
    assert queue.expire(0.999) == []
    assert queue.expire(1.0) == [late]
    assert ids_of(queue.plan(1.0, may_wait=False)) == [(1, 0, 1)]
    assert queue.expire(5.0) == [], "what was given to a forward wholly is answered, however late"


def test_a_call_that_expires_half_run_ends_and_its_rest_never_runs(make_classify):
    queue = batcher()
    call = make_classify([80, 80], deadline_s=1.0)
    queue.add(call, 0.0)
    plan = queue.plan(0.0, may_wait=False)
    assert queue.expire(1.0) == [call]
    assert queue.commit(plan, logits_of(plan)) == []
    assert queue.plan(1.0, may_wait=False) is None
    assert not queue.has_waiting()


def test_a_lone_call_in_an_idle_engine_does_not_wait(make_classify):
    """A single client that asks again 0.1 ms after each answer is no company, however fast it is."""
    queue = batcher()
    now_s = 0.0
    for _ in range(50):
        queue.add(make_classify([10]), now_s)
        plan = queue.plan(now_s, may_wait=True)
        assert plan is not None
        queue.commit(plan, logits_of(plan))
        now_s += 0.0001


def with_company(queue: Batcher, make_classify, num_calls: int = 8) -> None:
    """Calls that arrive together, so that the batcher learns to expect company; all are run."""
    for _ in range(num_calls):
        queue.add(make_classify([10]), 0.0)
    while (plan := queue.plan(0.0, may_wait=False)) is not None:
        queue.commit(plan, logits_of(plan))


def test_where_calls_come_together_one_waits_for_company_but_no_longer_than_told(make_classify):
    queue = batcher()
    with_company(queue, make_classify)
    queue.add(make_classify([10]), 1.0)
    assert queue.plan(1.0, may_wait=True) is None
    assert queue.next_event_s() == pytest.approx(1.002)
    assert queue.plan(1.0019, may_wait=True) is None
    assert queue.plan(1.0021, may_wait=True) is not None


def test_nobody_waits_for_company_while_there_is_other_work_or_the_budget_is_full(make_classify):
    queue = batcher()
    with_company(queue, make_classify)
    queue.add(make_classify([10]), 1.0)
    assert queue.plan(1.0, may_wait=False) is not None
    queue.add(make_classify([100]), 1.0)
    assert queue.plan(1.0, may_wait=True) is not None


def test_beyond_twice_the_bound_a_call_is_refused(make_classify):
    queue = batcher(max_waiting_tokens=100)
    queue.add(make_classify([150]), 0.0)
    with pytest.raises(QueueFull, match="150 tokens wait already; limit 200"):
        queue.add(make_classify([51]), 0.0)
    queue.add(make_classify([50]), 0.0)


def test_a_call_above_the_bound_alone_is_taken_by_an_empty_queue(make_classify):
    queue = batcher(max_waiting_tokens=16)
    queue.add(make_classify([500]), 0.0)
    assert queue.plan(0.0, may_wait=False) is not None


def test_an_id_in_use_is_refused_and_the_first_call_goes_on(make_classify):
    queue = batcher()
    call = make_classify([10])
    queue.add(call, 0.0)
    with pytest.raises(InternalFault):
        queue.add(call, 0.0)
    assert queue.num_waiting(A) == 1


def test_answered_calls_leave_no_memory_behind_a_distant_deadline(make_classify):
    """Deadlines an hour away are forgotten with their call, not when they pass."""
    queue = batcher()
    for _ in range(2000):
        queue.add(make_classify([10], deadline_s=3600.0), 0.0)
        plan = queue.plan(0.0, may_wait=False)
        queue.commit(plan, logits_of(plan))
    assert len(queue._deadlines._heap) < 200
    for _ in range(500):
        queue.add(make_classify([1], priority=Priority.LOW), 0.0)
        queue.abort(CallKey(1, 2000 + _))
    assert len(queue._queues[A].waiting) < 200


STEP = st.one_of(
    st.tuples(
        st.just("add"),
        st.lists(st.integers(1, 60), min_size=1, max_size=6),
        st.sampled_from([A, B]),
        st.sampled_from(list(Priority)),
        st.one_of(st.none(), st.integers(0, 30)),
    ),
    st.tuples(st.just("run"), st.booleans()),
    st.tuples(st.just("abort"), st.integers(0, 12)),
    st.tuples(st.just("fail")),
    st.tuples(st.just("tick"), st.integers(1, 5)),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(STEP, max_size=40))
def test_whatever_happens_every_sequence_runs_once_or_its_call_ends_otherwise(steps):
    """Adds, aborts, failures, expiry and forwards in any order; then everything is run to the end."""
    queue = batcher(token_budget=50, max_waiting_tokens=100_000)
    arrivals = itertools.count()
    calls: dict[int, ClassifyRequest] = {}
    ended: dict[int, str] = {}
    ran: dict[int, list[int]] = {}
    now_s = 0.0

    def end(requests: list[ClassifyRequest], how: str) -> None:
        for request in requests:
            assert request.key.request_id not in ended, "a call ends once"
            ended[request.key.request_id] = how

    def expire() -> None:
        expired = queue.expire(now_s)
        assert all(request.order.deadline_s <= now_s for request in expired)
        end(expired, "expired")

    def run(*, may_wait: bool, fail: bool = False) -> bool:
        expire()
        plan = queue.plan(now_s, may_wait=may_wait)
        if plan is None:
            return False
        assert plan.num_tokens <= 50 or plan.num_sequences == 1
        assert plan.num_tokens == sum(sum(p.request.lengths[p.first : p.end]) for p in plan.pieces)
        for piece in plan.pieces:
            assert piece.request.version == plan.version
            assert piece.request.order.deadline_s > now_s
            assert piece.request.key.request_id not in ended
            ran.setdefault(piece.request.key.request_id, []).extend(range(piece.first, piece.end))
        if fail:
            end(queue.fail(plan), "failed")
            return True
        done = queue.commit(plan, logits_of(plan))
        for request in done:
            got = np.frombuffer(b"".join(request.logits), dtype=np.float32).reshape(-1, 2)
            wanted = [[request.key.request_id, i] for i in range(len(request.lengths))]
            assert got.tolist() == wanted
        end(done, "done")
        return True

    for step in steps:
        if step[0] == "add":
            arrival = next(arrivals)
            deadline_s = None if step[4] is None else float(step[4])
            request = ClassifyRequest(
                key=CallKey(1, arrival),
                version=step[2],
                sequences=[b"\0" * 4 * length for length in step[1]],
                lengths=step[1],
                type_starts=[-1] * len(step[1]),
                order=order_of(step[3], deadline_s, arrival),
                received_s=now_s,
            )
            calls[arrival] = request
            queue.add(request, now_s)
        elif step[0] == "run":
            run(may_wait=step[1])
        elif step[0] == "abort":
            known = step[1] in calls and step[1] not in ended
            assert queue.abort(CallKey(1, step[1])) == known
            if known:
                ended[step[1]] = "aborted"
        elif step[0] == "fail":
            run(may_wait=False, fail=True)
        else:
            now_s += step[1]
    while run(may_wait=False):
        pass
    assert set(ended) == set(calls), "every call ended"
    for request_id, how in ended.items():
        indices = ran.get(request_id, [])
        assert indices == sorted(set(indices)), "no sequence runs twice"
        if how == "done":
            assert len(indices) == len(calls[request_id].lengths)
    assert not queue.has_waiting()
    assert queue.num_open(A) == queue.num_open(B) == queue.num_waiting(A) == queue.num_waiting(B) == 0
    assert not queue._requests
