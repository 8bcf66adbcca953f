"""Which calls count as company, and what a deadline does to a wait. Forwards cost 2 ms and 1 us a token."""

from __future__ import annotations

import pytest
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.company import Company
from shoal_server.engine.forward_cost import ForwardCost
from shoal_server.engine.request import VersionKey

VERSION = VersionKey("news", 1)
FIXED_S = 0.002


def company() -> Company:
    cost = ForwardCost()
    for num_tokens in (10, 1000):
        cost.record(num_tokens, FIXED_S + 1e-6 * num_tokens)
    return Company(cost, token_budget=8192)


def one_burst(company: Company, began_s: float, *, offset_s: float, forward_s: float = FIXED_S) -> float:
    """A call comes to the idle engine and runs at once; nine more come after it and run next.

    Returns how long these were told to wait, once the first forward had ended.
    """
    company.arrived(10, began_s)
    company.wait_until_s(1, 10, began_s)
    company.launched()
    ended_s = began_s + forward_s
    events = [(offset_s, lambda: [company.arrived(10, began_s + offset_s) for _ in range(9)])]
    events.append((forward_s, lambda: company.answered(ended_s)))
    for _, event in sorted(events, key=lambda event: event[0]):
        event()
    next_s = max(ended_s, began_s + offset_s)
    wait_s = company.wait_until_s(9, 90, next_s) - next_s
    company.launched()
    company.answered(next_s + forward_s)
    return wait_s


def test_calls_that_come_soon_after_a_first_one_are_waited_for():
    learning = company()
    for number in range(16):
        one_burst(learning, float(number), offset_s=0.0003)
    learning.arrived(10, 20.0)
    assert 20.0 < learning.wait_until_s(1, 10, 20.0) <= 20.0003
    assert 0.0003 <= learning.max_wait_s() <= 0.0005


def test_calls_that_come_after_an_answer_are_no_company_even_where_it_came_sooner_than_expected():
    learning = company()
    for number in range(16):
        one_burst(learning, float(number), offset_s=0.0003, forward_s=0.0002)
    learning.arrived(10, 20.0)
    assert learning.wait_until_s(1, 10, 20.0) == 20.0
    assert learning.max_wait_s() == 0.0


def test_the_rest_of_a_burst_waits_for_nobody_when_its_first_forward_has_ended():
    """Nine calls come to an idle engine's first; none ever to those that wait when that one has been run."""
    learning = company()
    waits_s = [one_burst(learning, float(number), offset_s=0.0003) for number in range(16)]
    assert waits_s == [0.0] * 16
    assert learning.max_wait_s() > 0.0


@pytest.mark.parametrize(
    ("left_s", "wait_s"), [(0.003, 0.0), (0.0032, 0.0032 - 1.5 * 0.00201), (1.0, FIXED_S * 2**-2.5)]
)
def test_a_wait_ends_in_time_for_every_deadline(make_classify, left_s, wait_s):
    """A forward takes 2.01 ms, half as much again is kept to be safe. With time enough 0.35 ms are waited."""
    batcher = Batcher(token_budget=8192, max_waiting_tokens=10**6)
    batcher.add_version(VERSION)
    queue = batcher.queue(VERSION)
    queue.cost.record(10, FIXED_S + 1e-5)
    queue.cost.record(1000, FIXED_S + 1e-3)
    for number in range(16):
        one_burst(queue._company, float(number), offset_s=0.0003)
    batcher.add(make_classify([10], version=VERSION, deadline_s=20.0 + left_s), 20.0)
    now_s = 20.0
    while batcher.plan(VERSION, now_s, may_wait=True) is None:
        assert now_s < queue.ready_s == batcher.next_event_s()
        now_s = queue.ready_s
    assert now_s - 20.0 == pytest.approx(wait_s, abs=1e-7)
