"""What is said of a GPU: tables, verdicts and GPU.md. Pure: no device, no servers, no clock."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.front_load import Shape
from benchmarks.tables import TableOf, Verdict, figure

MUST_SHARE, AIM_SHARE = 0.5, 0.7  # of the matmul ceiling, BERT-base and BERT-large
MUST_BUSY, AIM_BUSY = 0.8, 0.5  # of the time inside forwards, with two fronts: above, more fronts would gain nothing
MUST_FRONTS, AIM_FRONTS = 1.3, 1.7  # texts/s with two fronts to those with one


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """Packed forwards of one model in rows of one size."""

    model: str
    row_tokens: int
    texts_per_s: float
    flops_per_s: float  # of what the texts need; what fills a bucket up is no work
    captured: bool  # whether forwards may be replayed; large ones never are


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedResult:
    """MiniLM through gRPC."""

    num_fronts: int
    shape: Shape
    texts_per_s: float
    busy_share: float  # of the time that the GPU was inside forwards
    front_cores: float  # CPU seconds a second of all fronts
    engine_cores: float
    load_cores: float  # of the busiest process that makes load
    num_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuResults:
    """A whole run."""

    device: str  # for people
    ceiling_flops: float
    forwards: tuple[ForwardResult, ...]
    served: tuple[ServedResult, ...]
    measured_at: float  # Unix time

    def share(self, found: ForwardResult) -> float:
        """Of the ceiling."""
        return found.flops_per_s / self.ceiling_flops


def forward_table(results: GpuResults) -> TableOf:
    """A line for each model and size of rows, with captured forwards and without."""
    found = {(r.model, r.row_tokens, r.captured): r for r in results.forwards}
    lines = []
    for model, row_tokens in dict.fromkeys((r.model, r.row_tokens) for r in results.forwards):
        pair = [found.get((model, row_tokens, captured)) for captured in (True, False)]
        cells = [cell for one in pair for cell in _forward_cells(results, one)]
        lines.append((model, f"{row_tokens:,}", *cells))
    head = ("", "tokens a row", "texts/s", "of the ceiling", "texts/s without captures", "of the ceiling")
    return TableOf(head=head, lines=tuple(lines))


def _forward_cells(results: GpuResults, found: ForwardResult | None) -> tuple[str, str]:
    return ("-", "-") if found is None else (figure(found.texts_per_s, 0), f"{results.share(found):.1%}")


def served_table(served: Sequence[ServedResult]) -> TableOf:
    """A line for each load."""
    lines = tuple(
        (
            str(found.num_fronts),
            found.shape.name,
            figure(found.texts_per_s, 0),
            f"{found.busy_share:.0%}",
            figure(found.front_cores),
            figure(found.engine_cores),
            figure(found.load_cores),
            str(found.num_errors),
        )
        for found in served
    )
    cores = ("fronts' cores", "engine's cores", "busiest load's cores")
    return TableOf(head=("fronts", "sent as", "texts/s", "GPU in forwards", *cores, "failed"), lines=lines)


def verdicts(results: GpuResults, models: Sequence[str]) -> list[Verdict]:
    """What was asked for: `models` at their share of the ceiling, and MiniLM held back by the fronts."""
    captured = [found for found in results.forwards if found.captured]
    found = [
        Verdict(
            what=f"{model}, packed, captured where that pays: best share of the ceiling",
            value=max((results.share(one) for one in captured if one.model == model), default=math.nan),
            must=MUST_SHARE,
            aim=AIM_SHARE,
            at_least=True,
        )
        for model in models
    ]
    many = {r.num_fronts: r for r in results.served if r.shape.texts > 1}
    one, two = many.get(1), many.get(2)
    found.append(
        Verdict(
            what="MiniLM, two fronts, many texts a call: share of the time that the GPU is inside forwards",
            value=math.nan if two is None else two.busy_share,
            must=MUST_BUSY,
            aim=AIM_BUSY,
            at_least=False,
        )
    )
    is_known = one is not None and two is not None and one.texts_per_s > 0
    found.append(
        Verdict(
            what="MiniLM, many texts a call: texts/s with two fronts to those with one",
            value=two.texts_per_s / one.texts_per_s if is_known and one and two else math.nan,
            must=MUST_FRONTS,
            aim=AIM_FRONTS,
            at_least=True,
        )
    )
    return found


_PAGE = """\
# Classify on a GPU

Measured {date} by `make bench-gpu` on:
{device}.

Random weights in bfloat16, which take as long as others; lengths lognormal with median 27 and at most 256 tokens.

{verdicts}

## Packed forwards
Through `LoadedClassifier` in one process, rows packed before and launched one behind another. The ceiling is
{ceiling} TFLOP/s of bfloat16: the best try over large squares and the models' own products, by CUDA events. What texts
need is counted without padding, embeddings, norms and heads.

{forwards}

## MiniLM through gRPC
A server on loopback; the load is made by {num_loads} processes, from requests serialised before, which share the
processor with it. That the GPU is mostly outside forwards while texts/s grow with fronts shows that fronts are the
limit.

{served}
"""


def page(results: GpuResults, models: Sequence[str], *, num_loads: int) -> str:
    """The whole page."""
    head = ("figure", "measured", "must", "aim", "")
    told = TableOf(head=head, lines=tuple(verdict.line() for verdict in verdicts(results, models)))
    return _PAGE.format(
        date=dt.datetime.fromtimestamp(results.measured_at, tz=dt.UTC).date().isoformat(),
        device=results.device,
        ceiling=figure(results.ceiling_flops / 1e12, 0),
        verdicts=told.markdown(),
        forwards=forward_table(results).markdown(),
        served=served_table(results.served).markdown(),
        num_loads=num_loads,
    )
