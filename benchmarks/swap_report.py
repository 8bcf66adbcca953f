"""What swaps cost, from what the load saw of each phase. No servers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from benchmarks.calls import OK, Outcome, inter_token_s
from benchmarks.loadgen import Recording
from benchmarks.machine import machine
from benchmarks.report import milliseconds
from benchmarks.staging import favourite_label
from benchmarks.summary import Percentiles, percentiles

TARGET = 1.5  # most that a p99 may grow by
_COLUMNS = (
    *("", "swaps", "busy"),
    *("calls", "p50", "p99", "ratio"),
    *("tokens", "p50", "p99", "ratio"),
    *("failed", "mixed"),
)
_PAGE = """\
# What hot swaps cost those who are being served

Measured {date} by `make bench-swaps` on:
{machine}.

One server, MiniLM-L6 with five labels and SmolLM2-135M, {settings},
both in open loops. Latency of calls and between the tokens of streams in milliseconds; ratios of a p99 to that without
swaps, wanted at most {target}. Busy is the share of the time that the engine was inside a forward; mixed are replies
that no single version would give.

{table}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """What the load saw of a phase."""

    name: str
    num_swaps: int
    busy_share: float  # of the time, the engine was inside a forward
    classify: Recording
    generate: Recording

    @property
    def outcomes(self) -> list[Outcome]:
        """Of all calls."""
        return [*self.classify.outcomes, *self.generate.outcomes]

    @property
    def num_failed(self) -> int:
        """Calls that did not end OK."""
        return sum(outcome.code != OK for outcome in self.outcomes)

    @property
    def num_mixed(self) -> int:
        """Classify replies that are not wholly what the version named in them says."""
        good = [outcome for outcome in self.classify.outcomes if outcome.code == OK]
        return sum(outcome.top_labels != {favourite_label(outcome.version)} for outcome in good)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Phases of one name, against those without swaps."""

    name: str
    num_swaps: int
    busy_share: float
    latency: Percentiles  # of Classify calls
    inter_token: Percentiles  # of Generate streams
    latency_ratio: float  # of p99, to that of the phases without swaps
    inter_token_ratio: float
    num_failed: int
    num_mixed: int


def compare(results: Sequence[PhaseResult]) -> list[Comparison]:
    """One line for each name of a phase, in their order."""
    still = [result for result in results if not result.num_swaps]
    latency_s, inter_token_s = _latency(still).p99_s, _inter_token(still).p99_s
    found = []
    for name in dict.fromkeys(result.name for result in results):
        group = [result for result in results if result.name == name]
        latency, inter_token = _latency(group), _inter_token(group)
        found.append(
            Comparison(
                name=name,
                num_swaps=sum(result.num_swaps for result in group),
                busy_share=sum(result.busy_share for result in group) / len(group),
                latency=latency,
                inter_token=inter_token,
                latency_ratio=latency.p99_s / latency_s,
                inter_token_ratio=inter_token.p99_s / inter_token_s,
                num_failed=sum(result.num_failed for result in group),
                num_mixed=sum(result.num_mixed for result in group),
            )
        )
    return found


def table(comparisons: Sequence[Comparison]) -> Table:
    """For a terminal."""
    caption = (
        "Latency of Classify calls and between tokens of streams, ms; "
        f"ratios of p99 to that without swaps, wanted at most {TARGET}"
    )
    shown = Table(*_COLUMNS, title="What hot swaps cost", caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for cells in _cells(comparisons):
        shown.add_row(*cells)
    return shown


def page(comparisons: Sequence[Comparison], settings: str) -> str:
    """The whole of SWAPS.md."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *_cells(comparisons)]
    return _PAGE.format(
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        machine=machine(),
        settings=settings,
        target=TARGET,
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
    )


def _cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    return [
        [
            found.name,
            str(found.num_swaps),
            f"{found.busy_share:.0%}",
            str(found.latency.count),
            milliseconds(found.latency.p50_s),
            milliseconds(found.latency.p99_s),
            f"{found.latency_ratio:.2f}",
            str(found.inter_token.count),
            milliseconds(found.inter_token.p50_s),
            milliseconds(found.inter_token.p99_s),
            f"{found.inter_token_ratio:.2f}",
            str(found.num_failed),
            str(found.num_mixed),
        ]
        for found in comparisons
    ]


def _latency(results: Sequence[PhaseResult]) -> Percentiles:
    return percentiles([o.latency_s for result in results for o in result.classify.outcomes if o.code == OK])


def _inter_token(results: Sequence[PhaseResult]) -> Percentiles:
    streams = [stream for result in results for stream in result.generate.streams]
    return percentiles([gap_s for stream in streams for gap_s in inter_token_s(stream)])
