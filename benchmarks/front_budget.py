"""`python -m benchmarks front-budget`: what one request costs in front of the engine, hop by hop.

A real server with a classifier that costs next to nothing, loaded over loopback by a process that does as little as
gRPC for Python allows. Both share the machine's cores, so beside rates the CPU time of each process is told. Writes
benchmarks/out/front.json and, with default settings, benchmarks/FRONT.md.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import uvloop
from rich.console import Console
from shoal.aio import AsyncClient
from shoal_server.config import LogConfig
from shoal_server.log import setup_logging

from benchmarks import folders, front_hops, front_load, front_report, processes
from benchmarks.front_load import Measured, Shape
from benchmarks.front_report import Budget, FrontCost, HopColumn
from benchmarks.servers import Changes, ShoalServer, wait_live

PAGE_PATH = Path(__file__).resolve().parent / "FRONT.md"
SHAPES = (
    Shape(streamed=False, texts=1, ids=True, in_flight=1),
    Shape(streamed=False, texts=1, ids=True, in_flight=32),
    Shape(streamed=False, texts=1, ids=False, in_flight=32),
    Shape(streamed=False, texts=32, ids=True, in_flight=4),
    Shape(streamed=False, texts=32, ids=False, in_flight=4),
    Shape(streamed=True, texts=1, ids=True, in_flight=128),
    Shape(streamed=True, texts=32, ids=True, in_flight=4),
    Shape(streamed=True, texts=32, ids=False, in_flight=4),
)
FLOOR_SHAPES = SHAPES[:2]
TWO_FRONTS_SHAPES = (SHAPES[1], SHAPES[3])
HOP_COLUMNS = ((1, True), (1, False), (32, True), (32, False))


def main(arguments: list[str] | None = None) -> int:
    """Run and report; the exit code is 1 when a call failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks front-budget", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured of each round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the median is told (default %(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    console.print("Model ...")
    repository = folders.ensure_tiny()
    console.print("Hops ...")
    hops = _hops(repository / folders.TINY / "1")
    budget = Budget(
        costs=tuple(_costs(repository, 1, SHAPES, options, console)),
        two_fronts=tuple(_costs(repository, 2, TWO_FRONTS_SHAPES, options, console)),
        floor=tuple(_floor(options, console)),
        hops=hops,
        measured_at=time.time(),
    )
    console.print(front_report.table(budget))
    (folders.OUT / "front.json").write_text(json.dumps(dataclasses.asdict(budget), indent=2) + "\n")
    if options == parser.parse_args([]):
        PAGE_PATH.write_text(front_report.page(budget, num_rounds=options.rounds))
    return 1 if any(cost.num_errors for cost in (*budget.costs, *budget.two_fronts)) else 0


def _hops(version: Path) -> tuple[HopColumn, ...]:
    """Measured in this process, whose log lines go nowhere but are made."""
    with (folders.OUT / "front-hops.log").open("w") as log:
        stderr, sys.stderr = sys.stderr, log
        try:
            setup_logging(LogConfig(), "front-0")
            return tuple(
                HopColumn(
                    num_texts=num_texts,
                    ids=ids,
                    hops=tuple(uvloop.run(front_hops.measure(version, folders.TINY, num_texts=num_texts, ids=ids))),
                )
                for num_texts, ids in HOP_COLUMNS
            )
        finally:
            sys.stderr = stderr


def _costs(
    repository: Path, num_fronts: int, shapes: tuple[Shape, ...], options: argparse.Namespace, console: Console
) -> list[FrontCost]:
    changes: Changes = {"log": {"level": "INFO"}, "listen": {"num_fronts": num_fronts}}
    folder = folders.OUT / "servers" / f"shoal-tiny-{num_fronts}"
    with ShoalServer(folder, repository, "float32", changes=changes) as server:
        asyncio.run(_wait(server.address))
        fronts, engines = processes.of_role(server.pid, "front"), processes.of_role(server.pid, "engine")
        found = []
        for shape in shapes:
            console.print(f"{num_fronts} front(s), {shape.name} ...")
            rounds = [_load(server.address, shape, [*fronts, *engines], options.seconds) for _ in range(options.rounds)]
            found.append(front_report.cost(shape, _median(rounds), num_fronts=len(fronts)))
    return found


def _floor(options: argparse.Namespace, console: Console) -> list[FrontCost]:
    found = []
    for shape in FLOOR_SHAPES:
        console.print(f"a server that does nothing, {shape.name} ...")
        command = [sys.executable, "-m", "benchmarks.front_floor", "--texts", str(shape.texts)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = f"127.0.0.1:{int(server.stdout.readline())}"
                rounds = [_load(address, shape, [server.pid], options.seconds) for _ in range(options.rounds)]
            finally:
                server.kill()
        found.append(front_report.cost(shape, _median(rounds), num_fronts=1))
    return found


def _load(address: str, shape: Shape, pids: list[int], seconds: float) -> Measured:
    return front_load.measure(address, folders.TINY, shape, pids=pids, seconds=seconds)


def _median(rounds: list[Measured]) -> Measured:
    """The round with the middle rate, so that its figures belong together."""
    rates = sorted(rounds, key=lambda measured: measured.num_texts / measured.seconds)
    return rates[len(rates) // 2]


async def _wait(address: str) -> None:
    async with AsyncClient(address) as client:
        await wait_live(client, folders.TINY, 1)


if __name__ == "__main__":
    raise SystemExit(main())
