"""Reading what a trainer writes into its job folder: whole lines of events.jsonl, and result.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from shoal_server.control.jobs.verdict import TrainerResult
from shoal_server.ipc.calls import JobEvent

EVENTS_NAME = "events.jsonl"
RESULT_NAME = "result.json"
MAX_READ_BYTES = 4 * 2**20
_KINDS = frozenset({"state", "progress", "evaluation", "checkpoint", "published", "warning"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Events read, and where the next read begins."""

    events: list[JobEvent]  # sequence 0: the store gives numbers
    offset: int
    num_malformed: int  # such as a line cut off by a kill, with the next attempt's first line behind it


def read_events(job_dir: Path, offset: int) -> Lines:
    """Complete lines from byte `offset` on, MAX_READ_BYTES at most; a line still being written is left for later."""
    try:
        with (job_dir / EVENTS_NAME).open("rb") as file:
            file.seek(offset)
            data = file.read(MAX_READ_BYTES)
    except FileNotFoundError:
        return Lines(events=[], offset=offset, num_malformed=0)
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == MAX_READ_BYTES:  # no event is that long: skip it
        return Lines(events=[], offset=offset + len(data), num_malformed=1)
    parsed = [_parse(line) for line in data[:end].splitlines() if line.strip()]
    events = [event for event in parsed if event is not None]
    return Lines(events=events, offset=offset + end, num_malformed=len(parsed) - len(events))


def read_result(job_dir: Path) -> TrainerResult | None:
    """What the trainer wrote last; None where it wrote nothing that can be read."""
    try:
        return msgspec.json.decode((job_dir / RESULT_NAME).read_bytes(), type=TrainerResult)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def _parse(line: bytes) -> JobEvent | None:
    try:
        tree = msgspec.json.decode(line, type=dict[str, object])
        event = msgspec.convert({**tree, "sequence": 0}, JobEvent)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
    return event if event.kind in _KINDS else None
