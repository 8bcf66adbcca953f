"""`make bench-sweep PEER=x`: tries a peer's settings in short rounds and keeps the best in its best.json.

What was tried is kept below benchmarks/out/sweeps, so that a sweep that was cut short goes on where it stopped; a
finished one begins anew.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import folders, turns
from benchmarks.machine import machine
from benchmarks.peers import best
from benchmarks.peers.best import Best
from benchmarks.peers.descent import Tried, next_settings, winner
from benchmarks.peers.environment import InstallError
from benchmarks.peers.peer import Peer, TunedPeer
from benchmarks.peers.registry import PEERS
from benchmarks.peers.settings import Settings
from benchmarks.plan import DTYPES
from benchmarks.records import Load
from benchmarks.turns import Slot

IN_FLIGHT = (32, 64)
WARM_UP_S = 5.0
FOLDER = folders.OUT / "sweeps"


def main(arguments: list[str] | None = None) -> int:
    """Sweep one peer; the exit code is 1 when it cannot be installed or nothing works, 3 when it was cut short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep", description=__doc__)
    parser.add_argument("--peer", required=True, choices=sorted(PEERS))
    parser.add_argument("--dtype", choices=DTYPES, help="one number type")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load of a try (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no try after so long (default %(default)s)")
    options = parser.parse_args(arguments)
    console = Console()
    peer = PEERS[options.peer]
    try:
        peer.environment.ensure()
    except InstallError as error:
        sys.exit(f"{peer.name} cannot be installed: {error}")
    end_s = time.monotonic() + options.minutes * 60
    return max(
        _sweep(peer, d, options.seconds, end_s, console) for d in ((options.dtype,) if options.dtype else DTYPES)
    )


def _sweep(peer: Peer, dtype: str, seconds: float, end_s: float, console: Console) -> int:
    path = FOLDER / f"{peer.name}-{dtype}.json"
    tries = msgspec.json.decode(path.read_bytes(), type=list[Tried]) if path.exists() else []
    while (settings := next_settings(peer.grid, dtype, tries)) is not None:
        if time.monotonic() > end_s:
            console.print(f"{peer.name} {dtype}: out of time after {len(tries)} tries; run it again to go on")
            return 3
        tried = _try(peer, settings, seconds)
        if tried is None:
            console.print("disturbed by other processes; tried again")
            continue
        tries.append(tried)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(tries))
        console.print(f"{peer.name} {dtype} {settings.label()}: {_told(tries[-1])}")
    found = winner(tries)
    if found is None:
        console.print(f"{peer.name} {dtype}: nothing worked")
        return 1
    _keep(peer, dtype, found, tries)
    path.rename(path.with_suffix(".done"))
    console.print(f"{peer.name} {dtype}: {found.settings.label()}, {_told(found)}")
    return 0


def _try(peer: Peer, settings: Settings, seconds: float) -> Tried | None:
    """None when other processes disturbed it."""
    loads = tuple(Load(in_flight=number, warmup_s=1.0, duration_s=seconds) for number in IN_FLIGHT)
    slot = Slot(part="sweep", dtype=settings.dtype, round=0, name=peer.name, loads=loads, warm_up_s=WARM_UP_S)
    turn = turns.take(slot, TunedPeer(peer, settings, folders.ensure_classifier()), _work(peer))
    if turns.disturbed(turn):
        return None
    if turn.failure or (turn.checked is not None and not turn.checked.passed):
        return Tried(settings=settings, rates={}, failure=turn.failure or f"wrong answers: {turn.checked}")
    return Tried(settings=settings, rates={m.load.in_flight: round(m.rate, 1) for m in turn.measures})


def _work(peer: Peer) -> Path:
    return folders.OUT / "servers" / f"{peer.name}-sweep"


def _told(tried: Tried) -> str:
    return ", ".join(f"{rate:.1f} texts/s at {number}" for number, rate in tried.rates.items()) or tried.failure[-300:]


def _keep(peer: Peer, dtype: str, found: Tried, tries: list[Tried]) -> None:
    best.write(
        peer,
        dtype,
        Best(
            settings=found.settings,
            date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
            machine=machine(),
            version=peer.version(),
            rates=found.rates,
            tried=tries,
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
