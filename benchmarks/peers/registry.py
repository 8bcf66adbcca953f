"""All peers, by name."""

from __future__ import annotations

from benchmarks.peers.bentoml.peer import BentoML
from benchmarks.peers.litserve.peer import LitServe
from benchmarks.peers.mlserver.peer import MLServer
from benchmarks.peers.mosec.peer import Mosec
from benchmarks.peers.peer import Peer
from benchmarks.peers.pytriton.peer import PyTriton
from benchmarks.peers.rayserve.peer import RayServe

_ALL: tuple[Peer, ...] = (Mosec(), MLServer(), LitServe(), PyTriton(), BentoML(), RayServe())
PEERS = {peer.name: peer for peer in _ALL}
