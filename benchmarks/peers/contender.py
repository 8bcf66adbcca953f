"""What is measured side by side: something that can be started, called and told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from benchmarks.calls import Classifying
from benchmarks.servers import Server


class Contender(Protocol):
    """A server with its settings, in one number type."""

    @property
    def name(self) -> str:
        """As in tables and file names."""
        ...

    def server(self, folder: Path) -> Server:
        """A server that keeps its files in `folder`; not started."""
        ...

    def caller(self, address: str) -> Classifying:
        """Speaks its protocol."""
        ...

    async def wait_ready(self, address: str) -> str:
        """Return once the model answers, with what is worth telling of how it does.

        Raises:
            ServerStartError: it does not.
        """
        ...

    def describe(self) -> str:
        """Version and settings, for tables."""
        ...
