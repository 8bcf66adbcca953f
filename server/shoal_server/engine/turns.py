"""Whose work the device does next: an even share of its time for each model that has any.

Classifiers and generators alike; a short decode step therefore comes up more often than a long packed forward, and
neither starves. The versions of a model share its part evenly: that two of them run while one drains leaves everybody
else what they had. Knows no clock: seconds are passed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from shoal_server.engine.request import VersionKey

Member = TypeVar("Member", bound=Hashable)


class Turns:
    """The device seconds of each model, and within it of each version."""

    def __init__(self) -> None:
        self._models: _Shares[str] = _Shares()
        self._versions: dict[str, _Shares[VersionKey]] = {}

    def choose(self, ready: Sequence[VersionKey]) -> VersionKey:
        """The version to run among those with work: of the model that has had the least the one that has."""
        model = self._models.least(version.model for version in ready)
        return self._shares(model).least(version for version in ready if version.model == model)

    def charge(self, version: VersionKey, seconds: float) -> None:
        """Note that a version had the device for so long, whatever came of it."""
        self._models.charge(version.model, seconds)
        self._shares(version.model).charge(version, seconds)

    def forget(self, version: VersionKey) -> None:
        """A version is gone."""
        shares = self._shares(version.model)
        shares.forget(version)
        if shares.is_empty:
            del self._versions[version.model]
            self._models.forget(version.model)

    def _shares(self, model: str) -> _Shares[VersionKey]:
        return self._versions.setdefault(model, _Shares())


class _Shares(Generic[Member]):
    """Seconds each member has had, counted from when it last began to have work."""

    def __init__(self) -> None:
        self._spent_s: dict[Member, float] = {}
        self._floor_s = 0.0  # what the member that was served last had had then: newcomers begin here

    def least(self, ready: Iterable[Member]) -> Member:
        """The member among those with work that has had the least; the first among equals."""
        ready = list(ready)
        for member in ready:
            self._spent_s[member] = max(self._spent_s.get(member, 0.0), self._floor_s)
        chosen = min(ready, key=self._spent_s.__getitem__)
        self._floor_s = self._spent_s[chosen]
        return chosen

    def charge(self, member: Member, seconds: float) -> None:
        self._spent_s[member] = self._spent_s.get(member, self._floor_s) + seconds

    def forget(self, member: Member) -> None:
        self._spent_s.pop(member, None)

    @property
    def is_empty(self) -> bool:
        return not self._spent_s
