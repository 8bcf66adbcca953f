"""How threads of a server ask the system for cores."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
from shoal_server import scheduling
from shoal_server.scheduling import be_prompt, patient_threads, slice_ns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scheduling of Linux")
slices_only = pytest.mark.skipif(sys.platform == "linux" and not slice_ns(), reason="slices of Linux 6.12 and later")

Found = TypeVar("Found")


def _in_a_new_thread(find: Callable[[], Found]) -> Found:
    found: list[Found] = []
    thread = threading.Thread(target=lambda: found.append(find()))
    thread.start()
    thread.join()
    return found[0]


def _state() -> tuple[int, int]:
    return os.sched_getscheduler(0), slice_ns()


@slices_only
def test_patient_threads_have_longer_slices_than_the_prompt_one_that_starts_them() -> None:
    def start() -> tuple[int, int, int]:
        be_prompt()
        with patient_threads():
            inside = _in_a_new_thread(slice_ns)
        return inside, slice_ns(), _in_a_new_thread(slice_ns)

    before = _state()
    inside, own, after = _in_a_new_thread(start)
    assert own == after < inside
    assert _state() == before


def test_where_there_are_no_slices_patient_threads_interrupt_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "_CALLS", {})
    with patient_threads():
        assert _in_a_new_thread(lambda: os.sched_getscheduler(0)) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert _in_a_new_thread(lambda: os.sched_getscheduler(0)) == os.SCHED_OTHER


@pytest.mark.parametrize("has_slices", [True, False])
def test_the_starting_thread_is_itself_again_after_an_error(monkeypatch: pytest.MonkeyPatch, has_slices: bool) -> None:
    before = _state()
    with monkeypatch.context() as patch:
        if not has_slices:
            patch.setattr(scheduling, "_CALLS", {})
        with pytest.raises(RuntimeError), patient_threads():
            raise RuntimeError
    assert _state() == before


def test_a_thread_that_runs_under_another_policy_is_left_alone() -> None:
    def change() -> tuple[tuple[int, int], tuple[int, int]]:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        before = _state()
        be_prompt()
        with patient_threads():
            inside = _in_a_new_thread(_state)
        assert _state() == before
        return before, inside

    before, inside = _in_a_new_thread(change)
    assert inside == before
