"""The loader thread rests while the compute loop has work, and only then."""

from __future__ import annotations

import sys
import threading
import time

from shoal_server.engine.pacer import Pacer


def work(cpu_s: float) -> None:
    """Many short calls until so much of the thread's processor time has gone."""
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        sum(range(100))


def rests_in(cpu_s: float, *, busy: bool) -> list[float]:
    """Rests taken in so much work, noted instead of slept."""
    rests: list[float] = []
    with Pacer(lambda: busy, sleep=rests.append):
        work(cpu_s)
    return rests


def test_it_rests_twice_as_long_as_it_works_while_the_loop_is_busy():
    """0.1 s of work in pieces of 1 ms or a little more: at least 30 rests, together about 0.2 s."""
    rests = rests_in(0.1, busy=True)
    assert len(rests) >= 30
    assert 0.15 <= sum(rests) <= 0.21


def test_it_never_rests_while_the_loop_is_idle():
    assert rests_in(0.05, busy=False) == []


def test_a_very_long_call_is_not_paid_for_in_full(monkeypatch):
    monkeypatch.setattr("shoal_server.engine.pacer._MAX_REST_S", 0.05)
    rests: list[float] = []
    with Pacer(lambda: True, sleep=rests.append):
        sum(range(10_000_000))
        time.perf_counter()
    assert max(rests) == 0.05


def test_waiting_is_no_work():
    rests: list[float] = []
    with Pacer(lambda: True, sleep=rests.append):
        for _ in range(5):
            time.sleep(0.005)
    assert len(rests) <= 1


def test_other_threads_and_the_time_after_are_not_paced():
    rests: list[float] = []
    with Pacer(lambda: True, sleep=rests.append):
        other = threading.Thread(target=work, args=(0.05,))
        other.start()
        other.join()
        during = len(rests)
    work(0.02)
    assert during <= 1
    assert len(rests) == during
    assert sys.getprofile() is None


def test_an_error_ends_the_pacing():
    try:
        with Pacer(lambda: True, sleep=lambda _: None):
            raise ValueError
    except ValueError:
        pass
    assert sys.getprofile() is None
