"""From files to examples: checks of every row, label ids, the split of validation rows, digests. No torch here.

Rows are held as (text, pair, label). Whatever is wrong with them is collected over whole files and told with line
numbers.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_models import manifest as manifests

from shoal_training.failures import BadData
from shoal_training.places import Places, find_data
from shoal_training.readers import Faults, read_rows
from shoal_training.spec import DataSpec

MAX_LABELS = 4096
MAX_LABEL_CHARACTERS = 256
_NOT_A_LABEL = frozenset({"nan", "null", "none", "n/a", "<na>"})  # what data frames write for a missing value


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row."""

    text: str
    pair: str | None = None
    label: int | None = None  # an index into `Corpus.labels`


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All rows of a job."""

    train: list[Example]
    validation: list[Example]
    labels: tuple[str, ...]  # names by id, sorted; empty where the objective has none
    digests: dict[str, str]  # "train" and, where a file was named, "validation" -> SHA-256 of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedRow:
    line: int
    text: str
    pair: str | None
    label: str | None


def load_corpus(spec: DataSpec, places: Places, seed: int) -> Corpus:
    """Read and check the files of a job and set validation rows aside.

    Raises:
        BadData: with the line numbers of bad rows.
        PlaceError: a file is gone.
    """
    train_path = find_data(spec.train, places)[1]
    rows = _read(train_path, "train", spec)
    digests = {"train": manifests.sha256_of(train_path)}
    labels = _label_names(rows) if spec.label_column else ()
    train = _to_examples(rows, labels, Faults(file="train"))
    if spec.validation:
        path = find_data(spec.validation, places)[1]
        validation = _to_examples(_read(path, "validation", spec), labels, Faults(file="validation"))
        digests["validation"] = manifests.sha256_of(path)
    else:
        train, validation = split(train, spec.validation_fraction, seed)
    return Corpus(train=train, validation=validation, labels=labels, digests=digests)


def split(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, each in file order; every label keeps its share where it has rows enough.

    A label's last row always stays with training, so that a label of one row is never only validated.
    """
    groups: defaultdict[int | None, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.label].append(index)
    chooser = random.Random(f"{seed}:split")  # noqa: S311
    aside: set[int] = set()
    for _, members in sorted(groups.items(), key=lambda item: -1 if item[0] is None else item[0]):
        chooser.shuffle(members)
        aside.update(members[: min(round(len(members) * fraction), len(members) - 1)])
    return (
        [example for index, example in enumerate(examples) if index not in aside],
        [example for index, example in enumerate(examples) if index in aside],
    )


def _read(path: Path, file: str, spec: DataSpec) -> list[_NamedRow]:
    columns = tuple(name for name in (spec.text_column, spec.text_pair_column, spec.label_column) if name)
    faults = Faults(file=file)
    rows: list[_NamedRow] = []
    for row in read_rows(path, columns, faults):
        values = dict(zip(columns, row.values, strict=True))
        text = _check_text(values[spec.text_column], spec.text_column, row.line, faults)
        pair = label = None
        if spec.text_pair_column:
            pair = _check_text(values[spec.text_pair_column], spec.text_pair_column, row.line, faults)
        if spec.label_column:
            label = _check_label(values[spec.label_column], row.line, faults)
        rows.append(_NamedRow(line=row.line, text=text or "", pair=pair, label=label))
    faults.raise_if_any()
    if not rows:
        raise BadData(f"{file}: has no rows")
    return rows


def _check_text(value: Any, column: str, line: int, faults: Faults) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        faults.add(line, f"{column} is missing")
    elif not isinstance(value, str):
        faults.add(line, f"{column} is not text")
    elif not value.strip():
        faults.add(line, f"{column} is empty")
    elif any("\ud800" <= character <= "\udfff" for character in value):
        faults.add(line, f"{column} holds half of a surrogate pair")
    else:
        return value
    return None


def _check_label(value: Any, line: int, faults: Faults) -> str | None:
    """The label as text; whole numbers are written in decimal."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        faults.add(line, "label is missing")
    elif isinstance(value, bool) or not isinstance(value, str | int):
        faults.add(line, "label is neither text nor a whole number")
    elif not (label := str(value).strip()) or label.lower() in _NOT_A_LABEL:
        faults.add(line, "label is missing")
    elif len(label) > MAX_LABEL_CHARACTERS:
        faults.add(line, f"label has {len(label):,} characters; limit {MAX_LABEL_CHARACTERS}")
    else:
        return label
    return None


def _label_names(rows: list[_NamedRow]) -> tuple[str, ...]:
    names = sorted({row.label for row in rows if row.label is not None})
    if len(names) < 2:
        raise BadData(f"train: has {len(names)} different labels; at least 2 are needed")
    if len(names) > MAX_LABELS:
        raise BadData(f"train: has {len(names):,} different labels; limit {MAX_LABELS:,}")
    return tuple(names)


def _to_examples(rows: list[_NamedRow], labels: tuple[str, ...], faults: Faults) -> list[Example]:
    ids = {name: index for index, name in enumerate(labels)}
    examples: list[Example] = []
    for row in rows:
        label = None
        if row.label is not None:
            label = ids.get(row.label)
            if label is None:
                faults.add(row.line, "label does not occur in train")
        examples.append(Example(text=row.text, pair=row.pair, label=label))
    faults.raise_if_any()
    return examples
