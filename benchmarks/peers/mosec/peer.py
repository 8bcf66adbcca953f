"""Mosec, over HTTP and JSON."""

from __future__ import annotations

from benchmarks.http_calls import Route
from benchmarks.peers.peer import Peer


class Mosec(Peer):
    """See server.py."""

    name = "mosec"
    package = "mosec"

    def route(self) -> Route:
        """Its one path."""
        return Route(path="/inference", request=lambda text: {"text": text}, scores=lambda body: list(body["scores"]))
