"""Shoal, the naive server and the tuned peers as contenders, each with the model folder that it reads."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from shoal.aio import AsyncClient
from shoal_server.control.rooms import CORES_PER_FRONT

from benchmarks import folders
from benchmarks.calls import ShoalCaller
from benchmarks.peers import best
from benchmarks.peers.contender import Contender
from benchmarks.peers.peer import CALL_TIMEOUT_S, TunedPeer
from benchmarks.peers.registry import PEERS
from benchmarks.servers import Changes, NaiveServer, Server, ShoalServer, wait_live

SHOAL = "Shoal"
NAIVE = "naive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shoal:
    """`shoal serve` with its defaults, asked over gRPC."""

    model: str
    dtype: str
    changes: Changes
    name: str = SHOAL

    def server(self, folder: Path) -> Server:
        """As the protocol says."""
        return ShoalServer(folder, folders.ensure_repository(self.model), self.dtype, changes=self.changes)

    def caller(self, address: str) -> ShoalCaller:
        """As the protocol says."""
        num_fronts = max(1, len(os.sched_getaffinity(0)) // CORES_PER_FRONT)  # by default
        return ShoalCaller(address, self.model, timeout_s=CALL_TIMEOUT_S, num_channels=num_fronts)

    async def wait_ready(self, address: str) -> str:
        """As the protocol says."""
        async with AsyncClient(address) as client:
            return f"computes in {await wait_live(client, self.model, 1)}"

    def describe(self) -> str:
        """As the protocol says."""
        return f"defaults{''.join(f', {name}: {values}' for name, values in self.changes.items())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naive:
    """`benchmarks.naive_server`, asked over gRPC."""

    model: str
    dtype: str
    name: str = NAIVE

    def server(self, folder: Path) -> Server:
        """As the protocol says."""
        version = folders.ensure_repository(self.model) / self.model / "1"
        if self.model == folders.CLASSIFIER:
            return NaiveServer(folder, self.dtype, classify=version)
        return NaiveServer(folder, self.dtype, generate=version)

    def caller(self, address: str) -> ShoalCaller:
        """As the protocol says."""
        return ShoalCaller(address, self.model, timeout_s=CALL_TIMEOUT_S)

    async def wait_ready(self, address: str) -> str:  # noqa: ARG002
        """It prints its port when it is ready."""
        return ""

    def describe(self) -> str:
        """As the protocol says."""
        return "one request at a time, all cores as threads, no padding"


def contender(name: str, model: str, dtype: str, changes: Changes) -> Contender:
    """By name. A peer comes with the settings that its sweep found best."""
    if name == SHOAL:
        return Shoal(model=model, dtype=dtype, changes=changes)
    if name == NAIVE:
        return Naive(model=model, dtype=dtype)
    peer = PEERS[name]
    found = best.read(peer, dtype)
    if found is None:
        return TunedPeer(peer, peer.grid.first(dtype), folders.ensure_classifier(), "not swept")
    swept = f"swept {found.date} in {found.settings.dtype}"
    settings = dataclasses.replace(found.settings, dtype=dtype)
    return TunedPeer(peer, settings, folders.ensure_classifier(), swept)
