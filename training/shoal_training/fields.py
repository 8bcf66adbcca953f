"""Reads values out of an untrusted tree and collects what is wrong with them: field, limit and value."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)?")
_UNIT_S = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One field that is wrong."""

    field: str  # path as in the proto, such as "data.text_column"
    description: str  # what, limit and value


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Allowed values of a number; open ends are not themselves allowed."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"{self.low:g}"
        high = f"below {self.high:g}" if self.high_open else f"up to {self.high:g}"
        return f"{low}, {high}" if self.low_open or self.high_open else f"{self.low:g} to {self.high:g}"


class FieldReader:
    """One mapping of a tree. A reader never raises: it notes a violation and gives the default."""

    def __init__(self, tree: object, path: str, known: Iterable[str], violations: list[Violation]) -> None:
        self._path = path
        self._violations = violations
        self._tree: dict[str, Any] = {}
        names = sorted(known)
        if tree is not None and not isinstance(tree, dict):
            self.refuse("", f"must be a mapping of fields, not {_kind(tree)}")
        elif tree is not None:
            self._tree = tree
        for name in self._tree:
            if name not in names:
                self._refuse_unknown(str(name), names)

    def refuse(self, name: str, description: str) -> None:
        """Note that the field is wrong."""
        self._violations.append(Violation(field=self.path(name), description=description))

    def path(self, name: str) -> str:
        """The field's path from the top."""
        return ".".join(part for part in (self._path, name) if part)

    def has(self, name: str) -> bool:
        """Whether the field is set to anything but nothing."""
        return self._tree.get(name) not in (None, "")

    def raw(self, name: str) -> Any:
        """The value as it stands."""
        return self._tree.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A string; unset and empty give the default."""
        if not self.has(name):
            return default
        value = self._tree[name]
        if not isinstance(value, str):
            self.refuse(name, f"must be text, not {_kind(value)}")
            return default
        if any(ord(character) < 32 for character in value):
            self.refuse(name, "must not hold control characters")
            return default
        return value

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        """One of some words."""
        value = self.text(name, default)
        words = list(allowed)
        if value and value not in words:
            self.refuse(name, f"{_show(value)} is not one of {', '.join(words)}{_suggest(value, words)}")
            return default
        return value

    def number(self, name: str, allowed: Range, default: float | None) -> float | None:
        """A finite number within a range."""
        value = self._tree.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, f"must be a number ({allowed}), not {_kind(value)}")
            return default
        if not math.isfinite(value) or value not in allowed:
            self.refuse(name, f"is {value:g}; allowed: {allowed}")
            return default
        return float(value)

    def integer(self, name: str, allowed: Range, default: int | None) -> int | None:
        """A whole number within a range."""
        value = self._tree.get(name)
        if isinstance(value, float) and not value.is_integer():
            self.refuse(name, f"is {value:g}; must be a whole number ({allowed})")
            return default
        found = self.number(name, allowed, None)
        return default if found is None else int(found)

    def duration_s(self, name: str, allowed: Range, default: float | None) -> float | None:
        """Seconds of `<name>_s` (a number) or `<name>` ("300s", "5m", "2h" or a number of seconds)."""
        if self.has(name) and self.has(f"{name}_s"):
            self.refuse(name, f"must not be given together with {name}_s")
            return default
        if not isinstance(value := self._tree.get(name), str):
            return self.number(name if value is not None else f"{name}_s", allowed, default)
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            self.refuse(name, f"{_show(value)} is not a duration such as 300s, 5m or 2h")
            return default
        seconds = float(match[1]) * _UNIT_S[match[2]]
        if seconds not in allowed:
            self.refuse(name, f"is {seconds:g} seconds; allowed: {allowed}")
            return default
        return seconds

    def exactly_one(self, names: Iterable[str]) -> str | None:
        """Which of the names is set; None, with a violation, when none or several are."""
        options = list(names)
        found = [name for name in options if self._tree.get(name) not in (None, "")]
        if len(found) == 1:
            return found[0]
        said = f"has {' and '.join(found)}" if found else "has none"
        self.refuse("", f"needs exactly one of {', '.join(options)}; it {said}")
        return None

    def _refuse_unknown(self, name: str, known: list[str]) -> None:
        self.refuse(name[:_MAX_SHOWN], f"unknown field{_suggest(name, known)}")


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _show(value: str) -> str:
    return repr(value if len(value) <= _MAX_SHOWN else value[:_MAX_SHOWN] + "...")


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)
