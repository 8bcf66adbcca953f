"""Where a spec's names lead: datasets, files under allowed folders. No torch here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

DATASET_SCHEME = "dataset://"
FORMATS = ("csv", "jsonl", "parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PlaceError(Exception):
    """A name leads nowhere, or where it may not. `kind` is the error class a server answers with."""

    def __init__(self, description: str, kind: str = "InvalidRequest") -> None:
        super().__init__(description)
        self.description = description
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders a job may touch."""

    repository: Path
    data_roots: tuple[Path, ...]  # specs may name paths below these only; relative names are looked up in each
    dataset_dir: Path | None  # holds <sha256>.<format>


def find_data(reference: str, places: Places) -> tuple[str, Path]:
    """The reference as stored in the resolved spec, and the file it names.

    Raises:
        PlaceError: there is no such dataset or file, its format is unknown, or it lies outside the roots.
    """
    if reference.startswith(DATASET_SCHEME):
        return reference, _find_dataset(reference, places)
    path = find_under_roots(reference, places.data_roots)
    if not path.is_file():
        raise PlaceError(f"{reference} is not a file")
    if path.suffix.removeprefix(".") not in FORMATS:
        raise PlaceError(f"{reference} must end in .{', .'.join(FORMATS)}")
    return str(path), path


def find_under_roots(reference: str, roots: tuple[Path, ...]) -> Path:
    """The real path of something that exists below one of the roots, every symbolic link followed before the check.

    Raises:
        PlaceError: it does not exist or lies outside.
    """
    if not roots:
        raise PlaceError("paths are not allowed here: no data_roots are configured; upload a dataset instead")
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    for root in real_roots:
        path = Path(os.path.realpath(root / reference))  # an absolute reference replaces the root
        if any(path.is_relative_to(allowed) for allowed in real_roots) and path.exists():
            return path
    # The same answer for what is missing and what lies elsewhere, so that nobody can probe for files.
    raise PlaceError(f"{reference} does not exist below the configured data_roots")


def _find_dataset(reference: str, places: Places) -> Path:
    digest = reference.removeprefix(DATASET_SCHEME)
    if not _SHA256.fullmatch(digest):
        raise PlaceError(f"{reference[:90]} is not {DATASET_SCHEME} and 64 lower-case hexadecimal digits")
    for suffix in FORMATS:
        if places.dataset_dir is not None and (path := places.dataset_dir / f"{digest}.{suffix}").is_file():
            return path
    raise PlaceError(f"{reference} is not stored here; upload it first", kind="DatasetNotFound")
