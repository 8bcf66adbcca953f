"""The outcome of a side-by-side run, as a table and as JSON. Pure: no servers, no clock."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.cases import Case
from benchmarks.limits import Ceilings, Work
from benchmarks.summary import Summary

SHOAL = "Shoal"
NAIVE = "naive"
COLUMNS = ("case", "Shoal", "naive", "ratio", "target", "of the machine's limit", "failed calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One case over all rounds."""

    case: Case
    shoal: tuple[Summary, ...]
    naive: tuple[Summary, ...]
    compute_dtype: str  # what Shoal says that it computes in
    work: Work

    @property
    def ratio(self) -> float:
        """Median rate of Shoal over the naive server's; NaN when the latter finished nothing."""
        below = self.rate(self.naive)
        return self.rate(self.shoal) / below if below else math.nan

    def rate(self, rounds: tuple[Summary, ...]) -> float:
        """Median rate."""
        return statistics.median(self.case.rate(summary) for summary in rounds)

    @property
    def num_errors(self) -> int:
        """Calls that failed, on either side."""
        return sum(sum(summary.errors.values()) for summary in (*self.shoal, *self.naive))

    def verdict(self) -> str:
        """Whether the target was met."""
        if self.case.target is None:
            return "-"
        met = not math.isnan(self.ratio) and self.ratio >= self.case.target
        return f"{self.case.target:g}x: {'met' if met else 'missed'}"

    def share_of_limit(self, ceilings: Ceilings) -> float:
        """Shoal's rate over what the machine's matrix products or memory would allow."""
        native = self.compute_dtype == "bfloat16"
        gflops = ceilings.bfloat16_gflops if native else ceilings.float32_gflops
        work = self.work
        if native:
            work = dataclasses.replace(work, weight_bytes=work.weight_bytes // 2)
        if self.case.method == "classify":
            tokens_per_s = statistics.median(summary.input_tokens_per_s for summary in self.shoal)
            return tokens_per_s / work.compute_bound_tokens_per_s(gflops)
        return self.rate(self.shoal) / work.decode_bound_tokens_per_s(ceilings, gflops, self.case.in_flight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A whole run."""

    cases: tuple[CaseResult, ...]
    ceilings: Ceilings
    num_rounds: int
    measured_at: float  # Unix time


def table(results: Results) -> Table:
    """For a terminal."""
    shown = Table(*COLUMNS, title="Shoal against the naive server")
    for row in rows(results):
        shown.add_row(*row)
    return shown


def rows(results: Results) -> list[tuple[str, ...]]:
    """The cells under `COLUMNS`."""
    return [
        (
            found.case.name,
            f"{found.rate(found.shoal):,.1f} {found.case.unit}",
            f"{found.rate(found.naive):,.1f} {found.case.unit}",
            f"{found.ratio:.2f}x",
            found.verdict(),
            f"{found.share_of_limit(results.ceilings):.0%}",
            str(found.num_errors),
        )
        for found in results.cases
    ]


def as_tree(results: Results) -> dict[str, Any]:
    """For JSON: everything that was measured."""
    return {
        "measured_at": results.measured_at,
        "machine": machine(),
        "ceilings": dataclasses.asdict(results.ceilings),
        "cases": [
            {
                "name": found.case.name,
                "ratio": found.ratio,
                "target": found.case.target,
                "compute_dtype": found.compute_dtype,
                SHOAL: [dataclasses.asdict(summary) for summary in found.shoal],
                NAIVE: [dataclasses.asdict(summary) for summary in found.naive],
            }
            for found in results.cases
        ],
    }


def machine() -> str:
    """Processor, cores and the libraries that matter."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "grpcio"))
    cores = len(os.sched_getaffinity(0))
    return (
        f"{models[0] if models else platform.machine()}, {cores} cores; Python {platform.python_version()}, {packages}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
