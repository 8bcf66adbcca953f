"""One fake server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from shoal_fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    running = FakeServer().start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SHOAL_ADDRESS", "SHOAL_TOKEN_FILE", "SHOAL_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
