"""Writes RESULTS.md from the outcome of a side-by-side run."""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.results import COLUMNS, NAIVE, SHOAL, CaseResult, Results, machine, rows
from benchmarks.summary import Summary

LATENCY_COLUMNS = ("case", "server", "p50", "p95", "p99", "first token p50", "inter-token p50", "inter-token p99")

_PAGE = """\
# Shoal against a naive gRPC server

Measured {date} by `make bench` on:
{machine}.

The naive server is `benchmarks/naive_server.py`: one process, one forward at a time, all cores as threads, no padding,
transformers' own forward and `generate`. Both load the same folders and get the same calls over gRPC on loopback; each
figure is the median of {rounds} interleaved rounds.

{rates}

Classify: MiniLM-L6 with five labels, one text a call, 64 in flight, lengths lognormal with median 27 and at most 256
tokens. Generate: SmolLM2-135M, greedy, 16 streams in flight, prompts of 16 to 128 and outputs of 8 to 128 tokens.

## Latencies
{latencies}

Milliseconds, medians of the rounds. A closed loop keeps so many calls in flight at any speed, so a server that is twice
as fast shows half the latency. Calls still waiting when a round ended are in no percentile, which flatters the slower
server.

## The machine's limit
Measured in the same run with {threads} threads: matrix products {float32:,.0f} GFLOP/s in float32 and {bfloat16:,.1f}
in bfloat16, reading memory {memory:,.1f} GB/s. Classify is set against the products of its linear layers alone;
Generate against the longer of those and of reading all weights once for each step of 16 sequences. Attention,
tokenizing, gRPC and the load generator itself, which shares the cores, come out of the rest.
"""

_EMULATED = """
## bfloat16 on this machine
This processor has no bfloat16 instructions. Shoal computes in {compute_dtype} and says so in
GetModel; the naive server does what torch does with a bfloat16 model here, which is slow. A user who knew that would
run the naive server in float32, so the bfloat16 ratios above say less than they seem to. Shoal in bfloat16 against the
naive server in float32:

{ratios}
"""


def page(results: Results) -> str:
    """The whole page."""
    limits = results.ceilings
    text = _PAGE.format(
        date=dt.datetime.fromtimestamp(results.measured_at, tz=dt.UTC).date().isoformat(),
        machine=machine(),
        rounds=results.num_rounds,
        rates=_table(COLUMNS, rows(results)),
        latencies=_table(LATENCY_COLUMNS, _latency_rows(results)),
        threads=limits.num_threads,
        float32=limits.float32_gflops,
        bfloat16=limits.bfloat16_gflops,
        memory=limits.read_gb_per_s,
    )
    return text + _emulated_text(results)


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latency_rows(results: Results) -> list[list[str]]:
    return [
        [
            found.case.name,
            name,
            _median_ms(rounds, lambda s: s.latency.p50_s),
            _median_ms(rounds, lambda s: s.latency.p95_s),
            _median_ms(rounds, lambda s: s.latency.p99_s),
            _median_ms(rounds, lambda s: s.first_token.p50_s),
            _median_ms(rounds, lambda s: s.inter_token.p50_s),
            _median_ms(rounds, lambda s: s.inter_token.p99_s),
        ]
        for found in results.cases
        for name, rounds in ((SHOAL, found.shoal), (NAIVE, found.naive))
    ]


def _median_ms(rounds: tuple[Summary, ...], figure: Callable[[Summary], float]) -> str:
    values = [value for value in map(figure, rounds) if not math.isnan(value)]
    return f"{statistics.median(values) * 1e3:,.1f}" if values else "-"


def _emulated_text(results: Results) -> str:
    """What bfloat16 means on a machine without it, and what that does to its ratios; empty where it is native."""
    emulated = [r for r in results.cases if r.case.dtype == "bfloat16" and r.compute_dtype != "bfloat16"]
    if not emulated:
        return ""
    ratios = [(found.case.name, _against_float32(results, found)) for found in emulated]
    lines = [f"- {name}: {ratio:.2f}x" for name, ratio in ratios if ratio]
    return _EMULATED.format(compute_dtype=emulated[0].compute_dtype, ratios="\n".join(lines))


def _against_float32(results: Results, found: CaseResult) -> float:
    """Ratio to the naive server's float32 run of the same method; 0 when there was none."""
    others = [r for r in results.cases if r.case.method == found.case.method and r.case.dtype == "float32"]
    below = others[0].rate(others[0].naive) if others else 0.0
    return found.rate(found.shoal) / below if below else 0.0
