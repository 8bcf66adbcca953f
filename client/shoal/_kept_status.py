"""Keeps the status of a call that the server ends while the client still writes.

grpc.aio replaces the server's status by INTERNAL "Internal error from Core" when a write fails because the call has
just ended (https://github.com/grpc/grpc/issues/36066). Here that replacement waits, so that the server's own status,
which Core delivers all the same, comes first.
Touches one private attribute of grpc.aio; where it is missing nothing is changed.
"""

from __future__ import annotations

import asyncio
from typing import Any

STATUS_LIMIT_S = 5.0  # after which a failed write without any status ends the call


def keep_status(call: Any) -> Any:
    """The same call, of a method whose requests stream."""
    inner = getattr(call, "_cython_call", None)
    if inner is not None and hasattr(inner, "set_internal_error"):
        call._cython_call = _PatientCall(inner)  # noqa: SLF001 - see the module
    return call


class _PatientCall:
    """All that the inner call is, but slow to believe in an internal error."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def set_internal_error(self, message: str) -> None:
        """End the call with INTERNAL, unless its status comes in time."""
        asyncio.get_running_loop().call_later(STATUS_LIMIT_S, self._give_up, message)

    def _give_up(self, message: str) -> None:
        if not self._inner.done():
            self._inner.set_internal_error(message)
