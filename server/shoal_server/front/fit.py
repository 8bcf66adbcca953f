"""Token sequences fitted to what a model takes: refused, cut at one end, or split into overlapping windows.

Special tokens are never cut and stand where the model expects them. Pure functions; knows no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec

from shoal_server.errors import InvalidRequest
from shoal_server.front.spans import TokenMap
from shoal_server.front.version_text import Frame

OVERLAP_DIVISOR: Final = 4  # neighbouring windows share a quarter of their room


class Overflow(Enum):
    """What happens to an input with more tokens than the model takes."""

    REFUSE = "refuse"
    TRUNCATE_END = "truncate_end"
    TRUNCATE_START = "truncate_start"
    WINDOWS = "windows"


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """The sequences that one input became."""

    sequences: list[list[int]]
    type_start: int = -1  # index of the first token of the second text where the model tells them apart
    weights: list[int]  # content tokens that each sequence adds to those before it
    num_dropped: int = 0
    tokens: TokenMap | None = None  # token heads only

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, special tokens included."""
        return sum(map(len, self.sequences))


def fit_text(ids: list[int], frame: Frame, max_tokens: int, overflow: Overflow, field: str) -> Fitted:
    """Fit one text, encoded with its special tokens.

    Raises:
        InvalidRequest: it is too long and may not be cut, or the model has no room beside its special tokens.
    """
    if len(ids) <= max_tokens:
        return Fitted(sequences=[ids], weights=[1])
    room = _room(len(ids), frame, max_tokens, overflow, field)
    content = ids[len(frame.prefix) : len(ids) - len(frame.suffix)]
    if overflow is Overflow.WINDOWS:
        windows = split_windows(len(content), room)
        return Fitted(
            sequences=[[*frame.prefix, *content[w.start : w.start + room], *frame.suffix] for w in windows],
            weights=[window.num_added for window in windows],
        )
    kept = content[:room] if overflow is Overflow.TRUNCATE_END else content[-room:]
    return Fitted(sequences=[[*frame.prefix, *kept, *frame.suffix]], weights=[1], num_dropped=len(content) - room)


def fit_pair(
    first: list[int], second: list[int], frame: Frame, max_tokens: int, overflow: Overflow, field: str
) -> Fitted:
    """Fit two texts, encoded without special tokens; what must go is taken from the longer one first.

    Raises:
        InvalidRequest: as `fit_text`; windows over pairs are refused.
    """
    num_tokens = len(first) + len(second) + frame.size
    num_dropped = max(0, num_tokens - max_tokens)
    if num_dropped:
        if overflow is Overflow.WINDOWS:
            raise InvalidRequest.of("options.overflow", "OVERFLOW_WINDOWS is not for pairs")
        room = _room(num_tokens, frame, max_tokens, overflow, field)
        num_first, num_second = _share_room(len(first), len(second), room)
        if overflow is Overflow.TRUNCATE_END:
            first, second = first[:num_first], second[:num_second]
        else:
            first, second = first[len(first) - num_first :], second[len(second) - num_second :]
    ids = [*frame.prefix, *first, *frame.middle, *second, *frame.suffix]
    type_start = len(frame.prefix) + len(first) + len(frame.middle) if frame.typed else -1
    return Fitted(sequences=[ids], type_start=type_start, weights=[1], num_dropped=num_dropped)


def fit_token_ids(ids: list[int], frame: Frame, max_tokens: int, overflow: Overflow, field: str) -> Fitted:
    """Fit ids that a client made; special tokens are kept when they stand where the model wants them.

    Raises:
        InvalidRequest: as `fit_text`; windows over token ids are refused.
    """
    if len(ids) <= max_tokens:
        return Fitted(sequences=[ids], weights=[1])
    if overflow is Overflow.WINDOWS:
        raise InvalidRequest.of("options.overflow", "OVERFLOW_WINDOWS is not for token ids")
    return fit_text(ids, special_tokens_of(ids, frame), max_tokens, overflow, field)


def special_tokens_of(ids: list[int], frame: Frame) -> Frame:
    """Those of a frame that stand where the model wants them in ids that a client made."""
    prefix = frame.prefix if tuple(ids[: len(frame.prefix)]) == frame.prefix else ()
    suffix = frame.suffix if frame.suffix and tuple(ids[-len(frame.suffix) :]) == frame.suffix else ()
    return Frame(prefix=prefix, suffix=suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of content."""

    start: int
    num_added: int  # content tokens that no window before had


def split_windows(num_content: int, room: int) -> list[Window]:
    """Windows of `room` tokens over `num_content` > `room`; the last is moved back so that it is full too."""
    stride = max(1, room - room // OVERLAP_DIVISOR)
    windows = [Window(start=0, num_added=room)]
    covered = room
    while covered < num_content:
        start = min(windows[-1].start + stride, num_content - room)
        windows.append(Window(start=start, num_added=start + room - covered))
        covered = start + room
    return windows


def _room(num_tokens: int, frame: Frame, max_tokens: int, overflow: Overflow, field: str) -> int:
    if overflow is Overflow.REFUSE:
        raise InvalidRequest.of(field, f"has {num_tokens:,} tokens; limit {max_tokens:,}")
    room = max_tokens - frame.size
    if room < 1:
        raise InvalidRequest.of(field, f"leaves no room: {frame.size} special tokens, limit {max_tokens:,}")
    return room


def _share_room(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Shares of both texts: the shorter keeps what it has up to a half, the rest is the longer one's."""
    half = room // 2
    if num_first <= num_second:
        kept = min(num_first, max(half, room - num_second))
        return kept, room - kept
    kept = min(num_second, max(half, room - num_first))
    return room - kept, kept
