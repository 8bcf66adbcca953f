"""Reads csv, jsonl and parquet files as rows with line numbers. Knows no labels and no models.

A row that cannot be read becomes a fault with its line number; nothing of its content goes anywhere. Line numbers are
those of the file from 1 (for parquet: row numbers from 1).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal_training.failures import BadData

MAX_FIELD_CHARACTERS = 16 * 2**20
MAX_SHOWN_FAULTS = 20
_PARQUET_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The wanted columns of one row, in the order they were asked for; None where a value is missing."""

    line: int
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with the rows of one file: all are counted, the first few are kept."""

    file: str  # what the file is in the spec, such as "train"
    shown: list[tuple[int, str]] = field(default_factory=list)
    lines: set[int] = field(default_factory=set)

    def add(self, line: int, what: str) -> None:
        """Note a fault of the row at `line`; a row counts once."""
        if line in self.lines:
            return
        self.lines.add(line)
        if len(self.shown) < MAX_SHOWN_FAULTS:
            self.shown.append((line, what))

    def raise_if_any(self) -> None:
        """Raises BadData naming the first lines and how many there are."""
        if not self.lines:
            return
        parts = [f"line {line}: {what}" for line, what in sorted(self.shown)]
        if len(self.lines) > len(parts):
            parts.append(f"and {len(self.lines) - len(parts):,} more")
        raise BadData(f"{self.file}: {len(self.lines):,} bad rows: {'; '.join(parts)}")


def read_rows(path: Path, columns: tuple[str, ...], faults: Faults) -> Iterator[Row]:
    """The rows of a file that could be read; the others are noted in `faults`.

    Raises:
        BadData: the file as a whole cannot be read, or lacks a column.
    """
    readers: dict[str, Callable[[Path, tuple[str, ...], Faults], Iterator[Row]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    return readers[path.suffix](path, columns, faults)


def _read_csv(path: Path, columns: tuple[str, ...], faults: Faults) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    lines = _TextLines(path, faults)
    reader = csv.reader(lines, strict=True)
    header = _read_header(reader, faults)
    places = [_column_place(header, column, faults.file) for column in columns]
    start = lines.number + 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            faults.add(start, "is not valid csv (a quote that does not end, or a field that is too long)")
            return
        line, start = start, lines.number + 1
        if lines.undecodable.intersection(range(line, start)) or not cells:
            continue  # noted already, or an empty line
        if len(cells) != len(header):
            faults.add(line, f"has {len(cells)} fields; the header has {len(header)}")
            continue
        yield Row(line=line, values=tuple(cells[place] or None for place in places))


def _read_header(reader: Iterator[list[str]], faults: Faults) -> list[str]:
    try:
        header = next(reader)
    except StopIteration:
        raise BadData(f"{faults.file}: the file is empty") from None
    except csv.Error:
        raise BadData(f"{faults.file}: line 1: the header is not valid csv") from None
    faults.raise_if_any()  # a header that is not UTF-8
    return header


def _column_place(header: list[str], column: str, file: str) -> int:
    found = header.count(column)
    if found != 1:
        # The header itself is not shown: in a file without one it is a data row.
        named = "none" if not found else f"{found}"
        raise BadData(f"{file}: line 1: the header has {len(header)} columns, {named} of them named {column!r}")
    return header.index(column)


class _TextLines:
    """Lines of a UTF-8 file. A line that is not UTF-8 is noted, and passed on in a form that keeps quotes in place."""

    def __init__(self, path: Path, faults: Faults) -> None:
        self.number = 0  # of the line given last
        self.undecodable: set[int] = set()
        self._faults = faults
        self._lines = _numbered_lines(path)

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        self.number, data = next(self._lines)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.undecodable.add(self.number)
            self._faults.add(self.number, "is not UTF-8")
            return data.decode("utf-8", errors="replace")


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            yield number, data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data


def _read_jsonl(path: Path, columns: tuple[str, ...], faults: Faults) -> Iterator[Row]:
    empty = True
    for number, data in _numbered_lines(path):
        if not data.strip():
            continue
        empty = False
        try:
            tree = json.loads(data.decode("utf-8"))
        except UnicodeDecodeError:
            faults.add(number, "is not UTF-8")
            continue
        except (ValueError, RecursionError):
            faults.add(number, "is not JSON")
            continue
        if not isinstance(tree, dict):
            faults.add(number, "is not a JSON object")
            continue
        missing = [column for column in columns if column not in tree]
        if missing:
            faults.add(number, f"has no field {missing[0]!r}")
            continue
        yield Row(line=number, values=tuple(tree[column] for column in columns))
    if empty:
        raise BadData(f"{faults.file}: the file is empty")


def _read_parquet(path: Path, columns: tuple[str, ...], faults: Faults) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for column in columns:
                if names.count(column) != 1:
                    raise BadData(f"{faults.file}: {names.count(column) or 'none'} of its columns named {column!r}")
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=list(columns)):
                for values in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                    number += 1
                    yield Row(line=number, values=values)
    except (pa.ArrowException, UnicodeDecodeError, EOFError) as error:
        raise BadData(f"{faults.file}: is not a readable parquet file ({type(error).__name__})") from None
