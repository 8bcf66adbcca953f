"""TrainService: every call is checked here and answered by control; only the bytes of uploads are written here."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final, NoReturn

from google.protobuf.message import Message
from shoal.v1 import train_pb2

from shoal_server.errors import InvalidRequest, NotBuilt
from shoal_server.front import convert, convert_train
from shoal_server.front.front import SERVICE_NAMES, Front
from shoal_server.front.interceptors import Incoming, Method, Outgoing, Service
from shoal_server.front.rpc import Rpc
from shoal_server.front.spec_tree import to_tree
from shoal_server.front.upload import upload_dataset
from shoal_server.ipc import calls

NAME: Final = SERVICE_NAMES["train"]
_MAX_SEQUENCE: Final = 2**53


class TrainService:
    """Trains models and publishes them."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._control = front.control

    def service(self) -> Service:
        """For registration."""
        upload = Method(
            name="UploadDataset",
            request=train_pb2.UploadDatasetRequest,
            handler=self.upload_dataset,
            client_streams=True,
        )
        watch = Method(
            name="WatchTrainingJob",
            request=train_pb2.WatchTrainingJobRequest,
            handler=self.watch_job,
            server_streams=True,
        )
        unary = (
            Method(name="GetDataset", request=train_pb2.GetDatasetRequest, handler=self.get_dataset),
            Method(name="DeleteDataset", request=train_pb2.DeleteDatasetRequest, handler=self.delete_dataset),
            Method(name="CreateTrainingJob", request=train_pb2.CreateTrainingJobRequest, handler=self.create_job),
            Method(name="GetTrainingJob", request=train_pb2.GetTrainingJobRequest, handler=self.get_job),
            Method(name="ListTrainingJobs", request=train_pb2.ListTrainingJobsRequest, handler=self.list_jobs),
            Method(name="CancelTrainingJob", request=train_pb2.CancelTrainingJobRequest, handler=self.cancel_job),
            Method(name="DeleteTrainingJob", request=train_pb2.DeleteTrainingJobRequest, handler=self.delete_job),
            _not_built("PauseTrainingJob", train_pb2.PauseTrainingJobRequest, "pausing a job"),
            _not_built("ResumeTrainingJob", train_pb2.ResumeTrainingJobRequest, "resuming a job"),
            _not_built("ExtendTrainingJob", train_pb2.ExtendTrainingJobRequest, "extending a job"),
            _not_built("GetTrainingReport", train_pb2.GetTrainingReportRequest, "a job's report"),
        )
        return Service(name=NAME, methods=(upload, watch, *unary))

    async def upload_dataset(
        self, rpc: Rpc, requests: Incoming[train_pb2.UploadDatasetRequest]
    ) -> train_pb2.UploadDatasetResponse:
        """Stores a file under its digest."""
        max_bytes = self._front.config.train.max_dataset_bytes
        status = await upload_dataset(rpc, self._control, requests, max_bytes)
        return train_pb2.UploadDatasetResponse(dataset=convert_train.dataset(status))

    async def get_dataset(self, rpc: Rpc, request: train_pb2.GetDatasetRequest) -> train_pb2.GetDatasetResponse:
        """Size and format of a dataset."""
        call = calls.GetDataset(name=convert_train.dataset_name(request.name))
        status = await self._control.call(rpc, call, calls.DatasetStatus)
        return train_pb2.GetDatasetResponse(dataset=convert_train.dataset(status))

    async def delete_dataset(
        self, rpc: Rpc, request: train_pb2.DeleteDatasetRequest
    ) -> train_pb2.DeleteDatasetResponse:
        """Deletes a dataset."""
        call = calls.DeleteDataset(name=convert_train.dataset_name(request.name))
        await self._control.call(rpc, call, calls.Empty)
        return train_pb2.DeleteDatasetResponse()

    async def create_job(
        self, rpc: Rpc, request: train_pb2.CreateTrainingJobRequest
    ) -> train_pb2.CreateTrainingJobResponse:
        """Queues a job, or only resolves its spec."""
        if not request.validate_only or request.request_id:
            convert_train.required_id(request.request_id, "request_id")
        if not request.HasField("spec"):
            raise InvalidRequest.of("spec", "is required")
        call = calls.CreateJob(
            request_id=request.request_id, spec=to_tree(request.spec), validate_only=request.validate_only
        )
        status = await self._control.call(rpc, call, calls.JobStatus)
        if request.validate_only:
            return train_pb2.CreateTrainingJobResponse(job=train_pb2.TrainingJob(spec=convert_train.job(status).spec))
        return train_pb2.CreateTrainingJobResponse(job=convert_train.job(status))

    async def get_job(self, rpc: Rpc, request: train_pb2.GetTrainingJobRequest) -> train_pb2.GetTrainingJobResponse:
        """One job."""
        call = calls.GetJob(id=convert_train.required_id(request.id, "id"))
        status = await self._control.call(rpc, call, calls.JobStatus)
        return train_pb2.GetTrainingJobResponse(job=convert_train.job(status))

    async def list_jobs(
        self, rpc: Rpc, request: train_pb2.ListTrainingJobsRequest
    ) -> train_pb2.ListTrainingJobsResponse:
        """Jobs, newest first."""
        call = calls.ListJobs(page_size=convert.page_size(request.page_size), page_token=request.page_token)
        page = await self._control.call(rpc, call, calls.JobPage)
        return train_pb2.ListTrainingJobsResponse(
            jobs=[convert_train.job(status) for status in page.jobs], next_page_token=page.next_page_token
        )

    async def cancel_job(
        self, rpc: Rpc, request: train_pb2.CancelTrainingJobRequest
    ) -> train_pb2.CancelTrainingJobResponse:
        """Stops a job."""
        call = calls.CancelJob(id=convert_train.required_id(request.id, "id"))
        status = await self._control.call(rpc, call, calls.JobStatus)
        return train_pb2.CancelTrainingJobResponse(job=convert_train.job(status))

    async def delete_job(
        self, rpc: Rpc, request: train_pb2.DeleteTrainingJobRequest
    ) -> train_pb2.DeleteTrainingJobResponse:
        """Deletes the record of a job that has ended."""
        call = calls.DeleteJob(id=convert_train.required_id(request.id, "id"))
        await self._control.call(rpc, call, calls.Empty)
        return train_pb2.DeleteTrainingJobResponse()

    async def watch_job(self, rpc: Rpc, request: train_pb2.WatchTrainingJobRequest, answers: Outgoing) -> None:
        """Events from a sequence number on, until the job's last; ends early, to be resumed elsewhere, on shutdown."""
        from_sequence = convert.in_range(request.from_sequence or 1, "from_sequence", low=1, high=_MAX_SEQUENCE)
        call = calls.WatchJob(id=convert_train.required_id(request.id, "id"), from_sequence=from_sequence)
        async with aclosing(self._control.stream(rpc, call, calls.JobEvent, until=self._front.draining)) as events:
            async for found in events:
                await answers.write(train_pb2.WatchTrainingJobResponse(event=convert_train.event(found)))


def _not_built(name: str, request: type[Message], feature: str) -> Method:
    async def refuse(_rpc: Rpc, _request: Message) -> NoReturn:
        raise NotBuilt(f"{name}: {feature} is not built yet")

    return Method(name=name, request=request, handler=refuse)
