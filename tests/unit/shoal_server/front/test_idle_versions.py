"""Requests for versions that come on demand: one call wakes a version, everybody waits for it, nobody for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from front_world import World, byte_tokenizer, classifier, generator, text_request, word_tokenizer, world, write_version
from grpc_health.v1 import health_pb2, health_pb2_grpc
from shoal.v1 import classify_pb2, generate_pb2
from shoal_server.config import RepositoryConfig, ServerConfig
from shoal_server.errors import DeadlinePassed, QueueFull, VersionLoading
from shoal_server.front.metrics import FrontMetrics
from shoal_server.front.routing import ModelReference, Router
from shoal_server.front.rpc import Rpc
from shoal_server.front.waker import Waker
from shoal_server.ipc.calls import Woken
from shoal_server.ipc.messages import (
    ClassifyCall,
    ControlCall,
    ControlCancel,
    ControlReply,
    ModelKind,
    RoutedModel,
    RoutedVersion,
    Routing,
    VersionsInUse,
    VersionState,
)

CONFIG = ServerConfig(repository=RepositoryConfig(evict_idle=True))


def idle(path: Path | str, **fields: Any) -> RoutedModel:
    """The classifier `topics`, to be asked for."""
    version = RoutedVersion(version=1, state=VersionState.IDLE, path=str(path), on_demand=True)
    return classifier(Path(path), **{"default_version": 1, "versions": [version]} | fields)


@asynccontextmanager
async def idle_world() -> AsyncIterator[tuple[World, Path]]:
    async with world(CONFIG) as made:
        path = write_version(made.repository, word_tokenizer())
        await made.route(idle(path))
        yield made, path


async def asked(made: World) -> ControlCall:
    call: ControlCall = await made.control.wait_for(ControlCall)
    assert (call.method, call.arguments) == ("WakeVersion", {"name": "topics", "version": 1})
    return call


def reply(made: World, call: ControlCall, revision: int) -> None:
    made.control.send(ControlReply(call_id=call.call_id, result=msgspec.to_builtins(Woken(revision=revision))))


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_requests_for_an_idle_version_ask_for_it_once_and_are_answered_when_it_is_live() -> None:
    async with idle_world() as (made, path):
        stub = made.classify
        requests = [asyncio.ensure_future(stub.Classify(text_request("good"))) for _ in range(5)]
        call = await asked(made)
        await made.route(classifier(path))
        reply(made, call, made.control.revision)
        assert [(await request).served_by.version for request in requests] == [1] * 5
        assert made.control.calls(ControlCall) == [call]
        assert not made.control.calls(ControlCancel)


async def test_an_answer_that_overtakes_its_table_waits_for_it() -> None:
    async with idle_world() as (made, path):
        request = asyncio.ensure_future(made.classify.Classify(text_request("good")))
        reply(made, await asked(made), made.control.revision + 1)
        await made.route(classifier(path))
        assert (await request).served_by.version == 1
        assert len(made.control.calls(ControlCall)) == 1


async def test_a_deadline_that_passes_is_told_and_control_hears_that_nobody_waits() -> None:
    async with idle_world() as (made, _):
        error = await refused(made.classify.Classify(text_request("good"), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = await asked(made)
        assert (await made.control.wait_for(ControlCancel)).call_id == call.call_id


async def test_one_of_several_that_gives_up_leaves_the_others_waiting() -> None:
    async with idle_world() as (made, path):
        stays = asyncio.ensure_future(made.classify.Classify(text_request("good")))
        await refused(made.classify.Classify(text_request("good"), timeout=0.2))
        call = await asked(made)
        assert not made.control.calls(ControlCancel)
        await made.route(classifier(path))
        reply(made, call, made.control.revision)
        assert (await stays).served_by.version == 1


async def test_memory_too_short_is_unavailable_with_a_time_to_come_back() -> None:
    async with idle_world() as (made, _):
        request = asyncio.ensure_future(made.classify.Classify(text_request("good")))
        call = await asked(made)
        error = VersionLoading("topics@1 cannot be loaded now: needs 9 bytes", retry_after_s=5.0)
        made.control.send(ControlReply(call_id=call.call_id, error=error.to_wire()))
        status = await refused(request)
    assert status.code() is grpc.StatusCode.UNAVAILABLE
    assert "needs 9 bytes" in str(status.details())
    assert ("grpc-retry-pushback-ms", "5000") in list(status.trailing_metadata() or ())


async def test_a_version_refused_when_it_was_to_come_back_says_why() -> None:
    async with idle_world() as (made, path):
        request = asyncio.ensure_future(made.classify.Classify(text_request("good")))
        call = await asked(made)
        version = RoutedVersion(version=1, state=VersionState.REJECTED, reason="golden outputs differ", path=str(path))
        await made.route(classifier(path, default_version=0, versions=[version]))
        reply(made, call, made.control.revision)
        status = await refused(request)
    assert status.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "golden outputs differ" in str(status.details())


async def test_a_stream_waits_for_its_model_and_so_do_items_that_find_it_idle_again() -> None:
    async with idle_world() as (made, path):
        stream = made.classify.StreamClassify()
        await stream.write(classify_pb2.StreamClassifyRequest(start={"model": {"name": "topics"}}))
        call = await asked(made)
        await made.route(classifier(path))
        reply(made, call, made.control.revision)
        for item_id in (1, 2):
            if item_id == 2:
                await made.route(idle(path))
            item = {"id": item_id, "input": {"text": "good"}}
            await stream.write(classify_pb2.StreamClassifyRequest(items=[item]))
            if item_id == 2:
                again = await made.control.wait_for(ControlCall, lambda c: c.call_id != call.call_id)
                await made.route(classifier(path))
                reply(made, again, made.control.revision)
            (answer,) = (await stream.read()).answers
            assert (answer.id, answer.WhichOneof("outcome")) == (item_id, "result")
        await stream.done_writing()


async def test_a_generator_is_waited_for_too() -> None:
    async with world(CONFIG) as made:
        fields: dict[str, Any] = {"model": "writer", "kind": "generator", "family": "decoder", "head": "", "labels": ()}
        path = write_version(made.repository, byte_tokenizer(), **fields)
        version = RoutedVersion(version=1, state=VersionState.LOADING, path=str(path), on_demand=True)
        await made.route(generator(path, default_version=1, versions=[version]))
        made.engine.on_generate = lambda engine, call: (engine.say(call, "x"), engine.end(call))[0]
        request = generate_pb2.GenerateRequest(model={"name": "writer"}, generation={"text": "a"})
        answer = asyncio.ensure_future(made.generate.Generate(request))
        call = await made.control.wait_for(ControlCall)
        await made.route(generator(path))
        reply(made, call, made.control.revision)
        assert (await answer).completions[0].text == "x"


async def test_health_of_a_model_that_comes_on_demand_is_serving() -> None:
    async with idle_world() as (made, _):
        stub = health_pb2_grpc.HealthStub(made.channel())
        status = await stub.Check(health_pb2.HealthCheckRequest(service="shoal.model/topics"))
        assert status.status == health_pb2.HealthCheckResponse.SERVING


async def test_control_hears_at_once_when_room_is_wanted_who_waits_and_when_a_version_falls_idle() -> None:
    async with idle_world() as (made, path):
        other = write_version(made.repository, word_tokenizer(), model="other")
        live = classifier(other, name="other")
        await made.route(idle(path), live)
        waiting = asyncio.ensure_future(made.classify.Classify(text_request("good")))
        await asked(made)
        made.engine.on_classify = lambda engine, call: None
        running = asyncio.ensure_future(made.classify.Classify(text_request("good", name="other")))
        (call,) = await made.engine.wait_for(ClassifyCall)
        made.control.revision += 1
        wants_room = Routing(
            revision=made.control.revision,
            engines=[made.engine.endpoint],
            models=[idle(path), live],
            serving=True,
            wants_room=True,
        )
        made.control.send(wants_room)
        told = await made.control.wait_for(VersionsInUse, lambda m: m.revision == made.control.revision)
        assert {use.model: use.num_open for use in told.uses} == {"topics": 1, "other": 1}
        made.engine.answer_classify(call)
        await running
        told = await made.control.wait_for(VersionsInUse, lambda m: m.uses[0].num_open == 0)
        assert told.uses[0].last_used_s > 0
        waiting.cancel()


class SilentControl:
    """Never answers."""

    async def ask(self, request: Any, result: Any, *, cancels: bool = False) -> Any:
        del request, result, cancels
        await asyncio.Event().wait()


def rpc(remaining_s: float | None) -> Rpc:
    return Rpc(method="Classify", request_id="r", remaining_s=remaining_s)


@pytest.fixture
def router() -> Router:
    made = Router(FrontMetrics(), lambda: None)
    made.apply(Routing(revision=1, engines=[], models=[idle("/none")], serving=True), {})
    return made


async def test_without_a_deadline_nobody_waits_for_ever(router: Router) -> None:
    waker = Waker(router, SilentControl(), max_wait_s=0.05)
    with pytest.raises(VersionLoading, match=r"0\.05 s") as caught:
        await waker.begin(rpc(None), ModelReference(name="topics"), ModelKind.CLASSIFIER)
    assert caught.value.retry_after_s
    with pytest.raises(DeadlinePassed):
        await waker.begin(rpc(0.05), ModelReference(name="topics"), ModelKind.CLASSIFIER)
    assert waker.waiting() == {}


async def test_no_more_than_the_bound_wait(router: Router) -> None:
    waker = Waker(router, SilentControl(), max_waiting=2)
    reference = ModelReference(name="topics")
    tasks = [asyncio.create_task(waker.begin(rpc(None), reference, ModelKind.CLASSIFIER)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="2 requests wait"):
        await waker.begin(rpc(None), reference, ModelKind.CLASSIFIER)
    assert list(waker.waiting().values()) == [2]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert waker.waiting() == {}
