"""Whose work the device does next: an even share of its time for each source that has any.

A source is all of Classify, or one generator version. A short decode step therefore comes up more often than a long
packed forward, and neither starves. Knows no clock: seconds are passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal_server.engine.request import VersionKey

Source = VersionKey | None  # None is Classify


class Turns:
    """Device seconds each source has had, counted from when it last began to have work."""

    def __init__(self) -> None:
        self._spent_s: dict[Source, float] = {}
        self._floor_s = 0.0  # what the source that was served last had had then: newcomers begin here

    def choose(self, ready: Sequence[Source]) -> Source:
        """The source among those with work that has had the least; the first among equals."""
        for source in ready:
            self._spent_s[source] = max(self._spent_s.get(source, 0.0), self._floor_s)
        chosen = min(ready, key=self._spent_s.__getitem__)
        self._floor_s = self._spent_s[chosen]
        return chosen

    def charge(self, source: Source, seconds: float) -> None:
        """Note that a source was served for so long."""
        self._spent_s[source] = self._spent_s.get(source, self._floor_s) + seconds

    def forget(self, source: Source) -> None:
        """A version is gone."""
        self._spent_s.pop(source, None)
