"""Generate and StreamGenerate through real gRPC, between a fake engine and a fake control."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from front_world import byte_ids, byte_tokenizer, generate_world, generator, ids_of, rest, write_version
from google.rpc import error_details_pb2
from shoal.v1 import generate_pb2
from shoal_server.config import GenerateConfig, LimitsConfig, ServerConfig
from shoal_server.ipc.messages import (
    Abort,
    FinishReason,
    GenerateCall,
    RoutedVersion,
    RoutingApplied,
    TokenLogprobs,
    TokensGenerated,
    VersionState,
)
from test_classify_service import details, fields, refused


def request(text: str = "hi", **generation) -> generate_pb2.GenerateRequest:
    spec = {"text": text} | generation
    return generate_pb2.GenerateRequest(model={"name": "writer"}, generation=spec)


def streamed(text: str = "hi", **generation) -> generate_pb2.StreamGenerateRequest:
    return generate_pb2.StreamGenerateRequest(model={"name": "writer"}, generation={"text": text} | generation)


def says(text: str, reason: FinishReason = FinishReason.LENGTH, tokens_per_message: int = 1):
    def reply(engine, call: GenerateCall) -> None:
        engine.say(call, text, tokens_per_message=tokens_per_message)
        engine.end(call, reason)

    return reply


async def test_a_whole_answer() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says(" there", FinishReason.END_OF_SEQUENCE)
        reply = await world.generate.Generate(request("hi"))
        (call,) = world.engine.calls(GenerateCall)
    assert ids_of(call.prompt) == byte_ids("hi")
    assert call.max_new_tokens == 62  # the default of 256, cut to the room in a context of 64
    (completion,) = reply.completions
    assert completion.text == " there"
    assert list(completion.token_ids) == byte_ids(" there")
    summary = reply.summary
    assert summary.completions[0].finish_reason == generate_pb2.FINISH_REASON_END_OF_SEQUENCE
    assert (summary.usage.num_prompt_tokens, summary.usage.num_output_tokens) == (2, 6)
    assert (summary.served_by.model, summary.served_by.version) == ("writer", 1)
    assert summary.HasField("time_to_first_token")


async def test_sampling_and_stops_reach_the_engine() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says("x")
        sampling = {
            "temperature": 0,
            "top_k": 5,
            "top_p": 0.5,
            "min_p": 0.25,
            "repetition_penalty": 2,
            "seed": 2**64 - 1,
        }
        stop = {"token_ids": [7], "max_new_tokens": 9, "min_new_tokens": 2, "ignore_eos": True}
        await world.generate.Generate(request(sampling=sampling, stop=stop, logprobs=3, num_completions=2))
        calls = world.engine.calls(GenerateCall)
    assert sorted(call.sampling.seed for call in calls) == [0, 2**64 - 1]  # seed + i, around the end
    call = calls[0]
    assert (call.sampling.temperature, call.sampling.top_k, call.sampling.top_p) == (0.0, 5, 0.5)
    assert (call.sampling.min_p, call.sampling.repetition_penalty) == (0.25, 2.0)
    assert (call.stop_token_ids, call.max_new_tokens, call.min_new_tokens) == ([7], 9, 2)
    assert (call.ignore_eos, call.num_logprobs) == (True, 3)


async def test_a_streams_deltas_join_to_the_text_and_one_summary_comes_last() -> None:
    """Two- and three-byte characters come byte by byte; no delta shows half of one."""
    text = "naïve €uro"
    async with generate_world() as world:
        world.engine.on_generate = says(text)
        messages = [m async for m in world.generate.StreamGenerate(streamed())]
    *deltas, last = messages
    assert last.WhichOneof("event") == "summary"
    assert all(m.WhichOneof("event") == "delta" for m in deltas)
    assert "".join(m.delta.text for m in deltas) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(m.delta.text for m in deltas)
    assert [i for m in deltas for i in m.delta.token_ids] == byte_ids(text)


async def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    async with generate_world() as world:

        def half(engine, call) -> None:
            engine.send(TokensGenerated(request_id=call.request_id, token_ids=byte_ids("ok€")[:-1]))
            engine.end(call)

        world.engine.on_generate = half
        reply = await world.generate.Generate(request())
    assert reply.completions[0].text == "ok\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("tokens_per_message", [1, 3, 100])
async def test_a_stop_string_across_tokens_ends_the_text_before_it(tokens_per_message: int) -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(
            call, "one STOP two", tokens_per_message=tokens_per_message
        )
        messages = [m async for m in world.generate.StreamGenerate(streamed(stop={"strings": ["STOP", "two"]}))]
        await world.engine.wait_for(Abort)  # the engine need not go on
    text = "".join(m.delta.text for m in messages)
    assert text == "one "
    (completion,) = messages[-1].summary.completions
    assert completion.finish_reason == generate_pb2.FINISH_REASON_STOP_STRING
    assert completion.stop_string == "STOP"
    assert completion.num_output_tokens == len("one STOP")
    assert [i for m in messages for i in m.delta.token_ids] == byte_ids("one STOP")


async def test_text_that_may_become_a_stop_string_is_held_back_until_it_does_not() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(call, "a ST")
        stream = world.generate.StreamGenerate(streamed(stop={"strings": ["STOP"]}))
        shown = ""
        while shown != "a ":
            shown += (await stream.read()).delta.text
        await asyncio.sleep(0.05)
        (call,) = world.engine.calls(GenerateCall)
        world.engine.say(call, "ART")
        world.engine.end(call)
        for message in await rest(stream):
            shown += message.delta.text
    assert shown == "a START"


async def test_no_stop_string_counts_before_min_new_tokens() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says("STOP and STOP then")
        stop = {"strings": ["STOP"], "min_new_tokens": 5, "max_new_tokens": 20}
        reply = await world.generate.Generate(request(stop=stop))
    assert reply.completions[0].text == "STOP and "


async def test_completions_run_side_by_side_and_are_told_apart() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: None
        call = world.generate.Generate(request(num_completions=3))
        calls = await world.engine.wait_for(GenerateCall, 3)
        for engine_call, text in reversed(list(zip(calls, ["first", "second", "third"], strict=True))):
            says(text)(world.engine, engine_call)
        reply = await call
    assert [c.text for c in reply.completions] == ["first", "second", "third"]
    assert [c.index for c in reply.summary.completions] == [0, 1, 2]
    assert reply.summary.usage.num_output_tokens == 16


async def test_logprobs_stand_beside_their_tokens() -> None:
    async with generate_world() as world:

        def reply(engine, call) -> None:
            found = [TokenLogprobs(logprob=-0.5, token_ids=[1, 2], logprobs=[-0.5, -1.5])] * 2
            engine.send(TokensGenerated(request_id=call.request_id, token_ids=byte_ids("ab"), logprobs=found))
            engine.end(call)

        world.engine.on_generate = reply
        answer = await world.generate.Generate(request(logprobs=2))
    first, _ = answer.completions[0].logprobs
    assert first.token_id == byte_ids("a")[0]
    assert first.logprob == -0.5
    assert [(a.token_id, a.logprob) for a in first.alternatives] == [(1, -0.5), (2, -1.5)]


async def test_a_conversation_goes_through_the_models_template() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says("!")
        chat = {"messages": [{"role": generate_pb2.CHAT_ROLE_USER, "content": "hi"}]}
        spec = generate_pb2.GenerationSpec(chat=chat)
        await world.generate.Generate(generate_pb2.GenerateRequest(model={"name": "writer"}, generation=spec))
        (call,) = world.engine.calls(GenerateCall)
    assert ids_of(call.prompt) == byte_ids("<user>hi<assistant>")


async def test_a_model_without_a_template_refuses_conversations() -> None:
    async with generate_world() as world:
        path = write_version(
            world.repository, byte_tokenizer(), version=2, model="writer", kind="generator", labels=(), head=""
        )
        await world.route(generator(path, version=2))
        chat = {"messages": [{"role": generate_pb2.CHAT_ROLE_USER, "content": "hi"}]}
        ask = generate_pb2.GenerateRequest(model={"name": "writer"}, generation={"chat": chat})
        assert fields(await refused(world.generate.Generate(ask))) == ["generation.chat"]


INVALID = [
    ({"text": ""}, "generation.text"),
    ({"text": "x" * 101}, "generation.text"),
    ({"text": "x" * 64}, "generation.text"),
    ({"text": "x", "sampling": {"temperature": -1}}, "generation.sampling.temperature"),
    ({"text": "x", "sampling": {"temperature": float("nan")}}, "generation.sampling.temperature"),
    ({"text": "x", "sampling": {"temperature": float("inf")}}, "generation.sampling.temperature"),
    ({"text": "x", "sampling": {"top_p": 0.0}}, "generation.sampling.top_p"),
    ({"text": "x", "sampling": {"min_p": 1.5}}, "generation.sampling.min_p"),
    ({"text": "x", "sampling": {"repetition_penalty": 0.0}}, "generation.sampling.repetition_penalty"),
    ({"text": "x", "stop": {"strings": ["a"] * 17}}, "generation.stop.strings"),
    ({"text": "x", "stop": {"strings": ["a", ""]}}, "generation.stop.strings[1]"),
    ({"text": "x", "stop": {"token_ids": [1] * 65}}, "generation.stop.token_ids"),
    ({"text": "x", "stop": {"token_ids": [1, 256]}}, "generation.stop.token_ids[1]"),
    ({"text": "x", "stop": {"max_new_tokens": 0}}, "generation.stop.max_new_tokens"),
    ({"text": "x", "stop": {"max_new_tokens": 64}}, "generation.stop.max_new_tokens"),
    ({"text": "x", "stop": {"max_new_tokens": 2, "min_new_tokens": 3}}, "generation.stop.min_new_tokens"),
    ({"text": "x", "stop": {"min_new_tokens": 64}}, "generation.stop.min_new_tokens"),
    ({"text": "x", "logprobs": 21}, "generation.logprobs"),
    ({"text": "x", "num_completions": 17}, "generation.num_completions"),
    ({"token_ids": {"ids": [1, 300]}}, "generation.token_ids.ids[1]"),
    ({"token_ids": {}}, "generation.token_ids"),
    ({"chat": {}}, "generation.chat.messages"),
    ({"chat": {"messages": [{"content": "x"}]}}, "generation.chat.messages[0].role"),
    ({}, "generation"),
]


@pytest.mark.parametrize(("spec", "field"), INVALID)
async def test_what_is_wrong_is_named(spec: dict, field: str) -> None:
    async with generate_world(ServerConfig(limits=LimitsConfig(max_characters=100))) as world:
        ask = generate_pb2.GenerateRequest(model={"name": "writer"}, generation=spec)
        error = await refused(world.generate.Generate(ask))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fields(error) == [field]
        assert world.engine.calls(GenerateCall) == []


async def test_leaving_a_stream_aborts_every_completion() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(call, "endless")
        stream = world.generate.StreamGenerate(streamed(num_completions=2))
        await stream.read()
        stream.cancel()
        aborted = await world.engine.wait_for(Abort, 2)
        calls = world.engine.calls(GenerateCall)
    assert {m.request_id for m in aborted} == {c.request_id for c in calls}


async def test_a_deadline_ends_a_stream() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(call, "endless")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in world.generate.StreamGenerate(streamed(), timeout=0.2):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await world.engine.wait_for(Abort)


async def test_a_dead_engine_ends_a_stream_with_unavailable() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(call, "some")
        stream = world.generate.StreamGenerate(streamed())
        await stream.read()
        world.engine.die()
        error = await refused(rest(stream))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert details(error, error_details_pb2.RetryInfo)


async def test_sequences_are_bounded_at_the_door() -> None:
    async with generate_world(ServerConfig(generate=GenerateConfig(max_running=1, max_waiting=1))) as world:
        stub = world.generate
        open_calls = [stub.Generate(request()) for _ in range(2)]
        await world.engine.wait_for(GenerateCall, 2)
        error = await refused(stub.Generate(request()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details(error, error_details_pb2.ErrorInfo)[0].reason == "QUEUE_FULL"
        too_many = await refused(stub.Generate(request(num_completions=3)))
        assert too_many.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in world.engine.calls(GenerateCall):
            world.engine.end(call)
        await asyncio.gather(*open_calls)


async def test_what_has_queued_is_sent_together() -> None:
    """All tokens of one engine frame are there at once: one delta carries them."""
    async with generate_world() as world:
        world.engine.on_generate = says("twelve bytes")
        messages = [m async for m in world.generate.StreamGenerate(streamed())]
    assert len(messages) == 2
    assert len(messages[0].delta.token_ids) == 12


async def test_a_client_that_does_not_read_loses_its_request_before_memory_is_lost() -> None:
    """More tokens than a front keeps unread: the request fails, its call is aborted, other requests go on."""
    async with generate_world(max_tokens=2**20) as world:
        world.engine.on_generate = lambda engine, call: None
        stream = world.generate.StreamGenerate(streamed(stop={"max_new_tokens": 2**19}))
        (call,) = await world.engine.wait_for(GenerateCall)
        token_ids = byte_ids("x" * 1000)
        async with asyncio.timeout(20):
            while not world.engine.calls(Abort):
                for _ in range(20):
                    world.engine.send(TokensGenerated(request_id=call.request_id, token_ids=token_ids))
                await asyncio.sleep(0.001)
        error = await refused(rest(stream))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        world.engine.on_generate = says("fine")
        assert (await world.generate.Generate(request())).completions[0].text == "fine"


async def test_a_stream_ends_on_the_version_it_began_with_and_draining_is_reported() -> None:
    async with generate_world() as world:
        world.engine.on_generate = lambda engine, call: engine.say(call, "be")
        stream = world.generate.StreamGenerate(streamed())
        await stream.read()
        first = world.repository / "writer" / "1"
        second = write_version(
            world.repository, byte_tokenizer(), version=2, model="writer", kind="generator", labels=(), head=""
        )
        versions = [
            RoutedVersion(version=1, state=VersionState.DRAINING, path=str(first), engine_ids=[0]),
            RoutedVersion(version=2, state=VersionState.LIVE, path=str(second), engine_ids=[0]),
        ]
        applied = await world.route(generator(second, version=2, versions=versions))
        assert applied.in_flight == {"writer@1": 1}
        (call,) = world.engine.calls(GenerateCall)
        world.engine.say(call, "gun")
        world.engine.end(call)
        messages = await rest(stream)
        assert messages[-1].summary.served_by.version == 1
        again = await world.control.wait_for(
            RoutingApplied, lambda m: m.revision == applied.revision and not m.in_flight
        )
        assert again.in_flight == {}
        pinned = generate_pb2.GenerateRequest(model={"name": "writer", "version": 1}, generation={"text": "x"})
        assert (await refused(world.generate.Generate(pinned))).code() is grpc.StatusCode.NOT_FOUND


async def test_the_context_is_named_when_it_cut_the_default_short() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says("y" * 14)
        stub = world.generate
        by_context = await stub.Generate(request("x" * 50))
        by_request = await stub.Generate(request("x" * 50, stop={"max_new_tokens": 14}))
    assert by_context.summary.completions[0].finish_reason == generate_pb2.FINISH_REASON_CONTEXT_FULL
    assert by_request.summary.completions[0].finish_reason == generate_pb2.FINISH_REASON_LENGTH


async def test_token_metrics() -> None:
    async with generate_world() as world:
        world.engine.on_generate = says("abcd")
        await world.generate.Generate(request("hi"))
        found = await world.metrics()
    assert found[("shoal_output_tokens", "writer", "1")].value == 4
    assert found[("shoal_input_tokens", "writer", "1")].value == 2
    assert sum(found[("shoal_time_to_first_token_seconds", "writer", "1")].buckets) == 1
    assert sum(found[("shoal_queue_seconds", "writer", "1")].buckets) == 1
