"""What a recording comes to: rates, percentiles, goodput, errors by code. Pure arithmetic, no clock, no gRPC."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.calls import OK, Outcome, inter_token_s
from benchmarks.loadgen import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Of a sample in seconds; NaN when it is empty."""

    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    mean_s: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a call must keep to count as good; a bound that is None does not apply."""

    latency_s: float | None = None  # of the whole call
    first_token_s: float | None = None
    mean_inter_token_s: float | None = None  # over the tokens of one call

    def met_by(self, outcome: Outcome) -> bool:
        """Whether the call succeeded within every bound."""
        if outcome.code != OK:
            return False
        gaps = outcome.inter_token_s
        mean_gap_s = sum(gaps) / len(gaps) if gaps else 0.0
        pairs = (
            (outcome.latency_s, self.latency_s),
            (outcome.first_token_s if outcome.first_token_s is not None else 0.0, self.first_token_s),
            (mean_gap_s, self.mean_inter_token_s),
        )
        return all(bound is None or value <= bound for value, bound in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run. Rates are for each second of the window."""

    duration_s: float
    num_calls: int  # that ended, well or not
    num_unfinished: int
    errors: dict[str, int]  # by gRPC code, OK left out
    calls_per_s: float  # that ended OK
    inputs_per_s: float  # of Classify calls that ended OK
    input_tokens_per_s: float  # of calls that ended OK, special tokens included
    output_tokens_per_s: float  # every token that arrived within the window
    goodput_per_s: float | None  # calls within the SLO; None without one
    latency: Percentiles  # of calls that ended OK, from their intended time of sending
    first_token: Percentiles
    inter_token: Percentiles  # within the window, those of unfinished calls included
    versions: dict[int, int] = field(default_factory=dict)  # calls that ended OK by the version that answered


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value with at least `share` (0 to 1) of `ordered` at or below it; NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentiles(sample_s: Sequence[float]) -> Percentiles:
    """Percentiles of a sample."""
    ordered = sorted(sample_s)
    return Percentiles(
        p50_s=percentile(ordered, 0.50),
        p95_s=percentile(ordered, 0.95),
        p99_s=percentile(ordered, 0.99),
        max_s=percentile(ordered, 1.0),
        mean_s=sum(ordered) / len(ordered) if ordered else math.nan,
        count=len(ordered),
    )


def summarise(recording: Recording, slo: Slo | None = None) -> Summary:
    """What the recording comes to."""
    good = [outcome for outcome in recording.outcomes if outcome.code == OK]
    completed = [outcome for outcome in recording.completed if outcome.code == OK]
    duration_s = recording.duration_s
    return Summary(
        duration_s=duration_s,
        num_calls=len(recording.outcomes),
        num_unfinished=recording.num_unfinished,
        errors=dict(Counter(outcome.code for outcome in recording.outcomes if outcome.code != OK)),
        calls_per_s=len(completed) / duration_s,
        inputs_per_s=sum(outcome.num_inputs for outcome in completed) / duration_s,
        input_tokens_per_s=sum(outcome.num_input_tokens for outcome in completed) / duration_s,
        output_tokens_per_s=sum(a.num_tokens for stream in recording.streams for a in stream) / duration_s,
        goodput_per_s=None if slo is None else sum(slo.met_by(outcome) for outcome in good) / duration_s,
        latency=percentiles([outcome.latency_s for outcome in good]),
        first_token=percentiles([o.first_token_s for o in good if o.first_token_s is not None]),
        inter_token=percentiles([gap_s for stream in recording.streams for gap_s in inter_token_s(stream)]),
        versions=dict(Counter(outcome.version for outcome in good)),
    )
