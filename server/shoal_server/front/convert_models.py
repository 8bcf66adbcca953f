"""What control says of models, as the protocol says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from shoal.v1 import classify_pb2, model_pb2

from shoal_server.front.convert import duration, timestamp
from shoal_server.front.convert_classify import head_kind
from shoal_server.ipc.calls import ModelStatus, VersionStatus
from shoal_server.ipc.messages import ModelKind, VersionState

_KINDS: Final = {
    ModelKind.CLASSIFIER: model_pb2.MODEL_KIND_CLASSIFIER,
    ModelKind.GENERATOR: model_pb2.MODEL_KIND_GENERATOR,
    ModelKind.BASE: model_pb2.MODEL_KIND_BASE,
}
_STATES: Final = {
    VersionState.AVAILABLE: model_pb2.VERSION_STATE_AVAILABLE,
    VersionState.LOADING: model_pb2.VERSION_STATE_LOADING,
    VersionState.LIVE: model_pb2.VERSION_STATE_LIVE,
    VersionState.DRAINING: model_pb2.VERSION_STATE_DRAINING,
    VersionState.REJECTED: model_pb2.VERSION_STATE_REJECTED,
    VersionState.UNLOADED: model_pb2.VERSION_STATE_UNLOADED,
    VersionState.IDLE: model_pb2.VERSION_STATE_IDLE,
}


def model(status: ModelStatus) -> model_pb2.Model:
    """A model and all of its versions."""
    return model_pb2.Model(
        name=status.name,
        kind=_KINDS[status.kind],
        versions=[version(one) for one in status.versions],
        default_version=status.default_version,
    )


def version(status: VersionStatus) -> model_pb2.ModelVersion:
    """One version; times that control does not know stay unset."""
    return model_pb2.ModelVersion(
        version=status.version,
        state=_STATES[status.state],
        reason=status.reason,
        labels=status.labels,
        publish_time=timestamp(status.publish_time_s) if status.publish_time_s else None,
        load_duration=duration(status.load_s) if status.load_s else None,
        weight_bytes=status.weight_bytes,
        memory_bytes=status.memory_bytes,
        execution=status.execution,
        compute_dtype=status.compute_dtype,
        architecture=status.architecture,
        max_tokens=status.max_tokens,
        class_labels=status.class_labels,
        head=head_kind(status.head) if status.head else classify_pb2.HEAD_KIND_UNSPECIFIED,
        chat=status.chat,
        job_id=status.job_id,
        metrics=metrics(status.metrics),
    )


def metrics(figures: Mapping[str, float]) -> list[model_pb2.Metric]:
    """Named figures, by name."""
    return [model_pb2.Metric(name=name, value=value) for name, value in sorted(figures.items())]
