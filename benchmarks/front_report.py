"""What is said of the front's budget: a table and FRONT.md. Pure: no servers, no clock."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.front_hops import Hop
from benchmarks.front_load import Measured, Shape
from benchmarks.machine import machine

MUST_MS, AIM_MS = 0.7, 0.4  # CPU in front of the engine of a request with one text
MUST_TEXTS, AIM_TEXTS = 8_000, 20_000  # texts/s through one front, many a message, token ids
COLUMNS = (
    "sent as",
    "texts/s",
    "front",
    "engine's IO",
    "in front of the engine",
    "engine's forwards",
    "load",
    "failed",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontCost:
    """What one shape of load cost. CPU microseconds a text, over all threads of a process."""

    shape: Shape
    texts_per_s: float
    front_us: float  # all fronts together
    engine_io_us: float  # the engines' IO threads
    engine_rest_us: float  # planning and forwards
    load_us: float
    num_errors: int

    @property
    def ahead_us(self) -> float:
        """In front of the engine: what gRPC, the front and IPC cost on both sides."""
        return self.front_us + self.engine_io_us


@dataclass(frozen=True, slots=True, kw_only=True)
class HopColumn:
    """The steps of a Classify call of one form."""

    num_texts: int
    ids: bool
    hops: tuple[Hop, ...]

    @property
    def name(self) -> str:
        """Such as "32 texts, token ids"."""
        return f"{self.num_texts} text{'s'[: self.num_texts > 1]}, {'token ids' if self.ids else 'text'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A whole run."""

    costs: tuple[FrontCost, ...]  # one front
    two_fronts: tuple[FrontCost, ...]
    floor: tuple[FrontCost, ...]  # a server that does nothing
    hops: tuple[HopColumn, ...]
    measured_at: float  # Unix time


def cost(shape: Shape, measured: Measured, *, num_fronts: int) -> FrontCost:
    """The first `num_fronts` processes are fronts, the others engines."""
    fronts, engines = measured.processes[:num_fronts], measured.processes[num_fronts:]
    us = 1e6 / max(1, measured.num_texts)
    return FrontCost(
        shape=shape,
        texts_per_s=measured.num_texts / measured.seconds,
        front_us=us * sum(cpu.all_s for cpu in fronts),
        engine_io_us=us * sum(cpu.io_s for cpu in engines),
        engine_rest_us=us * sum(cpu.all_s - cpu.io_s for cpu in engines),
        load_us=us * measured.load.all_s,
        num_errors=measured.num_errors,
    )


def table(budget: Budget) -> Table:
    """For a terminal."""
    shown = Table(*COLUMNS, title="CPU microseconds a text")
    for row in rows(budget.costs):
        shown.add_row(*row)
    return shown


def rows(costs: Sequence[FrontCost]) -> list[tuple[str, ...]]:
    """The cells under `COLUMNS`."""
    return [
        (
            found.shape.name,
            f"{found.texts_per_s:,.0f}",
            f"{found.front_us:,.1f}",
            f"{found.engine_io_us:,.1f}",
            f"{found.ahead_us:,.1f}",
            f"{found.engine_rest_us:,.1f}",
            f"{found.load_us:,.1f}",
            str(found.num_errors),
        )
        for found in costs
    ]


def verdicts(costs: Sequence[FrontCost]) -> list[tuple[str, ...]]:
    """Target, what was measured, and whether it was met."""
    single = [found for found in costs if found.shape.texts == 1 and found.shape.ids and not found.shape.streamed]
    many = [found for found in costs if found.shape.ids and found.shape.texts > 1]
    told: list[tuple[str, ...]] = []
    for found in single:
        ms = found.ahead_us / 1e3
        name = f"CPU in front of the engine, {found.shape.name}"
        told.append(
            (name, f"{ms:.2f} ms", f"<= {MUST_MS} ms: {_met(ms <= MUST_MS)}", f"<= {AIM_MS} ms: {_met(ms <= AIM_MS)}")
        )
    for found in many:
        rate = found.texts_per_s
        must, aim = f">= {MUST_TEXTS:,}: {_met(rate >= MUST_TEXTS)}", f">= {AIM_TEXTS:,}: {_met(rate >= AIM_TEXTS)}"
        told.append((found.shape.name, f"{rate:,.0f} texts/s", must, aim))
    return told


_PAGE = """\
# The front's budget

Measured {date} by `make bench-front` on:
{machine}.

A real server on loopback with a classifier of one layer of 32, lengths lognormal with median 27 and at most 256 tokens.
The load is made by another process, from requests serialised before, and shares the cores. Figures are CPU microseconds
a text of each process, all threads, of the middle one of {rounds} rounds. "Engine's IO" is the engine's IO thread, its
"forwards" everything else; "in front of the engine" is IO thread and front.

{verdicts}

## One front
{costs}

## Two fronts
The load and both fronts share the cores with the engine, so rates need not grow here; what a text costs must not.

{two_fronts}

## What gRPC alone costs
`benchmarks/front_floor.py`: a `grpc.aio` server that answers with bytes made beforehand.

{floor}

## Hop by hop
CPU microseconds a call, each step by itself in one process with nothing else to do. The engine is replaced by one that
answers at once over a real socket; both its sides are in the round trips and in the whole handler, which also holds
the log line and the metrics. gRPC is in none of them.

{hops}
"""


def page(budget: Budget, *, num_rounds: int) -> str:
    """The whole page."""
    return _PAGE.format(
        date=dt.datetime.fromtimestamp(budget.measured_at, tz=dt.UTC).date().isoformat(),
        machine=machine(),
        rounds=num_rounds,
        verdicts=_markdown(("figure", "measured", "must", "aim"), verdicts(budget.costs)),
        costs=_markdown(COLUMNS, rows(budget.costs)),
        two_fronts=_markdown(COLUMNS, rows(budget.two_fronts)),
        floor=_markdown(COLUMNS, rows(budget.floor)),
        hops=_markdown(("step", *(column.name for column in budget.hops)), _hop_rows(budget.hops)),
    )


def _hop_rows(columns: Sequence[HopColumn]) -> list[tuple[str, ...]]:
    return [
        (hops[0].name, *(f"{hop.us:,.1f}" for hop in hops))
        for hops in zip(*(column.hops for column in columns), strict=True)
    ]


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
