"""One turn: start a server, check its answers, put it under each load, stop it. A failure becomes a record."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import uvloop

from benchmarks import answers, news, processes
from benchmarks.calls import Caller, CallFailed, Classifying
from benchmarks.loadgen import ClosedLoop, Window, record
from benchmarks.peers.contender import Contender
from benchmarks.records import Checked, Load, Measure, Turn
from benchmarks.servers import Server, ServerStartError
from benchmarks.summary import Percentiles, Summary, summarise
from benchmarks.workload import Item, generate_items

NUM_PROMPTS = 400
WARM_IN_FLIGHT = 32
SETTLE_S = 0.5  # cancelled calls leave the server


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Which turn of a run."""

    part: str
    dtype: str
    round: int
    name: str
    loads: tuple[Load, ...]
    warm_up_s: float = 0.0  # under a closed loop before anything is measured


def take(slot: Slot, contender: Contender, folder: Path) -> Turn:
    """Start the server in `folder`, measure, stop it."""
    try:
        with contender.server(folder) as server:
            return uvloop.run(_measure(slot, contender, server))
    except (ServerStartError, CallFailed) as error:
        return failed(slot, str(error))


def disturbed(turn: Turn) -> bool:
    """Whether something else ran on the machine meanwhile: two threads that wait for each other then stand still."""
    return any(measure.foreign_share > processes.MAX_FOREIGN_SHARE for measure in turn.measures)


def failed(slot: Slot, reason: str) -> Turn:
    """A turn that came to nothing."""
    return Turn(part=slot.part, dtype=slot.dtype, round=slot.round, name=slot.name, failure=" ".join(reason.split()))


async def _measure(slot: Slot, contender: Contender, server: Server) -> Turn:
    told = await contender.wait_ready(server.address)
    async with contender.caller(server.address) as caller:
        checked = None if slot.part == "generate" else await _check(caller, slot.dtype)
        items = _items(slot)
        if slot.warm_up_s:
            await record(
                caller, items, ClosedLoop(in_flight=WARM_IN_FLIGHT), Window(warmup_s=slot.warm_up_s, duration_s=0)
            )
        done = [await put_under(caller, server.pid, items, load, slot.round) for load in slot.loads]
    return Turn(
        part=slot.part,
        dtype=slot.dtype,
        round=slot.round,
        name=slot.name,
        described=", ".join(filter(None, (contender.describe(), told))),
        measures=tuple(done),
        checked=checked,
        measured_at=time.time(),
    )


async def _check(caller: Classifying, dtype: str) -> Checked:
    workload = news.ensure()
    found = await answers.check(caller, dtype, workload, answers.ensure_reference(workload))
    return Checked(agreement=found.agreement, max_difference=found.max_difference, passed=found.passed)


def _items(slot: Slot) -> Sequence[Item]:
    if slot.part == "generate":
        return generate_items(NUM_PROMPTS, seed=slot.round)
    return news.ensure().items(slot.round)


async def put_under(caller: Caller, pid: int, items: Sequence[Item], load: Load, seed: int) -> Measure:
    """One load on a server whose processes are those below `pid`."""
    ended = 0

    def count(_: object) -> None:
        nonlocal ended
        ended += 1

    before = processes.CpuTimes.read(pid)
    recording = await record(caller, items, load.loop(seed), load.window(), count)
    used = processes.CpuTimes.read(pid).since(before)
    await asyncio.sleep(SETTLE_S)
    return msgspec.structs.replace(
        _as_measure(load, summarise(recording)),
        cpu_s=used.server_s / ended if ended else None,
        client_cpu_s=used.client_s / ended if ended else None,
        foreign_share=used.foreign_share,
    )


def _as_measure(load: Load, summary: Summary) -> Measure:
    latency = _figures(summary.latency)
    inter_token = _figures(summary.inter_token)
    return Measure(
        load=load,
        rate=summary.output_tokens_per_s or summary.inputs_per_s,
        num_calls=summary.num_calls,
        errors=summary.errors,
        p50_s=latency[0],
        p95_s=latency[1],
        p99_s=latency[2],
        input_tokens_per_s=summary.input_tokens_per_s,
        first_token_p50_s=_figures(summary.first_token)[0],
        inter_token_p50_s=inter_token[0],
        inter_token_p99_s=inter_token[2],
    )


def _figures(found: Percentiles) -> list[float | None]:
    """p50, p95, p99; None for NaN, which JSON does not know."""
    return [None if math.isnan(value) else value for value in (found.p50_s, found.p95_s, found.p99_s)]
