"""Ray Serve, over HTTP and JSON."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.peer import Peer


class RayServe(Peer):
    """See server.py."""

    name = "rayserve"
    package = "ray"

    def variables(self, work: Path) -> dict[str, str]:  # noqa: ARG002
        """No usage statistics, loopback only, and workers of normal priority, which Ray lowers by default."""
        return {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_worker_niceness": "0",
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            "RAY_AUTH_MODE": "disabled",
        }
