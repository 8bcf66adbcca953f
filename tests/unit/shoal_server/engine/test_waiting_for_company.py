"""How long an idle engine waits for company, simulated on a clock that jumps.

The devices: a GPU, whose forwards cost 2 ms however few their tokens, and a processor, whose forwards cost what their
tokens cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from simulated_engine import Device, Simulation

FIXED_S = 0.002
FIXED_WAITS_S = (0.0, 0.0005, 0.001, 0.002)  # 0: never wait
Traffic = Callable[[Simulation, random.Random], None]


def simulate(
    traffic: Traffic,
    *,
    token_s: float = 1e-6,
    fixed_s: float = FIXED_S,
    wait_s: float | None = None,
    until_s: float = 2.0,
) -> Simulation:
    rng = random.Random(7)
    simulation = Simulation(device=Device(fixed_s=fixed_s, token_s=token_s, rng=rng), fixed_wait_s=wait_s)
    traffic(simulation, rng)
    return simulation.run(until_s)


def length(rng: random.Random) -> int:
    return int(min(256, max(3, rng.lognormvariate(3.3, 0.8))))


def poisson(rate: float) -> Traffic:
    """Independent calls, so many a second."""

    def begin(simulation: Simulation, rng: random.Random) -> None:
        at_s = 0.0
        while at_s < 2.0:
            at_s += rng.expovariate(rate)
            simulation.call(at_s, length(rng))

    return begin


def bursts(num_calls: int, spread_s: float = 0.0005, pause_s: float = 0.02) -> Traffic:
    """After every pause, half as long to half as long again, so many calls within so short a time."""

    def begin(simulation: Simulation, rng: random.Random) -> None:
        at_s = 0.0
        while at_s < 2.0:
            for _ in range(num_calls):
                simulation.call(at_s + rng.uniform(0, spread_s), length(rng))
            at_s += pause_s * rng.uniform(0.5, 1.5)

    return begin


def closed_loop(num_callers: int, think_s: float = 0.0003) -> Traffic:
    """Callers each of which asks again within so short a time after its answer."""

    def begin(simulation: Simulation, rng: random.Random) -> None:
        def ask(now_s: float) -> None:
            simulation.call(now_s + rng.uniform(0, think_s), length(rng), ask)

        for _ in range(num_callers):
            ask(0.0)

    return begin


@pytest.mark.parametrize("think_s", [1e-5, 3e-4, 0.05])
def test_a_lone_caller_never_waits_however_soon_it_asks_again(think_s):
    simulation = simulate(closed_loop(1, think_s))
    assert max(simulation.waits_s) == 0.0
    assert simulation.queue.max_wait_s == 0.0


@pytest.mark.parametrize("rate", [20, 200, 1000, 3000, 20_000])
def test_calls_that_come_evenly_wait_for_nobody_and_still_fill_batches_when_there_are_many(rate):
    """At 20,000 a second 40 calls come while one forward runs: these are the next batch. Waiting would gain nothing."""
    simulation = simulate(poisson(rate))
    assert simulation.mean_s <= 1.01 * min(simulate(poisson(rate), wait_s=wait_s).mean_s for wait_s in FIXED_WAITS_S)
    assert sum(simulation.waits_s) <= 0.02 * FIXED_S * simulation.num_forwards
    if rate == 20_000:
        assert simulation.batch_calls > 40


def test_a_burst_runs_as_one_forward_and_costs_less_than_without_waiting_or_with_a_fixed_wait_that_is_too_long():
    """Without a wait the first of 20 runs alone, and 19 wait for it: two forwards instead of little more than one."""
    simulation = simulate(bursts(20))
    mean_s = {wait_s: simulate(bursts(20), wait_s=wait_s).mean_s for wait_s in FIXED_WAITS_S}
    assert simulation.mean_s < 0.75 * mean_s[0.0]
    assert simulation.mean_s < 0.92 * mean_s[0.001]
    assert simulation.mean_s < 1.05 * min(mean_s.values())
    assert 0.0 < simulation.queue.max_wait_s <= 1.1 * FIXED_S


def test_bursts_are_still_run_as_one_where_most_calls_come_alone():
    """A wait ends soon where nobody comes, and goes on where some have: then this is a burst as others were."""

    def both(simulation: Simulation, rng: random.Random) -> None:
        bursts(20, pause_s=0.05)(simulation, rng)
        closed_loop(1, 0.02)(simulation, rng)

    assert simulate(both).mean_s < 0.9 * simulate(both, wait_s=0.0).mean_s


@pytest.mark.parametrize("num_callers", [2, 8, 64])
def test_callers_whom_one_forward_has_answered_run_together_again(num_callers):
    """They ask again within 0.3 ms. Without a wait they fall into two halves that wait for each other."""
    simulation = simulate(closed_loop(num_callers))
    assert simulation.batch_calls > 0.9 * num_callers
    for wait_s in FIXED_WAITS_S:
        other = simulate(closed_loop(num_callers), wait_s=wait_s)
        assert simulation.throughput > (1.3 if wait_s == 0.0 else 1.0) * other.throughput
        assert simulation.mean_s < other.mean_s


def test_on_a_processor_whose_forwards_cost_what_their_tokens_cost_nobody_waits():
    for traffic in (bursts(3), closed_loop(8), poisson(100)):
        simulation = simulate(traffic, token_s=1e-4, fixed_s=2e-5)
        assert max(simulation.waits_s) <= 2.5e-5
        assert simulation.mean_s <= 1.01 * simulate(traffic, token_s=1e-4, fixed_s=2e-5, wait_s=0.0).mean_s


def test_nobody_waits_longer_than_the_fixed_part_of_a_forward():
    def everything(simulation: Simulation, rng: random.Random) -> None:
        for traffic in (poisson(300), bursts(15, 0.001), closed_loop(3, 0.004)):
            traffic(simulation, rng)

    simulation = simulate(everything)
    assert 0.0 < max(simulation.waits_s) <= 1.1 * FIXED_S


def test_a_lone_caller_after_many_bursts_does_not_pay_for_them():
    """One or two steps of a wait, a 64th of the fixed part each, show that this is no burst."""

    def then_alone(simulation: Simulation, rng: random.Random) -> None:
        def ask(now_s: float) -> None:
            simulation.call(now_s + 0.001, length(rng), ask)

        bursts(20)(simulation, rng)
        simulation.call(2.1, 20, ask)

    simulation = simulate(then_alone, until_s=2.2)
    alone = simulation.waits_s[-20:]
    assert sum(alone) < 0.1 * FIXED_S * len(alone)
    assert alone[-3:] == [0.0, 0.0, 0.0]
