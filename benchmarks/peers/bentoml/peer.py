"""BentoML, over HTTP and JSON."""

from __future__ import annotations

from pathlib import Path

from benchmarks.http_calls import Route
from benchmarks.peers.peer import Peer
from benchmarks.peers.settings import Grid, Settings


class BentoML(Peer):
    """See server.py. Its dispatcher finds the wait for company by itself, so there is no axis for it."""

    name = "bentoml"
    package = "bentoml"
    grid = Grid(delays_ms=(0.0,))

    def route(self) -> Route:
        """A batchable endpoint takes and gives lists."""
        return Route(path="/classify", request=lambda text: {"texts": [text]}, scores=lambda body: list(body[0]))

    def command(self, work: Path, settings: Settings, port: int) -> list[str]:  # noqa: ARG002
        """Its own command line."""
        serve = ["serve", "benchmarks.peers.bentoml.server:Classifier", "--host", "127.0.0.1", "--port", str(port)]
        return [str(self.environment.python), "-m", "bentoml", *serve]

    def variables(self, work: Path) -> dict[str, str]:
        """No usage statistics; its files beside the log."""
        return {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(work / "home")}
