"""StreamClassify through real gRPC: answers as they finish, errors of items, back-pressure."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from front_world import FakeEngine, classifier, classify_world, ids_of, word_tokenizer, write_version
from google.rpc import error_details_pb2, status_pb2
from shoal.v1 import classify_pb2, classify_pb2_grpc
from shoal_server.config import ClassifyConfig, LimitsConfig, ServerConfig
from shoal_server.ipc.messages import Abort, ClassifyCall, Drain, RoutedVersion, VersionState

START = classify_pb2.StreamClassifyRequest(start={"model": {"name": "topics"}})


def item(item_id: int, text: str) -> classify_pb2.StreamClassifyRequest:
    return items((item_id, text))


def items(*texts: tuple[int, str]) -> classify_pb2.StreamClassifyRequest:
    return classify_pb2.StreamClassifyRequest(
        items=[{"id": item_id, "input": {"text": text}} for item_id, text in texts]
    )


def violated(error: status_pb2.Status) -> list[str]:
    """Fields that an error names."""
    detail = error_details_pb2.BadRequest()
    assert any(packed.Is(detail.DESCRIPTOR) and packed.Unpack(detail) for packed in error.details)
    return [violation.field for violation in detail.field_violations]


async def read_one(stream: Any) -> classify_pb2.StreamClassifyAnswer:
    """The answer of a message that holds one."""
    (answer,) = (await stream.read()).answers
    return answer


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
    assert [[answer.id for answer in message.answers] for message in (early, late)] == [[3], [70]]
    assert list(early.labels) == ["zero", "one", "two"]
    assert list(late.labels) == []  # the same version: the client knows them
    assert early.served_by.version == late.served_by.version == 1


async def test_a_bad_item_gets_its_status_and_the_stream_goes_on() -> None:
    async with classify_world() as world:
        stream = world.classify.StreamClassify(iter([START, item(1, ""), item(2, "fox " * 20), item(3, "fox")]))
        answers = {answer.id: answer async for message in stream for answer in message.answers}
    assert answers[3].WhichOneof("outcome") == "result"
    for bad in (1, 2):
        error = answers[bad].error
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert violated(error) == ["input.text"]


async def test_an_id_that_is_not_answered_yet_cannot_be_used_again() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        await stream.write(START)
        await stream.write(item(5, "fox"))
        (first,) = await world.engine.wait_for(ClassifyCall)
        for _ in range(2):  # the refusal does not free the id
            await stream.write(item(5, "dog"))
            assert (await read_one(stream)).error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        world.engine.answer_classify(first)
        assert (await read_one(stream)).WhichOneof("outcome") == "result"
        await stream.write(item(5, "dog"))  # answered: free again
        calls = await world.engine.wait_for(ClassifyCall, 2)
        world.engine.answer_classify(calls[1])
        assert (await read_one(stream)).WhichOneof("outcome") == "result"
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
                assert (await read_one(stream)).WhichOneof("outcome") == "result"
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
        answers = [answer async for message in stream for answer in message.answers]
    assert sorted(answer.id for answer in answers) == list(range(total))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([item(1, "fox")], grpc.StatusCode.INVALID_ARGUMENT),
        ([], grpc.StatusCode.INVALID_ARGUMENT),
        ([START, START], grpc.StatusCode.INVALID_ARGUMENT),
        ([START, classify_pb2.StreamClassifyRequest()], grpc.StatusCode.INVALID_ARGUMENT),
        ([START, items(*((i, "fox") for i in range(257)))], grpc.StatusCode.INVALID_ARGUMENT),
        (
            [classify_pb2.StreamClassifyRequest(start=START.start, items=items((1, "fox")).items)],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
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
        assert (await read_one(stream)).WhichOneof("outcome") == "result"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata())


async def test_the_items_of_a_message_run_and_are_answered_together() -> None:
    async with classify_world() as world:
        stream = world.classify.StreamClassify(iter([START, items(*((i, "fox " * i) for i in range(1, 6)))]))
        (message,) = [message async for message in stream]
        (call,) = world.engine.calls(ClassifyCall)
    assert len(call.sequences) == 5
    assert {answer.id: answer.result.num_input_tokens for answer in message.answers} == {i: i + 2 for i in range(1, 6)}
    assert message.served_by.version == 1
    assert message.timings.tokenize.nanos > 0
    assert list(message.labels) == ["zero", "one", "two"]


async def test_bad_items_in_the_middle_of_a_message_leave_the_others_as_they_are() -> None:
    """Five ways to be wrong between three that are right; the fourth right one has the id of the first."""
    inputs: list[dict[str, Any]] = [
        {"text": "fox"},
        {"text": ""},
        {"token_ids": {"ids": [3, 4, 5]}},
        {"token_ids": {"ids": [3, 99]}},
        {"text": "fox " * 20},
        {},
        {"pair": {"first": "fox", "second": ""}},
        {"pair": {"first": "fox", "second": "dog"}},
    ]
    wanted = ["", "input.text", "", "input.token_ids.ids[1]", "input.text", "input", "input.pair.second", ""]
    messages = [{"id": i, "input": one} for i, one in enumerate(inputs)] + [{"id": 0, "input": {"text": "dog"}}]
    async with classify_world() as world:
        stream = world.classify.StreamClassify(iter([START, classify_pb2.StreamClassifyRequest(items=messages)]))
        (message,) = [message async for message in stream]
        (call,) = world.engine.calls(ClassifyCall)
        found = await world.metrics()
    assert len(call.sequences) == 3
    results = {answer.id: answer.result for answer in message.answers if answer.HasField("result")}
    assert {i: result.num_input_tokens for i, result in results.items()} == {0: 3, 2: 3, 7: 5}
    errors = {(answer.id, *violated(answer.error)) for answer in message.answers if answer.HasField("error")}
    assert errors == {(i, field) for i, field in enumerate(wanted) if field} | {(0, "id")}
    assert found[("shoal_rejected_requests", "INVALID_REQUEST", "topics", "1")].value == 6
    assert found[("shoal_input_tokens", "topics", "1")].value == 11


async def test_a_message_of_bad_items_alone_is_answered_without_the_engine() -> None:
    async with classify_world() as world:
        stream = world.classify.StreamClassify(iter([START, items((1, ""), (2, "fox " * 20))]))
        (message,) = [message async for message in stream]
        assert world.engine.calls(ClassifyCall) == []
    assert sorted(answer.id for answer in message.answers if answer.HasField("error")) == [1, 2]
    assert not message.HasField("served_by")
    assert not message.HasField("timings")


async def test_an_error_of_the_engine_is_that_of_every_item_of_the_message() -> None:
    from shoal_server.errors import DeadlinePassed
    from shoal_server.ipc.messages import CallFailed

    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: engine.send(
            CallFailed(request_id=call.request_id, error=DeadlinePassed("expired").to_wire())
        )
        stream = world.classify.StreamClassify(iter([START, items((1, "fox"), (2, ""), (3, "dog"))]))
        (message,) = [message async for message in stream]
    codes = {answer.id: answer.error.code for answer in message.answers}
    late, invalid = grpc.StatusCode.DEADLINE_EXCEEDED.value[0], grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert codes == {1: late, 2: invalid, 3: late}


async def test_a_full_queue_refuses_a_message_and_the_stream_goes_on() -> None:
    async with classify_world(ServerConfig(classify=ClassifyConfig(max_waiting_tokens=16))) as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify()
        for message in (START, items((1, "the fox"), (2, "the dog")), items((3, "the fox"), (4, "a dog"), (5, "bad"))):
            await stream.write(message)
        refused = await stream.read()
        assert {answer.id for answer in refused.answers} == {3, 4, 5}
        assert {answer.error.code for answer in refused.answers} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
        (waiting,) = await world.engine.wait_for(ClassifyCall, 1)
        world.engine.answer_classify(waiting)
        assert {answer.id for answer in (await stream.read()).answers} == {1, 2}
        world.engine.on_classify = FakeEngine.answer_classify
        await stream.write(items((3, "the fox")))
        assert (await read_one(stream)).HasField("result")
        stream.cancel()


async def test_a_deadline_ends_the_stream_and_aborts_what_is_open() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stream = world.classify.StreamClassify(timeout=0.2)
        for message in (START, items((1, "fox"), (2, "dog")), items((3, "a"), (4, "the"))):
            await stream.write(message)
        calls = await world.engine.wait_for(ClassifyCall, 2)
        assert all(call.deadline_s is not None for call in calls)
        aborts = await world.engine.wait_for(Abort, 2)
        assert {abort.request_id for abort in aborts} == {call.request_id for call in calls}
        assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
