"""Stored datasets: `<state_dir>/datasets/<sha256>.<format>`, complete or absent.

Fronts write and hash the bytes into an upload file; only here does it become a dataset, by fsync and rename.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from shoal_server.errors import DatasetInUse, DatasetNotFound, InvalidRequest, StorageFull
from shoal_server.ipc.calls import (
    BeginUpload,
    CommitUpload,
    DatasetStatus,
    DeleteDataset,
    Empty,
    GetDataset,
    UploadSlot,
)
from shoal_server.log import Log

FORMATS = ("csv", "jsonl", "parquet")
NAME_PREFIX = "dataset://"
SPARE_BYTES = 16 * 2**20  # left free beside an upload
STALE_UPLOAD_S = 6 * 3600.0  # an upload file untouched for so long belongs to nobody
_UPLOAD_PREFIX = ".upload-"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_log = Log(__name__)


class Datasets:
    """The folder of datasets; the only writer of it besides upload files."""

    def __init__(self, folder: Path, *, max_bytes: int, in_use: Callable[[], Collection[str]]) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._in_use = in_use  # dataset names that jobs which have not ended refer to

    def open(self) -> None:
        """Create the folder and remove what broken uploads have left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep(older_than_s=0.0)

    def begin(self, call: BeginUpload) -> UploadSlot:
        """A file to write the bytes to, or the dataset where they are stored already.

        Raises:
            InvalidRequest: digest, format or size.
            StorageFull: the disk has no room for it.
        """
        self._check(call)
        if existing := self._find(call.sha256):
            return UploadSlot(path="", existing=_check_format(existing, call.format))
        self._sweep(older_than_s=STALE_UPLOAD_S)
        free = shutil.disk_usage(self._folder).free
        if free < call.size_bytes + SPARE_BYTES:
            raise StorageFull(f"the dataset has {call.size_bytes:,} bytes; free on the server's disk are {free:,}")
        path = self._folder / f"{_UPLOAD_PREFIX}{uuid.uuid4().hex}"
        try:
            path.touch(exist_ok=False)
        except OSError as error:
            raise StorageFull(f"datasets cannot be stored: {error.strerror}") from error
        return UploadSlot(path=str(path))

    def commit(self, call: CommitUpload) -> DatasetStatus:
        """Make a written upload a dataset, durably.

        Raises:
            InvalidRequest: the file has another size than was announced, or is no upload of ours.
            StorageFull: it could not be written to disk.
        """
        path = Path(call.path)
        if path.parent != self._folder or not path.name.startswith(_UPLOAD_PREFIX) or not path.is_file():
            raise InvalidRequest.of("message", "the upload is unknown or was given up; begin again")
        size = path.stat().st_size
        if size != call.size_bytes:
            path.unlink()
            raise InvalidRequest.of("info.size_bytes", f"{call.size_bytes:,} announced, {size:,} received")
        if existing := self._find(call.sha256):
            path.unlink()
            return _check_format(existing, call.format)
        final = self._folder / f"{call.sha256}.{call.format}"
        try:
            _sync(path)
            path.rename(final)
            _sync(self._folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StorageFull(f"the dataset could not be stored: {error.strerror}") from error
        _log.info("dataset_stored", sha256=call.sha256, size_bytes=size, format=call.format)
        return _status(final)

    def get(self, call: GetDataset) -> DatasetStatus:
        """One dataset.

        Raises:
            InvalidRequest, DatasetNotFound.
        """
        return _status(self._path_of(call.name))

    def delete(self, call: DeleteDataset) -> Empty:
        """Remove a dataset.

        Raises:
            InvalidRequest, DatasetNotFound, DatasetInUse.
        """
        path = self._path_of(call.name)
        if call.name in self._in_use():
            raise DatasetInUse(f"{call.name} is used by a training job that has not ended")
        path.unlink()
        return Empty()

    def _check(self, call: BeginUpload) -> None:
        if not _DIGEST.fullmatch(call.sha256):
            raise InvalidRequest.of("info.sha256", "must be 64 lower-case hexadecimal digits")
        if call.format not in FORMATS:
            raise InvalidRequest.of("info.format", f"must be one of {', '.join(FORMATS)}")
        if not 0 < call.size_bytes <= self._max_bytes:
            raise InvalidRequest.of("info.size_bytes", f"is {call.size_bytes:,}; allowed are 1 to {self._max_bytes:,}")

    def _path_of(self, name: str) -> Path:
        digest = name.removeprefix(NAME_PREFIX)
        if not name.startswith(NAME_PREFIX) or not _DIGEST.fullmatch(digest):
            raise InvalidRequest.of("name", f"must be {NAME_PREFIX} and 64 lower-case hexadecimal digits")
        path = self._find(digest)
        if path is None:
            raise DatasetNotFound(f"no dataset {name}")
        return path

    def _find(self, digest: str) -> Path | None:
        paths = (self._folder / f"{digest}.{ending}" for ending in FORMATS)
        return next((path for path in paths if path.is_file()), None)

    def _sweep(self, *, older_than_s: float) -> None:
        for path in self._folder.glob(f"{_UPLOAD_PREFIX}*"):
            with suppress(FileNotFoundError):  # a front may be removing it too
                if time.time() - path.stat().st_mtime >= older_than_s:
                    path.unlink()
                    _log.info("upload_removed", file=path.name)


def _check_format(path: Path, wanted: str) -> DatasetStatus:
    stored = path.suffix.removeprefix(".")
    if stored != wanted:
        raise InvalidRequest.of("info.format", f"is {wanted}; the same bytes are stored as {stored}")
    return _status(path)


def _status(path: Path) -> DatasetStatus:
    stat = path.stat()
    return DatasetStatus(
        name=f"{NAME_PREFIX}{path.stem}",
        format=path.suffix.removeprefix("."),
        size_bytes=stat.st_size,
        create_time_s=stat.st_mtime,
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
