"""TrainService and ModelService through real gRPC, answered by a fake control."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from front_world import World, world
from google.rpc import error_details_pb2
from shoal.v1 import model_pb2, train_pb2
from shoal_server.config import ServerConfig, TrainConfig
from shoal_server.errors import AlreadyExists, InvalidRequest, LabelMoved, ModelNotFound, Violation
from shoal_server.ipc import calls
from shoal_server.ipc.messages import ControlCall, ControlCancel, ControlStreamItem, Drain, ModelKind, VersionState
from test_classify_service import details, fields, refused

DATA = b"text,label\n" + b"a row,x\n" * 300_000  # 2.4 MB: several chunks and one write before the last
DIGEST = hashlib.sha256(DATA).hexdigest()
SPEC = {"name": "bbc", "base": {"model": "minilm"}, "objective": "sequence_classification"}
JOB = calls.JobStatus(
    id="job-1",
    spec=SPEC | {"lora": {"rank": 8}, "checkpoint_interval_s": 300.0},
    state="failed",
    failure_reason="bad_data",
    failure_message="line 7",
    progress={"step": 3, "total_steps": 9, "epoch": 0.5, "loss": 1.25, "learning_rate": 1e-4, "time_left_s": 2.5},
    metrics={"f1_macro": 0.5, "accuracy": 0.75},
    published_version=4,
    create_time_s=1000.5,
    num_attempts=2,
)  # fmt: skip


def upload(data: bytes = DATA, chunk: int = 2**20, **info) -> Iterator[train_pb2.UploadDatasetRequest]:
    described = {"format": train_pb2.DATA_FORMAT_CSV, "sha256": DIGEST, "size_bytes": len(DATA)} | info
    yield train_pb2.UploadDatasetRequest(info=described)
    for start in range(0, len(data), chunk):
        yield train_pb2.UploadDatasetRequest(chunk=data[start : start + chunk])


def accept_uploads(world: World) -> Path:
    """Let control hand out a slot and commit what is in it; returns where the slot is."""
    slot = world.folder / "slot"
    status = calls.DatasetStatus(name=f"dataset://{DIGEST}", format="csv", size_bytes=len(DATA), create_time_s=5.0)
    world.control.answers["BeginUpload"] = lambda _: calls.UploadSlot(path=str(slot))
    world.control.answers["CommitUpload"] = lambda _: status
    return slot


async def test_an_upload_is_written_hashed_and_committed() -> None:
    async with world() as made:
        slot = accept_uploads(made)
        reply = await made.train.UploadDataset(upload())
        assert slot.read_bytes() == DATA
        begin, commit = made.control.calls(ControlCall)
    assert begin.arguments == {"sha256": DIGEST, "size_bytes": len(DATA), "format": "csv"}
    assert commit.arguments == {"path": str(slot)} | begin.arguments
    assert reply.dataset.name == f"dataset://{DIGEST}"
    assert reply.dataset.format == train_pb2.DATA_FORMAT_CSV


async def test_bytes_that_are_there_already_are_not_asked_for() -> None:
    async with world() as made:
        existing = calls.DatasetStatus(
            name=f"dataset://{DIGEST}", format="csv", size_bytes=len(DATA), create_time_s=5.0
        )
        made.control.answers["BeginUpload"] = lambda _: calls.UploadSlot(path="", existing=existing)
        reply = await made.train.UploadDataset(upload(b""))
    assert reply.dataset.size_bytes == len(DATA)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        (lambda: upload(DATA[:-1]), "info.size_bytes"),
        (lambda: upload(DATA + b"x"), "info.size_bytes"),
        (lambda: upload(DATA[:-1] + b"?"), "info.sha256"),
        (lambda: upload(DATA, chunk=2**20 + 1), "chunk"),
        (lambda: [*upload(b""), train_pb2.UploadDatasetRequest(chunk=b"")], "chunk"),
        (lambda: [*upload(b""), *upload(b"")], "chunk"),
    ],
)
async def test_a_broken_upload_is_named_and_removed(requests, field: str) -> None:
    async with world() as made:
        slot = accept_uploads(made)
        error = await refused(made.train.UploadDataset(requests()))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(error) == [field]
        assert not slot.exists()
        assert [call.method for call in made.control.calls(ControlCall)] == ["BeginUpload"]


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        (list, "info"),
        (lambda: [train_pb2.UploadDatasetRequest(chunk=b"x")], "info"),
        (lambda: upload(format=0), "info.format"),
        (lambda: upload(format=9), "info.format"),
        (lambda: upload(sha256="ABC"), "info.sha256"),
        (lambda: upload(size_bytes=0), "info.size_bytes"),
        (lambda: upload(size_bytes=10**7), "info.size_bytes"),
    ],
)
async def test_a_wrong_description_is_refused_at_the_door(requests, field: str) -> None:
    async with world(ServerConfig(train=TrainConfig(max_dataset_bytes=5 * 10**6))) as made:
        error = await refused(made.train.UploadDataset(requests()))
        assert fields(error) == [field]
        assert made.control.calls(ControlCall) == []


async def test_an_upload_that_its_client_leaves_is_removed() -> None:
    async with world() as made:
        slot = accept_uploads(made)
        call = made.train.UploadDataset()
        for request in list(upload(DATA[: 2**20])):
            await call.write(request)
        async with asyncio.timeout(5):
            while not slot.exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
            call.cancel()
            while slot.exists():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)


async def test_a_disk_that_cannot_be_written_to_is_told() -> None:
    async with world() as made:
        slot = made.folder / "slot"
        slot.symlink_to("/dev/full")  # every write to it says that the disk is full
        made.control.answers["BeginUpload"] = lambda _: calls.UploadSlot(path=str(slot))
        error = await refused(made.train.UploadDataset(upload()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error, error_details_pb2.ErrorInfo)[0].reason == "STORAGE_FULL"


async def test_a_job_is_created_from_a_spec() -> None:
    async with world() as made:
        made.control.answers["CreateJob"] = lambda _: JOB
        spec = train_pb2.TrainingSpec(name="bbc", base={"model": "minilm"}, objective=1, lora={}, data={"train": "x"})
        reply = await made.train.CreateTrainingJob(train_pb2.CreateTrainingJobRequest(request_id="r1", spec=spec))
        (call,) = made.control.calls(ControlCall)
    assert call.arguments == {
        "request_id": "r1",
        "validate_only": False,
        "spec": SPEC | {"lora": {}, "data": {"train": "x"}},
    }  # fmt: skip
    job = reply.job
    assert (job.id, job.state, job.num_attempts, job.published_version) == ("job-1", train_pb2.JOB_STATE_FAILED, 2, 4)
    assert job.failure.reason == train_pb2.FAILURE_REASON_BAD_DATA
    assert job.spec.lora.rank == 8
    assert job.spec.checkpoint_interval.seconds == 300
    assert (job.progress.step, job.progress.total_steps, job.progress.time_left.seconds) == (3, 9, 2)
    assert [(m.name, m.value) for m in job.metrics] == [("accuracy", 0.75), ("f1_macro", 0.5)]
    assert (job.create_time.seconds, job.create_time.nanos) == (1000, 500_000_000)
    assert not job.HasField("start_time")


async def test_a_dry_run_has_only_the_spec() -> None:
    async with world() as made:
        made.control.answers["CreateJob"] = lambda _: JOB
        request = train_pb2.CreateTrainingJobRequest(spec={"name": "bbc"}, validate_only=True)
        reply = await made.train.CreateTrainingJob(request)
    assert reply.job.spec.name == "bbc"
    assert [field.name for field, _ in reply.job.ListFields()] == ["spec"]


async def test_violations_of_a_spec_come_through() -> None:
    async with world() as made:

        def refuse(_):
            raise InvalidRequest("the spec is wrong", violations=[Violation(field="spec.epochs", description="is 0")])

        made.control.answers["CreateJob"] = refuse
        request = train_pb2.CreateTrainingJobRequest(request_id="r", spec={"name": "x"})
        error = await refused(made.train.CreateTrainingJob(request))
    assert fields(error) == ["spec.epochs"]


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("CreateTrainingJob", train_pb2.CreateTrainingJobRequest(spec={"name": "x"}), "request_id"),
        ("CreateTrainingJob", train_pb2.CreateTrainingJobRequest(request_id="r"), "spec"),
        ("CreateTrainingJob", train_pb2.CreateTrainingJobRequest(request_id="r", spec={"golden": 9}), "spec.golden"),
        ("GetTrainingJob", train_pb2.GetTrainingJobRequest(), "id"),
        ("ListTrainingJobs", train_pb2.ListTrainingJobsRequest(page_size=1001), "page_size"),
        ("GetDataset", train_pb2.GetDatasetRequest(name="dataset://x"), "name"),
        ("DeleteDataset", train_pb2.DeleteDatasetRequest(name="../../etc"), "name"),
    ],
)
async def test_what_is_wrong_is_named_before_control_is_asked(call: str, request_, field: str) -> None:
    async with world() as made:
        error = await refused(getattr(made.train, call)(request_))
        assert fields(error) == [field]
        assert made.control.calls(ControlCall) == []


@pytest.mark.parametrize("method", ["PauseTrainingJob", "ResumeTrainingJob", "ExtendTrainingJob", "GetTrainingReport"])
async def test_what_is_not_built_says_so(method: str) -> None:
    async with world() as made:
        request = getattr(train_pb2, f"{method}Request")(id="x")
        error = await refused(getattr(made.train, method)(request))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert method in error.details()
    assert "not built" in error.details()
    assert details(error, error_details_pb2.ErrorInfo)[0].reason == "NOT_BUILT"


EVENTS = [
    calls.JobEvent(sequence=1, time_s=1.5, kind="state", state="running"),
    calls.JobEvent(sequence=2, time_s=2.0, kind="progress", progress={"step": 5, "total_steps": 10, "loss": 0.5}),
    calls.JobEvent(sequence=3, time_s=3.0, kind="evaluation", step=5, metrics={"accuracy": 0.5}, final=True),
    calls.JobEvent(sequence=4, time_s=3.0, kind="checkpoint", step=5),
    calls.JobEvent(sequence=5, time_s=3.0, kind="published", model="bbc", version=2),
    calls.JobEvent(sequence=6, time_s=3.0, kind="warning", message="cut"),
    calls.JobEvent(
        sequence=7, time_s=3.0, kind="state", state="failed", failure_reason="diverged", failure_message="nan"
    ),
]


async def test_events_of_a_job_are_streamed() -> None:
    async with world() as made:
        made.control.answers["WatchJob"] = lambda _: EVENTS
        found = [
            m.event
            async for m in made.train.WatchTrainingJob(train_pb2.WatchTrainingJobRequest(id="j", from_sequence=1))
        ]
        (call,) = made.control.calls(ControlCall)
        assert made.control.calls(ControlCancel) == []
    assert call.arguments == {"id": "j", "from_sequence": 1}
    kinds = [
        "state_changed",
        "progress",
        "evaluation",
        "checkpoint_saved",
        "version_published",
        "warning",
        "state_changed",
    ]
    assert [event.WhichOneof("event") for event in found] == kinds
    assert [event.sequence for event in found] == list(range(1, 8))
    assert found[1].progress.total_steps == 10
    assert found[2].evaluation.final
    assert found[4].version_published.version == 2
    assert found[6].state_changed.failure.reason == train_pb2.FAILURE_REASON_DIVERGED


async def test_leaving_a_watch_cancels_it_at_control() -> None:
    async with world() as made:
        stream = made.train.WatchTrainingJob(train_pb2.WatchTrainingJobRequest(id="j"))
        call = await made.control.wait_for(ControlCall)
        import msgspec

        made.control.send(ControlStreamItem(call_id=call.call_id, item=msgspec.to_builtins(EVENTS[0])))
        assert (await stream.read()).event.sequence == 1
        stream.cancel()
        assert (await made.control.wait_for(ControlCancel)).call_id == call.call_id


async def test_a_watch_ends_when_the_server_drains() -> None:
    async with world() as made:
        stream = made.train.WatchTrainingJob(train_pb2.WatchTrainingJobRequest(id="j"))
        await made.control.wait_for(ControlCall)
        made.control.send(Drain(lame_duck_s=0, drain_s=5))
        error = await refused(stream.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error, error_details_pb2.RetryInfo)


async def test_a_control_that_does_not_answer_in_time() -> None:
    async with world() as made:
        error = await refused(made.models.GetModel(model_pb2.GetModelRequest(name="m"), timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


VERSION = calls.VersionStatus(
    version=2,
    state=VersionState.LIVE,
    labels=["stable"],
    publish_time_s=9.0,
    load_s=1.5,
    execution="packed",
    class_labels=["a", "b"],
    head="multi_label",
    metrics={"f1": 1.0},
)
MODEL = calls.ModelStatus(name="m", kind=ModelKind.CLASSIFIER, versions=[VERSION], default_version=2)


async def test_models_are_told() -> None:
    async with world() as made:
        made.control.answers["GetModel"] = lambda _: MODEL
        made.control.answers["ListModels"] = lambda _: calls.ModelPage(models=[MODEL], next_page_token="next")
        model = (await made.models.GetModel(model_pb2.GetModelRequest(name="m"))).model
        page = await made.models.ListModels(model_pb2.ListModelsRequest())
        listing = made.control.calls(ControlCall)[-1]
    assert listing.arguments == {"page_size": 100, "page_token": ""}
    assert page.models[0] == model
    assert page.next_page_token == "next"
    version = model.versions[0]
    assert model.kind == model_pb2.MODEL_KIND_CLASSIFIER
    assert version.state == model_pb2.VERSION_STATE_LIVE
    assert version.load_duration.ToMilliseconds() == 1500
    assert list(version.class_labels) == ["a", "b"]
    assert version.head == 2
    assert version.metrics[0].name == "f1"


async def test_steering_calls_reach_control() -> None:
    async with world() as made:
        control, stub = made.control, made.models
        control.answers["LoadModel"] = lambda _: VERSION
        control.answers["UnloadModel"] = lambda _: calls.VersionList(versions=[1, 2])
        control.answers["DeleteModelVersion"] = lambda _: calls.Empty()
        control.answers["SetModelLabel"] = lambda _: MODEL
        assert (await stub.LoadModel(model_pb2.LoadModelRequest(name="m"))).version.version == 2
        assert list((await stub.UnloadModel(model_pb2.UnloadModelRequest(name="m", version=1))).versions) == [1, 2]
        await stub.DeleteModelVersion(model_pb2.DeleteModelVersionRequest(name="m", version=1))
        await stub.SetModelLabel(
            model_pb2.SetModelLabelRequest(name="m", label="stable", version=2, expected_version=0)
        )
        await stub.SetModelLabel(model_pb2.SetModelLabelRequest(name="m", label="stable"))
        got = [(call.method, call.arguments) for call in control.calls(ControlCall)]
    assert got == [
        ("LoadModel", {"name": "m", "version": None}),
        ("UnloadModel", {"name": "m", "version": 1}),
        ("DeleteModelVersion", {"name": "m", "version": 1}),
        ("SetModelLabel", {"name": "m", "label": "stable", "version": 2, "expected_version": 0}),
        ("SetModelLabel", {"name": "m", "label": "stable", "version": None, "expected_version": None}),
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("no model; there are: a"), grpc.StatusCode.NOT_FOUND),
        (LabelMoved("it stands at 3"), grpc.StatusCode.ABORTED),
        (AlreadyExists("another spec"), grpc.StatusCode.ALREADY_EXISTS),
    ],
)
async def test_errors_of_control_come_through(error, code: grpc.StatusCode) -> None:
    async with world() as made:

        def refuse(_):
            raise error

        made.control.answers["GetModel"] = refuse
        caught = await refused(made.models.GetModel(model_pb2.GetModelRequest(name="m")))
    assert caught.code() is code
    assert caught.details() == error.message


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("GetModel", model_pb2.GetModelRequest(), "name"),
        ("LoadModel", model_pb2.LoadModelRequest(name="m", version=0), "version"),
        ("DeleteModelVersion", model_pb2.DeleteModelVersionRequest(name="m"), "version"),
        ("SetModelLabel", model_pb2.SetModelLabelRequest(name="m", label="Bad Label", version=1), "label"),
        ("SetModelLabel", model_pb2.SetModelLabelRequest(name="m", label="a", expected_version=-1), "expected_version"),
        ("ListModels", model_pb2.ListModelsRequest(page_size=5000), "page_size"),
    ],
)
async def test_bad_model_calls_are_named(call: str, request_, field: str) -> None:
    async with world() as made:
        assert fields(await refused(getattr(made.models, call)(request_))) == [field]
