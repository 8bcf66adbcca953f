"""Even shares of device time, and the counters that fronts observe."""

from __future__ import annotations

import pytest
from shoal_server.engine.request import VersionKey
from shoal_server.engine.statistics import Gauges, Statistics
from shoal_server.engine.turns import Turns
from shoal_server.ipc.messages import SECOND_BUCKETS, SEQUENCE_BUCKETS, TOKEN_BUCKETS

STORY, NEWER_STORY, POEM = VersionKey("story", 1), VersionKey("story", 2), VersionKey("poem", 1)
NEWS, NEWER_NEWS = VersionKey("news", 1), VersionKey("news", 2)


def spend(turns: Turns, costs_s: dict[VersionKey, float], until_s: float) -> dict[VersionKey, float]:
    """Device seconds of versions that all have work all the time, each forward of one taking so long."""
    spent = dict.fromkeys(costs_s, 0.0)
    while sum(spent.values()) < until_s:
        version = turns.choose(list(costs_s))
        turns.charge(version, costs_s[version])
        spent[version] += costs_s[version]
    return spent


def test_each_model_gets_an_even_share_of_time_not_of_turns():
    """Two classifiers with forwards of 6 and 2 ms beside decode steps of 1 ms: in 180 ms each has about 60 ms."""
    spent = spend(Turns(), {NEWS: 0.006, POEM: 0.002, STORY: 0.001}, 0.180)
    assert all(abs(seconds - 0.060) <= 0.006 for seconds in spent.values())


def test_a_model_with_long_forwards_starves_none_of_many_others():
    """20 models, one with forwards fifty times as long as the others': each of these comes up every 20 turns."""
    costs_s = {VersionKey(f"model-{number}", 1): 0.001 for number in range(19)} | {STORY: 0.050}
    turns, since = Turns(), dict.fromkeys(costs_s, 0)
    for turn in range(2000):
        version = turns.choose(list(costs_s))
        turns.charge(version, costs_s[version])
        if version != STORY:
            assert turn - since[version] <= 20
        since[version] = turn


def test_a_source_that_was_idle_long_does_not_catch_up():
    turns = Turns()
    for _ in range(100):
        turns.charge(turns.choose([STORY]), 1.0)
    chosen = []
    for _ in range(4):
        source = turns.choose([STORY, POEM])
        turns.charge(source, 1.0)
        chosen.append(source)
    assert chosen.count(STORY) == chosen.count(POEM) == 2


@pytest.mark.parametrize(("old", "new", "other"), [(STORY, NEWER_STORY, NEWS), (NEWS, NEWER_NEWS, STORY)])
def test_two_versions_of_a_model_share_what_one_had(old, new, other):
    """While calls drain on the old version, the other model keeps its half."""
    spent = spend(Turns(), {old: 0.001, new: 0.001, other: 0.001}, 0.4)
    assert abs(spent[other] - 0.2) <= 0.002
    assert abs(spent[old] - 0.1) <= 0.002
    assert abs(spent[new] - 0.1) <= 0.002


def test_a_version_that_is_gone_leaves_its_model_the_share():
    turns = Turns()
    for _ in range(10):
        turns.charge(turns.choose([STORY, NEWER_STORY, POEM]), 1.0)
    turns.forget(STORY)
    chosen = []
    for _ in range(4):
        chosen.append(turns.choose([NEWER_STORY, POEM]))
        turns.charge(chosen[-1], 1.0)
    assert chosen.count(NEWER_STORY) == chosen.count(POEM) == 2


def test_histograms_count_a_value_in_the_bucket_that_bounds_it_from_above():
    statistics = Statistics()
    statistics.record(STORY, num_sequences=2, num_tokens=17, budget_tokens=100, seconds=0.002, device_s=0.001)
    statistics.record(STORY, num_sequences=1000, num_tokens=16, budget_tokens=100, seconds=0.0021, device_s=0.001)
    found = statistics.snapshot(STORY, Gauges(num_running=3))
    assert found.batch_sequences_buckets[SEQUENCE_BUCKETS.index(2)] == 1
    assert found.batch_sequences_buckets[-1] == 1
    assert found.batch_tokens_buckets[TOKEN_BUCKETS.index(32)] == 1
    assert found.batch_tokens_buckets[TOKEN_BUCKETS.index(16)] == 1
    assert found.inference_s_buckets[SECOND_BUCKETS.index(0.002)] == 1
    assert found.inference_s_buckets[SECOND_BUCKETS.index(0.004)] == 1
    assert len(found.inference_s_buckets) == len(SECOND_BUCKETS) + 1
    assert (found.num_steps, found.num_sequences, found.num_tokens, found.budget_tokens) == (2, 1002, 33, 200)
    assert found.num_running == 3
    assert found.busy_s == pytest.approx(0.0041), "time inside forwards"
    assert statistics.busy_s == pytest.approx(0.002), "of the whole device's time"


def test_a_version_that_is_gone_keeps_no_counters_but_the_engine_its_busy_time():
    statistics = Statistics()
    statistics.record(STORY, num_sequences=1, num_tokens=1, budget_tokens=1, seconds=2.0, device_s=2.0)
    statistics.forget(STORY)
    assert statistics.snapshot(STORY, Gauges()).num_steps == 0
    assert statistics.busy_s == 2.0
