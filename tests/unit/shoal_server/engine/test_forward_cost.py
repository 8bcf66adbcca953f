"""What is learned of a forward's cost."""

from __future__ import annotations

import random

import pytest
from shoal_server.engine.forward_cost import ForwardCost


def test_both_parts_of_the_cost_are_found_through_noise_and_stray_slow_forwards():
    """2 ms and 10 us a token, 5 % of noise, and one forward in ten that takes ten times as long."""
    cost, rng = ForwardCost(), random.Random(1)
    for _ in range(500):
        num_tokens = int(min(1024, max(3, rng.lognormvariate(4.5, 1.5))))
        seconds = (0.002 + 1e-5 * num_tokens) * rng.uniform(0.95, 1.05) * (10 if rng.random() < 0.1 else 1)
        cost.record(num_tokens, seconds)
    assert cost.fixed_s == pytest.approx(0.002, rel=0.1)
    assert cost.token_s == pytest.approx(1e-5, rel=0.1)
    assert cost.seconds(500) == pytest.approx(0.007, rel=0.1)


def test_a_slow_first_forward_is_forgotten_after_a_few():
    cost = ForwardCost()
    cost.record(10, 5.0)
    for _ in range(2):
        cost.record(10, 0.010)
    assert cost.seconds(10) == pytest.approx(0.010)


def test_an_hour_of_full_batches_does_not_make_forget_what_small_ones_cost():
    cost = ForwardCost()
    for num_tokens in (10, 20, 40, 1000, *[1000 + i % 20 for i in range(1000)]):
        cost.record(num_tokens, 0.002 + 1e-5 * num_tokens)
    assert cost.fixed_s == pytest.approx(0.002, rel=0.01)


def test_a_machine_that_becomes_slower_is_noticed_within_ten_forwards_of_a_size():
    cost = ForwardCost()
    for slower in (1, 3):
        for _ in range(10):
            for num_tokens in (10, 100, 1000):
                cost.record(num_tokens, slower * (0.002 + 1e-5 * num_tokens))
    assert cost.fixed_s == pytest.approx(0.006, rel=0.01)


def test_forwards_of_one_size_say_nothing_of_a_fixed_part():
    cost = ForwardCost()
    assert (cost.seconds(100), cost.tokens_within(1.0)) == (0.0, float("inf"))
    for _ in range(20):
        cost.record(100, 0.005)
    assert cost.fixed_s == 0.0
    assert cost.seconds(200) == pytest.approx(0.010)


@pytest.mark.parametrize(("times", "fixed_s"), [((0.001, 0.004), 0.0), ((0.004, 0.001), None)])
def test_neither_part_is_ever_negative(times, fixed_s):
    """10 and 20 tokens: a line through 1 and 4 ms would begin below 0, one through 4 and 1 ms would fall."""
    cost = ForwardCost()
    for num_tokens, seconds in zip((10, 20), times, strict=True):
        cost.record(num_tokens, seconds)
    assert cost.fixed_s >= 0.0
    assert cost.token_s >= 0.0
    assert fixed_s is None or cost.fixed_s == fixed_s


def test_how_many_tokens_fit_into_a_time():
    cost = ForwardCost()
    for num_tokens in (10, 50):
        cost.record(num_tokens, 0.010 + 0.001 * num_tokens)
    assert cost.tokens_within(0.060) == pytest.approx(50)
    assert cost.tokens_within(0.005) == 0
