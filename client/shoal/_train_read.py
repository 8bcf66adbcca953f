"""Messages of TrainService as typed results."""

from __future__ import annotations

from shoal import types
from shoal._models import read_metrics
from shoal._words import Words, optional_seconds, optional_time
from shoal.v1 import train_pb2

FORMATS = Words(train_pb2.DataFormat)
JOB_STATES = Words(train_pb2.JobState)
FAILURES = Words(train_pb2.FailureReason)


def read_dataset(dataset: train_pb2.Dataset) -> types.Dataset:
    """A stored dataset."""
    return types.Dataset(
        name=dataset.name,
        format=FORMATS.word(dataset.format),
        size_bytes=dataset.size_bytes,
        create_time=optional_time(dataset, "create_time"),
    )


def read_job(job: train_pb2.TrainingJob) -> types.TrainingJob:
    """A training job."""
    return types.TrainingJob(
        id=job.id,
        spec=job.spec,
        state=JOB_STATES.word(job.state),
        failure=_read_failure(job.failure) if job.HasField("failure") else None,
        progress=_read_progress(job.progress) if job.HasField("progress") else None,
        metrics=read_metrics(job.metrics),
        published_version=job.published_version,
        create_time=optional_time(job, "create_time"),
        start_time=optional_time(job, "start_time"),
        end_time=optional_time(job, "end_time"),
        num_attempts=job.num_attempts,
    )


def read_event(event: train_pb2.TrainingEvent) -> types.TrainingEvent:
    """Something that happened to a job."""
    return types.TrainingEvent(sequence=event.sequence, time=optional_time(event, "time"), event=_read_kind(event))


def _read_kind(event: train_pb2.TrainingEvent) -> types.JobEvent | None:
    match event.WhichOneof("event"):
        case "state_changed":
            changed = event.state_changed
            failure = _read_failure(changed.failure) if changed.HasField("failure") else None
            return types.StateChanged(state=JOB_STATES.word(changed.state), failure=failure)
        case "progress":
            return _read_progress(event.progress)
        case "evaluation":
            evaluation = event.evaluation
            return types.Evaluation(
                step=evaluation.step, metrics=read_metrics(evaluation.metrics), final=evaluation.final
            )
        case "checkpoint_saved":
            return types.CheckpointSaved(step=event.checkpoint_saved.step)
        case "version_published":
            return types.VersionPublished(model=event.version_published.model, version=event.version_published.version)
        case "warning":
            return types.JobWarning(message=event.warning.message)
        case _:
            return None


def _read_failure(failure: train_pb2.JobFailure) -> types.JobFailure:
    return types.JobFailure(reason=FAILURES.word(failure.reason), message=failure.message)


def _read_progress(progress: train_pb2.JobProgress) -> types.JobProgress:
    return types.JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        time_left_s=optional_seconds(progress, "time_left"),
    )
