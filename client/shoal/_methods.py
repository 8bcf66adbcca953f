"""Every rpc that the client calls: its path, its messages, how long it may take, and whether it is safe to retry.

The one table from which stubs, default deadlines and the retry policy are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from shoal.v1 import classify_pb2, generate_pb2, model_pb2, train_pb2

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[RequestT, ResponseT]):
    """One rpc."""

    service: str  # full name
    name: str
    request: type[RequestT]
    response: type[ResponseT]
    timeout_s: float | None  # default deadline; None: bounded otherwise, see the method of the client
    retry: bool = False  # sent again by gRPC itself on UNAVAILABLE

    @property
    def path(self) -> str:
        """The path on the wire."""
        return f"/{self.service}/{self.name}"


_CLASSIFY = "shoal.v1.ClassifyService"
_GENERATE = "shoal.v1.GenerateService"
_MODEL = "shoal.v1.ModelService"
_TRAIN = "shoal.v1.TrainService"

CLASSIFY = Method(
    service=_CLASSIFY,
    name="Classify",
    request=classify_pb2.ClassifyRequest,
    response=classify_pb2.ClassifyResponse,
    timeout_s=30.0,
    retry=True,
)
STREAM_CLASSIFY = Method(
    service=_CLASSIFY,
    name="StreamClassify",
    request=classify_pb2.StreamClassifyRequest,
    response=classify_pb2.StreamClassifyResponse,
    timeout_s=None,
)
GENERATE = Method(
    service=_GENERATE,
    name="Generate",
    request=generate_pb2.GenerateRequest,
    response=generate_pb2.GenerateResponse,
    timeout_s=300.0,
)
STREAM_GENERATE = Method(
    service=_GENERATE,
    name="StreamGenerate",
    request=generate_pb2.StreamGenerateRequest,
    response=generate_pb2.StreamGenerateResponse,
    timeout_s=300.0,
)
LIST_MODELS = Method(
    service=_MODEL,
    name="ListModels",
    request=model_pb2.ListModelsRequest,
    response=model_pb2.ListModelsResponse,
    timeout_s=30.0,
    retry=True,
)
GET_MODEL = Method(
    service=_MODEL,
    name="GetModel",
    request=model_pb2.GetModelRequest,
    response=model_pb2.GetModelResponse,
    timeout_s=30.0,
    retry=True,
)
LOAD_MODEL = Method(
    service=_MODEL,
    name="LoadModel",
    request=model_pb2.LoadModelRequest,
    response=model_pb2.LoadModelResponse,
    timeout_s=900.0,
    retry=True,
)
UNLOAD_MODEL = Method(
    service=_MODEL,
    name="UnloadModel",
    request=model_pb2.UnloadModelRequest,
    response=model_pb2.UnloadModelResponse,
    timeout_s=60.0,
    retry=True,
)
DELETE_MODEL_VERSION = Method(
    service=_MODEL,
    name="DeleteModelVersion",
    request=model_pb2.DeleteModelVersionRequest,
    response=model_pb2.DeleteModelVersionResponse,
    timeout_s=60.0,
    retry=True,
)
SET_MODEL_LABEL = Method(
    service=_MODEL,
    name="SetModelLabel",
    request=model_pb2.SetModelLabelRequest,
    response=model_pb2.SetModelLabelResponse,
    timeout_s=30.0,
)
UPLOAD_DATASET = Method(
    service=_TRAIN,
    name="UploadDataset",
    request=train_pb2.UploadDatasetRequest,
    response=train_pb2.UploadDatasetResponse,
    timeout_s=3600.0,
)
GET_DATASET = Method(
    service=_TRAIN,
    name="GetDataset",
    request=train_pb2.GetDatasetRequest,
    response=train_pb2.GetDatasetResponse,
    timeout_s=30.0,
    retry=True,
)
DELETE_DATASET = Method(
    service=_TRAIN,
    name="DeleteDataset",
    request=train_pb2.DeleteDatasetRequest,
    response=train_pb2.DeleteDatasetResponse,
    timeout_s=30.0,
)
CREATE_TRAINING_JOB = Method(
    service=_TRAIN,
    name="CreateTrainingJob",
    request=train_pb2.CreateTrainingJobRequest,
    response=train_pb2.CreateTrainingJobResponse,
    timeout_s=60.0,
    retry=True,
)
GET_TRAINING_JOB = Method(
    service=_TRAIN,
    name="GetTrainingJob",
    request=train_pb2.GetTrainingJobRequest,
    response=train_pb2.GetTrainingJobResponse,
    timeout_s=30.0,
    retry=True,
)
LIST_TRAINING_JOBS = Method(
    service=_TRAIN,
    name="ListTrainingJobs",
    request=train_pb2.ListTrainingJobsRequest,
    response=train_pb2.ListTrainingJobsResponse,
    timeout_s=30.0,
    retry=True,
)
CANCEL_TRAINING_JOB = Method(
    service=_TRAIN,
    name="CancelTrainingJob",
    request=train_pb2.CancelTrainingJobRequest,
    response=train_pb2.CancelTrainingJobResponse,
    timeout_s=60.0,
    retry=True,
)
DELETE_TRAINING_JOB = Method(
    service=_TRAIN,
    name="DeleteTrainingJob",
    request=train_pb2.DeleteTrainingJobRequest,
    response=train_pb2.DeleteTrainingJobResponse,
    timeout_s=60.0,
)
WATCH_TRAINING_JOB = Method(
    service=_TRAIN,
    name="WatchTrainingJob",
    request=train_pb2.WatchTrainingJobRequest,
    response=train_pb2.WatchTrainingJobResponse,
    timeout_s=None,
)

METHODS: tuple[Method[Any, Any], ...] = (
    CLASSIFY,
    STREAM_CLASSIFY,
    GENERATE,
    STREAM_GENERATE,
    LIST_MODELS,
    GET_MODEL,
    LOAD_MODEL,
    UNLOAD_MODEL,
    DELETE_MODEL_VERSION,
    SET_MODEL_LABEL,
    UPLOAD_DATASET,
    GET_DATASET,
    DELETE_DATASET,
    CREATE_TRAINING_JOB,
    GET_TRAINING_JOB,
    LIST_TRAINING_JOBS,
    CANCEL_TRAINING_JOB,
    DELETE_TRAINING_JOB,
    WATCH_TRAINING_JOB,
)
