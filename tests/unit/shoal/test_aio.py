"""The asynchronous client through real gRPC on loopback."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from shoal import (
    AsyncClient,
    CancelledRpcError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    ServerFaultError,
    UnavailableError,
    types,
)
from shoal_fake_server import PUSHBACK_MS, FakeServer


async def seen(event: object) -> bool:
    """Whether the server notes something within five seconds."""
    return await asyncio.to_thread(event.wait, 5)  # type: ignore[attr-defined]


# --- classify ---------------------------------------------------------------------------------------------------------


async def test_classify_reads_every_kind_of_input_and_names_its_labels(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        reply = await client.classify("demo", ["short", "a longer text", ("one", "two"), [5, 6]], version=3, top_k=2)
    assert [result.label for result in reply] == ["short", "long", "pair", "tokens"]
    assert reply[0].ranking == (("short", 0.5), ("long", 0.25), ("pair", 0.125), ("tokens", 0.125))
    assert (reply.version, reply.head, len(reply)) == (3, "single_label", 4)
    assert reply.timings == types.Timings(tokenize_s=0.001, queue_s=0.002, run_s=1.0)
    request = server.record.calls[0].request
    assert (request.options.top_k, request.model.version) == (2, 3)


async def test_spans_of_a_token_head_and_its_options(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        reply = await client.classify("ner", ["met Anna", [5, 6]], aggregation="max", ignore_labels=["O", "LOC"])
        streamed = [outcome async for outcome in client.classify_stream("ner", ["met Anna"], aggregation="simple")]
        await client.classify("demo", "x", overflow="windows", pooling="max", ignore_labels=[])
    anna = types.TokenSpan(label="PER", score=0.75, start=4, end=8)
    assert reply.head == "token"
    assert [result.spans for result in reply] == [(anna,), (types.TokenSpan(label="PER", score=0.75, start=1, end=2),)]
    assert reply[0].labels == reply[0].scores == ()
    assert streamed[0].result is not None
    assert streamed[0].result.spans == (anna,)
    first, second, third = (call.request for call in server.record.calls)
    assert (first.options.aggregation, list(first.options.ignore_labels.names)) == (5, ["O", "LOC"])
    assert second.start.options.aggregation == 2
    assert not second.start.options.HasField("ignore_labels")
    assert third.options.HasField("ignore_labels")
    assert third.options.pooling == 2


@pytest.mark.parametrize(("one", "label"), [("x", "short"), (("a", "b"), "pair"), ([1, 2, 3], "tokens")])
async def test_a_single_input_needs_no_list(server: FakeServer, one: types.ClassifyInput, label: str) -> None:
    async with AsyncClient(server.address) as client:
        reply = await client.classify("demo", one)
    assert [result.label for result in reply] == [label]


async def test_request_id_priority_label_and_deadline_travel(server: FakeServer) -> None:
    async with AsyncClient(server.address, token="secret") as client:
        reply = await client.classify("demo", "x", label="stable", priority="high", request_id="mine", timeout=5)
    call = server.record.calls[0]
    assert reply.request_id == call.metadata["x-request-id"] == "mine"
    assert call.metadata["authorization"] == "Bearer secret"
    assert (call.request.model.label, call.request.priority) == ("stable", 3)
    assert call.time_remaining_s is not None
    assert 3 < call.time_remaining_s < 5.1, "gRPC rounds deadlines"


async def test_every_unary_call_has_a_deadline_unless_told_otherwise(server: FakeServer) -> None:
    async with AsyncClient(server.address, timeout=9) as client:
        await client.get_model("demo")
        await client.get_model("demo", timeout=None)
    async with AsyncClient(server.address) as client:
        await client.get_model("demo")
    from_client, none, default = (call.time_remaining_s for call in server.record.calls)
    assert from_client is not None
    assert 8 < from_client < 10  # gRPC rounds up
    assert none is None or none > 1e6
    assert default is not None
    assert 25 < default < 31


async def test_unavailable_with_pushback_is_retried_for_classify(server: FakeServer) -> None:
    began = asyncio.get_running_loop().time()
    async with AsyncClient(server.address) as client:
        assert len(await client.classify("flaky", "x")) == 1
    assert server.record.attempts["Classify"] == 3
    assert asyncio.get_running_loop().time() - began >= 2 * PUSHBACK_MS / 1000


async def test_negative_pushback_forbids_the_retry(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(UnavailableError):
            await client.classify("never", "x")
    assert server.record.attempts["Classify"] == 1


async def test_generate_is_never_sent_twice(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.generate("flaky", "x")
        assert caught.value.retry_after_s == pytest.approx(PUSHBACK_MS / 1000)
        with pytest.raises(UnavailableError):
            await anext(client.stream_generate("flaky", "x"))
    assert server.record.attempts == {"Generate": 1, "StreamGenerate": 1}


async def test_a_bad_input_is_named_by_its_violation(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequestError, match="is empty") as caught:
            await client.classify("demo", ["good", ""], request_id="r1")
    (violation,) = caught.value.violations
    assert (violation.field, violation.description) == ("inputs[1].text", "is empty")
    assert (caught.value.reason, caught.value.request_id) == ("INVALID_REQUEST", "r1")


async def test_not_found_carries_reason_and_metadata(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(NotFoundError, match="there is: demo") as caught:
            await client.classify("missing", "x")
    assert (caught.value.reason, caught.value.metadata) == ("MODEL_NOT_FOUND", {"model": "missing"})
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"version": 1, "label": "stable"}, "model.label"),
        ({"version": 0}, "model.version"),
        ({"priority": "urgent"}, "priority"),
        ({"scores": "odds"}, "options.scores"),
        ({"overflow": "explode"}, "options.overflow"),
        ({"top_k": -1}, "options.top_k"),
        ({"pooling": "sum"}, "options.pooling"),
        ({"aggregation": "last"}, "options.aggregation"),
        ({"ignore_labels": "O"}, "options.ignore_labels"),
        ({"timeout": 0}, "timeout"),
        ({"request_id": "x" * 65}, "request_id"),
        ({"request_id": "line\nbreak"}, "request_id"),
    ],
)
async def test_what_cannot_be_sent_is_refused_here(
    server: FakeServer, arguments: dict[str, object], field: str
) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.classify("demo", "x", **arguments)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]
    assert server.record.calls == []


async def test_an_input_of_a_wrong_type_is_named(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequestError, match=r"inputs\[1\]"):
            await client.classify("demo", ["good", {"bad": 1}])  # type: ignore[list-item]


async def test_a_deadline_that_passes_is_a_deadline_error_and_ends_the_work(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(DeadlineError):
            await client.classify("silent", "x", timeout=0.2)
    assert await seen(server.record.cancelled)


async def test_cancelling_the_caller_cancels_the_call(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(client.classify("silent", "x"))
        await asyncio.to_thread(server.record.wait_for_call)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await seen(server.record.cancelled)


async def test_closing_the_client_ends_its_calls_with_an_error_of_ours(server: FakeServer) -> None:
    client = AsyncClient(server.address)
    task = asyncio.create_task(client.classify("silent", "x"))
    await asyncio.to_thread(server.record.wait_for_call)
    await client.close()
    with pytest.raises(CancelledRpcError, match="closed"):
        await task
    with pytest.raises(ConfigurationError, match="closed"):
        await client.classify("demo", "x")


async def test_no_server_is_said_with_its_address() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(UnavailableError, match=r"no server can be reached at 127\.0\.0\.1:1: .*refused"):
            await client.get_model("demo")


# --- classify_stream --------------------------------------------------------------------------------------------------


async def numbers(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield f"text {number}"
        await asyncio.sleep(0)


async def test_a_stream_keeps_the_order_though_answers_do_not(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        outcomes = [outcome async for outcome in client.classify_stream("demo", numbers(50))]
        loose = [outcome.index async for outcome in client.classify_stream("demo", numbers(50), ordered=False)]
    assert [outcome.index for outcome in outcomes] == list(range(50))
    assert {outcome.result.label for outcome in outcomes if outcome.result} == {"short"}
    assert loose != sorted(loose)
    assert sorted(loose) == list(range(50))
    assert outcomes[0].served_by == types.ServedBy(model="demo", version=7)


async def test_bad_items_are_values_and_the_stream_goes_on(server: FakeServer) -> None:
    items = ["first", "", {"no": "input"}, ("a", "b"), [1, 2]]
    async with AsyncClient(server.address) as client:
        outcomes = [outcome async for outcome in client.classify_stream("demo", items)]  # type: ignore[arg-type]
    labels = [outcome.result.label if outcome.result else type(outcome.error).__name__ for outcome in outcomes]
    assert labels == ["short", "InvalidRequestError", "InvalidRequestError", "pair", "tokens"]
    assert outcomes[1].error is not None
    assert outcomes[1].error.violations[0].field == "input.text"


async def test_items_at_hand_share_messages_and_one_alone_does_not_wait_for_company(server: FakeServer) -> None:
    async def one_by_one() -> AsyncIterator[str]:
        for number in range(3):
            yield f"text {number}"
            await asyncio.to_thread(server.record.wait_for_items, number + 1)

    async with AsyncClient(server.address) as client:
        assert len([outcome async for outcome in client.classify_stream("prompt", one_by_one())]) == 3
        assert server.record.num_items_of_messages == [1, 1, 1]
        outcomes = [outcome async for outcome in client.classify_stream("demo", ["x"] * 200)]
    assert len(outcomes) == 200
    sizes = server.record.num_items_of_messages[3:]
    assert sum(sizes) == 200
    assert len(sizes) < 100
    assert max(sizes) <= 32


async def test_an_empty_stream_ends_at_once(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        assert [outcome async for outcome in client.classify_stream("demo", [])] == []


async def test_a_stream_holds_no_more_items_than_it_may(server: FakeServer) -> None:
    taken = 0

    async def endless() -> AsyncIterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "x"

    async with AsyncClient(server.address) as client:
        async with client.classify_stream("demo", endless(), max_unanswered=8) as outcomes:
            for expected in range(5):
                assert (await anext(outcomes)).index == expected
            await asyncio.sleep(0.3)
        assert 5 < taken <= 5 + 8
        assert await seen(server.record.cancelled)


async def test_a_stream_that_breaks_ends_with_its_error(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(UnavailableError, match="engine was lost"):
            async for _ in client.classify_stream("dying", numbers(50)):
                pass
        with pytest.raises(NotFoundError):
            async for _ in client.classify_stream("missing", numbers(50)):
                pass
    assert server.record.attempts["StreamClassify"] == 2


async def test_what_the_callers_iterable_raises_comes_out(server: FakeServer) -> None:
    async def failing() -> AsyncIterator[str]:
        yield "x"
        await asyncio.to_thread(server.record.wait_for_call)
        raise LookupError("no more")

    async with AsyncClient(server.address) as client:
        with pytest.raises(LookupError, match="no more"):
            async for _ in client.classify_stream("demo", failing()):
                pass
        assert await seen(server.record.cancelled)


async def test_an_item_that_is_never_answered_ends_the_stream(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(DeadlineError, match=r"item 0 was not answered within 0\.2 s"):
            async for _ in client.classify_stream("silent", numbers(2), item_timeout=0.2):
                pass


async def test_a_slow_producer_is_not_a_slow_server(server: FakeServer) -> None:
    async def slow() -> AsyncIterator[str]:
        for _ in range(3):
            await asyncio.sleep(0.15)
            yield "x"

    async with AsyncClient(server.address) as client:
        outcomes = [outcome async for outcome in client.classify_stream("prompt", slow(), item_timeout=0.1)]
    assert len(outcomes) == 3


# --- leaving early ----------------------------------------------------------------------------------------------------


async def test_break_cancels_though_the_stream_is_still_held(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        stream = client.stream_generate("endless", "x")
        async for _ in stream:
            break
        assert await seen(server.record.cancelled)
        with pytest.raises(RuntimeError, match="not been read"):
            _ = stream.summary


async def test_an_exception_in_the_loop_cancels(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:

        async def stumble() -> None:
            async for _ in client.stream_generate("endless", "x"):
                raise LookupError

        with pytest.raises(LookupError):
            await stumble()
        gc.collect()
        assert await seen(server.record.cancelled)


async def test_leaving_the_context_cancels_and_closing_twice_is_fine(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        async with client.stream_generate("endless", "x") as stream:
            assert (await anext(stream)).text == "tick "
            async for _ in stream:
                break
        await stream.aclose()
        assert await seen(server.record.cancelled)


async def test_closing_a_stream_that_never_began_sends_nothing(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        await client.stream_generate("endless", "x").aclose()
    assert server.record.calls == []


async def test_cancelling_the_reader_cancels_the_stream(server: FakeServer) -> None:
    began = asyncio.Event()

    async def read(client: AsyncClient) -> None:
        async for _ in client.watch_training_job("job-open"):
            began.set()

    async with AsyncClient(server.address) as client:
        task = asyncio.create_task(read(client))
        await asyncio.wait_for(began.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await seen(server.record.cancelled)


# --- generate ---------------------------------------------------------------------------------------------------------


async def test_generate_sends_every_option_and_reads_the_summary(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        result = await client.generate(
            "demo",
            "once",
            max_new_tokens=8,
            min_new_tokens=1,
            temperature=0,
            top_k=3,
            top_p=0.5,
            min_p=0.25,
            repetition_penalty=1.5,
            seed=11,
            stop="END",
            stop_token_ids=[4],
            ignore_eos=True,
            logprobs=0,
            num_completions=2,
        )
    sent = server.record.calls[0].request.generation
    assert sent.sampling.HasField("temperature")
    assert sent.sampling.temperature == 0
    assert (sent.sampling.top_k, sent.sampling.top_p, sent.sampling.min_p) == (3, 0.5, 0.25)
    assert (sent.sampling.repetition_penalty, sent.sampling.seed) == (1.5, 11)
    assert (list(sent.stop.strings), list(sent.stop.token_ids), sent.stop.ignore_eos) == (["END"], [4], True)
    assert (sent.stop.max_new_tokens, sent.stop.min_new_tokens) == (8, 1)
    assert sent.HasField("logprobs")
    assert [completion.text for completion in result.completions] == ["once goes on 0", "once goes on 1"]
    assert (result.text, result.version) == ("once goes on 0", 2)
    first = result.completions[0]
    assert (first.finish_reason, first.stop_string, first.stop_token_id) == ("stop_string", "END", None)
    assert result.summary.time_to_first_token_s == pytest.approx(0.04)
    assert (result.summary.num_prompt_tokens, result.summary.num_output_tokens) == (3, 4)


async def test_unset_options_are_not_sent(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        await client.generate("demo", "once")
    sent = server.record.calls[0].request.generation
    assert not any(sent.sampling.HasField(name) for name in ("temperature", "top_p", "repetition_penalty", "seed"))
    assert not sent.stop.HasField("max_new_tokens")
    assert not sent.HasField("logprobs")


@pytest.mark.parametrize(
    "message",
    [types.ChatMessage(role="user", content="hello"), {"role": "user", "content": "hello"}, ("user", "hello")],
)
async def test_messages_are_taken_in_three_forms(server: FakeServer, message: types.AnyChatMessage) -> None:
    async with AsyncClient(server.address) as client:
        result = await client.generate("demo", messages=[("system", "be kind"), message])
    assert result.text == "1:be kind 2:hello 0"


async def test_a_prompt_is_given_in_exactly_one_way(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        for arguments in ({}, {"token_ids": [1], "messages": [("user", "x")]}):
            with pytest.raises(InvalidRequestError, match="exactly one"):
                await client.generate("demo", **arguments)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.role: is 'boss'; allowed are system, user"):
            client.stream_generate("demo", messages=[("boss", "x")])
        with pytest.raises(InvalidRequestError, match="generation"):
            await client.generate("demo", "x", seed=-1)


async def test_a_stream_gives_deltas_and_then_its_summary(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client, client.stream_generate("demo", token_ids=[3, 4]) as stream:
        deltas = [delta async for delta in stream]
        summary = stream.summary
    assert "".join(delta.text for delta in deltas) == "3 4 "
    assert deltas[1].token_ids == (1,)
    assert deltas[1].logprobs[0].logprob == -0.5
    assert summary.served_by.version == 2
    assert summary.request_id == stream.request_id == server.record.calls[0].metadata["x-request-id"]


async def test_a_stream_without_a_summary_is_a_fault(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(ServerFaultError, match="without a summary"):
            async for _ in client.stream_generate("cut", "x"):
                pass


# --- models and training ----------------------------------------------------------------------------------------------


async def test_models_are_listed_over_pages_and_read_whole(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        models = await client.list_models()
        assert await client.unload_model("demo") == (2, 1)
        assert await client.unload_model("demo", 1) == (1,)
        assert (await client.load_model("demo", 5)).version == 5
        with pytest.raises(PreconditionError, match="live"):
            await client.delete_model_version("demo", 2)
        with pytest.raises(ConflictError):
            await client.set_model_label("demo", "stable", 1, expected_version=0)
        await client.set_model_label("demo", "stable", None, expected_version=2)
    assert [model.name for model in models] == ["demo", "other"]
    live, refused = models[0].versions
    assert (live.state, live.labels, live.load_s, live.metrics) == ("live", ("stable",), 2.0, {"accuracy": 0.875})
    assert (refused.state, refused.reason, refused.load_s, refused.publish_time) == (
        "rejected",
        "golden outputs differ",
        None,
        None,
    )
    removal = server.record.calls[-1].request
    assert not removal.HasField("version")
    assert removal.expected_version == 2


async def test_a_dataset_is_uploaded_once(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\n" + b"x,y\n" * 400_000)
    progress: list[int] = []
    async with AsyncClient(server.address) as client:
        first = await client.upload_dataset(path, on_progress=lambda sent, total: progress.append(sent))
        again = await client.upload_dataset(path)
        assert (await client.get_dataset(first.name)).format == "csv"
        await client.delete_dataset(first.name)
    assert first == again
    assert progress[-1] == first.size_bytes == path.stat().st_size
    assert server.record.attempts["UploadDataset"] == 1


async def test_an_upload_refused_at_the_door_says_why(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 5_000_000)
    async with AsyncClient(server.address) as client:
        with pytest.raises(InvalidRequestError, match="over the limit"):
            await client.upload_dataset(path)
        path.write_bytes(b"")
        with pytest.raises(InvalidRequestError, match="is empty"):
            await client.upload_dataset(path)
        with pytest.raises(InvalidRequestError, match="name its format"):
            await client.upload_dataset(tmp_path / "rows.txt")


async def test_jobs_are_listed_up_to_a_limit(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        assert [job.id for job in await client.list_training_jobs()] == [f"job-{number}" for number in range(5)]
        assert len(await client.list_training_jobs(limit=3)) == 3


async def test_a_job_is_created_from_a_tree_under_one_request_id(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        job = await client.create_training_job({"name": "bbc", "lora": {}}, request_id="once")
    sent = server.record.calls[0]
    assert sent.request.request_id == sent.metadata["x-request-id"] == "once"
    assert sent.request.spec.HasField("lora")
    assert (job.state, job.ended, job.published_version) == ("succeeded", True, 4)


async def test_a_watch_goes_on_where_it_was_lost(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        events = [event async for event in client.watch_training_job("job-lost")]
    assert [event.sequence for event in events] == [1, 2, 3, 4, 5, 6, 7]
    assert [call.request.from_sequence for call in server.record.of("WatchTrainingJob")] == [1, 3, 6]
    kinds = [type(event.event) for event in events]
    assert kinds[1:6] == [
        types.JobProgress,
        types.JobWarning,
        types.CheckpointSaved,
        types.Evaluation,
        types.VersionPublished,
    ]


async def test_a_watch_gives_up_in_the_end(server: FakeServer) -> None:
    async with AsyncClient(server.address) as client:
        with pytest.raises(UnavailableError):
            async for _ in client.watch_training_job("never", resume_s=0.5):
                pass
        assert server.record.attempts["WatchTrainingJob"] >= 2
        with pytest.raises(DeadlineError):
            async for _ in client.watch_training_job("job-open", timeout=0.3):
                pass
