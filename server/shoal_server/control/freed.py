"""When versions were freed: their series stay for ten minutes, so that scrapes see their end, then disappear."""

from __future__ import annotations

from shoal_server.control.versions import VersionKey

KEEP_SERIES_S = 600.0


class FreedVersions:
    """Freed versions by the time they were freed."""

    def __init__(self) -> None:
        self._freed_s: dict[VersionKey, float] = {}

    def freed(self, key: VersionKey, now_s: float) -> None:
        """No engine holds the version any more. Clock: monotonic seconds."""
        self._freed_s[key] = now_s

    def revived(self, key: VersionKey) -> None:
        """The version is live again."""
        self._freed_s.pop(key, None)

    def expired(self, now_s: float) -> frozenset[VersionKey]:
        """Versions whose series are to be shown no more."""
        return frozenset(key for key, freed_s in self._freed_s.items() if now_s - freed_s >= KEEP_SERIES_S)

    def recent(self, now_s: float) -> frozenset[VersionKey]:
        """Versions freed so lately that their series are still shown."""
        return frozenset(key for key, freed_s in self._freed_s.items() if now_s - freed_s < KEEP_SERIES_S)
