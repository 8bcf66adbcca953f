"""What the engines came to, as a section of the page and as verdicts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.engines.rounds import NUM_TEXTS, EngineResult, EngineResults
from benchmarks.records import median, ratio
from benchmarks.tables import TableOf, Verdict, figure

MUST_RATIO, AIM_RATIO = 1.0, 1.3
MUST_SHARE, AIM_SHARE = 0.55, 0.75
OURS = "Shoal"

_SECTION = """\
## Engines alone
Forwards of the same {count:,} texts in one process each, tokenized beforehand: Shoal as its batcher plans rows, in the
order of arrival without padding; the others in batches sorted by length over all texts, which no server that answers
as texts arrive could do. Lanes (forwards side by side), threads and batch sizes are the best of those tried. The share
is of the matrix products of the number type, measured just before, that linear layers and attention of the real lengths
reach.

{table}
"""


def section(found: EngineResults | None) -> str:
    """Of the page; empty when nothing was measured."""
    return "" if found is None else _SECTION.format(count=NUM_TEXTS, table=table(found).markdown())


def table(found: EngineResults) -> TableOf:
    """One line for each engine."""
    fastest = best(found.engines)
    return TableOf(
        head=("", "texts/s", "Shoal's best is", "share of matrix products", "lanes x threads", "batch", "answers"),
        lines=tuple(_line(found, result, fastest) for result in found.engines),
    )


def best(engines: Sequence[EngineResult]) -> EngineResult | None:
    """Shoal's fastest number type whose answers are right."""
    ours = [e for e in engines if e.name.startswith(OURS) and e.texts_per_s and e.checked and e.checked.passed]
    return max(ours, key=lambda result: median(result.texts_per_s), default=None)


def share(found: EngineResults, result: EngineResult) -> float:
    """Of the machine's matrix products in its number type; NaN when it did not run."""
    return ratio(median(result.flops_per_s), found.ceilings.flops(result.dtype))


def verdicts(found: EngineResults | None) -> list[Verdict]:
    """What was asked for."""
    if found is None:
        return []
    ours = best(found.engines)
    mine = median(ours.texts_per_s) if ours else math.nan
    verdicts = [
        Verdict(
            what=f"engine alone, {ours.name if ours else OURS} to {result.name}",
            value=ratio(mine, median(result.texts_per_s)),
            must=MUST_RATIO,
            aim=AIM_RATIO,
            at_least=True,
        )
        for result in found.engines
        if not result.name.startswith(OURS)
    ]
    shares = [
        Verdict(
            what=f"packed forward, {result.dtype}, share of matrix products",
            value=share(found, result),
            must=MUST_SHARE,
            aim=AIM_SHARE,
            at_least=True,
        )
        for result in found.engines
        if result.name.startswith(OURS) and result.texts_per_s
    ]
    return verdicts + shares


def _line(found: EngineResults, result: EngineResult, fastest: EngineResult | None) -> tuple[str, ...]:
    if result.failure or result.setup is None:
        return (result.name, result.failure.replace("|", "/") or "not measured", *["-"] * 5)
    mine = median(fastest.texts_per_s) if fastest else math.nan
    checked = result.checked
    told = "-" if checked is None else f"{checked.agreement:.1%}, {checked.max_difference:.0e}"
    return (
        result.name,
        figure(median(result.texts_per_s), 0),
        figure(ratio(mine, median(result.texts_per_s))),
        f"{share(found, result):.0%}",
        f"{result.setup.lanes} x {result.setup.threads}",
        f"{result.setup.batch:,} {'tokens' if result.name.startswith(OURS) else 'texts'}",
        told + ("" if checked is None or checked.passed else ", WRONG"),
    )
