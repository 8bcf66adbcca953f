"""Which turns a run takes and in which order. Pure.

Within a round Shoal's turn and the others' follow each other, and who begins moves on with the rounds, so that nobody
always meets the warmer machine. Rounds lie outermost: a run that is cut short has measured everything at least once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from benchmarks.records import Load
from benchmarks.turns import Slot

DTYPES = ("bfloat16", "float32")
CLOSED = "closed"
OPEN = "open"
GENERATE = "generate"
CLOSED_LOADS = (
    Load(in_flight=1, warmup_s=1.0, duration_s=5.0),
    Load(in_flight=32, warmup_s=2.0, duration_s=8.0),
    Load(in_flight=64, warmup_s=2.0, duration_s=8.0),
)
GENERATE_LOADS = (Load(in_flight=16, warmup_s=5.0, duration_s=15.0),)
WARM_UP_S = 10.0  # oneDNN makes a kernel for every new shape of a batch, which padded batches have hundreds of
OPEN_WARMUP_S = 3.0
OPEN_DURATION_S = 20.0
OPEN_SHARE = 0.5  # of the best peer's capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Who takes part in what."""

    shoal: str
    others: tuple[str, ...]  # peers and the naive server
    bare: str  # transformers without a server, which knows one load only
    generators: tuple[str, ...]  # Shoal not among them


def order(names: Sequence[str], number: int) -> list[str]:
    """The same names, beginning with another one in each round."""
    start = number % len(names) if names else 0
    return [*names[start:], *names[:start]]


def round_of(part: str, dtype: str, number: int, field: Field, loads: Sequence[Load]) -> list[Slot]:
    """The turns of one round of a part."""
    if part == GENERATE:
        names = [field.shoal, *field.generators]
    elif part == OPEN:
        names = [field.shoal, *field.others]
    else:
        names = [field.shoal, *field.others, field.bare]
    return [
        Slot(
            part=part,
            dtype=dtype,
            round=number,
            name=name,
            loads=tuple(load for load in loads if name != field.bare or load.in_flight == 1),
            warm_up_s=0.0 if part == GENERATE else WARM_UP_S,
        )
        for name in order(names, number)
    ]


def scaled(slots: Sequence[Slot], scale: float) -> list[Slot]:
    """The same turns with all times multiplied."""

    def shorter(load: Load) -> Load:
        return msgspec.structs.replace(load, warmup_s=load.warmup_s * scale, duration_s=load.duration_s * scale)

    return [
        dataclasses.replace(slot, loads=tuple(map(shorter, slot.loads)), warm_up_s=slot.warm_up_s * scale)
        for slot in slots
    ]


def open_loads(capacity: float) -> tuple[Load, ...]:
    """At a share of what the best peer can do, in calls a second."""
    return (Load(rate=round(capacity * OPEN_SHARE, 1), warmup_s=OPEN_WARMUP_S, duration_s=OPEN_DURATION_S),)


def loads_of(part: str, capacity: float) -> tuple[Load, ...]:
    """Of one part."""
    return {CLOSED: CLOSED_LOADS, GENERATE: GENERATE_LOADS}.get(part) or open_loads(capacity)
