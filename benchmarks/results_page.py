"""Writes RESULTS.md and its plots from the records of a side-by-side run, and prints the verdicts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import news, plots, tables
from benchmarks.engines import rounds
from benchmarks.engines import table as engines_table
from benchmarks.limits import Ceilings
from benchmarks.machine import machine
from benchmarks.plan import CLOSED, DTYPES, GENERATE, OPEN
from benchmarks.records import Turn
from benchmarks.tables import TableOf, Verdict

FOLDER = Path(__file__).resolve().parent  # of the committed page
PAGE_NAME = "RESULTS.md"
LIMITS_NAME = "limits.json"
VERDICTS_HEAD = ("figure", "reached", "must", "aim", "")

_PAGE = """\
# Shoal side by side

Measured {date} by `make bench` or `make bench-all` on:
{machine}.

{verdicts}

MiniLM-L6 with five labels; {count:,} pieces of real news, lengths lognormal with median 27 and at most 256 tokens
(mean {mean:.1f}; digest {digest}). Every server gets the same texts from the same load generator on loopback, one a
call: Shoal and the naive server over gRPC, the others over HTTP and JSON with keep-alive connections, MLServer and
PyTriton in the V2 inference protocol. One server at a time is started, checked, measured and stopped; rounds are
interleaved, figures are medians of {rounds} rounds. The load generator shares the cores. Each peer pads its batches to
the longest text, runs transformers in the number type of the table and is set as its last sweep found best
(`benchmarks/peers/*/best.json`); none sorts texts by length, since none of the tools does by itself. "Shoal is" gives
Shoal's figure over the row's. Latency in an open loop counts from when a call ought to have been sent.

{parts}
## The machine's limit
{limits}
"""

_LIMITS = """\
Measured in the same run with {threads} threads, the best of large squares and of the encoder's own shapes: matrix
products {gflops}; reading memory {memory:.1f} GB/s.
"""

_BFLOAT16 = """
This processor has no bfloat16 instructions: Shoal computes in float32 with bfloat16 weights and says so in GetModel,
the others do what torch does with a bfloat16 model here, which is slow. A user who knew that would run them in float32.
"""


def write(turns: Sequence[Turn], folder: Path, target: Path, console: Console) -> None:
    """The page and its plots into `target`, from what lies in `folder` besides; the verdicts on the terminal."""
    found = [verdict for dtype in DTYPES for verdict in tables.verdicts(turns, dtype)]
    limits = read_limits(folder)
    engine_rounds = rounds.read(folder)
    found += engines_table.verdicts(engine_rounds)
    _show(found, console)
    plots.write(turns, target / "plots")
    (target / PAGE_NAME).write_text(page(turns, found, limits, engines_table.section(engine_rounds)))
    console.print(f"Written to {target / PAGE_NAME}")


def write_limits(folder: Path, limits: Ceilings) -> None:
    """Keep them beside the turns."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LIMITS_NAME).write_bytes(msgspec.json.encode(limits))


def read_limits(folder: Path) -> Ceilings | None:
    """What the machine could do; None when it was not measured."""
    path = folder / LIMITS_NAME
    return msgspec.json.decode(path.read_bytes(), type=Ceilings) if path.exists() else None


def page(turns: Sequence[Turn], verdicts: Sequence[Verdict], limits: Ceilings | None, engines: str) -> str:
    """The whole text."""
    workload = news.ensure()
    return _PAGE.format(
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        machine=machine(),
        verdicts=TableOf(head=VERDICTS_HEAD, lines=tuple(verdict.line() for verdict in verdicts)).markdown(),
        count=len(workload.texts),
        mean=workload.mean_tokens,
        digest=workload.digest,
        rounds=1 + max((turn.round for turn in turns), default=0),
        parts="\n".join([*_services(turns), engines, *_generate(turns)]),
        limits=limits_text(limits),
    )


def _services(turns: Sequence[Turn]) -> list[str]:
    sections = []
    for dtype in DTYPES:
        parts = {turn.part for turn in turns if turn.dtype == dtype}
        if CLOSED in parts:
            sections.append(
                f"## Classify in {dtype}, so many in flight\n{tables.closed_table(turns, dtype).markdown()}\n"
            )
            sections.append(f"![Requests a second](plots/closed-{dtype}.png)\n")
        if OPEN in parts:
            sections.append(f"## Classify in {dtype}, Poisson arrivals\n{tables.open_table(turns, dtype).markdown()}\n")
            sections.append(f"![Latencies](plots/open-{dtype}.png)\n")
        if CLOSED in parts:
            sections.append(f"{tables.settings_table(turns, dtype).markdown()}\n")
    return sections


def _generate(turns: Sequence[Turn]) -> list[str]:
    found = [dtype for dtype in DTYPES if any((t.part, t.dtype) == (GENERATE, dtype) for t in turns)]
    return [
        f"## Generate in {dtype}\nSmolLM2-135M, greedy, 16 streams in flight, prompts of 16 to 128 and outputs of 8 to "
        f"128 tokens.\n\n{tables.generate_table(turns, dtype).markdown()}\n"
        for dtype in found
    ]


def limits_text(limits: Ceilings | None) -> str:
    """What the machine could do, for people."""
    if limits is None:
        return "Not measured in this run."
    gflops = ", ".join(f"{value:,.0f} GFLOP/s in {dtype}" for dtype, value in limits.gflops.items())
    text = _LIMITS.format(threads=limits.num_threads, gflops=gflops, memory=limits.read_gb_per_s)
    return text + (_BFLOAT16 if limits.gflops["bfloat16"] < limits.gflops["float32"] else "")


def _show(verdicts: Sequence[Verdict], console: Console) -> None:
    table = Table(*VERDICTS_HEAD, title="Shoal side by side")
    for verdict in verdicts:
        table.add_row(*verdict.line())
    console.print(table)
