"""Finds complete versions in the repository, by file system events and always by polling too.

A version is complete when its manifest lies in its folder. Weights are never looked at. A repository that cannot be
read at the moment changes nothing: what serves goes on serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import watchfiles
from shoal_models.manifest import MANIFEST_NAME, ManifestError, list_models, list_versions, read_manifest

from shoal_server.control.versions import FoundVersion, VersionKey
from shoal_server.log import Log

KINDS = frozenset({"classifier", "generator", "base"})
DEBOUNCE_MS = 50  # events that come closer together make one scan
_log = Log(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stamp:
    """What tells one state of a manifest from another."""

    mtime_ns: int
    size_bytes: int
    inode: int


class Scanner:
    """Reads the repository; manifests that have not changed are read once."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: dict[VersionKey, FoundVersion] = {}
        self._stamps: dict[VersionKey, _Stamp] = {}

    def scan(self) -> dict[VersionKey, FoundVersion]:
        """Every complete version that is there now.

        Raises:
            OSError: the repository itself is absent or unreadable.
        """
        next(self._repository.iterdir(), None)  # an unmounted volume raises here, and is not an empty repository
        found: dict[VersionKey, FoundVersion] = {}
        for model in list_models(self._repository):
            for number in list_versions(self._repository, model):
                key = VersionKey(model, number)
                if version := self._look(key):
                    found[key] = version
        self._known = found
        self._stamps = {key: self._stamps[key] for key in found}
        return found

    def _look(self, key: VersionKey) -> FoundVersion | None:
        path = self._repository / key.model / str(key.version)
        try:
            stat = (path / MANIFEST_NAME).stat()
        except OSError:
            return None  # removed since it was listed
        stamp = _Stamp(mtime_ns=stat.st_mtime_ns, size_bytes=stat.st_size, inode=stat.st_ino)
        if self._stamps.get(key) == stamp and key in self._known:
            return self._known[key]
        self._stamps[key] = stamp
        return _read(key, path, stamp.mtime_ns)


class Watcher:
    """Scans when something happens in the repository, and every so often."""

    def __init__(
        self,
        repository: Path,
        *,
        poll_interval_s: float,
        use_events: bool,
        report: Callable[[dict[VersionKey, FoundVersion]], None],
    ) -> None:
        self._repository = repository.resolve()
        self._scanner = Scanner(self._repository)
        self._poll_interval_s = poll_interval_s
        self._use_events = use_events
        self._report = report
        self._wake = asyncio.Event()
        self._scanning = asyncio.Lock()
        self._is_readable = True

    async def run(self) -> None:
        """Scan and report until cancelled."""
        events = asyncio.create_task(self._listen()) if self._use_events else None
        try:
            while True:
                self._wake.clear()
                await self.scan_now()
                try:
                    await asyncio.wait_for(self._wake.wait(), self._poll_interval_s)
                except TimeoutError:
                    continue
        finally:
            if events is not None:
                events.cancel()
                await asyncio.gather(events, return_exceptions=True)

    def wake(self) -> None:
        """Scan soon."""
        self._wake.set()

    async def scan_now(self) -> None:
        """One scan, reported before this returns."""
        async with self._scanning:
            try:
                found = await asyncio.to_thread(self._scanner.scan)
            except OSError as error:
                if self._is_readable:
                    _log.error("repository_unreadable", path=self._repository, error=error.strerror)
                self._is_readable = False
                return
            self._is_readable = True
            self._report(found)

    async def _listen(self) -> None:
        """Wake the scan on events; polling alone remains where events cannot be had."""
        try:
            async for changes in watchfiles.awatch(
                self._repository, watch_filter=self._concerns_versions, debounce=DEBOUNCE_MS, step=DEBOUNCE_MS
            ):
                _log.debug("repository_changed", num_changes=len(changes))
                self._wake.set()
        except (OSError, RuntimeError) as error:
            _log.warning("repository_events_unavailable", error=error, poll_interval_s=self._poll_interval_s)

    def _concerns_versions(self, _change: watchfiles.Change, path: str) -> bool:
        """Temporary folders of publishers are not worth a scan."""
        parts = Path(path).parts[len(self._repository.parts) :]
        return not any(part.startswith(".") for part in parts)


def _read(key: VersionKey, path: Path, mtime_ns: int) -> FoundVersion:
    try:
        manifest = read_manifest(path)
        if manifest.kind not in KINDS:
            raise ManifestError(f"{MANIFEST_NAME} has kind {manifest.kind!r}; known are {', '.join(sorted(KINDS))}")
    except ManifestError as error:
        return FoundVersion(key=key, path=str(path), mtime_ns=mtime_ns, manifest=None, error=str(error))
    return FoundVersion(key=key, path=str(path), mtime_ns=mtime_ns, manifest=manifest)
