"""StreamClassify through real gRPC: answers as they finish, errors of items, back-pressure."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from front_world import classifier, classify_world, ids_of, word_tokenizer, write_version
from google.rpc import error_details_pb2
from shoal.v1 import classify_pb2, classify_pb2_grpc
from shoal_server.config import LimitsConfig, ServerConfig
from shoal_server.ipc.messages import Abort, ClassifyCall, Drain, RoutedVersion, VersionState

START = classify_pb2.StreamClassifyRequest(start={"model": {"name": "topics"}})


def item(item_id: int, text: str) -> classify_pb2.StreamClassifyRequest:
    return classify_pb2.StreamClassifyRequest(item={"id": item_id, "input": {"text": text}})


async def test_answers_come_as_they_finish_under_the_clients_ids() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        await stream.write(START)
        await stream.write(item(70, "fox"))
        await stream.write(item(3, "the fox"))
        first, second = await world.engine.wait_for(ClassifyCall, 2)
        world.engine.answer_classify(second)
        early = await stream.read()
        world.engine.answer_classify(first)
        late = await stream.read()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
    by_first_id = {70: first, 3: second}
    assert len(ids_of(by_first_id[70].sequences[0])) == 3
    assert (early.id, late.id) == (3, 70)
    assert list(early.labels) == ["zero", "one", "two"]
    assert list(late.labels) == []  # the same version: the client knows them
    assert early.served_by.version == late.served_by.version == 1


async def test_a_bad_item_gets_its_status_and_the_stream_goes_on() -> None:
    async with classify_world() as world:
        stream = world.classify.StreamClassify(iter([START, item(1, ""), item(2, "fox " * 20), item(3, "fox")]))
        answers = {answer.id: answer async for answer in stream}
    assert answers[3].WhichOneof("outcome") == "result"
    for bad in (1, 2):
        error = answers[bad].error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        (violations,) = [d for d in error.details if d.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
        detail = error_details_pb2.BadRequest()
        violations.Unpack(detail)
        assert detail.field_violations[0].field == "item.input.text"


async def test_an_id_that_is_not_answered_yet_cannot_be_used_again() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        await stream.write(START)
        await stream.write(item(5, "fox"))
        (first,) = await world.engine.wait_for(ClassifyCall)
        for _ in range(2):  # the refusal does not free the id
            await stream.write(item(5, "dog"))
            assert (await stream.read()).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        world.engine.answer_classify(first)
        assert (await stream.read()).WhichOneof("outcome") == "result"
        await stream.write(item(5, "dog"))  # answered: free again
        calls = await world.engine.wait_for(ClassifyCall, 2)
        world.engine.answer_classify(calls[1])
        assert (await stream.read()).WhichOneof("outcome") == "result"
        stream.cancel()


async def test_reading_stops_when_enough_is_unanswered() -> None:
    async with classify_world(ServerConfig(limits=LimitsConfig(max_stream_items=4))) as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify(iter([START, *(item(i, "fox") for i in range(10))]))
        await world.engine.wait_for(ClassifyCall, 4)
        await asyncio.sleep(0.1)
        assert len(world.engine.calls(ClassifyCall)) == 4
        answered = 0
        while answered < 10:
            for call in world.engine.calls(ClassifyCall)[answered:]:
                world.engine.answer_classify(call)
                answered += 1
                assert (await stream.read()).WhichOneof("outcome") == "result"
            await asyncio.sleep(0.01)
        assert await stream.read() is grpc.aio.EOF


async def test_a_client_that_does_not_read_is_soon_not_read_from() -> None:
    """The transport's window takes some answers; with those unread the server stops far short of what was sent."""
    async with classify_world(ServerConfig(limits=LimitsConfig(max_stream_items=8))) as world:
        total = 2_000
        stub = classify_pb2_grpc.ClassifyServiceStub(world.channel(("grpc.http2.bdp_probe", 0)))  # windows stay small
        stream = stub.StreamClassify(iter([START, *(item(i, "fox") for i in range(total))]))
        before = -1
        async with asyncio.timeout(20):
            while before != len(world.engine.received):
                before = len(world.engine.received)
                await asyncio.sleep(0.3)
        assert 8 <= before < total
        answers = [answer async for answer in stream]
    assert sorted(answer.id for answer in answers) == list(range(total))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([item(1, "fox")], grpc.StatusCode.INVALID_ARGUMENT),
        ([], grpc.StatusCode.INVALID_ARGUMENT),
        ([START, START], grpc.StatusCode.INVALID_ARGUMENT),
        ([classify_pb2.StreamClassifyRequest(start={"model": {"name": "nobody"}})], grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_stream_that_begins_or_goes_on_wrongly_ends(messages: list, code: grpc.StatusCode) -> None:
    async with classify_world() as world:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in world.classify.StreamClassify(iter(messages)):
                pass
    assert caught.value.code() is code


async def test_items_go_to_the_version_that_is_live_when_they_come() -> None:
    async with classify_world() as world:
        second = write_version(world.repository, word_tokenizer(), version=2, labels=("x", "y", "z"))
        stream = world.classify.StreamClassify()
        await stream.write(START)
        await stream.write(item(1, "fox"))
        old = await stream.read()
        versions = [
            RoutedVersion(
                version=1, state=VersionState.DRAINING, path=str(world.repository / "topics" / "1"), engine_ids=[0]
            ),
            RoutedVersion(version=2, state=VersionState.LIVE, path=str(second), engine_ids=[0]),
        ]
        await world.route(classifier(second, version=2, versions=versions))
        await stream.write(item(2, "fox"))
        new = await stream.read()
        stream.cancel()
    assert (old.served_by.version, new.served_by.version) == (1, 2)
    assert list(new.labels) == ["x", "y", "z"]


async def test_cancelling_a_stream_aborts_what_is_open() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        await stream.write(START)
        for i in range(3):
            await stream.write(item(i, "fox"))
        await world.engine.wait_for(ClassifyCall, 3)
        stream.cancel()
        assert len(await world.engine.wait_for(Abort, 3)) == 3


async def test_on_shutdown_what_was_read_is_answered_and_the_client_told_to_go_elsewhere() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        await stream.write(START)
        await stream.write(item(1, "fox"))
        (call,) = await world.engine.wait_for(ClassifyCall)
        world.control.send(Drain(lame_duck_s=0, drain_s=5))
        await asyncio.sleep(0.05)
        world.engine.answer_classify(call)
        assert (await stream.read()).WhichOneof("outcome") == "result"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata())
