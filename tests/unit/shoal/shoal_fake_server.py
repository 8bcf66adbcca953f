"""A real gRPC server on loopback whose answers are made up, in a thread with an event loop of its own.

What it does depends on the name of the model: "flaky" is UNAVAILABLE twice with pushback, "missing" is not there,
"silent" never answers, "endless" streams until cancelled, "dying" breaks off, "ner" labels tokens. Every call is
recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from shoal.v1 import (
    classify_pb2,
    classify_pb2_grpc,
    common_pb2,
    generate_pb2,
    generate_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    train_pb2,
    train_pb2_grpc,
)

LABELS = ["short", "long", "pair", "tokens"]
HEADS = {"ner": classify_pb2.HEAD_KIND_TOKEN}
PUSHBACK_MS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str]
    time_remaining_s: float | None


@dataclass(slots=True)
class Record:
    """What the server has seen. Written by its thread, read by tests after the call they wait for."""

    calls: list[RecordedCall] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    attempts: Counter[str] = field(default_factory=Counter)
    num_items_read: int = 0
    num_items_of_messages: list[int] = field(default_factory=list)
    datasets: dict[str, train_pb2.Dataset] = field(default_factory=dict)

    def wait_for_call(self) -> None:
        """Wait until some call has come in."""
        self._wait(lambda: bool(self.calls))

    def wait_for_items(self, count: int) -> None:
        """Wait until so many items of streams have come in."""
        self._wait(lambda: self.num_items_read >= count)

    def _wait(self, reached: Callable[[], bool]) -> None:
        limit = time.monotonic() + 10
        while not reached():
            assert time.monotonic() < limit
            time.sleep(0.01)

    def of(self, method: str) -> list[RecordedCall]:
        """The calls of one method."""
        return [call for call in self.calls if call.method == method]


def rich_status(code: int, message: str, *details: Any) -> status_pb2.Status:
    """A google.rpc.Status with details."""
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def bad_request(field_path: str, description: str) -> status_pb2.Status:
    """INVALID_ARGUMENT about one field."""
    violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=description)
    return rich_status(
        code_pb2.INVALID_ARGUMENT,
        f"{field_path}: {description}",
        error_details_pb2.BadRequest(field_violations=[violation]),
        error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain="shoal"),
    )


class Servicer:
    """What all fakes share."""

    def __init__(self, record: Record) -> None:
        self.record = record

    async def enter(self, method: str, request: Any, context: Any, model: str = "") -> None:
        """Record the call and fail as its model says."""
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        remaining_s = context.time_remaining()
        self.record.calls.append(
            RecordedCall(method=method, request=request, metadata=metadata, time_remaining_s=remaining_s)
        )
        self.record.attempts[method] += 1
        if model == "missing":
            info = error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="shoal", metadata={"model": model})
            await context.abort_with_status(
                rpc_status.to_status(rich_status(code_pb2.NOT_FOUND, "no model 'missing'; there is: demo", info))
            )
        if model == "flaky" and self.record.attempts[method] <= 2:
            await self.unavailable(context, PUSHBACK_MS)
        if model == "never":
            await self.unavailable(context, -1)
        if model == "hurt":
            await context.abort(grpc.StatusCode.INTERNAL, "a fault")

    async def unavailable(self, context: Any, pushback_ms: int) -> None:
        """UNAVAILABLE with RetryInfo and pushback."""
        retry = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=abs(pushback_ms) * 1_000_000))
        status = rpc_status.to_status(rich_status(code_pb2.UNAVAILABLE, "version is loading", retry))
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback_ms)),))
        await context.abort(
            status.code, status.details, (*status.trailing_metadata, ("grpc-retry-pushback-ms", str(pushback_ms)))
        )

    async def hang(self) -> None:
        """Never return."""
        with self.noting():
            await asyncio.sleep(60)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note that the call was cancelled while in here."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.record.cancelled.set()
            raise


def score(item: classify_pb2.ClassifyInput) -> classify_pb2.Classification:
    """Made-up scores: which label leads depends on the kind and length of the input."""
    kind = item.WhichOneof("content")
    best = {"pair": 2, "token_ids": 3}.get(kind or "", 0 if len(item.text) < 10 else 1)
    others = [label for label in range(len(LABELS)) if label != best]
    return classify_pb2.Classification(
        label_ids=[best, *others], scores=[0.5, 0.25, 0.125, 0.125], num_input_tokens=len(item.text) + 2, num_windows=1
    )


def tag(item: classify_pb2.ClassifyInput) -> classify_pb2.Classification:
    """What a token head says: names are words with a capital; of token ids it is the second."""
    words = [(match.start(), match.end()) for match in re.finditer(r"\b[A-Z]\w*", item.text)]
    places = [(1, 2)] if item.HasField("token_ids") else words
    spans = [classify_pb2.TokenSpan(label="PER", score=0.75, start=start, end=end) for start, end in places]
    return classify_pb2.Classification(token_spans=spans, num_input_tokens=len(item.text) + 2, num_windows=1)


def timings() -> common_pb2.Timings:
    return common_pb2.Timings(
        tokenize=Duration(nanos=1_000_000), queue=Duration(nanos=2_000_000), run=Duration(seconds=1)
    )


class FakeClassify(Servicer, classify_pb2_grpc.ClassifyServiceServicer):
    async def Classify(self, request: Any, context: Any) -> classify_pb2.ClassifyResponse:  # noqa: N802
        await self.enter("Classify", request, context, request.model.name)
        if request.model.name == "silent":
            await self.hang()
        for index, item in enumerate(request.inputs):
            if item.WhichOneof("content") == "text" and not item.text:
                await context.abort_with_status(rpc_status.to_status(bad_request(f"inputs[{index}].text", "is empty")))
        return classify_pb2.ClassifyResponse(
            served_by=common_pb2.ServedBy(model=request.model.name, version=request.model.version or 7),
            timings=timings(),
            labels=LABELS,
            head=HEADS.get(request.model.name, classify_pb2.HEAD_KIND_SINGLE_LABEL),
            results=[(tag if request.model.name in HEADS else score)(item) for item in request.inputs],
        )

    async def StreamClassify(self, requests: Any, context: Any) -> AsyncIterator[classify_pb2.StreamClassifyResponse]:  # noqa: N802
        first = await anext(aiter(requests), None)
        if first is None:
            return  # the caller left before it had said anything
        model = first.start.model.name
        await self.enter("StreamClassify", first, context, model)
        held: list[classify_pb2.StreamClassifyAnswer] = []
        labelled = False
        with self.noting():
            async for request in requests:
                self.record.num_items_of_messages.append(len(request.items))
                self.record.num_items_read += len(request.items)
                if model == "silent":
                    continue
                if model == "dying" and self.record.num_items_read > 3:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine was lost")
                held.extend(self.answer(model, item) for item in request.items)
                if len(held) >= 3 or model == "prompt":  # else from three on, all but the first turned round
                    yield self.response(model, held[:1] + held[:0:-1], labelled=labelled)
                    held, labelled = [], True
            if held:
                yield self.response(model, held, labelled=labelled)
            await asyncio.sleep(0.2)  # a cancelled call reads like one that ended, and is told apart here
            if model == "silent":
                await self.hang()

    def answer(self, model: str, item: classify_pb2.StreamClassifyItem) -> classify_pb2.StreamClassifyAnswer:
        if item.input.WhichOneof("content") == "text" and not item.input.text:
            return classify_pb2.StreamClassifyAnswer(id=item.id, error=bad_request("input.text", "is empty"))
        result = tag(item.input) if model in HEADS else score(item.input)
        return classify_pb2.StreamClassifyAnswer(id=item.id, result=result)

    def response(
        self, model: str, answers: list[classify_pb2.StreamClassifyAnswer], *, labelled: bool
    ) -> classify_pb2.StreamClassifyResponse:
        return classify_pb2.StreamClassifyResponse(
            answers=answers,
            served_by=common_pb2.ServedBy(model="demo", version=7),
            timings=timings(),
            labels=[] if labelled else LABELS,
            head=HEADS.get(model, classify_pb2.HEAD_KIND_SINGLE_LABEL),
        )


class FakeGenerate(Servicer, generate_pb2_grpc.GenerateServiceServicer):
    async def Generate(self, request: Any, context: Any) -> generate_pb2.GenerateResponse:  # noqa: N802
        await self.enter("Generate", request, context, request.model.name)
        if request.model.name == "silent":
            await self.hang()
        num = request.generation.num_completions or 1
        return generate_pb2.GenerateResponse(
            completions=[
                generate_pb2.Completion(text=f"{self.echo(request.generation)} {i}", token_ids=[1, 2])
                for i in range(num)
            ],
            summary=self.summary(request.model.name, num),
        )

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[generate_pb2.StreamGenerateResponse]:  # noqa: N802
        await self.enter("StreamGenerate", request, context, request.model.name)
        name = request.model.name
        words = (
            ["tick "] * 1_000_000
            if name == "endless"
            else [f"{word} " for word in self.echo(request.generation).split()]
        )
        with self.noting():
            for number, word in enumerate(words):
                logprob = generate_pb2.TokenLogprob(token_id=number, logprob=-0.5)
                yield generate_pb2.StreamGenerateResponse(
                    delta=generate_pb2.GenerationDelta(text=word, token_ids=[number], logprobs=[logprob])
                )
                await asyncio.sleep(0.005 if name == "endless" else 0)
            if name != "cut":
                yield generate_pb2.StreamGenerateResponse(summary=self.summary(name, 1))

    def echo(self, generation: generate_pb2.GenerationSpec) -> str:
        if generation.HasField("chat"):
            return " ".join(f"{message.role}:{message.content}" for message in generation.chat.messages)
        if generation.HasField("token_ids"):
            return " ".join(str(token_id) for token_id in generation.token_ids.ids)
        return f"{generation.text} goes on"

    def summary(self, model: str, num: int) -> generate_pb2.GenerationSummary:
        return generate_pb2.GenerationSummary(
            served_by=common_pb2.ServedBy(model=model, version=2),
            timings=timings(),
            time_to_first_token=Duration(nanos=40_000_000),
            usage=generate_pb2.Usage(num_prompt_tokens=3, num_output_tokens=2 * num),
            completions=[
                generate_pb2.CompletionSummary(
                    index=i,
                    finish_reason=generate_pb2.FINISH_REASON_STOP_STRING,
                    stop_string="END",
                    num_output_tokens=2,
                )
                for i in range(num)
            ],
        )


class FakeModels(Servicer, model_pb2_grpc.ModelServiceServicer):
    def model(self, name: str) -> model_pb2.Model:
        return model_pb2.Model(
            name=name,
            kind=model_pb2.MODEL_KIND_CLASSIFIER,
            default_version=2,
            versions=[
                model_pb2.ModelVersion(
                    version=2,
                    state=model_pb2.VERSION_STATE_LIVE,
                    labels=["stable"],
                    weight_bytes=90_000_000,
                    load_duration=Duration(seconds=2),
                    execution="packed",
                    compute_dtype="float32",
                    metrics=[model_pb2.Metric(name="accuracy", value=0.875)],
                ),
                model_pb2.ModelVersion(
                    version=1, state=model_pb2.VERSION_STATE_REJECTED, reason="golden outputs differ"
                ),
            ],
        )

    async def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:  # noqa: N802
        await self.enter("ListModels", request, context)
        if not request.page_token:
            return model_pb2.ListModelsResponse(models=[self.model("demo")], next_page_token="more")
        return model_pb2.ListModelsResponse(models=[self.model("other")])

    async def GetModel(self, request: Any, context: Any) -> model_pb2.GetModelResponse:  # noqa: N802
        await self.enter("GetModel", request, context, request.name)
        return model_pb2.GetModelResponse(model=self.model(request.name))

    async def LoadModel(self, request: Any, context: Any) -> model_pb2.LoadModelResponse:  # noqa: N802
        await self.enter("LoadModel", request, context, request.name)
        return model_pb2.LoadModelResponse(
            version=model_pb2.ModelVersion(version=request.version or 2, state=model_pb2.VERSION_STATE_LIVE)
        )

    async def UnloadModel(self, request: Any, context: Any) -> model_pb2.UnloadModelResponse:  # noqa: N802
        await self.enter("UnloadModel", request, context, request.name)
        return model_pb2.UnloadModelResponse(versions=[request.version] if request.HasField("version") else [2, 1])

    async def DeleteModelVersion(self, request: Any, context: Any) -> model_pb2.DeleteModelVersionResponse:  # noqa: N802
        await self.enter("DeleteModelVersion", request, context, request.name)
        if request.version == 2:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "version 2 is live")
        return model_pb2.DeleteModelVersionResponse()

    async def SetModelLabel(self, request: Any, context: Any) -> model_pb2.SetModelLabelResponse:  # noqa: N802
        await self.enter("SetModelLabel", request, context, request.name)
        if request.HasField("expected_version") and request.expected_version != 2:
            await context.abort(grpc.StatusCode.ABORTED, "the label points at 2")
        return model_pb2.SetModelLabelResponse(model=self.model(request.name))


def job_events() -> list[train_pb2.TrainingEvent]:
    """What happens to a job that goes well."""
    events = [
        train_pb2.TrainingEvent(state_changed=train_pb2.StateChanged(state=train_pb2.JOB_STATE_RUNNING)),
        train_pb2.TrainingEvent(
            progress=train_pb2.JobProgress(
                step=5, total_steps=10, epoch=0.5, loss=0.75, learning_rate=2e-5, time_left=Duration(seconds=9)
            )
        ),
        train_pb2.TrainingEvent(warning=train_pb2.JobWarning(message="12 % of the rows were cut")),
        train_pb2.TrainingEvent(checkpoint_saved=train_pb2.CheckpointSaved(step=10)),
        train_pb2.TrainingEvent(
            evaluation=train_pb2.Evaluation(
                step=10, metrics=[model_pb2.Metric(name="accuracy", value=0.875)], final=True
            )
        ),
        train_pb2.TrainingEvent(version_published=train_pb2.VersionPublished(model="bbc", version=4)),
        train_pb2.TrainingEvent(state_changed=train_pb2.StateChanged(state=train_pb2.JOB_STATE_SUCCEEDED)),
    ]
    for sequence, event in enumerate(events, start=1):
        event.sequence = sequence
        event.time.FromSeconds(1_700_000_000 + sequence)
    return events


class FakeTrain(Servicer, train_pb2_grpc.TrainServiceServicer):
    OUTCOMES = {  # noqa: RUF012
        "job-failed": (train_pb2.JOB_STATE_FAILED, train_pb2.FAILURE_REASON_BAD_DATA),
        "job-cancelled": (train_pb2.JOB_STATE_CANCELLED, 0),
    }

    def job(self, job_id: str, spec: train_pb2.TrainingSpec | None = None) -> train_pb2.TrainingJob:
        state, reason = self.OUTCOMES.get(job_id, (train_pb2.JOB_STATE_SUCCEEDED, 0))
        job = train_pb2.TrainingJob(
            id=job_id,
            spec=spec or train_pb2.TrainingSpec(name="bbc", epochs=3, checkpoint_interval=Duration(seconds=300)),
            state=state,
            published_version=4 if state == train_pb2.JOB_STATE_SUCCEEDED else 0,
            metrics=[model_pb2.Metric(name="accuracy", value=0.875)],
        )
        job.create_time.FromSeconds(1_700_000_000)
        if reason:
            job.failure.CopyFrom(train_pb2.JobFailure(reason=reason, message="line 17 has no label"))
        return job

    async def UploadDataset(self, requests: Any, context: Any) -> train_pb2.UploadDatasetResponse:  # noqa: N802
        info, digest, num_bytes = None, hashlib.sha256(), 0
        async for request in requests:
            if info is None:
                info = request.info
                await self.enter("UploadDataset", request, context)
                if info.size_bytes > 4_000_000:
                    await context.abort_with_status(
                        rpc_status.to_status(bad_request("info.size_bytes", "is over the limit"))
                    )
            else:
                digest.update(request.chunk)
                num_bytes += len(request.chunk)
                assert len(request.chunk) <= 2**20
        assert info is not None
        assert (digest.hexdigest(), num_bytes) == (info.sha256, info.size_bytes)
        name = f"dataset://{info.sha256}"
        self.record.datasets[name] = train_pb2.Dataset(name=name, format=info.format, size_bytes=num_bytes)
        return train_pb2.UploadDatasetResponse(dataset=self.record.datasets[name])

    async def GetDataset(self, request: Any, context: Any) -> train_pb2.GetDatasetResponse:  # noqa: N802
        await self.enter("GetDataset", request, context)
        if request.name not in self.record.datasets:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such dataset")
        return train_pb2.GetDatasetResponse(dataset=self.record.datasets[request.name])

    async def DeleteDataset(self, request: Any, context: Any) -> train_pb2.DeleteDatasetResponse:  # noqa: N802
        await self.enter("DeleteDataset", request, context)
        del self.record.datasets[request.name]
        return train_pb2.DeleteDatasetResponse()

    async def CreateTrainingJob(self, request: Any, context: Any) -> train_pb2.CreateTrainingJobResponse:  # noqa: N802
        await self.enter("CreateTrainingJob", request, context)
        if request.validate_only:
            request.spec.epochs = 5
            return train_pb2.CreateTrainingJobResponse(job=train_pb2.TrainingJob(spec=request.spec))
        return train_pb2.CreateTrainingJobResponse(job=self.job("job-1", request.spec))

    async def GetTrainingJob(self, request: Any, context: Any) -> train_pb2.GetTrainingJobResponse:  # noqa: N802
        await self.enter("GetTrainingJob", request, context)
        if request.id == "nobody":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no job 'nobody'")
        return train_pb2.GetTrainingJobResponse(job=self.job(request.id))

    async def ListTrainingJobs(self, request: Any, context: Any) -> train_pb2.ListTrainingJobsResponse:  # noqa: N802
        await self.enter("ListTrainingJobs", request, context)
        start = int(request.page_token or 0)
        size = min(request.page_size, 2)
        jobs = [self.job(f"job-{number}") for number in range(start, min(start + size, 5))]
        return train_pb2.ListTrainingJobsResponse(
            jobs=jobs, next_page_token=str(start + size) if start + size < 5 else ""
        )

    async def CancelTrainingJob(self, request: Any, context: Any) -> train_pb2.CancelTrainingJobResponse:  # noqa: N802
        await self.enter("CancelTrainingJob", request, context)
        return train_pb2.CancelTrainingJobResponse(job=self.job("job-cancelled"))

    async def DeleteTrainingJob(self, request: Any, context: Any) -> train_pb2.DeleteTrainingJobResponse:  # noqa: N802
        await self.enter("DeleteTrainingJob", request, context)
        return train_pb2.DeleteTrainingJobResponse()

    async def WatchTrainingJob(self, request: Any, context: Any) -> AsyncIterator[train_pb2.WatchTrainingJobResponse]:  # noqa: N802
        await self.enter("WatchTrainingJob", request, context, request.id)
        with self.noting():
            for event in job_events()[max(1, request.from_sequence) - 1 :]:
                if request.id == "job-lost" and event.sequence % 3 == 0 and request.from_sequence != event.sequence:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")
                yield train_pb2.WatchTrainingJobResponse(event=event)
            if request.id == "job-open":
                await asyncio.sleep(60)


class FakeServer:
    """The server; `address` is there once `start` has returned."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.record = Record()
        self.address = ""
        self._credentials = credentials
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)

    def start(self) -> FakeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = grpc.aio.server()
        classify_pb2_grpc.add_ClassifyServiceServicer_to_server(FakeClassify(self.record), server)
        generate_pb2_grpc.add_GenerateServiceServicer_to_server(FakeGenerate(self.record), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(FakeModels(self.record), server)
        train_pb2_grpc.add_TrainServiceServicer_to_server(FakeTrain(self.record), server)
        if self._credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", self._credentials)
        await server.start()
        self.address = f"127.0.0.1:{port}"
        self._ready.set()
        await self._stopping.wait()
        await server.stop(0)
