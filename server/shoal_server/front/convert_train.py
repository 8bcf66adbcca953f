"""What control says of jobs and datasets, as the protocol says it, and checks of what clients say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from shoal.v1 import train_pb2

from shoal_server.errors import InvalidRequest
from shoal_server.front.convert import duration, timestamp, unknown_enum
from shoal_server.front.convert_models import metrics
from shoal_server.front.spec_tree import enum_number, enum_word, to_spec
from shoal_server.ipc.calls import DatasetStatus, JobEvent, JobStatus

MAX_ID_CHARACTERS: Final = 64
DATASET_SCHEME: Final = "dataset://"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMATS: Final = train_pb2.DataFormat.DESCRIPTOR
_STATES: Final = train_pb2.JobState.DESCRIPTOR
_REASONS: Final = train_pb2.FailureReason.DESCRIPTOR


def required_id(value: str, field: str) -> str:
    """An id of 1 to 64 characters. Raises InvalidRequest otherwise."""
    if not 1 <= len(value) <= MAX_ID_CHARACTERS:
        raise InvalidRequest.of(field, f"has {len(value):,} characters; allowed are 1 to {MAX_ID_CHARACTERS}")
    return value


def dataset_name(value: str) -> str:
    """`dataset://<sha256>`. Raises InvalidRequest otherwise."""
    if not value.startswith(DATASET_SCHEME) or not _SHA256.fullmatch(value.removeprefix(DATASET_SCHEME)):
        raise InvalidRequest.of("name", f"is not {DATASET_SCHEME} and 64 lower-case hexadecimal digits")
    return value


def sha256(value: str, field: str) -> str:
    """A digest. Raises InvalidRequest otherwise."""
    if not _SHA256.fullmatch(value):
        raise InvalidRequest.of(field, "is not 64 lower-case hexadecimal digits")
    return value


def format_word(value: int, field: str) -> str:
    """A format: "csv", "jsonl" or "parquet". Raises InvalidRequest otherwise."""
    if value == train_pb2.DATA_FORMAT_UNSPECIFIED:
        raise InvalidRequest.of(field, "is required")
    if value not in _FORMATS.values_by_number:
        raise unknown_enum(field, value)
    return enum_word(_FORMATS, value)


def dataset(status: DatasetStatus) -> train_pb2.Dataset:
    """A stored dataset."""
    return train_pb2.Dataset(
        name=status.name,
        format=enum_number(_FORMATS, status.format),  # type: ignore[arg-type]
        size_bytes=status.size_bytes,
        create_time=timestamp(status.create_time_s),
    )


def job(status: JobStatus) -> train_pb2.TrainingJob:
    """A training job; times that have not come stay unset."""
    return train_pb2.TrainingJob(
        id=status.id,
        spec=to_spec(status.spec),
        state=_state(status.state),
        failure=_failure(status.failure_reason, status.failure_message),
        progress=_progress(status.progress),
        metrics=metrics(status.metrics),
        published_version=status.published_version,
        create_time=timestamp(status.create_time_s) if status.create_time_s else None,
        start_time=timestamp(status.start_time_s) if status.start_time_s else None,
        end_time=timestamp(status.end_time_s) if status.end_time_s else None,
        num_attempts=status.num_attempts,
    )


def event(found: JobEvent) -> train_pb2.TrainingEvent:
    """One event; a kind that this build does not know has neither of the fields."""
    message = train_pb2.TrainingEvent(sequence=found.sequence, time=timestamp(found.time_s))
    match found.kind:
        case "state":
            failure = _failure(found.failure_reason, found.failure_message)
            message.state_changed.CopyFrom(train_pb2.StateChanged(state=_state(found.state), failure=failure))
        case "progress":
            message.progress.CopyFrom(_progress(found.progress) or train_pb2.JobProgress())
        case "evaluation":
            evaluation = train_pb2.Evaluation(step=found.step, metrics=metrics(found.metrics), final=found.final)
            message.evaluation.CopyFrom(evaluation)
        case "checkpoint":
            message.checkpoint_saved.step = found.step
            message.checkpoint_saved.SetInParent()
        case "published":
            message.version_published.CopyFrom(train_pb2.VersionPublished(model=found.model, version=found.version))
        case "warning":
            message.warning.message = found.message
            message.warning.SetInParent()
    return message


def _state(word: str) -> Any:
    return enum_number(_STATES, word) if word else train_pb2.JOB_STATE_UNSPECIFIED


def _failure(reason: str, message: str) -> train_pb2.JobFailure | None:
    if not reason:
        return None
    return train_pb2.JobFailure(reason=enum_number(_REASONS, reason), message=message)  # type: ignore[arg-type]


def _progress(figures: Mapping[str, float]) -> train_pb2.JobProgress | None:
    if not figures:
        return None
    return train_pb2.JobProgress(
        step=int(figures.get("step", 0)),
        total_steps=int(figures.get("total_steps", 0)),
        epoch=figures.get("epoch", 0.0),
        loss=figures.get("loss", 0.0),
        learning_rate=figures.get("learning_rate", 0.0),
        time_left=duration(figures["time_left_s"]) if figures.get("time_left_s") is not None else None,
    )
