"""What hot swaps cost those who are being served: latencies while versions are swapped against those while none is.

One Shoal server under steady load of both kinds in open loops, by default somewhat more than half of what the engine
can do on two cores (the share of time it was busy stands in the table). Phases without swaps stand around those in
which new versions of the classifier, then of the generator, appear in the repository one after the other. No call may
fail, and every Classify reply must be wholly what one version says. Writes benchmarks/out/swaps.json and, with default
settings, benchmarks/SWAPS.md.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from shoal.aio import AsyncClient

from benchmarks import folders, swap_report, workload
from benchmarks.calls import ShoalCaller
from benchmarks.loadgen import OpenLoop, Recording, Window, record
from benchmarks.servers import ShoalServer, wait_live
from benchmarks.staging import Staging
from benchmarks.swap_report import PhaseResult

TEXTS_PER_CALL = 2  # several, so that a reply could be mixed
CALL_TIMEOUT_S = 120.0
PAGE_PATH = Path(__file__).resolve().parent / "SWAPS.md"
WARMUP = Window(warmup_s=0.0, duration_s=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent in every phase."""

    classify_rate: float  # calls a second
    generate_rate: float  # streams a second that begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of time in which one model is swapped so often, or none is."""

    name: str
    duration_s: float
    model: str = ""
    num_swaps: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Run and report; the exit code is 1 when a call failed or a reply was mixed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks swaps", description=__doc__)
    parser.add_argument("--rate", type=float, default=5.0, help="Classify calls a second (default %(default)s)")
    parser.add_argument("--streams", type=float, default=0.1, help="new streams a second (default %(default)s)")
    parser.add_argument("--phase", type=float, default=80.0, help="seconds of a phase (default %(default)s)")
    parser.add_argument("--swaps", type=int, default=10, help="swaps of the classifier (default %(default)s)")
    parser.add_argument("--generator-swaps", type=int, default=4, help="of the generator (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    still = Phase(name="no swaps", duration_s=options.phase)
    phases = (
        still,
        Phase(name="classifier swaps", duration_s=options.phase, model=folders.CLASSIFIER, num_swaps=options.swaps),
        still,
        Phase(
            name="generator swaps",
            duration_s=options.phase,
            model=folders.GENERATOR,
            num_swaps=options.generator_swaps,
        ),
        still,
    )
    console = Console()
    load = Load(classify_rate=options.rate, generate_rate=options.streams)
    found = uvloop.run(_run(phases, load, options.dtype, console))
    comparisons = swap_report.compare(found)
    console.print(swap_report.table(comparisons))
    if options == parser.parse_args([]):
        settings = f"""{options.dtype}, phases of {options.phase:g} s, of which three without swaps; {options.rate:g} \
Classify calls a second of {TEXTS_PER_CALL} texts each and {options.streams:g} new streams a second"""
        PAGE_PATH.write_text(swap_report.page(comparisons, settings))
    (folders.OUT / "swaps.json").write_text(json.dumps([dataclasses.asdict(c) for c in comparisons], indent=2) + "\n")
    return 1 if any(comparison.num_failed or comparison.num_mixed for comparison in comparisons) else 0


async def _run(phases: Sequence[Phase], load: Load, dtype: str, console: Console) -> list[PhaseResult]:
    staging = Staging(folders.OUT / "swaps")
    console.print("Models ...")
    counts = dict.fromkeys((folders.CLASSIFIER, folders.GENERATOR), 1)
    for phase in phases:
        if phase.num_swaps:
            counts[phase.model] += phase.num_swaps
    staging.prepare(counts)
    console.print("Server ...")
    server = ShoalServer(folders.OUT / "servers" / "shoal-swaps", staging.repository, dtype)
    with server:
        async with AsyncClient(server.address) as client:
            for model in counts:
                await wait_live(client, model, 1)
            await _load(server.address, load, WARMUP)
            results = []
            for phase in phases:
                console.print(f"{phase.name}, {phase.duration_s:g} s ...")
                results.append(await _run_phase(phase, server, load, staging, client))
    return results


async def _run_phase(
    phase: Phase, server: ShoalServer, load: Load, staging: Staging, client: AsyncClient
) -> PhaseResult:
    busy_s, began_s = await asyncio.to_thread(server.busy_s), time.monotonic()
    swapping = asyncio.create_task(_swap(phase, staging, client))
    classify, generate = await _load(server.address, load, Window(warmup_s=0.0, duration_s=phase.duration_s))
    busy_share = (await asyncio.to_thread(server.busy_s) - busy_s) / (time.monotonic() - began_s)
    num_swaps = await swapping
    return PhaseResult(
        name=phase.name, num_swaps=num_swaps, busy_share=busy_share, classify=classify, generate=generate
    )


async def _load(address: str, load: Load, window: Window) -> tuple[Recording, Recording]:
    classify_items = workload.classify_items(500, texts_per_call=TEXTS_PER_CALL)
    generate_items = workload.generate_items(200)
    async with (
        ShoalCaller(address, folders.CLASSIFIER, timeout_s=CALL_TIMEOUT_S) as classifying,
        ShoalCaller(address, folders.GENERATOR, timeout_s=CALL_TIMEOUT_S) as generating,
    ):
        return await asyncio.gather(
            record(classifying, classify_items, OpenLoop(rate=load.classify_rate), window),
            record(generating, generate_items, OpenLoop(rate=load.generate_rate), window),
        )


async def _swap(phase: Phase, staging: Staging, client: AsyncClient) -> int:
    """Release one version after the other, evenly over the phase but never before the last one is live; how many."""
    if not phase.num_swaps:
        return 0
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    newest = (await client.get_model(phase.model)).default_version
    for number in range(phase.num_swaps):
        due_s = began_s + phase.duration_s * number / phase.num_swaps
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        if loop.time() > began_s + phase.duration_s:
            return number
        newest += 1
        staging.release(phase.model, newest)
        await wait_live(client, phase.model, newest)
    return phase.num_swaps


if __name__ == "__main__":
    raise SystemExit(main())
