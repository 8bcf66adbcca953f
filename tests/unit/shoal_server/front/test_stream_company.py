"""StreamClassify under random company: good items and bad ones, messages of any size, answers late and out of order."""

from __future__ import annotations

import asyncio

from front_world import FakeEngine, classify_world
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.v1 import classify_pb2
from shoal_server.config import LimitsConfig, ServerConfig
from shoal_server.ipc.messages import ClassifyCall

START = classify_pb2.StreamClassifyRequest(start={"model": {"name": "topics"}})
GOOD = [
    {"text": "the fox"},
    {"token_ids": {"ids": [0, 3, 1]}},
    {"token_ids": {"ids": [5] * 16}},
    {"pair": {"first": "a fox", "second": "the dog"}},
]
BAD = [
    {},
    {"text": ""},
    {"text": "fox " * 15},  # too many tokens
    {"text": "x" * 101},  # too many characters
    {"token_ids": {"ids": []}},
    {"token_ids": {"ids": [3, 9]}},  # beyond the vocabulary
    {"token_ids": {"ids": [2**32 - 1]}},
    {"token_ids": {"ids": [5] * 17}},
    {"pair": {"first": "", "second": "dog"}},
]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
async def test_every_item_of_any_stream_is_answered_once_and_whatever_its_company(data: st.DataObject) -> None:
    """Items of every kind, good and bad, in messages of any size, some of them answered late and out of order."""
    kinds = [*GOOD, *BAD]
    chosen = data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=40))
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=len(chosen), max_size=len(chosen)))
    late = data.draw(st.sets(st.integers(0, 5)))
    config = ServerConfig(limits=LimitsConfig(max_stream_items=16, max_characters=100))
    async with classify_world(config) as world:

        def answer(engine: FakeEngine, call: ClassifyCall) -> None:
            if len(engine.calls(ClassifyCall)) % 6 in late:
                asyncio.get_running_loop().call_later(0.01, engine.answer_classify, call)
            else:
                engine.answer_classify(call)

        world.engine.on_classify = answer
        numbered = [{"id": i, "input": kind} for i, kind in enumerate(chosen)]
        requests = [START]
        for size in sizes:
            if part := numbered[:size]:
                requests.append(classify_pb2.StreamClassifyRequest(items=part))
            numbered = numbered[size:]
        found: dict[int, classify_pb2.StreamClassifyAnswer] = {}
        async for message in world.classify.StreamClassify(iter(requests)):
            for one in message.answers:
                assert one.id not in found
                found[one.id] = one
    assert sorted(found) == list(range(len(chosen)))
    for i, kind in enumerate(chosen):
        assert found[i].HasField("result") == (kind in GOOD), kind
