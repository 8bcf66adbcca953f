"""Lanes compute side by side, alone with all cores, and tell when they are done."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest
import torch
from shoal_server.engine.lanes import Lanes


def test_two_forwards_run_at_the_same_time():
    lanes, both_run = Lanes(num_lanes=2, num_threads=2, ended=lambda: None), threading.Barrier(2, timeout=10)
    futures = [lanes.submit(both_run.wait, is_alone=False) for _ in range(2)]
    assert sorted(future.result(timeout=10) for future in futures) == [0, 1]


def test_a_forward_that_is_alone_gets_all_cores_and_others_their_share():
    lanes = Lanes(num_lanes=1, num_threads=2, ended=lambda: None)
    found = [lanes.submit(torch.get_num_threads, is_alone=alone).result(timeout=10) for alone in (True, False, True)]
    assert found == [2, 2, 2], "one lane has all cores anyway"
    lanes = Lanes(num_lanes=2, num_threads=2, ended=lambda: None)
    found = [lanes.submit(torch.get_num_threads, is_alone=alone).result(timeout=10) for alone in (True, False)]
    assert found == [2, 1]


def test_the_number_of_threads_of_other_threads_stays():
    before = torch.get_num_threads()
    Lanes(num_lanes=1, num_threads=before + 1, ended=lambda: None).submit(lambda: None, is_alone=True).result(
        timeout=10
    )
    assert torch.get_num_threads() == before


def test_the_end_is_told_when_the_result_is_there_even_if_it_is_an_error():
    ended: SimpleQueue[None] = SimpleQueue()
    lanes = Lanes(num_lanes=1, num_threads=1, ended=lambda: ended.put(None))
    fine, wrong = lanes.submit(lambda: 7, is_alone=True), lanes.submit(lambda: 1 // 0, is_alone=False)
    for _ in range(2):
        ended.get(timeout=10)
    assert fine.result(timeout=0) == 7
    with pytest.raises(ZeroDivisionError):
        wrong.result(timeout=0)


def test_what_is_computed_here_needs_no_lane_and_leaves_the_number_of_threads():
    ended: SimpleQueue[None] = SimpleQueue()
    lanes, before = Lanes(num_lanes=2, num_threads=2, ended=lambda: ended.put(None)), torch.get_num_threads()
    found = lanes.compute_here(lambda: (threading.get_ident(), torch.get_num_threads()), is_alone=True)
    assert found.result(timeout=0) == (threading.get_ident(), 2)
    assert torch.get_num_threads() == before
    assert ended.empty()
    with pytest.raises(ZeroDivisionError):
        lanes.compute_here(lambda: 1 // 0, is_alone=False).result(timeout=0)
