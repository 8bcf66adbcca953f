"""Tables of a side-by-side run, as cells. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.bare_turn import BARE
from benchmarks.contenders import SHOAL
from benchmarks.plan import CLOSED, GENERATE, OPEN
from benchmarks.records import Measure, Turn, measures, median, ratio

Figure = Callable[[Measure], float | None]
MUST_THROUGHPUT = 2.5
AIM_THROUGHPUT = 3.5
MUST_P99 = 0.7
AIM_P99 = 0.4
MUST_SINGLE = 1.1
AIM_SINGLE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOf:
    """Lines of cells under a head."""

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As Markdown."""
        lines = (self.head, ("---",) * len(self.head), *self.lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A figure that was asked for, with what it must and should be."""

    what: str
    value: float  # NaN when it was not measured
    must: float
    aim: float
    at_least: bool  # or at most

    def line(self) -> tuple[str, ...]:
        """Cells."""
        sign = ">=" if self.at_least else "<="
        return self.what, figure(self.value), f"{sign} {self.must:g}", f"{sign} {self.aim:g}", self.word()

    def word(self) -> str:
        """How it stands."""
        if math.isnan(self.value):
            return "not measured"
        reached = self.value.__ge__ if self.at_least else self.value.__le__
        return "aim met" if reached(self.aim) else "met" if reached(self.must) else "missed"


def figure(value: float, digits: int = 2) -> str:
    """A dash for NaN."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def milliseconds(value_s: float) -> str:
    """Such as "12.3"; a dash for NaN."""
    return figure(value_s * 1e3, 1)


def of(turns: Sequence[Turn], part: str, dtype: str, name: str, label: str, wanted: Figure) -> float:
    """Median over the rounds of one figure of one server under one load."""
    return median(wanted(measure) for measure in measures(turns, part, dtype, name, label))


def names(turns: Sequence[Turn], part: str, dtype: str) -> list[str]:
    """Everybody in a part, Shoal first, then from the fastest to the slowest; those that failed last."""
    found = {turn.name for turn in turns if (turn.part, turn.dtype) == (part, dtype)}

    def place(name: str) -> tuple[bool, float, str]:
        rates = [median(m.rate for m in measures(turns, part, dtype, name, label)) for label in labels(turns, part)]
        return name != SHOAL, -max((rate for rate in rates if not math.isnan(rate)), default=0.0), name

    return sorted(found, key=place)


def labels(turns: Sequence[Turn], part: str) -> list[str]:
    """Loads of a part, in the order in which they were put on."""
    found = [m.load.label for turn in turns if turn.part == part for m in turn.measures]
    return list(dict.fromkeys(sorted(found, key=lambda label: (len(label), label))))


def best_other(turns: Sequence[Turn], part: str, dtype: str, label: str) -> str:
    """The one with the highest rate beside Shoal and the bare forward; empty when there is none."""
    rates = {
        name: of(turns, part, dtype, name, label, lambda m: m.rate)
        for name in names(turns, part, dtype)
        if name not in {SHOAL, BARE}
    }
    rates = {name: rate for name, rate in rates.items() if not math.isnan(rate)}
    return max(rates, key=lambda name: rates[name], default="")


def closed_table(turns: Sequence[Turn], dtype: str) -> TableOf:
    """Rates, ratios, CPU and answers of the closed loops."""
    loads = labels(turns, CLOSED)
    lines = []
    for name in names(turns, CLOSED, dtype):
        cells = [name]
        for label in loads:
            mine, theirs = (of(turns, CLOSED, dtype, who, label, lambda m: m.rate) for who in (SHOAL, name))
            cells += [figure(theirs, 1), figure(ratio(mine, theirs)) if name != SHOAL else ""]
        cells += [
            milliseconds(of(turns, CLOSED, dtype, name, loads[0], lambda m: m.p50_s)) if loads else "-",
            milliseconds(of(turns, CLOSED, dtype, name, "32 in flight", lambda m: m.cpu_s)),
            milliseconds(of(turns, CLOSED, dtype, name, "32 in flight", lambda m: m.client_cpu_s)),
            _answers(turns, dtype, name),
            _failures(turns, CLOSED, dtype, name),
        ]
        lines.append(tuple(cells))
    rates = [cell for label in loads for cell in (f"texts/s, {label}", "Shoal is")]
    return TableOf(
        head=(
            "",
            *rates,
            "p50 ms, 1 in flight",
            "CPU ms a request",
            "of the client",
            "answers: same label, largest difference",
            "failed",
        ),
        lines=tuple(lines),
    )


def open_table(turns: Sequence[Turn], dtype: str) -> TableOf:
    """Latencies at equal load."""
    lines = []
    for name in names(turns, OPEN, dtype):
        mine, theirs = (of(turns, OPEN, dtype, who, "open loop", lambda m: m.p99_s) for who in (SHOAL, name))
        rate = of(turns, OPEN, dtype, name, "open loop", lambda m: m.load.rate)
        figures: list[Figure] = [lambda m: m.p50_s, lambda m: m.p95_s, lambda m: m.p99_s, lambda m: m.cpu_s]
        cells = [milliseconds(of(turns, OPEN, dtype, name, "open loop", wanted)) for wanted in figures]
        own = figure(ratio(mine, theirs)) if name != SHOAL else ""
        lines.append((name, figure(rate, 1), *cells, own, _failures(turns, OPEN, dtype, name)))
    head = ("", "calls/s offered", "p50 ms", "p95 ms", "p99 ms", "CPU ms a request", "Shoal's p99 is", "failed")
    return TableOf(head=head, lines=tuple(lines))


def generate_table(turns: Sequence[Turn], dtype: str) -> TableOf:
    """Tokens and waits of streams."""
    label = next(iter(labels(turns, GENERATE)), "")
    lines = []
    for name in names(turns, GENERATE, dtype):
        mine, theirs = (of(turns, GENERATE, dtype, who, label, lambda m: m.rate) for who in (SHOAL, name))
        figures: list[Figure] = [
            lambda m: m.first_token_p50_s,
            lambda m: m.inter_token_p50_s,
            lambda m: m.inter_token_p99_s,
        ]
        cells = [milliseconds(of(turns, GENERATE, dtype, name, label, wanted)) for wanted in figures]
        own = figure(ratio(mine, theirs)) if name != SHOAL else ""
        lines.append((name, figure(theirs, 1), own, *cells, _failures(turns, GENERATE, dtype, name)))
    head = ("", "tokens/s", "Shoal is", "first token p50 ms", "inter-token p50 ms", "inter-token p99 ms", "failed")
    return TableOf(head=head, lines=tuple(lines))


def settings_table(turns: Sequence[Turn], dtype: str) -> TableOf:
    """How each was set."""
    lines = []
    for name in names(turns, CLOSED, dtype):
        described = next((t.described for t in turns if (t.dtype, t.name) == (dtype, name) and t.described), "-")
        lines.append((name, described))
    return TableOf(head=("", f"settings in {dtype}"), lines=tuple(lines))


def verdicts(turns: Sequence[Turn], dtype: str) -> list[Verdict]:
    """What was asked for of the service, in one number type."""
    found = []
    for label in ("32 in flight", "64 in flight"):
        other = best_other(turns, CLOSED, dtype, label)
        value = ratio(*(of(turns, CLOSED, dtype, who, label, lambda m: m.rate) for who in (SHOAL, other)))
        found.append(
            Verdict(
                what=f"throughput, {dtype}, {label}, to {other or 'the best peer'}",
                value=value,
                must=MUST_THROUGHPUT,
                aim=AIM_THROUGHPUT,
                at_least=True,
            )
        )
    other = best_other(turns, CLOSED, dtype, "64 in flight")
    value = ratio(*(of(turns, OPEN, dtype, who, "open loop", lambda m: m.p99_s) for who in (SHOAL, other)))
    what = f"p99 at half of {other or 'the best peer'}'s capacity, {dtype}, to it"
    found.append(Verdict(what=what, value=value, must=MUST_P99, aim=AIM_P99, at_least=False))
    value = ratio(*(of(turns, CLOSED, dtype, who, "1 in flight", lambda m: m.p50_s) for who in (SHOAL, BARE)))
    what = f"one request at a time, {dtype}: p50 to a bare transformers forward"
    found.append(Verdict(what=what, value=value, must=MUST_SINGLE, aim=AIM_SINGLE, at_least=False))
    return found


def _answers(turns: Sequence[Turn], dtype: str, name: str) -> str:
    """The worst of all turns."""
    checks = [t.checked for t in turns if (t.dtype, t.name) == (dtype, name) and t.checked is not None]
    if not checks:
        return "-"
    wrong = "" if all(check.passed for check in checks) else ", WRONG"
    return f"{min(c.agreement for c in checks):.1%}, {max(c.max_difference for c in checks):.0e}{wrong}"


def _failures(turns: Sequence[Turn], part: str, dtype: str, name: str) -> str:
    """Calls that failed, and why a turn did."""
    mine = [turn for turn in turns if (turn.part, turn.dtype, turn.name) == (part, dtype, name)]
    reasons = [turn.failure[:160] for turn in mine if turn.failure]
    count = sum(sum(measure.errors.values()) for turn in mine for measure in turn.measures)
    return reasons[0].replace("|", "/") if reasons else str(count)
