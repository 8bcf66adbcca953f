"""Shows summaries: a table for people, JSON for scripts, a PNG plot of latencies."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.loadgen import Recording
from benchmarks.summary import Percentiles, Summary


def milliseconds(value_s: float) -> str:
    """Such as "12.3"; a dash for NaN."""
    return "-" if math.isnan(value_s) else f"{value_s * 1e3:,.1f}"


def show(console: Console, title: str, summary: Summary) -> None:
    """Print one run as tables."""
    rates = Table(title=title, show_header=False)
    rates.add_row("window", f"{summary.duration_s:.1f} s")
    rates.add_row("calls", f"{summary.num_calls:,} ended, {summary.num_unfinished:,} cut off by the end")
    rates.add_row("throughput", f"{summary.calls_per_s:,.1f} calls/s")
    if summary.inputs_per_s:
        rates.add_row("", f"{summary.inputs_per_s:,.1f} inputs/s")
    rates.add_row("", f"{summary.input_tokens_per_s:,.0f} input tokens/s")
    if summary.output_tokens_per_s:
        rates.add_row("", f"{summary.output_tokens_per_s:,.1f} output tokens/s")
    if summary.goodput_per_s is not None:
        rates.add_row("goodput", f"{summary.goodput_per_s:,.1f} calls/s within the SLO")
    rates.add_row("errors", ", ".join(f"{code} {count:,}" for code, count in sorted(summary.errors.items())) or "none")
    rates.add_row("versions", ", ".join(f"{number}: {count:,}" for number, count in sorted(summary.versions.items())))
    console.print(rates)
    console.print(_latency_table(summary))


def _latency_table(summary: Summary) -> Table:
    table = Table("ms", "p50", "p95", "p99", "max", "mean", "count")
    for name, found in (
        ("latency", summary.latency),
        ("first token", summary.first_token),
        ("inter-token", summary.inter_token),
    ):
        if found.count:
            table.add_row(name, *_cells(found))
    return table


def _cells(found: Percentiles) -> list[str]:
    values = (found.p50_s, found.p95_s, found.p99_s, found.max_s, found.mean_s)
    return [*map(milliseconds, values), f"{found.count:,}"]


def to_json(summary: Summary, **about: Any) -> str:
    """The summary with `about` (address, model, loop ...) beside it; NaN becomes null."""
    return json.dumps({**about, "summary": _without_nan(dataclasses.asdict(summary))}, indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(below) for key, below in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def plot(path: Path, title: str, recording: Recording) -> None:
    """Draw when calls ended against how long they took, and how the latencies are distributed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (over_time, distribution) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title)
    for name, points in _series(recording).items():
        if points:
            over_time.scatter([x for x, _ in points], [y * 1e3 for _, y in points], s=6, alpha=0.5, label=name)
            ordered = sorted(y * 1e3 for _, y in points)
            shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
            distribution.step(ordered, shares, where="post", label=name)
    over_time.set(xlabel="time in the window, s", ylabel="ms", ylim=(0, None))
    distribution.set(xlabel="ms", ylabel="share of calls at or below", xscale="log", ylim=(0, 1.01))
    for axes in (over_time, distribution):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _series(recording: Recording) -> dict[str, Sequence[tuple[float, float]]]:
    good = [outcome for outcome in recording.outcomes if outcome.code == "OK"]
    began_s = recording.began_s
    return {
        "latency": [(o.ended_s - began_s, o.latency_s) for o in good],
        "first token": [(o.arrivals[0].at_s - began_s, o.first_token_s or 0.0) for o in good if o.arrivals],
        "errors": [(o.ended_s - began_s, o.latency_s) for o in recording.outcomes if o.code != "OK"],
    }
