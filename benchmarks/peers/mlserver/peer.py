"""MLServer, over the V2 inference protocol."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.http_calls import Route
from benchmarks.peers import v2
from benchmarks.peers.peer import Peer, free_port
from benchmarks.peers.settings import Grid, Settings, Split


class MLServer(Peer):
    """See server.py. Its settings are two files."""

    name = "mlserver"
    package = "mlserver"
    grid = Grid(
        splits=(
            Split(workers=2, threads=1),
            Split(workers=1, threads=2),
            Split(workers=0, threads=2),
        )
    )

    def route(self) -> Route:
        """One text is a batch of one."""
        return v2.route([1])

    def command(self, work: Path, settings: Settings, port: int) -> list[str]:
        """Its own command line."""
        work.mkdir(parents=True, exist_ok=True)
        server = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": free_port(),
            "metrics_endpoint": None,
            "parallel_workers": settings.workers,
            "environments_dir": str(work / "environments"),
            "debug": False,
        }
        model = {
            "name": v2.MODEL,
            "implementation": "benchmarks.peers.mlserver.server.Classifier",
            "max_batch_size": settings.max_batch,
            "max_batch_time": settings.delay_ms / 1e3,
        }
        (work / "settings.json").write_text(json.dumps(server))
        (work / "model-settings.json").write_text(json.dumps(model))
        return [str(self.environment.python), "-c", "from mlserver.cli import main; main()", "start", str(work)]
