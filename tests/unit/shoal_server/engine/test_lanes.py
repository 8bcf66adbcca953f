"""Lanes compute side by side on one core each, alone on all of them, and tell when they are done."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest
import torch
from shoal_server.engine.lanes import Lanes


def where() -> tuple[str, int]:
    """The kind of thread that computes, and its cores."""
    return threading.current_thread().name.partition("_")[0], torch.get_num_threads()


def test_two_forwards_run_at_the_same_time():
    lanes, both_run = Lanes(num_lanes=2, num_step_threads=1, ended=lambda: None), threading.Barrier(2, timeout=10)
    futures = [lanes.submit(both_run.wait, is_alone=False) for _ in range(2)]
    assert sorted(future.result(timeout=10) for future in futures) == [0, 1]


def test_only_one_thread_ever_computes_on_several_cores():
    lanes = Lanes(num_lanes=3, num_step_threads=2, ended=lambda: None)
    found = [lanes.submit(where, is_alone=alone).result(timeout=10) for alone in (True, False, True)]
    assert found == [("team", 3), ("lane", 1), ("team", 3)]
    assert lanes.step(where) == ("team", 2)
    assert lanes.compute_here(where).result(timeout=0)[1] == 1


def test_one_core_needs_no_team():
    lanes = Lanes(num_lanes=1, num_step_threads=1, ended=lambda: None)
    assert lanes.submit(where, is_alone=True).result(timeout=10) == ("lane", 1)
    assert lanes.step(threading.get_ident) == threading.get_ident()


def test_the_end_is_told_when_the_result_is_there_even_if_it_is_an_error():
    ended: SimpleQueue[None] = SimpleQueue()
    lanes = Lanes(num_lanes=2, num_step_threads=1, ended=lambda: ended.put(None))
    fine, wrong = lanes.submit(lambda: 7, is_alone=True), lanes.submit(lambda: 1 // 0, is_alone=False)
    for _ in range(2):
        ended.get(timeout=10)
    assert fine.result(timeout=0) == 7
    with pytest.raises(ZeroDivisionError):
        wrong.result(timeout=0)


def test_what_is_computed_here_or_is_a_step_tells_no_end_and_raises_what_it_raises():
    ended: SimpleQueue[None] = SimpleQueue()
    lanes = Lanes(num_lanes=2, num_step_threads=2, ended=lambda: ended.put(None))
    assert lanes.compute_here(threading.get_ident).result(timeout=0) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        lanes.compute_here(lambda: 1 // 0).result(timeout=0)
    with pytest.raises(ZeroDivisionError):
        lanes.step(lambda: 1 // 0)
    assert ended.empty()


def test_all_threads_are_there_before_the_first_forward():
    before = set(threading.enumerate())
    Lanes(num_lanes=3, num_step_threads=1, ended=lambda: None)
    assert sorted(t.name.partition("_")[0] for t in set(threading.enumerate()) - before) == ["lane"] * 3 + ["team"]
