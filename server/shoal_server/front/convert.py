"""Field checks and conversions that every service shares. What is wrong is named by field, limit and value."""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from shoal.v1 import common_pb2

from shoal_server.errors import InvalidRequest
from shoal_server.front.routing import ModelReference, VersionKey
from shoal_server.front.rpc import Rpc
from shoal_server.ipc.messages import Priority

MODEL_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}")
LABEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
MAX_VERSION: Final = 2**53
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
_PRIORITIES: Final = {
    common_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    common_pb2.PRIORITY_LOW: Priority.LOW,
    common_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    common_pb2.PRIORITY_HIGH: Priority.HIGH,
}


def model_reference(reference: common_pb2.ModelRef, field: str = "model") -> ModelReference:
    """Which model and version is meant.

    Raises:
        InvalidRequest: a name, version or label that none can have.
    """
    name = model_name(reference.name, f"{field}.name")
    match reference.WhichOneof("selector"):
        case "version":
            return ModelReference(name=name, version=version_number(reference.version, f"{field}.version"))
        case "label":
            return ModelReference(name=name, label=label_name(reference.label, f"{field}.label"))
        case _:
            return ModelReference(name=name)


def model_name(name: str, field: str) -> str:
    """A name that a model can have. Raises InvalidRequest otherwise."""
    if not name:
        raise InvalidRequest.of(field, "is required")
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest.of(
            field, "is not 1 to 128 characters of a-z A-Z 0-9 . _ - that begin with a letter or digit"
        )
    return name


def label_name(label: str, field: str) -> str:
    """A label that a version can have. Raises InvalidRequest otherwise."""
    if not LABEL.fullmatch(label):
        raise InvalidRequest.of(field, "is not 1 to 64 characters of a-z 0-9 _ - that begin with a letter")
    return label


def version_number(version: int, field: str) -> int:
    """A number that a version can have. Raises InvalidRequest otherwise."""
    return in_range(version, field, low=1, high=MAX_VERSION)


def in_range(value: int, field: str, *, low: int, high: int) -> int:
    """The value, if it lies between the bounds or on them. Raises InvalidRequest otherwise."""
    if not low <= value <= high:
        raise InvalidRequest.of(field, f"is {value:,}; allowed are {low:,} to {high:,}")
    return value


def page_size(value: int) -> int:
    """Entries of one page; 0 means the default. Raises InvalidRequest above the limit."""
    return DEFAULT_PAGE_SIZE if value == 0 else in_range(value, "page_size", low=1, high=MAX_PAGE_SIZE)


def priority(value: int) -> Priority:
    """Raises InvalidRequest for a number that means nothing."""
    found = _PRIORITIES.get(value)  # type: ignore[call-overload]
    if found is None:
        raise unknown_enum("priority", value)
    return found  # type: ignore[no-any-return]


def unknown_enum(field: str, value: int) -> InvalidRequest:
    """The error for an enum value that this build does not know."""
    return InvalidRequest.of(field, f"has the unknown value {value}")


def check_text(text: str, field: str, max_characters: int) -> str:
    """A text, not empty and not above the limit. Raises InvalidRequest otherwise, without quoting it."""
    if not text:
        raise InvalidRequest.of(field, "is empty; at least 1 character is needed")
    if len(text) > max_characters:
        raise InvalidRequest.of(field, f"has {len(text):,} characters; limit {max_characters:,}")
    return text


def check_token_ids(ids: list[int], field: str, vocabulary_size: int) -> list[int]:
    """Token ids, at least one, all below the size of the vocabulary. Raises InvalidRequest otherwise."""
    if not ids:
        raise InvalidRequest.of(field, "is empty; at least 1 token id is needed")
    if max(ids) >= vocabulary_size:
        index = next(i for i, token_id in enumerate(ids) if token_id >= vocabulary_size)
        raise InvalidRequest.of(
            f"{field}.ids[{index}]", f"is {ids[index]:,}; the model's vocabulary ends at {vocabulary_size - 1:,}"
        )
    return ids


def duration(seconds: float) -> Duration:
    """A duration, not below 0."""
    made = Duration()
    _fill(made, seconds)
    return made


def timestamp(unix_s: float) -> Timestamp:
    """A point in time from Unix seconds."""
    whole, nanos = divmod(max(0, round(unix_s * 1e9)), 1_000_000_000)
    return Timestamp(seconds=whole, nanos=nanos)


def served_by(key: VersionKey) -> common_pb2.ServedBy:
    """Which version answered."""
    return common_pb2.ServedBy(model=key.model, version=key.version)


def timings(rpc: Rpc) -> common_pb2.Timings:
    """Where the time of an RPC went."""
    return timings_of(tokenize_s=rpc.tokenize_s, queue_s=rpc.queue_s, run_s=rpc.run_s)


def timings_of(*, tokenize_s: float, queue_s: float, run_s: float) -> common_pb2.Timings:
    """Where the time went."""
    timings = common_pb2.Timings()
    _fill(timings.tokenize, tokenize_s)
    _fill(timings.queue, queue_s)
    _fill(timings.run, run_s)
    return timings


def _fill(duration: Duration, seconds: float) -> None:
    duration.seconds, duration.nanos = divmod(max(0, round(seconds * 1e9)), 1_000_000_000)
