"""Lines of a file or of standard input, however many, in bounded memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import FieldViolation, InvalidRequestError
from shoal.types import ClassifyInput

BLOCK_BYTES = 64 * 1024
MAX_LINE_BYTES = 4 * 2**20
STDIN = 0


def read_lines(path: Path | None) -> Iterator[str]:
    """Lines without their ends; of standard input where `path` is None. A line comes as soon as it is complete.

    Reads the descriptor itself: a buffered reader in another thread would hold a lock that the interpreter wants at
    its end.

    Raises:
        InvalidRequestError: a line is not UTF-8 or too long; names its number.
        OSError: the file cannot be read.
    """
    descriptor = STDIN if path is None else os.open(path, os.O_RDONLY)
    try:
        for number, line in enumerate(_split(descriptor), start=1):
            yield _decode(number, line)
    finally:
        if path is not None:
            os.close(descriptor)


def read_all(path: Path | None) -> str:
    """The whole text of a file, or of standard input where `path` is None.

    Raises:
        InvalidRequestError: it is not UTF-8 or too long.
        OSError: the file cannot be read.
    """
    return "\n".join(read_lines(path))


def stdin_is_terminal() -> bool:
    """Whether a person would have to type the input."""
    return sys.stdin is not None and sys.stdin.isatty()


def parse_line(number: int, line: str, kind: str) -> ClassifyInput:
    """What a line asks to classify; `kind` is "text", "pairs" (two texts with a tab between) or "json".

    Raises:
        InvalidRequestError: the line is not of that kind; names its number.
    """
    if kind == "text":
        return line
    if kind == "pairs":
        first, tab, second = line.partition("\t")
        if not tab:
            raise _bad_line(number, "has no tab between two texts")
        return first, second
    try:
        value = json.loads(line)
    except ValueError:
        raise _bad_line(number, "is not JSON") from None
    return _from_json(number, value)


def _from_json(number: int, value: object) -> ClassifyInput:
    match value:
        case str():
            return value
        case {"text": str(text)}:
            return text
        case {"first": str(first), "second": str(second)}:
            return first, second
        case {"token_ids": [*ids]} if all(type(token_id) is int for token_id in ids):
            return ids
        case _:
            wanted = 'a string, {"text": ...}, {"first": ..., "second": ...} or {"token_ids": [...]}'
            raise _bad_line(number, f"is not {wanted}")


def _split(descriptor: int) -> Iterator[bytes]:
    rest = b""
    while block := os.read(descriptor, BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            yield rest  # refused by `_decode`
    if rest:
        yield rest


def _decode(number: int, line: bytes) -> str:
    if len(line) > MAX_LINE_BYTES:
        raise _bad_line(number, f"has more than {MAX_LINE_BYTES:,} bytes")
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise _bad_line(number, "is not UTF-8") from None


def _bad_line(number: int, description: str) -> InvalidRequestError:
    return InvalidRequestError.of([FieldViolation(field=f"line {number}", description=description)])
