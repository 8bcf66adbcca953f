"""`python -m benchmarks loadgen`: load a running server and report what it did."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report, workload
from benchmarks.calls import OK, Outcome, ShoalCaller
from benchmarks.loadgen import ClosedLoop, OpenLoop, Recording, Window, record
from benchmarks.summary import Slo, summarise

NUM_ITEMS = 2000  # drawn once, then sent over and over


@dataclass(slots=True)
class _Seen:
    """What the progress bar counts."""

    good: int = 0
    bad: int = 0
    tokens: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one call."""
        self.good += outcome.code == OK
        self.bad += outcome.code != OK
        self.tokens += outcome.num_output_tokens

    def line(self) -> str:
        """Such as "1,204 calls, 2 errors"."""
        return f"{self.good:,} calls, {self.bad:,} errors" + (f", {self.tokens:,} tokens" if self.tokens else "")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; the exit code is 1 when no call succeeded."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=options.json == "-")
    items: list[workload.Item]
    if options.method == "classify":
        items = list(workload.classify_items(NUM_ITEMS, seed=options.seed, texts_per_call=options.texts_per_call))
    else:
        items = list(workload.generate_items(NUM_ITEMS, seed=options.seed))
    loop = (
        ClosedLoop(in_flight=options.in_flight)
        if options.rate is None
        else OpenLoop(rate=options.rate, seed=options.seed)
    )
    recording = uvloop.run(_run(options, items, loop, console))
    summary = summarise(recording, _slo(options))
    title = f"{options.method} {options.model} at {options.address}, {_describe(loop)}"
    report.show(console, title, summary)
    if options.json is not None:
        text = report.to_json(
            summary, address=options.address, model=options.model, loop=_describe(loop), seed=options.seed
        )
        sys.stdout.write(text + "\n") if options.json == "-" else Path(options.json).write_text(text + "\n")
    if options.plot is not None:
        report.plot(options.plot, title, recording)
    return 0 if any(outcome.code == OK for outcome in recording.outcomes) else 1


async def _run(
    options: argparse.Namespace, items: list[workload.Item], loop: ClosedLoop | OpenLoop, console: Console
) -> Recording:
    window = Window(warmup_s=options.warmup, duration_s=options.duration)
    seen = _Seen()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    async with ShoalCaller(
        options.address, options.model, timeout_s=options.timeout, num_channels=options.channels
    ) as caller:
        with Progress(*columns, console=console) as progress:
            ticking = asyncio.create_task(_tick(progress, window, seen))
            try:
                return await record(caller, items, loop, window, seen.add)
            finally:
                ticking.cancel()


async def _tick(progress: Progress, window: Window, seen: _Seen) -> None:
    total_s = window.warmup_s + window.duration_s
    task = progress.add_task("warm-up", total=total_s)
    step_s = 0.25
    elapsed_s = 0.0
    while True:
        await asyncio.sleep(step_s)
        elapsed_s += step_s
        description = "warm-up" if elapsed_s < window.warmup_s else seen.line()
        progress.update(task, completed=min(elapsed_s, total_s), description=description)


def _describe(loop: ClosedLoop | OpenLoop) -> str:
    if isinstance(loop, ClosedLoop):
        return f"closed loop, {loop.in_flight} in flight"
    return f"open loop, {loop.rate:g} calls/s"


def _slo(options: argparse.Namespace) -> Slo | None:
    bounds = (options.slo_latency_ms, options.slo_first_token_ms, options.slo_inter_token_ms)
    if all(bound is None for bound in bounds):
        return None
    latency_s, first_s, inter_s = (None if bound is None else bound / 1e3 for bound in bounds)
    return Slo(latency_s=latency_s, first_token_s=first_s, mean_inter_token_s=inter_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks loadgen", description=__doc__)
    parser.add_argument("method", choices=("classify", "generate"))
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port (default %(default)s)")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--in-flight", type=int, default=16, help="closed loop: calls in flight (default %(default)s)")
    loop.add_argument("--rate", type=float, help="open loop: Poisson arrivals, calls a second")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds measured (default %(default)s)")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before that (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=60.0, help="deadline of a call, s (default %(default)s)")
    parser.add_argument("--channels", type=int, default=4, help="connections (default %(default)s)")
    parser.add_argument("--texts-per-call", type=int, default=1, help="inputs of a call (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, texts and arrivals (default %(default)s)")
    parser.add_argument("--slo-latency-ms", type=float, help="a good call takes no longer in all")
    parser.add_argument("--slo-first-token-ms", type=float, help="nor longer to its first token")
    parser.add_argument("--slo-inter-token-ms", type=float, help="nor, in the mean, between its tokens")
    parser.add_argument("--json", metavar="FILE", help="write the figures; - for standard output")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG plot")
    return parser
