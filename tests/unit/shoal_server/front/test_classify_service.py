"""Classify through real gRPC, between a fake engine and a fake control."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest
from front_world import CLS, SEP, classify_world, ids_of, text_request, times
from google.rpc import error_details_pb2, status_pb2
from shoal.v1 import classify_pb2
from shoal_server.config import ClassifyConfig, LimitsConfig, ServerConfig
from shoal_server.ipc.messages import Abort, ClassifyCall


def details(error: grpc.aio.AioRpcError, kind: type) -> list:
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    found = []
    for any_proto in status.details:
        message = kind()
        if any_proto.Is(kind.DESCRIPTOR):
            any_proto.Unpack(message)
            found.append(message)
    return found


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    return [v.field for detail in details(error, error_details_pb2.BadRequest) for v in detail.field_violations]


async def test_texts_are_tokenized_run_and_scored() -> None:
    """The text "the fox" is [CLS] the fox [SEP]: length 4, first id 7; softmax of (4, 7, 0) puts label 1 first."""
    async with classify_world() as world:
        reply = await world.classify.Classify(text_request("the fox", "good"))
        (call,) = world.engine.calls(ClassifyCall)
    assert [ids_of(s) for s in call.sequences] == [[CLS, 7, 5, SEP], [CLS, 3, SEP]]
    assert call.type_starts == [-1, -1]
    total = math.exp(4) + math.exp(7) + 1
    assert list(reply.results[0].label_ids) == [1, 0, 2]
    assert list(reply.results[0].scores) == pytest.approx(
        [math.exp(7) / total, math.exp(4) / total, 1 / total], rel=1e-5
    )
    assert (reply.served_by.model, reply.served_by.version) == ("topics", 1)
    assert list(reply.labels) == ["zero", "one", "two"]
    assert reply.head == classify_pb2.HEAD_KIND_SINGLE_LABEL
    assert [r.num_input_tokens for r in reply.results] == [4, 3]
    assert reply.timings.tokenize.nanos > 0


async def test_logits_and_top_k() -> None:
    async with classify_world() as world:
        options = classify_pb2.ClassifyOptions(top_k=1, scores=classify_pb2.SCORE_KIND_LOGITS)
        reply = await world.classify.Classify(text_request("fox", options=options))
    assert list(reply.results[0].label_ids) == [1]
    assert list(reply.results[0].scores) == [5.0]


async def test_pairs_carry_where_the_second_text_begins() -> None:
    async with classify_world() as world:
        pair = classify_pb2.ClassifyInput(pair={"first": "the fox", "second": "good"})
        await world.classify.Classify(classify_pb2.ClassifyRequest(model={"name": "topics"}, inputs=[pair]))
        (call,) = world.engine.calls(ClassifyCall)
    assert ids_of(call.sequences[0]) == [CLS, 7, 5, SEP, 3, SEP]
    assert call.type_starts == [4]


async def test_long_texts_are_tokenized_in_threads_alike() -> None:
    async with classify_world() as world:
        options = classify_pb2.ClassifyOptions(overflow=classify_pb2.OVERFLOW_TRUNCATE_END)
        reply = await world.classify.Classify(text_request("fox " * 20_000, options=options))
        (call,) = world.engine.calls(ClassifyCall)
    assert ids_of(call.sequences[0]) == [CLS, *[5] * 14, SEP]
    assert reply.results[0].num_dropped_tokens == 20_000 - 14


async def test_windows_average_their_logits() -> None:
    """20 words in windows of 14 overlapping by 3: [0, 14) and [6, 20), which add 14 and 6 words."""
    async with classify_world() as world:
        options = classify_pb2.ClassifyOptions(
            overflow=classify_pb2.OVERFLOW_WINDOWS, scores=classify_pb2.SCORE_KIND_LOGITS
        )
        text = " ".join(["good"] * 6 + ["bad"] * 14)
        reply = await world.classify.Classify(text_request(text, options=options))
        (call,) = world.engine.calls(ClassifyCall)
    assert [len(ids_of(s)) for s in call.sequences] == [16, 16]
    assert ids_of(call.sequences[1])[1] == 4
    (result,) = reply.results
    assert result.num_windows == 2
    assert result.num_dropped_tokens == 0
    by_label = dict(zip(result.label_ids, result.scores, strict=True))
    assert by_label[1] == pytest.approx((14 * 3 + 6 * 4) / 20)


def holding(content: dict, **reference) -> classify_pb2.ClassifyRequest:
    return classify_pb2.ClassifyRequest(model={"name": "topics"} | reference, inputs=[content])


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (text_request(), "inputs", ["at least 1"]),
        (text_request(*["a"] * 5), "inputs", ["5", "4"]),
        (text_request("a", ""), "inputs[1].text", ["empty"]),
        (text_request("a", "b" * 101), "inputs[1].text", ["101", "100"]),
        (text_request("fox " * 15), "inputs[0].text", ["17", "16"]),
        (holding({}), "inputs[0]", ["text"]),
        (holding({"token_ids": {"ids": [0, 9]}}), "inputs[0].token_ids.ids[1]", ["9", "8"]),
        (holding({"token_ids": {}}), "inputs[0].token_ids", ["empty"]),
        (holding({"pair": {"first": "a"}}), "inputs[0].pair.second", ["empty"]),
        (text_request("a", name=""), "model.name", ["required"]),
        (text_request("a", name="../x"), "model.name", ["128"]),
        (text_request("a", priority=9), "priority", ["9"]),
        (text_request("a", options={"overflow": 9}), "options.overflow", ["9"]),
        (text_request("a", options={"scores": 9}), "options.scores", ["9"]),
        (holding({"text": "a"}, version=0), "model.version", ["0"]),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(request_: classify_pb2.ClassifyRequest, field: str, words: list[str]) -> None:
    limits = LimitsConfig(max_inputs=4, max_characters=100)
    async with classify_world(ServerConfig(limits=limits)) as world:
        error = await refused(world.classify.Classify(request_))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(error) == [field]
        assert all(word in error.details() for word in words), error.details()
        assert world.engine.calls(ClassifyCall) == []
        await world.classify.Classify(text_request("fox"))  # nothing else suffers


async def test_windows_are_refused_for_token_ids_and_pairs() -> None:
    async with classify_world() as world:
        options = classify_pb2.ClassifyOptions(overflow=classify_pb2.OVERFLOW_WINDOWS)
        for content in ({"token_ids": {"ids": [3] * 17}}, {"pair": {"first": "fox " * 9, "second": "fox " * 9}}):
            request = classify_pb2.ClassifyRequest(model={"name": "topics"}, inputs=[content], options=options)
            assert fields(await refused(world.classify.Classify(request))) == ["options.overflow"]


async def test_a_full_queue_refuses_at_the_door_with_a_retry_delay() -> None:
    async with classify_world(ServerConfig(classify=ClassifyConfig(max_waiting_tokens=16))) as world:
        world.engine.on_classify = lambda engine, call: None
        stub = world.classify
        first = stub.Classify(text_request("the fox the fox the fox the fox"))
        await world.engine.wait_for(ClassifyCall)
        error = await refused(stub.Classify(text_request("the fox the fox the fox the fox")))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(error, error_details_pb2.ErrorInfo)[0].reason == "QUEUE_FULL"
        assert details(error, error_details_pb2.RetryInfo)[0].retry_delay.nanos > 0
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 50
        world.engine.answer_classify(world.engine.calls(ClassifyCall)[0])
        await first
        world.engine.on_classify = type(world.engine).answer_classify
        await stub.Classify(text_request("fox"))  # the place is free again


async def test_a_request_larger_than_the_queue_is_refused_without_a_retry_delay() -> None:
    async with classify_world(ServerConfig(classify=ClassifyConfig(max_waiting_tokens=16))) as world:
        error = await refused(world.classify.Classify(text_request(*["the fox"] * 5)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(error, error_details_pb2.RetryInfo) == []
        assert "20" in error.details()


async def test_a_dead_engine_fails_what_is_open_and_health_turns() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        call = world.classify.Classify(text_request("fox"))
        await world.engine.wait_for(ClassifyCall)
        world.engine.die()
        error = await refused(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error, error_details_pb2.ErrorInfo)[0].reason == "ENGINE_LOST"
        assert details(error, error_details_pb2.RetryInfo)
        again = await refused(world.classify.Classify(text_request("fox")))
        assert again.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_deadline_aborts_the_call_at_the_engine() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        error = await refused(world.classify.Classify(text_request("fox"), timeout=0.1))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (abort,) = await world.engine.wait_for(Abort)
        (call,) = world.engine.calls(ClassifyCall)
        assert abort.request_id == call.request_id
        assert call.deadline_s is not None
        world.engine.answer_classify(call)  # too late, and harmless
        world.engine.on_classify = type(world.engine).answer_classify
        await world.classify.Classify(text_request("fox"))


async def test_a_cancelled_call_is_aborted_and_gives_its_place_back() -> None:
    async with classify_world(ServerConfig(classify=ClassifyConfig(max_waiting_tokens=16))) as world:
        world.engine.on_classify = lambda engine, call: None
        call = world.classify.Classify(text_request("the fox the fox the fox the fox"))
        await world.engine.wait_for(ClassifyCall)
        call.cancel()
        await world.engine.wait_for(Abort)
        world.engine.on_classify = type(world.engine).answer_classify
        await world.classify.Classify(text_request("the fox the fox the fox the fox"))


async def test_an_error_of_the_engine_reaches_the_client_as_it_is() -> None:
    from shoal_server.errors import DeadlinePassed
    from shoal_server.ipc.messages import CallFailed

    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: engine.send(
            CallFailed(request_id=call.request_id, error=DeadlinePassed("expired in the queue").to_wire())
        )
        error = await refused(world.classify.Classify(text_request("fox")))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "expired in the queue"


async def test_malformed_bytes_are_the_clients_error() -> None:
    async with classify_world() as world:
        call = world.channel().unary_unary("/shoal.v1.ClassifyService/Classify")
        error = await refused(call(b"\xff\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_request_id_comes_back_and_a_bad_one_is_replaced() -> None:
    async with classify_world() as world:
        stub = world.classify
        for given, same in (("my-id-17", True), ("x" * 200, False)):
            call = stub.Classify(text_request("fox"), metadata=(("x-request-id", given),))
            await call
            got = dict(await call.trailing_metadata())["x-request-id"]
            assert (got == given) is same
            assert got


async def test_the_request_id_comes_with_an_error_too_and_before_the_answers_of_a_stream() -> None:
    given = (("x-request-id", "my-id-17"),)
    async with classify_world() as world:
        stub = world.classify
        error = await refused(stub.Classify(text_request(""), metadata=given))
        assert dict(error.trailing_metadata())["x-request-id"] == "my-id-17"
        stream = stub.StreamClassify(metadata=given)
        assert dict(await stream.initial_metadata())["x-request-id"] == "my-id-17"
        stream.cancel()


async def test_a_queue_time_is_told() -> None:
    async with classify_world() as world:

        def answer_late(engine, call: ClassifyCall) -> None:
            from shoal_server.ipc.messages import ClassifyDone

            late = times()
            done = ClassifyDone(
                request_id=call.request_id,
                logits=b"\0" * 12,
                times=type(late)(
                    received_s=late.received_s, started_s=late.received_s + 2, ended_s=late.received_s + 5
                ),
            )
            engine.send(done)

        world.engine.on_classify = answer_late
        reply = await world.classify.Classify(text_request("fox"))
    assert reply.timings.queue.seconds == 2
    assert reply.timings.run.seconds == 3


async def test_counters_tell_methods_codes_and_tokens() -> None:
    async with classify_world() as world:
        stub = world.classify
        await stub.Classify(text_request("the fox", "good"))
        await refused(stub.Classify(text_request("")))
        await refused(stub.Classify(text_request("a", name="nobody")))
        found = await world.metrics()
    assert found[("shoal_rpc_requests", "Classify", "OK", "topics", "1")].value == 1
    assert found[("shoal_rpc_requests", "Classify", "INVALID_ARGUMENT", "", "")].value == 1
    assert found[("shoal_rpc_requests", "Classify", "NOT_FOUND", "", "")].value == 1
    assert found[("shoal_input_tokens", "topics", "1")].value == 7
    assert sum(found[("shoal_rpc_duration_seconds", "Classify", "OK", "topics", "1")].buckets) == 1
    assert found[("shoal_rejected_requests", "MODEL_NOT_FOUND", "", "")].value == 1
    assert found[("shoal_requests_in_flight", "topics", "1")].value == 0


async def test_many_calls_at_once_are_all_answered() -> None:
    async with classify_world() as world:
        stub = world.classify
        replies = await asyncio.gather(*(stub.Classify(text_request(*["fox"] * (1 + i % 3))) for i in range(200)))
    assert [len(reply.results) for reply in replies] == [1 + i % 3 for i in range(200)]
