"""Writes RESULTS.md and its plots from the records of a side-by-side run, and prints the verdicts."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from benchmarks import ceilings, folders, news, plots, tables
from benchmarks.contenders import SHOAL
from benchmarks.engines import rounds
from benchmarks.engines import table as engines_table
from benchmarks.limits import Ceilings
from benchmarks.machine import machine
from benchmarks.plan import CLOSED, DTYPES, GENERATE, OPEN
from benchmarks.records import Turn, ratio
from benchmarks.tables import TableOf, Verdict

FOLDER = Path(__file__).resolve().parent  # of the committed page
PAGE_NAME = "RESULTS.md"
LIMITS_NAME = "limits.json"
NUM_STREAMS = 16
_WHAT = {CLOSED: "Classify, texts", GENERATE: "Generate, tokens"}
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
Shoal's figure over the row's. Latency in an open loop counts from when a call ought to have been sent. Processes that
have no part in this took at most {foreign:.1%} of the processor in any one measurement.

{parts}
## The machine's limit
{limits}
"""

_LIMITS = """\
Measured in the same run with {threads} threads, the best of large squares and of the encoder's own shapes: matrix
products {gflops}; reading memory {memory:.1f} GB/s.
"""

_SHARES = """\
Classify is set against linear layers and attention of the real lengths; Generate against the longer of the products
of a step and of reading all weights once for it. Everything else (tokenizing, gRPC, the load generator, which shares
the cores) comes out of the rest.

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
        date=_date(turns),
        machine=machine(),
        verdicts=TableOf(head=VERDICTS_HEAD, lines=tuple(verdict.line() for verdict in verdicts)).markdown(),
        count=len(workload.texts),
        mean=workload.mean_tokens,
        digest=workload.digest,
        rounds=1 + max((turn.round for turn in turns), default=0),
        foreign=max((m.foreign_share for turn in turns for m in turn.measures), default=0.0),
        parts="\n".join([*_services(turns), engines, *_generate(turns)]),
        limits=limits_text(limits) + ("" if limits is None else shares_text(turns, limits)),
    )


def _date(turns: Sequence[Turn]) -> str:
    """Of the newest turn."""
    return (
        dt.datetime.fromtimestamp(max((turn.measured_at for turn in turns), default=0.0), tz=dt.UTC).date().isoformat()
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


def shares_text(turns: Sequence[Turn], limits: Ceilings) -> str:
    """What Shoal reached of it, everything included; Shoal computes in the number type of the table where it can."""
    lengths = news.ensure().num_tokens
    encoder = ceilings.encoder_work(AutoConfig.from_pretrained(folders.ensure_classifier()))
    version = folders.ensure_repository(folders.GENERATOR) / folders.GENERATOR / "1"
    decoder = ceilings.decoder_work(AutoConfig.from_pretrained(version))
    lines = []
    for dtype in DTYPES:
        computed = dtype if limits.gflops["bfloat16"] > limits.gflops["float32"] else "float32"
        possible = {
            CLOSED: encoder.texts_per_s(limits, computed, lengths),
            GENERATE: decoder.tokens_per_s(limits, computed, NUM_STREAMS),
        }
        for part, most in possible.items():
            label = f"{NUM_STREAMS if part == GENERATE else 64} in flight"
            share = ratio(tables.of(turns, part, dtype, SHOAL, label, lambda m: m.rate), most)
            if not math.isnan(share):
                lines.append(f"| {_WHAT[part]}, {dtype}, {label} | {most:,.0f} | {share:.0%} |")
    head = "| Shoal through gRPC | at most, a second | reached |\n| --- | --- | --- |\n"
    return "\n" + _SHARES + head + "\n".join(lines) + "\n" if lines else ""


def _show(verdicts: Sequence[Verdict], console: Console) -> None:
    table = Table(*VERDICTS_HEAD, title="Shoal side by side")
    for verdict in verdicts:
        table.add_row(*verdict.line())
    console.print(table)
