"""The folder of a server's state: checked to be writable, locked for one server, and where it says that it is ready."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path

import msgspec

_PROBE_BYTES = 64 * 1024


class StateDirUnusable(Exception):
    """The folder cannot be written to; the message says why."""


class StateDirInUse(Exception):
    """Another server works on the folder."""


class ServerFile(msgspec.Struct, frozen=True, kw_only=True):
    """`server.json`: where the server that works on this folder listens."""

    grpc_port: int
    metrics_port: int
    pid: int


class StateDir:
    """A locked state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Create the folder, check that it can be written to and lock it.

        Raises:
            StateDirUnusable: it is read-only, the disk is full, or it is no folder.
            StateDirInUse: another server holds the lock.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._probe()
            self.server_file.unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise StateDirUnusable(f"state_dir {self.path} {_describe(error)}") from error

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def server_file(self) -> Path:
        """Where `server.json` lies."""
        return self.path / "server.json"

    def announce(self, server: ServerFile) -> None:
        """Say that the server is ready."""
        temporary = self.server_file.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(server))
        temporary.replace(self.server_file)

    def withdraw(self) -> None:
        """The server is no longer ready."""
        self.server_file.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StateDirInUse(f"state_dir {self.path} is in use by another server") from None

    def _probe(self) -> None:
        """Write and sync some bytes, as a full disk shows itself only then."""
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".probe-") as probe:
            probe.write(b"\0" * _PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())


def _describe(error: OSError) -> str:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "is on a full disk"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"is not writable: {error.strerror}"
        case _:
            return f"cannot be used: {error.strerror or error}"
