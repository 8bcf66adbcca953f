"""Train and Model calls that fronts forward to control: one request struct each, and what answers it.

`ControlCall.method` is the struct's class name. Results and items are structs of this module; specs are plain trees
with the field names of `TrainingSpec` in protos/shoal/v1/train.proto (enum values in lower case without prefix).
"""

from __future__ import annotations

from typing import Any

import msgspec

from shoal_server.ipc.messages import ModelKind, VersionState


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all requests."""


# --- results --------------------------------------------------------------------------------------------------------


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version; fields as in `ModelVersion` of model.proto."""

    version: int
    state: VersionState
    reason: str = ""
    labels: list[str] = []
    publish_time_s: float = 0.0  # Unix time
    load_s: float = 0.0
    weight_bytes: int = 0
    memory_bytes: int = 0  # that it holds now, over all engines
    execution: str = ""
    compute_dtype: str = ""
    architecture: str = ""
    max_tokens: int = 0
    class_labels: list[str] = []
    head: str = ""  # "", "single_label", "multi_label", "regression" or "token"
    chat: bool = False
    job_id: str = ""
    metrics: dict[str, float] = {}


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    name: str
    kind: ModelKind
    versions: list[VersionStatus]  # newest first
    default_version: int


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some models."""

    models: list[ModelStatus]
    next_page_token: str


class Woken(msgspec.Struct, frozen=True, kw_only=True):
    """A version rests no more."""

    revision: int  # of the routing table that says what became of it


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of versions."""

    versions: list[int]


class Empty(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to tell."""


class DatasetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A stored dataset."""

    name: str  # dataset://<sha256>
    format: str  # "csv", "jsonl" or "parquet"
    size_bytes: int
    create_time_s: float  # Unix time


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A training job; fields as in `TrainingJob` of train.proto."""

    id: str
    spec: dict[str, Any]  # resolved
    state: str  # lower-case JobState, such as "running"
    failure_reason: str = ""  # lower-case FailureReason, such as "bad_data"
    failure_message: str = ""
    progress: dict[str, float] = {}  # step, total_steps, epoch, loss, learning_rate, time_left_s
    metrics: dict[str, float] = {}
    published_version: int = 0
    create_time_s: float = 0.0
    start_time_s: float = 0.0
    end_time_s: float = 0.0
    num_attempts: int = 0


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some jobs, newest first."""

    jobs: list[JobStatus]
    next_page_token: str


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a job's history. `kind` says which of the other fields are set."""

    sequence: int
    time_s: float  # Unix time
    kind: str  # "state", "progress", "evaluation", "checkpoint", "published" or "warning"
    state: str = ""
    failure_reason: str = ""
    failure_message: str = ""
    progress: dict[str, float] = {}
    step: int = 0
    metrics: dict[str, float] = {}
    final: bool = False
    model: str = ""
    version: int = 0
    message: str = ""


# --- Model calls ----------------------------------------------------------------------------------------------------


class ListModels(Call, frozen=True, kw_only=True):
    """Answered by `ModelPage`."""

    page_size: int
    page_token: str


class GetModel(Call, frozen=True, kw_only=True):
    """Answered by `ModelStatus`."""

    name: str


class LoadModel(Call, frozen=True, kw_only=True):
    """Answered by `VersionStatus` when it is live or refused."""

    name: str
    version: int | None


class WakeVersion(Call, frozen=True, kw_only=True):
    """Requests wait for a version that comes on demand. Answered by `Woken` when it is live or will not be."""

    name: str
    version: int


class UnloadModel(Call, frozen=True, kw_only=True):
    """Answered by `VersionList`."""

    name: str
    version: int | None


class DeleteModelVersion(Call, frozen=True, kw_only=True):
    """Answered by `Empty`."""

    name: str
    version: int


class SetModelLabel(Call, frozen=True, kw_only=True):
    """Answered by `ModelStatus`."""

    name: str
    label: str
    version: int | None  # None removes the label
    expected_version: int | None  # 0: nowhere; None: no matter


# --- Train calls ----------------------------------------------------------------------------------------------------


class BeginUpload(Call, frozen=True, kw_only=True):
    """Answered by `UploadSlot`: where the front may write the bytes."""

    sha256: str
    size_bytes: int
    format: str


class UploadSlot(msgspec.Struct, frozen=True, kw_only=True):
    """A file to write, or the dataset that is there already."""

    path: str  # empty when `existing` is set
    existing: DatasetStatus | None = None


class CommitUpload(Call, frozen=True, kw_only=True):
    """The front wrote and hashed the whole file. Answered by `DatasetStatus`."""

    path: str
    sha256: str
    size_bytes: int
    format: str


class GetDataset(Call, frozen=True, kw_only=True):
    """Answered by `DatasetStatus`."""

    name: str


class DeleteDataset(Call, frozen=True, kw_only=True):
    """Answered by `Empty`."""

    name: str


class CreateJob(Call, frozen=True, kw_only=True):
    """Answered by `JobStatus`; with `validate_only` only its spec is set."""

    request_id: str
    spec: dict[str, Any]
    validate_only: bool


class GetJob(Call, frozen=True, kw_only=True):
    """Answered by `JobStatus`."""

    id: str


class ListJobs(Call, frozen=True, kw_only=True):
    """Answered by `JobPage`."""

    page_size: int
    page_token: str


class CancelJob(Call, frozen=True, kw_only=True):
    """Answered by `JobStatus`."""

    id: str


class DeleteJob(Call, frozen=True, kw_only=True):
    """Answered by `Empty`."""

    id: str


class WatchJob(Call, frozen=True, kw_only=True):
    """Answered by a stream of `JobEvent`, then `Empty`."""

    id: str
    from_sequence: int
