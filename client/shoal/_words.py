"""Enum numbers of the protocol as lower-case words and back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shoal.errors import FieldViolation, InvalidRequestError


class Words:
    """The words of one enum. `_UNSPECIFIED` reads as the empty word."""

    def __init__(self, enum: Any) -> None:
        names: list[str] = list(enum.keys())
        prefix = names[0].removesuffix("UNSPECIFIED")
        words = {number: name.removeprefix(prefix).lower() for name, number in enum.items()}
        self._number_of: dict[str, int] = {word: number for number, word in words.items() if number != 0}
        self._word_of = {**words, 0: ""}

    def word(self, number: int) -> str:
        """The word of a number; "unknown_<number>" for one that this client is too old to know."""
        return self._word_of.get(number) or ("" if number == 0 else f"unknown_{number}")

    def number(self, field: str, word: str) -> int:
        """The number of a word.

        Raises:
            InvalidRequestError: there is no such word; names those there are.
        """
        found = self._number_of.get(word)
        if found is None:
            raise InvalidRequestError.of(
                [FieldViolation(field=field, description=f"is {word!r}; allowed are {', '.join(self._number_of)}")]
            )
        return found


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return float(duration.seconds) + duration.nanos / 1e9


def optional_seconds(message: Message, field: str) -> float | None:
    """The duration in `field` in seconds, None where it is unset."""
    return seconds(getattr(message, field)) if message.HasField(field) else None


def optional_time(message: Message, field: str) -> datetime | None:
    """The timestamp in `field`, None where it is unset."""
    if not message.HasField(field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return timestamp.ToDatetime(tzinfo=UTC)
