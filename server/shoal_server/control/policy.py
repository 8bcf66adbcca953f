"""Which versions of a model shall be served: the record people change, its file, and the rule.

One small file for each model under `<state_dir>/models`, replaced whole by compare-and-swap on its revision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from shoal_server.config import ModelPolicy
from shoal_server.errors import StorageFull
from shoal_server.log import Log

_log = Log(__name__)


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What people have asked for, one model. Survives restarts."""

    revision: int = 0  # grows with every change; 0: never written
    labels: dict[str, int] = {}
    wanted: list[int] = []  # explicit loads of versions that the policy alone would not serve
    unloaded: list[int] = []  # explicit unloads
    unloaded_all: bool = False  # the whole model, versions yet to come included

    def is_unloaded(self, version: int) -> bool:
        """Whether an explicit unload holds for the version."""
        return self.unloaded_all or version in self.unloaded

    def labels_of(self, version: int) -> list[str]:
        """Labels that point at the version, sorted."""
        return sorted(label for label, target in self.labels.items() if target == version)


class RevisionMoved(Exception):
    """The record was changed by someone else meanwhile."""


def wanted_versions(
    policy: ModelPolicy, record: ModelRecord, candidates: Collection[int], pending: Collection[int]
) -> set[int]:
    """Versions that shall be live. `candidates` can be loaded and are not refused; `pending` wait for a label.

    An unload never makes another version load: where the newest was unloaded by hand, no older one takes its place.
    """
    chosen = set(pending) | set(record.wanted) | set(record.labels.values())
    if policy.serve == "latest":
        chosen |= {max(candidates)} if candidates else set()
    elif policy.serve != "labelled":
        chosen |= set(policy.serve)
    return {version for version in chosen if version in candidates and not record.is_unloaded(version)}


def record_loaded(record: ModelRecord, version: int, others: Collection[int], *, named: bool, pin: bool) -> ModelRecord:
    """The record after an explicit load. `named`: the caller named the version; `pin`: the policy would not serve it.

    A load that names a version leaves the others of a wholly unloaded model unloaded; one that names none undoes all.
    """
    unloaded = set(others) | set(record.unloaded) if record.unloaded_all else set(record.unloaded)
    unloaded = (unloaded - {version}) if named else set()
    wanted = set(record.wanted) | {version} if pin else set(record.wanted)
    return msgspec.structs.replace(record, unloaded=sorted(unloaded), unloaded_all=False, wanted=sorted(wanted))


def record_unloaded(record: ModelRecord, version: int | None) -> ModelRecord:
    """The record after an explicit unload of one version, or of all."""
    if version is None:
        return msgspec.structs.replace(record, unloaded=[], unloaded_all=True, wanted=[])
    return msgspec.structs.replace(
        record,
        unloaded=sorted({*record.unloaded, version}),
        wanted=[number for number in record.wanted if number != version],
    )


class RecordStore:
    """The files of all records; the only writer of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load_all(self) -> dict[str, ModelRecord]:
        """Every record by model. A file that cannot be read is reported and left alone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return {path.stem: self._read(path) for path in sorted(self._folder.glob("*.json"))}

    def change(self, model: str, expected: ModelRecord, change: Callable[[ModelRecord], ModelRecord]) -> ModelRecord:
        """Replace a record durably; returns the new one, its revision one higher. No change, no write.

        Raises:
            RevisionMoved: the file is not at `expected.revision`.
            StorageFull: the disk is full or not writable; the old record stands.
        """
        path = self._folder / f"{model}.json"
        if self._revision(path) != expected.revision:
            raise RevisionMoved(f"{model}: record is not at revision {expected.revision}")
        changed = change(expected)
        if changed == expected:
            return expected
        new = msgspec.structs.replace(changed, revision=expected.revision + 1)
        try:
            _replace_durably(path, msgspec.json.format(msgspec.json.encode(new)))
        except OSError as error:
            raise StorageFull(f"the state of {model} could not be written: {error.strerror}") from error
        return new

    def _read(self, path: Path) -> ModelRecord:
        try:
            return msgspec.json.decode(path.read_bytes(), type=ModelRecord)
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            _log.error("model_record_unreadable", path=path, error=error)
            raise RecordDamaged(f"{path} cannot be read: {error}") from error

    def _revision(self, path: Path) -> int:
        return self._read(path).revision if path.exists() else 0


class RecordDamaged(Exception):
    """A record's file cannot be read; serving on without it would forget labels and unloads."""


def _replace_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
