"""Finds stop strings in text that comes in pieces, and holds back what may yet become one.

The result does not depend on how the text was cut into pieces: the string that is complete first ends the text, and
of those complete at the same place the one that began first. Pure; knows no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """Text that may be shown, and the stop string that followed it, if one did."""

    text: str
    stop_string: str = ""


class StopStrings:
    """Watches the text of one completion."""

    __slots__ = ("_first_characters", "_held", "_longest", "_protected", "_strings")

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._first_characters = frozenset(string[0] for string in strings)
        self._longest = max(map(len, strings), default=0)
        self._held = ""
        self._protected = 0  # characters of `_held` that no match may end in

    def push(self, text: str, *, may_stop: bool = True) -> Released:
        """Take more text; with `may_stop` false, strings that are complete within it are ordinary text."""
        self._held += text
        if not may_stop:
            self._protected = len(self._held)
        elif (found := self._find()) is not None:
            shown = self._held[: found.start]
            self._held = ""
            return Released(text=shown, stop_string=found.string)
        return Released(text=self._release(self._first_hold()))

    def finish(self) -> str:
        """What was held back: the text has ended and it became no stop string."""
        return self._release(len(self._held))

    def _release(self, num_characters: int) -> str:
        shown, self._held = self._held[:num_characters], self._held[num_characters:]
        self._protected = max(0, self._protected - num_characters)
        return shown

    def _find(self) -> _Match | None:
        """The match that ends first, and of those the longest."""
        best: _Match | None = None
        for string in self._strings:
            start = self._held.find(string, max(0, self._protected - len(string) + 1))
            if start >= 0:
                match = _Match(start=start, end=start + len(string), string=string)
                if best is None or (match.end, match.start) < (best.end, best.start):
                    best = match
        return best

    def _first_hold(self) -> int:
        """Where the longest ending lies that is the beginning of a stop string."""
        for start in range(max(0, len(self._held) - self._longest + 1), len(self._held)):
            if self._held[start] in self._first_characters:
                ending = self._held[start:]
                if any(string.startswith(ending) for string in self._strings):
                    return start
        return len(self._held)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    start: int
    end: int
    string: str
