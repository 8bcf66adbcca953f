"""Whose work the device does next: an even share of its time for each model that has any.

All of Classify has one, and so have the versions of a generator together: that two of them run while one drains leaves
everybody else what they had. A short decode step therefore comes up more often than a long packed forward, and neither
starves.
Knows no clock: seconds are passed in.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from shoal_server.engine.request import VersionKey

Member = TypeVar("Member", bound=Hashable)
Source = VersionKey | None  # a generator version; None is Classify


class Turns:
    """The device seconds of each model, and within it of each version."""

    def __init__(self) -> None:
        self._models: _Shares[str | None] = _Shares()
        self._versions: dict[str | None, _Shares[Source]] = {}

    def choose(self, ready: Sequence[Source]) -> Source:
        """The source among those with work whose model has had the least, and in it the version that has."""
        model = self._models.least(_model(source) for source in ready)
        return self._shares(model).least(source for source in ready if _model(source) == model)

    def charge(self, source: Source, seconds: float) -> None:
        """Note that a source was served for so long."""
        self._models.charge(_model(source), seconds)
        self._shares(_model(source)).charge(source, seconds)

    def forget(self, source: Source) -> None:
        """A version is gone."""
        shares = self._shares(_model(source))
        shares.forget(source)
        if shares.is_empty:
            del self._versions[_model(source)]
            self._models.forget(_model(source))

    def _shares(self, model: str | None) -> _Shares[Source]:
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


def _model(source: Source) -> str | None:
    return None if source is None else source.model
