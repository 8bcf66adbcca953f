"""The first lines of child processes."""

from __future__ import annotations

import os
import sys
import threading

import pytest
from shoal_server.process import patient_threads

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies of Linux")


def _policy_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


@linux_only
def test_only_threads_started_within_are_patient() -> None:
    with patient_threads():
        inside = _policy_of_a_new_thread()
    assert inside == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert _policy_of_a_new_thread() == os.SCHED_OTHER


@linux_only
def test_the_starting_thread_is_itself_again_after_an_error() -> None:
    with pytest.raises(RuntimeError), patient_threads():
        raise RuntimeError
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
