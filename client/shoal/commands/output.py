"""What commands print: tables for people, JSON for programs. Never a token."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.spec import spec_tree
from shoal.types import TrainingSpec

PIPE_WIDTH = 240  # columns of a table that no terminal shows
KEPT_CONTROLS = "\n\t"


class ExitCode(enum.IntEnum):
    """How the command ended; see `shoal.cli`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_NOW = 4
    NOT_ALLOWED = 5
    CANCELLED = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class _PipeConsole(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave it to `shoal.cli`, which knows the exit code."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console on today's standard output or error."""
    stream = sys.stderr if stderr else sys.stdout
    return _PipeConsole(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, soft_wrap=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """A table; columns whose name begins with ">" stand to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console().print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values below each other; empty values are left out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in ("", None, ()):
            table.add_row(name, Text(printable(str(value))))
    console().print(table)


def print_json(value: object) -> None:
    """One JSON value on a line of its own."""
    sys.stdout.write(json.dumps(to_json(value), ensure_ascii=False, allow_nan=False) + "\n")


def to_json(value: object) -> Any:
    """A result as JSON can hold it: times in ISO 8601, numbers that are not finite as null."""
    if isinstance(value, TrainingSpec):
        return to_json(spec_tree(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(below) for key, below in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, list | tuple):
        return [to_json(below) for below in value]
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def print_tree(tree: Mapping[str, Any], indent: int = 0) -> None:
    """A plain tree as YAML."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            print(f"{' ' * indent}{key}:")
            print_tree(value, indent + 2)
        else:
            print(f"{' ' * indent}{key}: {json.dumps(to_json(value), ensure_ascii=False)}")


def printable(text: str) -> str:
    """Text without characters that could steer a terminal."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in KEPT_CONTROLS else c for c in text)


def excerpt(text: str, num_characters: int = 60) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 4 * num_characters].split())
    return printable(line if len(line) <= num_characters else line[: num_characters - 1] + "…")


def local_time(time: datetime | None) -> str:
    """A time for people, in their own zone; empty where there is none."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A stretch of time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest_s:02} s"


def size(num_bytes: int) -> str:
    """A size for people."""
    value, unit = float(num_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def figures(metrics: Mapping[str, float]) -> str:
    """Figures of an evaluation on one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
