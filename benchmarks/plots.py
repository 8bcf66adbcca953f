"""Plots of a side-by-side run, as small PNG files below benchmarks/plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.contenders import SHOAL
from benchmarks.plan import CLOSED, DTYPES, OPEN
from benchmarks.records import Turn

_OURS = "#1f77b4"
_THEIRS = "#b0b0b0"


def write(turns: Sequence[Turn], folder: Path) -> None:
    """One of each part and number type that was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    for dtype in DTYPES:
        parts = {turn.part for turn in turns if turn.dtype == dtype}
        if CLOSED in parts:
            _closed(turns, dtype, folder)
        if OPEN in parts:
            _open(turns, dtype, folder)


def _closed(turns: Sequence[Turn], dtype: str, folder: Path) -> None:
    bars = {}
    for label in tables.labels(turns, CLOSED)[1:]:
        bars[label] = {
            name: tables.of(turns, CLOSED, dtype, name, label, lambda m: m.rate)
            for name in tables.names(turns, CLOSED, dtype)
        }
    _draw(bars, "texts/s", f"Classify, {dtype}", folder / f"closed-{dtype}.png")


def _open(turns: Sequence[Turn], dtype: str, folder: Path) -> None:
    names = tables.names(turns, OPEN, dtype)
    bars = {
        "p50": {n: tables.of(turns, OPEN, dtype, n, "open loop", lambda m: m.p50_s) * 1e3 for n in names},
        "p99": {n: tables.of(turns, OPEN, dtype, n, "open loop", lambda m: m.p99_s) * 1e3 for n in names},
    }
    _draw(bars, "ms", f"Classify, {dtype}, equal Poisson load", folder / f"open-{dtype}.png")


def _draw(bars: dict[str, dict[str, float]], unit: str, title: str, path: Path) -> None:
    """One panel for each key, one bar for each server that has a figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, max(1, len(bars)), figsize=(9, 3.2), layout="constrained", squeeze=False)
    figure.suptitle(title)
    for axes, (label, values) in zip(panels[0], bars.items(), strict=False):
        _panel(axes, label, unit, {name: value for name, value in values.items() if not math.isnan(value)})
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _panel(axes: Any, label: str, unit: str, values: dict[str, float]) -> None:
    names = list(reversed(values))
    drawn = axes.barh(names, [values[name] for name in names], color=[_OURS if n == SHOAL else _THEIRS for n in names])
    axes.bar_label(drawn, fmt="%.0f", padding=2, fontsize=8)
    axes.set(xlabel=unit, title=label)
    axes.margins(x=0.15)
    axes.grid(visible=True, axis="x", alpha=0.3)
