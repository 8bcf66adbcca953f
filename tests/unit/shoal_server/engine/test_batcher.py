"""The batcher: order, budget, deadlines, bounds, and whose row of logits is whose."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.request import CallKey, ClassifyRequest, VersionKey
from shoal_server.errors import InternalFault, QueueFull
from shoal_server.ipc.messages import Priority

A, B = VersionKey("news", 1), VersionKey("news", 2)


def batcher(*, token_budget: int = 100, max_waiting_tokens: int = 1000) -> Batcher:
    queue = Batcher(token_budget=token_budget, max_waiting_tokens=max_waiting_tokens)
    queue.add_version(A)
    queue.add_version(B)
    return queue


def run(
    queue: Batcher, plan: ClassifyPlan | None, logits_RL: np.ndarray, *, seconds: float = 0.01
) -> list[ClassifyRequest]:
    """Commit a plan whose forward, begun at time 0, took so long."""
    assert plan is not None
    return queue.commit(plan, logits_RL, seconds=seconds, ended_s=seconds)


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
    plan = queue.plan(A, 0.0, may_wait=False)
    assert ids_of(plan) == [(0, 0, 2)]
    assert (plan.num_sequences, plan.num_tokens) == (2, 90)
    assert ids_of(queue.plan(A, 0.0, may_wait=False)) == [(1, 0, 1), (2, 0, 1)]
    assert queue.plan(A, 0.0, may_wait=False) is None


def test_a_call_spread_over_forwards_is_answered_once_when_all_have_run(make_classify):
    queue = batcher()
    queue.add(make_classify([60, 60, 60]), 0.0)
    answers = []
    for _ in range(3):
        plan = queue.plan(A, 0.0, may_wait=False)
        answers.append(run(queue, plan, logits_of(plan)))
    assert answers[:2] == [[], []]
    logits = np.frombuffer(answers[2][0].logits_in_order(), dtype=np.float32).reshape(3, 2)
    assert logits.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert queue.queue(A).num_open == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_forwards_that_end_in_another_order_than_they_began_do_not_mix_up_a_calls_rows(order, make_classify):
    queue = batcher()
    queue.add(make_classify([60, 60, 30, 60]), 0.0)
    plans = [queue.plan(A, 0.0, may_wait=False) for _ in range(3)]
    answers = [run(queue, plans[at], logits_of(plans[at])) for at in order]
    assert answers[:2] == [[], []]
    logits = np.frombuffer(answers[2][0].logits_in_order(), dtype=np.float32).reshape(4, 2)
    assert logits.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


def test_a_token_head_gives_every_call_the_rows_of_its_own_tokens(make_classify):
    """Calls of 3, 2, and 4 + 9 tokens: of the first nine rows 0-2 are the first's, 5-8 the third's, abort or not."""
    queue = batcher(token_budget=16)
    first, second, third = (make_classify(lengths, is_per_token=True) for lengths in ([3], [2], [4, 9]))
    for call in (first, second, third):
        queue.add(call, 0.0)
    plan = queue.plan(A, 0.0, may_wait=False)
    assert (plan.num_sequences, plan.num_tokens, plan.num_rows) == (3, 9, 9)
    queue.abort(second.key)
    assert run(queue, plan, np.arange(9, dtype=np.float32)[:, None]) == [first]
    plan = queue.plan(A, 0.0, may_wait=False)
    assert plan.num_rows == 9
    assert run(queue, plan, np.arange(10, 19, dtype=np.float32)[:, None]) == [third]
    assert np.frombuffer(first.logits_in_order(), dtype=np.float32).tolist() == [0, 1, 2]
    assert np.frombuffer(third.logits_in_order(), dtype=np.float32).tolist() == [5, 6, 7, 8, *range(10, 19)]


def test_a_sequence_longer_than_the_budget_goes_alone(make_classify):
    queue = batcher()
    queue.add(make_classify([150]), 0.0)
    queue.add(make_classify([10]), 0.0)
    assert ids_of(queue.plan(A, 0.0, may_wait=False)) == [(0, 0, 1)]
    assert ids_of(queue.plan(A, 0.0, may_wait=False)) == [(1, 0, 1)]


def test_priority_then_deadline_then_arrival_decides(make_classify):
    queue = batcher(token_budget=16)
    queue.add(make_classify([16]), 0.0)
    queue.add(make_classify([16], priority=Priority.LOW, deadline_s=1.0), 0.0)
    queue.add(make_classify([16], deadline_s=9.0), 0.0)
    queue.add(make_classify([16], deadline_s=5.0), 0.0)
    queue.add(make_classify([16], priority=Priority.HIGH), 0.0)
    order = [ids_of(queue.plan(A, 0.0, may_wait=False))[0][0] for _ in range(5)]
    assert order == [4, 3, 2, 0, 1]


def test_a_forward_never_mixes_versions(make_classify):
    queue = batcher()
    for version in (A, B, A):
        queue.add(make_classify([10], version=version), 0.0)
    assert queue.waiting() == [A, B]
    plan = queue.plan(A, 0.0, may_wait=False)
    assert plan.version == A
    assert ids_of(plan) == [(0, 0, 1), (2, 0, 1)]
    assert queue.waiting() == [B]


def with_costs(queue: Batcher, make_classify) -> None:
    """Teach that a forward takes 10 ms and 1 ms a token."""
    for length in (10, 50):
        queue.add(make_classify([length]), 0.0)
        plan = queue.plan(A, 0.0, may_wait=False)
        run(queue, plan, logits_of(plan), seconds=0.010 + 0.001 * length)
    assert queue.queue(A).cost.seconds(100) == pytest.approx(0.110)


def test_a_lane_takes_its_share_of_what_waits_and_runs_unless_that_is_little(make_classify):
    """700 tokens wait and 300 run: 500 for each of two lanes; of 300 that wait alone a lane takes 256."""
    queue = batcher(token_budget=1024, max_waiting_tokens=5000)
    for _ in range(7):
        queue.add(make_classify([100]), 0.0)
    assert queue.plan(A, 0.0, may_wait=False, num_lanes=2, num_running_tokens=300).num_tokens == 500
    queue.add(make_classify([50, 50]), 0.0)
    assert queue.plan(A, 0.0, may_wait=False, num_lanes=2).num_tokens == 250


def test_company_never_costs_a_call_the_deadline_that_it_would_meet_alone(make_classify):
    """Half as much again is kept to be safe: 90 ms are for 60, that is 50 tokens. 30 + 20 fit, 5 more do not."""
    queue = batcher()
    with_costs(queue, make_classify)
    for lengths, deadline_s in (([30], 1.0901), ([20], None), ([5], None)):
        queue.add(make_classify(lengths, deadline_s=deadline_s), 1.0)
    assert [piece[0] for piece in ids_of(queue.plan(A, 1.0, may_wait=False))] == [2, 3]
    assert [piece[0] for piece in ids_of(queue.plan(A, 1.0, may_wait=False))] == [4]


def test_a_deadline_that_is_too_near_to_be_met_is_tried_and_holds_up_nobody(make_classify):
    queue = batcher()
    with_costs(queue, make_classify)
    for deadline_s in (1.001, None):
        queue.add(make_classify([20], deadline_s=deadline_s), 1.0)
    assert [piece[0] for piece in ids_of(queue.plan(A, 1.0, may_wait=False))] == [2, 3]


def test_an_expired_call_is_never_run(make_classify):
    queue = batcher()
    late, fine = make_classify([10], deadline_s=1.0), make_classify([10], deadline_s=2.0)
    queue.add(late, 0.0)
    queue.add(fine, 0.0)
    assert queue.expire(0.999) == []
    assert queue.expire(1.0) == [late]
    assert ids_of(queue.plan(A, 1.0, may_wait=False)) == [(1, 0, 1)]
    assert queue.expire(5.0) == [], "what was given to a forward wholly is answered, however late"


def test_a_call_that_expires_half_run_ends_and_its_rest_never_runs(make_classify):
    queue = batcher()
    call = make_classify([80, 80], deadline_s=1.0)
    queue.add(call, 0.0)
    plan = queue.plan(A, 0.0, may_wait=False)
    assert queue.expire(1.0) == [call]
    assert run(queue, plan, logits_of(plan)) == []
    assert queue.plan(A, 1.0, may_wait=False) is None
    assert queue.waiting() == []


def test_beyond_twice_the_bound_a_call_is_refused(make_classify):
    queue = batcher(max_waiting_tokens=100)
    queue.add(make_classify([150]), 0.0)
    with pytest.raises(QueueFull, match="150 tokens wait already; limit 200"):
        queue.add(make_classify([51]), 0.0)
    queue.add(make_classify([50]), 0.0)


def test_a_call_above_the_bound_alone_is_taken_by_an_empty_queue(make_classify):
    queue = batcher(max_waiting_tokens=16)
    queue.add(make_classify([500]), 0.0)
    assert queue.plan(A, 0.0, may_wait=False) is not None


def test_an_id_in_use_is_refused_and_the_first_call_goes_on(make_classify):
    queue = batcher()
    call = make_classify([10])
    queue.add(call, 0.0)
    with pytest.raises(InternalFault):
        queue.add(call, 0.0)
    assert queue.queue(A).num_sequences == 1


def test_answered_calls_leave_no_memory_behind_a_distant_deadline(make_classify):
    """Deadlines an hour away are forgotten with their call, not when they pass."""
    queue = batcher()
    for _ in range(2000):
        queue.add(make_classify([10], deadline_s=3600.0), 0.0)
        plan = queue.plan(A, 0.0, may_wait=False)
        run(queue, plan, logits_of(plan))
    assert len(queue.queue(A)._deadlines._heap) < 200
    for _ in range(500):
        queue.add(make_classify([1], priority=Priority.LOW), 0.0)
        queue.abort(CallKey(1, 2000 + _))
    assert len(queue.queue(A)._waiting) < 200
