"""The best settings of each peer, as the last sweep found them: best.json in its folder, which is committed.

`make bench-sweep PEER=...` writes it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.peers.descent import Tried
from benchmarks.peers.peer import Peer
from benchmarks.peers.settings import Settings


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep found."""

    settings: Settings
    date: str
    machine: str
    version: str  # of the peer
    rates: dict[int, float] = {}  # texts/s by calls in flight, of the best
    tried: list[Tried] = []  # all of them, failures with their reason


def path(peer: Peer) -> Path:
    """Of its file."""
    return peer.folder / "best.json"


def read(peer: Peer, dtype: str) -> Best | None:
    """What was found for `dtype`, for another number type where it was not swept in this one; None before any sweep."""
    found = _read(peer)
    return found.get(dtype) or next(iter(found.values()), None)


def write(peer: Peer, dtype: str, best: Best) -> None:
    """Put it beside what is known of other number types."""
    found = {**_read(peer), dtype: best}
    path(peer).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def fastest(peers: list[Peer], dtype: str, count: int) -> list[str]:
    """Names of the peers that did best in their sweeps, the best first.

    Behind those swept in `dtype` come those swept in another number type, whose rates say little, and then the others.
    """
    ranks: dict[str, tuple[bool, float]] = {peer.name: (False, 0.0) for peer in peers}
    for peer in peers:
        best = read(peer, dtype)
        if best is not None:
            ranks[peer.name] = (dtype in _read(peer), Tried(settings=best.settings, rates=best.rates).score)
    return sorted(ranks, key=lambda name: ranks[name], reverse=True)[:count]


def _read(peer: Peer) -> dict[str, Best]:
    file = path(peer)
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Best]) if file.exists() else {}
