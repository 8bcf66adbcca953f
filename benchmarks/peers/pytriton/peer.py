"""PyTriton, over the V2 inference protocol."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.http_calls import Route
from benchmarks.peers import v2
from benchmarks.peers.peer import Peer


def _interpreter() -> str:
    """One of the release whose libpython the system's loader finds: Triton's Python workers are linked with that.

    Another build of the same minor release fails, where its standard library is newer than the system's libpython.
    """
    system = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    return str(system) if system.exists() else sys.executable


class PyTriton(Peer):
    """See server.py."""

    name = "pytriton"
    package = "nvidia-pytriton"
    interpreter = _interpreter()

    def route(self) -> Route:
        """A batch of one row of one text."""
        return v2.route([1, 1])

    def variables(self, work: Path) -> dict[str, str]:
        """Its workspace beside the log."""
        return {"PYTRITON_HOME": str(work / "home")}
