"""What all calls to a model share: naming it, priority, and reading who answered and how long it took."""

from __future__ import annotations

from shoal import types
from shoal._words import Words, seconds
from shoal.errors import FieldViolation, InvalidRequestError
from shoal.v1 import common_pb2

PRIORITIES = Words(common_pb2.Priority)


def model_ref(model: str, options: types.ModelOptions) -> common_pb2.ModelRef:
    """The model and, at most one of them, version or label.

    Raises:
        InvalidRequestError: both are given, or the version is no number a version can have.
    """
    version, label = options.get("version"), options.get("label")
    if version is not None and label is not None:
        raise InvalidRequestError.of(
            [FieldViolation(field="model.label", description="give version or label, not both")]
        )
    if version is not None:
        return common_pb2.ModelRef(name=model, version=checked_version("model.version", version))
    return common_pb2.ModelRef(name=model, label=label) if label is not None else common_pb2.ModelRef(name=model)


def checked_version(field: str, version: int) -> int:
    """A version number that can be sent.

    Raises:
        InvalidRequestError: it is below 1 or too large.
    """
    if not 1 <= version < 2**63:
        raise InvalidRequestError.of([FieldViolation(field=field, description=f"is {version}; versions begin with 1")])
    return version


def priority_number(options: types.ModelOptions) -> common_pb2.Priority:
    """The priority as it is sent.

    Raises:
        InvalidRequestError: there is no such priority.
    """
    word = options.get("priority")
    return PRIORITIES.number("priority", word) if word else 0  # type: ignore[return-value]


def read_served_by(served_by: common_pb2.ServedBy) -> types.ServedBy:
    """The version that answered."""
    return types.ServedBy(model=served_by.model, version=served_by.version)


def read_timings(timings: common_pb2.Timings) -> types.Timings:
    """Where the time went."""
    return types.Timings(
        tokenize_s=seconds(timings.tokenize), queue_s=seconds(timings.queue), run_s=seconds(timings.run)
    )
