"""One upload: chunks of a dataset into the file that control gave, written and hashed in threads."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Final

from shoal.v1 import train_pb2

from shoal_server.errors import InternalFault, InvalidRequest, StorageFull
from shoal_server.front import convert_train
from shoal_server.front.control_client import ControlClient
from shoal_server.front.interceptors import Incoming
from shoal_server.front.rpc import Rpc
from shoal_server.ipc import calls

MAX_CHUNK_BYTES: Final = 2**20
WRITE_BYTES: Final = 4 * 2**20  # chunks are gathered into writes of so many bytes
_STORAGE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})
_Requests = Incoming[train_pb2.UploadDatasetRequest]


async def upload_dataset(rpc: Rpc, control: ControlClient, requests: _Requests, max_bytes: int) -> calls.DatasetStatus:
    """Store what the client sends and answer with the dataset; bytes that are there already are not asked for.

    Raises:
        InvalidRequest: the description is wrong, or the bytes are not what it says.
        StorageFull: the disk is full or not writable.
    """
    begin = _begin(await requests.read(), max_bytes)
    slot = await control.call(rpc, begin, calls.UploadSlot)
    if slot.existing is not None:
        return slot.existing
    is_stored = False
    try:
        await _receive(slot.path, requests, begin)
        commit = calls.CommitUpload(
            path=slot.path, sha256=begin.sha256, size_bytes=begin.size_bytes, format=begin.format
        )
        status = await control.call(rpc, commit, calls.DatasetStatus)
        is_stored = True
        return status
    finally:
        if not is_stored:
            _remove(slot.path)


def _begin(message: train_pb2.UploadDatasetRequest | None, max_bytes: int) -> calls.BeginUpload:
    if message is None or message.WhichOneof("message") != "info":
        raise InvalidRequest.of("info", "must be the first message of the stream")
    info = message.info
    if not 1 <= info.size_bytes <= max_bytes:
        raise InvalidRequest.of("info.size_bytes", f"is {info.size_bytes:,}; allowed are 1 to {max_bytes:,}")
    return calls.BeginUpload(
        sha256=convert_train.sha256(info.sha256, "info.sha256"),
        size_bytes=info.size_bytes,
        format=convert_train.format_word(info.format, "info.format"),
    )


async def _receive(path: str, requests: _Requests, begin: calls.BeginUpload) -> None:
    file = await asyncio.to_thread(_open, path)
    try:
        digest = await _copy(file, requests, begin.size_bytes)
        await asyncio.to_thread(_sync, file)
    finally:
        file.close()
    if digest != begin.sha256:
        raise InvalidRequest.of("info.sha256", f"says {begin.sha256}; the bytes have {digest}")


async def _copy(file: BinaryIO, requests: _Requests, size_bytes: int) -> str:
    """Write what comes; returns the SHA-256 of all of it."""
    digest = hashlib.sha256()
    num_bytes = 0
    gathered = bytearray()
    while (message := await requests.read()) is not None:
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest.of("chunk", "every message after the first must carry a chunk")
        if not 1 <= len(message.chunk) <= MAX_CHUNK_BYTES:
            raise InvalidRequest.of("chunk", f"has {len(message.chunk):,} bytes; allowed are 1 to {MAX_CHUNK_BYTES:,}")
        num_bytes += len(message.chunk)
        if num_bytes > size_bytes:
            raise InvalidRequest.of("info.size_bytes", f"says {size_bytes:,}; there are more bytes")
        gathered += message.chunk
        if len(gathered) >= WRITE_BYTES:
            await asyncio.to_thread(_write, file, digest, bytes(gathered))
            gathered.clear()
    await asyncio.to_thread(_write, file, digest, bytes(gathered))
    if num_bytes != size_bytes:
        raise InvalidRequest.of("info.size_bytes", f"says {size_bytes:,}; there were {num_bytes:,} bytes")
    return digest.hexdigest()


def _open(path: str) -> BinaryIO:
    try:
        return Path(path).open("wb")
    except OSError as error:
        raise _storage_error(error) from None


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)  # control has renamed it if it was committed after all


def _write(file: BinaryIO, digest: Any, data: bytes) -> None:
    digest.update(data)
    try:
        file.write(data)
    except OSError as error:
        raise _storage_error(error) from None


def _sync(file: BinaryIO) -> None:
    try:
        file.flush()
    except OSError as error:
        raise _storage_error(error) from None


def _storage_error(error: OSError) -> StorageFull | InternalFault:
    if error.errno in _STORAGE_ERRORS:
        return StorageFull(f"the dataset cannot be stored: {error.strerror}")
    return InternalFault("the dataset cannot be stored")
