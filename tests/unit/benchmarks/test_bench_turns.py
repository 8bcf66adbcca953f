"""What a turn leaves behind, with a caller and a process of the test's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from benchmarks import processes
from benchmarks.calls import Arrival, Outcome
from benchmarks.processes import CpuTimes
from benchmarks.records import Load, Measure, Turn
from benchmarks.turns import disturbed, put_under
from benchmarks.workload import ClassifyItem, Item


class Instant:
    """Answers after a moment; every fifth call fails."""

    def __init__(self) -> None:
        self._num_calls = 0

    async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
        self._num_calls += 1
        await asyncio.sleep(0.005)
        code = "OK" if self._num_calls % 5 else "UNAVAILABLE"
        return Outcome(intended_s=intended_s, ended_s=time.perf_counter(), code=code, num_inputs=1)


async def test_measure_holds_rate_latencies_errors_and_processor_time() -> None:
    load = Load(in_flight=2, warmup_s=0.0, duration_s=0.3)
    measure = await put_under(Instant(), os.getpid(), [ClassifyItem(texts=("x",))], load, seed=0)
    assert measure.load == load
    assert measure.num_calls > 10
    assert measure.errors["UNAVAILABLE"] > 0
    assert measure.p50_s is not None
    assert measure.p50_s >= 0.005
    assert measure.cpu_s is not None
    assert measure.client_cpu_s is not None
    assert measure.input_tokens_per_s == 0


def test_turn_beside_a_busy_neighbour_counts_as_disturbed() -> None:
    calm = Measure(load=Load(in_flight=1), rate=1.0, num_calls=1, foreign_share=0.01)
    busy = Measure(load=Load(in_flight=1), rate=1.0, num_calls=1, foreign_share=processes.MAX_FOREIGN_SHARE + 0.01)
    assert not disturbed(Turn(part="closed", dtype="float32", round=0, name="x", measures=(calm,)))
    assert disturbed(Turn(part="closed", dtype="float32", round=0, name="x", measures=(calm, busy)))


def test_processor_time_of_a_server_is_that_of_its_whole_family_and_what_it_leaves_is_ended() -> None:
    """A parent that does nothing, with a child that computes."""
    child = (
        "import time\nend = time.process_time() + 0.3\n"
        "while time.process_time() < end: pass\nprint(1, flush=True)\ninput()"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"1\n"
        assert processes.cpu_s(started.pid) >= 0.25
        family = processes.tree(started.pid)
        assert len(family) == 2
        started.kill()
        processes.end(family[1:])
        assert not family[1].is_running()
    assert processes.tree(started.pid) == []


def test_what_neither_server_nor_client_used_is_foreign() -> None:
    """Of 2 s on all cores, 1 s was used: 0.5 s by the server, 0.1 s by the client, the rest by others."""
    before = CpuTimes(at_s=10.0, machine_s=100.0, server_s=20.0, client_s=5.0)
    after = CpuTimes(at_s=12.0, machine_s=101.0, server_s=20.5, client_s=5.1)
    num_cores = len(os.sched_getaffinity(0))
    assert after.since(before).foreign_share == pytest.approx(0.4 / (2.0 * num_cores))
