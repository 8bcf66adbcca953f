"""The best settings of each peer, as the last sweep found them: best.json in its folder, which is committed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.peers.descent import Tried
from benchmarks.peers.peer import Peer
from benchmarks.peers.settings import Settings


class NotSwept(Exception):
    """A peer has no best settings: `make bench-sweep PEER=...` finds them."""


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


def read(peer: Peer, dtype: str) -> Best:
    """What was found for `dtype`; for another number type where it was not swept in this one.

    Raises:
        NotSwept: it was never swept.
    """
    found = _read(peer)
    if not found:
        raise NotSwept(f"{peer.name} was never swept: make bench-sweep PEER={peer.name}")
    return found.get(dtype) or next(iter(found.values()))


def write(peer: Peer, dtype: str, best: Best) -> None:
    """Put it beside what is known of other number types."""
    found = {**_read(peer), dtype: best}
    path(peer).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def fastest(peers: list[Peer], dtype: str, count: int) -> list[str]:
    """Names of the peers that did best in their sweeps, the best first."""
    scores: dict[str, float] = {}
    for peer in peers:
        if _read(peer):
            best = read(peer, dtype)
            scores[peer.name] = Tried(settings=best.settings, rates=best.rates).score
    return sorted(scores, key=lambda name: -scores[name])[:count]


def _read(peer: Peer) -> dict[str, Best]:
    file = path(peer)
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Best]) if file.exists() else {}
