"""One RPC under way: who asked, until when, which version answers and where its time went. Knows no gRPC."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

from shoal_server.front.metrics import VersionMetrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
DRAIN_RETRY_S: Final = 1.0  # when to come back to a server that shuts down: to another one
_NO_VERSION: Final = ("", "")


class Rpc:
    """What a handler needs to know beside its request, and what it notes down for the log line and the metrics."""

    __slots__ = ("deadline_s", "method", "queue_s", "request_id", "run_s", "started_s", "tokenize_s", "version")

    def __init__(self, *, method: str, request_id: str, remaining_s: float | None) -> None:
        self.method = method
        self.request_id = request_id
        self.started_s = time.monotonic()
        self.deadline_s = None if remaining_s is None else self.started_s + remaining_s
        self.version: tuple[str, str] = _NO_VERSION  # model and version, once resolved
        self.tokenize_s = 0.0
        self.queue_s = 0.0
        self.run_s = 0.0

    def resolved(self, metrics: VersionMetrics) -> None:
        """Note which version answers."""
        self.version = metrics.labels

    def remaining_s(self) -> float | None:
        """Seconds until the client's deadline, not below 0; None without one."""
        return None if self.deadline_s is None else max(0.0, self.deadline_s - time.monotonic())

    def expired(self) -> bool:
        """Whether the client's deadline has passed."""
        return self.deadline_s is not None and time.monotonic() >= self.deadline_s


def choose_request_id(given: str | None) -> str:
    """The client's id where it is one that a log line may show, else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
