"""Sending a dataset: digest first, then, if the server does not have it, its bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc

from shoal import types
from shoal._connection import Connection, raise_cancelled
from shoal._kept_status import keep_status
from shoal._methods import GET_DATASET, UPLOAD_DATASET
from shoal._train_read import FORMATS, read_dataset
from shoal.errors import FieldViolation, InvalidRequestError, NotFoundError
from shoal.v1 import train_pb2

CHUNK_BYTES = 512 * 1024
FORMAT_BY_ENDING = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


async def upload(
    connection: Connection,
    path: Path,
    data_format: types.DataFormat | None,
    on_progress: Callable[[int, int], None] | None,
    options: types.CallOptions,
) -> types.Dataset:
    """See `TrainCalls.upload_dataset`."""
    number = FORMATS.number("info.format", data_format or _format_of(path))
    info = await asyncio.to_thread(_describe, path, number)
    known = await _find(connection, info, options)
    if known is not None:
        return known
    ticket = connection.ticket(UPLOAD_DATASET, options)
    stub = connection.stub(UPLOAD_DATASET, "stream_unary")
    call = keep_status(stub(timeout=ticket.timeout_s, metadata=connection.metadata(ticket)))
    try:
        await _send(call, path, info, on_progress)
        response = cast("train_pb2.UploadDatasetResponse", await call)
    except grpc.aio.AioRpcError as error:
        raise connection.explain(error, ticket) from None
    except asyncio.CancelledError:
        raise_cancelled(ticket)
    finally:
        call.cancel()
    return read_dataset(response.dataset)


def _format_of(path: Path) -> str:
    found = FORMAT_BY_ENDING.get(path.suffix.lower())
    if found is None:
        endings = ", ".join(FORMAT_BY_ENDING)
        description = f"{path.name!r} does not end in one of {endings}; name its format"
        raise InvalidRequestError.of([FieldViolation(field="info.format", description=description)])
    return found


def _describe(path: Path, number: int) -> train_pb2.DatasetInfo:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size_bytes = file.tell()
    if size_bytes == 0:
        raise InvalidRequestError.of([FieldViolation(field="info.size_bytes", description=f"{path.name!r} is empty")])
    return train_pb2.DatasetInfo(format=number, sha256=digest, size_bytes=size_bytes)  # type: ignore[arg-type]


async def _find(
    connection: Connection, info: train_pb2.DatasetInfo, options: types.CallOptions
) -> types.Dataset | None:
    request = train_pb2.GetDatasetRequest(name=f"dataset://{info.sha256}")
    try:
        response = await connection.unary(GET_DATASET, request, connection.ticket(GET_DATASET, options))
    except NotFoundError:
        return None
    return read_dataset(response.dataset) if response.dataset.format == info.format else None


async def _send(
    call: Any, path: Path, info: train_pb2.DatasetInfo, on_progress: Callable[[int, int], None] | None
) -> None:
    num_sent = 0
    try:
        await call.write(train_pb2.UploadDatasetRequest(info=info))
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await call.write(train_pb2.UploadDatasetRequest(chunk=chunk))
                num_sent += len(chunk)
                if on_progress is not None:
                    on_progress(num_sent, info.size_bytes)
        await call.done_writing()
    except asyncio.InvalidStateError:
        return  # the server has answered already; its answer says why
