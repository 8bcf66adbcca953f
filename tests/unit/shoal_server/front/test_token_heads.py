"""Token heads through real gRPC: spans, offsets, windows, and what is refused."""

from __future__ import annotations

import math
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from front_world import CLS, SEP, FakeEngine, World, classifier, ids_of, times, word_tokenizer, world, write_version
from google.rpc import error_details_pb2, status_pb2
from shoal.v1 import classify_pb2
from shoal_server.ipc.messages import ClassifyCall, ClassifyDone

LABELS = ("O", "B-PER", "I-PER")
SCORE = math.exp(5) / (math.exp(5) + 2)  # of the label with logit 5, the others having 0


def label_by_id(engine: FakeEngine, call: ClassifyCall) -> None:
    """The label of a token is its id modulo three: good and dog are O, bad and the are B-PER, fox and a are I-PER."""
    logits = array("f")
    for sequence in call.sequences:
        for token_id in ids_of(sequence):
            logits.extend([5.0 if label == token_id % 3 else 0.0 for label in range(3)])
    engine.send(ClassifyDone(request_id=call.request_id, logits=logits.tobytes(), times=times()))


@asynccontextmanager
async def token_world() -> AsyncIterator[World]:
    async with world() as made:
        made.engine.on_classify = label_by_id
        path = write_version(made.repository, word_tokenizer(), head="token", labels=LABELS)
        await made.route(classifier(path))
        yield made


def request(*inputs: dict[str, Any], **options: Any) -> classify_pb2.ClassifyRequest:
    return classify_pb2.ClassifyRequest(model={"name": "topics"}, inputs=inputs, options=options)


def spans(result: classify_pb2.Classification) -> list[tuple[str, int, int]]:
    return [(span.label, span.start, span.end) for span in result.token_spans]


async def spans_of(content: dict[str, Any], **options: Any) -> list[tuple[str, int, int]]:
    async with token_world() as made:
        reply = await made.classify.Classify(request(content, **options))
    return spans(reply.results[0])


async def test_neighbours_of_one_group_are_one_span_and_others_are_left_out() -> None:
    async with token_world() as made:
        texts = ({"text": "dog the fox good bad"}, {"text": "dog"})
        reply = await made.classify.Classify(request(*texts, aggregation=classify_pb2.AGGREGATION_SIMPLE))
    assert reply.head == classify_pb2.HEAD_KIND_TOKEN
    assert list(reply.labels) == list(LABELS)
    assert spans(reply.results[0]) == [("PER", 4, 11), ("PER", 17, 20)]
    assert [span.score for span in reply.results[0].token_spans] == pytest.approx([SCORE, SCORE])
    assert spans(reply.results[1]) == []
    assert [result.num_input_tokens for result in reply.results] == [7, 3]
    assert not reply.results[0].label_ids
    assert not reply.results[0].scores


async def test_by_default_each_token_bears_its_own_label_and_o_is_left_out() -> None:
    assert await spans_of({"text": "dog the fox"}) == [("B-PER", 4, 7), ("I-PER", 8, 11)]


async def test_labels_left_out_are_those_asked_for() -> None:
    assert await spans_of({"text": "dog the"}, ignore_labels={"names": ["B-PER"]}) == [("O", 0, 3)]
    assert await spans_of({"text": "dog the"}, ignore_labels={}) == [("O", 0, 3), ("B-PER", 4, 7)]


async def test_offsets_count_code_points() -> None:
    """The emoji is one code point of four bytes, unknown to the vocabulary; its id 2 makes it I-PER."""
    assert await spans_of({"text": "dog 🙂 the"}) == [("I-PER", 4, 5), ("B-PER", 6, 9)]


async def test_words_bear_one_label() -> None:
    """The dash is unknown (I-PER) and so begins a word, which takes in "dog" since no space stands between them."""
    first = {"aggregation": classify_pb2.AGGREGATION_FIRST}
    assert await spans_of({"text": "good-dog"}, ignore_labels={}, **first) == [("O", 0, 4), ("PER", 4, 8)]


@pytest.mark.parametrize(
    ("overflow", "first_word"),
    [(classify_pb2.OVERFLOW_TRUNCATE_END, 0), (classify_pb2.OVERFLOW_TRUNCATE_START, 6)],
)
async def test_offsets_of_a_truncated_text_are_those_of_the_whole(overflow: int, first_word: int) -> None:
    """20 words of 3 letters, of which 14 fit."""
    found = await spans_of({"text": "the " * 20}, overflow=overflow)
    assert found == [("B-PER", 4 * word, 4 * word + 3) for word in range(first_word, first_word + 14)]


async def test_windows_read_everything_and_each_token_once() -> None:
    words = ["the", "fox", "dog"] * 15
    async with token_world() as made:
        options = {"overflow": classify_pb2.OVERFLOW_WINDOWS, "aggregation": classify_pb2.AGGREGATION_SIMPLE}
        reply = await made.classify.Classify(request({"text": " ".join(words)}, {"text": "the fox"}, **options))
    assert reply.results[0].num_windows == 4
    assert spans(reply.results[0]) == [("PER", 12 * i, 12 * i + 7) for i in range(15)]
    assert spans(reply.results[1]) == [("PER", 0, 7)]


async def test_a_token_in_two_windows_takes_the_one_in_which_it_stands_farther_from_a_cut() -> None:
    """Each window answers with a label of its own.

    20 words make windows [0, 14) and [6, 20): word 9 is 4 words from the first's cut and 3 from the second's, word 10
    the other way round.
    """

    def label_by_window(engine: FakeEngine, call: ClassifyCall) -> None:
        rows = [[0.0, 5.0 * (1 - window), 5.0 * window] for window, s in enumerate(call.sequences) for _ in ids_of(s)]
        logits = array("f", [value for row in rows for value in row])
        engine.send(ClassifyDone(request_id=call.request_id, logits=logits.tobytes(), times=times()))

    async with token_world() as made:
        made.engine.on_classify = label_by_window
        reply = await made.classify.Classify(request({"text": "dog " * 20}, overflow=classify_pb2.OVERFLOW_WINDOWS))
        (call,) = made.engine.calls(ClassifyCall)
    assert [len(ids_of(sequence)) for sequence in call.sequences] == [16, 16]
    assert [span.label for span in reply.results[0].token_spans] == ["B-PER"] * 10 + ["I-PER"] * 10


async def test_spans_of_token_ids_count_ids_and_leave_special_tokens_out() -> None:
    framed, bare = {"token_ids": {"ids": [CLS, 6, 7, 5, SEP]}}, {"token_ids": {"ids": [7, 5]}}
    assert await spans_of(framed, aggregation=classify_pb2.AGGREGATION_SIMPLE) == [("PER", 2, 4)]
    assert await spans_of(bare) == [("B-PER", 0, 1), ("I-PER", 1, 2)]


async def test_spans_of_truncated_token_ids_count_from_the_first_id_given() -> None:
    found = await spans_of({"token_ids": {"ids": [CLS, *[7] * 20, SEP]}}, overflow=classify_pb2.OVERFLOW_TRUNCATE_START)
    assert found == [("B-PER", i, i + 1) for i in range(7, 21)]


@pytest.mark.parametrize(
    ("content", "options", "field", "words"),
    [
        ({"pair": {"first": "a", "second": "a"}}, {}, "inputs[1].pair", ["token head"]),
        ({"token_ids": {"ids": [7]}}, {"aggregation": 3}, "inputs[1].token_ids", ["AGGREGATION_FIRST", "SIMPLE"]),
        ({"text": "a"}, {"top_k": 1}, "options.top_k", ["token head"]),
        ({"text": "a"}, {"scores": 2}, "options.scores", ["token head"]),
        ({"text": "a"}, {"overflow": 4, "pooling": 2}, "options.pooling", ["token head"]),
        ({"text": "a"}, {"aggregation": 9}, "options.aggregation", ["9"]),
        ({"token_ids": {"ids": [7] * 17}}, {"overflow": 4}, "options.overflow", ["token ids"]),
    ],
)
async def test_what_a_token_head_cannot_answer_is_refused(
    content: dict[str, Any], options: dict[str, Any], field: str, words: list[str]
) -> None:
    async with token_world() as made:
        await refused_for(made, request({"text": "the"}, content, **options), field, words)
        assert made.engine.calls(ClassifyCall) == []
        await made.classify.Classify(request({"text": "the"}))  # nothing else suffers


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"aggregation": 1}, "options.aggregation", ["token head", "single_label"]),
        ({"ignore_labels": {}}, "options.ignore_labels", ["token head", "single_label"]),
        ({"pooling": 1}, "options.pooling", ["OVERFLOW_WINDOWS"]),
        ({"overflow": 4, "pooling": 9}, "options.pooling", ["9"]),
    ],
)
async def test_what_other_heads_cannot_answer_is_refused(options: dict[str, Any], field: str, words: list[str]) -> None:
    async with world() as made:
        await made.route(classifier(write_version(made.repository, word_tokenizer())))
        await refused_for(made, request({"text": "the"}, **options), field, words)


async def refused_for(made: World, message: classify_pb2.ClassifyRequest, field: str, words: list[str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await made.classify.Classify(message)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violated(caught.value) == [field]
    assert all(word in (caught.value.details() or "") for word in words), caught.value.details()


def violated(error: grpc.aio.AioRpcError) -> list[str]:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad) for detail in status.details)
    return [violation.field for violation in bad.field_violations]


async def test_a_stream_answers_with_spans_and_says_which_head() -> None:
    async with token_world() as made:
        call = made.classify.StreamClassify()
        await call.write(stream_start(aggregation=classify_pb2.AGGREGATION_SIMPLE))
        await call.write(classify_pb2.StreamClassifyRequest(items=[{"id": 7, "input": {"text": "the fox"}}]))
        answer = await call.read()
        await call.done_writing()
    assert (answer.head, list(answer.labels)) == (classify_pb2.HEAD_KIND_TOKEN, list(LABELS))
    assert answer.answers[0].id == 7
    assert spans(answer.answers[0].result) == [("PER", 0, 7)]


async def test_a_stream_whose_options_do_not_fit_the_head_ends_at_once() -> None:
    async with token_world() as made:
        call = made.classify.StreamClassify()
        await call.write(stream_start(top_k=2))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert violated(caught.value) == ["start.options.top_k"]


def stream_start(**options: Any) -> classify_pb2.StreamClassifyRequest:
    return classify_pb2.StreamClassifyRequest(start={"model": {"name": "topics"}, "options": options})


async def test_the_windows_of_a_text_may_be_joined_by_their_largest_logits() -> None:
    """As in the test of the mean: the windows' first words are good (3) and bad (4), both have 16 tokens."""
    async with world() as made:
        await made.route(classifier(write_version(made.repository, word_tokenizer())))
        options = {"overflow": 4, "pooling": classify_pb2.WINDOW_POOLING_MAX, "scores": 2}
        reply = await made.classify.Classify(request({"text": "good " * 6 + "bad " * 14}, **options))
    (result,) = reply.results
    assert dict(zip(result.label_ids, result.scores, strict=True)) == {0: 16.0, 1: 4.0, 2: 0.0}
