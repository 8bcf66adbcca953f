"""Even shares of device time, and the counters that fronts observe."""

from __future__ import annotations

from shoal_server.engine.request import VersionKey
from shoal_server.engine.statistics import Gauges, Statistics
from shoal_server.engine.turns import Turns
from shoal_server.ipc.messages import SECOND_BUCKETS, SEQUENCE_BUCKETS, TOKEN_BUCKETS

STORY, NEWER_STORY, POEM = VersionKey("story", 1), VersionKey("story", 2), VersionKey("poem", 1)


def test_each_source_gets_an_even_share_of_time_not_of_turns():
    """Classify forwards of 6 ms beside decode steps of 1 ms: in 120 ms both have about 60 ms."""
    turns, spent = Turns(), {None: 0.0, STORY: 0.0}
    while sum(spent.values()) < 0.120:
        source = turns.choose([STORY, None])
        seconds = 0.006 if source is None else 0.001
        turns.charge(source, seconds)
        spent[source] += seconds
    assert abs(spent[None] - spent[STORY]) <= 0.006


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


def test_two_versions_of_a_generator_share_what_one_had():
    """While streams drain on the old version, Classify keeps its half."""
    turns, spent = Turns(), {None: 0.0, STORY: 0.0, NEWER_STORY: 0.0}
    for _ in range(400):
        source = turns.choose([STORY, NEWER_STORY, None])
        turns.charge(source, 0.001)
        spent[source] += 0.001
    assert abs(spent[None] - 0.2) <= 0.002
    assert abs(spent[STORY] - 0.1) <= 0.002
    assert abs(spent[NEWER_STORY] - 0.1) <= 0.002


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
    statistics.record(STORY, num_sequences=2, num_tokens=17, budget_tokens=100, seconds=0.002)
    statistics.record(STORY, num_sequences=1000, num_tokens=16, budget_tokens=100, seconds=0.0021)
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
    assert found.busy_s == statistics.busy_s


def test_a_version_that_is_gone_keeps_no_counters_but_the_engine_its_busy_time():
    statistics = Statistics()
    statistics.record(STORY, num_sequences=1, num_tokens=1, budget_tokens=1, seconds=2.0)
    statistics.forget(STORY)
    assert statistics.snapshot(STORY, Gauges()).num_steps == 0
    assert statistics.busy_s == 2.0
