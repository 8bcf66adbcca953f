"""LitServe, over HTTP and JSON."""

from __future__ import annotations

from benchmarks.http_calls import Route
from benchmarks.peers.peer import Peer


class LitServe(Peer):
    """See server.py."""

    name = "litserve"
    package = "litserve"

    def route(self) -> Route:
        """Its one path."""
        return Route(path="/predict", request=lambda text: {"text": text}, scores=lambda body: list(body["scores"]))
